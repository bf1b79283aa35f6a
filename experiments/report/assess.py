"""Verdicts: what differs from the baseline beyond seed noise, what does not, and what cannot be said.

Every variant is paired with the baseline by seed (the same tokens, order and initial values), and the mean of the
paired differences gets a 95 % t interval. A comparison counts as a difference where Holm's adjusted p-value, over all
comparisons assessed in the folder, is under 0.05. Before that, rules withhold a verdict that the data cannot carry.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from experiments.report.comparison import EXTRA_PARAMETERS, Comparison, Variant
from experiments.report.measures import CLOSED_FORM, INITIALISATION, Measure, at, nulls, rounding, strongest
from experiments.runs import Run
from experiments.statistics import Interval, first_crossing, holm, interval

DIFFERS = "differs beyond seed noise"
NO_DIFFERENCE = "no difference seen"
NOT_ASSESSABLE = "not assessable"
LEVEL = 0.05
SEEDS_NEEDED = 3


@dataclass(frozen=True)
class Null:
    """The baseline against a measure's null: means over its finished seeds, and whether it exceeds the null beyond
    noise, or why that cannot be said."""

    value: float | None
    parts: dict[str, float]
    exceeded: bool
    reason: str = ""

    @property
    def hardest(self) -> str:
        """Which of `parts` the value is, in the mean over seeds the nearest; "" where there is none."""
        if self.value is None:
            return ""
        return min(self.parts, key=lambda name: abs(self.parts[name] - self.value))


@dataclass(frozen=True)
class Verdict:
    """One comparison: `difference` is variant − baseline over paired seeds, None where no seed is shared."""

    measure: Measure
    variant: str
    word: str
    reason: str = ""
    difference: Interval | None = None
    adjusted_p: float | None = None


@dataclass(frozen=True)
class StepsTo:
    """Steps until the baseline's final validation loss, by seed (None: not reached), or why there are none."""

    by_seed: dict[int, float | None]
    note: str = ""


@dataclass(frozen=True)
class Assessment:
    """All verdicts of a comparison."""

    verdicts: list[Verdict]
    nulls: dict[str, Null]
    steps_to: dict[str, StepsTo]

    @property
    def made(self) -> int:
        """The number of comparisons that were assessed, which Holm's correction counts."""
        return sum(verdict.adjusted_p is not None for verdict in self.verdicts)

    def verdict(self, measure: Measure, variant: str) -> Verdict | None:
        """The verdict of one cell of the table."""
        return next((v for v in self.verdicts if v.measure.id == measure.id and v.variant == variant), None)


def assess(comparison: Comparison) -> Assessment:
    """Judge every variant on every measure that has a bad direction."""
    judged = [measure for measure in comparison.measures if measure.worse]
    against = {measure.id: null_of(comparison.baseline, measure) for measure in judged}
    verdicts = [
        judge(comparison, variant, measure, against[measure.id]) for measure in judged for variant in comparison.others
    ]
    settled = [_beyond_nulls(comparison, verdict) for verdict in settle(verdicts)]
    return Assessment(
        settled, against, {variant.label: steps_to(comparison, variant) for variant in comparison.variants}
    )


def null_of(baseline: Variant, measure: Measure) -> Null:
    """Whether the baseline exceeds the measure's null in every seed and beyond seed noise, over at least 3 seeds.

    The null of a seed is the hardest of: the value at initialisation, on random tokens (untrained), the closed form.
    This is a condition for a verdict and no finding, so it is not corrected for the number of measures.
    """
    margins, values = [], []
    parts: dict[str, list[float]] = defaultdict(list)
    for seed, run in sorted(baseline.finished.items()):
        value, found = at(run, measure), nulls(run, measure)
        null = strongest(measure, found)
        if value is None or null is None:
            return Null(None, found, False, f"no value or no null is recorded for {baseline.label}, seed {seed}")
        margins.append(measure.worse * (value - null) if not measure.is_loss else null - value)
        values.append(null)
        for name, part in found.items():
            parts[name].append(part)
    if not values:
        return Null(None, {}, False, f"{baseline.label} has no finished run")
    null = fmean(values)
    means = {name: fmean(part) for name, part in parts.items()}
    least = rounding(next(iter(baseline.finished.values())), measure)
    reason = not_exceeded(baseline.label, margins, least)
    return Null(null, means, not reason, reason)


