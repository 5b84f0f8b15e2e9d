"""One websocket from open to end, and the one module that knows trio-websocket.

trio-websocket cannot be used bare: its opening and closing can hang for ever,
it passes each message through a channel and each send through a lock, and it
loses the causes of failures. So it is given a stream of ours (`stream`), which
leaves it the unusual frames, and its tasks have limits in time.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NoReturn

import h11
import trio
import trio_websocket
import wsproto

from ..errors import LinkFailed, Loss
from .address import Address
from .dial import Dial
from .framing import MAX_FRAME, client_close, client_frames, masking_keys
from .stream import Handler, LinkStream, Write
from .upgrade import UpgradeOptions

OPEN_WITHIN: Final = 5.0  # s for DNS, TCP, TLS and upgrade together
WRITE_WITHIN: Final = 2.0  # s, the period after which a heartbeat is overdue
WRITE_POLLS: Final = 8  # in that time: a stall of our own counts as one of them, not as the peer's
LAST_WORDS: Final = 0.1  # s to read what came before the end, when a write has failed
NO_OPTIONS: Final = UpgradeOptions()
CLOSE_WITHIN: Final = 1.0  # s for the close handshake; a container gets 10 s for all


class Link:
    """An open websocket, made by `open_link`. `receive` and `close` have one caller each."""

    def __init__(self, stream: LinkStream, websocket: trio_websocket.WebSocketConnection) -> None:
        self._stream = stream
        self._websocket = websocket
        self._keys = masking_keys()
        self._handler: Handler = _discard
        self._failure: Exception | None = None
        self._ended = trio.Event()
        self._is_closing = False
        self._closing = trio.CancelScope()

    async def receive(self, handler: Handler) -> NoReturn:
        """Hand each batch of whole text messages (UTF-8) to `handler`, in the task that reads it.

        Raises `LinkFailed` when the link has ended, and what `handler` raises.
        Messages that come before the first call wait for it.
        """
        self._handler = handler
        self._stream.handle(self._handle)
        await self._ended.wait()
        assert self._failure is not None, "set before the event"
        raise self._failure

    def put(
        self, texts: Sequence[bytes], on_whole: Callable[[], None] | None = None
    ) -> Write | None:
        """Send a batch in one write, behind those before it.

        None when the system has taken all of it at once. Else the write: `on_whole`
        is called when it has, and until then `Write.texts_taken` tells how far it
        came. (Over TLS, which does not tell, that is all or none.) On a link that
        has ended nothing is sent.
        """
        return self._stream.put(client_frames(texts, self._keys), texts, on_whole)

    async def close(self, code: int) -> None:
        """Close the websocket and wait for the answer, for no more than `CLOSE_WITHIN` seconds.

        Nothing can be sent after that. Texts go on coming until the answer.
        """
        self._is_closing = True
        self._stream.ignore_pings()
        self._closing.deadline = trio.current_time() + CLOSE_WITHIN
        with self._closing:
            await self._websocket.aclose(code)

    def end(self, failure: Exception) -> None:
        """The link has failed, or is given up; the first reason counts."""
        if self._failure is None:
            self._failure = failure
            self._handler = _discard
            self._stream.end()
            self._ended.set()
            self._closing.cancel()

    def _handle(self, texts: Sequence[bytes]) -> None:
        try:
            self._handler(texts)
        except Exception as bug:  # noqa: BLE001 - it surfaces where `receive` was called
            self.end(bug)

    # The link's own tasks.

    async def pump_messages(self) -> None:
        """Hand over the messages that did not come as one whole text frame, until the end."""
        try:
            while True:
                message = await self._websocket.get_message()
                # A binary message is none of this protocol: it goes on as a text that is no JSON.
                text = message.encode() if isinstance(message, str) else b"\0binary"
                if len(text) > MAX_FRAME:  # trio-websocket has counted characters
                    await self._fail(LinkFailed(Loss.OVERSIZED, _TOO_BIG, code=1009))
                    return
                self._handle([text])
        except trio_websocket.ConnectionClosed as closed:
            if not self._is_closing:
                await self._fail(self._explain(closed.reason))

    def _explain(self, reason: trio_websocket.CloseReason | None) -> LinkFailed:
        """Why the link was closed: by the peer, or by us for an error of the peer."""
        if reason is None or reason.code == 1006:
            return LinkFailed(Loss.RESET, "the peer broke off without a close", code=1006)
        code, words = int(reason.code), reason.reason or ""  # out of their enumeration
        if self._stream.peer_closes and self._stream.sent_close:  # which answered it
            return LinkFailed(Loss.CLOSED, words, code=code)
        if code == 1009:
            return LinkFailed(Loss.OVERSIZED, _TOO_BIG, code=code)
        return LinkFailed(Loss.PROTOCOL_ERROR, words, code=code)

    async def _fail(self, failure: LinkFailed) -> None:
        """End the link; where the peer is at fault it is told so by a close (RFC 6455, 7.1.7)."""
        if failure.code != 1006 and failure.code is not None:
            self._handler = _discard
            with trio.move_on_after(CLOSE_WITHIN), suppress(trio.BrokenResourceError):
                await self._stream.send_close(client_close(failure.code))
        self.end(failure)

    async def write_queued(self) -> None:
        """Write what the system did not take at once."""
        await self._stream.write_queued()
        # The reader comes upon the reason, and upon the last messages before it.
        with trio.move_on_after(LAST_WORDS):
            await self._ended.wait()
        self.end(LinkFailed(Loss.RESET, "the peer broke off"))

    async def watch_writes(self) -> None:
        """End the link when a write is not taken in time.

        A deadline on the write itself would cut a healthy link if it passed while
        our own loop stands still.
        """
        polls = 0
        seen = None
        while polls < WRITE_POLLS:
            await trio.sleep(WRITE_WITHIN / WRITE_POLLS)
            head = self._stream.head
            polls = polls + 1 if head is seen and head is not None else 0
            seen = head
        self.end(LinkFailed(Loss.WRITE_STALLED, f"a write was not taken within {WRITE_WITHIN:g} s"))


_TOO_BIG: Final = "a message of over 1 MiB"


def _discard(_texts: Sequence[bytes]) -> None:
    """Nobody wants what still comes."""


async def open_link(
    nursery: trio.Nursery, address: Address, dial: Dial, options: UpgradeOptions = NO_OPTIONS
) -> Link:
    """Open a link, whose tasks live in `nursery`; it ends, by force, when that is cancelled.

    Raises `LinkFailed` when it is not open within `OPEN_WITHIN` seconds, and
    when the peer, or the way to it, refuses.
    """
    with trio.move_on_after(OPEN_WITHIN):
        link: Link = await nursery.start(_run_link, address, dial, options, name="link")
        return link
    raise LinkFailed(Loss.OPEN_TIMEOUT, f"no connection within {OPEN_WITHIN:g} s")


async def _run_link(
    address: Address, dial: Dial, options: UpgradeOptions, *, task_status: trio.TaskStatus[Link]
) -> None:
    """The life of a link: trio-websocket's task, and ours beside it."""
    link: Link | None = None
    failure = LinkFailed(Loss.RESET, "the peer broke off")
    network = await dial()
    stream = LinkStream(network, options.subprotocol)
    try:
        async with trio.open_nursery() as websocket_nursery:
            websocket = await trio_websocket.wrap_client_stream(
                websocket_nursery,
                stream,  # type: ignore[arg-type]  # it asks for the two that trio has
                address.authority,
                address.target,
                subprotocols=[options.subprotocol] if options.subprotocol else None,
                extra_headers=options.extra_headers(address),
                max_message_size=MAX_FRAME,
            )
            link = Link(stream, websocket)
            websocket_nursery.start_soon(link.pump_messages, name="message pump")
            websocket_nursery.start_soon(link.write_queued, name="writer")
            websocket_nursery.start_soon(link.watch_writes, name="write watch")
            task_status.started(link)
    except* LinkFailed as failures:  # of the upgrade
        failure = _first(failures)
    except* (h11.ProtocolError, wsproto.utilities.ProtocolError, UnicodeError):
        # Garbage in place of an upgrade; or, on an open link, a ping while it closed.
        failure = LinkFailed(Loss.PROTOCOL_ERROR, "the peer does not speak websocket")
    finally:
        stream.forget_socket()
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
