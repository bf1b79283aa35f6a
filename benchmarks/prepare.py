"""What `prepare` costs over the tokenizer alone: a JSONL file read, tokenised and written, beside the library's speed.

    python -m benchmarks.prepare [--megabytes 8] [--rounds 5] [--memory 100 1100]

The text is the standard library's own sources, a file a record; the tokenizer is a BPE trained on it beforehand. The
peer is the `tokenizers` library on the same texts, all in memory and in one call, on the same cores:
`encode_batch_fast`, which as in `prepare` leaves out where in the text each token lies, and `encode_batch`.
Reading alone says what would be added to that if nothing overlapped. Wall time: all of it runs on all cores.

`--memory` prepares files of so many MB with the command line instead, and prints the peak memory of that process. Their
text is a little of those sources again and again, which the tokenizer's cache of words makes fast.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

from benchmarks.timing import table, take_turns
from data import sources, tokenizer
from data.corpus import Corpus
from data.options import PrepareOptions
from data.prepare import prepare


def write_source(path: Path, size: int, distinct: int) -> None:
    """About `size` bytes of JSONL: the first `distinct` bytes of the standard library's files, again and again."""
    lines, length = [], 0
    for piece in sources.find("stdlib", sources.Selection(0.05)).pieces():
        if length >= distinct:
            break
        lines.append(json.dumps({"text": piece.text}) + "\n")
        length += piece.size
    written = 0
    with path.open("w") as file:
        for line in cycle(lines):
            if written >= size:
                break
            written += file.write(line)


def measured(megabytes: float, rounds: int, folder: Path) -> Iterator[list[str]]:
    """Table rows: name, seconds, tokens a second, speed as a ratio to `encode_batch_fast`."""
    path = folder / "records.jsonl"
    size = int(megabytes * 1e6)
    write_source(path, size, size)
    source = sources.find(str(path), sources.Selection(0.05))
    texts = [piece.text for piece in source.pieces()]
    trained = tokenizer.train_bpe(texts, 2048)
    (folder / "tokenizer.json").write_text(trained.dumps())
    library = trained.library
    number = count()

    def whole() -> Path:
        place = folder / str(next(number))
        options = PrepareOptions(source=str(path), tokenizer=str(folder / "tokenizer.json"), folder=str(place))
        return prepare(options, progress=False)

    corpus = Corpus(whole())
    tokens = len(corpus.train) + len(corpus.validation)
    timings = take_turns(
        {
            "encode_batch": lambda: library.encode_batch(texts, add_special_tokens=False),
            "encode_batch_fast": lambda: library.encode_batch_fast(texts, add_special_tokens=False),
            "prepare": whole,
            "reading alone": lambda: [len(piece.text) for piece in source.pieces()],
        },
        rounds=rounds,
        warmup=0,
    )
    for place in folder.glob("[0-9]*"):
        shutil.rmtree(place)
    for name, timing in timings.items():
        ratio = timing.speed_ratio(timings["encode_batch_fast"])
        yield [name, f"{timing.median:.2f}", f"{tokens / timing.median:,.0f}", f"{ratio:.2f}"]


def peak_memory(megabytes: float, folder: Path) -> list[str]:
    """A table row: MB of text, seconds, peak memory in MiB of `train.py prepare` on it."""
    path = folder / f"{megabytes:g}.jsonl"
    write_source(path, int(megabytes * 1e6), 200_000)
    words = ["prepare", f"--data.source={path}", f"--data.folder={folder / 'corpora'}", "--data.vocab_size=1024"]
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "train.py", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"train.py {' '.join(words)}: status {status}")
    path.unlink()
    shutil.rmtree(folder / "corpora")
    return [f"{megabytes:g}", f"{time.monotonic() - started:.0f}", f"{usage.ru_maxrss / 1024:.0f}"]


def main(argv: list[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(prog="benchmarks.prepare", description=__doc__.split("\n\n")[0])
    parser.add_argument("--megabytes", type=float, default=8, help="of text (default 8)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--memory", type=float, nargs="+", metavar="MB", help="print peak memory for files of this size"
    )
    options = parser.parse_args(argv)
    if options.memory:
        with tempfile.TemporaryDirectory() as folder:
            rows = [peak_memory(megabytes, Path(folder)) for megabytes in options.memory]
        print(table("\nprepare, peak memory", ["MB", "s", "MiB"], rows), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measured(options.megabytes, options.rounds, Path(folder)))
    title = f"\nprepare, {options.megabytes:g} MB of JSONL, {os.cpu_count()} cores"
    print(table(title, ["", "s", "tokens/s", "speed / encode_batch_fast"], rows), flush=True)


if __name__ == "__main__":
    main()
