"""A text source into the shards of a corpus: read, tokenised on all cores and written at the same time, in order.

The main thread reads, numbers, cuts and writes; batches of text wait for one of the threads that tokenise (the library
works outside of Python's lock). Memory is bounded by the batches under way, whatever the source's size.

At intervals everything is made durable and journal.json says how far the source has been read. A process that comes
later checks the files against it and goes on from there; where they do not agree it begins again. Tokens depend on the
pieces of the source alone, not on how they were batched, so a corpus that was interrupted is the same bit for bit.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import journal, sources, tokenizer
from data.journal import Journal
from data.options import PrepareOptions
from data.progress import Progress
from data.shards import ShardWriter, checksum, token_dtype, write_array, write_durably
from errors import InputError

BPE_SAMPLE = 1 << 25  # bytes of training text a BPE is trained on: 32 MiB, the whole of an embedded corpus
JOURNAL_EVERY = 1 << 26  # bytes of text between two states: what a kill can cost
_BATCH = 1 << 20  # bytes of text that a thread takes at once
_STARTS = np.dtype("<i8")
_ONE_FILE = 1 << 62  # entries in a shard of document starts: there is one
_TOKENIZER = "tokenizer.json"

Tokens = npt.NDArray[Any]
Batch = list[sources.Piece]


def write_text(folder: Path, source: sources.Source, options: PrepareOptions, progress: Progress) -> dict[str, Any]:
    """Write tokens, tokenizer and byte counts into `folder`, or go on where an earlier process stopped.

    Returns what the manifest says of them.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said explicitly, the library does not warn after a fork
    if isinstance(source, sources.Hub):
        progress.say("asking the Hugging Face hub")
    writing = _go_on(folder, options, progress) or _begin(folder, source, options, progress)
    try:
        progress.say("tokenising")
        if not writing.full:
            _tokenise(source, writing, progress, training=True)
        if writing.full:
            _tokenise(source, writing, progress, training=False)
        splits = {name: split.finish() for name, split in writing.splits.items()}
    finally:
        writing.abandon()
    _check_sizes(options, splits)
    chosen = writing.tokenizer
    if writing.exact:
        write_array(folder / "token_bytes.npy", chosen.token_bytes)
    files = [file_entry(path) for name in (_TOKENIZER, "token_bytes.npy") if (path := folder / name).exists()]
    kind = options.tokenizer if options.tokenizer in tokenizer.NAMES else "file"
    entry = {"kind": kind, "vocab_size": chosen.vocab_size, "end_of_text": chosen.end_of_text}
    entry |= {"sha256": tokenizer.digest(chosen), "trained_on": writing.trained_on or None}
    return {"tokenizer": entry, "dtype": writing.dtype.name, "splits": splits, "files": files}


def file_entry(path: Path) -> dict[str, Any]:
    """A file as the manifest lists it."""
    return {"file": path.name, "size": path.stat().st_size, "sha256": checksum(path)}


@dataclass
class Split:
    """One split while it is written: its tokens, and for each document the number of text tokens before it."""

    tokens: ShardWriter
    starts: ShardWriter
    documents: int = 0
    bytes: int = 0

    def begin(self, mark: Tokens) -> None:
        """The mark of a new document."""
        self.starts.write(np.array([self.tokens.tokens - self.documents], _STARTS))
        self.tokens.write(mark)
        self.documents += 1

    def sync(self) -> dict[str, Any]:
        """The state for the journal, durable."""
        states = {"tokens": self.tokens.sync(), "starts": self.starts.sync()}
        return {"documents": self.documents, "bytes": self.bytes, **states}

    def finish(self) -> dict[str, Any]:
        """The manifest's entry."""
        shards, starts = ([shard.as_dict() for shard in writer.finish()] for writer in (self.tokens, self.starts))
        counts = {"documents": self.documents, "tokens": self.tokens.tokens, "bytes": self.bytes}
        return {**counts, "shards": shards, "starts": starts}


class Writing:
    """The corpus so far, and where in the source it ends.

    limit: training tokens to stop at, None for all. begun: a state to go on from; ValueError where the files differ.
    """

    def __init__(
        self,
        folder: Path,
        chosen: tokenizer.Tokenizer,
        trained_on: dict[str, int],
        limit: int | None,
        begun: Journal | None = None,
    ):
        self.folder, self.tokenizer, self.trained_on, self.limit = folder, chosen, trained_on, limit
        self.dtype = token_dtype(chosen.vocab_size)
        self.position = sources.Position(*begun.position) if begun else sources.START
        self.exact = begun.exact if begun else chosen.token_bytes is not None
        self.splits = {
            name: self._split(name, begun.splits[name] if begun else None) for name in ("train", "validation")
        }
        self._mark = np.array([chosen.end_of_text], self.dtype)
        self._journaled = self.bytes

    def _split(self, name: str, begun: dict[str, Any] | None) -> Split:
        counts = {key: begun[key] for key in ("documents", "bytes")} if begun else {}
        return Split(
            ShardWriter(self.folder, name, self.dtype, begun=begun and begun["tokens"]),
            ShardWriter(self.folder, f"{name}-starts", _STARTS, _ONE_FILE, begun and begun["starts"]),
            **counts,
        )

    @property
    def bytes(self) -> int:
        """Bytes of text in the corpus so far."""
        return sum(split.bytes for split in self.splits.values())

    @property
    def full(self) -> bool:
        """Whether the training split has all the tokens that it may have."""
        return self.limit is not None and self.splits["train"].tokens.tokens >= self.limit

    def add(self, piece: sources.Piece, tokens: Tokens) -> None:
        """Append a piece; a training piece with which the limit is reached is cut there."""
        split = self.splits["validation" if piece.validation else "train"]
        sizes = self.tokenizer.token_bytes
        if (tokens == self._mark[0]).any():
            raise InputError(f"the tokenizer gives {tokenizer.END_OF_TEXT} for text; documents are marked with it")
        self.exact = self.exact and int(sizes[tokens].sum()) == piece.size
        if piece.begins:
            split.begin(self._mark)
        size = piece.size
        if self.limit is not None and not piece.validation and len(tokens) > self.limit - split.tokens.tokens:
            kept = tokens[: self.limit - split.tokens.tokens]
            size = int(sizes[kept].sum()) if self.exact else size * len(kept) // len(tokens)
            tokens = kept
        split.tokens.write(tokens)
        split.bytes += size
        self.position = piece.after

    def save(self) -> None:
        """Make everything durable, then say so in the journal."""
        splits = {name: split.sync() for name, split in self.splits.items()}
        Journal(_versions(self.tokenizer), self.trained_on, list(self.position), self.exact, splits).save(self.folder)
        self._journaled = self.bytes

    def save_where_due(self) -> None:
        """Save after every so many bytes of text."""
        if self.bytes - self._journaled >= JOURNAL_EVERY:
            self.save()

    def abandon(self) -> None:
        """Close the files."""
        for split in self.splits.values():
            split.tokens.abandon()
            split.starts.abandon()


