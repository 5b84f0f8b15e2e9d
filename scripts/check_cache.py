"""Run scripts/nginx.conf with eight replicas, and see what they cost the sources.

    uv run scripts/check_cache.py

Starts Debian's nginx on loopback with that very file (only ports, paths, time
limits and the sources' addresses replaced), stand-ins for the rate sources
behind TLS that count the calls they get, a stand-in feed, and eight processes
of ratebridge. Each is asked for two currencies on each of thirty days; freecurrencyapi knows
one of them, so that both sources are asked for thirty tables. Then the same
once more, with tables that have expired and sources that are gone.

Installs nginx if it can (root, apt-get), else says so and exits with 0. All
that it makes stands in a temporary folder, removed at the end.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio
import trustme
from check_container import CannotRun, Failed, install, timed

from ratebridge.fakes.feed import FeedPeer, request_text, serve_feed
from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI
from ratebridge.fakes.rates import FakeRates, serve_rates

SITE: Final = Path(__file__).resolve().parent / "nginx.conf"
REPLICAS, DAYS = 8, 30
KEY: Final = "the-key-that-nobody-may-write-down"
STAKE: Final = "253.67"
CURRENCIES: Final = {
    "USD": FREECURRENCYAPI,
    "TWD": FRANKFURTER,
}  # and the source that it comes from
NAMES: Final = {"freecurrencyapi.test", "frankfurter.test", "ecb.test"}
LATENCY: Final = 0.1  # s that a source takes, so that the replicas meet while it is asked
LIMIT: Final = 300.0  # s for all of it

# The machine may be busy with other things, and what is looked at here is no matter of speed.
PATIENT: Final = {
    "proxy_cache_lock_age 5s;": "proxy_cache_lock_age 60s;",
    "proxy_cache_lock_timeout 5s;": "proxy_cache_lock_timeout 60s;",
    "proxy_connect_timeout 2s;": "proxy_connect_timeout 60s;",
    "proxy_send_timeout 2s;": "proxy_send_timeout 60s;",
    "proxy_read_timeout 3s;": "proxy_read_timeout 60s;",
    "proxy_next_upstream_timeout 4s;": "proxy_next_upstream_timeout 60s;",
}

MAIN: Final = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 512; }}
http {{
    client_body_temp_path {folder}/temporary;
    proxy_temp_path {folder}/temporary;
    fastcgi_temp_path {folder}/temporary;
    uwsgi_temp_path {folder}/temporary;
    scgi_temp_path {folder}/temporary;
    upstream freecurrencyapi.test {{ server 127.0.0.1:{upstream}; }}
    upstream frankfurter.test {{ server 127.0.0.1:{upstream}; }}
    upstream ecb.test {{ server 127.0.0.1:{upstream}; }}
    include {folder}/site.conf;
}}
"""


@attrs.frozen
class Sources:
    """All sources: their port, the names that TLS was asked for, and the scope they live in."""

    rates: FakeRates
    port: int
    names: set[str]
    life: trio.CancelScope


@attrs.define(eq=False)
class Feed:
    """Asks the same of each connection, in an order of its own, and judges the replies.

    `expected` are the stakes in euro, by the id of the request as text.
    """

    requests: Sequence[str]
    expected: Mapping[str, Decimal]
    connections: int = 0
    finished: int = 0
    converted: int = 0
    wrong: list[Any] = attrs.Factory(list)

    async def __call__(self, peer: FeedPeer) -> None:
        await peer.accept()
        self.connections += 1
        requests = random.Random(self.connections).sample(self.requests, len(self.requests))

        async def beat() -> None:
            while True:
                await peer.heartbeat()
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            for text in requests:
                await peer.send(text)
            unanswered = set(self.expected)
            while True:
                self._judge(await peer.receive_reply(), unanswered)

    def _judge(self, reply: Any, unanswered: set[str]) -> None:
        message_id = reply["id"]
        stake = reply.get("payload", {}).get("stake")
        if message_id in unanswered and stake and Decimal(stake) == self.expected[message_id]:
            self.converted += 1
        else:
            self.wrong.append(reply)
        unanswered.discard(message_id)
        self.finished += not unanswered


