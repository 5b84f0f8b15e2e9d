"""Frames in and out: the table of bad messages, and properties over generated ones."""

import itertools
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import bad_messages
import pytest
from bad_messages import BadMessage, message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ratebridge import messages
from ratebridge.conversion import plain, rounded
from ratebridge.dates import BadDate, parse_instant
from ratebridge.errors import Refused, Unreadable
from ratebridge.messages import (
    HEARTBEAT,
    THE_HEARTBEAT,
    Heartbeat,
    Request,
    clipped,
    decode,
    encode_error,
    encode_reply,
    parse_stake,
    quoted,
)

SAMPLE = (
    b'{"type":"message","id":456,"payload":{"marketId":123456,"selectionId":987654,"odds":2.2,'
    b'"stake":253.67,"currency":"USD","date":"2021-05-18T21:32:42.324Z"}}'
)
DATE = "2021-05-18T21:32:42.412Z"


def read(frame: bytes) -> Heartbeat | Request | Refused | Unreadable:
    """The result of a frame; any other exception fails the test."""
    try:
        return decode(frame)
    except (Refused, Unreadable) as problem:
        return problem


def request(frame: bytes) -> Request:
    found = decode(frame)
    assert isinstance(found, Request)
    return found


def refusal(frame: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        decode(frame)
    return caught.value


def test_the_sample_is_understood():
    found = request(SAMPLE)
    assert found.id == b"456"
    assert str(found.stake) == "253.67"
    assert found.currency == "USD"
    assert found.instant == datetime(2021, 5, 18, 21, 32, 42, 324000, UTC)
    assert found.instant.tzinfo is UTC


def test_the_sample_is_answered_in_its_own_order_with_what_we_own_replaced():
    assert encode_reply(request(SAMPLE), "207.52054", DATE) == (
        b'{"type":"message","id":456,"payload":{"marketId":123456,"selectionId":987654,"odds":2.2,'
        b'"stake":207.52054,"currency":"EUR","date":"2021-05-18T21:32:42.412Z"}}'
    )


def test_an_error_is_what_the_protocol_says():
    assert encode_error(b"456", "the stake is missing") == (
        b'{"type":"error","id":456,'
        b'"message":"Unable to convert stake. Error: the stake is missing"}'
    )


def test_our_own_heartbeat_is_read_as_one():
    assert decode(HEARTBEAT) is THE_HEARTBEAT
    assert json.loads(HEARTBEAT) == {"type": "heartbeat"}


# The table.


@pytest.mark.parametrize("row", bad_messages.ALL, ids=lambda row: row.name)
def test_each_bad_message_is_converted_refused_or_dropped(row: BadMessage):
    found = read(row.frame)
    match row.outcome:
        case "heartbeat":
            assert found is THE_HEARTBEAT
        case "dropped":
            assert isinstance(found, Unreadable)
            assert found.reason == row.word
        case "converted":
            assert isinstance(found, Request)
            assert found.id == row.id
            assert plain(rounded(found.stake)) == row.word
        case "refused" if row.late:
            assert isinstance(found, Request)
        case "refused":
            assert isinstance(found, Refused)
            assert found.id == row.id
            assert row.word in found.text
            assert found.kind in {"bad-message", "bad-stake", "bad-currency", "bad-date"}
            assert found.text.isprintable()
            reply = encode_error(found.id, found.text)
            assert reply.startswith(b'{"type":"error","id":%b,"message":"' % row.id)
            assert len(json.loads(reply.replace(row.id, b"0", 1))["message"]) < 300


def test_the_table_names_each_row_once_and_says_truly_which_are_texts():
    assert len({row.name for row in bad_messages.ALL}) == len(bad_messages.ALL)
    for row in bad_messages.ALL:
        if row.utf8:
            row.frame.decode()
        else:
            with pytest.raises(UnicodeDecodeError):
                row.frame.decode()


def test_nothing_in_the_table_takes_long():
    """A frame of the table takes milliseconds at most; a bomb would take seconds to days."""

    def seconds(frame: bytes) -> float:
        began = time.perf_counter()
        read(frame)
        return time.perf_counter() - began

    slow = {
        row.name for row in bad_messages.ALL if min(seconds(row.frame) for _ in range(5)) > 0.05
    }
    assert slow == set()


# Which frames are answered, against the standard library.


def refuse_constant(name: str) -> None:
    raise ValueError(name)


def expected(frame: bytes) -> str:
    """What the protocol says of a short frame, told by `json`."""
    try:
        value = json.loads(
            frame.decode(), parse_int=str, parse_float=str, parse_constant=refuse_constant
        )
    except ValueError:
        return "dropped"
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "heartbeat":
        return "heartbeat"
    if kind == "message" and value.get("id") is not None:
        return "answered"
    return "dropped"


def came_of(frame: bytes) -> str:
    found = read(frame)
    if isinstance(found, Heartbeat):
        return "heartbeat"
    return "dropped" if isinstance(found, Unreadable) else "answered"


TOKENS = (
    *("{", "}", "[", "]", ",", ":", " ", "\n", '"', "\\", "null", "true", "1", "-2.50e+1", "NaN"),
    *('"type"', '"message"', '"heartbeat"', '"id"', '"payload"', '"\\ud83d"', '"\\ude00"', '"é"'),
    *('"type":"message"', '"id":7', '"payload":{', '"stake":1.5', '"currency":"EUR"'),
    *(
        '"date":"2021-05-18"',
        '"x":"\\ud83d\\ude00"',
        '"\\\\\\ud800":0',
        "\\u0000",
        "\x1b",
        "\ufeff",
    ),
)
SOUP = st.lists(st.sampled_from(TOKENS), max_size=14).map("".join)
MEMBERS = st.lists(st.sampled_from([t for t in TOKENS if ":" in t and not t.endswith("{")])).map(
    lambda parts: "{" + ",".join(parts) + "}"
)


@given(
    SOUP.map(str.encode)
    | MEMBERS.map(str.encode)
    | st.tuples(MEMBERS, SOUP).map(lambda p: (p[0][:-1] + "," + p[1] + "}").encode())
)
@example(b'{"type":"message","id":"\\ud83d","\\ud83d":1}')
@example(b'{"type":"message","id":7,"type":"heartbeat"}')
def test_which_frames_are_answered_agrees_with_the_standard_library(frame: bytes):
    assert came_of(frame) == expected(frame)


@given(
    st.sampled_from(
        [SAMPLE, HEARTBEAT, *(row.frame for row in bad_messages.ALL if len(row.frame) < 400)]
    ),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3)), max_size=5),
)
@example(SAMPLE, [(30, 0, b"\xff")])
@example(SAMPLE, [(4, 0, b"\xff")])
@example(SAMPLE, [(130, 0, b"\xff")])
def test_any_bytes_are_understood_refused_or_dropped(
    frame: bytes, edits: list[tuple[int, int, bytes]]
):
    for at, cut, put in edits:
        frame = frame[:at] + put + frame[at + cut :]
    found = read(frame)
    if isinstance(found, Refused):
        encode_error(found.id, found.text)
        assert found.text.isprintable()
    elif isinstance(found, Request):
        encode_reply(found, plain(rounded(found.stake)), DATE)


