"""A corpus on disk: what was text is text again, and damage of any kind is found."""

import json
import pickle
import shutil

import numpy as np
import pytest

from data import manifest
from data.corpus import Corpus
from data.shards import ShardWriter, TokenSplit, token_dtype
from errors import InputError


def copy(corpus, folder):
    return shutil.copytree(corpus.folder, folder / "copy")


def spoil(path, offset=-1):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def documents(corpus, split):
    """The documents of a split as text, cut at the mark that begins each."""
    tokens = split.read(0, len(split))
    starts = np.flatnonzero(tokens == corpus.tokenizer.end_of_text)
    assert starts[0] == 0
    return [corpus.tokenizer.decode(part.tolist()) for part in np.split(tokens, starts[1:])]


@pytest.mark.parametrize("name", ["bytes_corpus", "bpe_corpus"])
def test_shards_hold_the_text(request, name, text_folder):
    corpus = request.getfixturevalue(name)
    train, validation = documents(corpus, corpus.train), documents(corpus, corpus.validation)
    assert sorted(train + validation) == sorted(p.read_bytes().decode() for p in text_folder.rglob("*.txt"))
    for split, texts in (("train", train), ("validation", validation)):
        entry = corpus.manifest["splits"][split]
        assert entry["documents"] == len(texts)
        assert entry["bytes"] == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("name", ["bytes_corpus", "bpe_corpus"])
def test_byte_counts_sum_to_the_text(request, name):
    corpus = request.getfixturevalue(name)
    assert corpus.token_bytes.shape == (corpus.vocab_size,)
    for split, tokens in (("train", corpus.train), ("validation", corpus.validation)):
        assert corpus.token_bytes[tokens.read(0, len(tokens))].sum() == corpus.manifest["splits"][split]["bytes"]


def test_manifest_says_what_was_done(bpe_corpus):
    content = json.loads((bpe_corpus.folder / "manifest.json").read_text())
    assert content["order"] == {"algorithm": "feistel-splitmix64-cycle-walking", "version": 1}
    assert content["tokenizer"]["vocab_size"] == 320
    assert content["tokenizer"]["trained_on"]["bytes"] == content["splits"]["train"]["bytes"]
    assert content["dtype"] == "uint16"
    assert content["source"]["files"] == 30
    assert content["hash"] == bpe_corpus.hash
    assert len(bpe_corpus.hash) == 64


def test_tokens_across_shards(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 60000, 1000).astype("<u2")
    writer = ShardWriter(tmp_path, "train", np.dtype("<u2"), shard_tokens=64)
    for part in np.split(tokens, [1, 5, 130, 131, 640]):
        writer.write(part)
    shards = writer.finish()
    assert [s.tokens for s in shards] == [64] * 15 + [40]
    split = TokenSplit(tmp_path, shards, np.dtype("<u2"))
    assert len(split) == 1000
    for start, stop in ((0, 1000), (0, 0), (63, 65), (64, 128), (10, 700), (999, 1000)):
        assert np.array_equal(split.read(start, stop), tokens[start:stop])
    starts = np.array([0, 60, 900])
    assert np.array_equal(split.rows(starts, 100), np.stack([tokens[s : s + 100] for s in starts]))
    with pytest.raises(IndexError):
        split.read(990, 1001)


def test_a_writer_goes_on_from_where_another_was_in_step_with_the_disk(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 60000, 300).astype("<u2")
    options = {"prefix": "train", "dtype": np.dtype("<u2"), "shard_tokens": 64}
    writer = ShardWriter(tmp_path, **options)
    writer.write(tokens[:150])
    begun = writer.sync()
    writer.write(tokens[:100])  # lost: the process was killed, but its files are longer than it said
    writer.abandon()
    again = ShardWriter(tmp_path, **options, begun=begun)
    assert again.tokens == 150
    again.write(tokens[150:])
    shards = again.finish()
    split = TokenSplit(tmp_path, shards, np.dtype("<u2"))
    assert np.array_equal(split.read(0, 300), tokens)
    assert all((tmp_path / shard.file).stat().st_size == shard.size for shard in shards)
    for file in ("train-00000.bin", "train-00002.bin"):
        spoil(tmp_path / file, offset=0)
        with pytest.raises(ValueError, match=f"{file} is damaged"):
            ShardWriter(tmp_path, **options, begun=begun)
        spoil(tmp_path / file, offset=0)


