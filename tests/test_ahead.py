"""The prefetch of tables in use, so that no request waits for them."""

from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
import trio
from rate_bench import DAY, START, Wall, open_bench
from support import elapsed

from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI
from ratebridge.fakes.rates import FakeRates, Fault
from ratebridge.providers.ahead import START_PAUSE, fetch_ahead
from ratebridge.rates import Quote, RateTable

TODAY = START.date()
LATENCY = 0.5


@asynccontextmanager
async def running(*sources, **how):
    """A bench whose sources take half a second, with what keeps its tables fresh."""
    async with open_bench(*sources, **how) as bench:
        bench.fake.latency = LATENCY
        bench.nursery.start_soon(fetch_ahead, bench.chain, bench.wall)
        await trio.sleep(START_PAUSE + LATENCY + 0.1)
        yield bench


async def waits(bench, wishes, seconds, every=10.0):
    """When requests of a steady traffic had to wait, in seconds from now."""
    began = trio.current_time()
    found = []
    while (now := trio.current_time() - began) < seconds:
        for currency, day in wishes:
            if bench.cached(currency, day) is None:
                found.append(round(now))
                await bench.ask(currency, day)
        await trio.sleep(every)
    return found


@pytest.mark.parametrize("life", [2.0, 60.0, 7200.0])
async def test_no_request_waits_over_an_expiry(autojump_clock, life):
    wishes = [("USD", DAY), ("USD", TODAY), ("UAH", DAY)]
    async with running(life=life) as bench:
        for currency, day in wishes:
            await bench.ask(currency, day)
        calls = bench.fake.count()
        assert await waits(bench, wishes, 3.5 * life, life / 200) == []
        assert bench.fake.count() - calls <= 3 * 7  # three tables, two of them of two sources


async def test_todays_table_is_fetched_at_the_start_from_the_first_source_only(autojump_clock):
    async with running() as bench:
        assert bench.cached("USD", TODAY) is not None
        assert [call.path for call in bench.fake.calls] == ["/v1/latest"]
        await trio.sleep(7 * 3600)
        assert bench.fake.count() == 1  # nobody has used it
        await trio.sleep(6 * 3600)
        assert [call.path for call in bench.fake.calls[1:]] == ["/v1/latest"], "of the new day"


async def test_todays_table_is_not_fetched_at_the_start_once_more(autojump_clock):
    async with open_bench() as bench:
        bench.nursery.start_soon(fetch_ahead, bench.chain, bench.wall)
        await bench.ask("USD", TODAY)
        await trio.sleep(START_PAUSE + 1)
        assert bench.fake.count() == 1


async def test_a_source_that_asks_no_network_is_asked_when_it_is_wanted(autojump_clock):
    class Local:
        name = "local"
        quota = budget = None
        fetches = 0

        async def fetch(self, day, now):
            self.fetches += 1
            quotes = {code: Quote(Decimal("1.1"), day) for code in ("EUR", "USD")}
            return RateTable("local", day, quotes, now)

    local = Local()
    async with running(local):
        await trio.sleep(3 * 3600)
        assert local.fetches == 0


async def test_what_was_used_at_first_only_is_not_fetched_again(autojump_clock):
    async with running("frankfurter") as bench:
        await bench.ask("USD", DAY)
        await trio.sleep(1800)
        assert bench.cached("USD", DAY) is not None
        await trio.sleep(4 * 3600)
        assert bench.fake.count() == 2


async def test_at_midnight_the_new_day_is_there_before_it_is_asked_for(autojump_clock):
    evening = datetime(2026, 11, 20, 22, 0, tzinfo=UTC)
    today, tomorrow = date(2026, 11, 20), date(2026, 11, 21)
    async with running(start=evening) as bench:
        wishes = [("USD", today), ("UAH", today)]  # of which the first source knows one
        for currency, day in wishes:
            await bench.ask(currency, day)
        assert await waits(bench, wishes, 7200 - 15) == []
        await trio.sleep((datetime(2026, 11, 21, tzinfo=UTC) - bench.wall()).total_seconds())
        calls = bench.fake.count()
        await trio.sleep(LATENCY + 0.1)
        for currency, day in wishes:
            assert bench.cached(currency, tomorrow) is not None
            rate = bench.cached(currency, day)
            assert rate is not None
            assert rate.fetched.date() == tomorrow
        assert bench.fake.count() - calls == 4


