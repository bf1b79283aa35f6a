"""Every kind of `Parts`, made from one generator, and the formulas of the mathematics written out once more, densely.

The oracle below shares no code with `kernels`: it builds the whole score matrix in float64 and leaves the gradients
to autograd.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import (
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


@dataclass(frozen=True)
class Case:
    """What a variant is made of; every field may be combined with every other, but a score that is not softmax (plain
    or with a soft-cap) with neither sinks nor a context-dependent vector."""

    sinks: str = ""  # logit, logit_row, constant, key, key_value, key_value4
    added: str = ""  # fixed, context
    gate: str = ""  # row, row2, element, element2
    score: str = ""  # softcap, sigmoid, softpick, clipped, clipped_row, elastic

    def __str__(self) -> str:
        return "+".join(filter(None, [self.score, self.sinks, self.added, self.gate])) or "softmax"


VARIANTS = [
    Case(),
    Case(added="fixed"),
    Case(added="context"),
    Case(sinks="key_value"),
    Case(sinks="key_value4"),
    Case(sinks="key"),
    Case(sinks="logit"),
    Case(sinks="logit_row"),
    Case(sinks="constant"),
    Case(gate="row"),
    Case(gate="row2"),
    Case(gate="element"),
    Case(gate="element2"),
]
COMBINATIONS = [
    Case(sinks="logit", gate="row"),
    Case(sinks="logit", added="context"),
    Case(sinks="key_value", gate="row2"),
    Case(sinks="key_value4", gate="element2"),
    Case(sinks="key", gate="element"),
    Case(added="fixed", gate="row"),
    Case(added="context", gate="row2"),
    Case(added="context", gate="element"),
    Case(sinks="key_value4", added="context", gate="row"),
    Case(sinks="logit_row", added="fixed", gate="element2"),
]
SIGMOID = [
    Case(score="sigmoid"),
    Case(score="sigmoid", gate="row"),
    Case(score="sigmoid", added="fixed", gate="element2"),
]
FAMILIES = [
    Case(score="softcap"),
    Case(score="softcap", sinks="key_value", added="context", gate="row"),
    Case(score="softpick"),
    Case(score="softpick", added="fixed", gate="row2"),
    Case(score="clipped"),
    Case(score="clipped", gate="element"),
    Case(score="clipped_row"),
    Case(score="elastic"),
    Case(score="elastic", added="fixed", gate="row"),
]  # with a normaliser, and not for the vendor's operator


@dataclass
class Inputs:
    """q, k, v and a variant's parts, and the same tensors as a flat list for gradients."""

    q: Tensor
    k: Tensor
    v: Tensor
    parts: Parts

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    def learned(self) -> list[Tensor]:
        parts = self.parts
        owners = [x for x in (parts.score, parts.sinks, parts.added, parts.gate) if x is not None]
        return [t for x in owners for t in vars(x).values() if isinstance(t, Tensor) and t.requires_grad]

    def wrt(self) -> list[Tensor]:
        return [*self.qkv, *self.learned()]


