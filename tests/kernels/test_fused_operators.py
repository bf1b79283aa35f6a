"""The fused operators under torch.compile, torch's own operator checks, and their statistics; in the interpreter."""

import pytest
import torch
from test_attend import ids
from test_compile import agree
from test_masks import documents
from variants import COMBINATIONS, FAMILIES, SIGMOID, Case, make

import kernels

pytest.importorskip("triton", reason="Triton is built for Linux on x86-64 alone")

from kernels.fused import operators
from models import GPT, GPTConfig
from models.attention import examples

SMALL = {"batch": 1, "heads": 2, "kv_heads": 1, "dtype": torch.float32, "head_dim": 16}


@pytest.mark.parametrize("case", [COMBINATIONS[-2], Case(score="elastic", gate="element"), SIGMOID[0]], ids=ids)
def test_operators_keep_their_promises(case: Case) -> None:
    """Schema, shape functions and aliasing, as torch.library.opcheck tests them; gradients are tested elsewhere."""
    inputs = make(case, length=20, **{**SMALL, "heads": 4, "kv_heads": 2})
    tensors = operators._inputs(*inputs.qkv, inputs.parts, documents(20)[:1], 0.25)
    tensors = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in tensors)
    namespace = getattr(torch.ops, operators.NAMESPACE)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(namespace.forward.default, (*tensors, True), test_utils=tests)
    y, lse, kept = namespace.forward(*tensors, True)
    dL = torch.ones_like(lse) if lse.numel() else None
    torch.library.opcheck(namespace.backward.default, (y, dL, *tensors, y, lse, kept), test_utils=tests)


@pytest.mark.parametrize("case", [Case(), COMBINATIONS[-2], FAMILIES[1], SIGMOID[2], Case(score="elastic")], ids=ids)
def test_one_graph_and_no_recompiles(case: Case) -> None:
    torch._dynamo.reset()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: kernels.Parts) -> torch.Tensor:
        return kernels.attend(q, k, v, parts, backend="triton")

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    agree(case, compiled, attend, 1e-5, batch=1, heads=2, kv_heads=1, length=20, head_dim=16)


@pytest.mark.parametrize("case", [Case(sinks="key_value4", gate="row"), *FAMILIES, SIGMOID[0]], ids=ids)
@pytest.mark.parametrize("packed", [False, True])
def test_statistics_are_those_of_the_blockwise_back_end(case: Case, packed: bool) -> None:
    inputs = make(case, length=70 if packed else 90, **SMALL)
    first = documents(70)[:1] if packed else None
    same_statistics(inputs.q, inputs.k, inputs.parts, first_key_BT=first)


@pytest.mark.parametrize("case", [Case(), Case(sinks="key", gate="element"), Case(score="softcap")], ids=ids)
def test_statistics_with_prefix_tokens(case: Case) -> None:
    inputs = make(case, length=40, **SMALL)
    same_statistics(inputs.q, inputs.k, inputs.parts, prefix=3)


def test_statistics_of_scores_far_apart() -> None:
    """A rise of the running maximum that rounds the earlier weights to 0."""
    inputs = make(Case(), length=40, **SMALL)
    with torch.no_grad():
        inputs.q.mul_(20)
        inputs.k.mul_(20)
    first = kernels.statistics(inputs.q, inputs.k, backend="triton")
    assert first.max_logit.max() > 500
    blocks = kernels.statistics(inputs.q, inputs.k, backend="blockwise")
    torch.testing.assert_close(first.entropy, blocks.entropy, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(first.received, blocks.received, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [-60.0, -80.0])
def test_support_of_small_sigmoid_weights(bias: float) -> None:
    """Weights of e^−60 and e^−80 are float32 numbers, their squares are not: support and entropy do not scale."""
    inputs = make(SIGMOID[0], length=40, **SMALL)
    parts = kernels.Parts(kernels.Sigmoid(bias))
    softmax = kernels.statistics(inputs.q, inputs.k, backend="blockwise")  # so far down σ is e^s: the same shares
    for backend in ("triton", "blockwise"):
        found = kernels.statistics(inputs.q, inputs.k, parts, backend=backend)
        for name in ("support", "entropy", "received64"):
            torch.testing.assert_close(getattr(found, name), getattr(softmax, name), rtol=1e-4, atol=1e-5)
        assert torch.all(found.received > 0)


def test_statistics_of_rows_without_a_key() -> None:
    inputs = make(Case(score="clipped"), length=40, **SMALL)
    position = torch.arange(40)
    first = (position + (position % 3 == 0)).expand(1, -1)
    same_statistics(inputs.q, inputs.k, inputs.parts, first_key_BT=first)
    same_statistics(inputs.q, inputs.k, kernels.Parts(), first_key_BT=first)


def same_statistics(q: torch.Tensor, k: torch.Tensor, parts: kernels.Parts, **options: object) -> None:
    fused = kernels.statistics(q, k, parts, backend="triton", **options)
    blocks = kernels.statistics(q, k, parts, backend="blockwise", **options)
    # A clipped weight is a difference of nearly equal numbers: what is left carries their rounding, its log more so.
    loose = 25 if isinstance(parts.score, kernels.Clipped | kernels.Elastic) else 1
    for name, expected in vars(blocks).items():
        actual = getattr(fused, name)
        if expected is None:
            assert actual is None
            continue
        torch.testing.assert_close(
            actual, expected, rtol=loose * 2e-5, atol=loose * 2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_statistics_of_sigmoid_with_a_prefix_are_refused_by_name() -> None:
    inputs = make(SIGMOID[0], length=20, **SMALL)
    with pytest.raises(ValueError, match=r"prefix tokens under sigmoid scores \(allowed: softmax\); choose from auto"):
        kernels.statistics(inputs.q, inputs.k, inputs.parts, prefix=2, backend="triton")
    with pytest.raises(ValueError, match="unknown backend 'vendor' of statistics; choose from auto, triton, blockwise"):
        kernels.statistics(inputs.q, inputs.k, backend="vendor")


CONFIG = GPTConfig(vocab_size=17, context=24, layers=1, width=32, heads=2)


@pytest.mark.parametrize("name", examples())
def test_a_whole_gpt_in_one_graph(name: str) -> None:
    """Forward and backward of a GPT with each mechanism: the same loss and gradients as eager, compiled once."""
    tokens = torch.randint(17, (2, 24), generator=torch.Generator().manual_seed(0))
    gpt = GPT(CONFIG, examples()[name], backend="triton")
    plain = GPT(CONFIG, examples()[name], backend="blockwise")
    torch._dynamo.reset()
    compiled = torch.compile(gpt, fullgraph=True, backend="aot_eager")
    for step, change in enumerate((0, 1)):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            loss = compiled((tokens + change) % 17).square().mean()
        expected = plain((tokens + change) % 17).square().mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        parameters = dict(gpt.named_parameters())
        gradients = torch.autograd.grad(loss, parameters.values(), allow_unused=True)
        wanted = torch.autograd.grad(expected, list(plain.parameters()), allow_unused=True)
        for parameter, actual, exact in zip(parameters, gradients, wanted, strict=True):
            torch.testing.assert_close(
                actual, exact, rtol=1e-3, atol=1e-6, msg=lambda text, p=parameter: f"{p}: {text}"
            )
