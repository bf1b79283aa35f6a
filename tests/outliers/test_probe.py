"""The probe on real models: what it finds where it was planted, and that it leaves no trace."""

import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch.nn import functional as F

import kernels
from errors import InputError
from models import GPT, GPTConfig
from models.attention import Mechanism, examples
from outliers import DEFINITIONS, HEADLINES, SCHEMA, Probe, headlines, nulls, sentence
from outliers.attention import accumulate, finish
from outliers.definitions import FULL_SITES
from outliers.nulls import random_tokens
from outliers.running import Running

CONFIG = GPTConfig(vocab_size=61, context=64, layers=2, heads=4, width=64)
TOKENS = random_tokens(61, 6, 64, seed=5)
ATTENTION_HEADLINES = [h.name for d in DEFINITIONS.values() if d.scope == "head" for h in d.headlines]


class ForwardOnly(Mechanism):
    """A user's mechanism that defines `forward` alone: no statement about its weights can be made from parts."""

    def forward(self, q_BHTD, k_BGTD, v_BGTD, hidden_BTC, first_key_BT=None):
        return F.scaled_dot_product_attention(q_BHTD, k_BGTD, v_BGTD, is_causal=True)


class OverriddenForward(ForwardOnly):
    """With parts that its forward does not use."""

    def parts(self, q_BHTD, k_BGTD, hidden_BTC):
        return kernels.Parts()


class Failing(Mechanism):
    """A mechanism with a fault of its own."""

    def parts(self, q_BHTD, k_BGTD, hidden_BTC):
        raise RuntimeError("fault in parts")


def spec(name: str) -> dict[str, object]:
    """A class of this file by its import path."""
    return {"name": f"{__name__}.{name}"}


def value(table: pa.Table, metric: str, **where) -> float:
    """The one value of the rows that match."""
    mask = pc.equal(table["metric"], metric)
    for column, wanted in where.items():
        mask = pc.and_(mask, pc.equal(table[column], wanted))
    found = table.filter(mask)["value"].to_pylist()
    assert len(found) == 1, (metric, where, found)
    return found[0]


@pytest.mark.parametrize("attention", examples().values(), ids=examples())
def test_every_mechanism_has_the_same_headlines(attention):
    table = Probe(GPT(CONFIG, attention), TOKENS).measure(0)
    assert table.schema == SCHEMA
    found = headlines(table)
    assert tuple(found) == HEADLINES
    assert all(math.isfinite(entry) for entry in found.values()), found
    # Untrained attention is nearly even, so each mechanism starts at its own closed form.
    setting = nulls.setting(CONFIG, attention, len(TOKENS))
    if attention["name"] == "elastic_softmax":  # at τ = −1 uniform weights lie on the threshold: half of them pass
        assert 0 < found["first_key_mass"] < 0.01
        assert 0.4 < found["zero_weights"] < 0.6
        assert found["dead_rows"] == pytest.approx(1 / 64)  # the first query: its one key has all the mass
        return
    for metric in (
        "first_key_mass", "first_key_mass_gated", "first_key_mass_gated_even", "explicit_sink_mass", "entropy",
        "effective_support", "zero_weights", "dead_rows",
    ):  # fmt: skip
        null = DEFINITIONS[metric].null.closed_form(setting)
        assert null is None or found[metric] == pytest.approx(null, rel=0.1), metric


def test_rows_cover_every_layer_site_head_and_matrix():
    table = Probe(GPT(CONFIG), TOKENS).measure(0)
    keys = list(zip(*(table[c].to_pylist() for c in ("metric", "site", "layer", "head", "statistic")), strict=True))
    assert len(set(keys)) == len(keys)
    for definition in DEFINITIONS.values():
        mine = {key[1:4] for key in keys if key[0] == definition.id}
        if definition.scope == "activation":
            sites = {(site, layer, -1) for site in definition.sites for layer in (0, 1) if site != "norm_final"}
            assert mine == sites | {("norm_final", -1, -1)}
        elif definition.scope == "weight":
            assert mine == {(site, layer, -1) for site in ("q", "k", "v", "o", "up", "down") for layer in (0, 1)}
        elif definition.scope == "model":
            assert not mine  # measured beside the probe, where it is asked for
        else:
            heads = (-1,) if definition.scope == "layer" else range(4)
            assert mine == {("", layer, head) for layer in (0, 1) for head in heads}


