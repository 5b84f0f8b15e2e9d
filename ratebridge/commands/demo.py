"""The commands with a fake feed: `demo` and `mock-server`."""

import errno
import itertools
import json
import os
import random
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from ..app import Dependencies, run_unless_stopped, run_until_signal, serve, utc_now
from ..errors import BadSettings
from ..fakes.feed import FeedPeer, StandIn, random_requests, requests_of, serve_feed
from ..fakes.rates import FakeRates, serve_rates
from ..link.address import Address
from ..messages import quoted
from ..operating.journal import Journal
from ..operating.logs import configure_logs
from ..operating.stats import Stats
from ..providers.ecb import Ecb, load_embedded
from ..settings import Settings
from .live import REDRAWS, LiveView

# Those of the real feed that the embedded table has, and one that it lacks.
_CURRENCIES = ("USD", "GBP", "PLN", "CZK", "EUR", "USD", "GBP", "PLN", "CZK", "BTC")


def run_demo(*, count: int | None, rate: float) -> int:
    """Convert `count` requests (None: until stopped) of a fake feed by the embedded table."""
    configure_logs("error", "auto")
    ecb = Ecb()

    async def demo(stop: trio.Event) -> None:
        newest = (await load_embedded()).newest - timedelta(days=1)
        requests = random_requests(random.Random(), newest, _CURRENCIES)
        feed = StandIn(itertools.islice(requests, count), rate)
        peers: list[FeedPeer] = []
        journal = Journal(Stats())
        async with trio.open_nursery() as feed_nursery:
            port = await feed_nursery.start(serve_feed, feed, peers)
            title = f"A stand-in feed at ws://127.0.0.1:{port}, rates of the ECB's embedded table."
            if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
                view = LiveView(title, journal.stats)
                feed.on_reply = lambda *pair: view.rows.append(_row(*pair))
                feed_nursery.start_soon(view.draw_on, sys.stdout)
            else:
                print(title, flush=True)
                feed.on_reply = lambda *pair: print(_row(*pair), flush=True)
            settings = Settings(Address("127.0.0.1", port, "/", secure=False), providers=("ecb",))

            async def stop_when_done() -> None:
                await feed.done.wait()
                await trio.sleep(REDRAWS)  # for a last redraw
                stop.set()

            feed_nursery.start_soon(stop_when_done)
            await serve(settings, stop, Dependencies(sources=[ecb], journal=journal))
            feed_nursery.cancel_scope.cancel()
        print(
            f"{feed.sent} requests, {feed.replies - feed.errors} converted, "
            f"{feed.errors} answered with an error, {feed.heartbeats} heartbeats."
        )

    run_until_signal(demo)
    return 0


def _row(*texts: str) -> str:
    request, reply = (json.loads(text, parse_int=str, parse_float=str) for text in texts)
    asked = request["payload"]
    before = f"{asked['date'][:10]}  {asked['stake']:>12} {asked['currency']}"
    if reply["type"] == "error":
        return f"{before}  {reply['message']}"
    return f"{before}  {reply['payload']['stake']:>14} EUR"


def run_mock_server(
    *,
    host: str,
    port: int,
    rate: float,
    replay: Path | None,
    loop: bool,
    seed: int | None,
    rates_port: int | None = None,
) -> int:
    """Serve a fake feed until stopped: random requests, or those of a file.

    With a `rates_port`, serve fake rate sources too, which accept any key.
    """
    configure_logs("info", "auto", sys.stdout)
    log = structlog.get_logger()
    if replay is None:
        newest = utc_now().date() - timedelta(days=21)
        requests = random_requests(random.Random(seed), newest)
    else:
        try:
            recorded = requests_of(replay.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError):
            raise BadSettings("--replay: expected a file of JSON lines that can be read") from None
        except ValueError as flaw:
            raise BadSettings(f"--replay: expected requests, a JSON line each; {flaw}") from None
        requests = itertools.cycle(recorded) if loop else iter(recorded)

    def show(request: str, reply: str) -> None:
        log.info("feed.reply", request=request, reply=reply)

    feed = StandIn(requests, rate, show)

    async def mock_server() -> None:
        peers: list[FeedPeer] = []
        async with trio.open_nursery() as feed_nursery:
            serve_it = partial(serve_feed, feed, peers)
            bound = await _listen(feed_nursery, serve_it, host, port, "--port")
            log.info("feed.listening", uri=f"ws://{_authority(host, bound)}")
            if rates_port is not None:
                rates = FakeRates()
                serve_them = partial(serve_rates, rates)
                bound = await _listen(feed_nursery, serve_them, host, rates_port, "--rates-port")
                log.info("rates.listening", **rates.urls(f"http://{_authority(host, bound)}"))
            await feed.done.wait()
            log.info("feed.done", **_figures(feed))

    run_unless_stopped(mock_server)
    log.info("feed.stopped", **_figures(feed))
    return 0


async def _listen(
    nursery: trio.Nursery, serve: Callable[..., Any], host: str, port: int, option: str
) -> int:
    """Start a server and return its port. Raises `BadSettings` if it cannot listen."""
    try:
        bound: int = await nursery.start(partial(serve, host=host, port=port))
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, socket.gaierror) or number not in (errno.EADDRINUSE, errno.EACCES):
            expected = "expected a name or an address of this machine"
            raise BadSettings(f"--host: {expected}, got {quoted(host)}") from None
        raise BadSettings(f"{option}: {os.strerror(number)}: {port}") from None
    return bound


def _authority(host: str, port: int) -> str:
    return Address(host, port, "/", secure=False).authority


def _figures(feed: StandIn) -> dict[str, int]:
    return {
        "connections": feed.connections,
        "requests": feed.sent,
        "replies": feed.replies,
        "errors": feed.errors,
        "heartbeats": feed.heartbeats,
    }
