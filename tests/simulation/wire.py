"""A connection in memory: a simple TCP with a scripted peer.

The peer is not a task of the loop. It sends a series of segments, each with the time
of its arrival, and reads through a buffer that drains at a given rate. So the peer
goes on while our own loop is stalled, like a peer on another machine, and its
heartbeats are in the buffer afterwards.
"""

import errno
import heapq
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal
from unittest.mock import patch

import attrs
import support
import trio

from ratebridge.link import stream as stream_module

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in the standard library from Python 3.12 on

    from .feed import ScriptedPeer
    from .trace import Trace

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

_NUMBERS: Final = count(1_000_000)  # in place of those of files

MarkKind = Literal["beat", "ask", "junk", "ping", "fatal"]


@attrs.frozen
class Mark:
    """What is complete with a certain byte: a heartbeat, a request, a fatal error."""

    kind: MarkKind
    what: Any = None


@attrs.frozen
class Segment:
    """Bytes that arrive together at trio time `at`, and how the stream ends behind them, if so.

    `marks` stand at the offset behind their last byte.
    """

    at: float
    data: bytes = b""
    marks: tuple[tuple[int, Mark], ...] = ()
    end: Literal["", "fin", "reset"] = ""


@attrs.define
class Uplink:
    """How the peer takes what we write: `rate` bytes a second from a buffer of `capacity`.

    At trio time `turns_at` the rate becomes `then`. `breaks_after` so many bytes the
    connection is reset.
    """

    capacity: int = 65536
    rate: float = inf
    turns_at: float = inf
    then: float = inf
    breaks_after: float = inf


@attrs.frozen
class Frame:
    """A frame of ours; `end` is its offset in the write that holds it."""

    opcode: int
    payload: bytes
    end: int


@attrs.define(eq=False)
class Write:
    """What was to be written at a time, and how much of it the system took till when."""

    at: float
    data: bytes
    frames: list[Frame]
    taken: int = 0
    ended: float = inf

    @property
    def done(self) -> bool:
        return self.taken == len(self.data)


