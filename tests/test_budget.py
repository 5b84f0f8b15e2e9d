"""Budgets: the calls that a source may get, whatever the feed requests."""

from datetime import date, timedelta

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rate_bench import START, open_bench

from ratebridge.budget import BURST, FOR_TODAY, Budget
from ratebridge.errors import NoRate
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI, FakeFreeCurrencyApi
from ratebridge.fakes.rates import CLOSE, HTML

DAYS = [date(2010, 1, 4) + timedelta(days=7 * number) for number in range(400)]
EVERY = 518.4  # s, of freecurrencyapi


@given(st.lists(st.floats(0, 100), max_size=200), st.floats(0.5, 20))
def test_in_no_span_of_time_are_more_calls_than_the_burst_and_the_even_rate(gaps, every):
    budget = Budget(every)
    now, taken = 0.0, []
    for gap in gaps:
        now += gap
        if budget.wait(now) == 0:
            budget.take(now)
            taken.append(now)
    for at, first in enumerate(taken):
        for count, last in enumerate(taken[at:], 1):
            assert count <= BURST + (last - first) / every + 1e-6


def test_a_call_comes_after_the_wait_and_not_before():
    budget = Budget(10.0)
    for _ in range(BURST):
        budget.take(100.0)
    assert budget.wait(104.0) == pytest.approx(6.0)
    assert budget.wait(109.9) > 0
    assert budget.wait(110.0) == 0
    assert budget.wait(110.0, keep=1) == pytest.approx(10.0)
    assert budget.left(1e9) == BURST


async def test_a_feed_that_asks_for_hundreds_of_days_costs_no_more_than_the_budget(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        problems = [await bench.ask("USD", day) for day in DAYS]
        assert bench.fake.count() == BURST - FOR_TODAY
        assert isinstance(problems[-1], NoRate)
        assert "has no calls left in its budget" in problems[-1].text
        ((provider, limit),) = bench.notes.silences
        assert (provider, limit.outcome) == ("freecurrencyapi", "budget")
        assert (await bench.ask("USD", START.date())).provider == "freecurrencyapi", "for today"
        calls = bench.fake.count()
        await trio.sleep(7 * EVERY)
        for day in DAYS:
            await bench.ask("GBP", day + timedelta(days=1))
        assert bench.fake.count() - calls == 6, "evenly, and what today took is kept first"
        assert len(bench.notes.silences) == 2


async def test_a_fetch_under_way_is_joined_though_the_budget_is_used_up(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        for day in DAYS[: BURST - FOR_TODAY - 1]:
            await bench.ask("USD", day)
        bench.fake.latency = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.ask, "USD", DAYS[-1])
            await trio.sleep(0.5)
            assert (await bench.ask("GBP", DAYS[-1])).provider == "freecurrencyapi"


async def test_what_a_minute_refuses_costs_nothing(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.sources[FREECURRENCYAPI] = FakeFreeCurrencyApi(per_minute=10)
        for _ in range(6):
            for day in DAYS[: BURST - FOR_TODAY]:
                bench.nursery.start_soon(bench.ask, "USD", day)
            await trio.sleep(60)
        assert len(bench.notes.fetches) > 50, "ten a minute, but for what the attempts cost"


@pytest.mark.parametrize(("fault", "left"), [(CLOSE, BURST - 2), (HTML, 0)])
async def test_what_a_source_does_not_answer_is_hardly_counted(autojump_clock, fault, left):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.disturb = lambda _call: fault
        for day in DAYS[:BURST]:
            await bench.ask("USD", day)
        bench.fake.disturb = lambda _call: None
        for day in DAYS[100 : 100 + BURST]:
            await bench.ask("USD", day)
        assert len(bench.notes.fetches) == max(0, left - FOR_TODAY)


async def test_renewals_leave_half_of_what_a_source_gives_to_requests(autojump_clock):
    async with open_bench("freecurrencyapi", life=60) as bench:
        for day in DAYS[: BURST // 2]:
            await bench.ask("USD", day)
        first = bench.fake.count(FREECURRENCYAPI)
        for _ in range(100):
            await trio.sleep(EVERY / 10)
            for day in DAYS[: BURST // 2]:
                assert bench.cached("USD", day) is not None, "what has ended stays in use"
        assert 4 <= bench.fake.count(FREECURRENCYAPI) - first <= 5
