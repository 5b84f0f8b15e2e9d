"""The service against feeds on real ports: it reconnects after any failure.

Times are shortened by the settings where there is one, and in the modules where there is none.
"""

import gc
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from support import ask, beat, in_turn, listen, server_frame

from ratebridge import app
from ratebridge.app import Dependencies, serve
from ratebridge.errors import LinkFailed
from ratebridge.fakes.feed import FeedGone, FeedPeer, Script, serve_feed
from ratebridge.link import link
from ratebridge.link.address import Address
from ratebridge.link.dial import Dial, add_tls, network_dial, open_tcp
from ratebridge.link.framing import MAX_FRAME
from ratebridge.link.link import open_link
from ratebridge.operating.journal import Journal
from ratebridge.operating.stats import Stats
from ratebridge.settings import Settings

PATIENCE = 10  # s, after which a test has hung
NO_TLS = ssl.create_default_context()  # of those who need none: to make one takes a while


@pytest.fixture(autouse=True)
def _short_times(monkeypatch):
    monkeypatch.setattr(link, "OPEN_WITHIN", 0.4)
    monkeypatch.setattr(link, "WRITE_WITHIN", 0.4)
    monkeypatch.setattr(link, "CLOSE_WITHIN", 0.3)
    monkeypatch.setattr(app, "tls_context", lambda verify: NO_TLS)


@attrs.define
class Service:
    """A running service, and the feeds that it is told of."""

    stats: Stats
    stop: trio.Event
    stopped: trio.Event = attrs.Factory(trio.Event)


@asynccontextmanager
async def serving(dial: Dial, **settings: Any) -> AsyncIterator[Service]:
    """A service that finds its feed by `dial` and tries again at once. The end stops it."""
    stats = Stats()
    service = Service(stats, trio.Event())
    feed = Address("feed.example", 80, "/", secure=False)
    shortened = {"heartbeat_interval": 0.05, "heartbeat_timeout": 0.5, "drain_timeout": 1.0}
    dependencies = Dependencies(dial, jitter=lambda: 0.0, journal=Journal(stats))

    async def run() -> None:
        made = Settings(feed, providers=("ecb",), **{**shortened, **settings})
        await serve(made, service.stop, dependencies)
        service.stopped.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield service
            service.stop.set()
            await service.stopped.wait()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def feed_on_a_port(
    script: Script, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[int, list[FeedPeer]]]:
    """A feed on a real port: its number, and the peers so far."""
    peers: list[FeedPeer] = []
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_feed, script, peers, host=host, tls=tls))
        yield port, peers
        nursery.cancel_scope.cancel()


def tcp(port: int, host: str = "127.0.0.1") -> Dial:
    return network_dial(Address(host, port, "/", secure=False), NO_TLS)


@attrs.define
class Healthy:
    """The script of a feed that beats, asks once, and knows when it was answered."""

    answered: trio.Event = attrs.Factory(trio.Event)

    async def __call__(self, peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, peer, 0.05)
            await peer.send(ask(456))
            reply = await peer.receive_reply()
            assert (reply["id"], reply["payload"]["stake"]) == ("456", "1.5")
            self.answered.set()
            await listen(peer)


async def come_back(first: Script, *reasons: str, **settings: Any) -> Stats:
    """Let the first connection be this one, and the next a healthy one, which must be answered."""
    healthy = Healthy()
    async with (
        feed_on_a_port(in_turn(first, healthy)) as (port, _),
        serving(tcp(port), **settings) as service,
    ):
        await healthy.answered.wait()
    assert service.stats.internal_errors == 0
    assert list(service.stats.lost) == list(reasons)
    assert service.stats.lost.total() == 1
    return service.stats


