"""Frankfurter: what is asked, and how rows are read."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from rate_bench import START, URL, make_client

from ratebridge.errors import SourceFailed
from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.rates import FakeRates, Fault, quote
from ratebridge.providers.frankfurter import Frankfurter
from ratebridge.rates import Quote

DAY = date(2021, 5, 18)


@pytest.fixture
def fake():
    return FakeRates(lambda: START)


@pytest.fixture
def source(fake):
    return Frankfurter(make_client(fake), f"{URL}/v2")


async def failure_of(source, day=DAY):
    with pytest.raises(SourceFailed) as caught:
        await source.fetch(day, START)
    return caught.value


async def test_a_day_is_one_call_for_all_currencies(fake, source):
    table = await source.fetch(DAY, START)
    assert (table.provider, table.day, table.fetched) == ("frankfurter", DAY, START)
    assert len(table.quotes) > 55
    assert table.quotes["EUR"] == Quote(Decimal(1), DAY)
    assert table.quotes["ZWL"] == Quote(Decimal(quote(FRANKFURTER, "ZWL", DAY)), DAY)
    (call,) = fake.calls
    assert (call.path, call.params) == ("/v2/rates", {"date": "2021-05-18", "base": "EUR"})
    assert call.key is None
    assert source.quota is None


async def test_today_is_asked_for_by_its_date_too(fake, source):
    table = await source.fetch(START.date(), START)
    assert fake.calls[0].params["date"] == "2026-11-20"
    assert not table.final
    assert max(quote.day for quote in table.quotes.values()) == START.date()


async def test_each_quote_keeps_its_own_day(source):
    sunday, friday, thursday = date(2021, 5, 16), date(2021, 5, 14), date(2021, 5, 13)
    table = await source.fetch(sunday, START)
    assert (table.quotes["USD"].day, table.quotes["UAH"].day) == (friday, thursday)


async def test_a_row_carried_too_far_is_left_out(source):
    assert "TMT" in (await source.fetch(date(2021, 5, 20), START)).quotes
    assert "TMT" not in (await source.fetch(date(2021, 5, 21), START)).quotes


async def test_a_table_that_does_not_have_one_euro_for_one_euro_is_refused(fake, source):
    fake.order(FRANKFURTER, Fault(quotes={"EUR": "0.9"}))
    failure = await failure_of(source)
    assert str(failure) == "has two different quotes for EUR on 2021-05-18"


async def test_another_base_is_refused(fake, source):
    fake.order(FRANKFURTER, Fault(base="USD"))
    failure = await failure_of(source)
    assert str(failure) == "answered with another base than the euro"
    assert (failure.outcome, failure.again) == ("bad-table", False)


ROW = {"date": "2021-05-18", "base": "EUR", "quote": "USD", "rate": 1.2}


@pytest.mark.parametrize(
    "body",
    [
        b'{"amount":1.0,"base":"EUR","date":"2021-05-18","rates":{"USD":1.2}}',
        json.dumps([ROW]).encode()[:-3],
        json.dumps([{**ROW, "date": "18.05.2021"}]).encode(),
        json.dumps([{**ROW, "quote": 1}]).encode(),
    ],
    ids=range(4),
)
async def test_a_body_of_another_shape(fake, source, body):
    fake.order(FRANKFURTER, Fault(body=body))
    failure = await failure_of(source)
    assert (failure.outcome, failure.again) == ("bad-body", False)
    assert str(failure) == "answered with something else than rates"


async def test_a_far_future_has_no_table(source):
    now = datetime(2030, 1, 1, tzinfo=UTC)
    with pytest.raises(SourceFailed, match="no usable table"):
        await source.fetch(date(2030, 1, 1), now)
