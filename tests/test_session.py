"""One connection: the heartbeats, the watchdog, the replies, the stop."""

from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any

import attrs
import pytest
import trio
from support import (
    ADDRESS,
    BEAT,
    NO_CHAIN,
    NOW,
    KeptFeed,
    Recorder,
    accept_and_beat,
    accept_and_listen,
    ask,
    euro_bridge,
    listen,
    server_frame,
    take_slowly,
    within,
)

from ratebridge.bridge import Bridge
from ratebridge.errors import Drop
from ratebridge.fakes.feed import FeedPeer, Script
from ratebridge.link.link import open_link
from ratebridge.outbox import Outbox, Reply
from ratebridge.reporting.observer import Converted, Observer
from ratebridge.session import LARGE, MOST, HeartbeatSettings, Session

DEFAULT = HeartbeatSettings()


@attrs.define
class Life:
    """A session that runs, and what is around it. `end` tells how it ended, `at` when."""

    session: Session
    stop: trio.Event
    outbox: Outbox
    recorder: Recorder
    feed: KeptFeed
    opened: float
    end: Any = None
    at: float = inf
    over: trio.Event = attrs.Factory(trio.Event)

    @property
    def peer(self) -> FeedPeer:
        return self.feed.peers[0]

    async def run(self) -> None:
        self.end = await self.session.run()
        self.at = trio.current_time() - self.opened
        self.over.set()


@asynccontextmanager
async def living(script, heartbeat=DEFAULT):
    """A session with a feed in memory that plays `script`."""
    async with within(600), trio.open_nursery() as nursery:
        recorder = Recorder()
        outbox = Outbox(recorder)
        feed = KeptFeed(nursery, script)
        link = await open_link(nursery, ADDRESS, feed.dial)
        stop = trio.Event()
        bridge = euro_bridge(nursery, outbox)
        session = Session(link, bridge, outbox, heartbeat, recorder, stop)
        life = Life(session, stop, outbox, recorder, feed, trio.current_time())
        nursery.start_soon(life.run)
        yield life
        nursery.cancel_scope.cancel()


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


