"""Replies that have not left yet; they outlive the link they were made on.

The rule (protocol, "One request, one reply"): a reply that never left goes out
first on the next link, byte for byte the same, unless it is too old. One whose
write was cut short counts as never left.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import trio

from .link.stream import Write
from .observer import Observer

MOST_REPLIES: Final = 10_000  # minutes of a feed at tens a second
MOST_BYTES: Final = (
    8 * 1024 * 1024
)  # of their frames; with the ids, which the log names, twice that
OLDEST_REPLY: Final = 60.0  # s
WRITE_SIZE: Final = 32 * 1024  # bytes of replies in one write: a heartbeat waits for one at most

Put = Callable[[Sequence[bytes], Callable[[], None]], Write | None]


class Reply(msgspec.Struct, eq=False, gc=False):
    """A reply on its way. `id` is raw JSON; `keep` tells whether it survives a reconnect."""

    id: bytes
    frame: bytes
    made_at: float
    keep: bool = True


class Outbox:
    """A bounded queue, emptied into the present link: one write at a time.

    A reply stays in the queue until the system has taken it whole.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._replies: deque[Reply] = deque()
        self._bytes = 0  # of their frames
        self._put: Put | None = None  # of the present link
        self._write: Write | None = None  # that the link has not finished
        self._writing = 0  # replies in it, the first of the queue
        self._lessened = trio.Event()

    def __len__(self) -> int:
        """The replies that have not left, those being written among them."""
        return len(self._replies)

    def add(self, *replies: Reply) -> None:
        """Queue replies; when there are too many the oldest are dropped."""
        self._replies += replies
        self._bytes += sum([len(reply.frame) for reply in replies])
        self._fill()
        why = "too many replies wait for a link"
        while self._is_too_full() and self._drop_oldest(why):
            pass

    def attach(self, put: Put) -> None:
        """A link is there, which sends by `put` (see `Link`)."""
        self._put = put
        self._expire()
        self._fill()

    def lose_link(self) -> None:
        """The link is gone: what has not left it whole goes first on the next."""
        if self._write is not None:
            self._remove(self._write.texts_taken())
        self._put = self._write = None
        self._writing = 0
        kept = deque(reply for reply in self._replies if reply.keep)
        for reply in self._replies:
            if not reply.keep:
                self._bytes -= len(reply.frame)
                self._undelivered(reply, "it was for the link that is gone")
        self._replies = kept

    def discard_all(self, why: str) -> None:
        """Nothing more will be sent."""
        self.lose_link()
        while self._drop_oldest(why):
            pass

    async def wait_empty(self) -> None:
        """Returns when every reply has left, or was dropped."""
        while self._replies:
            self._lessened = trio.Event()
            await self._lessened.wait()

    def _fill(self) -> None:
        """Give the link what it takes."""
        while self._put is not None and self._write is None and self._replies:
            frames = self._batch()
            self._writing = len(frames)
            self._write = self._put(frames, self._on_whole)
            if self._write is None:
                self._remove(self._writing)

    def _on_whole(self) -> None:
        self._write = None
        self._remove(self._writing)
        self._expire()
        self._fill()

    def _remove(self, count: int) -> None:
        """The first replies have left."""
        for _ in range(count):
            self._bytes -= len(self._replies.popleft().frame)
        self._writing = 0
        self._lessened.set()

    def _batch(self) -> list[bytes]:
        """The frames of the next write."""
        frames: list[bytes] = []
        size = 0
        for reply in self._replies:
            size += len(reply.frame)
            if size > WRITE_SIZE and frames:
                break
            frames.append(reply.frame)
        return frames

    def _is_too_full(self) -> bool:
        return len(self._replies) > MOST_REPLIES or self._bytes > MOST_BYTES

    def _expire(self) -> None:
        oldest = trio.current_time() - OLDEST_REPLY
        while self._replies and self._replies[0].made_at <= oldest:
            self._drop_oldest("it was too old")

    def _drop_oldest(self, why: str) -> bool:
        """Drop the oldest reply that is not being written; False when there is none."""
        if len(self._replies) <= self._writing:
            return False
        reply = self._replies[self._writing]
        del self._replies[self._writing]
        self._bytes -= len(reply.frame)
        self._undelivered(reply, why)
        return True

    def _undelivered(self, reply: Reply, why: str) -> None:
        self._lessened.set()
        self._observer.undelivered(reply.id, why)
