"""One websocket from open to end, and the one module that knows trio-websocket.

trio-websocket cannot be used bare: its opening and closing can hang for ever,
it passes each message through a channel and each send through a lock, and it
loses the causes of failures. So the stream is ours. It stands between the
network and trio-websocket, cuts the ordinary text frames out of what comes
(`framing`) and hands on only what is left: the upgrade, pings, the close,
fragments, and everything that breaks the protocol. Frames come and go in
batches, each batch with one read or write.
"""

import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from itertools import accumulate
from typing import Final, NoReturn

import attrs
import h11
import trio
import trio_websocket
import wsproto

from .address import Address
from .errors import LinkFailed
from .framing import MAX_FRAME, FrameCutter, client_frames

OPEN_WITHIN: Final = 5.0  # s for DNS, TCP, TLS and upgrade together
WRITE_WITHIN: Final = 2.0  # s, the period after which a heartbeat is overdue
WRITE_LOOKS: Final = 8  # in that time: a stall of our own counts as one of them, not as the peer's
LAST_WORDS: Final = 0.1  # s to read what came before the end, when a write has failed
CLOSE_WITHIN: Final = 1.0  # s for the close handshake; a container gets 10 s for all
READ_SIZE: Final = 64 * 1024  # bytes, the most that one batch is made of
PONG_BACKLOG: Final = 16 * 1024  # bytes of pongs that wait for a peer who does not read

_OPCODE: Final = 0x0F
_CLOSE: Final = 0x08

Dial = Callable[[], Awaitable[trio.abc.Stream]]
Sink = Callable[[Sequence[bytes]], None]


def network_dial(address: Address, tls: ssl.SSLContext | None) -> Dial:
    """A dial that opens TCP, and TLS where the address says so. It raises `LinkFailed`."""
    assert tls is not None or not address.secure, "TLS needs a context"

    async def dial() -> trio.abc.Stream:
        stream = await open_tcp(address)
        if tls is None or not address.secure:
            return stream
        return await add_tls(stream, address, tls)

    return dial


async def open_tcp(address: Address) -> trio.SocketStream:
    """Look the host up and connect. Raises `LinkFailed`."""
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except (OSError, UnicodeError) as error:
        raise _dial_failure(error) from None
    with suppress(AttributeError, OSError):  # not every platform knows it
        # Keepalive never fires while we send, and we send each second.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
    return stream


async def add_tls(
    stream: trio.SocketStream, address: Address, tls: ssl.SSLContext
) -> trio.SSLStream[trio.SocketStream]:
    """Put TLS on a connection; on failure that is closed. Raises `LinkFailed`."""
    try:
        secured = trio.SSLStream(stream, tls, server_hostname=address.host, https_compatible=True)
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise _tls_failure(error.__cause__) from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


def _dial_failure(error: OSError | UnicodeError) -> LinkFailed:
    if isinstance(error, socket.gaierror):
        return LinkFailed("dns", "the host was not found")
    if isinstance(error, UnicodeError):
        return LinkFailed("dns", "the host's name is not valid")
    attempts = error.__cause__
    if isinstance(attempts, ExceptionGroup):  # an error for each address that was tried
        if attempts.subgroup(ConnectionRefusedError) is not None:
            return LinkFailed("refused", "nobody listens on that port")
        error = next(e for e in attempts.exceptions if isinstance(e, OSError))
    return LinkFailed("unreachable", error.strerror or "no connection could be made")


