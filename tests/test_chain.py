"""The chain: few calls, failover in time, and recovery from failures."""

import io
import json
import random
import ssl
import weakref
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import attrs
import httpx
import pytest
import trio
from msgspec.structs import replace
from rate_bench import DAY, KEY, START, TLS, URL, Notes, Wall, make_client, open_bench
from support import elapsed

from ratebridge.app import utc_now
from ratebridge.errors import NoRate
from ratebridge.fakes.feed import CURRENCIES
from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import (
    FREECURRENCYAPI,
    NO_CALLS_THIS_MINUTE,
    NO_CALLS_THIS_MONTH,
)
from ratebridge.fakes.rates import (
    CLOSE,
    CUT,
    DRIP,
    EMPTY,
    GZIP,
    HANG,
    HTML,
    HUGE,
    REDIRECT,
    RESET,
    FakeRates,
    Fault,
    memory_transport,
    quote,
    serve_rates,
)
from ratebridge.observer import Observer
from ratebridge.operating.logs import configure_logs, event_log
from ratebridge.providers.chain import MOST_FETCHES, RateChain
from ratebridge.providers.freecurrencyapi import FreeCurrencyApi
from ratebridge.providers.http import HttpClient
from ratebridge.rates import FAILURE_LIFE, Quote, Rate, RateTable, Tables

TODAY = START.date()
OTHER_DAY = date(2026, 11, 4)
RECORDED = date(2022, 1, 14)  # a day of the recorded traffic


def days(count, last=DAY):
    return [last - timedelta(days=back) for back in range(count)]


async def ask_all(bench, wishes):
    """What each of many requests at once gets, in their order."""
    got = {}

    async def ask(i, currency, day):
        got[i] = await bench.ask(currency, day)

    async with trio.open_nursery() as nursery:
        for i, (currency, day) in enumerate(wishes):
            nursery.start_soon(ask, i, currency, day)
    return [got[i] for i in range(len(wishes))]


def down(*sources, day=None, fault=HANG):
    """A `disturb` by which sources fail, for one day or for all."""

    def disturb(call):
        return (
            fault
            if call.source in sources and day in (None, date.fromisoformat(call.day))
            else None
        )

    return disturb


def well(_call):
    return None


# Few calls.


async def test_a_rate_is_that_of_the_day_with_its_provenance(autojump_clock):
    async with open_bench() as bench:
        bench.fake.latency = 0.25
        rate = await bench.ask("USD")
        units = Decimal(quote(FREECURRENCYAPI, "USD", DAY))
        fresh = Rate("USD", units, Decimal(1), DAY, DAY, "freecurrencyapi", START, cached=False)
        assert rate == fresh
        assert await bench.ask("USD") == replace(fresh, cached=True)
        assert bench.cached("USD", DAY) == replace(fresh, cached=True)
        assert bench.cached("USD", OTHER_DAY) is None
        [(table, seconds)] = bench.notes.fetches
        assert (table.provider, table.day, seconds) == ("freecurrencyapi", DAY, 0.25)


async def test_three_hundred_requests_for_a_cold_day_are_one_call(autojump_clock):
    async with open_bench() as bench:
        bench.fake.latency = 0.25
        rates = await ask_all(bench, [("USD", DAY)] * 300)
        assert {rate.provider for rate in rates} == {"freecurrencyapi"}
        assert bench.fake.count() == 1


async def test_a_thousand_requests_over_thirty_days_are_sixty_calls_at_most(autojump_clock):
    chance = random.Random(4)
    wishes = [(chance.choice(CURRENCIES), chance.choice(days(30, RECORDED))) for _ in range(1000)]
    async with open_bench() as bench:
        bench.fake.latency = 0.25
        got = await ask_all(bench, wishes)
        assert bench.fake.count() == 60
        for (currency, day), rate in zip(wishes, got, strict=True):
            if currency == "BTC":
                assert isinstance(rate, NoRate)
            else:
                assert (rate.currency, rate.asked) == (currency, day)


async def test_currencies_of_the_recorded_traffic_that_one_source_lacks_come_from_the_next(
    autojump_clock,
):
    async with open_bench() as bench:
        for currency, quoted_on in (("ZWL", RECORDED), ("UAH", RECORDED - timedelta(days=1))):
            rate = await bench.ask(currency, RECORDED)
            assert (rate.provider, rate.day, rate.asked) == ("frankfurter", quoted_on, RECORDED)
            assert rate.units == Decimal(quote(FRANKFURTER, currency, quoted_on))
        assert (await bench.ask("USD", RECORDED)).provider == "freecurrencyapi"
        assert bench.fake.count() == 2


async def test_a_currency_that_no_source_knows_is_an_error_that_costs_no_further_call(
    autojump_clock,
):
    async with open_bench() as bench:
        for _ in range(3):
            problem = await bench.ask("BTC")
            assert (problem.kind, problem.text) == (
                "unknown-currency",
                "currency 'BTC' is not known to freecurrencyapi or frankfurter",
            )
        assert bench.fake.count() == 2
        with pytest.raises(NoRate):
            bench.cached("BTC", DAY)


async def test_a_currency_quoted_in_too_few_digits_is_unknown_with_its_reason(autojump_clock):
    async with open_bench() as bench:
        bench.fake.disturb = lambda _call: Fault(quotes={"UAH": "0.00027"})
        problem = await bench.ask("UAH")
        assert problem.kind == "unknown-currency"
        assert problem.text == (
            "no rate for 'UAH' on 2026-11-03: "
            "freecurrencyapi gives it in too few digits (0.00027), "
            "frankfurter gives it in too few digits (0.00027)"
        )
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(quotes={"USD": "0.00027"}))
        assert (await bench.ask("USD", OTHER_DAY)).provider == "frankfurter"