def test_what_the_sites_are():
    """Every site's infinity norm against activations computed by hand."""
    gpt = GPT(CONFIG)
    table = Probe(gpt, TOKENS).measure(0)
    block = gpt.blocks[0]
    with torch.no_grad():
        h = gpt.embedding(TOKENS) + gpt.positions.weight[:64]
        normed = block.norm_attention(h)
        attended = block.attention(normed)
        middle = h + attended
        second = block.norm_mlp(middle)
        hidden = F.gelu(block.mlp.up(second), approximate="tanh")
        tensors = {
            "norm_attention": normed,
            "attention_output": attended,
            "norm_mlp": second,
            "down_input": hidden,
            "mlp_output": block.mlp.down(hidden),
            "block_output": middle + block.mlp.down(hidden),
        }
        final = gpt.norm(gpt.blocks[1](tensors["block_output"]))
    for site, x_BTC in tensors.items():
        expected = x_BTC.abs().amax((1, 2)).mean().item()
        assert value(table, "inf_norm", site=site, layer=0) == pytest.approx(expected, rel=1e-4), site
    expected = final.abs().amax((1, 2)).mean().item()
    assert value(table, "inf_norm", site="norm_final", layer=-1) == pytest.approx(expected, rel=1e-4)
    assert set(tensors) | {"norm_final"} == set(FULL_SITES)


def test_attention_rows_are_those_of_the_mechanism():
    gpt = GPT(CONFIG, "sink_key_value")
    table = Probe(gpt, TOKENS).measure(0)
    with torch.no_grad():
        hidden = gpt.blocks[0].norm_attention(gpt.embedding(TOKENS) + gpt.positions.weight[:64])
        attention = gpt.blocks[0].attention
        q, k, _ = (x.unflatten(-1, (4, 16)).transpose(1, 2) for x in attention.qkv(hidden).chunk(3, -1))
        running = Running()
        parts = attention.mechanism.parts(q, k, hidden)
        accumulate(running, kernels.statistics(q, k, parts), parts)
    for metric, expected in finish(running).items():
        for head, entry in enumerate(expected.tolist() if expected.ndim else []):
            assert value(table, metric, layer=0, head=head) == pytest.approx(entry, rel=1e-4), metric


def test_a_planted_massive_activation():
    gpt = GPT(CONFIG)
    before = Probe(gpt, TOKENS).measure(0)
    with torch.no_grad():
        gpt.positions.weight[0, 7] = 2000.0
    after = Probe(gpt, TOKENS).measure(0)
    assert headlines(before)["top1_to_median"] < 10
    assert headlines(after)["top1_to_median"] > 1000
    assert headlines(after)["inf_norm"] == pytest.approx(2000, rel=0.01)
    for layer in (0, 1):
        assert value(after, "massive_ratio", site="block_output", layer=layer) > 1
        assert value(after, "outlier_tokens", site="block_output", layer=layer) == pytest.approx(1 / 64)
    assert value(before, "outlier_tokens", site="block_output", layer=0) == 0


def plant_sink(gpt: GPT) -> None:
    """In layer 0, every query of head 2 looks at key 0."""
    attention = gpt.blocks[0].attention
    with torch.no_grad():
        gpt.positions.weight[0, 0] = 10.0  # the norm makes channel 0 of token 0 about 8
        _, key, value = attention.qkv.weight.split(64)
        query_bias, _, _ = attention.qkv.bias.split(64)
        query_bias[32] = 20.0
        key[32] = 0
        key[32, 0] = 1.0
        value[32:48, 0] = 0


def test_a_planted_sink_head():
    gpt = GPT(CONFIG)
    plant_sink(gpt)
    table = Probe(gpt, TOKENS).measure(0)
    for head in range(4):
        sink = head == 2
        assert (value(table, "first_key_mass", layer=0, head=head) > 0.95) == sink
        assert value(table, "sink_rate@0.3", layer=0, head=head) == float(sink)
        assert (value(table, "argmax_first", layer=0, head=head) > 0.95) == sink
    found = headlines(table)
    assert found["first_key_mass_gated_max"] > 0.95
    assert found["first_key_mass_gated"] < 0.25  # one of four heads, in one of two layers
    assert value(table, "outlier_keys", layer=0) == 1


def test_a_closed_gate_and_a_slot_in_a_model():
    gated = GPT(CONFIG, "context_scaling")
    plant_sink(gated)
    with torch.no_grad():
        scale = gated.blocks[0].attention.mechanism.scale
        scale.weight.zero_()
        scale.bias[2] = -200.0
        assert value(Probe(gated, TOKENS).measure(0), "gate_mean", layer=0, head=2) == 0
    table = Probe(gated, TOKENS).measure(0)
    assert value(table, "first_key_mass", layer=0, head=2) > 0.95
    assert value(table, "first_key_mass_gated", layer=0, head=2) == 0

    slotted = GPT(CONFIG, "sink_key_value")
    plant_sink(slotted)
    with torch.no_grad():
        slotted.blocks[0].attention.mechanism.keys[2, 0, 0] = 60.0
    table = Probe(slotted, TOKENS).measure(0)
    assert value(table, "explicit_sink_mass", layer=0, head=2) > 0.95
    assert value(table, "first_key_mass", layer=0, head=2) < 0.05