@attrs.frozen
class Ask:
    """One request to the cache, and what has to come back.

    `held` is nginx's word for where it came from; `quota` whether what is left of
    it is told.
    """

    target: str
    key: str
    status: int
    held: str | None
    quota: bool = False


HISTORICAL: Final = "/freecurrencyapi/v1/historical?date="
ECB_FILES: Final = "/ecb/stats/eurofxref/eurofxref-hist"
SMALL_PRINT: Final = (
    Ask(f"{HISTORICAL}2021-05-18", "wrong", 401, "MISS", quota=True),
    Ask(f"{HISTORICAL}2021-05-18", KEY, 200, "MISS", quota=True),  # the refusal was not held
    Ask(f"{HISTORICAL}2021-05-18", KEY, 200, "HIT"),  # and says nothing of the quota
    Ask(f"{HISTORICAL}2021-05-18", "wrong", 200, "HIT"),  # public figures: nobody is harmed
    Ask(f"{HISTORICAL}1998-12-31", KEY, 422, "MISS", quota=True),
    Ask(f"{HISTORICAL}1998-12-31", KEY, 422, "MISS", quota=True),  # no error is held
    Ask("/freecurrencyapi/v1/status", KEY, 200, "BYPASS"),
    Ask("/freecurrencyapi/v1/status", "wrong", 401, "BYPASS"),  # so `check` tells a wrong key
    Ask(f"{ECB_FILES}-90d.xml", "", 200, "MISS"),
    Ask(f"{ECB_FILES}-90d.xml", "", 200, "HIT"),
    Ask(f"{ECB_FILES}.zip", "", 200, "MISS"),
    Ask(f"{ECB_FILES}.zip", "", 200, "HIT"),
    Ask(f"{ECB_FILES}.csv", "", 404, "BYPASS"),
    Ask("/freecurrencyapi/v1/latest?apikey=x", KEY, 400, None),
    Ask("/elsewhere", KEY, 404, None),
)


def main() -> None:
    argparse.ArgumentParser(
        description="Runs scripts/nginx.conf with eight replicas; skips where there is no nginx."
    ).parse_args()
    try:
        if not shutil.which("nginx"):
            install("nginx", packages=["nginx-light"])
    except CannotRun as why:
        print(f"cache check skipped: {why}")
        return
    problems: list[str] = []
    try:
        trio.run(check)
    except* (Failed, trio.TooSlowError) as group:
        problems += [str(error) or f"not done in {LIMIT:g} s" for error in leaves(group)]
    if problems:
        sys.exit("\n".join(f"cache check failed: {problem}" for problem in problems))
    print("cache check passed")


def leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    """The exceptions of a group and of those in it."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def check() -> None:
    """Everything, until it is done, a signal comes or the time is over."""
    with tempfile.TemporaryDirectory(prefix="ratebridge-cache-") as folder, trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_at_signal)
            with timed("eight replicas, nothing held yet"):
                await share(new_folder(folder, "shared"))
            with timed("eight replicas, sources gone"):
                await outlive(new_folder(folder, "stale"))
            nursery.cancel_scope.cancel()


def new_folder(parent: str, name: str) -> Path:
    folder = Path(parent, name)
    folder.mkdir()
    return folder


async def fail_at_signal() -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)
        raise Failed("stopped by a signal")


async def share(folder: Path) -> None:
    """Eight replicas that start together: one call for each table, and no key left lying about."""
    days = last_days()
    async with trio.open_nursery() as nursery:
        sources = await nursery.start(serve_sources, folder)
        port = await nursery.start(serve_nginx, folder, sources.port, {})
        await ask_replicas(folder, port, days, REPLICAS)

        expected = Counter((source, str(day)) for source in CURRENCIES.values() for day in days)
        # Today's table is fetched at the start, by each that lives for two seconds.
        today = str(datetime.now(UTC).date())
        asked = [call for call in sources.rates.calls if call.day != today]
        ahead = len(sources.rates.calls) - len(asked)
        require(ahead <= 1, f"{ahead} calls for today's table")
        calls = Counter((call.source, call.day) for call in asked)
        require(
            calls == expected,
            f"calls other than one for each table: {calls - expected or expected - calls}",
        )
        served = outcomes(folder)
        for source in CURRENCIES.values():
            print(f"{source}: {sources.rates.count(source)} calls for {DAYS} days")
        print(f"the cache was asked {served.total()} times: {told(served)}")
        more = served.total() - REPLICAS * len(expected)
        require(0 <= more <= REPLICAS, "the cache was not asked by all")
        keys = {call.key for call in sources.rates.calls if call.source == FREECURRENCYAPI}
        require(keys == {KEY}, "the key did not reach the source")
        await see_ages(folder, port)
        await see_small_print(port)
        require(sources.names == NAMES, f"TLS was asked for {sources.names}")
        see_no_key(folder)
        nursery.cancel_scope.cancel()


async def outlive(folder: Path) -> None:
    """Tables expire, the sources go away, and eight new replicas are served all the same."""
    days = last_days()
    async with trio.open_nursery() as nursery:
        sources = await nursery.start(serve_sources, folder)
        shorter = {"proxy_cache_valid 200 1d;": "proxy_cache_valid 200 1s;"}
        port = await nursery.start(serve_nginx, folder, sources.port, shorter)
        await ask_replicas(folder, port, days, 1)
        before = outcomes(folder)
        sources.life.cancel()
        await trio.sleep(2.1)  # nginx counts whole seconds
        await ask_replicas(folder, port, days, REPLICAS)
        served = outcomes(folder) - before
        print(f"sources gone, tables expired: the cache was asked {served.total()} times: ", end="")
        print(told(served))
        stale = served["STALE"] + served["UPDATING"]
        # The rest are those for today's table, which each asks for at its start.
        more = served.total() - REPLICAS * 2 * DAYS
        require(stale == served.total(), "not all was served from stale")
        require(0 <= more <= REPLICAS, "the cache was not asked by all")
        nursery.cancel_scope.cancel()


def last_days() -> list[date]:
    """Thirty days that are over, and stay so when midnight passes meanwhile."""
    today = datetime.now(UTC).date()
    return [today - timedelta(days=back) for back in range(2, 2 + DAYS)]


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)


# The sources.


async def serve_sources(
    folder: Path, *, task_status: trio.TaskStatus[Sources] = trio.TASK_STATUS_IGNORED
) -> None:
    """All sources on one port, behind TLS; `folder`/ca.pem is the authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*NAMES).configure_cert(context)
    names: set[str] = set()

    def note_name(_connection: object, name: str | None, _context: object) -> None:
        names.add(name or "no name")

    context.sni_callback = note_name
    rates = FakeRates(key=KEY, per_minute=10_000, latency=LATENCY)
    listeners = await trio.open_ssl_over_tcp_listeners(
        0, context, host="127.0.0.1", https_compatible=True
    )
    address = listeners[0].transport_listener
    assert isinstance(address, trio.SocketListener)
    with trio.CancelScope() as life:
        async with trio.open_nursery() as nursery:
            plain = await nursery.start(serve_rates, rates)
            nursery.start_soon(trio.serve_listeners, partial(relay, plain), listeners)
            task_status.started(Sources(rates, address.socket.getsockname()[1], names, life))


