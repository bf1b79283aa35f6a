"""prepare: once for the same input, anew for another, and whole or absent however it ends."""

import ctypes
import ctypes.util
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.corpus import Corpus
from data.options import PrepareOptions
from data.prepare import prepare
from data.progress import Progress
from errors import InputError

ROOT = Path(__file__).parents[2]
CHILD = """
import sys
from data.options import PrepareOptions
from data.prepare import prepare
print(prepare(PrepareOptions(source=sys.argv[1], folder=sys.argv[2], vocab_size=600)))
"""


def start(source, folder):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def large_file(tmp_path_factory, text_of):
    """Text that takes long enough to tokenise for a process to be killed, or to be met, on the way."""
    path = tmp_path_factory.mktemp("large") / "large.txt"
    path.write_bytes((text_of(400_000) * 8).encode())
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def test_second_time_returns_at_once(text_folder, make, tmp_path):
    first = make(text_folder, tmp_path, tokenizer="bytes")
    before = {p.name: p.stat().st_mtime_ns for p in first.folder.iterdir()}
    assert make(text_folder, tmp_path, tokenizer="bytes").folder == first.folder
    assert {p.name: p.stat().st_mtime_ns for p in first.folder.iterdir()} == before
    assert names(tmp_path) == [first.folder.name]


def test_same_input_gives_the_same_corpus_elsewhere(text_folder, make, tmp_path):
    first, second = (make(text_folder, tmp_path / name, vocab_size=300) for name in "ab")
    assert first.hash == second.hash
    assert first.folder.name == second.folder.name


def test_changed_input_or_options_give_another_corpus(make, tmp_path, text_of):
    path = tmp_path / "story.txt"
    path.write_text(text_of(4000))
    folders = [make(path, tmp_path, tokenizer="bytes").folder]
    folders.append(make(path, tmp_path, tokenizer="bytes", validation_fraction=0.2).folder)
    folders.append(make(path, tmp_path, vocab_size=270).folder)
    folders.append(make(path, tmp_path, vocab_size=271).folder)
    saved = tmp_path / "saved.json"
    saved.write_bytes((folders[2] / "tokenizer.json").read_bytes())
    folders.append(make(path, tmp_path, tokenizer=str(saved)).folder)
    saved.write_bytes((folders[3] / "tokenizer.json").read_bytes())
    folders.append(make(path, tmp_path, tokenizer=str(saved)).folder)
    path.write_text(text_of(4000, seed=1))
    folders.append(make(path, tmp_path, tokenizer="bytes").folder)
    assert len(set(folders)) == len(folders)
    assert len({Corpus(f).hash for f in folders}) == len(folders)
    # What does not matter for the content leaves the name alone.
    assert make(path, tmp_path, tokenizer="bytes", vocab_size=999, streaming=True).folder == folders[-1]


def test_a_saved_tokenizer_gives_the_shards_of_the_one_that_was_trained(text_folder, make, bpe_corpus, tmp_path):
    saved = str(bpe_corpus.tokenizer_path)
    again = make(text_folder, tmp_path, tokenizer=saved, validation_fraction=0.2)
    tokens = again.train.read(0, len(again.train))
    assert np.array_equal(tokens, bpe_corpus.train.read(0, len(bpe_corpus.train)))
    assert np.array_equal(again.token_bytes, bpe_corpus.token_bytes)


def test_two_processes_at_once_make_one_corpus(large_file, tmp_path):
    first = start(large_file, tmp_path)
    wait_for(lambda: list(tmp_path.glob(".*.partial")), first)
    second = start(large_file, tmp_path)
    (out, err), (out_2, err_2) = first.communicate(), second.communicate()
    assert (first.returncode, second.returncode) == (0, 0), err + err_2
    assert out == out_2
    assert "prepared" in err
    assert "waiting for another process" in err_2
    assert "prepared" not in err_2.replace("prepares", "")
    assert len(names(tmp_path)) == 1


def mount_tmpfs(folder, size):
    """Mount a small file system, or skip: only root may."""
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if library.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()) != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here ({os.strerror(ctypes.get_errno())}); it needs root")
    return library


@pytest.mark.parametrize("size", ["8k", "1m"])
def test_full_disk(large_file, tmp_path, size):
    folder = tmp_path / "small"
    folder.mkdir()
    library = mount_tmpfs(folder, size)
    try:
        options = PrepareOptions(source=str(large_file), tokenizer="bytes", folder=str(folder))
        with pytest.raises(InputError) as caught:
            prepare(options, progress=False)
        assert f"no space left in {folder}" in str(caught.value)
        assert names(folder) == []
    finally:
        library.umount2(str(folder).encode(), 2)


def test_folder_that_is_a_file(text_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"in data.folder .*file: File exists"):
        prepare(PrepareOptions(source=str(text_folder), folder=str(tmp_path / "file")), progress=False)


def test_damaged_corpus_is_named_and_not_overwritten(text_folder, make, tmp_path):
    folder = make(text_folder, tmp_path, tokenizer="bytes").folder
    shard = folder / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"delete {folder} and prepare it again"):
        make(text_folder, tmp_path, tokenizer="bytes")


