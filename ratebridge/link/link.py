"""One websocket from open to end, and the one module that knows trio-websocket.

trio-websocket cannot be used bare: its opening and closing can hang for ever,
it passes each message through a channel and each send through a lock, and it
loses the causes of failures. So it is given a stream of ours (`stream`), which
leaves it the unusual frames, and its tasks have limits in time.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NoReturn

import h11
import trio
import trio_websocket
import wsproto

from ..errors import LinkFailed
from .address import Address
from .dial import Dial
from .framing import MAX_FRAME, client_frame_size, client_frames
from .stream import Inbox, LinkStream, Sink, Write

OPEN_WITHIN: Final = 5.0  # s for DNS, TCP, TLS and upgrade together
WRITE_WITHIN: Final = 2.0  # s, the period after which a heartbeat is overdue
WRITE_POLLS: Final = 8  # in that time: a stall of our own counts as one of them, not as the peer's
LAST_WORDS: Final = 0.1  # s to read what came before the end, when a write has failed
CLOSE_WITHIN: Final = 1.0  # s for the close handshake; a container gets 10 s for all


class Link:
    """An open websocket, made by `open_link`. Once it has ended its methods raise `LinkFailed`.

    `receive` has one caller at a time, and so has `send`.
    """

    def __init__(
        self, stream: LinkStream, inbox: Inbox, websocket: trio_websocket.WebSocketConnection
    ) -> None:
        self._stream = stream
        self._inbox = inbox
        self._websocket = websocket
        self._ended = trio.Event()
        self._is_closing = False
        self._goodbye = trio.CancelScope()
        self._texts: Sequence[bytes] = ()
        self._begun = Write(b"")
        self.written = 0  # texts of the last batch that the system has taken whole

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
        self._begun = Write(client_frames(texts))
        self._stream.begin(self._begun)
        self._count_written()
        return self.written == len(texts)

    async def finish(self) -> None:
        """Write the rest of what was begun. That it returns says only that the system took it.

        `written` tells how many texts it took, also when this raises or is cancelled.
        (Over TLS, which does not tell how far it came, that is all of them or none.)
        """
        try:
            await self._write(self._begun)
        finally:
            self._count_written()

    async def send(self, texts: Sequence[bytes]) -> None:
        """`begin` and `finish`."""
        if self.begin(texts):
            await trio.lowlevel.checkpoint()
        else:
            await self.finish()

    def _count_written(self) -> None:
        write = self._begun
        whole = write.taken == len(write.data)
        self.written = len(self._texts) if whole else _whole_frames(self._texts, write.taken)

    async def close(self, code: int) -> None:
        """Say goodbye and wait for the answer, for no more than `CLOSE_WITHIN` seconds.

        Nothing can be sent after that. Texts go on coming until the answer, and
        are to be received, or they stand in its way.
        """
        self._is_closing = True
        self._goodbye.deadline = trio.current_time() + CLOSE_WITHIN
        with self._goodbye:
            await self._websocket.aclose(code)

    async def _write(self, write: Write) -> None:
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
                await self._write(Write(await self._stream.next_pongs()))
        except LinkFailed as failure:
            self.end(failure)

    async def watch_writes(self) -> None:
        """End the link when a write is not taken in time.

        No deadline on the write itself would do: one that passes while our own
        loop stands still would cut a healthy link.
        """
        looks = 0
        seen = None
        while looks < WRITE_POLLS:
            await trio.sleep(WRITE_WITHIN / WRITE_POLLS)
            present = self._stream.write_under_way
            looks = looks + 1 if present is seen and present is not None else 0
            seen = present
        self.end(LinkFailed("write-stalled", f"a write was not taken within {WRITE_WITHIN:g} s"))


def _whole_frames(texts: Sequence[bytes], size: int) -> int:
    """How many of the texts have their frame within the first `size` bytes of a write."""
    ends = accumulate(map(client_frame_size, texts))
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
    raise LinkFailed("open-timeout", f"no connection within {OPEN_WITHIN:g} s")


async def _run_link(address: Address, dial: Dial, *, task_status: trio.TaskStatus[Link]) -> None:
    """The life of a link: trio-websocket's task, and ours beside it."""
    link: Link | None = None
    failure = LinkFailed("reset", "the peer broke off")
    network = await dial()
    inbox = Inbox()
    stream = LinkStream(network, inbox)
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
