"""The waits before a reconnect."""

import pytest

from ratebridge.backoff import Backoff


def at_most() -> Backoff:
    """A back-off whose jitter always gives the bound."""
    return Backoff(0.25, 5.0, lambda: 1.0)


def test_the_bounds_begin_at_a_tenth_and_then_double_from_the_base_to_the_cap():
    backoff = at_most()
    waits = [backoff.next_wait() for _ in range(9)]
    assert waits == [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_after_a_stable_link_the_first_waits_are_below_a_second():
    backoff = at_most()
    backoff.next_wait()
    backoff.reset()
    waits = [backoff.next_wait() for _ in range(10)]
    assert waits == [0.1, 0.25, 0.5, *[1.0] * 5, 5.0, 5.0]


def test_the_jitter_is_full():
    chances = iter([0.0, 0.5, 0.75])
    backoff = Backoff(0.25, 5.0, lambda: next(chances))
    assert [backoff.next_wait() for _ in range(3)] == [0.0, 0.125, 0.375]


def test_a_cap_below_a_tenth_bounds_the_first_wait_too():
    backoff = Backoff(0.01, 0.02, lambda: 1.0)
    assert [backoff.next_wait() for _ in range(4)] == [0.02, 0.01, 0.02, 0.02]


def test_months_of_failures_overflow_nothing():
    assert Backoff(0.25, 5.0, lambda: 1.0, failures=10_000_000).next_wait() == 5.0


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_forbidden_upgrade_is_tried_again_after_half_a_minute_from_the_first_time_on(status):
    backoff = at_most()
    assert [backoff.next_wait(status=status) for _ in range(3)] == [33.0] * 3
    assert Backoff(0.25, 5.0, lambda: 0.0).next_wait(status=status) == 30.0


@pytest.mark.parametrize(
    ("asked", "status", "wait"),
    [
        pytest.param(7.0, 503, 7.0, id="as asked"),
        pytest.param(0.0, 503, 0.1, id="never shorter"),
        pytest.param(3600.0, 503, 60.0, id="no longer than a minute"),
        pytest.param(45.0, 403, 45.0, id="longer than a forbidden one"),
        pytest.param(5.0, 403, 33.0, id="shorter than a forbidden one"),
    ],
)
def test_retry_after_is_honoured_up_to_a_minute(asked, status, wait):
    assert at_most().next_wait(status=status, retry_after=asked) == wait
