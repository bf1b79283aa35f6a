"""The optimizer of a configuration: AdamW, or Muon for the hidden matrices and AdamW for the rest.

In AdamW matrices decay and everything else does not; Muon has nothing but matrices, and they decay.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from errors import InputError
from models import GPT
from training.muon import MuonAdamW
from training.weights import whole


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its constants.

    Args:
        name: adamw, or muon: Muon for the blocks' matrices, AdamW for everything else.
        lr: Peak learning rate, the same for both: Muon's update is scaled to the root mean square of an AdamW update.
        betas: Decay of AdamW's first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay of the parameters that `GPT.decay_groups` lists first.
        momentum: Of Muon, Nesterov's; AdamW has its betas.
        skip_spikes: Skip an update whose gradient norm exceeds so many times the running mean of norms; null: never.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    momentum: float = 0.95
    skip_spikes: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # YAML brings a list

    def validate(self) -> None:
        """Raise InputError for a value that no optimizer takes."""
        names = get_args(get_type_hints(type(self))["name"])
        if self.name not in names:
            raise InputError(f"model.optimizer.name is {self.name!r}; it is one of {', '.join(names)}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"model.optimizer.lr is {self.lr}; it is greater than 0 and finite")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(
                f"model.optimizer.betas is {list(self.betas)}; it is two numbers, each at least 0 and below 1"
            )
        if not 0 < self.eps < math.inf:
            raise InputError(f"model.optimizer.eps is {self.eps}; it is greater than 0 and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"model.optimizer.weight_decay is {self.weight_decay}; it is 0 or more, and finite")
        if not 0 <= self.momentum < 1:
            raise InputError(f"model.optimizer.momentum is {self.momentum}; it is at least 0 and below 1")
        if self.skip_spikes is not None and not 1 < self.skip_spikes < math.inf:
            raise InputError(
                f"model.optimizer.skip_spikes is {self.skip_spikes}; it is greater than 1 and finite, or null for never"
            )


def build(config: OptimizerConfig, gpt: GPT) -> Optimizer:
    """One optimizer over all trainable parameters (two optimizers would double Lightning's `global_step`).

    AdamW is fused: one kernel a step, and the kernel takes `found_inf`, by which the guard leaves weights, moments and
    step count untouched without asking the host. InputError: muon where a strategy shards the weights.
    """
    matrices = {}
    if config.name == "muon":
        matrices = {name: pair for name, pair in gpt.hidden_matrices().items() if pair[0].requires_grad}
    decayed, undecayed = (
        [parameter for name, parameter in group.items() if parameter.requires_grad and name not in matrices]
        for group in gpt.decay_groups()
    )
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "decayed": True},
        {"params": undecayed, "weight_decay": 0.0, "decayed": False},
    ]
    filled = [group for group in groups if group["params"]]
    options = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if not matrices:
        return AdamW(filled, fused=True, **options)
    constants = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    return MuonAdamW(matrices.values(), filled, **constants, **options)


def restate(config: OptimizerConfig, optimizer: Optimizer) -> None:
    """Give a restored optimizer the configured constants: a checkpoint never replaces a value that the user gave."""
    for group in optimizer.param_groups:
        if "momentum" in group:
            group.update(momentum=config.momentum, weight_decay=config.weight_decay)
        else:
            decay = config.weight_decay if group["decayed"] else 0.0
            group.update(betas=config.betas, eps=config.eps, weight_decay=decay)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of the next update in every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(parameters: list[Tensor], limit: float | None) -> Tensor:
    """L2 norm over all gradients, before clipping, as a scalar on the device; gradients are scaled to `limit` in place.

    Where gradients are sharded the norm is over all ranks' shards, and every rank must call this. Lightning refuses to
    clip under bf16-mixed when the optimizer is fused; `torch.nn.utils` has no such scruple.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    if limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
