"""The table of one day, the rate taken from it, and the expiring dict of tables.

Pure: time is passed in, as monotonic seconds where a life is measured, as UTC
where a day is meant.
"""

from collections import OrderedDict
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Final, TypeVar

import attrs
import msgspec

from .errors import SourceFailed

T = TypeVar("T")

MAX_DAYS_BACK: Final = 5  # how much older than the day asked for a quote may be (protocol, dates)
FAILURE_LIFE: Final = 5.0  # s: an outage costs a call per 5 s and table, not one per request
MAX_TABLES: Final = 512  # 21 MiB at 160 currencies each; a year and a half of days from one source


@attrs.frozen
class Quote:
    """How much of a currency makes one of the table's base, and the day it is of."""

    units: Decimal
    day: date


@attrs.frozen
class RateTable:
    """Every quote that one source gives for one day. It holds EUR, and only good quotes.

    `day` is the day asked for, `fetched` the UTC instant at which it was asked for.
    `refused` tells why the quote of a currency was not taken.
    """

    provider: str
    day: date
    quotes: Mapping[str, Quote]
    fetched: datetime
    refused: Mapping[str, SourceFailed] = MappingProxyType({})
    final: bool = attrs.field(init=False)
    """Whether the day was over when the table was asked for, so that it changes no more."""
    _cached_rates: dict[str, "Rate"] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    @final.default
    def _is_final(self) -> bool:
        return self.fetched.date() > self.day

    def cached_rate(self, currency: str) -> "Rate | None":
        """`rate_from` the table without a call; each is made once."""
        rate = self._cached_rates.get(currency)
        if rate is None:
            rate = rate_from(self, currency, cached=True)
            if rate is not None:
                self._cached_rates[currency] = rate
        return rate


class Rate(msgspec.Struct, frozen=True, gc=False):
    """One currency's rate with its provenance. A Struct, as one is made per message.

    One euro is `units / euro` of the currency; `day` is the day the rate is of,
    `asked` the day asked for, `fetched` the UTC instant of asking. `cached` tells
    that no call was made for it.
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


@attrs.frozen
class Failing:
    """What is known of a (source, day) whose last word was a failure.

    `table` is a final one that serves on for the time being. `due` tells whether
    the source should be asked again.
    """

    failure: SourceFailed
    table: RateTable | None = None
    due: bool = False


_Key = tuple[str, date]


class Tables:
    """What is known of each (source, day): a table, a failure since, or both.

    Holds at most `most` tables, and as many failures, and forgets what was
    unused for longest. A table lives `life` seconds; beyond that it is served
    only while its source fails, and only if it is final.
    """

    def __init__(self, life: float, most: int = MAX_TABLES) -> None:
        self._life = life
        self._most = most
        # With the monotonic time that each came at.
        self._tables: OrderedDict[_Key, tuple[RateTable, float]] = OrderedDict()
        self._failures: OrderedDict[_Key, tuple[SourceFailed, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tables)

    def fresh(self, provider: str, day: date, *, today: date, now: float) -> RateTable | None:
        """The table to go by at monotonic time `now`, if there is one whatever its source does."""
        key = (provider, day)
        held = self._tables.get(key)
        if held is None:
            return None
        table, came = held
        # One made while the day still ran is not what its final table says.
        if now - came >= self._life or not (table.final or day >= today):
            return None
        self._tables.move_to_end(key)
        return table

    def find(
        self,
        provider: str,
        day: date,
        *,
        today: date,
        now: float,
        limit: SourceFailed | None = None,
    ) -> RateTable | Failing | None:
        """What to go by at monotonic time `now`; None when the source has to be asked first.

        `limit` is why the source cannot be asked for anything at present, if so.
        """
        table = self.fresh(provider, day, today=today, now=now)
        if table is not None:
            return table
        key = (provider, day)
        held = self._tables.get(key)
        if held is not None and held[0].final:
            self._tables.move_to_end(key)
            table = held[0]
        if limit is not None:
            return Failing(limit, table)
        failed = self._failures.get(key)
        if failed is None:
            return None
        self._failures.move_to_end(key)
        failure, at = failed
        return Failing(failure, table, due=now - at >= FAILURE_LIFE)

    def store(self, table: RateTable, now: float) -> None:
        """Keep a fetched table; it takes the place of what was known."""
        key = (table.provider, table.day)
        held = self._tables.get(key)
        if held is not None and held[0].final and not table.final:
            return  # asked for before midnight, and overtaken by the final one
        self._failures.pop(key, None)
        self._put(self._tables, key, (table, now))

    def store_failure(self, provider: str, day: date, failure: SourceFailed, now: float) -> None:
        """Remember that the source was asked in vain, beside the table that may be there."""
        self._put(self._failures, (provider, day), (failure, now))

    def tables(self) -> list[tuple[RateTable, float]]:
        """Each table held, with the monotonic time it came at, least recently used first."""
        return list(self._tables.values())

    def _put(self, held: OrderedDict[_Key, T], key: _Key, what: T) -> None:
        held[key] = what
        held.move_to_end(key)
        if len(held) > self._most:
            held.popitem(last=False)
