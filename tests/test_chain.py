"""The chain: few calls, failover in time, and recovery from failures."""

import io
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import cycle

import pytest
import trio
from msgspec.structs import replace
from rate_bench import DAY, KEY, START, Wall, open_bench
from support import elapsed

from ratebridge.budget import BURST
from ratebridge.errors import NoRate
from ratebridge.fakes.coinbase import COINBASE
from ratebridge.fakes.feed import CURRENCIES
from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import (
    FREECURRENCYAPI,
    NO_CALLS_THIS_MINUTE,
    NO_CALLS_THIS_MONTH,
    FakeFreeCurrencyApi,
)
from ratebridge.fakes.rates import CLOSE, DRIP, EMPTY, HANG, HTML, RESET, Fault, quote
from ratebridge.providers.chain import FETCH_WITHIN, MOST_FETCHES, STALLED_AFTER
from ratebridge.rates import FAILURE_LIFE, Quote, Rate, RateSheet
from ratebridge.reporting.logs import configure_logs, event_log
from ratebridge.reporting.observer import Observer
from ratebridge.settings import SOURCES

TODAY = START.date()
OTHER_DAY = date(2026, 11, 4)
OTHER_MONTH = date(2026, 8, 6)
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
    """A `disturb` by which sources fail, for the call that brings one day or for all."""

    def disturb(call):
        counted = call.source in sources and not call.path.endswith("/status")
        first, last = (call.params.get(name, call.params.get("date")) for name in ("from", "to"))
        brings = day is None or first is None or first <= str(day) <= last
        return fault if counted and brings else None

    return disturb


def well(_call):
    return None


class Instant:
    """A source that needs no time, and has the dollar of each day."""

    name = "instant"
    currencies = quota = every = None

    def __init__(self, name="instant"):
        self.name = name
        self.fetches = 0

    def asks(self, day, today):
        return str(day)

    async def fetch(self, day, now):
        self.fetches += 1
        rows = {day: {"USD": Quote(Decimal("1.14"))}}
        return RateSheet(self.name, str(day), day, day, rows, now)


# Few calls.


async def test_a_rate_is_that_of_the_day_with_its_provenance(autojump_clock):
    async with open_bench("frankfurter") as bench:
        bench.fake.latency = 0.25
        rate = await bench.ask("USD")
        units = Decimal(quote(FRANKFURTER, "USD", DAY))
        fresh = Rate("USD", units, Decimal(1), DAY, DAY, "frankfurter", START, cached=False)
        assert rate == fresh
        assert await bench.ask("USD") == replace(fresh, cached=True)
        assert bench.cached("USD", DAY) == replace(fresh, cached=True)
        [(sheet, seconds)] = bench.notes.fetches
        assert (sheet.provider, sheet.asked, seconds) == ("frankfurter", "2026-11", 0.25)


async def test_three_hundred_requests_for_a_cold_day_are_one_call(autojump_clock):
    async with open_bench() as bench:
        bench.fake.latency = 0.25
        rates = await ask_all(bench, [("USD", DAY)] * 300)
        assert {rate.provider for rate in rates} == {"freecurrencyapi"}
        assert bench.fake.count() == 1


async def test_months_of_days_are_a_call_a_month_and_nothing_the_second_time(autojump_clock):
    wishes = [*zip(cycle(set(CURRENCIES) - {"EUR", "BTC"}), days(60, RECORDED))]
    async with open_bench("frankfurter") as bench:
        bench.fake.latency = 0.25
        got = await ask_all(bench, wishes)
        assert [(rate.currency, rate.asked) for rate in got] == wishes
        assert all(rate.cached for rate in await ask_all(bench, wishes))
        assert bench.fake.count() == 3


async def test_all_the_recorded_traffic_has_a_rate(autojump_clock):
    async with open_bench("freecurrencyapi", "frankfurter", "ecb", "coinbase") as bench:
        got = [await bench.ask(code, RECORDED) for code in CURRENCIES if code != "EUR"]
        assert {rate.note for rate in got} == {""}, "a source that lacks it is no failed one"
        providers = Counter(rate.provider for rate in got)
        assert providers == {"freecurrencyapi": 5, "frankfurter": 2, "coinbase": 1}
        # The first call is /status, and what the first source cannot have costs it no call.
        assert {call.path for call in bench.fake.calls[:2]} == {"/v1/status", "/v2/rates"}
        assert bench.fake.count() == 3


