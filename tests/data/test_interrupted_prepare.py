"""A preparation that is killed, at any moment and as often as one likes, ends in the corpus of one that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import journal
from data.corpus import Corpus
from data.options import PrepareOptions
from data.prepare import prepare
from errors import InputError

ROOT = Path(__file__).parents[2]
# Small units, so that a small text has many of everything; killed at the n-th change of the disk, if n is not 0.
CHILD = """
import json, os, signal, sys
from itertools import count
from data import readers, shards, text
from data.options import PrepareOptions
from data.prepare import prepare

readers.PIECE, text._BATCH, text.JOURNAL_EVERY = 1 << 12, 1 << 13, 3 << 14
shards.ShardWriter.__init__.__defaults__ = (1 << 15, None)


def killed_at(n):
    passed = count(1)

    def counting(call):
        def counted(*arguments, **named):
            if next(passed) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)
        return counted

    for name in ("fsync", "replace", "rename", "unlink"):
        setattr(os, name, counting(getattr(os, name)))


def attempt(folder, n):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killed_at(n)
    prepare(PrepareOptions(**json.loads(sys.argv[1]), folder=folder))
    os._exit(0)


print(json.dumps([attempt(folder, n) for folder, n in json.loads(sys.argv[2])]))
"""


def attempts(options: dict, *places: tuple[Path, int]) -> tuple[list[bool], str]:
    """Prepare in each folder, killed at the n-th change of the disk: whether it was, and what all of them said."""
    words = [sys.executable, "-c", CHILD, json.dumps(options), json.dumps([(str(path), n) for path, n in places])]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert set(codes) <= {0, -signal.SIGKILL}, done.stderr
    return [code != 0 for code in codes], done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the one corpus in the folder but the stamp, which holds times."""
    (corpus,) = (path for path in folder.iterdir() if path.is_dir())
    assert not corpus.name.startswith(".")
    Corpus(corpus).verify()
    return {path.name: path.read_bytes() for path in corpus.iterdir() if path.name != "verified.json"}


@pytest.fixture(scope="module")
def book(tmp_path_factory, text_of):
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(text_of(250_000))
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, text_of):
    folder = tmp_path_factory.mktemp("mixed")
    for i in range(5):
        (folder / f"{i}.txt").write_text(text_of(15_000 + 1000 * i, seed=i))
    records = [json.dumps({"text": text_of(700, seed=100 + i)}) for i in range(60)]
    (folder / "3.jsonl").write_text("\n".join(records))
    return folder


def test_killed_at_each_change_of_the_disk_from_the_first_to_the_last(mixed, tmp_path):
    options = {"source": str(mixed), "tokenizer": "bytes", "max_tokens": 90_000, "validation_fraction": 0.2}
    last = 45
    places = [(tmp_path / str(n), n) for n in range(1, last + 1)]
    again = [(path, 0) for path, _ in places]
    killed, said = attempts(options, *places, *again)
    changes = killed.index(False)
    assert 25 < changes < last, killed
    assert not any(killed[changes:])
    assert 10 < said.count("going on behind") < changes  # before the first journal and after the manifest there is none
    assert "beginning again" not in said
    expected = contents(places[-1][0])
    for path, n in places[:changes]:
        assert contents(path) == expected, n


def test_killed_again_and_again(book, tmp_path):
    options = {"source": str(book), "vocab_size": 300, "validation_fraction": 0.2}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    # Each attempt lives a little longer than the one before it: in the end one is not killed.
    killed, said = attempts(options, (whole, 0), *((torn, n) for n in range(3, 60, 2)), (torn, 0))
    assert 8 < sum(killed) < 29
    assert said.count("training a BPE") < 12  # once in `whole`, and until the first journal in `torn`
    assert contents(torn) == contents(whole)


def wait_for(text: str, process: subprocess.Popen, path: Path) -> None:
    end = time.monotonic() + 60
    while text not in path.read_text():
        assert process.poll() is None, path.read_text()
        assert time.monotonic() < end
        time.sleep(0.002)


