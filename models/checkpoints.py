"""Reads what `fit` wrote: full checkpoints, and weights alone as safetensors.

A checkpoint is a zip archive whose every record carries a CRC-32. PyTorch writes these checksums but does not check
them; `load` does.
"""

import json
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errors import InputError
from models.config import GPTConfig
from models.gpt import GPT

_FOLDER = 0x10  # among a zip record's external attributes


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint after checking every record's CRC-32; loads with `weights_only=True`."""
    verify(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, UnpicklingError, KeyError, ValueError):
        raise InputError(f"{path} is no checkpoint of `fit`: it holds other things than tensors and numbers") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no checkpoint of `fit`: it holds a {type(content).__name__}")
    return content


def verify(path: Path) -> None:
    """InputError unless the file is a whole checkpoint: one line that names what is wrong and what to do."""
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    if damage := fault(path):
        other = path.with_name("previous.ckpt")
        advice = f"; the one before it is {other}" if path.name == "last.ckpt" and other.exists() else ""
        raise InputError(f"checkpoint {path} is damaged: {damage}{advice}")


def fault(path: Path) -> str | None:
    """What is wrong with the archive of a checkpoint; None where nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            # PyTorch's reader takes a record marked so for a folder and returns memory that was never written.
            folders = [record.filename for record in archive.infolist() if record.external_attr & _FOLDER]
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        return f"it is truncated or no checkpoint ({error})"
    if folders:
        return f"its record {folders[0]} is marked as a folder"
    return f"its record {bad} fails its checksum" if bad else None


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict with the aliases put back, description). InputError: the file is missing or damaged."""
    if not Path(path).is_file():
        raise InputError(f"there are no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InputError(f"weights {path} are damaged: {error}") from None
    for alias, name in json.loads(header.get("aliases", "{}")).items():
        tensors[alias] = tensors[name]
    return tensors, json.loads(header.get("description", "{}"))


def rebuild(path: Path) -> tuple[GPT, int]:
    """The network of a checkpoint or of a weights-*.safetensors in float32 or its own dtype, and its step.

    InputError: the file is missing or damaged, holds no network of `fit`, or names an attention that is not there.
    """
    if path.suffix == ".safetensors":
        state, description = load_weights(path)
        step = description.get("step", 0)
    else:
        checkpoint = load(path)
        description, step = checkpoint.get("hyper_parameters", {}), checkpoint.get("global_step", 0)
        state = {
            name.removeprefix("gpt."): tensor
            for name, tensor in checkpoint.get("state_dict", {}).items()
            if name.startswith("gpt.")
        }
    if not state or not {"network", "attention"} <= set(description):
        raise InputError(f"{path} is no model of `fit`: it does not say which network its weights belong to")
    gpt = GPT(GPTConfig(**description["network"]), description["attention"], backend=description.get("backend", "auto"))
    gpt.to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    gpt.load_state_dict(state)
    return gpt, int(step)
