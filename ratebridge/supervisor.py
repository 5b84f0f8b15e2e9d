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
from .outbox import Outbox
from .reporting.observer import Observer
from .session import HeartbeatSettings, Session

OpenLink = Callable[[trio.Nursery], Awaitable[Link]]


@attrs.define(eq=False)
class Supervisor:
    """Keeps a session alive.

    Args:
        open_link: opens a link whose tasks live in the nursery given to it; raises
            `LinkFailed`.
        bridge: answers the requests of every session.
        outbox: has the replies that no link has taken yet, over the sessions.
        heartbeat: the periods of each session.
        backoff: how long to wait before the next attempt.
        observer: is told of links that are up and that end, and of bugs.
        next_address: has the next attempt begin with another address of the host; called after
            each attempt that brought no heartbeat of the peer, open or not.
    """

    _open_link: OpenLink
    _bridge: Bridge
    _outbox: Outbox
    _heartbeat: HeartbeatSettings = attrs.field(kw_only=True)
    _backoff: Backoff = attrs.field(kw_only=True)
    _observer: Observer = attrs.field(kw_only=True)
    _next_address: Callable[[], None] = attrs.field(kw_only=True)
    _opening: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _session: Session | None = attrs.field(default=None, init=False)  # the present or the last one
    _stopping: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self) -> None:
        """Open, live, back off, and again; returns after `stop`.

        A bug in a session is reported to the observer, and counts as the loss of its link.
        """
        while not self._stopping.is_set():
            try:
                cause = await self._live()
            except Exception as bug:  # noqa: BLE001 - no bug of a session ends the service
                self._observer.internal_error("session", bug)
                cause = LinkFailed(Loss.INTERNAL_ERROR, "a bug, see the trace")
            uptime, wait = 0.0, None
            if self._session is None or not self._session.had_heartbeat:
                self._next_address()
            if self._session is not None:
                uptime = trio.current_time() - self._session.opened
                if self._session.had_heartbeat and uptime >= STABLE_AFTER:
                    self._backoff.reset()
            if not self._stopping.is_set():
                wait = self._backoff.next_wait(status=cause.status, retry_after=cause.retry_after)
            self._observer.link_lost(cause, uptime, wait)
            with trio.move_on_after(wait or 0.0):
                await self._stopping.wait()

    def stop(self) -> None:
        """End the present session by a close (RFC 6455, 7.1.2), which takes a second at most.

        An attempt or a wait that is under way ends at once, and no other begins.
        """
        self._stopping.set()
        self._opening.cancel()

    async def _live(self) -> LinkFailed:
        """One link, from its opening to its end, which is returned."""
        self._session = None
        async with trio.open_nursery() as link_nursery:
            try:
                with trio.CancelScope() as self._opening:
                    link = await self._open_link(link_nursery)
            except LinkFailed as failure:
                return failure
            if self._opening.cancelled_caught:
                return LinkFailed(Loss.STOPPED)
            self._observer.link_up()
            self._session = Session(
                link, self._bridge, self._outbox, self._heartbeat, self._observer, self._stopping
            )
            try:
                return await self._session.run()
            finally:
                # What it has not written by now goes to the next.
                link.end(LinkFailed(Loss.STOPPED))
                self._outbox.lose_link()
