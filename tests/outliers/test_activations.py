"""Each activation metric against a direct float64 evaluation of its written definition."""

import math

import pytest
import torch
from torch import Tensor

from outliers import nulls
from outliers.activations import Scratch, accumulate, channel_peaks, finish, lower_median
from outliers.definitions import DEFINITIONS
from outliers.nulls import Setting
from outliers.running import Running


def measured(x_BTC: Tensor, chunk: int = 2) -> dict[str, float]:
    running, scratch = Running(), Scratch()
    for part in x_BTC.split(chunk):
        accumulate(running, part, scratch)
    return {metric: float(value) for metric, value in finish(running).items()}


def written(x_BTC: Tensor) -> dict[str, float]:
    """The definitions, word for word, one sequence at a time."""
    x_BTC = x_BTC.double()
    B, T, C = x_BTC.shape
    sequences = [x.flatten() for x in x_BTC]
    tops = [x.abs().max().item() for x in sequences]
    medians = [x.abs().sort().values[(T * C - 1) // 2].item() for x in sequences]
    means = [x.abs().mean().item() for x in sequences]
    fourth = [((x - x.mean()) ** 4).mean().item() for x in sequences]
    variance = [x.var(unbiased=True).item() for x in sequences]
    token = [max(0.0, ((t**4).mean() / t.std() ** 4 - 3).item()) for x in x_BTC for t in x]
    centred = (x_BTC - x_BTC.mean(-1, keepdim=True)).flatten(0, 1)
    energy = ((centred / (centred.pow(2).mean().sqrt() + 1e-8)) ** 2).mean(0)
    peaks = x_BTC.abs().flatten(0, 1).max(0).values
    over = [(x.abs().max(-1).values > 1000 * m).double().mean().item() for x, m in zip(x_BTC, means, strict=True)]

    def mean(values):
        return sum(values) / B

    return {
        "top1_to_median": mean([a / b for a, b in zip(tops, medians, strict=True)]),
        "top1_to_mean": mean([a / b for a, b in zip(tops, means, strict=True)]),
        "inf_norm": mean(tops),
        "massive_ratio": max(min(a / 100, a / (1000 * b)) for a, b in zip(tops, medians, strict=True)),
        "outlier_tokens": mean(over),
        "kurtosis_sequence": mean([a / (b**2 + 1e-6) for a, b in zip(fourth, variance, strict=True)]),
        "kurtosis_sequence_no_eps": mean([a / b**2 for a, b in zip(fourth, variance, strict=True)]),
        "kurtosis_token_context": sum(token) / len(token),
        "kurtosis_channel": energy.var(unbiased=True).item(),
        "channel_ratio": (peaks.max() / peaks.sort().values[(C - 1) // 2]).item(),
    }


def planted() -> Tensor:
    """Gaussian noise with one massive activation in one sequence and one channel that is large for every token."""
    x_BTC = torch.randn(5, 31, 40, generator=torch.Generator().manual_seed(0))
    x_BTC[2, 0, 7] = 3000.0
    x_BTC[..., 13] += 25
    return x_BTC


@pytest.mark.parametrize("scale", [1.0, 0.02, 300.0])
@pytest.mark.parametrize("kind", ["gaussian", "planted", "heavy"])
def test_against_the_written_definitions(kind, scale):
    gaussian = torch.randn(5, 31, 40, generator=torch.Generator().manual_seed(1))
    x_BTC = {"gaussian": gaussian, "planted": planted(), "heavy": gaussian**3 + 0.5}[kind] * scale
    found, expected = measured(x_BTC), written(x_BTC)
    assert found.keys() == expected.keys()
    assert {d.id for d in DEFINITIONS.values() if d.scope == "activation"} == found.keys()
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, rel=2e-4, abs=1e-6), metric


def test_a_planted_massive_activation_is_seen():
    quiet, loud = measured(planted()[:1]), measured(planted()[2:3])
    assert loud["inf_norm"] == 3000
    assert loud["top1_to_median"] > 1000 > quiet["top1_to_median"]
    assert loud["massive_ratio"] > 1 > quiet["massive_ratio"]
    assert loud["kurtosis_sequence"] > 1000 > 100 > quiet["kurtosis_sequence"]
    assert loud["outlier_tokens"] == 0  # 3000 is below 1000 times the mean of this small tensor, 3.8
    wide = torch.full((1, 100, 100), 0.1)
    wide[0, 3, 5] = -2000.0
    assert measured(wide)["outlier_tokens"] == pytest.approx(0.01)


def test_a_planted_channel_is_seen_by_the_channel_metrics():
    x_BTC = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(2))
    before = measured(x_BTC)
    x_BTC[..., 5] *= 30
    after = measured(x_BTC)
    assert after["channel_ratio"] == pytest.approx(30 * before["channel_ratio"], rel=0.5)
    assert before["kurtosis_channel"] < 0.2
    assert after["kurtosis_channel"] > 20
    only = torch.zeros(2, 16, 32)
    only[..., 5] = 7.0
    assert measured(only)["kurtosis_channel"] == pytest.approx(32, rel=0.1)  # the upper end of its range, C


def test_the_constant_makes_a_small_tensor_read_low():
    x_BTC = 0.02 * torch.randn(16, 256, 128, generator=torch.Generator().manual_seed(4))
    found = measured(x_BTC, chunk=4)
    assert found["kurtosis_sequence"] == pytest.approx(0.41, abs=0.01)
    assert found["kurtosis_sequence_no_eps"] == pytest.approx(3, abs=0.03)


@pytest.mark.parametrize(
    ("metric", "tolerance"),
    [
        ("top1_to_median", 0.03),
        ("top1_to_mean", 0.03),
        ("kurtosis_sequence", 0.01),
        ("kurtosis_sequence_no_eps", 0.01),
        ("kurtosis_token_context", 0.04),
        ("kurtosis_channel", 0.4),  # a variance over 128 channels has a relative error of 12 %
        ("channel_ratio", 0.06),
        ("outlier_tokens", 0),
    ],
)
def test_gaussian_nulls(metric, tolerance):
    x_BTC = torch.randn(16, 256, 128, generator=torch.Generator().manual_seed(5))
    null = DEFINITIONS[metric].null.closed_form(Setting(256, 128, 16, 512))
    assert measured(x_BTC, chunk=4)[metric] == pytest.approx(null, rel=tolerance)


def test_chunks_do_not_change_values():
    x_BTC = planted()
    whole = measured(x_BTC, chunk=5)
    for chunk in (1, 2, 4):
        parts = measured(x_BTC, chunk)
        assert {m: parts[m] for m in ("inf_norm", "massive_ratio", "channel_ratio", "outlier_tokens")} == {
            m: whole[m] for m in ("inf_norm", "massive_ratio", "channel_ratio", "outlier_tokens")
        }
        assert parts == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_value_reaches_the_metrics(bad):
    x_BTC = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(6))
    x_BTC[1, 2, 3] = bad
    for metric, value in measured(x_BTC).items():
        assert not math.isfinite(value), metric


def test_a_constant_tensor_has_no_kurtosis():
    found = measured(torch.zeros(2, 4, 8))
    assert found["inf_norm"] == 0
    assert found["kurtosis_sequence"] == 0  # its denominator is the constant
    assert found["kurtosis_channel"] == 0  # as here
    assert math.isnan(found["kurtosis_sequence_no_eps"])
    assert math.isnan(found["top1_to_median"])


def test_half_precision_is_read_in_float32():
    x_BTC = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(7)).bfloat16()
    found, expected = measured(x_BTC), written(x_BTC)
    assert found == pytest.approx(expected, rel=1e-4)


def test_channel_peaks_alone_give_the_channel_ratio():
    running = Running()
    channel_peaks(running, planted(), Scratch())
    values = finish(running)
    assert set(values) == {"channel_ratio"}
    assert float(values["channel_ratio"]) == pytest.approx(written(planted())["channel_ratio"], rel=1e-6)


def test_the_input_is_left_alone():
    x_BTC = planted()
    copy = x_BTC.clone()
    measured(x_BTC)
    assert torch.equal(x_BTC, copy)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1001])
def test_lower_median(n):
    rows = torch.randn(4, n, generator=torch.Generator().manual_seed(8))
    assert torch.equal(lower_median(rows.clone()), rows.median(-1).values)
    rows[2, 0] = math.nan
    assert lower_median(rows.clone()).isnan().tolist() == [False, False, True, False]


def test_the_quantile_agrees_with_the_maximum():
    assert nulls.half_normal_quantile(0.5) == pytest.approx(nulls.HALF_NORMAL_MEDIAN)
