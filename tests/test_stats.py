"""The figures are counted correctly, at every bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratebridge.operating.stats import LATENCY_BOUNDS, Histogram, Stats


def test_the_bounds_of_latency_rise():
    assert list(LATENCY_BOUNDS) == sorted(set(LATENCY_BOUNDS))


@pytest.mark.parametrize("place", range(len(LATENCY_BOUNDS)))
def test_a_bound_holds_what_equals_it(place):
    histogram = Histogram()
    histogram.add(LATENCY_BOUNDS[place])
    assert histogram.counts[place] == 1


@given(st.lists(st.floats(0, 10), max_size=20))
def test_up_to_each_bound_are_those_that_are_not_slower(seconds):
    histogram = Histogram()
    for one in seconds:
        histogram.add(one)
    assert [sum(histogram.counts[: at + 1]) for at in range(len(LATENCY_BOUNDS))] == [
        sum(one <= bound for one in seconds) for bound in LATENCY_BOUNDS
    ]
    assert sum(histogram.counts) == len(seconds)
    assert histogram.total == pytest.approx(sum(seconds))


def test_the_slowest_is_the_one_since_the_last_taking():
    histogram = Histogram()
    histogram.add(0.25)
    histogram.add(0.75)
    histogram.add(0.5)
    assert histogram.take_slowest() == 0.75
    assert histogram.take_slowest() == 0.0
    histogram.add(0.125)
    assert histogram.take_slowest() == 0.125


def test_an_error_is_an_answer_too():
    stats = Stats(converted=3)
    stats.refused["bad-date"] += 2
    stats.dropped["not-json"] += 7
    assert stats.answered == 5


def test_two_services_share_no_figures():
    one, other = Stats(), Stats()
    one.refused["bad-date"] += 1
    one.latency.add(1.0)
    one.sources["ecb"].seconds = 1.0
    assert other == Stats()
