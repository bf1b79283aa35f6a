"""The least time that a kernel can take: its matrix products and its traffic, counted without looking at the kernel.

A floor is the larger of (floating-point operations / the device's matrix rate) and (bytes / its memory rate), for the
algorithm at hand (scores recomputed in the backward), every tensor read or written once. Measured times stand beside
it; no kernel reaches it, because exponentials, masks and the start of a launch cost time too.

Shapes: B batch, H query heads, G key/value heads, T queries and keys, D head size, n slots.
"""

from dataclasses import dataclass

from torch import Tensor

# Dense matrix rate in half precision (FLOP/s, no sparsity) and memory rate (bytes/s), from the makers' data sheets:
# A100 80GB, H100 and H200 SXM, B200. An unknown device has no floor: never a guess.
RATES = {
    "A100-SXM4-80GB": (312e12, 2.039e12),
    "H100 80GB HBM3": (989.4e12, 3.35e12),
    "H200": (989.4e12, 4.8e12),
    "B200": (2250e12, 8.0e12),
}


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one kernel."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, device: str) -> float | None:
        """The floor on a device by the name that torch gives it; None for a device that is not in the table."""
        for name, (matrix, memory) in RATES.items():
            if device.removeprefix("NVIDIA ") == name:
                return max(self.flops / matrix, self.bytes / memory)
        return None


def visible_pairs(length: int, first_key: Tensor | None = None) -> int:
    """(query, key) pairs of one sequence that attention looks at. first_key: (T,) for packed documents and windows."""
    if first_key is None:
        return length * (length + 1) // 2
    return sum(max(0, row + 1 - max(0, int(first))) for row, first in enumerate(first_key))


def forward(
    B: int, H: int, G: int, T: int, D: int, *, pairs: int, itemsize: int, two_pass: bool = False, extra_rows: int = 0
) -> Work:
    """q·k and P·v; family B forms the scores twice. extra_rows: further (B, H, T, D) tensors, such as a gate."""
    products = 3 if two_pass else 2
    tensors = B * T * D * (2 * H + 2 * G + extra_rows * H) * itemsize
    return Work(products * 2.0 * D * pairs * B * H, tensors + 4 * B * H * T)


def backward(B: int, H: int, G: int, T: int, D: int, *, pairs: int, itemsize: int, extra_rows: int = 0) -> Work:
    """The row pass, dK/dV (q·k, dO·v, Pᵀ·dO, dSᵀ·q) and dQ (q·k, dO·v, dS·k): seven products, no atomics."""
    query, key = B * T * D * H * itemsize, B * T * D * G * itemsize
    rows = 2 * query + extra_rows * query + 2 * 4 * B * H * T
    dkdv = 2 * query + 4 * key + 2 * 4 * B * H * T
    dq = 3 * query + 2 * key + 2 * 4 * B * H * T
    return Work(7 * 2.0 * D * pairs * B * H, rows + dkdv + dq)


def statistics(B: int, H: int, G: int, T: int, D: int, *, pairs: int, itemsize: int) -> Work:
    """q·k once for the rows and once for the keys."""
    tensors = 2 * B * T * D * (H + G) * itemsize
    return Work(2 * 2.0 * D * pairs * B * H, tensors + 11 * 4 * B * H * T)
