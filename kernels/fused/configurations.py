"""Tile sizes, warps and pipeline stages of every kernel, by architecture and head size: a static table.

Chosen with `python -m benchmarks.compile_kernels` (registers, spills and shared memory of every entry); where a GPU has
confirmed an entry, docs/log.md says so. Tuning is an offline matter: a table gives every run the same kernels.
"""

from typing import NamedTuple

import torch

from .tiles import CLIPPED, ELASTIC, SOFTMAX, SOFTPICK


class Tiles(NamedTuple):
    """One launch: query rows and keys of a tile, warps of a program, stages of the load pipeline.

    registers: what a thread may have. None leaves it to the assembler, which may spill a few to fit more programs.
    """

    m: int
    n: int
    warps: int
    stages: int
    registers: int | None = None


MOST_REGISTERS = 255  # that an instruction can name
INTERPRETED = Tiles(32, 16, 4, 1)  # small, so that short sequences have several tiles


def padded(head_dim: int) -> int:
    """The head size inside the kernels: the next power of two from 16 on."""
    return max(16, 1 << (head_dim - 1).bit_length())


def tiles(
    kernel: str,
    head_dim: int,
    dtype: torch.dtype,
    architecture: int,
    score: int = SOFTMAX.value,
    keep: bool = False,
) -> Tiles:
    """The launch of a kernel. architecture: compute capability × 10; 0 under the interpreter.

    score: a family of tiles.py. keep: a forward that keeps a second (M, D) for the backward.
    """
    if architecture == 0:
        return INTERPRETED
    size = padded(head_dim)
    crowded = _crowded(kernel, architecture, score, keep)
    if dtype == torch.float32:
        found = _full_precision(kernel, size, crowded)
    elif kernel == "rows":
        found = Tiles(64 if size <= 64 else 32 if size <= 128 else 16, 0, 8 if architecture >= 100 else 4, 1)
    elif size <= 128:
        found = _half_precision(kernel, size > 64, architecture, crowded)
    else:
        found = _large_heads(kernel, architecture, crowded)
    # These spilled a few registers to fit more programs; half precision at 64, 128 and 256 does not.
    spilled = dtype == torch.float32 or size < 64 or size != head_dim
    return found._replace(registers=MOST_REGISTERS) if spilled else found


def _crowded(kernel: str, architecture: int, score: int, keep: bool) -> bool:
    """Whether a family needs more registers in a kernel than softmax does."""
    two_pass = score in (CLIPPED.value, ELASTIC.value)
    if kernel == "forward":
        return (two_pass and keep) or (architecture >= 100 and score == SOFTPICK.value)
    if kernel == "dkdv":
        return score == SOFTPICK.value or (two_pass and architecture < 100)
    return architecture >= 100 and score != SOFTMAX.value  # statistics, dq


def _half_precision(kernel: str, wide: bool, architecture: int, crowded: bool) -> Tiles:
    """Head sizes up to 64, or up to 128 (wide)."""
    ampere = architecture < 90
    if kernel == "columns":
        return Tiles(64, 128, 8, 2 if wide or ampere else 3)
    if architecture >= 100:
        if kernel == "dkdv":
            return Tiles(32, 64 if wide else 128, 8, 1 if wide and crowded else 2)
        return Tiles(64, 32 if crowded and not (wide and kernel == "forward") else 64, 8, 2)  # and statistics, dq
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


def _large_heads(kernel: str, architecture: int, crowded: bool) -> Tiles:
    """Head sizes up to 256 in half precision. dK and dV leave no room for 64 keys but on sm_100."""
    ampere = architecture < 90
    if kernel == "columns":
        return Tiles(32, 64, 8, 2)
    if kernel == "dkdv":
        return Tiles(32, 64 if architecture >= 100 else 32, 8, 1)
    if kernel == "dq":
        return Tiles(32, 32, 8, 1) if ampere else Tiles(64, 32, 8, 2)
    if ampere and (crowded or kernel == "statistics"):
        return Tiles(32, 32, 8, 2)
    return Tiles(64, 16 if kernel == "statistics" or (crowded and architecture < 100) else 32, 8, 2)


def _full_precision(kernel: str, size: int, crowded: bool) -> Tiles:
    """float32 products have no tensor-core instruction: small tiles, many warps."""
    if kernel == "rows":
        return Tiles(32 if size <= 64 else 16, 0, 4, 1)
    if size <= 64:
        return Tiles(16 if kernel == "dq" else 32, 32, 8, 1)
    narrow = size > 128 and (kernel in ("dq", "statistics") or (kernel == "forward" and crowded))
    return Tiles(16, 16 if narrow else 32, 8, 1)
