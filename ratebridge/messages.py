"""The wire: frames in, frames out, and the only place that knows their JSON.

What we do not own is echoed byte for byte: every value that the service need
not understand stays `Raw`, from the frame it came in to the frame it leaves in,
and the members keep their order. Their names come back as the same text, though
an escape in one may be spelt otherwise. Of members with the same name the last
one counts (RFC 8259, section 4, leaves it to the reader), and only that one is
echoed, in the place of the first.

JSON is what RFC 8259 says: `NaN` and `Infinity` are not JSON. Two kinds of text
are, and are refused all the same, with a reply: those nested more than
`MAX_DEPTH` levels deep, and those with half a surrogate pair.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import msgspec
from msgspec import Raw

from .conversion import STAKE_ADJUSTED_MAX, STAKE_EXPONENT_MIN
from .dates import BadDate, parse_instant
from .errors import Drop, Refusal, Refused, Unreadable

MAX_TEXT: Final = 64 * 1024  # bytes; anything longer is not parsed (protocol, bad messages)
MAX_DEPTH: Final = 512  # levels; the parser recurses, and any Python has room for these
QUOTED: Final = 40  # characters of the input that an error text may quote
ERROR_TEXT: Final = 299  # characters; the protocol says under 300

HEARTBEAT: Final = b'{"type":"heartbeat"}'


class Heartbeat:
    """The peer is alive. There is one, `THE_HEARTBEAT`."""


THE_HEARTBEAT: Final = Heartbeat()


class Request(msgspec.Struct, frozen=True, gc=False):
    """A stake to convert. One is made per message, so it is a Struct: attrs costs 2 µs more.

    `id` is raw JSON, and so is `date`, whose meaning is `instant` (aware UTC). `reply`
    is the reply, but for two holes where the new stake and the new date will stand.
    """

    id: bytes
    stake: Decimal
    currency: str
    instant: datetime
    date: bytes
    reply: bytes


class _Head(msgspec.Struct):
    """What tells whether, and to whom, a message is answered; empty where it is missing."""

    type: Raw = Raw()
    id: Raw = Raw()


_members = msgspec.json.Decoder(dict[str, Raw]).decode
_head = msgspec.json.Decoder(_Head).decode
_raw = msgspec.json.Decoder(Raw).decode
_string = msgspec.json.Decoder(str).decode
_instant = msgspec.json.Decoder(datetime).decode
_encode = msgspec.json.Encoder().encode

# The bytes of the holes are nowhere in UTF-8, and so in nothing that was echoed.
_STAKE: Final = b"\xfe"
_DATE: Final = b"\xff"
_CHANGED: Final = {"stake": Raw(_STAKE), "currency": Raw(b'"EUR"'), "date": Raw(b'"%b"' % _DATE)}

_MESSAGE: Final = Raw(b'"message"')
_NOTHING: Final = Raw()
_CURRENCY: Final = re.compile(r"[A-Z]{3}")


def decode(frame: bytes) -> Heartbeat | Request:
    """Read one text frame, which is UTF-8 (the link has checked it).

    Raises `Unreadable` when nobody can be answered, and `Refused`, with the id,
    when something else is wrong. An id of `null` is none; any other is echoed.
    """
    if frame == HEARTBEAT:  # the common spelling; any other is understood below
        return THE_HEARTBEAT
    if len(frame) > MAX_TEXT:
        raise Unreadable(Drop.TOO_LONG)
    if (usual := _usual(frame)) is not None:
        begin, message_id, stake, currency, date = usual.groups()
        try:
            instant = _instant(date)
        except msgspec.DecodeError:
            pass  # such as February 30
        else:
            amount = Decimal(stake.decode()) or _ZERO
            reply = begin + _USUAL_END
            return Request(message_id, amount, currency.decode(), instant, date, reply)
    members, flaw = _read(frame)
    kind = members.get("type", _NOTHING)
    if not kind:
        raise Unreadable(Drop.NO_TYPE)
    if kind != _MESSAGE:  # the common spelling, again
        name = _read_string(kind)
        if name == "heartbeat":
            return THE_HEARTBEAT
        if name != "message":
            raise Unreadable(Drop.UNKNOWN_TYPE)
    message_id = bytes(members.get("id", _NOTHING))
    if message_id in (b"", b"null"):
        raise Unreadable(Drop.NO_ID)
    if flaw is not None:
        raise Refused(message_id, Refusal.BAD_MESSAGE, flaw)
    return _request(message_id, members)


# A request as the feed writes it, with nothing in it that could be wrong but the date. It is
# read in half the time that the JSON parser takes for any other, and to the same effect.
# No repetition in it is ever taken back (`++`).
_INT: Final = rb"(?!0\d)\d++"
_usual = re.compile(
    rb'(\{"type":"message","id":(%b),"payload":'
    rb'\{"marketId":%b,"selectionId":%b,"odds":%b(?:\.\d++)?+,"stake":)'
    rb'(-?+(?!0\d)\d{1,9}+(?:\.\d{1,5}+)?+),"currency":"([A-Z]{3})",'
    rb'"date":("[-0-9T:.]{19,26}+Z")\}\}' % (_INT, _INT, _INT, _INT)
).fullmatch
_USUAL_END: Final = _STAKE + b',"currency":"EUR","date":"' + _DATE + b'"}}'


def _read(frame: bytes) -> tuple[dict[str, Raw], str | None]:
    """The members of the frame's object, and what keeps it from being converted, if anything."""
    # Most messages have too few brackets to be deep, and counting those costs next to nothing.
    if frame.count(b"[") + frame.count(b"{") > MAX_DEPTH and _is_deep(frame):
        return _read_flawed(frame)
    try:
        return _members(frame), None
    except msgspec.ValidationError:
        raise Unreadable(Drop.NOT_AN_OBJECT) from None
    except msgspec.DecodeError:
        return _read_flawed(frame)
    except UnicodeDecodeError:  # in a name; the link lets none through
        raise Unreadable(Drop.NOT_JSON) from None


