"""freecurrencyapi: what is asked, how answers are read, and what quotas do."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from math import ceil

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rate_bench import KEY, START, URL, Wall, make_client

from ratebridge.errors import SourceFailed
from ratebridge.fakes.freecurrencyapi import (
    FREECURRENCYAPI,
    NO_CALLS_THIS_MINUTE,
    NO_CALLS_THIS_MONTH,
)
from ratebridge.fakes.rates import HANG, HTML, FakeRates, Fault, quote
from ratebridge.providers.freecurrencyapi import CURRENCIES, FreeCurrencyApi
from ratebridge.rates import Quote

DAY = date(2021, 5, 18)
TODAY = START.date()
NO_BASE = Fault(status=422, body=b'{"errors":{"base_currency":["is invalid"]}}')


@attrs.frozen
class Scene:
    """The source, its stand-in, and their wall clock, which runs with trio's."""

    fake: FakeRates
    source: FreeCurrencyApi
    wall: Wall

    async def fetch(self, day=DAY):
        return await self.source.fetch(day, self.wall())

    async def failure(self, day=DAY):
        with pytest.raises(SourceFailed) as caught:
            await self.fetch(day)
        return caught.value

    @property
    def calls(self):
        """The ends of the paths."""
        return [call.path.rpartition("/")[2] for call in self.fake.calls]

    @property
    def bases(self):
        calls = [call for call in self.fake.calls if not call.path.endswith("/status")]
        return [call.params.get("base_currency") for call in calls]


def open_scene(*faults, start=START, life=7200.0, **options):
    """`faults` are those of the calls for rates: `/status` is answered."""
    wall = Wall(start)
    fake = FakeRates(wall, **{"key": KEY, **options})
    left = list(faults)
    fake.disturb = lambda call: left.pop(0) if left and not call.path.endswith("/status") else None
    return Scene(fake, FreeCurrencyApi(make_client(fake), KEY, f"{URL}/v1", life), wall)


async def test_an_ended_day_is_asked_for_by_its_date(autojump_clock):
    scene = open_scene()
    sheet = await scene.fetch()
    assert (sheet.asked, sheet.first, sheet.last) == ("2021-05-18", DAY, DAY)
    assert sheet.currencies == CURRENCIES == scene.source.currencies
    assert len(CURRENCIES) == 32
    usd = Quote(Decimal(quote(FREECURRENCYAPI, "USD", DAY)))
    assert sheet.find("USD", DAY) == (usd, DAY)
    assert scene.calls == ["status", "historical"]
    assert scene.fake.calls[1].params == {"date": "2021-05-18", "base_currency": "EUR"}
    assert {call.key for call in scene.fake.calls} == {KEY}


