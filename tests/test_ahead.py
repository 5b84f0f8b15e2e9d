"""Midnight: the rates of both days are there before they are asked for."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import trio
from rate_bench import DAY, open_bench

from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI
from ratebridge.fakes.rates import Fault
from ratebridge.providers.ahead import fetch_at_midnight
from ratebridge.providers.freecurrencyapi import AT_MIDNIGHT
from ratebridge.rates import RENEWED_FROM, final_from

EVENING = datetime(2026, 11, 20, 23, 50, tzinfo=UTC)
START = EVENING - timedelta(seconds=7)  # so that no look is at midnight by chance
TODAY = EVENING.date()
TOMORROW = TODAY + timedelta(days=1)


@asynccontextmanager
async def ten_minutes_to_midnight(*sources):
    async with open_bench(*sources, start=START) as bench:
        bench.fake.latency = 0.5
        bench.nursery.start_soon(fetch_at_midnight, bench.chain, bench.wall)
        await trio.sleep(7)
        yield bench


async def test_the_days_that_were_in_use_are_there_half_a_second_after_midnight(autojump_clock):
    async with ten_minutes_to_midnight() as bench:
        await bench.ask("USD", TODAY)
        await trio.sleep(601)
        assert bench.cached("USD", TOMORROW) is not None
        ended = bench.cached("USD", TODAY)
        assert ended is not None
        assert ended.fetched >= EVENING + timedelta(minutes=10)
        paths = [call.path for call in bench.fake.calls if call.source == FREECURRENCYAPI]
        assert sorted(paths[2:]) == ["/v1/historical", "/v1/latest"]
        assert bench.fake.count(FRANKFURTER) == 0, "it was not in use"


async def test_the_renewal_of_another_day_just_before_midnight_does_not_delay_them(autojump_clock):
    async with ten_minutes_to_midnight() as bench:
        bench.nursery.start_soon(bench.ask, "USD", TODAY)
        bench.chain.cache.life = timedelta(minutes=11)  # due after 528 s
        await bench.ask("USD", DAY)
        await trio.sleep(590)
        bench.cached("USD", DAY)
        await trio.sleep(11)
        assert bench.cached("USD", TODAY) is not None


async def test_a_minute_later_the_ended_day_is_final(autojump_clock):
    async with ten_minutes_to_midnight("frankfurter") as bench:
        await bench.ask("USD", TODAY)
        await trio.sleep(601)
        (sheet,) = bench.chain.cache.sheets
        assert not sheet.is_final(TODAY)
        assert bench.cached("USD", TODAY).fetched == sheet.fetched
        await trio.sleep(58.52)
        bench.cached("USD", TODAY)  # the same call, which a request begins
        await trio.sleep(2)
        (sheet,) = bench.chain.cache.sheets
        assert sheet.is_final(TODAY)
        assert bench.cached("USD", TODAY).fetched == sheet.fetched, "though it was asked before"
        assert bench.fake.count() == 3


async def test_a_minute_later_a_source_that_fails_is_asked_until_the_ended_day_is_final(
    autojump_clock,
):
    async with ten_minutes_to_midnight("freecurrencyapi") as bench:
        await bench.ask("USD", TODAY)
        await trio.sleep(658)
        bench.fake.order(FREECURRENCYAPI, Fault(status=404))
        await trio.sleep(10)
        assert len(bench.notes.failures) == 1
        assert bench.cached("USD", TODAY).fetched < final_from(TODAY)
        await trio.sleep(1)
        assert bench.cached("USD", TODAY).fetched >= final_from(TODAY)


async def test_today_takes_no_more_calls_than_are_kept_for_it(autojump_clock):
    async with ten_minutes_to_midnight("freecurrencyapi") as bench:
        for _ in range(144):
            await bench.ask("USD", bench.wall().date())
            await trio.sleep(600)
        assert 16 < bench.fake.count() <= 86400 / (7200 * RENEWED_FROM) + AT_MIDNIGHT


async def test_what_was_not_in_use_is_not_asked_for(autojump_clock):
    async with ten_minutes_to_midnight() as bench:
        await bench.ask("USD", DAY)
        await trio.sleep(700)
        assert bench.fake.count() == 1


async def test_a_jump_of_the_clock_is_noticed_within_a_quarter_of_a_minute(autojump_clock):
    async with ten_minutes_to_midnight() as bench:
        await trio.sleep(1)
        bench.wall.jump(timedelta(hours=3))
        await trio.sleep(15)
        assert bench.notes.clock_jumps == [10800.0]
