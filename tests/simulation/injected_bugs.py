"""Bugs to inject one at a time, to show that the simulation finds them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final
from unittest.mock import patch

import attrs
import trio

from ratebridge.backoff import Backoff
from ratebridge.errors import LinkFailed
from ratebridge.link.link import Link
from ratebridge.link.stream import LinkStream, Write
from ratebridge.outbox import Outbox
from ratebridge.session import GOING_AWAY, Session
from ratebridge.supervisor import OpenLink, Supervisor

Patch = AbstractContextManager[Any]


def watchdog_reset_by_any_message() -> Patch:
    """Any message resets the heartbeat timeout."""
    answer = Session._answer

    async def answer_and_believe(self: Session, frames: Sequence[bytes]) -> None:
        self._heard = trio.current_time()
        await answer(self, frames)

    return patch.object(Session, "_answer", answer_and_believe)


def reply_lost_on_reconnect() -> Patch:
    """The replies being written when the connection is lost are dropped."""
    return patch.object(Write, "texts_taken", lambda self: len(self.texts))


def polite_close_on_a_stale_link() -> Patch:
    """A stale connection is closed by a close frame, and its answer waited for."""
    end = Link.end

    def end_politely(self: Link, failure: LinkFailed) -> None:
        async def close() -> None:
            await self.close(GOING_AWAY)
            end(self, failure)

        if failure.reason == "stale":
            trio.lowlevel.spawn_system_task(close)
        else:
            end(self, failure)

    return patch.object(Link, "end", end_politely)


def backoff_reset_at_connect() -> Patch:
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

    return patch.object(Supervisor, "__init__", init_hopefully)


def cut_write_does_not_poison() -> Patch:
    """Further writes follow one that was cut short."""
    write = LinkStream._write

    async def write_and_forget(self: LinkStream, piece: Write) -> None:
        with trio.move_on_after(0.5):
            await write(self, piece)

    return patch.object(LinkStream, "_write", write_and_forget)


def outbox_never_told_of_a_link() -> Patch:
    """Replies wait for a connection for ever."""
    return patch.object(Outbox, "attach", lambda self, _put: self._fill())


def heartbeat_sender_dies() -> Patch:
    """No heartbeat is sent any more when a connection has been up for a while."""
    send = Session._send_heartbeats

    async def send_for_a_while(self: Session) -> None:
        with trio.move_on_after(2.5):
            await send(self)

    return patch.object(Session, "_send_heartbeats", send_for_a_while)


def receive_loop_stops() -> Patch:
    """Nothing is read any more when a connection has been up for a while."""
    receive = Link.receive
    began: dict[Link, float] = {}

    async def receive_for_a_while(self: Link) -> list[bytes]:
        now = trio.current_time()
        if now - began.setdefault(self, now) > 2.5:
            await self._ended.wait()
        return await receive(self)

    return patch.object(Link, "receive", receive_for_a_while)


@attrs.frozen
class InjectedBug:
    """A bug, and a part of the violation that it causes."""

    inject: Callable[[], Patch]
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
