"""Ranges of activations, and the norms of inputs, from sequences that are not evaluated afterwards."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from outliers.access import Decoder
from outliers.compression.quantise import widened

BATCHES, MOMENTUM, PERCENTILE = 4, 0.9, 99.999  # 2306.12929: README and code


@dataclass
class Range:
    """What has been seen at one site of one layer.

    peak, square: (C,) largest |x|, and sum of x² in float64, of each channel. low, high: smallest and largest x.
    running: (low, high) percentiles, averaged over batches; None where they were not asked for. rows: tokens.
    """

    peak: Tensor
    square: Tensor
    low: Tensor
    high: Tensor
    rows: int
    running: tuple[float, float] | None = None

    def see(self, new: "Range") -> None:
        """Take in another batch."""
        self.peak = torch.maximum(self.peak, new.peak)
        self.square = self.square + new.square
        self.low, self.high = torch.minimum(self.low, new.low), torch.maximum(self.high, new.high)
        self.rows += new.rows
        if self.running is not None and new.running is not None:
            low, high = (
                MOMENTUM * old + (1 - MOMENTUM) * now for old, now in zip(self.running, new.running, strict=True)
            )
            self.running = low, high


Calibration = dict[tuple[str, int], Range]


def calibrate(decoder: Decoder, tokens_BT: Tensor, sites: Collection[str], *, percentiles: bool = True) -> Calibration:
    """Ranges by (site, layer) from (B, T) tokens in at most four batches of neighbouring sequences.

    percentiles: `Range.running` too, which takes most of the time.
    """
    found: Calibration = {}
    for batch_bT in tokens_BT.tensor_split(min(BATCHES, len(tokens_BT))):
        parts: dict[tuple[str, int], list[Tensor]] = {place: [] for place in decoder.places if place[0] in sites}
        with decoder.hooked([(*place, partial(_keep, kept)) for place, kept in parts.items()]):
            decoder.forward(batch_bT)
        for place, kept in parts.items():
            new = _range(torch.cat(kept).flatten(0, -2), percentiles)
            if place in found:
                found[place].see(new)
            else:
                found[place] = new
    return found


def _keep(kept: list[Tensor], x: Tensor) -> None:
    kept.append(widened(x).clone())


def _range(x_NC: Tensor, percentiles: bool) -> Range:
    running = None
    if percentiles:
        low, high = np.percentile(x_NC.cpu().numpy(), (100 - PERCENTILE, PERCENTILE))
        running = float(low), float(high)
    return Range(
        x_NC.abs().amax(0), x_NC.square().sum(0, dtype=torch.float64), x_NC.amin(), x_NC.amax(), len(x_NC), running
    )