# Implausible quotes.


async def test_an_implausible_quote_is_not_used_when_another_source_has_one(autojump_clock):
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(quotes={"CZK": "0.0393"}))
        assert (await bench.ask("CZK")).provider == "frankfurter"
        assert (await bench.ask("USD")).provider == "freecurrencyapi"
        bench.fake.disturb = lambda _call: Fault(quotes={"CZK": "0.0393"})
        problem = await bench.ask("CZK", OTHER_DAY)
        assert problem.kind == "unavailable"
        assert problem.text == (
            "no rate for 'CZK' on 2026-11-04: "
            "freecurrencyapi gives an implausible 0.0393 (expected: 24.69), "
            "frankfurter gives an implausible 0.0393 (expected: 24.69)"
        )
        assert bench.notes.implausible == [
            ("freecurrencyapi", DAY, ["CZK"]),
            ("freecurrencyapi", OTHER_DAY, ["CZK"]),
            ("frankfurter", OTHER_DAY, ["CZK"]),
        ]


async def test_an_implausible_table_is_a_failure_of_its_source(autojump_clock):
    codes = [code for code in CURRENCIES if code not in ("EUR", "BTC")]
    ones = b'{"data":{"2026-11-03":{"EUR":1,"USD":1,"GBP":1}}}'
    async with open_bench() as bench:
        bench.fake.order(FREECURRENCYAPI, Fault(body=ones))
        rates = [await bench.ask(code) for code in codes if code not in ("ZWL", "HRK")]
        assert {rate.provider for rate in rates} == {"frankfurter"}
        ((provider, _, failure),) = bench.notes.failures
        assert (provider, failure.outcome) == ("freecurrencyapi", "implausible")
        assert str(failure) == "gives an implausible table (2 of 2 currencies)"


async def test_a_quote_is_compared_with_what_another_source_gave(autojump_clock):
    async with open_bench("frankfurter", "freecurrencyapi") as bench:
        assert (await bench.ask("UAH")).units > 30
        bench.fake.disturb = lambda _call: Fault(quotes={"UAH": "334"})
        bench.fake.order(FRANKFURTER, Fault(status=404))
        assert isinstance(await bench.ask("UAH", OTHER_DAY), NoRate)
        assert bench.notes.implausible == [("freecurrencyapi", OTHER_DAY, ["UAH"])]


# Life and expiry.


async def test_a_table_is_asked_for_again_when_its_life_is_over(autojump_clock):
    async with open_bench("freecurrencyapi", life=7200) as bench:
        await bench.ask("USD")
        await trio.sleep(7199.9)
        assert (await bench.ask("GBP")).cached
        await trio.sleep(0.2)
        assert not (await bench.ask("USD")).cached
        assert bench.fake.count() == 2


async def test_a_life_shorter_than_the_answer_takes_is_one_call_a_request_and_no_loop(
    autojump_clock,
):
    async with open_bench(life=1e-9) as bench:
        bench.fake.latency = 1.0
        assert (await bench.ask("UAH")).provider == "frankfurter"
        assert bench.fake.count() == 2
        problem = await bench.ask("BTC")
        assert problem.kind == "unknown-currency"
        assert bench.fake.count() == 4


class Instant:
    """A source that needs no time; a day's rate is its number, in millions."""

    name = "instant"
    quota = budget = None

    def __init__(self):
        self.fetches = 0

    async def fetch(self, day, now):
        self.fetches += 1
        euro, units = Quote(Decimal(1), day), Quote(Decimal(day.toordinal()).scaleb(-6), day)
        return RateTable("instant", day, {"EUR": euro, "USD": units}, now)


async def test_a_thousand_days_leave_no_more_tables_than_the_bound(autojump_clock):
    source = Instant()
    async with open_bench(source, most=100) as bench:
        for day in days(1000):
            assert (await bench.chain.rate("USD", day)).units == day.toordinal() / Decimal(10**6)
        assert len(bench.chain.tables) == 100
        assert source.fetches == 1000
        for day in reversed(days(1000)[-100:]):
            assert (await bench.ask("USD", day)).cached
        assert not (await bench.ask("USD", DAY)).cached


# One fetch for all who wait.


@pytest.mark.parametrize("leaver", [0, 1, 2], ids=["the first", "the second", "the last"])
async def test_a_cancelled_request_does_not_cancel_the_fetch(autojump_clock, leaver):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.latency = 1.0
        got = {}
        patience = [trio.CancelScope() for _ in range(3)]

        async def ask(i):
            with patience[i]:
                got[i] = await bench.ask("USD")

        async with trio.open_nursery() as nursery:
            for i in range(3):
                nursery.start_soon(ask, i)
                await trio.sleep(0.1)
            patience[leaver].cancel()
        assert set(got) == {0, 1, 2} - {leaver}
        assert (bench.fake.count(), elapsed()) == (1, 1.0)