def open_and(then: Callable[[FeedPeer], Awaitable[Any]], *, hold: bool = False) -> Script:
    """A script that grants the upgrade, beats, and does this; then it goes, or holds on."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.heartbeat()
        await then(peer)
        if hold:
            await trio.sleep_forever()

    return script


def close_with(code: int) -> Callable[[FeedPeer], Awaitable[Any]]:
    return lambda peer: peer.close(code, "why not")


def send(data: bytes) -> Callable[[FeedPeer], Awaitable[Any]]:
    return lambda peer: peer.send_raw(data)


async def nothing(_peer: FeedPeer) -> None:
    await trio.lowlevel.checkpoint()


async def hold_on(_peer: FeedPeer) -> None:
    await trio.sleep_forever()


async def reset(peer: FeedPeer) -> None:
    await peer.reset()


async def reset_when_asked(peer: FeedPeer) -> None:
    await peer.wait_for_request()
    await peer.reset()


async def go_when_asked(peer: FeedPeer) -> None:
    await peer.wait_for_request()


async def never_answer(peer: FeedPeer) -> None:
    await peer.wait_for_request()
    await trio.sleep_forever()


async def refuse(peer: FeedPeer) -> None:
    await peer.reject(503, body=b"busy")


async def talk_nonsense(peer: FeedPeer) -> None:
    await peer.wait_for_request()
    await peer.send_raw(b"\x00\x01\x02\r\n\r\n")
    await trio.sleep_forever()


async def send_200_kb_of_headers(peer: FeedPeer) -> None:
    await peer.wait_for_request()
    await peer.send_raw(b"HTTP/1.1 101 Switching\r\n" + b"X-Filler: 0123456789\r\n" * 9000)
    await trio.sleep_forever()


async def beat_and_ping(peer: FeedPeer) -> None:
    for _ in range(20):
        await peer.ping(b"are you there")
        await peer.heartbeat()
    await peer.close(1001)


async def flood_with_pings(peer: FeedPeer) -> None:
    while True:
        await peer.heartbeat()  # or it would be a race between two watches
        await peer.send_raw(server_frame(b"p" * 125, 0x89) * 100)


FAILURES = {
    "FIN at once": (nothing, "reset"),
    "RST at once": (reset, "reset"),
    "FIN in the upgrade": (go_when_asked, "reset"),
    "RST in the upgrade": (reset_when_asked, "reset"),
    "never answers the upgrade": (never_answer, "open-timeout"),
    "503": (refuse, "rejected"),
    "nonsense in the upgrade": (talk_nonsense, "protocol-error"),
    "200 KB of headers": (send_200_kb_of_headers, "protocol-error"),
    "accepts and goes": (open_and(nothing), "reset"),
    "RST": (open_and(reset), "reset"),
    "close 1000": (open_and(close_with(1000)), "closed"),
    "close 1001": (open_and(close_with(1001)), "closed"),
    "close 1011": (open_and(close_with(1011)), "closed"),
    "close 4999": (open_and(close_with(4999)), "closed"),
    "close without a code": (open_and(send(server_frame(b"", 0x88))), "closed"),
    "close with TCP held": (open_and(close_with(1000), hold=True), "closed"),
    "garbage": (open_and(send(b"\xff" * 100), hold=True), "protocol-error"),
    "garbage without end": (open_and(send(b"\xff" * 10_000_000)), "protocol-error"),
    "bad UTF-8": (open_and(send(server_frame(b"\xff")), hold=True), "protocol-error"),
    "a masked frame": (open_and(send(b"\x81\x82mask.."), hold=True), "protocol-error"),
    "reserved bits": (open_and(send(server_frame(b"t", 0xF1)), hold=True), "protocol-error"),
    "oversized": (open_and(send(server_frame(b"x" * (MAX_FRAME + 1))), hold=True), "oversized"),
    "a cut frame": (open_and(send(b"\x81\x7e\x01\x00{")), "reset"),
    "pings, and a close": (open_and(beat_and_ping), "closed"),
    "silence": (open_and(nothing, hold=True), "stale"),
    "a flood of pings, none of the pongs read": (open_and(flood_with_pings), "write-stalled"),
}


@pytest.mark.parametrize(("script", "reason"), FAILURES.values(), ids=FAILURES.keys())
async def test_after_any_failure_of_the_feed_the_service_is_back_and_answers(script, reason):
    await come_back(script, reason)


# The way to the feed.


class Names(trio.abc.HostnameResolver):
    """A resolver by which feed.test has two addresses, and all other names have none."""

    async def getaddrinfo(self, host: Any, port: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if host != b"feed.test":
            raise socket.gaierror(-2, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    async def getnameinfo(self, *args: Any) -> Any:
        raise NotImplementedError


def dialling(*dials: Dial) -> Dial:
    """A dial that is each of these in turn, and then the last."""
    left = list(dials)

    async def dial() -> trio.abc.Stream:
        return await (left.pop(0) if len(left) > 1 else left[0])()

    return dial


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def test_it_comes_back_after_a_refused_connection():
    healthy = Healthy()
    async with (
        feed_on_a_port(healthy) as (port, _),
        serving(dialling(tcp(free_port()), tcp(port))) as service,
    ):
        await healthy.answered.wait()
    assert service.stats.lost == {"refused": 1}


async def test_it_comes_back_after_a_name_was_not_found():
    trio.socket.set_custom_hostname_resolver(Names())
    healthy = Healthy()
    async with (
        feed_on_a_port(healthy) as (port, _),
        serving(dialling(tcp(port, "lost.test"), tcp(port))) as service,
    ):
        await healthy.answered.wait()
    assert service.stats.lost == {"dns": 1}


async def test_of_two_addresses_the_one_that_listens_is_found():
    trio.socket.set_custom_hostname_resolver(Names())
    healthy = Healthy()
    async with (
        feed_on_a_port(healthy) as (port, _),
        serving(tcp(port, "feed.test")) as service,
    ):
        await healthy.answered.wait()
    assert service.stats.lost == {}


async def test_two_addresses_of_which_none_listens_are_refused():
    trio.socket.set_custom_hostname_resolver(Names())
    with pytest.raises(
        LinkFailed, match="refused: connection refused: nobody listens on that port"
    ):
        await tcp(free_port(), "feed.test")()


async def test_a_socket_that_seems_readable_and_has_nothing_is_waited_for(monkeypatch):
    looked = trio.Event()
    wait = trio.lowlevel.wait_readable

    async def wait_at_the_second_look(sock: Any) -> None:
        if looked.is_set():
            await wait(sock)
        looked.set()
        await trio.lowlevel.checkpoint()

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await looked.wait()
        await trio.sleep(0.05)
        await peer.send("at last")
        await listen(peer)

    async with feed_on_a_port(script) as (port, _), trio.open_nursery() as nursery:
        address = Address("127.0.0.1", port, "/", secure=False)
        monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_at_the_second_look)
        opened = await open_link(nursery, address, tcp(port))
        texts: list[bytes] = []
        with trio.move_on_after(0.2):
            await opened.receive(texts.extend)
        assert texts == [b"at last"]
        nursery.cancel_scope.cancel()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_an_ipv6_address_is_dialled_and_stands_in_brackets_in_the_host_header():
    async with (
        feed_on_a_port(Healthy(), host="::1") as (port, peers),
        trio.open_nursery() as nursery,
    ):
        address = Address.parse(f"ws://[::1]:{port}/stream?a=b")
        link = await open_link(nursery, address, network_dial(address, NO_TLS))
        with trio.CancelScope() as heard:
            await link.receive(lambda _texts: heard.cancel())
        assert (peers[0].host, peers[0].path) == (f"[::1]:{port}", "/stream?a=b")
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not on this platform")
async def test_what_is_not_acknowledged_for_five_seconds_breaks_the_connection():
    async with feed_on_a_port(Healthy()) as (port, _):
        stream: Any = await tcp(port)()
        option = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        await stream.aclose()
    assert option == 5000


async def test_a_platform_without_that_option_does_without(monkeypatch):
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    async with feed_on_a_port(Healthy()) as (port, _):
        await (await tcp(port)()).aclose()


# TLS.


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def server_tls(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


def wss(port: int, authority: trustme.CA) -> Dial:
    """A dial that trusts this authority only."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return network_dial(Address("127.0.0.1", port, "/", secure=True), context)


