"""Each attention metric against a direct float64 evaluation of its written definition, on dense maps."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import kernels
from kernels import Clipped, Elastic, ElementGate, Parts, RowGate, Sigmoid, SinkLogits, SinkSlots, Softmax, Softpick
from outliers import nulls
from outliers.attention import accumulate, accumulate_values, finish
from outliers.running import Running

B, H, D = 3, 4, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(q: Tensor, k: Tensor, v: Tensor, parts: Parts | None = None, *, prefix: int = 0, chunk: int = 8):
    running = Running()
    parts = parts or Parts()
    for low in range(0, len(q), chunk):
        rows = slice(low, low + chunk)
        here = parts
        if parts.gate is not None:
            here = Parts(
                parts.score, parts.sinks, type(parts.gate)(parts.gate.logits[rows], parts.gate.span), parts.added
            )
        accumulate_values(running, v[rows, :, prefix:], q.shape[1])
        accumulate(running, kernels.statistics(q[rows], k[rows], here, prefix=prefix), here, prefix)
    return finish(running)


def attention_map(q: Tensor, k: Tensor, parts: Parts, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float64: weights on real keys (B, H, R, R), explicit mass (B, H, R), logits of real keys."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    T = q.shape[2]
    S = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    hidden = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
    raw = S = S.masked_fill(hidden, -math.inf)
    if isinstance(parts.score, Softmax) and parts.score.softcap is not None:
        S = (parts.score.softcap * torch.tanh(S / parts.score.softcap)).masked_fill(hidden, -math.inf)
    if isinstance(parts.score, Sigmoid):
        A = 1 / (1 + torch.exp(-(S + parts.score.bias)))
        explicit = A[..., :prefix].sum(-1)
    elif isinstance(parts.score, Softpick):
        E = S.exp() - 1
        A = E.relu() / E.abs().masked_fill(hidden, 0).sum(-1, keepdim=True)
        explicit = A[..., :prefix].sum(-1)
    elif isinstance(parts.score, Clipped | Elastic):
        A, n = torch.softmax(S, -1), torch.arange(1.0, T + 1)[:, None].double()
        if isinstance(parts.score, Elastic):
            A = (A + parts.score.offset.double()[:, None, None] / n).relu().masked_fill(hidden, 0)
        else:
            A = ((parts.score.zeta - parts.score.gamma) * A + parts.score.gamma).clamp(0, 1)
        explicit = A[..., :prefix].sum(-1)
    else:
        extra = torch.zeros(*S.shape[:3], 1).double()
        if isinstance(parts.sinks, SinkLogits):
            extra = parts.sinks.logits.double()[:, None].exp().expand(*S.shape[:3])[..., None]
        if isinstance(parts.sinks, SinkSlots):
            extra = (torch.einsum("bhtd,hnd->bhtn", q, parts.sinks.keys.double()) / math.sqrt(q.shape[-1])).exp()
        total = S.exp().sum(-1) + extra.sum(-1)
        A = S.exp() / total[..., None]
        explicit = extra.sum(-1) / total + A[..., :prefix].sum(-1)
    return A[..., prefix:, prefix:], explicit[..., prefix:], raw[..., prefix:, prefix:]


def even_first(parts: Parts, prefix: int, R: int) -> Tensor:
    """(R,) the first key's weight where all logits, those of explicit sinks too, are 0."""
    if not isinstance(parts.score, Softmax):
        return torch.tensor([nulls.even_weight(i, prefix, parts.score) for i in range(1, R + 1)]).double()
    sinks = prefix
    if isinstance(parts.sinks, SinkLogits):
        sinks += 1
    if isinstance(parts.sinks, SinkSlots):
        sinks += parts.sinks.keys.shape[1]
    return 1 / (sinks + torch.arange(1, R + 1).double())


