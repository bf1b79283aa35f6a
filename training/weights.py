"""Weights alone, as safetensors: for analysis and for other programs, without optimizer or random state.

Tied parameters are one tensor under two names, which safetensors refuses to save. The alias is dropped, its name is
kept in the header, and loading puts it back.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.checkpoint_io import write


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it is, or gathered from all ranks where it is sharded: then every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A module's state dict with whole tensors, tied ones still tied. Where the module is sharded: every rank must
    call this, and the tensors are copies on the CPU."""
    tensors, aliases = without_aliases(model.state_dict(keep_vars=True))
    full = {
        name: whole(tensor.detach()).cpu() if isinstance(tensor, DTensor) else tensor.detach()
        for name, tensor in tensors.items()
    }
    return full | {alias: full[name] for alias, name in aliases.items()}


def without_aliases(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, each under its first name; the further names with that first name)."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[Any, str] = {}
    for name, tensor in state.items():
        if isinstance(tensor, DTensor):  # a rank's shard may be empty: memory does not tell two of them apart
            place: Any = id(tensor)
        elif tensor.numel():
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        else:
            place = name
        if place in names:
            aliases[name] = names[place]
        else:
            names[place] = name
            tensors[name] = tensor
    return tensors, aliases


def save_weights(state: Mapping[str, Tensor], path: Path, description: dict[str, Any]) -> None:
    """Write whole tensors in their own dtype. `description`: JSON that rebuilds the module they belong to."""
    tensors, aliases = without_aliases(state)
    header = {"format": "pt", "aliases": json.dumps(aliases), "description": json.dumps(description)}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write(path, lambda file: file.write(serialise(contiguous, header)))
