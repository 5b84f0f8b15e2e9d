"""Coinbase: what is asked, and how candles are read."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from rate_bench import START, URL, make_client

from ratebridge.errors import SourceFailed
from ratebridge.fakes.coinbase import COINBASE
from ratebridge.fakes.rates import FakeRates, Fault, quote
from ratebridge.providers.coinbase import MARGIN, MOST_CANDLES, Coinbase
from ratebridge.rates import Quote

DAY = date(2022, 1, 31)


@pytest.fixture
def fake():
    return FakeRates(lambda: START)


@pytest.fixture
def source(fake):
    return Coinbase(make_client(fake), f"{URL}/coinbase", ("BTC", "ETH"))


def price_of(text):
    return Quote(Decimal(1), Decimal(text))


async def test_a_call_brings_three_hundred_days_of_a_coin_as_euro_for_one(fake, source):
    sheet = await source.fetch(DAY, START)
    assert sheet.asked == source.asks(DAY, START.date()) == str(sheet.first)
    assert (source.quota, source.currencies, sheet.currencies) == (None, *[{"BTC", "ETH"}] * 2)
    for coin in ("BTC", "ETH"):
        assert sheet.find(coin, DAY) == (price_of(quote(COINBASE, coin, DAY)), DAY)
    assert [call.path for call in fake.calls] == [
        f"/coinbase/products/{coin}-EUR/candles" for coin in ("BTC", "ETH")
    ]
    assert fake.calls[0].params == {
        "granularity": "86400",
        "start": f"{sheet.first - MARGIN}T00:00:00Z",
        "end": f"{sheet.last + MARGIN}T00:00:00Z",
    }
    assert (sheet.last - sheet.first + 2 * MARGIN).days + 1 == len(sheet.rows) == 300


async def test_the_calendar_is_divided_into_spans_without_holes(fake, source):
    first = date.fromisoformat(source.asks(DAY, START.date()))
    spans = {source.asks(first + timedelta(days=n), START.date()) for n in range(-1, 291)}
    assert spans == {str(first + timedelta(days=n)) for n in (-290, 0, 290)}
    assert source.asks(date(1999, 1, 4), START.date()) <= "1999-01-04"


async def test_the_day_that_runs_has_its_last_price(fake, source):
    today = START.date()
    sheet = await source.fetch(today, START)
    assert (sheet.last, max(sheet.rows), sheet.is_final(today)) == (today, today, False)
    assert sheet.find("BTC", today) == (price_of(quote(COINBASE, "BTC", today)), today)
    assert fake.calls[0].params["end"] == f"{today}T00:00:00Z"


def candle(day, close, *more):
    opened = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    return f"[{opened},1,9e9,7,{close},1042.25{''.join(more)}]"


def candles(*texts):
    return Fault(body=f"[{','.join(texts)}]".encode())


async def test_a_candle_counts_by_its_close_and_a_bad_one_costs_itself(fake, source):
    def back(days):
        return DAY - timedelta(days=days)

    early = date.fromisoformat(source.asks(DAY, DAY)) - timedelta(days=9)
    fake.order(
        COINBASE,
        candles(
            *(candle(DAY, "34155.6"), candle(back(3), "33012.01"), candle(early, "0.00002")),
            *(candle(back(4), "null"), candle(back(5), "1", ",2"), "[]", '["x",1,1,1,1,1]'),
            candle(START.date() + timedelta(days=1), "7"),
        ),
        candles(),
    )
    sheet = await source.fetch(DAY, START)
    assert sheet.rows.keys() == {DAY, back(3), early}
    assert sheet.find("BTC", DAY) == (price_of("34155.6"), DAY)
    # A day without trades has the price before it; the one before that has none.
    for known in (1, 3):
        assert sheet.find("BTC", back(known)) == (price_of("33012.01"), back(3))
    assert sheet.find("BTC", back(4)) is None
    assert str(sheet.rows[early]["BTC"]) == "gives it in too few digits (0.00002)"
    assert sheet.currencies == {"BTC"}


async def test_before_there_was_a_market_there_is_no_rate_and_no_call(fake, source):
    day = date(2014, 12, 31)
    sheet = await source.fetch(day, START)
    assert sheet.first <= day == sheet.last
    assert (sheet.asked, sheet.is_final(day)) == (source.asks(day, START.date()), True)
    assert (sheet.rows, fake.calls) == ({}, [])


async def test_an_unknown_coin_has_no_rate_and_the_others_have(fake):
    source = Coinbase(make_client(fake), f"{URL}/coinbase", ("XXX", "BTC"))
    sheet = await source.fetch(DAY, START)
    assert [call.status for call in fake.calls] == [404, 200]
    assert (sheet.find("XXX", DAY), set(sheet.currencies)) == (None, {"BTC"})


@pytest.mark.parametrize(
    ("fault", "outcome", "why"),
    [
        (Fault(status=404), "no-table", "has no rates for 2021-"),
        (candles(), "no-table", "has no rates for 2021-"),
        (candles(candle(DAY, "1"), candle(DAY, "2")), "bad-table", "two different quotes for BTC"),
        (Fault(status=400), "http-4xx", "answered HTTP 400"),
        (candles(*["[]"] * MOST_CANDLES, candle(DAY, "1")), "no-table", "has no rates for 2021-"),
    ],
    ids=range(5),
)
async def test_an_answer_without_prices_is_a_failure(fake, source, fault, outcome, why):
    fake.disturb = lambda _call: fault
    with pytest.raises(SourceFailed, match=why) as caught:
        await source.fetch(DAY, START)
    assert caught.value.outcome == outcome
