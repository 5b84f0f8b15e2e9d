"""The fake sources behave like the real ones."""

import gzip
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import trio

from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI, NO_CALLS_THIS_MONTH
from ratebridge.fakes.rates import (
    CLOSE,
    DRIP,
    HANG,
    HTML,
    HUGE,
    FakeRates,
    Fault,
    quote,
    serve_rates,
)

NOW = datetime(2026, 11, 20, 12, 0, 20, tzinfo=UTC)
KEY = {"apikey": "fca_live_s3cr3t"}
HISTORICAL = "/v1/historical?date=2021-05-18&base_currency=EUR"
RATES = "/v2/rates?date=2021-05-18&base=EUR"


@pytest.fixture
def fake():
    return FakeRates(lambda: NOW)


def ask(fake, target, headers=KEY):
    answer = fake.answer(target, headers)
    return answer.status, json.loads(answer.body, parse_float=Decimal, parse_int=Decimal)


# freecurrencyapi.


def test_historical_is_nested_under_the_day_and_flat_below(fake):
    status, body = ask(fake, HISTORICAL)
    assert status == 200
    quotes = body["data"]["2021-05-18"]
    assert len(quotes) == 33
    assert quotes["EUR"] == 1
    assert 1.2 < quotes["USD"] < 1.25
    assert not {"UAH", "ZWL", "BTC"} & set(quotes)
    assert all(quote > 0 and -10 <= quote.as_tuple().exponent <= 0 for quote in quotes.values())


def test_latest_is_flat_and_has_neither_date_nor_base(fake):
    status, body = ask(fake, "/v1/latest?base_currency=EUR")
    assert status == 200
    assert body["data"]["EUR"] == 1
    assert len(body["data"]) == 33


def test_the_base_is_the_dollar_unless_another_is_asked_for(fake):
    _, body = ask(fake, "/v1/latest")
    assert body["data"]["USD"] == 1
    assert 0.8 < body["data"]["EUR"] < 0.85
    _, few = ask(fake, "/v1/latest?currencies=EUR,USD")
    assert few["data"] == {code: body["data"][code] for code in ("EUR", "USD")}


def test_a_weekend_stands_under_its_own_day(fake):
    status, body = ask(fake, "/v1/historical?date=2021-05-16")
    assert (status, list(body["data"])) == (200, ["2021-05-16"])


@pytest.mark.parametrize(
    "target",
    [
        *("/v1/historical", "/v1/historical?date=yesterday", "/v1/historical?date=1998-12-31"),
        *("/v1/historical?date=2026-11-20", "/v1/historical?date=2021-02-29"),
        *("/v1/latest?base_currency=BTC", "/v1/latest?currencies=EUR,UAH"),
    ],
)
def test_what_is_not_valid_is_a_422_that_names_the_field(fake, target):
    status, body = ask(fake, target)
    assert status == 422
    assert body["message"] == "Validation error"
    assert set(body["errors"]) <= {"date", "base_currency", "currencies"}


@pytest.mark.parametrize("path", ["/v1/elsewhere", "/stats/eurofxref/eurofxref.csv"])
def test_an_unknown_path_is_a_404(fake, path):
    assert fake.answer(path, KEY).status == 404


def test_without_a_key_or_with_another_it_is_a_401():
    fake = FakeRates(lambda: NOW, key="fca_live_s3cr3t")
    refusal = (401, {"message": "Invalid authentication credentials"})
    assert ask(fake, HISTORICAL, {}) == refusal
    assert ask(fake, HISTORICAL, {"apikey": "other"}) == refusal
    assert ask(fake, f"{HISTORICAL}&apikey=fca_live_s3cr3t", {})[0] == 200
    assert ask(fake, HISTORICAL)[0] == 200
    assert [call.key for call in fake.calls] == [None, "other", None, "fca_live_s3cr3t"]


def test_a_plan_may_allow_the_dollar_only():
    fake = FakeRates(lambda: NOW, dollar_only=True)
    assert ask(fake, "/v1/latest?base_currency=EUR")[0] == 403
    assert ask(fake, "/v1/latest?base_currency=USD")[0] == 200
    assert ask(fake, "/v1/latest")[0] == 200


