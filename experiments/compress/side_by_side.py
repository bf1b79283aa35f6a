"""Compression of a comparison's variants side by side: lines of gaps and excesses, and verdicts on the gaps.

The rules are those of the report (`experiments.report.assess`); the null of a setting is that of the recipe, measured
on the baseline with the same sequences. Holm's correction is over the main settings, and apart over all others: many
settings say the same thing again, and each of them would ask for a larger difference of the main ones.
"""

import math
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from experiments.compress.page import TITLES
from experiments.report.assess import Null, Verdict, judge_values, not_exceeded, paired, settle
from experiments.report.comparison import Comparison
from experiments.report.measures import Measure
from experiments.report.results import Cell, Line
from outliers.compression.recipe import SETTINGS, Setting
from outliers.compression.study import FULL

Rows = dict[str, dict[int, dict[str, dict[str, Any]]]]  # label → seed → setting → a row of compression.parquet
UNIT = "nats per token"
# One a family: 8 and 4 bits of weights, of weights and activations, and half of the weights by each way to choose.
MAIN = (
    "w8 absmax per tensor", "w4 absmax per tensor", "w8a8 absmax", "w4a4 absmax", "magnitude 50 %", "wanda 50 %",
)  # fmt: skip


@dataclass(frozen=True)
class SideBySide:
    """full: the loss in full precision. gaps, excesses: by setting. verdicts: on the gaps, the main settings first."""

    comparison: Comparison
    full: Line
    gaps: dict[str, Line]
    excesses: dict[str, Line]
    verdicts: list[Verdict]

    @property
    def lines(self) -> list[Line]:
        """All lines: the loss, then each setting's gap and excess."""
        pairs = ((line, self.excesses.get(setting)) for setting, line in self.gaps.items())
        return [self.full, *(line for pair in pairs for line in pair if line is not None)]


def side_by_side(comparison: Comparison, rows: Rows) -> SideBySide:
    """Every setting of the recipe, from the rows of the finished runs."""
    judged = {
        main: settle([verdict for s in SETTINGS if (s.name in MAIN) == main for verdict in _judge(comparison, rows, s)])
        for main in (True, False)
    }
    verdicts = [*judged[True], *judged[False]]
    by_cell = {(verdict.measure.id, verdict.variant): verdict for verdict in verdicts}
    gaps, excesses = {}, {}
    for setting in SETTINGS:
        gap, excess = _measure(setting), f"{setting.name}/excess"
        null, title = _null(comparison, rows, setting), TITLES[setting.group]
        cells = _cells(rows, setting.name, "gap")
        for label, cell in cells.items():
            verdict = by_cell.get((gap.id, label))
            cells[label] = replace(cell, verdict=verdict, difference=verdict and verdict.difference)
        shown = None if null.value is None else (null.value, null.hardest)
        gaps[setting.name] = Line(gap.id, gap.title, cells, UNIT, null=shown, group=title)
        if null.parts:
            excesses[setting.name] = Line(excess, "excess", _excesses(comparison, rows, setting), group=title)
    full = Line(FULL, "Log perplexity in full precision", _cells(rows, FULL, "nats"), UNIT)
    return SideBySide(comparison, full, gaps, excesses, verdicts)


def gap_values(rows: Rows, label: str, setting: str) -> list[float]:
    """A variant's gaps of a setting, by seed."""
    return list(_values(rows, label, setting, "gap").values())


def null_gaps(rows: Rows, label: str, setting: str) -> list[float]:
    """A variant's null of a setting, by seed; empty where there is none."""
    return list(_values(rows, label, setting, "null_gap").values())


def _judge(comparison: Comparison, rows: Rows, setting: Setting) -> list[Verdict]:
    null, theirs = _null(comparison, rows, setting), _values(rows, comparison.baseline.label, setting.name, "gap")
    verdicts = []
    for variant in comparison.others:
        ours, against = _values(rows, variant.label, setting.name, "gap"), null
        if null.exceeded and len(ours) < len(rows[variant.label]):  # the seeds that are left would flatter it
            against = replace(null, exceeded=False, reason=_not_finite(variant.label))
        verdicts.append(judge_values(comparison, variant, _measure(setting), ours, theirs, against))
    return verdicts


def _not_finite(label: str) -> str:
    return f"the gap of {label} is not finite in every seed"


def _measure(setting: Setting) -> Measure:
    return Measure(f"{setting.name}/gap", setting.name, UNIT, +1)


def _null(comparison: Comparison, rows: Rows, setting: Setting) -> Null:
    """Whether the baseline's gap exceeds the Gaussian null: where nothing of it stands out, nothing can be judged.

    A mask by chance costs more than a chosen one, and `w8a8 qualcomm` has no null: there the gap must exceed 0.
    """
    label = comparison.baseline.label
    if not rows[label]:
        return Null(None, {}, False, f"{label} has no finished run")
    found = null_gaps(rows, label, setting.name)
    gaussian = bool(found) and setting.pruning is None
    margins = list(_values(rows, label, setting.name, "excess" if gaussian else "gap").values())
    if len(margins) < len(rows[label]):
        reason = _not_finite(label)
    else:
        reason = not_exceeded(label, margins, null="the Gaussian null" if gaussian else "a gap of 0")
    if not found:
        return Null(None, {}, not reason, reason)
    kind = next(iter(rows[label].values()))[setting.name]["null"]
    return Null(fmean(found), {kind: fmean(found)}, not reason, reason)


def _excesses(comparison: Comparison, rows: Rows, setting: Setting) -> dict[str, Cell]:
    """Described with their differences; the verdict is on the gap."""
    theirs = _values(rows, comparison.baseline.label, setting.name, "excess")
    cells = _cells(rows, setting.name, "excess")
    for variant in comparison.others:
        if variant.label in cells:
            ours = _values(rows, variant.label, setting.name, "excess")
            difference = paired(comparison, variant, ours, theirs)
            cells[variant.label] = replace(cells[variant.label], difference=difference)
    return cells


def _cells(rows: Rows, setting: str, column: str) -> dict[str, Cell]:
    """A number of that setting by variant: of the seeds in which it is finite, and in how many it is not."""
    cells = {}
    for label, seeds in rows.items():
        if seeds:
            found = tuple(_values(rows, label, setting, column).values())
            missing = len(seeds) - len(found)
            cells[label] = Cell(found, f"not finite in {missing} of {len(seeds)} seeds" if missing else "")
    return cells


def _values(rows: Rows, label: str, setting: str, column: str) -> dict[int, float]:
    """seed → a number of that setting; a seed in which it is not finite is left out."""
    found = {seed: by_setting[setting][column] for seed, by_setting in rows[label].items()}
    return {seed: value for seed, value in sorted(found.items()) if value is not None and math.isfinite(value)}