@given(st.binary())
@example(b"\0binary")
def test_whatever_bytes_come_are_answered_only_if_they_are_a_request(frame: bytes):
    assert came_of(frame) == expected(frame)


# The echo. The texts of all values are made here, so what must come back is known byte for byte.

SPACES = st.sampled_from(["", "", "", " ", "\n", "\t\r\n "])
DIGITS = st.text("0123456789", min_size=1, max_size=25)
NUMBERS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.just("0") | st.integers(1, 10**30).map(str),
    st.just("") | DIGITS.map(".{}".format),
    st.just("") | st.builds("{}{}".format, st.sampled_from(["e", "E+", "e-"]), DIGITS),
)
CHARACTERS = (
    *(r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t", r"\u00e9", r"\u0000", r"\uFFFF"),
    *(r"\uD83d\uDe00", "é", "\u2028", "\x7f", "\U0001f600", *"aZ 0 {[]},:'/"),
)
STRINGS = st.lists(st.sampled_from(CHARACTERS), max_size=12).map(
    lambda characters: f'"{"".join(characters)}"'
)
SCALARS = NUMBERS | STRINGS | st.sampled_from(["true", "false", "null"])


def padded(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds("{}{}{}".format, SPACES, inner, SPACES)


def containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.builds("{}:{}".format, padded(STRINGS), padded(values))
    return st.lists(padded(values), max_size=3).map(lambda v: f"[{','.join(v)}]") | st.lists(
        members, max_size=3
    ).map(lambda v: f"{{{','.join(v)}}}")


VALUES = SCALARS | st.recursive(SCALARS, containers, max_leaves=8)
OURS = ("type", "id", "payload", "stake", "currency", "date")
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda n: n not in OURS
)
OTHERS = st.dictionaries(NAMES, VALUES, max_size=4)


def shuffled(draw: st.DrawFn, members: dict[str, str]) -> list[tuple[str, str]]:
    return list(draw(st.permutations(list(members.items()))))


def object_text(draw: st.DrawFn, members: list[tuple[str, str]]) -> str:
    parts = [
        f"{draw(SPACES)}{json.dumps(name, ensure_ascii=draw(st.booleans()))}{draw(SPACES)}:"
        f"{draw(SPACES)}{value}{draw(SPACES)}"
        for name, value in members
    ]
    return f"{{{draw(SPACES)}{','.join(parts)}}}"


def compact(members: list[tuple[str, str]]) -> str:
    return (
        "{" + ",".join(f"{json.dumps(n, ensure_ascii=False)}:{value}" for n, value in members) + "}"
    )


@st.composite
def echoes(draw: st.DrawFn) -> tuple[bytes, bytes, str]:
    """A request, the reply that it must get, and its id."""
    message_id = draw(VALUES.filter(lambda text: text != "null"))
    inner = shuffled(
        draw,
        {
            "stake": draw(st.sampled_from(["253.67", "1e2", "-0"])),
            "currency": '"USD"',
            "date": '"2021-05-18T21:32:42.324Z"',
            **draw(OTHERS),
        },
    )
    outer = shuffled(draw, {"type": '"message"', "id": message_id, "payload": "", **draw(OTHERS)})
    ours = {"stake": "207.52054", "currency": '"EUR"', "date": f'"{DATE}"'}
    answered = compact([(name, ours.get(name, value)) for name, value in inner])
    sent = object_text(draw, inner)
    frame = object_text(draw, [(n, sent if n == "payload" else v) for n, v in outer])
    reply = compact([(n, answered if n == "payload" else v) for n, v in outer])
    return frame.encode(), reply.encode(), message_id


FEW = settings(max_examples=40)  # each example is a whole message


@FEW
@given(echoes())
def test_all_that_is_not_ours_comes_back_byte_for_byte(case: tuple[bytes, bytes, str]):
    frame, reply, message_id = case
    found = request(frame)
    assert found.id == message_id.encode()
    assert encode_reply(found, "207.52054", DATE) == reply


@FEW
@given(echoes())
def test_the_id_of_a_refused_request_comes_back_byte_for_byte(case: tuple[bytes, bytes, str]):
    frame, _, message_id = case
    found = refusal(frame.replace(b'"USD"', b'"\\ud800"'))
    assert encode_error(found.id, "x").startswith(
        b'{"type":"error","id":%b,"message":' % message_id.encode()
    )


@FEW
@given(echoes())
def test_a_reply_can_be_read_again(case: tuple[bytes, bytes, str]):
    reply = encode_reply(request(case[0]), "207.52054", DATE)
    again = request(reply)
    assert str(again.stake) == "207.52054"
    assert again.currency == "EUR"
    assert again.instant == datetime(2021, 5, 18, 21, 32, 42, 412000, UTC)
    assert encode_reply(again, "207.52054", DATE) == reply


# The usual spelling, which is read in a shorter way.

WORDS = st.integers(-9, 10**12).map(str) | st.sampled_from(
    ["2.20", "253.67000", "1.1234567", "-0", "-0.00", "01", "1e2", "-.5", "1.", '"1"', "null", ""]
)
DAYS = st.sampled_from(["2021-05-18", "2020-02-29", "2021-02-29", "0000-01-01", "2021-5-18"])
CLOCKS = st.sampled_from(
    [
        "00:00:00",
        "23:59:59.1",
        "21:32:42.123456",
        "21:32:42.1234567",
        "23:59:60",
        "24:00:00",
        "12:30",
    ]
)


@given(
    st.lists(WORDS, min_size=5, max_size=5),
    st.sampled_from(["USD", "EUR", "XXX", "usd", "US", "U.D", "USDT", "\u00c9UR"]),
    st.builds("{}T{}{}".format, DAYS, CLOCKS, st.sampled_from(["Z", "z", "", "+02:00"])),
)
@example(["456", "1", "2", "2.2", "253.67"], "USD", "2021-05-18T21:32:42.324Z")
@example(["0", "0", "0", "0", "-0.00"], "USD", "2020-02-29T23:59:59Z")
@example(["456", "1", "2", "2.2", "253.67"], "USD", "2021-02-29T21:32:42.324Z")
@example(["456", "1", "2", "2.2", "253.67"], "USD", "2021-05-18T23:59:60Z")
@example(["1", "01", "2", "2.2", "253.67"], "USD", "2021-05-18T21:32:42.324Z")
@example(["1", "1", "2", "02.2", "253.67"], "USD", "2021-05-18T21:32:42.324Z")
@example(["1", "1", "2", "2.2", "02.2"], "USD", "2021-05-18T21:32:42.324Z")
def test_the_usual_spelling_is_read_like_any_other(numbers: list[str], currency: str, date: str):
    number, market, selection, odds, stake = numbers
    usual = (
        f'{{"type":"message","id":{number},"payload":{{"marketId":{market},'
        f'"selectionId":{selection},"odds":{odds},"stake":{stake},"currency":"{currency}",'
        f'"date":"{date}"}}}}'
    )
    short = read(usual.encode())
    long = read(usual.replace(":", ": ", 1).encode())
    assert type(short) is type(long)
    if isinstance(short, Request):
        assert short == long
        assert str(short.stake) == str(long.stake)
    elif isinstance(short, Refused):
        assert str(short) == str(long)


def test_the_sample_has_the_usual_spelling(monkeypatch):
    monkeypatch.setattr(messages, "_read", None)
    assert request(SAMPLE).currency == "USD"
    with pytest.raises(TypeError):
        request(SAMPLE.replace(b":", b": ", 1))


def test_of_equal_names_the_last_counts_and_is_echoed_in_the_place_of_the_first():
    found = request(
        b'{"a":1,"type":"x","id":1,"payload":[],"type":"message","a":2.0,"id":"z","payload":'
        b'{"stake":"x","n":1,"currency":"USD","stake":2,"n":2.0,"date":"2021-05-18"}}'
    )
    assert found.id == b'"z"'
    assert encode_reply(found, "1.5", DATE) == (
        b'{"a":2.0,"type":"message","id":"z","payload":'
        b'{"stake":1.5,"n":2.0,"currency":"EUR","date":"2021-05-18T21:32:42.412Z"}}'
    )


def test_types_and_names_in_escapes_are_understood():
    found = request(
        SAMPLE.replace(b'"message"', b'"m\\u0065ssage"').replace(b'"id"', b'"\\u0069d"')
    )
    assert found.id == b"456"
    assert encode_reply(found, "1", DATE).startswith(b'{"type":"m\\u0065ssage","id":456,')


# Deep nesting.


def depth_of(text: str) -> int:
    """How many levels deep a JSON text is, told by the standard library."""

    def levels(value: Any) -> int:
        return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0

    values = json.loads(text, parse_int=str, object_pairs_hook=lambda pairs: [v for _, v in pairs])
    return levels(values)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("[", "]"),
        ('{"]}":', "}"),
        ('{"\\"[":', "}"),
        ("[0,", "]"),
        ("[[", "] ]"),
        ('[{"":', "}]"),
    ],
)
@pytest.mark.parametrize("id_first", [True, False])
def test_a_request_nested_too_deeply_is_answered_under_its_whole_id(
    opening: str, closing: str, id_first: bool
):
    def deep(levels: int) -> str:
        pairs = levels // depth_of(f"{opening}1{closing}")
        return opening * pairs + "1" + closing * pairs

    for id_levels, levels in itertools.product(
        (0, 2, 510, 512, 6_000), (0, 510, 512, 1_024, 1_200)
    ):
        message_id, more = deep(id_levels), deep(levels)
        if id_first:
            frame = message(id=message_id, more=f',"x":{more}')
        else:
            frame = b'{"x":%b,%b' % (more.encode(), message(id=message_id)[1:])
        allowed = id_levels + 1 <= 512 and levels + (2 if id_first else 1) <= 512
        found = read(frame)
        assert isinstance(found, Request if allowed else Refused)
        assert found.id == message_id.encode()
        assert allowed or str(found) == "the message is nested too deeply"


