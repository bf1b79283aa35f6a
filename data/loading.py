"""From a corpus to batches, so that neither the number of ranks nor the accumulation changes what a step sees.

Training. Step s is one global batch of G = accumulation * world * micro samples, and row i of micro-step m on rank r is
sample s * G + (m * world + r) * micro + i. Counting micro-steps through the whole run (u = s * accumulation + m) this
is (u * world + r) * micro + i: where a run begins again needs one integer, and nothing has a state to save.

Validation. Batches are cut once, without regard to ranks; rank r takes batches r, r + world, ... . All ranks take
equally many: batches behind the end, and rows that fill the last one, have -100 for every target and count nothing.

A batch is {"inputs": (B, T) int64, "targets": (B, T) int64}; a target of -100 is ignored. Where documents are masked it
has "first_key": (B, T) int32 too, for each input the first one that its attention may look at.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from data.corpus import Corpus
from data.windows import IGNORED, PACKED, Layout, Rows
from errors import InputError

Batch = dict[str, torch.Tensor]


class TrainDataset(Dataset[Batch]):
    """All samples of a run, by their global number; endless, so it has no length.

    `dataset[n]` is one sample, {"inputs": (T,), "targets": (T,)}; `dataset.__getitems__([...])` a batch, made at once.
    """

    def __init__(self, corpus: Corpus, context: int, seed: int, layout: Layout = PACKED):
        self.stream = corpus.training_stream(context, seed, layout)

    def __getitem__(self, sample: int) -> Batch:
        return {name: rows[0] for name, rows in self.__getitems__([sample]).items()}

    def __getitems__(self, samples: Sequence[int]) -> Batch:
        """Samples as a batch; what a DataLoader calls with the sampler's slice."""
        return _batch(self.stream.rows(np.asarray(samples, np.int64)))


class SliceSampler(Sampler[list[int]]):
    """The samples of one rank, a list for each micro-step, from micro-step `start` to `stop` of the whole run."""

    def __init__(self, micro: int, *, rank: int = 0, world: int = 1, start: int = 0, stop: int):
        if micro < 1:
            raise InputError(f"data.batch_size {micro}: choose at least 1")
        self.micro, self.rank, self.world, self.start, self.stop = micro, rank, world, start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = (step * self.world + self.rank) * self.micro
            yield list(range(first, first + self.micro))


class ValidationDataset(Dataset[Batch]):
    """One rank's validation batches, the same number on every rank.

    `limit` takes so many sequences, evenly spaced over the split, instead of all: a fixed set for frequent evaluation.
    """

    def __init__(
        self,
        corpus: Corpus,
        context: int,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        limit: int | None = None,
        layout: Layout = PACKED,
    ):
        if batch_size < 1:
            raise InputError(f"data.batch_size {batch_size}: choose at least 1")
        if limit is not None and limit < 1:
            raise InputError(f"limit of validation sequences {limit}: choose at least 1, or none")
        corpus.check_network(None, context, layout)
        self.windows = corpus.validation_windows(context, layout)
        self.context, self.batch_size, self.rank, self.world = context, batch_size, rank, world
        total = self.windows.count
        count = min(total, limit or total)
        self.numbers = np.arange(count) * total // count
        self.batches = -(-count // batch_size)

    def __len__(self) -> int:
        return -(-self.batches // self.world)

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(f"validation batch {number} of {len(self)}")
        first = (number * self.world + self.rank) * self.batch_size
        numbers = self.numbers[first : first + self.batch_size]
        rows = self.windows.rows(numbers)
        empty = self.batch_size - len(numbers)
        tokens = np.pad(rows.tokens, ((0, empty), (0, 0)), constant_values=IGNORED)
        first_keys = None if rows.first_keys is None else np.pad(rows.first_keys, ((0, empty), (0, 0)))
        return _batch(Rows(tokens, first_keys))


def _batch(rows: Rows) -> Batch:
    """Inputs and targets of sequences. Where a target is ignored the input may be anything: 0, a valid id."""
    tokens = torch.from_numpy(rows.tokens)
    batch = {"inputs": tokens[:, :-1].clamp(min=0), "targets": tokens[:, 1:].contiguous()}
    if rows.first_keys is not None:
        batch["first_key"] = torch.from_numpy(rows.first_keys)
    return batch
