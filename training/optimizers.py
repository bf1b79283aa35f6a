"""AdamW in two groups: matrices decay, everything else does not."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from errors import InputError
from training.weights import whole


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its constants.

    Args:
        name: adamw.
        lr: Peak learning rate.
        betas: Decay of AdamW's first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay of the parameters that `GPT.decay_groups` lists first.
    """

    name: Literal["adamw"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # YAML brings a list

    def validate(self) -> None:
        """Raise InputError for a value that no optimizer takes."""
        if self.name != "adamw":
            raise InputError(f"model.optimizer.name is {self.name!r}; it is adamw")
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


def build(config: OptimizerConfig, gpt: nn.Module) -> Optimizer:
    """One optimizer over all trainable parameters (two optimizers would double Lightning's `global_step`).

    Fused: one kernel a step, and the kernel takes `found_inf`, by which the guard leaves weights, moments and step
    count untouched without asking the host.
    """
    decayed, undecayed = (
        [parameter for parameter in group.values() if parameter.requires_grad] for group in gpt.decay_groups()
    )
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "decayed": True},
        {"params": undecayed, "weight_decay": 0.0, "decayed": False},
    ]
    filled = [group for group in groups if group["params"]]
    return AdamW(filled, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def restate(config: OptimizerConfig, optimizer: Optimizer) -> None:
    """Give a restored optimizer the configured constants: a checkpoint never replaces a value that the user gave."""
    for group in optimizer.param_groups:
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
