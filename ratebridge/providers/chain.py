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
from datetime import date, datetime
from math import inf
from types import MappingProxyType
from typing import Final

import attrs
import trio
from msgspec.structs import replace

from ..budget import RESERVE, Allowance
from ..errors import FetchOutcome, NoRate, Refusal, SourceFailed
from ..observer import Observer
from ..plausibility import implausible, without
from ..rates import Failing, Rate, RateTable, Tables, fixed_rate, rate_from
from .source import Source

MOST_PINNED: Final = 4096  # rates, about 1 MB
ANSWERED: Final = frozenset({"bad-body", "bad-table", "implausible"})  # failures within a quota
MOST_FETCHES: Final = 8  # at a time: far below the HTTP client's pool, see `http`
CLOCK_JUMP: Final = 5.0  # s of the wall clock against the monotonic one: more than drift
CLOCK_DIFFERENCE: Final = 60.0  # s between our clock and a source's that are reported
PAUSES: Final = (0.1, 0.4)  # s before the second and the third attempt; then the fetch has failed

Outcome = RateTable | Failing
_NOTHING: Final[Mapping[str, Outcome]] = MappingProxyType({})
_STOPPED: Final = Failing(SourceFailed("stopped", "was not asked to the end"))


@attrs.define(eq=False)
class _Pinned:
    """A rate used because an earlier source failed, and the trio time until which it stays.

    It does not hold its table, which may be dropped meanwhile. `running` is as in
    `RateTable`.
    """

    rate: Rate
    running: bool
    until: float


