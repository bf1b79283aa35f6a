"""The checks that need a GPU, called by `benchmarks/gpu.sh STAGE`: correctness, determinism, speed, statistics, train.

Each row is one measurement and is on the disk before the next one starts; a stage that is called again skips the rows
that are there. A call stops by itself before 9 minutes are over, with exit code 3 if rows are still missing, and 1 if a
row says that something is wrong.
"""

import argparse
import csv
import math
import os
import statistics as stats
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from benchmarks import attention, floors
from benchmarks.cases import learned, variants
from kernels import backends

SECONDS = 500.0
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Row = dict[str, object]
Job = tuple[str, Callable[[], Row]]


def correctness(device: str) -> Iterator[Job]:
    """Outputs and all gradients against float64: at most twice the error of the eager formula in the same dtype."""
    on_gpu = device == "cuda"
    length, batch, heads = (1000, 2, 8) if on_gpu else (40, 1, 2)
    sizes = (64, 128, 80) if on_gpu else (16,)
    for dtype in ("bfloat16", "float16", "float32") if on_gpu else ("float32",):
        for size in sizes:
            for name in variants(1, 1, 1, 1, torch.float32):
                for packed in (False, True):
                    for backend in ("triton", "vendor"):
                        key = f"{name}/{backend}/{dtype}/D{size}/T{length}" + ("/packed" if packed else "")
                        yield (
                            key,
                            lambda a=(name, backend, dtype, size, packed): _errors(*a, batch, heads, length, device),
                        )


def _errors(
    name: str, backend: str, dtype: str, size: int, packed: bool, batch: int, heads: int, length: int, device: str
) -> Row:
    kind = DTYPES[dtype]
    parts = variants(batch, heads, length, size, kind, device)[name]
    q, k, v = _inputs(batch, heads, heads // 2, length, size, kind, device)
    first = None
    if packed:
        row = torch.arange(length, device=device, dtype=torch.int32)
        first = torch.where(row < length // 3, 0, (row - length // 4).clamp_min(length // 3)).expand(batch, -1)
    reason = backends.obstacle(backend, q, k, parts, first)
    if reason is not None:
        return {"result": "cannot", "reason": reason}
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)

    def run(backend: str, *tensors: Tensor) -> list[Tensor]:
        leaves = [*tensors, *learned(parts)]
        y = kernels.attend(*tensors, parts, first_key_BT=first, backend=backend)
        return [y, *torch.autograd.grad((y * weight.to(y.dtype)).sum(), leaves)]

    doubled = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = run("reference", *doubled)
    eager, fast = run("reference", q, k, v), run(backend, q, k, v)
    worst = 0.0
    for e, f, x in zip(eager, fast, exact, strict=True):
        e, f, x = e.detach().double(), f.detach(), x.detach().double()
        size_of = x.norm().clamp_min(1e-30)
        if not f.isfinite().all():
            return {"result": "WRONG", "reason": "not finite"}
        floor = torch.finfo(f.dtype).eps / 8  # where the eager error is smaller, it is so by luck
        ours = float((f.double() - x).norm() / size_of)
        theirs = float((e - x).norm() / size_of)
        worst = max(worst, ours / max(theirs, floor))
    return {"result": "ok" if worst <= 2 else "WRONG", "error / eager error": f"{worst:.2f}"}


def determinism(device: str) -> Iterator[Job]:
    """The same bits twice, forward and backward."""
    length, size, heads = (4096, 64, 8) if device == "cuda" else (40, 16, 2)
    kind = torch.bfloat16 if device == "cuda" else torch.float32

    def twice(name: str) -> Row:
        parts = variants(1, heads, length, size, kind, device)[name]
        q, k, v = _inputs(1, heads, heads, length, size, kind, device)

        def once() -> list[Tensor]:
            y = kernels.attend(q, k, v, parts, backend="triton")
            return [y, *torch.autograd.grad(y.float().square().sum(), [q, k, v, *learned(parts)])]

        same = all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))
        return {"result": "ok" if same else "WRONG"}

    for name in variants(1, 1, 1, 1, torch.float32):
        yield f"{name}/triton/T{length}", lambda name=name: twice(name)


