"""The fake sources refuse what the real ones refuse, and do wrong what they are told to.

How they answer is seen in the tests of the sources that ask them.
"""

import json
from datetime import UTC, datetime

import pytest
import trio

from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI
from ratebridge.fakes.rates import CLOSE, DRIP, HANG, FakeRates, Fault, serve_rates

NOW = datetime(2026, 11, 20, 12, 0, 20, tzinfo=UTC)
KEY = {"apikey": "fca_live_s3cr3t"}
HISTORICAL = "/v1/historical?date=2021-05-18&base_currency=EUR"
RATES = "/v2/rates?from=2021-05-18&to=2021-05-18&base=EUR"
CANDLES = "coinbase/products/BTC-EUR/candles?granularity=86400"


@pytest.fixture
def fake():
    return FakeRates(lambda: NOW)


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        *(("v1/historical", 422, "date"), ("v1/historical?date=2021-02-29", 422, "date")),
        *((f"v1/historical?date={day}", 422, "date") for day in ("1998-12-31", "2026-11-20")),
        *(("v1/latest?base_currency=BTC", 422, "base_currency"), ("v1/elsewhere", 404, "route")),
        *(("v2/rates?from=yesterday", 422, "invalid date"), ("v2/elsewhere", 404, "not found")),
        ("v2/rates?from=2021-05-18&to=2021-05-17", 422, "invalid date"),
        ("v2/rates?symbols=USD", 422, "unknown parameter: symbols"),
        ("v2/rates?base=XXX", 422, "invalid currency: XXX"),
        (f"{CANDLES}&start=2021-01-01&end=2021-10-28", 400, "granularity too small"),
        *((f"{CANDLES}&start=2021-01-01", 400, "Invalid"), (f"{CANDLES}&end=soon", 400, "Invalid")),
        *((CANDLES.replace("BTC", coin), 404, "NotFound") for coin in ("XXX", "EUR")),
        ("stats/eurofxref/eurofxref.csv", 404, "not found"),
    ],
)
def test_what_is_not_valid_is_said(fake, target, status, said):
    answer = fake.answer(f"/{target}", KEY)
    assert answer.status == status
    assert said in json.dumps(json.loads(answer.body))


def test_calls_are_recorded_and_what_no_source_is_asked_for_is_none(fake):
    fake.order(FRANKFURTER, Fault(), HANG)
    for target in (HISTORICAL, "/v2/rates", RATES, "/v1/status"):
        fake.answer(target, KEY if target == HISTORICAL else {})
    assert [fake.answer(path, {}).status for path in ("/v3/rates", "/v2")] == [404, 404]
    first, second, third, _ = fake.calls
    assert (first.source, first.path) == (FREECURRENCYAPI, "/v1/historical")
    assert (first.params["date"], first.key, first.at) == ("2021-05-18", KEY["apikey"], NOW)
    assert (second.key, first.status, second.status, third.status) == (None, 200, 200, 200)
    assert [fake.count(source) for source in (FREECURRENCYAPI, FRANKFURTER, None)] == [1, 2, 3]
    assert FakeRates(lambda: NOW, per_minute=0).answer(HISTORICAL, KEY).status == 429


def test_faults_come_in_their_order_and_then_as_disturb_says(fake):
    fake.order(FRANKFURTER, Fault(status=500), DRIP)
    fake.disturb = lambda call: CLOSE if call.params else None
    answers = [fake.answer(target, KEY) for target in (HISTORICAL, *[RATES] * 3, "/v2/rates")]
    assert [answer.manner for answer in answers] == ["close", "whole", "drip", "close", "whole"]
    assert [answer.status for answer in answers] == [200, 500, 200, 200, 200]


@pytest.mark.parametrize(
    ("request_text", "answers"),
    [
        (b"GET /v2/rates HTTP/1.1\r\nHost: x\r\n\r\n" * 2, [b"200"]),
        *((bad, []) for bad in (b"garbage\r\n\r\n", b"")),
    ],
    ids=["two", "no HTTP", "nothing"],
)
async def test_a_connection_is_served_once_and_ends(request_text, answers):
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_rates, FakeRates())
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(request_text)
            await client.send_eof()
            got = b"".join([bytes(part) async for part in client])
        nursery.cancel_scope.cancel()
    assert [head[:3] for head in got.split(b"HTTP/1.1 ")[1:]] == answers
