"""The vendor operators: torch's flash attention and its backward, behind one pair of functions for each device.

`forward` gives (o, L, extra). `backward` takes *any* out and lse: it computes P̃ = exp(S − lse) and
dS = P̃ (dO·v − dO·out), which is all that the fold in vendor.py asks for. `refusal` says why a call cannot run.
"""

from typing import Any

import torch
from torch import Tensor

from .rows import widen

aten = torch.ops.aten


class FlashCPU:
    """aten::_scaled_dot_product_flash_attention_for_cpu: every floating dtype and head size, grouped heads inside.

    It reads rows of D adjacent numbers without looking at the last stride, so other layouts are copied first.
    """

    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    largest_head = None

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """The output (B, H, T, D) laid out as (B, T, H, D); L (B, H, T)."""
        q, k, v = (_adjacent(x) for x in (q, k, v))
        o, L = aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, True, scale=scale)
        return o, L, ()

    @staticmethod
    def backward(
        dO: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, extra: tuple[Any, ...], scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k, v for P̃ = exp(S − lse) and Δ = dO·out."""
        dO, q, k, v, out = (_adjacent(x) for x in (dO, q, k, v, out))
        return aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
            dO, q, k, v, out, lse, 0.0, True, scale=scale
        )


class FlashCUDA:
    """aten::_scaled_dot_product_flash_attention: half precision, heads up to 256, compute capability 8.0 on.

    Head sizes are padded to a multiple of 8 as the kernel wants. L comes as (B, H, T) float32, natural logarithm, and
    the backward reads it by its address: it must be contiguous.
    """

    dtypes = (torch.bfloat16, torch.float16)
    largest_head = 256

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """The output (B, H, T, D), L (B, H, T), and the two tensors of the random state that the backward asks for."""
        D = q.shape[-1]
        q, k, v = (_padded(x) for x in (q, k, v))
        o, L, _, _, _, _, seed, offset, _ = aten._scaled_dot_product_flash_attention.default(
            q, k, v, 0.0, True, False, scale=scale
        )
        return o[..., :D], L, (seed, offset)

    @staticmethod
    def backward(
        dO: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, extra: tuple[Any, ...], scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k, v for P̃ = exp(S − lse) and Δ = dO·out."""
        D, T, S = q.shape[-1], q.shape[2], k.shape[2]
        dO, q, k, v, out = (_padded(x) for x in (dO, q, k, v, out))
        seed, offset = extra
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward.default(
            dO, q, k, v, out, lse.contiguous(), None, None, T, S, 0.0, True, seed, offset, scale=scale
        )
        return dq[..., :D], dk[..., :D], dv[..., :D]


DEVICES: dict[str, type[FlashCPU] | type[FlashCUDA]] = {"cpu": FlashCPU, "cuda": FlashCUDA}


def refusal(q_BHTD: Tensor) -> str | None:
    """Why this device has no flash op for these tensors, with what it allows; None if it has one."""
    device = q_BHTD.device
    flash = DEVICES.get(device.type)
    if flash is None:
        return f"device {device.type} (allowed: {', '.join(DEVICES)})"
    if q_BHTD.dtype not in flash.dtypes:
        return f"dtype {q_BHTD.dtype} on {device.type} (allowed: {', '.join(map(str, flash.dtypes))})"
    if flash.largest_head is not None and q_BHTD.shape[-1] > flash.largest_head:
        return f"head size {q_BHTD.shape[-1]} on {device.type} (allowed: 1 to {flash.largest_head})"
    if device.type == "cuda" and capability(device.index or 0) < 80:
        return f"compute capability {capability(device.index or 0) / 10} (allowed: 8.0 and later)"
    return None


@torch.compiler.assume_constant_result
def capability(index: int) -> int:
    """The compute capability of a CUDA device, times ten."""
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def _adjacent(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _padded(x: Tensor) -> Tensor:
    return _adjacent(widen(x, -x.shape[-1] % 8) if x.shape[-1] % 8 else x)
