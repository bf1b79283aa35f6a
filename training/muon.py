"""Muon for hidden matrices, fused AdamW for everything else, as one optimizer.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon): the momentum M <- μ M + (1 - μ) G, Nesterov's
look-ahead (1 - μ) G + μ M, and in its place an approximately orthogonal matrix O by five Newton–Schulz iterations in
bfloat16, which are torch's own. Rate and decay are those of "Muon is Scalable for LLM Training" (2502.16982, section
2.2): W <- W - lr · (0.2 √max(A, B) · O + decay · W) for an A × B matrix, so that an update has the root mean square of
an AdamW update, and one rate, one schedule and one decay serve both halves.

A weight may stack several matrices ([q; k; v], or [up; gate]). The orthogonal factor of the stack is not the stack of
the orthogonal factors, so each matrix gets an update of its own.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim._muon import muon  # torch.optim.Muon's step; the class itself takes whole parameters alone

from errors import InputError

NEWTON_SCHULZ = {"ns_coefficients": (3.4445, -4.775, 2.0315), "ns_steps": 5, "eps": 1e-7}  # torch.optim.Muon's defaults


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
            raise InputError(
                "model.optimizer.name is muon, whose update needs whole matrices, but this strategy shards them; "
                "take adamw, or the strategy ddp"
            )
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
                        self._orthogonal(weight, group, found_inf)
        return loss

    def _orthogonal(self, weight: nn.Parameter, group: dict[str, Any], found_inf: Tensor | None) -> None:
        state, rows = self.state[weight], self._rows[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        parts = zip(*(tensor.split(rows) for tensor in (weight, weight.grad, state["momentum_buffer"])), strict=True)
        for matrix, gradient, buffer in parts:
            before = None if found_inf is None else (matrix.clone(), buffer.clone())
            muon(
                [matrix],
                [gradient],
                [buffer],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                nesterov=True,
                adjust_lr_fn="match_rms_adamw",
                has_complex=False,
                **NEWTON_SCHULZ,
            )
            if before is not None:  # the update of a bad gradient is computed and then taken back, on the device
                for now, old in zip((matrix, buffer), before, strict=True):
                    now.copy_(torch.where(found_inf > 0, old, now))