async def test_without_any_waiting_request_the_answer_is_cached(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.latency = 1.0
        with trio.move_on_after(0.5):
            await bench.ask("USD")
        await trio.sleep(1)
        assert (await bench.ask("USD")).cached
        assert bench.fake.count() == 1


async def test_requests_waiting_at_the_end_get_an_error(autojump_clock):
    async with trio.open_nursery() as nursery, open_bench("freecurrencyapi") as bench:
        bench.fake.latency = 1.0
        got = []

        async def wait():
            got.append(await bench.ask("USD"))

        nursery.start_soon(wait)
        await trio.sleep(0.5)
        bench.nursery.cancel_scope.cancel()
    assert [str(problem) for problem in got] == [
        "no rate for 'USD' on 2026-11-03: freecurrencyapi was not asked to the end"
    ]


# Midnight.


async def test_at_midnight_the_table_of_the_day_is_asked_for_again(autojump_clock):
    evening = datetime(2026, 11, 20, 23, 59, 50, tzinfo=UTC)
    async with open_bench(start=evening) as bench:
        latest = await bench.ask("USD", evening.date())
        assert (latest.day, latest.fetched) == (evening.date(), evening)
        await trio.sleep(11)
        final = await bench.ask("USD", evening.date())
        assert not final.cached
        assert [call.path for call in bench.fake.calls] == ["/v1/latest", "/v1/historical"]
        await bench.ask("USD", evening.date())
        assert bench.fake.count() == 2


async def test_a_fetch_that_crosses_midnight_serves_those_who_asked_before_it_only(autojump_clock):
    evening = datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC)
    async with open_bench("freecurrencyapi", start=evening) as bench:
        bench.fake.latency = 2.0
        got = {}

        async def ask(name):
            got[name] = await bench.ask("USD", evening.date())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "before")
            await trio.sleep(1.5)
            nursery.start_soon(ask, "after")
        assert got["before"].fetched == evening
        assert got["after"].fetched == evening + timedelta(seconds=1.5)
        assert [call.path for call in bench.fake.calls] == ["/v1/latest", "/v1/historical"]
        assert (await bench.ask("USD", evening.date())).fetched == got["after"].fetched


async def test_the_latest_that_stood_in_for_yesterday_is_not_kept_as_its_table(autojump_clock):
    night = datetime(2026, 11, 20, 0, 10, tzinfo=UTC)
    yesterday = date(2026, 11, 19)
    async with open_bench("freecurrencyapi", start=night) as bench:
        bench.fake.order(FREECURRENCYAPI, Fault(status=422))
        rate = await bench.ask("USD", yesterday)
        assert rate.note == "the latest rates, because those of the day were not published yet"
        assert (await bench.ask("GBP", yesterday)).cached
        assert bench.fake.count() == 2
        await trio.sleep(7201)
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        assert isinstance(await bench.ask("USD", yesterday), NoRate)


# Clocks.


async def test_a_table_made_before_midnight_by_its_sources_clock_is_not_final(autojump_clock):
    """Our clock is an hour ahead: the day that it says is over runs on."""
    night = datetime(2026, 11, 20, 0, 30, tzinfo=UTC)
    headers = {"date": "Thu, 19 Nov 2026 23:30:00 GMT"}
    async with open_bench("frankfurter", start=night) as bench:
        bench.fake.disturb = lambda _call: Fault(headers=headers)
        for day in days(2, date(2026, 11, 19)):
            await bench.ask("USD", day)
        assert [table.final for table, _ in bench.chain.tables.tables()] == [False, True]
        assert bench.notes.clock_differences == [("frankfurter", 3600.0)]  # once for both
        bench.fake.disturb = well
        await bench.ask("USD", OTHER_DAY)
        assert len(bench.notes.clock_differences) == 1
        bench.fake.disturb = lambda _call: Fault(headers={"date": "Fri, 20 Nov 2026 00:31:00 GMT"})
        await bench.ask("USD", date(2026, 11, 5))
        assert [round(seconds) for _, seconds in bench.notes.clock_differences[1:]] == [-60]


async def test_a_copy_from_before_the_end_of_the_day_does_not_replace_the_final_table(
    autojump_clock,
):
    """The server of a cache that answers now may have kept the day's table since that day."""
    old = Fault(headers={"date": "Fri, 20 Nov 2026 14:00:20 GMT", "age": str(17 * 86400)})
    async with open_bench("frankfurter") as bench:
        final = await bench.ask("USD")
        await trio.sleep(7200)
        bench.fake.order(FRANKFURTER, old)
        assert await bench.ask("USD") == final
        await trio.sleep(7199)
        assert await bench.ask("USD") == replace(final, cached=True)
        assert bench.fake.count() == 2  # the answer is cached, like any other
        await trio.sleep(1)
        assert (await bench.ask("USD")).fetched == bench.wall()


async def test_a_clock_that_jumps_is_noticed_when_a_table_is_asked_for(autojump_clock):
    async with open_bench("frankfurter") as bench:
        await bench.ask("USD")
        await trio.sleep(3600)
        await bench.ask("USD", OTHER_DAY)
        assert bench.notes.clock_jumps == []
        bench.wall.jump(timedelta(hours=-1))
        bench.fake.latency = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.ask, "USD", date(2026, 11, 5))
            await trio.sleep(0.5)
            bench.wall.jump(timedelta(seconds=100))  # and once more while it is under way
        assert bench.notes.clock_jumps == [-3600.0, 100.0]


# Failures.


