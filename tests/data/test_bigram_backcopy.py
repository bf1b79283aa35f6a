"""The Bigram-Backcopy task follows its definition, and is the same on every machine."""

import hashlib
import json

import numpy as np
import pytest

from data.bigram_backcopy import BOS, TRIGGERS, Backcopy, count_pairs, transition_table
from data.loading import TrainDataset, ValidationDataset
from errors import InputError


@pytest.fixture(scope="module")
def tokens(backcopy_corpus):
    return backcopy_corpus.task.sequences(np.arange(4000), 33, seed=0)


def trigger_ids(corpus):
    return [corpus.manifest["task"]["characters"].index(c) + 1 for c in TRIGGERS]


def test_definition(backcopy_corpus, tokens):
    assert (tokens[:, 0] == BOS).all()
    assert tokens[:, 1:].min() >= 1
    assert tokens.max() <= 63
    trigger = np.isin(tokens, trigger_ids(backcopy_corpus))
    assert not trigger[:, 1].any()
    rows, columns = np.nonzero(trigger[:, :-1])
    assert len(rows) > 5000
    assert np.array_equal(tokens[rows, columns + 1], tokens[rows, columns - 1])
    assert not (trigger[:, 1:] & trigger[:, :-1]).any()
    assert backcopy_corpus.vocab_size == 64
    assert backcopy_corpus.token_bytes is None


def test_frequencies_are_the_tables(backcopy_corpus, tokens):
    counts = np.load(backcopy_corpus.folder / "transitions.npy")
    assert (counts[:, BOS] == 0).all()
    trigger = np.isin(tokens, trigger_ids(backcopy_corpus))
    for current in (0, *np.argsort(-counts[1:].sum(1))[:3] + 1):
        if current in trigger_ids(backcopy_corpus):
            continue
        rows, columns = np.nonzero((tokens[:, :-1] == current) & ~trigger[:, :-1])
        seen = np.bincount(tokens[rows, columns + 1], minlength=64) / len(rows)
        expected = counts[current] / counts[current].sum()
        assert np.abs(seen - expected).max() < 4 * np.sqrt(0.25 / len(rows))


def test_pure_function_of_seed_and_sample(backcopy_corpus, tokens):
    task = backcopy_corpus.task
    assert np.array_equal(task.sequences(np.array([3999, 17, 17]), 33, seed=0), tokens[[3999, 17, 17]])
    assert np.array_equal(task.sequences(np.arange(50), 20, seed=0), tokens[:50, :20])
    dataset = TrainDataset(backcopy_corpus, 32, seed=0)
    for samples in ([5, 6], [2047, 2048, 1023], [3, 3999]):
        batch = dataset.__getitems__(samples)
        assert np.array_equal(batch["inputs"].numpy(), tokens[samples, :-1])
        assert np.array_equal(batch["targets"].numpy(), tokens[samples, 1:])


def test_seeds_and_validation_share_no_sequence(backcopy_corpus, tokens):
    task = backcopy_corpus.task
    seen = {row.tobytes() for row in tokens}
    assert len(seen) == 4000
    for seed in (None, 1):
        assert not seen & {row.tobytes() for row in task.sequences(np.arange(4000), 33, seed)}


def test_validation_is_fixed_and_full(backcopy_corpus):
    dataset = ValidationDataset(backcopy_corpus, 32, 64)
    assert len(dataset) * 64 == 1024
    assert all((dataset[i]["targets"] > 0).all() for i in range(len(dataset)))


def test_golden_sequence():
    # Its own small table, because the standard library differs from Python to Python.
    codes = np.arange(60, 123)
    pairs = np.zeros((256, 256), np.int64)
    pairs[np.ix_(codes, codes)] = codes[:, None] * codes % 97 + 1
    characters, counts = transition_table(pairs)
    tokens = Backcopy(counts, characters).sequences(np.array([0, 10**9]), 12, seed=3)
    assert tokens.tolist() == [
        [0, 61, 41, 27, 6, 3, 39, 19, 60, 14, 24, 46],
        [0, 60, 60, 33, 5, 44, 45, 56, 4, 47, 47, 24],
    ]


def test_table_and_its_hash(backcopy_corpus):
    manifest = json.loads((backcopy_corpus.folder / "manifest.json").read_text())
    content = (backcopy_corpus.folder / "transitions.npy").read_bytes()
    (entry,) = manifest["files"]
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["task"]["triggers"] == "etr"
    assert len(manifest["task"]["characters"]) == 63
    assert "splits" not in manifest


def test_pairs_are_counted_within_documents():
    counts = count_pairs([b"aba", b"", b"b", b"ab"])
    assert counts.sum() == 3
    assert counts[ord("a"), ord("b")] == 2
    assert counts[ord("b"), ord("a")] == 1


def test_too_little_text_for_the_task():
    with pytest.raises(InputError, match="63 characters"):
        transition_table(count_pairs([b"etr" * 100]))


def test_pieces_and_network(backcopy_corpus):
    assert backcopy_corpus.pieces([0, *trigger_ids(backcopy_corpus)]) == ["<BOS>", "e", "t", "r"]
    backcopy_corpus.check_network(64, 10**6)
    with pytest.raises(InputError, match="vocabulary of 64"):
        backcopy_corpus.check_network(63, 32)
