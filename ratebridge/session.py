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
POLLS: Final = 10  # in that time: a stall of our own counts as one of them, not as the peer's
STALL: Final = 0.25  # s: woken later than that, it was our own loop that stood still
LARGE: Final = 32  # frames: the peer has half the replies to read while the rest is made
GOING_AWAY: Final = 1001  # RFC 6455, 7.4.1


@attrs.frozen
class SessionEnd:
    """How a session ended, after `uptime` seconds, and whether a heartbeat of the peer came."""

    cause: LinkFailed
    uptime: float = 0.0
    had_heartbeat: bool = False


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
    _opened: float = attrs.field(factory=trio.current_time, init=False)
    # When the last heartbeat came. The opening stands for the first.
    _heard: float = attrs.field(factory=trio.current_time, init=False)
    _had_heartbeat: bool = attrs.field(default=False, init=False)
    _watchdog: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    _cause: LinkFailed | None = attrs.field(default=None, init=False)

    async def run(self) -> SessionEnd:
        """Run until the link fails, the peer is stale, or `stop` is called."""
        self._link.put([HEARTBEAT])
        self._outbox.attach(self._link.put)
        async with trio.open_nursery() as session_nursery:
            session_nursery.start_soon(self._send_heartbeats, name="heartbeat sender")
            session_nursery.start_soon(self._receive, name="receive loop")
            session_nursery.start_soon(self._watch, name="watchdog")
            await self._ended.wait()
            if self._cause is None:
                await self._link.close(GOING_AWAY)
            session_nursery.cancel_scope.cancel()
        return self.ended_by(self._cause or LinkFailed(Loss.STOPPED))

    def ended_by(self, cause: LinkFailed) -> SessionEnd:
        """The end of this session, now."""
        return SessionEnd(cause, trio.current_time() - self._opened, self._had_heartbeat)

    def stop(self) -> None:
        """End the session with a polite close."""
        self._ended.set()

    def _fail(self, cause: LinkFailed) -> None:
        if not self._ended.is_set():
            self._cause = cause
            self._ended.set()

    async def _send_heartbeats(self) -> None:
        while True:
            await trio.sleep(self._heartbeat.interval)
            self._link.put([HEARTBEAT])

    async def _receive(self) -> None:
        """Answer what comes, until the link ends. It waits for no rate and for no write."""
        try:
            while True:
                self._answer(await self._link.receive())
        except LinkFailed as failure:
            self._fail(failure)

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
                        self._hear_heartbeat()
            finally:
                self._outbox.add(*replies)
                self._bridge.report(moment.mono)

    def _hear_heartbeat(self) -> None:
        now = trio.current_time()
        self._observer.heartbeat_received(now - self._heard)
        self._heard = now
        self._had_heartbeat = True
        self._watchdog.deadline = now + self._heartbeat.timeout

    async def _watch(self) -> None:
        """End the session when no heartbeat has been received for the timeout."""
        timeout = self._heartbeat.timeout
        while True:
            with trio.CancelScope(deadline=self._heard + timeout) as self._watchdog:
                await trio.sleep_forever()
            heard = self._heard
            late = trio.current_time() - heard - timeout
            grace = GRACE
            if late > STALL:
                # Our own loop stalled. A healthy peer has sent a heartbeat meanwhile, or
                # will within a period; a dead one gets that period once.
                self._observer.loop_stalled(late)
                grace = timeout
            poll = grace / POLLS
            for _ in range(POLLS):
                began = trio.current_time()
                await trio.sleep(poll)
            if trio.current_time() - began > poll + STALL:
                await trio.sleep(poll)  # what came during a stall is still unread
            silence = trio.current_time() - self._heard
            if self._heard == heard and silence > timeout:
                self._fail(LinkFailed(Loss.STALE, f"no heartbeat for {silence:.1f} s"))
                return
