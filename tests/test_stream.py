"""The bytes of a link on a real socket: what the system takes at once, and what it does not."""

import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from support import listen, within

from ratebridge.fakes.feed import FeedPeer, serve_feed
from ratebridge.link.address import Address
from ratebridge.link.dial import network_dial
from ratebridge.link.framing import client_frames
from ratebridge.link.link import Link, open_link
from ratebridge.link.stream import Write

LARGE = [b"%d " % number + b"x" * 10_000 for number in range(300)]  # more than a socket takes


async def read_when(ready: trio.Event, peer: FeedPeer) -> None:
    await peer.accept()
    await peer.ping(b"are you there?")
    await ready.wait()
    await listen(peer)


async def on_a_socket(test: Callable[[Link, list[FeedPeer], trio.Event], Awaitable[None]]) -> None:
    """Run `test` on a link to a peer behind a real port, who reads when the Event is set."""
    peers: list[FeedPeer] = []
    ready = trio.Event()
    async with within(20), trio.open_nursery() as nursery:
        port = await nursery.start(serve_feed, partial(read_when, ready), peers)
        address = Address("127.0.0.1", port, "/", secure=False)
        link = await open_link(
            nursery, address, network_dial(address, ssl.create_default_context())
        )
        await test(link, peers, ready)
        nursery.cancel_scope.cancel()


async def received(peer: FeedPeer, count: int) -> list[bytes]:
    while len(peer.received) < count:
        await trio.sleep(0.01)  # it is a real socket
    return [one.text.encode() for one in peer.received]


async def test_a_batch_that_the_system_takes_at_once_has_left_when_begin_returns():
    async def test(link: Link, peers: list[FeedPeer], ready: trio.Event) -> None:
        assert link.begin([b"one", b"two"])
        assert link.written == 2
        ready.set()
        assert await received(peers[0], 2) == [b"one", b"two"]

    await on_a_socket(test)


async def test_a_batch_that_is_taken_in_part_is_finished_before_anything_else_is_written():
    async def test(link: Link, peers: list[FeedPeer], ready: trio.Event) -> None:
        assert not link.begin(LARGE)
        assert 0 < link.written < len(LARGE)
        await trio.sleep(0.1)  # the pong is due, and has to wait
        ready.set()
        await link.finish()
        assert link.written == len(LARGE)
        await link.send([b"last"])
        assert await received(peers[0], len(LARGE) + 1) == [*LARGE, b"last"]

    await on_a_socket(test)


async def test_nothing_is_begun_while_a_write_is_under_way():
    async def test(link: Link, peers: list[FeedPeer], ready: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link._stream.write, Write(client_frames(LARGE)))
            await trio.sleep(0.1)
            assert not link.begin([b"after"])
            assert link.written == 0
            ready.set()
            await link.finish()
        assert await received(peers[0], len(LARGE) + 1) == [*LARGE, b"after"]

    await on_a_socket(test)
