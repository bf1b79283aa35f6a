"""When each curve of a comparison's runs sets in, and which of one run before which. The method: docs/analysis.md."""

from itertools import permutations
from statistics import fmean

from experiments.drawing.words import number
from experiments.dynamics import CURVES, Onset, before, dynamics, outcome, set_in
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
            label: _cell(variant, column, runs)
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
        curves = [column for column in CURVES if runs and all(set_in(column, found.get(column)) for found in runs)]
        if len(curves) < 2:
            continue
        later: dict[str, list[str]] = {}
        for first, second in permutations(curves, 2):
            if all(before(found[first], found[second]) for found in runs):  # type: ignore[arg-type]
                later.setdefault(first, []).append(second)
        if not later:
            sentences.append(f"{variant.label}: the probes tell no order that holds in every seed.")
            continue
        seeds = f"in all {len(runs)} seeds" if len(runs) > 1 else "in its one seed"
        few = "" if len(runs) >= SEEDS_NEEDED else f" (fewer than {SEEDS_NEEDED} seeds: another may differ)"
        told = "; ".join(
            f"{_name(first)} before {' and '.join(map(_name, seconds))}" for first, seconds in later.items()
        )
        pairs, apart = len(curves) * (len(curves) - 1) // 2, sum(map(len, later.values()))
        rest = f" The order of {pairs - apart} of {pairs} pairs is not told." if apart < pairs else ""
        sentences.append(f"{variant.label}: {told}, {seeds}{few}.{rest}")
    return sentences


def _found(variant: Variant) -> list[Found]:
    """The onsets of each run that the results table reads: the finished ones, or all where none is finished."""
    return [dynamics(run) for _, run in sorted((variant.finished or variant.runs).items())]


def _cell(variant: Variant, column: str, runs: list[Found]) -> Cell:
    logged = [found for found in runs if column in found]
    there = [at for found in logged if (at := set_in(column, found[column])) is not None]
    others: dict[str, list[Onset]] = {}
    for found in logged:
        if (at := found[column]) is not None and set_in(column, at) is None:
            others.setdefault(outcome(column, at), []).append(at)
    notes = [unfinished(variant), _moved(there)]
    notes += [f"{said} in {_of(len(them), len(logged))}, {_moved(them)}" for said, them in sorted(others.items())]
    if still := sum(found[column] is None for found in logged):
        notes.append(f"none in {_of(still, len(logged))}")
    note = "; ".join(filter(None, notes))
    if not there:
        return Cell(note=note)
    span = min(onset.low for onset in there), max(onset.high for onset in there)
    return Cell(tuple(onset.step for onset in there), note, span=span)


def _moved(found: list[Onset]) -> str:
    if not found:
        return ""
    gone = [o.gone for o in found if o.gone is not None]
    back = f", back at step {fmean(gone):,.0f}" if gone else ""
    return f"from {number(fmean(o.start for o in found))} to {number(fmean(o.end for o in found))}{back}"


def _of(count: int, seeds: int) -> str:
    return f"{count} of {seeds} seed{'s' if seeds > 1 else ''}"


def _name(column: str) -> str:
    """A curve inside a sentence."""
    return CURVES[column].rpartition(": ")[2].lower()
