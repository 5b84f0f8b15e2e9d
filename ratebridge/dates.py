"""Instants and days: what a date on the wire means, and which day's rates it takes.

The rule of what is accepted, in one place: a date is an ISO 8601 instant in the
extended format, as RFC 3339 narrows it, with three liberties. The seconds may be
missing, the offset may be missing (then it is UTC), and a bare day is its
midnight UTC. Hours run from 00 to 23. A leap second is taken for the second
before it. Week dates, ordinal dates, the basic format and digits outside ASCII
are refused. An offset is taken to UTC, and the UTC calendar day counts.
"""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

import msgspec

EARLIEST: Final = date(1999, 1, 4)  # the first day for which the ECB published rates
CLOCK_SKEW: Final = timedelta(minutes=5)  # how far a peer's clock may be ahead of ours

_DATE: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ]([01]\d|2[0-3]):[0-5]\d(?::(?:[0-5]\d|(60))(?:\.\d{1,9})?)?"
    r"([Zz]|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?)?",
    re.ASCII,
)

_encode = msgspec.json.Encoder().encode


class BadDate(ValueError):
    """The text is no date by the rule of this module, or out of its range; `str()` says why."""


def parse_instant(text: str) -> datetime:
    """Read a date of the wire as an aware UTC datetime.

    Raises `BadDate` with words that continue the quoted text, such
    as "is not a day".
    """
    matched = _DATE.fullmatch(text)
    if matched is None:
        raise BadDate("is not an ISO 8601 date and time")
    leap_second = matched[3]
    if leap_second:
        text = text[: matched.start(3)] + "59" + text[matched.end(3) :]
    try:
        instant = datetime.fromisoformat(text.upper())
    except ValueError:
        raise BadDate("is not a day") from None
    try:
        instant = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except OverflowError:
        raise BadDate("is out of range") from None
    if leap_second and (instant.hour, instant.minute) != (23, 59):
        raise BadDate("is not an ISO 8601 date and time")
    return instant


def rate_day(instant: datetime, now: datetime) -> date:
    """The UTC day whose table is valid at `instant`, seen from `now` (both aware, UTC).

    An instant ahead of `now` by no more than `CLOCK_SKEW` is today. Raises
    `BadDate` for one further ahead, or before `EARLIEST`.
    """
    day = instant.date()
    today = now.date()
    if day < today:
        if day < EARLIEST:
            raise BadDate(f"is before {EARLIEST}, the first day with rates")
        return day
    if instant - now > CLOCK_SKEW:
        raise BadDate("is in the future")
    return today


def wire_time(instant: datetime) -> str:
    """An aware UTC datetime as the wire has it: `2021-05-18T21:32:42.412Z`."""
    return wire_json(instant)[1:-1].decode()


def wire_json(instant: datetime) -> bytes:
    """An aware UTC datetime as a JSON string of the wire: `"2021-05-18T21:32:42.412Z"`."""
    # A whole second has no fraction. `isoformat` takes ten times as long.
    text = _encode(instant)
    return text[:24] + b'Z"' if instant.microsecond else text[:20] + b'.000Z"'
