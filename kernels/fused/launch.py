"""From tensors to kernels: strides, grids and outputs of every launch.

Outputs come laid out as (B, T, H, D), so that joining the heads is a view. Nothing here waits for the device.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from .backward import dkdv_kernel, dq_kernel
from .columns import columns_kernel
from .configurations import Tiles, padded, tiles
from .forward import forward_kernel
from .rows import rows_kernel
from .tiles import (
    CLIPPED,
    CONTEXT_VECTOR,
    ELASTIC,
    ELEMENT_GATE,
    FIXED_VECTOR,
    NO_GATE,
    NO_SINK,
    NO_VECTOR,
    ROW_GATE,
    SIGMOID,
    SINK_LOGIT,
    SINK_SLOTS,
    SOFTMAX,
)

INTERPRETED = bool(triton.knobs.runtime.interpret)
STATISTICS = 7  # rows of the statistics that the forward kernel writes


@dataclass(frozen=True)
class Variant:
    """The tensors of one variant; None for those that it has not. All on q's device.

    first_key (B, T) int32; sink (H,) or (B, H, T); slot_keys, slot_values (H, n, D); vector, vector_key (H, D);
    gate (B, H, T) or (B, H, T, D); shift (B, H, T), γ_i of clipped softmax, τ_h / n_i of elastic softmax.
    score: a family of tiles.py; number: sigmoid's bias, clipped's ζ; softcap: 0 for none; scale: τ.
    """

    first_key: Tensor | None
    sink: Tensor | None
    slot_keys: Tensor | None
    slot_values: Tensor | None
    vector: Tensor | None
    vector_key: Tensor | None
    gate: Tensor | None
    shift: Tensor | None
    score: int
    number: float
    softcap: float
    span: float
    scale: float

    @property
    def two_pass(self) -> bool:
        """Family B: clipped and elastic softmax."""
        return self.score in (CLIPPED.value, ELASTIC.value)

    @property
    def folded(self) -> bool:
        """Whether a row gate goes into Λ; otherwise, and for an element gate, it multiplies dY."""
        return self.score == SOFTMAX.value

    @property
    def slots(self) -> int:
        """The number of slots."""
        return 0 if self.slot_keys is None else self.slot_keys.shape[1]

    @property
    def extras(self) -> int:
        """Slots, and the key of an added vector."""
        return self.slots + (self.vector_key is not None)

    def flags(self) -> dict[str, Any]:
        """The compile-time description of sinks, vector and gate."""
        gate = NO_GATE if self.gate is None else ROW_GATE if self.gate.dim() == 3 else ELEMENT_GATE
        vector = NO_VECTOR if self.vector is None else FIXED_VECTOR if self.vector_key is None else CONTEXT_VECTOR
        sink = SINK_SLOTS if self.slot_keys is not None else NO_SINK if self.sink is None else SINK_LOGIT
        return {
            "SCORE": self.score,
            "SINK": sink.value,
            "SLOTS": self.slots,
            "SLOT_VALUES": self.slot_values is not None,
            "VECTOR": vector.value,
            "GATE": gate.value,
        }


def rows_like(x_BHTD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Empty (B, H, T, D), laid out as (B, T, H, D)."""
    B, H, T, D = x_BHTD.shape
    return torch.empty(B, T, H, D, dtype=dtype or x_BHTD.dtype, device=x_BHTD.device).transpose(1, 2)


def _as_rows(x: Tensor) -> Tensor:
    return x if x.dim() != 4 or x.transpose(1, 2).is_contiguous() else rows_like(x).copy_(x)