async def test_a_failure_is_shared_and_remembered_for_five_seconds(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        bench.fake.latency = 0.25
        problems = await ask_all(bench, [("USD", DAY)] * 100)
        assert {problem.text for problem in problems} == {
            "no rate for 'USD' on 2026-11-03: freecurrencyapi answered HTTP 404"
        }
        assert {problem.kind for problem in problems} == {"unavailable"}
        for _ in range(45):
            await trio.sleep(0.1)
            with pytest.raises(NoRate):
                bench.cached("USD", DAY)
        assert bench.fake.count() == 1
        await trio.sleep(0.6)
        assert bench.cached("USD", DAY) is None
        await bench.ask("USD")
        assert bench.fake.count() == 2


async def test_an_unknown_currency_beside_a_failure_names_both(autojump_clock):
    async with open_bench() as bench:
        bench.fake.disturb = down(FRANKFURTER, fault=Fault(status=404))
        problem = await bench.ask("UAH")
        assert (problem.kind, problem.text) == (
            "unavailable",
            "currency 'UAH' is not known to freecurrencyapi, and frankfurter answered HTTP 404",
        )


async def test_a_transient_failure_is_retried(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.order(FREECURRENCYAPI, Fault(status=503), RESET)
        assert (await bench.ask("USD")).provider == "freecurrencyapi"
        assert elapsed() == pytest.approx(0.1 + 0.4)
        assert not bench.notes.failures


async def test_after_three_attempts_a_source_has_failed(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=500))
        assert str(await bench.ask("USD")).endswith("freecurrencyapi answered HTTP 500")
        assert bench.fake.count() == 3


async def test_an_attempt_that_would_come_too_late_is_not_made(autojump_clock):
    async with open_bench("freecurrencyapi", deadline=0.3) as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=500))
        await bench.ask("USD")
        assert bench.fake.count() == 2
        assert elapsed() == pytest.approx(0.1)


async def test_while_a_source_fails_the_next_answers_and_the_first_is_asked_in_the_background(
    autojump_clock,
):
    codes = iter(
        ("GBP", "CZK", "PLN", "SEK", "NOK", "CHF", "CAD", "AUD", "NZD", "JPY", "SGD", "HUF")
    )
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI)
        assert (await bench.ask(next(codes))).provider == "frankfurter"
        assert elapsed() == 2.5
        for _ in range(10):  # 20 s
            await trio.sleep(2)
            rate = bench.cached(next(codes), DAY)
            assert rate is not None
            assert rate.provider == "frankfurter"
        assert bench.fake.count(FRANKFURTER) == 1
        assert bench.fake.count(FREECURRENCYAPI) == 1 + 2  # failed at 2.5, 11 and 18.5 s
        bench.fake.disturb = well
        await trio.sleep(FAILURE_LIFE)
        bench.cached(next(codes), DAY)
        await trio.sleep(0.1)
        rate = bench.cached("USD", DAY)
        assert rate is not None
        assert rate.provider == "freecurrencyapi"


# Pinned rates.


async def test_a_currency_is_pinned_to_the_table_used_first(autojump_clock):
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        first = await bench.ask("USD")
        note = "in place of freecurrencyapi until this table expires"
        assert (first.provider, first.note) == ("frankfurter", note)
        await trio.sleep(60)
        bench.fake.disturb = well
        assert bench.cached("USD", DAY) == replace(first, cached=True)
        assert bench.fake.count(FREECURRENCYAPI) == 1
        # Another currency, and another day of the same, go by the first source again ...
        bench.cached("GBP", DAY)
        await trio.sleep(0.1)
        assert (await bench.ask("GBP")).provider == "frankfurter"  # used before the table came
        assert (await bench.ask("CZK")).provider == "freecurrencyapi"
        assert (await bench.ask("USD", OTHER_DAY)).provider == "freecurrencyapi"
        # ... and this one when the table that it was given by has ended.
        await trio.sleep(7200 - 60.2)
        assert bench.cached("USD", DAY) == replace(first, cached=True)
        await trio.sleep(0.1)
        rates = [bench.cached(code, DAY) for code in ("USD", "GBP")]
        assert [rate and (rate.provider, rate.note) for rate in rates] == [
            ("freecurrencyapi", "")
        ] * 2
        assert bench.fake.count() == 4


async def test_at_midnight_pins_of_the_ended_day_are_released(autojump_clock):
    evening = datetime(2026, 11, 20, 23, 59, tzinfo=UTC)
    today = evening.date()
    async with open_bench(start=evening) as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        assert (await bench.ask("USD", today)).provider == "frankfurter"
        bench.fake.disturb = well
        await trio.sleep(FAILURE_LIFE)
        bench.cached("GBP", today)
        await trio.sleep(0.1)
        providers = [(await bench.ask(code, today)).provider for code in ("CZK", "USD")]
        assert providers == ["freecurrencyapi", "frankfurter"]
        await trio.sleep(61)
        for _ in range(2):  # as it comes, and from the table
            assert (await bench.ask("USD", today)).provider == "freecurrencyapi"


async def test_a_pinned_currency_stays_though_another_source_before_its_own_is_back(
    autojump_clock,
):
    async with open_bench("freecurrencyapi", "frankfurter", Instant()) as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, FRANKFURTER, fault=Fault(status=404))
        first = await bench.ask("USD")
        assert first.provider == "instant"
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        await trio.sleep(FAILURE_LIFE)
        assert (await bench.ask("CZK")).provider == "frankfurter"
        assert bench.cached("USD", DAY) == replace(first, cached=True)


async def test_a_pinned_rate_ends_with_its_table_over_a_jump_of_the_clock(autojump_clock):
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        assert (await bench.ask("USD")).provider == "frankfurter"
        bench.fake.disturb = well
        bench.wall.jump(timedelta(hours=1))
        bench.chain.watch_clock()
        await trio.sleep(3599)
        assert (await bench.ask("USD")).provider == "frankfurter"
        await trio.sleep(1)
        assert (await bench.ask("USD")).provider == "freecurrencyapi"