@contextmanager
def depth_bounded(levels: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "MAX_DEPTH", levels)
        yield


@FEW
@given(echoes(), st.integers(1, 6))
def test_a_message_is_converted_or_refused_by_its_depth(case: tuple[bytes, bytes, str], bound: int):
    frame, reply, message_id = case
    with depth_bounded(bound):
        found = read(frame)
    assert isinstance(found, Request if depth_of(frame.decode()) <= bound else Refused)
    assert found.id == message_id.encode()
    if isinstance(found, Request):
        assert encode_reply(found, "207.52054", DATE) == reply


@given(st.lists(st.sampled_from(TOKENS + ("[", "]", "{", "}", '"x":') * 4)), st.integers(1, 3))
@example(['{"type":"message","id":7,"x":', "[", "{", "[", "]", ":1", "}", "]", "}"], 2)
@example(['{"type":"message","id":7,"x":', "[", "[", "1", "]", "]", "]", "}"], 2)
def test_which_deep_frames_are_answered_agrees_with_the_standard_library(
    tokens: list[str], bound: int
):
    frame = "".join(tokens).encode()
    with depth_bounded(bound):
        assert came_of(frame) == expected(frame)


def test_the_deepest_message_fits_a_small_stack():
    frames = [row.frame for row in bad_messages.ALL if "deep" in row.name]
    assert len(frames) > 10
    before = threading.stack_size(128 * 1024)
    try:
        thread = threading.Thread(target=lambda: [read(frame) for frame in frames])
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)


