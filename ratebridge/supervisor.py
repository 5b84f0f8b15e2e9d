"""What happens when a link dies: the loop that opens the next one, as long as the service lives.

`Supervisor.run` opens a link, runs a `session` on it to its end, reports how it ended,
waits as long as `backoff` says, and begins again. Replies that have not left whole by the
end are in the `outbox`, and go first on the next link.
"""

from collections.abc import Awaitable, Callable

import attrs
import trio

from .backoff import STABLE_AFTER, Backoff
from .bridge import Bridge
from .errors import LinkFailed, Loss
from .link import Link
from .observer import Observer
from .outbox import Outbox
from .session import HeartbeatSettings, Session, SessionEnd

OpenLink = Callable[[trio.Nursery], Awaitable[Link]]


@attrs.define(eq=False)
class Supervisor:
    """Keeps a session alive. `open_link` opens the link of one, in a nursery given to it."""

    _open_link: OpenLink
    _bridge: Bridge
    _outbox: Outbox
    _heartbeat: HeartbeatSettings = attrs.field(kw_only=True)
    _backoff: Backoff = attrs.field(kw_only=True)
    _observer: Observer = attrs.field(kw_only=True)
    _opening: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _session: Session | None = attrs.field(default=None, init=False)  # the present or the last one
    _stopping: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self) -> None:
        """Open, live, back off, and again; returns after `stop`."""
        while not self._stopping.is_set():
            try:
                end = await self._live()
            except Exception as bug:  # noqa: BLE001 - no bug of a session ends the service
                self._observer.internal_error("session", bug)
                cause = LinkFailed(Loss.INTERNAL_ERROR, "a bug, see the trace")
                end = SessionEnd(cause) if self._session is None else self._session.ended_by(cause)
            if self._stopping.is_set():
                self._observer.link_lost(end.cause, end.uptime, None)
                return
            if end.had_heartbeat and end.uptime >= STABLE_AFTER:
                self._backoff.reset()
            cause = end.cause
            wait = self._backoff.next_wait(status=cause.status, retry_after=cause.retry_after)
            self._observer.link_lost(cause, end.uptime, wait)
            with trio.move_on_after(wait):
                await self._stopping.wait()

    def stop(self) -> None:
        """End the present session politely, or the present attempt at once, and start no other."""
        self._stopping.set()
        self._opening.cancel()
        if self._session is not None:
            self._session.stop()

    async def _live(self) -> SessionEnd:
        """One link, from its opening to its end."""
        self._session = None
        async with trio.open_nursery() as link_nursery:
            try:
                with trio.CancelScope() as self._opening:
                    link = await self._open_link(link_nursery)
            except LinkFailed as failure:
                return SessionEnd(failure)
            if self._opening.cancelled_caught:
                return SessionEnd(LinkFailed(Loss.STOPPED))
            self._observer.link_up()
            session = Session(link, self._bridge, self._outbox, self._heartbeat, self._observer)
            self._session = session
            if self._stopping.is_set():  # too late for the scope of the opening
                session.stop()
            try:
                return await session.run()
            finally:
                # What it has not written by now goes to the next.
                link.end(LinkFailed(Loss.STOPPED))
                self._outbox.lose_link()
                link_nursery.cancel_scope.cancel()
