"""Closed-form nulls against simulation and against direct sums."""

import math

import pytest
import torch

from errors import InputError
from kernels.parts import Clipped, Elastic, Sigmoid, Softmax, Softpick
from models import GPTConfig
from outliers import nulls
from outliers.definitions import DEFINITIONS
from outliers.nulls import Setting


def normals(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_harmonic_share_has_the_published_values():
    assert nulls.harmonic_share(64) == pytest.approx(0.074, abs=5e-4)
    assert nulls.harmonic_share(256) == pytest.approx(0.024, abs=5e-4)


def test_uniform_attention_gives_its_closed_forms():
    T, slots = 50, 3
    weights = torch.tril(torch.ones(T, T, dtype=torch.float64))
    weights /= weights.sum(-1, keepdim=True)
    assert nulls.harmonic_share(T) == pytest.approx(weights[:, 0].mean().item())
    entropy = -(weights * weights.clamp_min(1e-300).log()).sum(-1).mean().item()
    assert nulls.uniform_entropy(T) == pytest.approx(entropy)
    setting = Setting(T, 8, 1, 32)
    assert nulls.even_first(setting) == pytest.approx(nulls.harmonic_share(T))
    assert nulls.even_received(setting) == pytest.approx(weights.sum(0).tolist())
    seen = torch.arange(1, T + 1)
    assert nulls.uniform_slot_mass(T, slots) == pytest.approx((slots / (slots + seen)).mean().item())


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (Softmax(), [1 / 3, 1 / 4, 1 / 5]),  # two slots beside 1, 2, 3 keys
        (Sigmoid(-math.log(3)), [1 / 4, 1 / 4, 1 / 4]),
        (Softpick(), [1 / 2, 1 / 4, 1 / 6]),
        (Clipped(gamma=-0.4), [1.0, 0.3, 1.4 / 3 - 0.4]),
        (Clipped(gamma=-1.5, zeta=1.2, per_row=True), [1.0, 1.95 / 2 - 0.75, 1.7 / 3 - 0.5]),
        (Elastic(torch.tensor([-1.0, -0.5])), [0.25, 0.125, 0.25 / 3]),
    ],
)
def test_the_weight_of_a_key_where_none_is_preferred(score, expected):
    slots = 2 if isinstance(score, Softmax) else 0
    assert [nulls.even_weight(i, slots, score) for i in (1, 2, 3)] == pytest.approx(expected)
    assert nulls.even_first(Setting(3, 8, 1, 32, slots, score)) == pytest.approx(sum(expected) / 3)


def test_no_closed_form_for_weights_that_cannot_be_known():
    setting = Setting(64, 32, 4, 128, score=None)
    even = ("effective_support", "zero_weights", "dead_rows", "argmax_first", "entropy")
    for metric in ("first_key_mass", "first_key_mass_gated", "outlier_keys", *even):
        assert DEFINITIONS[metric].null.closed_form(setting) is None, metric
    assert DEFINITIONS["top1_to_median"].null.closed_form(setting) > 5


def test_equal_weights_that_a_threshold_may_cut_have_no_closed_form():
    for score, there in (
        (Softmax(), True),
        (Softpick(), False),
        (Clipped(-0.1), False),
        (Elastic(torch.tensor([-0.9, 2.0])), True),
        (Elastic(torch.tensor([-1.0, 2.0])), False),
    ):
        for metric, value in (("effective_support", 32.5), ("zero_weights", 0), ("dead_rows", 0)):
            null = DEFINITIONS[metric].null.closed_form(Setting(64, 32, 4, 128, score=score))
            assert null == (value if there else None), (score, metric)


def test_the_setting_is_read_off_the_network_and_its_attention():
    llama = GPTConfig(vocab_size=61, context=32, width=96, heads=4, kv_heads=2, mlp="swiglu")
    assert nulls.setting(llama, "softmax", 4) == Setting(32, 96, 4, 256, 0, Softmax())  # 8/3 · 96, not 4 · 96
    slots = {
        name: nulls.setting(llama, name, 4).slots
        for name in ("softmax", "context_scaling", "sink_logit", "off_by_one", "sink_token", "sink_key")
    }
    assert slots == {**dict.fromkeys(("softmax", "context_scaling"), 0), **dict.fromkeys(list(slots)[2:], 1)}
    assert nulls.setting(llama, {"name": "sink_key_value", "slots": 5}, 4).slots == 5
    assert nulls.setting(llama, "sigmoid", 4).score == Sigmoid(-math.log(32))
    with pytest.raises(InputError, match="no_such"):
        nulls.setting(llama, "no_such", 4)


@pytest.mark.parametrize("n", [1000, 32768])
def test_gaussian_top1_is_the_expected_maximum(n):
    simulated = normals(400, n).abs().amax(-1).mean().item()
    assert nulls.gaussian_top1(n) == pytest.approx(simulated, rel=0.01)


@pytest.mark.parametrize("channels", [768, 128])
def test_kurtosis_token_null(channels):
    x = normals(12000, channels)
    simulated = ((x**4).mean(-1) / x.var(-1) ** 2 - 3).relu().mean().item()
    assert nulls.gaussian_kurtosis_token(channels) == pytest.approx(simulated, rel=0.03)


def test_gaussian_column_maximum():
    weight = normals(20, 512, 128).abs()
    simulated = (weight.amax(1) / weight.mean(1)).amax(-1).mean().item()
    assert nulls.gaussian_column_max(512, 128) == pytest.approx(simulated, rel=0.05)
    assert 6 < nulls.gaussian_column_max(4096, 4096) < 7.1  # the null of 2502.06415's figure


def test_random_tokens_are_reproducible_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    tokens = nulls.random_tokens(50, 40, 100, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(tokens, nulls.random_tokens(50, 40, 100, seed=1))
    assert not torch.equal(tokens, nulls.random_tokens(50, 40, 100, seed=2))
    counts = torch.bincount(tokens.flatten(), minlength=50)
    assert counts.min() > 40  # 80 expected of each
    assert counts.shape == (50,)


def test_random_tokens_refuse_an_empty_vocabulary():
    with pytest.raises(InputError, match="vocab_size = 0"):
        nulls.random_tokens(0, 2, 8)


def test_every_closed_form_is_finite_at_the_sizes_of_the_presets():
    for setting in (Setting(32, 64, 16, 256), Setting(256, 128, 16, 512), Setting(1024, 768, 16, 3072, slots=1)):
        for definition in DEFINITIONS.values():
            if definition.null.closed_form:
                assert math.isfinite(definition.null.closed_form(setting)), definition.id
