"""Channel-wise outliers: large norm gains and the columns of W_q that meet them (2505.21670), and what undoes them.

Shapes: B sequences, T tokens, C width, I inputs and O outputs of a matrix.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from outliers.access import Decoder
from outliers.access.decoder import Function
from outliers.activations import Scratch, channel_peaks, finish
from outliers.analysis.interventions import mean_and_error
from outliers.analysis.numbers import Numbers
from outliers.running import Running

RATIO = 4.0  # a gain or a column is an outlier above this many medians of its norm's gains or its matrix's columns
SITES = ("norm_attention", "norm_mlp", "q")
NAMES = {"gain_to_median": "outlier_gain", "query_column_to_median": "triggering_column"}  # ratio -> what is large


def large(values_N: Tensor) -> Tensor:
    """True where |value| > RATIO · median |value| (the lower median)."""
    return over_median(values_N) > RATIO


def over_median(values_N: Tensor) -> Tensor:
    """|value| over the median |value| (the lower median), float64."""
    a_N = values_N.detach().double().abs()
    return a_N / a_N.median()


class Peaks:
    """The largest |x| of every channel at `SITES`, of one pass."""

    def __init__(self, decoder: Decoder):
        self.prefix, self._scratch = decoder.sizes.prefix_tokens, Scratch()
        self._seen = {(site, n): Running() for site in SITES for n in range(decoder.sizes.layers)}

    def hooks(self) -> list[tuple[str, int, Function]]:
        """What watches the pass."""
        return [(*place, partial(self._look, running)) for place, running in self._seen.items()]

    def _look(self, running: Running, x_BTC: Tensor) -> None:
        channel_peaks(running, x_BTC[:, self.prefix :], self._scratch)

    def write(self, numbers: Numbers, statistic: str) -> None:
        """`channel_ratio` of each site and layer."""
        for (site, layer), running in self._seen.items():
            value = finish(running)["channel_ratio"]
            numbers.add("channel_ratio_after", value, site=site, layer=layer, statistic=statistic)


class Channels:
    """Finds outlier gains and triggering columns; undoes each kind in turn; loss and channels before and after."""

    attended = None

    def __init__(self, decoder: Decoder):
        self.decoder, self._before = decoder, Peaks(decoder)

    def hooks(self) -> list[tuple[str, int, Function]]:
        """The channels before."""
        return self._before.hooks()

    def conclude(self, tokens_BT: Tensor, losses_B: Tensor) -> Numbers:
        """A pass for each change that changes anything."""
        decoder, numbers = self.decoder, Numbers()
        _name(decoder, numbers)
        self._before.write(numbers, "before")
        for name, change in CHANGES.items():
            with decoder.preserved(), torch.no_grad():
                changed = sum(change(decoder))
                numbers.add("channels_changed", changed, statistic=name)
                if not changed:
                    continue
                after = Peaks(decoder)
                with decoder.hooked(after.hooks()):
                    change_B = decoder.nats(tokens_BT).mean(1) - losses_B
            after.write(numbers, name)
            mean, error = mean_and_error(change_B)
            numbers.add("channels_loss_change", mean, statistic=name)
            numbers.add("channels_loss_change_error", error, statistic=name)
        return numbers


def _name(decoder: Decoder, numbers: Numbers) -> None:
    """Each outlier gain over the median gain, and each triggering column's norm over the median norm."""
    for metric, site, layer, ratio_N in ratios(decoder):
        found = (ratio_N > RATIO).nonzero()[:, 0].numpy()
        if len(found):
            numbers.add(NAMES[metric], ratio_N[found], channel=found.astype(np.int32), site=site, layer=layer)


def ratios(decoder: Decoder) -> Iterator[tuple[str, str, int, Tensor]]:
    """(a key of `NAMES`, site, layer, ratios (C,)) of every norm's gains and of every W_q's columns."""
    for (site, layer), gain_C in decoder.gains().items():
        yield "gain_to_median", site, layer, over_median(gain_C)
    for layer in range(decoder.sizes.layers):
        yield "query_column_to_median", "q", layer, over_median(_columns(decoder, layer))


def _columns(decoder: Decoder, layer: int) -> Tensor:
    """(C,) the norm of each input column of W_q."""
    return decoder.matrices(layer)["q"].float().norm(dim=0)


def _gains_to(value: Callable[[Tensor], Tensor | float]) -> Callable[[Decoder], list[int]]:
    def change(decoder: Decoder) -> list[int]:
        counts = []
        for gain_C in decoder.gains().values():
            outlier_C = large(gain_C)
            gain_C[outlier_C] = value(gain_C)
            counts.append(int(outlier_C.sum()))
        return counts

    return change


def _rescale_columns(decoder: Decoder) -> list[int]:
    counts = []
    for layer in range(decoder.sizes.layers):
        norm_I = _columns(decoder, layer)
        outlier_I = large(norm_I)
        q_OI = decoder.matrices(layer)["q"]
        q_OI[:, outlier_I] *= (norm_I.median() / norm_I[outlier_I]).to(q_OI.dtype)
        counts.append(int(outlier_I.sum()))
    return counts


CHANGES: dict[str, Callable[[Decoder], list[int]]] = {
    "gains_to_1": _gains_to(lambda gain_C: 1.0),
    "gains_to_mean": _gains_to(lambda gain_C: gain_C.mean()),
    "columns_rescaled": _rescale_columns,
}
