"""Position and sinks: planted models, on which each analysis finds what was planted and nothing else."""

import math

import numpy as np
import planted
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

import kernels
from outliers import Probe
from outliers.access import sequences
from outliers.analysis.fresh import fresh
from outliers.analysis.numbers import Numbers, beside
from outliers.analysis.sentence import attention_map
from outliers.analysis.survey import Survey, summary
from outliers.analysis.token_kinds import KINDS, kind_of, kinds, limits
from outliers.nulls import harmonic_share
from outliers.weights import ratios


def surveyed(decoder, count=3, length=80) -> pa.Table:
    tokens = sequences(decoder, "built-in", count=count, length=length).tokens
    return Survey(decoder, *kinds(decoder, tokens)).run(tokens).table()


def rows(table: pa.Table, metric: str, **coordinates) -> list[dict]:
    keep = pc.equal(table["metric"], metric)
    for name, value in coordinates.items():
        keep = pc.and_(keep, pc.equal(table[name], value))
    return table.filter(keep).to_pylist()


@pytest.fixture(scope="module")
def ordinary() -> pa.Table:
    return surveyed(planted.decoder())


def test_an_ordinary_model_has_no_outlier_and_no_sink(ordinary):
    assert not rows(ordinary, "outlier_token")
    assert not rows(ordinary, "outlier_key")
    assert all(row["value"] == 0 for row in rows(ordinary, "dormant_inputs") + rows(ordinary, "sink_rate@0.3_key"))
    received = rows(ordinary, "received", layer=1, head=-1, position=0)[0]["value"]
    assert received == pytest.approx(harmonic_share(80), rel=0.1)  # nearly uniform attention


def test_a_planted_massive_activation_is_found_where_it_is_and_nowhere_else():
    found = rows(surveyed(planted.decoder(planted.massive)), "outlier_token")
    assert {(r["site"], r["channel"], r["position"], r["kind"]) for r in found} == {
        ("block_output", planted.CHANNEL, 0, "initial")
    }
    assert sorted((r["sequence"], r["layer"]) for r in found) == [(s, n) for s in range(3) for n in range(3)]
    assert all(r["token"] == "<|endoftext|>" for r in found)


def test_outlier_tokens_equal_a_direct_float64_evaluation():
    decoder = planted.decoder(planted.massive)
    tokens = sequences(decoder, "built-in", count=3, length=80).tokens
    kept = {}
    hooks = [("block_output", n, lambda x, n=n: kept.__setitem__(n, x.double().abs())) for n in range(planted.LAYERS)]
    with decoder.hooked(hooks):
        decoder.nats(tokens)
    expected = {}
    for layer, a_BTC in kept.items():
        for b, a_TC in enumerate(a_BTC):
            for t, a_C in enumerate(a_TC):
                if a_C.max() > 1000 * a_TC.mean():
                    expected[b, layer, t] = float(a_C.max() / a_TC.mean())
    found = rows(surveyed(decoder), "outlier_token")
    assert {(r["sequence"], r["layer"], r["position"]): r["value"] for r in found} == expected


def test_a_planted_sink_is_found_in_its_head_alone():
    table = surveyed(planted.decoder(planted.sink))
    place = (planted.LAYER, planted.HEAD)
    for metric in ("sink_rate@0.3", "first_key_mass_normalised", "dormant_inputs"):
        found = {(r["layer"], r["head"]): r["value"] for r in rows(table, metric)}
        assert found.pop(place) > 0.99, metric
        assert max(found.values()) < 0.2, metric
    sinks = [r for r in rows(table, "sink_rate@0.3_key") if r["value"] > 0]
    over_heads = (planted.LAYER, -1)
    assert {(r["layer"], r["head"], r["position"]): r["value"] for r in sinks} == {
        (*place, 0): 1.0,
        (*over_heads, 0): 1 / planted.HEADS,
    }
    # A quarter of the layer's heads, and little from the others.
    assert {(r["layer"], r["position"]) for r in rows(table, "outlier_key")} == {(planted.LAYER, 0)}


