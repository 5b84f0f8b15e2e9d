"""Rate sources that are up, down, slow, wrong, used up or hung, by their `Faults`."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Final

import attrs
import trio

from ratebridge.errors import FetchOutcome, SourceFailed
from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.rates import quote as fake_quote
from ratebridge.providers.source import Quota
from ratebridge.rates import Quote, RateSheet

from .faults import Faults
from .trace import Trace
from .traffic import KNOWN

MOST_FETCHES: Final = 8  # of a source at a time
STALLED: Final = 10.0  # s after which a fetch may get another beside it
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
FAILURES: Final = {
    "down": FetchOutcome.UNREACHABLE,
    "error 500": FetchOutcome.HTTP_5XX,
    "wrong table": FetchOutcome.BAD_TABLE,
    "quota gone": FetchOutcome.QUOTA_MINUTE,
}


@attrs.frozen
class Given:
    """A sheet that was given: at trio time `at`, with the quotes in it."""

    day: date
    at: float
    final: bool
    quotes: Mapping[str, Decimal]


class ScriptedSource:
    """A source whose state changes. It keeps the tables that it gave, for the oracle."""

    quota: Quota | None = None
    currencies: frozenset[str] | None = None
    every: float | None = None

    def __init__(self, name: str, faults: Faults, chance: random.Random, trace: Trace) -> None:
        self.name = name
        self.faults: Final = faults
        self.given: Final[dict[date, list[Given]]] = {}
        self._chance = chance
        self._trace = trace
        self._under_way: Counter[date] = Counter()
        self._since: dict[date, float] = {}  # when the first attempt of a fetch began
        self._rests_until: dict[str, float] = {}

    def asks(self, day: date, today: date) -> str:
        """See `Source`."""
        return str(day)

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        """See `Source`."""
        self._judge(day, now)
        self._since.setdefault(day, trio.current_time())
        self._under_way[day] += 1
        try:
            await self._act()
            self._since.pop(day, None)
            return self._sheet(day, now)
        finally:
            self._under_way[day] -= 1

    def remember(self, asked: str) -> None:
        """The service has seen this call fail."""
        self._rests_until[asked] = trio.current_time() + FAILURE_LIFE
        self._since.pop(date.fromisoformat(asked), None)

    async def _act(self) -> None:
        """Wait as long as the state requires; raises in most states."""
        chance = self._chance
        now = trio.current_time()
        state, until = self.faults.at(now)
        if state != "up":
            self._trace.fault(f"source: {state}")
        await trio.sleep(chance.uniform(1, 8) if state == "slow" else chance.uniform(0.01, 0.3))
        if state in FAILURES:
            left = max(until - now, 0.1) if state == "quota gone" else None
            again = state != "wrong table"
            raise SourceFailed(FAILURES[state], f"is {state}", again=again, limited_for=left)
        if state == "hang":
            await trio.sleep_forever()
        if state == "bug":
            raise ZeroDivisionError("a bug in a source")

    def _sheet(self, day: date, now: datetime) -> RateSheet:
        final = now.date() > day
        # While a day runs its quotes change, so each table of it has others.
        version = 0 if final else 1 + len(self.given.get(day, ()))
        quotes = _quotes(self.name, day, version)
        if self.faults.at(trio.current_time())[0] == "lacking":
            quotes = {code: quotes[code] for code in ("EUR", "USD")}
        self.given.setdefault(day, []).append(Given(day, trio.current_time(), final, quotes))
        rows = {code: Quote(quotes[code], quotes["EUR"]) for code in quotes if code != "EUR"}
        return RateSheet(self.name, str(day), day, day, {day: rows}, now)

    def _judge(self, day: date, now: datetime) -> None:
        complain = self._trace.complain
        if day > now.date():
            complain(f"{self.name} is asked for {day}, which has not come")
        if self._under_way.total() >= MOST_FETCHES:
            complain(f"{self.name} is asked for over {MOST_FETCHES} sheets at a time")
        if now.date() - day == timedelta(days=1):
            return  # it may have been today when it was asked for: then it has another table now
        if self._under_way[day] and trio.current_time() < self._since[day] + STALLED - 1e-6:
            complain(f"{self.name} is asked twice at a time for {day}")
        if trio.current_time() < self._rests_until.get(str(day), 0.0) - 1e-6:
            complain(f"{self.name} is asked for {day} although it has just failed")


@cache
def _quotes(name: str, day: date, version: int) -> dict[str, Decimal]:
    """The quotes of a table: the same in every simulation, different in every table.

    Each is within a third of the usual one, so that it can be true.
    """
    chance = random.Random(f"{name} {day} {version}")
    euro = Decimal(1) if name == "plain" else Decimal(chance.randrange(800_000, 950_000)) / 10**6
    quotes = {"EUR": euro}
    for code in KNOWN:
        usual = Decimal(fake_quote(FRANKFURTER, code, day))
        quotes[code] = usual * chance.randrange(700_000, 1_400_000) / 10**6 * euro
    return quotes


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
