"""What a metric reads where nothing has been learned: closed forms, and the random tokens of the second null.

A number without its null says little. Each metric has up to three: the value at initialisation (the probe at step 0),
the value on random tokens (`random_tokens`), and the closed forms below. These assume either uniform attention or
independent Gaussian entries, and one layer: the maximum over several layers lies slightly higher.
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist, fmean
from typing import Any

import torch
from torch import Tensor

from errors import InputError
from kernels.parts import Clipped, Elastic, Parts, Score, Sigmoid, SinkLogits, SinkSlots, Softmax, Softpick
from models import GPTConfig
from models.attention import AttentionShape, build

EULER = 0.5772156649015329
HALF_NORMAL_MEAN = math.sqrt(2 / math.pi)  # E|x|, x ~ N(0, 1)
HALF_NORMAL_MEDIAN = NormalDist().inv_cdf(0.75)  # the median of |x|
SINK_QUERIES = 64  # 2410.10781 measures the sink rate at T = 64


@dataclass(frozen=True)
class Setting:
    """The sizes that a closed form depends on.

    context: tokens a sequence, T. width: channels of the residual stream, C. sequences: of the probe batch.
    mlp_width: input features of the MLP's down projection. slots: explicit sinks a head (0: none), a learned logit
    or a prefix token counted as one each. score: what the mechanism makes of logits; None where that is not known.
    """

    context: int
    width: int
    sequences: int
    mlp_width: int
    slots: int = 0
    score: Score | None = field(default_factory=Softmax)


@torch.no_grad()
def setting(config: GPTConfig, attention: str | dict[str, Any], sequences: int) -> Setting:
    """The setting of a network with this attention, whose slots and score are read off its `parts`.

    Raises InputError for an attention that is unknown or cannot be imported.
    """
    shape = AttentionShape(config.width, config.heads, config.groups, config.head_dim, config.context)
    mechanism = build(attention, shape)
    slots, score = mechanism.prefix_tokens, None
    if mechanism.measurable():
        T, D = config.context, config.head_dim
        q_BHTD, k_BGTD = (torch.zeros(1, heads, T, D) for heads in (config.heads, config.groups))
        parts = mechanism.parts(q_BHTD, k_BGTD, torch.zeros(1, T, config.width))
        slots, score = slots + learned_slots(parts), parts.score
    return Setting(config.context, config.width, sequences, config.hidden, slots, score)


def learned_slots(parts: Parts) -> int:
    """Explicit sinks a head: the slots, or one for a sink logit."""
    if isinstance(parts.sinks, SinkSlots):
        return parts.sinks.keys.shape[1]
    return int(isinstance(parts.sinks, SinkLogits))


def even_weight(i: int, slots: int, score: Score) -> float:
    """The weight of one of i visible keys where no key is preferred: all logits, the slots' too, are 0.

    Softpick's is a mean: with logits symmetric about 0 half of the absolute mass is positive.
    """
    match score:
        case Softmax():
            return 1 / (slots + i)
        case Sigmoid(bias):
            return 1 / (1 + math.exp(-bias))
        case Softpick():
            return 1 / (2 * i)
        case Clipped(gamma, zeta, per_row):
            floor = gamma / i if per_row else gamma
            return min(1.0, max(0.0, (zeta - floor) / i + floor))
        case Elastic(offset):
            return fmean(max(0.0, (1 + tau) / i) for tau in offset.tolist())


def even_first(setting: Setting) -> float | None:
    """Mean over queries i = 1..T of the first key's even weight; H_T / T for softmax. None for an unknown score."""
    if setting.score is None:
        return None
    return fmean(even_weight(i, setting.slots, setting.score) for i in range(1, setting.context + 1))