def written(q: Tensor, k: Tensor, v: Tensor, parts: Parts, prefix: int) -> dict[str, Tensor]:
    """The definitions, word for word, head by head."""
    A, explicit, S = attention_map(q, k, parts, prefix)
    B, H, R, _ = A.shape
    gate = torch.ones(B, H, R, dtype=torch.float64)
    if isinstance(parts.gate, RowGate):
        gate = parts.gate.span * torch.sigmoid(parts.gate.logits.double())
    if isinstance(parts.gate, ElementGate):
        gate = (parts.gate.span * torch.sigmoid(parts.gate.logits.double())).mean(-1)
    gate = gate[..., -R:]
    p = torch.nan_to_num(A / A.sum(-1, keepdim=True))
    normalised = A if isinstance(parts.score, Softmax) else p
    seen = torch.ones(R, R, dtype=torch.bool).tril()
    v = v[:, :, prefix:].double().repeat_interleave(H // v.shape[1], dim=1)
    E = min(R, 64)
    even = even_first(parts, prefix, R)
    columns: dict[str, list[float]] = {}

    def put(metric: str, value: float) -> None:
        columns.setdefault(metric, []).append(value)

    for h in range(H):
        put("first_key_mass", A[:, h, :, 0].mean().item())
        put("first_key_mass_gated", ((gate[:, h] * A[:, h, :, 0]).sum() / gate[:, h].sum()).item())
        put("first_key_mass_gated_even", ((gate[:, h] * even).sum() / gate[:, h].sum()).item())
        put("explicit_sink_mass", explicit[:, h].mean().item())
        put("gate_mean", gate[:, h].mean().item())
        put("entropy", -torch.special.xlogy(p[:, h], p[:, h]).sum(-1).mean().item())
        weighed = A[:, h].amax(-1) > 0
        put("argmax_first", ((A[:, h].argmax(-1) == 0) & weighed).double().mean().item())
        put("dead_rows", 1 - weighed.double().mean().item())
        put("zero_weights", (((A[:, h] == 0) & seen).sum(-1) / seen.sum(-1)).mean().item())
        support = [[1 / (row**2).sum().item() if row.any() else 0 for row in rows] for rows in p[:, h]]
        put("effective_support", torch.tensor(support).mean().item())
        put("max_logit", S[:, h].max().item())
        first, rest = v[:, h, 0].norm(dim=-1).mean(), v[:, h, 1:].norm(dim=-1).mean()
        put("value_drain", (first / rest).item())
        alphas = [[normalised[b, h, k:E, k].sum().item() / (E - k) for k in range(E)] for b in range(B)]
        put("sink_rate@0.3", sum(alpha[0] > 0.3 for alpha in alphas) / B)
        if E > 16:
            any_key = [any(alpha[k] > 0.3 for k in range(E) if E - 1 - k >= 16) for alpha in alphas]
            put("sink_rate@0.3_any", sum(any_key) / B)
    values = {metric: torch.tensor(column) for metric, column in columns.items()}
    values["outlier_keys"] = (A.mean(1).sum(1) >= 0.1 * R).double().sum(-1).mean()
    return values


def cases() -> dict[str, tuple[Parts, int]]:
    return {
        "softmax": (Parts(), 0),
        "sink_logit": (Parts(sinks=SinkLogits(torch.tensor([-2.0, 0.0, 3.0, 8.0]))), 0),
        "slots": (Parts(sinks=SinkSlots(2 * draw(H, 3, D, seed=9), draw(H, 3, D, seed=10))), 0),
        "row_gate": (Parts(gate=RowGate(3 * draw(B, H, 80, seed=11), 2.0)), 0),
        "element_gate": (Parts(gate=ElementGate(3 * draw(B, H, 80, D, seed=12))), 0),
        "gate_on_sink": (Parts(sinks=SinkLogits(draw(H, seed=13)), gate=RowGate(3 * draw(B, H, 80, seed=14))), 0),
        "prefix": (Parts(), 2),
        "prefix_and_gate": (Parts(gate=RowGate(3 * draw(B, H, 80, seed=15))), 1),
        "sigmoid": (Parts(score=Sigmoid(-math.log(80))), 0),
        "softcap": (Parts(score=Softmax(softcap=1.0)), 1),
        "softpick": (Parts(score=Softpick()), 0),
        "clipped": (Parts(score=Clipped(-0.3)), 0),
        "clipped_after_a_prefix": (Parts(score=Clipped(-0.3), gate=RowGate(draw(B, H, 80, seed=16))), 1),
        "elastic": (Parts(score=Elastic(torch.tensor([-3.0, -1.0, 0.0, 2.0]))), 2),
    }


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("name", cases())
def test_against_the_written_definitions(name, groups):
    parts, prefix = cases()[name]
    q, k, v = 2 * draw(B, H, 80, D, seed=1), draw(B, groups, 80, D, seed=2), draw(B, groups, 80, D, seed=3)
    k[:, 0, prefix] += 2 * q[:, 0].mean(-2) + 1.5  # some heads prefer the first real key, so the rates are not all 0
    found, expected = measured(q, k, v, parts, prefix=prefix, chunk=2), written(q, k, v, parts, prefix)
    assert found.keys() == expected.keys()
    for metric, value in expected.items():
        torch.testing.assert_close(found[metric].double(), value.double(), rtol=1e-4, atol=1e-6, msg=metric)


def sink_head(T: int = 96, strength: float = 40.0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v in which every query of head 0 looks at key 0; the other heads attend uniformly."""
    q, k, v = torch.zeros(B, H, T, D), torch.zeros(B, H, T, D), draw(B, H, T, D)
    q[:, 0, :, 0] = strength
    k[:, 0, 0, 0] = 1.0
    v[:, 0, 0] *= 0.01
    return q, k, v


def test_a_planted_sink_head():
    found = measured(*sink_head())
    uniform = nulls.harmonic_share(96)
    assert found["first_key_mass"][0] > 0.999
    assert found["first_key_mass"][1:].tolist() == pytest.approx([uniform] * 3, rel=1e-5)
    assert found["sink_rate@0.3"].tolist() == [1, 0, 0, 0]
    assert found["sink_rate@0.3_any"].tolist() == [1, 0, 0, 0]
    assert found["argmax_first"][0] == 1
    assert found["entropy"][1:].tolist() == pytest.approx([nulls.uniform_entropy(96)] * 3, rel=1e-5)
    assert found["entropy"][0] < 0.01
    assert found["max_logit"][0] == pytest.approx(40 / math.sqrt(D))
    assert found["value_drain"][0] < 0.05 < 0.5 < found["value_drain"][1]
    assert found["effective_support"][1:].tolist() == pytest.approx([(96 + 1) / 2] * 3)
    assert found["effective_support"][0] == pytest.approx(1, abs=0.01)
    assert not found["zero_weights"].any()
    assert not found["dead_rows"].any()
    assert found["outlier_keys"] == 1  # a quarter of all mass, in the mean over heads


def test_uniform_attention_has_no_sink_and_no_outlier_key():
    found = measured(torch.zeros(B, H, 64, D), draw(B, H, 64, D), draw(B, H, 64, D, seed=1))
    assert found["sink_rate@0.3"].sum() == found["sink_rate@0.3_any"].sum() == found["outlier_keys"] == 0


def test_a_closed_gate_makes_a_raw_sink_harmless():
    q, k, v = sink_head()
    q[:, 0, 48:] = 0  # the later half of head 0's queries attends uniformly
    logits = torch.zeros(B, H, 96)
    logits[:, 0, :48] = -40.0  # and only that half is passed on
    found = measured(q, k, v, Parts(gate=RowGate(logits)))
    assert found["first_key_mass"][0] > 0.5
    assert found["first_key_mass_gated"][0] < 0.02
    assert found["gate_mean"].tolist() == pytest.approx([0.25, 0.5, 0.5, 0.5])


def test_a_constant_gate_does_not_change_the_mass():
    found = measured(*sink_head(), Parts(gate=RowGate(torch.full((B, H, 96), -3.0))))
    torch.testing.assert_close(found["first_key_mass"], found["first_key_mass_gated"])


def test_gates_that_are_open_on_the_first_query_alone_make_mass_without_a_sink():
    logits = torch.full((B, H, 96), -40.0)
    logits[:, :, 0] = 0.0
    found = measured(torch.zeros(B, H, 96, D), draw(B, H, 96, D), draw(B, H, 96, D), Parts(gate=RowGate(logits)))
    assert found["first_key_mass"].tolist() == pytest.approx([nulls.harmonic_share(96)] * H)
    assert found["first_key_mass_gated"].tolist() == pytest.approx([1.0] * H)  # the first query has no other key
    assert found["first_key_mass_gated_even"].tolist() == pytest.approx([1.0] * H)


def test_where_documents_are_masked_each_one_has_its_first_key():
    first_key = torch.tensor([[0] * 40 + [40] * 56]).expand(B, -1).int()
    q, k = torch.zeros(B, H, 96, D), draw(B, H, 96, D)
    running = Running()
    parts = Parts()
    accumulate(running, kernels.statistics(q, k, parts, first_key_BT=first_key), parts, 0, first_key)
    found = finish(running)
    expected = (40 * nulls.harmonic_share(40) + 56 * nulls.harmonic_share(56)) / 96
    assert found["first_key_mass_gated_even"].tolist() == pytest.approx([expected] * H)
    torch.testing.assert_close(found["first_key_mass"], found["first_key_mass_gated_even"], rtol=1e-5, atol=0)


def test_a_gate_that_is_exactly_zero_passes_no_sink_on():
    found = measured(*sink_head(), Parts(gate=RowGate(torch.full((B, H, 96), -1e4))))
    assert found["first_key_mass_gated"].tolist() == [0] * H
    assert found["first_key_mass"][0] > 0.999


def test_a_slot_that_takes_the_mass_has_moved_it():
    q, k, v = sink_head()
    keys = torch.zeros(H, 1, D)
    keys[0, 0, 0] = 2.0  # head 0 prefers the slot to key 0
    found = measured(q, k, v, Parts(sinks=SinkSlots(keys)))
    assert found["first_key_mass"][0] < 1e-4
    assert found["sink_rate@0.3"][0] == 0
    assert found["explicit_sink_mass"][0] > 0.999
    assert found["explicit_sink_mass"][1:].tolist() == pytest.approx([nulls.uniform_slot_mass(96, 1)] * 3, rel=1e-5)


def test_dead_rows_and_zeros_of_a_threshold():
    """2 p − 1 at uniform scores: only the first row lives, and every weight of the others is 0."""
    q, k, v = torch.zeros(B, H, 64, D), draw(B, H, 64, D), draw(B, H, 64, D, seed=1)
    found = measured(q, k, v, Parts(score=Clipped(-1.0)))
    for metric, value in (("dead_rows", 63 / 64), ("zero_weights", 63 / 64), ("effective_support", 1 / 64)):
        assert found[metric].tolist() == pytest.approx([value] * H), metric
    assert found["first_key_mass"].tolist() == pytest.approx([1 / 64] * H)
    assert found["argmax_first"].tolist() == pytest.approx([1 / 64] * H)
    assert not found["entropy"].any()


def test_a_head_that_looks_at_itself_is_no_sink_for_any_key():
    T = 64
    q = torch.eye(T).expand(1, 1, T, T) * 200
    found = measured(q, torch.eye(T).expand(1, 1, T, T), torch.eye(T).expand(1, 1, T, T))
    assert found["sink_rate@0.3_any"].tolist() == [0]


def test_a_sink_on_a_middle_key_counts_for_any_key_only():
    q, k, v = torch.zeros(1, 1, 64, D), torch.zeros(1, 1, 64, D), draw(1, 1, 64, D)
    q[..., 0], k[:, :, 20, 0] = 40.0, 1.0
    found = measured(q, k, v)
    assert (found["sink_rate@0.3"].item(), found["sink_rate@0.3_any"].item()) == (0, 1)


def test_the_sink_rate_reads_the_first_64_queries_and_is_strict():
    q, k, v = torch.zeros(1, 1, 200, D), torch.zeros(1, 1, 200, D), draw(1, 1, 200, D)
    q[:, :, 64:, 0], k[:, :, 0, 0] = 40.0, 1.0  # a sink for later queries only
    assert measured(q, k, v)["sink_rate@0.3"].item() == 0
    stats = kernels.statistics(q, k)
    for alpha, rate in ((0.3, 0), (0.3001, 1)):
        running = Running()
        accumulate(running, dataclasses.replace(stats, received64=torch.full((1, 1, 64), alpha) * 64), Parts())
        assert finish(running)["sink_rate@0.3"].item() == rate


def test_an_outlier_key_receives_at_least_a_tenth_of_all_mass():
    stats = kernels.statistics(draw(1, 2, 80, D), draw(1, 2, 80, D, seed=1))
    received = torch.zeros(1, 2, 80)
    received[0, 0, :3] = torch.tensor([16.0, 15.9, 40.0])  # in the mean over heads 8, 7.95 and 20, of 80 queries
    running = Running()
    accumulate(running, dataclasses.replace(stats, received=received), Parts())
    assert finish(running)["outlier_keys"].item() == 2


def test_short_sequences_have_no_any_key_rate():
    for T, there in ((16, False), (17, True)):
        found = measured(draw(2, H, T, D), draw(2, H, T, D, seed=1), draw(2, H, T, D, seed=2))
        assert ("sink_rate@0.3_any" in found) == there
    assert "value_drain" not in measured(draw(2, H, 1, D), draw(2, H, 1, D), draw(2, H, 1, D))


def test_chunks_do_not_change_values():
    q, k, v = draw(6, H, 70, D), draw(6, 2, 70, D, seed=1), draw(6, 2, 70, D, seed=2)
    parts = Parts(gate=RowGate(draw(6, H, 70, seed=3)))
    whole = measured(q, k, v, parts, chunk=6)
    for chunk in (1, 4):
        found = measured(q, k, v, parts, chunk=chunk)
        for metric, value in whole.items():
            torch.testing.assert_close(found[metric], value, rtol=1e-6, atol=1e-9, msg=metric)
        assert torch.equal(found["argmax_first"], whole["argmax_first"])


def test_nan_in_the_queries_reaches_the_metrics():
    q, k, v = draw(2, H, 32, D), draw(2, H, 32, D, seed=1), draw(2, H, 32, D, seed=2)
    q[0, 1, 5, 0] = math.nan
    found = measured(q, k, v)
    for metric in (
        "first_key_mass", "first_key_mass_gated", "entropy", "argmax_first", "sink_rate@0.3", "max_logit",
        "effective_support", "zero_weights", "dead_rows",
    ):  # fmt: skip
        assert found[metric].isnan().tolist() == [False, True, False, False], metric
    assert found["outlier_keys"].isnan()
