"""One sentence in full: the magnitudes and the attention maps that figures show.

Shapes: L layers, T tokens (at most 48, what a figure can label), C width, M MLP width, H heads.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kernels import Parts, SinkSlots
from kernels.reference import reference
from outliers.access import Decoder
from outliers.sentence import LONGEST


@dataclass(frozen=True)
class Sentence:
    """block_output (L, T, C) and down_input (L, T, M): |x|. attention (L, H, T, T): the weights A_ij on real keys,
    before a gate; None where the attention does not say what it computes. texts: of the tokens."""

    texts: list[str]
    block_output: np.ndarray
    down_input: np.ndarray
    attention: np.ndarray | None


def sentence(decoder: Decoder, tokens_T: Tensor, texts: Sequence[str]) -> Sentence:
    """Run the first tokens of a sequence and keep what is drawn."""
    tokens_T = tokens_T[:LONGEST]
    T = len(tokens_T)
    kept: dict[str, list[np.ndarray]] = defaultdict(list)

    def keep(site: str) -> Callable[[Tensor], None]:
        return lambda x: kept[site].append(x[0, -T:].float().abs().cpu().numpy())

    def attended(layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, parts: Parts | None) -> None:
        if parts is not None:
            kept["attention"].append(attention_map(q_BHTD, k_BGTD, parts)[0, :, -T:, -T:].float().cpu().numpy())

    layers = range(decoder.sizes.layers)
    hooks = [(site, layer, keep(site)) for site in ("block_output", "down_input") for layer in layers]
    with decoder.hooked(hooks, attended):
        decoder.forward(tokens_T[None])
    maps = np.stack(kept["attention"]) if kept["attention"] else None
    return Sentence(list(texts[:T]), np.stack(kept["block_output"]), np.stack(kept["down_input"]), maps)


def attention_map(q_BHTD: Tensor, k_BGTD: Tensor, parts: Parts) -> Tensor:
    """(B, H, T, T) the weight that query i gives to key j, explicit sinks in the normaliser, before a gate.

    Dense: for a sentence. It is what the specification puts out where the values are the unit vectors.
    """
    B, G, T, _ = k_BGTD.shape
    values_BGTT = torch.eye(T, dtype=q_BHTD.dtype, device=q_BHTD.device).expand(B, G, T, T)
    sinks = replace(parts.sinks, values=None) if isinstance(parts.sinks, SinkSlots) else parts.sinks
    bare = replace(parts, sinks=sinks, gate=None, added=None)
    return reference(q_BHTD, k_BGTD, values_BGTT, bare, first_key_BT=None, scale=q_BHTD.shape[-1] ** -0.5)[0]