def not_exceeded(label: str, margins: Sequence[float], least: float = 0.0, null: str = "the metric’s null") -> str:
    """Why the baseline cannot be said to exceed a null, from by how much it does in each seed; "" where it can."""
    if min(margins) <= 0:
        return f"{label} itself does not exceed {null} in every seed"
    if len(margins) < SEEDS_NEEDED:
        return f"fewer than {SEEDS_NEEDED} seeds ({len(margins)} finished)"
    if interval(margins, least=least).low <= 0:
        return f"{label} itself does not exceed {null} beyond seed noise"
    return ""


def judge(comparison: Comparison, variant: Variant, measure: Measure, null: Null) -> Verdict:
    """One verdict before Holm's correction: an assessable one holds NO_DIFFERENCE until `settle`."""
    ours, theirs = (
        {seed: value for seed, run in owner.finished.items() if (value := at(run, measure)) is not None}
        for owner in (variant, comparison.baseline)
    )
    owners = (variant, comparison.baseline) if ours and theirs else ()
    least = math.hypot(*(rounding(next(iter(owner.finished.values())), measure) for owner in owners))
    return judge_values(comparison, variant, measure, ours, theirs, null, least)


def judge_values(
    comparison: Comparison, variant: Variant, measure: Measure, ours: Mapping[int, float], theirs: Mapping[int, float],
    null: Null, least: float = 0.0,
) -> Verdict:  # fmt: skip
    """The same from the variant's and the baseline's values of finished runs, by seed. least: see `interval`."""
    difference = paired(comparison, variant, ours, theirs, least)
    reason = (
        comparison.unlike(variant)
        or _too_few(comparison.baseline, variant, difference.n if difference else 0)
        or (_parameters(comparison, variant) if measure.is_loss else "")
        or ("" if difference is None or math.isfinite(difference.mean) else "not finite in every seed")
        or ("" if null.exceeded else null.reason)
        or ("the same difference in every seed: no spread to test it against" if _bare(difference) else "")
    )
    return Verdict(measure, variant.label, NOT_ASSESSABLE if reason else NO_DIFFERENCE, reason, difference)


def paired(
    comparison: Comparison, variant: Variant, ours: Mapping[int, float], theirs: Mapping[int, float], least: float = 0.0
) -> Interval | None:
    """The variant's values minus the baseline's, paired by seed; None without a pair or where they are not alike."""
    pairs = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return interval(pairs, least=least) if pairs and not comparison.unlike(variant) else None


def settle(verdicts: list[Verdict]) -> list[Verdict]:
    """Decide the assessable verdicts by Holm's correction over all of them."""
    open_ = [i for i, verdict in enumerate(verdicts) if verdict.word != NOT_ASSESSABLE]
    adjusted = holm([verdicts[i].difference.p for i in open_])  # type: ignore[union-attr]
    settled = list(verdicts)
    for i, p in zip(open_, adjusted, strict=True):
        settled[i] = replace(verdicts[i], word=DIFFERS if p < LEVEL else NO_DIFFERENCE, adjusted_p=p)
    return settled


def steps_to(comparison: Comparison, variant: Variant) -> StepsTo:
    """Steps at which the variant first reaches the same seed's final validation loss of the baseline."""
    if unlike := comparison.unlike(variant):
        return StepsTo({}, unlike)
    schedule = comparison.schedule()
    if schedule not in ("constant", "wsd"):
        named = f"the {schedule} schedule" if schedule else "an unknown schedule"
        return StepsTo({}, f"biased by {named}")
    by_seed: dict[int, float | None] = {}
    for seed in sorted(comparison.baseline.finished.keys() & variant.runs.keys()):
        target, run = comparison.baseline.finished[seed].last("validation/loss"), variant.runs[seed]
        steps, losses = run.series("validation/loss")
        if target is not None and len(steps):
            crossing = first_crossing(steps.tolist(), losses.tolist(), target)
            if crossing is not None or run.finished:  # an unfinished run may reach it yet
                by_seed[seed] = crossing
    return StepsTo(by_seed, "" if by_seed else "no finished run to compare with in the same seed")


