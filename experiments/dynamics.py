"""When sinks, massive activations, value drain and the quantisation gap set in during a run, and in which order.

The method and its uncertainty: docs/analysis.md. Read from what a run has logged; nothing is measured here.
"""

from dataclasses import dataclass

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
    and the farthest one from it. gone: the step at which it was back below halfway; None where it stays to its end."""

    step: float
    low: float
    high: float
    start: float
    end: float
    gone: float | None = None


def onset(steps: np.ndarray, values: np.ndarray) -> Onset | None:
    """Halfway from the first value to the farthest one: for good, or of a curve that is back at its end the first time.
    None: too few points, one that is not finite, or the curve does not move clearly."""
    if len(values) < FEWEST or not np.isfinite(values).all():
        return None
    start = float(values[0])
    end = float(values[np.argmax(np.abs(values - start))])
    move, noise = abs(end - start), scatter(values)
    if move <= CLEAR * noise or move <= LEAST * max(abs(start), abs(end)):
        return None
    share = (values - start) / (end - start)  # 0 at the start, 1 at the end
    margin = NOISE * noise / move  # below 1/3, as the curve moves clearly
    below, reached, clear = (
        np.flatnonzero(found) for found in (share < 0.5 - margin, share >= 0.5, share >= 0.5 + margin)
    )
    stays = reached[-1] > below[-1]
    last = below[-1] if stays else below[below < reached[0]][-1]  # probe before it comes
    first = reached[reached > last][0]
    certain = clear[clear > last]
    return Onset(
        halfway(steps, share, first),
        float(steps[last]),
        float(steps[certain[0] if len(certain) else -1]),
        start,
        end,
        None if stays else halfway(steps, share, reached[-1] + 1),
    )


def halfway(steps: np.ndarray, share: np.ndarray, at: int) -> float:
    """The step between the probes at − 1 and at where the share is 0.5, linear between them."""
    between = (0.5 - share[at - 1]) / (share[at] - share[at - 1])
    return float(steps[at - 1] + between * (steps[at] - steps[at - 1]))


def scatter(values: np.ndarray) -> float:
    """Standard deviation of a curve's noise: the median |second difference| / (0.6745 √6), which a smooth curve and a
    single jump leave near 0."""
    return float(np.median(np.abs(np.diff(values, 2)))) / (0.6745 * 6**0.5)


def dynamics(run: Run) -> dict[str, Onset | None]:
    """How each of `CURVES` that the run has logged moves; what sets in comes first, in the order of onset."""
    found = {name: onset(*series) for name in CURVES if len((series := run.series(name))[0])}

    def step(pair: tuple[str, Onset | None]) -> float:
        at = set_in(*pair)
        return np.inf if at is None else at.step

    return dict(sorted(found.items(), key=step))


def set_in(column: str, at: Onset | None) -> Onset | None:
    """The onset of a curve that moves to where more outliers lie and stays there; what goes again has not set in."""
    return at if at is not None and at.gone is None and grows(column, at) else None


def numbers(found: dict[str, Onset | None]) -> Numbers:
    """The onsets for an analysis's table: metric `onset_<curve>`, a statistic each. Of a curve that has not set in the
    step is NaN; if it moved, `start` and `end` are there, and `came` and `gone` if it is back again."""
    collected = Numbers()
    for column, at in found.items():
        statistics: dict[str, float] = {"step": np.nan}
        if at is not None:
            statistics |= {"start": at.start, "end": at.end}
            if set_in(column, at):
                statistics |= {"step": at.step, "low": at.low, "high": at.high}
            if at.gone is not None:
                statistics |= {"came": at.step, "gone": at.gone}
        for statistic, value in statistics.items():
            collected.add(f"onset_{column.removeprefix('outliers/')}", value, statistic=statistic)
    return collected


def outcome(column: str, at: Onset) -> str:
    """What a curve that moves clearly did, in words."""
    if grows(column, at):
        return "sets in" if at.gone is None else "comes and goes"
    return "moves away from outliers" if at.gone is None else "moves away from outliers and back"


def grows(column: str, at: Onset) -> bool:
    """Whether a curve of `CURVES` moved to where more outliers or sinks lie."""
    lower = DEFINITIONS[column.removeprefix("outliers/")].direction == "lower"  # where fewer lie
    return (at.end > at.start) == lower


def before(first: Onset, second: Onset) -> bool:
    """Whether the first sets in earlier beyond both uncertainties."""
    return first.high <= second.low
