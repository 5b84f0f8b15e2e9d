"""Sheets: which of their quotes may be used, and when; and the cache that holds them."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratebridge.errors import FetchOutcome, SourceFailed
from ratebridge.history import embedded
from ratebridge.rates import MOST_ASKED, Quote, RateCache, RateSheet

DAY = date(2026, 11, 3)
NEXT = DAY + timedelta(days=1)
LIFE = timedelta(hours=2)
ONE = Quote(Decimal(1))
FAILURE = SourceFailed(FetchOutcome.TIMEOUT, "gave no answer")


def at(day: date, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime.combine(day, time(hour, minute, second), UTC)


AFTER = at(NEXT, 12)


def sheet(asked="2026-11", fetched=AFTER, rows=None, provider="shop", **more) -> RateSheet:
    rows = {DAY: {"USD": ONE}} if rows is None else rows
    return RateSheet(provider, asked, DAY, DAY, rows, fetched, **more)


@given(
    st.dictionaries(st.integers(0, 20), st.decimals(1, 9, places=2), max_size=8), st.integers(0, 20)
)
def test_a_day_has_the_last_row_at_or_before_it_at_most_five_days_old(rows, asked):
    quotes = {DAY + timedelta(days=day): {"USD": Quote(units)} for day, units in rows.items()}
    found = sheet(rows=quotes).find("USD", DAY + timedelta(days=asked))
    expected = [day for day in rows if asked - 5 <= day <= asked]
    if expected:
        last = max(expected)
        assert found == (Quote(rows[last]), DAY + timedelta(days=last))
    else:
        assert found is None


@pytest.mark.parametrize(
    ("fetched", "final"),
    [
        (at(DAY, 12), False),
        (at(NEXT), False),
        (at(NEXT, 0, 0, 59), False),  # by a clock that is a minute behind the day runs on
        (at(NEXT, 0, 1), True),
    ],
)
def test_a_day_is_final_a_minute_after_its_end(fetched, final):
    assert sheet(fetched=fetched).is_final(DAY) is final
    assert not sheet(fetched=fetched, latest=True).is_final(DAY)


NOON = at(DAY, 12)
LATE = at(DAY, 23, 30)


@pytest.mark.parametrize(
    ("fetched", "latest", "now", "lives", "serves"),
    [
        pytest.param(NOON, False, NOON, True, True, id="just fetched"),
        pytest.param(NOON, False, NOON + LIFE, False, False, id="the running day, expired"),
        pytest.param(LATE, False, at(NEXT), False, False, id="the running day has ended"),
        pytest.param(at(NEXT, 12), False, at(NEXT, 13), True, True, id="final"),
        pytest.param(at(NEXT, 12), False, at(NEXT, 14), False, True, id="final, expired"),
        pytest.param(at(NEXT, 23), False, at(NEXT, 23) + LIFE, False, True, id="a day later"),
        pytest.param(at(NEXT, 0, 10), True, at(NEXT, 2), True, True, id="the latest in its place"),
        pytest.param(at(NEXT, 0, 10), True, at(NEXT, 3), False, False, id="the same, expired"),
        pytest.param(at(NEXT, 12), False, at(NEXT, 11), False, False, id="dated by a wrong clock"),
    ],
)
def test_what_may_be_used(fetched, latest, now, lives, serves):
    known = sheet(fetched=fetched, latest=latest)
    assert (known.lives(DAY, now, LIFE), known.serves(DAY, now, LIFE)) == (lives, serves)


# The cache.


def test_a_sheet_takes_the_place_of_what_was_known():
    cache = RateCache(LIFE)
    cache.store_failure("shop", "2026-11", FAILURE, 10.0)
    assert cache.failure("shop", "2026-11") == (FAILURE, 10.0)
    first, second = sheet(), sheet()
    cache.store(first)
    assert cache.failure("shop", "2026-11") is None
    cache.store_failure("shop", "2026-11", FAILURE, 20.0)
    assert cache.find("shop", "2026-11") is first, "a failure does not displace it"
    cache.store(second)
    assert cache.find("shop", "2026-11") is second
    assert (len(cache), cache.find("shop", "2026-12")) == (1, None)
    cache.store(sheet(fetched=AFTER - timedelta(seconds=1)))
    assert cache.find("shop", "2026-11") is second, "an answer that was overtaken is not kept"


def test_the_quotes_in_all_sheets_are_bounded_and_the_least_used_go_first():
    cache = RateCache(LIFE, most_quotes=3)
    for asked in "abc":
        cache.store(sheet(asked))
    cache.find("shop", "a")
    cache.store(sheet("d"))
    assert [known.asked for known in cache.sheets] == ["c", "a", "d"]
    cache.store(sheet("e", rows={DAY: dict.fromkeys(("USD", "GBP", "CZK", "PLN"), ONE)}))
    assert [known.asked for known in cache.sheets] == ["e"], "the last one stays, however large"
    for _ in range(4):  # of which each takes the place of the last
        cache.store(sheet("f"))
        cache.store(sheet("g"))
    assert [known.asked for known in cache.sheets] == ["f", "g"]


def test_a_history_that_is_read_where_it_lies_takes_no_room():
    cache = RateCache(LIFE, most_quotes=1)
    cache.store(sheet("a"))
    cache.store(sheet("embedded", rows=embedded()))
    assert len(cache) == 2


def test_sheets_and_failures_are_bounded_in_number():
    cache = RateCache(LIFE)
    for number in range(MOST_ASKED + 1):
        cache.store(sheet(str(number), rows={}))
        cache.store_failure("other", str(number), FAILURE, 0.0)
    assert len(cache) == MOST_ASKED
    assert [cache.failure("other", str(one)) is None for one in (0, 1)] == [True, False]
    for again in ("1", "new"):
        cache.store_failure("other", again, FAILURE, 1.0)
    assert [cache.failure("other", str(one)) is None for one in (1, 2)] == [False, True]


def test_what_is_dated_later_than_now_can_be_dropped():
    cache = RateCache(LIFE)
    for hour in (10, 11, 12):
        cache.store(sheet(str(hour), fetched=at(NEXT, hour)))
    cache.drop_later(at(NEXT, 10, 59, 30))
    assert [known.asked for known in cache.sheets] == ["10", "11"], "clocks differ by a minute"
