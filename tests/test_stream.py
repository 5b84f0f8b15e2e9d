"""The bytes of a link on a real socket: what the system takes at once, and what it does not."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import attrs
import pytest
import trio
from support import listen, open_on_a_socket, read_on, socket_pair, within

from ratebridge.errors import LinkFailed
from ratebridge.fakes.feed import FeedPeer
from ratebridge.link import stream as stream_module
from ratebridge.link.framing import client_frames, masking_keys
from ratebridge.link.stream import LinkStream
from ratebridge.link.tls import READ_SIZE

LARGE = [b"%d " % number + b"x" * 10_000 for number in range(300)]  # more than a socket takes
over = pytest.mark.parametrize("secure", [False, True], ids=["TCP", "TLS"])


@attrs.define
class ReadLate:
    """The script of a peer who pings, and reads when `ready` is set."""

    ready: trio.Event = attrs.Factory(trio.Event)

    async def __call__(self, peer: FeedPeer) -> None:
        await peer.accept()
        await peer.ping(b"are you there?")
        await self.ready.wait()
        await listen(peer)


async def received(peer: FeedPeer, count: int) -> list[bytes]:
    while len(peer.received) < count:
        await trio.lowlevel.checkpoint()
    return [one.text.encode() for one in peer.received]


@over
async def test_a_batch_that_the_system_takes_at_once_leaves_without_a_write_in_the_queue(secure):
    script = ReadLate()
    async with open_on_a_socket(script, secure=secure) as (link, feed):
        assert link.put([b"one", b"two"]) is None
        script.ready.set()
        assert await received(feed.peers[0], 2) == [b"one", b"two"]


@over
async def test_what_the_system_takes_in_part_is_finished_before_anything_else_is_written(secure):
    script = ReadLate()
    async with open_on_a_socket(script, secure=secure) as (link, feed):
        whole = trio.Event()
        write = link.put(LARGE, whole.set)
        assert write is not None
        assert write.texts_taken() < len(LARGE)
        assert (write.texts_taken() > 0) is not secure, "where a record of TLS ends is not known"
        assert link.put([b"last"]) is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on, link)  # so that the ping is read
            await trio.testing.wait_all_tasks_blocked(0.01)  # the pong is due, and has to wait
            assert not whole.is_set()
            script.ready.set()
            await whole.wait()
            assert await received(feed.peers[0], len(LARGE) + 1) == [*LARGE, b"last"]
            nursery.cancel_scope.cancel()


@attrs.define
class System:
    """Takes no more than `room` bytes of what is written; a dead one refuses even those."""

    room: int
    dead: bool = False
    taken: bytearray = attrs.Factory(bytearray)

    def write(self, fd: int, data: bytes) -> int:
        if self.dead or fd < 0:
            raise BrokenPipeError
        if not self.room:
            raise BlockingIOError
        size = min(self.room, len(data))
        self.taken += data[:size]
        self.room -= size
        return size


@pytest.fixture
def system(monkeypatch):
    taking = System(0)
    monkeypatch.setattr(stream_module, "os", SimpleNamespace(write=taking.write))
    return taking


@pytest.fixture
async def stream():
    ours, theirs = socket_pair()
    async with ours, theirs:
        yield LinkStream(ours)


TEXTS = [b"one", b"x" * 200, b"three"]
FRAMES = client_frames(TEXTS, masking_keys())
ENDS = [9, 9 + 208, 9 + 208 + 11]


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_a_text_has_left_when_the_system_has_the_last_byte_of_its_frame(
    texts, more, system, stream
):
    system.room = ENDS[texts - 1] + more
    write = stream.put(FRAMES, TEXTS)
    assert [*stream._queue] == [write]
    assert write.texts_taken() == (texts - 1 if more < 0 else texts)


@pytest.mark.parametrize("at_first", [0, 1, ENDS[0], len(FRAMES) - 1])
async def test_a_write_cut_short_or_refused_whole_is_gone_on_with_where_it_was_cut(
    at_first, system, stream
):
    system.room = at_first
    done: list[int] = []
    first = stream.put(FRAMES, TEXTS, lambda: done.append(1))
    assert first.taken == at_first
    system.room = 1000
    second = stream.put(b"second", on_whole=lambda: done.append(2))
    assert (second.taken, bytes(system.taken)) == (0, FRAMES[:at_first]), "in spite of the room"
    async with within(5), trio.open_nursery() as nursery:
        nursery.start_soon(stream.write_queued)
        await stream.wait_written()
        assert (system.taken, done) == (FRAMES + b"second", [1, 2])
        assert not stream._queue
        nursery.cancel_scope.cancel()


async def test_a_write_that_fails_is_met_by_who_waits_for_it_and_stays_at_the_head(system, stream):
    system.dead = True
    write = stream.put(FRAMES, TEXTS)
    assert write.taken == 0
    async with within(5), trio.open_nursery() as nursery:
        nursery.start_soon(stream.write_queued)
        for _ in range(2):  # while the write is tried, and afterwards
            with pytest.raises(trio.BrokenResourceError):
                await stream.wait_written()
        nursery.cancel_scope.cancel()
    assert [*stream._queue] == [write]


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_what_the_system_had_not_taken_at_the_end_is_not_written_later(turns, system, stream):
    """Those replies go on the next link: written here as well, they would be doubled."""
    system.room = ENDS[0] + 1
    write = stream.put(FRAMES, TEXTS)
    async with within(5), trio.open_nursery() as nursery:
        nursery.start_soon(stream.write_queued)
        for _ in range(turns):  # the socket is writable all the time
            await trio.lowlevel.checkpoint()
        stream.end()
        system.room = 1000
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert write.texts_taken() == 1
    assert system.taken == FRAMES[: ENDS[0] + 1]


async def test_a_link_that_has_ended_takes_no_reply_though_the_system_would():
    async def go_and_listen(peer: FeedPeer) -> None:
        await peer.accept()
        stream: Any = peer.stream
        await stream.send_eof()
        await trio.sleep_forever()

    async with open_on_a_socket(go_and_listen) as (link, _):
        assert await read_on(link) == []
        assert link.put([b"too late"]) is not None


async def test_nothing_is_sealed_behind_a_close():
    """Or the records of TLS would have a gap, were anything written all the same."""
    script = ReadLate()
    async with open_on_a_socket(script, secure=True) as (link, _):
        await link._stream.send_close(b"close")
        write = link.put([b"too late"])
        assert write is not None
        assert b"too late" not in write.data
        assert len(write.texts) == 1
        assert write.texts_taken() == 0


async def test_once_tls_has_failed_nothing_is_sealed_and_the_writer_ends_the_link():
    """What is put then waits for the next one."""
    script = ReadLate()
    async with open_on_a_socket(script, secure=True) as (link, _):
        tls: Any = link._stream._tls
        await trio.testing.wait_all_tasks_blocked()  # the writer waits, too
        with pytest.raises(trio.BrokenResourceError):
            tls.unseal(b"\x17\x03\x03\x00\x05never")  # a record that is none
        write = link.put([b"too late"])
        assert write is not None
        assert write.texts_taken() == 0
        with pytest.raises(trio.BrokenResourceError):
            await link._stream.wait_written()
        await link._ended.wait()  # though nobody reads


# What comes.


async def test_a_socket_that_seems_readable_and_has_nothing_is_waited_for(monkeypatch):
    ours, theirs = socket_pair()
    async with ours, theirs:
        await theirs.send_all(b"at last")
        read = Mock(side_effect=[BlockingIOError, b"at last"])
        monkeypatch.setattr(stream_module, "os", SimpleNamespace(read=read))
        assert await LinkStream(ours).read() == b"at last"


async def test_of_two_reads_in_a_row_one_lets_other_tasks_run():
    ours, theirs = socket_pair()
    async with ours, theirs, trio.open_nursery() as nursery:
        stream = LinkStream(ours)
        turns: list[None] = []
        await theirs.send_all(bytes(4 * READ_SIZE))

        async def take_turns():
            while True:
                turns.append(None)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(take_turns)
        for number in range(2):
            for _ in range(2):
                assert len(await stream.read()) == READ_SIZE
            assert len(turns) >= number  # in one turn of the loop, which runs first is chance
        nursery.cancel_scope.cancel()


def transport(peer: FeedPeer) -> trio.SocketStream:
    """The socket below TLS."""
    stream: Any = peer.stream
    socket: trio.SocketStream = stream.transport_stream
    return socket


async def go(_peer: FeedPeer) -> None:
    await trio.lowlevel.checkpoint()


async def say_goodbye_and_stay(peer: FeedPeer) -> None:
    """TLS has ended by its close_notify, and TCP has not."""
    await trio.testing.wait_all_tasks_blocked()
    stream: Any = peer.stream
    with trio.move_on_after(0.01):
        await stream.unwrap()
    await trio.sleep_forever()


async def talk_no_tls(peer: FeedPeer) -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)
    await transport(peer).send_all(b"\x00" * 100)
    await trio.sleep_forever()


@pytest.mark.parametrize("end", [go, say_goodbye_and_stay, talk_no_tls])
async def test_however_tls_ends_it_is_a_reset_and_what_came_before_is_received(end):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.send("before")
        await end(peer)

    async with open_on_a_socket(script, secure=True) as (link, _):
        assert await link.receive() == [b"before"]
        with pytest.raises(LinkFailed, match="reset"):
            await link.receive()


async def test_what_tls_has_to_answer_leaves_with_the_next_write():
    asked = trio.Event()

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        stream: Any = peer.stream
        stream._ssl_object.verify_client_post_handshake()
        await peer.send("who are you?")
        asked.set()
        await listen(peer)

    async with open_on_a_socket(script, secure=True) as (link, feed):
        await asked.wait()
        assert await link.receive() == [b"who are you?"]
        link.put([b"nobody"])  # which the peer cannot read unless it has understood the answer
        assert await received(feed.peers[0], 1) == [b"nobody"]


async def test_a_close_of_the_stream_leaves_the_network_to_its_owner(stream):
    await stream.aclose()
    assert stream.put(b"still open") is None