_SURROGATES: Final = re.compile(
    rb"\\(?:\\(?:\\\\)*+"  # escaped backslashes: they begin no other escape
    rb"|(u[dD][0-9a-fA-F]{3}))"
)


def _read_flawed(frame: bytes) -> tuple[dict[str, Raw], str]:
    """Type and id of a text that is not for `_members`, and why it is refused, if it is JSON.

    In the escape of a surrogate, paired or not, 0xFF, which is nowhere in UTF-8,
    takes the place of the backslash: to the parser it is a letter like others, as
    it does not look into what it leaves raw, and the id gets its backslash back.
    """
    marked = _SURROGATES.sub(lambda found: b"\xff" + found[1] if found[1] else found[0], frame)
    try:
        folded = _fold(marked)
        head = _head(folded)
    except msgspec.ValidationError:
        raise Unreadable(Drop.NOT_AN_OBJECT) from None
    except msgspec.DecodeError:
        raise Unreadable(Drop.NOT_JSON) from None
    message_id = _FOLDED.sub(lambda at: marked[int(at[1]) : int(at[2])], bytes(head.id))
    flaw = "holds half a surrogate pair" if folded is marked else "is nested too deeply"
    members = {"type": head.type, "id": Raw(message_id.replace(b"\xff", b"\\"))}
    return members, f"the message {flaw}"


# Whatever there is but brackets, those in strings included; then brackets that open or close.
_RUNS: Final = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"?)*+([\[{]*+)([\]}]*+)', re.DOTALL)


def _is_deep(text: bytes) -> bool:
    """Whether a text that begins as JSON goes more than `MAX_DEPTH` levels deep."""
    depth = 0
    for opening, closing in _RUNS.findall(text):
        depth += len(opening)
        if depth > MAX_DEPTH:
            return True
        depth -= len(closing)
    return False


# 0xFE is nowhere in UTF-8. An array can stand where a value can, and nowhere else.
_FOLDED: Final = re.compile(rb'\["\xfe(\d+):(\d+)"\]')


def _fold(text: bytes) -> bytes:
    """The text with each value that begins `MAX_DEPTH` levels deep replaced by where it stands.

    Each such value is checked, itself folded in the same way, so that nothing
    recurses deeper. Raises `msgspec.DecodeError` where one is not JSON; cuts the
    text off where one has no end.
    """
    folded = bytearray()  # of the first `done` bytes
    begun: list[tuple[int, int]] = []  # where each value that is open begins, in text and folded
    depth = done = 0
    for run in _RUNS.finditer(text):
        begin, end = run.span(1)
        depth += end - begin
        while depth > (level := MAX_DEPTH * (len(begun) + 1)):
            begin = end - (depth - level)
            folded += text[done:begin]
            begun.append((begin, len(folded)))
            done = begin
        begin, end = run.span(2)
        depth -= end - begin
        while begun and depth <= (level := MAX_DEPTH * len(begun)):
            begin, mark = begun.pop()
            end_of_value = end - (level - depth)
            folded += text[done:end_of_value]
            _raw(folded[mark:])
            folded[mark:] = b'["\xfe%d:%d"]' % (begin, end_of_value)
            done = end_of_value
    if begun:
        return bytes(folded[: begun[0][1]])
    return bytes(folded) + text[done:] if done else text