async def test_over_tls_it_is_the_same(authority):
    healthy = Healthy()
    async with (
        feed_on_a_port(healthy, server_tls(authority)) as (port, peers),
        serving(wss(port, authority)) as service,
    ):
        await healthy.answered.wait()
    assert service.stats.lost == {}
    assert peers[0].close_code == 1001


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(open_and(nothing), "reset", id="FIN without a TLS close"),
        pytest.param(open_and(reset), "reset", id="RST"),
        pytest.param(reset_when_asked, "reset", id="RST in the upgrade"),
        pytest.param(open_and(close_with(1011)), "closed", id="close 1011"),
        pytest.param(never_answer, "open-timeout", id="never answers the upgrade"),
    ],
)
async def test_over_tls_it_comes_back_too(script, reason, authority):
    healthy = Healthy()
    async with (
        feed_on_a_port(in_turn(script, healthy), server_tls(authority)) as (port, _),
        serving(wss(port, authority)) as service,
    ):
        await healthy.answered.wait()
    assert service.stats.lost == {reason: 1}
    assert service.stats.internal_errors == 0


async def test_records_that_are_no_tls_end_a_link_over_tls(authority):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        stream: Any = peer.stream
        await stream.transport_stream.send_all(b"\x00" * 100)
        await trio.sleep_forever()

    healthy = Healthy()
    async with (
        feed_on_a_port(in_turn(script, healthy), server_tls(authority)) as (port, _),
        serving(wss(port, authority)) as service,
    ):
        await healthy.answered.wait()
    assert service.stats.lost == {"reset": 1}


