"""The network around the mechanisms: sizes, positions, prefix tokens, dropout, refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from errors import InputError
from kernels import Parts
from models import GPT, GPTConfig
from models.attention import Mechanism
from models.initial import Constant, Normal, fill, stable_seed
from models.layers import MLP, LayerNorm, RMSNorm, rotary_table, rotate
from models.presets import PRESETS

CONFIG = GPTConfig(vocab_size=50, context=16, layers=2, heads=4, width=32)
TOKENS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))


def on_meta(config: GPTConfig, attention: str = "softmax") -> GPT:
    """The network without its memory, to count."""
    with torch.device("meta"):
        return GPT(config, attention)


# Sizes


def test_gpt2_counts() -> None:
    assert on_meta(PRESETS["gpt2_124m"]).parameter_count() == 124_439_808
    assert on_meta(PRESETS["gpt2_124m"], "context_scaling").parameter_count() == 124_439_808 + 110_736


def test_demo_count_is_the_one_in_the_comment() -> None:
    assert on_meta(PRESETS["demo"]).parameter_count() == 1_088_256


def test_llama_60m_counts() -> None:
    gpt = on_meta(replace(PRESETS["llama_60m"], vocab_size=1000))
    embedding, head = 1000 * 768, 1000 * 768
    layer = 4 * 768 * 768 + 3 * 768 * 1536 + 2 * 768
    assert gpt.parameter_count() == embedding + head + 10 * layer + 768
    assert round(10 * layer / 1e6, 1) == 59.0


def test_presets_are_valid() -> None:
    for preset in PRESETS.values():
        preset.validate()


def test_swiglu_width_is_rounded_up_to_64() -> None:
    assert GPTConfig(width=128, mlp="swiglu").hidden == 384  # 341.3
    assert GPTConfig(width=768, mlp="swiglu").hidden == 2048  # exact
    assert GPTConfig(width=128).hidden == 512


def test_matrices_are_views_of_the_weights() -> None:
    gpt = GPT(replace(CONFIG, kv_heads=2, mlp="swiglu"))
    matrices = gpt.blocks[0].matrices()
    assert {name: tuple(m.shape) for name, m in matrices.items()} == {
        "q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32), "up": (128, 32), "gate": (128, 32),
        "down": (32, 128),
    }  # fmt: skip
    with torch.no_grad():
        matrices["v"].fill_(7.0)
    assert (gpt.blocks[0].attention.qkv.weight[48:] == 7.0).all()
    assert set(GPT(CONFIG).blocks[0].matrices()) == {"q", "k", "v", "o", "up", "down"}


# The forward pass


def test_forward_is_what_a_plain_gpt_computes() -> None:
    """The whole network again, densely and by hand, in float64."""
    config = replace(CONFIG, kv_heads=2, init_std=0.3)
    gpt = GPT(config, backend="reference").double()
    p = dict(gpt.named_parameters())

    def layer_norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    h = p["embedding.weight"][TOKENS] + p["positions.weight"][:12]
    for layer in range(2):
        name = f"blocks.{layer}"
        qkv = linear(layer_norm(h, f"{name}.norm_attention"), f"{name}.attention.qkv")
        heads = []
        for head in range(4):
            group = head // 2
            q = qkv[..., head * 8 : head * 8 + 8]
            k = qkv[..., 32 + group * 8 : 32 + group * 8 + 8]
            v = qkv[..., 48 + group * 8 : 48 + group * 8 + 8]
            S = (q @ k.transpose(1, 2) / 8**0.5).masked_fill(torch.ones(12, 12).triu(1).bool(), float("-inf"))
            heads.append(S.softmax(-1) @ v)
        h = h + linear(torch.cat(heads, -1), f"{name}.attention.out")
        z = linear(layer_norm(h, f"{name}.norm_mlp"), f"{name}.mlp.up")
        z = 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
        h = h + linear(z, f"{name}.mlp.down")
    expected = layer_norm(h, "norm") @ p["embedding.weight"].T
    assert torch.allclose(gpt(TOKENS), expected, atol=1e-11)


def test_swiglu_and_rms_norm() -> None:
    generator = torch.Generator().manual_seed(1)
    mlp = MLP(replace(CONFIG, mlp="swiglu", mlp_width=24, bias=False)).double()
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.normal_(generator=generator)
    x = torch.randn(3, 32, generator=generator, dtype=torch.float64)
    up, gate = x @ mlp.up.weight[:24].T, x @ mlp.up.weight[24:].T
    assert torch.allclose(mlp(x), (gate / (1 + (-gate).exp()) * up) @ mlp.down.weight.T)

    norm = RMSNorm(32).double()
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    assert torch.allclose(norm(x), expected)
    assert RMSNorm(32)(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(LayerNorm(32, bias=False).double()(x), F.layer_norm(x, (32,)))


def test_qk_norm_gives_queries_and_keys_unit_rms() -> None:
    gpt = GPT(replace(CONFIG, qk_norm=True, kv_heads=2, init_std=0.5))
    seen = record(gpt)
    gpt(TOKENS)
    for x in seen[0][:2]:
        assert torch.allclose(x.square().mean(-1), torch.ones(()), atol=1e-3)
    assert {"blocks.0.attention.norm_q.weight", "blocks.1.attention.norm_k.weight"} <= set(gpt.decay_groups()[1])


def test_untied_head_has_its_own_values() -> None:
    tied, untied = GPT(CONFIG), GPT(replace(CONFIG, tie_embeddings=False))
    assert tied.head.weight is tied.embedding.weight
    assert not torch.equal(untied.head.weight, untied.embedding.weight)
    assert untied.parameter_count() - tied.parameter_count() == 50 * 32


def test_dropout_acts_on_embedding_and_residual_in_training_alone() -> None:
    gpt, plain = GPT(replace(CONFIG, dropout=0.5)), GPT(CONFIG)
    assert not torch.equal(gpt(TOKENS), gpt(TOKENS))
    zeros: list[float] = []
    gpt.dropout.register_forward_hook(lambda _m, _i, out: zeros.append(float((out == 0).float().mean())))
    for block in gpt.blocks:
        block.dropout.register_forward_hook(lambda _m, _i, out: zeros.append(float((out == 0).float().mean())))
    gpt(TOKENS)
    assert len(zeros) == 1 + 2 * 2
    assert all(0.4 < share < 0.6 for share in zeros)
    assert torch.equal(gpt.eval()(TOKENS), plain(TOKENS))


# Positions


def record(gpt: GPT) -> list[tuple[Any, ...]]:
    """What every mechanism is called with: (q, k, v, hidden, first_key) a layer."""
    seen: list[tuple[Any, ...]] = []
    for block in gpt.blocks:
        block.attention.mechanism.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs))
    return seen


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator) for _ in range(2))
    table = rotary_table(torch.arange(40), 8, 10000.0)
    scores = [
        float((rotate(q, table[:, i : i + 1]) * rotate(k, table[:, j : j + 1])).sum())
        for i, j in [(5, 2), (3, 0), (38, 35)]
    ]
    assert max(scores) - min(scores) < 1e-5
    other = float((rotate(q, table[:, 5:6]) * rotate(k, table[:, 3:4])).sum())
    assert abs(other - scores[0]) > 1e-2


def test_rotary_turns_by_position_times_frequency() -> None:
    table = rotary_table(torch.arange(4), 8, 100.0)
    x = torch.zeros(1, 4, 1, 8)
    x[..., 1] = 1.0  # the second pair: frequency 100^(-2/8)
    turned = rotate(x, table)
    angle = torch.arange(4) * 100.0**-0.25
    assert torch.allclose(turned[0, :, 0, 1], angle.cos())
    assert torch.allclose(turned[0, :, 0, 5], angle.sin())
    assert turned[..., [0, 2, 3, 4, 6, 7]].abs().max() == 0


def test_rotary_and_no_positions_have_no_position_parameters() -> None:
    for positions in ("rotary", "none"):
        gpt = GPT(replace(CONFIG, positions=positions))
        assert gpt.positions is None
        assert GPT(CONFIG).parameter_count() - gpt.parameter_count() == 16 * 32


def test_without_positions_the_prefix_is_a_set() -> None:
    """Swapping two earlier tokens leaves the last logits alone in one layer; learned positions change them."""
    swapped = TOKENS.clone()
    swapped[:, [2, 5]] = TOKENS[:, [5, 2]]
    assert not torch.equal(swapped, TOKENS)
    for positions, same in (("none", True), ("learned", False), ("rotary", False)):
        gpt = GPT(replace(CONFIG, layers=1, positions=positions, init_std=0.3))
        assert torch.allclose(gpt(TOKENS)[:, -1], gpt(swapped)[:, -1], atol=1e-5) == same


# Prefix tokens: one for sink_token; a mechanism may ask for more


class ThreeTokens(Mechanism):
    """A longer prefix than any built-in mechanism has."""

    prefix_tokens = 3

    def parts(self, q_BHTD: Tensor, k_BGTD: Tensor, hidden_BTC: Tensor) -> Parts:
        return Parts()


def test_learned_positions_of_real_tokens_are_unchanged_by_the_prefix() -> None:
    inputs = {}
    for name in ("softmax", "sink_token"):
        gpt = GPT(CONFIG, name)
        gpt.blocks[0].register_forward_pre_hook(lambda _m, args, name=name: inputs.update({name: args[0]}))
        assert gpt(TOKENS).shape == (2, 12, 50)
    assert inputs["sink_token"].shape == (2, 13, 32)
    assert torch.equal(inputs["sink_token"][:, 1:], inputs["softmax"])
    assert torch.equal(inputs["sink_token"][:, 0], gpt.prefix.expand(2, -1))


def test_rotary_prefix_is_unrotated_and_the_first_token_is_at_position_one() -> None:
    config = replace(CONFIG, positions="rotary")
    gpt = GPT(config, "sink_token")
    seen = record(gpt)
    gpt(TOKENS)
    _, k, _, hidden, _ = seen[0]
    raw = gpt.blocks[0].attention.qkv(hidden)[..., 32:64].view(2, 13, 4, 8)
    table = rotary_table(torch.arange(13), 8, 10000.0)
    assert torch.allclose(k.transpose(1, 2), rotate(raw, table), atol=1e-6)
    assert torch.equal(k.transpose(1, 2)[:, 0], raw[:, 0])
    assert gpt(torch.zeros(1, 16, dtype=torch.long)).shape == (1, 16, 50)  # the full context still fits


def test_a_longer_rotary_prefix_shares_position_zero() -> None:
    gpt = GPT(replace(CONFIG, positions="rotary"), f"{__name__}.ThreeTokens")
    seen = record(gpt)
    assert gpt(TOKENS).shape == (2, 12, 50)
    _, k, _, hidden, _ = seen[0]
    raw = gpt.blocks[0].attention.qkv(hidden)[..., 32:64].view(2, 15, 4, 8)
    table = rotary_table(torch.tensor([0, 0, 0, *range(1, 13)]), 8, 10000.0)
    assert torch.allclose(k.transpose(1, 2), rotate(raw, table), atol=1e-6)


def test_the_prefix_starts_as_an_embedding_does() -> None:
    prefix = GPT(GPTConfig(vocab_size=5, layers=1, width=4096, init_std=0.05), "sink_token").prefix.detach()
    assert abs(float(prefix.std()) - 0.05) < 5e-3
    assert abs(float(prefix.mean())) < 5e-3


def test_the_prefix_is_trained_and_shares_softmax_values() -> None:
    gpt = GPT(CONFIG, "sink_token")
    gpt(TOKENS).square().mean().backward()
    assert gpt.prefix.grad.abs().max() > 0
    assert gpt.parameter_count() == GPT(CONFIG).parameter_count() + 32


def test_prefix_refuses_packed_documents() -> None:
    with pytest.raises(InputError, match=r"sink_token cannot be combined with packed documents"):
        GPT(CONFIG, "sink_token")(TOKENS, torch.zeros(2, 12, dtype=torch.int32))


# Initial values


def test_initial_values_are_gpt2s() -> None:
    state = GPT(replace(CONFIG, width=128, layers=8, vocab_size=500), seed=3).state_dict()
    for name, value in state.items():
        std = float(value.std()) if value.numel() > 1 else 0.0
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            assert abs(std - 0.02 / 16**0.5) < 2e-4
        elif name.endswith("weight") and value.ndim == 2:
            assert abs(std - 0.02) < 1e-3
        else:
            assert std == 0.0
            assert float(value[0]) == (0.0 if name.endswith("bias") else 1.0)


def test_a_parameters_values_depend_on_seed_and_name_alone() -> None:
    """Known numbers: a change of the scheme would silently unpair runs of different versions."""
    assert stable_seed(0, "embedding.weight") == 384_315_315_084_690_036
    small, large = GPT(CONFIG, seed=5), GPT(replace(CONFIG, layers=3), seed=5)
    for name, value in small.state_dict().items():
        other = large.state_dict()[name]
        scaled = name.endswith(("attention.out.weight", "mlp.down.weight"))
        assert torch.allclose(value * (2 / 3) ** 0.5 if scaled else value, other)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    GPT(CONFIG, "gated_element")
    assert torch.equal(torch.rand(3), expected)


def test_outer_declaration_wins_and_an_unknown_name_is_refused() -> None:
    outer = torch.nn.Module()
    outer.inner = LayerNorm(3)
    outer.initial = {"inner.weight": Constant(5.0), "inner.bias": Normal(1.0)}
    fill(outer, 0)
    assert torch.equal(outer.inner.weight, torch.full((3,), 5.0))
    assert outer.inner.bias.std() > 0
    outer.initial = {"inner.wieght": Constant(5.0)}
    with pytest.raises(ValueError, match=r"inner\.wieght"):
        fill(outer, 0)


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 33}, "width 33 is not divisible by 4 heads"),
        ({"kv_heads": 3}, "4 heads are not divisible by 3 kv_heads"),
        ({"kv_heads": 8}, "4 heads are not divisible by 8 kv_heads"),
        ({"width": 36, "positions": "rotary"}, "rotary positions need an even head size; width 36 / 4 heads is 9"),
        ({"positions": "rotari"}, "positions is 'rotari' (did you mean rotary?); choose from learned, rotary, none"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm'"),
        ({"mlp": "relu"}, "mlp is 'relu'"),
        ({"layers": 0}, "layers is 0; it must be a whole number of at least 1"),
        ({"heads": 2.0}, "heads is 2.0; it must be a whole number"),
        ({"context": True}, "context is True; it must be a whole number"),
        ({"mlp_width": -1}, "mlp_width is -1"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": None}, "vocab_size is not set"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"init_std": 0.0}, "init_std is 0.0; it must be positive"),
        ({"rotary_base": float("nan")}, "rotary_base is nan"),
    ],
)
def test_bad_configuration_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        GPT(replace(CONFIG, **change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_inputs() -> None:
    gpt = GPT(CONFIG)
    with pytest.raises(InputError, match="a sequence of 17 tokens exceeds the context of 16"):
        gpt(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(InputError, match="token 50 is outside the vocabulary of 50"):
        gpt(torch.full((1, 3), 50))
    with pytest.raises(InputError, match="token -100 is outside the vocabulary of 50"):
        gpt(torch.full((1, 3), -100))
    with pytest.raises(InputError, match=r"softmax has no backend 'vendr' \(did you mean vendor\?\); choose from auto"):
        GPT(CONFIG, backend="vendr")
    with pytest.raises(
        InputError, match=r"sigmoid has no backend 'vendor'; choose from auto, reference, triton, blockwise"
    ):
        GPT(CONFIG, "sigmoid", backend="vendor")