def make(
    case: Case,
    *,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    length: int = 33,
    head_dim: int = 8,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    sink_shift: float = 0.0,
    gate_shift: float = 0.0,
) -> Inputs:
    """q, k, v laid out as a projection leaves them, (B, T, H, D), and the learned tensors in float32 or wider."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape: int, shift: float = 0.0, dtype: torch.dtype = wide) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64) + shift
        return x.to(dtype).requires_grad_()

    B, H, G, T, D = batch, heads, kv_heads, length, head_dim
    q, k, v = (draw(B, T, heads_, D, dtype=dtype).transpose(1, 2) for heads_ in (H, G, G))
    sinks: SinkLogits | SinkSlots | None = None
    match case.sinks:
        case "logit":
            sinks = SinkLogits(draw(H, shift=sink_shift))
        case "logit_row":
            sinks = SinkLogits(draw(B, H, T, shift=sink_shift))
        case "constant":
            sinks = SinkLogits(torch.full((H,), sink_shift, dtype=wide))
        case "key":
            sinks = SinkSlots(draw(H, 1, D))
        case "key_value":
            sinks = SinkSlots(draw(H, 1, D), draw(H, 1, D))
        case "key_value4":
            sinks = SinkSlots(draw(H, 4, D), draw(H, 4, D))
    added = None
    if case.added:
        added = AddedVector(draw(H, D), draw(H, D) if case.added == "context" else None)
    gate: RowGate | ElementGate | None = None
    span = 2.0 if case.gate.endswith("2") else 1.0
    if case.gate.startswith("row"):
        gate = RowGate(draw(B, T, H, shift=gate_shift).transpose(1, 2), span)
    elif case.gate.startswith("element"):
        gate = ElementGate(draw(B, T, H, D, shift=gate_shift).transpose(1, 2), span)
    score: Softmax | Sigmoid | Softpick | Clipped | Elastic = Softmax()
    match case.score:
        case "softcap":
            score = Softmax(softcap=1.5)
        case "sigmoid":
            score = Sigmoid(-math.log(length))
        case "softpick":
            score = Softpick()
        case "clipped":
            score = Clipped(-1 / length)
        case "clipped_row":
            score = Clipped(-0.7, zeta=1.2, per_row=True)  # the first row lies above 1
        case "elastic":
            score = Elastic(draw(H))  # of both signs
    return Inputs(q, k, v, Parts(score, sinks, gate, added))


def dense(inputs: Inputs, first_key: Tensor | None = None, scale: float | None = None) -> tuple[Tensor, Tensor | None]:
    """y and L of attention-math's formulas in float64: probabilities over (keys, slots), then the epilogue."""
    q, k, v = (x.double() for x in inputs.qkv)
    parts = inputs.parts
    B, H, T, D = q.shape
    k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    tau = D**-0.5 if scale is None else scale
    S = torch.einsum("bhid,bhjd->bhij", q, k) * tau
    i, j = torch.arange(T)[:, None], torch.arange(T)[None]
    allowed = (j <= i).expand(B, 1, T, T)
    if first_key is not None:
        allowed = allowed & (j >= first_key[:, :, None])[:, None]
    L = None
    score = parts.score
    if isinstance(score, Sigmoid):
        y = torch.where(allowed, 1 / (1 + torch.exp(-(S + score.bias))), 0) @ v
    elif isinstance(score, Softpick):
        difference = torch.where(allowed, torch.expm1(S), 0)
        total = difference.abs().sum(-1)
        y, L = difference.relu() / total[..., None] @ v, total.log()
    elif isinstance(score, Clipped | Elastic):
        S, seen = S.masked_fill(~allowed, -torch.inf), allowed.sum(-1, keepdim=True).double()
        p, L = torch.softmax(S, dim=-1), torch.logsumexp(S, dim=-1)
        if isinstance(score, Elastic):
            p = (p + score.offset.double()[:, None, None] / seen).clamp_min(0)
        else:
            gamma = score.gamma / seen if score.per_row else score.gamma
            p = ((score.zeta - gamma) * p + gamma).clamp(0, 1)
        y = torch.where(allowed, p, 0) @ v
    else:
        if score.softcap is not None:
            S = score.softcap * torch.tanh(S / score.softcap)
        S = S.masked_fill(~allowed, -torch.inf)
        columns, values = [S], [v]
        if isinstance(parts.sinks, SinkLogits):
            s = parts.sinks.logits.double()
            columns.append((s[:, None].expand(B, H, T) if s.dim() == 1 else s)[..., None])
            values.append(torch.zeros(B, H, 1, D, dtype=torch.float64))
        elif parts.sinks is not None:
            slots = parts.sinks.keys.double()
            columns.append(torch.einsum("bhid,hrd->bhir", q, slots) * tau)
            slot_values = torch.zeros_like(slots) if parts.sinks.values is None else parts.sinks.values.double()
            values.append(slot_values.expand(B, *slot_values.shape))
        logits = torch.cat(columns, dim=-1)
        y, L = torch.softmax(logits, dim=-1) @ torch.cat(values, dim=2), torch.logsumexp(logits, dim=-1)
    if parts.added is not None:
        weight = torch.ones(B, H, T, dtype=torch.float64)
        if parts.added.key is not None:
            weight = torch.sigmoid(torch.einsum("bhid,hd->bhi", q, parts.added.key.double()) * tau - L)
        y = y + weight[..., None] * parts.added.vector.double()[:, None]
    if parts.gate is not None:
        g = parts.gate.span * torch.sigmoid(parts.gate.logits.double())
        y = y * (g[..., None] if isinstance(parts.gate, RowGate) else g)
    return y, L


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative error in the Euclidean norm; the absolute one where the expected tensor is 0 but for rounding.

    inf for a NaN, or an infinity in the wrong place: `max` over errors would pass a NaN by.
    """
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = torch.where(actual == expected, 0, actual - expected)
    if not difference.isfinite().all():
        return math.inf
    size = float(expected.masked_fill(expected.isinf(), 0).norm())
    return float(difference.norm()) / (size if size > 1e-14 else 1.0)
