"""A first key for each row (packed documents, windows), rows that see nothing, fewer queries than keys."""

import pytest
import torch
from test_attend import worst
from variants import COMBINATIONS, FAMILIES, SIGMOID, VARIANTS, Case, Inputs, dense, error, make

import kernels

BACKENDS = ["reference", "blockwise"]


def documents(length: int) -> torch.Tensor:
    """Two rows of packed documents: three in the first, a sliding window of 20 in the second."""
    position = torch.arange(length, dtype=torch.int32)
    cuts = torch.tensor([0, length // 3, length // 2], dtype=torch.int32)
    packed = cuts[torch.searchsorted(cuts, position, right=True) - 1]
    return torch.stack([packed, (position - 19).clamp_min(0)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 100, 257])
@pytest.mark.parametrize("case", [VARIANTS[0], COMBINATIONS[-2], SIGMOID[0], *FAMILIES], ids=str)
def test_first_key(case: Case, length: int, backend: str) -> None:
    assert worst(make(case, length=length), backend, first_key=documents(length)) < 1e-12


@pytest.mark.parametrize("case", [*VARIANTS, *COMBINATIONS, *FAMILIES], ids=str)
def test_first_key_with_a_loss_on_the_normaliser(case: Case) -> None:
    assert worst(make(case, length=70), "blockwise", lse=True, first_key=documents(70)) < 1e-12


def test_packed_documents_are_separate_sequences() -> None:
    inputs = make(Case(sinks="key_value"), batch=1, length=90)
    first = torch.tensor([[0] * 40 + [40] * 50])
    packed = kernels.attend(*inputs.qkv, inputs.parts, first_key_BT=first)
    alone = [kernels.attend(*(x[:, :, part] for x in inputs.qkv), inputs.parts) for part in (slice(40), slice(40, 90))]
    assert error(packed, torch.cat(alone, dim=2)) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sinks", ["", "logit", "key_value"])
def test_rows_without_a_key(sinks: str, backend: str) -> None:
    """A first key after the row: output 0 (or the sink's value alone), L = −∞ (or the sink's), finite gradients."""
    inputs = make(Case(sinks=sinks, gate="row"), length=70)
    position = torch.arange(70)
    first = (position + (position % 3 == 0)).expand(2, -1)  # every third row sees nothing, the others themselves
    y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, first_key_BT=first, backend=backend)
    if not sinks:
        assert not y[:, :, ::3].any()
        assert (L[:, :, ::3] == -torch.inf).all()
    else:
        expected, L_expected = dense(inputs, first)
        assert error(y, expected) < 1e-12
        assert error(L, L_expected) < 1e-12
    finite = L.masked_fill(-torch.inf == L, 0)
    gradients = torch.autograd.grad(y.square().sum() + finite.square().sum(), inputs.wrt())
    assert all(torch.isfinite(x).all() for x in gradients)
    if not sinks:
        assert not gradients[0][:, :, ::3].any()
        kept = position % 3 != 0
        rows = Inputs(*(x[:, :, kept] for x in inputs.qkv), kernels.Parts())
        alone = kernels.attend(*rows.qkv, first_key_BT=torch.arange(int(kept.sum())).expand(2, -1), backend=backend)
        gate = torch.sigmoid(inputs.parts.gate.logits)[:, :, kept, None]
        assert error(y[:, :, kept], alone * gate) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", ["softcap", "softpick", "clipped", "clipped_row", "elastic"])
def test_rows_without_a_key_of_other_scores(score: str, backend: str) -> None:
    """Output 0, L = −∞, and gradients as if the rows with one key were alone."""
    inputs = make(Case(score=score), length=70)
    position = torch.arange(70)
    first = (position + (position % 3 == 0)).expand(2, -1)
    y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, first_key_BT=first, backend=backend)
    assert not y[:, :, ::3].any()
    assert (L[:, :, ::3] == -torch.inf).all()
    kept = position % 3 != 0
    rows = Inputs(*(x[:, :, kept] for x in inputs.qkv), inputs.parts)
    own = torch.arange(int(kept.sum())).expand(2, -1)
    expected, L_expected = dense(rows, own)
    assert error(y[:, :, kept], expected) < 1e-12
    assert error(L[:, :, kept], L_expected) < 1e-12
    gradients = torch.autograd.grad(y.square().sum() + L[:, :, kept].square().sum(), inputs.wrt())
    wanted = torch.autograd.grad(expected.square().sum() + L_expected.square().sum(), inputs.wrt())
    assert max(map(error, gradients, wanted)) < 1e-12


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("queries", [1, 7, 69])
@pytest.mark.parametrize("case", [Case(), COMBINATIONS[-2], SIGMOID[0], FAMILIES[3], FAMILIES[-1]], ids=str)
def test_the_last_queries_of_a_sequence(case: Case, queries: int, backend: str) -> None:
    """A decoding step: the same rows as in the whole sequence."""
    inputs = make(case, length=70)
    q, k, v = inputs.qkv
    gate = inputs.parts.gate
    late = kernels.Parts(
        score=inputs.parts.score,
        sinks=inputs.parts.sinks,
        added=inputs.parts.added,
        gate=None if gate is None else kernels.RowGate(gate.logits[:, :, -queries:], gate.span),
    )
    y = kernels.attend(q[:, :, -queries:], k, v, late, backend=backend)
    whole = dense(inputs)[0][:, :, -queries:]
    assert error(y, whole) < 1e-12
    weight = torch.randn(whole.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((y * weight).sum(), [k, v, q])
    expected = torch.autograd.grad((whole * weight).sum(), [k, v, q])
    assert max(map(error, gradients, expected)) < 1e-12
