"""The life of one connection, once it is open: heartbeat sender, receive loop, watchdog.

`Session.run` is that life, and `_receive` is where a frame is answered: what comes on the
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
from .observer import Observer
from .outbox import Outbox, Reply

GRACE: Final = 0.1  # s to read what has arrived before the peer counts as stale
LOOK_EVERY: Final = 0.05  # s, of the watchdog; what came in a stall is read between two looks
STALL: Final = 0.25  # s: woken later than that, it was our own loop that stood still
LARGE: Final = 32  # frames: the peer has half the replies to read while the rest is made
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
    had_heartbeat: bool = attrs.field(default=False, init=False)  # one of the peer's

    async def run(self) -> LinkFailed:
        """Answer what comes until the link ends: by itself, for a stale peer, or at the stop.

        Returns what ended it. The answering waits for no rate and for no write.
        """
        self._link.put([HEARTBEAT])
        self._outbox.attach(self._link.put)
        async with trio.open_nursery() as session_nursery:
            session_nursery.start_soon(self._send_heartbeats, name="heartbeat sender")
            session_nursery.start_soon(self._watch, name="watchdog")
            session_nursery.start_soon(self._close_at_the_stop, name="stop")
            try:
                while True:
                    self._answer(await self._link.receive())
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

    def _answer(self, frames: Sequence[bytes]) -> None:
        """Answer a batch, in one write, or in two if it is large."""
        moment = self._bridge.moment()
        half = len(frames) // 2
        for some in (frames[:half], frames[half:]) if len(frames) >= LARGE else (frames,):
            replies: list[Reply] = []
            try:
                for frame in some:
                    answer = self._bridge.answer(frame, moment)
                    if isinstance(answer, Reply):
                        replies.append(answer)
                    elif answer is not None:
                        now = trio.current_time()
                        self._observer.heartbeat_received(now - self._heard)
                        self._heard, self.had_heartbeat = now, True
            finally:
                self._outbox.add(*replies)
                self._bridge.report(moment.mono)

    async def _watch(self) -> None:
        """End the link when no heartbeat has been received for the timeout.

        Time in which our own loop stands still does not count as silence of the peer, and
        what came meanwhile is read before the next look.
        """
        heard, stalled = self._heard, 0.0
        while True:
            began = trio.current_time()
            await trio.sleep(LOOK_EVERY)
            now = trio.current_time()
            if self._heard != heard:
                heard, stalled = self._heard, 0.0
            if now - began > LOOK_EVERY + STALL:
                stalled += min(now - began, now - heard)
                if now - heard > self._heartbeat.timeout:
                    self._observer.loop_stalled(now - began)
            elif now - heard - stalled > self._heartbeat.timeout + GRACE:
                self._link.end(LinkFailed(Loss.STALE, f"no heartbeat for {now - heard:.1f} s"))
