"""Frankfurter v2: some 160 currencies from 80 central banks, no key, self-hostable.

A blend of the banks' rates, cut to 5 decimals, so that small ones have few digits. Each row has
its own day.
"""

from datetime import date, datetime
from typing import Final

import msgspec
from msgspec import Raw

from ..budget import Budget
from ..errors import SourceFailed
from ..rates import RateTable
from .source import Http, Provider, json_decoder, make_table, read_body

MONTH_OF_CALLS: Final = 250_000  # one in 10 s: it has no quota, but blocks abuse


class _Row(msgspec.Struct):
    day: date = msgspec.field(name="date")
    base: str
    quote: str
    rate: Raw


_rows = json_decoder(list[_Row])
_EURO_ROW: Final = Raw(b"1")


class Frankfurter:
    """One call for each day-table, with a euro base."""

    name = "frankfurter"
    quota = None

    def __init__(self, http: Http, url: str) -> None:
        self.budget: Final = Budget.of_month(MONTH_OF_CALLS)
        self._http = http
        self._url = url

    async def fetch(self, day: date, now: datetime) -> RateTable:
        """See `Source`. The day is always sent: without it the answer may hold tomorrow's rows."""
        params = {"date": day.isoformat(), "base": "EUR"}
        answer = await self._http.get(f"{self._url}/rates", params)
        rows = read_body(_rows, answer)
        if any(row.base != "EUR" for row in rows):
            raise SourceFailed("bad-table", "answered with another base than the euro")
        quotes = [(row.quote, row.rate, row.day) for row in rows]
        rows_with_euro = [*quotes, ("EUR", _EURO_ROW, day)]
        return make_table(self.name, day, now, rows_with_euro, headers=answer.headers)


PROVIDER: Final = Provider(
    Frankfurter.name, lambda http, settings: Frankfurter(http, settings.frankfurter_url)
)
