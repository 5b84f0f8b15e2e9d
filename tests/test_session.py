"""One connection: the heartbeats, the watchdog, the replies, the stop."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from math import inf
from typing import Any
from unittest.mock import patch

import attrs
import pytest
import trio
from support import (
    ADDRESS,
    BEAT,
    NO_CHAIN,
    NOW,
    Dialled,
    Recorder,
    accept_and_beat,
    accept_and_listen,
    ask,
    beat,
    euro_bridge,
    listen,
    server_frame,
    within,
)

from ratebridge.bridge import Bridge, Moment
from ratebridge.fakes.feed import FeedPeer, MemoryFeed, Script
from ratebridge.link.link import open_link
from ratebridge.messages import Heartbeat
from ratebridge.observer import Converted, Observer
from ratebridge.outbox import Outbox, Reply
from ratebridge.session import LARGE, HeartbeatSettings, Session, SessionEnd


@attrs.define
class Life:
    """A session that runs, and what is around it. `end` is there when it has ended, `at` when."""

    session: Session
    outbox: Outbox
    recorder: Recorder
    dial: Dialled
    opened: float
    end: SessionEnd | None = None
    at: float | None = None
    over: trio.Event = attrs.Factory(trio.Event)

    @property
    def peer(self) -> FeedPeer:
        return self.dial.feed.peers[0]

    @property
    def replies(self) -> list[Any]:
        messages = [got.message for got in self.peer.received]
        return [message["id"] for message in messages if message["type"] == "message"]

    async def run(self) -> None:
        self.end = await self.session.run()
        self.at = trio.current_time()
        self.over.set()


@asynccontextmanager
async def living(script: Script, heartbeat: HeartbeatSettings | None = None) -> AsyncIterator[Life]:
    """A session with a feed in memory that plays `script`."""
    async with within(600), trio.open_nursery() as nursery:
        recorder = Recorder()
        outbox = Outbox(recorder)
        dial = Dialled(MemoryFeed(nursery, script))
        link = await open_link(nursery, ADDRESS, dial)
        bridge = euro_bridge(nursery, outbox)
        session = Session(link, bridge, outbox, heartbeat or HeartbeatSettings(), recorder)
        life = Life(session, outbox, recorder, dial, trio.current_time())
        nursery.start_soon(life.run)
        yield life
        nursery.cancel_scope.cancel()


async def lifetime(
    script: Script, heartbeat: HeartbeatSettings | None = None
) -> tuple[SessionEnd, float]:
    """How a session with this peer ends, and after how many seconds."""
    async with living(script, heartbeat) as life:
        await life.over.wait()
    assert life.end is not None
    assert life.at is not None
    return life.end, life.at - life.opened


# The heartbeat.


async def test_a_heartbeat_leaves_at_once_and_then_each_second(autojump_clock):
    async with living(accept_and_beat) as life:
        await trio.sleep(10.5)
        beats = [got.at - life.opened for got in life.peer.received]
    assert beats == pytest.approx(list(range(11)), abs=0.01)


async def test_a_heartbeat_missed_in_a_stall_is_not_sent_later(mock_clock):
    async with living(accept_and_beat) as life:
        await go_on(mock_clock, 2.5)
        mock_clock.jump(1.8)
        await go_on(mock_clock, 3)
        gaps = [later.at - sooner.at for sooner, later in pairwise(life.peer.received)]
    assert len(gaps) > 3
    assert min(gaps) > 0.9


async def go_on(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let time pass without a stall."""
    clock.autojump_threshold = 0
    await trio.sleep(seconds)
    clock.autojump_threshold = inf


# The watchdog.


@attrs.frozen
class Silence:
    """A peer, and the bounds in seconds within which the link to it is refreshed, from its open."""

    script: Script
    soonest: float
    latest: float


