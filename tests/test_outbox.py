"""The outbox: the order of replies, what outlives a connection, and what is undelivered."""

from collections.abc import Callable, Sequence

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support import Recorder, virtual_clock, within

from ratebridge.link.framing import client_frames, masking_keys
from ratebridge.link.stream import Write
from ratebridge.outbox import MOST_BYTES, WRITE_SIZE, Outbox, Reply

# As the contract has them.
MOST_REPLIES = 10_000
OLDEST_REPLY = 60.0  # s


def reply(number: int, *, size: int = 0) -> Reply:
    return Reply(b"%d" % number, b"reply %d" % number + bytes(size), trio.current_time())


def frames(*numbers: int) -> list[bytes]:
    return [b"reply %d" % number for number in numbers]


@attrs.define
class Line:
    """A link that takes what it is given at once, or, if it is slow, when it is told to."""

    slow: bool = False
    sent: list[list[bytes]] = attrs.Factory(list)
    write: Write | None = None

    def put(self, texts: Sequence[bytes], on_whole: Callable[[], None]) -> Write | None:
        assert self.write is None, "one write at a time"
        self.sent.append(list(texts))
        if self.slow:
            self.write = Write(client_frames(texts, masking_keys()), texts, on_whole)
        return self.write

    def take(self, size: int | None = None) -> None:
        """Take so many bytes of the write, or all that is left of it."""
        write, self.write = self.write, None
        assert write is not None
        write.taken = len(write.data) if size is None else size
        if size is None:
            assert write.on_whole is not None
            write.on_whole()


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def outbox(recorder):
    return Outbox(recorder)


def next_link(outbox: Outbox) -> list[bytes]:
    """What leaves first when the link is replaced by one that takes all."""
    outbox.lose_link()
    line = Line()
    outbox.attach(line.put)
    return line.sent[0] if line.sent else []


@pytest.mark.parametrize("size", [65, 125, 126, 1000])
async def test_the_replies_of_one_write_are_one_record_of_tls(size, outbox, autojump_clock):
    """Of several records the peer could get the first, and its replies again on the next link."""
    line = Line()
    outbox.attach(line.put)
    outbox.add(*(reply(1, size=size) for _ in range(2 * WRITE_SIZE // size)))
    longest = max(len(client_frames(batch, masking_keys())) for batch in line.sent)
    assert 12 * 1024 < longest <= 16 * 1024  # RFC 8446, 5.1


async def test_a_bug_in_the_link_loses_no_reply(outbox, autojump_clock):
    def broken(texts: Sequence[bytes], on_whole: Callable[[], None]) -> Write | None:
        raise ZeroDivisionError

    outbox.attach(broken)
    with pytest.raises(ZeroDivisionError):
        outbox.add(reply(1), reply(2))
    assert next_link(outbox) == frames(1, 2)
    assert len(outbox) == 0


@pytest.mark.parametrize(
    "size", [0, MOST_BYTES // 128 - len(b"reply 100")], ids=["number", "bytes"]
)
async def test_number_and_bytes_are_bounded_and_the_oldest_are_dropped(
    size, outbox, recorder, autojump_clock
):
    most = 128 if size else MOST_REPLIES
    for number in range(100, most + 102):
        outbox.add(reply(number, size=size))
        if number < 103:  # what comes back from a lost link counts as before
            outbox.attach(Line(slow=True).put)
            outbox.lose_link()
    assert len(outbox) == most
    why = "too many replies wait for a link"
    assert recorder.lost == [(b"100", why), (b"101", why)]


async def leave(outbox: Outbox) -> None:
    outbox.attach(Line().put)
    outbox.lose_link()


async def outlive(outbox: Outbox) -> None:
    await trio.sleep(OLDEST_REPLY)
    await leave(outbox)


@pytest.mark.parametrize("go", [leave, outlive])
async def test_what_has_left_or_was_dropped_takes_no_room(go, outbox, recorder, autojump_clock):
    for _ in range(2):
        outbox.add(*(reply(n, size=MOST_BYTES // 4) for n in range(3)))
        await go(outbox)
    assert len(outbox) == 0
    assert "too many replies wait for a link" not in {why for _, why in recorder.lost}


async def test_those_being_written_count_and_are_not_dropped(outbox, recorder, autojump_clock):
    outbox.attach(Line(slow=True).put)
    for number in range(MOST_REPLIES + 1):
        outbox.add(reply(number))
    assert len(outbox) == MOST_REPLIES
    assert [number for number, _ in recorder.lost] == [b"1"]


async def test_a_reply_of_a_minute_is_undelivered_though_no_link_comes(
    outbox, recorder, autojump_clock
):
    outbox.add(reply(1))
    await trio.sleep(0.5)
    outbox.add(reply(2))
    with trio.move_on_after(OLDEST_REPLY + 0.9):
        await outbox.drop_the_old()
    assert recorder.lost == [(b"1", "it was too old"), (b"2", "it was too old")]


async def test_a_link_gets_no_reply_of_a_minute(outbox, recorder, autojump_clock):
    outbox.add(reply(1))
    await trio.sleep(0.5)
    outbox.add(reply(2))
    await trio.sleep(OLDEST_REPLY - 0.5)
    line = Line(slow=True)
    outbox.attach(line.put)
    outbox.add(reply(3))
    await trio.sleep(OLDEST_REPLY)
    outbox.add(reply(4))
    line.take()
    assert line.sent == [frames(2), frames(4)]
    assert recorder.lost == [(b"1", "it was too old"), (b"3", "it was too old")]


@pytest.mark.parametrize("go", [leave, outlive])
async def test_waiting_for_empty_ends_when_the_last_reply_has_left_or_was_dropped(
    outbox, go, autojump_clock
):
    outbox.add(reply(1))
    async with within(OLDEST_REPLY + 1), trio.open_nursery() as nursery:
        nursery.start_soon(outbox.wait_empty)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        await go(outbox)


async def test_waiting_for_empty_waits_for_what_is_being_written(outbox, autojump_clock):
    outbox.attach(Line(slow=True).put)
    outbox.add(reply(1))
    with trio.move_on_after(1) as scope:
        await outbox.wait_empty()
    assert scope.cancelled_caught


@given(st.lists(st.sampled_from("aaawc"), max_size=60), st.data())
def test_every_reply_leaves_once_or_is_undelivered_once_and_in_its_order(steps, data):
    """Against a model: lists of numbers, those waiting and those that have left."""

    async def main() -> None:
        recorder = Recorder()
        outbox = Outbox(recorder)
        line = Line(slow=True)
        outbox.attach(line.put)
        waiting: list[int] = []
        left: list[int] = []
        for number, step in enumerate(steps):
            if step == "a":
                waiting.append(number)
                outbox.add(reply(number))
            elif line.write is not None:
                # The system takes the write whole, or the link is gone in the middle of it.
                most = len(line.sent[-1])
                taken = most if step == "w" else data.draw(st.integers(0, most))
                left += waiting[:taken]
                del waiting[:taken]
                if step == "w":
                    line.take()
                else:
                    line.take(len(client_frames(line.sent[-1][:taken], masking_keys())))
                    outbox.lose_link()
                    line = Line(slow=True)
                    outbox.attach(line.put)
            if waiting:
                sent = line.sent[-1]
                assert sent == frames(*waiting[: len(sent)])
            assert len(outbox) == len(waiting)
        assert left == sorted(left)
        outbox.discard_all("the end")
        assert recorder.lost == [(b"%d" % number, "the end") for number in waiting]

    trio.run(main, clock=virtual_clock(autojump_threshold=0))
