"""Student's t, intervals, Holm's correction and crossings, against tables and numbers worked out by hand."""

import math

import pytest

from experiments.statistics import first_crossing, holm, interval, t_inside, t_quantile


@pytest.mark.parametrize(
    ("degrees", "probability", "expected"),
    [
        # Standard tables of Student's t, two-sided.
        (1, 0.95, 12.7062),
        (2, 0.95, 4.30265),
        (3, 0.95, 3.18245),
        (4, 0.95, 2.77645),
        (9, 0.95, 2.26216),
        (30, 0.95, 2.04227),
        (2, 0.99, 9.92484),
        (5, 0.99, 4.03214),
        (1, 0.5, 1.0),
    ],
)
def test_quantiles_of_students_t(degrees, probability, expected):
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=2e-5)


def test_t_has_the_closed_forms_of_one_and_two_degrees():
    for t in (0.1, 1.0, 3.0, 40.0):
        assert t_inside(t, 1) == pytest.approx(2 / math.pi * math.atan(t))
        assert t_inside(t, 2) == pytest.approx(t / math.sqrt(2 + t * t))


def test_t_is_normal_in_the_limit():
    assert t_inside(1.0, 10_001) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=1e-4)
    assert t_inside(1.0, 10_000) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=1e-4)


def test_degrees_and_probabilities_out_of_range():
    with pytest.raises(ValueError, match="degrees"):
        t_inside(1.0, 0)
    with pytest.raises(ValueError, match="probability"):
        t_quantile(1.0, 3)


def test_interval_worked_out_by_hand():
    # Mean 2, standard deviation 1, standard error 1/√3; 4.30265/√3 = 2.48414; t = 2√3, p = 1 − t/√(2 + t²).
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - 2.48414, abs=1e-4)
    assert found.high == pytest.approx(2 + 2.48414, abs=1e-4)
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_interval_of_one_value_says_nothing():
    found = interval([0.5])
    assert found.low == -math.inf
    assert found.high == math.inf
    assert found.p == 1.0


def test_interval_without_spread():
    assert interval([0.0, 0.0, 0.0]).p == 1.0
    assert (interval([0.0, 0.0]).low, interval([0.0, 0.0]).high) == (0.0, 0.0)
    # The same difference in every seed: nothing says how large the noise is.
    found = interval([0.5, 0.5, 0.5])
    assert (found.mean, found.low, found.high, found.p) == (0.5, -math.inf, math.inf, 1.0)


def test_the_least_spread_of_a_counted_share():
    # 16 of 16 against none, three times: the standard error is 0.1/√3, t = 10 √3 and p = 1 − t/√(2 + t²).
    found = interval([-1.0, -1.0, -1.0], least=0.1)
    t = 10 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.high == pytest.approx(-1 + 4.30265 * 0.1 / math.sqrt(3), abs=1e-5)
    # A larger spread stands for itself.
    assert interval([1.0, 2.0, 3.0], least=0.1) == interval([1.0, 2.0, 3.0])


def test_holm_worked_out_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; made monotone 0.04, 0.06, 0.06, 0.06.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_first_crossing_is_linear_between_points():
    steps, losses = [0, 100, 200, 300], [4.0, 3.0, 2.0, 1.0]
    assert first_crossing(steps, losses, 2.5) == 150
    assert first_crossing(steps, losses, 1.0) == 300
    assert first_crossing(steps, losses, 5.0) == 0
    assert first_crossing(steps, losses, 0.5) is None
    # A curve that rises again has reached the target at the first time.
    assert first_crossing([0, 10, 20, 30], [2.0, 1.0, 3.0, 0.0], 1.5) == 5
