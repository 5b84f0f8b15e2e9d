"""Frankfurter: what is asked, and how rows are read."""

import json
from datetime import date, timedelta
from decimal import Decimal

import pytest
from rate_bench import START, URL, make_client

from ratebridge.errors import SourceFailed
from ratebridge.fakes.frankfurter import FAKE, FRANKFURTER
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


async def test_a_month_is_one_call_with_five_days_around_it(fake, source):
    sheet = await source.fetch(DAY, START)
    assert (sheet.first, sheet.last) == (date(2021, 5, 1), date(2021, 5, 31))
    assert {source.asks(day, START.date()) for day in (sheet.first, sheet.last)} == {"2021-05"}
    assert sheet.find("ZWL", DAY) == (Quote(Decimal(quote(FRANKFURTER, "ZWL", DAY))), DAY)
    assert len(sheet.currencies) > 55
    assert "EUR" not in sheet.currencies
    (call,) = fake.calls
    assert (call.path, call.key) == ("/v2/rates", None)
    assert call.params == {"from": "2021-04-26", "to": "2021-06-05", "base": "EUR"}
    assert source.quota is None
    assert set(FAKE.units) - source.currencies == {"EUR"}


@pytest.mark.parametrize(
    ("day", "since", "until"),
    [
        *(("2026-11-20", "2026-10-27", "2026-11-20"), ("2026-10-31", "2026-09-26", "2026-11-05")),
        *(("1999-01-04", "1998-12-27", "1999-02-05"), ("2024-02-29", "2024-01-27", "2024-03-05")),
    ],
)
async def test_days_to_come_are_not_asked_for(fake, source, day, since, until):
    sheet = await source.fetch(date.fromisoformat(day), START)
    assert (fake.calls[0].params["from"], fake.calls[0].params["to"]) == (since, until)
    assert date.fromisoformat(day) <= sheet.last <= max(sheet.rows) == date.fromisoformat(until)


async def test_each_day_of_a_month_has_the_last_row_at_or_before_it_of_five_days(source):
    sheet = await source.fetch(DAY, START)
    for number in range(1, 32):
        day = date(2021, 5, number)
        friday = day - timedelta(days=max(0, day.weekday() - 4))
        found, known_on = sheet.find("USD", day)
        assert known_on == friday  # the first of May was a Saturday
        assert str(found.units) == quote(FRANKFURTER, "USD", friday)
        fortnightly = sheet.find("TMT", day)  # on the 1st and the 15th; not carried any further
        back = (number - 1) % 14 if number < 29 else number - 15
        assert (fortnightly is not None) is (back <= 5)


async def test_a_row_without_a_rate_costs_itself_and_those_of_other_days_do_not_matter(
    fake, source
):
    rows = [
        {"date": day, "base": "EUR", "quote": code, "rate": rate}
        for day, code, rate in [
            *(("2021-05-18", "EUR", 1.0), ("2021-05-18", "USD", 1.2), ("2021-05-18", "CZK", None)),
            *(("2021-04-25", "USD", 7), ("2021-06-06", "USD", 7), ("2021-06-05", "XAU", 0.0003)),
        ]
    ]
    rows.append({"date": "2021-05-18", "base": "EUR", "quote": "GBP"})
    fake.order(FRANKFURTER, Fault(body=json.dumps(rows).encode()))
    sheet = await source.fetch(DAY, START)
    assert sheet.rows.keys() == {DAY, date(2021, 6, 5)}
    assert sheet.rows[DAY] == {"USD": Quote(Decimal("1.2"))}
    assert str(sheet.rows[date(2021, 6, 5)]["XAU"]) == "gives it in too few digits (0.0003)"


ROW = {"date": "2021-05-18", "base": "EUR", "quote": "USD", "rate": 1.2}


def body(*rows):
    return Fault(body=json.dumps(rows).encode())


@pytest.mark.parametrize(
    ("fault", "outcome", "why"),
    [
        (Fault(base="USD"), "bad-table", "answered with another base than the euro"),
        (body(ROW, {**ROW, "base": "USD", "date": "1999-01-04"}), "bad-table", "another base"),
        (Fault(quotes={"EUR": "0.9"}), "bad-table", "has another quote than 1 for EUR on"),
        (body(ROW, {**ROW, "rate": 1.3}), "bad-table", "two different quotes for USD on 2021"),
        (body({"date": "2021-05-18", "rate": 1.2}), "bad-body", "something else than rates"),
        (body({**ROW, "date": "18.05.2021"}), "bad-body", "something else than rates"),
        (body({**ROW, "quote": 1}), "bad-body", "something else than rates"),
    ],
    ids=range(7),
)
async def test_what_contradicts_itself_or_has_another_shape_is_refused(
    fake, source, fault, outcome, why
):
    fake.order(FRANKFURTER, fault)
    with pytest.raises(SourceFailed, match=why) as caught:
        await source.fetch(DAY, START)
    assert (caught.value.outcome, caught.value.again) == (outcome, False)
