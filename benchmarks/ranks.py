"""Whether the split of a step changes the training: ranks and accumulation against one rank that takes all at once.

    python -m benchmarks.ranks [--steps 50] [--strategies ddp fsdp2]

Every run is `train.py fit` on the CPU with the same tokens a step; the loss on a fixed validation set is taken after
every step. The table gives the largest relative difference from one rank with the whole batch, over all steps.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import machine, table
from training.launch import TRAIN_PY

ROWS, CONTEXT = 8, 64
# name: ranks, sequences at once on each.
SPLITS = {"1 rank, batch 8": (1, 8), "1 rank, 4 × batch 2": (1, 2), "2 ranks, batch 4": (2, 4)}
BOUNDS = {"64-true": 1e-10, "32-true": 1e-6}


def losses(folder: Path, precision: str, ranks: int, batch_size: int, strategy: str, steps: int) -> list[float]:
    """The validation loss after each step of one run."""
    options = {
        "out": folder,
        "trainer.max_steps": steps,
        "trainer.accelerator": "cpu",
        "trainer.devices": ranks,
        "trainer.strategy": strategy,
        "trainer.precision": precision,
        "model.compile": "false",
        "model.network.context": CONTEXT,
        "model.network.layers": 2,
        "model.network.width": 64,
        "data.source": "stdlib",
        "data.tokenizer": "bytes",
        "data.batch_size": batch_size,
        "data.tokens_per_step": ROWS * CONTEXT,
        "data.validation_sequences": 8,
        "evaluation.every": 1,
        "outliers.every": 0,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run([sys.executable, str(TRAIN_PY), "fit", *words], check=True, stdout=subprocess.DEVNULL)
    with open(folder / "metrics.csv", newline="") as file:
        return [float(row["validation/loss"]) for row in csv.DictReader(file) if row["validation/loss"]]


def difference(one: list[float], other: list[float]) -> float:
    """The largest relative difference of two series."""
    return max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit code 1 where a difference exceeds its bound."""
    parser = argparse.ArgumentParser(prog="benchmarks.ranks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--strategies", nargs="+", default=["ddp"], help="of two ranks (default ddp)")
    options = parser.parse_args(argv)
    found, code = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for precision, bound in BOUNDS.items():
            series = {}
            for name, (ranks, batch_size) in SPLITS.items():
                for strategy in options.strategies if ranks > 1 else ["auto"]:
                    if (strategy, precision) == ("fsdp2", "64-true"):  # Lightning does not know it
                        continue
                    label = f"{name}, {strategy}" if ranks > 1 else name
                    out = Path(folder, precision, label)
                    series[label] = losses(out, precision, ranks, batch_size, strategy, options.steps)
            one, *others = series
            for other in others:
                measured = difference(series[one], series[other])
                found.append([other, precision, f"{measured:.1e}", f"{bound:.0e}"])
                code |= measured > bound
    title = f"\nlargest relative difference of the loss from one rank, batch {ROWS}, {options.steps} steps; {machine()}"
    print(table(title, ["split", "precision", "difference", "bound"], found))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