def test_received_attention_is_that_of_the_dense_map():
    decoder = planted.decoder(planted.sink)
    tokens = sequences(decoder, "built-in", count=2, length=80).tokens
    dense = {}

    def attended(layer, q, k, v, parts):
        dense[layer] = attention_map(q.double(), k.double(), parts)
        torch.testing.assert_close(dense[layer].sum(-1), torch.ones(2, 4, 80).double())
        y = kernels.attend(q, k, v, parts)
        torch.testing.assert_close(dense[layer].float() @ v, y, atol=1e-5, rtol=1e-4)

    with decoder.hooked([], attended):
        decoder.nats(tokens)
    table = surveyed(decoder, count=2)
    for layer, A_BHTT in dense.items():
        found = [r["value"] for r in rows(table, "received", layer=layer, head=planted.HEAD)]
        expected = A_BHTT[:, planted.HEAD].sum(1).mean(0) / 80
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)  # the statistics are float32


def test_a_planted_dead_gate_makes_its_head_dormant():
    table = surveyed(planted.decoder(planted.dead_gate, "context_scaling"))
    dormant = [(r["layer"], r["head"]) for r in rows(table, "dormant_inputs") if r["value"] > 0]
    assert dormant == [(planted.LAYER, planted.HEAD)]
    active = rows(table, "active_mass", layer=planted.LAYER, head=planted.HEAD)[0]["value"]
    assert active == pytest.approx(0, abs=1e-12)


def test_a_planted_fat_column_is_found_and_equals_a_float64_evaluation():
    decoder = planted.decoder(planted.fat_column)
    found = [r for r in rows(surveyed(decoder), "weight_column_max_to_mean", site="down") if r["channel"] >= 0]
    assert len(found) == planted.LAYERS * 4 * planted.WIDTH
    assert [(r["layer"], r["channel"]) for r in found if r["value"] > 15] == [(planted.LAYER, planted.COLUMN)]
    a_OI = decoder.matrices(planted.LAYER)["down"].double().abs()
    expected = (a_OI.amax(0) / (a_OI.mean(0) + 1e-8)).tolist()
    assert [r["value"] for r in found if r["layer"] == planted.LAYER] == pytest.approx(expected, rel=1e-12)
    assert ratios(decoder.matrices(0)["down"], 0).dtype == torch.float64


