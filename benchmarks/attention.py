"""Attention alone: every variant's forward and backward against plain attention, in one table a length.

    python -m benchmarks.attention [--length 256 2048] [--rounds 15]

The first row is torch's own `scaled_dot_product_attention`. `control` is the same call inside an
`autograd.Function` that changes nothing: what any variant pays for not being built into torch. The rows `... (dense
mask)` and `... (eager)` are how the authors' code of 2502.06415 computes variants (c), (d) and (f).
Ratios are the median over rounds of (control's time / the row's time): 1.00 is as fast as it.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import clock_argument, machine, table, take_turns
from kernels import Parts, attend
from models.attention import AttentionShape, build, examples, label


class Control(torch.autograd.Function):
    """Plain attention inside an `autograd.Function`: torch's forward, torch's backward, nothing else."""

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
    k = torch.cat([key.view(1, heads, 1, size).expand(learned), k], dim=2)
    v = torch.cat([value.view(1, heads, 1, size).expand(learned), v], dim=2)
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


def leaves(parts: Parts) -> Parts:
    """The same variant with the gate's logits cut from the projection that made them: the operation alone is timed."""
    if parts.gate is None:
        return parts
    return replace(parts, gate=replace(parts.gate, logits=parts.gate.logits.detach().requires_grad_()))


def candidates(batch: int, heads: int, length: int, size: int) -> dict[str, Callable[[], object]]:
    """Every row of the table as a call that runs forward and backward once on the same inputs."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    def rows() -> Tensor:
        return torch.randn(batch, length, heads, size, generator=generator).transpose(1, 2)

    width = heads * size
    q, k, v = (rows().requires_grad_() for _ in range(3))  # laid out as a projection leaves them
    key, value = draw(heads, size), draw(heads, size)
    hidden = draw(batch, length, width)
    upstream = rows()

    def both(forward: Callable[[], Tensor]) -> Callable[[], object]:
        def call() -> None:
            y = forward()
            y.backward(upstream)

        return call

    calls = {
        "torch SDPA": both(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        "control": both(lambda: Control.apply(q, k, v)),
    }
    shape = AttentionShape(width=width, heads=heads, kv_heads=heads, head_dim=size, context=length)
    for spec in examples().values():
        mechanism = build(spec, shape)
        if mechanism.prefix_tokens:  # its cost is a longer sequence, not another operation
            continue

        parts = leaves(mechanism.parts(q, k, hidden))

        def variant(parts: Parts = parts) -> Tensor:
            return attend(q, k, v, parts)

        calls[label(spec)] = both(variant)
    calls["sink_key_value (dense mask)"] = both(lambda: slot_with_dense_mask(q, k, v, key, value))
    calls["context_bias (dense mask)"] = both(lambda: bias_with_dense_mask(q, k, v, key, value))
    calls["sigmoid (eager)"] = both(lambda: eager_sigmoid(q, k, v))
    return calls


def main(argv: list[str] | None = None) -> None:
    """Print one table for each length."""
    parser = argparse.ArgumentParser(prog="benchmarks.attention", description=__doc__.split("\n\n")[0])
    parser.add_argument("--length", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    clock_argument(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    for length in options.length:
        calls = max(1, 2048 // length)
        timings = take_turns(
            candidates(options.batch, options.heads, length, options.head_size),
            rounds=options.rounds,
            calls=calls,
            clock=options.clock,
        )
        rows = [
            [name, f"{timing.median * 1e3:.2f}", f"{timing.speed_ratio(timings['control']):.3f}"]
            for name, timing in timings.items()
        ]
        title = f"\nforward and backward, B {options.batch}, H {options.heads}, T {length}, D {options.head_size}"
        print(table(f"{title}; {machine()}", ["attention", "ms", "speed / control"], rows), flush=True)


if __name__ == "__main__":
    main()
