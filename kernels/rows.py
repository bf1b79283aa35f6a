"""Row arithmetic of the fold: dots with, sums over and multiples of a head's few learned vectors.

All rows of a head form one matrix, (H, B·T, D): a view where they are laid out as (B, T, H, D), as projections and
flash attention leave them. Each task is then one batched matrix product, a batch a head, which makes no temporary of
the rows' size; on the CPU the pages of such a temporary cost more than the arithmetic. Numbers that belong to rows
stand as (H, n, B·T), contiguous: the products and the vectorised functions are several times slower on other strides.
Half precision goes by products and sums in the wider dtype, because autocast would round a matrix product.

Shapes: B batch, H heads, T rows, D head size, N = B·T, n vectors of a head.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def per_row(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """(H,) -> (H, 1); (B, H, T) stays: both broadcast against (B, H, T)."""
    return (logits.unsqueeze(1) if logits.dim() == 1 else logits).to(dtype)


def rows_first(x_BHTD: Tensor) -> Tensor:
    """The same numbers laid out so that `heads` is a view."""
    B, _, T, _ = x_BHTD.shape
    batch, _, row, _ = x_BHTD.stride()
    return x_BHTD if B == 1 or batch == T * row else x_BHTD.transpose(1, 2).contiguous().transpose(1, 2)


def heads(x_BHTD: Tensor) -> Tensor:
    """(B, H, T, D) -> (H, N, D): a view where batch and rows are one stride apart, else a copy."""
    return x_BHTD.transpose(0, 1).flatten(1, 2)


def heads_view(x_BHTD: Tensor) -> Tensor:
    """The same for changes in place: always a view. Raises RuntimeError where that would take a copy."""
    B, H, T, D = x_BHTD.shape
    return x_BHTD.transpose(0, 1).view(H, B * T, D)


def head_rows(x_BHT: Tensor) -> Tensor:
    """(B, H, T) -> (H, 1, N), contiguous; it may share memory with its argument."""
    B, H, T = x_BHT.shape
    return x_BHT.transpose(0, 1).reshape(H, 1, B * T).contiguous()


def batch_rows(x_H1N: Tensor, batch: int) -> Tensor:
    """(H, 1, N) -> (B, H, T), a view."""
    return x_H1N.view(x_H1N.shape[0], batch, -1).transpose(0, 1)


def dot(x_HND: Tensor, vectors_HnD: Tensor) -> Tensor:
    """x_i · u_r for every row and every vector of its head: (H, n, N), in the dtype of the vectors."""
    if x_HND.dtype == vectors_HnD.dtype:
        return torch.bmm(vectors_HnD, x_HND.mT)  # in this order: the transposed product is five times slower
    return torch.stack([(x_HND * vector_H1D).sum(-1) for vector_H1D in vectors_HnD.split(1, dim=1)], dim=1)


def logits(q_HND: Tensor, keys_HnD: Tensor, scale: float, L_H1N: Tensor) -> Tensor:
    """τ q_i · k_r − L_i for every row and every key of its head: (H, n, N), in the dtype of the keys."""
    if q_HND.dtype == keys_HnD.dtype:
        return torch.baddbmm(L_H1N, keys_HnD, q_HND.mT, beta=-1, alpha=scale)
    return dot(q_HND, keys_HnD).mul_(scale).sub_(L_H1N)


def total(weights_HnN: Tensor, x_HND: Tensor) -> Tensor:
    """Σ over a head's rows of weight_ri x_i: (H, n, D), in the dtype of the weights."""
    if x_HND.dtype == weights_HnN.dtype:
        return torch.bmm(weights_HnN, x_HND)
    return torch.stack([(weights_HN.unsqueeze(-1) * x_HND).sum(1) for weights_HN in weights_HnN.unbind(1)], dim=1)


def add_(x_HND: Tensor, weights_HnN: Tensor, vectors_HnD: Tensor, scale: float = 1.0) -> None:
    """x_i += scale · Σ_r weight_ri u_r, in place."""
    if x_HND.dtype == vectors_HnD.dtype and vectors_HnD.shape[1] > 1:
        x_HND.baddbmm_(weights_HnN.mT, vectors_HnD, alpha=scale)
        return
    # One vector: a product in place takes the heads one by one, since they are not one behind the other.
    for weights_HN, vector_H1D in zip(weights_HnN.unbind(1), vectors_HnD.split(1, dim=1), strict=True):
        x_HND.addcmul_(weights_HN.unsqueeze(-1), vector_H1D, value=scale)


def widen(x_BHTD: Tensor, channels: int, value: float = 0.0) -> Tensor:
    """More channels of one value at the end of each row; rows stay first."""
    return pad(x_BHTD.transpose(1, 2), (0, channels), value=value).transpose(1, 2)
