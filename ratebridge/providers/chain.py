"""The chain: from a currency and a day to a rate, asking as few sources as seldom as can be.

A source is asked for a whole day-table, once however many wait for it, in a
task of the service's nursery: neither a requester that is cancelled nor a
connection that is lost takes the answer from the others. The next source is
asked when one fails or does not know the currency. A source that has failed is
asked again every 5 s at most, and behind the back of the requests when another
table can serve them meanwhile.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from math import inf
from types import MappingProxyType
from typing import Final

import attrs
import trio

from ..errors import NoRate, SourceFailed
from ..observer import Observer
from ..plausibility import implausible, without
from ..rates import Failing, Rate, RateTable, Tables, fixed_rate, rate_from
from .source import Source

MOST_FETCHES: Final = 8  # at a time; below the pool of the HTTP client, see there
CLOCK_JUMP: Final = 5.0  # s that the wall clock moves against the monotonic one: a jump, no drift
CLOCK_DIFFERENCE: Final = 60.0  # s between our clock and a source's that are worth telling
PAUSES: Final = (0.1, 0.4)  # s before the second and the third attempt; then the source failed

Outcome = RateTable | Failing
_NOTHING: Final[Mapping[str, Outcome]] = MappingProxyType({})
_STOPPED: Final = Failing(SourceFailed("stopped", "was not asked to the end"))


@attrs.define(eq=False)
class _Fetch:
    """One fetch that is under way, and what came of it once it has done."""

    done: trio.Event = attrs.Factory(trio.Event)
    outcome: Outcome = _STOPPED


class RateChain:
    """The sources in their order, and the tables they gave.

    `deadline` is the time in seconds for one rate, failover included; each
    source gets an equal share of it, so that the last is reached in time, and
    of the fetches at a time, so that one that hangs does not hold up the others.
    `utc_now` is the wall clock. Fetches run in `nursery`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tables: Tables,
        nursery: trio.Nursery,
        *,
        deadline: float,
        utc_now: Callable[[], datetime],
        observer: Observer,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.sources: Final = tuple(sources)
        self.tables: Final = tables
        self._first = self.sources[0].name
        self._nursery = nursery
        self._share = deadline / len(sources)
        self._utc_now = utc_now
        self._observer = observer
        self._jitter = jitter
        at_a_time = max(1, MOST_FETCHES // len(sources))
        self._limiters = {source.name: trio.CapacityLimiter(at_a_time) for source in sources}
        self._fetches: dict[tuple[str, date, bool], _Fetch] = {}
        self._limits: dict[str, tuple[float, SourceFailed]] = {}  # until when (trio time), and why
        self._clock_offset = self._read_clock_offset()
        self._clock_differences: dict[str, float] = {}  # s, as last told, by source

    def cached_rate(self, currency: str, day: date, today: date, now: float) -> Rate | None:
        """The rate if the tables held suffice to tell it, None if a source has to be asked.

        `today` is the UTC day, `now` trio's time. Raises `NoRate` when the tables
        suffice to tell that there is none.
        """
        # Nearly every request ends here: the first source's table is fresh, and has it.
        table = self.tables.fresh(self._first, day, today=today, now=now)
        if table is not None and (rate := table.cached_rate(currency)) is not None:
            return rate
        found = self._resolve(currency, day, _NOTHING)
        return found if isinstance(found, Rate) else None

    async def rate(self, currency: str, day: date) -> Rate:
        """The rate, asking the sources as needed. Raises `NoRate`, by the deadline at the latest.

        Each source is asked once at most, and what it said then counts, however
        short its life in the tables.
        """
        learnt: dict[str, Outcome] = {}
        while True:
            found = self._resolve(currency, day, learnt)
            if isinstance(found, Rate):
                return found
            fetch = self._start(found, day)
            await fetch.done.wait()
            learnt[found.name] = fetch.outcome

    def _resolve(self, currency: str, day: date, learnt: Mapping[str, Outcome]) -> Rate | Source:
        """A rate, or the source to be asked next. Raises `NoRate` when both are lacking.

        Where a table serves that is not to be relied on for long, the sources that are
        due are asked behind the back of the request.
        """
        if fixed := fixed_rate(currency, day):
            return fixed
        today = self._utc_now().date()
        now = trio.current_time()
        due: list[Source] = []
        unaware: list[str] = []
        failures: list[tuple[str, SourceFailed]] = []
        for source in self.sources:
            name = source.name
            known = learnt.get(name)
            if known is None:
                limit = self._rate_limited(name, now)
                known = self.tables.find(name, day, today=today, now=now, limit=limit)
            if known is None:
                return due[0] if due else source
            if isinstance(known, Failing):
                if known.due:
                    due.append(source)
                if known.table is None:
                    failures.append((name, known.failure))
                    continue
                known = known.table
            rate = rate_from(known, currency, cached=known is not learnt.get(name))
            if rate is not None:
                for failing in due:
                    self._start(failing, day)
                return rate
            if currency in known.refused:
                failures.append((name, known.refused[currency]))
            else:
                unaware.append(name)
        if due:
            return due[0]
        raise _no_rate(currency, day, unaware, failures)

    def _rate_limited(self, provider: str, now: float) -> SourceFailed | None:
        until, failure = self._limits.get(provider, (-inf, None))
        return failure if now < until else None

    def _start(self, source: Source, day: date) -> _Fetch:
        """The one fetch of this table that is under way, started if need be."""
        # What a running day's table is asked for with is not what an ended one's is.
        key = (source.name, day, day < self._utc_now().date())
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = self._fetches[key] = _Fetch()
            name = f"fetch {source.name} {day}"
            self._nursery.start_soon(self._run_fetch, source, day, key, name=name)
        return fetch

    async def _run_fetch(self, source: Source, day: date, key: tuple[str, date, bool]) -> None:
        """One fetch from start to end: it stores a table or a failure, and wakes who waits."""
        try:
            self._fetches[key].outcome = await self._fetch_or_fail(source, day)
        finally:
            self._fetches.pop(key).done.set()

    async def _fetch_or_fail(self, source: Source, day: date) -> Outcome:
        began = trio.current_time()
        failure = SourceFailed("timeout", f"gave no answer within {self._share:g} s")
        try:
            with trio.move_on_at(began + self._share):
                self.watch_clock()
                table = await self._fetch(source, day, began + self._share)
                self.watch_clock()
                self._compare_clocks(table)
                table = self._plausible(table)
                now = trio.current_time()
                self.tables.store(table, now)
                self._observer.fetched(table, now - began)
                return table
        except SourceFailed as error:
            failure = attrs.evolve(error)  # as it was made: its frames hold answers and headers
        except Exception as error:  # noqa: BLE001 - a bug in a source costs that source
            self._observer.internal_error(source.name, error)
            failure = SourceFailed("internal-error", "could not be read")
        return self._note_failure(source.name, day, failure)

    async def _fetch(self, source: Source, day: date, deadline: float) -> RateTable:
        pauses = iter(PAUSES)
        while True:
            try:
                async with self._limiters[source.name]:
                    return await source.fetch(day, self._utc_now())
            except SourceFailed as failure:
                pause = next(pauses, None)
                if pause is None or not failure.again:
                    raise
                rest = max(pause * (0.5 + self._jitter()), failure.after or 0.0)
                if trio.current_time() + rest >= deadline:
                    raise
            await trio.sleep(rest)

    def _plausible(self, table: RateTable) -> RateTable:
        """The table without what cannot be true. Raises `SourceFailed` where it is of no use."""
        held = [other for other, _ in self.tables.tables()]
        wrong, whole = implausible(table, held)
        if wrong:
            self._observer.implausible_quotes(table.provider, table.day, wrong)
        if whole:
            raise SourceFailed(
                "implausible",
                f"gives an implausible table ({len(wrong)} of {len(table.quotes) - 1} currencies)",
            )
        return without(table, wrong)

    def _note_failure(self, provider: str, day: date, failure: SourceFailed) -> Outcome:
        """Remember a failure; gives what to go by all the same."""
        now = trio.current_time()
        if failure.limited_for is not None:
            self._limit_rate(failure.limited_for, provider, failure)
        self.tables.store_failure(provider, day, failure, now)
        self._observer.fetch_failed(provider, day, failure)
        today = self._utc_now().date()
        known = self.tables.find(provider, day, today=today, now=now, limit=failure)
        assert known is not None, "a silent source is never to be asked"
        return known

    def _limit_rate(self, seconds: float, provider: str, failure: SourceFailed) -> None:
        """Ask the source nothing for a while, and say so, unless it is known already."""
        now = trio.current_time()
        known_until, _ = self._limits.get(provider, (now, None))
        if now + seconds > known_until + 1.0:  # fetches at the same time are refused alike
            self._limits[provider] = (now + seconds, failure)
            self._observer.rate_limited(provider, failure)

    # The clocks.

    def watch_clock(self) -> None:
        """Notice a wall clock that has jumped, and tell it."""
        offset = self._read_clock_offset()
        jump = offset - self._clock_offset
        self._clock_offset = offset
        if abs(jump) >= CLOCK_JUMP:
            self.tables.clock_moved(jump, self._utc_now())
            self._observer.clock_jumped(jump)

    def _read_clock_offset(self) -> float:
        return self._utc_now().timestamp() - trio.current_time()

    def _compare_clocks(self, table: RateTable) -> None:
        """Tell where our clock differs from a source's, once until that changes."""
        if table.source_clock is None:
            return
        ahead = (table.fetched - table.source_clock).total_seconds()
        told = self._clock_differences.get(table.provider, 0.0)
        if abs(ahead - told) >= CLOCK_DIFFERENCE:
            self._clock_differences[table.provider] = ahead
            self._observer.clock_differs(table.provider, ahead)


def _no_rate(
    currency: str, day: date, unaware: list[str], failures: list[tuple[str, SourceFailed]]
) -> NoRate:
    names = " or ".join(unaware)
    reasons = ", ".join(f"{name} {failure}" for name, failure in failures)
    if not failures:
        text = f"currency '{currency}' is not known to {names}"
    elif unaware:
        text = f"currency '{currency}' is not known to {names}, and {reasons}"
    else:
        text = f"no rate for '{currency}' on {day}: {reasons}"
    # A source that quotes it in too few digits does not know better, today or tomorrow.
    if all(failure.outcome == "coarse" for _, failure in failures):
        return NoRate("unknown-currency", text)
    return NoRate("unavailable", text)
