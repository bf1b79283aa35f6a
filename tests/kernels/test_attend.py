"""Every variant, on every back end, against dense float64 formulas: outputs, L and all gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from variants import COMBINATIONS, FAMILIES, SIGMOID, VARIANTS, Case, Inputs, dense, error, make

import kernels

FOLDED = VARIANTS + COMBINATIONS
FAST = ["vendor", "blockwise"]
ids = str


def weights_like(y: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worst(
    inputs: Inputs, backend: str, *, lse: bool = False, first_key: Tensor | None = None, scale: float | None = None
) -> float:
    """Largest relative error of y, L and every gradient, of a loss on y alone or on y and L."""
    expected, L_expected = dense(inputs, first_key, scale)
    arguments = {"first_key_BT": first_key, "scale": scale, "backend": backend}
    loss_expected = (expected * weights_like(expected)).sum()
    if lse:
        y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, **arguments)
        assert L.dtype == (torch.float64 if inputs.q.dtype == torch.float64 else torch.float32)
        loss = (y * weights_like(y).to(y.dtype)).sum() + (L * weights_like(L, 2).to(L.dtype)).sum()
        loss_expected = loss_expected + (L_expected * weights_like(L_expected, 2)).sum()
        errors = [error(y, expected), error(L, L_expected)]
    else:
        y = kernels.attend(*inputs.qkv, inputs.parts, **arguments)
        loss = (y * weights_like(y).to(y.dtype)).sum()
        errors = [error(y, expected)]
    assert y.dtype == inputs.q.dtype
    wrt = inputs.wrt()
    gradients = torch.autograd.grad(loss, wrt, allow_unused=True)
    gradients_expected = torch.autograd.grad(loss_expected, wrt, allow_unused=True)
    for tensor, gradient, wanted in zip(wrt, gradients, gradients_expected, strict=True):
        if wanted is None:
            assert gradient is None or not gradient.any()
            continue
        assert gradient is not None
        assert gradient.dtype == tensor.dtype
        assert gradient.shape == tensor.shape
        errors.append(error(gradient, wanted))
    return max(errors)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("case", FOLDED, ids=ids)
def test_formula_and_gradients_in_float64(case: Case, backend: str) -> None:
    assert worst(make(case), backend) < 1e-12


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("case", FOLDED, ids=ids)
def test_loss_on_output_and_normaliser_together(case: Case, backend: str) -> None:
    assert worst(make(case), backend, lse=True) < 1e-12


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
@pytest.mark.parametrize("case", [*SIGMOID, *FAMILIES], ids=ids)
def test_other_scores_in_float64(case: Case, backend: str) -> None:
    assert worst(make(case, length=100), backend) < 1e-12


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
@pytest.mark.parametrize("case", FAMILIES, ids=ids)
def test_other_scores_with_a_loss_on_the_normaliser(case: Case, backend: str) -> None:
    assert worst(make(case, length=100), backend, lse=True) < 1e-12


@pytest.mark.parametrize("case", FOLDED, ids=ids)
def test_float32_error_of_the_fold(case: Case) -> None:
    assert worst(make(case, dtype=torch.float32, length=100, head_dim=20), "vendor") < 1e-5


@pytest.mark.parametrize("length", [1, 33, 63, 100, 257])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 5), (2, 24), (4, 33)])
@pytest.mark.parametrize("backend", FAST)
def test_odd_lengths_head_sizes_and_groups(length: int, kv_heads: int, head_dim: int, backend: str) -> None:
    case = Case(sinks="key_value", added="context", gate="row")
    inputs = make(case, batch=1, length=length, kv_heads=kv_heads, head_dim=head_dim, dtype=torch.float32)
    assert worst(inputs, backend) < 1e-5


# Not a length of 1, as in test_masks.py: a lone key of softpick has P = 1, so the gradient of q is 0, and rounding.
@pytest.mark.parametrize("length", [33, 63, 100, 257])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 5), (4, 33)])
@pytest.mark.parametrize("score", ["sigmoid", "softcap", "softpick", "clipped", "clipped_row", "elastic"])
def test_odd_lengths_head_sizes_and_groups_of_other_scores(
    length: int, kv_heads: int, head_dim: int, score: str
) -> None:
    inputs = make(Case(score=score), batch=1, length=length, kv_heads=kv_heads, head_dim=head_dim, dtype=torch.float32)
    assert worst(inputs, "blockwise") < 1e-5


@settings(max_examples=25, deadline=None)
@given(
    case=st.sampled_from([*FOLDED, *SIGMOID, *FAMILIES]),
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    length=st.integers(1, 80),
    head_dim=st.integers(1, 17),
    seed=st.integers(0, 1000),
)
def test_any_shape(case: Case, batch: int, groups: int, kv_heads: int, length: int, head_dim: int, seed: int) -> None:
    inputs = make(
        case,
        batch=batch,
        heads=groups * kv_heads,
        kv_heads=kv_heads,
        length=length,
        head_dim=head_dim,
        seed=seed,
    )
    assert worst(inputs, "auto") < 1e-11


@pytest.mark.parametrize("scale", [0.05, 1.0])
@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_given_scale(scale: float, backend: str) -> None:
    assert worst(make(Case(sinks="key_value4", added="context")), backend, scale=scale) < 1e-12


@pytest.mark.parametrize("shift", [-100.0, -20.0, 20.0, 100.0])
@pytest.mark.parametrize("sinks", ["logit", "logit_row"])
@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_extreme_sinks(shift: float, sinks: str, backend: str) -> None:
    inputs = make(Case(sinks=sinks, gate="row"), sink_shift=shift, dtype=torch.float32)
    y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, backend=backend)
    expected, L_expected = dense(inputs)
    # e^{−100} of a row is below float32's resolution of the sink's logit: compare with what L's rounding allows.
    rounding = 4 * abs(shift) * torch.finfo(torch.float32).eps
    assert error(L, L_expected) < 1e-6
    assert error(y, expected) < 1e-6 + rounding
    gradients = torch.autograd.grad((y * weights_like(y).float()).sum(), inputs.wrt())
    wanted = torch.autograd.grad((expected * weights_like(expected)).sum(), inputs.wrt())
    for actual, exact in zip(gradients, wanted, strict=True):
        assert torch.isfinite(actual).all()
        assert (actual.double() - exact.double()).norm() <= (1e-5 + rounding) * exact.double().norm() + 1e-30


@pytest.mark.parametrize("span", ["", "2"])
@pytest.mark.parametrize("kind", ["row", "element"])
def test_closed_gates(kind: str, span: str) -> None:
    """σ(−90) is no normal float32 and σ(−200) is 0: outputs and gradients vanish, no NaN, and the others stay exact."""
    inputs = make(Case(sinks="key_value", gate=kind + span), dtype=torch.float32)
    with torch.no_grad():
        inputs.parts.gate.logits[:, :, ::2] = -90.0
        inputs.parts.gate.logits[:, :, ::4] = -200.0
        inputs.parts.gate.logits[:, :, 1::4] = -60.0
    y = kernels.attend(*inputs.qkv, inputs.parts, backend="vendor")
    assert y[:, :, ::2].abs().max() < 1e-35
    assert error(y, dense(inputs)[0]) < 1e-6
    assert worst(inputs, "vendor") < 1e-5


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("case", [Case(), Case(sinks="key_value4", added="context", gate="element")], ids=ids)
def test_strided_and_expanded_inputs(case: Case, backend: str) -> None:
    inputs = make(case, kv_heads=4)
    q, k, v = (x.detach() for x in inputs.qkv)
    heads_first = [x.contiguous().requires_grad_() for x in (q, k, v)]
    last_strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for x in (q, k, v)]
    fused = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], dim=-1).requires_grad_()
    from_fused = [x.unflatten(-1, (4, -1)).transpose(1, 2) for x in fused.chunk(3, dim=-1)]
    for tensors in (heads_first, last_strided, from_fused):
        assert worst(Inputs(*tensors, inputs.parts), backend) < 1e-12
    one = [x[:1, :1].clone().requires_grad_() for x in (q, k, v)]
    assert worst(Inputs(*(x.expand(2, 4, -1, -1) for x in one), inputs.parts), backend) < 1e-12


@pytest.mark.parametrize("backend", FAST)
def test_an_expanded_gradient(backend: str) -> None:
    """sum() hands a gradient whose strides are all 0 to the backward."""
    inputs = make(Case(sinks="key_value", gate="row"))
    gradients = torch.autograd.grad(kernels.attend(*inputs.qkv, inputs.parts, backend=backend).sum(), inputs.wrt())
    expected = torch.autograd.grad(dense(inputs)[0].sum(), inputs.wrt())
    assert max(map(error, gradients, expected)) < 1e-12


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("case", [*VARIANTS, COMBINATIONS[-2]], ids=ids)
def test_gradcheck(case: Case, lse: bool) -> None:
    inputs = make(case, batch=1, heads=2, kv_heads=1, length=5, head_dim=3)
    call = kernels.attend_with_lse if lse else kernels.attend
    # The tensors are leaves that gradcheck changes in place, inside `parts` too.
    assert torch.autograd.gradcheck(lambda *_: call(*inputs.qkv, inputs.parts, backend="vendor"), inputs.wrt())


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("case", FAMILIES, ids=ids)
def test_gradcheck_of_other_scores(case: Case, lse: bool) -> None:
    inputs = make(case, batch=1, heads=2, kv_heads=1, length=5, head_dim=3)
    call = kernels.attend_with_lse if lse else kernels.attend
    assert torch.autograd.gradcheck(lambda *_: call(*inputs.qkv, inputs.parts, backend="blockwise"), inputs.wrt())


@pytest.mark.parametrize("case", [*VARIANTS, SIGMOID[0], *FAMILIES], ids=ids)
def test_bfloat16_is_as_accurate_as_the_eager_formula(case: Case) -> None:
    inputs = make(case, dtype=torch.bfloat16, length=100, head_dim=16)
    expected = dense(inputs)[0]
    weight = weights_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs.wrt())
    errors = {}
    for backend in ("reference", "auto"):
        y = kernels.attend(*inputs.qkv, inputs.parts, backend=backend)
        assert y.dtype == torch.bfloat16
        gradients = torch.autograd.grad((y * weight.to(y.dtype)).sum(), inputs.wrt())
        errors[backend] = [error(y, expected), *map(error, gradients, wanted)]
    for eager, fast in zip(errors["reference"], errors["auto"], strict=True):
        assert fast <= 2 * eager


@pytest.mark.parametrize("backend", FAST)
def test_bitwise_repeatable(backend: str) -> None:
    inputs = make(Case(sinks="key_value4", added="context", gate="row"), dtype=torch.float32, length=257)

    def once() -> list[Tensor]:
        y = kernels.attend(*inputs.qkv, inputs.parts, backend=backend)
        return [y, *torch.autograd.grad((y * y).sum(), inputs.wrt())]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize("case", [Case(), Case(sinks="key_value", added="context", gate="element")], ids=ids)
@pytest.mark.parametrize("backend", FAST)
def test_without_gradient_the_same_numbers(case: Case, backend: str) -> None:
    inputs = make(case)
    y = kernels.attend(*inputs.qkv, inputs.parts, backend=backend)
    with torch.no_grad():
        silent = kernels.attend(*inputs.qkv, inputs.parts, backend=backend)
    assert y.requires_grad
    assert not silent.requires_grad
    assert torch.equal(y, silent)


@pytest.mark.parametrize("case", [*FOLDED, SIGMOID[0], *FAMILIES], ids=ids)
def test_heads_are_joined_by_a_view(case: Case) -> None:
    inputs = make(case)
    joined = kernels.attend(*inputs.qkv, inputs.parts).transpose(1, 2)
    assert joined.is_contiguous()


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that an operator returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return result


def largest(inputs: Inputs, backend: str, first_key: Tensor | None = None) -> int:
    with Largest() as mode:
        y = kernels.attend(*inputs.qkv, inputs.parts, first_key_BT=first_key, backend=backend)
        torch.autograd.grad(y.sum(), inputs.wrt())
    return mode.elements


@pytest.mark.parametrize("case", [*VARIANTS, *SIGMOID, *FAMILIES], ids=ids)
def test_no_score_matrix_is_allocated(case: Case) -> None:
    length, heads, head_dim = 1024, 2, 4
    inputs = make(case, batch=1, heads=heads, kv_heads=2, length=length, head_dim=head_dim, dtype=torch.float32)
    allowed = max(heads * length * head_dim, heads * length * 64 if case.score else 0)
    assert largest(inputs, "auto") <= allowed
    if case == Case():
        assert largest(inputs, "blockwise") <= heads * length * 64
        assert largest(inputs, "reference") >= heads * length * length  # the measure sees what it should see