def beating(*times: float, and_requests: bool = False, and_pings: bool = False) -> Script:
    """A script that beats at these times, and sends the other things all the time."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, peer)
            if and_requests:
                nursery.start_soon(keep_asking, peer)
            if and_pings:
                nursery.start_soon(keep_pinging, peer)
            began = trio.current_time()
            for time in times:
                await trio.sleep_until(began + time)
                await peer.heartbeat()

    return script


async def keep_asking(peer: FeedPeer) -> None:
    while True:
        await peer.send(ask(1))
        await trio.sleep(0.02)


async def keep_pinging(peer: FeedPeer) -> None:
    while True:
        await peer.ping()
        await trio.sleep(0.1)


async def deaf(peer: FeedPeer) -> None:
    await peer.accept()
    await trio.sleep_forever()


async def say_other_things(peer: FeedPeer) -> None:
    await peer.accept()
    while True:
        await peer.send('{"type":"heartbeat!"}')
        await peer.send('{"type":"message","id":1,"payload":{"type":"heartbeat"}}')
        await peer.send('["heartbeat"]')
        await trio.sleep(0.1)


SILENT = {
    "no first heartbeat": Silence(beating(), 2.0, 2.3),
    "one heartbeat": Silence(beating(0.5), 2.5, 2.8),
    "beats that stop": Silence(beating(0, 1, 2, 3), 5.0, 5.3),
    "requests go on": Silence(beating(0, 1, and_requests=True), 3.0, 3.3),
    "pings go on": Silence(beating(0, 1, and_pings=True), 3.0, 3.3),
    "neither reads nor writes": Silence(deaf, 2.0, 2.3),
    "nothing that is a heartbeat": Silence(say_other_things, 2.0, 2.3),
    "a beat too late": Silence(beating(0, 2.2), 2.0, 2.3),
}


@pytest.mark.parametrize("silence", SILENT.values(), ids=SILENT.keys())
async def test_a_link_without_heartbeats_for_two_seconds_is_refreshed(silence, autojump_clock):
    end, seconds = await lifetime(silence.script)
    assert end.cause.reason == "stale"
    assert silence.soonest <= seconds <= silence.latest
    assert end.uptime == seconds


async def test_the_reason_says_how_long_the_silence_was(autojump_clock):
    end, _ = await lifetime(beating(0, 1))
    assert end.cause.detail == "no heartbeat for 2.1 s"


@pytest.mark.parametrize("interval", [0.1, 1.0, 1.9])
async def test_a_link_with_a_heartbeat_within_two_seconds_lives_on(interval, autojump_clock):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, peer, interval)
            await listen(peer)

    async with living(script) as life:
        await trio.sleep(120)
        assert not life.over.is_set()


async def test_a_heartbeat_in_the_last_moment_saves_the_link(autojump_clock):
    end, seconds = await lifetime(beating(0, 2.05, 4.1, 6.15))
    assert end.cause.reason == "stale"
    assert 8.15 <= seconds <= 8.3


async def test_a_heartbeat_is_one_however_it_is_spelt_or_cut(autojump_clock):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        for spelling in (
            server_frame(b' {"type" : "heartbeat", "at": 1}'),
            server_frame(b'{"type":"he\\u0061rtbeat"}'),
            server_frame(BEAT[:5], 0x01) + server_frame(BEAT[5:], 0x80),
        ):
            for at in range(len(spelling)):
                await peer.send_raw(spelling[at : at + 1])
            await trio.sleep(1)
        await trio.sleep_forever()

    end, seconds = await lifetime(script)
    assert end.cause.reason == "stale"
    assert 4.0 <= seconds <= 4.3


async def test_the_heartbeat_interval_and_timeout_can_be_set(autojump_clock):
    async with living(beating(0, 0.1, 0.2), HeartbeatSettings(0.1, 0.5)) as life:
        await life.over.wait()
        assert life.at is not None
        assert 0.7 <= life.at - life.opened <= 0.9
        gaps = [later.at - sooner.at for sooner, later in pairwise(life.peer.received)]
    assert gaps == pytest.approx([0.1] * len(gaps))
    assert len(gaps) >= 5


async def test_the_gaps_between_heartbeats_are_reported(autojump_clock):
    async with living(beating(0.25, 1.0, 2.5)) as life:
        await life.over.wait()
    assert life.recorder.gaps == pytest.approx([0.25, 0.75, 1.5])
    assert life.end is not None
    assert life.end.had_heartbeat


async def test_a_session_without_a_heartbeat_says_so(autojump_clock):
    end, _ = await lifetime(beating())
    assert not end.had_heartbeat


# Our own stalls.


def arrive(life: Life, data: bytes) -> None:
    """Let bytes arrive while no task runs."""
    life.dial.streams[0].receive_stream.put_data(data)


@pytest.mark.parametrize("unread", [1, 3], ids=["a heartbeat unread", "heartbeats unread"])
@pytest.mark.parametrize("stall", [1.7, 2.0, 2.2, 3.0, 30.0])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
async def test_a_stall_of_our_own_does_not_cut_a_healthy_link(stall, unread, turns, mock_clock):
    async with living(accept_and_beat) as life:
        await go_on(mock_clock, 3.4)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        arrive(life, server_frame(BEAT) * unread)
        mock_clock.jump(stall)
        await go_on(mock_clock, 6)
        assert not life.over.is_set()
        assert life.recorder.lost == []


async def test_after_a_stall_with_nothing_to_read_a_peer_gets_one_period(mock_clock):
    async with living(beating(0)) as life:
        await go_on(mock_clock, 1)
        mock_clock.jump(3)
        stalled_until = trio.current_time()
        await go_on(mock_clock, 1.9)
        assert not life.over.is_set()
        await go_on(mock_clock, 0.5)
        assert life.end is not None
        assert life.end.cause.reason == "stale"
        assert life.at is not None
        assert 1.999 < life.at - stalled_until <= 2.2
        assert life.recorder.excuses == [pytest.approx(2.0, abs=0.1)]


async def test_a_peer_who_was_suspended_with_us_is_given_time_to_beat(mock_clock):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.heartbeat()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, peer)
            await trio.sleep(5)
            await beat(peer)

    async with living(script) as life:
        await go_on(mock_clock, 1)
        mock_clock.jump(3.2)
        await go_on(mock_clock, 10)
        assert not life.over.is_set()


async def test_a_stall_in_the_period_that_was_given_is_no_second_excuse(mock_clock):
    async with living(beating(0)) as life:
        await go_on(mock_clock, 1)
        mock_clock.jump(3)
        await go_on(mock_clock, 1)
        mock_clock.jump(3)
        await go_on(mock_clock, 2)
        assert life.over.is_set()
        assert len(life.recorder.excuses) == 1


async def test_after_a_heartbeat_the_next_stall_is_excused_again(mock_clock):
    async with living(accept_and_beat) as life:
        for _ in range(3):
            await go_on(mock_clock, 3)
            mock_clock.jump(5)
        await go_on(mock_clock, 3)
        assert not life.over.is_set()
        assert len(life.recorder.excuses) == 3


@pytest.mark.parametrize("turns", range(8))
async def test_a_stall_while_replies_are_written_does_not_cut_the_link(turns, mock_clock):
    async with living(accept_and_beat) as life:
        await go_on(mock_clock, 3.4)
        for number in range(5):
            life.outbox.add(Reply(b"1", ask(number).encode(), trio.current_time()))
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            arrive(life, server_frame(BEAT))
            mock_clock.jump(3)
            await go_on(mock_clock, 1)
        assert not life.over.is_set()
        assert life.replies == [str(number) for number in range(5)]


@pytest.mark.parametrize("moment", [2.005, 2.055, 2.095])
async def test_a_stall_in_the_moment_of_grace_does_not_hide_what_came(moment, mock_clock):
    async with living(beating(0)) as life:
        await go_on(mock_clock, moment)
        # In fragments, which take more than one turn of the loop to read.
        arrive(life, server_frame(BEAT[:5], 0x01) + server_frame(BEAT[5:], 0x80))
        mock_clock.jump(1)
        await go_on(mock_clock, 1.9)
        assert not life.over.is_set()
        await go_on(mock_clock, 1)
        assert life.over.is_set()


async def test_a_heartbeat_in_the_period_that_was_given_allows_for_the_next_stall(mock_clock):
    async with living(beating(0)) as life:
        await go_on(mock_clock, 0.5)
        mock_clock.jump(3)
        await go_on(mock_clock, 1.8)
        arrive(life, server_frame(BEAT))
        await go_on(mock_clock, 0.1)
        mock_clock.jump(1)  # over the end of the period that was given
        await go_on(mock_clock, 0.1)
        arrive(life, server_frame(BEAT))
        mock_clock.jump(3)
        await go_on(mock_clock, 1.9)
        assert not life.over.is_set()
        await go_on(mock_clock, 1)
        assert life.over.is_set()


@pytest.mark.parametrize("turns", range(12))
async def test_a_heartbeat_that_is_read_while_the_watchdog_fires_counts(turns, mock_clock):
    async with living(beating(0)) as life:
        await go_on(mock_clock, 0.5)
        arrive(life, server_frame(BEAT))
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        mock_clock.jump(life.opened + 2 - trio.current_time())
        await go_on(mock_clock, 5)
        assert life.at is not None
        last = life.opened + sum(life.recorder.gaps)
        assert 2.0 <= life.at - last <= 2.2


# The messages.


def asking(*numbers: int, together: bool = False) -> Script:
    """A script of a healthy peer who asks these, one by one or in one piece."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, peer)
            frames = [server_frame(ask(number).encode()) for number in numbers]
            for frame in [b"".join(frames)] if together else frames:
                await peer.send_raw(frame)
            await listen(peer)

    return script