# The currency.


@pytest.mark.parametrize("currency", ["AAA", "ZZZ", "CZK", "BTC", "EUR"])
def test_any_three_capital_letters_may_be_a_currency(currency: str):
    assert request(message(currency=f'"{currency}"')).currency == currency


# The stake.


NUMBER_TEXTS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.just("0") | st.integers(1, 10**20).map(str),
    st.just("") | st.text("0123456789", min_size=1, max_size=22).map(".{}".format),
    st.just("") | st.builds("{}{}".format, st.sampled_from(["e", "E+", "e-0"]), st.integers(0, 40)),
)


def in_bounds(text: str) -> bool:
    """The protocol's bounds, by whole numbers: see its "Exactness"."""
    mantissa, _, power = text.lower().partition("e")
    whole, _, places = mantissa.partition(".")
    exponent = int(power or "0") - len(places)
    coefficient = abs(int(whole + places))
    if coefficient == 0:
        return True
    return (
        len(str(coefficient)) <= 34
        and exponent > -20
        and coefficient * Fraction(10) ** exponent < 10**15
    )


@given(NUMBER_TEXTS)
@example("999999999999999.9999999999999999999")
@example("999999999999999.99999999999999999990")
@example("1000000000000000")
@example("0.0000000000000000001")
@example("0.00000000000000000010")
@example("10e-20")
@example("-1E-19")
@example("100e13")
@example("100e12")
def test_a_stake_is_taken_exactly_or_refused_by_the_bounds(text: str):
    if in_bounds(text):
        assert Fraction(parse_stake(text)) == Fraction(text)
        assert Fraction(request(message(text)).stake) == Fraction(text)
    else:
        with pytest.raises(ValueError, match=r"^is out of range$"):
            parse_stake(text)
        assert refusal(message(text)).text.endswith("is out of range")


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+", "1_000", " 1", "1 ", "1\n", "0x1"),
        *("NaN", "sNaN", "Infinity", "-inf", "1,5", '"1"', "true"),
        *("\uff11", "1e\u0661", "\u0661.5", "1.\u0662"),
    ],
)
def test_a_text_that_is_no_json_number_is_no_stake(text: str):
    with pytest.raises(ValueError, match=r"^is not a number$"):
        parse_stake(text)


