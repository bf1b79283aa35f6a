"""Life cycle and consistency on planted models, and the sets' arithmetic."""

import planted
import pyarrow as pa
import pytest
import torch

from outliers.access import sequences
from outliers.analysis.consistency import Consistency, compare, fat_channels, overlap
from outliers.analysis.excerpt import analyse
from outliers.analysis.life_cycle import LifeCycle, others_logit


def text(decoder, count=3, length=64) -> torch.Tensor:
    return sequences(decoder, "built-in", count=count, length=length).tokens


def values(table: pa.Table) -> dict[tuple, float]:
    names = ("metric", "site", "layer", "head", "statistic")
    return {tuple(row[name] for name in names): row["value"] for row in table.to_pylist()}


def born_and_cancelled(gpt) -> None:
    """BOS alone opens one MLP feature in layer 0, which writes 400 into a channel; layer 2 takes 90 % of it away."""
    feature, first, last = 7, gpt.blocks[0].mlp, gpt.blocks[2].mlp
    gpt.embedding.weight[256, 11] = 2.0  # a mark on BOS that the norm makes large
    first.up.weight[feature] = 0.0
    first.up.weight[feature, 11] = 1.0
    first.up.bias[feature] = -3.0
    first.down.weight[planted.CHANNEL, feature] = 100.0
    last.up.weight[feature] = 0.0
    last.up.weight[feature, planted.CHANNEL] = 1.0
    last.up.bias[feature] = -3.0
    last.down.weight[planted.CHANNEL, feature] = -80.0


@pytest.fixture(scope="module")
def planted_life():
    return planted.decoder(born_and_cancelled)


def test_birth_and_death_are_found_in_their_operators(planted_life):
    tokens = text(planted_life)
    life = LifeCycle(planted_life)
    found = values(analyse(planted_life, tokens, life)[0].table())
    channel, token_B = life.largest()
    assert (channel, token_B.tolist()) == (planted.CHANNEL, [0, 0, 0])

    def ratio(site: str, layer: int) -> float:
        own, others = (found[f"life_{name}_top1", site, layer, -1, "value"] for name in ("token", "others"))
        return own / others

    at = planted.CHANNEL
    assert at == found["outlier_channel", "", -1, -1, "value"]
    assert ratio("attention_output", 0) < 10  # nothing before the MLP
    for site in ("down_input", "mlp_output", "block_output"):
        assert ratio(site, 0) > 10, site
    assert ratio("mlp_output", 1) < 10  # carried, not made again
    wrote = {n: found["life_channel_value", "mlp_output", n, -1, "value"] for n in range(3)}
    assert wrote[0] > 300
    assert abs(wrote[1]) < 1
    assert wrote[2] < -300
    assert abs(found["life_cancelled", "", 1, -1, "value"]) < 0.01
    came = found["life_channel_value", "block_input", 2, -1, "value"]
    assert found["life_cancelled", "", 2, -1, "value"] == pytest.approx(-wrote[2] / came, rel=1e-2)


def test_the_spread_of_a_planted_sink_is_in_its_head():
    decoder = planted.decoder(lambda gpt: (planted.massive(gpt), planted.sink(gpt)))
    tokens = text(decoder)
    found = values(analyse(decoder, tokens, LifeCycle(decoder))[0].table())
    at = {h: found["spread_probability", "", planted.LAYER, h, "value"] for h in range(planted.HEADS)}
    assert at.pop(planted.HEAD) > 0.99
    assert max(at.values()) < 0.3
    assert found["spread_k_norm_ratio", "", planted.LAYER, planted.HEAD, "value"] > 5
    above = found["spread_logit", "", planted.LAYER, planted.HEAD, "value"]
    assert above > found["spread_logit_others", "", planted.LAYER, planted.HEAD, "value"] + 10


def test_other_keys_logits_equal_the_dense_mean():
    generator = torch.Generator().manual_seed(0)
    q_HTD, k_HTD = torch.randn(2, 2, 9, 4, generator=generator).double()
    S_HTT = q_HTD @ k_HTD.transpose(1, 2)
    for t in (0, 4):
        chosen = [S_HTT[:, i, j] for i in range(t, 9) for j in range(i + 1) if j != t]
        torch.testing.assert_close(others_logit(q_HTD[:, t:], k_HTD, t), torch.stack(chosen).mean(0))


def test_overlap_and_its_permutation_null():
    a, b = torch.zeros(2, 100, dtype=torch.bool)
    a[[1, 2]], b[[2, 3, 4]] = True, True
    assert overlap(a, b) == (0.5, 0.25)
    found = compare([(a, a), (a, b)])
    assert (found["overlap"], found["iou"]) == (0.75, pytest.approx(0.625))
    assert found["overlap_permuted"] == pytest.approx((0.02 + 0.03) / 2, abs=0.01)  # |B| / N, 1000 draws
    assert found["p"] == pytest.approx(1 / 1001)
    assert compare([(a, ~a)])["p"] == 1


def test_planted_outliers_agree_and_ordinary_ones_do_not():
    def plant(gpt) -> None:
        born_and_cancelled(gpt)
        planted.sink(gpt)

    decoder = planted.decoder(plant)
    assert int(fat_channels(decoder).argmax()) == planted.CHANNEL
    found = values(analyse(decoder, text(decoder), Consistency(decoder, 1000.0))[0].table())
    for metric in ("weight_activation", "activation_attention"):
        assert found[f"{metric}_overlap", "", -1, -1, "coded"] == 1
        assert found[f"{metric}_p", "", -1, -1, "coded"] < 0.05
        assert found[f"{metric}_overlap_permuted", "", -1, -1, "coded"] < 0.1
    ordinary = planted.decoder()
    found = values(analyse(ordinary, text(ordinary), Consistency(ordinary, 100.0))[0].table())
    assert not [key for key in found if key[-1] == "coded"]
    assert found["weight_activation_p", "", -1, -1, "largest"] > 0.05