@pytest.mark.parametrize("together", [True, False])
async def test_requests_are_answered_in_their_order(together, autojump_clock):
    async with living(asking(*range(50), together=together)) as life:
        await trio.sleep(0.5)
        assert life.replies == [str(number) for number in range(50)]
        assert len(life.outbox) == 0


@pytest.mark.parametrize(("count", "writes"), [(LARGE - 1, 1), (LARGE, 2)])
async def test_a_large_batch_is_answered_in_two_writes(count, writes, autojump_clock):
    """The peer has half the replies to read while the rest is made."""
    sizes: list[int] = []

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.receive()  # the heartbeat
        await peer.send_raw(b"".join(server_frame(ask(n).encode()) for n in range(count)))
        while data := await peer.stream.receive_some(1_000_000):
            sizes.append(len(data))

    async with living(script):
        await trio.sleep(0.5)
    assert len(sizes) == writes


async def test_a_message_that_cannot_be_read_does_not_end_the_session(autojump_clock):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        for junk in ("", "null", "{", '{"type":"message"}', "\x00", "[" * 60000, "x" * 70000):
            await peer.send(junk)
        await peer.send_raw(server_frame(b"\x00\xff", 0x82))
        await peer.send(ask(1))
        await listen(peer)

    async with living(script) as life:
        await trio.sleep(1)
        assert life.replies == ["1"]
        assert not life.over.is_set()