class Wire(trio.socket.SocketType):
    """Our end of the connection, a socket. It keeps a record of all that passes.

    The trace gets a line for each thing that no client may do, and is told of moments at
    which a simulation may want to strike.
    """

    type = socket.SOCK_STREAM  # what a SocketStream asks of a socket
    did_shutdown_SHUT_WR = False  # noqa: N815 - the name is trio's

    def __init__(self, peer: "ScriptedPeer", most_at_a_time: int, trace: "Trace") -> None:
        self.opened: Final = trio.current_time()
        self.closed = inf
        self.arrived: Final[list[tuple[float, Mark]]] = []
        self.read: Final[list[tuple[float, Mark]]] = []
        self.writes: Final[list[Write]] = []
        self.said_close = False
        self._peer = peer
        self._most_at_a_time = most_at_a_time
        self._trace = trace
        self._fileno = next(_NUMBERS)
        self._upgraded = False
        # The way down.
        self._script: Iterator[Segment] = iter(())
        self._coming: list[tuple[float, int, Segment, bool]] = []  # a heap; whether of the script
        self._numbers = count()
        self._buffer = bytearray()
        self._bytes_arrived = 0
        self._bytes_read = 0
        self._unread: deque[tuple[int, Mark]] = deque()
        self._fin = False
        self._reset = False
        self._changed = trio.Event()
        # The way up.
        self._level = 0.0
        self._level_at = self.opened
        self._bytes_taken = 0
        self._waits_for: set[str] = set()
        self._write: Write | None = None  # that is not done yet
        self._cut_short = False

    # What the service calls: a socket that does not block, and how to wait for it.

    def read_now(self, most: int) -> bytes:
        """What `os.read` does."""
        self._resolve()
        if self._buffer:
            # The oversized frame is read in large pieces, or it would take seconds of real time.
            small = len(self._buffer) < 100_000
            return self._take(min(most, self._most_at_a_time) if small else most)
        if self._fin:
            self._meet_the_end()
            return b""
        raise BlockingIOError

    def write_now(self, data: "Buffer") -> int:
        """What `os.write` does."""
        if self.closed < inf:  # a write that waited when the link's end closed the socket
            raise OSError(errno.EBADF, "closed")
        write = self._begin_or_go_on(bytes(data))
        try:
            self._resolve()
            taken = self._push(write)
        except OSError:
            self._end_write(write)
            raise
        if not taken:
            raise BlockingIOError
        if write.done:
            self._end_write(write)
            self._react(write)
        return taken

    async def wait_readable(self) -> None:
        with self._alone("read"):
            await trio.lowlevel.checkpoint()
            while self.closed == inf and not (self._buffer or self._fin or self._reset):
                with trio.move_on_at(self._next_arrival()):
                    await self._changed.wait()
                self._arrive()

    async def wait_writable(self) -> None:
        self._trace.on("blocked")
        with self._alone("write"):
            await trio.lowlevel.checkpoint()
            while self.closed == inf and not self._reset and not self._has_room():
                with trio.move_on_at(self._when_room()):
                    await self._changed.wait()
                self._arrive()

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """One task at a time waits for this; a write ends when its waiting is cancelled."""
        if what in self._waits_for:
            self._trace.complain(f"two tasks {what} at a time")
        self._waits_for.add(what)
        try:
            yield
        except BaseException:
            if what == "write" and self._write is not None:
                self._end_write(self._write)
            raise
        finally:
            self._waits_for.discard(what)

    async def recv(self, buflen: int, flags: int = 0, /) -> bytes:
        while True:
            await self.wait_readable()
            with suppress(BlockingIOError):
                return self.read_now(buflen)

    async def send(self, data: "Buffer", flags: int = 0, /) -> int:
        await trio.lowlevel.checkpoint()
        while True:
            with suppress(BlockingIOError):
                return self.write_now(data)
            await self.wait_writable()

    def close(self) -> None:
        if self.closed == inf:
            self._arrive()
            self.closed = trio.current_time()
            if self._write is not None:
                self._end_write(self._write)
            self._wake()

    def fileno(self) -> int:
        """A number that is no file of this process, should it come to a system call."""
        return -1 if self.closed < inf else self._fileno

    def setsockopt(self, *_option: Any) -> None:
        pass

    def _resolve(self) -> None:
        """See what has come; raises what a socket does when there is an end to everything."""
        if self.closed < inf:
            raise OSError(errno.EBADF, "closed")
        self._arrive()
        if self._reset:
            self._meet_the_end()
            raise ConnectionResetError

    # The way down.

    def _arrive(self) -> None:
        """Let come in what is due by now."""
        now = trio.current_time()
        while not self._reset and self._next_arrival() <= now:
            _, _, segment, of_script = heapq.heappop(self._coming)
            if of_script:
                self._look_ahead()
            if self._fin:
                continue
            for offset, mark in segment.marks:
                self.arrived.append((segment.at, mark))
                self._unread.append((self._bytes_arrived + offset, mark))
            self._buffer += segment.data
            self._bytes_arrived += len(segment.data)
            self._fin = segment.end == "fin"
            self._reset = segment.end == "reset"
            if self._reset:
                self._coming.clear()
                self._wake()

    def _next_arrival(self) -> float:
        return self._coming[0][0] if self._coming else inf

    def _look_ahead(self) -> None:
        segment = next(self._script, None)
        if segment is not None:
            heapq.heappush(self._coming, (segment.at, next(self._numbers), segment, True))

    def _insert(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            heapq.heappush(self._coming, (segment.at, next(self._numbers), segment, False))
        self._wake()

    def _take(self, most: int) -> bytes:
        data = bytes(self._buffer[:most])
        del self._buffer[:most]
        self._bytes_read += len(data)
        while self._unread and self._unread[0][0] <= self._bytes_read:
            mark = self._unread.popleft()[1]
            self.read.append((trio.current_time(), mark))
            if mark.kind == "ask":
                self._trace.on("asked")
        return data

    def _meet_the_end(self) -> None:
        """Discard unread data; only the end itself is left to read."""
        now = trio.current_time()
        self.read.extend((now, mark) for _, mark in self._unread if mark.kind == "fatal")
        self._unread.clear()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # The way up.

    def _begin_or_go_on(self, data: bytes) -> Write:
        """The write that `data` is the rest of; or a new one, judged before its first byte goes."""
        under_way = self._write
        if under_way is not None:
            if data == under_way.data[under_way.taken :]:
                return under_way
            if under_way.taken:
                self._trace.complain("a write begins before another has ended")
                self._end_write(under_way)
            else:  # it was refused whole: it may come again, and another may come before it
                self.writes.remove(under_way)
        if self._cut_short:
            self._trace.complain("bytes follow a write that was cut short")
        frames: list[Frame] = []
        if self._upgraded:
            frames = client_frames(data)
            if not frames:
                self._trace.complain("a write is not made of whole masked frames")
            if self.said_close and any(f.opcode in (TEXT, BINARY, CLOSE) for f in frames):
                self._trace.complain("data, or a second close, follows our close")
        write = self._write = Write(trio.current_time(), data, frames)
        self.writes.append(write)
        return write

    def _end_write(self, write: Write) -> None:
        write.ended = trio.current_time()
        self._write = None
        self._cut_short = 0 < write.taken < len(write.data)

    def _push(self, write: Write) -> int:
        """Take as much of the write as there is room for; that breaks the connection at times."""
        uplink = self._peer.uplink
        left = len(write.data) - write.taken
        room = self._room()
        until_broken = uplink.breaks_after - self._bytes_taken
        if until_broken <= 0:
            self._insert([Segment(trio.current_time(), end="reset")])
            self._resolve()
        taken = int(min(left, room, until_broken))
        write.taken += taken
        self._bytes_taken += taken
        if uplink.rate != inf:
            self._level += taken
        return taken

    def _drain(self) -> None:
        uplink = self._peer.uplink
        now = trio.current_time()
        if now >= uplink.turns_at:
            self._drain_until(uplink.turns_at)
            uplink.rate, uplink.turns_at = uplink.then, inf
        self._drain_until(now)

    def _drain_until(self, at: float) -> None:
        drained = (at - self._level_at) * self._peer.uplink.rate if at > self._level_at else 0.0
        self._level = max(0.0, self._level - drained)
        self._level_at = at

    def _room(self) -> float:
        """Bytes that the system would take now."""
        self._drain()
        uplink = self._peer.uplink
        return inf if uplink.rate == inf else max(0, int(uplink.capacity - self._level))

    def _has_room(self) -> bool:
        """Whether the system would wake a writer: it does so for a third of the buffer."""
        return self._room() >= max(1, self._peer.uplink.capacity // 3)

    def _when_room(self) -> float:
        uplink = self._peer.uplink
        if uplink.rate == 0:
            return uplink.turns_at
        excess = self._level + max(1, uplink.capacity // 3) - uplink.capacity
        # A little later, because of rounding errors.
        return min(self._level_at + excess / uplink.rate + 1e-6, uplink.turns_at)

    def _react(self, write: Write) -> None:
        """Let the peer react to a write that has reached it."""
        now = trio.current_time()
        if not self._upgraded:
            self._upgraded = True
            self._script = self._peer.begin(now, write.data)
            self._look_ahead()
            self._wake()
        elif any(frame.opcode == CLOSE for frame in write.frames):
            self.said_close = True
            if self._peer.uplink.rate > 0:
                self._insert(self._peer.hear_close(now))
        elif self._fin:
            self._insert([Segment(now, end="reset")])  # the peer has gone


class Sealed:
    """A stream over a wire that does not tell how far a write has come, as TLS does not."""

    def __init__(self, wire: Wire) -> None:
        self._stream = trio.SocketStream(wire)

    def __getattr__(self, name: str) -> Any:
        if name == "socket":  # whoever knows that writes to it at once
            raise AttributeError(name)
        return getattr(self._stream, name)


# The replacement of sockets.


class Kernel:
    """In place of `os`, as far as sockets are concerned: the wires by their numbers."""

    def __init__(self) -> None:
        self.wires: dict[int, Wire] = {}

    def _wire(self, number: int) -> Wire:
        if number not in self.wires:
            raise OSError(errno.EBADF, "closed")
        wire = self.wires[number]
        assert wire.closed == inf, "by now the number can be another file's"
        return wire

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Let the link's system calls come here, and its waiting for sockets go to the wires."""
        calls = SimpleNamespace(
            read=lambda number, most: self._wire(number).read_now(most),
            write=lambda number, data: self._wire(number).write_now(data),
        )
        waits: dict[str, Any] = {
            "wait_readable": lambda number: self._wire(number).wait_readable(),
            "wait_writable": lambda number: self._wire(number).wait_writable(),
        }
        with patch.object(stream_module, "os", calls), patch.multiple(trio.lowlevel, **waits):
            yield


# Frames (RFC 6455, section 5.2).


def server_frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """One frame as a server sends it."""
    return support.server_frame(payload, (0x80 if fin else 0) | opcode)


def client_frames(data: bytes) -> list[Frame]:
    """The frames of a client's write; none when it does not consist of whole masked ones."""
    frames: list[Frame] = []
    at = 0
    while at < len(data):
        head = data[at : at + 14]
        if len(head) < 6 or not head[1] & 0x80 or not head[0] & 0x80:
            return []
        size, begin = head[1] & 0x7F, at + 2
        if size == 126:
            size, begin = int.from_bytes(head[2:4]), begin + 2
        elif size == 127:
            size, begin = int.from_bytes(head[2:10]), begin + 8
        key = data[begin : begin + 4]
        masked = data[begin + 4 : begin + 4 + size]
        if len(masked) < size:
            return []
        mask = (key * (size // 4 + 1))[:size]
        plain = int.from_bytes(masked) ^ int.from_bytes(mask)
        at = begin + 4 + size
        frames.append(Frame(head[0] & 0xF, plain.to_bytes(size), at))
    return frames
