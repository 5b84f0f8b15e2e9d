"""The life of one connection, once it is open: heartbeat sender, receive loop, watchdog.

`Session.run` is that life, and its loop is where a frame is answered: what comes on the
link goes to `bridge`, whose replies go to the `outbox`, and from there back on the link. A
reply that has to wait for a rate reaches the outbox later, by way of `bridge`.

A session ends when the link fails, when the peer is silent for too long (its heartbeats
alone count), or when it is stopped. `supervisor` is the loop around it.
"""

from collections.abc import Sequence
from typing import Final

import attrs
import trio

from .bridge import Bridge
from .errors import LinkFailed, Loss
from .link import Link
from .messages import HEARTBEAT
from .outbox import Outbox
from .reporting.observer import Observer

# What has arrived is read before a peer counts as stale: for 0.1 s, and where our own loop stands
# still meanwhile, in five of its turns at least, each of which reads 64 KiB at most, or answers a
# part of a very large batch. A batch that is being answered then is answered to its end.
LOOKS: Final = 5
LOOK: Final = 0.02  # s
STALL: Final = 0.5  # s by which the watchdog is woken late: our own loop has stood still
LARGE: Final = 40  # frames: the peer has half the replies to read while the rest is made
MOST: Final = 256  # frames that are answered before other tasks run: 5 ms of a flood
GOING_AWAY: Final = 1001  # RFC 6455, 7.4.1


@attrs.frozen
class HeartbeatSettings:
    """Seconds between our heartbeats, and without one of the peer's until the link is refreshed."""

    interval: float = 1.0
    timeout: float = 2.0


@attrs.define(eq=False)
class Session:
    """The life of one open link."""

    _link: Link
    _bridge: Bridge
    _outbox: Outbox
    _heartbeat: HeartbeatSettings
    _observer: Observer
    _stopping: trio.Event  # ends the session with a polite close
    opened: float = attrs.field(factory=trio.current_time, init=False)
    # When the last heartbeat came. The opening stands for the first.
    _heard: float = attrs.field(factory=trio.current_time, init=False)
    _answered: trio.Event = attrs.field(factory=trio.Event, init=False)  # the batch that was read
    had_heartbeat: bool = attrs.field(default=False, init=False)  # one of the peer's

    async def run(self) -> LinkFailed:
        """Answer what comes until the link ends: by itself, for a stale peer, or at the stop.

        Returns what ended it. The answering waits for no rate and for no write.
        """
        self._answered.set()
        self._link.put([HEARTBEAT])
        self._outbox.attach(self._link.put)
        async with trio.open_nursery() as session_nursery:
            session_nursery.start_soon(self._send_heartbeats, name="heartbeat sender")
            session_nursery.start_soon(self._watch, name="watchdog")
            session_nursery.start_soon(self._close_at_the_stop, name="stop")
            try:
                while True:
                    await self._answer(await self._link.receive())
            except LinkFailed as failure:
                cause = failure
            session_nursery.cancel_scope.cancel()
        return cause

    async def _close_at_the_stop(self) -> None:
        await self._stopping.wait()
        await self._link.close(GOING_AWAY)
        self._link.end(LinkFailed(Loss.STOPPED))

    async def _send_heartbeats(self) -> None:
        while True:
            await trio.sleep(self._heartbeat.interval)
            self._link.put([HEARTBEAT])

    async def _answer(self, frames: Sequence[bytes]) -> None:
        """Answer a batch, in two writes if it is large; if it is very large, others run between."""
        self._answered = trio.Event()
        moment = self._bridge.moment()
        size = min((len(frames) + 1) // 2, MOST) if len(frames) >= LARGE else len(frames)
        for start in range(0, len(frames), size):
            if len(frames) > MOST:  # what is read is answered, whoever is cancelled meanwhile
                await trio.lowlevel.cancel_shielded_checkpoint()
            replies, heartbeats = self._bridge.answer(frames[start : start + size], moment)
            self._outbox.add(*replies)
            self._bridge.report(moment.mono)
            for _ in range(heartbeats):
                self._observer.heartbeat_received(moment.mono - self._heard)
                self._heard, self.had_heartbeat = moment.mono, True
        self._answered.set()

    async def _watch(self) -> None:
        """End the link when no heartbeat has been received for the timeout.

        The rule: when the timeout has passed, what has arrived is read, and if no heartbeat
        was among it, the link is stale. So heartbeats that lay unread in a stall of our own
        count, and a peer that sends none is dropped however much our own loop stands still.
        """
        heard: float | None = None
        while heard != self._heard:
            heard = self._heard
            due = max(heard + self._heartbeat.timeout, trio.current_time())
            await trio.sleep_until(due)
            if (late := trio.current_time() - due) > STALL:
                self._observer.loop_stalled(late)
            if heard == self._heard:
                for _ in range(LOOKS):
                    await trio.sleep(LOOK)
                await self._answered.wait()
        silence = trio.current_time() - self._heard
        self._link.end(LinkFailed(Loss.STALE, f"no heartbeat for {silence:.1f} s"))
