"""Onset on curves whose answer is known, and read from a run directory."""

import csv
import math

import numpy as np
import pytest
from synthetic_runs import write_run

from experiments.dynamics import before, dynamics, numbers, onset, outcome, scatter, set_in
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


def bump(up: float, down: float) -> np.ndarray:
    return sigmoid(up, 40) - sigmoid(down, 40)


def test_what_comes_and_goes_has_not_set_in():
    rng = np.random.default_rng(3)
    for noise in (0.0, 0.03):
        for _ in range(50):
            found = onset(STEPS, bump(430, 1270) + noise * rng.standard_normal(len(STEPS)))
            assert found.step == pytest.approx(430, abs=50)
            assert found.gone == pytest.approx(1270, abs=50)
            assert found.low <= 430 <= found.high
    name = "outliers/first_key_mass_gated"
    assert set_in(name, found) is None
    assert outcome(name, found) == "comes and goes"
    assert outcome("outliers/value_drain", found) == "moves away from outliers and back"  # its drain is a fall
    one = onset(STEPS, np.where(STEPS == 700, 9.0, 1.0))  # a single probe
    assert (one.step, one.gone) == (650, 750)


def test_what_comes_again_sets_in_when_it_stays():
    found = onset(STEPS, bump(230, 620) + 0.9 * sigmoid(1430, 40))
    assert found.gone is None
    assert found.step == pytest.approx(1430, abs=15)
    assert 1300 <= found.low <= 1430 <= found.high <= 1500
    settled = onset(STEPS, 0.3 * bump(430, 1270) + 0.7 * sigmoid(430, 40))  # it keeps more than half
    assert settled.gone is None
    assert settled.step == pytest.approx(420, abs=15)
    back_at_the_end = onset(STEPS, np.where(STEPS == 2000, 0.0, sigmoid(430, 40)))
    assert back_at_the_end.gone == pytest.approx(1950, abs=1)


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
    moved = {
        "outliers/sink_rate@0.3": at,
        "outliers/value_drain": None,
        "outliers/top1_to_median": onset(STEPS, 5 + bump(430, 1270)),
        "outliers/first_key_mass_gated": onset(STEPS, 1 - sigmoid(830)),
    }
    found = numbers(moved).table().to_pylist()
    by_name = {(row["metric"], row["statistic"]): row["value"] for row in found}
    assert by_name["onset_sink_rate@0.3", "step"] == at.step
    assert by_name["onset_sink_rate@0.3", "high"] == at.high
    for name in ("value_drain", "top1_to_median", "first_key_mass_gated"):
        assert math.isnan(by_name[f"onset_{name}", "step"])
    assert by_name["onset_top1_to_median", "came"] == pytest.approx(430, abs=15)
    assert by_name["onset_top1_to_median", "gone"] == pytest.approx(1270, abs=15)
    assert by_name["onset_first_key_mass_gated", "end"] < by_name["onset_first_key_mass_gated", "start"]
    assert len(by_name) == 5 + 1 + 5 + 3
