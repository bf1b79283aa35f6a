"""Writes sharded checkpoints, the folders of `models.sharded`: every rank its part.

`last.ckpt` is a link to a folder that is complete when the link is made. So it is at any moment a whole checkpoint, as
it is where it is one file, and both kinds may follow each other in one run.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from errors import InputError
from models.sharded import REST, checksums
from training.checkpoint_io import point, write
from training.weights import without_aliases

SUFFIX = ".sharded"


def save(checkpoint: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint whose tensors are DTensors; every rank must call it. `previous` then is what `path` was.

    InputError, on every rank: a disk is full or refuses; the checkpoints that were there are still there.
    """
    rank, names = dist.get_rank(), [f"step={checkpoint['global_step']:06d}-{os.urandom(4).hex()}{SUFFIX}"]
    dist.broadcast_object_list(names)
    folder = path.with_name(names[0])
    optimizers = checkpoint["optimizer_states"]
    state = {f"state_dict/{name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer["state"].items():
            state |= {f"optimizer_states/{number}/{index}/{name}": value for name, value in values.items()}
    tensors, aliases = without_aliases(state)
    try:
        dcp.save(
            {name: tensor.detach() for name, tensor in tensors.items()}, storage_writer=dcp.FileSystemWriter(folder)
        )
        files: list[dict[str, list[int]]] = [{}] * dist.get_world_size()
        dist.all_gather_object(
            files, checksums(folder, f"__{rank}_*") | (checksums(folder, ".m*") if rank == 0 else {})
        )
        if rank == 0:
            rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
            rest |= {"param_groups": [optimizer["param_groups"] for optimizer in optimizers], "aliases": aliases}
            rest["files"] = {name: sums for part in files for name, sums in part.items()}
            write(folder / REST, lambda file: torch.save(rest, file))
            point(path, folder.name, previous)
    except (CheckpointException, OSError) as error:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
        if not all(isinstance(cause, OSError | RuntimeError) for cause in causes):
            raise
        kept = f"; {path.name} is still the one before" if path.exists() else ""
        raise InputError(f"cannot write {folder}: {str(causes[0]).splitlines()[0]}{kept}") from None


def sweep(folder: Path) -> None:
    """Delete the sharded checkpoints in `folder` to which no link there leads."""
    used = {link.readlink().name for link in folder.iterdir() if link.is_symlink()}
    for shards in folder.glob(f"*{SUFFIX}"):
        if shards.name not in used:
            shutil.rmtree(shards)
