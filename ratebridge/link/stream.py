"""The bytes of one link: what is read becomes texts in an inbox, what is written stands in line.

The stream here stands between the network and trio-websocket. It cuts the
ordinary text frames out of what comes (`framing`) and hands on only what is
left: the upgrade, pings, the close, fragments, and everything that breaks the
protocol. Frames come and go in batches, each batch with one read or write.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NoReturn

import attrs
import trio

from ..errors import LinkFailed
from .framing import FrameCutter
from .upgrade import UpgradeResponse

READ_SIZE: Final = 64 * 1024  # bytes, the most that one batch is made of
PONG_BACKLOG: Final = 16 * 1024  # bytes of pongs that wait for a peer who does not read

_OPCODE: Final = 0x0F
_CLOSE: Final = 0x08

Sink = Callable[[Sequence[bytes]], None]


class Inbox:
    """The texts on their way from those who read them to the one who takes them."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._texts: list[bytes] = []
        self._sink: Sink | None = None
        self._came = trio.Event()
        self._taken = trio.Event()

    async def put(self, texts: Sequence[bytes]) -> None:
        """Hand over texts; returns when they have been taken, so that no more is read before."""
        if self._sink is not None:
            try:
                self._sink(texts)
            except Exception as bug:  # noqa: BLE001 - it surfaces where `pour` was called
                self.end(bug)
            return
        self._texts += texts
        self._came.set()
        while self._texts:
            await self._taken.wait()

    async def take(self) -> list[bytes]:
        """All texts that have come, at least one. Raises the failure when there will be no more."""
        while not self._texts:
            if self.failure is not None:
                raise self.failure
            self._came = trio.Event()
            await self._came.wait()
        texts, self._texts = self._texts, []
        self._taken.set()
        self._taken = trio.Event()
        return texts

    async def pour(self, sink: Sink) -> NoReturn:
        """Have `sink` called with all texts as they come. Raises the failure at the end."""
        self._sink = sink
        while True:
            sink(await self.take())

    def end(self, failure: Exception) -> None:
        """No more texts will come. The first reason counts."""
        self.failure = self.failure or failure
        self._sink = None
        self._came.set()


@attrs.define(eq=False)
class Write:
    """Bytes to be written at a time, and how many of them the system has taken."""

    data: bytes
    taken: int = 0


class LinkStream:
    """The stream that trio-websocket sees: texts are cut out, writes are put in line."""

    def __init__(self, network: trio.abc.Stream, inbox: Inbox) -> None:
        self._network = network
        self._inbox = inbox
        self._response: UpgradeResponse | None = UpgradeResponse()  # until it is read
        self._cutter = FrameCutter()  # for what comes behind the upgrade
        self._pongs = bytearray()  # that wait to be written
        self._pongs_came = trio.Event()
        self._line = trio.Semaphore(1, max_value=1)  # a write that was begun is finished elsewhere
        self._shut = False  # no byte may follow: a write is under way or was cut short, or a close
        self.write_under_way: Write | None = None

    # What trio-websocket calls.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        """The next bytes for trio-websocket, once it has dealt with those before."""
        if self._response is not None:
            return await self._receive_response(self._response)
        while True:
            texts, rest = self._cutter.cut()
            if texts:
                await self._inbox.put(texts)
            if rest:
                return rest
            data = await _read(self._network)
            if not data:
                return b""
            self._cutter.feed(data)

    async def _receive_response(self, response: UpgradeResponse) -> bytes:
        """A piece of the response to the upgrade, and no byte of the frames behind it.

        Raises `LinkFailed` when it grants no upgrade, and when there will be no
        more of it: trio-websocket would wait on.
        """
        try:
            data = bytes(await self._network.receive_some(READ_SIZE))
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise LinkFailed("reset", "the peer broke off the upgrade")
        behind = response.feed(data)
        if behind is None:
            return data
        self._response = None
        self._cutter.feed(behind)
        return data[: len(data) - len(behind)]

    async def send_all(self, data: bytes) -> None:
        """Write the upgrade and the close; leave the rest, which is pongs, to `next_pongs`."""
        if self._response is not None:
            # A peer who breaks off may have said why: the response is read all the same.
            with suppress(trio.BrokenResourceError):
                await self.write(Write(data))
        elif data[0] & _OPCODE == _CLOSE:
            await self.write(Write(self._take_pongs() + data), last=True)
        else:
            # The reader must not wait for the writer. A pong too many may be left out (5.5.3).
            if len(self._pongs) < PONG_BACKLOG:
                self._pongs += data
                self._pongs_came.set()
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Does nothing: the network is closed by who opened it, in any case and by force."""
        await trio.lowlevel.checkpoint()

    # What the link calls.

    async def write(self, write: Write, *, last: bool = False) -> None:
        """Write all of it. Cut short in any way, nothing else is written, nor after the `last`.

        Raises `trio.BrokenResourceError` or `trio.ClosedResourceError`.
        """
        if not write.taken:  # else `begin` has come first in line
            await self._line.acquire()
        try:
            if self._shut and not write.taken:
                raise trio.BrokenResourceError("nothing may follow what was written last")
            self._shut = True
            self.write_under_way = write
            if isinstance(self._network, trio.SocketStream):
                await _send_counted(self._network, write)
            else:
                await self._network.send_all(write.data)
                write.taken = len(write.data)
            self.write_under_way = None
            self._shut = last
        finally:
            self._line.release()

    def begin(self, write: Write) -> None:
        """Write what the system takes at once, if no other write is under way.

        A write of which it has taken a part goes before all others; `write` has
        to be called with it. Errors are left for that to meet.
        """
        if self._shut or not isinstance(self._network, trio.SocketStream):
            return
        try:
            self._line.acquire_nowait()
        except trio.WouldBlock:
            return
        with suppress(OSError):
            write.taken = os.write(self._network.socket.fileno(), write.data)
        if 0 < write.taken < len(write.data):
            self._shut = True
            self.write_under_way = write
        else:
            self._line.release()

    async def next_pongs(self) -> bytes:
        """The pongs that trio-websocket wants to be written; waits for some."""
        while not self._pongs:
            self._pongs_came = trio.Event()
            await self._pongs_came.wait()
        return self._take_pongs()

    def _take_pongs(self) -> bytes:
        pongs = bytes(self._pongs)
        self._pongs.clear()
        return pongs


async def _read(network: trio.abc.Stream) -> bytes:
    """`receive_some`, on a bare socket without the attempt before the wait: it would be in vain."""
    if not isinstance(network, trio.SocketStream):
        return bytes(await network.receive_some(READ_SIZE))
    while True:
        await trio.lowlevel.wait_readable(network.socket)
        try:
            return os.read(network.socket.fileno(), READ_SIZE)
        except BlockingIOError:
            continue
        except OSError:
            raise trio.BrokenResourceError("the peer broke off") from None


async def _send_counted(network: trio.SocketStream, write: Write) -> None:
    """`send_all`, with the count of what was taken even if it does not come to its end."""
    with memoryview(write.data) as data:
        while write.taken < len(data):
            try:
                write.taken += os.write(network.socket.fileno(), data[write.taken :])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(network.socket)
            except OSError:
                raise trio.BrokenResourceError("the peer broke off") from None
