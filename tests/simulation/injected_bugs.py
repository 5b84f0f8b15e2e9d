"""Bugs to inject one at a time, to show that the simulation finds them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

import attrs
import trio

from ratebridge.backoff import Backoff
from ratebridge.bridge import Moment
from ratebridge.link.link import Link
from ratebridge.link.stream import LinkStream, Write
from ratebridge.messages import Heartbeat
from ratebridge.outbox import Outbox, Reply
from ratebridge.session import GOING_AWAY, Session, SessionEnd
from ratebridge.supervisor import OpenLink, Supervisor


@contextmanager
def watchdog_reset_by_any_message() -> Iterator[None]:
    """Any message resets the heartbeat timeout."""
    receive = Session._receive

    async def receive_and_believe(self: Session) -> None:
        answer = self._bridge.answer

        def answer_and_believe(frame: bytes, moment: Moment) -> Heartbeat | Reply | None:
            self._hear_heartbeat()
            return answer(frame, moment)

        with patch.object(self._bridge, "answer", answer_and_believe):
            await receive(self)

    with patch.object(Session, "_receive", receive_and_believe):
        yield


@contextmanager
def reply_lost_on_reconnect() -> Iterator[None]:
    """The replies being written when the connection is lost are dropped."""
    with patch.object(Write, "texts_taken", lambda self: len(self.texts)):
        yield


@contextmanager
def polite_close_on_a_stale_link() -> Iterator[None]:
    """A stale connection is closed by a close frame, and its answer waited for."""
    run = Session.run

    async def run_politely(self: Session) -> SessionEnd:
        end = await run(self)
        if end.cause.reason == "stale":
            await self._link.close(GOING_AWAY)
        return end

    with patch.object(Session, "run", run_politely):
        yield


@contextmanager
def backoff_reset_at_connect() -> Iterator[None]:
    """Every open resets the back-off."""
    init = Supervisor.__init__

    def init_hopefully(
        self: Supervisor, open_link: OpenLink, *args: Any, backoff: Backoff, **kwargs: Any
    ) -> None:
        async def open_and_reset(nursery: trio.Nursery) -> Link:
            link = await open_link(nursery)
            backoff.reset()
            return link

        init(self, open_and_reset, *args, backoff=backoff, **kwargs)

    with patch.object(Supervisor, "__init__", init_hopefully):
        yield


@contextmanager
def cut_write_does_not_poison() -> Iterator[None]:
    """Further writes follow one that was cut short."""
    write = LinkStream._write

    async def write_and_forget(self: LinkStream, piece: Write) -> None:
        with trio.move_on_after(0.5):
            await write(self, piece)

    with patch.object(LinkStream, "_write", write_and_forget):
        yield


@contextmanager
def outbox_never_told_of_a_link() -> Iterator[None]:
    """Replies wait for a connection for ever."""
    with patch.object(Outbox, "attach", lambda self, _put: self._fill()):
        yield


@contextmanager
def heartbeat_sender_dies() -> Iterator[None]:
    """No heartbeat is sent any more when a connection has been up for a while."""
    send = Session._send_heartbeats

    async def send_for_a_while(self: Session) -> None:
        with trio.move_on_after(2.5):
            await send(self)

    with patch.object(Session, "_send_heartbeats", send_for_a_while):
        yield


@contextmanager
def receive_loop_stops() -> Iterator[None]:
    """Nothing is read any more when a connection has been up for a while."""
    receive = Session._receive

    async def receive_for_a_while(self: Session) -> None:
        with trio.move_on_after(2.5):
            await receive(self)

    with patch.object(Session, "_receive", receive_for_a_while):
        yield


@attrs.frozen
class InjectedBug:
    """A bug, and a part of the violation that it causes."""

    inject: Callable[[], AbstractContextManager[None]]
    convicts: str


INJECTED_BUGS: Final[Mapping[str, InjectedBug]] = {
    "watchdog-any-message": InjectedBug(watchdog_reset_by_any_message, "and no refresh"),
    "reply-lost": InjectedBug(reply_lost_on_reconnect, "received"),
    "polite-stale-close": InjectedBug(polite_close_on_a_stale_link, "and no refresh"),
    "backoff-reset": InjectedBug(backoff_reset_at_connect, "dials in"),
    "no-poison": InjectedBug(cut_write_does_not_poison, "follow a write that was cut short"),
    "replies-never-sent": InjectedBug(outbox_never_told_of_a_link, "waited for"),
    "heartbeats-stop": InjectedBug(heartbeat_sender_dies, "between heartbeats of ours"),
    "receiving-stops": InjectedBug(receive_loop_stops, "was not read for"),
}
