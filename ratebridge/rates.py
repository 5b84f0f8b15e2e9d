"""The table of one day, the rate taken from it, and the expiring dict of tables.

Pure: time is passed in, as monotonic seconds where a life is measured, as UTC
where a day is meant.
"""

from collections import OrderedDict
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Final

import attrs

from .errors import SourceFailed

MAX_DAYS_BACK: Final = 5  # how much older than the day asked for a quote may be (protocol, dates)
FAILURE_LIFE: Final = 5.0  # s: an outage costs a call per 5 s and table, not one per request
MAX_TABLES: Final = 512  # some 15 MB of full tables; a year and a half of days from one source


@attrs.frozen
class Quote:
    """How much of a currency makes one of the table's base, and the day it is of."""

    units: Decimal
    day: date


@attrs.frozen
class RateTable:
    """Every quote that one source gives for one day. It holds EUR, and only good quotes.

    `day` is the day asked for, `fetched` the UTC instant of the answer.
    """

    provider: str
    day: date
    quotes: Mapping[str, Quote]
    fetched: datetime

    @property
    def final(self) -> bool:
        """Whether the day was over when the table was fetched, so that it changes no more."""
        return self.fetched.date() > self.day


@attrs.frozen
class Rate:
    """One currency's rate with its provenance.

    One euro is `units / euro` of the currency; `day` is the day the rate is of,
    `asked` the day it was asked for. `cached` tells that no call was made for it.
    """

    currency: str
    units: Decimal
    euro: Decimal
    day: date
    asked: date
    provider: str
    fetched: datetime
    cached: bool

    @property
    def text(self) -> str:
        """Units for one euro as exact text: a number, or a quotient where the base is no euro."""
        return f"{self.units:f}" if self.euro == 1 else f"{self.units:f}/{self.euro:f}"


def rate_from(table: RateTable, currency: str, *, cached: bool) -> Rate | None:
    """The table's rate for a currency, or None when the table does not know it."""
    quote = table.quotes.get(currency)
    if quote is None:
        return None
    euro = table.quotes["EUR"]
    return Rate(
        currency,
        quote.units,
        euro.units,
        min(quote.day, euro.day),
        table.day,
        table.provider,
        table.fetched,
        cached,
    )


@attrs.define
class _Entry:
    table: RateTable | None = None
    fetched_at: float = 0.0
    failure: SourceFailed | None = None
    failed_at: float = 0.0


class Tables:
    """What is known of each (source, day): a table, a recent failure, or both.

    Holds at most `most` of them and forgets the one unused for longest. A table
    lives `life` seconds; beyond that it is served only while its source fails,
    and only if it is final.
    """

    def __init__(self, life: float, most: int = MAX_TABLES) -> None:
        self._life = life
        self._most = most
        self._entries: OrderedDict[tuple[str, date], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return sum(entry.table is not None for entry in self._entries.values())

    def find(
        self,
        provider: str,
        day: date,
        *,
        today: date,
        now: float,
        failure: SourceFailed | None = None,
    ) -> RateTable | SourceFailed | None:
        """What to go by at monotonic time `now`; None when the source has to be asked.

        `failure` is why the source cannot be asked for anything at present, if so.
        """
        key = (provider, day)
        entry = self._entries.get(key)
        if entry is None:
            return failure
        self._entries.move_to_end(key)
        table = entry.table
        if table is not None and not table.final and day < today:
            table = None  # made while the day still ran: not what its final table says
        if table is not None and now - entry.fetched_at < self._life:
            return table
        if entry.failure is not None and now - entry.failed_at < FAILURE_LIFE:
            failure = entry.failure
        if failure is not None and table is not None and table.final:
            return table
        return failure

    def store(self, table: RateTable, now: float) -> None:
        """Keep a fetched table; it takes the place of what was known."""
        self._put((table.provider, table.day), _Entry(table, now))

    def store_failure(self, provider: str, day: date, failure: SourceFailed, now: float) -> None:
        """Remember that the source was asked in vain, beside the table that may be there."""
        entry = self._entries.get((provider, day)) or _Entry()
        entry.failure = failure
        entry.failed_at = now
        self._put((provider, day), entry)

    def tables(self) -> list[tuple[RateTable, float]]:
        """Each table held, with the monotonic time it was fetched at, least recently used first."""
        return [(e.table, e.fetched_at) for e in self._entries.values() if e.table is not None]

    def _put(self, key: tuple[str, date], entry: _Entry) -> None:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)
