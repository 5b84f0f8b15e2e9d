"""Budgets: the calls that a source may get, whatever the feed requests."""

from collections import Counter
from datetime import date, timedelta
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rate_bench import DAY, START, open_bench
from support import elapsed

from ratebridge.budget import RESERVE, Allowance, Budget, TokenBucket
from ratebridge.errors import NoRate
from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI
from ratebridge.fakes.rates import HTML, Fault
from ratebridge.providers.registry import provider
from ratebridge.settings import Settings

NO_HTTP: Any = None  # of a source that is never asked
TODAY = START.date()
DAYS = [date(2000, 1, 3) + timedelta(days=i) for i in range(9000)]


@given(st.lists(st.floats(0, 100), max_size=60), st.integers(1, 5), st.floats(0.5, 20))
def test_in_no_span_of_time_are_more_tokens_taken_than_its_size_and_the_refill(gaps, size, every):
    bucket = TokenBucket(size, every)
    now, taken = 0.0, []
    for gap in gaps:
        now += gap
        if bucket.wait(now) == 0:
            bucket.take(now)
            taken.append(now)
    for at, first in enumerate(taken):
        for count, last in enumerate(taken[at:], 1):
            assert count <= size + (last - first) / every + 1e-6


def test_a_token_comes_after_the_wait_and_not_before():
    bucket = TokenBucket(2, 10.0)
    for _ in range(2):
        bucket.take(100.0)
    assert bucket.wait(104.0) == pytest.approx(6.0)
    assert bucket.wait(109.9) > 0
    assert bucket.wait(110.0) == 0
    assert bucket.wait(110.0, keep=1) == pytest.approx(10.0)
    assert bucket.left(1e9) == 2


def test_a_token_given_back_is_one_and_comes_at_that_time():
    bucket = TokenBucket(5, 10.0)
    for _ in range(4):
        bucket.take(100.0)
    bucket.give_back(110.0)
    assert [bucket.left(at) for at in (110.0, 120.0)] == [3.0, 4.0]


def test_after_the_wait_there_is_a_token_though_the_clock_is_a_float():
    for every in (7.7, 518.4):
        bucket = TokenBucket(1, every)
        now = 2**20 + 0.1
        bucket.take(now)
        assert bucket.wait(now + bucket.wait(now)) == 0


def test_what_was_not_answered_comes_back_but_not_the_try():
    allowance = Allowance(Budget(burst=2, every=1000.0))
    for _ in range(2):
        allowance.ask(0.0)
        allowance.unanswered(0.0)
    assert allowance.wait(0.0, 0) == pytest.approx(1.0)
    assert allowance.wait(1.0, 0) == 0
    allowance.ask(1.0)
    allowance.ask(1.0)
    assert allowance.wait(2.0, 0) == pytest.approx(998.0, rel=0.01)


def test_the_budget_of_a_source_is_a_month_of_calls():
    for name, calls in (("freecurrencyapi", 5000), ("frankfurter", 250_000)):
        source: Any = provider(name).make(NO_HTTP, Settings())
        budget: Budget = source.budget
        assert budget.burst - RESERVE > 31, "a month of days, and today's table, at once"
        assert 30 * 86400 / budget.every == pytest.approx(calls)


async def test_a_feed_that_asks_for_thousands_of_days_costs_no_more_than_the_budget(autojump_clock):
    async with open_bench() as bench:
        got = [await bench.ask("USD", day) for day in DAYS[:300]]
        assert elapsed() == 0  # those beyond it got their error at once
        assert Counter(getattr(answer, "provider", "none") for answer in got) == {
            FREECURRENCYAPI: 57,
            FRANKFURTER: 57,
            "none": 186,
        }
        assert got[-1].text == (
            f"no rate for 'USD' on {DAYS[299]}: freecurrencyapi has no calls left in its "
            "budget, frankfurter has no calls left in its budget"
        )
        assert bench.fake.count() == 2 * 57
        # Told for each source until its next call is due, or once a minute, and not with each
        # request.
        for day in DAYS[300:340]:
            await trio.sleep(2)
            await bench.ask("USD", day)
        assert [(name, failure.outcome) for name, failure in bench.notes.silences] == [
            (FREECURRENCYAPI, "budget"),
            (FRANKFURTER, "budget"),
            (FRANKFURTER, "budget"),
        ]
        waits = [failure.limited_for for _, failure in bench.notes.silences[:2]]
        assert waits == pytest.approx([30 * 86400 / 5_000, 30 * 86400 / 250_000])
        await trio.sleep(600)
        assert (await bench.ask("USD", DAYS[-1])).provider == FREECURRENCYAPI


async def test_days_that_fail_cost_no_more_than_the_budget(autojump_clock):
    async with open_bench() as bench:
        bench.fake.disturb = lambda _call: Fault(status=404)
        for day in DAYS[:300]:
            assert isinstance(await bench.ask("USD", day), NoRate)
        assert bench.fake.count() <= 2 * 62


@pytest.mark.parametrize(("fault", "calls"), [(Fault(status=404), 30), (HTML, 0)])
async def test_an_answer_counts_though_it_is_of_no_use_and_none_does_not(
    fault, calls, autojump_clock
):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.disturb = lambda _call: fault
        for day in DAYS[:57]:
            await bench.ask("USD", day)
        await trio.sleep(120)  # for tries; answers take longer to come back
        asked = bench.fake.count()
        for day in DAYS[57:87]:
            await bench.ask("USD", day)
        assert bench.fake.count() - asked == calls


async def test_the_reserve_is_for_todays_table(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        for day in DAYS[:57]:
            await bench.ask("USD", day)
        assert isinstance(await bench.ask("USD", DAYS[57]), NoRate)
        assert (await bench.ask("USD", TODAY)).provider == "freecurrencyapi"
        assert bench.fake.count() == 58


async def test_after_an_outage_a_source_serves_at_once(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.disturb = lambda _call: Fault(status=503)
        for _ in range(30):
            await bench.ask("USD", DAY)
            await trio.sleep(6)
        bench.fake.disturb = lambda _call: None
        assert (await bench.ask("USD", DAY)).provider == "freecurrencyapi"
        for day in DAYS[:50]:
            assert (await bench.ask("USD", day)).provider == "freecurrencyapi"


async def test_what_is_known_and_final_serves_on_when_little_is_left(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        for day in DAYS[:50]:
            await bench.ask("USD", day)
        await trio.sleep(7201)
        calls = bench.fake.count()
        assert (await bench.ask("USD", DAYS[0])).cached
        assert bench.fake.count() == calls
        assert not (await bench.ask("USD", DAYS[50])).cached