def _begin(folder: Path, source: sources.Source, options: PrepareOptions, progress: Progress) -> Writing:
    """Choose or train the tokenizer, and an empty corpus with its first journal."""
    trained_on: dict[str, int] = {}
    if options.tokenizer == "bpe":
        started = time.monotonic()
        sample = f"at most {BPE_SAMPLE >> 20} MiB of text"
        progress.say(f"training a BPE of {options.vocab_size} tokens on {sample}", leave=True)
        texts = (piece.text for piece in source.pieces() if not piece.validation)
        bars = progress.shown and progress.terminal
        chosen: tokenizer.Tokenizer = tokenizer.train_bpe(
            tokenizer.sample(texts, BPE_SAMPLE, trained_on), options.vocab_size, bars
        )
        progress.say(f"BPE trained in {time.monotonic() - started:.0f} s")
    else:
        chosen = tokenizer.Bytes() if options.tokenizer == "bytes" else tokenizer.load(Path(options.tokenizer))
    if (saved := chosen.dumps()) is not None:
        write_durably(folder / _TOKENIZER, saved.encode())
    writing = Writing(folder, chosen, trained_on, options.max_tokens)
    writing.save()
    return writing


def _go_on(folder: Path, options: PrepareOptions, progress: Progress) -> Writing | None:
    """The corpus that an earlier process began; None, and an empty folder, where there is none to go on from."""
    begun = journal.load(folder)
    writing = None
    if begun is not None:
        try:
            chosen = tokenizer.Bytes() if options.tokenizer == "bytes" else tokenizer.load(folder / _TOKENIZER)
            if begun.tokenizer != _versions(chosen):
                raise ValueError("made by another tokenizer")
            writing = Writing(folder, chosen, begun.trained_on, options.max_tokens, begun)
        except (OSError, ValueError, KeyError, TypeError) as error:
            progress.say(f"cannot go on with what an interrupted process left ({error}); beginning again")
    if writing is None:
        for path in folder.iterdir():
            path.unlink()
        return None
    progress.go_on(writing.bytes)
    progress.say(f"going on behind {writing.bytes / 1e6:.1f} MB of text that an interrupted process left")
    return writing


def _versions(chosen: tokenizer.Tokenizer) -> dict[str, Any]:
    return {"digest": tokenizer.digest(chosen), "library": version("tokenizers")}


def _tokenise(source: sources.Source, writing: Writing, progress: Progress, *, training: bool) -> None:
    """Append the source from where the corpus ends: all of it, or up to the budget; without `training` what is left
    for validation."""
    encode = writing.tokenizer.encode

    def tokens(batch: Batch) -> list[Tokens]:
        return [np.asarray(ids, writing.dtype) for ids in encode([piece.text for piece in batch])]

    with closing(_in_order(_batches(source.pieces(writing.position, training)), tokens)) as batches:
        for batch, encoded in batches:
            for piece, ids in zip(batch, encoded, strict=True):
                writing.add(piece, ids)
                if training and writing.full:
                    return
            writing.save_where_due()
            progress.add(sum(piece.size for piece in batch), sum(map(len, encoded)))


def _batches(pieces: Iterator[sources.Piece]) -> Iterator[list[sources.Piece]]:
    batch: list[sources.Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.size
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_order(
    batches: Iterator[Batch], compute: Callable[[Batch], list[Tokens]]
) -> Iterator[tuple[Batch, list[Tokens]]]:
    """Each batch with its result, computed by as many threads as there are cores, one batch a thread ahead."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores)
    waiting: deque[tuple[Batch, Future[list[Tokens]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(compute, batch)))
            if len(waiting) > 2 * cores:
                batch, future = waiting.popleft()
                yield batch, future.result()
        while waiting:
            batch, future = waiting.popleft()
            yield batch, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check_sizes(options: PrepareOptions, splits: dict[str, Any]) -> None:
    for name, split in splits.items():
        if split["tokens"] < 2:
            counts = ", ".join(f"{key}: {value['documents']} documents" for key, value in splits.items())
            raise InputError(
                f"data source {options.source} gives no text for {name} ({counts}); "
                f"data.validation_fraction is {options.validation_fraction}"
            )
