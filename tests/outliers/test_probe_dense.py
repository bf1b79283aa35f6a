"""The whole probe against a second computation of everything: a GPT written out by hand in float64, its dense attention
maps, and the metrics' written definitions. On held-out and on random tokens, untrained and with weights far from it."""

import math

import pytest
import torch
from test_activations import written as written_activations
from test_attention_metrics import attention_map
from test_attention_metrics import written as written_attention
from torch import Tensor

from kernels import Parts, RowGate, Sigmoid, SinkSlots
from models import GPT, GPTConfig
from outliers import Probe
from outliers.nulls import random_tokens

CONFIG = GPTConfig(vocab_size=29, context=24, layers=2, heads=2, width=16)
TOKENS = {"probe": random_tokens(29, 3, 24, seed=1) // 3, "random": random_tokens(29, 3, 24, seed=2)}
H, D, T = CONFIG.heads, CONFIG.head_dim, CONFIG.context

Layers = list[tuple[Tensor, Tensor, Tensor, Parts]]


def normed(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mechanism(name: str, w: dict[str, Tensor], block: str, x: Tensor) -> Parts:
    """The formula of attention-math's table, from the weights."""
    own = f"{block}.attention.mechanism"
    if name == "context_scaling":
        return Parts(gate=RowGate(linear(x, w, f"{own}.scale").transpose(1, 2), 2.0))
    if name == "sink_key_value":
        return Parts(sinks=SinkSlots(w[f"{own}.keys"], w[f"{own}.values"]))
    return Parts(score=Sigmoid(-math.log(T))) if name == "sigmoid" else Parts()


def mixed(q: Tensor, k: Tensor, v: Tensor, parts: Parts) -> Tensor:
    """y (B, H, T, D); a prefix is among the keys."""
    A, explicit, _ = attention_map(q, k, parts, 0)
    y = A @ v
    if isinstance(parts.sinks, SinkSlots):
        y = y + explicit[..., None] * parts.sinks.values[None]  # one slot: all explicit mass is its
    return y * 2 * torch.sigmoid(parts.gate.logits)[..., None] if isinstance(parts.gate, RowGate) else y


def forward(w: dict[str, Tensor], name: str, tokens: Tensor) -> tuple[dict[tuple[str, int], Tensor], Layers]:
    """Activations by (site, layer), prefix left out, and each layer's q, k, v and parts with it."""
    h = w["embedding.weight"][tokens] + w["positions.weight"][:T]
    if name == "sink_token":
        h = torch.cat([w["prefix"].expand(len(tokens), -1, -1), h], dim=1)
    sites: dict[tuple[str, int], Tensor] = {}
    layers: Layers = []
    for layer in range(CONFIG.layers):
        block = f"blocks.{layer}"
        x = sites["norm_attention", layer] = normed(h, w, f"{block}.norm_attention")
        q, k, v = (
            part.unflatten(-1, (H, D)).transpose(1, 2) for part in linear(x, w, f"{block}.attention.qkv").chunk(3, -1)
        )
        parts = mechanism(name, w, block, x)
        layers.append((q, k, v, parts))
        y = sites["out_input", layer] = mixed(q, k, v, parts).transpose(1, 2).flatten(2)
        y = sites["attention_output", layer] = linear(y, w, f"{block}.attention.out")
        h = h + y
        x = sites["norm_mlp", layer] = normed(h, w, f"{block}.norm_mlp")
        x = sites["down_input", layer] = gelu(linear(x, w, f"{block}.mlp.up"))
        y = sites["mlp_output", layer] = linear(x, w, f"{block}.mlp.down")
        h = sites["block_output", layer] = h + y
    sites["norm_final", -1] = normed(h, w, "norm")
    return {key: x[:, -T:] for key, x in sites.items()}, layers


def expected_rows(gpt: GPT, name: str, tokens: Tensor) -> dict[tuple, float]:
    """Every row of the probe: (metric, site, layer, head, statistic) -> value."""
    w = {key: tensor.double() for key, tensor in gpt.state_dict().items()}
    sites, layers = forward(w, name, tokens)
    rows: dict[tuple, float] = {}
    for (site, layer), x in sites.items():
        for metric, value in written_activations(x).items():
            if site != "out_input" or metric == "channel_ratio":
                rows[metric, site, layer, -1, "value"] = value
    for layer, (q, k, v, parts) in enumerate(layers):
        for metric, value in written_attention(q, k, v, parts, gpt.prefix_tokens).items():
            for head, entry in enumerate(value.reshape(-1).tolist()):
                rows[metric, "", layer, head if value.ndim else -1, "value"] = entry
        block = f"blocks.{layer}"
        matrices = dict(zip("qkv", w[f"{block}.attention.qkv.weight"].chunk(3), strict=True))
        matrices |= {"o": w[f"{block}.attention.out.weight"]}
        matrices |= {part: w[f"{block}.mlp.{part}.weight"] for part in ("up", "down")}
        for site, matrix in matrices.items():
            for metric, lines in (("column", matrix.T), ("row", matrix)):
                ratios = sorted(float(line.abs().max() / (line.abs().mean() + 1e-8)) for line in lines)
                rows[f"weight_{metric}_max_to_mean", site, layer, -1, "max"] = ratios[-1]
                rows[f"weight_{metric}_max_to_mean", site, layer, -1, "median"] = ratios[(len(ratios) - 1) // 2]
    return rows


def perturbed(gpt: GPT) -> GPT:
    """Weights and biases far from their initial values, so that attention is uneven and gates are neither open nor
    shut."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    return gpt


@pytest.mark.parametrize("name", ["softmax", "context_scaling", "sink_key_value", "sink_token", "sigmoid"])
@pytest.mark.parametrize("trained", [False, True])
def test_every_row_of_the_probe(name, trained):
    gpt = perturbed(GPT(CONFIG, name)) if trained else GPT(CONFIG, name)
    probe = Probe(gpt, TOKENS["probe"], random_tokens_BT=TOKENS["random"], chunk=2)
    keys = ("metric", "site", "layer", "head", "statistic")
    for inputs, tokens in TOKENS.items():
        table = probe.measure(0, inputs)
        found = dict(
            zip(zip(*(table[key].to_pylist() for key in keys), strict=True), table["value"].to_pylist(), strict=True)
        )
        expected = expected_rows(gpt, name, tokens)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            # Float32 against float64, through two layers.
            assert found[key] == pytest.approx(value, rel=2e-3, abs=1e-5), (inputs, key)