async def test_a_rate_pinned_by_a_wrong_clock_is_released_when_its_day_has_not_ended(
    autojump_clock,
):
    async with open_bench(life=86400.0, start=START + timedelta(days=1)) as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        assert (await bench.ask("USD", TODAY)).provider == "frankfurter"
        bench.fake.disturb = well
        bench.wall.jump(timedelta(days=-1))
        bench.chain.watch_clock()
        await trio.sleep(7200)  # the life of the table now
        assert (await bench.ask("USD", TODAY)).provider == "freecurrencyapi"


async def test_a_currency_that_the_first_source_lacks_is_not_pinned(autojump_clock):
    async with open_bench() as bench:
        assert (await bench.ask("UAH")).note == ""
        assert (await bench.ask("USD")).provider == "freecurrencyapi"


async def test_a_pinned_provisional_table_says_what_it_is(autojump_clock):
    night = datetime(2026, 11, 20, 0, 10, tzinfo=UTC)
    async with open_bench("frankfurter", "freecurrencyapi", start=night) as bench:
        bench.fake.order(FRANKFURTER, Fault(status=404))
        bench.fake.order(FREECURRENCYAPI, Fault(status=422))
        assert (await bench.ask("USD", date(2026, 11, 19))).note == (
            "the latest rates, because those of the day were not published yet; "
            "in place of frankfurter until this table expires"
        )


async def test_the_pinned_rates_are_bounded(autojump_clock, monkeypatch):
    monkeypatch.setattr("ratebridge.providers.chain.MOST_PINNED", 10)
    async with open_bench("freecurrencyapi", Instant()) as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        for day in days(11):
            assert (await bench.ask("USD", day)).provider == "instant"
        bench.fake.disturb = well
        await trio.sleep(FAILURE_LIFE)
        for day in days(11):
            bench.cached("USD", day)
        await trio.sleep(0.1)
        assert [(await bench.ask("USD", day)).provider for day in days(11)] == [
            "freecurrencyapi",
            *["instant"] * 10,
        ]


async def test_a_pinned_rate_keeps_no_table_in_memory(autojump_clock):
    async with open_bench(most=1) as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        for day in days(3):
            assert (await bench.ask("USD", day)).provider == "frankfurter"
        tables = [weakref.ref(table) for table, _ in bench.notes.fetches]
        bench.notes.fetches.clear()
        assert [table() is None for table in tables] == [True, True, False]
        assert all(bench.cached("USD", day) for day in days(3))


async def test_a_rate_whose_table_had_to_make_room_is_a_rate(autojump_clock):
    async with open_bench("freecurrencyapi", Instant(), most=1) as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        rates = await ask_all(bench, [("USD", day) for day in days(5)])
        assert [rate.provider for rate in rates] == ["instant"] * 5


async def test_a_failed_source_is_asked_again_first_where_the_next_has_nothing(autojump_clock):
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, FRANKFURTER, fault=Fault(status=404))
        await bench.ask("USD")
        await trio.sleep(FAILURE_LIFE)
        bench.fake.disturb = well
        assert (await bench.ask("USD")).provider == "freecurrencyapi"
        assert bench.fake.count() == 3


async def test_a_failed_source_is_asked_again_where_the_next_was_never_asked(autojump_clock):
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        with trio.CancelScope() as requester:
            bench.fake.order(FRANKFURTER, HANG)
            requester.cancel()
            await bench.ask("USD")
        await trio.sleep(0.1)
        assert bench.fake.count(FREECURRENCYAPI) == 1
        await trio.sleep(FAILURE_LIFE)
        bench.fake.disturb = well
        assert (await bench.ask("USD")).provider == "freecurrencyapi"


async def test_an_expired_final_table_is_used_while_its_source_is_down(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        final = await bench.ask("USD")
        provisional = await bench.ask("USD", TODAY)
        assert provisional.day == TODAY
        await trio.sleep(7201)
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=503))
        assert await bench.ask("USD") == replace(final, cached=True)
        assert isinstance(await bench.ask("USD", TODAY), NoRate)
        calls = bench.fake.count()
        await trio.sleep(FAILURE_LIFE)
        assert bench.cached("USD", DAY) == replace(final, cached=True)
        await trio.sleep(1)
        assert bench.fake.count() == calls + 3  # asked again behind the request's back
        assert bench.notes.meanwhile == [final.fetched, None, final.fetched]
        bench.fake.disturb = well
        await trio.sleep(FAILURE_LIFE)
        bench.cached("USD", DAY)
        await trio.sleep(0.1)
        renewed = await bench.ask("USD")
        assert renewed.fetched > final.fetched


# The deadline.


async def test_sources_without_an_answer_are_an_error_at_the_deadline(autojump_clock):
    async with open_bench(deadline=5.0) as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, FRANKFURTER)
        problem = await bench.ask("USD")
        assert elapsed() == 5.0
        assert problem.text == (
            "no rate for 'USD' on 2026-11-03: freecurrencyapi gave no answer within 2.5 s, "
            "frankfurter gave no answer within 2.5 s"
        )


@pytest.mark.parametrize("most", [512, 2], ids=["tables to spare", "two tables"])
async def test_the_deadline_holds_where_fetches_wait_for_each_other(autojump_clock, most):
    """However many days are asked for, and even if what was learnt is forgotten at once."""
    async with open_bench(most=most) as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, FRANKFURTER)
        problems = await ask_all(bench, [("USD", day) for day in days(50)])
        assert elapsed() == 5.0
        assert all(isinstance(problem, NoRate) for problem in problems)
        assert bench.fake.count() == MOST_FETCHES


