"""Reads sharded checkpoints: a folder to which every rank wrote its part, and from which any number of ranks reads.

    last.ckpt -> step=000500-5f0c93ab.sharded/      a symbolic link, which is replaced at once
        __0_0.distcp, __1_0.distcp, .metadata       tensors, by torch.distributed.checkpoint
        rest.ckpt                                   all else, and size and CRC-32 of the files above; written last

Tensors bear names that do not depend on ranks: state_dict/NAME, and optimizer_states/0/INDEX/exp_avg, where INDEX is
the parameter's place in the optimizer's groups. `training.sharded_io` writes them.
"""

import pickle
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from errors import InputError

REST = "rest.ckpt"
CLASSES_OF = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")

Empty = Callable[[str, torch.Size, torch.dtype], Tensor | None]


def fill(folder: Path, rest: dict[str, Any], empty: Empty | None = None) -> dict[str, Any]:
    """Put the tensors of `folder` into `rest`, the content of its rest.ckpt: then it is what one file would hold.

    empty: given a tensor's name, size and dtype, returns the tensor to read into, a DTensor for this rank's shard of
    it, or None to leave it out; then every rank must call this. Without it, whole tensors on the CPU.
    """
    reader = _Reader(folder)
    make = empty or (lambda _name, size, dtype: torch.empty(size, dtype=dtype))
    found = {
        name: make(name, item.size, item.properties.dtype)
        for name, item in reader.read_metadata().state_dict_metadata.items()
        if isinstance(item, TensorStorageMetadata)
    }
    tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process reads alone
        dcp.load(tensors, storage_reader=reader, no_dist=empty is None)
    rest = dict(rest)
    aliases, groups = rest.pop("aliases"), rest.pop("param_groups")
    del rest["files"]
    tensors |= {alias: tensors[name] for alias, name in aliases.items()}
    optimizers: list[dict[str, Any]] = [{"state": {}, "param_groups": each} for each in groups]
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kind, _, key = name.partition("/")
        if kind == "state_dict":
            weights[key] = tensor
        else:
            number, index, value = key.split("/")
            optimizers[int(number)]["state"].setdefault(int(index), {})[value] = tensor
    return rest | {"state_dict": weights, "optimizer_states": optimizers}


def checksums(folder: Path, pattern: str) -> dict[str, list[int]]:
    """Size in bytes and CRC-32 of the files in `folder` that a glob pattern names."""
    sums = {}
    for path in folder.glob(pattern):
        crc = 0
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                crc = zlib.crc32(block, crc)
        sums[path.name] = [path.stat().st_size, crc]
    return sums


class _Reader(dcp.FileSystemReader):
    """Reads the metadata, which is a pickle, without letting it call anything but the classes that it consists of."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata of the folder."""
        with open(Path(self.path) / ".metadata", "rb") as file:
            return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = module in CLASSES_OF or (module, name) in (
            ("pathlib", "PosixPath"),
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
        )
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            found = super().find_class(module, name)
            if isinstance(found, type | torch.dtype) or name == "_get_layout":
                return found
        raise InputError(f"a sharded checkpoint's .metadata names {module}.{name}, which no checkpoint of `fit` holds")