async def test_a_coins_price_is_used_as_it_stands(autojump_clock):
    async with open_bench("coinbase") as bench:
        rate = await bench.ask("BTC")
        assert (rate.units, rate.euro) == (1, Decimal(quote(COINBASE, "BTC", DAY)))


async def test_what_no_source_can_have_is_not_known_also_while_they_are_down(autojump_clock):
    async with open_bench(*SOURCES) as bench:
        bench.fake.disturb = down(*SOURCES, fault=CLOSE)
        problem = await bench.ask("ETH")
        assert problem.kind == "unknown-currency"
        assert problem.text == f"currency 'ETH' is not known to {' or '.join(SOURCES)}"
        assert bench.fake.calls == []
        bench.fake.disturb = well
        assert (await bench.ask("BTC")).provider == "coinbase"
        assert bench.fake.count() == bench.fake.count(COINBASE) == 1


COARSE = "no rate for 'UAH' on 2026-11-03: frankfurter gives it in too few digits (0.00027)"


@pytest.mark.parametrize(
    ("code", "why"), [("ERN", "currency 'ERN' is not known to frankfurter"), ("UAH", COARSE)]
)
async def test_what_a_source_lacks_or_quotes_in_too_few_digits_is_unknown_with_the_reason(
    autojump_clock, code, why
):
    async with open_bench("frankfurter") as bench:
        bench.fake.disturb = lambda _call: Fault(quotes={"UAH": "0.00027"})
        for _ in range(3):
            problem = await bench.ask(code)
            assert (problem.kind, problem.text) == ("unknown-currency", why)
        assert bench.fake.count() == 1, "no further call"


# Implausible quotes.


async def test_without_another_one_it_is_an_error_that_says_so(autojump_clock):
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.disturb = lambda _call: Fault(quotes={"CZK": "0.0393"})
        problem = await bench.ask("CZK")
        assert problem.kind == "unavailable"
        assert problem.text == (
            "no rate for 'CZK' on 2026-11-03: freecurrencyapi gives an implausible 0.0393 "
            "for one euro (expected: about 24.35)"
        )
        assert bench.notes.implausible == [("freecurrencyapi", DAY, ["CZK"])]
        assert (await bench.ask("USD")).provider == "freecurrencyapi"


@pytest.mark.parametrize(
    ("other", "provider"),
    [("0.0394", "freecurrencyapi"), ("0.0420", None), ("24.3", "frankfurter")],
    ids=["alike", "not alike", "true"],
)
async def test_a_quote_that_two_sources_give_alike_is_believed(autojump_clock, other, provider):
    async with open_bench() as bench:
        bench.fake.disturb = lambda call: Fault(
            quotes={"CZK": "0.0393" if call.source == FREECURRENCYAPI else other}
        )
        rate = await bench.ask("CZK")
        assert isinstance(rate, NoRate) if provider is None else rate.provider == provider
        if provider == "freecurrencyapi":
            assert rate.units == Decimal("0.0393"), "that of the first of the two"


async def test_an_implausible_table_is_refused_whole_and_asked_for_again(autojump_clock):
    body = b'{"data":{"2026-11-03":{"EUR":1,"USD":24.3,"CZK":1.14,"GBP":175,"JPY":0.83,"XAF":655}}}'
    async with open_bench() as bench:
        bench.fake.order(FREECURRENCYAPI, Fault(), Fault(body=body))
        rates = [await bench.ask(code) for code in ("USD", "CZK", "CHF")]
        assert {rate.provider for rate in rates} == {"frankfurter"}
        ((provider, asked, failure, _),) = bench.notes.failures
        assert (provider, asked, failure.outcome) == ("freecurrencyapi", str(DAY), "implausible")
        assert str(failure) == "gives an implausible table for 2026-11-03 (4 of 4 currencies)"
        await trio.sleep(FAILURE_LIFE)
        bench.cached("PLN", DAY)
        await trio.sleep(0.1)
        assert (await bench.ask("GBP")).provider == "freecurrencyapi"


