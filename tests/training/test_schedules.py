import itertools

import pytest

from errors import InputError
from training.schedules import ScheduleConfig, factor


def curve(steps: int, **options):
    return [factor(ScheduleConfig(**options), step, steps) for step in range(steps)]


def test_warm_up_rises_linearly_from_the_first_update_and_reaches_the_peak():
    assert curve(10, name="constant", warmup=4) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


def test_cosine_ends_at_the_floor_and_is_half_way_in_the_middle():
    values = curve(100, name="cosine", warmup=20, final=0.1)
    assert values[19] == 1.0
    assert values[99] == pytest.approx(0.1)
    assert values[59] == pytest.approx(0.55)  # half of the 80 updates after the warm-up
    assert all(later <= earlier for earlier, later in itertools.pairwise(values[19:]))


def test_linear_falls_by_the_same_amount_at_every_update_and_ends_at_the_floor():
    values = curve(100, name="linear", warmup=20, final=0.1)
    assert values[19] == 1.0
    assert [one - other for one, other in itertools.pairwise(values[19:])] == pytest.approx([0.9 / 80] * 80)
    assert values[99] == pytest.approx(0.1)


def test_wsd_stays_at_the_peak_until_the_decay_and_ends_at_the_floor():
    values = curve(100, name="wsd", warmup=10, decay_fraction=0.2, final=0.0)
    assert values[9:80] == [1.0] * 71
    assert values[99] == pytest.approx(0.0, abs=1e-12)
    assert values[84] == pytest.approx(1 - 0.25**0.5)  # the 5th of 20 decaying updates


def test_no_warm_up_and_no_decay_are_allowed():
    assert curve(5, name="wsd", warmup=0, decay_fraction=0.0) == [1.0] * 5
    assert curve(5, name="cosine", warmup=0, final=1.0) == pytest.approx([1.0] * 5)


def test_a_run_shorter_than_its_warm_up_never_reaches_the_peak():
    assert curve(3, name="cosine", warmup=10) == pytest.approx([0.1, 0.2, 0.3])


def test_the_rate_is_a_function_of_the_step_alone():
    config = ScheduleConfig("cosine", warmup=3)
    assert factor(config, 7, 20) == curve(20, name="cosine", warmup=3)[7]
    assert factor(config, 25, 20) == factor(config, 19, 20)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "step"}, "step.*constant, cosine, linear, wsd"),
        ({"warmup": -1}, "warmup is -1"),
        ({"decay_fraction": 1.5}, "decay_fraction is 1.5"),
        ({"final": -0.1}, "final is -0.1"),
    ],
)
def test_bad_values_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        ScheduleConfig(**options).validate()
