"""A chain over the fake sources in memory, on the clock of the test."""

import io
import ssl
import zipfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import attrs
import trio

from ratebridge.errors import NoRate, SourceFailed
from ratebridge.fakes.rates import FakeRates, memory_dial
from ratebridge.providers.chain import RateChain
from ratebridge.providers.http import HttpClient
from ratebridge.providers.registry import provider
from ratebridge.providers.source import Http, Source
from ratebridge.proxies import Proxies
from ratebridge.rates import Rate, RateCache, RateSheet
from ratebridge.reporting.observer import Observer
from ratebridge.settings import KEYS, load_settings, variable_name

KEY = "fca_live_s3cr3t"
KEYED = {variable_name(field): KEY for field in KEYS.values()}  # the settings
START = datetime(2026, 11, 20, 12, 0, 20, tzinfo=UTC)  # a Friday, twenty seconds into its minute
DAY = date(2026, 11, 3)  # a Tuesday
URL = "http://rates.test"
TLS = ssl.create_default_context()


class Wall:
    """A wall clock that runs with trio's."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._zero = trio.current_time()

    def jump(self, by: timedelta) -> None:
        self._start += by

    def __call__(self) -> datetime:
        return self._start + timedelta(seconds=trio.current_time() - self._zero)


class Notes(Observer):
    """An observer that keeps what the chain tells it."""

    def __init__(self) -> None:
        self.fetches: list[tuple[RateSheet, float]] = []  # and the seconds
        self.failures: list[tuple[str, str, SourceFailed, datetime | None]] = []
        self.silences: list[tuple[str, SourceFailed]] = []
        self.crashes: list[tuple[str, BaseException]] = []
        self.implausible: list[tuple[str, date, list[str]]] = []
        self.clock_jumps: list[float] = []
        self.clock_differences: list[tuple[str, float]] = []

    def fetched(self, sheet: RateSheet, seconds: float) -> None:
        self.fetches.append((sheet, seconds))

    def fetch_failed(
        self, provider: str, asked: str, failure: SourceFailed, meanwhile: datetime | None
    ) -> None:
        self.failures.append((provider, asked, failure, meanwhile))

    def rate_limited(self, provider: str, failure: SourceFailed) -> None:
        self.silences.append((provider, failure))

    def implausible_quotes(
        self, provider: str, day: date, quotes: Mapping[str, SourceFailed]
    ) -> None:
        self.implausible.append((provider, day, list(quotes)))

    def clock_jumped(self, seconds: float) -> None:
        self.clock_jumps.append(seconds)

    def clock_differs(self, provider: str, seconds: float) -> None:
        self.clock_differences.append((provider, seconds))

    def internal_error(self, where: str, error: BaseException) -> None:
        self.crashes.append((where, error))


@attrs.frozen
class Bench:
    fake: FakeRates
    chain: RateChain
    nursery: trio.Nursery
    notes: Notes
    wall: Wall

    def cached(self, currency: str, day: date) -> Rate | None:
        """The cached rate."""
        return self.chain.cached_rate(currency, day, self.wall())

    async def ask(self, currency: str, day: date = DAY) -> Any:
        """The `Rate` or the `NoRate` that a request gets, cached or fetched."""
        try:
            return self.cached(currency, day) or await self.chain.rate(currency, day)
        except NoRate as problem:
            return problem


def make_client(fake: FakeRates) -> HttpClient:
    return HttpClient(TLS, Proxies(), memory_dial(fake))


def make_source(name: str, http: Http | None) -> Source:
    """The source of that name, sent to the fakes; its key is `KEY`."""
    assert http is not None, "a source with a name has a client"
    values = {**KEYED, **FakeRates().urls(URL)}
    return provider(name).make(http, load_settings(values, need_feed=False))


@asynccontextmanager
async def open_bench(
    *sources: str | Source,
    start: datetime = START,
    deadline: float = 5.0,
    life: float = 7200.0,
    judge: bool = True,
    observer: Observer | None = None,
) -> AsyncIterator[Bench]:
    """The sources named (freecurrencyapi and frankfurter, if none is), in their order.

    `life` is that of a sheet, in seconds.
    """
    wall = Wall(start)
    fake = FakeRates(wall, key=KEY, per_minute=10**6, per_month=10**6)
    named = sources or ("freecurrencyapi", "frankfurter")
    http = make_client(fake) if any(isinstance(one, str) for one in named) else None
    notes = Notes()
    async with trio.open_nursery() as nursery:
        chain = RateChain(
            [make_source(source, http) if isinstance(source, str) else source for source in named],
            RateCache(timedelta(seconds=life)),
            nursery,
            deadline=deadline,
            utc_now=wall,
            observer=observer or notes,
            judge=judge,
            jitter=lambda: 0.5,
        )
        yield Bench(fake, chain, nursery, notes, wall)
        nursery.cancel_scope.cancel()


def csv(columns: Sequence[str], rows: Iterable[tuple[object, Sequence[str]]]) -> str:
    """A history of the ECB: a day and its numbers a row."""
    lines = [("Date", *columns), *((str(day), *numbers) for day, numbers in rows)]
    return "\n".join(",".join([*line, ""]) for line in lines)


def as_zip(text: str | bytes, name: str = "eurofxref-hist.csv", how: int = 8) -> bytes:
    """A zip with one file; `how` it is compressed, deflated if not given."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr(name, text)
    return file.getvalue()
