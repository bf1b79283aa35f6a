"""Where text comes from. Each source yields its documents one at a time, already marked as training or validation.

    stdlib              the Python standard library's own .py files on this machine: real text without a network
    PATH                a text file, a .jsonl or .parquet file, or a folder of them
    hub:NAME, or OWNER/NAME where no such path exists
                        a dataset of the Hugging Face hub

Split. Files are whole documents: they go to validation in the order of a hash of their names until `fraction` of the
bytes is reached. A single text file gives its tail. Records (JSONL, Parquet, hub) come in blocks of 1 / fraction, of
which one record, chosen by a hash of the block's number, goes to validation. None of it depends on anything but the
source.
"""

import difflib
import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from data.mixing import bits
from data.readers import (
    content_hash,
    field_of,
    first_line,
    is_utf8,
    json_records,
    line_start,
    parquet_records,
    text_parts,
)
from errors import InputError

EMBEDDED = ("stdlib", "bigram_backcopy")
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".parquet")

_CONTENT_HASH_LIMIT = 1 << 26  # up to 64 MiB a source is identified by its content, above by sizes and times
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


class UnreachableError(InputError):
    """The source cannot be read now; the same command may go on later."""


class Position(NamedTuple):
    """How far a source has been read."""

    file: int = 0  # its number in the order of the names
    offset: int = 0  # bytes of that file
    row: int = 0  # lines (JSONL) or rows (Parquet) of that file
    records: int = 0  # of the whole source


START = Position()


class Piece(NamedTuple):
    """A stretch of text: a whole document, or a part of a large file (`begins` on its first part)."""

    text: str
    size: int  # bytes of UTF-8
    validation: bool
    begins: bool
    after: Position  # where reading goes on behind this piece


@dataclass(frozen=True)
class Selection:
    """How documents are chosen from a source: the options of prepare that concern it."""

    fraction: float
    text_field: str = "text"
    subset: str | None = None
    split: str = "train"
    streaming: bool = False
    max_documents: int | None = None


class Source:
    """A source of pieces. `total` is its size in bytes where that is known beforehand (else None)."""

    total: int | None = None

    def identity(self) -> dict[str, Any]:
        """What the corpus's folder name is made from: changes whenever the source's content does."""
        raise NotImplementedError

    def pieces(self, start: Position = START, training: bool = True) -> Iterator[Piece]:
        """The documents from `start` on, in a fixed order.

        Without `training` only those that are held out and are found without reading the others: files and the tail
        of a text file, but not records.
        """
        raise NotImplementedError