@pytest.mark.parametrize("limit", [2, 1000, 30_000])
def test_a_budget_of_tokens_is_met_exactly(text_folder, make, bytes_corpus, tmp_path, limit):
    corpus = make(text_folder, tmp_path, tokenizer="bytes", validation_fraction=0.2, max_tokens=limit)
    whole, cut = bytes_corpus.train, corpus.train
    assert len(cut) == limit
    assert np.array_equal(cut.read(0, limit), whole.read(0, limit))
    assert corpus.token_bytes[cut.read(0, limit)].sum() == corpus.manifest["splits"]["train"]["bytes"]
    # What is held out does not depend on the budget.
    assert corpus.manifest["splits"]["validation"] == bytes_corpus.manifest["splits"]["validation"]
    assert corpus.folder.name != bytes_corpus.folder.name


def test_a_budget_of_tokens_holds_out_what_was_read_of_records_and_the_tail_of_a_text(make, tmp_path, text_of):
    book, records = tmp_path / "book.txt", tmp_path / "records.jsonl"
    book.write_text(text_of(50_000))
    documents = [text_of(500, seed=i) for i in range(100)]
    records.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    options = {"tokenizer": "bytes", "validation_fraction": 0.1}
    few, all_of = (make(book, tmp_path, **options, max_tokens=limit) for limit in (1000, 10**9))
    assert few.manifest["splits"]["validation"] == all_of.manifest["splits"]["validation"]
    few, all_of = (make(records, tmp_path, **options, max_tokens=limit) for limit in (10_000, None))
    held_out = len(few.validation)
    assert len(few.train) == 10_000
    assert 0 < held_out < 0.5 * len(all_of.validation)
    assert np.array_equal(few.validation.read(0, held_out), all_of.validation.read(0, held_out))


def test_a_budget_beyond_the_source_changes_nothing_but_the_name(text_folder, make, bytes_corpus, tmp_path):
    corpus = make(text_folder, tmp_path, tokenizer="bytes", validation_fraction=0.2, max_tokens=10**9)
    assert corpus.hash == bytes_corpus.hash


def test_source_that_changes_while_it_is_read(tmp_path, text_of, monkeypatch):
    from data import sources

    path = tmp_path / "growing.txt"
    path.write_text(text_of(4000))
    read = sources.Files.pieces

    def pieces_and_growth(self, *position):
        yield from read(self, *position)
        with path.open("a") as file:
            file.write("more\n")

    monkeypatch.setattr(sources.Files, "pieces", pieces_and_growth)
    with pytest.raises(InputError, match="changed while it was read"):
        prepare(PrepareOptions(source=str(path), tokenizer="bytes", folder=str(tmp_path / "out")), progress=False)
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"validation_fraction": 0.0}, "data.validation_fraction 0.0: choose above 0 and at most 0.5"),
        ({"validation_fraction": 0.6}, "at most 0.5"),
        ({"max_documents": 1}, "data.max_documents 1"),
        ({"max_tokens": 1}, "data.max_tokens 1: choose at least 2"),
        ({"source": "bigram_backcopy", "max_tokens": 9}, "data.max_tokens 9: bigram_backcopy is endless"),
        ({"vocab_size": 200}, "at least 257"),
        ({"tokenizer": "bqe"}, "did you mean 'bpe'?"),
        ({"source": "stdlbi"}, "did you mean 'stdlib'?"),
    ],
)
def test_options_out_of_range(tmp_path, options, expected):
    with pytest.raises(InputError) as caught:
        prepare(PrepareOptions(**{"folder": str(tmp_path / "out"), **options}), progress=False)
    assert expected in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_source_without_validation_text(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises(InputError, match="no text for"):
        prepare(PrepareOptions(source=str(path), tokenizer="bytes", folder=str(tmp_path / "out")), progress=False)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_and_in_a_log(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        now[0] = 100.0
        progress = Progress("preparing x", 40_000_000, stream=stream)
        for _ in range(40):
            now[0] += 1
            progress.add(1_000_000, 300_000)
        progress.finish("done")
    assert terminal.getvalue().count("\r") == 41
    assert "[############............]  50% 20.0 MB, 6.00 M tokens, 300,000 tokens/s, 20 s left" in terminal.getvalue()
    lines = log.getvalue().splitlines()
    assert lines[-1] == "done"
    assert len(lines) == 3
    assert "preparing x:  38% 15.0 MB, 4.50 M tokens, 300,000 tokens/s, 25 s left" in lines[0]
    log.seek(0)
    progress.say("training")
    assert log.getvalue().startswith("preparing x: training\n")
    progress = Progress("x", 40_000_000, stream=io.StringIO())
    progress.go_on(30_000_000)
    progress.add(5_000_000, 2_000_000)
    assert progress.line(2.0) == "x:  88% 35.0 MB, 2.00 M tokens, 1,000,000 tokens/s, 2 s left"
    unknown = Progress("x", None, stream=io.StringIO())
    unknown.add(5_000_000, 1_000_000)
    assert unknown.line(2.0) == "x: 5.0 MB, 1.00 M tokens, 500,000 tokens/s"
