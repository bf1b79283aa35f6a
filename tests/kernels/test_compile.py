"""Every variant in one graph, without recompiling; autocast; and the rest of what a training loop does."""

import shutil

import pytest
import torch
from test_attend import ids
from variants import COMBINATIONS, FAMILIES, SIGMOID, VARIANTS, Case, Inputs, error, make

import kernels


def train(inputs: Inputs, call: object) -> list[torch.Tensor]:
    y = call(*inputs.qkv, inputs.parts)
    y, L = y if isinstance(y, tuple) else (y, y.new_zeros(1))
    return [y, L, *torch.autograd.grad(y.float().square().sum() + L.square().sum(), inputs.wrt())]


def agree(case: Case, compiled: object, eager: object, tolerance: float, **shape: object) -> None:
    """Warm up once, then demand that other numbers of the same shapes compile nothing."""
    train(make(case, dtype=torch.float32, **shape), compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2):
            inputs = make(case, dtype=torch.float32, seed=seed, **shape)
            assert max(map(error, train(inputs, compiled), train(inputs, eager))) < tolerance


@pytest.mark.parametrize("case", [*VARIANTS, COMBINATIONS[-2], SIGMOID[0], *FAMILIES], ids=ids)
def test_one_graph_and_no_recompiles(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(kernels.attend, fullgraph=True, backend="aot_eager")
    agree(case, compiled, kernels.attend, 1e-5)


@pytest.mark.parametrize("case", [Case(), COMBINATIONS[-2], *FAMILIES[::2]], ids=ids)
def test_one_graph_with_the_normaliser(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(kernels.attend_with_lse, fullgraph=True, backend="aot_eager")
    agree(case, compiled, kernels.attend_with_lse, 1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the inductor back end needs a C++ compiler")
@pytest.mark.parametrize("case", [Case(sinks="key_value", gate="row"), Case(score="elastic")], ids=ids)
def test_inductor(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(kernels.attend, fullgraph=True)
    agree(case, compiled, kernels.attend, 1e-5, length=40)


# Not with sinks on the blockwise back end: their part of the backward is autograd's, and autocast rounds it.
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "case", [*VARIANTS, COMBINATIONS[-2], SIGMOID[0], *(case for case in FAMILIES if not case.sinks)], ids=ids
)
def test_autocast_casts_as_torch_does(case: Case, compiled: bool) -> None:
    """Float32 q, k, v under bf16 autocast: the same as handing over bf16, parameters in float32 all along."""
    torch._dynamo.reset()
    call = torch.compile(kernels.attend, fullgraph=True, backend="aot_eager") if compiled else kernels.attend
    inputs = make(case, dtype=torch.float32)
    rounded = [x.bfloat16() for x in inputs.qkv]
    expected = kernels.attend(*rounded, inputs.parts)
    wanted = torch.autograd.grad(expected.float().square().sum(), inputs.wrt())
    with torch.autocast("cpu", torch.bfloat16):
        y = call(*inputs.qkv, inputs.parts)
        gradients = torch.autograd.grad(y.float().square().sum(), inputs.wrt())  # the backward under autocast too
    assert y.dtype == torch.bfloat16
    assert error(y, expected) < 1e-3
    for tensor, actual, exact in zip(inputs.wrt(), gradients, wanted, strict=True):
        assert actual.dtype == tensor.dtype
        assert error(actual, exact) < 2e-3  # a parameter's float32 sum rounded to bf16 would be off by 4e-3


@pytest.mark.parametrize("case", [Case(sinks="key_value"), Case(gate="element"), *SIGMOID, *FAMILIES], ids=ids)
def test_gradients_accumulate_over_two_backwards(case: Case) -> None:
    inputs = make(case)
    y = kernels.attend(*inputs.qkv, inputs.parts)
    loss = y.square().sum()
    first = torch.autograd.grad(loss, inputs.wrt(), retain_graph=True)
    second = torch.autograd.grad(loss, inputs.wrt())
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(
    "case",
    [Case(sinks="key_value4", added="context", gate="row"), Case(gate="element"), Case(score="elastic", gate="row")],
    ids=ids,
)
def test_only_some_tensors_need_a_gradient(case: Case) -> None:
    """Frozen weights, or attention over inputs that are not learned: the other gradients are unchanged."""
    inputs = make(case)
    full = torch.autograd.grad(kernels.attend(*inputs.qkv, inputs.parts).square().sum(), inputs.wrt())
    frozen = Inputs(*(x.detach() for x in inputs.qkv), inputs.parts)
    learned = torch.autograd.grad(kernels.attend(*frozen.qkv, frozen.parts).square().sum(), frozen.learned())
    assert all(map(torch.equal, full[3:], learned))


def test_operators_of_the_blockwise_back_end() -> None:
    inputs = make(Case(), length=70, dtype=torch.float32)
    first = torch.zeros(2, 70, dtype=torch.int32)
    operator = getattr(torch.ops, kernels.blockwise.NAMESPACE).forward.default
    offset = torch.tensor([0.5, -0.5, -1.0, 0.0], requires_grad=True)
    for first_key, offset_H, family, numbers in (
        (None, None, "softmax", []),
        (first, None, "softmax", [2.0]),
        (None, None, "sigmoid", [-2.0]),
        (first, None, "softpick", []),
        (None, None, "clipped", [-0.1, 1.0, 0.0]),
        (first, offset, "elastic", []),
    ):
        torch.library.opcheck(operator, (*inputs.qkv, first_key, offset_H, 0.3, family, numbers))
