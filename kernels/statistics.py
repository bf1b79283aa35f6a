"""Attention statistics of any variant, without a T×T matrix: blocks of query rows against all keys they may see.

A (B, H, T, T) attention map is never built; memory is O(T · block). Nothing here takes part in a gradient.
Formulas: sinks are read raw (before a gate) and gate-weighted, because a closed gate makes a raw sink harmless.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .backends import statistics_backend
from .checks import check
from .parts import Elastic, Parts, Score, Sigmoid, SinkLogits, SinkSlots, Softmax
from .reference import gate_values, sink_logits, visible, wide, without_autocast
from .scores import cap_, weights

EARLY = 64  # queries that `received64` counts: the length that the sink rate of 2410.10781 is defined at


@dataclass(frozen=True)
class AttentionStatistics:
    """What the rows of one attention layer do. Float32 (float64 for float64 inputs), no gradient.

    Rows are the R = T − prefix real queries, real keys those at index >= prefix. A_ij is the weight that row i gives
    to key j, as its score family defines it (parts.py): exp(S_ij − L_i) with the sinks in L for softmax. Before the
    gate where not said otherwise. Only softmax without sinks and prefix has rows that sum to one; nothing is divided by
    a row's sum where it is not said.
    """

    lse: Tensor | None
    """(B, H, R) L_i, natural log of the normaliser, sinks in; None for sigmoid."""
    max_logit: Tensor
    """(B, H, R) max_j τ q_i·k_j over visible real keys, before a soft-cap and any sink; −inf without such a key."""
    entropy: Tensor
    """(B, H, R) nats, of the row's weights over real keys divided by their sum; 0 where that is 0."""
    support: Tensor
    """(B, H, R) (Σ_j A_ij)² / Σ_j A_ij² over real keys: the number of keys with a weight, as if all were equal; 0 where
    every weight is 0. Sinks are not counted."""
    zeros: Tensor
    """(B, H, R) share of the row's visible real keys whose weight is exactly 0; 0 where none is visible. Softmax and
    sigmoid weights are never 0: those that the dtype rounds to 0 are not counted."""
    dead: Tensor
    """(B, H, R) bool: some real key is visible and every one has a weight of exactly 0 (never softmax and sigmoid)."""
    first_key: Tensor
    """(B, H, R) A_i,first: first_key_i where given, else key `prefix`. Not renormalised."""
    sink_mass: Tensor
    """(B, H, R) weight on explicit sinks: slots, sink logit and prefix keys; zeros where there are none."""
    received: Tensor
    """(B, H, R) Σ_i A_ij for each real key j."""
    received_gated: Tensor
    """(B, H, R) Σ_i g_i A_ij."""
    received64: Tensor
    """(B, H, min(R, 64)) Σ_i A_ij over the first min(R, 64) queries. Rows of every score but softmax are divided by
    their sum over real keys first (a dead row stays 0)."""
    gate: Tensor
    """(B, H, R) g_i, span included; the mean over channels for an element gate; ones without a gate."""
    argmax_first: Tensor
    """(B, H, R) bool: no visible real key has a larger weight than the first key; false for a dead row."""


@torch.no_grad()
def statistics(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    parts: Parts | None = None,
    *,
    first_key_BT: Tensor | None = None,
    scale: float | None = None,
    prefix: int = 0,
    block: int = 128,
    backend: str = "auto",
) -> AttentionStatistics:
    """Measure one attention layer. Arguments are those of `attend`; T queries and as many keys.

    prefix: how many leading positions are a learned prefix (a sink token): their queries are left out, the weight on
    their keys counts as explicit sink mass. It cannot be combined with first_key_BT.
    backend: "triton", "blockwise" (PyTorch, `block` query rows at a time), or "auto": triton on a GPU where it can.
    Autocast is off inside.
    Raises ValueError for shapes and dtypes that `attend` refuses too, and for what a back end cannot compute.
    """
    parts = Parts() if parts is None else parts
    _check(q_BHTD, k_BGTD, parts, first_key_BT, scale, prefix, block)
    scale = q_BHTD.shape[-1] ** -0.5 if scale is None else scale
    with without_autocast(q_BHTD.device.type):
        if statistics_backend(backend, q_BHTD, parts, prefix) == "triton":
            from .fused import measure

            return measure(q_BHTD, k_BGTD, parts, first_key_BT, scale, prefix)
        return _statistics(q_BHTD, k_BGTD, parts, first_key_BT, scale, prefix, block)


