"""freecurrencyapi: what is asked, how answers are read, and what quotas do."""

import json
import logging
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import structlog
import trio
from rate_bench import KEY, START, URL, Wall, make_client

from ratebridge.errors import SourceFailed
from ratebridge.fakes.freecurrencyapi import (
    FREECURRENCYAPI,
    NO_CALLS_THIS_MINUTE,
    NO_CALLS_THIS_MONTH,
)
from ratebridge.fakes.rates import HTML, FakeRates, Fault, quote
from ratebridge.providers.freecurrencyapi import FreeCurrencyApi, next_month
from ratebridge.rates import Quote

DAY = date(2021, 5, 18)
TODAY = START.date()


def open_source(start=START, **how):
    wall = Wall(start)
    fake = FakeRates(wall, key=KEY, **how)
    return fake, FreeCurrencyApi(make_client(fake), KEY, f"{URL}/v1"), wall


async def failure_of(source, day=DAY, now=START):
    with pytest.raises(SourceFailed) as caught:
        await source.fetch(day, now)
    return caught.value


async def test_an_ended_day_is_asked_for_by_its_date():
    fake, source, _ = open_source()
    table = await source.fetch(DAY, START)
    assert (table.provider, table.day, table.fetched) == ("freecurrencyapi", DAY, START)
    assert table.final
    assert len(table.quotes) == 33
    assert table.quotes["USD"] == Quote(Decimal(quote(FREECURRENCYAPI, "USD", DAY)), DAY)
    (call,) = fake.calls
    assert call.path == "/v1/historical"
    assert call.params == {"date": "2021-05-18", "base_currency": "EUR"}
    assert call.key == KEY


async def test_today_is_the_latest():
    fake, source, _ = open_source()
    table = await source.fetch(TODAY, START)
    assert not table.final
    assert table.quotes["USD"].day == TODAY
    assert (fake.calls[0].path, fake.calls[0].params) == ("/v1/latest", {"base_currency": "EUR"})


@pytest.mark.parametrize("minutes", [0, 59])
async def test_just_after_midnight_the_latest_stands_in_for_yesterday(minutes):
    now = datetime(2026, 11, 20, 0, minutes, tzinfo=UTC)
    fake, source, _ = open_source(now)
    fake.order(FREECURRENCYAPI, Fault(status=422))
    table = await source.fetch(date(2026, 11, 19), now)
    assert [call.path for call in fake.calls] == ["/v1/historical", "/v1/latest"]
    assert (table.day, table.latest, table.final) == (date(2026, 11, 19), True, False)


@pytest.mark.parametrize(
    ("day", "now"),
    [
        (date(2026, 11, 19), datetime(2026, 11, 20, 1, 1, tzinfo=UTC)),
        (date(2026, 11, 18), datetime(2026, 11, 20, 0, 1, tzinfo=UTC)),
    ],
    ids=["late in the night", "the day before yesterday"],
)
async def test_the_latest_does_not_stand_in_for_an_older_day_or_for_long(day, now):
    fake, source, _ = open_source(now)
    fake.order(FREECURRENCYAPI, Fault(status=422))
    failure = await failure_of(source, day, now)
    assert (failure.outcome, failure.again) == ("http-422", False)
    assert fake.count() == 1


async def test_a_plan_without_the_euro_base_is_asked_once_more_without_it():
    fake, source, _ = open_source(dollar_only=True)
    table = await source.fetch(DAY, START)
    assert table.quotes["USD"].units == 1
    assert table.quotes["EUR"].units == Decimal(quote(FREECURRENCYAPI, "EUR", DAY, "USD"))
    await source.fetch(TODAY, START)
    assert [call.params.get("base_currency") for call in fake.calls] == ["EUR", None, None]
    assert [call.status for call in fake.calls] == [403, 200, 200]


async def test_a_403_for_another_reason_stays_one_and_the_base_stays_the_euro():
    fake, source, _ = open_source()
    fake.order(FREECURRENCYAPI, Fault(status=403), Fault(status=403))
    failure = await failure_of(source)
    assert (failure.outcome, failure.again) == ("refused-key", False)
    assert str(failure) == "did not accept the key (HTTP 403)"
    await source.fetch(DAY, START)
    assert [call.params.get("base_currency") for call in fake.calls] == ["EUR", None, "EUR"]