NO_DAY = Fault(status=422, body=b'{"errors":{"date":["must be before today"]}}')
AT_00, AT_59, AT_61 = (datetime(2026, 11, 20, m // 60, m % 60, tzinfo=UTC) for m in (0, 59, 61))


@pytest.mark.parametrize(
    ("day", "now", "stands_in"),
    [(19, AT_00, True), (19, AT_59, True), (19, AT_61, False), (18, AT_00, False)],
)
async def test_the_latest_stands_in_for_yesterday_just_after_midnight(day, now, stands_in):
    scene, asked = open_scene(NO_DAY, start=now), date(2026, 11, day)
    if stands_in:
        sheet = await scene.fetch(asked)
        assert (sheet.first, sheet.latest, sheet.is_final(asked)) == (asked, True, False)
    else:
        failure = await scene.failure(asked)
        assert (str(failure), failure.again) == ("answered HTTP 422", False)
    assert scene.calls == ["status", "historical", *["latest"] * stands_in]


# The base.


@pytest.mark.parametrize("how", [{"dollar_only": True}, NO_BASE], ids=["403", "422"])
async def test_where_the_euro_is_no_base_it_is_the_dollar_from_then_on(how):
    scene = open_scene(how) if how is NO_BASE else open_scene(**how)
    sheet = await scene.fetch()
    euro = Decimal(quote(FREECURRENCYAPI, "EUR", DAY, "USD"))
    assert sheet.find("USD", DAY) == (Quote(Decimal(1), euro), DAY)
    await scene.fetch(TODAY)
    assert scene.bases == ["EUR", None, None]


async def test_a_call_that_was_under_way_when_the_base_was_found_asks_again_as_well(autojump_clock):
    scene = open_scene(dollar_only=True)
    scene.fake.latency = 0.1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.fetch)  # its status, its refusal, its table
        await trio.sleep(0.25)
        await scene.fetch(TODAY)
    assert scene.bases == ["EUR", None, "EUR", None]


async def test_a_status_that_fails_costs_no_rate(autojump_clock):
    scene = open_scene()
    scene.fake.disturb = lambda call: Fault(status=302) if call.path.endswith("/status") else None
    assert (await scene.fetch()).currencies == CURRENCIES


@pytest.mark.parametrize("fault", [Fault(status=403), NO_BASE])
async def test_a_base_that_is_refused_for_another_reason_stays_the_euro(fault):
    scene = open_scene(fault, fault)
    failure = await scene.failure()
    key = fault.status == 403
    assert failure.outcome == ("refused-key" if key else "http-4xx")
    assert str(failure) == ("did not accept the key (HTTP 403)" if key else "answered HTTP 422")
    await scene.fetch()
    assert scene.bases == ["EUR", None, "EUR"]


async def test_a_page_of_a_content_network_is_no_bad_key():
    page = attrs.evolve(HTML, status=403, headers={"content-type": "text/html; charset=utf-8"})
    scene = open_scene(page)
    assert str(await scene.failure()) == "answered HTTP 403"
    assert scene.bases == ["EUR"]
    failure = await open_scene(key="another").failure()
    assert (failure.outcome, str(failure)) == ("refused-key", "did not accept the key (HTTP 401)")


# The tables.


def historical(*tables):
    return Fault(body=json.dumps({"data": dict(tables)}).encode())


def table(text):
    return Fault(body=b'{"data":{"2021-05-18":%b}}' % text)


async def test_a_dollar_table_needs_no_row_of_the_dollar():
    rates = {"EUR": 0.8, "GBP": 0.7, "CZK": None}
    sheet = await open_scene(historical(("2021-05-18", rates))).fetch()
    assert sheet.rows == {DAY: {"GBP": Quote(Decimal("0.7"), Decimal("0.8"))}}


@pytest.mark.parametrize(
    ("fault", "outcome", "why"),
    [
        (Fault(quotes={"EUR": "0"}), "bad-table", "has no EUR on 2021-05-18"),
        (Fault(quotes={"EUR": "0.00001"}), "bad-table", "has no EUR on 2021-05-18"),
        (Fault(quotes={"EUR": "0.9"}), "bad-table", "has no quote of 1 for a base on 2021-05-18"),
        (historical((str(DAY), {"EUR": 1})), "no-table", "has no rates for 2021-05-18"),
        (historical(("2021-05-12", {"EUR": 1, "USD": 2})), "no-table", "has no rates for 2021-05"),
        (historical(("2021-05-19", {"EUR": 1, "USD": 2})), "no-table", "has no rates for 2021-05"),
        (table(b'{"EUR":1,"USD":1.2,"USD":1.3}'), "bad-table", "has two different quotes for USD"),
        (table(b'{"EUR":1},"2021-05-18" : {}'), "bad-table", "has two tables for one day"),
        *((table(text), "bad-body", "something else") for text in (b"1", b'{"EUR":1,"US')),
        (table(b'1,"yesterday":{}'), "bad-body", "something else"),
    ],
    ids=range(11),
)
async def test_a_table_that_is_of_no_use_says_why(fault, outcome, why):
    failure = await open_scene(fault).failure()
    assert (failure.outcome, failure.again) == (outcome, False)
    assert why in str(failure)


async def test_a_table_of_some_days_before_is_taken_for_what_it_is():
    tables = [(day, {"EUR": 1, "USD": 1.2}) for day in ("2021-05-13", "2021-05-14", "2021-05-17")]
    sheet = await open_scene(historical(*tables)).fetch(date(2021, 5, 16))
    assert sheet.find("USD", date(2021, 5, 16)) == (Quote(Decimal("1.2")), date(2021, 5, 14))


# The minute.


DATES = {"date": "Fri, 20 Nov 2026 12:00:00 GMT", "retry-after": "Fri, 20 Nov 2026 12:02:00 GMT"}


@pytest.mark.parametrize(
    ("headers", "wait"),
    [(NO_CALLS_THIS_MINUTE.headers, 40), ({}, 40), ({"retry-after": "7"}, 7), (DATES, 120)],
)
async def test_a_429_on_the_minute_says_when_to_come_back(autojump_clock, headers, wait):
    scene = open_scene(Fault(status=429, headers=headers))
    failure = await scene.failure()
    assert (failure.outcome, failure.again, failure.limited_for) == ("quota-minute", True, wait)
    await trio.sleep(wait)
    await scene.fetch()


# The month.


async def test_quotas_are_kept_as_figures():
    quiet = {f"x-ratelimit-remaining-quota-{period}": "?" for period in ("minute", "month")}
    scene = open_scene(Fault(), Fault(headers={**quiet, "x-ratelimit-limit-quota-month": ""}))
    quota = scene.source.quota
    assert (quota.month_left, quota.month_total) == (None, None)
    for _ in range(2):
        await scene.fetch()
        assert (quota.month_left, quota.month_total) == (4999, 5000)


async def test_the_status_is_asked_for_at_first_each_hour_without_an_answer_and_each_month(
    autojump_clock,
):
    scene = open_scene(start=datetime(2026, 11, 30, 20, 30, tzinfo=UTC))
    for minutes, asked in ((59, 1), (60, 0), (59, 1), (33, 0), (0, 1)):
        before = scene.calls.count("status")
        await scene.fetch()
        assert scene.calls.count("status") - before == asked
        await trio.sleep(60 * minutes)


async def test_a_status_that_does_not_answer_delays_by_a_second_and_says_nothing(autojump_clock):
    scene = open_scene()
    scene.fake.order(FREECURRENCYAPI, HANG)
    began = trio.current_time()
    assert await scene.fetch()
    assert trio.current_time() - began == 1
    scene.fake.order(FREECURRENCYAPI, Fault(status=500))
    await trio.sleep(3601)
    assert await scene.fetch()


async def test_ended_days_are_asked_for_while_more_is_left_than_today_needs(autojump_clock):
    """Two and a half a day, and three at midnight; on the 20th eleven days are left."""
    scene = open_scene(life=43200, per_month=130, per_minute=1000)
    for _ in range(130 - 61):
        await scene.fetch(DAY)
    failure = await scene.failure(DAY)
    assert (failure.outcome, failure.again) == ("quota-month", False)
    assert failure.limited_for is None
    assert str(failure) == "has 61 calls left this month, kept for the rates of the days to come"
    for _ in range(61):
        await scene.fetch(TODAY)
    assert str(await scene.failure(TODAY)) == "has no calls left this month"


@settings(max_examples=30)
@given(
    left=st.integers(1, 6_000),
    total=st.none() | st.integers(1, 10_000),
    life=st.floats(1, 10**6),
    day=st.integers(1, 30),
    today=st.booleans(),
)
def test_what_is_kept_is_for_each_day_that_is_left_and_half_of_the_month_at_most(
    left, total, life, day, today
):
    async def ask():
        now = datetime(2026, 11, day, 12, tzinfo=UTC)
        asked = now.date() if today else DAY
        scene = open_scene(start=now, life=life)
        status = json.dumps({"quotas": {"month": {"remaining": left, "total": total}}})
        scene.fake.order(FREECURRENCYAPI, Fault(body=status.encode()))
        kept = min(ceil((108_000 / life + 3) * (31 - day)), (total or 5000) // 2)
        if today or left > kept:
            assert await scene.fetch(asked)
        else:
            assert str(await scene.failure(asked)).startswith(f"has {left} calls left this month, ")

    trio.run(ask)


async def test_a_429_on_the_month_rests_for_an_hour_and_asks_the_status_then(autojump_clock):
    scene = open_scene(NO_CALLS_THIS_MONTH)
    failure = await scene.failure()
    assert (failure.outcome, failure.again, failure.limited_for) == ("quota-month", False, 3600)
    await trio.sleep(3599)
    assert (await scene.failure()).outcome == "quota-month"
    assert scene.calls == ["status", "historical"]
    await trio.sleep(2)
    await scene.fetch()  # the plan is a larger one, or it was a mistake
    assert scene.calls[2:] == ["status", "historical"]


async def test_a_source_whose_month_ends_just_after_ours_is_asked_in_a_minute(autojump_clock):
    scene = open_scene(start=datetime(2026, 12, 1, 0, 0, 10, tzinfo=UTC), per_month=0)
    failure = await scene.failure()
    assert (failure.outcome, failure.limited_for) == ("quota-month", 50)
    scene.fake.sources[FREECURRENCYAPI].per_month = 5000
    await trio.sleep(50)
    await scene.fetch()


async def test_a_new_month_is_looked_at_when_it_begins_by_either_clock(autojump_clock):
    scene = open_scene(start=datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC), per_minute=1000)
    for _ in range(24):
        await scene.fetch()
        await trio.sleep(5)
    assert scene.calls.count("status") == 3


async def test_the_last_call_of_a_month_is_good_and_the_next_month_needs_no_status(autojump_clock):
    last_day = datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC)  # of a year, too
    scene = open_scene(start=last_day, per_month=1)
    await scene.fetch(last_day.date())
    failure = await scene.failure(last_day.date())
    assert (failure.outcome, failure.limited_for) == ("quota-month", 90)
    assert scene.calls == ["status", "latest"]
    await trio.sleep(30)
    scene.fake.order(FREECURRENCYAPI, Fault(status=404))
    await scene.fetch(last_day.date() + timedelta(days=1))


# The key.


async def test_check_asks_for_the_status_which_is_not_counted():
    scene = open_scene(per_month=100)
    assert await scene.source.check_key() == "accepted, 100 of 100 calls left this month"
    quota = scene.source.quota
    assert (quota.month_left, quota.month_total) == (100, 100)
    assert (scene.calls, scene.fake.calls[0].key) == (["status"], KEY)
    for month, said in ((b'{"remaining":7}', "accepted, 7 calls left"), (b"{}", "accepted")):
        body = b'{"quotas":{"month":%b}}' % month
        scene.fake.order(FREECURRENCYAPI, Fault(body=body))
        assert (await scene.source.check_key()).startswith(said)
    none_left = Fault(body=b'{"quotas":{"month":{"remaining":0,"total":9}}}')
    scene.fake.order(FREECURRENCYAPI, Fault(status=401), HTML, none_left)
    for why in ("did not accept the key", "something else", "accepted, but 0 of 9 calls left"):
        with pytest.raises(SourceFailed, match=why):
            await scene.source.check_key()
