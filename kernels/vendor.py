"""Every exp-normalised variant on torch's flash attention, forward and backward, by the fold (README.md).

A variant's rows are y_i = a_i o_i + …, functions of the pair (o, L) that flash attention produces. With
Λ_i = L_i − ln g_i (g the row gate, sinks inside L) and Δ_i as below, the heavy backward is the vendor's own on
the incoming gradient: dS = P̃ (dY·v − Δ), P̃ = exp(S − Λ). The op computes Δ as dY·out, so `out` is chosen for it:

    sinks: the merged output;  row gate: the output before it;  added vector: without it, or with w (1 − w) v'.

What is left are row reductions. Shapes: B batch, H query heads, G key/value heads, T length, D head size, n slots.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .flash import DEVICES
from .parts import ElementGate, Parts, RowGate, SinkLogits, SinkSlots
from .reference import finish, wide
from .rows import add_, batch_rows, dot, head_rows, heads, heads_view, logits, per_row, rows_first, total, widen

sigmoid_backward = torch.ops.aten.sigmoid_backward  # (dY, σ) -> dY σ (1 − σ)


def vendor(
    q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, parts: Parts, *, scale: float, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """y (B, H, T, D) in the layout of the op, (B, T, H, D), and L (B, H, T) with its gradient if `with_lse`."""
    if with_lse:
        # A gradient of L and a folded gate do not go together: gate and vector are left to autograd here.
        y, L = _attention(q_BHTD, k_BGTD, v_BGTD, Parts(sinks=parts.sinks), scale, True)
        return finish(y, L, q_BHTD, parts, scale).to(y.dtype), L
    if parts.sinks is None and parts.added is None and parts.gate is None:
        return DEVICES[q_BHTD.device.type].forward(q_BHTD, k_BGTD, v_BGTD, scale)[0], None
    return _attention(q_BHTD, k_BGTD, v_BGTD, parts, scale, False), None


def _attention(q: Tensor, k: Tensor, v: Tensor, parts: Parts, scale: float, with_lse: bool) -> Any:
    sinks, added, gate = parts.sinks, parts.added, parts.gate
    if isinstance(sinks, SinkSlots) or (added is not None and added.key is not None):
        q = rows_first(q)  # o and dq take q's layout, and multiples of learned vectors are added to them in place
    inputs = (
        *(q, k, v),
        sinks.logits if isinstance(sinks, SinkLogits) else None,
        sinks.keys if isinstance(sinks, SinkSlots) else None,
        sinks.values if isinstance(sinks, SinkSlots) else None,
        None if added is None else added.vector,
        None if added is None else added.key,
        gate.logits if isinstance(gate, RowGate) else None,
        gate.logits if isinstance(gate, ElementGate) else None,
        1.0 if gate is None else float(gate.span),
        scale,
    )
    if torch.is_grad_enabled():
        return _Fold.apply(*inputs, with_lse)
    y, rows, _ = _forward(_Inputs(*inputs[:-2]), *inputs[-2:])
    return (y, rows.lse) if with_lse else y


class _Inputs(NamedTuple):
    """The tensors of one variant; None for those that it has not."""

    q: Tensor
    k: Tensor
    v: Tensor
    sink_logits: Tensor | None
    slot_keys: Tensor | None
    slot_values: Tensor | None
    vector: Tensor | None
    key: Tensor | None
    row_logits: Tensor | None
    element_logits: Tensor | None


class _Rows(NamedTuple):
    """What the forward finds and the backward needs; None for what the variant has not. N = B·T."""

    out: Tensor  # (B, H, T, D), chosen so that dY · out = Δ
    lse: Tensor  # (B, H, T), Λ: sinks and row gate in
    q: Tensor | None  # (H, N, D), where there is a learned key
    slots: Tensor | None  # (H, n, N) weights of the slots, gate out
    w: Tensor | None  # (H, 1, N) weight of the added vector, gate out
    sigma: Tensor | None  # σ of the gate's logits, (B, H, T) or (B, H, T, D)


def _forward(x: _Inputs, span: float, scale: float) -> tuple[Tensor, _Rows, tuple[Any, ...]]:
    """y, the rows for the backward, and the op's own extras.

    The op's fresh output is changed in place: a variant costs one or two passes over (B, H, T, D).
    """
    dtype, high = x.q.dtype, wide(x.q.dtype)
    out, L, extra = DEVICES[x.q.device.type].forward(x.q, x.k, x.v, scale)
    q_HND = heads(x.q) if x.slot_keys is not None or x.key is not None else None
    slots = w = sigma = None
    if x.sink_logits is not None:
        excess = per_row(x.sink_logits, high) - L
        L = L + softplus(excess, threshold=40.0)  # log(e^L + e^s), never overflowing
        out.mul_(excess.neg_().sigmoid_().unsqueeze(-1))
    if x.slot_keys is not None and q_HND is not None:
        L_H1N = head_rows(L)
        each = logits(q_HND, x.slot_keys.to(high), scale, L_H1N)
        excess = each if each.shape[1] == 1 else each.logsumexp(1, keepdim=True)
        growth = softplus(excess, threshold=40.0)
        slots = (each - growth).exp_()
        L = batch_rows(L_H1N + growth, len(L))
        if x.slot_values is not None and slots.shape[1] == 1 and dtype == high:
            heads_view(out).lerp_(x.slot_values.to(high), slots.mT)
        else:
            heads_view(out).mul_(excess.neg_().sigmoid_().mT)
            if x.slot_values is not None:
                add_(heads_view(out), slots, x.slot_values.to(high))

    y = out
    if x.vector is not None:
        vector = x.vector.to(high).unsqueeze(1)
        if x.key is None or q_HND is None:
            y = (out + vector).to(dtype)
        else:
            w = logits(q_HND, x.key.to(high).unsqueeze(1), scale, head_rows(L)).sigmoid_()
            y = torch.addcmul(out, batch_rows(w, len(L)).unsqueeze(-1), vector).to(dtype)
            add_(heads_view(out), torch.addcmul(w, w, w, value=-1), vector)
    if x.row_logits is not None:
        sigma = torch.sigmoid(x.row_logits.to(high))
        gate = _spanned(sigma, span)
        L = L - gate.log()
        y = (y * gate.unsqueeze(-1)).to(dtype)
    if x.element_logits is not None:
        sigma = torch.sigmoid(x.element_logits.to(torch.promote_types(x.element_logits.dtype, dtype)))
        y = _spanned((y * sigma).to(dtype), span)
    return y, _Rows(out, L, q_HND, slots, w, sigma), extra


class _Fold(torch.autograd.Function):
    """`_forward` with the backward of README.md; returns y, and L beside it if `with_lse` (sinks only)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        *tensors, span, scale, with_lse = inputs
        x = _Inputs(*tensors)
        y, rows, extra = _forward(x, span, scale)
        ctx.element_dtype = None if x.element_logits is None else x.element_logits.dtype
        ctx.span, ctx.scale = span, scale
        # An element gate's logits are as large as y; its σ alone is kept.
        ctx.save_for_backward(*x._replace(element_logits=None), *rows, *extra)
        return (y, rows.lse) if with_lse else y

    @staticmethod
    def backward(ctx: Any, dY: Tensor, dL: Tensor | None = None) -> Any:
        split, saved = len(_Inputs._fields), ctx.saved_tensors  # read once: activation checkpointing gives them once
        x, rest = _Inputs(*saved[:split]), saved[split:]
        rows, extra = _Rows(*rest[: len(_Rows._fields)]), rest[len(_Rows._fields) :]
        dO, d_element = dY, None
        if ctx.element_dtype is not None:  # an element gate is not folded: it changes the rows of dY
            dO, d_element = _through_element_gate(dY, x, rows, ctx.span)
            d_element = d_element.to(ctx.element_dtype)
        needs_sink_logits = x.sink_logits is not None and ctx.needs_input_grad[3]
        gradients = _backward(dO, dL, x, rows, extra, ctx.span, ctx.scale, needs_sink_logits)
        return *gradients, d_element, None, None, None


