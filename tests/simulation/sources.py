"""Rate sources that are up, down, slow, wrong, used up or hung, by their `Faults`."""

import random
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Final

import attrs
import trio

from ratebridge.budget import Budget
from ratebridge.errors import SourceFailed
from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.rates import quote as fake_quote
from ratebridge.providers.source import Quota
from ratebridge.rates import Quote, RateTable

from .faults import Faults
from .trace import Trace
from .traffic import KNOWN

MOST_FETCHES: Final = 8  # at a time (traps, "Numbers that work")
FAILURE_LIFE: Final = 5.0  # s for which a failure is remembered (sources, "What they share")

# The states of a source, and their weights.
MOODS: Final = {
    "up": 12,
    "down": 2,
    "error 500": 1,
    "slow": 2,
    "hang": 2,
    "wrong table": 1,
    "lacking": 1,
    "quota gone": 1,
    "bug": 1,
}


@attrs.frozen
class Given:
    """A table that was given: at trio time `at`, with the quotes in it."""

    day: date
    at: float
    final: bool
    quotes: Mapping[str, Decimal]


class ScriptedSource:
    """A source whose state changes. It keeps the tables that it gave, for the oracle."""

    quota: Quota | None = None
    budget = Budget(burst=1000, every=1.0)

    def __init__(self, name: str, faults: Faults, chance: random.Random, trace: Trace) -> None:
        self.name = name
        self.faults: Final = faults
        self.given: Final[dict[date, list[Given]]] = {}
        self._chance = chance
        self._trace = trace
        self._under_way: set[date] = set()
        self._rests_until: dict[date, float] = {}

    async def fetch(self, day: date, now: datetime) -> RateTable:
        """See `Source`."""
        self._judge(day, now)
        self._under_way.add(day)
        self._trace.fetches += 1
        try:
            await self._act()
            return self._table(day, now)
        finally:
            self._under_way.discard(day)
            self._trace.fetches -= 1

    def remember(self, day: date) -> None:
        """The service has seen this table fail."""
        self._rests_until[day] = trio.current_time() + FAILURE_LIFE

    async def _act(self) -> None:
        """Wait as long as the state requires; raises in most states."""
        chance = self._chance
        now = trio.current_time()
        state, until = self.faults.at(now)
        if state != "up":
            self._trace.fault(f"source: {state}")
        await trio.sleep(chance.uniform(1, 8) if state == "slow" else chance.uniform(0.01, 0.3))
        match state:
            case "down":
                raise SourceFailed("unreachable", "could not be reached", again=True)
            case "error 500":
                raise SourceFailed("http-500", "answered HTTP 500", again=True)
            case "hang":
                await trio.sleep_forever()
            case "wrong table":
                raise SourceFailed("bad-table", "has no usable table")
            case "quota gone":
                left = max(until - now, 0.1)
                text = "has no calls left this minute"
                raise SourceFailed("quota-minute", text, again=True, after=left, limited_for=left)
            case "bug":
                raise ZeroDivisionError("a bug in a source")

    def _table(self, day: date, now: datetime) -> RateTable:
        final = now.date() > day
        # While a day runs its quotes change, so each table of it has others.
        version = 0 if final else 1 + len(self.given.get(day, ()))
        quotes = _quotes(self.name, day, version)
        if self.faults.at(trio.current_time())[0] == "lacking":
            quotes = {code: quotes[code] for code in ("EUR", "USD")}
        self.given.setdefault(day, []).append(Given(day, trio.current_time(), final, quotes))
        return RateTable(
            self.name, day, {code: Quote(units, day) for code, units in quotes.items()}, now
        )

    def _judge(self, day: date, now: datetime) -> None:
        complain = self._trace.complain
        if day > now.date():
            complain(f"{self.name} is asked for {day}, which has not come")
        if self._trace.fetches >= MOST_FETCHES:
            complain(f"over {MOST_FETCHES} fetches at a time")
        if now.date() - day == timedelta(days=1):
            return  # it may have been today when it was asked for: then it has another table now
        if day in self._under_way:
            complain(f"{self.name} is asked twice at a time for {day}")
        if trio.current_time() < self._rests_until.get(day, 0.0) - 1e-6:
            complain(f"{self.name} is asked for {day} although it has just failed")


@cache
def _quotes(name: str, day: date, version: int) -> dict[str, Decimal]:
    """The quotes of a table: the same in every simulation, different in every table."""
    chance = random.Random(f"{name} {day} {version}")
    euro = Decimal(1) if name == "plain" else Decimal(chance.randrange(800_000, 950_000)) / 10**6
    return {
        "EUR": euro,
        **{code: _near(chance, fake_quote(FRANKFURTER, code, day)) * euro for code in KNOWN},
    }


def _near(chance: random.Random, usual: str) -> Decimal:
    """Within a third of the usual, so that it can be true."""
    return Decimal(usual) * chance.randrange(700_000, 1_400_000) / 10**6


def acceptable(
    sources: Sequence[ScriptedSource], day: date, currency: str, *, final: bool, since: float
) -> list[tuple[Decimal, Decimal]]:
    """The quotes of a currency and of the euro that a reply may rest on.

    A table of a day that is over counts however old it is: it changes no more.
    One of today must have come at trio time `since` or later.
    """
    return [
        (given.quotes[currency], given.quotes["EUR"])
        for source in sources
        for given in source.given.get(day, ())
        if currency in given.quotes and (given.final if final else given.at >= since)
    ]
