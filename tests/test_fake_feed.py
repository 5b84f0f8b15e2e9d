"""The stand-in feed."""

import pytest
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import CloseConnection, Request

from ratebridge.fakes.feed import FeedGone, FeedPeer


async def test_a_send_to_a_client_that_has_closed_finds_it_gone():
    # As when the task that receives has read the close frame, and another sends before it ends.
    client, server = trio.testing.memory_stream_pair()
    protocol = WSConnection(ConnectionType.CLIENT)
    peer = FeedPeer(server)
    await client.send_all(protocol.send(Request(host="feed.example", target="/")))
    await peer.accept()
    protocol.receive_data(bytes(await client.receive_some()))
    assert list(protocol.events())
    await client.send_all(protocol.send(CloseConnection(code=1000)))
    with pytest.raises(FeedGone):
        await peer.receive()
    with pytest.raises(FeedGone):
        await peer.heartbeat()
