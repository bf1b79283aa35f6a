"""What a mechanism is: the part of attention that differs between variants, with its own parameters.

Shapes: B batch, H query heads, G key/value heads, T tokens, D head size, C width.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

import kernels
from kernels.parts import Parts
from models.initial import Initial


@dataclass(frozen=True)
class AtLeast:
    """The smallest value of an option: `Annotated[int, AtLeast(1)]`."""

    bound: float


@dataclass(frozen=True)
class Above:
    """The value that an option must exceed: `Annotated[float, Above(0)]`."""

    bound: float


Slots = Annotated[int, AtLeast(1)]
BEYOND_SOFTMAX = tuple(name for name in kernels.BACKENDS if name != "vendor")  # the vendor's flash attention is softmax


@dataclass(frozen=True)
class AttentionShape:
    """What a mechanism may know about the network. context: the training context, in tokens."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int


class Mechanism(nn.Module):
    """The base of every attention variant. A subclass writes `parts`; one that cannot be told so writes `forward`.

    Options are the keyword-only parameters of `__init__`, annotated with int, float, bool, str, Literal, or one of them
    `| None`; `Annotated[int, AtLeast(1)]` or `Above(0)` bounds one. A mechanism's parameters are not decayed unless
    `decay_slots` is set, and one-dimensional ones never.

    start: how its first step relates to plain softmax. prefix_tokens: learned vectors put before the sequence.
    backends: the back ends of `kernels.attend` that can compute it. example: values for options without a default,
    with which tests and benchmarks build a built-in.
    initial: initial values by parameter name (see `models.initial`); what is not named keeps its constructor's value.
    """

    start: ClassVar[str] = "not stated"
    prefix_tokens: ClassVar[int] = 0
    example: ClassVar[dict[str, Any]] = {}
    backends: tuple[str, ...] = kernels.BACKENDS

    def __init__(self, shape: AttentionShape, decay_slots: bool = False):
        super().__init__()
        self.shape = shape
        self.decay_slots = decay_slots
        self.backend = "auto"
        self.initial: dict[str, Initial] = {}

    def parts(self, q_BHTD: Tensor, k_BGTD: Tensor, hidden_BTC: Tensor) -> Parts:
        """The variant as data: what it adds to softmax attention. Queries and keys are already normed and rotated;
        hidden is the attention's input after the norm."""
        raise NotImplementedError(f"{type(self).__name__} defines no parts")

    def forward(
        self, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, hidden_BTC: Tensor, first_key_BT: Tensor | None = None
    ) -> Tensor:
        """Causal attention -> y (B, H, T, D). Row i sees the keys first_key_i … i, from 0 where first_key is None."""
        parts = self.parts(q_BHTD, k_BGTD, hidden_BTC)
        return kernels.attend(q_BHTD, k_BGTD, v_BGTD, parts, first_key_BT=first_key_BT, backend=self.backend)

    @classmethod
    def measurable(cls) -> bool:
        """Whether its attention can be measured from `parts`: it defines them and leaves `forward` alone."""
        return cls.parts is not Mechanism.parts and cls.forward is Mechanism.forward
