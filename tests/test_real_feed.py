"""The service against feeds on real ports: whatever a peer or the network does, it comes back."""

import gc
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support import ask, beat, feed_on_a_port, in_turn, listen, server_frame

from ratebridge import app
from ratebridge.app import Dependencies, serve
from ratebridge.fakes.feed import FeedGone, FeedPeer, Script
from ratebridge.link import stream
from ratebridge.link.address import Address
from ratebridge.link.dial import Dial, NetworkDial
from ratebridge.link.framing import MAX_MESSAGE
from ratebridge.reporting.observer import Observer
from ratebridge.reporting.stats import Stats
from ratebridge.settings import Settings

PATIENCE = 10  # s, after which a test has hung
NO_TLS = ssl.create_default_context()  # of those who need none: to make one takes a while


@pytest.fixture(autouse=True)
def _no_tls(monkeypatch):
    monkeypatch.setattr(app, "tls_context", lambda verify: NO_TLS)


@asynccontextmanager
async def serving(dial: Dial) -> AsyncIterator[Stats]:
    """A service that finds its feed by `dial` and tries again at once. The end stops it."""
    stats = Stats()
    stop = trio.Event()
    # No timeout is what is tested here: a machine under load must not come upon one.
    settings = Settings(
        Address("feed.example", 80, "/", secure=False),
        providers=("ecb",),
        heartbeat_interval=0.05,
        heartbeat_timeout=PATIENCE,
    )
    dependencies = Dependencies(dial, jitter=lambda: 0.0, observer=Observer(stats=stats))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, settings, stop, dependencies)
            yield stats
            stop.set()


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


def open_and(data: bytes, *, hold: bool = False) -> Script:
    """A script that grants the upgrade, beats, and sends this; then it goes, or holds on."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.heartbeat()
        await peer.send_raw(data)
        if hold:
            await trio.sleep_forever()

    return script


async def nothing(_peer: FeedPeer) -> None:
    await trio.lowlevel.checkpoint()


async def refuse(peer: FeedPeer) -> None:
    await peer.reject(503, body=b"busy")


# Of each kind of end one. All that a peer can send is in test_link.
FAILURES = {
    "FIN at once": (nothing, "reset"),
    "RST at once": (FeedPeer.reset, "reset"),
    "503": (refuse, "rejected"),
    "close with TCP held": (open_and(server_frame(b"\x03\xe8", 0x88), hold=True), "closed"),
    "garbage without end": (open_and(b"\xff" * 10_000_000), "protocol-error"),
    "oversized": (open_and(server_frame(b"x" * (MAX_MESSAGE + 1)), hold=True), "oversized"),
}


@pytest.mark.parametrize(("script", "reason"), FAILURES.values(), ids=FAILURES.keys())
async def test_after_any_failure_of_the_feed_the_service_is_back_and_answers(script, reason):
    healthy = Healthy()
    async with feed_on_a_port(in_turn(script, healthy)) as (port, _), serving(tcp(port)) as stats:
        await healthy.answered.wait()
    assert +stats.lost == {reason: 1}
    assert stats.internal_errors == 0


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
        async with serving(narrow(tcp(port))) as stats:
            await read_all.wait()
            while len(replies(peers[0])) + len(replies(peers[1])) < count:
                await trio.sleep(0.01)
        assert list(+stats.lost) == ["write-stalled"]
        first, second = replies(peers[0]), replies(peers[1])
        assert first + second == list(range(count))
        assert first
        assert second
        assert stats.undelivered == 0


# Nothing is left over.


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of descriptors here")
async def test_sockets_are_closed_by_hand_and_not_by_the_collector():
    async with feed_on_a_port(open_and(b"")) as (port, _), serving(tcp(port)) as stats:
        while stats.lost.total() < 3:
            await trio.sleep(0.01)
        gc.collect()
        gc.disable()
        try:
            before = open_descriptors()
            lost = stats.lost.total()
            while stats.lost.total() < lost + 30:
                await trio.sleep(0.01)
            assert open_descriptors() < before + 10
        finally:
            gc.enable()
