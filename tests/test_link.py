"""One websocket over memory streams: how it opens, what passes, and every way in which it ends."""

from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support import (
    ADDRESS,
    accept_and_hang,
    accept_and_listen,
    listen,
    never_answer,
    open_to,
    read_on,
    server_frame,
    take,
    take_slowly,
    within,
)
from wsproto.events import AcceptConnection

from ratebridge.errors import LinkFailed, Loss
from ratebridge.fakes.feed import FeedPeer, MemoryFeed, Script
from ratebridge.link.link import CLOSE_WITHIN, Link, open_link
from ratebridge.link.upgrade import UpgradeOptions

MAX_MESSAGE = 1024 * 1024  # bytes, as the contract has it


async def fail_to_open(script: Script) -> LinkFailed:
    """How an attempt at a feed in memory fails."""
    async with within(60), trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, script)
        with pytest.raises(LinkFailed) as caught:
            await open_link(nursery, ADDRESS, feed.dial)
        nursery.cancel_scope.cancel()
    return caught.value


async def take_until_the_end(link: Link) -> tuple[list[bytes], LinkFailed]:
    """All that comes, and how it ends."""
    texts = await read_on(link)
    with pytest.raises(LinkFailed) as caught:  # again and again
        await link.receive()
    return texts, caught.value


async def granted(peer: FeedPeer) -> bytes:
    """The response that grants the upgrade, not sent yet."""
    await peer.wait_for_request()
    return peer._protocol.send(AcceptConnection())


def answering(response: bytes, *, hold: bool = False) -> Script:
    """A script that answers the upgrade with these bytes, and goes, or holds the connection."""

    async def script(peer: FeedPeer) -> None:
        await peer.wait_for_request()
        await peer.send_raw(response)
        if hold:
            await trio.sleep_forever()

    return script


# Opening.


async def test_the_upgrade_brings_what_the_address_and_the_options_say(autojump_clock):
    asked: list[str] = []

    async def script(peer: FeedPeer) -> None:
        request = await peer.stream.receive_some(65536)
        asked.extend(request.decode().split("\r\n"))

    address = attrs.evolve(ADDRESS, authorization="Basic YTpi")
    options = UpgradeOptions(((b"X-Token", b"s3cret"),), "rates.v1")
    async with trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, script)
        with pytest.raises(LinkFailed):
            await open_link(nursery, address, feed.dial, options)
    assert asked[0] == "GET /stream HTTP/1.1"
    assert {"Host: feed.example", "X-Token: s3cret", "Authorization: Basic YTpi"} < {*asked}
    assert "Sec-WebSocket-Protocol: rates.v1" in asked


@pytest.mark.parametrize("size", [1, 3, 100000])
async def test_frames_behind_the_response_are_read_however_the_bytes_are_cut(size, autojump_clock):
    async def script(peer: FeedPeer) -> None:
        stream = await granted(peer) + server_frame(b"one") + server_frame(b"two")
        for at in range(0, len(stream), size):
            await peer.send_raw(stream[at : at + size])
        await listen(peer)

    async with open_to(script) as (link, _):
        assert await take(link, 2) == [b"one", b"two"]
        link.put([b"hello"])


SWITCHING = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n"
MALFORMED = "protocol-error: the peer does not speak websocket"
BROKEN_OFF = "reset: the peer broke off the upgrade"

# What a response of HTTP says is in test_upgrade.
BAD_UPGRADES = {
    "refused with a body that never comes": (
        b"HTTP/1.1 503 Busy\r\nContent-Length: 400\r\n\r\nbu",
        "rejected: the peer answered HTTP 503",
    ),
    "an extension forced upon us": (
        SWITCHING + b"Connection: Upgrade\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        MALFORMED,
    ),
    "a wrong Accept": (
        SWITCHING + b"Connection: Upgrade\r\nSec-WebSocket-Accept: bm8=\r\n\r\n",
        MALFORMED,
    ),
    "a header that is not ASCII": (SWITCHING + b"Connection: Upgrad\xe9\r\n\r\n", MALFORMED),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", MALFORMED),
    "200 KB of headers": (SWITCHING + b"X-Filler: 0123456789\r\n" * 9000 + b"\r\n", MALFORMED),
    "half a head": (SWITCHING, BROKEN_OFF),
}


