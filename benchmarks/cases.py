"""What a call of benchmarks/gpu.py is, and the inputs and variants that the kernels' benchmarks go over, by the
mechanisms' names.

Shapes: B batch, H query heads, T length, D head size.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels import (
    AddedVector,
    Clipped,
    Elastic,
    ElementGate,
    Parts,
    RowGate,
    Sigmoid,
    SinkLogits,
    SinkSlots,
    Softmax,
    Softpick,
)

# A stage of benchmarks/gpu.py is jobs, and each gives the cells of a row by name.
Row = dict[str, object]
Job = tuple[str, Callable[[], Row]]


@dataclass(frozen=True)
class Call:
    """One call of benchmarks/gpu.py.

    device: cuda, or cpu for a rehearsal. out: where its rows and files go. deadline: the time of `clock`, in seconds,
    from which nothing new is begun.
    """

    device: str
    out: Path
    deadline: float
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self.clock()

    @property
    def over(self) -> bool:
        """Whether the time of this call has passed."""
        return self.left < 0


class Unfinished(Exception):  # noqa: N818 - no error: the next call goes on
    """A job has stopped because the call's time is over, with what it has done on the disk."""


class Refused(Exception):  # noqa: N818 - no row says so: the same call may succeed later
    """A stage cannot go on with what it finds on the disk: one line on what is wrong."""


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def inputs(B: int, H: int, G: int, T: int, D: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """q (B, H, T, D), k and v (B, G, T, D) as a projection leaves them, leaves with gradients."""
    generator = torch.Generator().manual_seed(2)
    drawn = (torch.randn(B, T, heads, D, generator=generator) for heads in (H, G, G))
    return [x.to(device, dtype).transpose(1, 2).requires_grad_() for x in drawn]


def variants(B: int, H: int, T: int, D: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Parts]:
    """Every kind of kernel body once. Learned tensors are float32 leaves; an element gate's logits are in `dtype`."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, kind).requires_grad_()

    return {
        "softmax": Parts(),
        "sink_logit": Parts(sinks=SinkLogits(draw(H))),
        "sink_key": Parts(sinks=SinkSlots(draw(H, 1, D))),
        "sink_key_value": Parts(sinks=SinkSlots(draw(H, 1, D), draw(H, 1, D))),
        "sink_key_value, 4 slots": Parts(sinks=SinkSlots(draw(H, 4, D), draw(H, 4, D))),
        "fixed_bias": Parts(added=AddedVector(draw(H, D))),
        "context_bias": Parts(added=AddedVector(draw(H, D), draw(H, D))),
        "context_scaling": Parts(gate=RowGate(draw(B, T, H).transpose(1, 2), 2.0)),
        "gated_element": Parts(gate=ElementGate(draw(B, T, H, D, kind=dtype).transpose(1, 2))),
        "sink_key_value, row gate": Parts(
            sinks=SinkSlots(draw(H, 1, D), draw(H, 1, D)), gate=RowGate(draw(B, T, H).transpose(1, 2))
        ),
        "softcap": Parts(score=Softmax(softcap=30.0)),
        "sigmoid": Parts(score=Sigmoid(-float(torch.tensor(float(T)).log()))),
        "softpick": Parts(score=Softpick()),
        "clipped_softmax": Parts(score=Clipped(-1.0 / T)),
        "elastic_softmax": Parts(score=Elastic(draw(H))),
    }


def learned(parts: Parts) -> list[Tensor]:
    """The leaves of a variant."""
    owners = (parts.score, parts.sinks, parts.added, parts.gate)
    values = [value for owner in owners if owner is not None for value in vars(owner).values()]
    return [value for value in values if isinstance(value, Tensor) and value.requires_grad]


def two_pass(parts: Parts) -> bool:
    """Family B, whose weights need the finished softmax."""
    return isinstance(parts.score, Clipped | Elastic)
