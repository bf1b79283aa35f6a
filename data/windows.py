"""How sequences are cut from the tokens of a corpus: where a BOS stands, and how far attention may look.

One corpus serves every choice. Its tokens hold a mark, <|endoftext|>, before each document:

    bos: document   the tokens as they are: the mark is a document's BOS, and the target at the end of the one before it
    bos: sequence   the text without marks, and one mark at the start of each sequence
    bos: none       the text without marks

    documents: packed   a sequence is one text: attention looks back to its first token
    documents: masked   attention looks back to the start of the document; a sequence's `first_keys` say where that is

Sequence n has the targets n * context … (n + 1) * context - 1, so all sequences together show each target once. With
one mark a sequence each text token is a target, else the first token of all is not. A mark has no bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data.shards import TokenSplit
from errors import InputError

IGNORED = -100
BOS = ("document", "sequence", "none")
DOCUMENTS = ("packed", "masked")


@dataclass(frozen=True)
class Layout:
    """The two choices: `documents` is packed or masked, `bos` document, sequence or none."""

    documents: str = "packed"
    bos: str = "document"

    def validate(self) -> None:
        """InputError for a value that there is not."""
        _choose("data.documents", self.documents, DOCUMENTS)
        _choose("data.bos", self.bos, BOS)


PACKED = Layout()


class Rows(NamedTuple):
    """Sequences: tokens (n, context + 1) int64, -100 behind the end of the split; and where documents are masked
    first_keys (n, context) int32, for each input the first one that it sees."""

    tokens: npt.NDArray[np.int64]
    first_keys: npt.NDArray[np.int32] | None


class Windows:
    """The sequences of one split.

    starts: for each document the number of text tokens before it, int64; needed where the marks are left out.
    mark: the id that begins documents. targets: how many there are; count: sequences that cover all of them.
    """

    def __init__(self, split: TokenSplit, starts: TokenSplit | None, mark: int, context: int, layout: Layout):
        self.split, self.starts, self.mark, self.context = split, starts, mark, context
        self.masked = layout.documents == "masked"
        self.lead = int(layout.bos == "sequence")  # tokens put before those of the split
        self.length = len(split) - (0 if starts is None else len(starts))
        self.targets = self.length - 1 + self.lead
        self.count = -(-self.targets // context)

    def rows(self, numbers: npt.NDArray[np.int64]) -> Rows:
        """Sequences by their numbers (n,)."""
        first, size = np.asarray(numbers) * self.context, self.context + 1 - self.lead
        if self.starts is None and (first + size <= self.length).all():
            tokens = self.split.rows(first, size)
            begins = tokens == self.mark if self.masked else None
        else:
            tokens = np.full((len(first), self.context + 1), IGNORED, np.int64)
            tokens[:, : self.lead] = self.mark
            begins = np.zeros(tokens.shape, bool)
            for row, marks, start in zip(tokens, begins, first.tolist(), strict=True):
                found, where = self._read(start, min(start + size, self.length))
                row[self.lead : self.lead + len(found)] = found
                marks[self.lead : self.lead + len(found)] = where
        return Rows(tokens, _first_keys(begins[:, :-1]) if self.masked and begins is not None else None)

    def _read(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Tokens start..stop, and which of them begin a document."""
        if self.starts is None:
            tokens = self.split.read(start, stop)
            return tokens, tokens == self.mark
        if start >= stop:
            return np.empty(0, np.int64), np.empty(0, bool)
        # A text token lies behind as many marks as there are documents that begin at or before it.
        before, last = np.searchsorted(self.starts.mapped, [start, stop - 1], side="right").tolist()
        stored = self.split.read(start + before, stop + last)
        marks = stored == self.mark
        begins = np.zeros(stop - start, bool)
        places = np.flatnonzero(marks)
        begins[places - np.arange(len(places))] = True
        return stored[~marks], begins


def _first_keys(begins: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """The position of the latest beginning at or before each position, 0 without one: (n, T) -> (n, T)."""
    places = np.where(begins, np.arange(begins.shape[1], dtype=np.int32), np.int32(0))
    return np.maximum.accumulate(places, axis=1)


def _choose(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        near = get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{name} is {value!r}; it is one of {', '.join(choices)}{hint}")