@pytest.mark.parametrize(
    ("name", "trusted", "detail"),
    [
        pytest.param("127.0.0.1", False, "unable to get local issuer certificate", id="unknown"),
        pytest.param("127.0.0.2", True, "IP address mismatch", id="of somebody else"),
    ],
)
async def test_a_certificate_that_does_not_pass_is_named_as_the_reason(
    name, trusted, detail, authority
):
    healthy = Healthy()
    other = authority if trusted else trustme.CA()
    async with (
        feed_on_a_port(healthy, server_tls(other, name)) as (bad_port, _),
        feed_on_a_port(healthy, server_tls(authority)) as (port, _),
    ):
        with pytest.raises(LinkFailed) as caught:
            await wss(bad_port, authority)()
        async with serving(dialling(wss(bad_port, authority), wss(port, authority))) as service:
            await healthy.answered.wait()
    assert caught.value.reason == "certificate"
    assert detail in caught.value.detail
    assert service.stats.lost == {"certificate": 1}


def not_tls(script: Script) -> Script:
    """A script that takes the first bytes and goes on as this one, without TLS."""

    async def after_hello(peer: FeedPeer) -> None:
        await peer.stream.receive_some(10000)
        await script(peer)

    return after_hello


@pytest.mark.parametrize(
    ("script", "reason", "detail"),
    [
        pytest.param(
            send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            *("tls", "TLS failed: "),
            id="plain HTTP",
        ),
        pytest.param(nothing, "tls", "the peer broke off the TLS handshake", id="FIN"),
        pytest.param(reset, "tls", "the peer broke off the TLS handshake", id="RST"),
        pytest.param(
            hold_on,
            *("open-timeout", "no connection within 0.4 s"),
            id="never answers",
        ),
    ],
)
async def test_a_tls_handshake_that_fails_has_its_reason(script, reason, detail, authority):
    healthy = Healthy()
    async with (
        feed_on_a_port(not_tls(script)) as (bad_port, _),
        feed_on_a_port(healthy, server_tls(authority)) as (port, _),
        trio.open_nursery() as nursery,
    ):
        address = Address("127.0.0.1", bad_port, "/", secure=True)
        with pytest.raises(LinkFailed) as caught:
            await open_link(nursery, address, wss(bad_port, authority))
        async with serving(dialling(wss(bad_port, authority), wss(port, authority))) as service:
            await healthy.answered.wait()
    assert caught.value.reason == reason
    assert detail in caught.value.detail
    assert service.stats.lost == {reason: 1}