@pytest.mark.parametrize("hold", [False, True], ids=["TCP closed", "TCP held"])
@pytest.mark.parametrize(("response", "told"), BAD_UPGRADES.values(), ids=BAD_UPGRADES.keys())
async def test_a_bad_answer_to_the_upgrade_fails_at_once(response, told, hold, autojump_clock):
    began = trio.current_time()
    failure = await fail_to_open(answering(response, hold=hold and told != BROKEN_OFF))
    assert trio.current_time() == began
    assert str(failure) == told


async def test_a_peer_who_refuses_before_it_is_asked_is_heard(autojump_clock):
    async def dial() -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        await server.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 9\r\n\r\n")
        await server.aclose()
        return client

    async with trio.open_nursery() as nursery:
        with pytest.raises(LinkFailed) as caught:
            await open_link(nursery, ADDRESS, dial)
    assert (caught.value.status, caught.value.retry_after) == (503, 9.0)


async def drip(peer: FeedPeer) -> None:
    for byte in await granted(peer):
        await peer.send_raw(bytes([byte]))
        await trio.sleep(0.5)


@pytest.mark.parametrize("script", [never_answer, drip])
async def test_an_upgrade_without_end_is_given_five_seconds(script, autojump_clock):
    began = trio.current_time()
    failure = await fail_to_open(script)
    assert trio.current_time() - began == 5.0
    assert failure.reason == "open-timeout"


# Open: what comes.