async def test_a_month_of_days_in_use_stays_within_the_quota_of_a_minute(autojump_clock):
    """And where the budget has no calls to spare for ended days, those known serve on."""
    fake = FakeRates(Wall(), per_minute=10, per_month=5000)
    wishes = [("USD", DAY - timedelta(days=back)) for back in range(30)]
    async with running("freecurrencyapi", fake=fake) as bench:
        for currency, day in wishes:
            await bench.ask(currency, day)
            await trio.sleep(10)
        assert await waits(bench, wishes, 6 * 3600, 60) == []
        assert bench.notes.silences == []
        assert fake.count() <= 62 + 6.1 * 3600 / 540


async def test_tables_that_end_together_are_fetched_one_by_one(autojump_clock):
    async with running("frankfurter") as bench:
        wishes = [("USD", DAY - timedelta(days=back)) for back in range(3)]
        for currency, day in wishes:
            await bench.ask(currency, day)
        known = bench.fake.count()
        assert await waits(bench, wishes, 7300) == []
        asked = [call.at for call in bench.fake.calls[known:] if call.path != "/v2/rates/latest"]
        assert len(asked) == 3
        assert min(later - sooner for sooner, later in pairwise(asked)) > timedelta(seconds=10)


@pytest.mark.parametrize(("spent", "ahead"), [(30, True), (50, False)])
async def test_with_half_of_the_budget_spent_nothing_is_fetched_ahead(spent, ahead, autojump_clock):
    async with running("freecurrencyapi") as bench:
        wishes = [("USD", DAY - timedelta(days=back)) for back in range(spent)]
        for currency, day in wishes:
            await bench.ask(currency, day)
        calls = bench.fake.count()
        assert await waits(bench, wishes, 7100, 600) == []
        assert (bench.fake.count() > calls) is ahead


async def test_a_fetch_ahead_that_fails_is_tried_again_before_the_end(autojump_clock):
    async with running("frankfurter") as bench:
        await bench.ask("USD", DAY)
        bench.fake.disturb = lambda _call: Fault(status=404)
        while not bench.notes.failures:
            assert bench.cached("USD", DAY) is not None
            await trio.sleep(10)
        assert 7200 * 0.75 < elapsed() < 7200 * 0.9
        await trio.sleep(200)
        assert len(bench.notes.failures) == 1, "for a quarter of what is left"
        bench.fake.disturb = lambda _call: None
        assert await waits(bench, [("USD", DAY)], 7200) == []
        assert len(bench.notes.failures) <= 2  # that of today's table, which nobody used, is none


async def test_what_has_just_failed_is_not_asked_for_ahead(autojump_clock):
    async with open_bench("frankfurter") as bench:
        bench.nursery.start_soon(fetch_ahead, bench.chain, bench.wall)
        await trio.sleep(START_PAUSE - 1)
        assert bench.fake.count() == 0, "the feed comes first"
        bench.fake.disturb = lambda _call: Fault(status=404)
        await bench.ask("USD", TODAY)
        await trio.sleep(3)
        assert bench.fake.count() == 1


async def test_a_pinned_currency_returns_to_the_first_source_without_a_wait(autojump_clock):
    async with running() as bench:
        bench.fake.disturb = lambda call: (
            Fault(status=404) if call.source == FREECURRENCYAPI else None
        )
        assert (await bench.ask("USD", DAY)).provider == FRANKFURTER
        bench.fake.disturb = lambda _call: None
        assert await waits(bench, [("USD", DAY)], 7300) == []
        rate = bench.cached("USD", DAY)
        assert rate is not None
        assert (rate.provider, rate.note) == (FREECURRENCYAPI, "")


async def test_a_clock_that_jumps_is_noticed_though_nothing_is_asked_for(autojump_clock):
    async with running("frankfurter") as bench:
        assert bench.cached("USD", TODAY) is not None
        bench.wall.jump(timedelta(hours=2))
        await trio.sleep(20)
        assert bench.notes.clock_jumps == [7200.0]
        assert bench.cached("USD", TODAY) is None, "it is that much older"