def _request(message_id: bytes, members: dict[str, Raw]) -> Request:
    try:
        payload = _members(members.get("payload", _NOTHING))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(message_id, Refusal.BAD_MESSAGE, "the payload is not an object") from None
    try:
        stake = _read_stake(payload.get("stake", _NOTHING))
        currency = _read_currency(payload.get("currency", _NOTHING))
        date = payload.get("date", _NOTHING)
        instant = _read_date(date)
    except _Flaw as flaw:
        raise Refused(message_id, flaw.kind, flaw.text) from None
    reply = _encode(members | {"payload": payload | _CHANGED})
    return Request(message_id, stake, currency, instant, bytes(date), reply)


class _Flaw(Exception):
    def __init__(self, kind: Refusal, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


def _read_string(raw: Raw) -> str | None:
    """A JSON value as text, None when it is anything but a string."""
    try:
        return _string(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _read_stake(raw: Raw) -> Decimal:
    if not raw:
        raise _Flaw(Refusal.BAD_STAKE, "the stake is missing")
    text = str(raw, "utf-8", "replace")
    # A JSON number of at most 15 characters and without exponent is within all bounds.
    if len(text) < 16 and text[0] in "-0123456789" and "e" not in text and "E" not in text:
        return Decimal(text) or _ZERO
    try:
        return parse_stake(text)
    except ValueError as flaw:
        raise _Flaw(Refusal.BAD_STAKE, f"stake {clipped(text)} {flaw}") from None


_ZERO: Final = Decimal(0)
_NUMBER: Final = re.compile(r"-?(0|[1-9]\d*)(?:\.(\d+))?(?:[eE]([+-]?\d+))?", re.ASCII)


def parse_stake(text: str) -> Decimal:
    """A JSON number as a stake.

    Raises ValueError with half a sentence to stand behind the number. The
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
    return _CURRENCY.fullmatch(text) is not None


def _read_currency(raw: Raw) -> str:
    if not raw:
        raise _Flaw(Refusal.BAD_CURRENCY, "the currency is missing")
    currency = _read_string(raw)
    if currency is None:
        raise _Flaw(Refusal.BAD_CURRENCY, f"currency {clipped(raw)} is not a string")
    if not is_currency(currency):
        raise _Flaw(
            Refusal.BAD_CURRENCY, f"currency {quoted(currency)} is not three capital letters"
        )
    return currency


_LONG_DATE: Final = len('"2021-05-18T21:32:42.1234567Z"')  # msgspec rounds the last digit


def _read_date(raw: Raw) -> datetime:
    if not raw:
        raise _Flaw(Refusal.BAD_DATE, "the date is missing")
    if len(raw) < _LONG_DATE:
        # What msgspec takes for an instant in UTC is one by our rule too, and at a tenth the cost.
        try:
            instant = _instant(raw)
        except msgspec.DecodeError:
            pass
        else:
            if instant.tzinfo is UTC:
                return instant
    text = _read_string(raw)
    if text is None:
        raise _Flaw(Refusal.BAD_DATE, f"date {clipped(raw)} is not a string")
    try:
        return parse_instant(text)
    except BadDate as flaw:
        raise _Flaw(Refusal.BAD_DATE, f"date {quoted(text)} {flaw}") from None


def encode_reply(request: Request, stake: str, date: str) -> bytes:
    """The reply, with `stake` (JSON number text) and `date` in its holes; all else is there."""
    return request.reply.replace(_STAKE, stake.encode()).replace(_DATE, date.encode())


def encode_error(message_id: bytes, text: str) -> bytes:
    """An error message for the request with this id (raw JSON); the text is cut to its bound."""
    message = f"Unable to convert stake. Error: {text}"
    if len(message) > ERROR_TEXT:
        message = message[: ERROR_TEXT - 3] + "..."
    return _encode({"type": "error", "id": Raw(message_id), "message": message})


def clipped(text: str | bytes | Raw, most: int = QUOTED) -> str:
    """At most `most` characters of a peer's input, made harmless: nothing in it acts on a reader.

    Whatever is not printable (control characters, line separators, direction
    marks, half surrogates) becomes its escape.
    """
    if not isinstance(text, str):
        text = bytes(text)[: 4 * most + 4].decode(errors="replace")
    cut = text[:most]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
    return cut if len(text) <= most else f"{cut}..."


def quoted(text: str) -> str:
    """`clipped`, between single quotes."""
    return f"'{clipped(text)}'"
