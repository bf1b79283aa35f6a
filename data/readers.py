"""Reading local files: text in parts, JSONL line by line, Parquet by batches. A bad file is named in one line."""

import codecs
import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from errors import InputError

PIECE = 1 << 18  # bytes of a text file that are in memory, and tokenised, at once


def text_parts(path: Path, start: int, stop: int, begin: int) -> Iterator[str]:
    """Bytes start..stop of a text file in parts that end at line breaks where there are any.

    `begin` is `start`, or where a part ended: reading goes on there with the parts that would have followed.
    """
    with _opened(path) as file:
        # Blocks are counted from `start`. The one that holds `begin` was read before, and what lies behind it was kept.
        position = min(stop, start + -(-(begin - start) // PIECE) * PIECE)
        file.seek(begin)
        kept = file.read(position - begin)
        while position < stop:
            content = file.read(min(PIECE, stop - position))
            if not content:
                raise InputError(f"data file {path} became shorter while it was read")
            if (zero := content.find(b"\0")) >= 0:
                raise InputError(f"data file {path} is binary, not text: NUL byte at offset {position + zero}")
            position += len(content)
            content = kept + content
            end = len(content) if position == stop else content.rfind(b"\n") + 1 or len(content)
            decoder = codecs.getincrementaldecoder("utf-8")()
            try:
                text = decoder.decode(content[:end], final=position == stop)
            except UnicodeDecodeError as error:
                offset = position - len(content) + error.start
                raise InputError(
                    f"data file {path} is not UTF-8 text: {error.reason} at byte offset {offset}"
                ) from error
            kept = decoder.getstate()[0] + content[end:]
            if text:
                yield text


def line_start(path: Path, offset: int) -> int:
    """The first line that begins at or after `offset`, or the first character where no line does within 64 KiB."""
    with _opened(path) as file:
        file.seek(offset)
        content = file.read(1 << 16)
    line = content.find(b"\n") + 1
    if line and offset + line < path.stat().st_size:
        return offset + line
    return offset + next((i for i, byte in enumerate(content) if byte & 0xC0 != 0x80), 0)


def json_records(path: Path, field: str, offset: int, row: int) -> Iterator[tuple[str, int, int]]:
    """The text of each line's `field`, and the place behind it: (text, byte offset, lines read).

    Begins at such a place, which is (0, 0) for the whole file. Blank lines are skipped. A bad line is named by its
    number, from 1.
    """
    with _opened(path) as file:
        file.seek(offset)
        for number, line in enumerate(file, row + 1):
            place = f"{path} line {number}"
            offset += len(line)
            if b"\0" in line:
                raise InputError(f"{place} holds a NUL byte: the file is binary, not JSONL")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except UnicodeDecodeError as error:
                raise InputError(f"{place} is not UTF-8: {error.reason} at byte {error.start} of the line") from error
            except ValueError as error:
                cut = "" if line.endswith(b"\n") else "; the last line may be half-written"
                raise InputError(f"{place} is not JSON: {error}{cut}") from error
            if not isinstance(record, dict):
                raise InputError(f"{place} is a JSON {type(record).__name__}, not an object with a '{field}' field")
            yield field_of(record, field, place), offset, number


def parquet_records(path: Path, field: str, offset: int, row: int) -> Iterator[tuple[str, int, int]]:
    """The text of each row's `field` from `row` on, some rows at a time, as `json_records` gives it; offsets are 0."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise InputError(_absent(str(path), field, columns, "column"))
            first = 0
            for group in range(file.num_row_groups):
                first, number = first + file.metadata.row_group(group).num_rows, first
                if first <= row:
                    continue
                for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[field]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        if number > row:
                            yield _text_value(value, field, f"{path} row {number - 1}"), 0, number
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a damaged page is not UTF-8
        raise InputError(f"data file {path} is not a readable Parquet file: {first_line(error)}") from error


def field_of(record: dict[str, Any], field: str, place: str) -> str:
    """A record's text; `place` says in an error where the record is."""
    if field not in record:
        raise InputError(_absent(place, field, list(record), "field"))
    return _text_value(record[field], field, place)


def _absent(place: str, field: str, present: list[str], kind: str) -> str:
    near = difflib.get_close_matches(field, present, 1)
    return (
        f"{place} has no {kind} '{field}'"
        + (f" (did you mean '{near[0]}'?)" if near else "")
        + f"; present: {', '.join(present) or 'none'}; set data.text_field"
    )


def _text_value(value: Any, field: str, place: str) -> str:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{place}: '{field}' is not valid Unicode: {error.reason} at character {error.start}"
            ) from error
        return value
    raise InputError(f"{place}: '{field}' is {type(value).__name__}, not text")


def content_hash(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"data file {path}: {error.strerror or error}") from error


def is_utf8(content: bytes) -> bool:
    """Whether these bytes are text as `text_parts` accepts it."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def first_line(error: BaseException) -> str:
    """The first line of a library's message, which may have many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
