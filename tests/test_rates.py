"""The day-tables: which are used, for how long, and how many are kept."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import attrs
import pytest

from ratebridge.errors import SourceFailed
from ratebridge.rates import FAILURE_LIFE, MAX_QUOTES, Failing, Quote, RateTable, Tables, rate_from

DAY = date(2026, 11, 3)
NEXT = date(2026, 11, 4)
LIFE = 7200.0
DOWN = SourceFailed("http-500", "answered HTTP 500")
SILENT = SourceFailed("quota-month", "has no calls left")


def table(day=DAY, fetched_on=NEXT, provider="fake", usd="1.2"):
    quotes = {"EUR": Quote(Decimal(1), day), "USD": Quote(Decimal(usd), day)}
    return RateTable(provider, day, quotes, datetime.combine(fetched_on, time(), UTC))


FINAL = table()
PROVISIONAL = table(fetched_on=DAY)
LATEST = attrs.evolve(FINAL, latest=True)  # asked for when the day was over, but not its own
CLOCK_AHEAD = attrs.evolve(FINAL, made=datetime(2026, 11, 3, 23, 59, 59, tzinfo=UTC))


@attrs.frozen
class Case:
    name: str
    held: RateTable | None  # stored at time 0
    failed_at: float | None
    today: date
    now: float
    limited_for: SourceFailed | None
    found: RateTable | Failing | None


CASES = [
    Case("nothing is known", None, None, NEXT, 0.0, None, None),
    Case(
        "nothing is known and the source is silent", None, None, NEXT, 0.0, SILENT, Failing(SILENT)
    ),
    Case("a table lives", FINAL, None, NEXT, LIFE - 0.1, None, FINAL),
    Case("a table's life ends", FINAL, None, NEXT, LIFE, None, None),
    Case("a live table needs no source", FINAL, None, NEXT, LIFE - 0.1, SILENT, FINAL),
    Case("a live table outlives a failure", FINAL, 1.0, NEXT, 2.0, None, FINAL),
    Case("a failure is remembered", None, 0.0, NEXT, FAILURE_LIFE - 0.1, None, Failing(DOWN)),
    Case("a failure is due", None, 0.0, NEXT, FAILURE_LIFE, None, Failing(DOWN, None, due=True)),
    Case("a silent source is not due", None, 0.0, NEXT, FAILURE_LIFE, SILENT, Failing(SILENT)),
    Case("a final table serves on", FINAL, LIFE, NEXT, LIFE + 1, None, Failing(DOWN, FINAL)),
    Case("and is asked for", FINAL, LIFE, NEXT, LIFE + 5, None, Failing(DOWN, FINAL, due=True)),
    Case("and in silence", FINAL, None, NEXT, LIFE + 1, SILENT, Failing(SILENT, FINAL)),
    Case("today's table lives", PROVISIONAL, None, DAY, LIFE - 0.1, None, PROVISIONAL),
    Case("today's does not serve on", PROVISIONAL, LIFE, DAY, LIFE + 1, None, Failing(DOWN)),
    Case("yesterday's is not final", PROVISIONAL, None, NEXT, 1.0, None, None),
    Case("and serves no failure", PROVISIONAL, 0.5, NEXT, 1.0, None, Failing(DOWN)),
    Case("a stand-in lives", LATEST, None, NEXT, LIFE - 0.1, None, LATEST),
    Case("a stand-in does not serve on", LATEST, LIFE, NEXT, LIFE + 1, None, Failing(DOWN)),
    Case("nor in silence", LATEST, None, NEXT, LIFE, SILENT, Failing(SILENT)),
    Case("a table made before midnight", CLOCK_AHEAD, None, NEXT, 1.0, None, CLOCK_AHEAD),
    Case("serves on no more than that", CLOCK_AHEAD, None, NEXT, LIFE, SILENT, Failing(SILENT)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_found(case):
    tables = Tables(LIFE)
    if case.held is not None:
        tables.store(case.held, 0.0)
    if case.failed_at is not None:
        tables.store_failure("fake", DAY, DOWN, case.failed_at)
    found = tables.find("fake", DAY, today=case.today, now=case.now, limit=case.limited_for)
    assert found == case.found


@pytest.mark.parametrize("life", [60.0, 10 * LIFE])
def test_what_stands_in_for_an_ended_days_table_lives_two_hours_at_most(life):
    tables = Tables(life)
    for held, today, ends in (
        (PROVISIONAL, DAY, life),
        (LATEST, NEXT, min(life, LIFE)),
        (FINAL, NEXT, life),
    ):
        tables.store(held, 0.0)
        fresh = [tables.fresh("fake", DAY, today=today, now=now) for now in (ends - 1, ends)]
        assert fresh == [held, None]


@pytest.mark.parametrize(("life", "early"), [(LIFE, 1440.0), (60.0, 15.0), (20.0, 8.0)])
@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.75), (1.0, 1.0)])
def test_a_table_in_use_is_due_a_while_before_its_end(life, early, jitter, share):
    tables = Tables(life)
    tables.store(FINAL, 0.0, jitter)
    tables.use("fake", DAY, life / 2)
    due = life - early * share
    assert [tables.due_ahead(NEXT, at) for at in (due - 0.01, due + 0.01)] == [[], [FINAL]]


@pytest.mark.parametrize(
    ("held", "today", "used", "now", "due"),
    [
        (FINAL, NEXT, 0.5, 0.95, True),
        (FINAL, NEXT, 0.4, 0.95, False),
        (FINAL, NEXT, 1.5, 2.0, True),  # as a final one serves on
        (FINAL, NEXT, 1.4, 2.0, False),
        (PROVISIONAL, DAY, 0.9, 0.95, True),
        (PROVISIONAL, DAY, 0.9, 1.0, False),
        (PROVISIONAL, NEXT, 0.9, 0.95, False),
        (PROVISIONAL, date(2026, 11, 2), 0.9, 0.95, False),  # the clock was set back
    ],
)
def test_a_table_is_due_if_it_was_used_in_the_last_half_of_a_life(held, today, used, now, due):
    """Times are in lives."""
    tables = Tables(LIFE)
    tables.store(held, 0.0)
    tables.use("fake", DAY, used * LIFE)
    assert tables.due_ahead(today, now * LIFE) == ([held] if due else [])


def test_whether_a_table_lives_and_is_final():
    tables = Tables(LIFE)
    for held, final, today in ((PROVISIONAL, False, DAY), (FINAL, True, NEXT)):
        assert not tables.has_live("fake", DAY, today, 0.0)
        tables.store(held, 0.0)
        live = [tables.has_live("fake", DAY, today, now) for now in (LIFE - 1, LIFE)]
        assert live == [True, False]
        assert tables.has_live("fake", DAY, NEXT, 0.0) is final
        assert tables.has_final("fake", DAY) is final
        assert [tables.end_of(one) for one in (held, attrs.evolve(held))] == [LIFE, None]
        tables = Tables(LIFE)


def test_what_a_table_is_stands_in_its_rates():
    notes = [table.cached_rate("USD").note for table in (FINAL, PROVISIONAL, LATEST)]
    assert notes == ["", "", "the latest rates, because those of the day were not published yet"]
    rate = CLOCK_AHEAD.cached_rate("USD")
    assert rate.note == "made before its day had ended"


MORNING = datetime(2026, 11, 4, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("utc", "final"),
    [(MORNING - timedelta(hours=10), False), (MORNING - timedelta(hours=8), True)],
    ids=["before the day's end", "after it"],
)
@pytest.mark.parametrize("life", [60.0, 10 * LIFE])
def test_a_clock_set_back_takes_finality_from_what_was_fetched_in_the_future(utc, final, life):
    tables = Tables(life)
    tables.store(attrs.evolve(FINAL, fetched=MORNING), 0.0)
    tables.clock_moved((utc - MORNING).total_seconds(), utc)
    [(held, _)] = tables.tables()
    assert held.final is final
    ends = life if final else min(life, LIFE)
    for now, there in ((ends - 1, True), (ends, False)):
        assert (tables.fresh("fake", DAY, today=utc.date(), now=now) is not None) is there


def test_a_clock_that_went_ahead_has_aged_the_tables():
    """As after a sleep of the machine, which the monotonic clock does not count."""
    tables = Tables(LIFE)
    tables.store(FINAL, 0.0)
    tables.clock_moved(LIFE - 1, MORNING)
    assert tables.fresh("fake", DAY, today=NEXT, now=0.9) is FINAL
    assert tables.due_ahead(NEXT, 0.9) == [FINAL]
    assert tables.tables() == [(FINAL, 1.0 - LIFE)]
    assert tables.fresh("fake", DAY, today=NEXT, now=1.0) is None


def test_the_quotes_in_all_tables_are_bounded():
    tables = Tables(LIFE)
    quotes = {f"{i:03}": Quote(Decimal(i + 1), DAY) for i in range(500)}
    big = [attrs.evolve(FINAL, day=day(back), quotes=quotes) for back in range(100)]
    for at, one in enumerate(big):
        tables.store(one, float(at))
    assert [kept for kept, _ in tables.tables()] == big[-MAX_QUOTES // 500 :]
    tables.store(big[-1], 100.0)  # in place of itself
    assert len(tables) == MAX_QUOTES // 500


def day(back):
    return DAY - timedelta(days=back)


def test_a_table_ends_a_failure():
    tables = Tables(LIFE)
    tables.store_failure("fake", DAY, DOWN, 0.0)
    tables.store(FINAL, 1.0)
    assert tables.find("fake", DAY, today=NEXT, now=1.0) is FINAL
    assert tables.find("fake", DAY, today=NEXT, now=1.0 + LIFE) is None


def test_a_table_asked_for_before_midnight_does_not_take_the_place_of_the_final_one():
    tables = Tables(LIFE)
    tables.store(FINAL, 0.0)
    tables.store(PROVISIONAL, 1.0)
    assert tables.find("fake", DAY, today=NEXT, now=2.0) is FINAL


def test_a_final_table_lives_on_when_its_source_has_but_an_older_copy():
    tables = Tables(LIFE)
    tables.store(FINAL, 0.0)
    assert tables.store(CLOCK_AHEAD, LIFE - 1) is FINAL
    assert tables.fresh("fake", DAY, today=NEXT, now=2 * LIFE - 2) is FINAL


def test_sources_and_days_are_kept_apart():
    tables = Tables(LIFE)
    tables.store(FINAL, 0.0)
    assert tables.find("other", DAY, today=NEXT, now=0.0) is None
    assert tables.find("fake", NEXT, today=NEXT, now=0.0) is None


def test_a_use_counts_where_there_is_a_table():
    tables = Tables(LIFE)
    tables.use("fake", DAY, 1.0)
    assert not tables.used_since("fake", DAY, 0.0)
    tables.store(FINAL, 1.0)
    tables.use("fake", DAY, 2.0)
    assert tables.used_since("fake", DAY, 2.0)
    assert not tables.used_since("fake", DAY, 2.1)
    tables.find("fake", DAY, today=NEXT, now=LIFE + 2, limit=SILENT)  # its life is over
    assert tables.used_since("fake", DAY, LIFE + 2)


def test_the_table_unused_for_longest_is_forgotten():
    tables = Tables(LIFE, most=2)
    days = [date(2026, 10, day) for day in (1, 2, 3)]
    first, second, third = map(table, days)
    tables.store(first, 0.0)
    tables.store(second, 1.0)
    assert tables.find("fake", days[0], today=NEXT, now=1.5) is first
    tables.store(third, 2.0)
    assert tables.find("fake", days[1], today=NEXT, now=2.0) is None
    assert tables.find("fake", days[0], today=NEXT, now=2.5) is first
    assert tables.tables() == [(third, 2.0), (first, 0.0)]
    assert len(tables) == 2


def test_what_was_asked_for_ahead_is_asked_for_again_after_a_fourth_of_what_is_left():
    tables = Tables(LIFE)
    tables.store(FINAL, 0.0)
    for at, again in ((LIFE - 1000, LIFE - 750), (LIFE - 1, LIFE - 1 + FAILURE_LIFE)):
        tables.use("fake", DAY, at)
        tables.postpone(FINAL, at)
        assert tables.due_ahead(NEXT, again - 0.1) == []
        assert tables.due_ahead(NEXT, again) == [FINAL]


@pytest.mark.parametrize(
    "touch",
    [
        lambda tables, day: tables.store_failure("fake", day, DOWN, 0.0),
        lambda tables, day: tables.find("fake", day, today=NEXT, now=0.0),
    ],
    ids=["it fails again", "it is looked at"],
)
def test_the_failure_unused_for_longest_is_forgotten(touch):
    tables = Tables(LIFE, most=2)
    first, second, third = (date(2026, 10, day) for day in (1, 2, 3))
    for day in (first, second):
        tables.store_failure("fake", day, DOWN, 0.0)
    touch(tables, first)
    tables.store_failure("fake", third, DOWN, 0.0)
    found = [tables.find("fake", day, today=NEXT, now=0.0) for day in (first, second, third)]
    assert found == [Failing(DOWN), None, Failing(DOWN)]


def test_failures_are_bounded_and_push_out_no_table():
    tables = Tables(LIFE, most=2)
    tables.store(FINAL, 0.0)
    days = [date(2026, 10, day) for day in (1, 2, 3)]
    for day in days:
        tables.store_failure("fake", day, DOWN, 0.0)
    found = [tables.find("fake", day, today=NEXT, now=0.0) for day in days]
    assert found == [None, Failing(DOWN), Failing(DOWN)]
    assert tables.find("fake", DAY, today=NEXT, now=0.0) is FINAL


def test_a_rate_carries_its_provenance():
    rate = rate_from(FINAL, "USD", cached=True)
    assert rate is not None
    assert (rate.currency, rate.units, rate.euro) == ("USD", Decimal("1.2"), Decimal(1))
    assert (rate.day, rate.asked, rate.provider) == (DAY, DAY, "fake")
    assert (rate.fetched, rate.cached) == (FINAL.fetched, True)
    assert rate.text == "1.2"


def test_a_rate_is_as_old_as_the_older_of_its_two_quotes():
    quotes = {"EUR": Quote(Decimal("0.9"), DAY), "GBP": Quote(Decimal("0.80"), NEXT)}
    rate = rate_from(RateTable("fake", NEXT, quotes, FINAL.fetched), "GBP", cached=False)
    assert rate is not None
    assert (rate.day, rate.asked, rate.text) == (DAY, NEXT, "0.80/0.9")


def test_a_table_may_not_know_a_currency():
    assert rate_from(FINAL, "BTC", cached=True) is None
