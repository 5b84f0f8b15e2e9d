"""What the sources said: quotes, the sheets that bring them, and the cache of sheets. Pure.

A sheet is all that one call to a source brought: the quotes of one day, of a month, or of a whole
file. It is held under what was asked for, and lives `CACHE_TTL` seconds by the wall clock, which is
passed in. Three rules say which of its quotes may be used.

- A quote of a day that had ended when the sheet was asked for is *final*. It may always be used.
  When the life of its sheet is over, the source is asked again in the background.
- Any other quote may be used while the sheet lives, on the UTC day on which it was asked for, and
  on no other. So no rate of a running day is served as that of an ended one.
- A sheet that is dated later than now was dated by a wrong clock. None of it may be used.
"""

from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Final

import attrs
import msgspec

from .errors import SourceFailed
from .euro import CONVERSION_RATES, REGULATION

FIXED: Final = "fixed"  # the provider of a rate that is law
MAX_DAYS_BACK: Final = 5  # a quote may be this much older than the day asked for (TASK.md)
FAILURE_LIFE: Final = 5.0  # s: an outage costs a call per 5 s and sheet, not one per request
MOST_QUOTES: Final = 100_000  # in all sheets: 16 MB; a year of 160 currencies has 58,400
MOST_ASKED: Final = 2_048  # sheets, and failures: five years of days
RENEWED_FROM: Final = 0.8  # of its life on a sheet in use is asked for again, in the background
CLOCK_SLACK: Final = timedelta(minutes=1)  # between two clocks that are both right

_ONE: Final = Decimal(1)
_DAY: Final = timedelta(days=1)


class Quote(msgspec.Struct, frozen=True, gc=False):
    """What a source says a currency is worth: `units` of it are `euro` euros.

    A bank quotes units for one euro. A coin has a price: one unit is so many euros. A table with
    another base has the units of both for one of its base. So no inverse is made of any, as Council
    Regulation (EC) No 1103/97, article 4, wants it: euro = stake x `euro` / `units`, rounded once.
    """

    units: Decimal
    euro: Decimal = _ONE

    @property
    def per_euro(self) -> float:
        """About how many units are one euro, for comparisons."""
        return float(self.units) / float(self.euro)


class Doubted(msgspec.Struct, frozen=True, gc=False):
    """A quote that is not used unless another source gives the same, and why.

    `plausibility.doubt` makes them, and `plausibility.alike` says what the same is.
    """

    quote: Quote
    why: SourceFailed


Row = Quote | Doubted | SourceFailed
"""What a sheet has for a currency and day: a quote, a doubted one, or why there is none."""


def midnight_after(day: date) -> datetime:
    """When a day ends, UTC."""
    return datetime.combine(day + _DAY, time(), UTC)


def final_from(day: date) -> datetime:
    """When a day has ended by all clocks: two that are both right may differ by a minute."""
    return midnight_after(day) + CLOCK_SLACK


@attrs.frozen
class RateSheet:
    """All that one call to a source brought.

    Attributes:
        provider: the name of the source.
        asked: what the call asked for, such as "2021-05" or "2021-05-18".
        first: the first day that it answers for.
        last: the last one.
        rows: what the source published on each day, by currency. They reach back before `first`,
            and there is none for a day without news.
        fetched: the UTC instant of the request.
        currencies: those in it.
        latest: whether these are the latest quotes, which the source gave because it did not have
            those of the ended day yet.
        source_clock: what the source's clock showed when it answered, None where that is unknown.
        refused: why all the quotes of most days are doubted, if they are: then the source is asked
            again soon.
    """

    provider: str
    asked: str
    first: date
    last: date
    rows: Mapping[date, Mapping[str, Row]] = attrs.field(repr=False)
    fetched: datetime
    currencies: frozenset[str] = frozenset()
    latest: bool = False
    source_clock: datetime | None = None
    refused: SourceFailed | None = None

    def find(self, currency: str, day: date) -> tuple[Row, date] | None:
        """The last row of a currency at or before a day, and its own day.

        None if the last `MAX_DAYS_BACK` days have none. What is older is not guessed from.
        """
        for _ in range(MAX_DAYS_BACK + 1):
            rows = self.rows.get(day)
            if rows is not None and (row := rows.get(currency)) is not None:
                return row, day
            day -= _DAY
        return None

    def is_final(self, day: date) -> bool:
        """Whether the day had ended by all clocks when the sheet was asked for."""
        return not self.latest and self.fetched >= final_from(day)

    def lives(self, day: date, now: datetime, life: timedelta) -> bool:
        """Whether a day's quotes are used at `now` without asking the source again."""
        return self.fetched - CLOCK_SLACK <= now < self.fetched + life and (
            self.is_final(day) or now.date() == self.fetched.date()
        )

    def serves(self, day: date, now: datetime, life: timedelta) -> bool:
        """Whether a day's quotes may be used at `now`, be it only until the source has answered."""
        final = self.is_final(day) and self.fetched - CLOCK_SLACK <= now
        return final or self.lives(day, now, life)


