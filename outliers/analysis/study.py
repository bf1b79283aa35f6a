"""The order of an analysis: the text, then the same measurements where nothing was learned, then what needs both."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from models import GPT
from outliers import nulls
from outliers.access import Decoder, Text, sequences
from outliers.activations import OUTLIER_RATIO
from outliers.analysis.channels import channels
from outliers.analysis.consistency import consistency
from outliers.analysis.fresh import fresh
from outliers.analysis.interventions import SEQUENCES, intervene
from outliers.analysis.life_cycle import life_cycle
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
    say(f"measuring {B} sequences of {T} tokens: {text.name}")
    kinds_BT, texts = kinds(decoder, tokens_BT)
    table = Survey(decoder, kinds_BT, texts, tau=tau).run(tokens_BT).table()
    say("the same on random tokens and with initial weights")
    random = sequences(decoder, "random", count=min(B, NULL_SEQUENCES), length=T)
    on_random = _null(decoder, random)
    at_start = _null(fresh(decoder), replace(text, tokens=tokens_BT[:NULL_SEQUENCES]))
    tables = [beside(table, on_random.table(), at_start.table(), closed_forms(decoder, B, T))]
    say("the life of the largest outlier, and where outliers agree")
    later = [life_cycle(decoder, tokens_BT), consistency(decoder, tokens_BT[:SEQUENCES], tau)]
    say("interventions")
    later += [intervene(decoder, tokens_BT, tau, say), channels(decoder, tokens_BT)]
    tables += [without_nulls(numbers.table()) for numbers in later]
    return Study(text, tau, pa.concat_tables(tables), sentence(decoder, tokens_BT[0], texts[0]), notes)


def _null(decoder: Decoder, text: Text) -> Numbers:
    return Survey(decoder, *kinds(decoder, text.tokens), single=False).run(text.tokens)


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
