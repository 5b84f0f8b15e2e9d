"""The bytes of one link: read in whole, written through a queue, and shared with trio-websocket.

`LinkStream` stands between the network and two users. The link reads it (`read`) and
writes to it (`put`). trio-websocket sees a stream on which the response to the upgrade
comes, and after that the frames that the link passes on; what it sends goes into the same
queue as all else.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import attrs
import trio

from ..errors import LinkFailed, Loss
from .framing import CLOSE, whole_frames
from .tls import READ_SIZE, TlsStream
from .upgrade import UpgradeResponse

WRITE_WITHIN: Final = 2.0  # s, the period after which a heartbeat is overdue
WRITE_POLLS: Final = 8  # in that time: a stall of our own counts as one of them, not as the peer's
REASON_WITHIN: Final = 0.1  # s to read why the peer has gone, when a write has failed
PONG_BACKLOG: Final = 128  # writes in the queue from which on a pong is left out (5.5.3): 16 KiB


def do_nothing() -> None:
    """Nobody wants to know when a write is whole."""


@attrs.define(eq=False)
class Write:
    """Bytes to be written, and how many of them the system has taken.

    `texts` are those whose frames the bytes are, if they are such. `on_whole` is
    called when the system has taken all.
    """

    data: bytes
    texts: Sequence[bytes] = ()
    on_whole: Callable[[], None] = do_nothing
    taken: int = 0

    def texts_taken(self) -> int:
        """How many of the texts the system has taken whole."""
        return whole_frames(self.texts, self.taken)


class LinkStream:
    """A link's network, and the stream that trio-websocket gets.

    `put` writes at once if the queue is empty, `write_queued` writes the rest. A write
    stays at the head of the queue until the system has taken it whole, so that no byte can
    follow one that was cut short.
    """

    def __init__(self, network: trio.abc.Stream, subprotocol: str | None = None) -> None:
        self._network = network
        # A socket is read and written without a task switch; another stream by its own methods.
        socket = getattr(network, "socket", None)
        self._fd: int | None = None if socket is None else socket.fileno()
        self._tls = network if socket is not None and isinstance(network, TlsStream) else None
        self._response: UpgradeResponse | None = UpgradeResponse(subprotocol)
        self._behind_response = b""  # the first of the frames, came with it
        self._to_websocket, self._passed = trio.open_memory_channel[bytes](0)
        self._queue: deque[Write] = deque()
        self._changed = trio.lowlevel.ParkingLot()  # who waits for another state of all these
        self._next_at_once = False  # the next read does not wait
        self._broken = False  # the network takes no more
        self.shut = False  # nothing more is put: a close was, or the link has ended

    # In.

    async def read(self) -> bytes:
        """What has come next, one byte at least. Raises `trio.BrokenResourceError` at the end.

        Of two calls in a row one lets other tasks run.
        """
        data: bytes | None
        data, self._behind_response = self._behind_response, b""
        while not data:
            if self._fd is None:
                data = bytes(await self._network.receive_some(READ_SIZE))
            else:
                # A first attempt would mostly find nothing. But while what came was answered, if it
                # was much, more has come: that is read at once, each second time.
                at_once, self._next_at_once = self._next_at_once, False
                if not at_once:
                    await trio.lowlevel.wait_readable(self._fd)
                try:
                    data = os.read(self._fd, READ_SIZE)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                self._next_at_once = len(data) > READ_SIZE // 8 and not at_once
                if self._tls is not None:
                    # What TLS has to answer leaves with the next write, a heartbeat at the latest.
                    data = self._tls.unseal(data)
            if data == b"":
                raise trio.BrokenResourceError("the peer broke off")
        return data

    async def pass_on(self, data: bytes) -> None:
        """Give bytes to trio-websocket, and wait until it has dealt with them.

        Raises `trio.BrokenResourceError` when the link has ended.
        """
        await self._to_websocket.send(data)
        await self._to_websocket.send(b"")  # it is taken when the data is dealt with

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        """For trio-websocket: the response to the upgrade, then what is passed on.

        Raises `LinkFailed` when the response grants no upgrade, and when there will be no
        more of it: trio-websocket would wait on.
        """
        if self._response is None:
            while not (data := await self._passed.receive()):
                pass
            return data
        try:
            while (behind := self._response.feed(await self.read())) is None:
                pass
        except trio.BrokenResourceError:
            raise LinkFailed(Loss.RESET, "the peer broke off the upgrade") from None
        head, self._response, self._behind_response = self._response.head, None, behind
        return head

    # Out.

    def put(
        self, data: bytes, texts: Sequence[bytes] = (), on_whole: Callable[[], None] = do_nothing
    ) -> Write | None:
        """Write what the system takes at once, and queue the rest: the write if there is some.

        `texts` are those whose frames the data is, if it is such. Errors are left for
        `write_queued` to meet. Nothing follows a close or `end`.
        """
        taken = 0
        if self.shut:
            return Write(data, texts, on_whole)
        if self._tls is not None:
            texts = ()  # where a record ends is not known
            try:
                data = self._tls.seal(data)
            except trio.BrokenResourceError:
                self._broken = True
        if self._fd is not None and not self._queue and not self._broken:
            with suppress(OSError):
                taken = os.write(self._fd, data)
            if taken == len(data):
                return None
        write = Write(data, texts, on_whole, taken)
        self._queue.append(write)
        self._changed.unpark_all()
        return write

    async def write_queued(self) -> None:
        """Write what is queued, as it comes. Raises `LinkFailed` when the network takes no more."""
        with suppress(trio.BrokenResourceError, OSError):
            while not self._broken:
                if not self._queue:
                    await self._changed.park()
                    continue
                await self._write(self._queue[0])
                self._queue.popleft().on_whole()
                self._changed.unpark_all()
        self._broken = True
        self._changed.unpark_all()
        await trio.sleep(REASON_WITHIN)  # the reader comes upon the reason, and on what came before
        raise LinkFailed(Loss.RESET, "the peer broke off")

    async def _write(self, write: Write) -> None:
        if self._fd is None:
            await self._network.send_all(write.data)
            return
        while write.taken < len(write.data):
            try:
                write.taken += os.write(self._fd, write.data[write.taken :])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fd)

    async def watch_writes(self) -> None:
        """Raises `LinkFailed` when a write is not taken within `WRITE_WITHIN` seconds.

        A deadline on the write itself would cut a healthy link if it passed while
        our own loop stands still.
        """
        polls = 0
        seen: Write | None = None
        while polls < WRITE_POLLS:
            await trio.sleep(WRITE_WITHIN / WRITE_POLLS)
            head = self._queue[0] if self._queue else None
            polls = polls + 1 if head is seen and head is not None else 0
            seen = head
        raise LinkFailed(Loss.WRITE_STALLED, f"a write was not taken within {WRITE_WITHIN:g} s")

    async def wait_written(self) -> None:
        """Returns when the queue is empty. Raises `trio.BrokenResourceError` if it cannot be."""
        while self._queue and not self._broken:
            await self._changed.park()
        if self._broken:
            raise trio.BrokenResourceError("the network takes no more")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """For trio-websocket: write a close to the end, and put the upgrade and the pongs.

        The reader must not wait for the writer.
        """
        data = bytes(data)
        if data[0] == CLOSE:
            await self.send_close(data)
        elif len(self._queue) < PONG_BACKLOG:
            self.put(data)
        await trio.lowlevel.checkpoint()

    async def send_close(self, data: bytes) -> None:
        """Write a close frame behind all that is queued; no byte follows it.

        Raises `trio.BrokenResourceError`.
        """
        self.put(data)
        self.shut = True
        await self.wait_written()

    # The end.

    def end(self) -> None:
        """Read and write nothing more, not even what is left in the queue."""
        self.shut = self._broken = True
        self._passed.close()
        if self._fd is not None:
            self._fd = -1  # the next file may get the number
        self._changed.unpark_all()

    async def aclose(self) -> None:
        """Does nothing: the network is closed by who opened it, in any case and by force."""
        await trio.lowlevel.checkpoint()