# The date.


@pytest.mark.parametrize("day", ["2021-05-18", "2020-02-29", "1999-12-31", "9999-12-31"])
def test_a_fraction_of_a_second_never_leaves_its_second(day: str):
    """However a message is spelt, which is what chooses the way that a date is read."""
    rnd = random.Random(41)
    for clock, places in itertools.product(("00:00:00", "23:59:59", "12:34:56"), range(13)):
        for digits in {"9" * places, "5" * places, f"{rnd.random():.16f}"[2 : 2 + places]}:
            date = f"{day}T{clock}{'.' if places else ''}{digits}Z"
            begun = datetime.fromisoformat(f"{day}T{clock}+00:00")
            exact = Fraction(int(digits or "0"), 10**places)
            usual = SAMPLE.replace(b"2021-05-18T21:32:42.324Z", date.encode())
            for frame in (usual, usual.replace(b":", b": ", 1), message(date=f'"{date}"')):
                found = read(frame)
                if places > 9:
                    assert str(found) == f"date '{date}' is not an ISO 8601 date and time"
                else:
                    assert isinstance(found, Request)
                    assert found.instant == begun.replace(microsecond=int(exact * 10**6))


def any_date(rnd: random.Random) -> str:
    """A date, or what is nearly one; `test_dates` says which are."""
    day = rnd.choice(("2021-05-18", "2021-02-29", "0001-01-01", "9999-12-31", "0000-01-01"))
    clock = rnd.choice(("00:00", "23:59", "21:32", "24:00")) + rnd.choice(("", ":42", ":59", ":60"))
    places = rnd.choice(("", "", ".", f".{rnd.randrange(10 ** rnd.randrange(1, 11))}"))
    offset = rnd.choice(
        ("", "Z", "z", "+00:00", "-00:00", "+01:00", "-23:59", "+0530", "+05", "+24:00")
    )
    return f"{day}{rnd.choice('Tt ')}{clock}{places}{offset}" if rnd.random() < 0.95 else day


