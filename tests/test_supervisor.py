"""The loop around the sessions: reconnects, replies carried over, the stop."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import attrs
import pytest
import trio
from support import (
    ADDRESS,
    Recorder,
    accept_and_beat,
    accept_and_hang,
    accept_and_listen,
    ask,
    euro_bridge,
    in_turn,
    listen,
    never_answer,
    within,
)

from ratebridge.backoff import Backoff
from ratebridge.bridge import Bridge
from ratebridge.fakes.feed import FeedPeer, MemoryFeed, Script
from ratebridge.link.link import Link, open_link
from ratebridge.link.stream import Write
from ratebridge.outbox import Outbox, Reply
from ratebridge.session import HeartbeatSettings
from ratebridge.supervisor import Supervisor


@attrs.define
class Running:
    """A supervisor that runs. `dialled` are the times of its attempts, from the start.

    `skipped` are the attempts after which another address was asked for, counted from 1.
    """

    supervisor: Supervisor
    feed: MemoryFeed
    outbox: Outbox
    recorder: Recorder
    began: float
    dialled: list[float] = attrs.Factory(list)
    skipped: list[int] = attrs.Factory(list)
    over: trio.Event = attrs.Factory(trio.Event)

    @property
    def reasons(self) -> list[str]:
        return [end.cause.reason for end in self.recorder.ends]

    async def stop(self) -> float:
        """Stop it; the seconds that it took."""
        began = trio.current_time()
        self.supervisor.stop()
        with trio.fail_after(60):
            await self.over.wait()
        return trio.current_time() - began


@asynccontextmanager
async def running(
    script: Script, *, jitter: Callable[[], float] = lambda: 1.0, open_as: Any = open_link
) -> AsyncIterator[Running]:
    """A supervisor of links to a feed in memory. Its back-off always takes the longest wait."""
    async with within(600), trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, script)
        recorder = Recorder()
        outbox = Outbox(recorder)

        async def open_feed(link_nursery: trio.Nursery) -> Link:
            it.dialled.append(trio.current_time() - it.began)
            link: Link = await open_as(link_nursery, ADDRESS, feed.dial)
            return link

        supervisor = Supervisor(
            open_feed,
            euro_bridge(nursery, outbox),
            outbox,
            heartbeat=HeartbeatSettings(),
            backoff=Backoff(0.25, 5.0, jitter),
            observer=recorder,
            next_address=lambda: it.skipped.append(len(it.dialled)),
        )
        it = Running(supervisor, feed, outbox, recorder, trio.current_time())

        async def run() -> None:
            await supervisor.run()
            it.over.set()

        nursery.start_soon(run)
        yield it
        nursery.cancel_scope.cancel()


def refuse(status: int, retry_after: bytes = b"") -> Script:
    async def script(peer: FeedPeer) -> None:
        await peer.reject(status, [(b"Retry-After", retry_after)] if retry_after else [])

    return script


async def accept_beat_and_go(peer: FeedPeer) -> None:
    await peer.accept()
    await peer.heartbeat()


def beat_for(seconds: float) -> Script:
    async def script(peer: FeedPeer) -> None:
        with trio.move_on_after(seconds):
            await accept_and_beat(peer)

    return script


# Trying again.


@pytest.mark.parametrize("script", [FeedPeer.accept, accept_beat_and_go])
@pytest.mark.parametrize("seed", range(3))
async def test_a_peer_that_accepts_and_closes_gets_no_reconnect_storm(script, seed, autojump_clock):
    async with running(script, jitter=random.Random(seed).random) as it:
        await trio.sleep(60)
        assert 15 <= len(it.dialled) <= 50


async def test_a_stable_link_is_back_within_a_tenth_of_a_second(autojump_clock):
    async with running(beat_for(5.0)) as it:
        await trio.sleep(60)
        assert len(it.dialled) >= 10
        assert set(it.recorder.waits) == {0.1}


async def test_attempts_after_a_stable_link_wait_longer_and_longer(autojump_clock):
    async with running(in_turn(beat_for(5.0), refuse(500))) as it:
        await trio.sleep(10)
        assert it.recorder.waits[:4] == [0.1, 0.25, 0.5, 1.0]
        assert it.recorder.ends[1].uptime == 0.0


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(beat_for(4.9), id="not long enough"),
        pytest.param(accept_beat_and_go, id="a heartbeat only"),
    ],
)
async def test_a_link_that_was_not_stable_resets_nothing(script, autojump_clock):
    async with running(in_turn(FeedPeer.accept, FeedPeer.accept, script)) as it:
        await trio.sleep(6)
        assert it.recorder.waits[:3] == [0.1, 0.25, 0.5]


async def test_a_stable_link_had_a_heartbeat_and_not_the_time_alone(autojump_clock):
    async with running(in_turn(FeedPeer.accept, accept_and_listen)) as it:
        await trio.sleep(1)
        it.supervisor._session.opened -= 60  # type: ignore[union-attr]  # as if we had stalled
        await trio.sleep(2)
        assert it.recorder.ends[1].uptime > 60
        assert it.reasons == ["reset", "stale"]
        assert it.recorder.waits == [0.1, 0.25]


async def test_after_an_attempt_without_a_heartbeat_another_address_is_next(autojump_clock):
    script = in_turn(refuse(500), accept_and_listen, accept_beat_and_go, accept_and_beat)
    async with running(script) as it:
        await trio.sleep(10)
        assert it.reasons[1] == "stale"
        assert (len(it.dialled), it.skipped) == (4, [1, 2])


@pytest.mark.parametrize("status", [401, 403])
async def test_a_forbidden_upgrade_is_retried_after_half_a_minute(status, autojump_clock):
    async with running(refuse(status)) as it:
        await trio.sleep(120)
        assert it.dialled == pytest.approx([0, 33, 66, 99])
        assert (it.recorder.ends[0].cause.status, it.recorder.ends[0].uptime) == (status, 0.0)


@pytest.mark.parametrize(("asked", "wait"), [(b"7", 7.0), (b"3600", 60.0)])
async def test_a_peers_retry_after_is_honoured_up_to_a_minute(asked, wait, autojump_clock):
    async with running(in_turn(refuse(503, asked), accept_and_beat)) as it:
        await trio.sleep(100)
        assert it.dialled == pytest.approx([0, wait])
        assert it.recorder.ups == [it.began + wait]


# What is carried over.


async def test_a_link_takes_nothing_once_it_is_known_what_has_left_on_it(autojump_clock):
    """A write would go on, were its socket writable at that moment, and on the next link again."""
    links: list[Link] = []
    late: list[Write | None] = []

    async def open_as(*args: Any) -> Link:
        links.append(await open_link(*args))
        return links[-1]

    async with running(accept_and_hang, open_as=open_as) as it:
        lose_link = it.outbox.lose_link

        def lose_and_write() -> None:
            lose_link()
            late.append(links[-1].put([b"late"]))
            assert not links[-1]._stream._queue

        it.outbox.lose_link = lose_and_write  # type: ignore[method-assign]
        await trio.sleep(3)
        assert it.reasons == ["stale"]
        assert [write and write.texts_taken() for write in late] == [0]


async def test_the_first_message_on_a_new_link_is_a_heartbeat(autojump_clock):
    async with running(in_turn(FeedPeer.accept, accept_and_beat)) as it:
        it.outbox.add(Reply(b"1", ask(1).encode(), trio.current_time()))
        await trio.sleep(1)
        assert it.feed.peers[1].received[0].text == '{"type":"heartbeat"}'


# A bug of ours.


async def test_a_bug_in_a_session_is_reported_and_the_session_restarted(
    monkeypatch, autojump_clock
):
    monkeypatch.setattr(Bridge, "answer", Mock(side_effect=ZeroDivisionError))

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.send("a text")
        await listen(peer)

    async with running(script) as it:
        await trio.sleep(4)
        assert len(it.recorder.crashes) == 6
        for crash in it.recorder.crashes:
            assert isinstance(crash, ExceptionGroup)
            assert crash.subgroup(ZeroDivisionError) is not None
        assert it.recorder.waits == [0.1, 0.25, 0.5, 1.0, 2.0, 4.0]
        assert set(it.reasons) == {"internal-error"}
        assert await it.stop() == 0.0


async def test_a_bug_in_opening_is_reported_and_the_opening_retried_until_a_stop(autojump_clock):
    async def open_as(*_: Any) -> Link:
        if len(it.dialled) == 4:
            it.supervisor.stop()
        raise ZeroDivisionError

    async with running(accept_and_beat, open_as=open_as) as it:
        await it.over.wait()
        assert len(it.recorder.crashes) == 4
        assert it.recorder.ups == []
        assert it.recorder.waits == [0.1, 0.25, 0.5, None]


# The stop.


STATES = {
    "up": (accept_and_beat, 10.0, 0.0),
    "up, a silent peer": (accept_and_hang, 1.0, 1.0),
    "waiting for the upgrade": (never_answer, 1.0, 0.0),
    "backing off": (refuse(503, b"60"), 1.0, 0.0),
    "backing off for long": (refuse(403), 1.0, 0.0),
}


@pytest.mark.parametrize(("script", "after", "seconds"), STATES.values(), ids=STATES.keys())
async def test_a_stop_is_quick_in_every_state(script, after, seconds, autojump_clock):
    async with running(script) as it:
        await trio.sleep(after)
        assert await it.stop() == seconds
        assert len(it.dialled) == 1


@pytest.mark.parametrize("turns", range(40))
async def test_a_stop_at_any_moment_of_the_opening_is_a_stop(turns, autojump_clock):
    async with running(accept_and_beat) as it:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        assert await it.stop() <= 1.0
        assert it.reasons in ([], ["stopped"])
        await trio.testing.wait_all_tasks_blocked()
        if it.recorder.ups:
            assert it.feed.peers[0].close_code == 1001
