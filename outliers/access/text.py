"""Text for an analysis, as sequences of T tokens.

A file or the built-in text is cut into consecutive pieces of T − 1 tokens behind the tokenizer's BOS, or of T tokens
where it has none; a tail that fills no sequence is left out. The validation set comes as the run's own windows do.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from errors import InputError
from outliers import nulls
from outliers.access.decoder import Decoder, check_length
from outliers.access.ours import validation_windows

LENGTH = 256  # tokens a sequence where none is given and the model's context is not shorter
KEYWORDS = ("built-in", "validation", "random")
BUILT_IN = Path(__file__).with_name("built_in.txt").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Text:
    """tokens: (B, T) int64. name: what they are, in words. bos: whether every sequence begins with BOS."""

    tokens: Tensor
    name: str
    bos: bool


def sequences(decoder: Decoder, text: str | None = None, *, count: int = 16, length: int | None = None) -> Text:
    """At most `count` sequences of `length` tokens, at least one.

    text: a file, "built-in", "validation" (of the model's run; the default where there is one) or "random" (uniform
    tokens: a null). length: at most the model's context; by default that or 256, whichever is less.
    InputError: the length does not fit, the file cannot be read or is too short, the model has no tokenizer or run.
    """
    if count < 1:
        raise InputError(f"{count} sequences: give at least 1")
    length = min(decoder.sizes.context, LENGTH) if length is None else length
    check_length(decoder, length)
    text = text or ("validation" if decoder.run else "built-in")
    bos = decoder.vocabulary.bos if decoder.vocabulary else None
    if text == "validation":
        tokens_BT, name = _validation(decoder, count, length), f"validation set of {decoder.run}"
    elif text == "random":
        tokens_BT, name = nulls.random_tokens(decoder.sizes.vocab_size, count, length), "uniform random tokens"
        if bos is not None:
            tokens_BT[:, 0] = bos
    else:
        tokens_BT, name = _cut(decoder, text, bos, count, length), "built-in text" if text == "built-in" else text
    decoder.check(tokens_BT)
    return Text(tokens_BT, name, bos is not None and bool((tokens_BT[:, 0] == bos).all()))


def _cut(decoder: Decoder, text: str, bos: int | None, count: int, length: int) -> Tensor:
    if decoder.vocabulary is None:
        raise InputError(f"{decoder.name} has no tokenizer, so it reads no text; give random for uniform tokens")
    content = BUILT_IN if text == "built-in" else _read(Path(text))
    if not content:
        raise InputError(f"text {text} is empty")
    own = length - (bos is not None)
    # Eight bytes a token are more than any tokenizer's mean: a large file need not be tokenised to its end.
    tokens = decoder.vocabulary.encode(content[: 8 * own * count + 64])
    rows = min(count, len(tokens) // own)
    if rows == 0:
        raise InputError(f"{text} has {len(tokens)} tokens, fewer than one sequence of {length}; give a smaller length")
    tokens_Bt = torch.tensor(tokens[: rows * own]).view(rows, own)
    return tokens_Bt if bos is None else torch.cat((torch.full((rows, 1), bos), tokens_Bt), dim=1)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"text {path}: {error.strerror} (a file, or {', '.join(KEYWORDS)})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"text {path} is not UTF-8: byte {error.start}") from None


def _validation(decoder: Decoder, count: int, length: int) -> Tensor:
    if decoder.run is None:
        raise InputError(f"{decoder.name} belongs to no run, so it has no validation set; give a file or built-in")
    windows = validation_windows(decoder.run, length)
    count = min(count, windows.count)
    rows = windows.rows(np.arange(count) * windows.count // count).tokens[:, :length]
    whole = (rows >= 0).all(axis=1)
    if not whole.any():
        raise InputError(f"the validation set of {decoder.run} is shorter than one sequence of {length} tokens")
    return torch.from_numpy(np.ascontiguousarray(rows[whole]))
