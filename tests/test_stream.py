"""The bytes of a link on a real socket: what the system takes at once, and what it does not."""

import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trustme
from support import listen, within

from ratebridge.errors import LinkFailed
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


async def on_a_socket(
    test: Callable[[Link, list[FeedPeer], trio.Event], Awaitable[None]], *, secure: bool = False
) -> None:
    """Run `test` on a link to a peer behind a real port, who reads when the Event is set."""
    authority = trustme.CA()
    server, client = (
        ssl.SSLContext(kind) for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    peers: list[FeedPeer] = []
    ready = trio.Event()
    async with within(20), trio.open_nursery() as nursery:
        serve = partial(serve_feed, tls=server if secure else None)
        port = await nursery.start(serve, partial(read_when, ready), peers)
        address = Address("127.0.0.1", port, "/", secure=secure)
        link = await open_link(nursery, address, network_dial(address, client))
        await test(link, peers, ready)
        nursery.cancel_scope.cancel()


async def received(peer: FeedPeer, count: int) -> list[bytes]:
    while len(peer.received) < count:
        await trio.sleep(0.01)  # it is a real socket
    return [one.text.encode() for one in peer.received]


@pytest.mark.parametrize("secure", [False, True], ids=["TCP", "TLS"])
async def test_a_batch_that_the_system_takes_at_once_leaves_without_a_write_in_the_queue(secure):
    async def test(link: Link, peers: list[FeedPeer], ready: trio.Event) -> None:
        assert link.put([b"one", b"two"]) is None
        ready.set()
        assert await received(peers[0], 2) == [b"one", b"two"]

    await on_a_socket(test, secure=secure)


@pytest.mark.parametrize("secure", [False, True], ids=["TCP", "TLS"])
async def test_what_the_system_takes_in_part_is_finished_before_anything_else_is_written(secure):
    async def test(link: Link, peers: list[FeedPeer], ready: trio.Event) -> None:
        whole = trio.Event()
        write = link.put(LARGE, whole.set)
        assert write is not None
        assert write.texts_taken() < len(LARGE)
        assert (write.texts_taken() > 0) is not secure, "where a record of TLS ends is not known"
        assert link.put([b"last"]) is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.receive, lambda _texts: None)  # so that the ping is read
            await trio.sleep(0.1)  # the pong is due, and has to wait
            assert not whole.is_set()
            ready.set()
            await whole.wait()
            assert await received(peers[0], len(LARGE) + 1) == [*LARGE, b"last"]
            nursery.cancel_scope.cancel()

    await on_a_socket(test, secure=secure)


async def test_a_bad_record_ends_the_link_whichever_side_meets_it_first():
    """TLS that has failed seals nothing more: a heartbeat that is put then is no crash."""

    async def test(link: Link, peers: list[FeedPeer], _ready: trio.Event) -> None:
        stream: Any = peers[0].stream
        await stream.transport_stream.socket.send(b"\x17\x03\x03\x00\x05never")
        with pytest.raises(LinkFailed, match="reset"):
            await link.receive(lambda _texts: None)
        link.put([b"too late"])

    await on_a_socket(test, secure=True)
