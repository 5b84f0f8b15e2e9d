"""What all sources do with a quote, a table and a header."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from string import ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from ratebridge.errors import SourceFailed
from ratebridge.providers.source import (
    LONGEST_WAIT,
    MAX_AGE,
    MAX_ROWS,
    Answer,
    is_coarse,
    json_decoder,
    make_table,
    read_body,
    read_count,
    read_members,
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


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("body", ["[1,%s]", "[ %s ,2]", "[{},%s]", "[%s,%s]"])
def test_a_number_that_json_does_not_know_costs_that_number(text, body):
    decode = json_decoder(list[Raw])
    pair = read_body(decode, Answer(200, {}, body.replace("%s", text).encode()))
    assert b"null" in map(bytes, pair)
    assert len(pair) == 2


@pytest.mark.parametrize("body", ["[NaN1]", "[nan]", "[1,+NaN]", "[Infinity.0]", "NaN"])
def test_what_only_looks_like_one_spoils_the_body(body):
    with pytest.raises(SourceFailed, match="something else than rates"):
        read_body(json_decoder(list[Raw]), Answer(200, {}, body.encode()))


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


# What is too coarse.


@pytest.mark.parametrize("text", ["0.00027", "0.01999", "0.000275", "2e-4", "0.0199", "0.000001"])
def test_a_quote_of_which_a_digit_is_worth_more_than_a_twentieth_percent_is_coarse(text):
    assert is_coarse(Decimal(text))


@pytest.mark.parametrize(
    "text",
    [
        *("1", "1.0", "1.1", "7", "0.5", "25.4", "2", "0.86", "17450", "1.745e4"),  # zeros cut off
        *("0.02", "0.0273", "0.3671", "0.0002747", "0.00027466", "0.0000173512"),
    ],
)
def test_trailing_zeros_that_json_cuts_off_make_no_quote_coarse(text):
    assert not is_coarse(Decimal(text))


@given(st.decimals("1e-10", "1e10", allow_nan=False, places=10), st.integers(1, 10))
def test_coarse_is_what_the_fraction_says(number, places):
    number = round(number, places)
    if number > 0:
        last_digit = Fraction(1, 10 ** max(places_written(number), 5))
        assert is_coarse(number) is (last_digit / Fraction(number) > Fraction(5, 10_000))


def places_written(number):
    return len(f"{number:f}".partition(".")[2])


def test_a_coarse_quote_is_left_out_with_its_reason():
    table = make_table("fake", DAY, NOW, [*GOOD, ("XAU", Raw(b"0.00027"), DAY)])
    assert set(table.quotes) == {"EUR", "USD"}
    assert [(code, str(why)) for code, why in table.refused.items()] == [
        ("XAU", "gives it in too few digits (0.00027)")
    ]


# Contradictions.


def rows(*more):
    return [*GOOD, *((code, Raw(text), day) for code, text, day in more)]


CONTRADICTIONS = [
    ([("GBP", b"0.85", DAY), ("GBP", b"0.86", DAY)], "two different quotes for GBP"),
    ([("GBP", b"0.85", DAY), ("GBP", b"0.86", date(2026, 1, 1))], "two different quotes for GBP"),
    ([("GBP", b"0.85", DAY), ("GBP", b"null", DAY)], "two different quotes for GBP"),
    ([("GBP", b"null", DAY), ("GBP", b"0.85", DAY)], "two different quotes for GBP"),
    ([("EUR", b"0.9", DAY)], "two different quotes for EUR"),
]


@pytest.mark.parametrize(("more", "why"), CONTRADICTIONS)
def test_a_table_that_contradicts_itself_is_refused_whole(more, why):
    with pytest.raises(SourceFailed, match=why) as caught:
        make_table("fake", DAY, NOW, rows(*more))
    assert caught.value.outcome == "bad-table"


@pytest.mark.parametrize(
    ("euro", "dollar", "good"),
    [(b"1", b"1.2", True), (b"0.9", b"1", True), (b"0.9", b"1.2", False)],
    ids=["of the euro", "of the dollar", "of neither"],
)
def test_a_table_is_for_one_of_its_base(euro, dollar, good):
    table = [("EUR", Raw(euro), DAY), ("USD", Raw(dollar), DAY), ("GBP", Raw(b"0.8"), DAY)]
    if good:
        assert len(make_table("fake", DAY, NOW, table, bases=("EUR", "USD")).quotes) == 3
    else:
        with pytest.raises(SourceFailed, match="no quote of 1 for its own base"):
            make_table("fake", DAY, NOW, table, bases=("EUR", "USD"))


def test_the_same_quote_twice_is_no_contradiction_and_the_younger_counts():
    older = date(2026, 11, 6)
    for days in [(older, DAY), (DAY, older)]:
        table = make_table("fake", DAY, NOW, rows(*(("GBP", b"0.850", day) for day in days)))
        assert table.quotes["GBP"].day == DAY


# What is no table.


def test_what_is_no_code_of_three_capitals_is_no_currency():
    names = ["", "US", "USDT", "usd", "U\u00a3D", "US1", "A" * 70_000]
    table = make_table("fake", DAY, NOW, rows(*((name, b"2", DAY) for name in names)))
    assert set(table.quotes) == {"EUR", "USD"}


def test_a_table_has_five_hundred_rows_at_most():
    codes = [f"A{first}{second}" for first in ascii_uppercase for second in ascii_uppercase]
    table = [*GOOD, *((code, Raw(b"2"), DAY) for code in codes)]
    assert len(make_table("fake", DAY, NOW, table[:MAX_ROWS]).quotes) == MAX_ROWS
    with pytest.raises(SourceFailed, match="over 500 rows") as caught:
        make_table("fake", DAY, NOW, table[: MAX_ROWS + 1])
    assert caught.value.outcome == "bad-table"


def test_members_come_in_their_order_with_those_of_the_same_name():
    text = b'{"EUR": 1, "USD": 1.20, "USD": 12e-1, "GBP": "0.8", "x": {"CZK": 25}, "JPY": null}'
    assert [(name, bytes(raw)) for name, raw in read_members(Raw(text))] == [
        ("EUR", b"1"),
        ("USD", b"1.20"),
        ("USD", b"12e-1"),
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


@pytest.mark.parametrize(
    ("header", "count"),
    [("7", 7), ("0", 0), ("-1", -1), ("9" * 12, 10**12 - 1)],
)
def test_a_count_is_a_whole_number(header, count):
    assert read_count(header) == count


@pytest.mark.parametrize("header", [None, "", "many", "1.5", "1_0", "\u0661", " 7", "9" * 13])
def test_anything_else_is_no_count(header):
    assert read_count(header) is None


MIDNIGHT = "Fri, 20 Nov 2026 00:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "made", "clock"),
    [
        ({"date": MIDNIGHT}, NOW, NOW),
        ({"date": "Fri, 20 Nov 2026 02:00:00 +0200", "age": "-1"}, NOW, NOW),
        *(({"date": MIDNIGHT, "age": none}, NOW, NOW) for none in ("0", "old")),
        # Some caches leave the date as it was, others make it the present one.
        ({"date": MIDNIGHT, "age": "60"}, NOW - timedelta(seconds=60), None),
        ({"date": MIDNIGHT, "age": "9" * 12}, NOW - timedelta(seconds=MAX_AGE), None),
        *(({"date": bad, "age": "60"}, None, None) for bad in ("", "soon", "0" * 41)),
        ({}, None, None),
    ],
)
def test_a_table_tells_the_time_by_its_sources_clock(headers, made, clock):
    table = make_table("fake", DAY, NOW, GOOD, headers=headers)
    assert (table.made, table.source_clock) == (made, clock)


def test_the_oldest_answer_is_of_a_day_there_is():
    headers = {"date": "Mon, 01 Jan 100 00:00:00 GMT", "age": "9" * 12}
    assert make_table("fake", DAY, NOW, GOOD, headers=headers).made is not None


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
