"""The bytes of one link: whole texts go to a handler, all that is written goes through a queue.

The stream stands between the network and trio-websocket. It cuts the ordinary
text frames out of what comes (`framing`) and hands on only what is left: the
upgrade, pings, the close, fragments, and everything that breaks the protocol.
Frames come and go in batches, each batch with one read or write.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import attrs
import trio

from ..errors import LinkFailed, Loss
from .framing import FrameCutter, whole_frames
from .tls import READ_SIZE, TlsStream
from .upgrade import UpgradeResponse

PONG_BACKLOG: Final = 128  # writes in the queue from which on a pong is left out (5.5.3): 16 KiB

_OPCODE: Final = 0x0F
_CLOSE: Final = 0x08

Handler = Callable[[Sequence[bytes]], None]


@attrs.define(eq=False)
class Write:
    """Bytes to be written, and how many of them the system has taken.

    `texts` are those whose frames the bytes are, if they are such. `on_whole` is
    called when the system has taken all.
    """

    data: bytes
    texts: Sequence[bytes] = ()
    on_whole: Callable[[], None] | None = None
    taken: int = 0

    def texts_taken(self) -> int:
        """How many of the texts the system has taken whole."""
        return whole_frames(self.texts, self.taken)


class LinkStream(trio.abc.Stream):
    """The stream that trio-websocket sees.

    No frame is cut before `handle` has set a handler. `put` writes at once if the
    queue is empty, `write_queued` writes the rest. A write stays at the head of the
    queue until the system has taken it whole, so that no byte can follow one that
    was cut short.
    """

    def __init__(self, network: trio.abc.Stream, subprotocol: str | None = None) -> None:
        self._network = network
        # A socket is read and written without a task switch; another stream by its own methods.
        self._tls = network if isinstance(network, TlsStream) else None
        self._fd: int | None = None
        if isinstance(network, trio.SocketStream | TlsStream):
            self._fd = network.socket.fileno()
        self._response: UpgradeResponse | None = UpgradeResponse(subprotocol)
        self._behind_response: bytes | None = None  # the first of the frames, came with it
        self._cutter = FrameCutter()
        self._handler: Handler | None = None
        self._handler_set = trio.Event()
        self._queue: deque[Write] = deque()
        self._queue_lot = trio.lowlevel.ParkingLot()  # who waits for it to fill, or to be empty
        self._broken = False  # the network takes no more
        self._shut = False  # nothing more is put: a close was, or the link has ended
        self.sent_close = False

    def handle(self, handler: Handler) -> None:
        """Have `handler` called with all texts that come, in the task that reads them."""
        self._handler = handler
        self._handler_set.set()

    def ignore_pings(self) -> None:
        """Leave pings unanswered from now on: once wsproto closes, one would break it."""
        self._cutter.drops_pings = True

    @property
    def head(self) -> Write | None:
        """The write that the system has not taken whole, if there is one."""
        return self._queue[0] if self._queue else None

    @property
    def peer_closes(self) -> bool:
        """Whether a close frame of the peer has come."""
        return self._cutter.saw_close

    def put(
        self,
        data: bytes,
        texts: Sequence[bytes] = (),
        on_whole: Callable[[], None] | None = None,
        *,
        sealed: bool = False,
    ) -> Write | None:
        """Write what the system takes at once, and queue the rest: the write if there is some.

        Errors are left for `write_queued` to meet. Nothing follows a close or `end`.
        `sealed` bytes are records of TLS already.
        """
        if self._shut:
            return Write(data, texts, on_whole)
        if self._tls is not None and not sealed:
            try:
                data, texts = self._tls.seal(data), ()  # where a record ends is not known
            except trio.BrokenResourceError:
                self._broken = True
                self._queue_lot.unpark_all()
                return Write(data)
        taken = 0
        if self._fd is not None and not self._queue:
            try:
                taken = os.write(self._fd, data)
            except OSError:
                pass
            else:
                if taken == len(data):
                    return None
        write = Write(data, texts, on_whole, taken)
        self._queue.append(write)
        self._queue_lot.unpark_all()
        return write

    async def write_queued(self) -> None:
        """Write what is queued, as it comes; returns when the network takes no more."""
        try:
            while True:
                while self._queue and not self._broken:
                    await self._write(self._queue[0])
                    write = self._queue.popleft()
                    if write.on_whole is not None:
                        write.on_whole()
                self._queue_lot.unpark_all()
                if self._broken:
                    return
                await self._queue_lot.park()
        except (trio.BrokenResourceError, OSError):
            self._broken = True
            self._queue_lot.unpark_all()

    async def _write(self, write: Write) -> None:
        if self._fd is None:
            await self._network.send_all(write.data)
            return
        while write.taken < len(write.data):
            try:
                write.taken += os.write(self._fd, write.data[write.taken :])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fd)
                if self._broken:
                    raise trio.BrokenResourceError("the link has ended") from None

    async def wait_written(self) -> None:
        """Returns when the queue is empty. Raises `trio.BrokenResourceError` if it cannot be."""
        while self._queue and not self._broken:
            await self._queue_lot.park()
        if self._broken:
            raise trio.BrokenResourceError("the network takes no more")

    # What trio-websocket calls.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        """The next bytes for trio-websocket, once it has dealt with those before."""
        if self._response is not None:
            return await self._receive_response(self._response)
        await self._handler_set.wait()  # a checkpoint, too: thousands of frames come with one read
        assert self._handler is not None, "it is set and never taken back"
        data, self._behind_response = self._behind_response, None
        while data != b"":
            texts, rest = self._cutter.cut(data)
            if texts:
                self._handler(texts)
            if rest:
                return rest
            if self._fd is None:
                data = bytes(await self._network.receive_some(READ_SIZE))
            else:
                # Without the first attempt of `receive_some`, which would find nothing.
                await trio.lowlevel.wait_readable(self._fd)
                data = self._read(self._fd)
        return data

    async def _receive_response(self, response: UpgradeResponse) -> bytes:
        """The head of the response to the upgrade, and no byte of the frames behind it.

        Raises `LinkFailed` when it grants no upgrade, and when there will be no
        more of it: trio-websocket would wait on.
        """
        behind = None
        while behind is None:
            try:
                data = bytes(await self._network.receive_some(READ_SIZE))
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise LinkFailed(Loss.RESET, "the peer broke off the upgrade")
            behind = response.feed(data)
        self._response = None
        self._behind_response = behind or None
        return response.head

    def _read(self, fd: int) -> bytes | None:
        """What has come: None if it is nothing yet, empty at the end."""
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            raise trio.BrokenResourceError("the peer broke off") from None
        if self._tls is None:
            return data
        plain = self._tls.unseal(data)
        if owed := self._tls.owed():
            self.put(owed, sealed=True)
        return plain

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write the upgrade and the close to the end, and queue the rest, which is pongs."""
        data = bytes(data)
        if self._response is not None:
            # A peer who breaks off may have said why: the response is read all the same.
            with suppress(trio.BrokenResourceError):
                await self._network.send_all(data)
        elif data[0] & _OPCODE == _CLOSE:
            await self.send_close(data)
        else:
            # The reader must not wait for the writer.
            if len(self._queue) < PONG_BACKLOG:
                self.put(data)
            await trio.lowlevel.checkpoint()

    async def send_close(self, data: bytes) -> None:
        """Write a close frame behind all that is queued; no byte follows it.

        Raises `trio.BrokenResourceError`.
        """
        self.put(data)
        self.sent_close = self._shut = True
        await self.wait_written()

    def end(self) -> None:
        """Write nothing more, not even what is left in the queue."""
        self._shut = self._broken = True
        self._queue_lot.unpark_all()

    async def wait_send_all_might_not_block(self) -> None:
        await self.wait_written()

    def forget_socket(self) -> None:
        """The network is being closed: a write from now on fails."""
        if self._fd is not None:
            self._fd = -1  # the next file may get the number

    async def aclose(self) -> None:
        """Does nothing: the network is closed by who opened it, in any case and by force."""
        await trio.lowlevel.checkpoint()
