"""The chain: from a currency and a day to a rate, with as few calls as possible.

A source is asked for a whole day-table, once however many requests wait for it. The
fetch is a task of the service's nursery, so that neither a cancelled request nor a
lost connection cancels it. The next source is asked when one fails or lacks the
currency. A failed source is asked again every 5 s at most, in the background if
another table can answer meanwhile.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from math import inf
from types import MappingProxyType
from typing import Final

import attrs
import trio
from msgspec.structs import replace

from ..budget import Allowance
from ..errors import NoRate, SourceFailed
from ..observer import Observer
from ..plausibility import implausible, without
from ..rates import Failing, Rate, RateTable, Tables, fixed_rate, rate_from
from .source import Source

START_PAUSE: Final = 2.0  # s before today's table is fetched, so that connecting comes first
LONGEST_TICK: Final = 15.0  # s between polls for tables to refresh: at most four calls a minute
TICKS: Final = 100  # polls in the life of a short-lived table
MOST_PINNED: Final = 4096  # rates, about 1 MB
ANSWERED: Final = frozenset({"bad-body", "bad-table", "implausible"})  # failures within a quota
MOST_FETCHES: Final = 8  # at a time: far below the HTTP client's pool, see `http`
CLOCK_JUMP: Final = 5.0  # s of the wall clock against the monotonic one: more than drift
CLOCK_DIFFERENCE: Final = 60.0  # s between our clock and a source's that are reported
PAUSES: Final = (0.1, 0.4)  # s before the second and the third attempt; then the fetch has failed

Outcome = RateTable | Failing
_NOTHING: Final[Mapping[str, Outcome]] = MappingProxyType({})
_STOPPED: Final = Failing(SourceFailed("stopped", "was not asked to the end"))


@attrs.frozen
class _Pinned:
    """A rate used because an earlier source failed, and the trio time until which it stays."""

    rate: Rate
    table: RateTable
    until: float


@attrs.define(eq=False)
class _Fetch:
    """A fetch under way; `outcome` is set when `done` is."""

    done: trio.Event = attrs.Factory(trio.Event)
    outcome: Outcome = _STOPPED


class RateChain:
    """The sources in their order, and the tables they gave.

    `deadline` is the time in seconds for one rate, failover included. Each source
    gets an equal share of it, so that the last is reached in time, and of the
    concurrent fetches, so that one that hangs does not delay the others. `utc_now`
    is the wall clock. Fetches run in `nursery`.
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
        self._allowances = {
            source.name: Allowance(budget)
            for source in sources
            if (budget := getattr(source, "budget", None)) is not None
        }
        self._budget_reported: dict[str, float] = {}  # until when (trio time) not again
        self._pinned: OrderedDict[tuple[str, date], _Pinned] = OrderedDict()
        self._clock_offset = self._read_clock_offset()
        self._clock_differences: dict[str, float] = {}  # s, as last reported, by source

    def cached_rate(self, currency: str, day: date, today: date, now: float) -> Rate | None:
        """The rate from the tables held; None if a source has to be asked.

        `today` is the UTC day, `now` trio's time. Raises `NoRate` if the tables show
        that there is none.
        """
        # Nearly every request ends here: the first source's table is fresh, and has it.
        table = self.tables.fresh(self._first, day, today=today, now=now)
        if table is not None and (rate := table.cached_rate(currency)) is not None:
            return rate
        found = self._resolve(currency, day, _NOTHING)
        return found if isinstance(found, Rate) else None

    async def rate(self, currency: str, day: date) -> Rate:
        """The rate, asking the sources as needed. Raises `NoRate` by the deadline at the latest.

        Each source is asked at most once. Its answer counts for this request even if
        it has already expired in the tables.
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
        """A rate, or the source to be asked next. Raises `NoRate` if there is neither.

        If a table answers although an earlier source failed or the table has expired,
        the sources that are due are asked in the background.
        """
        today = self._utc_now().date()
        now = trio.current_time()
        if cached := fixed_rate(currency, day) or self._pinned_rate(currency, day, today, now):
            return cached
        due: list[Source] = []
        unaware: list[str] = []
        refusals: list[tuple[str, SourceFailed]] = []
        failures: list[tuple[str, SourceFailed]] = []
        for source in self.sources:
            name = source.name
            known = learnt.get(name) or self._find(name, day, today, now)
            if known is None:
                return due[0] if due else source
            if isinstance(known, Failing):
                if known.due:
                    due.append(source)
                if known.table is None:
                    self._report_budget(name, known.failure, now)
                    failures.append((name, known.failure))
                    continue
                known = known.table
            if known is learnt.get(name):
                rate = rate_from(known, currency, cached=False)
            else:
                rate = known.cached_rate(currency)
            if rate is not None:
                for failing in due:
                    self._start(failing, day)
                return self._pin(rate, known, [name for name, _ in failures], now)
            if currency in known.refused:
                refusals.append((name, known.refused[currency]))
            else:
                unaware.append(name)
        if due:
            return due[0]
        raise _no_rate(currency, day, unaware, [*refusals, *failures])

    def _find(self, name: str, day: date, today: date, now: float) -> Outcome | None:
        """What is known from a source; None if it has to be asked first."""
        table = self.tables.fresh(name, day, today=today, now=now)
        if table is not None:
            return table
        limit = self._limit(name, day, today, now)
        return self.tables.find(name, day, today=today, now=now, limit=limit)

    def _pinned_rate(self, currency: str, day: date, today: date, now: float) -> Rate | None:
        """The pinned rate, while its table lives."""
        pinned = self._pinned.get((currency, day))
        if pinned is None or not self._is_pinned(pinned, today, now):
            return None
        self.tables.use(pinned.table.provider, day, now)
        return pinned.rate

    def _is_pinned(self, pinned: _Pinned, today: date, now: float) -> bool:
        return now < pinned.until and not (pinned.table.running and pinned.table.day < today)

    def _pin(self, rate: Rate, table: RateTable, failed: list[str], now: float) -> Rate:
        """The rate, pinned if sources before its own have failed."""
        if not failed:
            return rate
        note = f"in place of {' and '.join(failed)}, kept to while its table lives"
        rate = replace(rate, note=f"{rate.note}; {note}" if rate.note else note)
        until = self.tables.end_of(table)
        if until is not None and until > now:
            key = (rate.currency, rate.asked)
            self._pinned[key] = _Pinned(replace(rate, cached=True), table, until)
            self._pinned.move_to_end(key)
            if len(self._pinned) > MOST_PINNED:
                self._pinned.popitem(last=False)
        return rate

    def _limit(
        self, name: str, day: date, today: date, now: float, *, ahead: bool = False
    ) -> SourceFailed | None:
        """Why a source must not be asked for a day's table at present, if so."""
        until, failure = self._limits.get(name, (-inf, None))
        if now < until:
            return failure
        allowance = self._allowances.get(name)
        if allowance is None:
            return None
        if day >= today:
            keep = 0
        elif ahead:
            keep = allowance.budget.burst // 2
        elif self.tables.has_final(name, day):
            # The table stays in use, and is refreshed when there are calls to spare.
            keep = allowance.budget.burst * 3 // 4
        else:
            keep = allowance.budget.reserve
        wait = allowance.wait(now, keep)
        if wait <= 0:
            return None
        return SourceFailed("budget", "has been asked as often as it may be", limited_for=wait)

    def _start(self, source: Source, day: date) -> _Fetch:
        """The one fetch of this table, started if none is under way."""
        # A fetch from before midnight does not give an ended day's table.
        key = (source.name, day, day < self._utc_now().date())
        fetch = self._fetches.get(key)
        if fetch is None:
            if source.name in self._allowances:
                self._allowances[source.name].ask(trio.current_time())
            fetch = self._fetches[key] = _Fetch()
            name = f"fetch {source.name} {day}"
            self._nursery.start_soon(self._run_fetch, source, day, key, name=name)
        return fetch

    async def _run_fetch(self, source: Source, day: date, key: tuple[str, date, bool]) -> None:
        """Fetch, store the table or the failure, and wake the waiting requests."""
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
                self.tables.store(table, now, self._jitter())
                if source.name == self._first:
                    self._apply_pins(day, now)
                self._observer.fetched(table, now - began)
                return table
        except SourceFailed as error:
            failure = attrs.evolve(error)  # without the traceback, which holds answers and headers
        except Exception as error:  # noqa: BLE001 - a bug in a source disables that source only
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

    def _apply_pins(self, day: date, now: float) -> None:
        """Put the pinned rates into the first source's table, which is looked at first."""
        today = self._utc_now().date()
        for (_, pinned_day), pinned in self._pinned.items():
            if pinned_day == day and self._is_pinned(pinned, today, now):
                self.tables.pin(pinned.rate, pinned.until, self._first)

    def _plausible(self, table: RateTable) -> RateTable:
        """The table without implausible quotes. Raises `SourceFailed` if all is."""
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
        """Remember a failure; returns what is known from the source now."""
        now = trio.current_time()
        if provider in self._allowances and failure.outcome not in ANSWERED:
            self._allowances[provider].unanswered(now)
        if failure.limited_for is not None:
            self._limit_rate(failure.limited_for, provider, failure)
        self.tables.store_failure(provider, day, failure, now)
        self._observer.fetch_failed(provider, day, failure)
        today = self._utc_now().date()
        known = self.tables.find(provider, day, today=today, now=now)
        assert known is not None, "the failure is remembered"
        return known

    def _limit_rate(self, seconds: float, provider: str, failure: SourceFailed) -> None:
        """Rate-limit the source, and report it unless it is known already."""
        now = trio.current_time()
        known_until, _ = self._limits.get(provider, (now, None))
        if now + seconds > known_until + 1.0:  # concurrent fetches are refused alike
            self._limits[provider] = (now + seconds, failure)
            self._observer.rate_limited(provider, failure)

    def _report_budget(self, provider: str, failure: SourceFailed, now: float) -> None:
        """Report that a budget is used up, once a minute at most."""
        if failure.outcome == "budget" and now >= self._budget_reported.get(provider, -inf):
            self._budget_reported[provider] = now + max(60.0, failure.limited_for or 0.0)
            self._observer.rate_limited(provider, failure)

    # Prefetch.

    async def run(self) -> None:
        """Refresh the tables in use before they expire, until cancelled.

        Fetches today's table of the first source at the start. At midnight it fetches
        the new day's, and that of the day before if it was in use. Sources without a
        budget are left out: asking them on demand costs nothing.
        """
        await trio.sleep(START_PAUSE)
        today = self._utc_now().date()
        self._fetch_ahead(self.sources[0], today)
        tick = min(LONGEST_TICK, max(self.tables.life / TICKS, 0.01))
        while True:
            await trio.sleep(min(tick, self._to_midnight() + 0.001))
            self.watch_clock()
            self._refresh(trio.current_time())
            if (date_now := self._utc_now().date()) != today:
                today = date_now
                self._fetch_new_day(today)

    def _to_midnight(self) -> float:
        now = self._utc_now()
        midnight = datetime.combine(now.date() + timedelta(days=1), time(), UTC)
        return (midnight - now).total_seconds()

    def _fetch_new_day(self, today: date) -> None:
        ended = today - timedelta(days=1)
        lately = trio.current_time() - self.tables.life
        for source in self.sources:
            used = self.tables.used_since(source.name, ended, lately)
            if used or source is self.sources[0]:
                self._fetch_ahead(source, today)
            if used:
                self._fetch_ahead(source, ended)

    def _refresh(self, now: float) -> None:
        """Refresh one table of each source at a time, to avoid bursts."""
        today = self._utc_now().date()
        asked: set[str] = set()
        for table in self.tables.due_ahead(today, now):
            if table.provider in asked:
                continue
            asked.add(table.provider)
            self.tables.postpone(table, now)
            place = [source.name for source in self.sources].index(table.provider)
            for source in self.sources[:place]:
                # It may have recovered; it is used when this table ends.
                if not self.tables.has_live(source.name, table.day, today, now):
                    self._fetch_ahead(source, table.day)
            self._fetch_ahead(self.sources[place], table.day)

    def _fetch_ahead(self, source: Source, day: date) -> None:
        """Fetch a table in the background, if the source has calls to spare."""
        name, now = source.name, trio.current_time()
        if name not in self._allowances or self.tables.has_failed(name, day, now):
            return
        if self._limit(name, day, self._utc_now().date(), now, ahead=True) is None:
            self._start(source, day)

    # The clocks.

    def watch_clock(self) -> None:
        """Report a jump of the wall clock, and adjust the tables to it."""
        offset = self._read_clock_offset()
        jump = offset - self._clock_offset
        self._clock_offset = offset
        if abs(jump) >= CLOCK_JUMP:
            self.tables.clock_moved(jump, self._utc_now())
            self._observer.clock_jumped(jump)

    def _read_clock_offset(self) -> float:
        return self._utc_now().timestamp() - trio.current_time()

    def _compare_clocks(self, table: RateTable) -> None:
        """Report a difference between our clock and a source's, once until it changes."""
        if table.source_clock is None:
            return
        ahead = (table.fetched - table.source_clock).total_seconds()
        reported = self._clock_differences.get(table.provider, 0.0)
        if abs(ahead - reported) >= CLOCK_DIFFERENCE:
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
    # A coarse quote stays coarse, so a retry does not help.
    if all(failure.outcome == "coarse" for _, failure in failures):
        return NoRate("unknown-currency", text)
    return NoRate("unavailable", text)