def test_a_planted_weight():
    gpt = GPT(CONFIG)
    with torch.no_grad():
        gpt.blocks[1].mlp.down.weight[3, 5] = 30.0
    table = Probe(gpt, TOKENS).measure(0)
    assert value(table, "weight_column_max_to_mean", site="down", layer=1, statistic="max") > 60
    assert value(table, "weight_column_max_to_mean", site="down", layer=0, statistic="max") < 8
    assert headlines(table)["weight_column_down"] > 60


@pytest.mark.parametrize("name", ["ForwardOnly", "OverriddenForward"])
def test_a_mechanism_that_defines_forward_has_no_attention_rows(name):
    table = Probe(GPT(CONFIG, spec(name)), TOKENS).measure(0)
    found = headlines(table)
    measured = set(table["metric"].to_pylist())
    for definition in DEFINITIONS.values():
        if definition.scope in ("head", "layer") and definition.id != "value_drain":
            assert definition.id not in measured
    assert all(math.isnan(found[h]) for h in ATTENTION_HEADLINES if h != "value_drain")
    softmax = headlines(Probe(GPT(CONFIG), TOKENS).measure(0))
    for headline in set(HEADLINES) - set(ATTENTION_HEADLINES) | {"value_drain"}:
        assert found[headline] == pytest.approx(softmax[headline], rel=1e-3), headline


def snapshot(gpt: GPT) -> dict[str, object]:
    return {
        "weights": {name: tensor.clone() for name, tensor in gpt.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in gpt.named_parameters()},
        "modes": [module.training for module in gpt.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in gpt.modules()],
        "random": torch.random.get_rng_state(),
        "grad_enabled": torch.is_grad_enabled(),
    }


def same(left: object, right: object) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def used_model(attention: str | dict[str, object] = "softmax") -> GPT:
    """In training, with gradients, dropout, and one submodule that its owner has set to evaluation."""
    config = GPTConfig(vocab_size=61, context=64, layers=2, heads=4, width=64, dropout=0.1)
    gpt = GPT(config, attention)
    if attention == "softmax":
        gpt(TOKENS[:2]).sum().backward()
    gpt.train()
    gpt.blocks[1].mlp.eval()
    return gpt


def test_the_model_is_left_as_it_was():
    gpt = used_model()
    before = snapshot(gpt)
    probe = Probe(gpt, TOKENS)
    first = probe.measure(7)
    assert same(before, snapshot(gpt))
    assert first.equals(probe.measure(7))  # nor does dropout take part
    assert same(before, snapshot(gpt))


def test_the_model_is_left_as_it_was_after_an_error():
    gpt = used_model(spec("Failing"))
    before = snapshot(gpt)
    with pytest.raises(RuntimeError, match="fault in parts"):
        Probe(gpt, TOKENS).measure(0)
    assert same(before, snapshot(gpt))


@pytest.mark.parametrize("attention", ["softmax", "sink_token", "gated_element"])
def test_chunks_do_not_change_values(attention):
    gpt = GPT(CONFIG, attention)
    whole = Probe(gpt, TOKENS, chunk=6).measure(0)
    for chunk in (1, 4):
        parts = Probe(gpt, TOKENS, chunk=chunk).measure(0)
        assert parts.drop(["value"]).equals(whole.drop(["value"]))
        assert parts["value"].to_pylist() == pytest.approx(whole["value"].to_pylist(), rel=1e-3, abs=1e-5)


def test_prefix_tokens_are_not_read_as_tokens():
    gpt = GPT(CONFIG, "sink_token")
    with torch.no_grad():
        gpt.prefix.fill_(500.0)
        gpt.prefix[:, 0] = -3000.0
    table = Probe(gpt, TOKENS).measure(0)
    assert headlines(table)["top1_to_median"] < 20  # |h| of the prefix itself is 3000
    assert 0 < headlines(table)["explicit_sink_mass"] < 1
    assert sentence(gpt, TOKENS[0])["block_output"].max() < 20


def test_random_tokens_and_extra_columns():
    probe = Probe(GPT(CONFIG), TOKENS, random_tokens_BT=random_tokens(61, 2, 32, seed=1))
    text = probe.measure(5, extra={"tokens": 5120, "learning_rate": 2e-3})
    noise = probe.measure(5, "random")
    assert set(text["inputs"].to_pylist()) == {"probe"}
    assert set(noise["inputs"].to_pylist()) == {"random"}
    assert text.slice(0, 1).drop(["metric", "value", "site"]).to_pylist()[0] | {"layer": 0} == {
        "step": 5,
        "tokens": 5120,
        "learning_rate": 2e-3,
        "residual_dtype": "float32",
        "inputs": "probe",
        "layer": 0,
        "head": -1,
        "statistic": "value",
    }
    assert headlines(pa.concat_tables([text, noise])) == headlines(text)
    assert headlines(noise, "random") != headlines(text)