def _check(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    parts: Parts,
    first_key_BT: Tensor | None,
    scale: float | None,
    prefix: int,
    block: int,
) -> None:
    check(q_BHTD, k_BGTD, None, parts, first_key_BT, scale)
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    T = q_BHTD.shape[2]
    if k_BGTD.shape[2] != T:
        raise ValueError(f"statistics needs as many keys as queries, not {k_BGTD.shape[2]} keys and {T} queries")
    if not 0 <= prefix < T:
        raise ValueError(f"prefix must be between 0 and {T - 1} (fewer than the {T} positions), not {prefix}")
    if prefix and first_key_BT is not None:
        raise ValueError("prefix and first_key_BT exclude each other: a row's one interval cannot hold both")


def _statistics(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    parts: Parts,
    first_key_BT: Tensor | None,
    scale: float,
    prefix: int,
    block: int,
) -> AttentionStatistics:
    B, H, T, _ = q_BHTD.shape
    G = k_BGTD.shape[1]
    high, R = wide(q_BHTD.dtype), T - prefix
    early = min(R, EARLY)
    q_BHTD, k_BHTD = q_BHTD.to(high), k_BGTD.to(high).repeat_interleave(H // G, dim=1)

    gate_BHT = q_BHTD.new_ones(B, H, T)
    if parts.gate is not None:
        gate_BHT = gate_values(parts.gate, high).mean(-1).to(high)  # a row gate's last dimension is 1
    rows: dict[str, list[Tensor]] = defaultdict(list)
    received_BHR, gated_BHR = q_BHTD.new_zeros(B, H, R), q_BHTD.new_zeros(B, H, R)
    received64_BHE = q_BHTD.new_zeros(B, H, early)

    score = parts.score
    if isinstance(score, Elastic):
        score = replace(score, offset=score.offset.to(high)[:, None, None])
    q_BHTD = q_BHTD * scale
    for start in range(prefix, T, block):
        stop = min(start + block, T)
        q_BHbD, n = q_BHTD[:, :, start:stop], stop - prefix
        first_Bb = None if first_key_BT is None else first_key_BT[:, start:stop]
        seen = visible(stop - start, stop, first_Bb, q_BHTD.device)
        S_BHbS = (q_BHbD @ k_BHTD[:, :, :stop].transpose(-1, -2)).masked_fill_(~seen, -torch.inf)
        sinks_BHbX = None
        if parts.sinks is not None:
            sinks_BHbX = sink_logits(q_BHbD, _block_of(parts.sinks, start, stop), 1.0)
        max_BHb = S_BHbS[..., prefix:].amax(-1)
        rows["max_logit"].append(max_BHb)
        if isinstance(score, Softmax) and score.softcap is not None:
            max_BHb = cap_(S_BHbS, score).masked_fill_(~seen, -torch.inf)[..., prefix:].amax(-1)
        first_key_Bb = torch.zeros_like(gate_BHT[:, 0, start:stop], dtype=torch.long) if first_Bb is None else first_Bb
        index_BHb1 = first_key_Bb[:, None, :, None].expand(B, H, -1, 1).clamp(0, n - 1).long()
        if isinstance(score, Softmax | Sigmoid):
            found = _in_logarithms(score, S_BHbS, sinks_BHbX, max_BHb, index_BHb1, prefix)
            zeros_BHb = torch.zeros_like(max_BHb)
        else:
            visible_b1 = seen.sum(-1, keepdim=True).to(high)
            found = _as_they_are(score, S_BHbS, index_BHb1, prefix, visible_b1)
            real_b = visible_b1[..., 0] - prefix
            zeros_BHb = (real_b - found.E.count_nonzero(-1)) / real_b.clamp_min(1)
        E_BHbn, factor_BHb = found.E, found.factor

        # Whatever is summed over keys or queries below is a product with these E: no further pass over the map.
        total_BHb = E_BHbn.sum(-1)
        share_BHb = 1 / total_BHb.clamp_min(torch.finfo(high).tiny)
        rows["entropy"].append((total_BHb.log() - found.dots * share_BHb).masked_fill(total_BHb == 0, 0))
        rows["support"].append((total_BHb / _one_for_zero(torch.linalg.vector_norm(E_BHbn, dim=-1))).square())
        rows["zeros"].append(zeros_BHb)
        rows["dead"].append(zeros_BHb == 1)
        rows["argmax_first"].append(found.argmax_first)
        if found.lse is not None:
            rows["lse"].append(found.lse)
        rows["sink_mass"].append(found.sink_mass)
        rows["first_key"].append(E_BHbn.gather(-1, index_BHb1)[..., 0] * factor_BHb)

        gated_BHb = gate_BHT[:, :, start:stop] * factor_BHb
        sums_BH2n = torch.stack([factor_BHb, gated_BHb], dim=-2) @ E_BHbn
        received_BHR[..., :n] += sums_BH2n[..., 0, :]
        gated_BHR[..., :n] += sums_BH2n[..., 1, :]
        if (count := prefix + early - start) > 0:
            early_BHb = factor_BHb if isinstance(score, Softmax) else share_BHb
            counted_BHe = (early_BHb[..., None, :count] @ E_BHbn[..., :count, :early])[..., 0, :]
            received64_BHE[..., : counted_BHe.shape[-1]] += counted_BHe

    joined = {name: torch.cat(blocks, dim=-1) for name, blocks in rows.items()}
    return AttentionStatistics(
        lse=joined.pop("lse", None),
        received=received_BHR,
        received_gated=gated_BHR,
        received64=received64_BHE,
        gate=gate_BHT[:, :, prefix:],
        **joined,
    )


class _Weights(NamedTuple):
    """The weights of a block of rows: A_ij = factor_i E_ij over the n real keys that the block may see."""

    E: Tensor  # (B, H, b, n)
    factor: Tensor  # this and the rest (B, H, b)
    dots: Tensor  # Σ_j E ln E
    sink_mass: Tensor
    argmax_first: Tensor
    lse: Tensor | None


def _in_logarithms(
    score: Softmax | Sigmoid,
    S_BHbS: Tensor,
    sinks_BHbX: Tensor | None,
    max_BHb: Tensor,
    index_BHb1: Tensor,
    prefix: int,
) -> _Weights:
    """Softmax and sigmoid: E relative to the row's largest weight, so that a row whose mass is all in a sink has some.

    In place where it can be: fresh memory of the map's size costs more than the arithmetic.
    """
    explicit_BHbX, S_BHbn = S_BHbS[..., :prefix], S_BHbS[..., prefix:]
    if sinks_BHbX is not None:
        explicit_BHbX = torch.cat([explicit_BHbX, sinks_BHbX], dim=-1)
    if isinstance(score, Sigmoid):
        S_BHbn = logsigmoid(S_BHbn.add_(score.bias))
        explicit_BHbX = logsigmoid(explicit_BHbX + score.bias)
        max_BHb = S_BHbn.amax(-1)
    d_BHbn = S_BHbn.sub_(_finite(max_BHb)[..., None])
    E_BHbn = d_BHbn.exp()
    argmax_first_BHb = (d_BHbn.gather(-1, index_BHb1)[..., 0] == 0) & (max_BHb > -torch.inf)
    dots_BHb = d_BHbn.clamp_min_(torch.finfo(d_BHbn.dtype).min).mul_(E_BHbn).sum(-1)  # 0 · −inf would be NaN
    if isinstance(score, Sigmoid):
        return _Weights(E_BHbn, max_BHb.exp(), dots_BHb, explicit_BHbX.exp().sum(-1), argmax_first_BHb, None)
    L_BHb = torch.cat([explicit_BHbX, (max_BHb + E_BHbn.sum(-1).log())[..., None]], dim=-1).logsumexp(-1)
    sink_mass_BHb = (explicit_BHbX - _finite(L_BHb)[..., None]).exp().sum(-1)
    return _Weights(E_BHbn, (max_BHb - _finite(L_BHb)).exp(), dots_BHb, sink_mass_BHb, argmax_first_BHb, L_BHb)


def _as_they_are(score: Score, S_BHbS: Tensor, index_BHb1: Tensor, prefix: int, visible_b1: Tensor) -> _Weights:
    """The other scores, whose weights may be exactly 0: E = A."""
    A_BHbS, L_BHb1 = weights(score, S_BHbS, visible_b1.clamp_min(1))
    assert L_BHb1 is not None
    A_BHbn = A_BHbS[..., prefix:]
    max_BHb = A_BHbn.amax(-1)
    argmax_first_BHb = (A_BHbn.gather(-1, index_BHb1)[..., 0] == max_BHb) & (max_BHb > 0)
    dots_BHb = -torch.special.entr(A_BHbn).sum(-1)
    sink_mass_BHb = A_BHbS[..., :prefix].sum(-1)
    return _Weights(A_BHbn, torch.ones_like(max_BHb), dots_BHb, sink_mass_BHb, argmax_first_BHb, L_BHb1[..., 0])


def _finite(log: Tensor) -> Tensor:
    """The logarithm with 0 in the place of −inf: what an empty row is divided by, so that its weights stay 0."""
    return log.masked_fill(log == -torch.inf, 0)


def _one_for_zero(size: Tensor) -> Tensor:
    """A divisor that is 1 where the size, and what it divides, is 0."""
    return size.masked_fill(size == 0, 1)


def _block_of(sinks: SinkLogits | SinkSlots, start: int, stop: int) -> SinkLogits | SinkSlots:
    """The sinks of the rows start … stop; only logits given for each query depend on the row."""
    if isinstance(sinks, SinkLogits) and sinks.logits.dim() == 3:
        return SinkLogits(sinks.logits[:, :, start:stop])
    return sinks
