"""The wire: frames in, frames out, and the only place that knows their JSON.

What we do not own is echoed byte for byte: a reply is the request as it was sent,
with three values put in place of others. White space, the spelling of names and
numbers, the order of the members and names that we do not know stay as they are.

How a request is read. msgspec says whether the text is JSON (RFC 8259; no `NaN`,
and no half of a surrogate pair, which is no text in any encoding). One regular
expression says where the values stand that we need, for every order and spelling of
the members. It does not take what hardly anybody sends, such as a name of ours in
escapes or a stake with an exponent, nor anything that is wrong: `_decode_any` walks
through those, member by member, and says what is wrong.

A name that we read stands once. RFC 8259, section 4, leaves it to the reader which
of two members with the same name counts, so a reply that echoed both could be read
with the old stake. Hence a request that gives `type`, `id` or `payload` twice, or
`stake`, `currency` or `date` in its payload, is refused. For whom the refusal is,
and whether it is a request at all, the last one says, as in most parsers.
"""

import re
from array import array
from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from itertools import accumulate
from operator import call
from typing import Final, Literal

import msgspec

from .conversion import STAKE_ADJUSTED_MAX, STAKE_EXPONENT_MIN
from .dates import parse_instant
from .errors import Drop, Refusal, Refused, Unreadable

MAX_TEXT: Final = 64 * 1024  # bytes; anything longer is not parsed (protocol, bad messages)
MAX_DEPTH: Final = 100  # levels; anything deeper is not parsed (the same)
QUOTED: Final = 40  # characters of the input that an error text may quote
ERROR_TEXT: Final = 299  # characters; the protocol says under 300

HEARTBEAT: Final = b'{"type":"heartbeat"}'


class Heartbeat:
    """The peer is alive. There is one, `THE_HEARTBEAT`."""


THE_HEARTBEAT: Final = Heartbeat()


class Request(msgspec.Struct, frozen=True, gc=False):
    """A stake to convert. One is made per message, so it is a Struct: attrs costs 2 µs more.

    `id` is raw JSON, and so is `date`, whose meaning is `instant` (aware UTC). `frame` is
    the whole request, and `places` tells where in it stake, currency and date begin and end.
    """

    id: bytes
    stake: Decimal
    currency: str
    instant: datetime
    date: bytes
    frame: bytes
    places: tuple[int, ...]


_check = msgspec.json.Decoder(msgspec.Raw).decode
_type = msgspec.json.Decoder(Literal["heartbeat", "message"]).decode
_string = msgspec.json.Decoder(str).decode
_instant = msgspec.json.Decoder(datetime).decode

_SHORT: Final = 15  # characters: a number without exponent is within all bounds of a stake


def decode(frame: bytes) -> Heartbeat | Request:
    """Read one text frame, which is UTF-8 (the link has checked it).

    Raises `Unreadable` when nobody can be answered, and `Refused`, with the id,
    when something else is wrong. An id of `null` is none; any other is echoed.
    """
    if frame == HEARTBEAT:  # the common spelling; any other is understood below
        return THE_HEARTBEAT
    if len(frame) > MAX_TEXT:
        raise Unreadable(Drop.TOO_LONG)
    hit = _usual(frame)
    if hit is None and _is_deep(frame):  # what the expression takes is not
        raise Unreadable(Drop.TOO_DEEP)
    try:
        _check(frame)
    except msgspec.DecodeError:
        raise Unreadable(Drop.NOT_JSON) from None
    if hit is None:
        return _decode_any(frame)
    _, message_id, _, stake, currency, date = hit.groups()
    text = stake.decode()
    try:
        amount = Decimal(text) or Decimal(0) if len(text) <= _SHORT else parse_stake(text)
        instant = _instant(date)
        if instant.tzinfo is not UTC:
            instant = instant.astimezone(UTC)
    except (ValueError, msgspec.DecodeError, OverflowError):  # out of range, or no such day
        return _decode_any(frame)
    places = hit.start(4), hit.end(4), hit.start(5), hit.end(5), hit.start(6), hit.end(6)
    return Request(message_id, amount, currency[1:4].decode(), instant, date, frame, places)


# The expression. It is for texts that are JSON, so it leaves out what only others could have. No
# repetition in it is ever taken back (`*+`, `++`): the time is proportional to the length.

