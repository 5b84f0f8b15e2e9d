"""The service against feeds on real ports: whatever a peer or the network does, it comes back."""

import gc
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support import ask, beat, in_turn, listen, server_frame

from ratebridge import app
from ratebridge.app import Dependencies, serve
from ratebridge.fakes.feed import FeedGone, FeedPeer, Script, serve_feed
from ratebridge.link import stream
from ratebridge.link.address import Address
from ratebridge.link.dial import Dial, NetworkDial
from ratebridge.link.framing import MAX_MESSAGE
from ratebridge.observer import Observer
from ratebridge.operating.stats import Stats
from ratebridge.settings import Settings

PATIENCE = 10  # s, after which a test has hung
NO_TLS = ssl.create_default_context()  # of those who need none: to make one takes a while


@pytest.fixture(autouse=True)
def _no_tls(monkeypatch):
    monkeypatch.setattr(app, "tls_context", lambda verify: NO_TLS)


@attrs.define
class Service:
    """A running service, and the feeds that it is told of."""

    stats: Stats
    stop: trio.Event
    stopped: trio.Event = attrs.Factory(trio.Event)


@asynccontextmanager
async def serving(dial: Dial) -> AsyncIterator[Service]:
    """A service that finds its feed by `dial` and tries again at once. The end stops it."""
    stats = Stats()
    service = Service(stats, trio.Event())
    feed = Address("feed.example", 80, "/", secure=False)
    dependencies = Dependencies(dial, jitter=lambda: 0.0, observer=Observer(stats=stats))

    async def run() -> None:
        # No timeout is what is tested here: a machine under load must not come upon one.
        made = Settings(
            feed, providers=("ecb",), heartbeat_interval=0.05, heartbeat_timeout=PATIENCE
        )
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
async def feed_on_a_port(script: Script) -> AsyncIterator[tuple[int, list[FeedPeer]]]:
    """A feed on a real port: its number, and the peers so far."""
    peers: list[FeedPeer] = []
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_feed, script, peers)
        yield port, peers
        nursery.cancel_scope.cancel()


def tcp(port: int) -> Dial:
    return NetworkDial(Address("127.0.0.1", port, "/", secure=False), NO_TLS)


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


async def reset(peer: FeedPeer) -> None:
    await peer.reset()


async def reset_when_asked(peer: FeedPeer) -> None:
    await peer.wait_for_request()
    await peer.reset()


async def refuse(peer: FeedPeer) -> None:
    await peer.reject(503, body=b"busy")


async def talk_nonsense(peer: FeedPeer) -> None:
    await peer.wait_for_request()
    await peer.send_raw(b"\x00\x01\x02\r\n\r\n")
    await trio.sleep_forever()


# Of each kind of end one. All that a peer can send is in test_link.
FAILURES = {
    "FIN at once": (nothing, "reset"),
    "RST at once": (reset, "reset"),
    "RST in the upgrade": (reset_when_asked, "reset"),
    "503": (refuse, "rejected"),
    "nonsense in the upgrade": (talk_nonsense, "protocol-error"),
    "close 1011": (open_and(close_with(1011)), "closed"),
    "close with TCP held": (open_and(close_with(1000), hold=True), "closed"),
    "garbage without end": (open_and(send(b"\xff" * 10_000_000)), "protocol-error"),
    "oversized": (open_and(send(server_frame(b"x" * (MAX_MESSAGE + 1))), hold=True), "oversized"),
}


@pytest.mark.parametrize(("script", "reason"), FAILURES.values(), ids=FAILURES.keys())
async def test_after_any_failure_of_the_feed_the_service_is_back_and_answers(script, reason):
    healthy = Healthy()
    async with (
        feed_on_a_port(in_turn(script, healthy)) as (port, _),
        serving(tcp(port)) as service,
    ):
        await healthy.answered.wait()
    assert +service.stats.lost == {reason: 1}
    assert service.stats.internal_errors == 0


# What is written.


def narrow(dial: Dial) -> Dial:
    """A dial whose connections have room for few bytes on our side."""

    async def narrow_dial() -> trio.abc.Stream:
        stream: Any = await dial()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        opened: trio.abc.Stream = stream
        return opened

    return narrow_dial


async def test_a_peer_who_does_not_read_gets_every_reply_once_over_both_connections(monkeypatch):
    """A frame that left whole counts as written, though its write was cut short; no other does."""
    monkeypatch.setattr(stream, "WRITE_WITHIN", 0.2)
    count = 1500
    again, read_all = trio.Event(), trio.Event()

    async def read_late(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.heartbeat()
        await peer.send_raw(b"".join(server_frame(ask(n).encode()) for n in range(count)))
        await again.wait()
        with suppress(FeedGone):
            await listen(peer)
        read_all.set()

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
        async with serving(narrow(tcp(port))) as service:
            await read_all.wait()
            while len(replies(peers[0])) + len(replies(peers[1])) < count:
                await trio.sleep(0.01)
        assert list(+service.stats.lost) == ["write-stalled"]
        first, second = replies(peers[0]), replies(peers[1])
        assert first + second == list(range(count))
        assert first
        assert second
        assert service.stats.undelivered == 0


# Nothing is left over.


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of descriptors here")
async def test_sockets_are_closed_by_hand_and_not_by_the_collector():
    async with (
        feed_on_a_port(open_and(nothing)) as (port, _),
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
