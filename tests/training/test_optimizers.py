import pytest
import torch

from errors import InputError
from models import GPT, GPTConfig
from training import optimizers
from training.optimizers import OptimizerConfig


@pytest.fixture
def gpt():
    return GPT(GPTConfig(vocab_size=30, context=8, layers=1, heads=2, width=8), "sink_key_value")


def test_every_parameter_is_in_one_group_and_only_matrices_decay(gpt):
    optimizer = optimizers.build(OptimizerConfig(weight_decay=0.3), gpt)
    groups = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(gpt.parameters()))
    block = gpt.blocks[0]
    assert groups[id(block.attention.out.weight)] == 0.3
    assert groups[id(block.attention.out.bias)] == 0.0
    assert groups[id(block.norm_mlp.weight)] == 0.0
    assert {groups[id(p)] for p in block.attention.mechanism.parameters()} == {0.0}


def test_adamw_is_fused(gpt):
    assert all(group["fused"] for group in optimizers.build(OptimizerConfig(), gpt).param_groups)


def test_a_restored_optimizer_takes_the_configured_constants(gpt):
    saved = optimizers.build(OptimizerConfig(betas=(0.8, 0.9), weight_decay=0.0), gpt).state_dict()
    config = OptimizerConfig(betas=(0.9, 0.99), eps=1e-6, weight_decay=0.2)
    optimizer = optimizers.build(config, gpt)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    optimizers.restate(config, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.99)}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-6}


def test_the_norm_is_that_before_clipping_and_gradients_are_scaled_to_the_limit():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(4))]
    parameters[0].grad = torch.tensor([3.0, 0.0, 0.0])
    parameters[1].grad = torch.tensor([0.0, 4.0, 0.0, 0.0])
    assert optimizers.gradient_norm(parameters, None).item() == 5.0
    assert parameters[1].grad[1].item() == 4.0
    assert optimizers.gradient_norm(parameters, 1.0).item() == 5.0
    assert parameters[1].grad[1].item() == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "sgd"}, "sgd.*adamw, muon"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"betas": (0.9, 1.0)}, r"betas is \[0.9, 1.0\]"),
        ({"eps": 0.0}, "eps is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"momentum": 1.0}, "momentum is 1"),
        ({"skip_spikes": 1.0}, "skip_spikes is 1.0; it is greater than 1"),
    ],
)
def test_bad_values_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        OptimizerConfig(**options).validate()