async def test_a_source_that_hangs_does_not_delay_the_next(autojump_clock):
    """New days keep coming, and each finds the first source's fetches taken."""

    class Hanging(Instant):
        name = "hanging"

        async def fetch(self, day, now):
            await trio.sleep_forever()

    async with open_bench(Hanging(), Instant()) as bench:
        waits = []

        async def ask(day):
            began = trio.current_time()
            assert (await bench.ask("USD", day)).provider == "instant"
            waits.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for day in days(200):
                nursery.start_soon(ask, day)
                await trio.sleep(0.02)
        assert max(waits) == pytest.approx(2.5)


@pytest.mark.parametrize("others", [0, 1, 2])
async def test_no_more_than_eight_fetches_run_at_a_time(autojump_clock, others):
    running = peak = 0

    class Slow(Instant):
        async def fetch(self, day, now):
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await trio.sleep(0.1)
            running -= 1
            return await super().fetch(day, now)

    sources = [Slow() for _ in range(others + 1)]
    for i, source in enumerate(sources):
        source.name = f"slow-{i}"
    async with open_bench(*sources) as bench:
        await ask_all(bench, [("BTC", day) for day in days(20)])
    assert MOST_FETCHES - len(sources) < peak <= MOST_FETCHES


async def test_a_source_that_will_not_be_cancelled_is_the_last_to_be_waited_for(autojump_clock):
    class Stubborn:
        name = "stubborn"
        quota = budget = None

        async def fetch(self, day, now):
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            return RateTable("stubborn", day, {"EUR": Quote(Decimal(1), day)}, now)

    async with open_bench(Stubborn(), deadline=1.0) as bench:
        assert (await bench.ask("EUR")).provider == "stubborn"


# Quotas.


async def test_a_minute_that_is_used_up_sends_the_chain_to_the_next_source_without_a_call(
    autojump_clock,
):
    fake = FakeRates(Wall(), per_minute=10)
    async with open_bench(fake=fake) as bench:
        rates = [await bench.ask("USD", day) for day in days(12)]
        providers = Counter(rate.provider for rate in rates)
        assert providers == {"freecurrencyapi": 10, "frankfurter": 2}
        assert fake.count(FREECURRENCYAPI) == 10
        assert elapsed() < 0.1
        (silence,) = bench.notes.silences
        assert (silence[0], silence[1].outcome) == ("freecurrencyapi", "quota-minute")
        await trio.sleep(40)  # the rest of the minute
        assert (await bench.ask("USD", OTHER_DAY)).provider == "freecurrencyapi"


async def test_a_minute_that_ends_within_the_share_is_waited_for(autojump_clock):
    start = datetime(2026, 11, 20, 12, 0, 58, tzinfo=UTC)
    async with open_bench(start=start) as bench:
        bench.fake.order(FREECURRENCYAPI, NO_CALLS_THIS_MINUTE)
        assert (await bench.ask("USD")).provider == "freecurrencyapi"
        assert elapsed() == pytest.approx(2.0)
        assert bench.fake.count(FREECURRENCYAPI) == 2
        assert not bench.notes.silences


async def test_a_minute_that_ends_later_is_not(autojump_clock):
    start = datetime(2026, 11, 20, 12, 0, 57, tzinfo=UTC)
    async with open_bench(start=start) as bench:
        bench.fake.order(FREECURRENCYAPI, NO_CALLS_THIS_MINUTE)
        assert (await bench.ask("USD")).provider == "frankfurter"
        assert elapsed() == 0
        assert (await bench.ask("USD", OTHER_DAY)).provider == "frankfurter"
        assert bench.fake.count(FREECURRENCYAPI) == 1


async def test_a_used_up_month_limits_the_source_and_is_reported_once(autojump_clock):
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=NO_CALLS_THIS_MONTH)
        bench.fake.latency = 0.25
        rates = await ask_all(bench, [("USD", day) for day in days(20)])
        assert {rate.provider for rate in rates} == {"frankfurter"}
        first = bench.fake.count(FREECURRENCYAPI)
        assert first <= MOST_FETCHES // 2
        ((provider, failure),) = bench.notes.silences
        assert (provider, failure.outcome) == ("freecurrencyapi", "quota-month")
        assert str(failure) == "has no calls left this month (until 2026-12-01 UTC)"
        await trio.sleep(5 * 86400)
        assert (await bench.ask("USD")).provider == "frankfurter"
        assert bench.fake.count(FREECURRENCYAPI) == first
        assert len(bench.notes.silences) == 1
        bench.fake.disturb = well
        await trio.sleep(6 * 86400)
        assert (await bench.ask("USD")).provider == "freecurrencyapi"


async def test_refusals_of_the_same_moment_are_one_and_that_of_a_second_is_none(autojump_clock):
    async with open_bench("frankfurter") as bench:
        for wait, told in (("1", 0), ("40", 1), ("1", 1)):
            bench.fake.disturb = down(
                "frankfurter", fault=Fault(status=429, headers={"retry-after": wait})
            )
            bench.fake.latency = 0.5
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.ask, "USD", DAY)
                await trio.sleep(0.2)
                nursery.start_soon(bench.ask, "USD", OTHER_DAY)
            assert len(bench.notes.silences) == told
            await trio.sleep(60)