async def test_a_heartbeat_waits_for_one_write_at_most(autojump_clock):
    async with living(accept_and_beat) as life:
        stream = life.dial.streams[0].send_stream
        pass_on = stream.send_all_hook

        async def slowly() -> None:
            await trio.sleep(0.3)
            await pass_on()

        stream.send_all_hook = slowly
        await trio.sleep(0.5)
        for number in range(1000):  # some 20 writes
            life.outbox.add(Reply(b"1", ask(number).encode() * 4, trio.current_time()))
        await trio.sleep(5)
        beats = [got.at for got in life.peer.received if got.text == BEAT.decode()]
        assert len(life.outbox) > 0
    gaps = [later - sooner for sooner, later in pairwise(beats)]
    assert max(gaps) <= 1.35


async def test_requests_that_came_with_the_end_are_answered_into_the_outbox(autojump_clock):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await trio.sleep(1)
        await peer.send_raw(b"".join(server_frame(ask(number).encode()) for number in range(5)))
        await peer.close(1000)
        await listen(peer)

    async with living(script) as life:
        await life.over.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert life.end is not None
        assert life.end.cause.code == 1000
        written = len(life.replies)
        assert written + len(life.outbox) == 5


async def test_a_reply_is_handed_to_the_link_before_its_conversion_is_reported(autojump_clock):
    order: list[str] = []

    class Ordered(Observer):
        def converted(self, conversions: Sequence[Converted], _seconds: float) -> None:
            order.extend("reported" for _ in conversions)

    def put(texts: Sequence[bytes], _on_whole: Callable[[], None]) -> None:
        order.extend("handed on" for _ in texts)

    async with trio.open_nursery() as nursery:
        outbox = Outbox(Recorder())
        outbox.attach(put)
        bridge = Bridge(NO_CHAIN, nursery, outbox.add, utc_now=lambda: NOW, observer=Ordered())
        link: Any = None
        session = Session(link, bridge, outbox, HeartbeatSettings(), Recorder())
        session._answer([ask(1).encode(), ask(2).encode()])
    assert order == ["handed on", "handed on", "reported", "reported"]


