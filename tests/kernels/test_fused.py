"""The Triton kernels in Triton's interpreter against dense float64 formulas: outputs, L, all gradients, odd shapes.

Every buffer that a kernel writes starts as NaN. Small tiles (32 rows, 16 keys) give short sequences several.
"""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from test_attend import Largest, ids, weights_like, worst
from test_masks import documents
from variants import COMBINATIONS, FAMILIES, SIGMOID, VARIANTS, Case, Inputs, dense, error, make

import kernels

pytest.importorskip("triton", reason="Triton is built for Linux on x86-64 alone")

from kernels.fused import launch, operators
from kernels.fused.configurations import Tiles

NORMALISED = [*VARIANTS, *COMBINATIONS, *FAMILIES]
SMALL = {"batch": 1, "heads": 2, "kv_heads": 1, "dtype": torch.float32}
FLOAT32 = 3e-6  # float32 sums of up to 100 terms, in the norm; the eager float32 formula is at 2e-7 to 2e-6


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """torch.empty gives NaN: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", [*NORMALISED, *SIGMOID], ids=ids)
def test_formula_and_gradients(case: Case) -> None:
    assert worst(make(case, length=50, head_dim=20, **SMALL), "triton") < FLOAT32


@pytest.mark.parametrize("case", [*VARIANTS[::2], *COMBINATIONS[::3], *FAMILIES[::2]], ids=ids)
def test_loss_on_output_and_normaliser_together(case: Case) -> None:
    assert worst(make(case, length=40, head_dim=16, **SMALL), "triton", lse=True) < FLOAT32


def test_loss_on_the_normaliser_alone() -> None:
    inputs = make(Case(sinks="key_value"), length=40, head_dim=16, **SMALL)
    _, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, backend="triton")
    _, expected = dense(inputs)
    wrt = [inputs.q, inputs.k, inputs.parts.sinks.keys]
    gradients = torch.autograd.grad(L.sum(), wrt)
    assert max(map(error, gradients, torch.autograd.grad(expected.sum(), wrt))) < FLOAT32


@pytest.mark.parametrize("length", [1, 33, 63, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 1, 5), (3, 3, 24), (2, 2, 33)])
def test_odd_lengths_head_sizes_and_groups(length: int, heads: int, kv_heads: int, head_dim: int) -> None:
    case = Case(sinks="key_value", added="context", gate="row")
    shape = {"batch": 2 if length < 33 else 1, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    assert worst(make(case, length=length, dtype=torch.float32, **shape), "triton") < FLOAT32


def test_a_long_sequence_and_a_large_head() -> None:
    assert worst(make(Case(sinks="logit", gate="element"), length=257, head_dim=16, **SMALL), "triton") < FLOAT32
    assert worst(make(Case(), length=20, head_dim=192, **SMALL), "triton") < FLOAT32


@pytest.mark.parametrize("tiles", [Tiles(16, 32, 4, 1), Tiles(64, 16, 4, 1), Tiles(16, 64, 4, 1)], ids=str)
@pytest.mark.parametrize("case", [Case(sinks="key_value4"), Case(score="elastic"), Case(score="softpick")], ids=ids)
def test_any_shape_of_tiles(case: Case, tiles: Tiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "tiles", lambda *args, **options: tiles)
    first = documents(100)[1:]
    assert worst(make(case, length=100, head_dim=16, **SMALL), "triton", first_key=first) < FLOAT32


@pytest.mark.parametrize("case", [COMBINATIONS[-2], SIGMOID[2], *FAMILIES[1::2], FAMILIES[2]], ids=ids)
def test_first_keys(case: Case) -> None:
    inputs = make(case, length=70, head_dim=16, dtype=torch.float32, heads=2, kv_heads=2)
    assert worst(inputs, "triton", first_key=documents(70)) < FLOAT32


EMPTY = [Case(), Case(sinks="key"), Case(score="softpick"), Case(score="clipped"), Case(score="elastic"), SIGMOID[0]]


@pytest.mark.parametrize("case", EMPTY, ids=ids)
def test_rows_without_a_key(case: Case) -> None:
    inputs = make(case, length=70, head_dim=16, **SMALL)
    position = torch.arange(70)
    # By turns a row sees nothing, itself, and itself with the one before.
    first = (position + (position % 3 == 0).int() - (position % 3 == 2).int()).expand(1, -1)
    y = kernels.attend(*inputs.qkv, inputs.parts, first_key_BT=first, backend="triton")
    assert not y[:, :, ::3].any()
    expected = kernels.attend(*inputs.qkv, inputs.parts, first_key_BT=first, backend="blockwise")
    assert expected.any()
    assert error(y, expected) < FLOAT32
    gradients = torch.autograd.grad(y.square().sum(), inputs.wrt())
    wanted = torch.autograd.grad(expected.square().sum(), inputs.wrt())
    for actual, exact in zip(gradients, wanted, strict=True):  # many a row's is 0 but for rounding: not relative to it
        assert float((actual - exact).norm()) < FLOAT32 * (1 + float(exact.norm()))


@pytest.mark.parametrize(
    "score", [kernels.Clipped(-0.01), kernels.Clipped(-0.01, 1.05), kernels.Elastic(-torch.ones(2))]
)
def test_weights_at_the_limit_of_the_clip(score: kernels.parts.Score) -> None:
    """A row's one key, or a key that has all the mass, has P = 1 but for rounding: its score has no gradient."""
    inputs = make(Case(), length=40, head_dim=16, **SMALL)
    inputs.parts = kernels.Parts(score)
    with torch.no_grad():
        inputs.q.mul_(30)  # from the second row on, nearly all mass lies on one key
    y = kernels.attend(*inputs.qkv, inputs.parts, backend="triton")
    gradients = torch.autograd.grad(y.square().sum(), inputs.qkv)
    expected = kernels.attend(*(x.double() for x in inputs.qkv), inputs.parts, backend="reference")
    wanted = torch.autograd.grad(expected.square().sum(), inputs.qkv)
    for actual, exact in zip(gradients, wanted, strict=True):
        assert float((actual - exact).norm()) < 3e-5 * (1 + float(exact.norm()))  # scores of 100 are off by 1e-5


