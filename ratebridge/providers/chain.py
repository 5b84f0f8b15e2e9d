"""The chain: from a currency and a day to a rate, with as few calls as possible.

The sources that can have the currency are asked in their order, each by one call for all that it
brings with the day, however many requests wait for it. The next one is asked when one fails, lacks
the currency, or has taken its share of the deadline, be it for an earlier request. A fetch is a
task of the service's nursery: it outlives the request and the connection that it began for, and
what it brings serves the next one.

The rate that answered a currency and day goes on answering them until its sheet is due again. So
each request of a bet gets the same, also where a source has failed and is back. What is answered
depends on the day and on what the sources say of it, and on no other request.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from math import inf
from typing import Final

import attrs
import trio
from msgspec.structs import replace

from ..budget import FOR_REQUESTS, FOR_TODAY, Budget
from ..errors import FetchOutcome, NoRate, Refusal, SourceFailed
from ..observer import Observer
from ..plausibility import alike, doubt
from ..rates import (
    FAILURE_LIFE,
    RENEWED_FROM,
    Doubted,
    Quote,
    Rate,
    RateCache,
    RateSheet,
    fixed_rate,
)
from .ecb import load_embedded
from .source import READING, Source

FETCH_WITHIN: Final = 30.0  # s, retries included; a request waits for its own deadline at most
STALLED_AFTER: Final = 10.0  # s without an answer, until another connection is tried
MOST_FETCHES: Final = 8  # of a source at a time: in all far below the HTTP client's pool
MOST_CHOSEN: Final = 16_384  # rates that are at hand, some 5 MB
# Failures that a source does not count.
UNANSWERED: Final = frozenset(
    map(FetchOutcome, ("unreachable", "timeout", "http-5xx", "quota-month"))
)
RENEWAL_EVERY: Final = 15.0  # s between the renewals of ended days by one source
PAUSES: Final = (0.1, 0.4)  # s before the second and the third attempt; then the fetch has failed
CLOCK_JUMP: Final = 5.0  # s of the wall clock against the monotonic one: more than drift
CLOCK_DIFFERENCE: Final = 60.0  # s between our clock and a source's that are reported


@attrs.define(eq=False)
class _Access:
    """How a source may be asked. Times are trio's."""

    limiter: trio.CapacityLimiter
    budget: Budget | None  # None: as often as needed
    limited_until: float = -inf
    limit: SourceFailed | None = None  # why it is not asked until then
    budget_reported_until: float = -inf  # when it may be reported again
    renewed_at: float = -inf
    clock_difference: float = 0.0  # s, as last reported


@attrs.define(eq=False)
class _Fetch:
    """A fetch under way, since `began` (trio time); it ends with a sheet or a failure."""

    began: float
    sheet: RateSheet | None = None
    failure: SourceFailed | None = None
    done: trio.Event = attrs.Factory(trio.Event)


