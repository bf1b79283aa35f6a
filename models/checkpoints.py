"""Reads what `fit` wrote: full checkpoints, and weights alone as safetensors.

A checkpoint is a zip archive whose every record carries a CRC-32. PyTorch writes these checksums but does not check
them; `load` does. A sharded checkpoint is a folder (`models.sharded`), and read like any other.
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
from models.sharded import REST, Empty, checksums, fill

_FOLDER = 0x10  # among a zip record's external attributes


def load(path: Path, map_location: Any = "cpu", empty: Empty | None = None) -> dict[str, Any]:
    """Read a checkpoint after checking every record's CRC-32; loads with `weights_only=True`.

    empty: for a sharded checkpoint, see `sharded.fill`. InputError: it is missing, truncated or damaged.
    """
    verify(path)
    try:
        content = torch.load(path / REST if path.is_dir() else path, map_location=map_location, weights_only=True)
    except (RuntimeError, UnpicklingError, KeyError, ValueError):
        raise InputError(f"{path} is no checkpoint of `fit`: it holds other things than tensors and numbers") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no checkpoint of `fit`: it holds a {type(content).__name__}")
    return fill(path, content, empty) if path.is_dir() else content


def description(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """What rebuilds the network of a loaded checkpoint. InputError: it does not say."""
    saved = content.get("hyper_parameters")
    if not isinstance(saved, dict) or not {"attention", "network"} <= saved.keys():
        raise InputError(f"{path} is no checkpoint of `fit`: it does not say which network it holds")
    return saved


def verify(path: Path) -> None:
    """InputError unless the file is a whole checkpoint: one line that names what is wrong and what to do."""
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}")
    if damage := fault(path):
        other = path.with_name("previous.ckpt")
        advice = f"; the one before it is {other}" if path.name == "last.ckpt" and other.exists() else ""
        raise InputError(f"checkpoint {path} is damaged: {damage}{advice}")


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint; None where nothing is."""
    if path.is_dir():
        return _folder_fault(path)
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


def _folder_fault(folder: Path) -> str | None:
    """What is wrong with a sharded checkpoint."""
    if not (folder / REST).is_file():
        return f"its {REST} is missing"
    if damage := fault(folder / REST):
        return f"{REST}: {damage}"
    for name, sums in torch.load(folder / REST, weights_only=True).get("files", {}).items():
        if not (folder / name).is_file():
            return f"its {name} is missing"
        if checksums(folder, name)[name] != sums:
            return f"its {name} fails its checksum"
    return None


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
    gpt = GPT(
        GPTConfig(**description["network"]),
        description["attention"],
        seed=description.get("seed", 0),  # so that the network knows from which values it was trained
        backend=description.get("backend", "auto"),
    )
    gpt.to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    gpt.load_state_dict(state)
    return gpt, int(step)
