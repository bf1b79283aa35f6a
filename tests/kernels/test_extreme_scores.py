"""Scores where a naive formula fails: rows far from 0, rows whose every weight is 0, scores close to 0."""

import pytest
import torch
from variants import Case, Inputs, dense, error, make

import kernels
from kernels import Clipped, Elastic, Parts, Softmax, Softpick

BACKENDS = ["reference", "blockwise"]
LENGTH = 70


def rows_at(levels: list[float], score: object, dtype: torch.dtype = torch.float32) -> Inputs:
    """Row i has its scores near levels[i % len(levels)]: the query's first channel, which every key has as 1."""
    inputs = make(Case(), length=LENGTH, head_dim=4, dtype=dtype)
    q, k, v = (x.detach().clone() for x in inputs.qkv)
    q[..., 0] = 2 * torch.tensor(levels, dtype=dtype).repeat(LENGTH)[:LENGTH]  # τ = 1/2
    k[..., 0] = 1.0
    return Inputs(*(x.requires_grad_() for x in (q, k, v)), Parts(score))


def compare(inputs: Inputs, backend: str, tolerance: float) -> None:
    """y, L and the gradients of a loss on both, all finite."""
    y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, backend=backend)
    expected, L_expected = dense(inputs)
    gradients = torch.autograd.grad((y * y).sum() + L.sum(), inputs.wrt())
    wanted = torch.autograd.grad((expected * expected).sum() + L_expected.sum(), inputs.wrt())
    for actual, exact in zip([y, L, *gradients], [expected, L_expected, *wanted], strict=True):
        assert torch.isfinite(actual).all()
        assert error(actual, exact) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("levels", [[-100.0], [100.0], [-100.0, 100.0, 0.0], [-300.0, 300.0]])
def test_softpick_far_from_zero(levels: list[float], backend: str) -> None:
    """e^100 and e^300 are no float32; a pivot below 0 would make e^−pivot overflow in the rows near −100."""
    inputs = rows_at(levels, Softpick())
    compare(inputs, backend, 1e-4)  # float32 resolves a score of 300 to 3e-5
    y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, backend=backend)
    low = torch.tensor(levels).repeat(LENGTH)[:LENGTH] < -50
    assert not y[:, :, low].any()
    seen = torch.arange(1.0, LENGTH + 1).log().expand_as(L)
    torch.testing.assert_close(L[:, :, low], seen[:, :, low])  # every key counts 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_softpick_close_to_zero(backend: str) -> None:
    """Scores of 1e-4: e^S − 1 computed as it is written would keep three digits of float32."""
    inputs = make(Case(score="softpick"), length=LENGTH, dtype=torch.float32)
    q = (inputs.q.detach() * 1e-4).requires_grad_()
    compare(Inputs(q, inputs.k, inputs.v, inputs.parts), backend, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_softpick_where_every_score_is_zero(backend: str) -> None:
    inputs = make(Case(score="softpick"), length=LENGTH)
    q = torch.zeros_like(inputs.q).requires_grad_()
    y, L = kernels.attend_with_lse(q, inputs.k, inputs.v, inputs.parts, backend=backend)
    assert not y.any()
    assert L.isneginf().all()
    gradients = torch.autograd.grad(y.sum(), [q, inputs.k, inputs.v])
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", [Clipped(-1 / LENGTH), Clipped(-0.5, per_row=True), Softmax(softcap=30.0)], ids=str)
@pytest.mark.parametrize("levels", [[-100.0, 100.0, 0.0]])
def test_a_common_level_of_a_row(levels: list[float], score: object, backend: str) -> None:
    compare(rows_at(levels, score), backend, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", [Clipped(-60.0), Clipped(-60.0, per_row=True), Elastic(torch.full((4,), -60.0))])
def test_dead_rows_have_no_output_and_no_gradient(score: object, backend: str) -> None:
    """Only a row that puts nearly all on one key can live under this threshold: one with few keys, or none at all."""
    inputs = make(Case(), length=LENGTH)
    inputs.parts = Parts(score)
    y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, backend=backend)
    alive = y.abs().amax(-1) > 0
    assert 0 <= alive.double().mean() < 0.1
    assert torch.isfinite(L).all()
    gradients = torch.autograd.grad(y.square().sum(), inputs.wrt())
    expected = torch.autograd.grad(dense(inputs)[0].square().sum(), inputs.wrt())
    assert max(map(error, gradients, expected)) < 1e-12
    assert not gradients[0][~alive].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dead_row_still_passes_a_gradient_of_the_normaliser(backend: str) -> None:
    inputs = make(Case(), length=LENGTH)
    inputs.parts = Parts(Clipped(-1e9))
    L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, backend=backend)[1]
    gradients = torch.autograd.grad(L.square().sum(), inputs.qkv[:2])
    expected = torch.autograd.grad(dense(inputs)[1].square().sum(), inputs.qkv[:2])
    assert max(map(error, gradients, expected)) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_soft_cap_bounds_the_scores_of_real_keys_alone(backend: str) -> None:
    """Scores of ±1e4 under a cap of 2 give weights within e^±4 of each other; a sink's logit is not capped."""
    inputs = rows_at([1e4, -1e4], Softmax(softcap=2.0))
    L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, backend=backend)[1]
    level = torch.tensor([2.0, -2.0]).repeat(LENGTH)[:LENGTH]
    torch.testing.assert_close(L, (level + torch.arange(1.0, LENGTH + 1).log()).expand_as(L))
    sink = Parts(Softmax(softcap=2.0), kernels.SinkLogits(torch.full((4,), 50.0)))
    y, L = kernels.attend_with_lse(*inputs.qkv, sink, backend=backend)
    torch.testing.assert_close(L, torch.full_like(L, 50.0))
    assert y.abs().max() < 1e-15
