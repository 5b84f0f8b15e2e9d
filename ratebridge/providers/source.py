"""What every rate source is to the chain, and what they all do with a quote."""

import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from types import MappingProxyType
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

MAX_ROWS: Final = 500  # three times what the largest source lists
SOURCE_DECIMALS: Final = 5  # that every source gives, though JSON cuts their trailing zeros off

_COARSEST: Final = 2000  # last digits in a quote: fewer, and one is worth more than 0.05 % of it
_MAX_MEMBERS: Final = 64 * 1024  # bytes of an object of quotes; 500 of 34 digits take 23 KiB
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)
_DATE_TEXT: Final = 40  # characters; an HTTP date has 29
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
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
    """A source of day-tables. `name` is what the settings call it.

    One that asks a network has a `budget` too, of the type `Budget`; the chain keeps to it.
    """

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


def is_coarse(quote: Decimal) -> bool:
    """Whether the last digit of a quote is worth more than 0.05 % of it.

    A number in JSON has lost its trailing zeros: 1.1 may stand for 1.10000, so the
    text alone does not say where the last digit is. Up to the fifth decimal, which
    every source gives, zeros count as cut off; beyond it only what is written counts.
    """
    exponent = quote.as_tuple().exponent
    assert isinstance(exponent, int), "the quote is finite"
    return quote < Decimal(_COARSEST).scaleb(min(exponent, -SOURCE_DECIMALS))


def read_members(raw: Raw) -> list[tuple[str, Raw]]:
    """The members of a JSON object of numbers in their order, those of the same name too.

    What is no number is an empty text. Raises `SourceFailed` when it is no object, or
    too large for one.
    """
    if len(bytes(raw)) > _MAX_MEMBERS:
        raise SourceFailed("bad-table", "answered with more than a table of rates")

    def number(text: str) -> Raw:
        return Raw(text.encode())

    try:
        pairs = json.loads(
            bytes(raw), object_pairs_hook=tuple, parse_float=number, parse_int=number
        )
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, tuple):
        raise SourceFailed("bad-body", "answered with something else than rates")
    return [(name, value if isinstance(value, Raw) else Raw(b"")) for name, value in pairs]


def make_table(
    provider: str,
    day: date,
    fetched: datetime,
    rows: Iterable[tuple[str, Raw, date]],
    *,
    headers: Mapping[str, str] = _NO_HEADERS,
    bases: Sequence[str] = ("EUR",),
    latest: bool = False,
) -> RateTable:
    """A table of the good rows: (currency, quote as JSON, the day it is of).

    A bad quote, or one more than five days older than the day asked for (or
    younger than it), is left out; one with too few digits is refused, see
    `is_coarse`. What is no code of three capitals is no currency. `headers` are
    those of the answer, for its date; `bases` what the table may be for one of;
    `latest` as in `RateTable`. Raises `SourceFailed` when EUR, or all else, is not
    among the rest, and for a table that contradicts itself: two different quotes
    for one currency, or not 1 for its base.
    """
    oldest = day - timedelta(days=MAX_DAYS_BACK)
    seen: dict[str, Decimal | None] = {}
    quotes: dict[str, Quote] = {}
    refused: dict[str, SourceFailed] = {}
    for number, (name, raw, quoted_on) in enumerate(rows):
        if number >= MAX_ROWS:
            raise SourceFailed("bad-table", f"has over {MAX_ROWS} rows for {day}")
        if _CURRENCY.fullmatch(name) is None:
            continue
        currency = sys.intern(name)
        units = read_quote(raw)
        if seen.setdefault(currency, units) != units:
            raise SourceFailed("bad-table", f"has two different quotes for {currency} on {day}")
        if units is None or not oldest <= quoted_on <= day:
            continue
        if is_coarse(units):
            refused[currency] = SourceFailed("coarse", f"gives it in too few digits ({units:f})")
        elif currency not in quotes or quotes[currency].day < quoted_on:
            quotes[currency] = Quote(units, quoted_on)
    given = [quotes[base].units for base in bases if base in quotes]
    if given and 1 not in given:
        raise SourceFailed("bad-table", f"has no quote of 1 for its own base on {day}")
    if "EUR" not in quotes or len(quotes) < 2:
        raise SourceFailed("bad-table", f"has no usable table for {day}")
    made = read_date(headers.get("date"))
    age = timedelta(seconds=max(0, read_count(headers.get("age")) or 0))  # in a cache on the way
    return RateTable(provider, day, quotes, fetched, refused, latest, made, made and made + age)


def read_count(header: str | None) -> int | None:
    """A whole number from a header, None when there is none to be had."""
    return int(header) if header is not None and _COUNT.fullmatch(header) else None


def read_date(header: str | None) -> datetime | None:
    """The instant of a Date header (RFC 9110), None when there is none to be had."""
    if header is None or len(header) > _DATE_TEXT:
        return None
    try:
        instant = parsedate_to_datetime(header)
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a source asks us to stay away; None where it does not say so in seconds."""
    seconds = read_count(headers.get("retry-after"))
    return float(min(seconds, LONGEST_WAIT)) if seconds is not None and seconds > 0 else None