def test_a_date_in_a_message_means_what_it_means_alone():
    rnd = random.Random(40)
    for _ in range(4_000):
        text = any_date(rnd)
        spelt = "".join(f"\\u{ord(c):04x}" if rnd.random() < 0.02 else c for c in text)
        found = read(message(date=f'"{spelt}"'))
        try:
            expected: object = parse_instant(text)
        except BadDate as flaw:
            expected = f"date '{text}' {flaw}"
        if isinstance(found, Request):
            assert found.instant == expected
            assert found.instant.tzinfo is UTC
        else:
            assert str(found) == expected


# Error texts.


def test_an_error_text_tells_a_trader_what_is_wrong():
    texts = [
        refusal(frame).text
        for frame in (
            message("1e999999"),
            message('"2.20"'),
            message("9" * 50),
            message(currency='"usd"'),
            message(currency="840"),
            message(date='"2021-02-30"'),
            message(date='"yesterday\\n\\u001b[2J"'),
            message(date="0"),
            message(more=',"x":"\\ud83d"'),
            b'{"type":"message","id":7}',
        )
    ]
    assert texts == [
        "stake 1e999999 is out of range",
        'stake "2.20" is not a number',
        f"stake {'9' * 40}... is out of range",
        "currency 'usd' is not three capital letters",
        "currency 840 is not a string",
        "date '2021-02-30' is not a day",
        "date 'yesterday\\n\\x1b[2J' is not an ISO 8601 date and time",
        "date 0 is not a string",
        "the message holds half a surrogate pair",
        "the payload is not an object",
    ]


