"""When each curve of a comparison's runs sets in, and which of one run before which. The method: docs/analysis.md."""

from itertools import permutations
from statistics import fmean

from experiments.drawing.words import number
from experiments.dynamics import CURVES, Onset, before, dynamics
from experiments.report.assess import SEEDS_NEEDED
from experiments.report.comparison import Comparison, Variant
from experiments.report.results import Cell, Line, unfinished

Found = dict[str, Onset | None]


def onset_lines(comparison: Comparison) -> list[Line]:
    """A line for each of `CURVES` that a run has logged: the step at which it sets in, over seeds."""
    by_variant = {variant.label: (variant, _found(variant)) for variant in comparison.variants}
    lines = []
    for column, title in CURVES.items():
        cells = {
            label: _cell(variant, [found[column] for found in runs if column in found])
            for label, (variant, runs) in by_variant.items()
            if any(column in found for found in runs)
        }
        if cells:
            lines.append(Line(f"onset/{column.removeprefix('outliers/')}", title, cells, "optimizer steps", whole=True))
    return lines


def orders(comparison: Comparison) -> list[str]:
    """A sentence a variant in which two curves or more set in: which comes before which in every seed, beyond the
    bounds of both."""
    sentences = []
    for variant in comparison.variants:
        runs = _found(variant)
        curves = [column for column in CURVES if runs and all(found.get(column) for found in runs)]
        if len(curves) < 2:
            continue
        later: dict[str, list[str]] = {}
        for first, second in permutations(curves, 2):
            if all(before(found[first], found[second]) for found in runs):  # type: ignore[arg-type]
                later.setdefault(first, []).append(second)
        seeds = f"in all {len(runs)} seeds" if len(runs) > 1 else "in its one seed"
        few = "" if len(runs) >= SEEDS_NEEDED else f" (fewer than {SEEDS_NEEDED} seeds: another may differ)"
        told = "; ".join(
            f"{_name(first)} before {' and '.join(map(_name, seconds))}" for first, seconds in later.items()
        )
        pairs, apart = len(curves) * (len(curves) - 1) // 2, sum(map(len, later.values()))
        rest = f" The order of {pairs - apart} of {pairs} pairs is not told." if apart < pairs else ""
        sentences.append(f"{variant.label}: {told or 'no order is told'}, {seeds}{few}.{rest}")
    return sentences


def _found(variant: Variant) -> list[Found]:
    """The onsets of each run that the results table reads: the finished ones, or all where none is finished."""
    return [dynamics(run) for _, run in sorted((variant.finished or variant.runs).items())]


def _cell(variant: Variant, found: list[Onset | None]) -> Cell:
    there = [onset for onset in found if onset is not None]
    notes = [unfinished(variant)]
    if len(there) < len(found):
        notes.append(f"none in {len(found) - len(there)} of {len(found)} seeds" if there or len(found) > 1 else "none")
    if not there:
        return Cell(note="; ".join(filter(None, notes)))
    notes.append(f"from {number(fmean(o.start for o in there))} to {number(fmean(o.end for o in there))}")
    span = min(onset.low for onset in there), max(onset.high for onset in there)
    return Cell(tuple(onset.step for onset in there), "; ".join(filter(None, notes)), span=span)


def _name(column: str) -> str:
    """A curve inside a sentence."""
    return CURVES[column].rpartition(": ")[2].lower()