@pytest.mark.parametrize("backend", ["reference", "blockwise", "triton"])
@pytest.mark.parametrize("own_key", [True, False], ids=["every row", "first row"])
def test_softpick_of_a_row_with_one_key(backend: str, own_key: bool) -> None:
    """Its weight is 1 or 0 whatever the score: only L has a gradient, and rounding is not multiplied by 1 / |S|."""
    length = 40 if own_key else 1
    inputs = make(Case(score="softpick"), length=length, head_dim=16, **SMALL)
    first = torch.arange(40).expand(1, -1) if own_key else None
    with torch.no_grad():
        inputs.q.mul_(1e-3)
    y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, first_key_BT=first, backend=backend)
    for gradient in torch.autograd.grad(y.square().sum(), inputs.qkv[:2], retain_graph=True):
        assert not gradient.any()
    gradients = torch.autograd.grad((y.square() + y).sum() + L.sum(), inputs.qkv)
    exact, L_exact = dense(inputs, first)
    wanted = torch.autograd.grad((exact.square() + exact).sum() + L_exact.sum(), inputs.qkv)
    for actual, right in zip(gradients, wanted, strict=True):
        assert error(actual, right) < FLOAT32


def test_a_first_key_before_the_sequence_is_the_sequence() -> None:
    inputs = make(Case(), length=40, head_dim=16, **SMALL)
    first = (torch.arange(40) - 20).expand(1, -1)
    y = kernels.attend(*inputs.qkv, first_key_BT=first, backend="triton")
    assert error(y, dense(inputs, first)[0]) < FLOAT32


def test_a_soft_cap_far_above_the_scores() -> None:
    """tanh of small numbers: a difference of nearly equal ones would lose their digits."""
    inputs = make(Case(score="softcap"), length=40, head_dim=16, **SMALL)
    inputs.parts = kernels.Parts(kernels.Softmax(softcap=30.0))
    assert worst(inputs, "triton") < 1e-6


def test_saved_tensors_that_come_back_laid_out_otherwise() -> None:
    inputs = make(Case(sinks="key_value", gate="element"), length=40, head_dim=16, **SMALL)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.contiguous(), lambda x: x):
        assert worst(inputs, "triton") < FLOAT32


def test_a_first_key_beyond_every_row() -> None:
    inputs = make(Case(), length=40, head_dim=16, **SMALL)
    first = torch.full((1, 40), 1000, dtype=torch.int32)
    y = kernels.attend(*inputs.qkv, first_key_BT=first, backend="triton")
    assert not y.any()
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), inputs.qkv))


