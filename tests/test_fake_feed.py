"""The stand-in feed."""

import pytest
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import CloseConnection, Event, Ping, Pong, Request, TextMessage

from ratebridge.fakes.feed import FeedGone, FeedPeer, StandIn, request_text


class Client:
    """The other end of a `FeedPeer`, over memory, and open."""

    def __init__(self) -> None:
        self.stream, server = trio.testing.memory_stream_pair()
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.peer = FeedPeer(server)

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self.protocol.send(event))

    async def receive(self) -> list[Event]:
        self.protocol.receive_data(bytes(await self.stream.receive_some()))
        return list(self.protocol.events())

    async def open(self) -> None:
        await self.send(Request(host="feed.example", target="/"))
        await self.peer.accept()
        assert await self.receive()


async def test_a_send_to_a_client_that_has_closed_finds_it_gone():
    # As when the task that receives has read the close frame, and another sends before it ends.
    client = Client()
    await client.open()
    await client.send(CloseConnection(code=1000))
    with pytest.raises(FeedGone):
        await client.peer.receive()
    with pytest.raises(FeedGone):
        await client.peer.heartbeat()


async def test_a_client_that_speaks_no_ascii_is_gone_like_any_other():
    client = Client()
    await client.stream.send_all(b"GET / HTTP/1.1\r\nHost: \xe9\r\nUpgrade: websocket\r\n\r\n")
    with pytest.raises(FeedGone):
        await client.peer.accept()


async def test_a_ping_is_answered():
    client = Client()
    await client.open()
    await client.send(Ping(b"there?"))
    await client.send(TextMessage("{}"))
    await client.peer.receive()
    assert await client.receive() == [Pong(b"there?")]


async def test_the_stand_in_is_done_when_all_it_asked_is_answered_each_once(autojump_clock):
    seen: list[tuple[str, str]] = []
    requests = [request_text(1, stake) for stake in ("1.5", "2.5")]
    feed = StandIn(iter(requests), rate=100, on_reply=lambda *pair: seen.append(pair))
    client = Client()

    async def reply(number: int) -> None:
        await client.send(TextMessage(f'{{"type":"error","id":{number},"message":"no"}}'))
        await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        await client.send(Request(host="feed.example", target="/"))
        nursery.start_soon(feed, client.peer)
        assert await client.receive()
        await trio.sleep(1)
        assert feed.sent == 2
        for noise in ("hello", "[]", '{"type":"message"}', "[" * 100_000):
            await client.send(TextMessage(noise))
        await reply(7)  # nobody asked
        await reply(1)
        assert not feed.done.is_set()
        await reply(1)  # equal ids are separate requests
        assert feed.done.is_set()
        nursery.cancel_scope.cancel()
    assert seen == [(request, '{"type":"error","id":1,"message":"no"}') for request in requests]
    assert (feed.replies, feed.errors) == (3, 3)


async def test_a_stand_in_with_nothing_to_ask_is_done_at_once(autojump_clock):
    client = Client()
    stand_in = StandIn(iter(()), rate=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stand_in, client.peer)
        await client.send(Request(host="feed.example", target="/"))
        await stand_in.done.wait()
        nursery.cancel_scope.cancel()


async def test_a_reset_breaks_a_connection_in_memory_too():
    client = Client()
    await client.peer.reset()
    assert await client.stream.receive_some() == b""