def beating(*times: float) -> Script:
    """A script that sends heartbeats at these times."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, peer)
            began = trio.current_time()
            for time in times:
                await trio.sleep_until(began + time)
                await peer.heartbeat()

    return script


async def say_other_things(peer: FeedPeer) -> None:
    await peer.accept()
    while True:
        await peer.send('{"type":"heartbeat!"}')
        await peer.send('{"type":"message","id":1,"payload":{"type":"heartbeat"}}')
        await peer.send('["heartbeat"]')
        await peer.send(ask(1))
        await trio.sleep(0.1)


async def spell_it_in_other_ways(peer: FeedPeer) -> None:
    await peer.accept()
    for spelling in (
        server_frame(b' {"type" : "heartbeat", "at": 1}'),
        server_frame(b'{"type":"he\\u0061rtbeat"}'),
        server_frame(BEAT[:5], 0x01) + server_frame(BEAT[5:], 0x80),
    ):
        await trio.sleep(1.5)
        for at in range(len(spelling)):
            await peer.send_raw(spelling[at : at + 1])
    await trio.sleep_forever()


SILENT_FROM = {
    "no first heartbeat": (beating(), 0.0),
    "beats that stop": (beating(0, 1, 2, 3), 3.0),
    "nothing that is a heartbeat": (say_other_things, 0.0),
    "other spellings, in pieces": (spell_it_in_other_ways, 4.5),
    "beats in the last moment": (beating(0, 2.05, 4.1, 6.15), 6.15),
    "a beat too late": (beating(0, 2.2), 0.0),
}


@pytest.mark.parametrize(("script", "silent_from"), SILENT_FROM.values(), ids=SILENT_FROM.keys())
async def test_a_link_without_heartbeats_for_two_seconds_is_refreshed(
    script, silent_from, autojump_clock
):
    async with living(script) as life:
        await life.over.wait()
        assert str(life.end) == "stale: no heartbeat for 2.1 s"
        assert life.at == pytest.approx(silent_from + 2.1, abs=0.01)


@pytest.mark.parametrize("interval", [0.1, 1.0, 1.9])
async def test_a_link_with_a_heartbeat_within_two_seconds_lives_on(interval, autojump_clock):
    async with living(beating(*(n * interval for n in range(round(120 / interval) + 1)))) as life:
        await trio.sleep(120)
        assert not life.over.is_set()


async def test_the_heartbeat_interval_and_timeout_can_be_set(autojump_clock):
    async with living(beating(0, 0.1, 0.2), HeartbeatSettings(0.1, 0.5)) as life:
        await life.over.wait()
        gaps = [later.at - sooner.at for sooner, later in pairwise(life.peer.received)]
    assert life.at == pytest.approx(0.8)
    assert gaps == pytest.approx([0.1] * 7)


@pytest.mark.parametrize("times", [(), (0.25, 1.0, 2.5)])
async def test_the_gaps_between_heartbeats_are_reported(times, autojump_clock):
    async with living(beating(*times)) as life:
        await life.over.wait()
    assert life.recorder.gaps == pytest.approx([b - a for a, b in pairwise((0, *times))])
    assert life.session.had_heartbeat == bool(times)


async def test_a_heartbeat_behind_a_flood_that_was_read_in_time_counts(mock_clock):
    class Slow(Recorder):
        def dropped(self, _reason: Drop, _frame: bytes) -> None:
            mock_clock.jump(20e-6)

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.heartbeat()
        await trio.sleep(1.9)
        await peer.send_raw(server_frame(b"") * 16_000 + server_frame(BEAT))
        await listen(peer)

    async with living(script) as life:
        life.session._bridge._observer = Slow()
        await go_on(mock_clock, 3)
        assert not life.over.is_set()
        await go_on(mock_clock, 1.5)
        assert life.end.reason == "stale"


# Our own stalls.


@pytest.mark.parametrize("unread", [1, 3], ids=["a heartbeat unread", "heartbeats unread"])
@pytest.mark.parametrize(("stall", "late"), [(1.7, 0), (2.2, 0.6), (3.0, 1.4), (30.0, 28.4)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
async def test_a_stall_of_our_own_does_not_cut_a_healthy_link(
    stall, late, unread, turns, mock_clock
):
    """A long one is reported, by how far it went beyond the timeout."""
    async with living(accept_and_beat) as life:
        await go_on(mock_clock, 0.4)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        arrive(life, server_frame(BEAT) * unread)
        mock_clock.jump(stall)
        await go_on(mock_clock, 6)
        assert not life.over.is_set()
        assert life.recorder.excuses == pytest.approx([late] * (late > 0), abs=0.01)


@pytest.mark.parametrize("moment", [0.5, 1.9, 2.0])
async def test_stalls_in_a_row_hide_no_heartbeat(moment, mock_clock):
    async with living(beating(0)) as life:
        await go_on(mock_clock, moment)
        # In fragments, which take more than one turn of the loop to read.
        arrive(life, server_frame(BEAT[:5], 0x01) + server_frame(BEAT[5:], 0x80))
        for _ in range(2):
            mock_clock.jump(1)
            await trio.lowlevel.checkpoint()
        await go_on(mock_clock, 1.9)
        assert not life.over.is_set()
        await go_on(mock_clock, 0.5)
        assert life.over.is_set()


@pytest.mark.parametrize("script", [accept_and_beat, accept_and_listen])
async def test_where_every_turn_of_the_loop_is_a_stall_a_silent_peer_alone_is_dropped(
    script, mock_clock
):
    async with living(script) as life:
        for _ in range(30):
            mock_clock.jump(0.5)
            await trio.lowlevel.checkpoint()
        assert life.over.is_set() is (script is accept_and_listen)


def arrive(life: Life, data: bytes) -> None:
    """Let bytes arrive while no task runs."""
    life.feed.streams[0].receive_stream.put_data(data)


# The messages.


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
    assert max(sizes) < 1.1 * min(sizes)


async def test_a_heartbeat_waits_for_one_write_at_most(autojump_clock):
    async with living(accept_and_beat) as life:
        take_slowly(life.feed.streams[0], partial(trio.sleep, 0.3))
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
        assert life.end.code == 1000
        written = [got for got in life.peer.received if "stake" in got.text]
        assert len(written) + len(life.outbox) == 5


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
        session = Session(link, bridge, outbox, HeartbeatSettings(), Recorder(), trio.Event())
        await session._answer([ask(1).encode(), ask(2).encode()])
    assert order == ["handed on", "handed on", "reported", "reported"]


async def test_other_tasks_run_while_a_flood_that_was_read_at_once_is_dealt_with(autojump_clock):
    turns: list[int] = []
    dropped: list[bytes] = []

    class Dropping(Recorder):
        def dropped(self, _reason: Drop, frame: bytes) -> None:
            dropped.append(frame)

    async def take_turns() -> None:
        while True:
            turns.append(len(dropped))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        outbox, flood = Outbox(Recorder()), [b""] * 16_000
        bridge = Bridge(NO_CHAIN, nursery, outbox.add, utc_now=lambda: NOW, observer=Dropping())
        link: Any = None
        nursery.start_soon(take_turns)
        await Session(link, bridge, outbox, DEFAULT, Recorder(), trio.Event())._answer(flood)
        nursery.cancel_scope.cancel()
    assert dropped == flood
    assert max(later - sooner for sooner, later in pairwise(turns)) <= 2 * MOST  # by chance


# The stop.


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
        life.stop.set()
        await life.over.wait()
        await trio.sleep(1)
        assert [data[0] for data in read] == [0x81, 0x88]
        assert len(life.outbox) == 3
