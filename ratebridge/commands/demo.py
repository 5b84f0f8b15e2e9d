"""The commands with a fake feed: `demo` and `mock-server`."""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from ..app import Dependencies, serve, utc_now
from ..errors import BadSettings
from ..fakes.feed import FeedPeer, StandIn, random_requests, requests_of, serve_feed
from ..fakes.rates import FakeRates, serve_rates
from ..link.address import Address
from ..messages import quoted
from ..providers.ecb import Ecb, load_embedded
from ..proxies import Proxies
from ..reporting.logs import configure_logs, event_log
from ..reporting.observer import Observer
from ..settings import Settings
from ..signals import run_until_signal
from .options import COUNT, FILE, PORT, RATE, add_command

# Those of the real feed that the embedded table has, and one that it lacks.
_CURRENCIES = ("USD", "GBP", "PLN", "CZK", "EUR", "USD", "GBP", "PLN", "CZK", "BTC")


def declare(commands: Any) -> None:
    """Add the commands to the command line."""
    demo = add_command(
        commands,
        "demo",
        run_demo,
        "a feed and the service on this machine: no key, no account, no network",
        ("ratebridge demo", "20 conversions, then a summary"),
        ("ratebridge demo --forever --rate 50", "50 requests a second until Ctrl-C"),
    )
    demo.add_argument("--count", type=COUNT, default=20, help="how many requests (default: 20)")
    demo.add_argument("--forever", action="store_true", help="run until stopped")

    mock = add_command(
        commands,
        "mock-server",
        run_mock_server,
        "a fake feed for a service to connect to",
        ("ratebridge mock-server --port 8765", "random requests at ws://127.0.0.1:8765"),
        ("ratebridge mock-server --replay traffic.jsonl", "recorded requests, in order"),
    )
    mock.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    mock.add_argument("--port", type=PORT, default=8765, help="port to listen on (default: 8765)")
    mock.add_argument(
        "--rates-port",
        type=PORT,
        metavar="PORT",
        help="play the rate sources too, on this port; their URLs are logged",
    )
    replay = mock.add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="send the messages of this file, a JSON line each, and no random ones",
    )
    replay.complete = FILE  # type: ignore[attr-defined]
    mock.add_argument("--loop", action="store_true", help="start the file again at its end")
    mock.add_argument("--quiet", action="store_true", help="log no requests and replies")
    for parser in (demo, mock):
        parser.add_argument("--rate", type=RATE, default=5.0, help="requests a second (default: 5)")


def run_demo(options: argparse.Namespace) -> int:
    """Convert the requests of a fake feed by the embedded table, and print a line for each."""
    configure_logs("error", "auto")
    count = None if options.forever else options.count
    ecb = Ecb()

    async def demo(stop: trio.Event) -> None:
        newest = (await load_embedded()).newest - timedelta(days=1)
        requests = random_requests(random.Random(), newest, _CURRENCIES)
        feed = StandIn(itertools.islice(requests, count), options.rate)
        peers: list[FeedPeer] = []
        async with trio.open_nursery() as feed_nursery:
            port = await feed_nursery.start(serve_feed, feed, peers)
            print(f"A stand-in feed at ws://127.0.0.1:{port}, rates of the ECB's embedded table.")
            feed.on_reply = lambda *pair: print(line(*pair), flush=True)
            address = Address("127.0.0.1", port, "/", secure=False)
            settings = Settings(address, providers=("ecb",), proxies=Proxies())

            async def stop_when_done() -> None:
                await feed.done.wait()
                stop.set()

            feed_nursery.start_soon(stop_when_done)
            await serve(settings, stop, Dependencies(sources=[ecb], observer=Observer(event_log())))
            feed_nursery.cancel_scope.cancel()
        print(
            f"{feed.sent} requests, {feed.replies - feed.errors} converted, "
            f"{feed.errors} answered with an error, {feed.heartbeats} heartbeats."
        )

    run_until_signal(demo)
    return 0


def line(*texts: str) -> str:
    """A request and its reply, the two texts as they were sent, as a line for people."""
    request, reply = (json.loads(text, parse_int=str, parse_float=str) for text in texts)
    asked = request["payload"]
    before = f"{asked['date'][:10]}  {asked['stake']:>12} {asked['currency']}"
    if reply["type"] == "error":
        return f"{before}  {reply['message']}"
    return f"{before}  {reply['payload']['stake']:>14} EUR"


def run_mock_server(options: argparse.Namespace) -> int:
    """Serve a fake feed until stopped: random requests, or those of a file.

    With `--rates-port`, serve fake rate sources too, which accept any key.
    """
    host, replay = options.host, options.replay
    configure_logs("info", "auto", sys.stdout)
    log = structlog.get_logger()
    if replay is None:
        requests = random_requests(random.Random(), utc_now().date() - timedelta(days=21))
    else:
        try:
            recorded = requests_of(replay.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError):
            raise BadSettings("--replay: expected a file of JSON lines that can be read") from None
        except ValueError as flaw:
            raise BadSettings(f"--replay: expected requests, a JSON line each; {flaw}") from None
        requests = itertools.cycle(recorded) if options.loop else iter(recorded)
    feed = StandIn(requests, options.rate)
    if not options.quiet:
        feed.on_reply = lambda request, reply: log.info("feed.reply", request=request, reply=reply)

    def tell(event: str) -> None:
        names = ("connections", "replies", "errors", "heartbeats")
        log.info(event, requests=feed.sent, **{name: getattr(feed, name) for name in names})

    async def tell_end() -> None:
        await feed.done.wait()
        tell("feed.done")

    async def mock_server(stop: trio.Event) -> None:
        async with trio.open_nursery() as feed_nursery:

            async def listen(option: str, port: int, serve: Callable[..., Any], what: Any) -> str:
                try:
                    bound = await feed_nursery.start(partial(serve, what, host=host, port=port))
                except (OSError, UnicodeError) as error:
                    why = getattr(error, "strerror", None) or "no name of a host"
                    problem = f"{option}: cannot listen on {quoted(host)}, port {port}: {why}"
                    raise BadSettings(problem) from None
                return Address(host, bound, "/", secure=False).authority

            feed_at = await listen("--port", options.port, partial(serve_feed, peers=[]), feed)
            log.info("feed.listening", uri=f"ws://{feed_at}")
            if options.rates_port is not None:
                rates = FakeRates()
                rates_at = await listen("--rates-port", options.rates_port, serve_rates, rates)
                log.info("rates.listening", **rates.urls(f"http://{rates_at}"))
            feed_nursery.start_soon(tell_end)
            await stop.wait()
            feed_nursery.cancel_scope.cancel()

    run_until_signal(mock_server)
    tell("feed.stopped")
    return 0