def _backward(
    dO: Tensor,
    dL: Tensor | None,
    x: _Inputs,
    rows: _Rows,
    extra: tuple[Any, ...],
    span: float,
    scale: float,
    needs_sink_logits: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs but an element gate's; the table and the formulas are README.md's."""
    high, gate = wide(x.q.dtype), None
    if x.slot_keys is not None or x.vector is not None:
        dO_HND = heads(dO)
        if x.row_logits is not None and rows.sigma is not None:
            gate = head_rows(_spanned(rows.sigma, span))
    if rows.slots is not None or x.row_logits is not None or needs_sink_logits:
        delta = (dO.to(high) * rows.out).sum(-1)
        if dL is not None:
            delta = delta - dL

    d_sink_logits = d_keys = d_values = d_vector = d_key = d_row = None
    to_queries: list[tuple[Tensor, Tensor]] = []  # multiples (H, n, N) of learned keys (H, n, D), a part of dq
    if x.sink_logits is not None and needs_sink_logits:
        d_sink_logits = (per_row(x.sink_logits, high) - rows.lse).exp_().mul_(delta).neg_()
        if x.sink_logits.dim() == 1:
            d_sink_logits = d_sink_logits.sum((0, 2))
        d_sink_logits = d_sink_logits.to(x.sink_logits.dtype)
    if x.slot_keys is not None and rows.slots is not None and rows.q is not None:
        weights = rows.slots if gate is None else rows.slots * gate
        if x.slot_values is None:
            d_slots = weights * -head_rows(delta)
        else:
            d_slots = dot(dO_HND, x.slot_values.to(high)).sub_(head_rows(delta)).mul_(weights)
            d_values = total(weights, dO_HND).to(x.slot_values.dtype)
        d_keys = total(d_slots, rows.q).mul_(scale).to(x.slot_keys.dtype)
        to_queries.append((d_slots, x.slot_keys.to(high)))
    along = None
    if x.vector is not None and (gate is not None or rows.w is not None):
        along = dot(dO_HND, x.vector.to(high).unsqueeze(1))
        one = torch.ones_like(along) if rows.w is None else rows.w
        weights = one if gate is None else one * gate
        d_vector = total(weights, dO_HND).squeeze(1).to(x.vector.dtype)
        if x.key is not None and rows.q is not None:
            d_along = sigmoid_backward(along if gate is None else along * gate, one)
            d_key = total(d_along, rows.q).mul_(scale).squeeze(1).to(x.key.dtype)
            to_queries.append((d_along, x.key.to(high).unsqueeze(1)))
    elif x.vector is not None:
        d_vector = dO.sum((0, 2), dtype=high).to(x.vector.dtype)
    if x.row_logits is not None:  # dz = (1 − σ) g dY · (the row before the gate); `out` lacks v', or w² v'
        y_dot = delta if along is None else delta + batch_rows(along * one * one, len(dO))
        d_row = _spanned(sigmoid_backward(y_dot, rows.sigma), span).to(x.row_logits.dtype)

    dq, dk, dv = _flash_backward(dO, dL, x, rows.out, rows.lse, extra, scale)
    for weights, keys in to_queries:
        add_(heads_view(dq), weights, keys, scale)
    return dq, dk, dv, d_sink_logits, d_keys, d_values, d_vector, d_key, d_row


def _through_element_gate(dY: Tensor, x: _Inputs, rows: _Rows, span: float) -> tuple[Tensor, Tensor]:
    """The gradients of the row before an element gate, g ⊙ dY, and of the gate's logits."""
    before, sigma = rows.out, rows.sigma
    assert sigma is not None
    if x.vector is not None:  # `out` lacks v', or w² v'
        missing = x.vector.to(wide(x.q.dtype)).unsqueeze(1)
        if rows.w is not None:
            missing = missing * batch_rows(rows.w * rows.w, len(dY)).unsqueeze(-1)
        before = before + missing
    return _spanned((dY * sigma).to(x.q.dtype), span), _spanned(sigmoid_backward(dY * before, sigma), span)


def _spanned(x: Tensor, span: float) -> Tensor:
    return x if span == 1.0 else x * span


def _flash_backward(
    dO: Tensor, dL: Tensor | None, x: _Inputs, out: Tensor, lse: Tensor, extra: tuple[Any, ...], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The vendor's backward. A gradient of L rides on one more channel: q = k = v = 0, dO = 1, out = −dL.

    Then S and dO·v are as before and dO·out = Δ − dL, also in rows where dO is zero.
    """
    flash = DEVICES[x.q.device.type]
    if dL is None:
        return flash.backward(dO, x.q, x.k, x.v, out, lse, extra, scale)
    D = x.q.shape[-1]
    q, k, v = (widen(tensor, 1) for tensor in (x.q, x.k, x.v))
    dO, out = widen(dO, 1, value=1.0), torch.cat([out, -dL.unsqueeze(-1).to(out.dtype)], dim=-1)
    dq, dk, dv = flash.backward(dO, q, k, v, out, lse, extra, scale)
    return dq[..., :D], dk[..., :D], dv[..., :D]
