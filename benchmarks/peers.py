"""The peers that our attention is timed against: torch's own calls, and the authors' way of computing their variants.

Shapes: B batch, H query heads, T queries and keys, D head size. `reach` says up to which length a peer is timed: one
that builds a T×T matrix, or a dense mask, is not asked for 16k.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

DENSE = 4096  # tokens: beyond it, a peer that builds a T×T matrix is left out


@dataclass(frozen=True)
class Peer:
    """One row of the table. forward: q, k, v (B, H, T, D) -> y. variant: which of ours it computes."""

    name: str
    variant: str
    forward: Callable[[Tensor, Tensor, Tensor], Tensor]
    reach: int


class Control(torch.autograd.Function):
    """Torch's flash attention on the CPU inside an `autograd.Function`: what a variant pays for not being built in."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The aten flash op; q, k, v (B, H, T, D)."""
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The aten flash backward op."""
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, *ctx.saved_tensors, 0.0, True)


def slot_with_dense_mask(q: Tensor, k: Tensor, v: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Variant (d) the authors' way: one learned key and value put before the real ones, under a dense (T, T+1) mask."""
    batch, heads, length, size = q.shape
    learned = (batch, heads, 1, size)
    k = torch.cat([key.view(1, heads, 1, size).expand(learned).to(k.dtype), k], dim=2)
    v = torch.cat([value.view(1, heads, 1, size).expand(learned).to(v.dtype), v], dim=2)
    mask = torch.ones(length, length + 1, dtype=torch.bool, device=q.device).tril(diagonal=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def bias_with_dense_mask(q: Tensor, k: Tensor, v: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Variant (c) the authors' way: a plain call, plus a masked call in which only the learned value is not zero."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True) + slot_with_dense_mask(
        q, k, torch.zeros_like(v), key, value
    )


def eager_sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Variant (f) the authors' way: σ of the whole T×T matrix of scores."""
    length = q.shape[-2]
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 - torch.log(torch.tensor(float(length)))
    mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    return scores.sigmoid().masked_fill(~mask, 0.0) @ v


def _sdpa(backend: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return call


def _flex(length: int, device: str) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Causal softmax, a soft-cap, and a sink logit of 0 (through the returned lse, as its documentation shows)."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    torch._dynamo.config.recompile_limit = 64  # a graph for each shape, variant and direction
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=device)

    def capped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return 30.0 * torch.tanh(score / 30.0)

    def off_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, aux = compiled(q, k, v, block_mask=mask, return_aux=AuxRequest(lse=True))
        return y * torch.sigmoid(aux.lse)[..., None].to(y.dtype)

    return {
        "softmax": lambda q, k, v: compiled(q, k, v, block_mask=mask),
        "softcap": lambda q, k, v: compiled(q, k, v, score_mod=capped, block_mask=mask),
        "sink_logit": off_by_one,
    }


def peers(H: int, T: int, D: int, device: str) -> list[Peer]:
    """Every peer that the device has. FlexAttention needs a GPU: on the CPU it has no backward."""
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(H, D, generator=generator).to(device).requires_grad_() for _ in range(2))
    anywhere = 1 << 30

    def dense_slot(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return slot_with_dense_mask(q, k, v, key, value)

    def dense_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bias_with_dense_mask(q, k, v, key, value)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    found = [
        Peer("sink_key_value (dense mask)", "sink_key_value", dense_slot, DENSE),
        Peer("context_bias (dense mask)", "context_bias", dense_bias, DENSE),
        Peer("sigmoid (eager)", "sigmoid", eager_sigmoid, DENSE),
    ]
    if device == "cpu":
        control = Peer("control", "softmax", Control.apply, anywhere)
        return [Peer("torch SDPA", "softmax", plain, anywhere), control, *found]
    for name, backend, reach in (
        ("torch SDPA flash", SDPBackend.FLASH_ATTENTION, anywhere),
        ("torch SDPA cuDNN", SDPBackend.CUDNN_ATTENTION, anywhere),
        ("torch SDPA math", SDPBackend.MATH, DENSE),
    ):
        found.append(Peer(name, "softmax", _sdpa(backend), reach))
    for variant, call in _flex(T, device).items():
        found.append(Peer(f"FlexAttention {variant}", variant, call, anywhere))
    return found