async def test_a_month_that_is_used_up_is_told_in_the_silence_of_a_minute_too(autojump_clock):
    async with open_bench() as bench:
        bench.fake.latency = 0.25
        bench.fake.order(FREECURRENCYAPI, NO_CALLS_THIS_MINUTE, NO_CALLS_THIS_MONTH)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.ask, "USD", DAY)
            await trio.sleep(0.1)
            nursery.start_soon(bench.ask, "USD", OTHER_DAY)
        assert [failure.outcome for _, failure in bench.notes.silences] == [
            "quota-minute",
            "quota-month",
        ]
        await trio.sleep(60)
        assert (await bench.ask("USD", date(2026, 11, 5))).provider == "frankfurter"
        assert bench.fake.count(FREECURRENCYAPI) == 2


async def test_cached_tables_are_used_while_their_source_is_rate_limited(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        final = await bench.ask("USD")
        bench.fake.order(FREECURRENCYAPI, NO_CALLS_THIS_MONTH)
        assert isinstance(await bench.ask("USD", OTHER_DAY), NoRate)
        await trio.sleep(7201)
        assert bench.cached("USD", DAY) == replace(final, cached=True)
        with pytest.raises(NoRate, match="has no calls left this month"):
            bench.cached("USD", date(2026, 11, 5))
        assert bench.fake.count() == 2


# A bug in a source.


async def test_a_bug_in_a_source_fails_that_source_only(autojump_clock):
    class Broken:
        name = "broken"
        quota = budget = None

        async def fetch(self, day, now):
            raise ZeroDivisionError

    async with open_bench(Broken(), "frankfurter") as bench:
        assert (await bench.ask("USD")).provider == "frankfurter"
        ((provider, error),) = bench.notes.crashes
        assert (provider, type(error)) == ("broken", ZeroDivisionError)
    async with open_bench(Broken()) as bench:
        assert str(await bench.ask("USD")).endswith("2026-11-03: broken could not be read")


@pytest.mark.parametrize("wrong", [{"provider": "frankfurter"}, {"day": OTHER_DAY}])
async def test_a_table_of_another_source_or_day_is_a_bug_of_its_source(autojump_clock, wrong):
    class Broken(Instant):
        async def fetch(self, day, now):
            return attrs.evolve(await super().fetch(day, now), **wrong)

    async with open_bench(Broken(), "frankfurter") as bench:
        assert (await bench.ask("USD")).provider == "frankfurter"
        assert len(bench.notes.crashes) == 1


async def test_a_failure_that_is_remembered_holds_no_answer(autojump_clock):
    """Its traceback would: a body of 1 MiB, and the headers that were sent."""
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.order(FREECURRENCYAPI, HTML)
        await bench.ask("USD")
        ((_, _, failure),) = bench.notes.failures
        assert failure.__traceback__ is None
        assert failure.__context__ is None


# Every known failure: an answer in time, no effect on other days, and recovery.


def broken(cause: type[BaseException], *args: object) -> Callable[[], Exception]:
    """A failure to connect, as httpx tells of it."""

    def make() -> Exception:
        error = httpx.ConnectError("All connection attempts failed")
        error.__cause__ = cause(*args)
        return error

    return make


@attrs.frozen
class Row:
    name: str
    fault: Fault | Callable[[], Exception]
    text: str  # of the error reply, where it is the only source
    sources: tuple[str, ...] = ("freecurrencyapi", "frankfurter")
    limited_for: float = 0.0  # seconds for which other days are not asked for either


def status(code, text=None, **kw):
    return Row(str(code), Fault(status=code), text or f"answered HTTP {code}", **kw)


FREE_ONLY = ("freecurrencyapi",)
BAD_BODY = "answered with something else than rates"
ROWS = [
    status(401, "did not accept the key (HTTP 401)", sources=FREE_ONLY),
    status(403, "did not accept the key (HTTP 403)", sources=FREE_ONLY),
    status(404),
    status(422),
    Row("429 minute", NO_CALLS_THIS_MINUTE, "has no calls left this minute", FREE_ONLY, 40.0),
    Row(
        "429 month",
        NO_CALLS_THIS_MONTH,
        "has no calls left this month (until 2026-12-01 UTC)",
        FREE_ONLY,
        (datetime(2026, 12, 1, tzinfo=UTC) - START).total_seconds(),
    ),
    Row("429", Fault(status=429), "answered HTTP 429", ("frankfurter",)),
    status(500),
    status(503),
    Row(
        "connection refused",
        broken(ConnectionRefusedError),
        "could not be reached (connection refused)",
    ),
    Row("DNS", broken(trio.socket.gaierror, -2), "could not be reached (host not found)"),
    Row("TLS", broken(ssl.SSLError, 1), "could not be reached (TLS failed)"),
    Row("hang", HANG, "gave no answer within 2.5 s"),
    Row("drip", DRIP, "gave no answer within 2.5 s"),
    Row("reset", RESET, "broke off the connection"),
    Row("keep-alive closed under us", CLOSE, "broke off the connection"),
    Row("redirect", REDIRECT, "answered with a redirect, which is not followed"),
    Row("HTML", HTML, BAD_BODY),
    Row("cut JSON", CUT, BAD_BODY),
    Row("zeros", Fault(quotes={"USD": "0", "EUR": "0"}, body=b'{"data":{}}'), "", FREE_ONLY),
    Row("empty", EMPTY, "has no usable table for 2026-11-03"),
    Row("gzip", GZIP, "answered with a compressed body"),
    Row("30 MB", HUGE, "answered with over 1 MiB"),
    Row("another base", Fault(base="USD"), "answered with another base", ("frankfurter",)),
]
CASES = [(row, source) for row in ROWS for source in row.sources]


class Faults(httpx.AsyncBaseTransport):
    """The fake, with errors of the connection where a row orders one."""

    def __init__(self, fake, row, source):
        self._sound = memory_transport(fake)
        self._row = row
        self._source = source
        self.bad = True
        if isinstance(row.fault, Fault):
            fake.disturb = lambda call: row.fault if self._strikes(call.source, call.day) else None

    def _strikes(self, source, day):
        return self.bad and source == self._source and day == str(DAY)

    async def handle_async_request(self, request):
        path = request.url.path
        source = FRANKFURTER if path.startswith("/v2") else FREECURRENCYAPI
        if not isinstance(self._row.fault, Fault) and self._strikes(
            source, request.url.params.get("date")
        ):
            raise self._row.fault()
        return await self._sound.handle_async_request(request)


@pytest.mark.parametrize(
    ("row", "source"), CASES, ids=[f"{row.name} of {source}" for row, source in CASES]
)
async def test_a_failure_is_answered_in_time_and_recovered_from(autojump_clock, row, source):
    fake = FakeRates(Wall(), key=KEY, per_minute=10**6)
    faults = Faults(fake, row, source)
    async with open_bench(source, fake=fake, transport=faults, deadline=2.5) as bench:
        got = {}

        async def ask(day):
            got[day] = await bench.ask("USD", day), elapsed()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, OTHER_DAY)
            nursery.start_soon(ask, DAY)
        problem, at = got[DAY]
        assert isinstance(problem, NoRate)
        assert at <= 2.5
        assert row.text in problem.text
        assert len(problem.text) < 299 - 40
        good, at = got[OTHER_DAY]
        assert isinstance(good, Rate)
        assert at <= 0.5
        # The next good answer after the source is well again.
        faults.bad = False
        began = trio.current_time()
        await trio.sleep(row.limited_for)
        while not isinstance(await bench.ask("USD"), Rate):
            await trio.sleep(0.1)
        assert trio.current_time() - began <= row.limited_for + 6


