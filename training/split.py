"""How one optimizer step's global batch is split: over nodes, devices and micro-batches.

The order of the data is a function of the sample's number alone, so that every split of the same number of tokens
trains on the same global batches.
"""

from dataclasses import asdict, dataclass
from typing import Any

from errors import InputError


@dataclass(frozen=True)
class Split:
    """nodes × devices ranks, each with `accumulation` micro-batches of batch_size sequences of `context` tokens."""

    nodes: int
    devices: int
    strategy: str
    batch_size: int
    accumulation: int
    context: int

    @property
    def world(self) -> int:
        """Ranks."""
        return self.nodes * self.devices

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees, on all ranks."""
        return self.batch_size * self.accumulation * self.context * self.world

    def record(self) -> dict[str, Any]:
        """As environment.json keeps it."""
        return asdict(self) | {"world": self.world, "tokens_per_step": self.tokens_per_step}

    def __str__(self) -> str:
        ranks = "1 rank" if self.world == 1 else f"each of {self.world} ranks"
        return (
            f"{self.tokens_per_step:,} tokens a step: {self.accumulation} × {self.batch_size} sequences of "
            f"{self.context:,} tokens on {ranks}"
        )


def accumulation(tokens_per_step: int | None, given: int | None, *, batch_size: int, context: int, world: int) -> int:
    """Micro-batches in an optimizer step of each rank: `given` or 1, or what makes `tokens_per_step` of all ranks.

    InputError: no number does, with the nearest settings that work; or `given` contradicts it.
    """
    if tokens_per_step is None:
        return given or 1
    at_once = batch_size * context * world
    count, rest = divmod(tokens_per_step, at_once)
    ranks = "1 rank" if world == 1 else f"{world} ranks"
    if rest or not count:
        near = sorted({max(count, 1) * at_once, (count + 1) * at_once})
        choices = [f"data.tokens_per_step {' or '.join(map(str, near))}"]
        if sizes := _batch_sizes(tokens_per_step, batch_size, context, world):
            choices.insert(0, f"data.batch_size {' or '.join(map(str, sizes))}")
        raise InputError(
            f"data.tokens_per_step is {tokens_per_step}, which {ranks} with data.batch_size {batch_size} and context "
            f"{context} cannot make: {at_once} tokens at once. It works with {', or with '.join(choices)}"
        )
    if given not in (None, count):
        raise InputError(
            f"trainer.accumulate_grad_batches is {given}, but data.tokens_per_step {tokens_per_step} on {ranks} with "
            f"data.batch_size {batch_size} and context {context} takes {count}; leave one of the two out"
        )
    return count


def _batch_sizes(tokens_per_step: int, batch_size: int, context: int, world: int) -> list[int]:
    """The next smaller and the next larger batch size that divide the step among the ranks; empty where none does."""
    rows, rest = divmod(tokens_per_step, context * world)
    if rest or not rows:
        return []
    smaller = next(size for size in range(min(batch_size, rows), 0, -1) if rows % size == 0)
    larger = next((size for size in range(batch_size, rows + 1) if rows % size == 0), None)
    return [smaller] if larger is None else [smaller, larger]
