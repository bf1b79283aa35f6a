"""The specification: every attention variant as its plain formula, in any dtype, with a dense score matrix.

What the fast back ends compute is what this file says. Autograd differentiates it, so it specifies the gradients too.
Half precision is computed as written, in half precision; sinks, gates and added vectors in at least float32.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head size, n slots. S >= T; the last query
sees the last key, so a block of rows, or a decoding step with cached keys, uses the same formula as a whole sequence.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .parts import Clipped, Elastic, ElementGate, Parts, RowGate, Sigmoid, SinkLogits, SinkSlots, Softmax, Softpick


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of row quantities (L, sinks, gates): float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Autocast off, on devices that have it at all ("meta" has not)."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def visible(queries: int, keys: int, first_key_BT: Tensor | None, device: torch.device) -> Tensor:
    """True where a query sees a key: first_key_i … i. (T, S), or (B, 1, T, S) with a first key for each row."""
    last_T1 = torch.arange(keys - queries, keys, device=device)[:, None]
    key_S = torch.arange(keys, device=device)
    seen_TS = key_S <= last_T1
    if first_key_BT is None:
        return seen_TS
    return seen_TS & (key_S >= first_key_BT[:, None, :, None])


def sink_logits(q_BHTD: Tensor, sinks: SinkLogits | SinkSlots, scale: float) -> Tensor:
    """The logits of the explicit sinks of every row: (B, H, T, n), n = 1 for `SinkLogits`."""
    B, H, T, _ = q_BHTD.shape
    high = wide(q_BHTD.dtype)
    if isinstance(sinks, SinkLogits):
        logits = sinks.logits.to(high)
        return (logits[:, None] if logits.dim() == 1 else logits).expand(B, H, T)[..., None]
    return torch.einsum("bhtd,hnd->bhtn", q_BHTD.to(high), sinks.keys.to(high)) * scale


def gate_values(gate: RowGate | ElementGate, dtype: torch.dtype) -> Tensor:
    """span · σ(z): (B, H, T, 1) for a row gate, (B, H, T, D) for an element gate."""
    value = gate.span * torch.sigmoid(gate.logits.to(wide(dtype)))
    return value[..., None] if isinstance(gate, RowGate) else value


def reference(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    parts: Parts,
    *,
    first_key_BT: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """y (B, H, T, D) in q's dtype and L (B, H, T), the log of the normaliser: sinks in, gate out; None for sigmoid.

    A row with no visible key and no sink has y = 0 (before an added vector) and L = −inf.
    """
    H, G, T, S = q_BHTD.shape[1], k_BGSD.shape[1], q_BHTD.shape[2], k_BGSD.shape[2]
    high = wide(q_BHTD.dtype)
    k_BHSD, v_BHSD = (x.repeat_interleave(H // G, dim=1) for x in (k_BGSD, v_BGSD))
    seen = visible(T, S, first_key_BT, q_BHTD.device)
    S_BHTS = (q_BHTD @ k_BHSD.transpose(-1, -2)).to(high) * scale

    L_BHT = None
    if isinstance(parts.score, Sigmoid):
        P_BHTS = torch.sigmoid(S_BHTS + parts.score.bias).masked_fill(~seen, 0)
        y_BHTD = (P_BHTS.to(v_BHSD.dtype) @ v_BHSD).to(high)
    elif isinstance(parts.score, Softpick):
        P_BHTS, L_BHT = softpick(S_BHTS, seen)
        y_BHTD = (P_BHTS.to(v_BHSD.dtype) @ v_BHSD).to(high)
    else:
        if isinstance(parts.score, Softmax) and parts.score.softcap is not None:
            S_BHTS = parts.score.softcap * torch.tanh(S_BHTS / parts.score.softcap)
        logits_BHTX = S_BHTS.masked_fill(~seen, -torch.inf)
        if parts.sinks is not None:
            logits_BHTX = torch.cat([logits_BHTX, sink_logits(q_BHTD, parts.sinks, scale)], dim=-1)
        # An empty row is taken out before exp and put back as P = 0, L = −inf: its gradient is then 0, not NaN.
        empty_BHT1 = logits_BHTX.amax(-1, keepdim=True) == -torch.inf
        L_BHT1 = logits_BHTX.masked_fill(empty_BHT1, 0).logsumexp(-1, keepdim=True)
        P_BHTX = (logits_BHTX - L_BHT1).exp().masked_fill(empty_BHT1, 0)
        L_BHT = L_BHT1.masked_fill(empty_BHT1, -torch.inf)[..., 0]
        if isinstance(parts.score, Clipped | Elastic):
            P_BHTX = clip(P_BHTX, seen, parts.score)
        y_BHTD = (P_BHTX[..., :S].to(v_BHSD.dtype) @ v_BHSD).to(high)
        if isinstance(parts.sinks, SinkSlots) and parts.sinks.values is not None:
            y_BHTD = y_BHTD + P_BHTX[..., S:] @ parts.sinks.values.to(high)
    return finish(y_BHTD, L_BHT, q_BHTD, parts, scale).to(q_BHTD.dtype), L_BHT


def softpick(S_BHTS: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """P = relu(e^S − 1) / Σ |e^S − 1| over the visible keys, and L = ln Σ |e^S − 1|; a row whose sum is 0: 0 and −inf.

    Everything is divided by e^pivot, pivot = max(0, max S), and |e^S − 1| = e^max(S, 0) (1 − e^−|S|): no overflow for
    large scores, no pivot below 0 for a row of very negative ones, no cancellation for small ones.
    """
    S_BHTS = S_BHTS.masked_fill(~seen, 0)  # a hidden key then adds |e^0 − 1| = 0
    pivot_BHT1 = S_BHTS.detach().amax(-1, keepdim=True).clamp_min(0)
    size_BHTS = (S_BHTS.clamp_min(0) - pivot_BHT1).exp() * -torch.expm1(-S_BHTS.abs())
    total_BHT1 = size_BHTS.sum(-1, keepdim=True)
    empty_BHT1 = total_BHT1 == 0
    total_BHT1 = total_BHT1.masked_fill(empty_BHT1, 1)
    L_BHT1 = (pivot_BHT1 + total_BHT1.log()).masked_fill(empty_BHT1, -torch.inf)
    P_BHTS = size_BHTS.masked_fill(S_BHTS <= 0, 0) / total_BHT1
    # With one key P is 1 or 0 whatever the score: without a gradient, whose rounding 1 / |S| would multiply.
    single_T1 = seen.sum(-1, keepdim=True) == 1
    return torch.where(single_T1, (S_BHTS > 0).to(P_BHTS.dtype), P_BHTS), L_BHT1[..., 0]


def clip(P_BHTS: Tensor, seen: Tensor, score: Clipped | Elastic) -> Tensor:
    """The softmax's P, stretched or shifted, then cut at 0 (and at 1 for `Clipped`); n_i counts the visible keys."""
    n_T1 = seen.sum(-1, keepdim=True).clamp_min(1).to(P_BHTS.dtype)
    if isinstance(score, Elastic):
        return (P_BHTS + score.offset.to(P_BHTS.dtype)[:, None, None] / n_T1).relu().masked_fill(~seen, 0)
    gamma = score.gamma / n_T1 if score.per_row else score.gamma
    return ((score.zeta - gamma) * P_BHTS + gamma).relu().clamp_max(1)


def finish(y_BHTD: Tensor, L_BHT: Tensor | None, q_BHTD: Tensor, parts: Parts, scale: float) -> Tensor:
    """The added vector, then the gate, of rows y whose sinks are already in y and L. Not cast back to q's dtype."""
    high = wide(q_BHTD.dtype)
    if parts.added is not None:
        vector_H1D = parts.added.vector.to(high)[:, None]
        if parts.added.key is None or L_BHT is None:
            y_BHTD = y_BHTD + vector_H1D
        else:
            logit_BHT = (q_BHTD.to(high) * parts.added.key.to(high)[:, None]).sum(-1) * scale
            y_BHTD = y_BHTD + torch.sigmoid(logit_BHT - L_BHT)[..., None] * vector_H1D
    if parts.gate is not None:
        y_BHTD = y_BHTD * gate_values(parts.gate, high)
    return y_BHTD