@pytest.mark.parametrize("case", [Case(sinks="key_value"), Case(score="elastic"), Case(score="sigmoid")], ids=ids)
def test_fewer_queries_than_keys(case: Case) -> None:
    inputs = make(case, length=70, head_dim=16, **SMALL)
    full = kernels.attend(*inputs.qkv, inputs.parts, backend="blockwise")
    tail = kernels.attend(inputs.q[:, :, -37:], inputs.k, inputs.v, inputs.parts, backend="triton")
    assert error(tail, full[:, :, -37:]) < FLOAT32
    gradients = torch.autograd.grad(tail.square().sum(), inputs.wrt())
    wanted = torch.autograd.grad(full[:, :, -37:].square().sum(), inputs.wrt())
    assert max(map(error, gradients, wanted)) < FLOAT32


@pytest.mark.parametrize("shift", [-100.0, -20.0, 20.0, 100.0])
@pytest.mark.parametrize("sinks", ["logit", "logit_row"])
def test_extreme_sinks(shift: float, sinks: str) -> None:
    inputs = make(Case(sinks=sinks, gate="row"), length=33, head_dim=16, sink_shift=shift, **SMALL)
    y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, backend="triton")
    expected, L_expected = dense(inputs)
    # L is kept in base 2: its rounding is that of |L| · log2 e, and e^L inherits it.
    rounding = 8 * abs(shift) * torch.finfo(torch.float32).eps
    assert error(L, L_expected) < 1e-6
    assert error(y, expected) < 1e-6 + rounding
    y = kernels.attend(*inputs.qkv, inputs.parts, backend="triton")
    gradients = torch.autograd.grad((y * weights_like(y).float()).sum(), inputs.wrt())
    wanted = torch.autograd.grad((expected * weights_like(expected)).sum(), inputs.wrt())
    for actual, exact in zip(gradients, wanted, strict=True):
        assert torch.isfinite(actual).all()
        assert (actual.double() - exact.double()).norm() <= (1e-5 + rounding) * exact.double().norm() + 1e-30


@pytest.mark.parametrize("size", [-100.0, 100.0])
def test_softpick_of_extreme_scores(size: float) -> None:
    inputs = make(Case(score="softpick"), length=33, head_dim=16, **SMALL)
    with torch.no_grad():  # every score is near size
        inputs.q.mul_(0.1).add_(size / 4)
        inputs.k.mul_(0.1).add_(1.0)
    assert worst(inputs, "triton") < 1e-4 if size > 0 else not kernels.attend(*inputs.qkv, inputs.parts).any()
    y, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts, backend="triton")
    expected, L_expected = dense(inputs)
    assert error(L, L_expected) < 1e-5
    assert torch.isfinite(y).all()
    assert error(y, expected) < 1e-4


@pytest.mark.parametrize("kind", ["row", "row2", "element"])
def test_closed_gates(kind: str) -> None:
    """z = −90 lies under the clamp: outputs and gradients vanish, nothing is NaN, and its neighbours stay exact."""
    inputs = make(Case(sinks="key_value", gate=kind), length=33, head_dim=16, **SMALL)
    with torch.no_grad():
        inputs.parts.gate.logits[:, :, ::2] = -90.0
        inputs.parts.gate.logits[:, :, 1::4] = -60.0
    y = kernels.attend(*inputs.qkv, inputs.parts, backend="triton")
    assert y[:, :, ::2].abs().max() < 1e-35
    assert worst(inputs, "triton") < FLOAT32


@pytest.mark.parametrize("case", [*VARIANTS[::2], *COMBINATIONS[1:3], *FAMILIES[::2], SIGMOID[0]], ids=ids)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_accurate_as_the_eager_formula(case: Case, dtype: torch.dtype) -> None:
    # The interpreter rounds float32 to bfloat16 towards zero, at twice the error of a GPU's rounding to nearest.
    allowed = 2 if dtype == torch.float16 else 4
    inputs = make(case, length=40, head_dim=16, **{**SMALL, "dtype": dtype})
    expected = dense(inputs)[0]
    weight = weights_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs.wrt())
    errors = {}
    for backend in ("reference", "triton"):
        y = kernels.attend(*inputs.qkv, inputs.parts, backend=backend)
        assert y.dtype == dtype
        gradients = torch.autograd.grad((y * weight.to(y.dtype)).sum(), inputs.wrt())
        errors[backend] = [error(y, expected), *map(error, gradients, wanted)]
    for eager, fast in zip(errors["reference"], errors["triton"], strict=True):
        # Rounding the result alone may cost half a unit in the last place, whatever luck the eager formula had.
        assert fast <= allowed * max(eager, torch.finfo(dtype).eps / 2)


