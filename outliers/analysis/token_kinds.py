"""Token classes by decoded text, so that they mean the same for any tokenizer.

2502.06415 and 2402.17762 find outliers at initial tokens, at delimiters and at words with little meaning. Neither gives
a rule; ours: the class is read off the token's own text without surrounding blanks.
"""

import numpy as np
import torch
from torch import Tensor

from errors import InputError
from outliers.access import Decoder

KINDS = ("initial", "strong", "weak", "other")
DESCRIPTIONS = {
    "initial": "the first token of a sequence, whatever it is",
    "strong": "strong delimiter: only line breaks, or only the characters . ! ? ; :",
    "weak": "weak semantics: other punctuation and blanks, and function words (articles, prepositions, conjunctions, "
    "pronouns, auxiliaries)",
    "other": "everything else",
}
STRONG = set(".!?;:")
WORDS = (
    "a an the this that these those and or but nor so if as of at by for from in into on onto to with without over "
    "under up out about than then there it its he she they we you i him her them us his their our your my is are was "
    "were be been being am has have had do does did will would can could may might shall should must not no who whom "
    "which what"
)
FUNCTION_WORDS = frozenset(WORDS.split())
SAMPLE = ".\nthe"


def kind_of(text: str) -> str:
    """The class of a token that is not the first."""
    bare = text.strip()
    if not bare:
        return "strong" if "\n" in text else "weak"
    if set(bare) <= STRONG:
        return "strong"
    # Half a character (U+FFFD) of a byte-level tokenizer is no punctuation.
    if bare.lower() in FUNCTION_WORDS or not any(c.isalnum() or c == "\N{REPLACEMENT CHARACTER}" for c in bare):
        return "weak"
    return "other"


def kinds(decoder: Decoder, tokens_BT: Tensor) -> tuple[Tensor, list[list[str]]]:
    """(B, T) int64 indices into `KINDS`, and each token's text. Without a tokenizer all but the first are "other"."""
    if decoder.vocabulary is None:
        texts = {int(token): f"#{int(token)}" for token in tokens_BT.unique()}
        named = dict.fromkeys(texts, KINDS.index("other"))
    else:
        unique = [int(token) for token in tokens_BT.unique()]
        texts = dict(zip(unique, decoder.vocabulary.pieces(unique), strict=True))
        named = {token: KINDS.index(kind_of(text)) for token, text in texts.items()}
    rows = tokens_BT.tolist()
    found_BT = torch.from_numpy(np.array([[named[token] for token in row] for row in rows], dtype=np.int64))
    found_BT[:, 0] = KINDS.index("initial")
    return found_BT, [[texts[token] for token in row] for row in rows]


def limits(decoder: Decoder) -> str | None:
    """One line where the tokenizer cannot write what the classes are made of; None where it can."""
    if decoder.vocabulary is None:
        return f"{decoder.name} has no tokenizer: only the token classes initial and other are told apart"
    missing = []
    for character in SAMPLE:
        try:
            written = character in decoder.vocabulary.decode(decoder.vocabulary.encode(character))
        except InputError:
            written = False
        if not written:
            missing.append(repr(character))
    if not missing:
        return None
    return f"the tokenizer of {decoder.name} cannot write {', '.join(missing)}: token classes that need it stay empty"