async def test_a_day_that_is_mostly_wrong_is_doubted_and_its_month_lives_if_half_is_good(
    autojump_clock,
):
    rows = [
        {"date": str(day), "base": "EUR", "quote": code, "rate": rate * (10 if day == DAY else 1)}
        for day in days(2)
        for code, rate in (("USD", 1.14), ("GBP", 0.87))
    ]
    async with open_bench("frankfurter") as bench:
        bench.fake.disturb = lambda _call: Fault(body=json.dumps(rows).encode())
        for _ in range(60):
            assert (await bench.ask("USD", DAY - timedelta(days=1))).units == Decimal("1.14")
            assert "gives an implausible 8.7" in (await bench.ask("GBP", DAY)).text
            await trio.sleep(1)
        assert (bench.fake.count(), bench.notes.failures) == (1, [])


async def test_everything_is_let_through_on_demand(autojump_clock):
    async with open_bench("freecurrencyapi", judge=False) as bench:
        bench.fake.disturb = lambda _call: Fault(quotes={"CZK": "0.0393"})
        assert (await bench.ask("CZK")).units == Decimal("0.0393")


# Life and expiry.


@pytest.mark.parametrize("life", [60.0, 7200.0])
async def test_no_request_waits_over_an_expiry(autojump_clock, life):
    """A sheet in use is asked for again before its life is over, or stays in use meanwhile."""
    async with open_bench(life=life) as bench:
        bench.fake.latency = 0.5
        wishes = [("USD", DAY), ("USD", TODAY), ("UAH", DAY)]
        for currency, day in wishes:
            await bench.ask(currency, day)
        for _ in range(350):
            await trio.sleep(life / 100)
            for currency, day in wishes:
                assert bench.cached(currency, day) is not None
        assert 3 * 4 <= bench.fake.count() <= 3 * 6


async def test_todays_rate_that_nobody_used_is_asked_for_again_when_its_life_is_over(
    autojump_clock,
):
    async with open_bench("frankfurter") as bench:
        await bench.ask("USD", TODAY)
        await trio.sleep(7199.9)
        assert (await bench.ask("GBP", TODAY)).cached
        await trio.sleep(7200)
        assert not (await bench.ask("USD", TODAY)).cached


async def test_a_life_shorter_than_the_answer_takes_is_one_call_a_request_and_no_loop(
    autojump_clock,
):
    async with open_bench(life=1e-9) as bench:
        bench.fake.latency = 1.0
        assert (await bench.ask("UAH", TODAY)).provider == "frankfurter"
        assert bench.fake.count() == 1


async def test_a_hundred_days_of_a_source_are_renewed_in_turn(autojump_clock):
    source = Instant()
    async with open_bench(source, life=600) as bench:
        wishes = [("USD", day) for day in days(100)]
        await ask_all(bench, wishes)
        await trio.sleep(600)
        for _ in range(60):
            assert all(bench.cached(currency, day) for currency, day in wishes)
            await trio.sleep(1)
        assert source.fetches == 100 + 60 // 15


async def test_the_rates_at_hand_are_bounded(autojump_clock, monkeypatch):
    monkeypatch.setattr("ratebridge.providers.chain.MOST_CHOSEN", 10)
    async with open_bench(Instant()) as bench:
        for day in days(11):
            await bench.ask("USD", day)
        assert len(bench.chain._chosen) == 10


# One fetch for all who wait.


async def test_requests_waiting_at_the_end_get_an_error(autojump_clock):
    async with trio.open_nursery() as nursery, open_bench("frankfurter") as bench:
        bench.fake.latency = 1.0
        got = []

        async def wait():
            got.append(await bench.ask("USD"))

        nursery.start_soon(wait)
        await trio.sleep(0.5)
        bench.nursery.cancel_scope.cancel()
    assert [str(problem) for problem in got] == [
        "no rate for 'USD' on 2026-11-03: frankfurter has not answered in time"
    ]


async def test_a_fetch_outlives_its_request_and_serves_the_next(autojump_clock):
    async with open_bench("frankfurter", deadline=5.0) as bench:
        bench.fake.latency = 8.0
        assert isinstance(await bench.ask("USD"), NoRate)
        assert elapsed() == 5.0
        await trio.sleep(2)  # while nobody waits for it
        assert (await bench.ask("USD")).provider == "frankfurter"
        assert elapsed() == 8.0
        assert bench.fake.count() == 1