def test_good_calls_count_and_the_headers_tell_what_is_left():
    now = NOW
    fake = FakeRates(lambda: now, per_minute=2, per_month=3)

    def left(target="/v1/latest"):
        answer = fake.answer(target, KEY)
        return answer.status, *(
            answer.headers[f"x-ratelimit-remaining-quota-{period}"]
            for period in ("minute", "month")
        )

    assert left("/v1/elsewhere") == (404, "2", "3")
    assert left() == (200, "1", "2")
    fake.order(FREECURRENCYAPI, Fault(status=500))
    assert left() == (500, "1", "2")
    assert left() == (200, "0", "1")
    assert left() == (429, "0", "1")
    now += timedelta(minutes=1)
    assert left() == (200, "1", "0")
    assert left() == (429, "1", "0")
    now += timedelta(days=11)
    assert left() == (200, "1", "2")
    month = {"total": 3, "used": 1, "remaining": 2}
    assert ask(fake, "/v1/status") == (200, {"account_id": 1, "quotas": {"month": month}})
    assert left() == (200, "0", "1")


# Frankfurter.


def test_rates_are_rows_with_a_day_each(fake):
    status, rows = ask(fake, RATES, {})
    assert status == 200
    assert all(list(row) == ["date", "base", "quote", "rate"] for row in rows)
    assert {row["base"] for row in rows} == {"EUR"}
    by_code = {row["quote"]: row for row in rows}
    assert len(by_code) > 55
    assert {"UAH", "ZWL"} < set(by_code)
    assert "BTC" not in by_code
    assert by_code["EUR"]["rate"] == 1
    assert by_code["USD"]["date"] == "2021-05-18"
    assert by_code["UAH"]["date"] == "2021-05-17"
    assert min(row["rate"].as_tuple().exponent for row in rows) == -5
    assert len(by_code["UZS"]["rate"].as_tuple().digits) > 5
    _, rows = ask(fake, "/v2/rates?date=2021-05-18&base=VND&quotes=KWD", {})
    assert [str(row["rate"]) for row in rows] == ["0.000013"]


def test_a_weekend_gets_the_rows_of_the_working_day_before(fake):
    _, rows = ask(fake, "/v2/rates?date=2021-05-16", {})
    assert {row["date"] for row in rows if row["quote"] in ("USD", "UAH")} == {
        "2021-05-14",
        "2021-05-13",
    }


@pytest.mark.parametrize(
    ("day", "quoted_on"),
    [("2021-05-14", "2021-05-01"), ("2021-05-15", "2021-05-15"), ("2021-05-31", None)],
)
def test_a_row_is_carried_forward_for_a_fortnight(fake, day, quoted_on):
    _, rows = ask(fake, f"/v2/rates?date={day}&quotes=TMT", {})
    assert [row["date"] for row in rows] == ([quoted_on] if quoted_on else [])


@pytest.mark.parametrize(
    ("currency", "day", "there"),
    [
        ("ZWL", "2009-12-31", False),
        ("ZWL", "2010-01-04", True),
        ("ZWL", "2024-09-30", False),
        ("HRK", "2022-12-30", True),
        ("HRK", "2023-03-01", False),
        ("BGN", "2025-12-31", True),
    ],
)
def test_a_currency_has_its_time(fake, currency, day, there):
    _, rows = ask(fake, f"/v2/rates?date={day}", {})
    assert (currency in {row["quote"] for row in rows}) is there


def test_without_a_day_it_can_hold_tomorrows_rows(fake):
    _, rows = ask(fake, "/v2/rates", {})
    assert {row["date"] for row in rows if row["quote"] in ("AUD", "USD")} == {
        "2026-11-21",
        "2026-11-20",
    }


@pytest.mark.parametrize(
    ("target", "status", "message"),
    [
        ("/v2/rates?date=yesterday", 422, "invalid date"),
        ("/v2/rates?symbols=USD", 422, "unknown parameter: symbols"),
        ("/v2/rates?base=XXX", 422, "invalid currency: XXX"),
        ("/v2/elsewhere", 404, "not found"),
    ],
)
def test_its_errors_hold_status_and_message_and_are_not_stored(fake, target, status, message):
    answer = fake.answer(target, {})
    assert answer.status == status
    assert answer.headers["cache-control"] == "no-store"
    assert json.loads(answer.body) == {"status": status, "message": message}


def test_the_far_future_is_an_empty_list(fake):
    assert ask(fake, "/v2/rates?date=2030-01-01", {}) == (200, [])


# All.


