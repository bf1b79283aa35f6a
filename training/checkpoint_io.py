"""Checkpoints that are never half a file.

Lightning writes to the temporary folder and moves the file: across file systems that is a copy, and a crash in it
leaves half a `last.ckpt`. Here a file is written beside its destination, forced to the disk, and renamed onto it.
A checkpoint is an ordinary `torch.save` file, a zip archive whose every record carries a CRC-32. PyTorch writes these
checksums but does not check them; `models.checkpoints.load` does. `recover` falls back to the checkpoint before a
damaged one.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from errors import InputError
from models.checkpoints import fault, load, verify

log = logging.getLogger("sinkless")


class AtomicCheckpointIO(CheckpointIO):
    """Writes whole files only, and loads only what its checksums confirm."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; where `storage_options` has "previous", the file that was at `path` lives on there.

        InputError: the disk is full or refuses; the checkpoints that were there are still there.
        """
        previous = (storage_options or {}).get("previous")
        write(Path(path), lambda file: torch.save(checkpoint, file), previous and Path(previous))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU. InputError: it is missing, truncated or damaged."""
        return load(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint file."""
        Path(path).unlink(missing_ok=True)


def write(path: Path, save: Callable[[BinaryIO], None], previous: Path | None = None) -> None:
    """Let `save` write a file, then put it at `path` at once; `previous` keeps what stood at `path` before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    file = None
    try:
        with _Recording(temporary) as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns an OSError of the file into a RuntimeError
        reason = error if isinstance(error, OSError) else file and file.error
        if reason is None:
            raise
        kept = f"; {path.name} is still the one before" if path.exists() else ""
        raise InputError(f"cannot write {path}: {reason.strerror or reason}{kept}") from None
    finally:
        temporary.unlink(missing_ok=True)


def recover(last: Path, previous: Path) -> None:
    """Put the checkpoint before it in the place of a last one that is damaged or gone, and say so.

    The damaged file lives on as damaged.ckpt, and does not become the previous one. At any moment `last` or `previous`
    is whole. InputError: both are damaged.
    """
    if not previous.exists():
        return  # a run's only checkpoint, if damaged, is refused where it is loaded
    if last.exists():
        damage = fault(last)
        if damage is None:
            return
        reason = f"{last} is damaged: {damage}. It is kept as damaged.ckpt"
    else:
        reason = f"{last} is gone"
    verify(previous)
    if last.exists():
        _keep(last, last.with_name("damaged.ckpt"))
    _keep(previous, last)
    log.warning("%s; going on from the checkpoint before it", reason)


class _Recording:
    """A binary file that remembers the OSError of a failed write, which torch.save reports without its reason."""

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> "_Recording":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error
            raise


def point(path: Path, target: str, previous: Path | None = None) -> None:
    """Make `path` a link to its neighbour `target` at once; `previous` keeps what stood at `path` before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    if previous is not None and path.exists():
        _keep(path, previous)
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _keep(path: Path, previous: Path) -> None:
    """Make `previous` a second name of the file at `path`: `path` itself stays in place all the time."""
    temporary = previous.with_name(f".{previous.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        try:
            if path.is_symlink():
                os.symlink(path.readlink(), temporary)
            else:
                os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        os.replace(temporary, previous)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Force the rename itself to the disk, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
