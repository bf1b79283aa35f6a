"""Every finished run of a comparison by the recipe: each result is kept with what it was made from, and a run whose
result is there is done again only where that has changed."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from errors import InputError
from experiments.compress.one import Options, compress
from experiments.compress.results import INPUTS, TABLE
from experiments.compress.side_by_side import Rows
from experiments.compress.variants_page import write
from experiments.model_arguments import made
from experiments.progress import Countdown
from experiments.report.comparison import Comparison, load
from experiments.runs import Run, is_run
from models.sharded import REST
from outliers.compression.recipe import VERSION
from training.run_directory import RunDirectory, write_atomically


@dataclass(frozen=True)
class Job:
    """One finished run and where its result is kept."""

    comparison: Comparison
    variant: str
    seed: int
    run: Run
    out: Path

    @property
    def name(self) -> str:
        """How progress names it."""
        return f"{self.variant} seed={self.seed}"


def holds_several(model: str) -> bool:
    """Whether MODEL is a folder that is no model itself, so that it may hold a comparison."""
    folder = Path(model).expanduser()
    alone = is_run(folder) or any((folder / mark).exists() for mark in ("config.yaml", "config.json", REST))
    return not model.startswith("hf:") and folder.is_dir() and not alone


def compress_all(folder: Path, out: Path, options: Options) -> Path:
    """Compress what is not there yet, write the page of all, and return its path.

    InputError: no finished run is in the folder, one has no checkpoint, or the options do not fit one.
    """
    comparisons = load(folder)
    jobs = plan(comparisons, out)
    omitted = left_out(comparisons)
    if not jobs:
        raise InputError(f"{folder} has no finished run to compress: {'; '.join(omitted)}")
    # Read before the first one is compressed: a run without a checkpoint is told at once.
    wanted = {job.out: inputs(job.run, options) for job in jobs}
    waiting = [job for job in jobs if _recorded(job.out) != wanted[job.out]]
    made(out)
    for line in omitted:
        print(f"left out: {line}", file=sys.stderr)
    if len(waiting) < len(jobs):
        print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are compressed already", file=sys.stderr)
    with Countdown("compressing") as countdown:
        for index, job in enumerate(waiting):
            compress(str(job.run.path), job.out, options, partial(_show, countdown, job, index, len(waiting)))
            write_atomically(job.out / INPUTS, json.dumps(wanted[job.out], indent=1) + "\n")
    found = [(comparison, _rows(jobs, comparison)) for comparison in comparisons]
    return write(out, found, options, omitted)


def plan(comparisons: list[Comparison], out: Path) -> list[Job]:
    """The finished runs: OUT/<variant>/seed=<n>, below the comparison's own folder where there are several."""
    ground = Path(os.path.commonpath([comparison.folder for comparison in comparisons]))
    return [
        Job(
            comparison, variant.label, seed, run,
            out / comparison.folder.relative_to(ground) / variant.label.replace("/", "_") / f"seed={seed}",
        )
        for comparison in comparisons
        for variant in comparison.variants
        for seed, run in sorted(variant.finished.items())
    ]  # fmt: skip


def left_out(comparisons: list[Comparison]) -> list[str]:
    """A few words on each run that is not finished."""
    several = len(comparisons) > 1
    return [
        f"{f'{comparison.name}: ' if several else ''}{variant.label} seed={seed}, {run.status.state} at step "
        f"{run.status.step:,} of {run.status.max_steps:,}"
        for comparison in comparisons
        for variant in comparison.variants
        for seed, run in sorted(variant.runs.items())
        if not run.finished
    ]


def inputs(run: Run, options: Options) -> dict[str, Any]:
    """What a run's result depends on: the recipe, the options, and size and time of the checkpoint's files and of a
    text's. InputError: there is no checkpoint."""
    checkpoint = RunDirectory(run.path).last_checkpoint
    if not checkpoint.exists():
        raise InputError(f"{run.path} is finished and has no checkpoints/last.ckpt to compress")
    files = sorted(path for path in (checkpoint, *checkpoint.rglob("*")) if path.is_file())
    if options.text and Path(options.text).is_file():
        files.append(Path(options.text))
    states = {str(path.absolute()): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"recipe": VERSION, **asdict(options), "files": states}


def _recorded(out: Path) -> dict[str, Any] | None:
    """What the result that is there was made from; None where there is none that can be read."""
    try:
        pq.read_metadata(out / TABLE)
        return json.loads((out / INPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # pyarrow's errors too
        return None


def _show(countdown: Countdown, job: Job, index: int, runs: int, name: str, done: int, total: int) -> None:
    countdown.show(f"{job.name}, {name}", index * total + done, runs * total)


def _rows(jobs: list[Job], comparison: Comparison) -> Rows:
    """label → seed → setting → its row."""
    found: Rows = {variant.label: {} for variant in comparison.variants}
    for job in jobs:
        if job.comparison is comparison:
            table = pq.read_table(job.out / TABLE).to_pylist()
            found[job.variant][job.seed] = {row["setting"]: row for row in table}
    return found
