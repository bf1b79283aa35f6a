"""Stage `train` of benchmarks/gpu.py: GPT-2 124M in training, every mechanism in a bare loop, and softmax in `fit`.

Context 1024, bf16 autocast, blocks and loss compiled, bytes of real text. The rows of the Trainer say how it compares
with the bare loop, and how often the host waited for the device between two logging steps, which it never should.
Needs torch, triton and, for the Trainer's row, lightning; nothing of datasets, jsonargparse or wandb.
"""

import csv
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import floors
from benchmarks.cases import Call, Job, Row
from benchmarks.models import step_of
from benchmarks.timing import synchronise
from models import GPT, GPTConfig
from models.attention import examples

WINDOW = 10  # steps: logging's cadence, and what is timed without waiting for the device
OWN_SCORES = ("sigmoid", "softpick", "clipped_softmax", "elastic_softmax")  # no softmax: families B, C and D
TOKENS_PER_SECOND = 430_000  # the bar of softmax, of an H200
SHARE = 0.97  # the bar of every other softmax-family mechanism beside softmax, and of fit beside the bare loop


@dataclass(frozen=True)
class Setting:
    """What is trained. steps: a multiple of WINDOW."""

    network: GPTConfig
    batch: int
    steps: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.network.context


def setting(device: str) -> Setting:
    """GPT-2 124M on a GPU, something that a rehearsal can afford elsewhere."""
    if device == "cuda":
        return Setting(GPTConfig(vocab_size=50304, context=1024, layers=12, heads=12, width=768, bias=False), 16, 200)
    return Setting(GPTConfig(vocab_size=512, context=32, layers=1, heads=1, width=16), 2, 20)


def train(call: Call) -> Iterator[Job]:
    """Softmax and `fit` first, then every mechanism, on the back end that is chosen by itself and on ours."""
    device = call.device
    jobs = {
        f"{name}/{backend}": lambda name=name, backend=backend: _mechanism(name, backend, device)
        for name in examples()
        for backend in ("auto", "triton")
    }
    yield "softmax/auto", jobs.pop("softmax/auto")
    yield "softmax/fit", lambda: _fit(device)
    yield from jobs.items()


def bars(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What the rows say of the bars, one line each."""
    speeds = {key: float(row["tokens/s"]) for key, row in rows.items() if "tokens/s" in row}
    softmax = speeds.get("softmax/auto")
    if softmax is None:
        return []
    lines = [f"softmax/auto: {softmax:,.0f} tokens/s; the bar on an H200 is {TOKENS_PER_SECOND:,}"]
    for key, speed in speeds.items():
        name, backend = key.split("/")
        if key == "softmax/auto" or backend == "triton":
            continue
        # The loop that was timed beside `fit`, in the same process, says more than another row's.
        share = float(rows[key].get("fit / bare loop", speed / softmax))
        verdict = "" if name in OWN_SCORES else f"; the bar is {SHARE}: {'met' if share >= SHARE else 'MISSED'}"
        lines.append(f"{key}: {share:.3f} of softmax's bare loop{verdict}")
    return lines


def _mechanism(name: str, backend: str, device: str) -> Row:
    chosen = setting(device)
    speed, before, after, parameters = bare_loop(name, backend, device)
    network = chosen.network
    flops = 6 * parameters + 6 * network.layers * network.width * network.context  # a token, causal attention
    gpu = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = next((rate for kind, (rate, _) in floors.RATES.items() if gpu == f"NVIDIA {kind}"), None)
    return {
        "tokens/s": f"{speed:.0f}",
        "MFU": "" if peak is None else f"{speed * flops / peak:.3f}",
        "loss before": f"{before:.3f}",
        "loss after": f"{after:.3f}",
        "peak GiB": f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device == "cuda" else "",
        "result": "ok" if after < before else "WRONG",
    }


@contextmanager
def _tf32() -> Iterator[None]:
    """Float32 products on the tensor cores; on leaving as before, for what is measured next."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@_tf32()
def bare_loop(name: str, backend: str, device: str) -> tuple[float, float, float, int]:
    """Train in a plain loop: tokens/s (median of windows, the first quarter left out), loss before and after,
    parameters."""
    from training.compilation import compile_blocks, compiled
    from training.loss import nats, nats_to_compile

    chosen, on_gpu = setting(device), device == "cuda"
    torch._dynamo.reset()  # all models share the code of a block: past its limit of graphs one would run eagerly
    gpt = GPT(chosen.network, examples()[name], backend=backend).to(device)
    if on_gpu:
        compile_blocks(gpt.blocks)
        torch.cuda.reset_peak_memory_stats()
    data = _batches(chosen, device)

    def forward(tokens: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            return gpt(tokens)

    @torch.no_grad()
    def loss() -> float:
        with torch.compiler.set_stance("force_eager"):
            return float(nats(forward(data[0][0]), data[0][1])) / chosen.tokens

    before = loss()
    step = step_of(gpt, data, forward, compiled(nats_to_compile) if on_gpu else nats)
    seconds = []
    for _ in range(chosen.steps // WINDOW):
        synchronise()
        began = time.perf_counter()
        for _ in range(WINDOW):
            step()
        synchronise()
        seconds.append(time.perf_counter() - began)
    speed = WINDOW * chosen.tokens / statistics.median(seconds[len(seconds) // 4 :])
    return speed, before, loss(), sum(p.numel() for p in gpt.parameters())


def _batches(chosen: Setting, device: str) -> list[tuple[Tensor, Tensor]]:
    """One batch a step, from bytes of the Python standard library's sources, repeated where they do not suffice."""
    count = chosen.steps * chosen.tokens + 1
    found = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        found += path.read_bytes()
        if len(found) >= count:
            break
    text = torch.frombuffer(found, dtype=torch.uint8)
    text = text.repeat(-(-count // len(text)))[:count].to(device).long()
    inputs, targets = (x.view(chosen.steps, chosen.batch, -1) for x in (text[:-1], text[1:]))
    return list(zip(inputs, targets, strict=True))


def _fit(device: str) -> Row:
    """The Trainer with the callbacks that act at every step, on the same network; its waits, and its share of speed."""
    from benchmarks.trainer import fit

    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as folder:
        waits = fit(setting(device), device, Path(folder))
        with open(Path(folder) / "metrics.csv", newline="") as file:
            speeds = [float(row["time/tokens_per_second"]) for row in csv.DictReader(file) if row["train/loss"]]
    speed = statistics.median(speeds[len(speeds) // 4 :])
    bare = bare_loop("softmax", "auto", device)[0]
    return {
        "tokens/s": f"{speed:.0f}",
        "bare loop tokens/s": f"{bare:.0f}",
        "fit / bare loop": f"{speed / bare:.3f}",
        "waits": str(len(waits)),
        "first wait": waits[0] if waits else "",
        "result": "WRONG" if waits else "ok",
    }
