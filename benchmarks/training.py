"""What `fit` costs over a bare PyTorch loop, how that compares with Hugging Face's model, and what compiling gains.

    python -m benchmarks.training [--windows 9] [--steps 12]

`fit` is the real command line's run: Trainer, callbacks, data from shards, guard, logging. Every `--steps` of its steps
the clock is stopped and the peers take the same number of steps on their own copies: a bare loop over the same network
with batches made beforehand, and `transformers`' GPT2LMHeadModel of that shape. All in one process and one window of
time, so that a ratio does not feel the machine's drift. Evaluation, probe and checkpoints are outside of the windows;
what the probe costs is benchmarks.probe's question. `compiled` is what `fit` runs under `model.compile: true`: blocks
compiled in place, and the loss. CPU seconds count the time of the process alone: on a shared machine they say more.
"""

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.models import batches, huggingface_step, small, step_of, variant_step
from benchmarks.timing import Timing, clock_argument, machine, table, take_turns
from models import GPT
from training.cli import CommandLine
from training.compilation import compile_blocks, compiled, obstacle
from training.loss import nats, nats_to_compile

BATCH = 16


class Windows(Callback):
    """Times windows of `steps` training steps, and after each window the peers' same number of steps."""

    def __init__(self, steps: int, peers: dict[str, Callable[[], object]], clock: Callable[[], float]) -> None:
        self.steps, self.peers, self.clock = steps, peers, clock
        self.seconds: dict[str, list[float]] = {name: [] for name in ("fit", *peers)}
        self._start: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the window where it is full; the first one is warm-up and is thrown away."""
        if trainer.global_step % self.steps:
            return
        if self._start is not None:
            self.seconds["fit"].append((self.clock() - self._start) / self.steps)
        for name, step in self.peers.items():
            start = self.clock()
            for _ in range(self.steps):
                step()
            if self._start is not None:
                self.seconds[name].append((self.clock() - start) / self.steps)
        self._start = self.clock()


def timed_fit(windows: int, steps: int, folder: str, clock: Callable[[], float]) -> dict[str, Timing]:
    """Seconds a step of `fit` and of its peers, one entry a window."""
    config = small()
    total = (windows + 1) * steps
    arguments = {
        "out": folder,
        "data.source": "stdlib",
        "data.batch_size": BATCH,
        "model.network.vocab_size": config.vocab_size,
        "model.compile": "false",
        "trainer.max_steps": total,
        "trainer.accelerator": "cpu",
        "evaluation.every": 10 * total,
        "outliers.every": 10 * total,
        "checkpoints.every": 10 * total,
    }
    command = CommandLine("fit", [f"--{key}={value}" for key, value in arguments.items()])
    trainer, model, data, _ = command.make(command.plan())
    peers = {
        "bare loop": variant_step(config, "softmax", BATCH),
        "transformers GPT2LMHeadModel": huggingface_step(config, BATCH),
    }
    clock = Windows(steps, peers, clock)
    trainer.callbacks.insert(0, clock)
    trainer.fit(model, data)
    return {name: Timing(name, tuple(seconds)) for name, seconds in clock.seconds.items()}


def timed_compile(rounds: int, clock: Callable[[], float]) -> dict[str, Timing]:
    """Seconds a step of the bare loop, eager and with its blocks compiled in place."""
    config = small()
    model = GPT(config, "softmax")
    compile_blocks(model.blocks)
    return take_turns(
        {
            "eager": step_of(GPT(config, "softmax"), batches(config, BATCH), loss_sum=nats),
            "compiled": step_of(model, batches(config, BATCH), loss_sum=compiled(nats_to_compile)),
        },
        rounds=rounds,
        calls=3,
        clock=clock,
    )


def rows(timings: dict[str, Timing], tokens: int, other: str) -> list[list[str]]:
    """Table rows: name, ms a step, tokens/s, speed as a ratio to `other`."""
    return [
        [
            name,
            f"{timing.median * 1e3:.1f}",
            f"{tokens / timing.median:,.0f}",
            f"{timing.speed_ratio(timings[other]):.3f}",
        ]
        for name, timing in timings.items()
    ]


def main(argv: list[str] | None = None) -> None:
    """Print two tables: fit beside its peers, and compiled beside eager where there is a compiler."""
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__.split("\n\n")[0])
    parser.add_argument("--windows", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12, help="steps in a window (default 12)")
    parser.add_argument("--threads", type=int, default=1)
    clock_argument(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    config = small()
    tokens = BATCH * config.context
    with tempfile.TemporaryDirectory() as folder:
        timings = timed_fit(options.windows, options.steps, folder, options.clock)
    title = f"\ntraining, {config.layers} layers, width {config.width}, context {config.context}, batch {BATCH}"
    for other in list(timings)[1:]:
        header = ["step", "ms", "tokens/s", f"speed / {other}"]
        print(table(f"{title}; {machine()}", header, rows(timings, tokens, other)), flush=True)
    missing = obstacle(torch.device("cpu"))
    if missing:
        print(f"\ncompiled: not measured, {missing}")
        return
    header = ["step", "ms", "tokens/s", "speed / eager"]
    timings = timed_compile(options.windows, options.clock)
    print(table(f"{title}; {machine()}", header, rows(timings, tokens, "eager")), flush=True)


if __name__ == "__main__":
    main()