class Rate(msgspec.Struct, frozen=True, gc=False):
    """One currency's rate with its provenance.

    Attributes:
        currency: its code.
        units: so many units of the currency are `euro` euros.
        euro: 1, but for a coin, and for a table with another base than the euro.
        day: the day that the rate is of, at most `MAX_DAYS_BACK` days before `asked`.
        asked: the day asked for.
        provider: the source, or `FIXED`.
        fetched: the UTC instant of the request to the source.
        cached: whether no call was made for it.
        note: what is unusual about it; usually empty.
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
        """Units for one euro as exact text: a number, or units/euro where that is not 1."""
        return f"{self.units:f}" if self.euro == 1 else f"{self.units:f}/{self.euro:f}"


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


_Key = tuple[str, str]  # a source, and what was asked of it


class RateCache:
    """The last sheet of each (source, asked), and the failure of a later call, if there was one.

    Args:
        life: how long a sheet lives.
        most_quotes: the most quotes in all sheets.

    There are at most `MOST_ASKED` sheets, and as many failures. The least recently used sheets go
    first, and the oldest failures. One sheet stays, however large it is.
    """

    def __init__(self, life: timedelta, most_quotes: int = MOST_QUOTES) -> None:
        self.life: Final = life
        self._most_quotes = most_quotes
        self._sheets: OrderedDict[_Key, tuple[RateSheet, int]] = OrderedDict()  # and its quotes
        self._quotes = 0
        self._failures: OrderedDict[_Key, tuple[SourceFailed, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sheets)

    @property
    def sheets(self) -> list[RateSheet]:
        """The sheets, the least recently used first."""
        return [sheet for sheet, _ in self._sheets.values()]

    def find(self, provider: str, asked: str) -> RateSheet | None:
        """The sheet, of whatever age; it counts as used."""
        held = self._sheets.get((provider, asked))
        if held is None:
            return None
        self._sheets.move_to_end((provider, asked))
        return held[0]

    def store(self, sheet: RateSheet) -> None:
        """Keep a sheet in place of what was known, unless that was asked for later."""
        key = (sheet.provider, sheet.asked)
        held = self._sheets.get(key)
        if held is not None and held[0].fetched > sheet.fetched:
            return
        # A history that is read where it lies counts nothing.
        quotes = sum(map(len, sheet.rows.values())) if isinstance(sheet.rows, dict) else 0
        self._failures.pop(key, None)
        self._drop(key)
        self._sheets[key] = sheet, quotes
        self._quotes += quotes
        while self._quotes > self._most_quotes or len(self._sheets) > MOST_ASKED:
            if len(self._sheets) == 1:
                break
            self._drop(next(iter(self._sheets)))

    def failure(self, provider: str, asked: str) -> tuple[SourceFailed, float] | None:
        """The failure of the last call, and the monotonic time of it; None after a success."""
        return self._failures.get((provider, asked))

    def store_failure(self, provider: str, asked: str, failure: SourceFailed, at: float) -> None:
        """Remember a call that failed at monotonic time `at`; a sheet that is there stays."""
        self._failures[provider, asked] = failure, at
        self._failures.move_to_end((provider, asked))
        if len(self._failures) > MOST_ASKED:
            self._failures.popitem(last=False)

    def drop_later(self, now: datetime) -> None:
        """Drop what is dated later than `now`: it was dated by a wrong clock."""
        for key, (sheet, _) in list(self._sheets.items()):
            if sheet.fetched > now + CLOCK_SLACK:
                self._drop(key)

    def _drop(self, key: _Key) -> None:
        _, quotes = self._sheets.pop(key, (None, 0))
        self._quotes -= quotes
