"""Tile sizes, warps and pipeline stages of every kernel, by architecture and head size: a static table.

Chosen with `python -m benchmarks.compile_kernels` (registers, spills and shared memory of every entry); where a GPU has
confirmed an entry, docs/log.md says so. Tuning is an offline matter: a table gives every run the same kernels.
"""

from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """One launch: query rows and keys of a tile, warps of a program, stages of the load pipeline."""

    m: int
    n: int
    warps: int
    stages: int


INTERPRETED = Tiles(32, 16, 4, 1)  # small, so that short sequences have several tiles


def padded(head_dim: int) -> int:
    """The head size inside the kernels: the next power of two from 16 on."""
    return max(16, 1 << (head_dim - 1).bit_length())


def tiles(kernel: str, head_dim: int, dtype: torch.dtype, architecture: int, crowded: bool = False) -> Tiles:
    """The launch of a kernel. architecture: compute capability × 10; 0 under the interpreter.

    crowded: a variant that needs more registers than the others: the training forward of family B with its second
    (M, D) sum, the dK and dV of family B and of softpick.
    """
    if architecture == 0:
        return INTERPRETED
    size = padded(head_dim)
    if dtype == torch.float32:
        return _full_precision(kernel, size)
    if kernel == "rows":
        return Tiles(64 if size <= 64 else 32 if size <= 128 else 16, 0, 8 if architecture >= 100 else 4, 1)
    if size <= 128:
        return _half_precision(kernel, size > 64, architecture, crowded)
    return {
        "forward": Tiles(64, 32, 8, 2),
        "statistics": Tiles(64, 32, 8, 2),
        "columns": Tiles(32, 64, 8, 2),
        "dkdv": Tiles(32, 32, 8, 1),
        "dq": Tiles(32, 32, 8, 1),
    }[kernel]


def _half_precision(kernel: str, wide: bool, architecture: int, crowded: bool) -> Tiles:
    """Head sizes up to 64, or up to 128 (wide)."""
    ampere = architecture < 90
    if kernel == "columns":
        return Tiles(64, 128, 8, 2 if wide or ampere else 3)
    if architecture >= 100:
        return Tiles(32, 64 if wide else 128, 8, 2) if kernel == "dkdv" else Tiles(64, 64, 8, 2)
    if kernel == "dkdv":
        if wide:
            return Tiles(32, 64 if ampere or crowded else 128, 8, 2)
        return Tiles(32, 128, 8, 2) if ampere or crowded else Tiles(64, 128, 8, 3)
    if not wide:
        return Tiles(128, 64, 8, 3)  # forward, statistics, dq
    if kernel == "forward":
        if ampere or crowded:
            return Tiles(64, 32 if crowded else 64, 8, 2)
        return Tiles(128, 64, 8, 3)
    return Tiles(64 if ampere else 128, 64, 8, 2)  # statistics, dq


def _full_precision(kernel: str, size: int) -> Tiles:
    """float32 products have no tensor-core instruction: small tiles, many warps."""
    if kernel == "rows":
        return Tiles(32 if size <= 64 else 16, 0, 4, 1)
    if size <= 64:
        return Tiles(32, 32, 4, 1)
    return Tiles(16, 32, 8, 1)
