"""What `train.py` makes of the ways in which a command can end."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train

TRAIN_PY = Path(train.__file__)
ACTS = """
import os, signal, time
from errors import InputError

def done(argv): return 0
def refuse(argv): raise InputError("x is 3; it is 1 or 2")
def fail(argv): raise OSError(int(argv[0]), os.strerror(int(argv[0])), "some/file")
def send(argv):
    try:
        os.kill(os.getpid(), int(argv[0]))
        time.sleep(5)
    finally:
        open("left", "w")
"""


@pytest.fixture(autouse=True)
def _acts(tmp_path, monkeypatch):
    (tmp_path / "acts.py").write_text(ACTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command adds the working directory
    yield
    sys.modules.pop("acts", None)


def test_bad_input_is_one_line_and_exit_code_2(capsys):
    assert train.dispatch("acts:done", []) == 0
    assert train.dispatch("acts:refuse", []) == 2
    assert capsys.readouterr().err == "error: x is 3; it is 1 or 2\n"


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "error: no space left on the disk: some/file\n"),
        (errno.EACCES, "error: Permission denied: some/file\n"),
        (errno.EROFS, "error: Read-only file system: some/file\n"),
        (errno.ENAMETOOLONG, "error: File name too long: some/file\n"),
    ],
)
def test_what_the_disk_refuses_is_one_line(capsys, number, line):
    assert train.dispatch("acts:fail", [str(number)]) == 2
    assert capsys.readouterr().err == line


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        train.dispatch("acts:fail", [str(errno.ENOENT)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_its_exit_code_and_what_was_begun_is_cleaned_up(capsys, number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert train.dispatch("acts:send", [str(int(number))]) == 128 + number
    assert Path("left").exists()
    assert capsys.readouterr().err == f"\nstopped by {number.name}\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_one_rank_of_several_tells_of_a_signal(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert train.dispatch("acts:send", [str(int(signal.SIGINT))]) == 130
    assert capsys.readouterr().err == ""


def test_sigterm_while_preparing_leaves_no_half_written_corpus_and_the_same_command_goes_on():
    Path("text.txt").write_text("some words in a line\n" * 3_000_000)
    words = [str(TRAIN_PY), "prepare", "--data.source", "text.txt", "--data.tokenizer", "bytes"]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    assert "tokenising" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1] == "stopped by SIGTERM"
    left = [name for name in os.listdir("runs/data") if not name.endswith(".lock")]
    assert all(name.startswith(".") and name.endswith(".partial") for name in left)
    done = subprocess.run([sys.executable, *words], stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (corpus,) = (name for name in os.listdir("runs/data") if not name.startswith("."))
    manifest = json.loads(Path("runs/data", corpus, "manifest.json").read_text())
    assert sum(split["bytes"] for split in manifest["splits"].values()) == Path("text.txt").stat().st_size
