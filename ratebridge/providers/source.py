"""What a rate source is, and how sources read quotes and sheets."""

import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Protocol, TypeVar

import attrs
import msgspec
import trio
from msgspec import Raw

from ..conversion import is_quote
from ..errors import FetchOutcome, SourceFailed
from ..headers import read_count, read_date, retry_after
from ..rates import Quote, RateSheet, Row
from ..settings import Settings

T = TypeVar("T")

MAX_ROWS: Final = 500  # of a day: three times what the largest source lists
SOURCE_DECIMALS: Final = 5  # every source gives so many, though JSON cuts trailing zeros
AT_A_TIME: Final = 200  # rows that are read before the other tasks have their turn: some 2 ms

# Of the run, as a lock belongs to one: programs convert in several threads at once.
_READING: Final = trio.lowlevel.RunVar[trio.Lock | None]("reading", None)

_COARSEST: Final = 2000  # a quote of fewer last digits is coarse: one is over 0.05 % of it
_MAX_MEMBERS: Final = 64 * 1024  # bytes of an object of quotes; 500 of 34 digits take 23 KiB
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)
_QUOTE_TEXT: Final = 80  # characters: enough for 34 digits, too few for a number bomb
_NUMBER: Final = re.compile(rb"(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")  # of JSON, not negative
_NOT_JSON: Final = re.compile(rb"(?<=[:,\[\s])-?(?:NaN|Infinity)(?=[\s,\]}])")
_EURO: Final = Quote(Decimal(1))
_NO_RATES: Final = "answered with something else than rates"


@attrs.frozen
class HttpAnswer:
    """An HTTP answer.

    Attributes:
        status: any but those of a redirect, which is a failure.
        headers: by their names in lower case; of several lines of one name, the last.
        body: at most 1 MiB, as it came: it was not compressed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Http(Protocol):
    """The HTTP client of a source.

    It makes one attempt and has no time limit of its own: the chain cancels it.
    """

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        """GET `url` with `params`, whatever the status of the answer. Raises `SourceFailed`."""
        ...


@attrs.define
class Quota:
    """What is left of a source's quota, as the source itself reports it.

    Attributes:
        month_left: the calls left this month; what others did with the same key is in it.
        month_total: the calls of a month in the plan of the key.

    Each is None where the source does not tell, or has not told yet.
    """

    month_left: int | None = None
    month_total: int | None = None


class Source(Protocol):
    """A source of rates: what it can have, how often it may be asked, and one call to it.

    `name` is what the settings, the log, the metrics and the audit trail call it. A source knows
    nothing of caches, deadlines, retries and other sources: those are the chain's.
    """

    @property
    def name(self) -> str: ...

    @property
    def currencies(self) -> frozenset[str] | None:
        """Those that it can have; None: any. It is asked for no other."""
        ...

    @property
    def every(self) -> float | None:
        """Seconds from call to call in the long run, see `Budget`; None: as often as needed."""
        ...

    @property
    def quota(self) -> Quota | None:
        """The quota as last reported; None for a source without one."""
        ...

    def asks(self, day: date, today: date) -> str:
        """What a call for this day would ask for. Days with the same text come in one call."""
        ...

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        """A sheet that answers for a day, in one call or as few as the source allows.

        Args:
            day: the UTC day for which the sheet is asked; no later than that of `now`.
            now: the present instant, UTC; it becomes the sheet's `fetched`.

        The sheet's `asked` is what `asks` gives for the day. There is no time limit, as the chain
        cancels what takes too long. Raises `SourceFailed` where there is no sheet.
        """
        ...


@attrs.frozen
class Provider:
    """The declaration of a source's module, as `PROVIDER`; nothing else of it is used.

    Attributes:
        name: what the settings call it, and its module.
        make: makes the source from an HTTP client and the settings.
        hints: what to do about a failure, by outcome; the command `check` prints them.
        check: a step of the command `check` before the rates: its name, and a function of the
            source that returns what it found, or raises `SourceFailed`.
    """

    name: str
    make: Callable[[Http, Settings], Source]
    hints: Mapping[str, str] = attrs.Factory(dict)
    check: tuple[str, Callable[[Any], Awaitable[str]]] | None = None


def read_body(decode: Callable[[bytes], T], answer: HttpAnswer) -> T:
    """The decoded body of a 200.

    Raises `SourceFailed` for any other status, as `http-4xx`, `http-5xx` or `http-other`: it may be
    repeated at once after a 5xx. A 429 and a 503 are obeyed if they say when to come back (RFC
    9110, 10.2.3; RFC 6585, 4). Raises it as `bad-body` if `decode` raises a `DecodeError`,
    ValueError or RecursionError.
    """
    status = answer.status
    if status != 200:
        wait = retry_after(answer.headers) if status in (429, 503) else None
        kinds = {4: FetchOutcome.HTTP_4XX, 5: FetchOutcome.HTTP_5XX}
        raise SourceFailed(
            kinds.get(status // 100, FetchOutcome.HTTP_OTHER),
            f"answered HTTP {status}",
            again=status >= 500 or wait is not None,
            limited_for=wait,
        )
    try:
        return decode(answer.body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise SourceFailed(FetchOutcome.BAD_BODY, _NO_RATES) from None


def json_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A decoder for `read_body`: JSON, and null for the NaN and Infinity that some writers emit.

    So that such a quote costs its currency alone, like any other bad quote.
    """
    decode = msgspec.json.Decoder(kind).decode

    def decode_body(body: bytes) -> T:
        if b"NaN" in body or b"Infinity" in body:
            body = _NOT_JSON.sub(b"null", body)
        return decode(body)

    return decode_body


