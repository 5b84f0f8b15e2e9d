"""The wire: frames in, frames out, and the only place that knows their JSON.

What we do not own is echoed byte for byte: every value that the service need
not understand stays `Raw`, from the frame it came in to the frame it leaves in.
Of members with the same name the last one counts (RFC 8259, section 4, leaves
it to the reader), and only that one is echoed.
"""

import re
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec
from msgspec import Raw

from .conversion import STAKE_ADJUSTED_MAX, STAKE_EXPONENT_MIN
from .dates import BadDate, parse_instant
from .errors import Refused, Unreadable

MAX_TEXT: Final = 64 * 1024  # bytes; anything longer is not parsed (protocol, bad messages)
QUOTED: Final = 40  # characters of the input that an error text may quote
ERROR_TEXT: Final = 299  # characters; the protocol says under 300

HEARTBEAT: Final = b'{"type":"heartbeat"}'


class Heartbeat:
    """The peer is alive. There is one, `THE_HEARTBEAT`."""


THE_HEARTBEAT: Final = Heartbeat()


class Request(msgspec.Struct, frozen=True, gc=False):
    """A stake to convert. One is made per message, so it is a Struct: attrs costs 2 µs more.

    `id` is raw JSON, `instant` aware UTC. `members` and `payload` are all that came, raw.
    """

    id: bytes
    stake: Decimal
    currency: str
    instant: datetime
    members: dict[str, Raw]
    payload: dict[str, Raw]


_members = msgspec.json.Decoder(dict[str, Raw]).decode
_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode

_EUR: Final = Raw(b'"EUR"')
_NOTHING: Final = Raw(b"")
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)


def decode(frame: bytes) -> Heartbeat | Request:
    """Read one text frame, which is UTF-8 (the link has checked it).

    Raises `Unreadable` when nobody can be answered, and `Refused`, with the id,
    when something else is wrong.
    """
    if frame == HEARTBEAT:  # the common spelling; any other is understood below
        return THE_HEARTBEAT
    if len(frame) > MAX_TEXT:
        raise Unreadable("too-long")
    members, flaw = _read(frame)
    kind = _read_type(members)
    if kind == "heartbeat":
        return THE_HEARTBEAT
    if kind != "message":
        raise Unreadable("unknown-type")
    message_id = bytes(members.get("id", _NOTHING))
    if message_id in (b"", b"null"):
        raise Unreadable("no-id")
    if flaw is not None:
        raise Refused(message_id, "bad-message", flaw)
    return _request(message_id, members)


def _read(frame: bytes) -> tuple[dict[str, Raw], str | None]:
    """The members of the frame's object, and what keeps it from being converted, if anything.

    msgspec refuses two kinds of text that are JSON all the same. Their sender
    can be answered, so the object is read once more without the flaw.
    """
    flaw = None
    try:
        try:
            return _members(frame), None
        except RecursionError:
            flaw, frame = "the message is nested too deeply", _outline(frame)
        except msgspec.ValidationError:
            raise Unreadable("not-an-object") from None
        except msgspec.DecodeError:
            flaw, frame = "the message holds half a surrogate pair", _mend_surrogates(frame)
        return _members(frame), flaw
    except msgspec.ValidationError:
        raise Unreadable("not-an-object") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Unreadable("not-json") from None


_SURROGATES: Final = re.compile(
    rb"\\\\"  # an escaped backslash: what follows it is no escape
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _mend_surrogates(frame: bytes) -> bytes:
    return _SURROGATES.sub(lambda found: rb"\ufffd" if found[1] else found[0], frame)


_STRINGS_AND_BRACKETS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]+|[\]}]+', re.DOTALL)


def _outline(frame: bytes) -> bytes:
    """The outermost object with every object and array inside it replaced by 0.

    Nothing here recurses, so that no depth hurts; what is cut out is not
    checked, which does no harm as it will not be used.
    """
    kept = []
    depth = copied = 0
    for token in _STRINGS_AND_BRACKETS.finditer(frame):
        start, end = token.span()
        first = frame[start]
        if first == 0x22:  # a string
            continue
        if first in b"[{":
            if depth <= 1 < depth + end - start:
                kept.append(frame[copied : start + 1 - depth])
                kept.append(b"0")
            depth += end - start
        else:
            depth -= end - start
            if depth <= 1:
                if depth + end - start > 1:
                    copied = end - (1 - depth)
                if depth <= 0:
                    break
    kept.append(frame[copied:])
    return b"".join(kept)