def test_killed_while_the_bpe_is_trained_then_stopped_by_ctrl_c_while_it_tokenises(tmp_path, text_of, make):
    source = tmp_path / "large.txt"
    source.write_bytes((text_of(400_000) * 6).encode())
    words = ["prepare", f"--data.source={source}", "--data.vocab_size=600", f"--data.folder={tmp_path / 'torn'}"]
    said = tmp_path / "said.txt"
    for moment, number, code in (("training a BPE", signal.SIGKILL, -9), ("tokenising", signal.SIGINT, 130)):
        with said.open("w") as file:
            process = subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, stdout=file, stderr=file)
        wait_for(moment, process, said)
        process.send_signal(number)
        assert process.wait() == code, said.read_text()
    assert "Traceback" not in said.read_text()
    with said.open("w") as file:
        subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, stdout=file, stderr=file, check=True)
    assert "going on behind 0.0 MB" in said.read_text()
    assert "training a BPE" not in said.read_text()
    make(source, tmp_path / "whole", vocab_size=600)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_cut_off_from_the_hub(tmp_path, text_of, make, monkeypatch, capsys):
    import datasets

    from data import text

    monkeypatch.setattr(text, "_BATCH", 1 << 12)
    monkeypatch.setattr(text, "JOURNAL_EVERY", 1 << 13)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = tmp_path / "stories"
    hub.mkdir()
    lines = (json.dumps({"text": text_of(300, seed=i)}) + "\n" for i in range(400))
    (hub / "train.jsonl").write_text("".join(lines))
    options = {"tokenizer": "bytes", "streaming": True}
    make(f"hub:{hub}", tmp_path / "whole", **options)
    read = datasets.IterableDataset.__iter__

    def broken(rows):
        for number, row in enumerate(read(rows)):
            if number == 300:
                raise ConnectionError("Server Disconnected")
            yield row

    with monkeypatch.context() as broken_off:
        broken_off.setattr(datasets.IterableDataset, "__iter__", broken)
        with pytest.raises(InputError, match=r"the hub cannot be reached \(Server Disconnected\)"):
            make(f"hub:{hub}", tmp_path / "torn", **options)
    prepare(PrepareOptions(source=f"hub:{hub}", folder=str(tmp_path / "torn"), **options))
    assert "going on behind 0.1 MB" in capsys.readouterr().err
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_what_does_not_fit_the_journal_is_begun_again(book, tmp_path, capsys):
    whole = prepare(PrepareOptions(source=str(book), tokenizer="bytes", folder=str(tmp_path)), progress=False)
    expected = contents(tmp_path)
    partial = whole.with_name(f".{whole.name}.partial")
    whole.rename(partial)
    (partial / "manifest.json").unlink()
    for content in ("", "{}", "[", json.dumps(state(partial, digest="another")), json.dumps(state(partial, tokens=7))):
        (partial / journal.NAME).write_text(content)
        (partial / "left-behind").touch()
        prepare(PrepareOptions(source=str(book), tokenizer="bytes", folder=str(tmp_path)))
        assert contents(tmp_path) == expected
        assert ("beginning again" in capsys.readouterr().err) == ("exact" in content)
        whole.rename(partial)
        (partial / "manifest.json").unlink()


def state(folder: Path, digest: str | None = None, tokens: int = 0) -> dict:
    """A journal of the bytes of a corpus, wrong in one respect."""
    import hashlib
    from importlib.metadata import version

    empty = {"shards": [], "open": {"tokens": tokens, "sha256": hashlib.sha256(b"").hexdigest()}}
    split = {"documents": 0, "bytes": 0, "tokens": empty, "starts": empty}
    name = {"digest": digest or hashlib.sha256(b"bytes").hexdigest(), "library": version("tokenizers")}
    splits = {"train": split, "validation": split}
    return {"tokenizer": name, "trained_on": {}, "position": [0, 0, 0, 0], "exact": True, "splits": splits}
