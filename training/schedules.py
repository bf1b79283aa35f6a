"""Learning rate as a pure function of the optimizer step: nothing to store, nothing to restore.

n = 1 … N counts the updates, N = trainer.max_steps, w the warm-up, d the share of the run that a WSD schedule decays:

    warm-up    n / w                                              for n <= w
    constant   1
    cosine     f + (1 - f) · (1 + cos(π (n - w) / (N - w))) / 2   1608.03983, with the floor f
    linear     f + (1 - f) · (N - n) / (N - w)                    2310.07831 (f = 0 there)
    wsd        1, then f + (1 - f) · (1 - √p)                     2405.18392 (1 - sqrt cooldown): p goes from 0 to 1
                                                                  over the last d·N updates
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from errors import InputError


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves.

    Args:
        name: constant, cosine, linear, or wsd (warm-up, stable, decay).
        warmup: Updates over which the rate rises linearly; the first update already has rate lr / warmup.
        decay_fraction: Share of the run over which wsd decays.
        final: Rate at the last update of cosine, linear and wsd, as a fraction of the peak.
    """

    name: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup: int = 100
    decay_fraction: float = 0.2
    final: float = 0.1

    def validate(self) -> None:
        """Raise InputError for a value that no schedule has."""
        names = get_args(get_type_hints(type(self))["name"])
        if self.name not in names:
            raise InputError(f"model.schedule.name is {self.name!r}; it is one of {', '.join(names)}")
        if self.warmup < 0:
            raise InputError(f"model.schedule.warmup is {self.warmup}; it is a number of steps, 0 or more")
        if not 0 <= self.decay_fraction <= 1:
            raise InputError(f"model.schedule.decay_fraction is {self.decay_fraction}; it lies between 0 and 1")
        if not 0 <= self.final <= 1:
            raise InputError(f"model.schedule.final is {self.final}; it lies between 0 and 1")


def factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Fraction of the peak rate for the update that takes a model from `step` to `step + 1` updates.

    step: 0 … steps - 1 (later steps keep the last value); steps: updates in the whole run.
    """
    n = min(step + 1, steps)
    if n <= config.warmup:
        return n / config.warmup
    if config.name in ("cosine", "linear"):
        progress = (n - config.warmup) / (steps - config.warmup)
        left = 1 - progress if config.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return config.final + (1 - config.final) * left
    if config.name == "wsd":
        decay = config.decay_fraction * steps
        if n > steps - decay:
            return config.final + (1 - config.final) * (1 - math.sqrt((n - (steps - decay)) / decay))
    return 1.0
