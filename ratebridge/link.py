"""One websocket from open to end, and the one module that knows trio-websocket.

trio-websocket cannot be used bare: its opening and closing can hang for ever,
it passes each message through a channel and each send through a lock, and it
loses the causes of failures. So the stream is ours. It stands between the
network and trio-websocket, cuts the ordinary text frames out of what comes
(`framing`) and hands on only what is left: the upgrade, pings, the close,
fragments, and everything that breaks the protocol. Frames come and go in
batches, each batch with one read or write.
"""

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import h11
import trio
import trio_websocket
import wsproto

from .address import Address
from .errors import LinkFailed
from .framing import MAX_FRAME, FrameCutter, client_frames

OPEN_WITHIN: Final = 5.0  # s for DNS, TCP, TLS and upgrade together
WRITE_WITHIN: Final = 2.0  # s, the period after which a heartbeat is overdue
CLOSE_WITHIN: Final = 1.0  # s for the close handshake; a container gets 10 s for all
READ_SIZE: Final = 64 * 1024  # bytes, the most that one batch is made of
CONTROL_BACKLOG: Final = 16 * 1024  # bytes of pongs that wait for a peer who does not read

Dial = Callable[[], Awaitable[trio.abc.Stream]]


def network_dial(address: Address, tls: ssl.SSLContext) -> Dial:
    """A dial that opens TCP, and TLS where the address says so. It raises `LinkFailed`."""

    async def dial() -> trio.abc.Stream:
        try:
            stream = await trio.open_tcp_stream(address.host, address.port)
        except (OSError, UnicodeError) as error:
            raise _dial_failure(error) from None
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Keepalive never fires while we send, and we send each second.
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
        if not address.secure:
            return stream
        secured = trio.SSLStream(stream, tls, server_hostname=address.host, https_compatible=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            raise _tls_failure(error.__cause__) from None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured

    return dial


def _dial_failure(error: BaseException) -> LinkFailed:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):  # one per address that was tried
            cause = cause.exceptions[0]
        if isinstance(cause, socket.gaierror):
            return LinkFailed("dns", "the host was not found")
        if isinstance(cause, UnicodeError):
            return LinkFailed("dns", "the host's name is not valid")
        if isinstance(cause, ConnectionRefusedError):
            return LinkFailed("refused", "nobody listens on that port")
        cause = cause.__cause__
    text = error.strerror if isinstance(error, OSError) else None
    return LinkFailed("unreachable", text or "no connection could be made")


