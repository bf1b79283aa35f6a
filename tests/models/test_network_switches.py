"""Norms, embedding projection and padded vocabulary: what each computes, in float64, and what it leaves alone."""

from dataclasses import replace

import pytest
import torch

from errors import InputError
from models import GPT, GPTConfig
from models.huggingface import gpt2_state, load_gpt2
from models.initial import Normal, Orthogonal, stable_seed
from models.layers import RMSNorm

CONFIG = GPTConfig(vocab_size=50, context=16, layers=2, heads=4, width=32, init_std=0.2)
TOKENS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))


def spread(gpt: GPT) -> GPT:
    """In float64, with gains and biases that are not 1 and 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            if "norm" in name:
                parameter.add_(torch.rand(parameter.shape, generator=generator))
    return gpt.double()


def test_single_gain_rms_norm() -> None:
    gpt = spread(GPT(replace(CONFIG, norm="rmsnorm_single")))
    norms = [module for module in gpt.modules() if isinstance(module, RMSNorm)]
    assert len(norms) == 2 * 2 + 1
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for module in norms:
        gain = module.weight.item()
        assert module.weight.shape == (1,)
        assert 1 < gain < 2
        assert torch.allclose(module(x), gain * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(), atol=1e-14)
    x.requires_grad_()
    norms[0](x).sum().backward()
    assert torch.allclose(norms[0].weight.grad, (x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()).sum()[None])
    assert {"norm.weight", "blocks.1.norm_mlp.weight"} <= set(gpt.decay_groups()[1])
    assert GPT(replace(CONFIG, norm="rmsnorm_single")).norm.weight.item() == 1.0
    assert RMSNorm(32, single=True)(x.bfloat16()).dtype == torch.bfloat16


def test_sandwich_norms_each_branch_before_it_is_added() -> None:
    gpt = spread(GPT(replace(CONFIG, norm_position="sandwich")))
    block, h = gpt.blocks[1], torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = (getattr(block, name).get_parameter(part) for part in ("weight", "bias"))
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * weight + bias

    middle = h + normed(block.attention(normed(h, "norm_attention")), "norm_attention_output")
    expected = middle + normed(block.mlp(normed(middle, "norm_mlp")), "norm_mlp_output")
    assert torch.allclose(block(h), expected, atol=1e-12)
    assert "blocks.1.norm_mlp_output.weight" in gpt.decay_groups()[1]


def test_the_embedding_projection_folds_into_the_embeddings_and_the_head() -> None:
    config = replace(CONFIG, tie_embeddings=False)
    gpt, folded = spread(GPT(replace(config, embedding_projection=True))), spread(GPT(config))
    p = dict(gpt.named_parameters())
    for name in ("project_in.weight", "project_out.weight"):
        assert torch.allclose(p[name] @ p[name].T, torch.eye(32, dtype=torch.float64), atol=1e-5)  # drawn in float32
        assert name in gpt.decay_groups()[0]
        assert gpt.hidden_matrices()[name] == (p[name], [32])
    with torch.no_grad():
        gpt.project_in.weight.mul_(1.3)
        gpt.project_out.weight[0] += 0.5
    state = {name: parameter for name, parameter in p.items() if not name.startswith("project")}
    state["embedding.weight"] = p["embedding.weight"] @ p["project_in.weight"].T
    state["positions.weight"] = p["positions.weight"] @ p["project_in.weight"].T
    state["head.weight"] = p["head.weight"] @ p["project_out.weight"]
    folded.load_state_dict(state)
    assert torch.allclose(gpt(TOKENS), folded(TOKENS), atol=1e-11)


def test_an_orthogonal_matrix_is_drawn_uniformly() -> None:
    """The sign of a uniform one's diagonal is as often + as -; the plain factor of a Gaussian matrix favours one."""
    draws = [Orthogonal().sample(torch.Size((4, 4)), torch.Generator().manual_seed(seed)) for seed in range(200)]
    share = torch.stack(draws).diagonal(dim1=1, dim2=2).sign().mean(0)
    assert share.abs().max() < 0.25  # 3.5 standard deviations of a fair coin thrown 200 times


def test_the_switches_shift_no_initial_value() -> None:
    plain = GPT(CONFIG).state_dict()
    every = GPT(replace(CONFIG, norm_position="sandwich", embedding_projection=True, pad_vocab=64)).state_dict()
    for name, tensor in plain.items():
        assert torch.equal(every[name][: len(tensor)], tensor), name
    expected = Normal(0.2).sample(
        torch.Size((50, 32)), torch.Generator().manual_seed(stable_seed(0, "embedding.weight"))
    )
    assert torch.equal(every["embedding.weight"][:50], expected)
    assert (every["embedding.weight"][50:] == 0).all()


@pytest.mark.parametrize("tied", [True, False])
def test_a_padded_vocabulary_gets_no_probability_and_no_gradient(tied: bool) -> None:
    plain, padded = (GPT(replace(CONFIG, pad_vocab=pad, tie_embeddings=tied)).double() for pad in (1, 64))
    assert padded.head.weight.shape == padded.embedding.weight.shape == (64, 32)
    logits = padded(TOKENS)
    assert torch.equal(logits, padded(TOKENS, padded=True)[..., :50])
    assert torch.allclose(logits, plain(TOKENS), atol=1e-13)
    logits.square().sum().backward()
    plain(TOKENS).square().sum().backward()
    assert (padded.head.weight.grad[50:] == 0).all()
    assert torch.allclose(padded.head.weight.grad[:50], plain.head.weight.grad, atol=1e-11)
    with pytest.raises(InputError, match="token 50 is outside the vocabulary of 50"):
        padded(torch.tensor([[50]]))


def test_hugging_face_weights_have_no_padding() -> None:
    plain, padded = GPT(CONFIG), GPT(replace(CONFIG, pad_vocab=64))
    theirs = gpt2_state(padded)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in gpt2_state(plain).items())
    assert torch.allclose(load_gpt2(theirs, heads=4)(TOKENS), padded(TOKENS), atol=1e-6)
    for options in ({"norm_position": "sandwich"}, {"embedding_projection": True}):
        with pytest.raises(InputError, match="has no counterpart in Hugging Face"):
            gpt2_state(GPT(replace(CONFIG, **options)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_vocab": 0}, "pad_vocab is 0; it must be a whole number of at least 1"),
        ({"norm": "rmsnorm_singel"}, r"did you mean rmsnorm_single\?.*layernorm, rmsnorm, rmsnorm_single"),
        ({"norm_position": "post"}, "norm_position is 'post'.*pre, sandwich"),
    ],
)
def test_bad_values_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **options).validate()
