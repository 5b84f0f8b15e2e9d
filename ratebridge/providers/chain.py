"""The chain: from a currency and a day to a rate, asking as few sources as seldom as can be.

A source is asked for a whole day-table, once however many wait for it, in a
task of the service's nursery: neither a requester that is cancelled nor a
connection that is lost takes the answer from the others. The next source is
asked when one fails or does not know the currency.
"""

import random
from collections.abc import Callable, Sequence
from datetime import date, datetime
from math import inf
from typing import Final

import trio

from ..errors import NoRate, SourceFailed
from ..observer import Observer
from ..rates import Rate, RateTable, Tables, rate_from
from .source import Source

MOST_FETCHES: Final = 8  # at a time; below the pool of the HTTP client, see there
PAUSES: Final = (0.1, 0.4)  # s before the second and the third attempt; then the source failed


class RateChain:
    """The sources in their order, and the tables they gave.

    `deadline` is the time in seconds for one rate, failover included; each
    source gets an equal share of it, so that the last is reached in time.
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
        self._nursery = nursery
        self._share = deadline / len(sources)
        self._utc_now = utc_now
        self._observer = observer
        self._jitter = jitter
        self._limiter = trio.CapacityLimiter(MOST_FETCHES)
        self._flights: dict[tuple[str, date], trio.Event] = {}
        self._silence: dict[str, tuple[float, SourceFailed]] = {}  # until when (trio time), and why

    def rate_at_hand(self, currency: str, day: date) -> Rate | None:
        """The rate if the tables held suffice to tell it, None if a source has to be asked.

        Raises `NoRate` when the tables suffice to tell that there is none.
        """
        found = self._look(currency, day, trio.current_time(), cached=True)
        return found if isinstance(found, Rate) else None

    async def rate(self, currency: str, day: date) -> Rate:
        """The rate, asking the sources as needed. Raises `NoRate`, by the deadline at the latest."""
        began = trio.current_time()
        cached = True
        while True:
            # Judged as of the beginning: what was learnt since counts, however short its life.
            found = self._look(currency, day, began, cached=cached)
            if isinstance(found, Rate):
                return found
            cached = False
            await self._ask(found, day)

    def _look(self, currency: str, day: date, now: float, *, cached: bool) -> Rate | Source:
        """A rate, or the source to be asked next. Raises `NoRate` when both are lacking."""
        today = self._utc_now().date()
        unaware: list[str] = []
        failures: list[tuple[str, SourceFailed]] = []
        for source in self.sources:
            silence = self._silenced(source.name)
            known = self.tables.find(source.name, day, today=today, now=now, failure=silence)
            if isinstance(known, RateTable):
                rate = rate_from(known, currency, cached=cached)
                if rate is not None:
                    return rate
                unaware.append(source.name)
            elif known is not None:
                failures.append((source.name, known))
            else:
                return source
        raise _no_rate(currency, day, unaware, failures)

    def _silenced(self, provider: str) -> SourceFailed | None:
        until, failure = self._silence.get(provider, (-inf, None))
        return failure if trio.current_time() < until else None

    async def _ask(self, source: Source, day: date) -> None:
        """Wait for the one fetch of this table that is under way, starting it if need be."""
        key = (source.name, day)
        landed = self._flights.get(key)
        if landed is None:
            landed = self._flights[key] = trio.Event()
            self._nursery.start_soon(self._fly, source, day, name=f"fetch {source.name} {day}")
        await landed.wait()

    async def _fly(self, source: Source, day: date) -> None:
        """One fetch from start to end: it stores a table or a failure, and wakes who waits."""
        began = trio.current_time()
        failure = SourceFailed("timeout", f"did not answer within {self._share:g} s")
        try:
            with trio.move_on_at(began + self._share):
                async with self._limiter:
                    table = await self._fetch(source, day, began + self._share)
                self.tables.store(table, trio.current_time())
                self._observer.fetched(table, trio.current_time() - began)
                return
        except SourceFailed as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a bug in a source costs that source
            self._observer.source_crashed(source.name, error)
            failure = SourceFailed("crash", "could not be read")
        finally:
            self._flights.pop((source.name, day)).set()
        self._note_failure(source, day, failure)

    def _note_failure(self, source: Source, day: date, failure: SourceFailed) -> None:
        now = trio.current_time()
        if failure.silence is not None:
            if self._silenced(source.name) is None:
                self._observer.silenced(source.name, failure)
            self._silence[source.name] = (now + failure.silence, failure)
        self.tables.store_failure(source.name, day, failure, now)
        self._observer.fetch_failed(source.name, day, failure)

    async def _fetch(self, source: Source, day: date, deadline: float) -> RateTable:
        for pause in (*PAUSES, None):
            try:
                return await source.fetch(day, self._utc_now())
            except SourceFailed as failure:
                if not failure.again or pause is None:
                    raise
                rest = max(pause * (0.5 + self._jitter()), failure.after or 0.0)
                if trio.current_time() + rest >= deadline:
                    raise
                await trio.sleep(rest)
        raise AssertionError("the last attempt returns or raises")


def _no_rate(
    currency: str, day: date, unaware: list[str], failures: list[tuple[str, SourceFailed]]
) -> NoRate:
    names = " or ".join(unaware)
    troubles = ", ".join(f"{name} {failure}" for name, failure in failures)
    if not failures:
        return NoRate("unknown-currency", f"currency '{currency}' is not known to {names}")
    if unaware:
        return NoRate(
            "unavailable", f"currency '{currency}' is not known to {names}, and {troubles}"
        )
    return NoRate("unavailable", f"no rate for '{currency}' on {day}: {troubles}")