@attrs.define(eq=False)
class _Access:
    """How a source may be asked. Times are trio's."""

    limiter: trio.CapacityLimiter
    allowance: Allowance | None  # None: it has no budget
    limited_until: float = -inf
    limit: SourceFailed | None = None  # why it is not asked until then
    budget_reported_until: float = -inf  # when it may be reported again
    clock_difference: float = 0.0  # s, as last reported


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
        self._access = {
            source.name: _Access(
                trio.CapacityLimiter(at_a_time),
                None if source.budget is None else Allowance(source.budget),
            )
            for source in sources
        }
        self._fetches: dict[tuple[str, date, bool], _Fetch] = {}
        self._pinned: OrderedDict[tuple[str, date], _Pinned] = OrderedDict()
        self._clock_offset = self._read_clock_offset()

    def cached_rate(self, currency: str, day: date, today: date, now: float) -> Rate | None:
        """The rate from the tables held; None if a source has to be asked.

        `today` is the UTC day, `now` trio's time. Raises `NoRate` if the tables show
        that there is none.
        """
        if self._pinned and (pinned := self._pinned_rate(currency, day, today, now)):
            return pinned
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
        if pinned is None:
            return None
        if now >= pinned.until or pinned.running is (day < today):  # or the clock was set back
            del self._pinned[currency, day]
            return None
        for provider in (pinned.rate.provider, self._first):  # which follows it
            self.tables.use(provider, day, now)
        return pinned.rate

    def _pin(self, rate: Rate, table: RateTable, failed: list[str], now: float) -> Rate:
        """The rate, pinned if sources before its own have failed."""
        if not failed:
            return rate
        note = f"in place of {' and '.join(failed)} until this table expires"
        rate = replace(rate, note=f"{rate.note}; {note}" if rate.note else note)
        until = self.tables.end_of(table)
        if until is not None and until > now:
            key = (rate.currency, rate.asked)
            self._pinned[key] = _Pinned(replace(rate, cached=True), table.running, until)
            self._pinned.move_to_end(key)
            if len(self._pinned) > MOST_PINNED:
                self._pinned.popitem(last=False)
        return rate

    def _limit(
        self, name: str, day: date, today: date, now: float, *, ahead: bool = False
    ) -> SourceFailed | None:
        """Why a source must not be asked for a day's table at present, if so."""
        access = self._access[name]
        if now < access.limited_until:
            return access.limit
        allowance = access.allowance
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
            keep = RESERVE
        wait = allowance.wait(now, keep)
        if wait <= 0:
            return None
        return SourceFailed("budget", "has no calls left in its budget", limited_for=wait)

    def _start(self, source: Source, day: date) -> _Fetch:
        """The one fetch of this table, started if none is under way."""
        # A fetch from before midnight does not give an ended day's table.
        key = (source.name, day, day < self._utc_now().date())
        fetch = self._fetches.get(key)
        if fetch is None:
            if allowance := self._access[source.name].allowance:
                allowance.ask(trio.current_time())
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
                assert (table.provider, table.day) == (source.name, day), "it is what was asked for"
                self.watch_clock()
                self._compare_clocks(table)
                table = self._plausible(table)
                now = trio.current_time()
                kept = self.tables.store(table, now, self._jitter())
                self._observer.fetched(source.name, str(day), [table], now - began)
                return kept
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
                async with self._access[source.name].limiter:
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
        allowance = self._access[provider].allowance
        if allowance is not None and failure.outcome not in ANSWERED:
            allowance.unanswered(now)
        if failure.limited_for is not None:
            self._limit_rate(provider, failure, now, now + failure.limited_for)
        self.tables.store_failure(provider, day, failure, now - failure.age)
        today = self._utc_now().date()
        known = self.tables.find(provider, day, today=today, now=now)
        assert known is not None, "the failure is remembered"
        table = known.table if isinstance(known, Failing) else known
        meanwhile = None if table is None else table.fetched
        told = attrs.evolve(failure, outcome=_outcome(failure.outcome))
        self._observer.fetch_failed(provider, str(day), told, meanwhile)
        return known

    def _limit_rate(self, provider: str, failure: SourceFailed, now: float, until: float) -> None:
        """Rate-limit the source, and report it unless it is known already."""
        access = self._access[provider]
        # Concurrent fetches are refused alike, and a limit of a second is none.
        if until > max(now, access.limited_until) + 1.0:
            access.limited_until, access.limit = until, failure
            self._observer.rate_limited(provider, failure)

    def _report_budget(self, provider: str, failure: SourceFailed, now: float) -> None:
        """Report that a budget is used up, once a minute at most."""
        access = self._access[provider]
        if failure.outcome == "budget" and now >= access.budget_reported_until:
            access.budget_reported_until = now + max(60.0, failure.limited_for or 0.0)
            self._observer.rate_limited(provider, failure)

    def fetch_ahead(self, source: Source, day: date) -> None:
        """Fetch a table in the background, if the source has calls to spare.

        A source without a budget is left out: to ask it on demand costs nothing.
        """
        name, now = source.name, trio.current_time()
        if self._access[name].allowance is None or self.tables.has_failed(name, day, now):
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
            for pinned in self._pinned.values():  # it ends with its table
                pinned.until -= max(0.0, jump)
            self._observer.clock_jumped(jump)

    def _read_clock_offset(self) -> float:
        return self._utc_now().timestamp() - trio.current_time()

    def _compare_clocks(self, table: RateTable) -> None:
        """Report a difference between our clock and a source's, once until it changes."""
        if table.source_clock is None:
            return
        ahead = (table.fetched - table.source_clock).total_seconds()
        access = self._access[table.provider]
        if abs(ahead - access.clock_difference) >= CLOCK_DIFFERENCE:
            access.clock_difference = ahead
            self._observer.clock_differs(table.provider, ahead)


def _outcome(word: str) -> FetchOutcome:
    """The outcome of a fetch, with an HTTP status replaced by its class."""
    if word.startswith("http-"):
        classes = {"4": FetchOutcome.HTTP_4XX, "5": FetchOutcome.HTTP_5XX}
        return classes.get(word[5:6] if len(word) == 8 else "", FetchOutcome.HTTP_OTHER)
    return FetchOutcome(word)


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
        return NoRate(Refusal.UNKNOWN_CURRENCY, text)
    return NoRate(Refusal.UNAVAILABLE, text)