@pytest.mark.parametrize("case", [Case(), Case(sinks="key_value4", added="context", gate="element")], ids=ids)
def test_strided_and_expanded_inputs(case: Case) -> None:
    inputs = make(case, length=33, head_dim=16, dtype=torch.float32, batch=2, heads=2, kv_heads=2)
    q, k, v = (x.detach() for x in inputs.qkv)
    heads_first = [x.contiguous().requires_grad_() for x in (q, k, v)]
    last_strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for x in (q, k, v)]
    fused = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], dim=-1).requires_grad_()
    from_fused = [x.unflatten(-1, (2, -1)).transpose(1, 2) for x in fused.chunk(3, dim=-1)]
    one = [x[:1, :1].clone().requires_grad_() for x in (q, k, v)]
    expanded = [x.expand(2, 2, -1, -1) for x in one]
    for tensors in (heads_first, last_strided, from_fused, expanded):
        assert worst(Inputs(*tensors, inputs.parts), "triton") < FLOAT32
    gradients = torch.autograd.grad(kernels.attend(*inputs.qkv, inputs.parts, backend="triton").sum(), inputs.wrt())
    wanted = torch.autograd.grad(dense(inputs)[0].sum(), inputs.wrt())  # sum() hands over a gradient of strides 0
    assert max(map(error, gradients, wanted)) < FLOAT32


def test_heads_are_joined_by_a_view() -> None:
    inputs = make(Case(gate="row"), length=33, head_dim=16, **SMALL)
    y = kernels.attend(*inputs.qkv, inputs.parts, backend="triton")
    assert y.transpose(1, 2).is_contiguous()


def test_bitwise_repeatable() -> None:
    inputs = make(Case(sinks="key_value4", added="context", gate="row"), length=70, head_dim=16, **SMALL)

    def once() -> list[torch.Tensor]:
        y = kernels.attend(*inputs.qkv, inputs.parts, backend="triton")
        return [y, *torch.autograd.grad((y * y).sum(), inputs.wrt())]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize("case", [Case(sinks="key_value4", gate="element"), Case(score="elastic")], ids=ids)
def test_no_score_matrix_is_allocated(case: Case) -> None:
    length, heads, head_dim = 200, 2, 16
    inputs = make(case, length=length, head_dim=head_dim, **SMALL)
    q, k, v, x, _ = operators._split(operators._inputs(*inputs.qkv, inputs.parts, None, 0.25))
    with torch.no_grad(), Largest() as mode:
        y, lse, kept = launch.forward(q, k, v, x, training=True)
        launch.backward(y, None, q, k, v, x, y, lse, kept)
    # Times four, because the interpreter copies storages, which are counted in bytes; the scores would be 80,000.
    assert 0 < mode.elements <= 4 * heads * length * head_dim < heads * length * length


def test_without_gradient_the_same_numbers_and_nothing_kept() -> None:
    inputs = make(Case(score="clipped"), length=40, head_dim=16, **SMALL)
    y = kernels.attend(*inputs.qkv, inputs.parts, backend="triton")
    with torch.no_grad():
        assert torch.equal(y, kernels.attend(*inputs.qkv, inputs.parts, backend="triton"))
    q, k, v, x, _ = operators._split(operators._inputs(*inputs.qkv, inputs.parts, None, 0.25))
    assert not launch.forward(q, k, v, x, training=False)[2].numel()


def test_what_is_refused() -> None:
    def refused(match: str, *tensors: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            kernels.attend(*tensors, backend="triton")
        assert "\n" not in str(caught.value)

    refused(r"the triton back end cannot compute dtype torch.float64 \(allowed: torch.bfloat16", *make(Case()).qkv)
    refused(r"head size 300 \(allowed: 1 to 256\)", *make(Case(), head_dim=300, dtype=torch.float32).qkv)
    refused(r"device meta \(allowed: cpu", *(x.to("meta") for x in make(Case(), dtype=torch.float32).qkv))


def test_without_a_gpu_and_the_interpreter_it_is_refused_in_one_line() -> None:
    code = """
import torch, kernels
q = torch.zeros(1, 1, 4, 16)
try:
    kernels.attend(q, q, q, backend="triton")
except ValueError as error:
    print(error)
"""
    environment = {"PYTHONPATH": ".", "TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    expected = "the triton back end cannot compute device cpu (allowed: cuda); choose from auto, reference, vendor"
    assert run.stdout.strip() == f"{expected}, blockwise"