def on_device_of(x: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def keeps(q: Tensor, x: Variant) -> bool:
    """Whether the forward must keep a second (B, H, T, D) for the backward."""
    row_gate = x.gate is not None and x.gate.dim() == 3
    return x.two_pass or (x.folded and row_gate and q.dtype == torch.float16)


def forward(q: Tensor, k: Tensor, v: Tensor, x: Variant, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y, L (B, H, T) (empty for sigmoid), and what the backward needs beside them (else empty)."""
    B, H, T, _ = q.shape
    y = rows_like(q)
    lse = _empty(q, 0 if x.score == SIGMOID.value else (B, H, T))
    keep = training and keeps(q, x)
    kept = rows_like(q) if keep else _empty(q, 0, q.dtype)
    _run_forward(q, k, v, x, y, kept, lse, None, keep)
    return y, lse, kept


def measure(q: Tensor, k: Tensor, x: Variant) -> tuple[Tensor, Tensor]:
    """L (B, H, T) (empty for sigmoid) and the row statistics (7, B, H, T) that `forward_kernel` lists."""
    B, H, T, _ = q.shape
    lse = _empty(q, 0 if x.score == SIGMOID.value else (B, H, T))
    statistics = _empty(q, (STATISTICS, B, H, T))
    _run_forward(q, k, k, x, q, q, lse, statistics, False)
    return lse, statistics


def _run_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Variant,
    y: Tensor,
    kept: Tensor,
    lse: Tensor,
    statistics: Tensor | None,
    keep: bool,
) -> None:
    B, H, T, D = q.shape
    t = tiles("forward" if statistics is None else "statistics", D, q.dtype, _architecture(q), x.score, keep)
    forward_kernel[(triton.cdiv(T, t.m) * B * H,)](
        q, k, v, y, kept, lse, q if statistics is None else statistics,
        _or(x.first_key, q), _or(x.sink, q), _or(x.slot_keys, q), _or(x.slot_values, q), _or(x.vector, q),
        _or(x.vector_key, q), _or(x.gate, q), _or(x.shift, q),
        *_strides(q), *_strides(k), *_strides(v), *_strides(y),
        *_sink_strides(x.sink), *_strides(x.gate), *_strides(x.shift),
        H, H // k.shape[1], T, k.shape[2], B * H * T, x.number, x.softcap, x.span, x.scale,
        **x.flags(), SOFTCAP=x.softcap > 0, FIRST=x.first_key is not None, KEEP=keep,
        VALUES=statistics is None, STATISTICS=statistics is not None, BLOCK_M=t.m, BLOCK_N=t.n, **_common(q, t),
    )  # fmt: skip


def backward(
    dY: Tensor, dL: Tensor | None, q: Tensor, k: Tensor, v: Tensor, x: Variant, y: Tensor, lse: Tensor, kept: Tensor
) -> tuple[Tensor, ...]:
    """dq, dk, dv, then the gradients of sink, extra keys (H, n, D), slot_values, vector, gate and shift.

    Extra keys are the slots' and, last, the vector's. Row quantities and vectors come in float32, an element gate's in
    its dtype; empty where the variant has no such part.
    """
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    flags, n = x.flags(), x.extras
    y, kept = _as_rows(y), _as_rows(kept)  # saved tensors may come back laid out otherwise
    lam, delta = _empty(q, (B, H, T)), _empty(q, (B, H, T))
    materialised = x.gate is not None and (x.gate.dim() == 4 or not x.folded)
    dO = rows_like(q) if materialised else dY

    t = tiles("rows", D, q.dtype, _architecture(q))
    count = triton.cdiv(T, t.m)
    d_sink = _empty(q, 0 if x.sink is None else (B, H, T))
    d_gate = _empty(q, 0)
    if x.gate is not None:
        d_gate = _empty(q, (B, H, T)) if x.gate.dim() == 3 else rows_like(q, x.gate.dtype)
    d_extra = _empty(q, (B, H, T, n) if n else 0)
    key_sums = _empty(q, (B, count, H, n, D) if n else 0)
    value_sums = _empty(q, 0 if x.slot_values is None else (B, count, H, x.slots, D))
    vector_sums = _empty(q, 0 if x.vector is None else (B, count, H, D))
    # Sigmoid without gate and vector has nothing to say about rows.
    if x.score != SIGMOID.value or x.gate is not None or x.vector is not None:
        rows_kernel[(count * B * H,)](
            dY, y, kept, q, lse, _or(dL, q), _or(x.first_key, q), _or(x.sink, q), _or(x.slot_keys, q),
            _or(x.slot_values, q), _or(x.vector, q), _or(x.vector_key, q), _or(x.gate, q),
            lam, delta, dO, d_sink, d_gate, d_extra, key_sums, value_sums, vector_sums,
            *_strides(dY), *_strides(y), *_strides(q), *_sink_strides(x.sink), *_strides(x.gate),
            H, T, S, x.span, x.scale,
            **flags, KEPT=bool(kept.numel()), FIRST=x.first_key is not None, WITH_DL=dL is not None, EXTRAS=n,
            BLOCK_M=t.m, D=D, BLOCK_D=padded(D), **_options(t),
        )  # fmt: skip

    last_query = None if x.first_key is None else last_queries(x.first_key, S)
    heavy = {"SCORE": x.score, "SOFTCAP": x.softcap > 0, "FIRST": x.first_key is not None}
    numbers = (x.number, x.softcap, x.scale)

    dk, dv = (torch.empty(B, S, H, D, dtype=k.dtype, device=k.device).transpose(1, 2) for _ in range(2))
    t = tiles("dkdv", D, q.dtype, _architecture(q), x.score)
    dkdv_kernel[(triton.cdiv(S, t.n) * B * H,)](
        q, k, v, dO, dk, dv, lam, delta, _or(x.shift, q), _or(x.first_key, q), _or(last_query, q),
        *_strides(q), *_strides(k), *_strides(v), *_strides(dO), *_strides(dk), *_strides(x.shift),
        H, H // G, T, S, *numbers, **heavy, EVEN=T % t.m == 0, BLOCK_M=t.m, BLOCK_N=t.n, **_common(q, t),
    )  # fmt: skip
    if G != H:
        dk, dv = (x.transpose(1, 2).unflatten(2, (G, H // G)).sum(3).transpose(1, 2) for x in (dk, dv))

    dq = rows_like(q)
    d_shift = _empty(q, (B, H, T) if x.score == ELASTIC.value else 0)
    t = tiles("dq", D, q.dtype, _architecture(q), x.score)
    dq_kernel[(triton.cdiv(T, t.m) * B * H,)](
        q, k, v, dO, dq, lam, delta, _or(x.shift, q), d_shift, _or(x.first_key, q), _or(x.slot_keys, q),
        _or(x.vector_key, q), d_extra,
        *_strides(q), *_strides(k), *_strides(v), *_strides(dO), *_strides(dq), *_strides(x.shift),
        H, H // G, T, S, *numbers, **heavy, SLOTS=x.slots, VECTOR=flags["VECTOR"], EXTRAS=n,
        BLOCK_M=t.m, BLOCK_N=t.n, **_common(q, t),
    )  # fmt: skip

    if x.sink is not None and x.sink.dim() == 1:
        d_sink = d_sink.sum((0, 2))
    sums = (x.sum((0, 1)) if x.numel() else x for x in (key_sums, value_sums, vector_sums))
    return dq, dk, dv, d_sink, *sums, d_gate, d_shift


def received(
    q: Tensor, k: Tensor, x: Variant, lse: Tensor, gates: Tensor, early: Tensor, first_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_i A_ij, Σ_i g_i A_ij and Σ_{i < first_rows} c_i A_ij for every key: (B, H, T) each.

    lse (B, H, T) as `measure` gives it; gates g and early c (B, H, T) float32.
    """
    B, H, T, D = q.shape
    lam = lse.div(0.6931471805599453).masked_fill_(lse == -torch.inf, torch.inf) if lse.numel() else gates
    outputs = (_empty(q, (B, H, T)), _empty(q, (B, H, T)), _empty(q, (B, H, T)))
    last_query = None if x.first_key is None else last_queries(x.first_key, T)
    t = tiles("columns", D, q.dtype, _architecture(q))
    columns_kernel[(triton.cdiv(T, t.n) * B * H,)](
        q, k, lam, gates, early, _or(x.shift, q), _or(x.first_key, q), _or(last_query, q), *outputs,
        *_strides(q), *_strides(k), *_strides(x.shift),
        H, H // k.shape[1], T, first_rows, x.number, x.softcap, x.scale,
        SCORE=x.score, SOFTCAP=x.softcap > 0, FIRST=x.first_key is not None,
        BLOCK_M=t.m, BLOCK_N=t.n, **_common(q, t),
    )  # fmt: skip
    return outputs


def last_queries(first_key_BT: Tensor, keys: int) -> Tensor:
    """The last row that sees each key, as far as first keys tell: (B, S) int32, −1 where every row begins later."""
    B = first_key_BT.shape[0]
    key = torch.arange(keys, device=first_key_BT.device, dtype=torch.int32).expand(B, keys).contiguous()
    return (torch.searchsorted(first_key_BT, key, right=True) - 1).to(torch.int32)


def _common(q: Tensor, t: Tiles) -> dict[str, Any]:
    D = q.shape[-1]
    full = q.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        "D": D,
        "BLOCK_D": padded(D),
        "PRECISION": "ieee" if full or q.dtype != torch.float32 else "tf32",
        "UPCAST": INTERPRETED and q.dtype == torch.bfloat16,
        **_options(t),
    }


def _options(t: Tiles) -> dict[str, Any]:
    """Fused multiply-adds are asked for by name: Triton 3.10 changes the default."""
    return {"num_warps": t.warps, "num_stages": t.stages, "maxnreg": t.registers, "enable_fp_fusion": True}


def _architecture(q: Tensor) -> int:
    if INTERPRETED:
        return 0
    major, minor = torch.cuda.get_device_capability(q.device)
    return 10 * major + minor


def _empty(like: Tensor, shape: int | Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def _or(x: Tensor | None, stand_in: Tensor) -> Tensor:
    """A pointer that the kernel never reads where the variant has no such tensor."""
    return stand_in if x is None else x


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    """Of batch, head and row; what follows is adjacent."""
    return (0, 0, 0) if x is None else (x.stride(0), x.stride(1), x.stride(2))


def _sink_strides(sink: Tensor | None) -> tuple[int, int, int]:
    if sink is not None and sink.dim() == 1:
        return 0, sink.stride(0), 0
    return _strides(sink)
