"""The service assembled from its settings, and how it is run."""

import os
import random
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Final, TypeVar

import attrs
import trio

from . import __version__
from .backoff import Backoff
from .bridge import Bridge
from .errors import BadSettings, LinkFailed, RatebridgeError
from .link import Address, Link, open_link
from .link.dial import Dial, NetworkDial
from .link.tls import tls_context
from .link.upgrade import UpgradeOptions
from .observer import Observer
from .operating.journal import Journal
from .operating.logs import configure_logs
from .operating.stats import Stats
from .outbox import Outbox
from .providers.ahead import fetch_at_midnight
from .providers.chain import RateChain
from .providers.http import HttpClient
from .providers.registry import provider
from .providers.source import Source
from .proxies import Proxies
from .rates import RateCache
from .session import HeartbeatSettings
from .settings import FEED, Settings
from .supervisor import Supervisor

T = TypeVar("T")

SUMMARY_EVERY: Final = 60.0  # s
STOPS: Final = (signal.SIGINT, signal.SIGTERM)


utc_now: Final = partial(datetime.now, UTC)
"""The wall clock."""


def feed_dial(
    settings: Settings, feed: Address, proxies: Proxies, make_tls: Callable[[], ssl.SSLContext]
) -> NetworkDial:
    """The way to the feed by the settings. `make_tls` makes the TLS context of the sources.

    Raises `BadSettings` for a client certificate that cannot be used.
    """
    tls = None
    if feed.secure:
        tls = make_tls()
        if settings.feed_cert_file is not None:
            tls = tls_context(settings.verify_ssl, settings.feed_cert_file, settings.feed_key_file)
    proxy = proxies.find("wss" if feed.secure else "ws", feed.host, feed.port)
    proxy_tls = make_tls() if proxy is not None and proxy.scheme == "https" else None
    return NetworkDial(feed, tls, proxy, proxy_tls)


def make_sources(settings: Settings, http: HttpClient) -> list[Source]:
    """The rate sources of the settings, in their order."""
    return [provider(name).make(http, settings) for name in settings.providers]


def make_chain(
    settings: Settings,
    sources: Sequence[Source],
    nursery: trio.Nursery,
    observer: Observer,
    clock: Callable[[], datetime],
    jitter: Callable[[], float] = random.random,
) -> RateChain:
    """The chain of these sources; its fetches run in `nursery`."""
    return RateChain(
        sources,
        RateCache(timedelta(seconds=settings.cache_ttl)),
        nursery,
        deadline=settings.rate_deadline,
        utc_now=clock,
        observer=observer,
        judge=settings.plausibility,
        jitter=jitter,
    )


@asynccontextmanager
async def open_outbox(observer: Observer) -> AsyncIterator[Outbox]:
    """An outbox; what is left in it at the end is reported as undelivered."""
    outbox = Outbox(observer)
    try:
        yield outbox
    finally:
        outbox.discard_all("the service stopped")


@attrs.define
class Dependencies:
    """What a service needs beyond its settings; tests replace these.

    `dial` connects to the feed, `sources` give the rates, `clock` is the wall clock in
    UTC, `jitter` gives random numbers from 0 to 1. `journal` is private.
    """

    dial: Dial | None = None
    sources: Sequence[Source] | None = None
    clock: Callable[[], datetime] = utc_now
    jitter: Callable[[], float] = random.random
    journal: Journal = attrs.Factory(lambda: Journal(Stats()))