async def test_a_fetch_ends_after_half_a_minute(autojump_clock):
    async with open_bench("frankfurter") as bench:
        bench.fake.disturb = down(FRANKFURTER)
        await bench.ask("USD")
        await trio.sleep(FETCH_WITHIN)
        assert [str(failure) for _, _, failure, _ in bench.notes.failures] == [
            "gave no answer within 30 s"
        ]


async def test_a_connection_that_has_stalled_gets_another_beside_it(autojump_clock):
    async with open_bench("frankfurter", deadline=6.0) as bench:
        bench.fake.order(FRANKFURTER, HANG)
        await bench.ask("USD")
        assert (await bench.ask("USD")).provider == "frankfurter"
        assert elapsed() == STALLED_AFTER


# Midnight.


async def test_at_midnight_the_rates_of_the_day_are_asked_for_again(autojump_clock):
    evening = datetime(2026, 11, 20, 23, 59, 50, tzinfo=UTC)
    async with open_bench("frankfurter", start=evening) as bench:
        latest = await bench.ask("USD", evening.date())
        assert (latest.day, latest.fetched) == (evening.date(), evening)
        await trio.sleep(11)
        final = await bench.ask("USD", evening.date())
        assert not final.cached
        await bench.ask("USD", evening.date())
        assert [call.params["to"] for call in bench.fake.calls] == ["2026-11-20", "2026-11-21"]


async def test_a_fetch_that_crosses_midnight_serves_those_who_asked_before_it_only(autojump_clock):
    evening = datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC)
    async with open_bench("frankfurter", start=evening) as bench:
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
        assert bench.fake.count() == 2
        assert (await bench.ask("USD", evening.date())).fetched == got["after"].fetched


async def test_the_latest_that_stood_in_for_yesterday_is_not_kept_as_its_rates(autojump_clock):
    night = datetime(2026, 11, 20, 0, 10, tzinfo=UTC)
    yesterday = date(2026, 11, 19)
    async with open_bench("frankfurter", "freecurrencyapi", start=night) as bench:
        bench.fake.disturb = down(FRANKFURTER, fault=Fault(status=404))
        bench.fake.order(FREECURRENCYAPI, Fault(), Fault(status=422))
        assert (await bench.ask("USD", yesterday)).note == (
            "the latest rates, as those of the day were not published yet; in place of frankfurter"
        )
        assert (await bench.ask("GBP", yesterday)).cached
        assert bench.fake.count(FREECURRENCYAPI) == 2
        await trio.sleep(7201)
        bench.fake.disturb = down(FREECURRENCYAPI, FRANKFURTER, fault=Fault(status=404))
        assert isinstance(await bench.ask("USD", yesterday), NoRate)


# Clocks.


async def test_a_clock_that_differs_from_a_sources_is_told_once(autojump_clock):
    async with open_bench("frankfurter") as bench:
        for hour, told in ((11, [3600.0]), (11, [3600.0]), (12, [3600.0, 0.0])):
            headers = {"date": f"Fri, 20 Nov 2026 {hour}:00:20 GMT"}
            bench.fake.order(FRANKFURTER, Fault(headers=headers))
            await bench.ask("USD", OTHER_MONTH - timedelta(days=31 * len(bench.fake.calls)))
            assert bench.notes.clock_differences == [("frankfurter", one) for one in told]


async def test_a_clock_that_jumps_is_noticed_when_a_source_is_asked(autojump_clock):
    async with open_bench("frankfurter") as bench:
        await bench.ask("USD")
        await trio.sleep(3600)
        await bench.ask("USD", OTHER_MONTH)
        assert bench.notes.clock_jumps == []
        bench.wall.jump(timedelta(hours=-1))
        bench.fake.latency = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.ask, "USD", date(2026, 9, 1))
            await trio.sleep(0.5)
            bench.wall.jump(timedelta(seconds=100))  # and once more while it is under way
        assert bench.notes.clock_jumps == [-3600.0, 100.0]


async def test_rates_dated_by_a_wrong_clock_are_not_used_once_it_is_right(autojump_clock):
    async with open_bench("frankfurter", start=START + timedelta(days=1)) as bench:
        assert (await bench.ask("USD", TODAY)).provider == "frankfurter"
        bench.wall.jump(timedelta(days=-1))
        bench.chain.watch_clock()
        assert not (await bench.ask("USD", TODAY)).cached
        await trio.sleep(86400)
        assert not (await bench.ask("USD", TODAY)).cached, "what was fetched before it ended"


