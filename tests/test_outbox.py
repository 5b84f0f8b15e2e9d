"""The outbox: what goes first, what outlives a link, and that nothing vanishes unsaid."""

from collections.abc import Callable

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support import BEAT, Recorder, within

from ratebridge.outbox import MOST_REPLIES, OLDEST_REPLY, WRITE_SIZE, Outbox, Reply


def reply(number: int, *, keep: bool = True, size: int = 0) -> Reply:
    return Reply(b"%d" % number, b"reply %d" % number + bytes(size), trio.current_time(), keep)


def frames(*numbers: int) -> list[bytes]:
    return [b"reply %d" % number for number in numbers]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def outbox(recorder):
    return Outbox(recorder)


async def test_replies_leave_in_their_order_and_all_in_one_write(outbox, autojump_clock):
    for number in range(3):
        outbox.add(reply(number))
    assert outbox.take() == frames(0, 1, 2)


async def test_a_heartbeat_goes_before_the_replies_that_wait(outbox, autojump_clock):
    outbox.add(reply(1))
    outbox.add_heartbeat()
    assert outbox.take() == [BEAT, *frames(1)]


async def test_heartbeats_that_could_not_be_written_are_one(outbox, autojump_clock):
    outbox.add_heartbeat()
    outbox.add_heartbeat()
    assert outbox.take() == [BEAT]
    outbox.sent(1)
    outbox.add(reply(1))
    assert outbox.take() == frames(1)


