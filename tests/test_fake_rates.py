"""The fake sources behave like the real ones.

How they look to the sources that ask them is seen in the tests of those.
"""

import gzip
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import trio

from ratebridge.fakes.coinbase import COINBASE
from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI, NO_CALLS_THIS_MONTH
from ratebridge.fakes.rates import CLOSE, DRIP, HANG, HUGE, FakeRates, Fault, quote, serve_rates

NOW = datetime(2026, 11, 20, 12, 0, 20, tzinfo=UTC)
KEY = {"apikey": "fca_live_s3cr3t"}
HISTORICAL = "/v1/historical?date=2021-05-18&base_currency=EUR"
RATES = "/v2/rates?date=2021-05-18&base=EUR"
CANDLES = "coinbase/products/BTC-EUR/candles?granularity=86400"


@pytest.fixture
def fake():
    return FakeRates(lambda: NOW)


def ask(fake, target, headers=KEY):
    answer = fake.answer(target, headers)
    return answer.status, json.loads(answer.body, parse_float=Decimal, parse_int=Decimal)


# freecurrencyapi.


def test_good_calls_count_and_the_headers_tell_what_is_left():
    now = NOW
    fake = FakeRates(lambda: now, per_minute=2, per_month=3)

    def left(target="/v1/latest"):
        answer = fake.answer(target, KEY)
        return answer.status, *(
            answer.headers[f"x-ratelimit-remaining-quota-{period}"]
            for period in ("minute", "month")
        )

    fake.order(FREECURRENCYAPI, Fault(), Fault(status=500))
    assert [left("/v1/elsewhere"), left()] == [(404, "2", "3"), (500, "2", "3")]
    assert [left(), left(), left()] == [(200, "1", "2"), (200, "0", "1"), (429, "0", "1")]
    now += timedelta(minutes=1)
    assert [left(), left()] == [(200, "1", "0"), (429, "1", "0")]
    now += timedelta(days=11)
    assert left() == (200, "1", "2")
    month = {"total": 3, "used": 1, "remaining": 2}
    assert ask(fake, "/v1/status") == (200, {"account_id": 1, "quotas": {"month": month}})
    assert left() == (200, "0", "1")
    assert fake.count() == len(fake.calls) - 1  # that of the status is none


# Frankfurter.


@pytest.mark.parametrize(
    ("query", "code", "days"),
    [
        ("date=2021-05-18", "UAH", ["2021-05-17"]),
        ("date=2021-05-16", "USD", ["2021-05-14"]),
        ("date=2021-05-14", "TMT", ["2021-05-01"]),
        ("date=2021-05-31", "TMT", []),  # carried forward for a fortnight, and no further
        *(("date=2009-12-31", "ZWL", []), ("date=2024-09-30", "ZWL", [])),
        *(("date=2023-01-02", "HRK", ["2022-12-31"]), ("date=2023-03-01", "HRK", [])),
        ("from=2021-05-15&to=2021-05-18", "USD", ["2021-05-14", "2021-05-17", "2021-05-18"]),
        ("", "AUD", ["2026-11-21"]),  # without a day it has the rows of tomorrow
        *(("from=2026-11-20", "AUD", ["2026-11-20"]), ("date=2030-01-01", "USD", [])),
    ],
)
def test_a_row_has_a_day_of_its_own(fake, query, code, days):
    _, rows = ask(fake, f"/v2/rates?quotes={code}&{query}", {})
    assert sorted({row["date"] for row in rows}) == days


# Coinbase.


