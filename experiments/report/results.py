"""What the results table says, as numbers: a line a measure, a cell a variant. The page and results.csv are both made
from these, so that they cannot disagree."""

import csv
import io
import math
import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from experiments.report.assess import Assessment, Verdict, own_null, values
from experiments.report.comparison import Comparison, Variant
from experiments.report.measures import Measure
from experiments.statistics import Interval

DESCRIBED = "Described, not judged"
COLUMNS = (
    "comparison", "variant", "measure", "title", "unit", "mean", "standard_deviation", "seeds", "earliest", "latest",
    "note", "null", "null_kind", "own_null", "own_null_kind", "difference", "difference_low", "difference_high",
    "pairs", "verdict", "reason", "p_holm",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One variant in one line.

    values: one number a seed; of the finished runs, or of all where none is finished. note: what stands beside the
    numbers, or in their place. own_null: the variant's own null and its kind, where it is worth saying. difference:
    from the baseline, paired by seed. verdict: None where none is given. span: of an onset, the earliest and the latest
    step that it may have been in any seed.
    """

    values: tuple[float, ...] = ()
    note: str = ""
    own_null: tuple[float, str] | None = None
    difference: Interval | None = None
    verdict: Verdict | None = None
    span: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        """Over seeds. At least one value."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over seeds; None for fewer than two values, or where one is not finite."""
        if len(self.values) < 2 or not all(map(math.isfinite, self.values)):
            return None
        return statistics.stdev(self.values)


@dataclass(frozen=True)
class Line:
    """One measure of all variants.

    cells: by the variant's label. null: the baseline's, and its kind. by_seed: each value is that of a seed; otherwise
    there is one number for all. whole: counts, shown without decimals. group: the heading that it stands under.
    """

    id: str
    title: str
    cells: dict[str, Cell]
    unit: str = ""
    detail: str = ""
    null: tuple[float, str] | None = None
    by_seed: bool = True
    whole: bool = False
    group: str = ""


def results(comparison: Comparison, assessment: Assessment) -> list[Line]:
    """The lines of the results table in its order."""
    loss, *others = (_measured(comparison, assessment, measure) for measure in comparison.measures)
    variants, baseline = comparison.variants, comparison.baseline
    return [
        loss,
        Line(
            "validation/bits_per_byte", "Bits per byte",
            {v.label: _last(v, "validation/bits_per_byte") for v in variants}, "bits; the loss in another unit",
        ),
        Line(
            "steps_to_baseline", f"Steps to {baseline.label}’s final validation loss",
            {v.label: _steps_to(assessment, v) for v in variants}, "optimizer steps", whole=True,
        ),
        *(line for line in others if not line.group),
        *(line for line in others if line.group),
        *_described(comparison),
    ]  # fmt: skip


def _described(comparison: Comparison) -> list[Line]:
    """Sizes, speed and states."""
    count: dict[str, Any] = {"group": DESCRIBED, "by_seed": False, "whole": True}
    variants = comparison.variants
    speed = {v.label: _typical(v, "time/tokens_per_second") for v in variants}
    memory = {v.label: _typical(v, "time/peak_memory_gib") for v in variants}
    return [
        Line("parameters", "Parameters", {v.label: _parameters(v) for v in variants}, **count),
        Line(
            "parameters_added", "Parameters added", {v.label: _added(comparison, v) for v in comparison.others}, **count
        ),
        Line("tokens_per_second", "Speed", speed, "tokens per second", group=DESCRIBED),
        Line("peak_memory", "Peak memory", memory, "GiB", group=DESCRIBED),
        Line("runs", "Runs finished", {v.label: _states(v) for v in variants}, **count),
    ]


def as_csv(lines: Iterable[tuple[Comparison, Line]]) -> str:
    """The lines with a header of `COLUMNS`, a row a (comparison, variant, measure), numbers as they are: an empty cell
    is a number that does not exist, an interval without bounds included."""
    file = io.StringIO()
    rows = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    rows.writeheader()
    for comparison, line in lines:
        for variant in comparison.variants:
            cell = line.cells.get(variant.label, Cell())
            if cell.values or cell.note:
                place = {"comparison": comparison.name, "variant": variant.label, "measure": line.id}
                rows.writerow(place | {key: entry for key, entry in _row(line, cell).items() if entry is not None})
    return file.getvalue()


def unfinished(variant: Variant) -> str:
    """What is said of numbers of runs of which none is finished."""
    if variant.finished:
        return ""
    return f"unfinished: step {max(run.status.step for run in variant.runs.values()):,}"


def _said_of(variant: Variant, found: Collection[float]) -> str:
    """What is said beside numbers of runs that are not finished, or of fewer runs than there are."""
    runs = variant.finished or variant.runs
    few = f"in {len(found)} of {len(runs)} seeds" if 0 < len(found) < len(runs) else ""
    return "; ".join(filter(None, (unfinished(variant) if found else "", few)))


def _row(line: Line, cell: Cell) -> dict[str, object]:
    row: dict[str, object] = {"title": line.title, "note": cell.note, "unit": line.unit}
    if cell.values:
        row |= {"mean": cell.mean, "standard_deviation": cell.deviation}
        row["seeds"] = len(cell.values) if line.by_seed else None
    if cell.span is not None:
        row["earliest"], row["latest"] = cell.span
    for name, null in (("null", line.null), ("own_null", cell.own_null)):
        if null is not None:
            row[name], row[f"{name}_kind"] = null
    if (verdict := cell.verdict) is not None:
        row |= {"verdict": verdict.word, "reason": verdict.reason, "p_holm": verdict.adjusted_p}
    if (d := cell.difference) is not None:
        row |= {"difference": d.mean, "pairs": d.n}
        if math.isfinite(d.low):
            row |= {"difference_low": d.low, "difference_high": d.high}
    return row


def _measured(comparison: Comparison, assessment: Assessment, measure: Measure) -> Line:
    cells = {}
    for variant in comparison.variants:
        found, runs = values(variant, measure)
        if found:
            verdict = assessment.verdict(measure, variant.label)
            cells[variant.label] = Cell(
                tuple(found), _said_of(variant, found), own_null(comparison, measure, runs),
                verdict and verdict.difference, verdict,
            )  # fmt: skip
    null = assessment.nulls.get(measure.id)
    shown = (null.value, null.hardest) if null is not None and null.value is not None else None
    group = "" if measure.worse else DESCRIBED
    return Line(measure.id, measure.title, cells, measure.unit, measure.detail, shown, group=group)


def _last(variant: Variant, column: str) -> Cell:
    found = [value for run in (variant.finished or variant.runs).values() if (value := run.last(column)) is not None]
    return Cell(tuple(found), _said_of(variant, found))


def _steps_to(assessment: Assessment, variant: Variant) -> Cell:
    found = assessment.steps_to[variant.label]
    if found.note:
        return Cell(note=found.note)
    reached = [step for step in found.by_seed.values() if step is not None]
    missed = len(found.by_seed) - len(reached)
    return Cell(tuple(reached), f"not reached in {missed} of {len(found.by_seed)} seeds" if missed else "")


def _parameters(variant: Variant) -> Cell:
    return Cell() if variant.parameters is None else Cell((variant.parameters,))


def _added(comparison: Comparison, variant: Variant) -> Cell:
    extra = comparison.extra_parameters(variant)
    return Cell() if extra is None else Cell((extra[0],), f"{extra[1]:+.3%}".replace("-", "−"))


def _typical(variant: Variant, column: str) -> Cell:
    """The median of each run."""
    logged = (run.series(column)[1].tolist() for run in (variant.finished or variant.runs).values())
    found = tuple(statistics.median(values) for values in logged if values)
    return Cell(found, _said_of(variant, found))


def _states(variant: Variant) -> Cell:
    states = [run.status.state for run in variant.runs.values() if not run.finished]
    return Cell((len(variant.finished),), ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
