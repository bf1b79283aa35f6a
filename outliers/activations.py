"""Activation metrics of one site of one layer, summed up sequence by sequence, in float32.

`accumulate` takes a chunk of sequences, `finish` gives the values by metric id; definitions: outliers/definitions.py.
Undefined is NaN (a constant tensor has no kurtosis), and a NaN or inf in the activations reaches the metric.

Shapes: B sequences of the chunk, T tokens, C channels.
"""

import torch
from torch import Tensor

from outliers.running import Running

MASSIVE_SIZE, MASSIVE_RATIO = 100.0, 1000.0  # 2402.17762, section 2
OUTLIER_RATIO = 1000.0  # τ of 2502.06415's code
SEQUENCE_EPSILON = 1e-6  # 2306.12929's code
CHANNEL_EPSILON = 1e-8  # 2405.19279's code


class Scratch:
    """One float32 buffer a size, used again: fresh memory costs ten times more than the arithmetic done in it."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.Size, torch.device], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """An uninitialised float32 tensor of x's shape; the next call with this shape gives the same memory."""
        key = (x.shape, x.device)
        if key not in self.buffers:
            self.buffers[key] = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        return self.buffers[key]


def lower_median(rows_BN: Tensor) -> Tensor:
    """(B, N) -> (B,) the median of each row, the lower one of two; NaN where the row holds one. Reorders the rows."""
    if rows_BN.device.type != "cpu":
        return rows_BN.median(-1).values
    # NumPy's selection is several times faster than torch.median here. It sorts NaN last, hence the check.
    middle = (rows_BN.shape[1] - 1) // 2
    last = rows_BN.shape[1] - 1
    rows_BN.numpy().partition(middle, axis=1)
    median_B = rows_BN[:, middle].clone()
    return median_B if last == middle else torch.where(rows_BN[:, middle:].amax(-1).isnan(), torch.nan, median_B)


def channel_peaks(running: Running, x_BTC: Tensor, scratch: Scratch) -> Tensor:
    """Record each channel's largest |x|, all that `channel_ratio` needs. Returns |x| (B, T, C), in the scratch."""
    a_BTC = torch.abs(x_BTC.float(), out=scratch.like(x_BTC))
    running.peak("channel_max", a_BTC.amax((0, 1)))
    return a_BTC


def accumulate(running: Running, x_BTC: Tensor, scratch: Scratch) -> None:
    """Add a chunk of whole sequences. All metrics but the channel ones are per sequence or token, then averaged."""
    x_BTC = x_BTC.float()
    B, T, C = x_BTC.shape

    a_BTC = channel_peaks(running, x_BTC, scratch)
    peak_BT = a_BTC.amax(-1)
    peak_B = peak_BT.amax(-1).double()
    mean_B = a_BTC.sum((1, 2)).double() / (T * C)
    median_B = lower_median(a_BTC.view(B, T * C)).double()  # reorders |x|: nothing reads it afterwards
    running.add("sequences", torch.tensor(float(B), device=x_BTC.device))
    running.add("inf_norm", peak_B.sum())
    running.add("top1_to_median", (peak_B / median_B).sum())
    running.add("top1_to_mean", (peak_B / mean_B).sum())
    running.add("outlier_tokens", exceeds(peak_BT / mean_B[:, None], OUTLIER_RATIO).sum() / T)
    running.peak("massive_ratio", torch.minimum(peak_B / MASSIVE_SIZE, peak_B / (MASSIVE_RATIO * median_B)).amax())

    # Kurtosis of the sequence: centred on its mean, scaled by its unbiased standard deviation.
    z_BTC = torch.sub(x_BTC, x_BTC.mean((1, 2), keepdim=True), out=scratch.like(x_BTC))
    z_BTC.mul_(z_BTC)
    variance_B = (z_BTC.sum((1, 2)) / (T * C - 1)).double()
    z_BTC.mul_(z_BTC)
    fourth_B = z_BTC.sum((1, 2)).double() / (T * C)
    running.add("kurtosis_sequence", (fourth_B / (variance_B**2 + SEQUENCE_EPSILON)).sum())
    running.add("kurtosis_sequence_no_eps", (fourth_B / variance_B**2).sum())

    # Kurtosis of a token: the numerator is not centred, the unbiased standard deviation is.
    x4_BTC = torch.mul(x_BTC, x_BTC, out=scratch.like(x_BTC))
    x4_BTC.mul_(x4_BTC)
    x4_BT = x4_BTC.sum(-1) / C
    y_BTC = torch.sub(x_BTC, x_BTC.mean(-1, keepdim=True), out=scratch.like(x_BTC))
    y_BTC.mul_(y_BTC)
    variance_BT = y_BTC.sum(-1) / (C - 1)
    running.add("kurtosis_token_context", (x4_BT / variance_BT**2 - 3).relu().sum(dtype=torch.float64) / T)

    # Channels: energies of the token-centred tensor over all sequences.
    running.add("tokens", torch.tensor(float(B * T), device=x_BTC.device))
    running.add("channel_energy", y_BTC.sum((0, 1)))


def exceeds(values: Tensor, threshold: float) -> Tensor:
    """Float64: 1 where values > threshold, 0 elsewhere, NaN where the value is NaN."""
    return torch.where(values.isnan(), torch.nan, (values > threshold).double())


def finish(running: Running) -> dict[str, Tensor]:
    """Scalars by metric id; only `channel_ratio` where only `channel_peaks` was recorded."""
    peak_C = running.peaks["channel_max"].double()
    values = {"channel_ratio": peak_C.amax() / lower_median(peak_C[None].clone())[0]}
    if "sequences" not in running.sums:
        return values
    sums = running.sums
    for name in (
        "inf_norm",
        "top1_to_median",
        "top1_to_mean",
        "outlier_tokens",
        "kurtosis_sequence",
        "kurtosis_sequence_no_eps",
        "kurtosis_token_context",
    ):
        values[name] = sums[name] / sums["sequences"]
    values["massive_ratio"] = running.peaks["massive_ratio"]
    energy_C = sums["channel_energy"] / sums["tokens"]
    rms = energy_C.mean().sqrt()
    values["kurtosis_channel"] = (energy_C / (rms + CHANNEL_EPSILON) ** 2).var()
    return values
