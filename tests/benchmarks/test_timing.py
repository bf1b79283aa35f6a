"""The arithmetic of the benchmarks: ratios within a round, turns, tables; and that a benchmark runs and prints."""

import pytest
import torch

from benchmarks import peers
from benchmarks.timing import Timing, table, take_turns


def test_ratio_is_taken_within_rounds_so_that_drift_cancels():
    # The machine halves its speed after each round; the second candidate is always twice as fast.
    slow, fast = Timing("slow", (1.0, 2.0, 4.0)), Timing("fast", (0.5, 1.0, 2.0))
    assert fast.speed_ratio(slow) == 2.0
    assert slow.speed_ratio(fast) == 0.5
    assert slow.median == 2.0


def test_every_candidate_runs_equally_often_and_the_order_rotates():
    calls = []
    timings = take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, calls=2, warmup=1)
    assert calls[:3] == ["a", "b", "c"]
    assert "".join(calls[3:]) == "aabbcc" + "bbccaa" + "ccaabb"
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_refuses_no_rounds():
    with pytest.raises(ValueError, match="rounds 0"):
        take_turns({"a": lambda: None}, rounds=0)


def test_table_aligns_columns():
    text = table("title", ["name", "ms"], [["softmax", "1.0"], ["x", "12.5"]])
    assert text.splitlines() == ["title", "name       ms", "-------  ----", "softmax   1.0", "x        12.5"]


def test_the_authors_way_computes_the_same_function_as_ours():
    """A peer that computed something else would be no peer."""
    from kernels import AddedVector, Parts, SinkSlots, attend

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 33, 8, generator=generator) for _ in range(3))
    key, value = torch.randn(3, 8, generator=generator), torch.randn(3, 8, generator=generator)
    slot = attend(q, k, v, Parts(sinks=SinkSlots(key[:, None], value[:, None])))
    torch.testing.assert_close(peers.slot_with_dense_mask(q, k, v, key, value), slot, rtol=1e-5, atol=1e-5)
    bias = attend(q, k, v, Parts(added=AddedVector(value, key)))
    torch.testing.assert_close(peers.bias_with_dense_mask(q, k, v, key, value), bias, rtol=1e-5, atol=1e-5)