@given(VALUES, st.sampled_from(["stake", "currency", "date"]))
@example(json.dumps("\U000e0001" * 60), "currency")
@example('"' + "\\u0000" * 60 + '"', "date")
def test_an_error_is_one_line_under_300_characters_with_40_of_the_input(value: str, name: str):
    found = read(message(**{name: value.replace("\\uD83d", "")}))
    if isinstance(found, Refused):
        reply = json.loads(encode_error(found.id, found.text), parse_int=str)
        assert reply["message"].isprintable()
        assert len(reply["message"]) < 300
        shown = reply["message"].replace("...", "")  # or a point of theirs is taken for the value's
        assert value[:41] not in shown or len(value) <= 40


@given(st.text(), SCALARS)
def test_an_error_text_of_any_length_is_cut_below_300(text: str, message_id: str):
    text *= 40
    reply: dict[str, Any] = json.loads(
        encode_error(message_id.encode(), text), parse_int=str, parse_float=str
    )
    whole = f"Unable to convert stake. Error: {text}"
    if len(whole) < 300:
        assert reply["message"] == whole
    else:
        assert reply["message"] == whole[:296] + "..."


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 60))
def test_what_is_clipped_is_harmless_and_short(text: str, most: int):
    for given_as in (text, text.encode()):
        found = clipped(given_as, most)
        assert found.isprintable()
        assert len(found) <= 10 * most + 3
        if text.isprintable():
            assert found == (text if len(text) <= most else text[:most] + "...")
        if len(text) > most:
            assert found.endswith("...")


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("", ""),
        ("plain", "plain"),
        ("a" * 40, "a" * 40),
        ("a" * 41, "a" * 40 + "..."),
        ("caf\u00e9 \u20ac", "caf\u00e9 \u20ac"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\nb", "a\\r\\nb"),
        ("\u2028\u202e", "\\u2028\\u202e"),
        ("\ud800", "\\ud800"),
        ("it's", "it's"),
        ("back\\slash\n", "back\\slash\\n"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("\U0001f600" * 41, "\U0001f600" * 40 + "..."),
        (("\U0001f600" * 41).encode(), "\U0001f600" * 40 + "..."),
        (("\U0001f600" * 40).encode(), "\U0001f600" * 40),
    ],
    ids=lambda value: f"{ascii(value)[:30]} {len(value)}",
)
def test_how_an_input_is_quoted(text: str | bytes, harmless: str):
    assert clipped(text) == harmless
    if isinstance(text, str):
        assert quoted(text) == f"'{harmless}'"


# One stake from frame to reply.


@given(st.decimals(-(10**14), 10**14, places=5, allow_nan=False))
def test_a_stake_in_euro_comes_back_as_the_same_number(stake: Decimal):
    found = request(message(str(stake)))
    reply = encode_reply(found, plain(rounded(found.stake)), DATE)
    back = re.search(rb'"stake":([^,]+),', reply)
    assert back is not None
    assert Fraction(back[1].decode()) == Fraction(stake)
