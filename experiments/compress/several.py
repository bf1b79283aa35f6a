"""Every finished run of a comparison by the recipe: each result is kept with what it was made from, and a run whose
result is there is done again only where that has changed."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
from experiments.report.comparison import Comparison, Variant, load
from experiments.runs import Run, is_run
from models.sharded import REST
from outliers.access.text import KEYWORDS
from outliers.compression.recipe import VERSION
from training.run_directory import RunDirectory, write_atomically


@dataclass(frozen=True)
class Job:
    """One finished run, where its result is kept, and how it is named."""

    comparison: Comparison
    variant: str
    seed: int
    run: Run
    out: Path
    name: str


def holds_several(model: str) -> bool:
    """Whether MODEL is a folder that is no model itself, so that it may hold a comparison."""
    folder = Path(model).expanduser()
    alone = is_run(folder) or any((folder / mark).exists() for mark in ("config.yaml", "config.json", REST))
    return not model.startswith("hf:") and folder.is_dir() and not alone


def compress_all(folder: Path, out: Path, options: Options) -> tuple[Path, dict[str, str]]:
    """Compress what is not there yet, and write the page of all that is.

    Returns the page's path and, by its name, why a finished run could not be compressed: the others are done all the
    same. InputError: no finished run is in the folder, or none of them could be compressed.
    """
    comparisons = load(folder)
    jobs, omitted = plan(comparisons, out), left_out(comparisons)
    if not jobs:
        raise InputError(f"{folder} has no finished run to compress: {'; '.join(omitted)}")
    made(out)
    for line in omitted:
        print(f"left out: {line}", file=sys.stderr)
    refused = _done(jobs, options)
    done = [job for job in jobs if job.name not in refused]
    if not done:
        name, reason = next(iter(refused.items()))
        raise InputError(f"none of {len(jobs)} finished runs could be compressed; {name}: {reason}")
    found = [(comparison, _rows(done, comparison)) for comparison in comparisons]
    omitted += [f"{name}: {reason}" for name, reason in refused.items()]
    return write(out, found, options, omitted), refused


def _done(jobs: list[Job], options: Options) -> dict[str, str]:
    """Do what is not there yet; why a run could not be compressed, by its name."""
    refused: dict[str, str] = {}
    waiting: list[tuple[Job, dict[str, Any]]] = []
    for job in jobs:
        with _noted(job, refused):
            wanted = inputs(job.run, options)
            if _recorded(job.out) != wanted:
                waiting.append((job, wanted))
    # A run without a checkpoint is told before the first one is compressed.
    for name, reason in refused.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if kept := len(jobs) - len(refused) - len(waiting):
        print(f"{kept} of {len(jobs)} runs are compressed already", file=sys.stderr)
    with Countdown("compressing") as countdown:
        for index, (job, wanted) in enumerate(waiting):
            with _noted(job, refused):
                compress(str(job.run.path), job.out, options, partial(_show, countdown, job, index, len(waiting)))
                write_atomically(job.out / INPUTS, json.dumps(wanted, indent=1) + "\n")
    return refused


@contextmanager
def _noted(job: Job, refused: dict[str, str]) -> Iterator[None]:
    """What is wrong with one run stops no other."""
    try:
        yield
    except InputError as error:
        refused[job.name] = str(error)


def plan(comparisons: list[Comparison], out: Path) -> list[Job]:
    """The finished runs: OUT/<variant>/seed=<n>, below the comparison's own folder where there are several."""
    ground = Path(os.path.commonpath([comparison.folder for comparison in comparisons]))
    return [
        Job(
            comparison, variant.label, seed, run,
            out / comparison.folder.relative_to(ground) / variant.label.replace("/", "_") / f"seed={seed}",
            _name(comparisons, comparison, variant, seed),
        )
        for comparison in comparisons
        for variant in comparison.variants
        for seed, run in sorted(variant.finished.items())
    ]  # fmt: skip


def left_out(comparisons: list[Comparison]) -> list[str]:
    """A few words on each run that is not finished."""
    return [
        f"{_name(comparisons, comparison, variant, seed)}, {run.status.state} at step {run.status.step:,} of "
        f"{run.status.max_steps:,}"
        for comparison in comparisons
        for variant in comparison.variants
        for seed, run in sorted(variant.runs.items())
        if not run.finished
    ]


def _name(comparisons: list[Comparison], comparison: Comparison, variant: Variant, seed: int) -> str:
    """A run's name, the comparison's before it where there are several."""
    return f"{f'{comparison.name}: ' if len(comparisons) > 1 else ''}{variant.label} seed={seed}"


def inputs(run: Run, options: Options) -> dict[str, Any]:
    """What a run's result depends on: the recipe, the options, and size and time of the checkpoint's files and of a
    text's. InputError: there is no checkpoint.

    Text by its keyword or its whole path: the validation set is the same whether or not it was asked for by name.
    """
    checkpoint = RunDirectory(run.path).last_checkpoint
    if not checkpoint.exists():
        raise InputError(f"{run.path} is finished and has no checkpoints/last.ckpt to compress")
    files = sorted(path for path in (checkpoint, *checkpoint.rglob("*")) if path.is_file())
    text = options.text or "validation"
    if text not in KEYWORDS and Path(text).is_file():
        files.append(Path(text))
        text = str(Path(text).absolute())
    states = {str(path.absolute()): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"recipe": VERSION, **asdict(options), "text": text, "files": states}


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
