"""A setting of the recipe, put on a decoder while it is evaluated and taken off again."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from outliers.access import Decoder
from outliers.compression.calibrate import Calibration, Range
from outliers.compression.prune import keep, scores
from outliers.compression.quantise import QUALCOMM_SMALLEST, absmax, least_squares_limit, widened, zero_point
from outliers.compression.recipe import INPUTS, Activations, Pruning, Setting, Weights
from outliers.nulls import gaussian_top1


@contextmanager
def applied(decoder: Decoder, setting: Setting, calibration: Calibration) -> Iterator[None]:
    """The decoder under a setting; its weights and activations as before on leaving, bit for bit."""
    with _changed(decoder, setting, calibration), decoder.hooked(_hooks(decoder, setting.activations, calibration)):
        yield


@contextmanager
def _changed(decoder: Decoder, setting: Setting, calibration: Calibration) -> Iterator[None]:
    if setting.weights is None and setting.pruning is None:
        yield
        return
    with decoder.preserved():
        with torch.no_grad():
            for layer in range(decoder.sizes.layers):
                for index, (name, matrix_OI) in enumerate(decoder.matrices(layer).items()):
                    if setting.pruning is not None:
                        norm_I = calibration[INPUTS[name], layer].square.sqrt()
                        matrix_OI *= mask(matrix_OI, setting.pruning, norm_I, seed=layer * len(INPUTS) + index)
                    if setting.weights is not None:
                        matrix_OI.copy_(rounded(matrix_OI, setting.weights))
        yield


def mask(matrix_OI: Tensor, pruning: Pruning, norm_I: Tensor, seed: int) -> Tensor:
    """What of a matrix stays, True; norm: ‖x_i‖₂ of its inputs."""
    return keep(scores(pruning.kind, matrix_OI, norm_I, seed), pruning.share, by_row=pruning.kind == "wanda")


def rounded(matrix_OI: Tensor, weights: Weights) -> Tensor:
    """A matrix on its grid."""
    wide, dims = widened(matrix_OI), (0, 1) if weights.one == "tensor" else (1,)
    match weights.range:
        case "absmax":
            return absmax(matrix_OI, wide.abs().amax(dims, keepdim=True), weights.bits)
        case "zero_point":
            return zero_point(matrix_OI, wide.amin(dims, keepdim=True), wide.amax(dims, keepdim=True), weights.bits)
        case "least_squares":
            return absmax(matrix_OI, least_squares_limit(matrix_OI, weights.bits), weights.bits, lowest=-1)
        case "gaussian":
            entries = matrix_OI.numel() if weights.one == "tensor" else matrix_OI.shape[1]
            rms = wide.square().mean(dims, keepdim=True).sqrt()
            return absmax(matrix_OI, rms * gaussian_top1(entries), weights.bits, clip=False)


def _hooks(decoder: Decoder, activations: Activations | None, calibration: Calibration) -> list:
    if activations is None:
        return []
    function = static if activations.one != "token" else by_token
    return [
        (*place, partial(function, activations=activations, seen=calibration.get(place)))
        for place in decoder.places
        if place[0] in activations.sites
    ]


def by_token(x: Tensor, activations: Activations, seen: Range | None = None) -> Tensor:
    """Activations (..., C) on a grid of each token's own."""
    wide, bits = widened(x), activations.bits
    if activations.range == "zero_point":
        return zero_point(x, wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True), bits)
    if activations.range == "gaussian":
        rms = wide.square().mean(-1, keepdim=True).sqrt()
        return absmax(x, rms * gaussian_top1(x.shape[-1]), bits, clip=False)
    return absmax(x, wide.abs().amax(-1, keepdim=True), bits)


def static(x: Tensor, activations: Activations, seen: Range) -> Tensor:
    """Activations (..., C) on one grid, or one for each channel, from what calibration has seen."""
    by_channel, bits = activations.one == "channel", activations.bits
    match activations.range:
        case "absmax":
            return absmax(x, seen.peak if by_channel else seen.peak.amax(), bits)
        case "zero_point":
            return zero_point(x, seen.low, seen.high, bits)
        case "running":
            low, high = torch.tensor(seen.running, dtype=torch.float64, device=x.device)
            return zero_point(x, low, high.clamp(min=QUALCOMM_SMALLEST), bits)
        case "gaussian":
            square, entries = (seen.square, seen.rows) if by_channel else (seen.square.mean(), seen.rows * x.shape[-1])
            return absmax(x, (square / seen.rows).sqrt() * gaussian_top1(entries), bits, clip=False)
