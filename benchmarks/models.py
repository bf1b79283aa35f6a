"""Training steps of whole models in a bare loop: what the other benchmarks time and compare.

Shapes: B sequences, T tokens. A step is forward, cross-entropy, backward, gradient clipping and fused AdamW.
"""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import GPT, GPTConfig


def small(context: int = 256) -> GPTConfig:
    """The size that the CPU's figures are stated for: 4 layers, width 128, 4 heads, vocabulary 2048."""
    return GPTConfig(vocab_size=2048, context=context, layers=4, heads=4, width=128)


def batches(config: GPTConfig, batch: int, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    """`count` random batches of inputs and targets (B, T), made beforehand so that a bare loop loads nothing."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size or 1, (count, batch, config.context + 1), generator=generator)
    return [(window[:, :-1].contiguous(), window[:, 1:].contiguous()) for window in tokens]


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    """Fused AdamW over all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)


def sum_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy as a bare loop writes it."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


def step_of(
    model: nn.Module,
    data: list[tuple[Tensor, Tensor]],
    forward: Callable[[Tensor], Tensor] | None = None,
    loss_sum: Callable[[Tensor, Tensor], Tensor] = sum_nats,
) -> Callable[[], object]:
    """One training step as a call.

    forward: how tokens become logits where `model(tokens)` does not return them. loss_sum: of logits and targets, nats.
    """
    update = optimiser(model)
    stream: Iterator[tuple[Tensor, Tensor]] = cycle(data)
    logits_of = forward or model

    def step() -> None:
        inputs, targets = next(stream)
        loss = loss_sum(logits_of(inputs), targets) / targets.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        update.zero_grad(set_to_none=True)

    return step


def variant_step(
    config: GPTConfig, attention: str | dict[str, Any], batch: int, activation_checkpointing: bool = False
) -> Callable[[], object]:
    """A training step of our GPT with one attention mechanism."""
    model = GPT(config, attention, activation_checkpointing=activation_checkpointing)
    return step_of(model, batches(config, batch))


def huggingface_step(config: GPTConfig, batch: int) -> Callable[[], object]:
    """The same for `transformers`' GPT2LMHeadModel of that shape, with SDPA and without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    return step_of(peer, batches(config, batch), forward=lambda tokens: peer(tokens).logits)
