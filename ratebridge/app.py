"""The service: built from its settings, and run until it is stopped."""

import os
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Final

import attrs
import trio

from .backoff import Backoff
from .bridge import Bridge
from .errors import BadSettings
from .link import Link, open_link
from .link.dial import Dial, NetworkDial
from .link.tls import tls_context
from .link.upgrade import UpgradeOptions
from .operating.audit import Audit
from .operating.notify import notify
from .outbox import Outbox
from .providers.ahead import fetch_at_midnight
from .providers.chain import RateChain
from .providers.http import HttpClient
from .providers.registry import provider
from .providers.source import Source
from .rates import RateCache
from .reporting.logs import HostLog, configure_logs, event_log
from .reporting.observer import Observer
from .session import HeartbeatSettings
from .settings import FEED, Settings, resembled
from .signals import run_until_signal
from .supervisor import Supervisor
from .version import __version__

SUMMARY_EVERY: Final = 60.0  # s


utc_now: Final = partial(datetime.now, UTC)
"""The wall clock."""


def feed_dial(settings: Settings, tls: ssl.SSLContext) -> NetworkDial:
    """The way to the feed by the settings; `tls` is that of the sources.

    It is the feed's, too, where there is no client certificate for it. Raises `BadSettings` for a
    certificate that cannot be used, and where no feed is set.
    """
    feed = settings.feed
    if feed is None:
        raise BadSettings(f"{FEED}: is required but not set")
    proxy = settings.proxies.find("wss" if feed.secure else "ws", feed.host, feed.port)
    own = tls
    if feed.secure and settings.feed_cert_file is not None:
        own = tls_context(settings.verify_ssl, settings.feed_cert_file, settings.feed_key_file)
    return NetworkDial(feed, own, proxy, tls)


def make_sources(settings: Settings, http: HttpClient) -> list[Source]:
    """The rate sources of the settings, in the order of trying; all ask by `http`."""
    return [provider(name).make(http, settings) for name in settings.providers]


def make_chain(
    settings: Settings,
    sources: Sequence[Source],
    nursery: trio.Nursery,
    observer: Observer,
    clock: Callable[[], datetime],
    jitter: Callable[[], float] = random.random,
) -> RateChain:
    """The chain of these sources.

    Its fetches run in `nursery` and outlive the requests that asked for them. `clock` is the
    wall clock in UTC; `jitter`, from 0 to 1, is for the pauses between attempts.
    """
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


@attrs.define
class Dependencies:
    """What a service needs beyond its settings; tests replace these.

    `dial` connects to the feed, `sources` give the rates, `clock` is the wall clock in
    UTC, `jitter` gives random numbers from 0 to 1. `observer` is private. `environment`
    names the service manager that is told how the service fares, see `operating.notify`.
    """

    dial: Dial | None = None
    sources: Sequence[Source] | None = None
    clock: Callable[[], datetime] = utc_now
    jitter: Callable[[], float] = random.random
    observer: Observer = attrs.Factory(lambda: Observer(HostLog()))
    environment: Mapping[str, str] = attrs.Factory(dict)


