"""The loss: Σ −log p of the targets that are not ignored, in nats.

Shapes: B sequences, T tokens, V vocabulary, N = B·T.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def nats(logits_BTV: Tensor, targets_BT: Tensor, vocab_size: int | None = None) -> Tensor:
    """Σ −log p of the valid targets, at least in fp32. vocab_size: V where further columns pad the vocabulary."""
    return F.cross_entropy(_wide(logits_BTV, vocab_size), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")


def nats_to_compile(logits_BTV: Tensor, targets_BT: Tensor, vocab_size: int | None = None) -> Tensor:
    """The same numbers, written for the compiler: it makes of PyTorch's own loss a backward that compares each class
    of each row with the target, which takes longer than the eager one."""
    return _Nats.apply(_wide(logits_BTV, vocab_size), targets_BT.flatten())


def _wide(logits_BTV: Tensor, vocab_size: int | None) -> Tensor:
    if vocab_size is not None and vocab_size < logits_BTV.shape[-1]:
        logits_BTV = logits_BTV[..., :vocab_size]
    return (logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()).flatten(0, 1)


class _Nats(torch.autograd.Function):
    """Σ L_i − logit of the target, L_i = logsumexp of row i; its gradient is softmax − 1 at the target."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        valid_N = targets_N != IGNORED
        targets_N1 = torch.where(valid_N, targets_N, 0).unsqueeze(1)
        L_N = logits_NV.logsumexp(1)
        ctx.save_for_backward(logits_NV, L_N, targets_N1, valid_N)
        return torch.where(valid_N, L_N - logits_NV.gather(1, targets_N1).squeeze(1), 0).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits_NV, L_N, targets_N1, valid_N = ctx.saved_tensors
        weight_N1 = torch.where(valid_N, gradient, 0).unsqueeze(1)
        softmax_NV = (logits_NV - L_N.unsqueeze(1)).exp()
        return (softmax_NV * weight_N1).scatter_add(1, targets_N1, -weight_N1), None
