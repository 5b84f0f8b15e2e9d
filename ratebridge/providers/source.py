"""What every rate source is to the chain, and what they all do with a quote."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Protocol, TypeVar

import attrs
import msgspec
from msgspec import Raw

from ..conversion import is_quote
from ..errors import SourceFailed
from ..rates import MAX_DAYS_BACK, Quote, RateTable
from ..setting import Setting, Values

T = TypeVar("T")

LONGEST_WAIT: Final = 86400  # s: longer than a day no header keeps us away

_QUOTE_TEXT: Final = 80  # characters; 34 digits need no more, and a number bomb may not try
_COUNT: Final = re.compile(r"-?\d{1,12}", re.ASCII)


@attrs.frozen
class Answer:
    """An HTTP answer of any status, with lower-case header names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Http(Protocol):
    """What a source asks the network with."""

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """GET `url` with `params`, whatever the status of the answer. Raises `SourceFailed`."""
        ...


@attrs.define
class Quota:
    """What a source lets us ask for, where it says so: calls left this minute and this month."""

    minute_left: int | None = None
    month_left: int | None = None
    month_total: int | None = None


class Source(Protocol):
    """A source of day-tables. `name` is what the settings call it."""

    @property
    def name(self) -> str: ...

    async def fetch(self, day: date, now: datetime) -> RateTable:
        """All quotes valid on a day no later than the UTC day of `now`.

        One call, or as near to it as the source allows. Raises `SourceFailed`;
        has no time limit of its own beyond that of a single request.
        """
        ...

    @property
    def quota(self) -> Quota | None:
        """What the source said of our quota, None when it has none."""
        ...


@attrs.frozen
class Provider:
    """What a module of a source declares, as `PROVIDER`; all that the rest knows of it.

    `make` makes the source of what it asks with and of the values of its
    `settings`. `hints` say what to do about a failure, by its outcome. `check` is a
    step of that command, tried before the tables are: its name, and what says what
    it found, or raises `SourceFailed`.
    """

    name: str
    make: Callable[[Http, Values], Source]
    settings: tuple[Setting[Any], ...] = ()
    hints: Mapping[str, str] = attrs.Factory(dict)
    check: tuple[str, Callable[[Any], Awaitable[str]]] | None = None


def read_body(decode: Callable[[bytes], T], answer: Answer) -> T:
    """What `decode` makes of the body of a 200.

    Raises `SourceFailed` for any other status, and where `decode` raises a
    `DecodeError`, ValueError or RecursionError. Prose decides nothing.
    """
    status = answer.status
    if status != 200:
        wait = retry_after(answer.headers) if status == 429 else None
        raise SourceFailed(
            f"http-{status}",
            f"answered HTTP {status}",
            again=status >= 500 or wait is not None,
            after=wait,
            limited_for=wait,
        )
    try:
        return decode(answer.body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise SourceFailed("bad-body", "answered with something else than rates") from None


def read_quote(raw: Raw) -> Decimal | None:
    """A JSON value as a quote; None when it is anything but a number in range."""
    text = bytes(raw)
    if not text or text[0] not in b"0123456789" or len(text) > _QUOTE_TEXT:
        return None  # negative numbers and strings go here too
    try:
        quote = Decimal(text.decode("ascii"))
    except InvalidOperation:
        return None
    return quote if is_quote(quote) else None


def make_table(
    provider: str, day: date, fetched: datetime, rows: Iterable[tuple[str, Raw, date]]
) -> RateTable:
    """A table of the good rows: (currency, quote as JSON, the day it is of).

    A bad quote, or one more than five days older than the day asked for (or
    younger than it), is left out. Raises `SourceFailed` when EUR, or all else,
    is not among the rest.
    """
    oldest = day - timedelta(days=MAX_DAYS_BACK)
    quotes = {
        currency: Quote(units, quoted_on)
        for currency, raw, quoted_on in rows
        if oldest <= quoted_on <= day and (units := read_quote(raw)) is not None
    }
    if "EUR" not in quotes or len(quotes) < 2:
        raise SourceFailed("bad-table", f"has no usable table for {day}")
    return RateTable(provider, day, quotes, fetched)


def read_count(header: str | None) -> int | None:
    """A whole number from a header, None when there is none to be had."""
    return int(header) if header is not None and _COUNT.fullmatch(header) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a source asks us to stay away; None where it does not say so in seconds."""
    seconds = read_count(headers.get("retry-after"))
    return float(min(seconds, LONGEST_WAIT)) if seconds is not None and seconds > 0 else None
