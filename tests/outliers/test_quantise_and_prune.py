"""Number formats and masks against evaluations written here, in float64."""

import numpy as np
import pytest
import torch

from outliers.compression.prune import keep, scores
from outliers.compression.quantise import absmax, least_squares_limit, zero_point
from outliers.compression.recipe import SPARSITIES

DRAW = np.random.default_rng(0)


def absmax_by_hand(x: np.ndarray, limit: np.ndarray | float, bits: int) -> np.ndarray:
    most = 2 ** (bits - 1) - 1
    return np.clip(np.rint(x / (limit / most)), -most, most) * (limit / most)


def zero_point_by_hand(x: np.ndarray, low: np.ndarray | float, high: np.ndarray | float, bits: int) -> np.ndarray:
    low, high, most = np.minimum(low, 0.0), np.maximum(high, 0.0), 2**bits - 1
    step = (high - low) / most
    zero = np.clip(np.rint(-low / step), 0, most)
    return (np.clip(np.rint(x / step) + zero, 0, most) - zero) * step


def skewed(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape) ** 3 + 0.7


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_formats_are_exact_in_float64(bits):
    x = skewed(40, 30)
    assert np.array_equal(
        absmax(torch.tensor(x), torch.tensor(abs(x).max()), bits), absmax_by_hand(x, abs(x).max(), bits)
    )
    rows = abs(x).max(1, keepdims=True)
    assert np.array_equal(absmax(torch.tensor(x), torch.tensor(rows), bits), absmax_by_hand(x, rows, bits))
    clipped = absmax(torch.tensor(x), torch.tensor(1.5).double(), bits)
    assert np.array_equal(clipped, absmax_by_hand(x, 1.5, bits))
    assert clipped.abs().max() == 1.5
    for ends in ((x.min(), x.max()), (x.min(1, keepdims=True), x.max(1, keepdims=True)), (0.5, 3.0), (-2.0, -1.0)):
        got = zero_point(torch.tensor(x), *map(torch.as_tensor, ends), bits)
        assert np.array_equal(got, zero_point_by_hand(x, *ends, bits))
        assert len(np.unique(got)) > 2 or bits == 2


def test_float32_and_bfloat16_take_the_same_codes():
    """With a step that is a power of two nothing is rounded but the codes, so float32 is exact too."""
    x = (DRAW.standard_normal((50, 50)) * 20).astype(np.float32)
    limit = np.float32(127 / 4)
    assert np.array_equal(absmax(torch.tensor(x), torch.tensor(limit), 8), absmax_by_hand(x.astype(float), 31.75, 8))
    half = torch.tensor(x).bfloat16()
    got = absmax(half, torch.tensor(limit), 8)
    assert got.dtype == torch.bfloat16
    assert np.array_equal(got.double(), absmax_by_hand(half.double().numpy(), 31.75, 8))


def test_nothing_but_zeros_stays_so_and_the_grid_goes_on_without_clipping():
    zeros = torch.zeros(3, 4)
    assert torch.equal(absmax(zeros, zeros.amax(), 8), zeros)
    assert torch.equal(zero_point(zeros, zeros.amin(), zeros.amax(), 8), zeros)
    assert absmax(torch.tensor([1.0, 300.0]), torch.tensor(127.0), 8, clip=False).tolist() == [1.0, 300.0]
    assert absmax(torch.tensor([-300.0]), torch.tensor(127.0), 8, lowest=-1).tolist() == [-128.0]


def test_range_of_least_squares_is_the_best_of_the_candidates():
    x = skewed(64, 48)
    errors = {}
    for k in range(1, 101):
        limit = k * (abs(x).max() + 0.5) / 100
        step = limit / 127
        errors[limit] = ((np.clip(np.rint(x / step), -128, 127) * step - x) ** 2).sum()
    assert float(least_squares_limit(torch.tensor(x), 8)) == pytest.approx(min(errors, key=errors.get), rel=1e-12)


@pytest.mark.parametrize("share", SPARSITIES)
@pytest.mark.parametrize("kind", ["magnitude", "wanda", "random"])
def test_masks_are_counted_exactly_and_hold_the_largest(kind, share):
    weight = torch.tensor(np.rint(skewed(24, 40) * 4) / 4)  # many ties
    norm = torch.arange(1.0, 41.0)
    score = scores(kind, weight, norm, seed=3)
    if kind == "wanda":
        assert np.array_equal(score, (weight.abs().float() * norm))
    by_row = kind == "wanda"
    kept = keep(score, share, by_row=by_row)
    if share == "2:4":
        groups, mask = score.reshape(-1, 4), kept.reshape(-1, 4)
        assert bool((mask.sum(1) == 2).all())
    else:
        groups, mask = (score, kept) if by_row else (score.reshape(1, -1), kept.reshape(1, -1))
        gone = round(share * 100) * groups.shape[1] // 100
        assert bool(((~mask).sum(1) == gone).all())
    for values, stays in zip(groups, mask, strict=True):
        lowest = np.argsort(values.numpy(), kind="stable")[: int((~stays).sum())]
        assert np.array_equal(np.flatnonzero(~stays.numpy()), np.sort(lowest))


def test_a_tail_of_fewer_than_four_inputs_stays_and_chance_is_another_mask():
    kept = keep(scores("magnitude", torch.randn(5, 6), torch.ones(6), 0), "2:4", by_row=False)
    assert bool(kept[:, 4:].all())
    score = [scores("random", torch.ones(20, 20), torch.ones(20), seed) for seed in (0, 1, 0)]
    one, other, again = (keep(each, 0.5, by_row=False) for each in score)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
