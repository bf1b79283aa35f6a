"""The kernels as torch operators with shape functions, an `autograd.Function` over them, and `Parts` on top.

An operator inside an `autograd.Function` costs the least for each call and stays whole under torch.compile.
"""

from typing import Any

import torch
from torch import Tensor

from ..parts import Clipped, Elastic, Parts, RowGate, Sigmoid, SinkLogits, SinkSlots, Softmax, Softpick
from ..reference import finish
from . import launch
from .launch import INTERPRETED, Variant, keeps, rows_like
from .tiles import CLIPPED, ELASTIC, SIGMOID, SOFTMAX, SOFTPICK

NAMESPACE = __name__.replace(".", "_")  # a copy of this folder under another name registers operators of its own

_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? first_key, Tensor? sink, Tensor? slot_keys, Tensor? slot_values, "
_TENSORS += "Tensor? vector, Tensor? vector_key, Tensor? gate, Tensor? shift"
_NUMBERS = "int score, float number, float softcap, float span, float scale"
_library = torch.library.Library(NAMESPACE, "DEF")
_library.define(f"forward({_TENSORS}, {_NUMBERS}, bool training) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"backward(Tensor dY, Tensor? dL, {_TENSORS}, {_NUMBERS}, Tensor y, Tensor lse, Tensor kept) -> ("
    + ", ".join(["Tensor"] * 9)
    + ")"
)
_TENSOR_COUNT, _NUMBER_COUNT = 11, 5


def _split(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor, Variant, tuple[Any, ...]]:
    q, k, v, *rest = arguments
    count = _TENSOR_COUNT - 3 + _NUMBER_COUNT
    return q, k, v, Variant(*rest[:count]), tuple(rest[count:])


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, variant, (training,) = _split(arguments)
    with launch.on_device_of(q):
        return launch.forward(q, k, v, variant, training)


def _backward(dY: Tensor, dL: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    q, k, v, variant, saved = _split(arguments)
    with launch.on_device_of(q):
        return launch.backward(dY, dL, q, k, v, variant, *saved)


for _device in ("CUDA", *(("CPU",) if INTERPRETED else ())):
    _library.impl("forward", _forward, _device)
    _library.impl("backward", _backward, _device)


@torch.library.register_fake(f"{NAMESPACE}::forward")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, _, _, x, (training,) = _split(arguments)
    lse = q.new_empty(0 if x.score == SIGMOID.value else q.shape[:3], dtype=torch.float32)
    return rows_like(q), lse, rows_like(q) if training and keeps(q, x) else q.new_empty(0)


@torch.library.register_fake(f"{NAMESPACE}::backward")
def _(dY: Any, dL: Any, *arguments: Any) -> tuple[Tensor, ...]:
    q, k, v, x, _ = _split(arguments)

    def like(part: Tensor | None) -> Tensor:
        return q.new_empty(0 if part is None else part.shape, dtype=torch.float32)

    gate = rows_like(q, x.gate.dtype) if x.gate is not None and x.gate.dim() == 4 else like(x.gate)
    shift = q.new_empty(q.shape[:3] if x.score == ELASTIC.value else 0, dtype=torch.float32)
    keys = q.new_empty((q.shape[1], x.extras, q.shape[3]) if x.extras else 0, dtype=torch.float32)
    small = (like(x.sink), keys, like(x.slot_values), like(x.vector))
    return rows_like(q), rows_like(k), rows_like(v), *small, gate, shift


class _Fused(torch.autograd.Function):
    """(y, L) of the tensors and numbers of a `Variant`; gradients for every floating-point tensor."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        y, lse, kept = getattr(torch.ops, NAMESPACE).forward(*inputs, True)
        ctx.save_for_backward(*inputs[:_TENSOR_COUNT], y, lse, kept)
        ctx.numbers = inputs[_TENSOR_COUNT:]
        ctx.set_materialize_grads(False)
        return y, lse

    @staticmethod
    def backward(ctx: Any, dY: Tensor | None, dL: Tensor | None) -> Any:
        *tensors, y, lse, kept = ctx.saved_tensors
        dY = torch.zeros_like(y) if dY is None else _adjacent(dY)
        dL = None if dL is None or not lse.numel() else dL.float().contiguous()  # sigmoid has no L
        dq, dk, dv, d_sink, d_keys, d_slot_values, d_vector, d_gate, d_shift = getattr(torch.ops, NAMESPACE).backward(
            dY, dL, *tensors, *ctx.numbers, y, lse, kept
        )
        slots, vector_key = tensors[5], tensors[8]
        d_slot_keys = d_keys if slots is None else d_keys[:, : slots.shape[1]]
        d_vector_key = d_keys if vector_key is None else d_keys[:, -1]
        gradients = (dq, dk, dv, d_sink, d_slot_keys, d_slot_values, d_vector, d_vector_key, d_gate, d_shift)
        wanted = [*tensors[:3], *tensors[4:]]
        given = [None if x is None or not g.numel() else g.to(x.dtype) for x, g in zip(wanted, gradients, strict=True)]
        return *given[:3], None, *given[3:], *(None for _ in range(_NUMBER_COUNT))


def fused(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    parts: Parts,
    *,
    first_key_BT: Tensor | None,
    scale: float,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """y (B, H, T, D) laid out as (B, T, H, D), and L (B, H, T) float32 with its gradient; None for sigmoid."""
    if with_lse and parts.gate is not None:
        # A gradient of L and a folded gate do not go together: gate and vector are left to autograd here.
        bare = Parts(score=parts.score, sinks=parts.sinks)
        y, L = fused(q_BHTD, k_BGSD, v_BGSD, bare, first_key_BT=first_key_BT, scale=scale, with_lse=True)
        return finish(y, L, q_BHTD, parts, scale).to(y.dtype), L
    inputs = _inputs(q_BHTD, k_BGSD, v_BGSD, parts, first_key_BT, scale)
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        y, L = _Fused.apply(*inputs)
    else:
        y, L, _ = getattr(torch.ops, NAMESPACE).forward(*inputs, False)
    return y, None if isinstance(parts.score, Sigmoid) else L


def variant_of(
    q_BHTD: Tensor, k_BGSD: Tensor, parts: Parts, first_key_BT: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Variant]:
    """q and k with adjacent channels, and the tensors and numbers of the variant, as the launches take them."""
    q, k, _, variant, _ = _split(_inputs(q_BHTD, k_BGSD, k_BGSD, parts, first_key_BT, scale))
    return q, k, variant


def _inputs(q: Tensor, k: Tensor, v: Tensor, parts: Parts, first_key: Tensor | None, scale: float) -> tuple[Any, ...]:
    """The tensors and numbers of the operators."""
    sinks, added, gate, score = parts.sinks, parts.added, parts.gate, parts.score
    code, number, softcap = {
        Softmax: (SOFTMAX, 0.0, getattr(score, "softcap", None) or 0.0),
        Sigmoid: (SIGMOID, getattr(score, "bias", 0.0), 0.0),
        Softpick: (SOFTPICK, 0.0, 0.0),
        Clipped: (CLIPPED, getattr(score, "zeta", 0.0), 0.0),
        Elastic: (ELASTIC, 0.0, 0.0),
    }[type(score)]
    if first_key is not None:
        first_key = first_key.to(torch.int32).contiguous()
    logits = None if gate is None else gate.logits
    return (
        *(_adjacent(x) for x in (q, k, v)),
        first_key,
        sinks.logits if isinstance(sinks, SinkLogits) else None,
        *(
            x.contiguous() if isinstance(x, Tensor) else None
            for x in (
                sinks.keys if isinstance(sinks, SinkSlots) else None,
                sinks.values if isinstance(sinks, SinkSlots) else None,
                None if added is None else added.vector,
                None if added is None else added.key,
            )
        ),
        logits if logits is None or isinstance(gate, RowGate) else _adjacent(logits),
        _shift(score, q, k, first_key),
        code.value,
        float(number),
        float(softcap),
        1.0 if gate is None else float(gate.span),
        float(scale),
    )


def _shift(score: Any, q: Tensor, k: Tensor, first_key: Tensor | None) -> Tensor | None:
    """γ_i of clipped softmax or τ_h / n_i of elastic softmax as (B, H, T) float32, mostly of stride 0."""
    B, H, T, _ = q.shape
    if isinstance(score, Clipped) and not score.per_row:
        return torch.full((1, 1, 1), score.gamma, dtype=torch.float32, device=q.device).expand(B, H, T)
    if not isinstance(score, Clipped | Elastic):
        return None
    S = k.shape[2]
    n_BT = torch.arange(S - T + 1, S + 1, dtype=torch.float32, device=q.device)[None]
    if first_key is not None:
        n_BT = (n_BT - first_key.clamp_min(0)).clamp_min(1)
    if isinstance(score, Clipped):
        return (score.gamma / n_BT)[:, None].expand(B, H, T)
    return (score.offset.float()[:, None] / n_BT[:, None]).expand(B, H, T)


def _adjacent(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
