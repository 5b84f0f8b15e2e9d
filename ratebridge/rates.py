"""The table of one day, the rate taken from it, and the expiring dict of tables.

Pure: time is passed in, as monotonic seconds where a life is measured, as UTC
where a day is meant.
"""

from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Final

import attrs
import msgspec

from .errors import SourceFailed
from .euro import CONVERSION_RATES, REGULATION

FIXED: Final = "fixed"  # the provider of a rate that is law
MAX_DAYS_BACK: Final = 5  # a quote may be this much older than the day asked for (protocol, dates)
FAILURE_LIFE: Final = 5.0  # s: an outage costs a call per 5 s and table, not one per request
MAX_TABLES: Final = 512  # a year and a half of days from one source
MAX_QUOTES: Final = 40_000  # in all tables: 12 MB, at 293 bytes each with what is made of them
AHEAD: Final = 0.2  # of its life: how early a table in use is refreshed, less some jitter
LEAST_AHEAD: Final = 15.0  # s: time for a slow source and its retries
MOST_AHEAD: Final = 0.4  # of its life: earlier, a short-lived table would be refreshed all the time
PROVISIONAL_LIFE: Final = 7200.0  # s, at most, of a substitute for an ended day's own table
CLOCK_SLACK: Final = timedelta(minutes=1)  # a later table was dated by a bad clock

_ONE: Final = Decimal(1)


@attrs.frozen
class Quote:
    """How much of a currency makes one of the table's base, and the day it is of."""

    units: Decimal
    day: date


@attrs.frozen
class RateTable:
    """Every quote that one source gives for one day. It holds EUR, and only good quotes.

    `day` is the day asked for, `fetched` the UTC instant of the request. `refused`
    says why a currency's quote was not used. `latest` marks the latest quotes, which
    a source gave because it had none of the ended day yet. `made` is when the answer
    was made, at the earliest, by the source's clock, `source_clock` what that clock
    showed at the time of the request; None where the answer does not say.
    """

    provider: str
    day: date
    quotes: Mapping[str, Quote]
    fetched: datetime
    refused: Mapping[str, SourceFailed] = MappingProxyType({})
    latest: bool = False
    made: datetime | None = None
    source_clock: datetime | None = None
    running: bool = attrs.field(init=False)
    """Whether the day had not ended, by our clock, when the table was requested."""
    final: bool = attrs.field(init=False)
    """Whether the day had ended by all clocks and this is its own table: it never changes."""
    _cached_rates: dict[str, "Rate"] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    @running.default
    def _is_running(self) -> bool:
        return self.fetched.date() <= self.day

    @final.default
    def _is_final(self) -> bool:
        over = self.made is None or self.made.date() > self.day
        return over and not self.running and not self.latest

    @property
    def note(self) -> str:
        """What is unusual about the table, in half a sentence; usually empty."""
        if self.running or self.final:
            return ""
        if self.latest:
            return "the latest rates, because those of the day were not published yet"
        return "made before its day had ended"

    def cached_rate(self, currency: str) -> "Rate | None":
        """`fixed_rate`, or `rate_from` this table, made once for each currency."""
        rate = self._cached_rates.get(currency)
        if rate is None:
            rate = fixed_rate(currency, self.day) or rate_from(self, currency, cached=True)
            if rate is not None:
                self._cached_rates[currency] = rate
        return rate


class Rate(msgspec.Struct, frozen=True, gc=False):
    """One currency's rate with its provenance. A Struct, because each message makes one.

    One euro is `units / euro` of the currency; `day` is the day the rate is of,
    `asked` the day asked for, `fetched` the UTC instant of the request. `cached` means
    that no call was made for it; `note` is as in `RateTable`.
    """

    currency: str
    units: Decimal
    euro: Decimal
    day: date
    asked: date
    provider: str
    fetched: datetime
    cached: bool
    note: str = ""

    @property
    def text(self) -> str:
        """Units for one euro as exact text: a number, or a quotient if the base is not the euro."""
        return f"{self.units:f}" if self.euro == 1 else f"{self.units:f}/{self.euro:f}"


