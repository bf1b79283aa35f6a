"""Skipping an update whose gradient norm stands out, on the device and without asking the host.

The running mean m of the last norms (about WINDOW of them) moves by m <- m + (min(g, factor · m) - m) / WINDOW: a spike
counts as `factor` means, so that norms which stay high raise the mean until they pass: training is never locked out.
Nothing is skipped before WINDOW norms have been seen; their plain mean is the start.
"""

from typing import Any

import torch
from torch import Tensor

WINDOW = 100


class Spikes:
    """Decides of each gradient norm whether it exceeds `factor` times the running mean.

    skipped: the number of updates skipped since the run's beginning, on the device.
    """

    def __init__(self, factor: float, device: torch.device) -> None:
        self.factor = factor
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._mean = torch.zeros((), device=device)
        self._seen = 0

    def observe(self, norm: Tensor) -> Tensor:
        """Take in this update's norm (a scalar on the device); 1 where the update is to be skipped, otherwise 0."""
        self._seen += 1
        if self._seen <= WINDOW:
            self._mean += (norm - self._mean) / self._seen
            return torch.zeros_like(self._mean)
        limit = self.factor * self._mean
        spike = norm > limit
        self._mean += (torch.minimum(norm, limit) - self._mean) / WINDOW
        self.skipped += spike
        return spike.float()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps. Waits for the device."""
        return {"mean": self._mean.item(), "seen": self._seen, "skipped": self.skipped.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._mean.fill_(state["mean"])
        self.skipped.fill_(state["skipped"])
        self._seen = state["seen"]
