"""The beginning of the text, for analyses that take several passes: the first pass is one for all of them.

Shapes: B sequences, T tokens.
"""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from kernels import Parts
from outliers.access import Decoder
from outliers.access.decoder import AttentionFunction, Function
from outliers.analysis.numbers import Numbers

SEQUENCES, LENGTH = 8, 256  # at most


class Analysis(Protocol):
    """Looks at the unchanged model in a pass that it shares with others, then does what is its own."""

    def hooks(self) -> Iterable[tuple[str, int, Function]]:
        """What it watches in the shared pass; the functions return nothing."""
        ...

    @property
    def attended(self) -> AttentionFunction | None:
        """What sees every attention of the shared pass."""
        ...

    def conclude(self, tokens_BT: Tensor, losses_B: Tensor) -> Numbers:
        """All numbers, after the shared pass over these tokens. losses_B: nats per token of the unchanged model."""
        ...


def analyse(decoder: Decoder, tokens_BT: Tensor, *analyses: Analysis) -> list[Numbers]:
    """Each analysis's numbers, on at most 8 sequences of at most 256 tokens."""
    tokens_BT = tokens_BT[:SEQUENCES, :LENGTH]
    watching = [analysis.attended for analysis in analyses if analysis.attended is not None]

    def attended(layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, parts: Parts | None) -> None:
        for function in watching:
            function(layer, q_BHTD, k_BGTD, v_BGTD, parts)

    hooks = [hook for analysis in analyses for hook in analysis.hooks()]
    with decoder.hooked(hooks, attended if watching else None):
        losses_B = decoder.nats(tokens_BT).mean(1)
    return [analysis.conclude(tokens_BT, losses_B) for analysis in analyses]