def _tls_failure(cause: BaseException | None) -> LinkFailed:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return LinkFailed("certificate", f"the certificate does not pass: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return LinkFailed("tls", f"TLS failed: {cause.reason.replace('_', ' ').lower()}")
    return LinkFailed("tls", "the peer broke off the TLS handshake")


class _Inbox:
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
class _Write:
    """Bytes to be written at a time, and how many of them the system has taken."""

    data: bytes
    taken: int = 0


class _Stream:
    """The stream that trio-websocket sees: texts are cut out, writes are put in line."""

    def __init__(self, network: trio.abc.Stream, inbox: _Inbox) -> None:
        self._network = network
        self._inbox = inbox
        self._response: h11.Connection | None = _response_reader()  # until the upgrade is done
        self._cutter = FrameCutter()  # for what comes behind the upgrade
        self._pongs = bytearray()  # that wait to be written
        self._pongs_came = trio.Event()
        self._line = trio.Semaphore(1, max_value=1)  # a write that was begun is finished elsewhere
        self._shut = False  # no byte may follow: a write is under way or was cut short, or a close
        self.write_under_way: _Write | None = None

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

    async def _receive_response(self, response: h11.Connection) -> bytes:
        """A piece of the response to the upgrade, and no byte of the frames behind it.

        Raises `LinkFailed` for a response that grants no upgrade, as soon as its
        head is there, and when there will be none: trio-websocket would wait on.
        """
        try:
            data = bytes(await self._network.receive_some(READ_SIZE))
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise LinkFailed("reset", "the peer broke off the upgrade")
        response.receive_data(data)
        event = response.next_event()
        if event is h11.NEED_DATA:
            return data
        assert isinstance(event, h11.InformationalResponse | h11.Response)
        if event.status_code != 101:
            raise _rejected(event)
        behind, _ = response.trailing_data
        self._response = None
        self._cutter.feed(behind)
        return data[: len(data) - len(behind)]

    async def send_all(self, data: bytes) -> None:
        """Write the upgrade and the close; leave the rest, which is pongs, to `next_pongs`."""
        if self._response is not None:
            # A peer who breaks off may have said why: the response is read all the same.
            with suppress(trio.BrokenResourceError):
                await self.write(_Write(data))
        elif data[0] & _OPCODE == _CLOSE:
            await self.write(_Write(self._take_pongs() + data), last=True)
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

    async def write(self, write: _Write, *, last: bool = False) -> None:
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

    def begin(self, write: _Write) -> None:
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


def _response_reader() -> h11.Connection:
    """What reads the response to an upgrade: wsproto tells neither where it ends nor what it is."""
    reader = h11.Connection(h11.CLIENT)
    headers = [("Host", ""), ("Connection", "Upgrade"), ("Upgrade", "websocket")]
    reader.send(h11.Request(method="GET", target="/", headers=headers))
    return reader


def _rejected(response: h11.InformationalResponse | h11.Response) -> LinkFailed:
    status = response.status_code
    headers = dict(response.headers)
    retry_after = _retry_after(headers.get(b"retry-after", b""), headers.get(b"date", b""))
    return LinkFailed(
        "rejected", f"the peer answered HTTP {status}", status=status, retry_after=retry_after
    )


def _retry_after(value: bytes, now: bytes) -> float | None:
    """Seconds of a Retry-After: a number, or a date, which is seen from the response's own Date."""
    if value.isdigit():
        return float(value[:9])
    try:
        until, since = (parsedate_to_datetime(date.decode("ascii")) for date in (value, now))
        return max(0.0, (until - since).total_seconds())
    except (ValueError, TypeError):  # no date, or one of them without a time zone
        return None


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


async def _send_counted(network: trio.SocketStream, write: _Write) -> None:
    """`send_all`, with the count of what was taken even if it does not come to its end."""
    with memoryview(write.data) as data:
        while write.taken < len(data):
            try:
                write.taken += os.write(network.socket.fileno(), data[write.taken :])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(network.socket)
            except OSError:
                raise trio.BrokenResourceError("the peer broke off") from None


class Link:
    """An open websocket, made by `open_link`. Once it has ended its methods raise `LinkFailed`.

    `receive` has one caller at a time, and so has `send`.
    """

    def __init__(
        self, stream: _Stream, inbox: _Inbox, websocket: trio_websocket.WebSocketConnection
    ) -> None:
        self._stream = stream
        self._inbox = inbox
        self._websocket = websocket
        self._ended = trio.Event()
        self._is_closing = False
        self._goodbye = trio.CancelScope()
        self._texts: Sequence[bytes] = ()
        self._begun = _Write(b"")
        self.left = 0  # texts of the last batch that the system has taken whole

    async def receive(self) -> list[bytes]:
        """The next batch of whole text messages (UTF-8), at least one."""
        return await self._inbox.take()

    async def pour(self, sink: Sink) -> NoReturn:
        """Hand each batch to `sink`, in the task that has read it, until the link has ended.

        This takes two passes of the scheduler less than `receive`. What `sink`
        raises, this raises.
        """
        await self._inbox.pour(sink)

    def begin(self, texts: Sequence[bytes]) -> bool:
        """Write a batch as far as the system takes it at once: True when that is all of it.

        `finish` has to follow when it is not. (Over TLS nothing is taken at once.)
        """
        self._texts = texts
        self._begun = _Write(client_frames(texts))
        self._stream.begin(self._begun)
        self._count_left()
        return self.left == len(texts)

    async def finish(self) -> None:
        """Write the rest of what was begun. That it returns says only that the system took it.

        `left` tells how many texts it took, also when this raises or is cancelled.
        (Over TLS, which does not tell how far it came, that is all of them or none.)
        """
        try:
            await self._write(self._begun)
        finally:
            self._count_left()

    async def send(self, texts: Sequence[bytes]) -> None:
        """`begin` and `finish`."""
        if self.begin(texts):
            await trio.lowlevel.checkpoint()
        else:
            await self.finish()

    def _count_left(self) -> None:
        write = self._begun
        whole = write.taken == len(write.data)
        self.left = len(self._texts) if whole else _whole_frames(self._texts, write.taken)

    async def close(self, code: int) -> None:
        """Say goodbye and wait for the answer, for no more than `CLOSE_WITHIN` seconds.

        Nothing can be sent after that. Texts go on coming until the answer, and
        are to be received, or they stand in its way.
        """
        self._is_closing = True
        self._goodbye.deadline = trio.current_time() + CLOSE_WITHIN
        with self._goodbye:
            await self._websocket.aclose(code)

    async def _write(self, write: _Write) -> None:
        if self._ended.is_set():
            raise self._why_ended()
        try:
            await self._stream.write(write)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The reader comes upon the reason, and upon the last messages before it.
            with trio.move_on_after(LAST_WORDS):
                await self._ended.wait()
            raise self._why_ended() from None

    def _why_ended(self) -> Exception:
        return self._inbox.failure or LinkFailed("reset", "the peer broke off")

    def end(self, failure: LinkFailed) -> None:
        """The link has failed; the first reason counts."""
        self._inbox.end(failure)
        self._ended.set()
        self._goodbye.cancel()

    # The link's own tasks.

    async def pump_messages(self) -> None:
        """Hand over the messages that did not come as one whole text frame, until the end."""
        try:
            while True:
                message = await self._websocket.get_message()
                # A binary message is none of this protocol: it goes on as a text that is no JSON.
                text = message.encode() if isinstance(message, str) else b"\0binary"
                if len(text) > MAX_FRAME:  # trio-websocket has counted characters
                    self.end(_closed(_TOO_BIG))
                    return
                await self._inbox.put([text])
        except trio_websocket.ConnectionClosed as closed:
            if not self._is_closing:
                self.end(_closed(closed.reason or _NO_CLOSE))

    async def write_pongs(self) -> None:
        """Write the answers to pings."""
        try:
            while True:
                await self._write(_Write(await self._stream.next_pongs()))
        except LinkFailed as failure:
            self.end(failure)

    async def watch_writes(self) -> None:
        """End the link when a write is not taken in time.

        No deadline on the write itself would do: one that passes while our own
        loop stands still would cut a healthy link.
        """
        looks = 0
        seen = None
        while looks < WRITE_LOOKS:
            await trio.sleep(WRITE_WITHIN / WRITE_LOOKS)
            present = self._stream.write_under_way
            looks = looks + 1 if present is seen and present is not None else 0
            seen = present
        self.end(LinkFailed("write-stalled", f"a write was not taken within {WRITE_WITHIN:g} s"))


def _whole_frames(texts: Sequence[bytes], size: int) -> int:
    """How many of the texts have their frame within the first `size` bytes of a write."""
    ends = accumulate(len(client_frames([text])) for text in texts)
    return sum(end <= size for end in ends)


_NO_CLOSE: Final = trio_websocket.CloseReason(1006, None)
_TOO_BIG: Final = trio_websocket.CloseReason(1009, None)


def _closed(reason: trio_websocket.CloseReason) -> LinkFailed:
    code = int(reason.code)  # out of its enumeration
    if code == 1006:
        return LinkFailed("reset", "the peer broke off without a close", code=code)
    if code in (1002, 1007):
        return LinkFailed("protocol-error", reason.reason or "", code=code)
    if code == 1009:
        return LinkFailed("oversized", "a message of over 1 MiB", code=code)
    return LinkFailed("closed", reason.reason or "", code=code)


async def open_link(nursery: trio.Nursery, address: Address, dial: Dial) -> Link:
    """Open a link, whose tasks live in `nursery`; it ends, by force, when that is cancelled.

    Raises `LinkFailed` when it is not open within `OPEN_WITHIN` seconds, and
    when the peer, or the way to it, refuses.
    """
    with trio.move_on_after(OPEN_WITHIN):
        link: Link = await nursery.start(_run_link, address, dial, name="link")
        return link
    raise LinkFailed("open-timeout", f"no link within {OPEN_WITHIN:g} s")


async def _run_link(address: Address, dial: Dial, *, task_status: trio.TaskStatus[Link]) -> None:
    """The life of a link: trio-websocket's task, and ours beside it."""
    link: Link | None = None
    failure = LinkFailed("reset", "the peer broke off")
    network = await dial()
    inbox = _Inbox()
    stream = _Stream(network, inbox)
    try:
        async with trio.open_nursery() as websocket_nursery:
            websocket = await trio_websocket.wrap_client_stream(
                websocket_nursery,
                stream,  # type: ignore[arg-type]  # it has all of a stream that is called
                address.authority,
                address.target,
                max_message_size=MAX_FRAME,
            )
            link = Link(stream, inbox, websocket)
            websocket_nursery.start_soon(link.pump_messages, name="message pump")
            websocket_nursery.start_soon(link.write_pongs, name="pong writer")
            websocket_nursery.start_soon(link.watch_writes, name="write watch")
            task_status.started(link)
    except* LinkFailed as failures:  # of the upgrade
        failure = _first(failures)
    except* (h11.ProtocolError, wsproto.utilities.ProtocolError, UnicodeError):
        # Garbage in place of an upgrade; or, on an open link, a ping while it closed.
        failure = LinkFailed("protocol-error", "the peer does not speak websocket")
    finally:
        await trio.aclose_forcefully(network)
    if link is None:
        raise failure
    link.end(failure)


def _first(failures: BaseExceptionGroup[LinkFailed]) -> LinkFailed:
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LinkFailed)
    return error