def _beyond_nulls(comparison: Comparison, verdict: Verdict) -> Verdict:
    """The verdict, withheld where the difference is no larger than that between the two closed forms, which slots, or
    gates that follow the position, set apart without any sink. Holm's correction has counted it all the same."""
    if verdict.word != DIFFERS or verdict.difference is None:
        return verdict
    variant = next(v for v in comparison.variants if v.label == verdict.variant)
    found = [
        [nulls(run, verdict.measure).get(CLOSED_FORM) for run in owner.finished.values()]
        for owner in (variant, comparison.baseline)
    ]
    if None in found[0] + found[1]:
        return verdict
    ours, theirs = (fmean(values) for values in found)
    if abs(verdict.difference.mean) > abs(ours - theirs):
        return verdict
    reason = f"no larger a difference than between their nulls, {ours:.3g} and {theirs:.3g}"
    return replace(verdict, word=NOT_ASSESSABLE, reason=reason)


def _bare(difference: Interval | None) -> bool:
    """Whether there are several pairs and still no noise to compare their difference with."""
    return difference is not None and difference.n > 1 and math.isinf(difference.high)


def _too_few(baseline: Variant, variant: Variant, pairs: int) -> str:
    if pairs >= SEEDS_NEEDED:
        return ""
    shared = baseline.runs.keys() & variant.runs.keys()
    unfinished = [
        f"{owner.label} seed {seed} {run.status.state} at step {run.status.step:,} of {run.status.max_steps:,}"
        for owner in (baseline, variant)
        for seed, run in sorted(owner.runs.items())
        if seed in shared and not run.finished
    ]
    if len(shared) >= SEEDS_NEEDED and unfinished:
        return f"unfinished: {'; '.join(unfinished)}"
    done = baseline.finished.keys() & variant.finished.keys()
    if len(done) >= SEEDS_NEEDED:
        return "not measured" if not pairs else f"measured in {pairs} seeds only"
    return f"fewer than {SEEDS_NEEDED} seeds ({len(done)} shared)"


def _parameters(comparison: Comparison, variant: Variant) -> str:
    extra = comparison.extra_parameters(variant)
    if extra is None:
        return "the number of parameters is not recorded"
    if abs(extra[1]) > EXTRA_PARAMETERS:
        more = "extra" if extra[0] > 0 else "fewer"
        return f"{abs(extra[1]):.2%} {more} parameters (at most {EXTRA_PARAMETERS:.1%} apart to judge the loss)"
    return ""


def values(variant: Variant, measure: Measure) -> tuple[list[float], list[Run]]:
    """The variant's final values and their runs: of the finished runs, or of all of them where none is finished."""
    runs = list((variant.finished or variant.runs).values())
    found = [(value, run) for run in runs if (value := at(run, measure)) is not None]
    return [value for value, _ in found], [run for _, run in found]


def own_null(comparison: Comparison, measure: Measure, runs: list[Run]) -> tuple[float, str] | None:
    """The null of one variant's runs and its kind, closed form or else initialisation, where it is worth saying: for a
    measure that is not judged always, otherwise where the closed form is not the baseline's (a slot takes its share of
    any row)."""
    found = [nulls(run, measure) for run in runs]
    name = CLOSED_FORM if all(CLOSED_FORM in own for own in found) else INITIALISATION
    own = [parts[name] for parts in found if name in parts]
    theirs = {nulls(run, measure).get(CLOSED_FORM) for run in comparison.baseline.runs.values()}
    if not own or (measure.worse and (name != CLOSED_FORM or set(own) <= theirs)):
        return None
    return fmean(own), name
