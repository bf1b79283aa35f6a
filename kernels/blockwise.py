"""What the vendor op cannot do, in plain PyTorch: blocks of query rows, recomputed in the backward, never T×T.

Forward and backward of every score family (scores.py), with or without a first key for each row.
The core returns (o, L) with a gradient for both; sinks, added vectors and gates are functions of that pair
(README.md, "the fold") and are left to autograd. The core is one opaque operator, so a compiler neither unrolls nor
retraces its loop.

Shapes as in reference.py; r = H / G query heads share a key head, b rows a block, s keys that the block may see.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .parts import Elastic, Parts, Score, Sigmoid, SinkSlots, Softmax, Softpick
from .reference import finish, sink_logits, wide, without_autocast
from .scores import cap_, gradients, pack, unpack, weights

BLOCK = 64  # rows; a block's scores take B · H · 64 · S numbers
NAMESPACE = __name__.replace(".", "_")  # a copy of this folder under another name registers operators of its own


def blockwise(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    parts: Parts,
    *,
    first_key_BT: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """The same values as `reference`, in O(T · block) memory."""
    family, numbers, offset_H = pack(parts.score)
    o_BHTD, L = _forward(q_BHTD, k_BGSD, v_BGSD, first_key_BT, offset_H, scale, family, numbers)
    L_BHT = None if isinstance(parts.score, Sigmoid) else L
    y_BHTD, high = o_BHTD, wide(q_BHTD.dtype)
    if parts.sinks is not None and L_BHT is not None:
        sinks_BHTn = sink_logits(q_BHTD, parts.sinks, scale)
        L_real_BHT, L_BHT = L_BHT, torch.logaddexp(L_BHT, sinks_BHTn.logsumexp(-1))
        y_BHTD = y_BHTD * (L_real_BHT - L_BHT).exp()[..., None]  # σ(L_real − s) saturates: no gradient for a faint sink
        if isinstance(parts.sinks, SinkSlots) and parts.sinks.values is not None:
            y_BHTD = y_BHTD + (sinks_BHTn - L_BHT[..., None]).exp() @ parts.sinks.values.to(high)
    return finish(y_BHTD, L_BHT, q_BHTD, parts, scale).to(q_BHTD.dtype), L_BHT


def _forward_blocks(
    q: Tensor, k: Tensor, v: Tensor, first_key: Tensor | None, scale: float, score: Score
) -> tuple[Tensor, Tensor]:
    """o (B, H, T, D) and L (B, H, T), which is empty for sigmoid."""
    o, L = _outputs(q, score)
    score = _per_head(score, q, k)
    k, v = k.contiguous(), v.contiguous()
    for rows, keys, first in _blocks(q, k, first_key):
        S, count = _scores(q, k, first, rows, keys, scale, score)
        P, L_b = weights(score, S, count)
        if L_b is not None:
            L[:, :, rows] = L_b.view(q[:, :, rows].shape[:3])
        o[:, :, rows] = (P.to(v.dtype).flatten(2, 3) @ v[:, :, keys]).view(q[:, :, rows].shape)
    return o, L


def _backward_blocks(
    dO: Tensor,
    dL: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    L: Tensor,
    first_key: Tensor | None,
    scale: float,
    score: Score,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and the gradient of the offset (H,), which is empty for all but elastic."""
    high = wide(q.dtype)
    dq = _outputs(q, score)[0]
    d_offset = _offset_like(q, score)
    score = _per_head(score, q, k)
    k, v = k.contiguous(), v.contiguous()
    dk, dv = (torch.zeros_like(x, dtype=high) for x in (k, v))
    for rows, keys, first in _blocks(q, k, first_key):
        q_b, dO_b = _grouped(q[:, :, rows], k), _grouped(dO[:, :, rows], k)
        S, count = _scores(q, k, first, rows, keys, scale, score)
        dP = (dO_b @ v[:, :, keys].transpose(-1, -2)).to(high).view(S.shape)
        L_b, delta = None, S.new_zeros(())
        if not isinstance(score, Sigmoid):
            L_b = L[:, :, rows].reshape(*S.shape[:4], 1)
        if isinstance(score, Softmax | Softpick):
            delta = (dO[:, :, rows].to(high) * o[:, :, rows]).sum(-1).view(*S.shape[:4], 1)
        if isinstance(score, Softpick):  # with one key P does not depend on S, and 1 / |S| would multiply the rounding
            several = (count > 1).to(high)
            dP, delta = dP.mul_(several), delta * several
        if dL is not None:
            delta = delta - dL[:, :, rows].reshape(*S.shape[:4], 1)
        P, dS, d_shift = gradients(score, S, dP, L_b, delta, count)
        if d_shift is not None:
            d_offset += d_shift.sum((0, 3, 4)).flatten()
        dv[:, :, keys] += P.to(v.dtype).flatten(2, 3).transpose(-1, -2) @ dO_b
        dS = dS.mul_(scale).to(k.dtype).flatten(2, 3)
        dq[:, :, rows] = (dS @ k[:, :, keys]).view(q[:, :, rows].shape)
        dk[:, :, keys] += dS.transpose(-1, -2) @ q_b
    return dq, dk.to(k.dtype), dv.to(v.dtype), d_offset