def test_rates_are_the_same_each_time_and_differ_a_little_between_the_sources():
    day = date(2021, 5, 18)
    ours, theirs = (Decimal(quote(source, "USD", day)) for source in (FREECURRENCYAPI, FRANKFURTER))
    assert Decimal(quote(FREECURRENCYAPI, "USD", day)) == ours
    assert 0 < abs(ours - theirs) / ours < Decimal("0.0035")
    assert Decimal(quote(FREECURRENCYAPI, "USD", date(2021, 5, 19))) != ours


def test_calls_are_recorded(fake):
    fake.answer(HISTORICAL, KEY)
    fake.answer("/v2/rates", {})
    fake.order(FRANKFURTER, HANG)
    fake.answer(RATES, {})
    first, second, third = fake.calls
    assert (first.source, first.path, first.day) == (
        FREECURRENCYAPI,
        "/v1/historical",
        "2021-05-18",
    )
    assert first.params == {"date": "2021-05-18", "base_currency": "EUR"}
    assert (first.key, first.at, first.status) == ("fca_live_s3cr3t", NOW, 200)
    assert (second.key, second.day, second.status) == (None, "2026-11-20", 200)
    assert third.status is None
    assert [fake.count(source) for source in (FREECURRENCYAPI, FRANKFURTER, None)] == [1, 2, 3]


def test_faults_come_in_their_order_and_then_as_disturb_says(fake):
    fake.order(FRANKFURTER, Fault(status=500), HTML)
    fake.disturb = lambda call: CLOSE if call.day == "2021-05-18" else None
    assert fake.answer(HISTORICAL, KEY).manner == "close"
    assert fake.answer(RATES, {}).status == 500
    assert fake.answer(RATES, {}).body.startswith(b"<!DOCTYPE html>")
    assert fake.answer(RATES, {}).manner == "close"
    assert fake.answer("/v2/rates", {}).manner == "whole"


def test_faults_spoil_what_they_say_and_nothing_else(fake):
    fake.order(
        FREECURRENCYAPI,
        Fault(quotes={"USD": "NaN"}),
        Fault(base="USD"),
        Fault(empty=True),
        Fault(cut=20),
        Fault(zipped=True),
        NO_CALLS_THIS_MONTH,
        DRIP,
        HUGE,
    )
    answers = [fake.answer(HISTORICAL, KEY) for _ in range(9)]
    nan, dollar, empty, cut, zipped, month, drip, huge, good = answers
    assert b'"USD":NaN' in nan.body
    assert b'"USD":1,' in dollar.body
    assert empty.body == b'{"data":{"2021-05-18":{}}}'
    assert cut.body == good.body[:20]
    assert zipped.headers["content-encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == good.body
    assert (month.status, month.headers["x-ratelimit-remaining-quota-month"]) == (429, "0")
    assert (drip.manner, drip.body) == ("drip", good.body)
    assert len(huge.body) == 30_000_000 + len(good.body)
    fake.order(FRANKFURTER, Fault(quotes={"UAH": "0"}, base="USD"), Fault(empty=True))
    rows = json.loads(fake.answer(RATES, {}).body)
    assert {row["base"] for row in rows} == {"USD"}
    assert {row["rate"] for row in rows if row["quote"] == "UAH"} == {0}
    assert fake.answer(RATES, {}).body == b"[]"


def test_what_no_source_is_asked_for_is_a_404_and_no_call(fake):
    assert fake.answer("/v3/rates", {}).status == 404
    assert fake.calls == []


def test_an_option_that_no_source_knows_is_a_mistake():
    with pytest.raises(TypeError, match="per_day"):
        FakeRates(lambda: NOW, per_day=1)


# On a port.


async def talk(request):
    """All that the fake answers to some bytes, until it closes."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_rates, FakeRates())
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(request)
            await client.send_eof()
            answer = b"".join([bytes(part) async for part in client])
        nursery.cancel_scope.cancel()
    return answer


async def test_a_client_that_wants_it_closed_gets_it_closed():
    answer = await talk(
        b"GET /v2/rates HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


async def test_requests_of_one_connection_are_answered_in_their_order():
    answer = await talk(b"GET /v2/nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    assert answer.count(b"HTTP/1.1 404") == 3


async def test_bytes_that_are_not_http_get_nothing():
    assert await talk(b"garbage\r\n\r\n") == b""
