"""Frames in and out: the table of bad messages, and properties over generated ones."""

import itertools
import json
import random
import re
from contextlib import suppress
from datetime import UTC, datetime
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
DATE = b'"2021-05-18T21:32:42.412Z"'


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


def test_the_table_names_each_row_once_and_has_only_texts():
    assert len({row.name for row in bad_messages.ALL}) == len(bad_messages.ALL)
    for row in bad_messages.ALL:
        row.frame.decode()


# Every text, against the standard library's reading of it.


class Number(str):
    """A number as it was spelt."""

    __slots__ = ()


class Members(list[tuple[str, Any]]):
    """An object's members, in their order."""


def refuse_constant(name: str) -> None:
    raise ValueError(name)


def load(text: str) -> Any:
    return json.loads(
        text,
        parse_int=Number,
        parse_float=Number,
        parse_constant=refuse_constant,
        object_pairs_hook=Members,
    )


def levels(value: Any) -> int:
    """How many levels deep a value is."""
    if isinstance(value, Members):
        value = [of for _, of in value]
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0


def expected(frame: bytes) -> str | tuple[Any, ...]:
    """What TASK.md says of a text, told by `json`: an outcome, or what is requested."""
    try:
        value = load(frame.decode())
        json.dumps(value, ensure_ascii=False).encode()  # half a pair is not encoded
    except ValueError:
        return "dropped"
    outer = dict(value) if isinstance(value, Members) else {}
    if levels(value) > 100 or outer.get("type") not in ("message", "heartbeat"):
        return "dropped"
    if outer["type"] == "heartbeat":
        return "heartbeat"
    if outer.get("id") is None:
        return "dropped"
    names = [name for name, _ in value if name in ("type", "id", "payload")]
    payload = outer.get("payload")
    if isinstance(payload, Members):
        names += [name for name, _ in payload if name in ("stake", "currency", "date")]
        stake, currency, date = (dict(payload).get(n) for n in ("stake", "currency", "date"))
        if sorted(names) == sorted(OURS) and type(stake) is Number and in_bounds(stake):
            with suppress(BadDate):
                if type(date) is type(currency) is str and re.fullmatch("[A-Z]{3}", currency):
                    return outer["id"], Fraction(stake), currency, parse_instant(date)
    return "refused", outer["id"]


def came_of(frame: bytes) -> str | tuple[Any, ...]:
    found = read(frame)
    if isinstance(found, Heartbeat):
        return "heartbeat"
    if isinstance(found, Unreadable):
        return "dropped"
    message_id = load(found.id.decode())
    if isinstance(found, Refused):
        return "refused", message_id
    assert found.instant.tzinfo is UTC
    return message_id, Fraction(found.stake), found.currency, found.instant


# Texts from a random generator: any spelling of a request, right or wrong.

