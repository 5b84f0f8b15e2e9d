"""The chain: from a currency and a day to a rate, with as few calls as possible.

The sources that can have the currency are asked in their order, each by one call for all that it
brings with the day, however many requests wait for it. The next one is asked when one fails, lacks
the currency, or has taken its share of the deadline, be it for an earlier request. A fetch is a
task of the service's nursery: it outlives the request and the connection that it began for, and
what it brings serves the next one.

The rate that answered a currency and day goes on answering them until its sheet is due again. So
each request of a bet gets the same, also where a source has failed and is back. What is answered
depends on the day and on what the sources said of it when they were last asked: which currencies
and days were asked for before it, and in which order, changes nothing.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from math import inf
from typing import Final

import attrs
import trio
from msgspec.structs import replace

from ..budget import FOR_TODAY, Budget
from ..errors import FetchOutcome, NoRate, Refusal, SourceFailed
from ..plausibility import alike, doubt
from ..rates import (
    FAILURE_LIFE,
    RENEWED_FROM,
    Doubted,
    Quote,
    Rate,
    RateCache,
    RateSheet,
    final_from,
    fixed_rate,
    midnight_after,
)
from ..reporting.observer import Observer
from .ecb import load_embedded
from .source import Source, reading

FETCH_WITHIN: Final = 30.0  # s, retries included; a request waits for its own deadline at most
STALLED_AFTER: Final = 10.0  # s without an answer, until another connection is tried
MOST_FETCHES: Final = 8  # of a source at a time, each with a connection of its own
MOST_CHOSEN: Final = 16_384  # rates that are at hand, some 5 MB
# Failures that a source does not count.
UNANSWERED: Final = frozenset(
    map(FetchOutcome, ("unreachable", "timeout", "http-5xx", "quota-minute", "quota-month"))
)
RENEWAL_EVERY: Final = 15.0  # s, at least, between the renewals of ended days by one source
PAUSES: Final = (0.1, 0.4)  # s before the second and the third attempt; then the fetch has failed
LATEST: Final = "the latest rates, as those of the day were not published yet"
CLOCK_JUMP: Final = 5.0  # s of the wall clock against the monotonic one: more than drift
CLOCK_DIFFERENCE: Final = 60.0  # s between our clock and a source's that are reported


@attrs.define(eq=False)
class _Access:
    """How a source may be asked. Times are trio's."""

    budget: Budget | None  # None: as often as needed
    limiter: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(MOST_FETCHES))
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


