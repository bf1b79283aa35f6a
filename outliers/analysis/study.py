"""The order of an analysis: the text, then the same measurements where nothing was learned, then what needs both."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa
from torch import Tensor

from models import GPT
from outliers import nulls
from outliers.access import Decoder, Text, sequences
from outliers.activations import OUTLIER_RATIO
from outliers.analysis.channels import Channels
from outliers.analysis.consistency import Consistency
from outliers.analysis.excerpt import analyse
from outliers.analysis.fresh import fresh
from outliers.analysis.interventions import Interventions
from outliers.analysis.life_cycle import LifeCycle
from outliers.analysis.numbers import Numbers, beside, without_nulls
from outliers.analysis.sentence import Sentence, sentence
from outliers.analysis.survey import Survey
from outliers.analysis.token_kinds import kinds, limits
from outliers.definitions import DEFINITIONS

NULL_SEQUENCES = 2  # of the random tokens and for the initial weights: what is compared is a mean over sequences


@dataclass(frozen=True)
class Study:
    """What an analysis found. tau: what an outlier exceeds, in means of |x|. notes: what it could not do.

    table: all numbers (`outliers.analysis.numbers.SCHEMA`).
    """

    text: Text
    tau: float
    table: pa.Table
    sentence: Sentence
    notes: list[str]


def study(
    decoder: Decoder, text: Text, tau: float = OUTLIER_RATIO, say: Callable[[str], None] = lambda line: None
) -> Study:
    """Analyse a decoder on a text. tau: an outlier is above tau · mean |x|. say: is told what begins."""
    notes = [line for line in (limits(decoder),) if line]
    for line in notes:
        say(line)
    tokens_BT = text.tokens
    B, T = tokens_BT.shape
    say(f"measuring {B} sequence{'s' if B > 1 else ''} of {T} tokens: {text.name}")
    kinds_BT, texts = kinds(decoder, tokens_BT)
    measured = Survey(decoder, kinds_BT, texts, tau=tau).run(tokens_BT)
    say("the same on random tokens and with initial weights")
    random_BT = sequences(decoder, "random", count=min(B, NULL_SEQUENCES), length=T).tokens
    on_random = _null(decoder, random_BT, of_weights=False)  # the weights are the same
    at_start = _null(fresh(decoder), tokens_BT[:NULL_SEQUENCES])
    say("where outliers agree, and what they do")
    lived, *later = analyse(
        decoder,
        tokens_BT,
        LifeCycle(decoder),
        Consistency(decoder, tau),
        Interventions(decoder, tau, say),
        Channels(decoder),
    )
    own = {name: d.null.measured for name, d in DEFINITIONS.items() if d.null.measured}
    table = beside(_joined([measured, lived]), on_random, at_start, closed_forms(decoder, B, T), own)
    table = pa.concat_tables([table, without_nulls(_joined(later))])
    return Study(text, tau, table, sentence(decoder, tokens_BT[0], texts[0]), notes)


def _null(decoder: Decoder, tokens_BT: Tensor, *, of_weights: bool = True) -> pa.Table:
    survey = Survey(decoder, *kinds(decoder, tokens_BT), single=False, of_weights=of_weights)
    return _joined([survey.run(tokens_BT), *analyse(decoder, tokens_BT, LifeCycle(decoder))])


def _joined(parts: list[Numbers]) -> pa.Table:
    return pa.concat_tables([numbers.table() for numbers in parts])


def closed_forms(decoder: Decoder, sequences: int, length: int) -> dict[str, float]:
    """The closed-form null by metric id, for softmax where the architecture is not ours."""
    sizes, module = decoder.sizes, decoder.module
    if isinstance(module, GPT):
        setting = replace(nulls.setting(module.config, module.spec, sequences), context=length)
    else:
        setting = nulls.Setting(length, sizes.width, sequences, sizes.mlp_width)
    found = {}
    for name, definition in DEFINITIONS.items():
        if definition.null.closed_form and (value := definition.null.closed_form(setting)) is not None:
            found[name] = value
    return found
