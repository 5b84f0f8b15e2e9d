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
from .reporting.observer import Observer

MOST_REPLIES: Final = 10_000  # minutes of a feed at tens a second
MOST_BYTES: Final = 8 * 1024 * 1024  # of their frames; with the ids, which the log names, twice
OLDEST_REPLY: Final = 60.0  # s
LOOK_EVERY: Final = 1.0  # s; by so much later a reply that is too old is reported
# Bytes of replies in one write. With the headers of their frames they fit into one record of TLS,
# 16 KiB: the peer gets all of a write or nothing of it, so none is sent twice.
WRITE_SIZE: Final = 14 * 1024

Put = Callable[[Sequence[bytes], Callable[[], None]], Write | None]


class Reply(msgspec.Struct, eq=False, gc=False):
    """A reply on its way. `id` is raw JSON."""

    id: bytes
    frame: bytes
    made_at: float


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
        self._emptied: trio.Event | None = None  # set when no reply is left

    def __len__(self) -> int:
        """The replies that have not left, those being written among them."""
        return len(self._queue) + len(self._writing)

    def add(self, *replies: Reply) -> None:
        """Queue replies; when there are too many the oldest are dropped."""
        self._queue += replies
        self._bytes += sum([len(reply.frame) for reply in replies])
        self._fill()
        while self._queue and (len(self) > MOST_REPLIES or self._bytes > MOST_BYTES):
            self._drop_oldest("too many replies wait for a link")

    def attach(self, put: Put) -> None:
        """A link is there, which sends by `put` (see `Link.put`)."""
        self._put = put
        self._fill()

    def lose_link(self) -> None:
        """The link is gone: what has not left it whole goes first on the next."""
        left = 0 if self._write is None else self._write.texts_taken()
        for reply in reversed(self._writing[left:]):
            self._queue.appendleft(reply)
            self._bytes += len(reply.frame)
        self._put, self._write, self._writing = None, None, ()

    def discard_all(self, why: str) -> None:
        """Nothing more will be sent."""
        self.lose_link()
        while self._queue:
            self._drop_oldest(why)

    async def wait_empty(self) -> None:
        """Returns when every reply has left, or was dropped."""
        if len(self):
            self._emptied = trio.Event()
            await self._emptied.wait()

    async def drop_the_old(self) -> None:
        """Drop each reply when it has waited for `OLDEST_REPLY` seconds; for ever."""
        while True:
            await trio.sleep(LOOK_EVERY)
            self._fill()

    def _fill(self) -> None:
        """Drop what is too old, and give the link what it takes, a batch of replies at a time."""
        queue = self._queue
        oldest = trio.current_time() - OLDEST_REPLY
        while queue and queue[0].made_at <= oldest:
            self._drop_oldest("it was too old")
        while queue and self._put is not None and self._write is None:
            if self._bytes <= WRITE_SIZE:
                batch, size = list(queue), self._bytes
                queue.clear()
            else:
                batch = [queue.popleft()]
                size = len(batch[0].frame)
                while queue and (size_with := size + len(queue[0].frame)) <= WRITE_SIZE:
                    batch.append(queue.popleft())
                    size = size_with
            self._bytes -= size
            self._writing = batch
            self._write = self._put([reply.frame for reply in batch], self._on_whole)
            if self._write is None:
                self._writing = ()
        if self._emptied is not None and not len(self):
            self._emptied.set()

    def _on_whole(self) -> None:
        """The link has taken the write that it had not finished."""
        self._write, self._writing = None, ()
        self._fill()

    def _drop_oldest(self, why: str) -> None:
        """Drop the oldest reply that is not being written."""
        reply = self._queue.popleft()
        self._bytes -= len(reply.frame)
        self._observer.undelivered(reply.id, why)
