"""`make demo`: three attention variants on real text and on Bigram-Backcopy, and one report of both.

Real text at this size shows the loss and no massive activations; on Bigram-Backcopy (2410.13835) a sink forms within
half a minute, so that a real difference is seen. Both comparisons share one pool of processes.
"""

import sys
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.arguments import Arguments, cores
from train import dispatch

if TYPE_CHECKING:
    from experiments.compare import Job

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
OUT = Path("runs") / "demo"
ATTENTIONS = ("softmax", "context_scaling", "sink_key_value")
SEEDS = (0, 1, 2)  # the fewest that a verdict needs
# Comparison: its configuration, and what the demo changes of it to end within six minutes on two cores.
COMPARISONS = {
    "text": (
        "demo_text.yaml",
        ("--trainer.max_steps=100", "--evaluation.every=25", "--outliers.every=25", "--data.validation_sequences=100"),
    ),
    "bigram_backcopy": ("bigram_backcopy.yaml", ("--trainer.max_steps=2000",)),
}
MOST_AT_ONCE = 4


def main(argv: Sequence[str]) -> int:
    """Train what is not there yet and write runs/demo/report.html. Returns the exit code of `compare`."""
    from experiments.pool import Pool
    from experiments.progress import duration
    from experiments.report import build

    began = time.monotonic()
    pool = Pool(min(cores(), MOST_AT_ONCE))
    jobs = plan_all(pool.jobs)
    print(f"{len(jobs)} runs: {', '.join(ATTENTIONS)}; {', '.join(COMPARISONS)}; {pool.jobs} at once", flush=True)
    code = pool.run(jobs)
    if code < 128:
        print("drawing the report", flush=True)
        print(f"report: {build(OUT)} (after {duration(time.monotonic() - began)})")
    return code


def plan_all(at_once: int) -> list["Job"]:
    """Every run, checked, its corpus prepared; the comparisons by turns, so that the pace of each is known early."""
    from experiments.compare import plan

    plans = [
        plan(Arguments([CONFIGS / config], list(ATTENTIONS), list(SEEDS), OUT / name, at_once, list(changes)))
        for name, (config, changes) in COMPARISONS.items()
    ]
    return [job for turn in zip_longest(*plans) for job in turn if job is not None]


if __name__ == "__main__":
    sys.exit(dispatch("experiments.demo:main", []))
