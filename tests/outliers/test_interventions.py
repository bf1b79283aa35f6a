"""Interventions and channels: what is changed is exactly what was planted, and the verdicts are the right ones."""

import math

import planted
import pyarrow as pa
import pytest
import torch

from outliers.access import sequences
from outliers.analysis.channels import Channels, ratios
from outliers.analysis.excerpt import analyse
from outliers.analysis.interventions import Interventions, changing, mean_and_error, outliers, used

TAU = 300.0


def text(decoder, count=4, length=64) -> torch.Tensor:
    return sequences(decoder, "built-in", count=count, length=length).tokens


def values(table: pa.Table, metric: str) -> dict[tuple, float]:
    """By (site, layer, statistic), or with a channel where there is one."""
    found = {}
    for row in table.to_pylist():
        if row["metric"] == metric:
            key = (row["site"], row["layer"], row["statistic"])
            found[key if row["channel"] < 0 else (row["site"], row["layer"], row["channel"])] = row["value"]
    return found


def intervened(plant) -> pa.Table:
    decoder = planted.decoder(plant, tie_embeddings=False)
    tokens = text(decoder)
    tokens[:, 1] = ord("T")  # what `used_massive` predicts after BOS
    before = decoder.nats(tokens)
    table = analyse(decoder, tokens, Interventions(decoder, TAU, lambda line: None))[0].table()
    torch.testing.assert_close(decoder.nats(tokens), before, rtol=0, atol=0)
    return table


def test_a_massive_activation_that_is_used_is_called_true():
    table = intervened(planted.used_massive)
    counts = {place: count for place, count in values(table, "outliers").items() if count}
    residual = [("block_input", 0), *(("block_output", n) for n in range(planted.LAYERS))]
    assert {(site, layer): count for (site, layer, _), count in counts.items()} == dict.fromkeys(residual, 4)
    verdicts = values(table, "outliers_used")
    assert verdicts == {(site, layer, "value"): 1.0 for site, layer in residual}
    change = values(table, "loss_change")
    last = ("block_output", planted.LAYERS - 1)
    assert change[*last, "zero"] > 0.03
    # All four are the same number, so their mean is what they were; and as many random entries matter to nobody.
    assert abs(change[*last, "mean"]) < 1e-6
    assert abs(change[*last, "zero_random"]) < 0.01
    assert 0 <= change[*last, "clip"] < change[*last, "zero"]


def test_a_massive_activation_that_is_only_carried_is_called_fake():
    verdicts = values(intervened(planted.carried_massive), "outliers_used")
    assert verdicts
    assert set(verdicts.values()) == {0.0}


def test_an_ordinary_model_has_nothing_to_change():
    table = intervened(lambda gpt: None)
    assert set(values(table, "outliers").values()) == {0.0}
    assert not values(table, "loss_change")


def test_each_action_changes_what_it_says_and_nothing_else():
    x_BTC = torch.full((2, 4, 8), 0.5)
    x_BTC[0, 1, 3], x_BTC[1, 2, 5] = -60.0, 80.0
    outlier = outliers(x_BTC, 10)
    assert outlier.nonzero().tolist() == [[0, 1, 3], [1, 2, 5]]
    mean_C = torch.arange(8.0)
    mean_B = x_BTC.abs().mean((1, 2))
    for action, expected in (("zero", [0, 0]), ("mean", [3, 5]), ("clip", [-10 * mean_B[0], 10 * mean_B[1]])):
        new_BTC = changing(action, 10, mean_C)(x_BTC)
        assert new_BTC[outlier].tolist() == pytest.approx([float(value) for value in expected])
        assert torch.equal(new_BTC[~outlier], x_BTC[~outlier])
    new_BTC = changing("zero_random", 10, mean_C)(x_BTC)
    assert torch.equal(new_BTC[outlier], x_BTC[outlier])
    assert (new_BTC == 0).sum((1, 2)).tolist() == [1, 1]


def test_verdicts_leave_room_for_noise():
    assert used(0.05, 0.01) == 1
    assert used(0.001, 0.001) == 0
    assert used(-0.5, 0.01) == -1
    assert math.isnan(used(-0.012, 0.002))
    assert math.isnan(used(0.05, 0.03))
    assert math.isnan(used(1.0, mean_and_error(torch.tensor([1.0]))[1]))
    assert mean_and_error(torch.tensor([1.0, 3.0])) == pytest.approx((2, 1))


def test_a_triggering_channel_is_found_and_undone():
    decoder = planted.decoder(planted.trigger)
    tokens = text(decoder)
    before = {name: parameter.clone() for name, parameter in decoder.module.named_parameters()}
    table = analyse(decoder, tokens, Channels(decoder))[0].table()
    largest = {
        metric: (layer, float(ratio_C.max())) for metric, _, layer, ratio_C in ratios(decoder) if ratio_C.max() > 4
    }
    norms = decoder.matrices(planted.LAYER)["q"].norm(dim=0)
    assert largest == {
        "gain_to_median": (planted.LAYER, pytest.approx(30)),
        "query_column_to_median": (planted.LAYER, pytest.approx(float(norms[planted.CHANNEL] / norms.median()))),
    }
    place = (planted.LAYER, planted.CHANNEL)
    assert values(table, "outlier_gain") == {("norm_attention", *place): pytest.approx(30)}
    assert list(values(table, "triggering_column")) == [("q", *place)]
    changed = {key[2]: count for key, count in values(table, "channels_changed").items()}
    assert changed == {"gains_to_1": 1, "gains_to_mean": 1, "columns_rescaled": 1}
    ratio = values(table, "channel_ratio_after")
    norm = ("norm_attention", planted.LAYER)
    assert ratio[*norm, "before"] > 15
    assert ratio[*norm, "gains_to_1"] < 3
    assert ratio[*norm, "columns_rescaled"] == ratio[*norm, "before"]  # W_q does not feed the norm
    assert ratio["norm_attention", 0, "gains_to_1"] == ratio["norm_attention", 0, "before"]
    assert all(torch.equal(parameter, before[name]) for name, parameter in decoder.module.named_parameters())


def test_an_ordinary_model_has_no_channel_to_undo():
    decoder = planted.decoder()
    table = analyse(decoder, text(decoder), Channels(decoder))[0].table()
    assert not values(table, "outlier_gain")
    assert not values(table, "triggering_column")
    assert set(values(table, "channels_changed").values()) == {0.0}
