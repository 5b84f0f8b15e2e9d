"""Replies that have not left yet; they outlive the link they were made on.

The rule: a reply that never left goes out first on the next link, byte for byte the same,
unless it is `OLDEST_REPLY` seconds old. One whose write was cut short counts as never left.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import trio

from .link.stream import Write
from .observer import Observer

MOST_REPLIES: Final = 10_000  # minutes of a feed at tens a second
MOST_BYTES: Final = 8 * 1024 * 1024  # of their frames; with the ids, which the log names, twice
OLDEST_REPLY: Final = 60.0  # s
LOOK_EVERY: Final = 1.0  # s; by so much later a reply that is too old is reported
# Bytes of replies in one write. With the headers of their frames they fit into one record of TLS,
# 16 KiB: the peer gets all of a write or nothing of it, so none is sent twice.
WRITE_SIZE: Final = 14 * 1024

Put = Callable[[Sequence[bytes], Callable[[], None]], Write | None]


class Reply(msgspec.Struct, eq=False, gc=False):
    """A reply on its way. `id` is raw JSON; `keep` tells whether it survives a reconnect."""

    id: bytes
    frame: bytes
    made_at: float
    keep: bool = True


class Outbox:
    """A bounded queue, emptied into the present link: one write at a time.

    A reply is kept until the system has taken it whole.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._queue: deque[Reply] = deque()
        self._bytes = 0  # of the frames in the queue
        self._put: Put | None = None  # of the present link
        self._write: Write | None = None  # that the link has not finished
        self._writing: Sequence[Reply] = ()  # the replies in it, which have left the queue
        self._waiting = trio.lowlevel.ParkingLot()  # who waits until fewer replies are left

    def __len__(self) -> int:
        """The replies that have not left, those being written among them."""
        return len(self._queue) + len(self._writing)

    def add(self, *replies: Reply) -> None:
        """Queue replies; when there are too many the oldest are dropped."""
        size = 0
        for reply in replies:
            size += len(reply.frame)
        self._queue += replies
        self._bytes += size
        self._fill()
        while self._queue and (len(self) > MOST_REPLIES or self._bytes > MOST_BYTES):
            self._drop_oldest("too many replies wait for a link")

    def attach(self, put: Put) -> None:
        """A link is there, which sends by `put` (see `Link.put`)."""
        self._put = put
        self._expire()
        self._fill()

    def lose_link(self) -> None:
        """The link is gone: what has not left it whole goes first on the next."""
        left = 0 if self._write is None else self._write.texts_taken()
        for reply in reversed(self._writing[left:]):
            self._queue.appendleft(reply)
            self._bytes += len(reply.frame)
        self._put, self._write, self._writing = None, None, ()
        queue, self._queue = self._queue, deque()
        for reply in queue:
            if reply.keep:
                self._queue.append(reply)
            else:
                self._drop(reply, "it was for the link that is gone")

    def discard_all(self, why: str) -> None:
        """Nothing more will be sent."""
        self.lose_link()
        while self._queue:
            self._drop_oldest(why)

    async def wait_empty(self) -> None:
        """Returns when every reply has left, or was dropped."""
        while len(self):
            await self._waiting.park()

    async def drop_the_old(self) -> None:
        """Drop each reply when it has waited for `OLDEST_REPLY` seconds; for ever."""
        while True:
            await trio.sleep(LOOK_EVERY)
            self._expire()

    def _fill(self) -> None:
        """Give the link what it takes, a batch of replies at a time."""
        queue = self._queue
        while queue and self._put is not None and self._write is None:
            self._writing = batch = [queue.popleft()]
            size = len(batch[0].frame)
            while queue and (size_with := size + len(queue[0].frame)) <= WRITE_SIZE:
                batch.append(queue.popleft())
                size = size_with
            self._bytes -= size
            self._write = self._put([reply.frame for reply in batch], self._on_whole)
            if self._write is None:
                self._writing = ()
                if self._waiting:
                    self._waiting.unpark_all()

    def _on_whole(self) -> None:
        """The link has taken the write that it had not finished."""
        self._write, self._writing = None, ()
        self._waiting.unpark_all()
        self._expire()
        self._fill()

    def _expire(self) -> None:
        oldest = trio.current_time() - OLDEST_REPLY
        while self._queue and self._queue[0].made_at <= oldest:
            self._drop_oldest("it was too old")

    def _drop_oldest(self, why: str) -> None:
        """Drop the oldest reply that is not being written."""
        self._drop(self._queue.popleft(), why)

    def _drop(self, reply: Reply, why: str) -> None:
        """A reply that was taken from the queue will not be sent."""
        self._bytes -= len(reply.frame)
        self._waiting.unpark_all()
        self._observer.undelivered(reply.id, why)
