"""What the report's table shows and its verdicts judge: the validation loss, the probe's headlines, and the
quantisation gap where the runs logged it.

A measure's values are read from a run's probes through `outliers.headlines`, so that the report and the logged
columns cannot disagree.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import pyarrow.compute as pc

import outliers
from experiments.runs import Run
from outliers.definitions import DEFINITIONS, HEADLINES, find_headline
from outliers.nulls import Setting

LOSS = "validation/loss"
GAP = "quantization_gap"
WORSE = {"lower": +1, "higher": -1, "neutral": 0}
INITIALISATION, RANDOM_TOKENS, CLOSED_FORM = "initialisation", "random tokens", "closed form"


@dataclass(frozen=True)
class Measure:
    """One judged quantity.

    detail: how the probe's rows become this number. of_weights: read off the weights, whatever the inputs.
    column: of metrics.csv, where the number is logged and is no headline of the probe.
    worse: +1 where a larger value is a stronger outlier or sink (or a worse loss), −1 where a smaller one is,
        0 where the measure only describes (explicit mass, gates): it gets no verdict.
    closed_form, cases: as in the definition. gates: the measure that is the closed form under the run's own gates.
    """

    id: str
    title: str
    unit: str
    worse: int
    detail: str = ""
    column: str = ""
    of_weights: bool = False
    closed_form: Callable[[Setting], float | None] | None = None
    cases: str | None = None
    gates: str = ""

    @property
    def is_loss(self) -> bool:
        """Whether this is the validation loss, which has rules of its own."""
        return self.id == LOSS


def measures() -> list[Measure]:
    """The loss, every headline of the probe in the order of the definitions table, and the quantisation gap."""
    gap = DEFINITIONS[GAP]
    return [
        Measure(LOSS, "Validation loss", "nats per token", +1, column=LOSS),
        *(_headline(key) for key in HEADLINES),
        Measure(GAP, gap.title, gap.unit, WORSE[gap.direction], "w8a8 absmax", column=f"outliers/{GAP}"),
    ]


def measured(runs: Iterable[Run]) -> list[Measure]:
    """`measures` of these runs: the quantisation gap, which is logged where it is asked for, only if one logged it."""
    runs = list(runs)
    return [m for m in measures() if m.id != GAP or any(len(run.series(m.column)[0]) for run in runs)]


def at(run: Run, measure: Measure, step: int | None = None, inputs: str = "probe") -> float | None:
    """The run's value at `step` (the last one where None) on the probe batch or on random tokens, or None."""
    if measure.column:
        if inputs != "probe":
            return None
        steps, values = run.series(measure.column)
        if step is not None:
            values = values[steps == step]
        return float(values[-1]) if len(values) else None
    table = headlines(run, inputs)
    if step is None:
        step = max(table, default=-1)
    value = table.get(step, {}).get(measure.id, math.nan)
    return None if math.isnan(value) else value


def nulls(run: Run, measure: Measure) -> dict[str, float]:
    """What the measure reads where nothing has been learned: untrained weights on the probe's text and on random
    tokens, and the closed form where there is one, under the run's own gates. Absent where it was not recorded."""
    found = {
        INITIALISATION: at(run, measure, 0),
        RANDOM_TOKENS: None if measure.of_weights else at(run, measure, 0, "random"),
        CLOSED_FORM: _closed_form(run, measure),
    }
    return {name: value for name, value in found.items() if value is not None}


def rounding(run: Run, measure: Measure) -> float:
    """Standard deviation of a share that is known to half a case on either side, 1 / (n √12) for n cases; 0 for a
    measure that is no count, or where the number of cases is not recorded."""
    setting = run.setting
    if measure.cases is None or setting is None or run.network is None:
        return 0.0
    cases = run.network.layers * run.network.heads * setting.sequences
    return 1 / (cases * (setting.context if measure.cases == "queries" else 1) * math.sqrt(12))


def strongest(measure: Measure, found: dict[str, float]) -> float | None:
    """The null that is hardest to exceed: the largest where larger is worse, else the smallest."""
    if not found:
        return None
    return max(found.values()) if measure.worse > 0 else min(found.values())


@lru_cache(maxsize=512)
def headlines(run: Run, inputs: str) -> dict[int, dict[str, float]]:
    """step → the headlines of that probe, for `inputs` probe or random."""
    table = run.probes
    if table is None:
        return {}
    table = table.filter(pc.field("inputs") == inputs)
    steps = sorted(set(table["step"].to_pylist()))
    return {step: outliers.headlines(table.filter(pc.field("step") == step), inputs) for step in steps}


def _headline(name: str) -> Measure:
    definition, headline = find_headline(name)
    if not headline.sites:
        detail = f"{headline.reduction} over heads and layers"
    elif len(headline.sites) == 1:
        detail = f"{headline.sites[0].replace('_', ' ')}, {headline.reduction} over layers"
    else:
        detail = f"{len(headline.sites)} sites, {headline.reduction} over sites and layers"
    first = headline is definition.headlines[0]
    return Measure(
        id=name,
        title=definition.title if first else f"{definition.title}, {headline.reduction}",
        unit="" if definition.unit == "1" else definition.unit,
        # One verdict a definition: its other reductions are the same rows once more.
        worse=WORSE[definition.direction] if first else 0,
        detail=detail,
        of_weights=definition.scope == "weight",
        closed_form=definition.null.closed_form,
        cases=definition.cases,
        gates=definition.null.measured if first else "",
    )


def _closed_form(run: Run, measure: Measure) -> float | None:
    if measure.gates and (made := at(run, _headline(measure.gates))) is not None:
        return made
    setting = run.setting
    return None if measure.closed_form is None or setting is None else measure.closed_form(setting)