def speed(device: str) -> Iterator[Job]:
    """Forward, and forward with backward, of ours and the peers: milliseconds, TFLOP/s, and the floor."""
    for size in (64, 128):
        for length in (1024, 4096, 16384) if device == "cuda" else (64,):
            batch, heads = (max(1, 16384 // length), 1024 // size) if device == "cuda" else (1, 2)
            kind = torch.bfloat16 if device == "cuda" else torch.float32
            shape = attention.Shape(batch, heads, heads, length, size, kind, device)
            for one in attention.candidates(shape):
                yield f"{one.name}/D{size}/T{length}", lambda one=one, shape=shape: _speed(one, shape)


def _speed(one: attention.Candidate, shape: attention.Shape) -> Row:
    work = 4.0 * shape.D * floors.visible_pairs(shape.T) * shape.B * shape.H
    forward, both = _milliseconds(one.forward, shape.device), _milliseconds(one.both, shape.device)
    floor = shape.floor(one.parts) if one.backend else None  # a peer need not recompute as we do
    return {
        "forward ms": f"{forward:.4f}",
        "both ms": f"{both:.4f}",
        "forward TFLOP/s": f"{work / forward / 1e9:.1f}",
        "both TFLOP/s": f"{3.5 * work / both / 1e9:.1f}",
        "floor of both ms": "" if floor is None else f"{floor * 1e3:.4f}",
    }


def statistics(device: str) -> Iterator[Job]:
    """The statistics in the kernel: their time beside the forward's, and their agreement with the blockwise ones."""
    for length in (1024, 4096, 16384) if device == "cuda" else (40,):
        for name in ("softmax", "sink_key_value", "context_scaling", "sigmoid", "softpick", "clipped_softmax"):
            yield f"{name}/T{length}", lambda name=name, length=length: _statistics(name, length, device)


def _statistics(name: str, length: int, device: str) -> Row:
    size, heads = (64, 12) if device == "cuda" else (16, 2)
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    parts = variants(1, heads, length, size, kind, device)[name]
    q, k, v = _inputs(1, heads, heads, length, size, kind, device)
    with torch.no_grad():
        forward = _milliseconds(lambda: kernels.attend(q, k, v, parts, backend="triton"), device)
        measure = _milliseconds(lambda: kernels.statistics(q, k, parts, backend="triton"), device)
        found = {"forward ms": f"{forward:.4f}", "statistics ms": f"{measure:.4f}"}
        if length > 4096:
            return found
        fused, blocks = (kernels.statistics(q, k, parts, backend=name) for name in ("triton", "blockwise"))
    worst = 0.0
    for field, expected in vars(blocks).items():
        if expected is not None and expected.dtype != torch.bool:
            actual = getattr(fused, field)
            difference = torch.where(actual == expected, 0, actual - expected).norm()
            size_of = expected.masked_fill(expected.isinf(), 0).norm().clamp_min(1e-6)
            worst = max(worst, float((difference / size_of).nan_to_num(math.inf)))
    return {**found, "result": "ok" if worst < 1e-3 else "WRONG", "difference": f"{worst:.1e}"}


def train(device: str) -> Iterator[Job]:
    """GPT-2 124M (context 1024, bf16 autocast, compiled) on real text: 200 steps; tokens/s, share of the peak, loss."""
    order = ("softmax", "context_scaling", "sink_key_value", "gated_element", "sink_logit", "sigmoid", "softpick")
    for name in order:
        for backend in ("auto", "triton"):
            yield f"{name}/{backend}", lambda name=name, backend=backend: _train(name, backend, device)


def _train(name: str, backend: str, device: str) -> Row:
    from benchmarks.models import optimiser
    from models import GPT, GPTConfig
    from training.compilation import compile_blocks

    on_gpu = device == "cuda"
    config = GPTConfig(vocab_size=50304, context=1024, layers=12, heads=12, width=768, bias=False)
    if not on_gpu:
        config = GPTConfig(vocab_size=256, context=32, layers=1, heads=1, width=16)
    batch, steps = (16, 200) if on_gpu else (2, 4)
    torch.set_float32_matmul_precision("high")
    torch._dynamo.reset()  # all models share the code of a block: past its limit of graphs one would run eagerly
    gpt = GPT(config, name, backend=backend).to(device)
    update = optimiser(gpt)
    if on_gpu:
        compile_blocks(gpt.blocks)
        torch.cuda.reset_peak_memory_stats()
    text = _text(steps * batch * config.context + config.context + 1).to(device)
    losses, seconds = [], []
    for step in range(steps):
        _synchronise(device)
        began = time.perf_counter()
        start = step * batch * config.context
        window = text[start : start + batch * config.context + 1].long()
        inputs, targets = (window[cut].view(batch, -1) for cut in (slice(None, -1), slice(1, None)))
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            logits = gpt(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        update.step()
        update.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        _synchronise(device)
        seconds.append(time.perf_counter() - began)
    tokens = batch * config.context / stats.median(seconds[steps // 4 :])
    parameters = sum(p.numel() for p in gpt.parameters())
    flops = 6 * parameters + 6 * config.layers * config.width * config.context  # a token, causal attention
    peak = next((rate for kind, (rate, _) in floors.RATES.items() if on_gpu and _name() == f"NVIDIA {kind}"), None)
    final = float(torch.stack(losses[-steps // 10 :]).mean())
    return {
        "tokens/s": f"{tokens:.0f}",
        "MFU": "" if peak is None else f"{tokens * flops / peak:.3f}",
        "first loss": f"{float(losses[0]):.3f}",
        "last loss": f"{final:.3f}",
        "peak GiB": f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if on_gpu else "",
        "result": "ok" if final < float(losses[0]) else "WRONG",
    }


def _text(count: int) -> Tensor:
    """`count` bytes of the Python standard library's sources, repeated where they do not suffice."""
    found = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        found += path.read_bytes()
        if len(found) >= count:
            break
    text = torch.frombuffer(found, dtype=torch.uint8)
    return text.repeat(-(-count // len(text)))[:count]


def _inputs(B: int, H: int, G: int, T: int, D: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = [(B, T, heads, D) for heads in (H, max(1, G), max(1, G))]
    drawn = (torch.randn(*shape, generator=generator) for shape in shapes)
    return [x.to(device, dtype).transpose(1, 2).requires_grad_() for x in drawn]


def _milliseconds(call: Callable[[], object], device: str, repeats: int = 20) -> float:
    """The median of single calls after a warm-up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats if device == "cuda" else 2):
        _synchronise(device)
        began = time.perf_counter()
        call()
        _synchronise(device)
        times.append(time.perf_counter() - began)
    return stats.median(times) * 1e3


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _alive(device: str) -> bool:
    """Whether the device still computes: after an illegal access nothing of this process does."""
    try:
        _synchronise(device)
        return bool(torch.ones(1, device=device).sum() == 1)
    except RuntimeError:
        return False


def _name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


STAGES = {
    "correctness": correctness,
    "determinism": determinism,
    "speed": speed,
    "statistics": statistics,
    "train": train,
}


def run(stage: str, out: Path, device: str, deadline: float) -> tuple[int, int, int]:
    """Measure the rows of a stage that `out`/stage.csv lacks. Returns the rows done, missing and wrong."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{stage}.csv"
    known: dict[str, str] = {}
    if path.exists():
        with open(path, newline="") as file:
            known = {row[0]: ",".join(row[1:]) for row in csv.reader(file) if row}
    done = missing = 0
    jobs = list(STAGES[stage](device))
    for key, job in jobs:
        if key in known:
            done += 1
            continue
        if time.monotonic() > deadline:
            missing += 1
            continue
        lost = False
        try:
            row = job()
        except torch.OutOfMemoryError:
            row = {"result": "out of memory"}
        except Exception as error:  # a row of its own, so that one failing launch does not end a stage for ever
            reason = (str(error).splitlines() or [""])[0][:200]
            row = {"result": "failed", "reason": f"{type(error).__name__}: {reason}"}
            lost = not _alive(device)
        cells = [key, *(f"{name}={value}" for name, value in row.items())]
        with open(path, "a", newline="") as file:
            csv.writer(file).writerow(cells)
            file.flush()
            os.fsync(file.fileno())
        known[key] = ",".join(cells[1:])
        print("  ".join(cells), flush=True)
        done += 1
        if lost:
            raise SystemExit("error: the device does not answer any more after this row; call the stage again")
    ours = [key for key, _ in jobs if "SDPA" not in key and "Flex" not in key]
    wrong = sum("WRONG" in known.get(key, "") or "result=failed" in known.get(key, "") for key in ours)
    return done, missing, wrong


def main(argv: list[str] | None = None) -> int:
    """Run one stage, or all of them."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal in the interpreter")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device is visible to torch; --device cpu rehearses the stages", file=sys.stderr)
        return 2
    import triton

    deadline = time.monotonic() + SECONDS
    print(f"{_name()}; torch {torch.__version__}, triton {triton.__version__}", flush=True)
    code = 0
    for stage in STAGES if options.stage == "all" else [options.stage]:
        done, missing, wrong = run(stage, options.out, options.device, deadline)
        print(f"{stage}: {done} rows in {options.out / stage}.csv, {missing} missing, {wrong} wrong", flush=True)
        code = 1 if wrong else code or (3 if missing else 0)
    return code


if __name__ == "__main__":
    sys.exit(main())