def test_starts_count_the_text_before_each_document(bpe_corpus):
    for name, split in (("train", bpe_corpus.train), ("validation", bpe_corpus.validation)):
        (entry,) = bpe_corpus.manifest["splits"][name]["starts"]
        starts = np.fromfile(bpe_corpus.folder / entry["file"], "<i8")
        marks = np.flatnonzero(split.read(0, len(split)) == bpe_corpus.tokenizer.end_of_text)
        assert np.array_equal(starts, marks - np.arange(len(marks)))


def test_a_worker_maps_the_files_again(bytes_corpus):
    message = pickle.dumps(bytes_corpus.train)
    assert len(message) < 2000
    copied = pickle.loads(message)
    assert np.array_equal(copied.read(0, 500), bytes_corpus.train.read(0, 500))


@pytest.mark.parametrize(("size", "name"), [(257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_narrowest_type(size, name):
    assert token_dtype(size).name == name


def test_a_changed_byte_is_found_at_opening(bpe_corpus, tmp_path):
    folder = copy(bpe_corpus, tmp_path)
    assert Corpus(folder).hash == bpe_corpus.hash
    spoil(folder / "train-00000.bin")
    with pytest.raises(InputError, match=r"train-00000.bin is corrupt \(its checksum differs\); delete"):
        Corpus(folder)


def test_a_changed_byte_under_an_old_time_is_found_by_verify(bpe_corpus, tmp_path):
    import os

    folder = copy(bpe_corpus, tmp_path)
    path = folder / "validation-00000.bin"
    Corpus(folder)
    about = path.stat()
    spoil(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    corpus = Corpus(folder)
    with pytest.raises(InputError, match=r"validation-00000.bin is corrupt"):
        corpus.verify()


def test_sizes_and_missing_files_are_always_checked(bpe_corpus, tmp_path):
    folder = copy(bpe_corpus, tmp_path)
    path = folder / "train-00000.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(InputError, match=f"{len(whole) - 2} bytes instead of {len(whole)}"):
        Corpus(folder)
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        Corpus(folder)


@pytest.mark.parametrize("file", ["token_bytes.npy", "tokenizer.json"])
def test_other_files_have_checksums_too(bpe_corpus, tmp_path, file):
    folder = copy(bpe_corpus, tmp_path)
    spoil(folder / file)
    with pytest.raises(InputError, match=f"{file} is corrupt"):
        Corpus(folder)


def test_damaged_manifest(bpe_corpus, tmp_path):
    folder = copy(bpe_corpus, tmp_path)
    path = folder / manifest.NAME
    whole = path.read_text()
    for content, expected in (
        (whole[:100], "not JSON"),
        (whole.replace('"uint16"', '"uint32"'), "its hash does not fit"),
        (whole.replace(manifest.FORMAT, "sinkless-corpus-0"), "this version reads"),
        ("[]", "this version reads"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=expected):
            Corpus(folder)
    path.unlink()
    with pytest.raises(InputError, match="no prepared corpus"):
        Corpus(folder)


def test_networks_that_do_not_fit(bpe_corpus):
    bpe_corpus.check_network(None, 64)
    bpe_corpus.check_network(320, 64)
    bpe_corpus.check_network(1024, len(bpe_corpus.train) - 1)
    with pytest.raises(InputError, match=r"vocab_size 319 is smaller than the tokenizer's vocabulary of 320"):
        bpe_corpus.check_network(319, 64)
    with pytest.raises(InputError, match=r"fewer than one sequence of context"):
        bpe_corpus.check_network(None, len(bpe_corpus.train))
    with pytest.raises(InputError, match="context 0"):
        bpe_corpus.check_network(None, 0)


def test_a_lossy_tokenizer_leaves_bits_per_byte_out(text_folder, make, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "def": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "words.json"))
    corpus = make(text_folder, tmp_path, tokenizer=str(tmp_path / "words.json"), validation_fraction=0.2)
    assert corpus.token_bytes is None
    assert corpus.vocab_size == 3
    assert set(np.unique(corpus.train.read(0, len(corpus.train)))) == {0, 1, 2}


def test_a_tokenizer_that_gives_the_mark_for_text_is_refused(make, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "<|endoftext|>": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "words.json"))
    (tmp_path / "text.txt").write_text("one <|endoftext|> two\n" * 20)
    with pytest.raises(InputError, match=r"gives <\|endoftext\|> for text"):
        make(tmp_path / "text.txt", tmp_path / "out", tokenizer=str(tmp_path / "words.json"))
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