def test_magnitudes_by_channel_and_class_are_those_of_the_tensor():
    decoder = planted.decoder()
    text = sequences(decoder, "built-in", count=1, length=80)
    kept = []
    with decoder.hooked([("down_input", 1, lambda x: kept.append(x[0].abs()))]):
        decoder.nats(text.tokens)
    kinds_T = kinds(decoder, text.tokens)[0][0]
    assert {KINDS[k] for k in kinds_T.tolist()} == set(KINDS)
    table = surveyed(decoder, count=1)
    at = {"site": "down_input", "layer": 1}
    for kind in KINDS:
        a = kept[0][kinds_T == KINDS.index(kind)].flatten().double().sort().values
        expected = {"top1": a[-1], "top2": a[-2], "top3": a[-3], "median": a[(len(a) - 1) // 2], "mean": a.mean()}
        found = {r["statistic"]: r["value"] for r in rows(table, "magnitude", kind=kind, **at)}
        assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-12), kind
    found = [r["value"] for r in rows(table, "magnitude", statistic="median", **at) if r["channel"] >= 0]
    np.testing.assert_array_equal(found, kept[0].median(0).values)


def test_a_summary_of_few_and_of_bad_numbers():
    top, second, third, median, mean = summary(torch.tensor([[3.0, 1.0]])).tolist()
    assert (top, second, median, mean) == (3, 1, 1, 2)
    assert math.isnan(third)
    assert math.isnan(summary(torch.tensor([[1.0, torch.nan, 2.0, 3.0]]))[3])


def test_token_classes_are_read_off_the_text():
    by_kind = {
        "strong": (".", "\n", "\n\n", " .", "?!", ";", ":"),
        "weak": (",", " the", "The", " of", '"', " ", "(", "—"),
        "other": ("harbour", " 12", "\N{REPLACEMENT CHARACTER}", "é", "def", "a1"),
    }
    for kind, texts in by_kind.items():
        assert [kind_of(text) for text in texts] == [kind] * len(texts)


def test_a_tokenizer_without_the_classes_characters_is_named():
    from outliers.access.vocabulary import Characters

    decoder = planted.decoder()
    assert limits(decoder) is None
    decoder.vocabulary = Characters("abcdeht")
    assert limits(decoder) == (
        "the tokenizer of planted cannot write '.', '\\n': token classes that need it stay empty"
    )
    decoder.vocabulary = None
    assert "no tokenizer" in limits(decoder)
    found_BT, texts = kinds(decoder, torch.tensor([[4, 5, 6]]))
    assert found_BT.tolist() == [[0, 3, 3]]
    assert texts == [["#4", "#5", "#6"]]


def test_nulls_stand_beside_their_numbers():
    ours, other = Numbers(), Numbers()
    ours.add("a", [1.0, 2.0], layer=np.array([0, 1]))
    ours.add("b", 3.0, sequence=4, token="x")
    ours.add("a", 5.0, site="s", statistic="mean")
    other.add("a", [10.0, 20.0], layer=np.array([1, 0]))
    other.add("b", 30.0, sequence=4)
    neither = Numbers()
    neither.add("z", 1.0)
    table = beside(ours.table(), other.table(), neither.table(), {"a": 0.5}, {})
    assert table["value"].to_pylist() == [1, 2, 3, 5]
    assert table["null_random"].to_pylist() == [20, 10, None, None]
    assert table["null_initial"].to_pylist() == [None] * 4
    assert table["null_closed"].to_pylist() == [0.5, 0.5, None, None]
    ours.add("made", 0.7, layer=1)  # what the gates of layer 1 make of "a" alone
    table = beside(ours.table(), other.table(), neither.table(), {"a": 0.5}, {"a": "made"})
    assert table["null_closed"].to_pylist() == [0.5, 0.7, None, None, None]
    with pytest.raises(ValueError, match="colour"):
        ours.add("a", 1.0, colour="red")


def test_the_initial_network_is_what_the_trained_one_began_as():
    decoder = planted.decoder(planted.massive)
    state = torch.get_rng_state()
    start = fresh(decoder)
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    plain = dict(planted.decoder().module.named_parameters())
    assert all(torch.equal(parameter, plain[name]) for name, parameter in start.module.named_parameters())


@pytest.mark.parametrize(
    "attention", ["sink_token", "sink_key_value", "sigmoid", "gated_element", {"name": "clipped_softmax", "alpha": 0.5}]
)
def test_it_measures_what_the_probe_measures(attention):
    """One definition for both: every number of the probe stands in the analysis, to the last bit."""
    decoder = planted.decoder(attention=attention, kv_heads=2, mlp="swiglu", positions="rotary")
    tokens = sequences(decoder, "built-in", count=3, length=80).tokens
    table = Survey(decoder, *kinds(decoder, tokens)).run(tokens).table()
    names = ("metric", "site", "layer", "head", "statistic")
    plain = pc.and_(pc.equal(table["channel"], -1), pc.equal(table["position"], -1))
    ours = {tuple(row[n] for n in names): row["value"] for row in table.filter(plain).to_pylist() if not row["kind"]}
    probed = Probe(decoder.module, tokens, chunk=12).measure(0).to_pylist()
    assert len(probed) > 400
    for row in probed:
        np.testing.assert_equal(ours[tuple(row[name] for name in names)], row["value"], err_msg=str(row))


def test_an_attention_that_only_defines_forward_leaves_its_weights_unmeasured():
    decoder = planted.decoder(attention="forward_only.Mean")
    table = surveyed(decoder)
    assert not rows(table, "received") + rows(table, "first_key_mass")
    assert rows(table, "value_drain")
    assert rows(table, "inf_norm")