RANDOM = st.randoms(use_true_random=True)
OURS = ("type", "id", "payload", "stake", "currency", "date")
CHARACTERS = (
    *(r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t", r"\u00e9", r"\u0000", r"\uFFFF"),
    *(r"\uD83d\uDe00", "é", "\u2028", "\x7f", "\U0001f600", *"aZ 0 {[]},:'/", r"\u0061"),
)
BRACKETS = (("[", "]"), ('{"]}":', "}"), ('{"\\"[":', "}"), ("[0,", "]"), ("[ [", "] ]"))


def any_date(rnd: random.Random) -> str:
    """A date, or what is nearly one; `test_dates` says which are."""
    day = rnd.choice(("2021-05-18", "2021-05-18", "2021-02-29", "0001-01-01", "9999-12-31"))
    clock = rnd.choice(("00:00", "23:59", "21:32", "24:00")) + rnd.choice(("", ":42", ":59", ":60"))
    places = rnd.choice(("", "", ".", f".{rnd.randrange(10 ** rnd.randrange(1, 11))}"))
    offset = rnd.choice(
        ("", "Z", "z", "+00:00", "-00:00", "+01:00", "-23:59", "+0530", "+05", "+24:00")
    )
    return f"{day}{rnd.choice('Tt ')}{clock}{places}{offset}" if rnd.random() < 0.95 else day


def spaces(rnd: random.Random) -> str:
    return rnd.choice(("", "", "", " ", "\n", "\t\r\n "))


def digits(rnd: random.Random) -> str:
    return "".join(rnd.choices("0123456789", k=rnd.choice((1, 2, 5, 5, 16, 25))))


def number(rnd: random.Random) -> str:
    whole = rnd.choice(("0", str(rnd.randint(1, 10 ** rnd.choice((3, 9, 15, 30))))))
    places = rnd.choice(("", f".{digits(rnd)}"))
    return (
        rnd.choice(("", "-"))
        + whole
        + places
        + rnd.choice(("", "", "", f"e{rnd.randrange(60)}", "E-2"))
    )


def string(rnd: random.Random) -> str:
    return f'"{"".join(rnd.choices(CHARACTERS, k=rnd.randrange(9)))}"'


def value(rnd: random.Random, levels: int = 4) -> str:
    """A JSON value, deep now and then: of a hundred levels, or about that."""
    if rnd.random() < 0.01:
        pairs = rnd.choices(BRACKETS, k=rnd.randrange(85, 100))
        return "".join(a for a, _ in pairs) + "1" + "".join(b for _, b in reversed(pairs))
    if levels and rnd.random() < 0.3:
        values = [value(rnd, levels - 1) for _ in range(rnd.randrange(4))]
        if rnd.random() < 0.5:
            return f"[{','.join(spaces(rnd) + of + spaces(rnd) for of in values) or spaces(rnd)}]"
        return object_text(rnd, [(rnd.choice((*OURS, "x", "é")), of) for of in values])
    words = ("true", "false", "null", '"stake"', '"message"', '"heartbeat"', '"EUR"', "{}")
    return rnd.choice((number(rnd), string(rnd), rnd.choice(words)))


def object_text(rnd: random.Random, members: list[tuple[str, str]]) -> str:
    """An object with these members in any order and spelling; a name may be in escapes."""
    parts = []
    for name, of in rnd.sample(members, len(members)):
        spelt = json.dumps(name, ensure_ascii=rnd.random() < 0.5)
        if name in OURS and rnd.random() < 0.03:
            spelt = '"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"'
        parts.append(spaces(rnd) + spelt + spaces(rnd) + ":" + spaces(rnd) + of + spaces(rnd))
    return f"{{{','.join(parts) or spaces(rnd)}}}"


def template(rnd: random.Random, *, wrong: bool = False) -> tuple[str, dict[str, str]]:
    """A request in any spelling, with marks for its values, and these values."""
    values = {
        "type": '"message"',
        "id": value(rnd),
        "stake": rnd.choice((number(rnd), f"{rnd.uniform(0, 9999):.5f}", str(rnd.random()))),
        "currency": rnd.choice(('"USD"', '"AAA"', '"ZZZ"', r'"\u0055SD"')),
        "date": f'"{any_date(rnd)}"',
    }
    inner, outer = (
        [(name, f"<<{name}>>") for name in names]
        for names in (("stake", "currency", "date"), ("type", "id", "payload"))
    )
    for members in (inner, outer):
        others = {*OURS, "x", "é", "Stake", ""} - (set() if wrong else {n for n, _ in members})
        names = rnd.choices(sorted(others), k=rnd.choice((0, 0, 1, 2)))
        members += [(name, value(rnd)) for name in names]
    if wrong:
        values[rnd.choice(sorted(values))] = value(rnd)
        del inner[: rnd.randrange(2)]
    text = object_text(rnd, outer).replace("<<payload>>", object_text(rnd, inner))
    return spaces(rnd) + text + spaces(rnd), values


def filled(text: str, values: dict[str, str]) -> bytes:
    for name, of in values.items():
        text = text.replace(f"<<{name}>>", of)
    return text.encode()


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
TABLE = [
    row.frame.decode()
    for row in bad_messages.ALL
    if len(row.frame) < 400 and b"99999" not in row.frame  # which would take the oracle long
]


@settings(max_examples=60)
@given(RANDOM)
def test_a_text_is_read_as_the_standard_library_reads_it(rnd: random.Random):
    for _ in range(5):
        text = rnd.choice((filled(*template(rnd, wrong=True)).decode(), rnd.choice(TABLE)))
        for _ in range(rnd.choice((0, 0, 1, 2))):
            at = rnd.randrange(len(text) + 1)
            text = text[:at] + rnd.choice(TOKENS) + text[at + rnd.randrange(4) :]
        soup = "".join(rnd.choices(TOKENS, k=rnd.randrange(14)))
        for frame in (text.encode(), soup.encode()):
            assert came_of(frame) == expected(frame)


@given(RANDOM)
def test_all_that_is_not_ours_comes_back_byte_for_byte(rnd: random.Random):
    for _ in range(3):
        text, values = template(rnd)
        found = read(filled(text, values))
        if isinstance(found, Request):
            ours = {"stake": "207.52054", "currency": '"EUR"', "date": DATE.decode()}
            assert found.id == values["id"].encode()
            reply = encode_reply(found, "207.52054", DATE)
            assert reply == filled(text, values | ours)
            again = request(reply)
            assert (str(again.stake), again.currency) == ("207.52054", "EUR")
            assert encode_reply(again, "207.52054", DATE) == reply
        elif isinstance(found, Refused):
            assert found.id == values["id"].encode()


# The stake.


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


@given(RANDOM.map(number))
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
    "text", ["1e999999999", "-1E-999999999", "9" * 60_000, f"1e{'9' * 60_000}"]
)
def test_a_number_out_of_range_is_refused_before_there_is_a_number(text: str, monkeypatch):
    monkeypatch.setattr(messages, "Decimal", None)
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
    rnd = random.Random(41)
    for clock, places in itertools.product(("00:00:00", "23:59:59", "12:34:56"), range(13)):
        for digits in {"9" * places, "5" * places, f"{rnd.random():.16f}"[2 : 2 + places]}:
            date = f"{day}T{clock}{'.' if places else ''}{digits}Z"
            begun = datetime.fromisoformat(f"{day}T{clock}+00:00")
            exact = Fraction(int(digits or "0"), 10**places)
            usual = SAMPLE.replace(b"2021-05-18T21:32:42.324Z", date.encode())
            for frame in (usual, usual.replace(b"stake", rb"st\u0061ke")):  # found, and walked to
                found = read(frame)
                if places > 9:
                    assert str(found) == f"date '{date}' is not an ISO 8601 date and time"
                else:
                    assert isinstance(found, Request)
                    assert found.instant == begun.replace(microsecond=int(exact * 10**6))


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
        "the payload is not an object",
    ]


@given(RANDOM.map(value), st.sampled_from(["stake", "currency", "date"]))
@example(json.dumps("\U000e0001" * 60), "currency")
@example('"' + "\\u0000" * 60 + '"', "date")
def test_an_error_is_one_line_under_300_characters_with_40_of_the_input(value: str, name: str):
    found = read(message(**{name: value}))
    if isinstance(found, Refused):
        reply = json.loads(encode_error(found.id, found.text), parse_int=str)
        assert reply["message"].isprintable()
        assert len(reply["message"]) < 300
        shown = reply["message"].replace("...", "")  # or a point of theirs is taken for the value's
        assert value[:41] not in shown or len(value) <= 40


@given(st.text(), st.sampled_from(["7", '"x"']))
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
@example("x" * 40, 40)
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


def test_many_brackets_are_not_deep_by_their_number():
    frame = b'{"type":"message","id":1,"more":[%b]}' % b",".join([b"[]"] * 200)
    with pytest.raises(Refused, match="the payload is not an object"):
        decode(frame)
