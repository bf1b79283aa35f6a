"""The checks that need a GPU, called by `benchmarks/gpu.sh STAGE`: correctness, determinism, speed, statistics, train,
outliers.

Each row is one measurement and is on the disk before the next one starts; a stage that is called again skips the rows
that are there. A call stops by itself before 9 minutes are over, with exit code 3 if rows are still missing, and 1 if a
row says that something is wrong. A row that failed is not tried again unless its line is deleted.
"""

import argparse
import csv
import math
import os
import statistics as stats
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import kernels
from benchmarks import attention, floors, gpt2, targets
from benchmarks.cases import Call, Job, Refused, Row, Unfinished, inputs, learned, variants
from benchmarks.correctness import correctness
from benchmarks.timing import machine, synchronise

SECONDS = 500.0


def determinism(call: Call) -> Iterator[Job]:
    """The same bits twice, forward and backward."""
    device = call.device
    length, size, heads = (4096, 64, 8) if device == "cuda" else (40, 16, 2)
    kind = torch.bfloat16 if device == "cuda" else torch.float32

    def twice(name: str) -> Row:
        parts = variants(1, heads, length, size, kind, device)[name]
        q, k, v = inputs(1, heads, heads, length, size, kind, device)

        def once() -> list[Tensor]:
            y = kernels.attend(q, k, v, parts, backend="triton")
            return [y, *torch.autograd.grad(y.float().square().sum(), [q, k, v, *learned(parts)])]

        same = all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))
        return {"result": "ok" if same else "WRONG"}

    for name in variants(1, 1, 1, 1, torch.float32):
        yield f"{name}/triton/T{length}", lambda name=name: twice(name)


def speed(call: Call) -> Iterator[Job]:
    """Forward, and forward with backward, of ours and the peers: milliseconds, TFLOP/s, the floor, and memory."""
    device = call.device
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
        "peak MiB": _peak(one.both, shape.device),
    }


def _peak(call: Callable[[], object], device: str) -> str:
    """Memory that a call takes at most, beside what is there before it; not known on a CPU."""
    if device != "cuda":
        return ""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.0f}"


def statistics(call: Call) -> Iterator[Job]:
    """The statistics in the kernel: their time beside the forward's, and their agreement with the blockwise ones."""
    device = call.device
    for length in (1024, 4096, 16384) if device == "cuda" else (40,):
        for name in ("softmax", "sink_key_value", "context_scaling", "sigmoid", "softpick", "clipped_softmax"):
            yield f"{name}/T{length}", lambda name=name, length=length: _statistics(name, length, device)


def _statistics(name: str, length: int, device: str) -> Row:
    size, heads = (64, 12) if device == "cuda" else (16, 2)
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    parts = variants(1, heads, length, size, kind, device)[name]
    q, k, v = inputs(1, heads, heads, length, size, kind, device)
    with torch.no_grad():
        forward = _milliseconds(lambda: kernels.attend(q, k, v, parts, backend="triton"), device)
        measure = _milliseconds(lambda: kernels.statistics(q, k, parts, backend="triton"), device)
        work = floors.statistics(
            1, heads, heads, length, size, pairs=floors.visible_pairs(length), itemsize=kind.itemsize
        )
        floor = work.seconds(torch.cuda.get_device_name()) if device == "cuda" else None
        found = {
            "forward ms": f"{forward:.4f}",
            "statistics ms": f"{measure:.4f}",
            "floor of statistics ms": "" if floor is None else f"{floor * 1e3:.4f}",
        }
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


def outliers(call: Call) -> Iterator[Job]:
    """GPT-2 124M with each mechanism of 2502.06415 until sinks form, and what compression costs it."""
    from benchmarks import gpt2_sinks  # Lightning: the kernels' stages do without it

    return gpt2_sinks.outliers(call)


def _milliseconds(call: Callable[[], object], device: str, repeats: int = 20) -> float:
    """The median of single calls after a warm-up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats if device == "cuda" else 2):
        synchronise()
        began = time.perf_counter()
        call()
        synchronise()
        times.append(time.perf_counter() - began)
    return stats.median(times) * 1e3


def _alive(device: str) -> bool:
    """Whether the device still computes: after an illegal access nothing of this process does."""
    try:
        synchronise()
        return bool(torch.ones(1, device=device).sum() == 1)
    except RuntimeError:
        return False


STAGES: dict[str, Callable[[Call], Iterator[Job]]] = {
    "correctness": correctness,
    "determinism": determinism,
    "speed": speed,
    "statistics": statistics,
    "train": gpt2.train,
    "outliers": outliers,
}


def run(stage: str, call: Call) -> tuple[int, int, int]:
    """Measure the rows of a stage that its file lacks. Returns the rows done, missing and wrong.

    Refused: the stage cannot go on with what it finds on the disk; no row is written for it.
    """
    call.out.mkdir(parents=True, exist_ok=True)
    path = call.out / f"{stage}.csv"
    known = _read(path)
    done = missing = 0
    jobs = list(STAGES[stage](call))
    for key, job in jobs:
        if key in known:
            done += 1
            continue
        if call.over:
            missing += 1
            continue
        lost = False
        try:
            row = job()
        except Unfinished as reason:
            print(f"{key}: {reason}", flush=True)
            missing += 1
            continue
        except Refused:
            raise
        except torch.OutOfMemoryError:
            row = {"result": "out of memory"}
        except Exception as error:  # a row of its own, so that one failing launch does not end a stage for ever
            reason = (str(error).splitlines() or [""])[0][:200]
            row = {"result": "failed", "reason": f"{type(error).__name__}: {reason}"}
            lost = not _alive(call.device)
        cells = [key, *(f"{name}={value}" for name, value in row.items())]
        with open(path, "a", newline="") as file:
            csv.writer(file).writerow(cells)
            file.flush()
            os.fsync(file.fileno())
        known[key] = cells[1:]
        print("  ".join(cells), flush=True)
        done += 1
        if lost:
            raise SystemExit("error: the device does not answer any more after this row; call the stage again")
    ours = [key for key, _ in jobs if "SDPA" not in key and "Flex" not in key]
    wrong = sum(not {"result=WRONG", "result=failed"}.isdisjoint(known.get(key, ())) for key in ours)
    for line in _summary(stage, {key: dict(cell.split("=", 1) for cell in row) for key, row in known.items()}):
        print(line)
    return done, missing, wrong


def _summary(stage: str, rows: dict[str, dict[str, str]]) -> list[str]:
    """What a stage says of all its rows."""
    if stage == "speed":
        return targets.lines(rows)
    if stage == "train":
        return gpt2.bars(rows)
    if stage == "outliers":
        from benchmarks import gpt2_sinks

        return gpt2_sinks.summary(rows)
    return []


def _read(path: Path) -> dict[str, list[str]]:
    """The rows of a stage by their keys; a last one without its end, which a killed call was writing, is cut off."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
    with open(path, newline="") as file:
        return {row[0]: row[1:] for row in csv.reader(file) if row}


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

    call = Call(options.device, options.out, time.monotonic() + SECONDS)
    print(f"{machine()}, triton {triton.__version__}", flush=True)
    code = 0
    for stage in STAGES if options.stage == "all" else [options.stage]:
        try:
            done, missing, wrong = run(stage, call)
        except Refused as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{stage}: {done} rows in {options.out / stage}.csv, {missing} missing, {wrong} wrong", flush=True)
        code = 1 if wrong else code or (3 if missing else 0)
    return code


if __name__ == "__main__":
    sys.exit(main())
