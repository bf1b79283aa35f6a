"""Floating-point operations of training, for the utilisation of a device."""

from torch import nn

from models.gpt import GPT


def flops_per_token(gpt: GPT, length: int) -> float:
    """Operations a token of a training step on sequences of `length` tokens (T); a multiplication and an addition: 2.

        6 N + 6 · L · C · (K + 1)

    N: weights of linear layers, the head included and embeddings not; forward 2, backward 4 (of the inputs and of the
    weight). L layers, C width, K = T + prefix tokens: causal attention reads (K + 1) / 2 keys a query on average, 2 C
    for each in q·k and 2 C in p·v, and twice that backwards (2204.02311, appendix B, but for its full T × T attention).
    Norms, activations, elementwise work and what activation checkpointing or a kernel computes again do not count.
    """
    weights = sum(module.weight.numel() for module in gpt.modules() if isinstance(module, nn.Linear))
    keys = length + gpt.prefix_tokens
    return 6.0 * weights + 6.0 * gpt.config.layers * gpt.config.width * (keys + 1)
