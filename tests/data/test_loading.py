"""Batches: no number of ranks, accumulation or workers changes what a step sees, and validation sees all of it once."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.loading import SliceSampler, TrainDataset, ValidationDataset
from errors import InputError

CONTEXT = 16


def train_loader(corpus, context, seed, batch_size, *, workers=0, **place):
    """As training reads: the sampler's slices are fetched as whole batches."""
    dataset, slices = TrainDataset(corpus, context, seed), SliceSampler(batch_size, **place)
    return DataLoader(dataset, batch_sampler=slices, collate_fn=lambda batch: batch, num_workers=workers)


def validation_loader(corpus, context, batch_size, **place):
    return DataLoader(ValidationDataset(corpus, context, batch_size, **place), batch_size=None)


def global_batches(corpus, total, accumulation, world, steps=3, first=0):
    """The rows of each optimizer step, put together from all ranks and micro-steps in the order of their numbers."""
    micro = total // (accumulation * world)
    loaders = [
        train_loader(
            corpus, CONTEXT, 5, micro, start=first * accumulation, stop=steps * accumulation, rank=rank, world=world
        )
        for rank in range(world)
    ]
    micro_steps = list(zip(*loaders, strict=True))
    assert len(micro_steps) == (steps - first) * accumulation
    rows = [torch.cat([rank["inputs"] for rank in ranks]) for ranks in micro_steps]
    return torch.cat(rows).reshape(steps - first, total, CONTEXT)


@pytest.mark.parametrize("name", ["bytes_corpus", "backcopy_corpus"])
def test_same_global_batches_for_any_split_of_the_work(request, name):
    corpus = request.getfixturevalue(name)
    expected = global_batches(corpus, 16, 1, 1)
    for world in (1, 2, 4):
        for accumulation in (1, 2, 4):
            assert torch.equal(global_batches(corpus, 16, accumulation, world), expected)
            assert torch.equal(global_batches(corpus, 16, accumulation, world, first=2), expected[2:])


def test_the_sampler_follows_the_numbering():
    micro, world, accumulation = 3, 2, 4
    for rank in range(world):
        slices = list(SliceSampler(micro, rank=rank, world=world, stop=2 * accumulation))
        for step in range(2):
            for m in range(accumulation):
                first = step * accumulation * world * micro + (m * world + rank) * micro
                assert slices[step * accumulation + m] == [first, first + 1, first + 2]
    assert len(SliceSampler(3, start=5, stop=8)) == 3
    assert list(SliceSampler(3, start=8, stop=8)) == []


def test_workers_change_nothing(bytes_corpus):
    alone = list(train_loader(bytes_corpus, CONTEXT, 0, 4, stop=6))
    helped = list(train_loader(bytes_corpus, CONTEXT, 0, 4, stop=6, workers=2))
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(alone, helped, strict=True))


def test_an_epoch_shows_each_window_once_in_the_seeds_order(bytes_corpus):
    dataset = TrainDataset(bytes_corpus, CONTEXT, seed=0)
    size = dataset.stream.size
    assert size == (len(bytes_corpus.train) - 1) // CONTEXT
    tokens = bytes_corpus.train.read(0, size * CONTEXT + 1)
    for epoch in range(2):
        batch = dataset.__getitems__(range(epoch * size, (epoch + 1) * size))
        rows = torch.cat([batch["inputs"], batch["targets"][:, -1:]], 1).numpy()
        expected = np.stack([tokens[i * CONTEXT : (i + 1) * CONTEXT + 1] for i in range(size)])
        assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
        assert not np.array_equal(rows, expected)
    other = TrainDataset(bytes_corpus, CONTEXT, seed=1).__getitems__(range(size))
    first = dataset.__getitems__(range(size))
    assert not torch.equal(first["inputs"], other["inputs"])
    assert not torch.equal(first["inputs"], batch["inputs"])  # the second epoch has an order of its own


@pytest.mark.parametrize("name", ["bpe_corpus", "backcopy_corpus"])
def test_shapes_and_shift(request, name):
    dataset = TrainDataset(request.getfixturevalue(name), CONTEXT, 3)
    sample = dataset[12345]
    batch = dataset.__getitems__([7, 12345])
    assert batch["inputs"].shape == batch["targets"].shape == (2, CONTEXT)
    assert batch["inputs"].dtype == batch["targets"].dtype == torch.int64
    assert torch.equal(batch["inputs"][1], sample["inputs"])
    assert torch.equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    assert batch["targets"].is_contiguous()
    assert batch["inputs"].is_contiguous()


@pytest.mark.parametrize("world", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("batch_size", [1, 5, 8])
def test_validation_covers_each_target_once(bytes_corpus, world, batch_size):
    alone = list(validation_loader(bytes_corpus, CONTEXT, batch_size))
    ranks = [list(validation_loader(bytes_corpus, CONTEXT, batch_size, rank=r, world=world)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for turn in zip(*ranks, strict=True) for batch in turn]
    assert all(torch.equal(a["targets"], b["targets"]) for a, b in zip(alone, batches, strict=False))
    assert all((batch["targets"] == -100).all() for batch in batches[len(alone) :])
    assert all(batch["inputs"].shape == (batch_size, CONTEXT) for batch in batches)
    targets = torch.cat([batch["targets"].flatten() for batch in batches])
    inputs = torch.cat([batch["inputs"].flatten() for batch in batches])
    tokens = bytes_corpus.validation.read(0, len(bytes_corpus.validation))
    assert np.array_equal(targets[targets != -100].numpy(), tokens[1:])
    assert np.array_equal(inputs[targets != -100].numpy(), tokens[:-1])
    assert inputs.min() >= 0


def test_limited_validation_is_fixed_and_spread_out(bytes_corpus):
    total = bytes_corpus.validation_windows(CONTEXT).count
    few = ValidationDataset(bytes_corpus, CONTEXT, 4, limit=10)
    assert len(few) == 3
    assert few.numbers.tolist() == sorted(set(few.numbers.tolist()))
    assert len(few.numbers) == 10
    assert few.numbers[-1] > 0.8 * total
    assert len(ValidationDataset(bytes_corpus, CONTEXT, 4, limit=10**9).numbers) == total


def test_validation_longer_than_the_split_is_one_padded_row(bytes_corpus):
    tokens = len(bytes_corpus.validation)
    (batch,) = list(validation_loader(bytes_corpus, tokens + 50, 2))
    assert (batch["targets"] != -100).sum() == tokens - 1


def test_refused(bytes_corpus):
    with pytest.raises(InputError, match="batch_size 0"):
        SliceSampler(0, stop=1)
    with pytest.raises(InputError, match="batch_size 0"):
        ValidationDataset(bytes_corpus, CONTEXT, 0)
    with pytest.raises(InputError, match="0: choose at least 1"):
        ValidationDataset(bytes_corpus, CONTEXT, 2, limit=0)
    with pytest.raises(InputError, match="fewer than one sequence"):
        TrainDataset(bytes_corpus, 10**6, 0)
    with pytest.raises(IndexError):
        ValidationDataset(bytes_corpus, CONTEXT, 2)[10**6]