async def test_a_write_is_bounded_so_that_a_heartbeat_waits_for_little(outbox, autojump_clock):
    for number in range(10):
        outbox.add(reply(number, size=WRITE_SIZE // 4 - len(b"reply 0")))
    assert len(outbox.take()) == 4
    outbox.sent(4)
    outbox.add_heartbeat()
    heartbeat, *rest = outbox.take()
    assert heartbeat == BEAT
    assert len(rest) == 4


async def test_a_reply_larger_than_a_write_goes_alone(outbox, autojump_clock):
    outbox.add(reply(1, size=WRITE_SIZE))
    outbox.add(reply(2))
    assert len(outbox.take()) == 1
    outbox.sent(1)
    assert outbox.take() == frames(2)


@pytest.mark.parametrize("fill", [Outbox.add_heartbeat, lambda outbox: outbox.add(reply(1))])
async def test_the_writer_of_the_link_is_told_when_there_is_something_to_take(
    outbox, fill, autojump_clock
):
    told = []
    outbox.on_filled = lambda: told.append(len(outbox.take()))
    fill(outbox)
    assert told == [1]
    outbox.lose_link()
    fill(outbox)
    assert told == [1], "the writer of a link that is gone is told nothing"


async def test_there_may_be_nothing_to_take(outbox, autojump_clock):
    assert outbox.take() == []


async def test_what_was_not_written_goes_first_on_the_next_link_byte_for_byte(
    outbox, recorder, autojump_clock
):
    outbox.add(reply(1))
    outbox.add(reply(2))
    outbox.take()
    outbox.add(reply(3))
    outbox.lose_link()
    assert len(outbox) == 3
    assert outbox.take() == frames(1, 2, 3)
    assert recorder.lost == []


async def test_what_was_written_does_not_go_again(outbox, autojump_clock):
    outbox.add(reply(1))
    outbox.sent(len(outbox.take()))
    outbox.add(reply(2))
    outbox.lose_link()
    assert outbox.take() == frames(2)


@pytest.mark.parametrize("beats", [0, 1])
@pytest.mark.parametrize("written", [0, 1, 2, 3])
async def test_of_a_write_cut_short_the_part_that_left_does_not_go_again(
    outbox, beats, written, autojump_clock
):
    if beats:
        outbox.add_heartbeat()
    for number in range(3):
        outbox.add(reply(number))
    outbox.take()
    outbox.sent(written + beats)
    outbox.lose_link()
    outbox.add(reply(9))
    assert outbox.take() == frames(*range(written, 3), 9)


async def test_a_write_of_which_not_even_the_heartbeat_left_keeps_every_reply(
    outbox, autojump_clock
):
    outbox.add_heartbeat()
    outbox.add(reply(1))
    outbox.take()
    outbox.sent(0)
    outbox.lose_link()
    assert outbox.take() == frames(1)


async def test_a_heartbeat_does_not_outlive_its_link(outbox, autojump_clock):
    outbox.add_heartbeat()
    outbox.lose_link()
    outbox.add(reply(1))
    assert outbox.take() == frames(1)


async def test_overloaded_does_not_outlive_its_link_and_its_loss_is_told(
    outbox, recorder, autojump_clock
):
    outbox.add(reply(1, keep=False))
    outbox.add(reply(2))
    outbox.take()
    outbox.add(reply(3, keep=False))
    outbox.lose_link()
    assert recorder.lost == [
        (b"1", "it was for the link that is gone"),
        (b"3", "it was for the link that is gone"),
    ]
    assert outbox.take() == frames(2)


async def test_the_number_is_bounded_and_the_oldest_is_undelivered(
    outbox, recorder, autojump_clock
):
    for number in range(MOST_REPLIES + 2):
        outbox.add(reply(number))
    assert len(outbox) == MOST_REPLIES
    assert recorder.lost == [
        (b"0", "too many replies wait for a link"),
        (b"1", "too many replies wait for a link"),
    ]
    assert (outbox.take())[0] == b"reply 2"


async def test_those_being_written_count_and_are_not_undelivered(outbox, recorder, autojump_clock):
    outbox.add(reply(0))
    outbox.take()
    for number in range(1, MOST_REPLIES + 1):
        outbox.add(reply(number))
    assert len(outbox) == MOST_REPLIES
    assert [number for number, _ in recorder.lost] == [b"1"]


async def test_a_reply_of_a_minute_is_undelivered(outbox, recorder, autojump_clock):
    outbox.add(reply(1))
    await trio.sleep(0.5)
    outbox.add(reply(2))
    await trio.sleep(OLDEST_REPLY - 0.5)
    assert outbox.take() == frames(2)
    assert recorder.lost == [(b"1", "it was too old")]


async def test_there_is_nothing_to_take_when_all_that_was_there_is_too_old(
    outbox, recorder, autojump_clock
):
    outbox.add(reply(1))
    await trio.sleep(OLDEST_REPLY + 1)
    assert outbox.take() == []
    assert [number for number, _ in recorder.lost] == [b"1"]


async def lose(outbox: Outbox) -> None:
    outbox.lose_link()


async def send(outbox: Outbox) -> None:
    outbox.sent(len(outbox.take()))


async def outlive(outbox: Outbox) -> None:
    await trio.sleep(OLDEST_REPLY)
    outbox.add_heartbeat()
    outbox.take()


@pytest.mark.parametrize("leave", [send, lose, outlive])
async def test_waiting_for_empty_ends_when_the_last_reply_has_left_or_was_undelivered(
    outbox, leave, autojump_clock
):
    outbox.add(reply(1, keep=False))
    async with within(OLDEST_REPLY + 1), trio.open_nursery() as nursery:
        nursery.start_soon(outbox.wait_empty)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        await leave(outbox)


async def test_waiting_for_empty_waits_for_what_is_being_written(outbox, autojump_clock):
    outbox.add(reply(1))
    outbox.take()
    with trio.move_on_after(1) as scope:
        await outbox.wait_empty()
    assert scope.cancelled_caught


async def test_waiting_for_empty_returns_at_once_when_it_is(outbox, autojump_clock):
    with trio.fail_after(1):
        await outbox.wait_empty()


async def test_giving_up_all_tells_of_each_in_its_order(outbox, recorder, autojump_clock):
    outbox.add(reply(1))
    outbox.take()
    outbox.add(reply(2))
    outbox.discard_all("the end")
    assert recorder.lost == [(b"1", "the end"), (b"2", "the end")]
    assert len(outbox) == 0


@attrs.define
class Model:
    """What an outbox may do, by the rules: a list of numbers, and where each has gone."""

    waiting: list[tuple[int, bool]] = attrs.Factory(list)
    taken: list[tuple[int, bool]] = attrs.Factory(list)
    left: list[int] = attrs.Factory(list)
    lost: list[int] = attrs.Factory(list)


@given(st.lists(st.sampled_from("aaokbtscx"), max_size=60))
def test_every_reply_leaves_once_or_is_undelivered_once_and_in_its_order(steps):
    async def main():
        recorder = Recorder()
        outbox = Outbox(recorder)
        model = Model()
        numbers = iter(range(100))
        for step in steps:
            await take_step(step, outbox, model, numbers.__next__)
            waiting = [*model.taken, *model.waiting]
            assert len(outbox) == len(waiting)
            assert [int(number) for number, _ in recorder.lost] == model.lost
        assert model.left == sorted(model.left)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def take_step(
    step: str, outbox: Outbox, model: Model, next_number: Callable[[], int]
) -> None:
    if step in "ao":  # add a reply, or an "overloaded"
        number = next_number()
        outbox.add(reply(number, keep=step == "a"))
        model.waiting.append((number, step == "a"))
    elif step == "b":
        outbox.add_heartbeat()
    elif step == "k":  # the link is gone
        outbox.lose_link()
        everything = [*model.taken, *model.waiting]
        model.lost += [number for number, keep in everything if not keep]
        model.waiting = [(number, keep) for number, keep in everything if keep]
        model.taken = []
    elif step in "tscx" and not model.taken:  # a write, whole or cut short
        outbox.add_heartbeat()
        beat, *written = outbox.take()
        assert beat == BEAT
        assert written == frames(*(number for number, _ in model.waiting))
        model.taken, model.waiting = model.waiting, []
        count = {"t": 0, "s": len(written), "c": len(written) // 2, "x": 0}[step]
        if step != "t":
            outbox.sent(1 + count)
            model.left += [number for number, _ in model.taken[:count]]
            model.taken = model.taken[count:]
            if step != "s":
                await take_step("k", outbox, model, next_number)