@attrs.define(eq=False, repr=False)
class RateChain:
    """The sources in their order, and the cache of what they said.

    Args:
        sources: in the order of trying.
        cache: the sheets, and the last failures.
        nursery: in which the fetches run.
        deadline: the seconds for one rate, failover included; each source that can have the
            currency gets an equal share of them.
        utc_now: the wall clock.
        observer: is told of each fetch, and of what is unusual.
        judge: whether implausible quotes are doubted.
        jitter: from 0 to 1, for the pauses between attempts.
    """

    sources: Sequence[Source]
    cache: RateCache
    _nursery: trio.Nursery
    _deadline: float = attrs.field(kw_only=True)
    _utc_now: Callable[[], datetime] = attrs.field(kw_only=True)
    _observer: Observer = attrs.field(kw_only=True)
    _judge: bool = attrs.field(default=True, kw_only=True)
    _jitter: Callable[[], float] = attrs.field(default=random.random, kw_only=True)
    _access: dict[str, _Access] = attrs.field(init=False)
    _fetches: dict[tuple[str, str, date], _Fetch] = attrs.field(factory=dict, init=False)
    _fetch_ended: trio.Event = attrs.field(factory=trio.Event, init=False)  # replaced each time
    _chosen: dict[tuple[str, date], tuple[Rate, datetime]] = attrs.field(factory=dict, init=False)
    _ready: bool = attrs.field(default=False, init=False)
    _clock_offset: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._access = {
            source.name: _Access(None if source.every is None else Budget(source.every))
            for source in self.sources
        }
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
        share = self._deadline / (len(self._sources_of(currency)) or 1)
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

    def _sources_of(self, currency: str) -> list[Source]:
        """The sources that can have a currency, in their order."""
        return [
            source
            for source in self.sources
            if source.currencies is None or currency in source.currencies
        ]

    def _look(
        self, currency: str, day: date, now: datetime, asked: Mapping[str, tuple[_Fetch, float]]
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
        doubted: list[tuple[RateSheet, Quote, date]] = []  # and the days that the quotes are of
        for source in self._sources_of(currency):
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
                continue
            if isinstance(row, SourceFailed):
                reasons.append((source.name, row))
                continue
            quote = row.quote if isinstance(row, Doubted) else row
            believed = next((one for one in doubted if alike(one[1], quote)), None)
            if believed is None and isinstance(row, Doubted):
                doubted.append((sheet, quote, known_on))
                reasons.append((source.name, row.why))
                continue
            # Here is the rate: that of the first of two sources that give it alike.
            sheet, quote, known_on = believed or (sheet, quote, known_on)
            if again and not sheet.lives(day, now, self.cache.life):
                return again[0]
            for failing in again:
                self._start(failing, day)
            notes = [LATEST] if sheet.latest else []
            notes += [f"in place of {' and '.join(failed)}"] if failed else []
            rate = Rate(
                *(currency, quote.units, quote.euro, known_on, day, sheet.provider, sheet.fetched),
                cached=not asked,
                note="; ".join(notes),
            )
            self._chosen[currency, day] = replace(rate, cached=True), self._due(sheet, day, now)
            if len(self._chosen) > MOST_CHOSEN:
                del self._chosen[next(iter(self._chosen))]
            return rate
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
        names = lacking if reasons else [source.name for source in self.sources]
        text = f"currency '{currency}' is not known to {' or '.join(names)}"
        if not names:
            text = f"no rate for '{currency}' on {day}: {failures}"
        elif reasons:
            text += f", and {failures}"
        # A coarse quote stays coarse, so a retry does not help.
        known = any(failure.outcome != FetchOutcome.COARSE for _, failure in reasons)
        return NoRate(Refusal.UNAVAILABLE if known else Refusal.UNKNOWN_CURRENCY, text)

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
        known_as = source.name, source.asks(day, now.date())
        sheet = self.cache.find(*known_as)
        if sheet is not None and sheet.serves(day, now, self.cache.life):
            if fetch is None and now >= self._due(sheet, day, now):
                self.fetch_in_background(source, day, in_use=sheet.is_final(day))
            return sheet
        if fetch is not None:
            if not fetch.done.is_set() and mono < until:
                return None
            return fetch.failure or SourceFailed(FetchOutcome.TIMEOUT, "has not answered in time")
        problem = self._problem(source, day, now, in_use=False)
        if problem is None and (failed := self.cache.failure(*known_as)) is not None:
            again.append(source)
            return failed[0]
        return problem

    def _due(self, sheet: RateSheet, day: date, now: datetime) -> datetime:
        """When the source should be asked again for a sheet in use.

        Early enough that no request waits for one that is not final.
        """
        if sheet.refused is not None or not sheet.lives(day, now, self.cache.life):
            return now
        due = sheet.fetched + self.cache.life * RENEWED_FROM
        if sheet.is_final(day):
            return due
        # It lives up to midnight, and is asked for again as soon as it can be final.
        final = final_from(day)
        return min(due, midnight_after(now.date()), final if sheet.fetched < final else due)

    def _problem(
        self, source: Source, day: date, now: datetime, *, in_use: bool
    ) -> SourceFailed | None:
        """Why a source must not be asked for a day at present, None if it may be.

        `in_use` means that there is a final sheet, which can be renewed later as well.
        """
        if self._under_way(source, day) is not None:  # it may be waiting for a limit to end
            return None
        access, mono = self._access[source.name], trio.current_time()
        if mono < access.limited_until:
            return access.limit
        failed = self.cache.failure(source.name, source.asks(day, now.date()))
        if failed is not None and mono - failed[1] < FAILURE_LIFE:
            return failed[0]
        today = day >= now.date()
        wait = 0.0 if access.budget is None else access.budget.wait(mono, 0 if today else FOR_TODAY)
        if in_use and not today:
            pace = max(RENEWAL_EVERY, 2 * (source.every or 0.0))  # half of it is for requests
            wait = max(wait, access.renewed_at + pace - mono)
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
            name = f"fetch {source.name} {key[1]}"
            self._nursery.start_soon(self._fetch, source, day, key, fetch, name=name)
        return fetch

    async def _fetch(
        self, source: Source, day: date, key: tuple[str, str, date], fetch: _Fetch
    ) -> None:
        """Fetch, keep the sheet or the failure, and wake the waiting requests."""
        failure = SourceFailed(FetchOutcome.TIMEOUT, f"gave no answer within {FETCH_WITHIN:g} s")
        try:
            with trio.move_on_at(fetch.began + FETCH_WITHIN):
                self.watch_clock()
                sheet = await self._ask(source, day)
                self.watch_clock()
                self._compare_clocks(sheet)
                fetch.sheet = sheet = await self._judged(sheet)
                self.cache.store(sheet)
                if sheet.refused is None:
                    self._observer.fetched(sheet, trio.current_time() - fetch.began)
                    return
                failure = sheet.refused  # what it says may still be confirmed by another source
        except SourceFailed as error:
            failure = attrs.evolve(error)  # without the traceback, which holds answers and headers
        except Exception as error:  # noqa: BLE001 - a bug in a source disables that source only
            self._observer.internal_error(source.name, error)
            failure = SourceFailed(FetchOutcome.INTERNAL_ERROR, "could not be read")
        finally:
            fetch.done.set()
            del self._fetches[key]
            self._fetch_ended.set()
            self._fetch_ended = trio.Event()
        # Those who wait run only after this, as there is no checkpoint before its end.
        fetch.failure = failure
        mono = trio.current_time()
        budget = self._access[source.name].budget
        if budget is not None and failure.outcome in UNANSWERED:
            budget.return_unanswered(mono, whole=failure.outcome == FetchOutcome.QUOTA_MONTH)
        self.cache.store_failure(*key[:2], failure, mono)
        held = self.cache.find(*key[:2])
        serves = held is not None and held.serves(day, self._utc_now(), self.cache.life)
        meanwhile = held.fetched if held is not None and serves else None
        self._observer.fetch_failed(*key[:2], failure, meanwhile)

    async def _ask(self, source: Source, day: date) -> RateSheet:
        """What the source gives, in three attempts at most. Raises what it raises.

        The second and the third come after failures that may be over in a moment. A connection
        that has stalled for long gets another beside it.
        """
        outcome: RateSheet | Exception | None = None
        asking = trio.Event()  # the first attempt has its turn
        access, give_up = self._access[source.name], trio.current_time() + self._deadline

        async def attempts() -> None:
            nonlocal outcome
            pauses = iter((*PAUSES, inf))
            while True:
                try:
                    async with access.limiter:
                        asking.set()
                        # It may have been limited while this waited for its turn.
                        if access.limit and (s := access.limited_until - trio.current_time()) > 0:
                            raise attrs.evolve(access.limit, limited_for=s)  # noqa: TRY301
                        outcome = await source.fetch(day, self._utc_now())
                        break
                except SourceFailed as failure:
                    outcome = failure
                    mono, limited_for = trio.current_time(), failure.limited_for or 0.0
                    # Concurrent fetches are refused alike, and a limit of a second is none.
                    if mono + limited_for > max(mono, access.limited_until) + 1.0:
                        access.limited_until, access.limit = mono + limited_for, failure
                        self._observer.rate_limited(source.name, failure)
                    rest = max(next(pauses) * (0.5 + self._jitter()), limited_for)
                    if not failure.again or mono + rest >= give_up:
                        break
                except Exception as error:  # noqa: BLE001 - raised below, and not as a group
                    outcome = error
                    break
                await trio.sleep(rest)
            attempts_nursery.cancel_scope.cancel()

        async with trio.open_nursery() as attempts_nursery:
            attempts_nursery.start_soon(attempts)
            await asking.wait()
            await trio.sleep(STALLED_AFTER)
            attempts_nursery.start_soon(attempts)
        if not isinstance(outcome, RateSheet):
            assert outcome is not None, "the nursery ends with an outcome, or is cancelled"
            raise outcome
        return outcome

    async def _judged(self, sheet: RateSheet) -> RateSheet:
        """The sheet with its implausible quotes doubted."""
        history = await load_embedded()
        if not self._judge or sheet.rows is history:
            return sheet
        rows = dict(sheet.rows)
        refused: list[SourceFailed] = []
        async with reading():
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

    def fetch_in_background(self, source: Source, day: date, *, in_use: bool = False) -> None:
        """Fetch a sheet that will be asked for, if the source may be asked.

        `in_use` means that there is a final one, which this is to renew.
        """
        if self._problem(source, day, self._utc_now(), in_use=in_use) is None:
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
