"""Token shards: raw little-endian uint16 or uint32 on disk, written once with a checksum, read as memory maps."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SHARD_TOKENS = 1 << 27  # 256 MiB as uint16: small enough to copy and to check, large enough to be few


@dataclass(frozen=True)
class Shard:
    """One file of a split, as the manifest records it."""

    file: str
    tokens: int
    size: int  # bytes on disk
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """As written to the manifest."""
        return asdict(self)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that holds every token id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file so that it is complete or absent, also after a loss of power."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a small array as a .npy file, as `write_durably` does."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_durably(path, buffer.getvalue())


def sync_folder(folder: Path) -> None:
    """Make the folder's list of names durable: renaming is atomic, but not durable by itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardWriter:
    """Appends tokens to one split's shards, `prefix-00000.bin` and so on, and hashes them on the way.

    begun: what `sync` returned, to go on from there. What was written behind it is cut off. Raises ValueError where the
    files are not what they were then.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        dtype: np.dtype[Any],
        shard_tokens: int = SHARD_TOKENS,
        begun: dict[str, Any] | None = None,
    ):
        self.folder, self.prefix, self.dtype, self.shard_tokens = folder, prefix, dtype, shard_tokens
        self.shards = [Shard(**shard) for shard in begun["shards"]] if begun else []
        self.tokens = sum(shard.tokens for shard in self.shards)
        for shard in self.shards:
            if checksum(folder / shard.file) != shard.sha256:
                raise ValueError(f"{shard.file} is damaged")
        self._open()
        if begun:
            self._go_on(begun["open"]["tokens"], begun["open"]["sha256"])

    def _open(self) -> None:
        self._path = self.folder / f"{self.prefix}-{len(self.shards):05d}.bin"
        self._file = self._path.open("ab")
        self._hash = hashlib.sha256()
        self._in_shard = 0

    def _go_on(self, tokens: int, sha256: str) -> None:
        self._file.truncate(tokens * self.dtype.itemsize)
        with self._path.open("rb") as file:
            while content := file.read(1 << 22):
                self._hash.update(content)
        if self._hash.hexdigest() != sha256:
            raise ValueError(f"{self._path.name} is damaged")
        self._in_shard = tokens
        self.tokens += tokens

    def write(self, tokens: npt.NDArray[Any]) -> None:
        """Append tokens (n,) of the writer's dtype; a full shard is closed and the next one begun."""
        start = 0
        while start < len(tokens):
            if self._in_shard == self.shard_tokens:
                self._close_shard()
                self._open()
                self._file.truncate(0)  # what a killed process wrote behind the state that this one goes on from
            part = tokens[start : start + self.shard_tokens - self._in_shard]
            content = part.tobytes()
            self._file.write(content)
            self._hash.update(content)
            self._in_shard += len(part)
            self.tokens += len(part)
            start += len(part)

    def sync(self) -> dict[str, Any]:
        """Make what is written durable, and describe it for a process that goes on from here."""
        self._file.flush()
        os.fsync(self._file.fileno())
        shards = [shard.as_dict() for shard in self.shards]
        return {"shards": shards, "open": {"tokens": self._in_shard, "sha256": self._hash.hexdigest()}}

    def _close_shard(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        size = self._in_shard * self.dtype.itemsize
        self.shards.append(Shard(self._path.name, self._in_shard, size, self._hash.hexdigest()))

    def finish(self) -> list[Shard]:
        """Close the last shard and return all of them."""
        self._close_shard()
        return self.shards

    def abandon(self) -> None:
        """Close the open file without recording it."""
        self._file.close()


class TokenSplit:
    """The tokens of one split, a sequence over all its shards. Slicing copies from the memory maps; nothing is kept.

    `split.read(start, stop)` -> (stop - start,) int64; `split.rows(starts, length)` -> (n, length) int64.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: np.dtype[Any]):
        self.folder, self.shards, self.dtype = folder, tuple(shards), dtype
        self.ends = np.cumsum([shard.tokens for shard in self.shards])
        self._maps = [self._map(shard) for shard in self.shards]

    def _map(self, shard: Shard) -> npt.NDArray[Any]:
        if shard.tokens == 0:
            return np.empty(0, self.dtype)
        # A plain view: slices of np.memmap itself are several times slower to make.
        return np.asarray(np.memmap(self.folder / shard.file, self.dtype, "r", shape=(shard.tokens,)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader's worker maps the files again instead of receiving their contents.
        return TokenSplit, (self.folder, self.shards, self.dtype)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def mapped(self) -> npt.NDArray[Any]:
        """The memory map (n,) of a split that has one shard."""
        (only,) = self._maps
        return only

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens start..stop as int64, across shards."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}..{stop} of {len(self)}")
        shard = int(np.searchsorted(self.ends, start, side="right"))
        parts = []
        while start < stop:
            offset = int(self.ends[shard]) - self.shards[shard].tokens
            end = min(stop, int(self.ends[shard]))
            parts.append(self._maps[shard][start - offset : end - offset])
            start, shard = end, shard + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def rows(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """Windows of `length` tokens that begin at `starts` (n,), as (n, length) int64."""
        rows = np.empty((len(starts), length), np.int64)
        if len(self._maps) == 1:
            tokens = self._maps[0]
            for row, start in zip(rows, starts.tolist(), strict=True):
                row[:] = tokens[start : start + length]
        else:
            for row, start in zip(rows, starts.tolist(), strict=True):
                row[:] = self.read(start, start + length)
        return rows
