"""What waits to be written: replies, which outlive the link they were made on, and heartbeats.

The rule (protocol, "One request, one reply"): a reply that never left goes out
first on the next link, byte for byte the same, unless it is too old. One whose
write was cut short counts as never left.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from .messages import HEARTBEAT
from .observer import Observer

MOST_REPLIES: Final = 10_000  # some 3 MB; minutes of a feed at tens a second
OLDEST_REPLY: Final = 60.0  # s
WRITE_SIZE: Final = 32 * 1024  # bytes of replies in one write: a heartbeat waits for one at most


class Reply(msgspec.Struct, eq=False, gc=False):
    """A reply on its way. `id` is raw JSON; `keep` tells whether it survives a reconnect."""

    id: bytes
    frame: bytes
    made_at: float
    keep: bool = True


def _nobody() -> None:
    """There is no link to write on."""


class Outbox:
    """A bounded queue, which the present session empties: one write at a time is taken from it."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._replies: deque[Reply] = deque()
        self._heartbeat_due = False
        self._taken: list[Reply] = []
        self._heartbeats_taken = 0  # in front of those
        self.on_filled: Callable[[], None] = _nobody  # called when there is something to take
        self._lessened = trio.Event()

    def __len__(self) -> int:
        """The replies that have not left, those being written among them."""
        return len(self._replies) + len(self._taken)

    def add(self, *replies: Reply) -> None:
        """Queue replies; when there are too many the oldest are given up."""
        self._replies += replies
        while len(self) > MOST_REPLIES and self._replies:
            self._undelivered(self._replies.popleft(), "too many replies wait for a link")
        self.on_filled()

    def add_heartbeat(self) -> None:
        """A heartbeat is due: it goes before everything else, and on this link or never."""
        self._heartbeat_due = True
        self.on_filled()

    def take(self) -> list[bytes]:
        """The frames of the next write, if any. `sent` follows, then `lose_link` perhaps."""
        self._expire()
        heartbeats = [HEARTBEAT] if self._heartbeat_due else []
        self._heartbeat_due = False
        self._heartbeats_taken = len(heartbeats)
        self._taken = self._batch()
        return heartbeats + [reply.frame for reply in self._taken]

    def sent(self, count: int) -> None:
        """The first `count` frames of what was taken have been written; no others of it will be."""
        del self._taken[: max(0, count - self._heartbeats_taken)]
        self._lessened.set()

    async def wait_empty(self) -> None:
        """Returns when every reply has left, or was given up."""
        while len(self):
            self._lessened = trio.Event()
            await self._lessened.wait()

    def lose_link(self) -> None:
        """The link is gone: what was taken and not `sent` goes first on the next."""
        replies = [*self._taken, *self._replies]
        self._taken = []
        self._heartbeat_due = False
        self.on_filled = _nobody
        self._replies = deque(reply for reply in replies if reply.keep)
        for reply in replies:
            if not reply.keep:
                self._undelivered(reply, "it was for the link that is gone")

    def discard_all(self, why: str) -> None:
        """Nothing more will be sent."""
        self.lose_link()
        while self._replies:
            self._undelivered(self._replies.popleft(), why)

    def _batch(self) -> list[Reply]:
        batch: list[Reply] = []
        size = 0
        replies = self._replies
        while replies and (not batch or size + len(replies[0].frame) <= WRITE_SIZE):
            reply = replies.popleft()
            size += len(reply.frame)
            batch.append(reply)
        return batch

    def _expire(self) -> None:
        oldest = trio.current_time() - OLDEST_REPLY
        while self._replies and self._replies[0].made_at <= oldest:
            self._undelivered(self._replies.popleft(), "it was too old")

    def _undelivered(self, reply: Reply, why: str) -> None:
        self._lessened.set()
        self._observer.undelivered(reply.id, why)