def sending(*pieces: bytes) -> Script:
    """A script that grants the upgrade, sends these bytes, and listens."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        for piece in pieces:
            await peer.send_raw(piece)
        await listen(peer)

    return script


async def test_texts_that_come_together_are_received_together(autojump_clock):
    texts = [b'{"a":1}', b"", "\u20ac".encode(), b"x" * 70000]
    stream = b"".join(map(server_frame, texts))
    async with open_to(sending(stream)) as (link, _):
        await trio.sleep(1)
        assert [await link.receive(), await link.receive()] == [texts[:3], texts[3:]]


async def test_unusual_messages_come_in_their_order_among_the_others(autojump_clock):
    stream = b"".join(
        server_frame(b"text")
        + server_frame(b"frag", 0x01)
        + server_frame(b"", 0x89)
        + server_frame(b"ment", 0x80)
        + server_frame(b"{}", 0x82)
        + server_frame(b"", 0x01)
        + server_frame(b"", 0x80)
        for _ in range(3)
    )
    async with open_to(sending(stream)) as (link, _):
        assert await take(link, 12) == [b"text", b"fragment", b"\0binary", b""] * 3


# Open: what leaves.


def stop_taking(stream: Any) -> None:
    """From now on a write to this memory stream goes nowhere and does not return."""
    stream.send_stream.send_all_hook = trio.sleep_forever


async def test_slow_writes_one_after_the_other_are_no_stalled_write(autojump_clock):
    async with open_to(accept_and_listen) as (link, feed), trio.open_nursery() as nursery:
        take_slowly(feed.streams[0], partial(trio.sleep, 1.9))
        nursery.start_soon(read_on, link)
        for _ in range(5):
            link.put([b"text"])
        await trio.sleep(10)
        assert len(feed.peers[0].received) == 5
        nursery.cancel_scope.cancel()


async def test_a_stall_of_our_own_in_the_middle_of_a_write_does_not_end_the_link(mock_clock):
    async with open_to(accept_and_listen) as (link, feed):
        written = trio.Event()

        async def stall() -> None:
            mock_clock.jump(3)  # a busy loop, or a machine that was suspended
            await trio.testing.wait_all_tasks_blocked()
            written.set()

        take_slowly(feed.streams[0], stall)
        whole: list[int] = []
        for number in range(10):
            link.put([b"text"], partial(whole.append, number))
        while len(whole) < 10:
            await trio.testing.wait_all_tasks_blocked()
        assert written.is_set()


async def test_a_write_not_taken_for_two_seconds_ends_the_link_and_no_byte_follows(autojump_clock):
    async with open_to(accept_and_listen) as (link, feed):
        half: Any = feed.streams[0].send_stream
        pass_on = half.send_all_hook

        async def stall() -> None:
            half.send_all_hook = pass_on  # whatever is written now would arrive
            await trio.sleep_forever()

        half.send_all_hook = stall
        began = trio.current_time()
        writes = [link.put([text]) for text in (b"cut", b"next")]
        _, failure = await take_until_the_end(link)
        assert 2.0 <= trio.current_time() - began <= 2.3
        assert failure.reason == "write-stalled"
        link.put([b"too late"])
        await trio.testing.wait_all_tasks_blocked()
        assert [write and write.texts_taken() for write in writes] == [0, 0]
        assert [got.text for got in feed.peers[0].received] == ["cut"]


async def test_a_flood_of_pings_costs_bounded_memory_and_the_reading_goes_on(autojump_clock):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await trio.sleep(1)
        for _ in range(300):
            await peer.send_raw(server_frame(b"p" * 125, 0x89))
        await peer.send("still heard")
        await trio.sleep_forever()

    async with open_to(script) as (link, feed):
        stop_taking(feed.streams[0])
        assert await take(link, 1) == [b"still heard"]
        assert sum(len(write.data) for write in link._stream._queue) < 17 * 1024


# The end, by the peer.


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return server_frame(code.to_bytes(2) + reason, 0x88)


ENDS = {
    "close 1000": (close_frame(1000), "closed", "", 1000),
    "close 4999": (close_frame(4999, b"ours"), "closed", "ours", 4999),
    "close without a code": (server_frame(b"", 0x88), "closed", "", 1005),
    "garbage": (b"\xff\xff garbage", "protocol-error", "Invalid opcode 0xf", 1002),
    "bad UTF-8": (
        server_frame(b"\xff\xfe"),
        "protocol-error",
        "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        1007,
    ),
    "a text over 1 MiB": (
        server_frame(b"x" * (MAX_MESSAGE + 1)),
        *("oversized", "a message of over 1 MiB", 1009),
    ),
}


@pytest.mark.parametrize(("stream", "reason", "detail", "code"), ENDS.values(), ids=ENDS.keys())
async def test_the_peers_end_of_the_link_is_known_by_its_reason_and_answered_at_once(
    stream, reason, detail, code, autojump_clock
):
    """A violation is answered by a close (RFC 6455, 7.1.7), and a close with its own code."""
    began = trio.current_time()
    async with open_to(sending(server_frame(b"before") + stream)) as (link, feed):
        texts, failure = await take_until_the_end(link)
        assert trio.current_time() == began
        assert texts == [b"before"]
        assert (failure.reason, failure.detail, failure.code) == (reason, detail, code)
        link.end(LinkFailed(Loss.STALE, "that comes later"))
        assert (await take_until_the_end(link))[1] is failure
        await trio.testing.wait_all_tasks_blocked()
        assert feed.peers[0].close_code == code


async def test_a_peer_at_fault_who_does_not_read_is_given_a_second(autojump_clock):
    async with open_to(sending(b"\xff\xff")) as (link, feed):
        stop_taking(feed.streams[0])
        began = trio.current_time()
        _, failure = await take_until_the_end(link)
        assert trio.current_time() - began == CLOSE_WITHIN
        assert failure.reason == "protocol-error"


async def test_others_run_while_unusual_frames_are_read(autojump_clock):
    """Empty fragments without end: thousands come with one read, and none is a heartbeat."""
    flood = server_frame(b"", 0x01) + server_frame(b"", 0x00) * 3_000 + server_frame(b"!", 0x80)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_to(sending(flood)) as (link, _), trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        assert await take(link, 1) == [b"!"]
        assert turns > 3_000 / 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stream", [b"", b"\x81", b"\x81\x7eab", b"\x81\x05hal", b"\x01\x04text"])
async def test_a_stream_that_breaks_off_is_a_reset_wherever_it_is_cut(stream, autojump_clock):
    told: list[bytes] = []

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.send_raw(server_frame(b"before") + stream)
        theirs: Any = peer.stream
        await theirs.send_eof()
        told.append(await theirs.receive_some(1000))

    async with open_to(script) as (link, _):
        texts, failure = await take_until_the_end(link)
        await trio.testing.wait_all_tasks_blocked()
        assert told == [b""], "1006 is never sent (RFC 6455, 7.4.1)"
    assert texts == [b"before"]
    assert (failure.reason, failure.code) == ("reset", 1006)


async def test_pongs_that_wait_leave_before_the_answer_to_a_close_and_nothing_behind_it(
    autojump_clock,
):
    read = bytearray()

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.send_raw(server_frame(b"", 0x89) + close_frame(1000))
        while data := await peer.stream.receive_some(1000):
            read.extend(data)

    async with open_to(script) as (link, _):
        await take_until_the_end(link)
        link.put([b"too late"])
    opcodes = [read[0], read[6]]
    assert opcodes == [0x8A, 0x88]
    assert len(read) == 6 + 8


async def test_a_failed_write_waits_for_the_reason_that_the_reader_comes_upon(autojump_clock):
    """The peer has closed for good: a write fails before its close frame has been read."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.send("a request")
        await peer.close(1011)

    async with open_to(script) as (link, _):
        await trio.sleep(1)
        link.put([b"text"])
        await trio.testing.wait_all_tasks_blocked()
        texts, failure = await take_until_the_end(link)
        assert (texts, failure.code) == ([b"a request"], 1011)


