"""What Python's garbage collector costs a training step, left alone and as `fit` treats it.

    python -m benchmarks.garbage [--steps 200]

Two runs of the command line's `fit` at the size of benchmarks.training with a batch of one, where a step is short and
the collector weighs most. From the first step to the last: collections and the seconds in them, by `gc.callbacks`.
"""

import argparse
import gc
import tempfile
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.models import small
from benchmarks.timing import machine, table
from training.callbacks.garbage import CollectGarbage
from training.command_line import CommandLine


class Counter(Callback):
    """Counts collections and their seconds while it trains."""

    def __init__(self) -> None:
        self.collections, self.collecting, self.training = 0, 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin at the first batch."""
        if trainer.global_step == 0:
            self.training = -time.perf_counter()
            gc.callbacks.append(self._note)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        gc.callbacks.remove(self._note)
        self.training += time.perf_counter()

    def _note(self, phase: str, _info: dict[str, Any]) -> None:
        self.collecting += time.perf_counter() * (1 if phase == "stop" else -1)
        self.collections += phase == "stop"


def measure(steps: int, folder: str, *, frozen: bool) -> Counter:
    """A run with the collector as `fit` treats it, or left alone."""
    config = small()
    arguments = {
        "out": folder,
        "data.batch_size": 1,
        "model.network.vocab_size": config.vocab_size,
        "model.compile": "false",
        "trainer.max_steps": steps,
        "trainer.accelerator": "cpu",
        "evaluation.every": 0,
        "outliers.every": 0,
        "checkpoints.every": 0,
    }
    command = CommandLine("fit", [f"--{key}={value}" for key, value in arguments.items()])
    trainer, model, data, _ = command.make(command.plan())
    counter = Counter()
    kept = [callback for callback in trainer.callbacks if frozen or not isinstance(callback, CollectGarbage)]
    trainer.callbacks[:] = [counter, *kept]
    trainer.fit(model, data)
    return counter


def main(argv: list[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(prog="benchmarks.garbage", description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for name, frozen in (("left alone", False), ("frozen, collected where numbers are reported", True)):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(options.steps, folder, frozen=frozen)
        share = f"{found.collecting / found.training:.2%}"
        milliseconds = [1e3 * seconds / options.steps for seconds in (found.training, found.collecting)]
        rows.append([name, *(f"{value:.2f}" for value in milliseconds), share, str(found.collections)])
    header = ["collector", "ms a step", "of it collecting", "share", "collections"]
    print(table(f"garbage collector, batch 1; {machine()}", header, rows))


if __name__ == "__main__":
    main()