def find(name: str, selection: Selection) -> Source:
    """The source of that name. InputError: unknown (with the nearest known one), missing or empty."""
    if name == "stdlib":
        return Stdlib(selection)
    if name.startswith("hub:"):
        return Hub(name.removeprefix("hub:"), selection)
    path = Path(name).expanduser()
    if path.exists():
        return Files(path, selection)
    looks_like_file = path.suffix.lower() in (*RECORD_SUFFIXES, ".txt", ".md", ".json", ".py", ".csv")
    if looks_like_file or name.startswith((".", "/", "~")):
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, 1)
        raise InputError(
            f"data file {name}: no such file" + (f" (did you mean {path.with_name(near[0])}?)" if near else "")
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Hub(name, selection, note="; no file or folder of that name exists here")
    beside = [p.name for p in Path().iterdir() if not p.name.startswith(".")]
    near = difflib.get_close_matches(name, (*EMBEDDED, *beside), 1)
    raise InputError(
        f"unknown data source '{name}'"
        + (f" (did you mean '{near[0]}'?)" if near else "")
        + f"; choose {', '.join(EMBEDDED)}, the path of a text, .jsonl or .parquet file or a folder, or hub:NAME"
    )


class Files(Source):
    """A file or folder: text files as documents, JSONL and Parquet as records."""

    def __init__(self, path: Path, selection: Selection):
        self.root, self.selection = path, selection
        self.paths = [path] if path.is_file() else self._collect()
        if not any(_holds_records(p) for p in self.paths):  # then every file is one document
            self.paths = self.paths[: selection.max_documents]
        self.sizes = [p.stat().st_size for p in self.paths]
        self.total = sum(self.sizes)
        if not self.paths:
            raise InputError(f"data folder {path} holds no files")
        if self.total == 0:
            raise InputError(f"data {'file' if path.is_file() else 'folder'} {path} is empty")

    def _collect(self) -> list[Path]:
        found = []
        for folder, below, files in os.walk(self.root):
            below[:] = [name for name in below if not name.startswith(".")]
            found += [Path(folder) / name for name in files if not name.startswith(".")]
        return sorted(path for path in found if path.is_file())  # a broken link has no content

    def names(self) -> list[str]:
        """Names that do not depend on where the folder lies."""
        return [p.name if p == self.root else p.relative_to(self.root).as_posix() for p in self.paths]

    def identity(self) -> dict[str, Any]:
        """File names with their content's hash, or sizes and times for large sources."""
        state = hashlib.sha256()
        by_content = self.total <= _CONTENT_HASH_LIMIT
        for name, path in zip(self.names(), self.paths, strict=True):
            about = path.stat()
            mark = content_hash(path) if by_content else f"{about.st_size} {about.st_mtime_ns}"
            state.update(f"{name}\0{mark}\n".encode())
        return {"files": len(self.paths), "bytes": self.total, "sha256": state.hexdigest(), "by_content": by_content}

    def pieces(self, start: Position = START, training: bool = True) -> Iterator[Piece]:
        """Documents file by file, in the order of their names."""
        files = list(zip(self.paths, self.names(), self.sizes, strict=True))
        held_out, cut = _choose_files([(n, s) for p, n, s in files if not _holds_records(p)], self.selection.fraction)
        records = start.records
        for number, (path, name, size) in enumerate(files[start.file :], start.file):
            _, offset, row, _ = start if number == start.file else START
            if _holds_records(path):
                if not training:
                    continue
                read = parquet_records if path.suffix.lower() == ".parquet" else json_records
                for text, offset_after, row_after in read(path, self.selection.text_field, offset, row):
                    if records == self.selection.max_documents:
                        return
                    records += 1
                    yield _record(text, self.selection, Position(number, offset_after, row_after, records))
                continue
            middle = size
            if name == cut:
                middle = line_start(path, size - int(size * self.selection.fraction))
            elif name in held_out:
                middle = 0
            for first, last, validation in ((0, middle, False), (middle, size, True)):
                if training or validation:
                    yield from _document(path, first, last, validation, max(first, offset), number, records)


class Stdlib(Files):
    """The standard library's sources, found through sysconfig, without tests and installed packages.

    Files that are not UTF-8 are left out, as is `_sysconfigdata`, which holds this machine's build paths.
    """

    def __init__(self, selection: Selection):
        path = Path(sysconfig.get_path("stdlib"))
        if not path.is_dir():
            raise InputError(f"data source 'stdlib': this Python has no standard library folder at {path}")
        super().__init__(path, selection)

    def _collect(self) -> list[Path]:
        found = []
        for folder, below, files in os.walk(self.root):
            below[:] = sorted(name for name in below if name not in _SKIPPED_FOLDERS and not name.startswith("config-"))
            found += [Path(folder) / f for f in files if f.endswith(".py") and not f.startswith("_sysconfigdata")]
        return sorted(path for path in found if is_utf8(path.read_bytes()))

    def identity(self) -> dict[str, Any]:
        """As for other files, and the Python version, which decides the content."""
        return {**super().identity(), "python": platform.python_version()}


class Hub(Source):
    """A dataset of the Hugging Face hub, through `datasets`; streamed or from its cache on disk."""

    def __init__(self, name: str, selection: Selection, note: str = ""):
        self.name, self.selection, self.note = name, selection, note

    def identity(self) -> dict[str, Any]:
        """The name and what is taken of it: the hub's content is not known before it is read."""
        return {"hub": self.name, "subset": self.selection.subset, "split": self.selection.split}

    def pieces(self, start: Position = START, training: bool = True) -> Iterator[Piece]:
        """One record a document, in the dataset's order."""
        for records, text in enumerate(self._texts(start.records) if training else (), start.records):
            if records == self.selection.max_documents:
                return
            yield _record(text, self.selection, Position(records=records + 1))

    def _texts(self, skipped: int) -> Iterator[str]:
        import datasets
        from huggingface_hub import logging
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        datasets.disable_progress_bars()
        logging.set_verbosity_error()  # its retries would be a dozen lines where the outcome is one
        choice = self.selection
        place = f"Hugging Face dataset '{self.name}'"
        try:
            rows = datasets.load_dataset(self.name, choice.subset, split=choice.split, streaming=choice.streaming)
            for row in rows.skip(skipped) if skipped else rows:
                yield field_of(row, choice.text_field, place)
        except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError, TimeoutError) as error:
            raise UnreachableError(f"{place}: the hub cannot be reached ({first_line(error)}){self.note}") from error
        except datasets.exceptions.DatasetNotFoundError as error:
            raise InputError(f"{place}: {first_line(error)}{self.note}") from error
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{place}: {first_line(error)}") from error  # unknown subset or split: names the choices


def _choose_files(files: list[tuple[str, int]], fraction: float) -> tuple[set[str], str | None]:
    """Names of the files that are held out, and of the one that gives its tail where no whole file is small enough."""
    budget = fraction * sum(size for _, size in files)
    held_out: set[str] = set()
    taken = 0
    for name, size in sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest()):
        if size and taken + size <= budget:
            held_out.add(name)
            taken += size
    if held_out or not files:
        return held_out, None
    return held_out, max(files, key=lambda file: file[1])[0]


def _holds_records(path: Path) -> bool:
    return path.suffix.lower() in RECORD_SUFFIXES


def _document(
    path: Path, start: int, stop: int, validation: bool, begin: int, number: int, records: int
) -> Iterator[Piece]:
    """Bytes start..stop of a text file as one document, from `begin` on."""
    if begin >= stop:
        return
    for text in text_parts(path, start, stop, begin):
        size = len(text.encode())
        yield Piece(text, size, validation, begin == start, Position(number, begin + size, 0, records))
        begin += size


def _record(text: str, selection: Selection, after: Position) -> Piece:
    number, block = after.records - 1, max(1, round(1 / selection.fraction))
    return Piece(text, len(text.encode()), number % block == _held_out(number // block, block), True, after)


@lru_cache(maxsize=8)  # asked for once a record, and slower than the rest of a short one
def _held_out(number: int, size: int) -> int:
    """Which record of block `number` goes to validation."""
    return int(bits(0x73706C6974, number)[0] % size)
