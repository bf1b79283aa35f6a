"""Turn a source into a corpus folder, once: read, split, tokenise, write shards and a manifest.

    prepare(PrepareOptions(source="stdlib")) -> Path("runs/data/stdlib-bpe-2048-<fingerprint>")

The folder's name holds a fingerprint of the options and of the source's identity, so changed input gives another corpus
and the same input returns at once. Everything is written to a `.partial` folder beside it, made durable, and renamed: a
folder under its final name is whole. What a process left that was killed, interrupted or cut off from its source is
where the next one goes on (text.py); after any other failure it is removed. A lock makes other processes (the ranks of
one run, or several runs) wait and then use the result.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from data import bigram_backcopy, journal, manifest, readers, sources
from data.corpus import Corpus, write_stamp
from data.options import PrepareOptions
from data.progress import Progress
from data.shards import checksum, sync_folder, write_array
from data.text import file_entry, write_text
from errors import InputError, Interrupted


def prepare(options: PrepareOptions, progress: bool = True) -> Path:
    """Make sure that the corpus exists and return its folder; returns at once where it does.

    `progress` shows a bar on a terminal or occasional lines in a log (standard error). InputError: one line on what is
    wrong with the options, the source, the tokenizer, an existing corpus (damaged), or the place to write to (full,
    read-only).
    """
    options.validate()
    synthetic = options.source == bigram_backcopy.NAME
    source = sources.find("stdlib" if synthetic else options.source, options.selection())
    root = Path(options.folder).expanduser()
    identity = source.identity()
    folder = root / folder_name(options, identity)
    if folder.exists():
        return Corpus(folder).folder
    with _writing_to(root), _locked(root, folder.name, progress):
        if folder.exists():  # another process made it while this one waited
            return Corpus(folder).folder
        partial = root / f".{folder.name}.partial"
        shown = Progress(f"preparing {options.source}", source.total, shown=progress)
        for path in partial.glob(".*"):  # a small file that a killed process was writing
            path.unlink()
        try:
            described = _whole(partial) or _write(partial, source, identity, options, shown)
            (partial / journal.NAME).unlink(missing_ok=True)
            os.rename(partial, folder)
            sync_folder(root)
        except BaseException as error:
            # Half-written files stay only where the same command can go on from them.
            interrupted = isinstance(error, KeyboardInterrupt | Interrupted | sources.UnreachableError)
            useful = any((partial / name).exists() for name in (journal.NAME, manifest.NAME))
            if not (interrupted and useful):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shown.finish(_summary(folder, described))
    return folder


def _whole(partial: Path) -> dict[str, Any] | None:
    """The manifest of a folder that lacks nothing but its name: its process was killed before it could rename it."""
    if not (partial / manifest.NAME).exists():
        return None
    try:
        corpus = Corpus(partial)
        corpus.verify()
    except InputError:
        return None
    return corpus.manifest


def _write(
    partial: Path, source: sources.Source, identity: dict[str, Any], options: PrepareOptions, shown: Progress
) -> dict[str, Any]:
    """Fill the folder, its manifest last, and return that."""
    synthetic = options.source == bigram_backcopy.NAME
    partial.mkdir(exist_ok=True)
    content = _write_task(partial, source) if synthetic else write_text(partial, source, options, shown)
    if source.identity() != identity:
        raise InputError(f"data source {options.source} changed while it was read; prepare it again")
    described = {
        "format": manifest.FORMAT,
        "kind": bigram_backcopy.NAME if synthetic else "text",
        "source": {"name": options.source, **identity},
        "options": {k: v for k, v in asdict(options).items() if k != "folder"},
        "order": manifest.order_entry(),
        **content,
    }
    manifest.write(partial, described)
    write_stamp(partial, described)
    return described


def folder_name(options: PrepareOptions, identity: dict[str, Any]) -> str:
    """Readable part and fingerprint: a function of what the corpus's content depends on, and of nothing else."""
    if options.source == bigram_backcopy.NAME:
        relevant: dict[str, Any] = {"generator": bigram_backcopy.GENERATOR}
        readable = bigram_backcopy.NAME
    else:
        apart = {"source", "folder", "streaming"} | (set() if options.tokenizer == "bpe" else {"vocab_size"})
        relevant = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in apart}
        readable = Path(options.source.removeprefix("hub:")).name + "-" + Path(options.tokenizer).stem
        if options.tokenizer == "bpe":
            readable += f"-{options.vocab_size}"
        elif options.tokenizer != "bytes":
            relevant["tokenizer"] = checksum(Path(options.tokenizer))
    relevant |= {
        "identity": identity,
        "format": manifest.FORMAT,
        "order": manifest.order_entry(),
        "piece": readers.PIECE,
    }
    fingerprint = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]
    return re.sub(r"[^\w.-]+", "_", readable).lstrip(".") + "-" + fingerprint


def _write_task(folder: Path, source: sources.Source) -> dict[str, Any]:
    assert isinstance(source, sources.Stdlib)
    pairs = bigram_backcopy.count_pairs(path.read_bytes() for path in source.paths)
    characters, counts = bigram_backcopy.transition_table(pairs)
    write_array(folder / bigram_backcopy.TABLE, counts)
    return {"task": bigram_backcopy.task_entry(characters), "files": [file_entry(folder / bigram_backcopy.TABLE)]}


def _summary(folder: Path, described: dict[str, Any]) -> str:
    if described["kind"] == bigram_backcopy.NAME:
        return f"prepared {folder}: transition table of {bigram_backcopy.CHARACTERS} characters"
    train, validation = described["splits"]["train"], described["splits"]["validation"]
    return (
        f"prepared {folder}: {train['documents']} + {validation['documents']} documents, "
        f"{train['tokens']:,} training and {validation['tokens']:,} validation tokens, "
        f"vocabulary {described['tokenizer']['vocab_size']}"
    )


@contextmanager
def _locked(root: Path, name: str, shown: bool) -> Iterator[None]:
    """Hold the corpus's lock; the kernel lets go of it when the process ends, however it ends."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if shown:
                print(f"waiting for another process that prepares {root / name}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _writing_to(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"no space left in {error.filename or root}; the half-written corpus was removed"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            place = error.filename or root
            raise InputError(f"preparing in data.folder {root}: {error.strerror}: {place}") from error
        raise