class RateChain:
    """The sources in their order, and the cache of what they said.

    `deadline` is the time in seconds for one rate, failover included; each source that can have the
    currency gets an equal share of it. `utc_now` is the wall clock. Fetches run in `nursery`.
    `judge` says whether implausible quotes are doubted.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        cache: RateCache,
        nursery: trio.Nursery,
        *,
        deadline: float,
        utc_now: Callable[[], datetime],
        observer: Observer,
        judge: bool = True,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.sources: Final = tuple(sources)
        self.cache: Final = cache
        self._nursery = nursery
        self._deadline = deadline
        self._utc_now = utc_now
        self._observer = observer
        self._judge = judge
        self._jitter = jitter
        self._access = {
            source.name: _Access(
                trio.CapacityLimiter(MOST_FETCHES),
                None if source.every is None else Budget(source.every),
            )
            for source in sources
        }
        self._fetches: dict[tuple[str, str, date], _Fetch] = {}
        self._fetch_ended = trio.Event()  # replaced each time
        self._chosen: dict[tuple[str, date], tuple[Rate, datetime]] = {}  # and until when
        self._ready = False
        self._clock_offset = self._read_clock_offset()

    def cached_rate(self, currency: str, day: date, now: datetime) -> Rate | None:
        """The rate at hand, None if a source has to be asked.

        `day` is no later than the UTC day of `now`. Raises `NoRate` if there is none, and no call
        would help.
        """
        chosen = self._chosen.get((currency, day))
        if chosen is not None and now < chosen[1]:
            return chosen[0]
        if not self._ready:
            return None
        found = self._look(currency, day, now, {})
        return found if isinstance(found, Rate) else None

    async def rate(self, currency: str, day: date) -> Rate:
        """The rate, asking the sources as needed. Raises `NoRate` by the deadline at the latest.

        Each source is asked once at most. What it answers counts for this request even if its life
        is over by then.
        """
        deadline = trio.current_time() + self._deadline
        if not self._ready:
            await load_embedded()
            self._ready = True
        share = self._deadline / (sum(_can_have(one, currency) for one in self.sources) or 1)
        asked: dict[str, tuple[_Fetch, float]] = {}  # by source, and until when it is waited for
        while True:
            ended, until = self._fetch_ended, deadline
            try:
                found = self._look(currency, day, self._utc_now(), asked)
                if isinstance(found, Rate):
                    return found
                if found.name not in asked:
                    fetch = self._start(found, day)
                    asked[found.name] = fetch, min(deadline, fetch.began + share)
                    continue
                fetch, until = asked[found.name]
                ended = fetch.done
            except NoRate:
                # Whichever of those that took too long ends first may have it.
                running = any(not fetch.done.is_set() for fetch, _ in asked.values())
                if not running or trio.current_time() >= deadline:
                    raise
            with trio.move_on_at(until):
                await ended.wait()

    def providers_of(self, day: date) -> set[str]:
        """The sources whose rates of a day are in use."""
        return {rate.provider for (_, asked), (rate, _) in self._chosen.items() if asked == day}

    def _look(
        self,
        currency: str,
        day: date,
        now: datetime,
        asked: Mapping[str, tuple[_Fetch, float]],
    ) -> Rate | Source:
        """The rate, or the source to be waited for. Raises `NoRate` if there is neither.

        `asked` are the fetches that the request has begun or joined. A sheet that is due, and a
        source that failed a while ago, are asked for again in the background where a sheet can
        answer meanwhile; for a failed source that is one that lives.
        """
        if (rate := fixed_rate(currency, day)) is not None:
            return rate
        again: list[Source] = []  # whose last failure is over
        lacking: list[str] = []
        failed: list[str] = []
        reasons: list[tuple[str, SourceFailed]] = []
        doubted: list[_Offer] = []
        for source in self.sources:
            if not _can_have(source, currency):
                continue
            sheet = self._sheet(source, day, now, asked, again)
            if sheet is None:
                return again[0] if again else source
            if isinstance(sheet, SourceFailed):
                failed.append(source.name)
                reasons.append((source.name, sheet))
                continue
            row, known_on = sheet.find(currency, day) or (None, day)
            if row is None:
                lacking.append(source.name)
            elif isinstance(row, SourceFailed):
                reasons.append((source.name, row))
            else:
                offer = sheet, (row.quote if isinstance(row, Doubted) else row), known_on
                believed = next((one for one in doubted if alike(one[1], offer[1])), None)
                if believed is not None or isinstance(row, Quote):
                    sheet = (believed or offer)[0]
                    if again and not sheet.lives(day, now, self.cache.life):
                        return again[0]
                    for failing in again:
                        self._start(failing, day)
                    rate = _make_rate(currency, day, believed or offer, failed, cached=not asked)
                    return self._choose(rate, self._due(sheet, day, now))
                doubted.append(offer)
                reasons.append((source.name, row.why))
        if again:
            return again[0]
        raise self._no_rate(currency, day, lacking, reasons)

    def _no_rate(
        self, currency: str, day: date, lacking: list[str], reasons: list[tuple[str, SourceFailed]]
    ) -> NoRate:
        """Why there is none: `lacking` sources have answered without it, `reasons` are the others'.

        A source that cannot have the currency is named only where none has anything else to say.
        """
        failures = ", ".join(f"{name} {failure}" for name, failure in reasons)
        if not reasons:
            names = " or ".join(source.name for source in self.sources)
            text = f"currency '{currency}' is not known to {names}"
        elif lacking:
            names = " or ".join(lacking)
            text = f"currency '{currency}' is not known to {names}, and {failures}"
        else:
            text = f"no rate for '{currency}' on {day}: {failures}"
        # A coarse quote stays coarse, so a retry does not help.
        if all(failure.outcome == FetchOutcome.COARSE for _, failure in reasons):
            return NoRate(Refusal.UNKNOWN_CURRENCY, text)
        return NoRate(Refusal.UNAVAILABLE, text)

    def _sheet(
        self,
        source: Source,
        day: date,
        now: datetime,
        asked: Mapping[str, tuple[_Fetch, float]],
        again: list[Source],
    ) -> RateSheet | SourceFailed | None:
        """The sheet of a source to be used for a day, or why there is none; None: wait for it.

        A source is added to `again` if it has failed, and may be asked again.
        """
        mono = trio.current_time()
        fetch, until = asked.get(source.name, (None, mono))
        if fetch is not None and fetch.sheet is not None:
            return fetch.sheet
        sheet = self.cache.find(source.name, source.asks(day, now.date()))
        if sheet is not None and not sheet.serves(day, now, self.cache.life):
            sheet = None
        if sheet is not None:
            due = fetch is None and now >= self._due(sheet, day, now)
            if due and self._problem(source, day, now, mono, in_use=True) is None:
                self._start(source, day)
            return sheet
        if fetch is not None:
            if not fetch.done.is_set() and mono < until:
                return None
            return fetch.failure or SourceFailed(FetchOutcome.TIMEOUT, "has not answered in time")
        problem = self._problem(source, day, now, mono, in_use=False)
        failed = self.cache.failure(source.name, source.asks(day, now.date()))
        if problem is None and failed is not None:
            again.append(source)
            problem = failed[0]
        return problem

    def _choose(self, rate: Rate, until: datetime) -> Rate:
        """Have a rate at hand until then."""
        key = rate.currency, rate.asked
        self._chosen.pop(key, None)
        self._chosen[key] = (rate if rate.cached else replace(rate, cached=True)), until
        if len(self._chosen) > MOST_CHOSEN:
            del self._chosen[next(iter(self._chosen))]
        return rate

    def _due(self, sheet: RateSheet, day: date, now: datetime) -> datetime:
        """When the source should be asked again for a sheet in use.

        Early enough that no request waits for one that is not final.
        """
        if sheet.refused is not None or not sheet.lives(day, now, self.cache.life):
            return now
        due = sheet.fetched + self.cache.life * RENEWED_FROM
        if sheet.is_final(day):
            return due
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        return min(due, midnight)

    def _problem(
        self, source: Source, day: date, now: datetime, mono: float, *, in_use: bool
    ) -> SourceFailed | None:
        """Why a source must not be asked for a day at present, None if it may be.

        `in_use` means that there is a sheet, which can be renewed later as well.
        """
        access = self._access[source.name]
        if mono < access.limited_until:
            return access.limit
        failed = self.cache.failure(source.name, source.asks(day, now.date()))
        if failed is not None and mono - failed[1] < FAILURE_LIFE:
            return failed[0]
        if self._under_way(source, day) is not None:
            return None
        today = day >= now.date()
        keep = 0 if today else FOR_REQUESTS if in_use else FOR_TODAY
        wait = 0.0 if access.budget is None else access.budget.wait(mono, keep)
        if in_use and not today:
            wait = max(wait, access.renewed_at + RENEWAL_EVERY - mono)
        if wait <= 0:
            return None
        failure = SourceFailed(
            FetchOutcome.BUDGET, "has no calls left in its budget", limited_for=wait
        )
        if not in_use and mono >= access.budget_reported_until:
            access.budget_reported_until = mono + max(60.0, wait)
            self._observer.rate_limited(source.name, failure)
        return failure

    def _under_way(self, source: Source, day: date) -> _Fetch | None:
        """The fetch that brings a day, if one is under way."""
        today = self._utc_now().date()
        yesterday = today - timedelta(days=1)
        asked = source.asks(day, today)
        fetch = self._fetches.get((source.name, asked, today))
        if fetch is None and day < yesterday:
            # One from before midnight does not bring the rates of the day that it ended.
            fetch = self._fetches.get((source.name, asked, yesterday))
        return fetch

    def _start(self, source: Source, day: date) -> _Fetch:
        """The one fetch of this sheet, started if none is under way."""
        fetch = self._under_way(source, day)
        if fetch is None:
            today = self._utc_now().date()
            key = source.name, source.asks(day, today), today
            access, mono = self._access[source.name], trio.current_time()
            if access.budget is not None:
                access.budget.take(mono)
            if self.cache.find(*key[:2]) is not None and day < today:
                access.renewed_at = mono
            fetch = self._fetches[key] = _Fetch(mono)
            self._nursery.start_soon(
                self._run_fetch, source, day, key, fetch, name=f"fetch {source.name} {key[1]}"
            )
        return fetch

    async def _run_fetch(
        self, source: Source, day: date, key: tuple[str, str, date], fetch: _Fetch
    ) -> None:
        """Fetch, keep the sheet or the failure, and wake the waiting requests."""
        try:
            await self._fetch(source, day, key[1], fetch)
        finally:
            fetch.done.set()
            del self._fetches[key]
            self._fetch_ended.set()
            self._fetch_ended = trio.Event()

    async def _fetch(self, source: Source, day: date, asked: str, fetch: _Fetch) -> None:
        began = trio.current_time()
        failure = SourceFailed(FetchOutcome.TIMEOUT, f"gave no answer within {FETCH_WITHIN:g} s")
        try:
            with trio.move_on_at(began + FETCH_WITHIN):
                self.watch_clock()
                sheet = await self._first_answer(source, day, began)
                self.watch_clock()
                self._compare_clocks(sheet)
                fetch.sheet = sheet = await self._judged(sheet)
                self.cache.store(sheet)
                if sheet.refused is None:
                    self._observer.fetched(sheet, trio.current_time() - began)
                    return
                failure = sheet.refused  # what it says may still be confirmed by another source
        except SourceFailed as error:
            failure = attrs.evolve(error)  # without the traceback, which holds answers and headers
        except Exception as error:  # noqa: BLE001 - a bug in a source disables that source only
            self._observer.internal_error(source.name, error)
            failure = SourceFailed(FetchOutcome.INTERNAL_ERROR, "could not be read")
        fetch.failure = failure
        mono = trio.current_time()
        budget = self._access[source.name].budget
        if budget is not None and failure.outcome in UNANSWERED:
            budget.return_unanswered(mono)
        self.cache.store_failure(source.name, asked, failure, mono)
        held = self.cache.find(source.name, asked)
        serves = held is not None and held.serves(day, self._utc_now(), self.cache.life)
        meanwhile = held.fetched if held is not None and serves else None
        self._observer.fetch_failed(source.name, asked, failure, meanwhile)

    async def _first_answer(self, source: Source, day: date, began: float) -> RateSheet:
        """What the source gives. A connection that has stalled for long gets another beside it."""
        outcome: RateSheet | Exception | None = None
        asking = trio.Event()  # the first attempt has its turn

        async def attempt() -> None:
            nonlocal outcome
            try:
                outcome = await self._attempt(source, day, began, asking)
            except Exception as error:  # noqa: BLE001 - raised below, and not as a group
                outcome = error
            attempts_nursery.cancel_scope.cancel()

        async with trio.open_nursery() as attempts_nursery:
            attempts_nursery.start_soon(attempt)
            await asking.wait()
            await trio.sleep(STALLED_AFTER)
            attempts_nursery.start_soon(attempt)
        if not isinstance(outcome, RateSheet):
            assert outcome is not None, "the nursery ends with an outcome, or is cancelled"
            raise outcome
        return outcome

    async def _attempt(
        self, source: Source, day: date, began: float, asking: trio.Event
    ) -> RateSheet:
        """One attempt, and two more after failures that may be over in a moment."""
        pauses = iter(PAUSES)
        while True:
            try:
                async with self._access[source.name].limiter:
                    asking.set()
                    return await source.fetch(day, self._utc_now())
            except SourceFailed as failure:
                if failure.limited_for is not None:
                    self._limit_source(source.name, failure)
                pause = next(pauses, None)
                if pause is None or not failure.again:
                    raise
                rest = max(pause * (0.5 + self._jitter()), failure.limited_for or 0.0)
                if trio.current_time() + rest >= began + self._deadline:
                    raise
            await trio.sleep(rest)

    async def _judged(self, sheet: RateSheet) -> RateSheet:
        """The sheet with its implausible quotes doubted."""
        history = await load_embedded()
        if not self._judge or sheet.rows is history:
            return sheet
        rows = dict(sheet.rows)
        refused: list[SourceFailed] = []
        async with READING:
            for day in sorted(sheet.rows):
                judged, whole = doubt(sheet.rows, history, day)
                wrong = {code: row.why for code, row in judged.items() if isinstance(row, Doubted)}
                if wrong:
                    rows[day] = judged
                    self._observer.implausible_quotes(sheet.provider, day, wrong)
                    if whole is not None:
                        refused.append(whole)
                await trio.lowlevel.checkpoint()
            mostly = 2 * len(refused) > len(rows)
        return attrs.evolve(sheet, rows=rows, refused=refused[-1] if mostly else None)

    def _limit_source(self, provider: str, failure: SourceFailed) -> None:
        """Do not ask a source for a while, and report it unless it is known already."""
        access, now = self._access[provider], trio.current_time()
        until = now + (failure.limited_for or 0.0)
        # Concurrent fetches are refused alike, and a limit of a second is none.
        if until > max(now, access.limited_until) + 1.0:
            access.limited_until, access.limit = until, failure
            self._observer.rate_limited(provider, failure)

    def fetch_in_background(self, source: Source, day: date) -> None:
        """Fetch a sheet that will be asked for, if the source may be asked."""
        now = self._utc_now()
        if self._problem(source, day, now, trio.current_time(), in_use=False) is None:
            self._start(source, day)

    # The clocks.

    def watch_clock(self) -> None:
        """Report a jump of the wall clock; what was dated in the future is no longer used."""
        offset = self._read_clock_offset()
        jump = offset - self._clock_offset
        self._clock_offset = offset
        if abs(jump) >= CLOCK_JUMP:
            self.cache.drop_later(self._utc_now())
            self._chosen.clear()
            self._observer.clock_jumped(jump)

    def _read_clock_offset(self) -> float:
        return self._utc_now().timestamp() - trio.current_time()

    def _compare_clocks(self, sheet: RateSheet) -> None:
        """Report a difference between our clock and a source's, once until it changes."""
        if sheet.source_clock is None:
            return
        ahead = (sheet.fetched - sheet.source_clock).total_seconds()
        access = self._access[sheet.provider]
        if abs(ahead - access.clock_difference) >= CLOCK_DIFFERENCE:
            access.clock_difference = ahead
            self._observer.clock_differs(sheet.provider, ahead)


_Offer = tuple[RateSheet, Quote, date]  # a quote of a sheet, and the day it is of


def _make_rate(
    currency: str, day: date, offer: _Offer, failed: Sequence[str], *, cached: bool
) -> Rate:
    sheet, quote, known_on = offer
    notes = []
    if sheet.latest:
        notes.append("the latest rates, as those of the day were not published yet")
    if failed:
        notes.append(f"in place of {' and '.join(failed)}")
    return Rate(
        *(currency, quote.units, quote.euro, known_on, day, sheet.provider, sheet.fetched, cached),
        note="; ".join(notes),
    )


def _can_have(source: Source, currency: str) -> bool:
    return source.currencies is None or currency in source.currencies
