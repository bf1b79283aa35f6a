"""Plain language from verdicts: what a comparison shows, what it does not show, and what it cannot say."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from experiments.drawing.words import number, signed
from experiments.report.assess import (
    DIFFERS,
    LEVEL,
    NO_DIFFERENCE,
    NOT_ASSESSABLE,
    SEEDS_NEEDED,
    Assessment,
    Verdict,
    own_null,
    values,
)
from experiments.report.comparison import Comparison
from experiments.report.measures import Measure, nulls
from experiments.statistics import t_quantile

EXPLICIT_MASS = "explicit_sink_mass"
SETTINGS_NAMED = 6
ONE_VARIANT = "There is one variant only: nothing to compare it with."
ALONE = " *"  # marks an interval that excludes 0 where the corrected test sees no difference


@dataclass(frozen=True)
class Findings:
    """Sentences in plain text, by what may be concluded from them."""

    shows: list[str]
    shows_not: list[str]
    cannot: list[str]


def findings(comparison: Comparison, assessment: Assessment) -> Findings:
    """The sentences of one comparison, in the order of the table."""
    shows, shows_not = [], []
    for measure in (measure for measure in comparison.measures if measure.worse):
        ours = [verdict for verdict in assessment.verdicts if verdict.measure.id == measure.id]
        name = measure.title + _levels(comparison, assessment, measure)
        different = [_difference(comparison, verdict) for verdict in ours if verdict.word == DIFFERS]
        equal = [_difference(comparison, verdict) for verdict in ours if verdict.word == NO_DIFFERENCE]
        if different:
            shows.append(f"{name}: {'; '.join(different)}.")
        if equal:
            shows_not.append(f"{name}: {'; '.join(equal)}.")
    return Findings(
        [*shows, *_moved(comparison), *_exceeding(comparison, assessment)],
        explained(shows_not),
        _cannot(comparison, assessment),
    )


def explained(shows_not: list[str]) -> list[str]:
    """The sentences, and what the mark of `difference` means where one has it."""
    note = f"{ALONE.strip()} The interval excludes 0 by itself; the test corrected for all comparisons does not."
    return [*shows_not, note] if any(ALONE in sentence for sentence in shows_not) else shows_not


def _exceeding(comparison: Comparison, assessment: Assessment) -> list[str]:
    """Where the baseline shows the phenomenon at all, so that a variant could be judged on it."""
    judged = [measure for measure in comparison.measures if measure.worse and not measure.is_loss]
    titles = [_low(measure.title) for measure in judged if assessment.nulls[measure.id].exceeded]
    if not titles or not comparison.others:
        return []
    return [
        f"{comparison.baseline.label} itself exceeds the null, in every seed and by a 95 % interval, in {len(titles)} "
        f"of {len(judged)} outlier and sink measures, and only there is a variant judged: {'; '.join(titles)}."
    ]


def _moved(comparison: Comparison) -> list[str]:
    """Explicit mass is named for what it is, attention moved to a slot, where it exceeds its own null in every seed."""
    sentences = []
    (measure,) = (measure for measure in comparison.measures if measure.id == EXPLICIT_MASS)
    for variant in comparison.variants:
        found, runs = values(variant, measure)
        own = [max(nulls(run, measure).values(), default=math.inf) for run in runs]
        if (
            found
            and len(variant.finished) >= SEEDS_NEEDED
            and all(value > null for value, null in zip(found, own, strict=True))
        ):
            sentences.append(
                f"{variant.label} puts {number(fmean(found))} of its attention on its explicit sink (null "
                f"{number(fmean(own))}): what leaves the first key has been moved to a slot, not removed."
            )
    return sentences


def withheld(comparison: Comparison, verdicts: Sequence[Verdict], every: str) -> list[str]:
    """A sentence for each reason why there is no verdict: of what, and of which variants where it is not all of them.

    every: names all that is judged, "every measure".
    """
    sentences = []
    judged = {verdict.measure.id for verdict in verdicts}
    by_reason: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for verdict in verdicts:
        if verdict.word == NOT_ASSESSABLE:
            by_reason[verdict.reason][verdict.measure.title].append(verdict.variant)
    everyone = [variant.label for variant in comparison.others]
    for reason, by_measure in by_reason.items():
        alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for title, variants in by_measure.items():
            alike[tuple(variants)].append(_low(title))
        what = (
            (every if len(titles) == len(judged) else "; ".join(titles))
            + ("" if list(variants) == everyone else f" ({', '.join(variants)})")
            for variants, titles in alike.items()
        )
        sentences.append(f"Not assessable, {reason}: {'; '.join(what)}.")
    return sentences


def _cannot(comparison: Comparison, assessment: Assessment) -> list[str]:
    sentences = withheld(comparison, assessment.verdicts, "every measure")
    if not comparison.others:
        sentences.append(ONE_VARIANT)
    rate, schedule = comparison.baseline_option("model.optimizer.lr"), comparison.schedule()
    if rate is not None and "model.optimizer.lr" not in comparison.differing:
        sentences.append(
            f"Every variant trained at the same learning rate, {rate:g}{f' ({schedule})' if schedule else ''}: "
            "untuned, for it was tuned for none of them, and another rate may favour another variant."
        )
    differing = [f"{key} ({', '.join(map(_value, found[:3]))})" for key, found in comparison.differing.items()]
    if differing:
        more = f"; and {len(differing) - SETTINGS_NAMED} more" if len(differing) > SETTINGS_NAMED else ""
        sentences.append(f"The runs do not share their settings: {'; '.join(differing[:SETTINGS_NAMED])}{more}.")
    if assessment.verdicts:
        sentences.append(_method(assessment))
    return sentences


def _method(assessment: Assessment) -> str:
    """How a difference is told from noise, and how large it must be for that."""
    pairs = [v.difference.n for v in assessment.verdicts if v.word != NOT_ASSESSABLE and v.difference is not None]
    power = ""
    if pairs:
        needed = t_quantile(1 - LEVEL / assessment.made, min(pairs) - 1) / math.sqrt(min(pairs))
        power = (
            f" With {min(pairs)} seeds the strictest step asks for a mean difference of {needed:.1f} times its "
            "standard deviation: what is not seen may still be there. The test takes differences as normally "
            "distributed, which so few seeds cannot confirm."
        )
    return (
        f"{len(assessment.verdicts)} comparisons were made (variants × measures), {assessment.made} of them "
        "assessable. A difference is called one where the p-value of its paired t test, adjusted by Holm’s method for "
        f"all assessable comparisons, is under {LEVEL:g}; the intervals shown are not adjusted.{power} Seeds stand for "
        "the noise of initial values and data order on this corpus and at this size; nothing here speaks of larger "
        "models or longer training."
    )


def _value(value: Any) -> str:
    return "absent" if value is None else str(value)


def _levels(comparison: Comparison, assessment: Assessment, measure: Measure) -> str:
    found, _ = values(comparison.baseline, measure)
    level = f"{comparison.baseline.label} {number(fmean(found))}" if found else ""
    null = assessment.nulls[measure.id].value
    return f" ({level}{f', null {number(null)}' if null is not None else ''})"


def _difference(comparison: Comparison, verdict: Verdict) -> str:
    variant = next(variant for variant in comparison.others if variant.label == verdict.variant)
    own = own_null(comparison, verdict.measure, values(variant, verdict.measure)[1])
    return difference(verdict, "" if own is None else f", its own null {number(own[0])}")


def difference(verdict: Verdict, beside: str = "") -> str:
    """An assessable verdict in words, with its interval and what is to stand beside it."""
    d = verdict.difference
    assert d is not None  # an assessable verdict has pairs
    span = f"[{signed(d.low)}, {signed(d.high)}]{beside}"
    if verdict.word == DIFFERS:
        return f"{verdict.variant} {'higher' if d.mean > 0 else 'lower'} by {number(abs(d.mean))} {span}"
    # An interval stands for itself; Holm's correction asks for more the more comparisons are made.
    return f"{verdict.variant} {signed(d.mean)} {span}{ALONE if d.p < LEVEL else ''}"


def _low(title: str) -> str:
    """A title inside a sentence; abbreviations keep their capitals."""
    return title[0].lower() + title[1:] if title[1:2].islower() else title
