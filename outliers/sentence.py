"""Magnitudes of the residual stream for one sentence: the 3-D plot of figure 1 in 2502.06415."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import GPT
from outliers.probe import watching

LONGEST = 48  # tokens that a plot can label


def sentence(gpt: GPT, tokens_T: Tensor, first_key_T: Tensor | None = None) -> dict[str, np.ndarray]:
    """|h_l| after every block for the first 48 of the tokens (T,) or (1, T); first_key (T,): the first that each sees.

    Returns `block_output` (layers, T, C) float32 and `tokens` (T,) int64. Prefix tokens are left out.
    """
    tokens_T = tokens_T.reshape(-1)[:LONGEST].to(next(gpt.parameters()).device)
    layers: list[np.ndarray] = []

    def keep(module: torch.nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        layers.append(output[0, -len(tokens_T) :].float().abs().cpu().numpy())

    with watching(gpt, ((block, "after", keep) for block in gpt.blocks)):
        gpt(tokens_T[None], None if first_key_T is None else first_key_T[None, :LONGEST])
    return {"block_output": np.stack(layers), "tokens": tokens_T.cpu().numpy()}
