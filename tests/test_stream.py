"""The bytes of a link on a real socket: what the system takes at once, and what it does not."""

import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from support import listen, within

from ratebridge.fakes.feed import FeedPeer, serve_feed
from ratebridge.link.address import Address
from ratebridge.link.dial import network_dial
from ratebridge.link.link import Link, open_link

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


async def test_a_batch_that_the_system_takes_at_once_leaves_without_a_write_in_the_queue():
    async def test(link: Link, peers: list[FeedPeer], ready: trio.Event) -> None:
        assert link.put([b"one", b"two"]) is None
        ready.set()
        assert await received(peers[0], 2) == [b"one", b"two"]

    await on_a_socket(test)


async def test_what_the_system_takes_in_part_is_finished_before_anything_else_is_written():
    async def test(link: Link, peers: list[FeedPeer], ready: trio.Event) -> None:
        whole = trio.Event()
        write = link.put(LARGE, whole.set)
        assert write is not None
        assert 0 < write.texts_taken() < len(LARGE)
        assert link.put([b"last"]) is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.receive, lambda _texts: None)  # so that the ping is read
            await trio.sleep(0.1)  # the pong is due, and has to wait
            assert not whole.is_set()
            ready.set()
            await whole.wait()
            assert await received(peers[0], len(LARGE) + 1) == [*LARGE, b"last"]
            nursery.cancel_scope.cancel()

    await on_a_socket(test)
