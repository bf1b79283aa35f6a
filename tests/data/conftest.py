"""Small real sources, and corpora prepared from them once for all data tests."""

import random
from pathlib import Path

import pytest

from data.corpus import Corpus
from data.options import PrepareOptions
from data.prepare import prepare

WORDS = "def return import self value list — naïve 数据 🙂 print for in range while\tNone True False lambda"


def _text_of(size: int, seed: int = 0) -> str:
    """About `size` bytes of lines of words: tabs, accents, ideographs and an emoji among them."""
    draw = random.Random(seed)
    words = WORDS.split(" ")
    lines, length = [], 0
    while length < size:
        line = " ".join(draw.choice(words) for _ in range(draw.randint(1, 12))) + draw.choice(
            ["\n", "\r\n", "\n\n    "]
        )
        lines.append(line)
        length += len(line.encode())
    return "".join(lines)


def _make(source: Path | str, folder: Path, **options) -> Corpus:
    """Prepare without progress and open."""
    return Corpus(prepare(PrepareOptions(source=str(source), folder=str(folder), **options), progress=False))


@pytest.fixture(scope="session")
def text_of():
    return _text_of


@pytest.fixture(scope="session")
def make():
    return _make


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(30):
        path = folder / f"part{i % 3}" / f"{i:02d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_text_of(2500, seed=i).encode())
    return folder


@pytest.fixture(scope="session")
def bytes_corpus(text_folder, tmp_path_factory) -> Corpus:
    return _make(text_folder, tmp_path_factory.mktemp("bytes"), tokenizer="bytes", validation_fraction=0.2)


@pytest.fixture(scope="session")
def bpe_corpus(text_folder, tmp_path_factory) -> Corpus:
    return _make(text_folder, tmp_path_factory.mktemp("bpe"), vocab_size=320, validation_fraction=0.2)


@pytest.fixture(scope="session")
def backcopy_corpus(tmp_path_factory) -> Corpus:
    return _make("bigram_backcopy", tmp_path_factory.mktemp("backcopy"))
