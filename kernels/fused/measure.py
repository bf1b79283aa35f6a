"""The statistics of `kernels.statistics` by the fused kernels: rows in the forward's loop, keys in one more."""

import torch
from torch import Tensor

from ..parts import Parts, SinkLogits, Softmax
from ..reference import gate_values, sink_logits
from ..statistics import EARLY, AttentionStatistics
from . import launch
from .operators import variant_of


def measure(
    q_BHTD: Tensor, k_BGTD: Tensor, parts: Parts, first_key_BT: Tensor | None, scale: float, prefix: int
) -> AttentionStatistics:
    """What `kernels.statistics` returns. prefix > 0 with softmax scores only, and without first keys."""
    B, H, T, _ = q_BHTD.shape
    early = min(T - prefix, EARLY)
    gate_BHR = q_BHTD.new_ones(B, H, T, dtype=torch.float32)
    if parts.gate is not None:
        gate_BHR = gate_values(parts.gate, torch.float32).mean(-1).float()
    gate_BHR = gate_BHR[:, :, prefix:].contiguous()

    # Slots and prefix keys weigh on a row as one logit does: the log of the sum of their exponentials.
    explicit = [] if parts.sinks is None else [sink_logits(q_BHTD, parts.sinks, scale)[:, :, prefix:]]
    q_BHRD, k_BGRD = q_BHTD[:, :, prefix:], k_BGTD[:, :, prefix:]
    if prefix:
        keys = k_BGTD[:, :, :prefix].float().repeat_interleave(H // k_BGTD.shape[1], dim=1)
        logits_BHRp = q_BHRD.float() @ keys.transpose(-1, -2) * scale
        if isinstance(parts.score, Softmax) and parts.score.softcap is not None:
            logits_BHRp = parts.score.softcap * torch.tanh(logits_BHRp / parts.score.softcap)
        explicit.append(logits_BHRp)
    sink_BHR = torch.cat(explicit, dim=-1).logsumexp(-1) if explicit else None
    bare = Parts(score=parts.score, sinks=None if sink_BHR is None else SinkLogits(sink_BHR))
    q, k, variant = variant_of(q_BHRD, k_BGRD, bare, first_key_BT, scale)

    with launch.on_device_of(q):
        lse_BHR, rows = launch.measure(q, k, variant)
    largest, entropy, support, zeros, first, argmax, total = rows.unbind(0)
    softmax = isinstance(parts.score, Softmax)
    early_BHR = torch.ones_like(total) if softmax else torch.where(total >= torch.finfo(total.dtype).tiny, 1 / total, 0)
    with launch.on_device_of(q):
        received, gated, received_early = launch.received(q, k, variant, lse_BHR, gate_BHR, early_BHR, early)
    sink_mass = torch.zeros_like(total)
    if sink_BHR is not None:
        sink_mass = (sink_BHR - lse_BHR.masked_fill(lse_BHR == -torch.inf, 0)).exp()
    return AttentionStatistics(
        lse=lse_BHR if lse_BHR.numel() else None,
        max_logit=largest,
        entropy=entropy,
        support=support,
        zeros=zeros,
        dead=zeros == 1,
        first_key=first,
        sink_mass=sink_mass,
        received=received,
        received_gated=gated,
        received64=received_early[..., :early],
        gate=gate_BHR,
        argmax_first=argmax.bool(),
    )