async def serve(
    settings: Settings,
    stop: trio.Event | None = None,
    dependencies: Dependencies | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the service until `stop` is set and the requests in flight are answered.

    It writes nothing by itself: its events are records of the stdlib logger `ratebridge`.

    Args:
        settings: what `load_settings` gives; the drain timeout bounds the wait at the end.
        stop: without it the service runs until it is cancelled.
        dependencies: replace the network and the clock, in tests.
        task_status: `await nursery.start(serve, settings)` returns when the first connection
            is up, or a stop came before.

    Raises `CannotStart` or `BadSettings` before it connects to anything.
    """
    stop = trio.Event() if stop is None else stop
    tell_started = cache(task_status.started)  # which can be told only once
    async with build(settings, dependencies or Dependencies(), tell_started) as service:
        bridge, outbox, supervisor, observer = service
        async with trio.open_nursery() as supervisor_nursery:
            supervisor_nursery.start_soon(supervisor.run, name="supervisor")
            await stop.wait()
            observer.note("service.stopping", waiting=bridge.waiting, outbox=len(outbox))
            bridge.stopping = True
            with trio.move_on_after(settings.drain_timeout):
                await bridge.wait_settled()
                await outbox.wait_empty()
            supervisor.stop()
    tell_started()


@asynccontextmanager
async def build(
    settings: Settings, dependencies: Dependencies, on_open: Callable[[], None]
) -> AsyncIterator[tuple[Bridge, Outbox, Supervisor, Observer]]:
    """Build a service, and take it down at the end. Raises as `serve` does.

    What is opened here, such as the audit file and the port of the status server, is in use
    already; only the supervisor does not run yet. `on_open` is called when a connection opens.
    """
    observer, clock, jitter = dependencies.observer, dependencies.clock, dependencies.jitter
    tls = tls_context(settings.verify_ssl)  # one for the sources and the feed
    network = feed_dial(settings, tls)
    options = UpgradeOptions(settings.feed_headers, settings.feed_subprotocol)

    async def open_feed(nursery: trio.Nursery) -> Link:
        link = await open_link(nursery, network.address, dependencies.dial or network, options)
        on_open()
        return link

    status = audit = None
    with ExitStack() as opened:
        if settings.status_address is not None:
            # With its server and its metrics it takes several times 20 ms.
            from .operating.status import StatusServer

            status = StatusServer(settings.status_address, observer)
            opened.callback(status.close)
        if settings.audit_file is not None:
            audit = observer.audit = Audit(settings.audit_file, observer)
        opened.pop_all()

    if not settings.verify_ssl:
        observer.warn("tls.unverified", detail="VERIFY_SSL is off: certificates are not checked")
    for name in settings.unknown:
        other = resembled(name)
        observer.warn("settings.unknown", name=name, **({"resembles": other} if other else {}))
    for entry in settings.proxies.ignored:
        observer.warn("settings.no_proxy", entry=entry, detail="this entry of NO_PROXY is ignored")
    observer.note(
        "service.started",
        version=__version__,
        feed=network.address.authority,
        sources=list(settings.providers),
        **observer.audit_head(),
    )

    async def summarize() -> None:
        while True:
            await trio.sleep(SUMMARY_EVERY)
            observer.summarize(waiting=bridge.waiting, outbox=len(outbox), sheets=len(chain.cache))

    async with (
        aclosing(observer),
        AsyncExitStack() as at_the_end,
        trio.open_nursery() as service_nursery,
    ):
        outbox = Outbox(observer)
        at_the_end.callback(outbox.discard_all, "the service stopped")
        sources = dependencies.sources or make_sources(settings, HttpClient(tls, settings.proxies))
        chain = make_chain(settings, sources, service_nursery, observer, clock, jitter)
        if audit is not None:
            with trio.CancelScope(shield=True):  # or the status server's port stayed open
                await service_nursery.start(audit.run)
        bridge = Bridge(chain, service_nursery, outbox.add, utc_now=clock, observer=observer)
        supervisor = Supervisor(
            open_feed,
            bridge,
            outbox,
            heartbeat=HeartbeatSettings(settings.heartbeat_interval, settings.heartbeat_timeout),
            backoff=Backoff(settings.reconnect_min, settings.reconnect_max, jitter),
            observer=observer,
            next_address=network.next_address,
        )
        service_nursery.start_soon(summarize, name="summary")
        service_nursery.start_soon(outbox.drop_the_old, name="old replies")
        service_nursery.start_soon(fetch_at_midnight, chain, clock, name="rates at midnight")
        service_nursery.start_soon(notify, bridge, dependencies.environment, name="notify")
        if status is not None:
            from .operating.overview import Service

            # In this nursery it still answers while the service drains.
            view = Service(
                settings, observer.stats, bridge, outbox, chain, trio.current_time(), clock, audit
            )
            await service_nursery.start(status.run, view, name="status server")
        yield bridge, outbox, supervisor, observer
        service_nursery.cancel_scope.cancel()


def run(settings: Settings) -> None:
    """Run the service until SIGTERM or SIGINT, with the log of the settings.

    Its audit file, if there is one, is reopened at SIGHUP. Raises as `serve` does.
    """
    configure_logs(settings.log_level, settings.log_format)
    dependencies = Dependencies(observer=Observer(event_log()), environment=os.environ)
    run_until_signal(lambda stop: serve(settings, stop, dependencies))
