"""Attention statistics against dense float64 definitions, block sizes that do and do not divide the length."""

import math

import pytest
import torch
from test_attend import Largest
from test_masks import documents
from variants import COMBINATIONS, FAMILIES, SIGMOID, VARIANTS, Case, Inputs, error, make

import kernels
from kernels import Clipped, Elastic, ElementGate, Parts, Sigmoid, SinkLogits, SinkSlots, Softmax, Softpick


def dense_statistics(inputs: Inputs, prefix: int, first_key: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
    """The definitions, read off a whole (B, H, T, T) map."""
    q, k = inputs.q.detach().double(), inputs.k.detach().double()
    parts = inputs.parts
    B, H, T, D = q.shape
    R = T - prefix
    k = k.repeat_interleave(H // k.shape[1], dim=1)
    S = (q @ k.transpose(-1, -2)) / math.sqrt(D)
    i, j = torch.arange(T)[:, None], torch.arange(T)[None]
    first = torch.zeros(B, T, dtype=torch.long) if first_key is None else first_key.long()
    seen = (j <= i) & (j >= first[:, :, None])  # (B, T, T)
    raw = S = S.masked_fill(~seen[:, None], -torch.inf)
    if isinstance(parts.score, Softmax) and parts.score.softcap is not None:
        S = (parts.score.softcap * torch.tanh(S / parts.score.softcap)).masked_fill(~seen[:, None], -torch.inf)
    explicit = torch.zeros(B, H, T, 0, dtype=torch.float64)
    if isinstance(parts.sinks, SinkLogits):
        s = parts.sinks.logits.detach().double()
        explicit = (s[:, None].expand(B, H, T) if s.dim() == 1 else s)[..., None]
    elif isinstance(parts.sinks, SinkSlots):
        explicit = torch.einsum("bhid,hrd->bhir", q, parts.sinks.keys.detach().double()) / math.sqrt(D)
    if isinstance(parts.score, Sigmoid):
        A, lse, sink = torch.sigmoid(S + parts.score.bias), None, explicit.sum(-1)
    elif isinstance(parts.score, Softpick):
        difference = torch.where(seen[:, None], torch.expm1(S), 0)
        total = difference.abs().sum(-1, keepdim=True)
        A, lse, sink = torch.where(total > 0, difference.relu() / total, 0), total[..., 0].log(), explicit.sum(-1)
    elif isinstance(parts.score, Clipped | Elastic):
        lse, visible = torch.logsumexp(S, -1), seen[:, None].sum(-1, keepdim=True).clamp_min(1).double()
        A = torch.exp(S - lse.masked_fill(lse == -torch.inf, 0)[..., None])
        if isinstance(parts.score, Elastic):
            A = (A + parts.score.offset.detach().double()[:, None, None] / visible).relu()
        else:
            gamma = parts.score.gamma / visible if parts.score.per_row else parts.score.gamma
            A = ((parts.score.zeta - gamma) * A + gamma).clamp(0, 1)
        A, sink = torch.where(seen[:, None], A, 0), explicit.sum(-1)
    else:
        lse = torch.logsumexp(torch.cat([S, explicit], -1), -1)
        shift = lse.masked_fill(lse == -torch.inf, 0)[..., None]
        A, sink = torch.exp(S - shift), torch.exp(explicit - shift).sum(-1)
    sink = (sink + A[..., :prefix].sum(-1))[:, :, prefix:]
    A, raw = A[:, :, prefix:, prefix:], raw[:, :, prefix:, prefix:]
    real = seen[:, None, prefix:, prefix:]
    total = A.sum(-1, keepdim=True)
    share = torch.where(total > 0, A / total, 0)
    gate = torch.ones(B, H, T, dtype=torch.float64)
    if parts.gate is not None:
        gate = parts.gate.span * torch.sigmoid(parts.gate.logits.detach().double())
        gate = gate.mean(-1) if isinstance(parts.gate, ElementGate) else gate
    gate = gate[:, :, prefix:]
    index = first[:, None, prefix:, None].expand(B, H, R, 1).clamp(max=R - 1)
    early = min(R, 64)
    normal = A if isinstance(parts.score, Softmax) else share
    squares = A.square().sum(-1)
    zeros = ((A == 0) & real).sum(-1) / real.sum(-1).clamp_min(1).double()
    return {
        "lse": None if lse is None else lse[:, :, prefix:],
        "max_logit": raw.amax(-1),
        "entropy": -torch.where(share > 0, share * share.log(), 0).sum(-1),
        "support": torch.where(squares > 0, total[..., 0].square() / squares, 0),
        "zeros": zeros,
        "dead": (total[..., 0] == 0) & real.any(-1),
        "first_key": A.gather(-1, index)[..., 0],
        "sink_mass": sink,
        "received": A.sum(-2),
        "received_gated": (gate[..., None] * A).sum(-2),
        "received64": normal[:, :, :early, :early].sum(-2),
        "gate": gate,
        "argmax_first": (A.gather(-1, index)[..., 0] >= A.amax(-1)) & (A.amax(-1) > 0),
    }


def compare(actual: kernels.AttentionStatistics, expected: dict[str, torch.Tensor | None], tolerance: float) -> None:
    for name, wanted in expected.items():
        value = getattr(actual, name)
        if wanted is None:
            assert value is None, name
            continue
        assert value.shape == wanted.shape, name
        assert not value.requires_grad
        if wanted.dtype == torch.bool:
            assert torch.equal(value, wanted), name
            continue
        finite = torch.isfinite(wanted)
        assert torch.equal(torch.isfinite(value), finite), name
        assert error(value[finite], wanted[finite]) < tolerance, name


@pytest.mark.parametrize("case", [*VARIANTS, *COMBINATIONS, *SIGMOID, *FAMILIES], ids=str)
@pytest.mark.parametrize("prefix", [0, 1])
def test_against_the_definition(case: Case, prefix: int) -> None:
    inputs = make(case, length=101)
    for block in (16, 200):
        statistics = kernels.statistics(inputs.q, inputs.k, inputs.parts, prefix=prefix, block=block)
        compare(statistics, dense_statistics(inputs, prefix, None), 1e-11)


@pytest.mark.parametrize("case", [Case(), Case(sinks="key_value4", gate="row"), SIGMOID[1], *FAMILIES], ids=str)
def test_with_a_first_key(case: Case) -> None:
    inputs = make(case, length=90)
    first = documents(90)
    statistics = kernels.statistics(inputs.q, inputs.k, inputs.parts, first_key_BT=first, block=32)
    compare(statistics, dense_statistics(inputs, 0, first), 1e-11)


@pytest.mark.parametrize("sinks", ["", "logit"])
def test_rows_without_a_key(sinks: str) -> None:
    inputs = make(Case(sinks=sinks), length=40)
    position = torch.arange(40)
    first = (position + (position % 3 == 0)).expand(2, -1)
    statistics = kernels.statistics(inputs.q, inputs.k, inputs.parts, first_key_BT=first, block=16)
    empty = slice(None, None, 3)
    assert not statistics.entropy[:, :, empty].any()
    assert not statistics.first_key[:, :, empty].any()
    assert not statistics.argmax_first[:, :, empty].any()
    assert (statistics.max_logit[:, :, empty] == -torch.inf).all()
    assert not any(getattr(statistics, name).isnan().any() for name in ("lse", "received", "received64", "sink_mass"))
    torch.testing.assert_close(statistics.sink_mass[:, :, empty], torch.full((2, 4, 14), float(sinks != "")).double())


@pytest.mark.parametrize("score", ["", "sigmoid", "softcap", "softpick", "clipped", "clipped_row", "elastic"])
def test_rows_without_a_key_are_not_dead(score: str) -> None:
    inputs = make(Case(score=score), length=40)
    position = torch.arange(40)
    first = (position + (position % 3 == 0)).expand(2, -1)
    statistics = kernels.statistics(inputs.q, inputs.k, inputs.parts, first_key_BT=first, block=16)
    compare(statistics, dense_statistics(inputs, 0, first), 1e-11)
    empty = slice(None, None, 3)
    for name in ("zeros", "dead", "support", "entropy", "first_key", "argmax_first"):
        assert not getattr(statistics, name)[:, :, empty].any(), name


@pytest.mark.parametrize("first_key", [False, True])
def test_dead_rows(first_key: bool) -> None:
    """2 p − 1 > 0 needs more than half of a row's mass on one key: at uniform scores a row of one key only."""
    inputs = make(Case(), length=40)
    q = torch.zeros_like(inputs.q)
    first = documents(40) if first_key else None
    statistics = kernels.statistics(q, inputs.k, Parts(Clipped(-1.0)), first_key_BT=first, block=16)
    alone = (torch.arange(40) == first) if first_key else (torch.arange(40) == 0).expand(2, -1)
    assert torch.equal(statistics.dead, ~alone[:, None].expand(2, 4, 40))
    assert torch.equal(statistics.zeros, statistics.dead.double())
    assert torch.equal(statistics.support, 1 - statistics.zeros)
    assert not statistics.entropy.any()
    assert torch.equal(statistics.argmax_first, ~statistics.dead)
    assert (statistics.received64.sum(-1) == alone.sum(-1)[:, None]).all()
    assert torch.isfinite(statistics.lse).all()


def test_support_counts_keys_of_equal_weight() -> None:
    """Uniform rows: as many as are visible, sinks or not; softmax weights are never counted as 0."""
    inputs = make(Case(), length=70)
    q = torch.zeros_like(inputs.q)
    for sinks in (None, SinkLogits(torch.full((4,), 3.0)), SinkLogits(torch.full((4,), 500.0))):
        statistics = kernels.statistics(q, inputs.k, Parts(sinks=sinks), block=32)
        torch.testing.assert_close(statistics.support, torch.arange(1.0, 71.0).double().expand(2, 4, 70))
        assert not statistics.zeros.any()
        assert not statistics.dead.any()


def test_lengths_of_one_and_under_the_early_window() -> None:
    for length in (1, 2, 63, 64, 65):
        inputs = make(Case(sinks="key_value", gate="row2"), length=length)
        statistics = kernels.statistics(inputs.q, inputs.k, inputs.parts, block=17)
        compare(statistics, dense_statistics(inputs, 0, None), 1e-11)
        assert statistics.received64.shape[-1] == min(length, 64)


def test_a_row_whose_mass_is_all_in_the_sink_keeps_its_entropy() -> None:
    inputs = make(Case(sinks="logit"), dtype=torch.float32, sink_shift=300.0)
    with_sink = kernels.statistics(inputs.q, inputs.k, inputs.parts)
    without = kernels.statistics(inputs.q, inputs.k)
    assert float(with_sink.first_key.max()) == 0.0
    torch.testing.assert_close(with_sink.entropy, without.entropy)
    assert torch.equal(with_sink.argmax_first, without.argmax_first)


def test_dtypes_and_autocast() -> None:
    """Half precision is measured in float32, also where autocast would round the products."""
    inputs = make(Case(sinks="key_value", gate="row"), dtype=torch.bfloat16, length=70)
    statistics = kernels.statistics(inputs.q, inputs.k, inputs.parts)
    compare(statistics, dense_statistics(inputs, 0, None), 1e-5)
    assert statistics.received.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        again = kernels.statistics(inputs.q, inputs.k, inputs.parts)
    assert torch.equal(statistics.received, again.received)


def test_the_lse_is_the_one_of_attend() -> None:
    inputs = make(Case(sinks="key_value4", gate="row"), length=77)
    _, L = kernels.attend_with_lse(*inputs.qkv, inputs.parts)
    assert error(kernels.statistics(inputs.q, inputs.k, inputs.parts).lse, L) < 1e-13


@pytest.mark.parametrize("case", [Case(sinks="logit", gate="row"), *FAMILIES], ids=str)
def test_memory_grows_with_the_block_only(case: Case) -> None:
    inputs = make(case, batch=1, heads=2, length=1024, head_dim=4, dtype=torch.float32)
    with Largest() as mode:
        kernels.statistics(inputs.q, inputs.k, inputs.parts, block=32)
    assert mode.elements <= 2 * 1024 * (32 + 4)


def test_refusals() -> None:
    inputs = make(Case(), length=10)
    with pytest.raises(ValueError, match=r"prefix must be between 0 and 9.*not 10"):
        kernels.statistics(inputs.q, inputs.k, prefix=10)
    with pytest.raises(ValueError, match="exclude each other"):
        kernels.statistics(inputs.q, inputs.k, prefix=1, first_key_BT=documents(10))
    with pytest.raises(ValueError, match="10 keys and 4 queries"):
        kernels.statistics(inputs.q[:, :, -4:], inputs.k)
    for block in (0, -1):
        with pytest.raises(ValueError, match=f"block must be at least 1, not {block}"):
            kernels.statistics(inputs.q, inputs.k, block=block)