async def test_a_bug_in_the_bridge_surfaces_and_costs_no_reply_of_the_same_batch(autojump_clock):
    async with trio.open_nursery() as nursery:
        outbox = Outbox(Recorder())
        bridge = euro_bridge(nursery, outbox)
        answer = bridge.answer

        def answer_two(frame: bytes, moment: Moment) -> Heartbeat | Reply | None:
            if frame == ask(2).encode():
                raise ZeroDivisionError
            return answer(frame, moment)

        script = asking(0, 1, 2, together=True)
        feed = MemoryFeed(nursery, script)
        link = await open_link(nursery, ADDRESS, feed.dial)
        with (
            patch.object(bridge, "answer", answer_two),
            pytest.raises(ExceptionGroup) as caught,
        ):
            await Session(link, bridge, outbox, HeartbeatSettings(), Recorder()).run()
        assert caught.value.subgroup(ZeroDivisionError) is not None
        await trio.testing.wait_all_tasks_blocked()
        assert len(outbox) + len(feed.peers[0].received) - 1 == 2  # but for the heartbeat
        nursery.cancel_scope.cancel()


# The stop.


async def test_a_stop_says_going_away_and_is_over_when_that_is_answered(autojump_clock):
    async with living(accept_and_beat) as life:
        await trio.sleep(3.5)
        life.session.stop()
        await life.over.wait()
        assert life.at == life.opened + 3.5
        assert life.end is not None
        assert (life.end.cause.reason, life.end.uptime, life.end.had_heartbeat) == (
            "stopped",
            3.5,
            True,
        )
        assert life.peer.close_code == 1001


async def test_a_stop_before_the_start_is_a_stop(autojump_clock):
    async with trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, accept_and_listen)
        outbox = Outbox(Recorder())
        link = await open_link(nursery, ADDRESS, feed.dial)
        session = Session(
            link, euro_bridge(nursery, outbox), outbox, HeartbeatSettings(), Recorder()
        )
        session.stop()
        end = await session.run()
        assert end.cause.reason == "stopped"
        assert feed.peers[0].close_code == 1001
        nursery.cancel_scope.cancel()


async def test_nothing_leaves_behind_the_close_and_what_came_before_its_answer_is_answered(
    autojump_clock,
):
    """The answers stay in the outbox."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        while data := await peer.stream.receive_some(1000):
            read.append(bytes(data))
            if data[0] == 0x88:
                break
        for number in range(3):
            await trio.sleep(0.3)
            await peer.send(ask(number))

    read: list[bytes] = []
    async with living(script) as life:
        await trio.sleep(0.5)
        life.session.stop()
        await life.over.wait()
        await trio.sleep(1)
        assert [data[0] for data in read] == [0x81, 0x88]
        assert len(life.outbox) == 3


async def test_a_stop_after_the_end_changes_nothing(autojump_clock):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.close(1011)

    async with living(script) as life:
        await life.over.wait()
        life.session.stop()
        assert life.end is not None
        assert life.end.cause.code == 1011