@pytest.mark.parametrize(
    ("row", "source"), CASES, ids=[f"{row.name} of {source}" for row, source in CASES]
)
async def test_a_failure_of_one_source_is_the_next_ones_turn(autojump_clock, row, source):
    fake = FakeRates(Wall(), key=KEY, per_minute=10**6)
    other = FRANKFURTER if source == FREECURRENCYAPI else FREECURRENCYAPI
    faults = Faults(fake, row, source)
    async with open_bench(source, other, fake=fake, transport=faults) as bench:
        rate = await bench.ask("USD")
        assert rate.provider == other
        assert elapsed() <= 2.5


# The pool.


@pytest.mark.parametrize("fault", [HANG, DRIP], ids=["hang", "drip"])
async def test_cancelled_fetches_under_contention_leave_the_pool_working(fault):
    """Trap 15, with the real pool."""
    fake = FakeRates(key=KEY, per_minute=10**6)
    fake.disturb = down(FREECURRENCYAPI, fault=fault)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_rates, fake)
        client = HttpClient(lambda: TLS)
        source = FreeCurrencyApi(client, KEY, f"http://127.0.0.1:{port}/v1")
        chain = RateChain(
            [source], Tables(7200), nursery, deadline=0.02, utc_now=utc_now, observer=Notes()
        )

        async def ask_again_and_again(days_of_its_own):
            for day in days_of_its_own:
                with pytest.raises(NoRate):
                    await chain.rate("USD", day)

        async with trio.open_nursery() as requests:
            for i in range(16):
                requests.start_soon(ask_again_and_again, days(160)[i::16])
        fake.disturb = well
        for day in days(12):
            with trio.fail_after(10):  # far from the usual, and a pool that leaks never answers
                assert (await source.fetch(day, utc_now())).day == day
        await client.aclose()
        nursery.cancel_scope.cancel()


# Secrets.


async def test_the_key_is_in_no_log_at_debug_and_in_no_error(autojump_clock, caplog):
    caplog.set_level(0)
    log = io.StringIO()
    writer = configure_logs("debug", "json", log)
    wall = Wall()
    fake = FakeRates(wall, key=KEY)
    source = FreeCurrencyApi(make_client(fake), KEY, f"{URL}/v1")

    class Broken:
        name = "broken"
        quota = budget = None

        async def fetch(self, day, now):
            await source.fetch(day, now)
            raise ZeroDivisionError

    shown = ""
    async with trio.open_nursery() as nursery:
        chain = RateChain(
            [source, Broken()],
            Tables(7200),
            nursery,
            deadline=5,
            utc_now=wall,
            observer=Observer(event_log(), wall),
        )
        with pytest.raises(NoRate, match="broken could not be read"):
            await chain.rate("UAH", TODAY)
        faults = [row.fault for row in ROWS if isinstance(row.fault, Fault)]
        for fault, day in zip(faults, days(len(faults)), strict=True):
            fake.disturb = down(FREECURRENCYAPI, day=day, fault=fault)
            try:
                shown += repr(await chain.rate("USD", day))
            except NoRate as problem:
                shown += f"{problem}{problem!r}"
        shown += f"{source!r}{chain!r}{chain.tables.tables()!r}"
        nursery.cancel_scope.cancel()
    writer.close()
    events = {json.loads(line)["event"] for line in log.getvalue().splitlines()}
    assert {"rates.failed", "rates.limited", "internal_error"} <= events
    assert KEY not in shown + log.getvalue() + caplog.text
