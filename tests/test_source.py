"""What all sources do with a quote, an answer and a header."""

import threading
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from string import ascii_uppercase

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from ratebridge.errors import FetchOutcome, SourceFailed
from ratebridge.providers.source import (
    AT_A_TIME,
    MAX_ROWS,
    HttpAnswer,
    drop_euro,
    is_coarse,
    json_decoder,
    make_sheet,
    read_body,
    read_members,
    read_quote,
    read_rows,
)
from ratebridge.rates import Quote, Row

DAY, FRIDAY = date(2026, 11, 8), date(2026, 11, 6)
NOW = datetime(2026, 11, 20, tzinfo=UTC)
USD = ("USD", Raw(b"1.1616963437"), DAY)


# Quotes.


@pytest.mark.parametrize(
    "text", ["1", "1.0", "0.0000000001", "1e-10", "1E+10", "10000000000", "12.5e-3", "33.40"]
)
def test_a_number_in_range_is_a_quote_with_all_its_digits(text):
    quote = read_quote(Raw(text.encode()))
    assert quote is not None
    assert quote.as_tuple() == Decimal(text).as_tuple()


@pytest.mark.parametrize(
    "text",
    [
        *("0", "0.0", "-1.2", "-0", '"1.2"', '"NaN"', "null", "true", "{}", "[1]", "NaN", ""),
        *("1e-11", "0.00000000009", "1e11", "10000000000.1", "1e999999", "1e-999999"),
        *("1e99999999999999999999", "1." + "1" * 34, "9" * 81),
        *("1,2", "1_0", "01", "1.", "1 ", "1e", "\u0661"),
    ],
)
def test_anything_else_is_none(text):
    assert read_quote(Raw(text.encode())) is None


@given(st.decimals("1e-10", "1e10", allow_nan=False, places=10), st.integers(1, 10))
def test_coarse_is_what_the_fraction_says(number, places):
    number = round(number, places)
    if number > 0:
        last_digit = Fraction(1, 10 ** max(len(f"{number:f}".partition(".")[2]), 5))
        assert is_coarse(number) is (last_digit / Fraction(number) > Fraction(5, 10_000))


# Rows.


async def read(*rows):
    """The rows that are kept, as currencies and texts of a day."""
    return {
        day: {code: str(getattr(row, "units", row)) for code, row in of_day.items()}
        for day, of_day in (await read_rows(rows)).items()
    }


async def test_each_row_stands_on_its_own_day():
    older = ("USD", Raw(b"1.20"), FRIDAY)
    assert await read(USD, older) == {DAY: {"USD": "1.1616963437"}, FRIDAY: {"USD": "1.20"}}


async def test_one_bad_quote_costs_that_quote_and_a_coarse_one_has_its_reason():
    assert await read(USD, ("GBP", Raw(b"0"), DAY), ("XAU", Raw(b"0.00027"), DAY)) == {
        DAY: {"USD": "1.1616963437", "XAU": "gives it in too few digits (0.00027)"}
    }


async def test_what_is_no_code_of_three_capitals_is_no_currency():
    names = ["", "US", "USDT", "usd", "U\u00a3D", "US1", "A" * 70_000]
    assert await read(USD, *((name, Raw(b"2"), DAY) for name in names)) == await read(USD)


async def test_an_answer_that_contradicts_itself_is_refused_whole():
    for texts in (b"0.85 0.86", b"0.85 null", b"null 0.85", b"0 0.85"):
        with pytest.raises(SourceFailed, match="different quotes for GBP on 2026-11-08") as caught:
            await read(USD, *(("GBP", Raw(text), DAY) for text in texts.split()))
        assert caught.value.outcome == "bad-table"
    same = [("GBP", Raw(text), DAY) for text in (b"0.85", b"0.850", b"85e-2")]
    assert (await read(*same))[DAY].keys() == {"GBP"}


async def test_a_day_has_five_hundred_rows_at_most():
    codes = [f"A{first}{second}" for first in ascii_uppercase for second in ascii_uppercase]
    rows = [(code, Raw(b"2"), day) for day in (FRIDAY, DAY) for code in codes[:MAX_ROWS]]
    assert [len(of_day) for of_day in (await read_rows(rows)).values()] == [MAX_ROWS, MAX_ROWS]
    with pytest.raises(SourceFailed, match="has over 500 rows for 2026-11-08") as caught:
        await read_rows([*rows, ("usd", Raw(b"2"), DAY)])
    assert caught.value.outcome == "bad-table"


@pytest.mark.parametrize("text", [b'"1.2"', b"null", b"-1", b"0"])
async def test_quotes_that_are_none_one_and_all_are_a_failure(text):
    assert await read_rows([]) == {}
    with pytest.raises(SourceFailed, match="gives quotes that are not JSON numbers") as caught:
        await read_rows([("USD", Raw(text), DAY), ("GBP", Raw(text), DAY)])
    assert caught.value.outcome == "bad-table"


async def test_other_tasks_run_between_the_rows_of_an_answer():
    rows = (("US", Raw(b"2"), date.fromordinal(n + 1)) for n in range(20 * AT_A_TIME))
    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_rows, rows)
        while nursery.child_tasks:
            await trio.lowlevel.checkpoint()
            turns += 1
    assert turns > 15