_SPACE: Final = rb"[ \t\n\r]*+"
_COLON: Final = rb"[ \t\n\r:]++"  # between a name and its value
_BETWEEN: Final = rb'[^"\[\]{}]*+'  # all that is not in strings and brackets, numbers included
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# The same without its first quote, and without ASCII letters that are spelt as escapes: a name that
# is none of ours, letter by letter, is then none of ours at all.
_OTHER: Final = rb'[^"\\]*+(?:\\(?!u00[67]).[^"\\]*+)*+"'
_NESTED: bytes = rb'[\[{](?:[^"\[\]{}]++|"%b)*+[\]}]' % _OTHER
for _ in range(2):  # more levels, three in all
    _NESTED = rb'[\[{](?:[^"\[\]{}]++|"%b|%b)*+[\]}]' % (_OTHER, _NESTED)


def _once(group: int, name: bytes, value: bytes) -> bytes:
    """A member of ours, without its first quote; its value is the group of this number.

    When it comes again, or has another kind of value, `.*+` takes all that follows. So
    nothing closes the object, and the expression does not match.
    """
    return rb'%b"%b(?:(?(%d)(?!)|(%b))|.*+)' % (name, _COLON, group, value)


def _object(*members: bytes) -> bytes:
    """An object with these members among others, in any order."""
    any_member = b"|".join([*members, _OTHER])
    return rb'\{%b(?:"(?:%b)%b|%b%b)*+\}' % (_BETWEEN, any_member, _BETWEEN, _NESTED, _BETWEEN)


_PAYLOAD: Final = _object(
    _once(4, b"stake", rb"-?+[0-9][0-9.]*+(?![eE])"),
    _once(5, b"currency", rb'"[A-Z]{3}"'),
    # An instant with an offset. Of more than six decimals msgspec would round the sixth.
    _once(6, b"date", rb'"[-0-9]{10}+[Tt ][:0-9]{8}+(?:\.[0-9]{1,6}+)?+[Zz+-][:0-9]*+"'),
)
_MESSAGE: Final = _object(
    _once(1, b"type", rb'"message"'),
    _once(2, b"id", _STRING + rb'|(?!null)[^ \t\n\r"\[\]{},]++'),
    _once(3, b"payload", _PAYLOAD),
)
_ALL_SIX: Final = b"".join(rb"(?(%d)|(?!))" % group for group in range(1, 7))
_usual = re.compile(_SPACE + _MESSAGE + _SPACE + _ALL_SIX, re.DOTALL).fullmatch

_MARKS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # 1 and, as signed bytes, -1
_NO_MARKS: Final = bytes(set(range(256)) - set(b'[]{}"'))


def _is_deep(text: bytes) -> bool:
    """Whether a text is nested more than `MAX_DEPTH` levels deep.

    Of a text that is not JSON the answer holds up to where it ceases to be.
    """
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    # Without escapes, each second piece between quotes is a string. All of this runs in C.
    text = text.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_MARKS)
    brackets = b"".join(text.split(b'"')[::2]).translate(_MARKS)
    try:
        bytes(accumulate(array("b", brackets), initial=255 - MAX_DEPTH))  # a byte is below 256
    except ValueError:
        return True
    return False


class _Name(str):
    """The name of a member. Each has a hash of its own, so a dict keeps both of two equal texts."""

    __slots__ = ()
    __hash__ = object.__hash__


_members = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=call).decode
_up_to_value = re.compile(rb"[ \t\n\r{,]*+%b%b" % (_STRING, _COLON), re.DOTALL).match
_OURS: Final = ("stake", "currency", "date")

_Members = defaultdict[str, list[tuple[int, bytes]]]
"""By name: where each value begins in its frame, and the value."""


def _walk(text: bytes, at: int) -> _Members:
    """The members of an object that begins `at` a place of its frame.

    Raises `msgspec.ValidationError` if the text is none.
    """
    found: _Members = defaultdict(list)
    end = 0
    for name, value in _members(text).items():
        matched = _up_to_value(text, end)
        assert matched is not None, "msgspec has read this name"
        begin, end = matched.end(), matched.end() + len(value)
        found[str(name)].append((at + begin, bytes(value)))
    return found


def _decode_any(frame: bytes) -> Heartbeat | Request:
    """`decode` for any text that is JSON and not too deep: what is rare, and what is wrong."""
    try:
        outer = _walk(frame, 0)
    except msgspec.ValidationError:
        raise Unreadable(Drop.NOT_AN_OBJECT) from None
    if not outer["type"]:
        raise Unreadable(Drop.NO_TYPE)
    try:
        kind = _type(outer["type"][-1][1])
    except msgspec.ValidationError:
        raise Unreadable(Drop.UNKNOWN_TYPE) from None
    if kind == "heartbeat":
        return THE_HEARTBEAT
    if not outer["id"] or outer["id"][-1][1] == b"null":
        raise Unreadable(Drop.NO_ID)
    message_id = outer["id"][-1][1]
    if not outer["payload"] or not outer["payload"][-1][1].startswith(b"{"):
        raise Refused(message_id, Refusal.BAD_MESSAGE, "the payload is not an object")
    begin, payload = outer["payload"][-1]
    inner = _walk(payload, begin)
    if max(len(outer["type"]), len(outer["id"]), len(outer["payload"])) > 1:
        raise Refused(message_id, Refusal.BAD_MESSAGE, "type, id or payload is given twice")
    for name in _OURS:
        if len(inner[name]) != 1:
            flaw = f"the {name} is {'given twice' if inner[name] else 'missing'}"
            raise Refused(message_id, Refusal(f"bad-{name}"), flaw)
    return _read_payload(message_id, frame, [inner[name][0] for name in _OURS])


