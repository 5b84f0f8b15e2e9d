"""The wire: frames in, frames out, and the only place that knows their JSON.

What we do not own is echoed byte for byte: a reply is the request as it was sent,
with three values put in place of others. White space, the spelling of names and
numbers, the order of the members and names that we do not know stay as they are.

How a request is read. msgspec says whether the text is JSON (RFC 8259; no `NaN`,
and no half of a surrogate pair, which is no text in any encoding), and splits an
object into its members. Where each value stands is found by walking along them.
`shapes` reads the next request of the same spelling faster.

A name that we read stands once. RFC 8259, section 4, leaves it to the reader which
of two members with the same name counts, so a reply that echoed both could be read
with the old stake. Hence a request that gives `type`, `id` or `payload` twice, or
`stake`, `currency` or `date` in its payload, is refused. For whom the refusal is,
and whether it is a request at all, the last one says, as in most parsers.
"""

import re
from array import array
from datetime import datetime
from decimal import Decimal
from itertools import accumulate
from operator import call
from typing import Final, Literal

import msgspec

from .conversion import STAKE_ADJUSTED_MAX, STAKE_EXPONENT_MIN
from .dates import parse_instant
from .errors import Drop, Refusal, Refused, Unreadable

MAX_TEXT: Final = 64 * 1024  # bytes; anything longer is not parsed (TASK.md, its bounds)
MAX_DEPTH: Final = 100  # levels; anything deeper is not parsed (the same)
QUOTED: Final = 40  # characters of the input that an error text may quote
ERROR_TEXT: Final = 299  # characters; an error text is under 300 (the same)

HEARTBEAT: Final = b'{"type":"heartbeat"}'


class Heartbeat:
    """The peer is alive. There is one, `THE_HEARTBEAT`."""


THE_HEARTBEAT: Final = Heartbeat()


class Request(msgspec.Struct, frozen=True, gc=False):
    """A stake to convert.

    `id` is raw JSON, and so is `date`, whose meaning is `instant` (aware UTC). `parts` are the
    frame, cut before and behind four values, and `places` tells which of the parts (from 0)
    these are: id, stake, currency and date.
    """

    id: bytes
    stake: Decimal
    currency: str
    instant: datetime
    date: bytes
    parts: tuple[bytes, ...]
    places: tuple[int, ...]


_check = msgspec.json.Decoder(msgspec.Raw).decode
_type = msgspec.json.Decoder(Literal["heartbeat", "message"]).decode
_string = msgspec.json.Decoder(str).decode

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
_up_to_value = re.compile(rb'[ \t\n\r{,]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\n\r:]++', re.DOTALL).match


def _walk(text: bytes, at: int, *names: str) -> dict[str, list[tuple[int, bytes]]]:
    """The members with these names of an object that begins `at` a place of its frame.

    By name: where each value begins in the frame, and the value. Raises
    `msgspec.ValidationError` if the text is no object.
    """
    found: dict[str, list[tuple[int, bytes]]] = {name: [] for name in names}
    end = 0
    for name, value in _members(text).items():
        matched = _up_to_value(text, end)
        assert matched is not None, "msgspec has read this name"
        begin = matched.end()
        end = begin + len(value)
        if (key := str(name)) in found:
            found[key].append((at + begin, bytes(value)))
    return found


def decode(frame: bytes) -> Heartbeat | Request:
    """Read one text frame, which is UTF-8 (the link has checked it).

    Raises `Unreadable` when nobody can be answered, and `Refused`, with the id,
    when something else is wrong. An id of `null` is none; any other is echoed.
    """
    if len(frame) > MAX_TEXT:
        raise Unreadable(Drop.TOO_LONG)
    if _is_deep(frame):
        raise Unreadable(Drop.TOO_DEEP)
    try:
        _check(frame)
    except msgspec.DecodeError:
        raise Unreadable(Drop.NOT_JSON) from None
    try:
        outer = _walk(frame, 0, "type", "id", "payload")
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
    if not outer["payload"] or not outer["payload"][-1][1].startswith(b"{"):
        flaw = "the payload is not an object"
    elif max(map(len, outer.values())) > 1:
        flaw = "type, id or payload is given twice"
    else:
        return _read_request(frame, outer["id"][0], *outer["payload"][0])
    raise Refused(outer["id"][-1][1], Refusal.BAD_MESSAGE, flaw)


def _read_request(
    frame: bytes, message_id: tuple[int, bytes], begin: int, payload: bytes
) -> Request:
    """A request whose id and payload are found. Raises `Refused`."""
    found = _walk(payload, begin, "stake", "currency", "date")
    for name, values in found.items():
        if len(values) != 1:
            flaw = f"the {name} is {'given twice' if values else 'missing'}"
            raise Refused(message_id[1], Refusal(f"bad-{name}"), flaw)
    ours = [values[0] for values in found.values()]
    stake, currency, date = (value for _, value in ours)
    name, shown = "stake", clipped(stake)
    try:
        amount = parse_stake(stake.decode())
        name, shown = "currency", clipped(currency)
        code = _string(currency)
        shown = quoted(code)
        if not is_currency(code):
            raise ValueError("is not three capital letters")  # noqa: TRY301 - one way for all flaws
        name, shown = "date", clipped(date)
        text = _string(date)
        shown = quoted(text)
        instant = parse_instant(text)
    except (ValueError, msgspec.ValidationError) as error:
        flaw = "is not a string" if isinstance(error, msgspec.ValidationError) else str(error)
        raise Refused(message_id[1], Refusal(f"bad-{name}"), f"{name} {shown} {flaw}") from None
    parts: list[bytes] = []
    places = [0, 0, 0, 0]
    end = 0
    for (at, value), which in sorted(zip((message_id, *ours), range(4), strict=True)):
        places[which] = len(parts) + 1
        parts += frame[end:at], value
        end = at + len(value)
    parts.append(frame[end:])
    return Request(message_id[1], amount, code, instant, date, tuple(parts), tuple(places))


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


def encode_reply(request: Request, stake: str, date: bytes) -> bytes:
    """The request with `stake` (a JSON number), `EUR` and `date` (JSON) in place of its own."""
    _, its_stake, its_currency, its_date = request.places
    parts = [*request.parts]
    parts[its_stake], parts[its_currency], parts[its_date] = stake.encode(), b'"EUR"', date
    return b"".join(parts)


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