def test_autocast_is_the_callers():
    gpt = GPT(CONFIG)
    exact = Probe(gpt, TOKENS).measure(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = Probe(gpt, TOKENS).measure(0)
    assert headlines(mixed) == pytest.approx(headlines(exact), rel=0.1, abs=0.02)
    assert headlines(mixed)["top1_to_median"] != headlines(exact)["top1_to_median"]
    half = Probe(gpt.bfloat16(), TOKENS).measure(0)
    assert set(half["residual_dtype"].to_pylist()) == {"bfloat16"}
    assert headlines(half) == pytest.approx(headlines(exact), rel=0.2, abs=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_weights_show_and_do_not_crash(bad):
    gpt = GPT(CONFIG)
    with torch.no_grad():
        gpt.blocks[0].mlp.down.weight[0, 0] = bad
    table = Probe(gpt, TOKENS).measure(0)
    assert not math.isfinite(value(table, "inf_norm", site="block_output", layer=0))
    assert math.isfinite(value(table, "inf_norm", site="norm_mlp", layer=0))  # the fault is located
    assert not math.isfinite(headlines(table)["top1_to_median"])
    assert math.isnan(value(table, "first_key_mass", layer=1, head=0))


LLAMA = GPTConfig(
    vocab_size=61, context=32, layers=2, heads=4, kv_heads=2, width=32, positions="rotary", norm="rmsnorm",
    mlp="swiglu", qk_norm=True, bias=False, tie_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize("attention", examples().values(), ids=examples())
def test_llama_style_model_with_grouped_heads(attention):
    gpt = GPT(LLAMA, attention)
    table = Probe(gpt, TOKENS[:, :32]).measure(0)
    assert all(math.isfinite(entry) for entry in headlines(table).values())
    assert value(table, "value_drain", layer=0, head=0) == value(table, "value_drain", layer=0, head=1)
    assert value(table, "value_drain", layer=0, head=0) != value(table, "value_drain", layer=0, head=2)
    assert value(table, "weight_row_max_to_mean", layer=0, site="gate", statistic="max") > 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = Probe(gpt, TOKENS[:, :32]).measure(0)
    assert headlines(mixed) == pytest.approx(headlines(table), rel=0.1, abs=0.02)


def test_one_token_and_one_key_head():
    """The shortest context: what needs a second token is absent, all else is there."""
    gpt = GPT(replace(LLAMA, context=1, kv_heads=1), "sink_token")
    found = headlines(Probe(gpt, TOKENS[:, :1]).measure(0))
    assert {name for name, entry in found.items() if not math.isfinite(entry)} == {"value_drain", "sink_rate@0.3_any"}
    assert found["first_key_mass"] + found["explicit_sink_mass"] == pytest.approx(1)
    assert found["entropy"] == 0


def test_a_compiled_model_is_not_compiled_again():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    gpt = GPT(CONFIG)
    eager = Probe(gpt, TOKENS).measure(0)
    for block in gpt.blocks:
        block.compile(backend=backend)
    gpt(TOKENS).sum().backward()
    before = len(compiled)
    assert before > 0
    assert Probe(gpt, TOKENS).measure(0).equals(eager)
    gpt(TOKENS).sum().backward()
    assert len(compiled) == before


@pytest.mark.parametrize(
    "tokens", [torch.zeros(4, dtype=torch.int64), torch.zeros(0, 8, dtype=torch.int64), torch.zeros(2, 8)]
)
def test_tokens_that_are_no_batch_are_refused(tokens):
    with pytest.raises(InputError, match="the probe takes int64"):
        Probe(GPT(CONFIG), tokens)


def test_inputs_that_the_probe_does_not_have_are_refused():
    with pytest.raises(InputError, match="inputs = 'random': this probe has probe"):
        Probe(GPT(CONFIG), TOKENS).measure(0, "random")


def test_sentence_gives_the_magnitudes_of_every_block_output():
    gpt = used_model()
    before = snapshot(gpt)
    found = sentence(gpt, TOKENS[0])
    assert same(before, snapshot(gpt))
    assert found["tokens"].tolist() == TOKENS[0, :48].tolist()
    with torch.no_grad():
        h = gpt.embedding(TOKENS[:1, :48]) + gpt.positions.weight[:48]
        gpt.eval()
        expected = []
        for block in gpt.blocks:
            h = block(h)
            expected.append(h[0].abs())
    torch.testing.assert_close(torch.from_numpy(found["block_output"]), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert sentence(gpt, TOKENS[:1, :5])["block_output"].shape == (2, 5, 64)
