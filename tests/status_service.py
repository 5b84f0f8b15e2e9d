"""A service for the tests of what operators see: real parts, fake sources."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import attrs
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from ratebridge.app import Dependencies, serve
from ratebridge.bridge import Bridge
from ratebridge.errors import FetchOutcome, SourceFailed
from ratebridge.fakes.feed import FeedPeer, MemoryFeed, request_text
from ratebridge.link.address import Address
from ratebridge.messages import Request, decode
from ratebridge.operating.metrics import Metrics
from ratebridge.operating.overview import Service
from ratebridge.outbox import Outbox
from ratebridge.providers.chain import RateChain
from ratebridge.providers.source import Quota
from ratebridge.rates import Quote, RateCache, RateSheet
from ratebridge.reporting.logs import event_log
from ratebridge.reporting.observer import Observer
from ratebridge.settings import Settings

NOW = datetime(2021, 6, 1, 12, tzinfo=UTC)
FEED = Address("feed.example", 443, "/secret-path", secure=True)


@attrs.define
class Shop:
    """A source without rates: the tests put them into the cache."""

    name: str = "shop"
    quota: Quota | None = None
    currencies: None = None
    every: None = None

    def asks(self, day: date, _today: date) -> str:
        return str(day)

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        await trio.lowlevel.checkpoint()
        raise SourceFailed(FetchOutcome.NO_TABLE, "has none")


def sheet(day: date, provider: str = "shop", fetched: datetime = NOW) -> RateSheet:
    rows = {"USD": Quote(Decimal("1.2222")), "BTC": Quote(Decimal(1), Decimal(40_000))}
    return RateSheet(provider, str(day), day, day, {day: rows}, fetched, frozenset(rows))


def make_service(
    nursery: trio.Nursery, *sources: Shop, audit: Any = None
) -> tuple[Service, Observer]:
    observer = Observer(event_log(), lambda: NOW)
    chain = RateChain(
        sources or (Shop(),),
        RateCache(timedelta(hours=2)),
        nursery,
        deadline=5.0,
        utc_now=lambda: NOW,
        observer=observer,
    )
    outbox = Outbox(observer)
    bridge = Bridge(chain, nursery, outbox.add, utc_now=lambda: NOW, observer=observer)
    started = trio.current_time()
    return Service(
        Settings(FEED), observer.stats, bridge, outbox, chain, started, lambda: NOW, audit
    ), observer


def trail(**state: Any) -> Any:
    """What is read of an audit trail; it is well unless `state` says otherwise."""
    return SimpleNamespace(**{"failing": None, "waiting": 0, "lost": 0, "head": "0:0", **state})


def request(message_id: int | str = 456, **fields: Any) -> Request:
    """A request as it is read from the wire."""
    found = decode(request_text(message_id, **fields).encode())
    assert isinstance(found, Request)
    return found


@asynccontextmanager
async def stopping(observer: Observer, **options: Any) -> AsyncIterator[None]:
    """A service that was told to stop, and waits for the rate of its last request until the end.

    The first one was in euro, and the second in a currency without a rate.
    """
    stop, answered, let = trio.Event(), trio.Event(), trio.Event()

    class Bank(Shop):
        async def fetch(self, day: date, now: datetime) -> RateSheet:
            await let.wait()
            return sheet(day, "bank", now)

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.heartbeat()
        for message_id, currency in enumerate(("EUR", "XXX", "USD"), 1):
            await peer.send(request_text(message_id, currency=currency))
        assert (await peer.receive_reply())["id"] == "1"
        answered.set()
        while True:
            await peer.receive()

    async with trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, script)
        parts = Dependencies(feed.dial, [Bank("bank")], clock=lambda: NOW, observer=observer)
        nursery.start_soon(serve, Settings(FEED, **options), stop, parts)
        await answered.wait()
        stop.set()
        await trio.testing.wait_all_tasks_blocked()
        yield
        let.set()


def samples(service: Service) -> dict[str, float]:
    """Every sample of the metrics, by its name and its labels."""
    text = Metrics(service).answer("", "")[0].decode()
    return {
        sample.name + "".join(f",{label}={word}" for label, word in sample.labels.items()): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