async def serve(
    settings: Settings,
    stop: trio.Event | None = None,
    dependencies: Dependencies | None = None,
) -> None:
    """Run the service until `stop` is set and the requests in flight are answered.

    The drain timeout bounds the wait for them. Without a `stop` it runs until
    cancelled. It logs by structlog, however that is configured. Raises `CannotStart`
    or `BadSettings` before it connects to anything.
    """
    stop = trio.Event() if stop is None else stop
    dependencies = dependencies or Dependencies()
    journal = dependencies.journal
    if settings.feed is None:
        raise BadSettings(f"{FEED}: is required but not set")
    feed = settings.feed
    # One for the feed and the sources: the system's certificates take 20 ms and over 1 MiB.
    make_tls = cache(partial(tls_context, settings.verify_ssl))
    if "SSLKEYLOGFILE" in os.environ:  # one that cannot be written is told at the start
        make_tls()
    proxies = Proxies.read(os.environ)
    network = feed_dial(settings, feed, proxies, make_tls)
    dial = dependencies.dial or network
    options = UpgradeOptions(settings.feed_headers, settings.feed_subprotocol)
    http = HttpClient(make_tls)

    # What not every service has is imported by those that have it: it takes 5 ms.
    status = None
    with ExitStack() as opened:
        if settings.status_address is not None:
            from .operating.status import StatusServer

            status = StatusServer(settings.status_address, journal)
            opened.callback(status.close)
        if settings.audit_file is not None:
            from .operating.audit import Audit

            journal.audit = Audit(settings.audit_file, journal)
        opened.pop_all()

    async def open_feed(nursery: trio.Nursery) -> Link:
        try:
            return await open_link(nursery, feed, dial, options)
        except LinkFailed:
            network.next_address()
            raise

    if not settings.verify_ssl:
        journal.warn("tls.unverified", detail="VERIFY_SSL is off: certificates are not checked")
    for name in settings.unknown:
        journal.warn("settings.unknown", name=name)
    for entry in proxies.ignored:
        journal.warn("settings.no_proxy", entry=entry, detail="this entry of NO_PROXY is ignored")
    journal.note(
        "service.started",
        version=__version__,
        feed=feed.authority,
        sources=list(settings.providers),
        **journal.audit_head(),
    )
    async with (
        aclosing(journal),
        aclosing(http),
        open_outbox(journal) as outbox,
        trio.open_nursery() as service_nursery,
    ):
        chain = make_chain(
            settings,
            dependencies.sources or make_sources(settings, http),
            service_nursery,
            journal,
            dependencies.clock,
            dependencies.jitter,
        )
        if journal.audit is not None:
            with trio.CancelScope(shield=True):  # or the status server's port stayed open
                await service_nursery.start(journal.audit.run)
        bridge = Bridge(
            chain, service_nursery, outbox.add, utc_now=dependencies.clock, observer=journal
        )
        supervisor = Supervisor(
            open_feed,
            bridge,
            outbox,
            heartbeat=HeartbeatSettings(settings.heartbeat_interval, settings.heartbeat_timeout),
            backoff=Backoff(settings.reconnect_min, settings.reconnect_max, dependencies.jitter),
            observer=journal,
        )
        service_nursery.start_soon(
            fetch_at_midnight, chain, dependencies.clock, name="rates at midnight"
        )
        service_nursery.start_soon(_summarize, journal, bridge, outbox, chain, name="summary")
        if status is not None:
            from .operating.overview import Service

            # In this nursery it still answers while the service drains.
            view = Service(
                settings,
                journal.stats,
                bridge,
                outbox,
                chain,
                trio.current_time(),
                dependencies.clock,
                journal.audit,
            )
            await service_nursery.start(status.run, view, name="status server")
        async with trio.open_nursery() as supervisor_nursery:
            supervisor_nursery.start_soon(supervisor.run, name="supervisor")
            await stop.wait()
            journal.note("service.stopping", waiting=bridge.waiting, outbox=len(outbox))
            bridge.stopping = True
            with trio.move_on_after(settings.drain_timeout):
                await _drain(bridge, outbox)
            supervisor.stop()
        service_nursery.cancel_scope.cancel()


async def _drain(bridge: Bridge, outbox: Outbox) -> None:
    """Wait until every request is answered and every reply written."""
    await bridge.wait_settled()
    await outbox.wait_empty()


async def _summarize(journal: Journal, bridge: Bridge, outbox: Outbox, chain: RateChain) -> None:
    while True:
        await trio.sleep(SUMMARY_EVERY)
        journal.summarize(waiting=bridge.waiting, outbox=len(outbox), sheets=len(chain.cache))


def run(settings: Settings) -> None:
    """Run the service until SIGTERM or SIGINT, with the log of the settings.

    SIGHUP reopens the audit file and is ignored without one. Raises as `serve` does.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configure_logs(settings.log_level, settings.log_format)
    run_until_signal(lambda stop: serve(settings, stop=stop))


def run_until_signal(run: Callable[[trio.Event], Awaitable[None]]) -> None:
    """Run in trio with an Event that SIGTERM or SIGINT sets; a second signal cancels at once."""
    early: list[int] = []
    # Before and after the receiver is open, trio's own code runs: a handler must not raise there.
    handlers = {
        number: signal.signal(number, lambda number, _frame: early.append(number))
        for number in STOPS
    }
    try:
        trio.run(_run_until_signal, run, early)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


async def _run_until_signal(
    run: Callable[[trio.Event], Awaitable[None]], early: Sequence[int]
) -> None:
    with trio.open_signal_receiver(*STOPS) as signals:
        stop = trio.Event()

        async def obey(scope: trio.CancelScope) -> None:
            if not early:
                await anext(signals)
            stop.set()
            await anext(signals)
            scope.cancel()

        problem = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey, nursery.cancel_scope, name="signals")
            try:
                await run(stop)
            except RatebridgeError as error:
                problem = error  # raised outside, so that no nursery wraps it in a group
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem


def run_unless_stopped(work: Callable[[], Awaitable[T]]) -> T | None:
    """Run `work` in trio; returns its result, or None if a signal cancelled it."""
    results: list[T] = []

    async def until(stop: trio.Event) -> None:
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                await stop.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(leave, name="stop")
            results.append(await work())
            nursery.cancel_scope.cancel()

    run_until_signal(until)
    return results[0] if results else None