# Failures.


async def test_a_failure_is_shared_and_remembered_for_five_seconds(autojump_clock):
    async with open_bench("frankfurter") as bench:
        bench.fake.disturb = down(FRANKFURTER, fault=Fault(status=404))
        bench.fake.latency = 0.25
        problems = await ask_all(bench, [("USD", DAY)] * 100)
        assert {problem.kind for problem in problems} == {"unavailable"}
        await trio.sleep(FAILURE_LIFE - 0.1)
        with pytest.raises(NoRate, match="frankfurter answered HTTP 404"):
            bench.cached("USD", DAY)
        assert bench.fake.count() == 1
        await trio.sleep(0.1)
        await bench.ask("USD")
        assert bench.fake.count() == 2


async def test_an_unknown_currency_beside_a_failure_names_both(autojump_clock):
    async with open_bench(Instant(), "frankfurter", "coinbase") as bench:
        bench.fake.disturb = down(FRANKFURTER, fault=Fault(status=404))
        problem = await bench.ask("UAH")
        assert (problem.kind, problem.text) == (
            "unavailable",
            "currency 'UAH' is not known to instant, and frankfurter answered HTTP 404",
        )


@pytest.mark.parametrize(
    ("faults", "deadline", "calls", "seconds"),
    [
        ([Fault(status=503), RESET], 5.0, 3, 0.1 + 0.4),
        ([Fault(status=500)] * 3, 5.0, 3, 0.1 + 0.4),  # then it has failed
        ([Fault(status=500)] * 2, 0.3, 2, 0.1),  # a third one would come too late
    ],
)
async def test_a_transient_failure_is_retried_twice(
    autojump_clock, faults, deadline, calls, seconds
):
    async with open_bench("frankfurter", deadline=deadline) as bench:
        bench.fake.order(FRANKFURTER, *faults)
        assert isinstance(await bench.ask("USD"), Rate) is (len(faults) < calls)
        assert bench.fake.count() == calls
        assert elapsed() == pytest.approx(seconds)
        assert len(bench.notes.failures) == (len(faults) >= calls)


async def test_while_a_source_fails_the_next_answers_and_the_first_is_asked_in_the_background(
    autojump_clock,
):
    codes = iter(("GBP", "CZK", "PLN", "SEK", "NOK", "CHF", "CAD", "AUD", "NZD", "JPY", "SGD"))
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        assert (await bench.ask(next(codes))).provider == "frankfurter"
        for _ in range(10):  # 20 s
            await trio.sleep(2)
            began = trio.current_time()
            assert (await bench.ask(next(codes))).provider == "frankfurter"
            assert trio.current_time() == began
        assert bench.fake.count(FRANKFURTER) == 1
        assert bench.fake.count(FREECURRENCYAPI) == 1 + 3  # at 6, 12 and 18 s


@pytest.mark.parametrize(
    ("failing", "wait"),
    [((FREECURRENCYAPI, FRANKFURTER), FAILURE_LIFE), ((FREECURRENCYAPI,), 7200)],
    ids=["none", "no living one"],
)
async def test_a_failed_source_is_waited_for_where_no_other_has_a_sheet(
    autojump_clock, failing, wait
):
    async with open_bench() as bench:
        bench.fake.disturb = down(*failing, fault=Fault(status=404))
        await bench.ask("USD")
        await trio.sleep(wait)
        bench.fake.disturb = well
        assert (await bench.ask("USD")).provider == "freecurrencyapi"


# One bet, one rate.


async def test_a_rate_given_in_place_of_a_failed_source_stays_until_its_sheet_is_due(
    autojump_clock,
):
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        first = await bench.ask("USD")
        assert (first.provider, first.note) == ("frankfurter", "in place of freecurrencyapi")
        await trio.sleep(60)
        bench.fake.disturb = well
        # Another currency, and another day, go by the first source again, and this one does not.
        bench.cached("GBP", DAY)
        await trio.sleep(0.1)
        assert (await bench.ask("CZK")).provider == "freecurrencyapi"
        assert (await bench.ask("USD", OTHER_MONTH)).provider == "freecurrencyapi"
        assert bench.cached("USD", DAY) == replace(first, cached=True)
        await trio.sleep(7200 * 0.8 - 60.2)
        assert bench.cached("USD", DAY) == replace(first, cached=True)
        await trio.sleep(0.1)
        later = await bench.ask("USD")
        assert (later.provider, later.note, later.cached) == ("freecurrencyapi", "", True)


