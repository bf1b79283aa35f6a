"""The score families on whole rows of scores: weights and L, and their hand-written backward.

A caller hands over scores S, τ q·k (soft-capped where asked for) with −∞ where a key is hidden, of one block of rows
against every key that they see; the last dimension runs over keys. S is overwritten. Formulas: README.md.

count: n_i, the number of visible keys, at least 1, a tensor of S's dtype that broadcasts against S, as `Elastic.offset`
must do here.

Masks are numbers, 0 and 1, where their pattern is irregular: a boolean one costs the CPU several times as much.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .parts import Clipped, Elastic, Score, Sigmoid, Softmax, Softpick


def pack(score: Score) -> tuple[str, list[float], Tensor | None]:
    """A score as arguments that an operator can take: family, numbers, offset. `unpack` is the inverse."""
    if isinstance(score, Sigmoid):
        return "sigmoid", [score.bias], None
    if isinstance(score, Softpick):
        return "softpick", [], None
    if isinstance(score, Clipped):
        return "clipped", [score.gamma, score.zeta, float(score.per_row)], None
    if isinstance(score, Elastic):
        return "elastic", [], score.offset
    return "softmax", [] if score.softcap is None else [score.softcap], None


def unpack(family: str, numbers: Sequence[float], offset: Tensor | None) -> Score:
    """The score behind the arguments of an operator."""
    if family == "sigmoid":
        return Sigmoid(*numbers)
    if family == "softpick":
        return Softpick()
    if family == "clipped":
        gamma, zeta, per_row = numbers
        return Clipped(gamma, zeta, bool(per_row))
    if family == "elastic":
        assert offset is not None
        return Elastic(offset)
    return Softmax(*numbers)


def cap_(S: Tensor, score: Score) -> Tensor:
    """c · tanh(S / c) in place, where the score has a soft-cap; before hidden keys become −∞."""
    if isinstance(score, Softmax) and score.softcap is not None:
        S.div_(score.softcap).tanh_().mul_(score.softcap)
    return S


def weights(score: Score, S: Tensor, count: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weights P, of S's shape, 0 where hidden, and L (…, 1); None for sigmoid. A row without keys: 0 and −∞."""
    if isinstance(score, Sigmoid):
        return S.add_(score.bias).sigmoid_(), None
    if isinstance(score, Softpick):
        S = _zero_hidden_(S)
        pivot = S.amax(-1, keepdim=True).clamp_min_(0)
        # e^S − 1 = ±e^max(S, 0) (1 − e^−|S|): exact where S is small, finite where it is large.
        signed = S.abs().neg_().expm1_().copysign_(S)
        P = S.clamp_min_(0).sub_(pivot).exp_().mul_(signed)
        total = P.abs().sum(-1, keepdim=True)
        return P.clamp_min_(0).div_(_positive(total)), total.log_().add_(pivot)
    hidden = S.isneginf() if isinstance(score, Elastic) else None
    pivot = S.amax(-1, keepdim=True)
    pivot.masked_fill_(pivot.isneginf(), 0)  # a row without keys: exp(−∞ − 0) = 0, L = log 0
    P = S.sub_(pivot).exp_()
    total = P.sum(-1, keepdim=True)
    P.div_(_positive(total))
    if isinstance(score, Clipped | Elastic):
        _clip_(score, P, hidden, count)
    return P, total.log_().add_(pivot)


def gradients(
    score: Score, S: Tensor, dP: Tensor, L: Tensor | None, delta: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The weights P again, dS in the memory of dP, and for elastic Σ_j M_ij dP_ij / n_i (…, 1).

    dP: dY·v. L: (…, 1), as `weights` returned it. delta: (…, 1), Δ − dL; clipped and elastic take −dL and add their
    own Δ_i = dY_i·W_i, which on whole rows is a sum over keys.
    """
    if isinstance(score, Sigmoid):
        P = S.add_(score.bias).sigmoid_()
        return P, dP.mul_(P).mul_(1 - P), None
    assert L is not None
    L = L.masked_fill(L.isneginf(), torch.inf)  # an empty row: P = exp(S − ∞) = 0
    if isinstance(score, Softpick):
        S = _zero_hidden_(S)
        E, sign = (S - L).exp_(), S.sign()
        dP.mul_(sign.clamp_min(0)).addcmul_(sign, delta, value=-1).mul_(E)
        return E.mul_(S.clamp_min_(0).neg_().expm1_().neg_()), dP, None
    if isinstance(score, Softmax):
        chain = None
        if score.softcap is not None:  # d(c tanh(s / c)) = 1 − (S / c)², 0 where hidden
            chain = S.div(score.softcap).clamp_min_(-1).square_().neg_().add_(1)
        P = S.sub_(L).exp_()
        dP.sub_(delta).mul_(P)
        return P, dP if chain is None else dP.mul_(chain), None
    hidden = S.isneginf() if isinstance(score, Elastic) else None
    P = S.sub_(L).exp_()
    cut = P.clone()
    slope = _clip_(score, cut, hidden, count)
    dP.mul_(cut.sign())  # M: where the line is above 0 …
    if isinstance(score, Clipped) and score.zeta > 1:
        dP.mul_(cut < 1)  # … and under 1
    d_shift = dP.sum(-1, keepdim=True).div_(count) if isinstance(score, Elastic) else None
    dP.mul_(P).mul_(slope)
    dP.addcmul_(P, delta + dP.sum(-1, keepdim=True), value=-1)
    return cut, dP, d_shift


def _clip_(score: Clipped | Elastic, P: Tensor, hidden: Tensor | None, count: Tensor) -> Tensor | float:
    """The softmax's P becomes a_i P + γ_i within its limits, in place. Returns a_i. hidden: for elastic."""
    if isinstance(score, Elastic):
        P.add_(score.offset / count).clamp_min_(0)
        if hidden is not None:  # a positive offset lifts hidden keys too
            P.masked_fill_(hidden, 0)
        return 1.0
    gamma = score.gamma / count if score.per_row else score.gamma
    slope = score.zeta - gamma
    P.mul_(slope).add_(gamma).clamp_(0, 1)
    return slope


def _zero_hidden_(S: Tensor) -> Tensor:
    """Scores with 0 for −∞, in place: softpick's |e^0 − 1| adds nothing, and its pivot max(0, max S) stays."""
    return S.nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=0)


def _positive(total: Tensor) -> Tensor:
    """The sum that a row is divided by; 1 in the place of 0."""
    return total.masked_fill(total == 0, 1)
