"""The Bigram-Backcopy task: a small synthetic language on which a single layer forms an attention sink within seconds.

Definition (Guo et al., "Active-Dormant Attention Heads", 2410.13835, section 2). A sequence begins with a BOS token and
is then a Markov chain with a fixed transition matrix P, except after a trigger token, where the token before the
trigger is copied:

    x_0 = BOS
    x_{i+1} = x_{i-1}                 if x_i is a trigger
    x_{i+1} ~ P(. | x_i)              otherwise

A head that copies is active on triggers and has nothing to add on all other tokens: there it parks its weight on BOS.

Setting used here: 63 characters, the most frequent ASCII characters of the Python standard library's sources; P counts
their neighbouring pairs there; triggers `e`, `t` and `r`; BOS has id 0 and the characters follow in order of code
point. The first character is drawn from the characters' own frequencies without the triggers: so a trigger always has a
character before it, BOS is never copied, and (by induction) no two triggers are neighbours. The paper's own setting
differs: Tiny Shakespeare, T 256, width 256.

Everything is integer arithmetic on counts and counter-based bits: sample n of a seed is the same on every machine, and
a sequence of a shorter context is the beginning of the longer one. Bits per byte has no meaning here and is absent.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from data.mixing import bits
from data.windows import Rows
from errors import InputError

NAME = "bigram_backcopy"
CHARACTERS = 63
TRIGGERS = "etr"
BOS = 0
VOCAB_SIZE = CHARACTERS + 1
VALIDATION_SEQUENCES = 1024
TABLE = "transitions.npy"
GENERATOR = {"algorithm": "splitmix64-counts", "version": 1}

_TRAINING, _VALIDATION = 0x62625F747261696E, 0x62625F76616C6964  # "bb_train", "bb_valid": two streams that never meet
_CHUNK = 1024


def count_pairs(documents: Iterable[bytes]) -> npt.NDArray[np.int64]:
    """How often byte a is followed by byte b within a document: (256, 256)."""
    counts = np.zeros(1 << 16, np.int64)
    for document in documents:
        values = np.frombuffer(document, np.uint8).astype(np.int64)
        counts += np.bincount(values[:-1] * 256 + values[1:], minlength=1 << 16)
    return counts.reshape(256, 256)


def transition_table(pairs: npt.NDArray[np.int64]) -> tuple[str, npt.NDArray[np.int64]]:
    """The characters in id order (ids 1 to 63) and the transition counts (64, 64), row = current, column = next token.

    Row 0 (BOS) holds the frequencies of the first character. Column 0 is zero: BOS is never produced.
    """
    frequency = pairs.sum(1)[:128]
    chosen = np.sort(np.argsort(-frequency, kind="stable")[:CHARACTERS])
    characters = "".join(map(chr, chosen))
    counts = np.zeros((VOCAB_SIZE, VOCAB_SIZE), np.int64)
    counts[1:, 1:] = pairs[np.ix_(chosen, chosen)]
    counts[0, 1:] = [0 if character in TRIGGERS else frequency[ord(character)] for character in characters]
    if not set(TRIGGERS) <= set(characters) or (counts.sum(1) == 0).any() or counts.sum() >= 1 << 32:
        raise InputError(f"{NAME}: the standard library's sources do not give {CHARACTERS} characters with bigrams")
    return characters, counts


def task_entry(characters: str) -> dict[str, Any]:
    """What the manifest says of the task."""
    return {"characters": characters, "triggers": TRIGGERS, "bos": BOS, "generator": GENERATOR}


class Backcopy:
    """Generates sequences from the table: a pure function of (stream, seed, number)."""

    def __init__(self, counts: npt.NDArray[np.int64], characters: str):
        self.limits = counts.cumsum(1).astype(np.uint64)  # (64, 64)
        self.trigger = np.array([False] + [character in TRIGGERS for character in characters])

    def sequences(self, numbers: npt.NDArray[np.int64], length: int, seed: int | None) -> npt.NDArray[np.int64]:
        """Sequences (n, length) int64 for their numbers (n,); seed None is the validation stream."""
        stream = bits(_VALIDATION, 0) if seed is None else bits(_TRAINING, seed)
        draws = bits(int(stream[0].astype(np.int64)), np.asarray(numbers)[:, None], np.arange(length)[None, :])
        draws >>= np.uint64(32)
        tokens = np.zeros((len(draws), length), np.int64)  # column 0: BOS
        for i in range(1, length):
            current = tokens[:, i - 1]
            limits = self.limits[current]  # (n, 64)
            pick = (draws[:, i] * limits[:, -1]) >> np.uint64(32)  # uniform in [0, total)
            tokens[:, i] = (limits <= pick[:, None]).sum(1)
            if i >= 2:
                copying = self.trigger[current]
                tokens[copying, i] = tokens[copying, i - 2]
        return tokens


class BackcopyStream:
    """Training sequences of one seed, or the validation sequences where it is None.

    Each is a document of its own, which begins with its BOS; with bos `none` that is left out. The last chunk is kept
    because loaders ask for consecutive samples.
    """

    size = None  # endless
    count = VALIDATION_SEQUENCES

    def __init__(self, task: Backcopy, context: int, seed: int | None, bos: str):
        self.task, self.context, self.seed = task, context, seed
        self.left_out = int(bos == "none")
        self._chunk = -1
        self._rows = np.empty((0, context + 1), np.int64)

    def rows(self, samples: npt.NDArray[np.int64]) -> Rows:
        """Samples (n,), of context + 1 tokens each."""
        chunks = samples // _CHUNK
        result = np.empty((len(samples), self.context + 1), np.int64)
        for chunk in np.unique(chunks).tolist():
            if chunk != self._chunk:
                numbers = np.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK)
                tokens = self.task.sequences(numbers, self.context + 1 + self.left_out, self.seed)
                self._rows, self._chunk = tokens[:, self.left_out :], chunk
            here = chunks == chunk
            result[here] = self._rows[samples[here] - chunk * _CHUNK]
        return Rows(result, None)
