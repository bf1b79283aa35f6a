"""Onset on curves whose answer is known, and read from a run directory."""

import csv
import math

import numpy as np
import pytest
from synthetic_runs import write_run

from experiments.dynamics import before, dynamics, numbers, onset, scatter
from experiments.runs import Run

STEPS = np.arange(0, 2001, 100)


def sigmoid(middle: float, width: float = 100) -> np.ndarray:
    return 1 / (1 + np.exp(-(STEPS - middle) / width))


@pytest.mark.parametrize("sign", [1, -1])
def test_onset_is_halfway_and_its_bounds_hold_it(sign):
    found = onset(STEPS, 3 + sign * 2 * sigmoid(830))
    assert found.step == pytest.approx(830, abs=10)
    assert found.low <= 830 <= found.high
    assert found.high - found.low <= 200  # a probe every 100 steps
    assert (found.start, found.end) == pytest.approx((3, 3 + sign * 2), abs=0.01)


def test_noise_widens_the_bounds_and_they_hold_the_truth():
    rng = np.random.default_rng(0)
    held, widths = 0, []
    for _ in range(200):
        found = onset(STEPS, sigmoid(1000, 300) + 0.04 * rng.standard_normal(len(STEPS)))
        held += found.low <= 1000 <= found.high
        widths.append(found.high - found.low)
    assert held >= 190
    assert np.mean(widths) > 200


def test_what_does_not_move_has_no_onset():
    rng = np.random.default_rng(1)
    assert sum(onset(STEPS, 1 + 0.1 * rng.standard_normal(len(STEPS))) is not None for _ in range(200)) <= 4
    assert onset(STEPS, np.full(len(STEPS), 2.0)) is None
    assert onset(STEPS, 100 + sigmoid(900)) is None  # 1 % of its size
    assert onset(STEPS[:4], sigmoid(100)[:4]) is None


def test_scatter_is_the_noise_and_not_the_curve():
    rng = np.random.default_rng(2)
    many = np.arange(20_000)
    assert scatter(np.sin(many / 1000) + 0.1 * rng.standard_normal(len(many))) == pytest.approx(0.1, rel=0.03)
    assert scatter(np.where(many > 500, 1.0, 0.0)) == 0


def test_a_run_s_onsets_in_their_order(tmp_path):
    path = write_run(tmp_path, "softmax", 0)
    columns = {
        "outliers/first_key_mass_gated": sigmoid(500, 50),
        "outliers/value_drain": 1 - 0.9 * sigmoid(1200, 50),
        "outliers/top1_to_median": 5 + 0 * STEPS,
    }
    with (path / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", *columns])
        rows.writerows(zip(STEPS, *columns.values(), strict=True))
    found = dynamics(Run(path))
    assert list(found) == ["outliers/first_key_mass_gated", "outliers/value_drain", "outliers/top1_to_median"]
    sink, drain, massive = found.values()
    assert massive is None
    assert before(sink, drain)
    assert not before(drain, sink)
    near = onset(STEPS, sigmoid(540, 50))
    assert not before(sink, near)
    assert math.isfinite(near.step)


def test_a_curve_that_is_not_finite_has_no_onset():
    values = sigmoid(830)
    values[-1] = math.inf
    assert onset(STEPS, values) is None


def test_onsets_as_numbers_of_an_analysis():
    at = onset(STEPS, sigmoid(830))
    found = numbers({"outliers/sink_rate@0.3": at, "outliers/value_drain": None}).table().to_pylist()
    by_name = {(row["metric"], row["statistic"]): row["value"] for row in found}
    assert by_name["onset_sink_rate@0.3", "step"] == at.step
    assert by_name["onset_sink_rate@0.3", "high"] == at.high
    assert math.isnan(by_name["onset_value_drain", "step"])
    assert len(by_name) == 6