def _tls_failure(cause: BaseException | None) -> LinkFailed:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return LinkFailed("certificate", f"the certificate does not pass: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return LinkFailed("tls", f"TLS failed: {cause.reason.replace('_', ' ').lower()}")
    return LinkFailed("tls", "the peer broke off the TLS handshake")


class _Stream(trio.abc.Stream):
    """The stream that trio-websocket sees: texts are cut out, writes are put in line."""

    def __init__(self, network: trio.abc.Stream) -> None:
        self._network = network
        self._writing = trio.Lock()
        self._poisoned = False  # a write was cut short: no byte may follow
        self._head = bytearray()  # of the response to the upgrade
        self._cutter: FrameCutter | None = None  # for what comes behind that head
        self._texts: list[bytes] = []
        self._texts_came = trio.Event()
        self._texts_taken = trio.Event()
        self._control = bytearray()  # frames of trio-websocket's own that wait to be written
        self._control_came = trio.Event()
        self.is_open = False  # the upgrade is done
        self.closing = False  # texts are of no interest any more
        self.broke_off = trio.Event()  # the peer will send no more

    # What trio-websocket calls.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        """The next bytes for trio-websocket, once it has dealt with those before."""
        while True:
            if self._cutter is not None:
                texts, rest = self._cutter.cut()
                if texts and not self.closing:
                    await self.put(texts)
                if rest:
                    return rest
                if texts:
                    continue
            try:
                data = bytes(await self._network.receive_some(READ_SIZE))
            except trio.BrokenResourceError:
                self.broke_off.set()
                raise
            if not data:
                self.broke_off.set()
                return data
            if self._cutter is None:
                return self._upgrade(data)
            self._cutter.feed(data)

    def _upgrade(self, data: bytes) -> bytes:
        """Hand on the head of the response, but no byte of the frames behind it."""
        before = len(self._head)
        self._head += data
        end = self._head.find(b"\r\n\r\n", max(0, before - 3)) + 4
        if end < 4 or not self._head.startswith(b"HTTP/1.1 101"):
            return data  # wsproto refuses anything but a 101, and bounds a head without end
        self._cutter = FrameCutter()
        self._cutter.feed(data[end - before :])
        return data[: end - before]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_open:
            await self.write(data)
            return
        # The reader must not wait for the writer. A pong too many may be left out (5.5.3).
        if len(self._control) < CONTROL_BACKLOG:
            self._control += data
            self._control_came.set()
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await self._network.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Does nothing: the network is closed by who opened it, in any case and by force."""
        await trio.lowlevel.checkpoint()

    # What the link calls.

    async def put(self, texts: Sequence[bytes]) -> None:
        """Hand over texts; returns when they have been taken."""
        self._texts += texts
        self._texts_came.set()
        while self._texts and not self.closing:
            await self._texts_taken.wait()

    async def take(self, ended: Callable[[], LinkFailed | None]) -> list[bytes]:
        """The texts that have come; waits for some, and raises what `ended` gives instead."""
        if self._texts:
            await trio.lowlevel.checkpoint()
        while not self._texts:
            if failure := ended():
                raise failure
            self._texts_came = trio.Event()
            await self._texts_came.wait()
        texts, self._texts = self._texts, []
        self._wake_putters()
        return texts

    def wake_taker(self) -> None:
        self._texts_came.set()

    def stop_taking(self) -> None:
        self.closing = True
        self._wake_putters()

    def _wake_putters(self) -> None:
        self._texts_taken.set()
        self._texts_taken = trio.Event()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it. Cut short in any way, the stream is poisoned and writes no more."""
        async with self._writing:
            if self._poisoned:
                raise trio.BrokenResourceError("an earlier write was cut short")
            self._poisoned = True
            await self._network.send_all(data)
            self._poisoned = False

    async def next_control(self) -> bytes:
        """The frames that trio-websocket wants to be written; waits for some."""
        while not self._control:
            self._control_came = trio.Event()
            await self._control_came.wait()
        data = bytes(self._control)
        self._control.clear()
        return data


class Link:
    """An open websocket, made by `open_link`. Once it has ended its methods raise `LinkFailed`.

    `receive` has one caller at a time, and so has `send`.
    """

    def __init__(self, stream: _Stream, websocket: trio_websocket.WebSocketConnection) -> None:
        self._stream = stream
        self._websocket = websocket
        self._failure: LinkFailed | None = None

    async def receive(self) -> list[bytes]:
        """The next batch of whole text messages (UTF-8), at least one."""
        return await self._stream.take(self._why_ended)

    async def send(self, texts: Sequence[bytes]) -> None:
        """Write a batch of text messages. That it returns says only that the system took them."""
        await self._write(client_frames(texts))

    async def close(self, code: int) -> None:
        """Say goodbye and wait for the answer, for no more than `CLOSE_WITHIN` seconds."""
        self._stream.stop_taking()
        with trio.move_on_after(CLOSE_WITHIN, shield=True):
            # Errors say that the peer was faster.
            with suppress(trio.BrokenResourceError, wsproto.utilities.LocalProtocolError):
                await self._websocket.aclose(code)

    async def _write(self, data: bytes) -> None:
        if failure := self._why_ended():
            raise failure
        with trio.move_on_after(WRITE_WITHIN):
            try:
                await self._stream.write(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise self._why_ended() or LinkFailed("reset", "the peer broke off") from None
            return
        raise LinkFailed("write-stalled", f"a write was not taken within {WRITE_WITHIN:g} s")

    def _why_ended(self) -> LinkFailed | None:
        return self._failure

    def end(self, failure: LinkFailed) -> None:
        """The link has failed; the first reason counts."""
        self._failure = self._failure or failure
        self._stream.wake_taker()

    async def write_control(self) -> None:
        """Write what trio-websocket has to say: pongs, and the close."""
        try:
            while True:
                await self._write(await self._stream.next_control())
        except LinkFailed as failure:
            self.end(failure)

    async def pump_messages(self) -> None:
        """Hand over the messages that did not come as one whole text frame, until the end."""
        try:
            while True:
                message = await self._websocket.get_message()
                # A binary message is none of this protocol: it goes on as a text that is no JSON.
                text = message.encode() if isinstance(message, str) else b"\0binary"
                await self._stream.put([text])
        except trio_websocket.ConnectionClosed as closed:
            self.end(_closed(closed.reason))


def _closed(reason: trio_websocket.CloseReason | None) -> LinkFailed:
    if reason is None or reason.code == 1006:
        return LinkFailed("reset", "the peer broke off without a close", code=1006)
    if reason.code in (1002, 1007):
        return LinkFailed("protocol-error", reason.reason or "", code=reason.code)
    if reason.code == 1009:
        return LinkFailed("oversized", "a message of over 1 MiB", code=1009)
    return LinkFailed("closed", reason.reason or "", code=reason.code)


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
    failure = LinkFailed("reset", "the peer broke off the upgrade")
    network = await dial()
    stream = _Stream(network)
    try:
        async with trio.open_nursery() as websocket_nursery:

            async def upgrade_or_end() -> None:
                await stream.broke_off.wait()
                if not stream.is_open:
                    websocket_nursery.cancel_scope.cancel()

            # FIN or RST here would leave wrap_client_stream waiting for ever.
            websocket_nursery.start_soon(upgrade_or_end, name="upgrade watch")
            websocket = await trio_websocket.wrap_client_stream(
                websocket_nursery,
                stream,  # type: ignore[arg-type]  # any trio stream will do
                address.authority,
                address.target,
                max_message_size=MAX_FRAME,
            )
            stream.is_open = True
            link = Link(stream, websocket)
            websocket_nursery.start_soon(link.write_control, name="control writer")
            task_status.started(link)
            await link.pump_messages()
            websocket_nursery.cancel_scope.cancel()
    except* trio_websocket.ConnectionRejected as rejections:
        failure = _rejected(rejections)
    except* (h11.ProtocolError, wsproto.utilities.ProtocolError):
        # Garbage in place of an upgrade; or, on an open link, a ping while it closed.
        failure = LinkFailed("protocol-error", "the peer does not speak websocket")
    finally:
        await trio.aclose_forcefully(network)
    if link is None:
        raise failure
    link.end(failure)


def _rejected(rejections: BaseExceptionGroup[trio_websocket.ConnectionRejected]) -> LinkFailed:
    error: BaseException = rejections
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, trio_websocket.ConnectionRejected)
    status = error.status_code
    retry_after = None
    for name, value in error.headers or ():
        if name.lower() == b"retry-after" and value.isdigit() and len(value) < 9:
            retry_after = float(value)
    return LinkFailed(
        "rejected", f"the peer answered HTTP {status}", status=status, retry_after=retry_after
    )
