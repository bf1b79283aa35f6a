"""Do the three kinds of outlier sit in the same places? 2502.06415 says so and gives shares, but no definition.

Activations and weights share channels, activations and attention share positions. Definitions: docs/analysis.md.

Shapes: B sequences, T tokens, C width, L layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import kernels
from kernels import Parts
from outliers.access import Decoder
from outliers.access.decoder import CHUNK_TOKENS
from outliers.analysis.interventions import LENGTH, SEQUENCES
from outliers.analysis.numbers import Numbers
from outliers.attention import OUTLIER_SHARE

LARGEST = 3  # the size of the sets that need no threshold
PERMUTATIONS = 1000

Pair = tuple[Tensor, Tensor]  # two sets among the same N channels or positions, bool (N,)


@dataclass
class Seen:
    """By sequence, the largest over layers.

    by_token (B, T), by_channel (B, C): |h| over the mean |h| of its sequence and layer. by_key (B, T): the share of all
    queries' head-averaged attention that a key receives.
    """

    by_token: Tensor
    by_channel: Tensor
    by_key: Tensor | None


def consistency(decoder: Decoder, tokens_BT: Tensor, tau: float) -> Numbers:
    """Overlap and intersection over union of outlier sets, beside what permuting one of them gives."""
    numbers, seen = Numbers(), look(decoder, tokens_BT[:SEQUENCES, :LENGTH])
    fat_C = fat_channels(decoder)
    of_channels = seen.by_channel.amax(0)
    coded_C = of_channels > tau
    pairs = {("weight_activation", "largest"): [(top(of_channels, LARGEST), top(fat_C, LARGEST))]}
    if count := int(coded_C.sum()):
        pairs["weight_activation", "coded"] = [(coded_C, top(fat_C, count))]
    if seen.by_key is not None:
        both = list(zip(seen.by_token, seen.by_key, strict=True))
        pairs["activation_attention", "largest"] = [(top(a, 1), top(b, 1)) for a, b in both]
        marked = [(a > tau, b >= OUTLIER_SHARE) for a, b in both]
        if marked := [(a, b) for a, b in marked if a.any()]:
            pairs["activation_attention", "coded"] = marked
    for (metric, criterion), sets in pairs.items():
        for name, value in compare(sets).items():
            numbers.add(f"{metric}_{name}", value, statistic=criterion)
    return numbers


def look(decoder: Decoder, tokens_BT: Tensor) -> Seen:
    """One pass: block outputs and received attention, of real tokens."""
    T, layers = tokens_BT.shape[1], range(decoder.sizes.layers)
    tokens, channels, received = [], [], []
    for chunk_bT in tokens_BT.split(max(1, CHUNK_TOKENS // T)):
        by_token, by_channel, by_key = [], [], []

        def block(x_BTC: Tensor, by_token: list[Tensor] = by_token, by_channel: list[Tensor] = by_channel) -> None:
            a_BTC = x_BTC[:, -T:].float().abs()
            a_BTC = a_BTC / a_BTC.mean((1, 2), keepdim=True)
            by_token.append(a_BTC.amax(2))
            by_channel.append(a_BTC.amax(1))

        def attended(
            layer: int, q: Tensor, k: Tensor, v: Tensor, parts: Parts | None, by_key: list[Tensor] = by_key
        ) -> None:
            if parts is not None:
                stats = kernels.statistics(q, k, parts, prefix=decoder.sizes.prefix_tokens)
                by_key.append(stats.received.mean(1) / T)

        with decoder.hooked((("block_output", n, block) for n in layers), attended):
            decoder.nats(chunk_bT)
        tokens.append(torch.stack(by_token).amax(0))
        channels.append(torch.stack(by_channel).amax(0))
        if by_key:
            received.append(torch.stack(by_key).amax(0))
    return Seen(torch.cat(tokens), torch.cat(channels), torch.cat(received) if received else None)


def fat_channels(decoder: Decoder) -> Tensor:
    """(C,) for each channel of the residual stream, the largest |w| / mean |w of its column| among the weights of the
    down projections that write it, over layers."""
    found = []
    for layer in range(decoder.sizes.layers):
        a_CM = decoder.matrices(layer)["down"].float().abs()
        found.append((a_CM / (a_CM.mean(0) + 1e-8)).amax(1))
    return torch.stack(found).amax(0)


def top(values_N: Tensor, count: int) -> Tensor:
    """True at the largest `count` values."""
    chosen_N = torch.zeros(len(values_N), dtype=torch.bool)
    chosen_N[values_N.topk(min(count, len(values_N))).indices] = True
    return chosen_N


def overlap(a_N: Tensor, b_N: Tensor) -> tuple[float, float]:
    """|A ∩ B| / |A| and |A ∩ B| / |A ∪ B|; A is not empty."""
    both = float((a_N & b_N).sum())
    return both / float(a_N.sum()), both / float((a_N | b_N).sum())


def compare(pairs: list[Pair]) -> dict[str, float]:
    """Means over pairs of overlap and IoU, the same when B's members are drawn anew at random, and the share of draws
    (the observed one counted) with at least the observed overlap: p ≥ 1 / 1001."""
    found = torch.tensor([overlap(a, b) for a, b in pairs], dtype=torch.float64).mean(0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [
            torch.tensor(
                [overlap(a, b[torch.randperm(len(b), generator=generator)]) for a, b in pairs], dtype=torch.float64
            ).mean(0)
            for _ in range(PERMUTATIONS)
        ]
    )
    reached = int((drawn[:, 0] >= found[0] - 1e-12).sum())
    return {
        "overlap": float(found[0]),
        "iou": float(found[1]),
        "overlap_permuted": float(drawn[:, 0].mean()),
        "iou_permuted": float(drawn[:, 1].mean()),
        "p": (1 + reached) / (1 + PERMUTATIONS),
        "sets": float(len(pairs)),
    }