async def test_an_ended_days_rates_are_used_while_their_source_is_down_and_todays_are_not(
    autojump_clock,
):
    async with open_bench("freecurrencyapi") as bench:
        final = await bench.ask("USD")
        assert (await bench.ask("USD", TODAY)).day == TODAY
        await trio.sleep(7201)
        bench.fake.disturb = down(FREECURRENCYAPI, fault=Fault(status=404))
        assert await bench.ask("USD") == replace(final, cached=True)
        assert isinstance(await bench.ask("USD", TODAY), NoRate)
        calls = bench.fake.count()
        await trio.sleep(1040)
        assert bench.cached("USD", DAY) == replace(final, cached=True)
        await trio.sleep(1)
        assert bench.fake.count() == calls + 1, "asked again behind the request's back"
        assert Counter((asked, meanwhile) for _, asked, _, meanwhile in bench.notes.failures) == {
            (str(DAY), START): 2,
            (str(TODAY), None): 1,
        }
        bench.fake.disturb = well
        await trio.sleep(1040)
        bench.cached("USD", DAY)
        await trio.sleep(0.1)
        assert (await bench.ask("USD")).fetched > final.fetched


# The deadline.


async def test_the_next_source_is_asked_when_the_share_of_the_first_is_over(autojump_clock):
    async with open_bench("freecurrencyapi", "frankfurter", "coinbase") as bench:
        bench.fake.disturb = down(FREECURRENCYAPI)
        for code in ("USD", "GBP"):  # the first has had its share, and is not waited for again
            assert (await bench.ask(code)).provider == "frankfurter"
            assert elapsed() == 2.5, "coinbase cannot have the currency"


async def test_the_first_source_is_waited_for_to_the_end_where_the_others_lack_the_currency(
    autojump_clock,
):
    async with open_bench("frankfurter", Instant()) as bench:
        bench.fake.latency = 4.0
        assert (await bench.ask("GBP")).provider == "frankfurter"
        assert elapsed() == 4.0


async def test_the_deadline_holds_where_fetches_wait_for_each_other(autojump_clock):
    """However many days are asked for."""
    async with open_bench() as bench:
        bench.fake.disturb = down(FREECURRENCYAPI, FRANKFURTER)
        problems = await ask_all(bench, [("USD", day) for day in days(300)])
        assert elapsed() == 5.0
        assert all(isinstance(problem, NoRate) for problem in problems)
        assert bench.fake.count() == 2 * MOST_FETCHES


# Quotas.


async def test_a_minute_that_is_used_up_sends_the_chain_to_the_next_source_without_a_call(
    autojump_clock,
):
    async with open_bench() as bench:
        bench.fake.sources[FREECURRENCYAPI] = FakeFreeCurrencyApi(per_minute=10)
        rates = [await bench.ask("USD", day) for day in days(12)]
        providers = Counter(rate.provider for rate in rates)
        assert providers == {"freecurrencyapi": 10, "frankfurter": 2}
        assert bench.fake.count(FREECURRENCYAPI) == 10
        assert elapsed() < 0.1
        (silence,) = bench.notes.silences
        assert (silence[0], silence[1].outcome) == ("freecurrencyapi", "quota-minute")
        await trio.sleep(40)  # the rest of the minute
        assert (await bench.ask("USD", OTHER_DAY)).provider == "freecurrencyapi"


@pytest.mark.parametrize(("second", "provider"), [(58, "freecurrencyapi"), (50, "frankfurter")])
async def test_a_minute_that_ends_within_the_deadline_is_waited_for(
    autojump_clock, second, provider
):
    start = datetime(2026, 11, 20, 12, 0, second, tzinfo=UTC)
    async with open_bench(start=start) as bench:
        bench.fake.order(FREECURRENCYAPI, Fault(), NO_CALLS_THIS_MINUTE)
        bench.nursery.start_soon(bench.ask, "USD")
        await trio.sleep(0.5)
        assert (await bench.ask("USD")).provider == provider, "it waits with the first"
        assert elapsed() == pytest.approx(2.0 if second == 58 else 0.5)