async def test_after_a_failed_write_the_reader_has_a_tenth_of_a_second(autojump_clock):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        stream: Any = peer.stream
        stream.receive_stream.close()
        while True:
            await peer.heartbeat()
            await trio.sleep(0.01)

    async with open_to(script) as (link, _):
        await trio.sleep(1)
        began = trio.current_time()
        link.put([b"text"])
        _, failure = await take_until_the_end(link)
        assert str(failure) == "reset: the peer broke off"
        assert trio.current_time() - began == pytest.approx(0.1)


# The end, by us.


async def close_while_receiving(link: Link) -> float:
    """Close as a session does; the seconds it took."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_on, link)
        await link.close(1001)
        nursery.cancel_scope.cancel()
    return trio.current_time() - began


async def talk_and_close(peer: FeedPeer) -> None:
    """A script that reads until a close comes, and has a lot to say before it answers."""
    await peer.accept()
    while (await peer.stream.receive_some(1000))[0] != 0x88:
        pass
    await peer.send_raw(server_frame(b"text") * 3 + server_frame(b"", 0x89) * 2)
    await peer.send_raw(server_frame(b"part", 0x01))
    await peer.send_raw(server_frame(b"part", 0x80) + close_frame(1001))
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        pytest.param(accept_and_listen, 0.0, id="an answer"),
        pytest.param(accept_and_hang, CLOSE_WITHIN, id="no answer"),
        pytest.param(FeedPeer.accept, 0.0, id="the peer has gone"),
        pytest.param(talk_and_close, 0.0, id="pings and texts before the answer"),
    ],
)
async def test_every_close_ends_within_a_second(script, seconds, autojump_clock):
    async with open_to(script) as (link, _):
        await trio.testing.wait_all_tasks_blocked()
        assert await close_while_receiving(link) == seconds


async def test_texts_go_on_coming_until_the_close_is_answered(autojump_clock):
    async with open_to(talk_and_close) as (link, _), trio.open_nursery() as nursery:
        nursery.start_soon(link.close, 1001)
        texts = await read_on(link)
    assert texts == [b"text"] * 3 + [b"partpart"]


async def test_a_close_waits_for_the_write_under_way_and_for_no_more_than_its_second(
    autojump_clock,
):
    async with open_to(accept_and_listen) as (link, feed):
        take_slowly(feed.streams[0], partial(trio.sleep, 0.5))
        link.put([b"under way"])
        await trio.testing.wait_all_tasks_blocked()
        assert await close_while_receiving(link) == 1.0
        [peer] = feed.peers
        assert [got.text for got in peer.received] == ["under way"]
        assert peer.close_code == 1001


async def test_cancelling_its_nursery_closes_the_stream_without_a_close_frame(autojump_clock):
    read: list[bytes] = []

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        read.append(bytes(await peer.stream.receive_some(100)))

    async with trio.open_nursery() as feed_nursery:
        feed = MemoryFeed(feed_nursery, script)
        async with trio.open_nursery() as link_nursery:
            await open_link(link_nursery, ADDRESS, feed.dial)
            await trio.testing.wait_all_tasks_blocked()
            link_nursery.cancel_scope.cancel()
    assert read == [b""]


async def test_a_failure_that_is_no_fault_of_the_peers_frames_gets_no_close(
    autojump_clock, monkeypatch
):
    async with open_to(accept_and_listen) as (link, feed):
        wanted = LinkFailed(Loss.CLIENT_CERTIFICATE, "it wants one")

        async def read() -> bytes:
            await trio.lowlevel.checkpoint()
            raise wanted

        monkeypatch.setattr(link._stream, "read", read)
        with pytest.raises(LinkFailed, match="it wants one"):
            await link.receive()
        assert feed.peers[0].close_code is None
