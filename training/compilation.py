"""Compiling the blocks in place.

`torch.compile(module)` renames every key to `_orig_mod.…`, and a compiled LightningModule cannot log. Each block is
compiled in place instead (`nn.Module.compile`): keys and checkpoints stay as they were, and equal blocks share a graph.
"""

import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from errors import InputError

CHOICES = ("auto", "true", "false")
# On the CPU tanh by exp takes a third of the library's; its error, 1e-7 absolute, is GELU's 1 + tanh's own rounding.
OPTIONS: dict[str, Any] = {"cpp.use_decompose_tanh": True}

log = logging.getLogger("sinkless")


def check(choice: str) -> None:
    """InputError for a choice that there is not."""
    if choice not in CHOICES:
        raise InputError(f"model.compile is {choice!r}; it is one of {', '.join(CHOICES)}")


def wanted(choice: str | bool, device: torch.device) -> bool:
    """Whether to compile. `auto`: yes where the compiler that it needs is there; otherwise one line says why not."""
    text = str(choice).lower()
    check(text)
    if text == "false":
        return False
    missing = obstacle(device)
    if missing and text == "true":
        raise InputError(f"model.compile is true, but {missing}; set model.compile to auto or false")
    if missing:
        log.info("compile: off, %s", missing)
    return missing is None


def obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot work here; None where it can."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "Triton is not installed"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler}) on this machine"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return f"Python's C headers (Python.h of {sysconfig.get_path('include')}) are not installed"
    return None


def compile_blocks(blocks: nn.ModuleList) -> None:
    """Compile each block in place; call it before the strategy wraps or shards them."""
    for block in blocks:
        block.compile(options=OPTIONS)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that has no weights, such as the loss."""
    return torch.compile(function, options=OPTIONS)