def even_rows(parts: Parts, length: int, prefix: int = 0, first_key_BT: Tensor | None = None) -> Tensor:
    """The first key's even weight row by row, float64: (B, length) with first keys, (1, length) without.

    prefix: learned tokens before the sequence, which take their share as slots do.
    """
    slots = learned_slots(parts) + prefix
    weights = torch.tensor([even_weight(i, slots, parts.score) for i in range(1, length + 1)], dtype=torch.float64)
    if first_key_BT is None:
        return weights[None]
    before_BT = torch.arange(length, device=first_key_BT.device) - first_key_BT  # visible keys but itself
    return weights.to(first_key_BT.device)[before_BT]


def even_received(setting: Setting) -> list[float] | None:
    """Σ_{i>=k} of the even weight for each key k = 1..T: the mass that it receives. None for an unknown score."""
    if setting.score is None:
        return None
    received, tail = [], 0.0
    for i in range(setting.context, 0, -1):
        tail += even_weight(i, setting.slots, setting.score)
        received.append(tail)
    return received[::-1]


def harmonic_share(T: int) -> float:
    """H_T / T: the mean over queries i = 1..T of 1/i, which uniform causal attention puts on the first key."""
    return sum(1 / i for i in range(1, T + 1)) / T


def uniform_entropy(T: int) -> float:
    """ln(T!) / T nats: the mean over queries i = 1..T of ln i, the entropy of uniform causal attention."""
    return math.lgamma(T + 1) / T


def uniform_slot_mass(T: int, slots: int) -> float:
    """Mean over queries i = 1..T of n / (n + i): the mass of n slots whose logits equal those of the real keys."""
    return sum(slots / (slots + i) for i in range(1, T + 1)) / T


def half_normal_quantile(upper_tail: float) -> float:
    """x with P(|g| > x) = upper_tail for g ~ N(0, 1)."""
    return -NormalDist().inv_cdf(upper_tail / 2)


def gaussian_top1(n: int) -> float:
    """Expected largest |g| of n independent standard normals, within 0.5 % for n >= 1000.

    The maximum is nearly Gumbel, whose mean has the cumulative probability exp(−e^{−γ}): so it is the quantile of |g|
    at exp(−e^{−γ} / n).
    """
    return half_normal_quantile(-math.expm1(-math.exp(-EULER) / n))


def gaussian_kurtosis_token(C: int) -> float:
    """E[relu(b − 3)] of `kurtosis_token_context` for a token of C standard normals: 0.066 at 768, 0.139 at 128.

    b = E[x⁴]/s⁴ is taken as normal. Its mean is that of b₂ = m₄/m₂², 3 (C−1)/(C+1), with the unbiased variance in the
    denominator, (C−1)²/C², plus 6/C because the numerator is not centred; its variance is b₂'s,
    24 C (C−2)(C−3) / ((C+1)² (C+3)(C+5)), with the same factor. Simulation gives 0.066 and 0.140.
    """
    shrink = ((C - 1) / C) ** 2
    excess = 3 * (C - 1) / (C + 1) * shrink + 6 / C - 3
    std = shrink * math.sqrt(24 * C * (C - 2) * (C - 3) / ((C + 1) ** 2 * (C + 3) * (C + 5)))
    normal = NormalDist()
    return std * normal.pdf(excess / std) + excess * normal.cdf(excess / std)


def gaussian_column_max(rows: int, columns: int) -> float:
    """Largest over columns of max|w| / mean|w| for Gaussian entries; within 5 % from 128 rows."""
    return gaussian_top1(rows * columns) / HALF_NORMAL_MEAN


def random_tokens(vocab_size: int, sequences: int, context: int, *, seed: int = 0) -> Tensor:
    """(sequences, context) int64 token ids, uniform over the vocabulary, from a generator of its own.

    Raises InputError for a size below 1.
    """
    for name, size in (("vocab_size", vocab_size), ("sequences", sequences), ("context", context)):
        if size < 1:
            raise InputError(f"{name} = {size}: random tokens need at least 1")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (sequences, context), generator=generator)