def _read_payload(message_id: bytes, frame: bytes, ours: list[tuple[int, bytes]]) -> Request:
    stake, currency, date = (value for _, value in ours)
    name, shown = "stake", clipped(stake)
    try:
        amount = parse_stake(stake.decode())
        name, shown = "currency", clipped(currency)
        code = _read_string(currency)
        shown = quoted(code)
        if not is_currency(code):
            raise ValueError("is not three capital letters")  # noqa: TRY301 - one way for all flaws
        name, shown = "date", clipped(date)
        text = _read_string(date)
        shown = quoted(text)
        instant = parse_instant(text)
    except ValueError as flaw:
        raise Refused(message_id, Refusal(f"bad-{name}"), f"{name} {shown} {flaw}") from None
    places = tuple(place for at, value in ours for place in (at, at + len(value)))
    return Request(message_id, amount, code, instant, date, frame, places)


def _read_string(value: bytes) -> str:
    """A JSON string as text. Raises ValueError if the value is none."""
    try:
        return _string(value)
    except msgspec.ValidationError:
        raise ValueError("is not a string") from None


_NUMBER: Final = re.compile(r"-?(0|[1-9]\d*)(?:\.(\d+))?(?:[eE]([+-]?\d+))?", re.ASCII)


def parse_stake(text: str) -> Decimal:
    """A JSON number as a stake.

    Raises ValueError, whose text says what is wrong with the number, as "is out of range". The
    bounds (magnitude below 10^15, exponent above -20) imply the third, at most
    34 digits. They are judged on the text, before there is a number: one of
    eight characters can take 46 s to become an int.
    """
    number = _NUMBER.fullmatch(text)
    if number is None:
        raise ValueError("is not a number")
    whole, places, power = number.groups("")
    digits = (whole + places).lstrip("0")
    if not digits:
        return Decimal(0)
    try:
        exponent = int(power or 0) - len(places)
    except ValueError:  # thousands of digits, more than int takes
        raise ValueError("is out of range") from None
    if exponent < STAKE_EXPONENT_MIN or exponent + len(digits) - 1 > STAKE_ADJUSTED_MAX:
        raise ValueError("is out of range")
    return Decimal(text)


def is_currency(text: str) -> bool:
    """Whether a text can be a currency's code: three capital letters, of ASCII."""
    return re.fullmatch(r"[A-Z]{3}", text) is not None


def encode_reply(request: Request, stake: str, date: str) -> bytes:
    """The request with `stake` (JSON number text), `EUR` and `date` in place of its own."""
    a, b, c, d, e, f = request.places
    first, second, third = stake.encode(), b'"EUR"', b'"%b"' % date.encode()
    # Sorted by hand, as `sorted` takes as long as all the rest.
    if c < a:
        a, b, first, c, d, second = c, d, second, a, b, first
    if e < c:
        c, d, second, e, f, third = e, f, third, c, d, second
        if c < a:
            a, b, first, c, d, second = c, d, second, a, b, first
    frame = request.frame
    return b"".join((frame[:a], first, frame[b:c], second, frame[d:e], third, frame[f:]))


def encode_error(message_id: bytes, text: str) -> bytes:
    """An error message for the request with this id (raw JSON); the text is cut to its bound."""
    message = f"Unable to convert stake. Error: {text}"
    if len(message) > ERROR_TEXT:
        message = message[: ERROR_TEXT - 3] + "..."
    return msgspec.json.encode({"type": "error", "id": msgspec.Raw(message_id), "message": message})


def clipped(text: str | bytes, most: int = QUOTED) -> str:
    """At most `most` characters of a peer's input, made harmless: nothing in it acts on a reader.

    Whatever is not printable (control characters, line separators, direction
    marks, half surrogates) becomes its escape.
    """
    if not isinstance(text, str):
        text = text[: 4 * most + 4].decode(errors="replace")
    cut = text[:most]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
    return cut if len(text) <= most else f"{cut}..."


def quoted(text: str) -> str:
    """`clipped`, between single quotes."""
    return f"'{clipped(text)}'"
