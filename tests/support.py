"""Helpers for the tests of the link, the session and the supervisor."""

import os
import socket
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import attrs
import trio
import trio.testing
import trustme

from ratebridge.bridge import Bridge
from ratebridge.errors import LinkFailed, SourceFailed
from ratebridge.fakes.feed import FeedPeer, MemoryFeed, Script, play, request_text, serve_feed
from ratebridge.fakes.port import serve_on_port
from ratebridge.link.address import Address
from ratebridge.link.dial import add_tls
from ratebridge.link.link import Link, open_link
from ratebridge.outbox import Outbox
from ratebridge.rates import Quote, RateSheet
from ratebridge.reporting.observer import Observer

ADDRESS = Address("feed.example", 80, "/stream", secure=False)
NOW = datetime(2021, 6, 1, 12, tzinfo=UTC)
BEAT = b'{"type":"heartbeat"}'
NO_CHAIN: Any = None  # of a bridge that is asked for euros only


CLOCK_START = 2.0**20  # s; from 0 an instant and a duration would look alike


def virtual_clock(**options: float) -> trio.testing.MockClock:
    """A clock for `trio.run` that starts at `CLOCK_START`."""
    clock = trio.testing.MockClock(**options)
    clock.jump(CLOCK_START)
    return clock


def elapsed() -> float:
    """Seconds since the start of the virtual clock."""
    return trio.current_time() - CLOCK_START


OURS = ("RATEBRIDGE_", "CURRENCY_ASSIGNMENT_", "FREECURRENCY_", "FRANKFURTER_", "VERIFY_SSL")


def environment(**settings: str) -> dict[str, str]:
    """The machine's environment with these settings of ours and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, **settings}


def ask(number: int | str) -> str:
    """A request that needs no rate."""
    return request_text(number, "1.5", "EUR", "2021-05-18T21:32:42.324Z")


def server_frame(payload: bytes, first: int = 0x81) -> bytes:
    """A frame as a server writes it; `first` is its first byte, a whole text's if not given."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2) + payload
    return bytes((first, 127)) + size.to_bytes(8) + payload


@attrs.frozen
class SessionEnd:
    """How a link ended, after `uptime` seconds."""

    cause: LinkFailed
    uptime: float


@attrs.define
class Recorder(Observer):
    """An observer that remembers. Times are trio's."""

    ups: list[float] = attrs.Factory(list)
    ends: list[SessionEnd] = attrs.Factory(list)
    waits: list[float | None] = attrs.Factory(list)
    lost: list[tuple[bytes, str]] = attrs.Factory(list)  # replies: id and why
    crashes: list[BaseException] = attrs.Factory(list)
    excuses: list[float] = attrs.Factory(list)
    gaps: list[float] = attrs.Factory(list)  # between heartbeats received

    def link_up(self) -> None:
        self.ups.append(trio.current_time())

    def link_lost(self, cause: LinkFailed, uptime: float, retry_in: float | None) -> None:
        self.ends.append(SessionEnd(cause, uptime))
        self.waits.append(retry_in)

    def undelivered(self, message_id: bytes, why: str) -> None:
        self.lost.append((message_id, why))

    def internal_error(self, where: str, error: BaseException) -> None:
        self.crashes.append(error)

    def loop_stalled(self, late: float) -> None:
        self.excuses.append(late)

    def heartbeat_received(self, gap: float) -> None:
        self.gaps.append(gap)


@attrs.define
class Bank:
    """A source in the place of the ECB: on each day a euro is 1.25 of three currencies."""

    takes: dict[date, float] = attrs.Factory(dict)  # s
    name: str = "ecb"
    failure: SourceFailed | None = None
    older: timedelta = timedelta()  # of its rates
    quota: None = None
    currencies: None = None
    every: None = None
    asked: list[date] = attrs.Factory(list)

    def asks(self, day: date, today: date) -> str:
        return str(day)

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        self.asked.append(day)
        await trio.sleep(self.takes.get(day, 0))
        if self.failure is not None:
            raise self.failure
        row = dict.fromkeys(("CZK", "USD", "GBP"), Quote(Decimal("1.25")))
        rows = {day - self.older: row}
        return RateSheet(self.name, str(day), day, day, rows, now, frozenset(row))


def euro_bridge(nursery: trio.Nursery, outbox: Outbox) -> Bridge:
    """A bridge for requests in euro."""
    return Bridge(NO_CHAIN, nursery, outbox.add, utc_now=lambda: NOW, observer=Observer())


