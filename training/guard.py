"""The non-finite guard: a NaN or infinite gradient never reaches the weights, and costs no host synchronisation.

After each backward the gradient's norm sets a flag on the device, and the flag stays set. The optimizer takes it as
`found_inf`: weights, moments and step count stay untouched from that update on. The host reads the flag only where it
reads numbers anyway (logging, evaluation, checkpoints); then it replays that update's batches, which are a pure
function of the step, eagerly and with hooks, names the layer, and stops. A spike of the norm (training/spikes.py),
where those are to be skipped, takes the same path for one update and does not stay.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from errors import InputError
from training.spikes import Spikes
from training.weights import whole

SUMMED = "in the gradient of"


class NonFiniteError(InputError):
    """Training met a NaN or an infinity. The message names the step and, where the replay found it, the layer."""


class NonFiniteGuard:
    """The sticky flag, and the count of updates before it was set."""

    def __init__(self, device: torch.device, step: int, spikes: Spikes | None = None) -> None:
        """step: updates done before this start of the run. spikes: decides which updates are skipped alone."""
        self.spikes = spikes
        self._first = step
        self._flag = torch.zeros((), device=device)
        self._clean = torch.zeros((), dtype=torch.int64, device=device)

    def observe(self, norm: Tensor, optimizer: Optimizer) -> None:
        """Look at this update's gradient norm (a scalar on the device) and let the optimizer skip once one is bad,
        or while it spikes."""
        torch.maximum(self._flag, (~torch.isfinite(norm)).float(), out=self._flag)
        self._clean += self._flag == 0
        optimizer.found_inf = self._flag
        if self.spikes is not None:
            optimizer.found_inf = torch.maximum(self._flag, self.spikes.observe(norm))

    def bad_step(self) -> int | None:
        """The update (counted from 0) whose gradients were not finite; None while all were. Waits for the device."""
        return self._first + int(self._clean) if self._flag.item() else None


def agreed(found: list[str | None]) -> str | None:
    """One of the ranks' findings of `locate`, for all of them: the batch of one of them may be the bad one.

    A sharded parameter's gradient is the sum over ranks, so every rank finds it; what one rank found earlier says more.
    """
    named = [where for where in found if where]
    return min(named, key=lambda where: where.startswith(SUMMED) and not where.endswith("output"), default=None)


def locate(model: nn.Module, losses: Callable[[], Iterable[Tensor]]) -> str | None:
    """Run `losses` eagerly with hooks on `model`; say where the first number that is not finite appears.

    losses: yields the loss of each batch, computed through `model`; each is sent backwards before the next is made.
    Returns e.g. "in the output of blocks.2.mlp.down", or None where every number is finite. Gradients are discarded.
    Every rank does all of the work, whatever it finds: where the model is sharded, the others wait for it.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(whole(parameter)).all():
            return f"in the weights of {name}"
    found: list[str] = []

    def check(tensor: Tensor, where: str) -> None:
        if not found and not torch.isfinite(tensor).all():
            found.append(where)

    def hook(name: str) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                check(output, f"in the output of {name}")
                if output.requires_grad:
                    output.register_hook(lambda gradient: check(gradient, f"{SUMMED} {name}'s output"))

        return look

    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, module in model.named_modules():
            handle = module.register_forward_hook(hook(name or "the model"))
            stack.callback(handle.remove)
        model.zero_grad(set_to_none=True)
        for loss in losses():
            check(loss, "in the loss")
            loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                check(whole(parameter.grad), f"{SUMMED} {name}")
    model.zero_grad(set_to_none=True)
    return found[0] if found else None
