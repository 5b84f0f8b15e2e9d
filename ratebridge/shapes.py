"""Requests written like one that was read before are read by one match. Pure.

`messages.decode` reads any text, member by member. But a feed writes its requests alike:
the names, their order and the white space stay, and the values change. So a request that
`decode` has read becomes a `Shape`: a regular expression that is the request itself, with
a pattern in place of its values, those of objects and arrays one by one. A text that it
matches is JSON with the same names in the same places. Where one of our three values is out
of the ordinary, `decode` says what that means.

Nothing but speed depends on which shapes are known: whatever a `Reader` has read before,
it reads a text as `decode` does. `test_shapes` compares them.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, NamedTuple

import msgspec

from .messages import MAX_TEXT, Heartbeat, Request, decode, parse_stake

MOST_SHAPES: Final = 8  # each is tried before the next
LEARN_EVERY: Final = 1_000  # texts without a shape; an expression takes 2 to 8 ms to compile
LONGEST: Final = 1_024  # bytes of a text that becomes a shape; `re` keeps 512 expressions
MOST_COMMAS: Final = 40  # in it: as many values, each of which takes time and memory
SHORT: Final = 15  # characters: a number without exponent is within all bounds of a stake

# Values (RFC 8259). No repetition is taken back, so the time is in proportion to the text. But no
# group is possessive: Python 3.11.2 takes the point of "1." for a match of `(?:\.[0-9]++)?+`.
# `decode` is left with exponents, and with escapes, two of which can be half a pair each.
_NUMBER: Final = rb"-?(?!0[0-9])[0-9]++(?:\.[0-9]++)?"
_STRING: Final = rb'"[^"\\\x00-\x1f]*+"'
_VALUES: Final = {"number": _NUMBER, "string": _STRING, "word": rb"(?:true|false|null)"}
_ID: Final = rb"%b|%b|true|false" % (_NUMBER, _STRING)  # null is none
# An instant with an offset. Of more than six decimals msgspec would round the sixth.
_DATE: Final = rb'"[-0-9]{10}[Tt ][:0-9]{8}(?:\.[0-9]{1,6}+)?[Zz+-][:0-9]*+"'
_OURS: Final = (_ID, _NUMBER, rb'"[A-Z]{3}"', _DATE)  # in the order of `Request.places`

_TOKEN: Final = re.compile(
    rb'(?P<text>"type"[ \t\n\r]*+:[ \t\n\r]*+"message"|"[^"]*+"[ \t\n\r]*+:|[{}\[\], \t\n\r]++)'
    rb'|(?P<string>"[^"]*+")|(?P<number>[-0-9][-+.eE0-9]*+)|(?P<word>true|false|null)'
)
_instant = msgspec.json.Decoder(datetime).decode


class Shape(NamedTuple):
    """How a request is written: each part of it, or a pattern of what may stand there.

    The groups of a match are the `Request.parts`, whose `places` are always the same.
    """

    match: Callable[[bytes], re.Match[bytes] | None]
    places: tuple[int, ...]

    @classmethod
    def of(cls, request: Request) -> "Shape":
        """The shape of a request that has no escapes, so a name is what it looks like."""

        def pattern(token: re.Match[bytes]) -> bytes:
            return _VALUES.get(token.lastgroup or "") or re.escape(token[0])

        ours = dict(zip(request.places, _OURS, strict=True))
        patterns = [
            ours.get(place) or _TOKEN.sub(pattern, part) for place, part in enumerate(request.parts)
        ]
        whole = b"".join(b"(%b)" % one for one in patterns)
        return cls(re.compile(whole).fullmatch, request.places)


class Reader:
    """Reads the texts of one peer, one after another, as `decode` does, but most of them faster."""

    def __init__(self) -> None:
        self._shapes: tuple[Shape, ...] = ()  # the one used last is first
        self._unlike = 0  # requests that no shape has read

    def read(self, frames: Sequence[bytes]) -> list[Request | None]:
        """The requests among text frames (UTF-8), each in its place; None is left to `walk`."""
        # One call for a batch, and no other for a text of a known shape: a call costs 0.1 µs.
        requests: list[Request | None] = []
        match = matched = None
        for frame in frames:
            request = None
            for match, places in self._shapes if len(frame) <= MAX_TEXT else ():
                if matched := match(frame):
                    parts = matched.groups()
                    its_id, its_stake, its_currency, its_date = places
                    text, date = parts[its_stake].decode(), parts[its_date]
                    try:
                        short = len(text) <= SHORT
                        stake = Decimal(text) or Decimal(0) if short else parse_stake(text)
                        instant = _instant(date)
                        if instant.tzinfo is not UTC:
                            instant = instant.astimezone(UTC)
                    except (ValueError, msgspec.DecodeError, OverflowError):  # no number or day
                        break
                    code = parts[its_currency][1:4].decode()
                    request = Request(parts[its_id], stake, code, instant, date, parts, places)
                    break
            requests.append(request)
        if matched and match is not self._shapes[0].match:
            self._shapes = tuple(sorted(self._shapes, key=lambda shape: shape.match is not match))
        return requests

    def walk(self, frame: bytes) -> Heartbeat | Request:
        """The message of a text that `read` has left; raises as `decode`. Its shape is learned."""
        message = decode(frame)
        if isinstance(message, Request):
            learns = self._unlike % LEARN_EVERY == 0 and len(frame) <= LONGEST
            self._unlike += 1
            if learns and b"\\" not in frame and frame.count(b",") <= MOST_COMMAS:
                # One that is known comes again where its values are out of the ordinary.
                shapes = dict.fromkeys((Shape.of(message), *self._shapes))
                self._shapes = tuple(shapes)[:MOST_SHAPES]
        return message