def read_quote(raw: Raw) -> Decimal | None:
    """A JSON value as a quote; None unless it is a number in range.

    All its digits are kept: it is read from its text, never through a float. Its size is bounded
    before it becomes a number, as a number bomb has only few characters (see `is_quote`). What is
    no JSON number is none, such as a number in quotation marks, NaN, and a negative one.
    """
    text = bytes(raw)
    if len(text) > _QUOTE_TEXT or _NUMBER.fullmatch(text) is None:
        return None
    try:
        quote = Decimal(text.decode("ascii"))
    except InvalidOperation:
        return None
    return quote if is_quote(quote) else None


def is_coarse(quote: Decimal) -> bool:
    """Whether the last digit of a quote is worth more than 0.05 % of it.

    JSON numbers lack trailing zeros: 1.1 may stand for 1.10000. So the last digit is the last one
    written, and at least the fifth decimal, which every source gives.
    """
    exponent = quote.as_tuple().exponent
    assert isinstance(exponent, int), "the quote is finite"
    return quote < Decimal(_COARSEST).scaleb(min(exponent, -SOURCE_DECIMALS))


def read_members(raw: Raw) -> list[tuple[str, Raw]]:
    """The members of a JSON object of numbers in order, duplicate names included.

    Any other value becomes an empty text. Raises `SourceFailed` for anything but an object, and for
    one that is too large.
    """
    if len(bytes(raw)) > _MAX_MEMBERS:
        raise SourceFailed(FetchOutcome.BAD_TABLE, "answered with more than a table of rates")

    def number(text: str) -> Raw:
        return Raw(text.encode())

    try:
        pairs = json.loads(
            bytes(raw), object_pairs_hook=tuple, parse_float=number, parse_int=number
        )
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, tuple):
        raise SourceFailed(FetchOutcome.BAD_BODY, _NO_RATES)
    return [(name, value if isinstance(value, Raw) else Raw(b"")) for name, value in pairs]


def reading() -> trio.Lock:
    """What is held while an answer is read: one at a time, as many would keep replies waiting."""
    if (lock := _READING.get()) is None:
        _READING.set(lock := trio.Lock())
    return lock


async def read_rows(rows: Iterable[tuple[str, Raw, date]]) -> dict[date, dict[str, Row]]:
    """The good rows of an answer, by their own day and by currency.

    Args:
        rows: in any order: a currency, its quote as JSON, and the day that it is of.

    Left out are bad quotes, and names that are not three capitals (ISO 4217); a coarse quote
    becomes the reason why it is not used. The other tasks have their turn between the rows.

    Raises `SourceFailed`, always as `bad-table`, for an answer that contradicts itself by two
    different quotes for one currency on one day, that has over `MAX_ROWS` rows for a day, or whose
    quotes are bad one and all.
    """
    good: dict[date, dict[str, Row]] = {}
    seen: dict[tuple[date, str], Decimal | None] = {}
    counts: dict[date, int] = {}
    async with reading():
        for place, (name, raw, day) in enumerate(rows):
            if place % AT_A_TIME == AT_A_TIME - 1:
                await trio.lowlevel.checkpoint()
            counts[day] = counts.get(day, 0) + 1
            if counts[day] > MAX_ROWS:
                raise SourceFailed(FetchOutcome.BAD_TABLE, f"has over {MAX_ROWS} rows for {day}")
            if _CURRENCY.fullmatch(name) is None:
                continue
            currency = sys.intern(name)
            units = read_quote(raw)
            if seen.setdefault((day, currency), units) != units:
                why = f"has two different quotes for {currency} on {day}"
                raise SourceFailed(FetchOutcome.BAD_TABLE, why)
            if units is None:
                continue
            good.setdefault(day, {})[currency] = (
                SourceFailed(FetchOutcome.COARSE, f"gives it in too few digits ({units:f})")
                if is_coarse(units)
                else Quote(units)
            )
    if seen and not good:
        raise SourceFailed(FetchOutcome.BAD_TABLE, "gives quotes that are not JSON numbers")
    return good


def drop_euro(rows: Mapping[date, dict[str, Row]]) -> None:
    """Take the euro's own rows out of quotes in units for one euro.

    Raises `SourceFailed`, as `bad-table`, if one of them is not 1: then the base is not the euro.
    """
    for day, of_day in rows.items():
        if of_day.pop("EUR", _EURO) != _EURO:
            raise SourceFailed(FetchOutcome.BAD_TABLE, f"has another quote than 1 for EUR on {day}")


def make_sheet(
    provider: str,
    asked: str,
    days: tuple[date, date],
    rows: Mapping[date, Mapping[str, Row]],
    now: datetime,
    headers: Mapping[str, str],
    *,
    latest: bool = False,
) -> RateSheet:
    """A sheet of what one call brought.

    Args:
        provider: the name of the source.
        asked: what `Source.asks` calls it.
        days: the first and the last day that it answers for.
        rows: what the source published on each day, by currency.
        now: the instant of the request, UTC.
        headers: those of the answer, for its Date (RFC 9110, 6.6.1).
        latest: as in `RateSheet`.

    Raises `SourceFailed`, as `no-table`, if there is no row.
    """
    if not any(rows.values()):
        raise SourceFailed(FetchOutcome.NO_TABLE, f"has no rates for {asked}")
    # An answer from a cache on the way has its age, and some caches date their copies anew.
    clock = None if (read_count(headers.get("age")) or 0) > 0 else read_date(headers.get("date"))
    currencies = frozenset(code for of_day in rows.values() for code in of_day)
    return RateSheet(
        provider, asked, *days, rows, now, currencies, latest=latest, source_clock=clock
    )
