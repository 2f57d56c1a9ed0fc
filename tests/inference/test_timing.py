"""The constant frame rate chosen for a video, and the place of each picture on it."""

from fractions import Fraction

import numpy as np
import pytest
from inference.timing import TOLERANCE, Clock, choose_rate, places_of, steady


@pytest.mark.parametrize(
    "rate", ["24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "25/2", "10", "1/10"]
)
@pytest.mark.parametrize("tick", [1 / 1000, 1 / 90000])
@pytest.mark.parametrize("told", [True, False])
def test_rounded_times_give_the_exact_rate(rate, tick, told):
    rate = Fraction(rate)
    times = np.rint(np.arange(1500) / float(rate) / tick) * tick
    assert choose_rate(times, tick, rate if told else None) == (rate, True)


def test_a_wrong_claim_of_the_container_is_not_believed():
    times = np.arange(300) * 1001 / 30000
    assert choose_rate(times, 1 / 30000, Fraction(60)) == (Fraction(30000, 1001), True)


def test_dropped_pictures_leave_gaps_on_the_same_grid():
    times = np.delete(np.arange(300), [5, 6, 100, 250]) / 25
    assert choose_rate(times, 1 / 1000, Fraction(24)) == (Fraction(25), False)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("interval", [0.3, 0.1, 0.04, 0.0171])
def test_a_variable_rate_keeps_every_picture_near_its_time(seed, interval):
    times = np.cumsum(np.random.RandomState(seed).uniform(0.5, 1.5, 500) * interval)
    times -= times[0]
    rate, constant = choose_rate(times, 1e-6)
    places = places_of(times, rate)
    assert not constant
    assert np.diff(places).min() >= 1  # none is lost
    assert np.abs(places / float(rate) - times).max() <= TOLERANCE


@pytest.mark.parametrize("times", [[], [0.0], [0.0, 0.0]])
def test_without_times_the_container_is_believed(times):
    assert choose_rate(np.array(times), 0.001, Fraction(50)) == (Fraction(50), True)
    assert choose_rate(np.array(times), 0.001) == (Fraction(25), True)


def test_places_push_crowded_pictures_back_and_catch_up():
    times = np.array([0, 0.001, 0.002, 0.2, 0.3])
    np.testing.assert_array_equal(places_of(times, 10), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(places_of(times, 20), [0, 1, 2, 4, 6])


def test_a_jump_of_the_clock_is_not_a_picture_shown_for_hours():
    np.testing.assert_allclose(steady(np.array([0, 0.04, 0.08, 9e4, 9e4 + 0.04])), [0, 0.04, 0.08, 0.12, 0.16])


def seconds(stamps, late=0.0):
    clock = Clock(0.04, late)
    return [round(clock(stamp), 6) for stamp in stamps]


def test_the_clock_counts_from_the_first_picture():
    assert seconds([5, 5.04, 5.2]) == [0, 0.04, 0.2]


def test_the_clock_goes_on_after_a_jump():
    assert seconds([5, 5.04, 9e4, 9e4 + 0.1, 3, 3.04]) == [0, 0.04, 0.08, 0.18, 0.22, 0.26]


def test_equal_stamps_do_not_put_off_what_follows():
    assert seconds([0, 0.2, 0.2, 0.19, 0.4]) == [0, 0.2, 0.2, 0.2, 0.4]


def test_pictures_without_a_stamp_follow_at_the_rate():
    assert seconds([None, None, None]) == [0, 0.04, 0.08]
    assert seconds([7, None, 7.08, None]) == [0, 0.04, 0.08, 0.12]


def test_a_late_first_picture():
    assert seconds([0, 0.08, 0.12], late=0.04) == [0, 0.04, 0.08]