async def test_a_used_up_month_is_noticed_once_and_a_larger_plan_within_an_hour(autojump_clock):
    async with open_bench() as bench:
        gone = Fault(body=b'{"quotas":{"month":{"total":5000,"remaining":0}}}')
        bench.fake.disturb = lambda call: gone if call.path.endswith("/status") else None
        rates = await ask_all(bench, [("USD", day) for day in days(20)])
        assert {rate.provider for rate in rates} == {"frankfurter"}
        assert bench.fake.count(FREECURRENCYAPI) == 0
        ((provider, failure),) = bench.notes.silences
        assert (provider, failure.outcome) == ("freecurrencyapi", "quota-month")
        assert str(failure) == "has no calls left this month"
        bench.fake.disturb = well
        await trio.sleep(3601)
        assert (await bench.ask("GBP", OTHER_MONTH)).provider == "freecurrencyapi"


async def test_days_refused_for_the_sake_of_today_cost_no_calls_of_the_budget(autojump_clock):
    few = Fault(body=b'{"quotas":{"month":{"total":100,"remaining":40}}}')
    async with open_bench("freecurrencyapi") as bench:
        bench.fake.order(FREECURRENCYAPI, few)
        for day in days(BURST + 1):
            assert "has 40 calls left this month, kept" in (await bench.ask("USD", day)).text
        assert (bench.fake.count(), bench.notes.silences) == (0, [])
        budget = bench.chain._access[FREECURRENCYAPI].budget
        assert budget is not None
        assert budget.left(trio.current_time()) == BURST


@pytest.mark.parametrize("code", [429, 503])
async def test_a_source_that_names_a_time_is_not_asked_before(autojump_clock, code):
    async with open_bench("frankfurter") as bench:
        for wait, told in (("1", 0), ("Fri, 20 Nov 2026 12:02:20 GMT", 1), ("1", 1)):
            headers = {"retry-after": wait, "date": "Fri, 20 Nov 2026 12:01:20 GMT"}
            fault = Fault(status=code, headers=headers)
            bench.fake.disturb = down(FRANKFURTER, fault=fault)
            calls = bench.fake.count()
            await ask_all(bench, [("USD", DAY), ("USD", OTHER_MONTH)])
            if wait != "1":
                await bench.ask("USD", date(2026, 9, 1))
                bench.fake.disturb = well
            assert len(bench.notes.silences) == told, "a second is none, and both are one"
            assert bench.fake.count() - calls == (2 if wait != "1" else 6)
            await trio.sleep(60)


async def test_who_waits_for_a_turn_does_not_ask_a_source_that_is_limited_meanwhile(autojump_clock):
    async with open_bench("frankfurter") as bench:
        bench.fake.latency = 1.0
        fault = Fault(status=503, headers={"retry-after": "60"})
        bench.fake.disturb = down(FRANKFURTER, fault=fault)
        asked = [("USD", date(2024, month, 1)) for month in range(1, 13)]
        assert {type(problem) for problem in await ask_all(bench, asked)} == {NoRate}
        assert bench.fake.count() == MOST_FETCHES


async def test_rates_at_hand_are_used_while_their_source_is_limited(autojump_clock):
    async with open_bench("frankfurter") as bench:
        final = await bench.ask("USD")
        fault = Fault(status=429, headers={"retry-after": "80000"})
        bench.fake.order(FRANKFURTER, fault)
        assert isinstance(await bench.ask("USD", OTHER_MONTH), NoRate)
        await trio.sleep(7201)
        assert bench.cached("USD", DAY) == replace(final, cached=True)
        with pytest.raises(NoRate, match="answered HTTP 429"):
            bench.cached("USD", date(2026, 9, 1))
        assert bench.fake.count() == 2


# A bug in a source.


async def test_a_bug_in_a_source_fails_that_source_only(autojump_clock):
    class Broken(Instant):
        async def fetch(self, day, now):
            raise ZeroDivisionError

    async with open_bench(Broken("broken"), "frankfurter") as bench:
        assert (await bench.ask("USD")).provider == "frankfurter"
        ((provider, error),) = bench.notes.crashes
        assert (provider, type(error)) == ("broken", ZeroDivisionError)
    async with open_bench(Broken("broken")) as bench:
        assert str(await bench.ask("USD")).endswith("2026-11-03: broken could not be read")