def _read_type(members: dict[str, Raw]) -> str:
    kind = members.get("type")
    if kind is None:
        raise Unreadable("no-type")
    try:
        return _string(kind)
    except msgspec.DecodeError:
        raise Unreadable("unknown-type") from None


def _request(message_id: bytes, members: dict[str, Raw]) -> Request:
    try:
        payload = _members(members.get("payload", _NOTHING))
    except msgspec.DecodeError:
        raise Refused(message_id, "bad-message", "the payload is not an object") from None
    try:
        stake = _read_stake(payload.get("stake", _NOTHING))
        currency = _read_currency(payload.get("currency", _NOTHING))
        instant = _read_date(payload.get("date", _NOTHING))
    except _Flaw as flaw:
        raise Refused(message_id, flaw.kind, flaw.text) from None
    return Request(message_id, stake, currency, instant, members, payload)


class _Flaw(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


def _read_stake(raw: Raw) -> Decimal:
    text = bytes(raw)
    if not text:
        raise _Flaw("bad-stake", "the stake is missing")
    if text[0] not in b"-0123456789":
        raise _Flaw("bad-stake", f"stake {clipped(text)} is not a number")
    try:
        return parse_stake(text.decode("ascii"))
    except ValueError:
        raise _Flaw("bad-stake", f"stake {clipped(text)} is out of range") from None


_STAKE_TEXT: Final = 64  # characters: 34 digits, a sign, a point, an exponent, and zeros to spare


def parse_stake(text: str) -> Decimal:
    """A JSON number as a stake. Raises ValueError when it is out of the protocol's bounds.

    The bounds (magnitude below 10^15, exponent above -20) imply the third, at
    most 34 digits. They are judged on the text and on `adjusted()`, before any
    arithmetic: a number of eight characters can take 46 s to become an int.
    """
    mantissa, _, exponent = text.lower().partition("e")
    if not mantissa.strip("-0."):
        return Decimal(0)
    if len(text) > _STAKE_TEXT:
        raise ValueError("out of range")
    try:
        stake = Decimal(text)
    except InvalidOperation:  # an exponent beyond what Decimal can hold
        raise ValueError("out of range") from None
    places = len(mantissa.partition(".")[2])
    if stake.adjusted() > STAKE_ADJUSTED_MAX or int(exponent or 0) - places < STAKE_EXPONENT_MIN:
        raise ValueError("out of range")
    return stake


def _read_currency(raw: Raw) -> str:
    if not raw:
        raise _Flaw("bad-currency", "the currency is missing")
    try:
        currency = _string(raw)
    except msgspec.DecodeError:
        raise _Flaw("bad-currency", f"currency {clipped(raw)} is not a string") from None
    if _CURRENCY.fullmatch(currency) is None:
        raise _Flaw("bad-currency", f"currency {quoted(currency)} is not a three-letter code")
    return currency


def _read_date(raw: Raw) -> datetime:
    if not raw:
        raise _Flaw("bad-date", "the date is missing")
    try:
        text = _string(raw)
    except msgspec.DecodeError:
        raise _Flaw("bad-date", f"date {clipped(raw)} is not a string") from None
    try:
        return parse_instant(text)
    except BadDate as flaw:
        raise _Flaw("bad-date", f"date {quoted(text)} {flaw}") from None


def encode_reply(request: Request, stake: str, date: str) -> bytes:
    """The request with its new stake (JSON number text), currency and date; all else as it came."""
    payload = {
        **request.payload,
        "stake": Raw(stake.encode()),
        "currency": _EUR,
        "date": Raw(f'"{date}"'.encode()),
    }
    return _encode({**request.members, "payload": payload})


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
        text = bytes(text)[: 4 * most].decode(errors="replace")
    cut = text[:most]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
    return cut if len(text) <= most else f"{cut}..."


def quoted(text: str) -> str:
    """`clipped`, between single quotes."""
    return f"'{clipped(text)}'"