async def test_a_wrong_key():
    fake = FakeRates(lambda: START, key="another")
    source = FreeCurrencyApi(make_client(fake), KEY, f"{URL}/v1")
    failure = await failure_of(source)
    assert (failure.outcome, failure.again) == ("refused-key", False)
    assert str(failure) == "did not accept the key (HTTP 401)"


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":{"2021-05-18":1}}',
        b'{"data":{"yesterday":{"EUR":1}}}',
        b'{"data":{"2021-05-18":{"EUR":1,"US',
    ],
)
async def test_a_body_of_another_shape(body):
    fake, source, _ = open_source()
    fake.order(FREECURRENCYAPI, Fault(body=body))
    failure = await failure_of(source)
    assert (failure.outcome, failure.again) == ("bad-body", False)
    assert str(failure) == "answered with something else than rates"


async def test_a_table_without_the_euro_is_of_no_use():
    fake, source, _ = open_source()
    fake.order(FREECURRENCYAPI, Fault(quotes={"EUR": "0"}))
    assert (await failure_of(source)).outcome == "bad-table"


async def test_a_currency_with_two_quotes_spoils_the_table():
    fake, source, _ = open_source()
    body = b'{"data":{"2021-05-18":{"EUR":1,"USD":1.2,"GBP":0.8,"USD":1.3}}}'
    fake.order(FREECURRENCYAPI, Fault(body=body), Fault(quotes={"EUR": "0.9"}))
    assert str(await failure_of(source)) == "has two different quotes for USD on 2021-05-18"
    assert str(await failure_of(source)) == "has no quote of 1 for its own base on 2021-05-18"


def historical(*days):
    data = {str(day): {"EUR": 1, "USD": 1.2} for day in days}
    return Fault(body=json.dumps({"meta": 1, "data": data}).encode())


async def test_two_tables_for_one_day_are_none():
    fake, source, _ = open_source()
    table = b'"2021-05-18" : {"EUR":1,"USD":1.%d}'
    fake.order(FREECURRENCYAPI, Fault(body=b'{"data":{%b,%b}}' % (table % 2, table % 3)))
    assert str(await failure_of(source)) == "has two tables for one day"


async def test_a_table_of_some_days_before_is_taken_for_what_it_is():
    fake, source, _ = open_source()
    sunday, friday = date(2021, 5, 16), date(2021, 5, 14)
    fake.order(FREECURRENCYAPI, historical(friday, date(2021, 5, 13), date(2021, 5, 17)))
    table = await source.fetch(sunday, START)
    assert table.day == sunday
    assert {quote.day for quote in table.quotes.values()} == {friday}


@pytest.mark.parametrize("days", [-6, 1], ids=["six days before", "the day after"])
async def test_a_table_of_another_day_is_none(days):
    fake, source, _ = open_source()
    fake.order(FREECURRENCYAPI, historical(DAY + timedelta(days=days)))
    assert (await failure_of(source)).outcome == "bad-table"


# Quotas.


async def test_quotas_are_kept_as_figures():
    _, source, wall = open_source(per_month=5000)
    assert (source.quota.minute_left, source.quota.month_left) == (None, None)
    await source.fetch(DAY, wall())
    quota = source.quota
    assert (quota.minute_left, quota.month_left, quota.month_total) == (9, 4999, 5000)


async def test_headers_that_say_nothing_change_no_figure():
    fake, source, wall = open_source()
    await source.fetch(DAY, wall())
    nothing = {f"x-ratelimit-remaining-quota-{period}": "?" for period in ("minute", "month")}
    fake.order(FREECURRENCYAPI, Fault(headers={**nothing, "x-ratelimit-limit-quota-month": ""}))
    await source.fetch(DAY, wall())
    quota = source.quota
    assert (quota.minute_left, quota.month_left, quota.month_total) == (9, 4999, 5000)


async def test_when_the_minute_is_used_up_nothing_is_asked_until_the_next(autojump_clock):
    fake, source, wall = open_source(per_minute=2)  # twenty seconds into its minute
    await source.fetch(DAY, wall())
    await source.fetch(DAY, wall())
    await trio.sleep(10)
    failure = await failure_of(source, now=wall())
    assert (failure.outcome, failure.again) == ("quota-minute", True)
    assert str(failure) == "has no calls left this minute"
    assert failure.after == failure.limited_for == pytest.approx(30)
    assert fake.count() == 2
    assert failure.after is not None
    await trio.sleep(failure.after)
    await source.fetch(DAY, wall())
    assert fake.count() == 3


