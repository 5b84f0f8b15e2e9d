"""The interface of rate sources, and how they read quotes, tables and headers."""

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

from ..budget import Budget
from ..conversion import is_quote
from ..errors import SourceFailed
from ..rates import MAX_DAYS_BACK, Quote, RateTable
from ..settings import Settings

T = TypeVar("T")

LONGEST_WAIT: Final = 86400  # s, the longest Retry-After that is obeyed

MAX_AGE: Final = 10**9  # s of an answer in a cache: some thirty years
MAX_ROWS: Final = 500  # three times what the largest source lists
SOURCE_DECIMALS: Final = 5  # every source gives so many, though JSON cuts trailing zeros

_COARSEST: Final = 2000  # a quote of fewer last digits is coarse: one is over 0.05 % of it
_MAX_MEMBERS: Final = 64 * 1024  # bytes of an object of quotes; 500 of 34 digits take 23 KiB
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)
_DATE_TEXT: Final = 40  # characters; an HTTP date has 29
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_QUOTE_TEXT: Final = 80  # characters: enough for 34 digits, too few for a number bomb
_COUNT: Final = re.compile(r"-?\d{1,12}", re.ASCII)
_NOT_JSON: Final = re.compile(rb"(?<=[:,\[\s])-?(?:NaN|Infinity)(?=[\s,\]}])")


@attrs.frozen
class Answer:
    """An HTTP answer of any status, with lower-case header names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Http(Protocol):
    """The HTTP client of a source."""

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """GET `url` with `params`, whatever the status of the answer. Raises `SourceFailed`."""
        ...


@attrs.define
class Quota:
    """Calls left this minute and this month as the source reports them; None if it does not."""

    minute_left: int | None = None
    month_left: int | None = None
    month_total: int | None = None


class Source(Protocol):
    """A source of day-tables. `name` is what the settings call it."""

    @property
    def name(self) -> str: ...

    async def fetch(self, day: date, now: datetime) -> RateTable:
        """All quotes valid on a day no later than the UTC day of `now`.

        One call, or as few as the source allows, without a time limit. Raises
        `SourceFailed`.
        """
        ...

    @property
    def quota(self) -> Quota | None:
        """The quota as last reported; None for a source without one."""
        ...

    @property
    def budget(self) -> Budget | None:
        """How often it may be asked; None for a source that may always be asked."""
        ...


@attrs.frozen
class Provider:
    """The declaration of a source's module, as `PROVIDER`; nothing else of it is used.

    `make` makes the source from an HTTP client and the settings; its own are fields of
    `Settings`, and so is which of them it requires.
    `hints` say what to do about a failure, by outcome. `check` is a step of the command
    `check` before the tables: its name, and a function of the source that returns what
    it found or raises `SourceFailed`.
    """

    name: str
    make: Callable[[Http, Settings], Source]
    hints: Mapping[str, str] = attrs.Factory(dict)
    check: tuple[str, Callable[[Any], Awaitable[str]]] | None = None


def read_body(decode: Callable[[bytes], T], answer: Answer) -> T:
    """The decoded body of a 200.

    Raises `SourceFailed` for any other status, and if `decode` raises a `DecodeError`,
    ValueError or RecursionError.
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


def json_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A decoder for `read_body`: JSON, and null for the NaN and Infinity that some writers emit.

    So that such a quote costs its currency alone, like any other bad quote.
    """
    decode = msgspec.json.Decoder(kind).decode
    return lambda body: decode(_NOT_JSON.sub(b"null", body))


def read_quote(raw: Raw) -> Decimal | None:
    """A JSON value as a quote; None unless it is a number in range."""
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

    JSON numbers lack trailing zeros: 1.1 may stand for 1.10000. So the last digit is
    the last one written, and at least the fifth decimal, which every source gives.
    """
    exponent = quote.as_tuple().exponent
    assert isinstance(exponent, int), "the quote is finite"
    return quote < Decimal(_COARSEST).scaleb(min(exponent, -SOURCE_DECIMALS))


def read_members(raw: Raw) -> list[tuple[str, Raw]]:
    """The members of a JSON object of numbers in order, duplicate names included.

    Any other value becomes an empty text. Raises `SourceFailed` for anything but an
    object, and for one that is too large.
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

    Left out are bad quotes, quotes of a later day or one more than five days earlier,
    and names that are not three capitals. A coarse quote is refused, see `is_coarse`.
    `headers` are those of the answer, for its date; `bases` are the allowed base
    currencies; `latest` is as in `RateTable`. Raises `SourceFailed` if EUR or every
    other currency is missing, and for a table that contradicts itself: two different
    quotes for one currency, or a base that is not 1.
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
    made = source_clock = read_date(headers.get("date"))
    age = read_count(headers.get("age")) or 0
    if made is not None and age > 0:  # from a cache on the way, and some date their copies anew
        made, source_clock = made - timedelta(seconds=min(age, MAX_AGE)), None
    return RateTable(provider, day, quotes, fetched, refused, latest, made, source_clock)


def read_count(header: str | None) -> int | None:
    """The whole number in a header; None if there is none."""
    return int(header) if header is not None and _COUNT.fullmatch(header) else None


def read_date(header: str | None) -> datetime | None:
    """The instant of a Date header (RFC 9110); None if there is none."""
    if header is None or len(header) > _DATE_TEXT:
        return None
    try:
        instant = parsedate_to_datetime(header)
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header, bounded; None if there is none in seconds."""
    seconds = read_count(headers.get("retry-after"))
    return float(min(seconds, LONGEST_WAIT)) if seconds is not None and seconds > 0 else None
