"""Do the three kinds of outlier sit in the same places? 2502.06415 says so and gives shares, but no definition.

Activations and weights share channels, activations and attention share positions. Definitions: docs/analysis.md.

Shapes: B sequences, T tokens, C width, L layers.
"""

from collections import defaultdict
from functools import partial

import torch
from torch import Tensor

import kernels
from kernels import Parts
from outliers.access import Decoder
from outliers.access.decoder import Function
from outliers.analysis.numbers import Numbers
from outliers.attention import OUTLIER_SHARE

LARGEST = 3  # the size of the sets that need no threshold
PERMUTATIONS = 1000

Pair = tuple[Tensor, Tensor]  # two sets among the same N channels or positions, bool (N,)


class Consistency:
    """Overlap and intersection over union of outlier sets, beside what permuting one of them gives.

    Sets are made of the largest value over layers, by sequence. |h| counts in means of its sequence and layer, a key in
    the share of all queries' head-averaged attention that it receives.
    """

    def __init__(self, decoder: Decoder, tau: float):
        self.decoder, self.tau = decoder, tau
        self.prefix = decoder.sizes.prefix_tokens
        # By layer, chunks of sequences: (B, T), (B, C), (B, T).
        self._by_token: dict[int, list[Tensor]] = defaultdict(list)
        self._by_channel: dict[int, list[Tensor]] = defaultdict(list)
        self._by_key: dict[int, list[Tensor]] = defaultdict(list)

    def hooks(self) -> list[tuple[str, int, Function]]:
        """Block outputs."""
        return [("block_output", n, partial(self._block, n)) for n in range(self.decoder.sizes.layers)]

    def _block(self, layer: int, x_BTC: Tensor) -> None:
        a_BTC = x_BTC[:, self.prefix :].float().abs()
        mean_B1 = a_BTC.mean((1, 2))[:, None]
        self._by_token[layer].append(a_BTC.amax(2) / mean_B1)
        self._by_channel[layer].append(a_BTC.amax(1) / mean_B1)

    def attended(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, parts: Parts | None) -> None:
        """What each key receives."""
        if parts is not None:
            received_BHT = kernels.statistics(q_BHTD, k_BGTD, parts, prefix=self.prefix).received
            self._by_key[layer].append(received_BHT.mean(1) / received_BHT.shape[2])

    def conclude(self, tokens_BT: Tensor, losses_B: Tensor) -> Numbers:
        """All comparisons; by the coded criteria only where an activation is an outlier."""
        numbers = Numbers()
        fat_C, of_channels = fat_channels(self.decoder), over_layers(self._by_channel).amax(0)
        coded_C = of_channels > self.tau
        pairs = {("weight_activation", "largest"): [(top(of_channels, LARGEST), top(fat_C, LARGEST))]}
        if count := int(coded_C.sum()):
            pairs["weight_activation", "coded"] = [(coded_C, top(fat_C, count))]
        if self._by_key:
            both = list(zip(over_layers(self._by_token), over_layers(self._by_key), strict=True))
            pairs["activation_attention", "largest"] = [(top(a, 1), top(b, 1)) for a, b in both]
            marked = [(a > self.tau, b >= OUTLIER_SHARE) for a, b in both]
            if marked := [(a, b) for a, b in marked if a.any()]:
                pairs["activation_attention", "coded"] = marked
        for (metric, criterion), sets in pairs.items():
            for name, value in compare(sets).items():
                numbers.add(f"{metric}_{name}", value, statistic=criterion)
        return numbers


def over_layers(chunks: dict[int, list[Tensor]]) -> Tensor:
    """(B, N) the largest over layers of chunks (b, N) by layer."""
    return torch.stack([torch.cat(parts) for parts in chunks.values()]).amax(0)


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
