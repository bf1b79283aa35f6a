"""Which weights stay: by magnitude, by Wanda's score, or by chance, to an exact count.

Shares: the floor(s · n) lowest scores go, of n in the whole matrix (magnitude, as the baseline of 2306.11695) or in
each row (Wanda's group: the inputs of one output). 2:4: of four neighbouring inputs of an output the two lowest go.
Of equal scores the one with the lower index goes first, so that the count is exact.
"""

from typing import Literal

import torch
from torch import Tensor

Share = float | Literal["2:4"]


def scores(kind: str, weight_OI: Tensor, norm_I: Tensor, seed: int) -> Tensor:
    """magnitude: |w|. wanda: |w_oi| · ‖x_i‖₂ (2306.11695, eq. 1). random: uniform, a null. Float32, (O, I)."""
    if kind == "magnitude":
        return weight_OI.abs().float()
    if kind == "wanda":
        return weight_OI.abs().float() * norm_I.to(weight_OI.device, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(weight_OI.shape, generator=generator).to(weight_OI.device)


def keep(scores_OI: Tensor, share: Share, *, by_row: bool) -> Tensor:
    """The mask (O, I) of what stays; True stays. With 2:4 a tail of fewer than four inputs stays whole."""
    O, I = scores_OI.shape  # noqa: E741
    if share == "2:4":
        whole = I - I % 4
        kept_OI = torch.ones(O, I, dtype=torch.bool, device=scores_OI.device)
        kept_OI[:, :whole] = ~_lowest(scores_OI[:, :whole].reshape(-1, 4), 2).view(O, whole)
        return kept_OI
    rows = scores_OI if by_row else scores_OI.reshape(1, -1)
    return ~_lowest(rows, int(share * rows.shape[1] + 1e-9)).view(O, I)


def _lowest(scores: Tensor, count: int) -> Tensor:
    """Which are the `count` lowest of each row; of equal ones those with the lower index.

    By the rank of one score: sorting millions takes several times as long.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    last = scores.kthvalue(count, dim=1, keepdim=True).values
    below, equal = scores < last, scores == last
    return below | (equal & (equal.cumsum(1) <= count - below.sum(1, keepdim=True)))