def _outputs(q: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """Empty o, laid out as (B, T, H, D) so that the heads are joined without a copy, and empty L."""
    B, H, T, D = q.shape
    L = q.new_empty(0 if isinstance(score, Sigmoid) else (B, H, T), dtype=wide(q.dtype))
    return q.new_empty(B, T, H, D).transpose(1, 2), L


def _offset_like(q: Tensor, score: Score) -> Tensor:
    return q.new_zeros(q.shape[1] if isinstance(score, Elastic) else 0, dtype=wide(q.dtype))


def _per_head(score: Score, q: Tensor, k: Tensor) -> Score:
    """The score with an offset that broadcasts against scores (B, G, r, b, s)."""
    if isinstance(score, Elastic):
        return replace(score, offset=score.offset.to(wide(q.dtype)).view(k.shape[1], -1, 1, 1))
    return score


def _blocks(q: Tensor, k: Tensor, first_key: Tensor | None) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Yield (rows, keys, first key of each row): slices that hold every key which a row of the block may see."""
    T, S = q.shape[2], k.shape[2]
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        first = None if first_key is None else first_key[:, start:stop]
        # Reading the smallest first key is free on the CPU; on another device it would wait for the queue.
        low = int(first.min().clamp(0, S - T + start)) if first is not None and first.is_cpu else 0
        yield slice(start, stop), slice(low, S - T + stop), first


def _grouped(x_BHbD: Tensor, k_BGSD: Tensor) -> Tensor:
    """(B, H, b, D) -> (B, G, r·b, D): the heads that share a key head become more rows of it."""
    B, _, _, D = x_BHbD.shape
    return x_BHbD.reshape(B, k_BGSD.shape[1], -1, D)


def _scores(
    q: Tensor, k: Tensor, first: Tensor | None, rows: slice, keys: slice, scale: float, score: Score
) -> tuple[Tensor, Tensor]:
    """S (B, G, r, b, s): τ q·k, soft-capped where asked for, −∞ where not visible; and n_i >= 1, for a row's keys."""
    B, G = k.shape[:2]
    b, s = rows.stop - rows.start, keys.stop - keys.start
    S = (_grouped(q[:, :, rows], k) @ k[:, :, keys].transpose(-1, -2)).to(wide(q.dtype)).mul_(scale)
    S = cap_(S, score).view(B, G, -1, b, s)
    # Only the last b keys can lie in the future of a row of the block.
    future = torch.ones(b, b, dtype=torch.bool, device=k.device).triu(1)
    S[..., s - b :].masked_fill_(future, -torch.inf)
    count = torch.arange(keys.stop - b + 1, keys.stop + 1, device=k.device)[:, None]  # (b, 1): n_i without first keys
    if first is not None:
        key = torch.arange(keys.start, keys.stop, device=k.device)
        S.masked_fill_((key < first[..., None])[:, None, None], -torch.inf)
        count = (count - first[:, None, None, :, None]).clamp_min(1)
    return S, count.to(S.dtype)


@torch.library.custom_op(f"{NAMESPACE}::forward", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first_key: Tensor | None,
    offset: Tensor | None,
    scale: float,
    family: str,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:
    with without_autocast(q.device.type):
        return _forward_blocks(q, k, v, first_key, scale, unpack(family, numbers, offset))


@torch.library.custom_op(f"{NAMESPACE}::backward", mutates_args=())
def _backward(
    dO: Tensor,
    dL: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    L: Tensor,
    first_key: Tensor | None,
    offset: Tensor | None,
    scale: float,
    family: str,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with without_autocast(q.device.type):
        return _backward_blocks(dO, dL, q, k, v, o, L, first_key, scale, unpack(family, numbers, offset))


@_forward.register_fake
def _(q: Any, k: Any, v: Any, first_key: Any, offset: Any, scale: Any, family: Any, numbers: Any) -> Any:
    return _outputs(q, unpack(family, numbers, offset))


@_backward.register_fake
def _(dO: Any, dL: Any, q: Any, k: Any, v: Any, o: Any, L: Any, first_key: Any, offset: Any, *score: Any) -> Any:
    _, family, numbers = score
    unpacked = unpack(family, numbers, offset)
    return _outputs(q, unpacked)[0], k.new_empty(k.shape), v.new_empty(v.shape), _offset_like(q, unpacked)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, first_key, offset, *ctx.arguments = inputs
    ctx.family = ctx.arguments[1]
    ctx.save_for_backward(q, k, v, *output, first_key, offset)


def _differentiate(ctx: Any, dO: Tensor, dL: Tensor | None) -> Any:
    *tensors, offset = ctx.saved_tensors
    dL = None if ctx.family == "sigmoid" else dL
    dq, dk, dv, d_offset = _backward(dO, dL, *tensors, offset, *ctx.arguments)
    return dq, dk, dv, None, None if offset is None else d_offset.to(offset.dtype), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