async def test_a_failure_that_is_remembered_holds_no_answer(autojump_clock):
    """Its traceback would: a body of 1 MiB, and the headers that were sent."""
    async with open_bench("frankfurter") as bench:
        bench.fake.order(FRANKFURTER, HTML)
        await bench.ask("USD")
        ((_, _, failure, _),) = bench.notes.failures
        assert failure.__traceback__ is None
        assert failure.__context__ is None


# Every known failure: an answer in time, no effect on other days, and recovery.


CASES = [
    # the source, its fault, the error where it is the only one, and for how long it is not asked
    (FREECURRENCYAPI, Fault(status=401), "did not accept the key (HTTP 401)", 0),
    (FREECURRENCYAPI, NO_CALLS_THIS_MINUTE, "has no calls left this minute", 40),
    (FREECURRENCYAPI, NO_CALLS_THIS_MONTH, "has no calls left this month", 3600),
    (FREECURRENCYAPI, Fault(base="USD", quotes={"EUR": "0"}), "has no EUR on 2026-11-03", 0),
    (FRANKFURTER, Fault(status=429), "answered HTTP 429", 0),
    (FRANKFURTER, Fault(status=500), "answered HTTP 500", 0),
    (FRANKFURTER, HANG, "has not answered in time", 0),
    (FRANKFURTER, DRIP, "has not answered in time", 0),
    (FRANKFURTER, CLOSE, "broke off the connection", 0),
    (FRANKFURTER, HTML, "answered with something else than rates", 0),
    (FRANKFURTER, EMPTY, "has no rates for 2026-11", 0),
]
failures = pytest.mark.parametrize(
    ("source", "fault", "text", "limited_for"), CASES, ids=range(len(CASES))
)


@failures
async def test_a_failure_is_answered_in_time_and_recovered_from(
    autojump_clock, source, fault, text, limited_for
):
    async with open_bench(source, deadline=2.5) as bench:
        bench.fake.disturb = down(source, day=DAY, fault=fault)
        wishes = [("USD", OTHER_MONTH), ("USD", DAY)]
        good, problem = await ask_all(bench, wishes)
        assert elapsed() <= 2.5
        assert problem.text == f"no rate for 'USD' on 2026-11-03: {source} {text}"
        assert good.fetched == START, "another day was not disturbed"
        # The next good answer after the source is well again.
        bench.fake.disturb = well
        began = trio.current_time()
        await trio.sleep(limited_for)
        while not isinstance(await bench.ask("USD"), Rate):
            await trio.sleep(0.1)
        assert trio.current_time() - began <= limited_for + STALLED_AFTER


@failures
async def test_a_failure_of_one_source_is_the_next_ones_turn(
    autojump_clock, source, fault, text, limited_for
):
    other = FRANKFURTER if source == FREECURRENCYAPI else FREECURRENCYAPI
    async with open_bench(source, other) as bench:
        bench.fake.disturb = down(source, day=DAY, fault=fault)
        assert (await bench.ask("USD")).note == f"in place of {source}"
        assert elapsed() <= 2.5


# Secrets.


async def test_the_key_is_in_no_log_at_debug_and_in_no_error(autojump_clock, caplog, monkeypatch):
    caplog.set_level(0)
    log = io.StringIO()
    writer = configure_logs("debug", "json", log)
    async with open_bench("freecurrencyapi", observer=Observer(event_log(), Wall())) as bench:
        [source] = bench.chain.sources
        shown = repr([source, bench.chain])
        for (_, fault, *_), day in zip(CASES, days(len(CASES)), strict=True):
            bench.fake.disturb = down(FREECURRENCYAPI, day=day, fault=fault)
            answer = await bench.ask("USD", day)
            shown += f"{answer}{answer!r}"
        monkeypatch.setattr(source, "_get", None)  # a bug
        await trio.sleep(3600)
        shown += f"{await bench.ask('USD', OTHER_MONTH)}{bench.chain.cache.sheets!r}"
    writer.close()
    events = {json.loads(line)["event"] for line in log.getvalue().splitlines()}
    assert {"rates.failed", "rates.limited", "internal_error"} <= events
    assert KEY not in shown + log.getvalue() + caplog.text