async def beat(peer: FeedPeer, interval: float = 1.0) -> None:
    """Heartbeats for ever."""
    while True:
        await peer.heartbeat()
        await trio.sleep(interval)


async def listen(peer: FeedPeer) -> None:
    """Read for ever; what comes stands in `peer.received`."""
    while True:
        await peer.receive()


async def accept_and_listen(peer: FeedPeer) -> None:
    """A script: grant the upgrade, say nothing, listen."""
    await peer.accept()
    await listen(peer)


async def accept_and_hang(peer: FeedPeer) -> None:
    """A script: grant the upgrade, say and read nothing."""
    await peer.accept()
    await trio.sleep_forever()


async def never_answer(peer: FeedPeer) -> None:
    """A script: leave the upgrade without an answer."""
    await peer.wait_for_request()
    await trio.sleep_forever()


async def accept_and_beat(peer: FeedPeer) -> None:
    """A script: a healthy peer without requests."""
    await peer.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat, peer)
        await listen(peer)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """`trio.fail_after`, to use in one `async with` with a nursery."""
    with trio.fail_after(seconds):
        yield


def in_turn(*scripts: Script) -> Script:
    """A script that plays these, one a connection, and the last for every one after them."""
    left = list(scripts)

    async def script(peer: FeedPeer) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(peer)

    return script


@asynccontextmanager
async def feed_on_a_port(
    script: Script, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[FeedPeer]]]:
    """A feed on a real port: its number, and the peers so far."""
    peers: list[FeedPeer] = []
    async with within(20), trio.open_nursery() as nursery:
        yield await nursery.start(partial(serve_feed, script, peers, tls=tls)), peers
        nursery.cancel_scope.cancel()


class KeptFeed(MemoryFeed):
    """A feed in memory that keeps our side of the streams, too."""

    def __init__(self, nursery: trio.Nursery, script: Script) -> None:
        super().__init__(nursery, script)
        self.streams: list[Any] = []

    async def dial(self) -> trio.abc.Stream:
        self.streams.append(await super().dial())
        stream: trio.abc.Stream = self.streams[-1]
        return stream


def take_slowly(stream: Any, wait: Callable[[], Awaitable[None]]) -> None:
    """From now on a write to this memory stream arrives, and returns after this wait."""
    pass_on = stream.send_stream.send_all_hook

    async def pass_on_slowly() -> None:
        await pass_on()
        await wait()

    stream.send_stream.send_all_hook = pass_on_slowly


@asynccontextmanager
async def open_to(script: Script) -> AsyncIterator[tuple[Link, KeptFeed]]:
    """A link that is open to a feed in memory which plays `script`."""
    async with within(60), trio.open_nursery() as feed_nursery:
        feed = KeptFeed(feed_nursery, script)
        async with trio.open_nursery() as link_nursery:
            link = await open_link(link_nursery, ADDRESS, feed.dial)
            yield link, feed
            link_nursery.cancel_scope.cancel()
        feed_nursery.cancel_scope.cancel()


def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a connection that is a real socket and has no port."""
    ours, theirs = trio.socket.socketpair()
    return trio.SocketStream(ours), trio.SocketStream(theirs)


def tls_contexts(
    authority: trustme.CA | None = None, name: str = ADDRESS.host
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The context of a server, and that of a client who trusts it if no `authority` is given."""
    trusted = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    (authority or trusted).issue_cert(name).configure_cert(server)
    trusted.configure_trust(client)
    # So that the server can ask for a certificate behind the handshake.
    server.verify_mode = ssl.CERT_OPTIONAL
    server.post_handshake_auth = client.post_handshake_auth = True
    return server, client


class SocketFeed:
    """A `MemoryFeed` whose connections are real sockets, with TLS if it is `secure`."""

    def __init__(self, nursery: trio.Nursery, script: Script, *, secure: bool = False) -> None:
        self._nursery = nursery
        self._script = script
        self._tls = tls_contexts() if secure else None
        self.peers: list[FeedPeer] = []

    async def dial(self) -> trio.abc.Stream:
        ours, theirs = socket_pair()
        if self._tls is None:
            self._nursery.start_soon(play, self._script, theirs, self.peers)
            return ours
        server, client = self._tls
        secured = trio.SSLStream(theirs, server, server_side=True, https_compatible=True)
        self._nursery.start_soon(play, self._script, secured, self.peers)
        return await add_tls(ours, ADDRESS, client)


