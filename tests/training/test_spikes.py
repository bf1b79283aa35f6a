"""Skipping updates whose gradient norm stands out."""

import pytest
import torch
from test_guard import copy, small, step
from tiny_run import differences, metrics, tensors, tiny_run

from training import optimizers, spikes
from training.guard import NonFiniteGuard
from training.optimizers import OptimizerConfig
from training.spikes import WINDOW, Spikes

CPU = torch.device("cpu")


def decisions(filter: Spikes, norms: list[float]) -> list[float]:
    return [filter.observe(torch.tensor(norm)).item() for norm in norms]


def test_a_norm_beyond_the_factor_is_skipped_once_the_window_is_full():
    filter = Spikes(3.0, CPU)
    assert decisions(filter, [1.0, 3.0] * (WINDOW // 2)) == [0.0] * WINDOW
    assert decisions(filter, [5.9, 6.5, 2.0]) == [0.0, 1.0, 0.0]
    mean = 2 + (5.9 - 2) / WINDOW
    mean += (3 * mean - mean) / WINDOW  # a spike counts as the limit
    mean += (2 - mean) / WINDOW
    assert filter.state_dict() == {"mean": pytest.approx(mean, rel=1e-6), "seen": WINDOW + 3, "skipped": 1}


def test_norms_that_stay_high_are_let_through_in_the_end():
    filter = Spikes(2.0, CPU)
    decisions(filter, [1.0] * WINDOW)
    found = decisions(filter, [8.0] * 3 * WINDOW)
    assert found[0] == 1.0
    assert found[-1] == 0.0


def test_a_spike_is_skipped_alone_and_a_bad_number_stays(monkeypatch):
    monkeypatch.setattr(spikes, "WINDOW", 2)
    gpt = small()
    optimizer = optimizers.build(OptimizerConfig("muon", lr=1e-4), gpt)
    guard = NonFiniteGuard(CPU, 0, Spikes(3.0, CPU))
    for _ in range(2):
        step(gpt, optimizer, guard)
    before = copy(gpt, optimizer)
    with torch.no_grad():
        gpt.embedding.weight.mul_(10)
    large = gpt.embedding.weight.detach().clone()
    step(gpt, optimizer, guard)
    assert torch.equal(gpt.embedding.weight, large)
    with torch.no_grad():
        gpt.embedding.weight.copy_(before[0])
    assert all(torch.equal(one, other) for one, other in zip(before, copy(gpt, optimizer), strict=True))
    assert (guard.spikes.skipped.item(), guard.bad_step()) == (1, None)
    step(gpt, optimizer, guard)
    after = copy(gpt, optimizer)
    assert not torch.equal(after[0], before[0])
    step(gpt, optimizer, guard, spoil=True)
    step(gpt, optimizer, guard)
    assert all(torch.equal(one, other) for one, other in zip(after, copy(gpt, optimizer), strict=True))
    assert guard.bad_step() == 4


def test_a_run_that_skips_resumes_bitwise_and_logs_the_count(tmp_path, text, monkeypatch):
    monkeypatch.setattr(spikes, "WINDOW", 3)
    # So near to 1 that ordinary noise is skipped: about every second update.
    options = {"steps": 12, "optimizer": OptimizerConfig(lr=3e-3, skip_spikes=1.0001), "log_every": 1}
    whole = tiny_run(tmp_path / "whole", text, **options).fit()
    tiny_run(tmp_path / "parts", text, stop_after=7, **options).fit()
    resumed = tiny_run(tmp_path / "parts", text, **options).fit(tmp_path / "parts/checkpoints/last.ckpt")
    assert differences(tensors(whole), tensors(resumed)) == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    counts = [int(row["train/skipped"]) for row in metrics(tmp_path / "whole")[1:]]
    assert counts == sorted(counts)
    assert 0 < counts[-1] < 9
    optimizer = whole.trainer.optimizers[0]
    assert {int(state["step"]) for state in optimizer.state.values()} == {12 - counts[-1]}
