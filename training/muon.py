"""Muon for hidden matrices, fused AdamW for everything else, as one optimizer.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon): the momentum M <- μ M + (1 - μ) G, Nesterov's
look-ahead (1 - μ) G + μ M, and in its place an approximately orthogonal matrix O by five Newton–Schulz iterations. Rate
and decay are those of "Muon is Scalable for LLM Training" (2502.16982, section 2.2), for a matrix of m rows and n
columns W <- W - lr · (0.2 √max(m, n) · O + decay · W): an update has the root mean square of an AdamW update, and one
rate, one schedule and one decay serve both halves. It is `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, but
for three things:

- A weight may stack several matrices ([q; k; v], or [up; gate]). The orthogonal factor of the stack is not the stack of
  the orthogonal factors, so each matrix gets an update of its own.
- It takes `found_inf`, as fused AdamW does.
- The iterations run in bfloat16 on a GPU alone: a CPU without bfloat16 arithmetic takes twenty times longer for them
  than in float32 (docs/log.md).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from errors import InputError

SHARDED = (
    "model.optimizer.name is muon, whose update needs whole matrices, but this strategy shards them; take adamw, or "
    "the strategy ddp"
)
A, B, C = 3.4445, -4.7750, 2.0315  # Jordan's coefficients: steep at 0, singular values end between about 0.7 and 1.2


def orthogonal(matrix: Tensor) -> Tensor:
    """(rows, columns) -> the matrix with its singular values brought near to 1, by five Newton–Schulz iterations.

    In bfloat16 on a GPU, otherwise at least in float32; the result has that dtype.
    """
    dtype = torch.bfloat16 if matrix.is_cuda else torch.promote_types(matrix.dtype, torch.float32)
    X = matrix.to(dtype)
    wide = X.shape[0] <= X.shape[1]
    X = X if wide else X.T
    X = X / X.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = X @ X.T
        X = torch.addmm(X, torch.addmm(gram, gram, gram, beta=B, alpha=C), X, beta=A)
    return X if wide else X.T


class MuonAdamW(Optimizer):
    """One optimizer of two rules; a second one would double Lightning's `global_step`.

    Its state is that of its parts: `momentum_buffer`, in the shape of the weight, for a matrix of Muon's; `step`,
    `exp_avg` and `exp_avg_sq` for a parameter of AdamW's. `found_inf`, a scalar on the device, leaves weights and
    state of both untouched where it is not 0, without asking the host.

    Args:
        matrices: Weights (rows, inputs) with the rows of each matrix that is stacked in them.
        groups: AdamW's parameter groups.
        momentum: μ of Muon.
        weight_decay: Of the matrices.
        options: AdamW's lr, betas and eps.

    InputError: a weight is sharded, since an orthogonal update needs the whole matrix.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[nn.Parameter, list[int]]],
        groups: list[dict[str, Any]],
        *,
        momentum: float,
        weight_decay: float,
        **options: Any,
    ) -> None:
        self._rows = dict(matrices)
        if any(isinstance(weight, DTensor) for weight in self._rows):
            raise InputError(SHARDED)
        self._adamw = AdamW(groups, fused=True, **options)
        muon_group = {"params": list(self._rows), "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([*self._adamw.param_groups, muon_group], {"lr": options["lr"]})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        # Loading a checkpoint replaces both, so they are shared anew.
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if "momentum" not in group]
        self._adamw.found_inf = found_inf
        self._adamw.step()
        for group in self.param_groups:
            if "momentum" in group:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._update(weight, group, found_inf)
        return loss

    def _update(self, weight: nn.Parameter, group: dict[str, Any], found_inf: Tensor | None) -> None:
        state, momentum, lr = self.state[weight], group["momentum"], group["lr"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        tensors = (weight, weight.grad, state["momentum_buffer"])
        for matrix, gradient, buffer in zip(*(x.split(self._rows[weight]) for x in tensors), strict=True):
            ahead = buffer.lerp(gradient, 1 - momentum)
            update = orthogonal(gradient.lerp(ahead, momentum)).to(matrix.dtype)
            rate = lr * 0.2 * max(matrix.shape) ** 0.5
            moved = torch.add(matrix * (1 - lr * group["weight_decay"]), update, alpha=-rate)
            for old, new in ((buffer, ahead), (matrix, moved)):
                old.copy_(new if found_inf is None else torch.where(found_inf > 0, old, new))