@asynccontextmanager
async def open_on_a_socket(
    script: Script, *, secure: bool = False
) -> AsyncIterator[tuple[Link, SocketFeed]]:
    """As `open_to`, on a real socket."""
    async with within(20), trio.open_nursery() as nursery:
        feed = SocketFeed(nursery, script, secure=secure)
        yield await open_link(nursery, ADDRESS, feed.dial), feed
        nursery.cancel_scope.cancel()


async def take(link: Link, count: int) -> list[bytes]:
    """The texts that come, until there are so many."""
    texts: list[bytes] = []
    while len(texts) < count:
        texts += await link.receive()
    return texts


async def read_on(link: Link) -> list[bytes]:
    """All the texts that come, until the link ends."""
    texts: list[bytes] = []
    with suppress(LinkFailed):
        while True:
            texts += await link.receive()
    return texts


@attrs.define
class ProxyPeer:
    """A proxy on a port of this machine. `asked` tells what it was asked for, and by whom."""

    port: int = 0
    refusal: int | None = None  # an HTTP status; by SOCKS, any refuses
    asked: list[str] = attrs.Factory(list)
    pieces: int = 65536  # bytes that it writes at a time, until the tunnel is there

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection: by SOCKS 5, or by CONNECT."""
        data = bytes(await stream.receive_some())
        if data[:1] == b"\x05":
            user = ""
            if 2 in data[2:]:
                await stream.send_all(b"\x05\x02")
                if not (login := bytes(await stream.receive_some())):
                    return
                name, password = login[2:][: login[1]], login[3 + login[1] :]
                user = f"{name.decode()}:{password.decode()}"
                await stream.send_all(b"\x01" + (b"\x01" if self.refusal else b"\x00"))
                if self.refusal:
                    return
            else:
                await stream.send_all(b"\x05\x00")
            data = bytes(await stream.receive_some())
            if data[3:4] == b"\x03":
                host = data[5:-2].decode()
            else:
                kind = socket.AF_INET6 if data[3:4] == b"\x04" else socket.AF_INET
                host = socket.inet_ntop(kind, data[4:-2])
            self.asked.append(f"SOCKS {host} {user}")
            code = b"\x02" if self.refusal else b"\x00"
            answer, port = b"\x05" + code + b"\0\x01" + bytes(6), int.from_bytes(data[-2:])
        else:
            host, _, number = data.split(b" ")[1].decode().rpartition(":")
            secret = data.partition(b"Proxy-Authorization: Basic ")[2].partition(b"\r")[0]
            self.asked.append(f"CONNECT {host} {b64decode(secret).decode()}")
            status, port = self.refusal or 200, int(number)
            answer = (
                f"HTTP/1.1 102 \r\n\r\nHTTP/1.1 {status} As You Like\r\nVia: me\r\n\r\n".encode()
            )
        for at in range(0, len(answer), self.pieces):
            await stream.send_all(answer[at : at + self.pieces])
        if self.refusal is None:
            behind = await trio.open_tcp_stream("127.0.0.1", port)
            async with behind, trio.open_nursery() as nursery:
                nursery.start_soon(pass_on, stream, behind, nursery.cancel_scope)
                nursery.start_soon(pass_on, behind, stream, nursery.cancel_scope)


async def pass_on(
    source: trio.abc.Stream, target: trio.abc.Stream, scope: trio.CancelScope
) -> None:
    """Copy bytes until one side has gone."""
    with suppress(trio.BrokenResourceError):
        async for data in source:
            await target.send_all(data)
    scope.cancel()


@asynccontextmanager
async def open_proxy(tls: ssl.SSLContext | None = None) -> AsyncIterator[ProxyPeer]:
    """A proxy, which is spoken to by https if it has `tls`."""
    proxy = ProxyPeer()

    async def serve(stream: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError):
            await proxy.serve(stream)

    async with within(10), trio.open_nursery() as nursery:
        proxy.port = await nursery.start(partial(serve_on_port, serve, tls=tls))
        yield proxy
        nursery.cancel_scope.cancel()


@attrs.define
class Known(trio.abc.HostnameResolver):
    """A resolver that knows what it is told, or fails as it is told, or knows nothing."""

    answer: list[Any] | Exception = attrs.Factory(lambda: socket.gaierror(-2, "Name not known"))

    async def getaddrinfo(self, host: Any, port: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(self.answer, Exception):
            raise self.answer
        kinds = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (kinds[":" in host], socket.SOCK_STREAM, 6, "", (host, port)) for host in self.answer
        ]

    async def getnameinfo(self, *args: Any) -> Any:
        raise NotImplementedError