def rate_from(table: RateTable, currency: str, *, cached: bool) -> Rate | None:
    """The table's rate for a currency, or None if the table lacks it."""
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
        table.note,
    )


def fixed_rate(currency: str, day: date) -> Rate | None:
    """The legal conversion rate of a currency that had become the euro by that day.

    It needs no source; its `fetched` is the first such day.
    """
    known = CONVERSION_RATES.get(currency)
    if known is None or day < known[0]:
        return None
    since, units = known
    fetched = datetime.combine(since, time(), UTC)
    return Rate(currency, units, _ONE, day, day, FIXED, fetched, True, f"by {REGULATION}")


@attrs.frozen
class Failing:
    """What is known of a (source, day) whose last fetch failed.

    `table` is a final table that stays in use meanwhile. `due` says whether the
    source should be asked again.
    """

    failure: SourceFailed
    table: RateTable | None = None
    due: bool = False


_Key = tuple[str, date]


@attrs.define(eq=False)
class _Held:
    """A table, and the monotonic times at which it came, was last used, and ends.

    From `ahead` on it is refreshed if it is in use.
    """

    table: RateTable
    came: float
    used: float
    ends: float
    ahead: float


class Tables:
    """What is known of each (source, day): a table, a later failure, or both.

    Holds at most `most` tables, `MAX_QUOTES` quotes in all of them, and `most`
    failures; the least recently used go first. A table lives `life` seconds. After
    that only a final table is served, and only while its source fails. A table of an
    ended day that is not final lives `PROVISIONAL_LIFE` at most.
    """

    def __init__(self, life: float, most: int = MAX_TABLES) -> None:
        self.life: Final = life
        self._most = most
        self._tables: dict[_Key, _Held] = {}
        self._quotes = 0  # in all of them
        self._failures: OrderedDict[_Key, tuple[SourceFailed, float]] = OrderedDict()  # and when

    def __len__(self) -> int:
        return len(self._tables)

    def fresh(self, provider: str, day: date, *, today: date, now: float) -> RateTable | None:
        """The live table at monotonic time `now`, if there is one."""
        held = self._tables.get((provider, day))
        if held is None or now >= held.ends:
            return None
        table = held.table
        if table.running and day < today:
            return None  # the quotes of a day that had not ended are not its final ones
        held.used = now
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
        """What to use at monotonic time `now`; None if the source has to be asked first.

        `limit` is why the source must not be asked for anything at present, if so.
        """
        table = self.fresh(provider, day, today=today, now=now)
        if table is not None:
            return table
        key = (provider, day)
        held = self._tables.get(key)
        if held is not None and held.table.final:
            held.used = now
            table = held.table
        if limit is not None:
            return Failing(limit, table)
        failed = self._failures.get(key)
        if failed is None:
            return None
        self._failures.move_to_end(key)
        failure, at = failed
        return Failing(failure, table, due=now - at >= FAILURE_LIFE)

    def store(self, table: RateTable, now: float, jitter: float = 0.0) -> RateTable:
        """Keep a fetched table in place of what was known; returns the one that is kept.

        A final table makes no room for one that is not. It gets another life if that is
        all that the source has. `jitter`, from 0 to 1, makes its refresh earlier.
        """
        key = (table.provider, table.day)
        held = self._tables.get(key)
        if held is not None and held.table.final and not table.final:
            if table.running:
                return held.table  # the other one was requested before midnight, and came later
            table = held.table  # the other one is an older copy, from a cache on the way
        self._failures.pop(key, None)
        self._remove(key)
        provisional = not (table.final or table.running)
        life = min(self.life, PROVISIONAL_LIFE) if provisional else self.life
        ends = now + life
        early = min(life * MOST_AHEAD, max(life * AHEAD, LEAST_AHEAD)) * (0.75 + 0.25 * jitter)
        self._tables[key] = _Held(table, now, now, ends, ends - early)
        self._quotes += len(table.quotes)
        while len(self._tables) > self._most or (
            self._quotes > MAX_QUOTES and len(self._tables) > 1
        ):
            self._remove(min(self._tables, key=lambda known: self._tables[known].used))
        return table

    def store_failure(self, provider: str, day: date, failure: SourceFailed, at: float) -> None:
        """Remember a fetch that failed at monotonic time `at`; a table that is there stays."""
        key = (provider, day)
        self._failures[key] = (failure, at)
        self._failures.move_to_end(key)
        if len(self._failures) > self._most:
            self._failures.popitem(last=False)

    def end_of(self, table: RateTable) -> float | None:
        """The monotonic time at which the life of a table ends; None if it is not held."""
        held = self._tables.get((table.provider, table.day))
        return held.ends if held is not None and held.table is table else None

    def use(self, provider: str, day: date, now: float) -> None:
        """Mark a table as used."""
        held = self._tables.get((provider, day))
        if held is not None:
            held.used = now

    def has_live(self, provider: str, day: date, today: date, now: float) -> bool:
        """Whether there is a live table; does not mark it as used."""
        held = self._tables.get((provider, day))
        return held is not None and now < held.ends and not (held.table.running and day < today)

    def has_failed(self, provider: str, day: date, now: float) -> bool:
        """Whether a failure is so recent that the source must not be asked yet."""
        failed = self._failures.get((provider, day))
        return failed is not None and now - failed[1] < FAILURE_LIFE

    def has_final(self, provider: str, day: date) -> bool:
        """Whether there is a final table, of whatever age."""
        held = self._tables.get((provider, day))
        return held is not None and held.table.final

    def used_since(self, provider: str, day: date, since: float) -> bool:
        """Whether there is a table, of whatever age, that was used at `since` or later."""
        held = self._tables.get((provider, day))
        return held is not None and held.used >= since

    def due_ahead(self, today: date, now: float) -> list[RateTable]:
        """The tables of no later day that are due for a refresh, the first that came first.

        A live table is due near its end if it was used in the second half of its life;
        a final one that has expired, if it was used within the last half of a life.
        """
        return [
            held.table
            for held in self._tables.values()
            if now >= held.ahead
            and (now < held.ends or held.table.final)
            and held.used >= max(held.came, now - self.life) + (held.ends - held.came) / 2
            and not (held.table.running and held.table.day < today)
            and held.table.day <= today
        ]

    def postpone(self, table: RateTable, now: float) -> None:
        """Note that a table is being refreshed: not again for a quarter of its remaining life."""
        held = self._tables[table.provider, table.day]
        held.ahead = now + max(FAILURE_LIFE, (held.ends - now) / 4)

    def clock_moved(self, jump: float, utc: datetime) -> None:
        """The wall clock moved by `jump` seconds against the monotonic one, and shows `utc` now.

        After a jump ahead the tables are that much older: the monotonic clock may have
        missed the time. After a jump back, tables dated later than `utc` were dated by a
        wrong clock, so whether their day had ended is decided again.
        """
        for held in self._tables.values():
            if jump > 0:
                held.came -= jump
                held.ends -= jump
                held.ahead -= jump
            elif held.table.fetched > utc + CLOCK_SLACK:
                held.table = attrs.evolve(held.table, made=utc)
                if not held.table.final:
                    held.ends = min(held.ends, held.came + PROVISIONAL_LIFE)

    def tables(self) -> list[tuple[RateTable, float]]:
        """Each table held and the monotonic time it came at, least recently used first."""
        held = sorted(self._tables.values(), key=lambda held: held.used)
        return [(one.table, one.came) for one in held]

    def _remove(self, key: _Key) -> None:
        held = self._tables.pop(key, None)
        if held is not None:
            self._quotes -= len(held.table.quotes)
