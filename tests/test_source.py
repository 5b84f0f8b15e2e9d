"""What all sources do with a quote, a table and a header."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from msgspec import Raw

from ratebridge.errors import SourceFailed
from ratebridge.providers.source import (
    LONGEST_WAIT,
    make_table,
    read_count,
    read_quote,
    retry_after,
)
from ratebridge.rates import Quote

DAY = date(2026, 11, 8)
NOW = datetime(2026, 11, 20, tzinfo=UTC)
GOOD = [("EUR", Raw(b"1"), DAY), ("USD", Raw(b"1.1616963437"), DAY)]


@pytest.mark.parametrize(
    "text", ["1", "1.0", "0.0000000001", "1e-10", "1E+10", "10000000000", "12.5e-3"]
)
def test_a_number_in_range_is_a_quote(text):
    assert read_quote(Raw(text.encode())) == Decimal(text)


def test_a_quote_keeps_its_digits():
    quote = read_quote(Raw(b"33.40"))
    assert quote is not None
    assert quote.as_tuple() == Decimal("33.40").as_tuple()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "0",
            "0.0",
            "-1.2",
            "-0",
            '"1.2"',
            '"NaN"',
            "null",
            "true",
            "{}",
            "[1]",
            "NaN",
            "Infinity",
            "",
        ),
        *("1e-11", "0.00000000009", "1e11", "10000000000.1", "1e999999", "1e-999999"),
        *("1e99999999999999999999", "1." + "1" * 34, "9" * 81),
    ],
)
def test_anything_else_is_none(text):
    assert read_quote(Raw(text.encode())) is None


def test_a_table_holds_each_quote_with_its_day():
    friday = date(2026, 11, 6)
    table = make_table("fake", DAY, NOW, [*GOOD, ("UAH", Raw(b"33.4"), friday)])
    assert (table.provider, table.day, table.fetched) == ("fake", DAY, NOW)
    assert table.quotes == {
        "EUR": Quote(Decimal(1), DAY),
        "USD": Quote(Decimal("1.1616963437"), DAY),
        "UAH": Quote(Decimal("33.4"), friday),
    }


@pytest.mark.parametrize(
    ("quoted_on", "kept"),
    [
        (date(2026, 11, 2), False),
        (date(2026, 11, 3), True),
        (date(2026, 11, 8), True),
        (date(2026, 11, 9), False),
    ],
    ids=["six days before", "five days before", "that day", "the day after"],
)
def test_a_quote_of_another_day_is_left_out(quoted_on, kept):
    table = make_table("fake", DAY, NOW, [*GOOD, ("UAH", Raw(b"33.4"), quoted_on)])
    assert ("UAH" in table.quotes) is kept


def test_one_bad_quote_costs_that_quote():
    table = make_table("fake", DAY, NOW, [*GOOD, ("GBP", Raw(b"0"), DAY)])
    assert set(table.quotes) == {"EUR", "USD"}


@pytest.mark.parametrize("rows", [[], GOOD[:1], GOOD[1:]], ids=["nothing", "EUR only", "no EUR"])
def test_a_table_of_no_use_is_a_failure(rows):
    with pytest.raises(SourceFailed) as caught:
        make_table("fake", DAY, NOW, rows)
    assert caught.value.outcome == "bad-table"
    assert str(caught.value) == "has no usable table for 2026-11-08"


@pytest.mark.parametrize(
    ("header", "count"),
    [("7", 7), ("0", 0), ("-1", -1), ("9" * 12, 10**12 - 1)],
)
def test_a_count_is_a_whole_number(header, count):
    assert read_count(header) == count


@pytest.mark.parametrize("header", [None, "", "many", "1.5", "1_0", "\u0661", " 7", "9" * 13])
def test_anything_else_is_no_count(header):
    assert read_count(header) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": "999999999"}, LONGEST_WAIT),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:00 GMT"}, None),
        ({"retry-after": "\u00b2"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_taken_in_seconds(headers, seconds):
    assert retry_after(headers) == seconds