async def test_a_429_on_the_minute(autojump_clock):
    fake, source, wall = open_source()
    fake.order(FREECURRENCYAPI, NO_CALLS_THIS_MINUTE)
    failure = await failure_of(source, now=wall())
    assert (failure.outcome, failure.again, failure.after) == ("quota-minute", True, 40)
    await trio.sleep(40)
    await source.fetch(DAY, wall())


async def test_a_429_that_says_when_to_come_back(autojump_clock):
    fake, source, wall = open_source()
    fake.order(FREECURRENCYAPI, Fault(status=429, headers={"retry-after": "7"}))
    failure = await failure_of(source, now=wall())
    assert (failure.after, failure.limited_for) == (7, 7)


async def test_a_429_on_the_month_rests_until_the_next(autojump_clock):
    fake, source, wall = open_source()
    fake.order(FREECURRENCYAPI, NO_CALLS_THIS_MONTH)
    failure = await failure_of(source, now=wall())
    assert (failure.outcome, failure.again) == ("quota-month", False)
    assert str(failure) == "has no calls left this month (until 2026-12-01 UTC)"
    ten_days_and_a_half = (datetime(2026, 12, 1, tzinfo=UTC) - START).total_seconds()
    assert failure.limited_for == ten_days_and_a_half
    assert source.quota.month_left == 0
    await trio.sleep(ten_days_and_a_half - 1)
    assert (await failure_of(source, now=wall())).limited_for == pytest.approx(1)
    assert fake.count() == 1
    await trio.sleep(1)
    await source.fetch(DAY, wall())


async def test_the_last_call_of_a_month_is_good(autojump_clock):
    fake, source, wall = open_source(per_month=1)
    await source.fetch(DAY, wall())
    assert (await failure_of(source, now=wall())).outcome == "quota-month"
    assert fake.count() == 1


async def test_a_month_used_up_is_not_forgotten_for_a_minute_used_up(autojump_clock):
    """Of two fetches at a time the one refused for the minute may be answered last."""
    fake, source, wall = open_source()
    fake.latency = 1.0
    fake.order(FREECURRENCYAPI, NO_CALLS_THIS_MONTH, NO_CALLS_THIS_MINUTE)
    failures = []

    async def fetch_in_vain():
        failures.append((await failure_of(source, now=wall())).outcome)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch_in_vain)
        await trio.sleep(0.5)
        nursery.start_soon(fetch_in_vain)
    assert failures == ["quota-month", "quota-month"]


@pytest.mark.parametrize(
    ("now", "then"),
    [
        (datetime(2026, 11, 30, 23, 59, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)),
        (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_next_month(now, then):
    assert next_month(now) == then


async def test_check_asks_for_the_status_which_is_not_counted():
    fake, source, _ = open_source(per_month=100)
    assert await source.check_key() == "accepted, 100 of 100 calls left this month"
    assert (source.quota.month_left, source.quota.month_total) == (100, 100)
    assert (fake.calls[0].path, fake.calls[0].key) == ("/v1/status", KEY)
    fake.order(FREECURRENCYAPI, Fault(status=401), HTML)
    with pytest.raises(SourceFailed, match="did not accept the key"):
        await source.check_key()
    with pytest.raises(SourceFailed, match="something else"):
        await source.check_key()


@pytest.mark.parametrize("status", [200, 401, 403, 422, 429, 500])
async def test_the_key_is_in_the_header_and_nowhere_else(status, caplog):
    caplog.set_level(logging.DEBUG)
    fake, source, _ = open_source()
    fake.disturb = lambda _call: Fault(status=status, body=KEY.encode(), headers={"x-key": KEY})
    with structlog.testing.capture_logs() as logs:
        failure = await failure_of(source)
    assert fake.count() == (2 if status == 403 else 1)
    assert all(call.key == KEY for call in fake.calls)
    assert not any(KEY in str(call.params) + call.path for call in fake.calls)
    assert KEY not in f"{source!r}{failure}{failure!r}{caplog.text}{logs}"
