"""Attention as pure functions of tensors: softmax, its sink, gate and bias variants, and other scores.

    y = kernels.attend(q, k, v, kernels.Parts(sinks=kernels.SinkLogits(s)))        # (B, H, T, D)

Causal always. The mathematics and how to use this folder elsewhere: README.md beside this file.
"""

from .backends import BACKENDS
from .dispatch import attend, attend_with_lse
from .parts import (
    AddedVector,
    Clipped,
    Elastic,
    ElementGate,
    Parts,
    RowGate,
    Sigmoid,
    SinkLogits,
    SinkSlots,
    Softmax,
    Softpick,
)
from .statistics import AttentionStatistics, statistics

__all__ = [
    "BACKENDS",
    "AddedVector",
    "AttentionStatistics",
    "Clipped",
    "Elastic",
    "ElementGate",
    "Parts",
    "RowGate",
    "Sigmoid",
    "SinkLogits",
    "SinkSlots",
    "Softmax",
    "Softpick",
    "attend",
    "attend_with_lse",
    "statistics",
]