async def relay(port: int, outside: "trio.SSLStream[trio.SocketStream]") -> None:
    """What comes through TLS goes to a port of this machine, and back, until one side ends it."""
    async with (
        await trio.open_tcp_stream("127.0.0.1", port) as inside,
        outside,
        trio.open_nursery() as nursery,
    ):

        async def pump(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
            try:
                async for data in source:
                    await sink.send_all(data)
            except trio.BrokenResourceError:
                pass  # a side that breaks off has ended it as well
            nursery.cancel_scope.cancel()

        nursery.start_soon(pump, outside, inside)
        nursery.start_soon(pump, inside, outside)


# nginx.


async def serve_nginx(
    folder: Path,
    upstream: int,
    changes: Mapping[str, str],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """nginx with scripts/nginx.conf; `started` gives its port."""
    port = free_port()
    site = SITE.read_text(encoding="utf-8")
    for shipped, here in {
        "listen 8080;": f"listen 127.0.0.1:{port};",
        "/var/cache/nginx-ratebridge ": f"{folder}/cache ",
        "/var/log/nginx/ratebridge.log ": f"{folder}/access.log ",
        "https://api.freecurrencyapi.com;": "https://freecurrencyapi.test;",
        "https://api.frankfurter.dev;": "https://frankfurter.test;",
        "https://www.ecb.europa.eu;": "https://ecb.test;",
        "/etc/ssl/certs/ca-certificates.crt;": f"{folder}/ca.pem;",
        **PATIENT,
        **changes,
    }.items():
        require(site.count(shipped) == 1, f"nginx.conf does not hold `{shipped}` once")
        site = site.replace(shipped, here)
    (folder / "site.conf").write_text(site, encoding="utf-8")
    user = "user root;" if os.geteuid() == 0 else ""
    text = MAIN.format(folder=folder, upstream=upstream, user=user)
    (folder / "main.conf").write_text(text, encoding="utf-8")
    command = ["nginx", "-p", str(folder), "-c", str(folder / "main.conf")]
    with (folder / "nginx.out").open("wb") as out:
        run = partial(trio.run_process, stdout=out, stderr=subprocess.STDOUT, check=False)
        async with trio.open_nursery() as nursery:
            process = await nursery.start(run, command)
            await until("nginx answers", partial(answers, port, process, folder), 20)
            task_status.started(port)


def answers(port: int, process: trio.Process, folder: Path) -> bool:
    """Whether nginx answers. Raises `Failed` if it has ended."""
    if process.poll() is not None:
        raise Failed(f"nginx has ended: {(folder / 'nginx.out').read_text(encoding='utf-8')}")
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1)
    except urllib.request.HTTPError as error:
        return error.code == 404
    except OSError:
        pass
    return False


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def outcomes(folder: Path) -> Counter[str]:
    """How nginx served the tables, by the third word of its log."""
    lines = (folder / "access.log").read_text(encoding="utf-8").splitlines()
    return Counter(line.split()[2] for line in lines if line.split()[1] == "200")


def told(served: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in served.most_common())


def fetch(port: int, target: str, key: str) -> tuple[int, str | None, bool]:
    """What nginx answers: the status, where it had it from, whether the quota was told."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{target}", headers={"apikey": key})
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            status, headers = answer.status, answer.headers
    except urllib.request.HTTPError as error:
        status, headers = error.code, error.headers
    quota = "X-RateLimit-Remaining-Quota-Month" in headers
    return status, headers["X-Cache-Status"], quota


async def see_small_print(port: int) -> None:
    """What is held and what is not, key by key and status by status."""
    for ask in SMALL_PRINT:
        got = await trio.to_thread.run_sync(fetch, port, ask.target, ask.key)
        require(got == (ask.status, ask.held, ask.quota), f"{ask}: got {got}")
    print(f"{len(SMALL_PRINT)} questions of the small print answered as they have to be")


async def see_ages(folder: Path, port: int) -> None:
    """A day that is over is held as such; today's table, and one of tomorrow, with the hour."""
    now = datetime.now(UTC)
    if now.hour == 23 and now.minute == 59:
        await trio.sleep(61)  # the day is not to change meanwhile
        now = datetime.now(UTC)
    today = now.date()
    ages = {"past": today - timedelta(days=1), "hour": today, "too": today + timedelta(days=1)}
    for day in ages.values():
        target = f"/frankfurter/v2/rates?date={day}&base=USD"
        await trio.to_thread.run_sync(fetch, port, target, "")
    held = b"\n".join(file.read_bytes() for file in (folder / "cache").rglob("*") if file.is_file())
    keys = [line[5:].decode() for line in held.splitlines() if line.startswith(b"KEY: ")]
    for age, day in ages.items():
        [key] = [key for key in keys if key.endswith(f"/v2/rates?date={day}&base=USD")]
        said = key.split()[0]
        require((said == "past") == (age == "past"), f"the table of {day} was held as {said}")
        require(said == "past" or said[:-2] == f"{today}T", f"{day} was held as {said}")
    past = sum(key.startswith("past ") for key in keys)
    print(f"held as past days: {past} tables; by the hour: {len(keys) - past}")


def see_no_key(folder: Path) -> None:
    """Neither the cache nor a log of nginx has the key in it."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "main.conf"]
    with_key = [str(file) for file in files if KEY.encode() in file.read_bytes()]
    require(not with_key, f"the key stands in {with_key}")
    print(f"the key is in none of the {len(files)} files of cache and logs")


# The replicas and their feed.


async def ask_replicas(folder: Path, cache: int, days: Sequence[date], count: int) -> None:
    """Start that many replicas, each with a connection of its own, ask them for all, stop them."""
    requests, expected = questions(days)
    feed = Feed(requests, expected)
    peers: list[FeedPeer] = []
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_feed, feed, peers)
        ours = ("RATEBRIDGE_", "CURRENCY_ASSIGNMENT_", "FREECURRENCY_", "FRANKFURTER_", "VERIFY_")
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "CURRENCY_ASSIGNMENT_WS_URI": f"ws://127.0.0.1:{port}/",
            "FREECURRENCY_API_KEY": KEY,
            "FREECURRENCY_API_URL": f"http://127.0.0.1:{cache}/freecurrencyapi/v1",
            "FRANKFURTER_URL": f"http://127.0.0.1:{cache}/frankfurter/v2",
            "RATEBRIDGE_RATE_DEADLINE": "60",  # all is asked at once; see PATIENT
        }
        log = folder / f"replicas-{count}.log"
        with log.open("ab") as out:
            run = partial(trio.run_process, cwd=folder, env=env, stderr=out, check=False)
            command = [sys.executable, "-m", "ratebridge"]
            processes = [await nursery.start(run, command) for _ in range(count)]
            try:
                await until("all is answered", lambda: feed.finished == count or feed.wrong, 90)
                require(not feed.wrong, f"wrong replies, the first: {feed.wrong[:1]}")
            except Failed as why:
                tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-20:])
                raise Failed(f"{why}\n{tail}") from None
            for process in processes:
                process.terminate()
            codes = [await process.wait() for process in processes]
        require(codes == [0] * count, f"replicas ended with {codes}")
        require(feed.connections == count, f"{feed.connections} connections for {count} replicas")
        print(f"{feed.converted} stakes converted, exactly, by {count} process{'es' * (count > 1)}")
        nursery.cancel_scope.cancel()


def questions(days: Sequence[date]) -> tuple[list[str], dict[str, Decimal]]:
    """Requests for each day and currency, and what is due for each, by its id."""
    requests: list[str] = []
    expected: dict[str, Decimal] = {}
    tables = FakeRates(per_minute=10_000)
    for day in days:
        for currency, source in CURRENCIES.items():
            message_id = len(requests) + 1
            requests.append(request_text(message_id, STAKE, currency, f"{day}T12:00:00.000Z"))
            eur = Fraction(STAKE) / Fraction(quote(tables, source, currency, day))
            expected[str(message_id)] = Decimal(round(eur * 10**5)).scaleb(-5)
    return requests, expected


def quote(tables: FakeRates, source: str, currency: str, day: date) -> str:
    """The digits that a source gives for one euro."""
    if source == FRANKFURTER:
        answer = tables.answer(f"/v2/rates?date={day}&base=EUR&quotes={currency}", {})
        return str(json.loads(answer.body, parse_float=str, parse_int=str)[0]["rate"])
    target = f"/v1/historical?date={day}&base_currency=EUR&currencies={currency}"
    answer = tables.answer(target, {"apikey": KEY})
    data = json.loads(answer.body, parse_float=str, parse_int=str)["data"]
    return str(data[str(day)][currency])


async def until(what: str, holds: Callable[[], object], limit: float) -> None:
    """Look every 20 ms until it holds. Raises `Failed` after `limit` seconds."""
    end = trio.current_time() + limit
    while not holds():
        if trio.current_time() > end:
            raise Failed(f"{what}: not within {limit:g} s")
        await trio.sleep(0.02)


if __name__ == "__main__":
    main()