def test_candles_come_newest_first_and_not_before_the_first_of_all(fake):
    _, candles = ask(fake, f"/{CANDLES}&start=2015-04-20T00:00:00Z&end=2015-04-24", {})
    days = [datetime.fromtimestamp(int(candle[0]), UTC).date() for candle in candles]
    assert days == [date(2015, 4, 24), date(2015, 4, 23)]
    assert [len(candle) for candle in candles] == [6, 6]
    assert str(candles[0][4]) == quote(COINBASE, "BTC", days[0])
    status, candles = ask(fake, f"/{CANDLES}&start=2021-01-01&end=2021-10-27", {})
    assert (status, len(candles)) == (200, 300)


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        *(("v1/historical", 422, "date"), ("v1/historical?date=2021-02-29", 422, "date")),
        ("v1/historical?date=1998-12-31", 422, "The date must be a date after 1999-01-01."),
        ("v1/historical?date=2026-11-20", 422, "The date must be a date before today."),
        *(("v1/latest?base_currency=BTC", 422, "base_currency"), ("v1/elsewhere", 404, "route")),
        ("v1/latest?currencies=EUR,UAH", 422, "currencies"),
        *(("v2/rates?date=yesterday", 422, "invalid date"), ("v2/elsewhere", 404, "not found")),
        ("v2/rates?from=2021-05-18&to=2021-05-17", 422, "invalid date"),
        ("v2/rates?symbols=USD", 422, "unknown parameter: symbols"),
        ("v2/rates?base=XXX", 422, "invalid currency: XXX"),
        (f"{CANDLES}&start=2021-01-01&end=2021-10-28", 400, "granularity too small"),
        *((f"{CANDLES}&start=2021-01-01", 400, "Invalid"), (f"{CANDLES}&end=soon", 400, "Invalid")),
        *((CANDLES.replace("BTC", coin), 404, "NotFound") for coin in ("XXX", "EUR")),
    ],
)
def test_what_is_not_valid_is_said(fake, target, status, said):
    answer = fake.answer(f"/{target}", KEY)
    assert answer.status == status
    assert said in json.dumps(json.loads(answer.body))


# All.


def test_calls_are_recorded(fake):
    fake.order(FRANKFURTER, Fault(), HANG)
    for target in (HISTORICAL, "/v2/rates", RATES):
        fake.answer(target, KEY if target == HISTORICAL else {})
    first, second, third = fake.calls
    assert (first.source, first.path) == (FREECURRENCYAPI, "/v1/historical")
    assert (first.key, first.at, first.status) == ("fca_live_s3cr3t", NOW, 200)
    assert (first.day, second.day, third.day) == ("2021-05-18", "2026-11-20", "2021-05-18")
    assert (second.key, second.status, third.status) == (None, 200, None)
    assert [fake.count(source) for source in (FREECURRENCYAPI, FRANKFURTER, None)] == [1, 2, 3]


def test_faults_come_in_their_order_and_then_as_disturb_says(fake):
    fake.order(FRANKFURTER, Fault(status=500), DRIP)
    fake.disturb = lambda call: CLOSE if call.day == "2021-05-18" else None
    answers = [fake.answer(target, KEY) for target in (HISTORICAL, *[RATES] * 3, "/v2/rates")]
    assert [answer.manner for answer in answers] == ["close", "whole", "drip", "close", "whole"]
    assert [answer.status for answer in answers] == [200, 500, 200, 200, 200]


def test_faults_spoil_what_they_say_and_nothing_else(fake):
    faults = [Fault(quotes={"USD": "NaN"}), Fault(base="USD"), Fault(empty=True), Fault(cut=20)]
    fake.order(FREECURRENCYAPI, *faults, Fault(zipped=True), NO_CALLS_THIS_MONTH, HUGE)
    answers = [fake.answer(HISTORICAL, KEY) for _ in range(8)]
    nan, dollar, empty, cut, zipped, month, huge, good = answers
    assert b'"USD":NaN' in nan.body
    assert b'"USD":1,' in dollar.body
    assert empty.body == b'{"data":{"2021-05-18":{}}}'
    assert cut.body == good.body[:20]
    assert zipped.headers["content-encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == good.body
    assert (month.status, month.headers["x-ratelimit-remaining-quota-month"]) == (429, "0")
    assert len(huge.body) == 30_000_000 + len(good.body)


def test_what_no_source_is_asked_for_is_a_404_and_no_call(fake):
    assert [fake.answer(path, {}).status for path in ("/v3/rates", "/v2")] == [404, 404]
    assert fake.calls == []
    assert fake.answer("/stats/eurofxref/eurofxref.csv", {}).status == 404
    with pytest.raises(TypeError, match="per_day"):
        FakeRates(lambda: NOW, per_day=1)


# On a port.


@pytest.mark.parametrize(
    ("request_text", "answers"),
    [
        (b"GET /v2/rates HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [b"200"]),
        (b"GET /v2/rates HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", [b"200"]),
        (b"GET /v2/nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 3, [b"404"] * 3),
        (b"garbage\r\n\r\n", []),
    ],
    ids=["wants it closed", "has a body", "keeps it open", "is no HTTP"],
)
async def test_a_connection_is_served_until_it_ends(request_text, answers):
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_rates, FakeRates())
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(request_text)
            await client.send_eof()
            got = b"".join([bytes(part) async for part in client])
        nursery.cancel_scope.cancel()
    assert [head[:3] for head in got.split(b"HTTP/1.1 ")[1:]] == answers