async def test_a_host_that_tls_cannot_check_leaves_no_connection_open():
    async with feed_on_a_port(hold_on) as (port, _):
        stream = await open_tcp(Address("127.0.0.1", port, "/", secure=True))
        with pytest.raises(ValueError, match="server_hostname"):
            await add_tls(stream, Address("", port, "/", secure=True), NO_TLS)
        assert stream.socket.fileno() == -1


# What is written.


def narrow(dial: Dial) -> Dial:
    """A dial whose connections have room for few bytes on our side."""

    async def narrow_dial() -> trio.abc.Stream:
        stream: Any = await dial()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        opened: trio.abc.Stream = stream
        return opened

    return narrow_dial


async def read_to_the_end(peer: FeedPeer) -> None:
    with suppress(FeedGone):
        await listen(peer)


async def test_a_peer_who_does_not_read_gets_every_reply_once_over_both_connections():
    """A frame that left whole counts as written, though its write was cut short; no other does."""
    count = 1500
    again = trio.Event()

    async def read_late(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.heartbeat()
        await peer.send_raw(b"".join(server_frame(ask(n).encode()) for n in range(count)))
        await again.wait()
        await read_to_the_end(peer)

    async def read(peer: FeedPeer) -> None:
        await peer.accept()
        again.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, peer, 0.05)
            await listen(peer)

    def replies(peer: FeedPeer) -> list[int]:
        messages = [got.message for got in peer.received]
        return [int(message["id"]) for message in messages if message["type"] == "message"]

    async with feed_on_a_port(in_turn(read_late, read)) as (port, peers):
        async with serving(narrow(tcp(port)), heartbeat_timeout=5) as service:
            await again.wait()
            while len(replies(peers[0])) + len(replies(peers[1])) < count:
                await trio.sleep(0.01)
            await trio.sleep(0.05)
        assert list(service.stats.lost) == ["write-stalled"]
        first, second = replies(peers[0]), replies(peers[1])
        assert first + second == list(range(count))
        assert first
        assert second
        assert service.stats.undelivered == 0


# The stop.


def hearing_a_close(then: Callable[[FeedPeer], Awaitable[Any]]) -> Script:
    """A script that reads and beats until the close comes, and then does this, and holds on."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.heartbeat()
        while (await peer.stream.receive_some(1000))[:1] != b"\x88":
            await peer.heartbeat()
        await then(peer)
        await trio.sleep_forever()

    return script


async def ping_on(peer: FeedPeer) -> None:
    while True:
        await peer.send_raw(server_frame(b"", 0x89))
        await trio.sleep(0.01)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(hearing_a_close(nothing), id="does not answer"),
        pytest.param(hearing_a_close(ping_on), id="pings while we close"),
        pytest.param(hearing_a_close(reset), id="RST while we close"),
        pytest.param(hearing_a_close(send(b"\xff\xff")), id="garbage while we close"),
        pytest.param(open_and(nothing, hold=True), id="silent"),
        pytest.param(never_answer, id="in the upgrade"),
        pytest.param(refuse, id="backing off"),
    ],
)
async def test_a_stop_is_quick_whatever_the_peer_does(script):
    async with (
        feed_on_a_port(script) as (port, peers),
        serving(tcp(port), heartbeat_timeout=5.0) as service,
    ):
        while not peers:
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        began = trio.current_time()
        service.stop.set()
        await service.stopped.wait()
        assert trio.current_time() - began < 1.0
    assert service.stats.internal_errors == 0


# No leaks.


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of descriptors here")
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(open_and(nothing), id="accepts and goes"),
        pytest.param(refuse, id="refuses"),
        pytest.param(open_and(send(b"\xff\xff")), id="talks garbage"),
        pytest.param(nothing, id="goes at once"),
    ],
)
async def test_sockets_are_closed_by_hand_and_not_by_the_collector(script):
    async with (
        feed_on_a_port(script) as (port, _),
        serving(tcp(port)) as service,
    ):
        while service.stats.lost.total() < 3:
            await trio.sleep(0.01)
        gc.collect()
        gc.disable()
        try:
            before = open_descriptors()
            lost = service.stats.lost.total()
            while service.stats.lost.total() < lost + 30:
                await trio.sleep(0.01)
            assert open_descriptors() < before + 10
        finally:
            gc.enable()