def test_the_euros_own_row_is_one_or_missing():
    dollar: dict[str, Row] = {"USD": Quote(Decimal("1.2"))}
    rows = {FRIDAY: {"EUR": Quote(Decimal("1.0")), **dollar}, DAY: dict(dollar)}
    drop_euro(rows)
    assert rows == {FRIDAY: dollar, DAY: dollar}
    for bad in (Quote(Decimal(2)), SourceFailed(FetchOutcome.COARSE, "gives it in few digits")):
        with pytest.raises(SourceFailed, match="another quote than 1 for EUR on 2026-11-08"):
            drop_euro({FRIDAY: {}, DAY: {"EUR": bad}})


# JSON.


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("body", ["[1,%s]", "[ %s ,2]", "[{},%s]", "[%s,%s]"])
def test_a_number_that_json_does_not_know_costs_that_number(text, body):
    answer = HttpAnswer(200, {}, body.replace("%s", text).encode())
    one, other = map(bytes, read_body(json_decoder(list[Raw]), answer))
    assert b"null" in (one, other)


@pytest.mark.parametrize("body", ["[NaN1]", "[nan]", "[1,+NaN]", "[Infinity.0]", "NaN"])
def test_what_only_looks_like_one_spoils_the_body(body):
    with pytest.raises(SourceFailed, match="something else than rates"):
        read_body(json_decoder(list[Raw]), HttpAnswer(200, {}, body.encode()))


def test_members_come_in_their_order_with_those_of_the_same_name():
    text = b'{"EUR": 1, "USD": 1.20, "USD": 12e-1, "GBP": "0.8", "x": {"CZK": 25}, "JPY": null}'
    assert [(name, bytes(raw)) for name, raw in read_members(Raw(text))] == [
        *(("EUR", b"1"), ("USD", b"1.20"), ("USD", b"12e-1")),
        *(("GBP", b""), ("x", b""), ("JPY", b"")),
    ]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        *((text, "bad-body") for text in (b"[]", b"1", b'{"\xff":1}', b'{"a":' + b"[" * 60_000)),
        (b'{"EUR":1' + b" " * 65_536 + b"}", "bad-table"),
    ],
)
def test_what_is_no_object_of_members_is_a_failure(text, outcome):
    with pytest.raises(SourceFailed) as caught:
        read_members(Raw(text))
    assert caught.value.outcome == outcome


# Headers.


MIDNIGHT = "Fri, 20 Nov 2026 00:00:00 GMT"
HALF_PAST = "Fri, 20 Nov 2026 00:30:00 GMT"


@pytest.mark.parametrize(
    ("headers", "clock"),
    [
        ({"date": MIDNIGHT}, NOW),
        ({"date": "Fri, 20 Nov 2026 02:00:00 +0200", "age": "-1"}, NOW),
        ({"date": "Fri, 20 Nov 2026 00:00:00", "age": "old"}, NOW),
        ({"date": MIDNIGHT, "age": "60"}, None),  # some caches make it the present one
        *(({"date": bad}, None) for bad in ("", "soon", "0" * 41, "31 Dec 9999 23:59:59 -1")),
        ({}, None),
    ],
)
def test_a_sheet_tells_the_time_by_its_sources_clock(headers, clock):
    rows = {DAY: {"USD": Quote(Decimal("1.2"))}}
    assert make_sheet("fake", "x", (DAY, DAY), rows, NOW, headers).source_clock == clock


@pytest.mark.parametrize(
    ("status", "outcome", "again", "wait"),
    [
        *((204, "http-other", False, None), (301, "http-other", False, None)),
        *((404, "http-4xx", False, None), (422, "http-4xx", False, None)),
        *((429, "http-4xx", True, 1800.0), (500, "http-5xx", True, None)),
        *((502, "http-5xx", True, None), (503, "http-5xx", True, 1800.0)),
    ],
)
def test_a_status_is_a_failure_and_two_of_them_say_when_to_come_back(status, outcome, again, wait):
    headers = {"retry-after": HALF_PAST, "date": MIDNIGHT}
    with pytest.raises(SourceFailed, match=f"answered HTTP {status}") as caught:
        read_body(bytes, HttpAnswer(status, headers, b""))
    assert (caught.value.outcome, caught.value.again) == (outcome, again)
    assert caught.value.limited_for == wait
    with pytest.raises(SourceFailed) as caught:
        read_body(bytes, HttpAnswer(status, {}, b""))
    assert (caught.value.again, caught.value.limited_for) == (status >= 500, None)


def test_runs_in_several_threads_read_without_each_other():
    """As in programs that call `convert_sync` in threads: both are within their reading at once."""
    both = threading.Barrier(2, timeout=5)

    def rows():
        both.wait()
        yield USD

    read: list[object] = []
    runs = [
        threading.Thread(target=lambda: read.append(trio.run(read_rows, rows())), daemon=True)
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(10)
    assert read == [{DAY: {"USD": Quote(Decimal("1.1616963437"))}}] * 2
