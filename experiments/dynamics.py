"""When sinks, massive activations, value drain and the quantisation gap set in during a run, and in which order.

The method and its uncertainty: docs/analysis.md. Read from what a run has logged; nothing is measured here.
"""

from dataclasses import asdict, dataclass

import numpy as np

from experiments.runs import Run
from outliers.analysis.numbers import Numbers
from outliers.definitions import DEFINITIONS

# column of metrics.csv: what sets in
CURVES = {
    "outliers/first_key_mass_gated": "Attention sinks: gate-weighted mass on the first key",
    "outliers/sink_rate@0.3": "Attention sinks: sink rate",
    "outliers/top1_to_median": "Massive activations: largest over median",
    "outliers/value_drain": "Value drain: value norm, first key over the others",
    "outliers/quantization_gap": "Quantisation gap",
}
FEWEST = 5  # points that a curve needs
CLEAR = 6  # standard deviations of its noise by which a curve must move
LEAST = 0.1  # of its largest size: what a smaller movement says is not worth a step
NOISE = 2  # standard deviations that the halfway level may be off


@dataclass(frozen=True)
class Onset:
    """step: where the curve is halfway. low, high: between which steps that may have been. start, end: its first value
    and the farthest one from it."""

    step: float
    low: float
    high: float
    start: float
    end: float


def onset(steps: np.ndarray, values: np.ndarray) -> Onset | None:
    """Halfway from the first value to the farthest one. None: too few points, one that is not finite, or the curve does
    not move clearly."""
    if len(values) < FEWEST or not np.isfinite(values).all():
        return None
    start = float(values[0])
    end = float(values[np.argmax(np.abs(values - start))])
    move, noise = abs(end - start), scatter(values)
    if move <= CLEAR * noise or move <= LEAST * max(abs(start), abs(end)):
        return None
    share = (values - start) / (end - start)  # 0 at the start, 1 at the end
    margin = NOISE * noise / move
    at = int(np.argmax(share >= 0.5))
    between = (0.5 - share[at - 1]) / (share[at] - share[at - 1])
    step = steps[at - 1] + between * (steps[at] - steps[at - 1])
    first, last = int(np.argmax(share >= 0.5 - margin)), int(np.argmax(share >= min(1.0, 0.5 + margin)))
    return Onset(float(step), float(steps[max(0, first - 1)]), float(steps[last]), start, end)


def scatter(values: np.ndarray) -> float:
    """Standard deviation of a curve's noise: the median |second difference| / (0.6745 √6), which a smooth curve and a
    single jump leave near 0."""
    return float(np.median(np.abs(np.diff(values, 2)))) / (0.6745 * 6**0.5)


def dynamics(run: Run) -> dict[str, Onset | None]:
    """The onset of each of `CURVES` that the run has logged, in the order of onset; those without one come last."""
    found = {name: onset(*series) for name in CURVES if len((series := run.series(name))[0])}
    return dict(sorted(found.items(), key=lambda pair: np.inf if pair[1] is None else pair[1].step))


def numbers(found: dict[str, Onset | None]) -> Numbers:
    """The onsets for an analysis's table: metric `onset_<curve>`, a field of `Onset` each statistic; of a curve without
    an onset its step alone, NaN."""
    collected = Numbers()
    for column, at in found.items():
        metric = f"onset_{column.removeprefix('outliers/')}"
        for statistic, value in ({"step": np.nan} if at is None else asdict(at)).items():
            collected.add(metric, value, statistic=statistic)
    return collected


def grows(column: str, at: Onset) -> bool:
    """Whether a curve of `CURVES` moved to where more outliers or sinks lie."""
    lower = DEFINITIONS[column.removeprefix("outliers/")].direction == "lower"  # where fewer lie
    return (at.end > at.start) == lower


def before(first: Onset, second: Onset) -> bool:
    """Whether the first sets in earlier beyond both uncertainties."""
    return first.high <= second.low
