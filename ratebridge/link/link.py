"""One websocket, from its opening to its end: where a frame comes in, and where it leaves.

In: `Link.receive` reads the network, in the task that calls it, and gives the texts of a
read together. Out: `Link.put` writes texts at once if the system takes them, behind those
that wait otherwise (`stream` has the queue).

trio-websocket has its part in that: the opening handshake (RFC 6455, section 4), pings,
fragments, binary messages, the answer to the peer's close, and the judgement on what
breaks the protocol. It cannot be used bare. Its opening and closing can hang for ever, it
passes each message through a channel and each send through a lock, and it loses the
causes of failures. So it gets a stream of ours, on which it finds the frames that are no
whole texts, and our own tasks see to the limits in time. This is the one module that
knows it.

The end: whatever ends a link, the first reason counts. It closes the network by force,
and `Link.receive` raises the reason.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import h11
import trio
import trio_websocket
import wsproto

from ..errors import LinkFailed, Loss
from .address import Address
from .dial import Dial
from .framing import MAX_MESSAGE, FrameDecoder, client_close, client_frames, masking_keys
from .stream import LinkStream, Write, do_nothing
from .upgrade import UpgradeOptions

OPEN_WITHIN: Final = 5.0  # s for DNS, TCP, TLS and upgrade together
CLOSE_WITHIN: Final = 1.0  # s for the closing handshake; a container gets 10 s for all
NO_OPTIONS: Final = UpgradeOptions()


class Link:
    """An open websocket, made by `open_link`. `receive` and `close` have one caller each."""

    def __init__(
        self,
        stream: LinkStream,
        websocket: trio_websocket.WebSocketConnection,
        link_scope: trio.CancelScope,
    ) -> None:
        self._stream = stream
        self._websocket = websocket
        self._scope = link_scope  # of the link's own tasks, trio-websocket's among them
        self._decoder = FrameDecoder()
        self._unusual = b""  # a frame for trio-websocket, which came behind the last texts
        self._keys = masking_keys()
        self._closing = False  # by us
        self._failure: LinkFailed | None = None
        self._ended = trio.Event()

    async def receive(self) -> list[bytes]:
        """The next text messages (UTF-8), at least one: those that came with one read.

        A binary message comes as a text that is no JSON. Raises `LinkFailed` when the link
        has ended, with what ended it. Cancel it only when the link is given up.
        """
        while self._failure is None:
            try:
                if self._unusual:
                    message = await self._pass_on(self._unusual)
                    texts, self._unusual = self._decoder.decode()
                    if message is not None:
                        texts.insert(0, message)
                else:
                    texts, self._unusual = self._decoder.decode(await self._stream.read())
                if texts:
                    return texts
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.end(LinkFailed(Loss.RESET, "the peer broke off without a close", code=1006))
            except LinkFailed as failure:
                if failure.code is not None:
                    # A peer at fault is told so (section 7.1.7). The answer to a close has left.
                    with trio.move_on_after(CLOSE_WITHIN), suppress(trio.BrokenResourceError):
                        await self._stream.send_close(client_close(failure.code))
                self.end(failure)
        raise self._failure

    async def _pass_on(self, frame: bytes) -> bytes | None:
        """Let trio-websocket handle a frame; the message that it ends, if it does.

        Raises `LinkFailed` for a close, and for a violation of the protocol.
        """
        if self._decoder.too_big:
            raise LinkFailed(Loss.OVERSIZED, "a message of over 1 MiB", code=1009)
        await self._stream.pass_on(frame)
        if (closed := self._websocket.closed) is not None:
            # A close has been answered.
            reason = Loss.CLOSED if self._stream.shut else Loss.PROTOCOL_ERROR
            raise LinkFailed(reason, closed.reason or "", code=int(closed.code))
        if not self._decoder.message_ends:
            return None
        message = await self._websocket.get_message()
        return message.encode() if isinstance(message, str) else b"\0binary"

    def put(
        self, texts: Sequence[bytes], on_whole: Callable[[], None] = do_nothing
    ) -> Write | None:
        """Send texts in one write, behind those before it.

        None when the system has taken all of it at once. Else the write: `on_whole`
        is called when it has, and until then `Write.texts_taken` tells how far it
        came. (Over TLS, which does not tell, that is all or none.) On a link that
        has ended nothing is sent.
        """
        return self._stream.put(client_frames(texts, self._keys), texts, on_whole)

    async def close(self, code: int) -> None:
        """Send a close frame with this code and wait for the peer's, `CLOSE_WITHIN` seconds.

        Nothing can be sent after that, and however the link ends now, it was stopped. Another
        task has to go on with `receive`, whose texts go on coming until the peer's close.
        """
        self._closing = True
        with trio.move_on_after(CLOSE_WITHIN), suppress(trio.BrokenResourceError):
            await self._stream.send_close(client_close(code))
            await self._ended.wait()

    def end(self, failure: LinkFailed) -> None:
        """The link has failed, or is given up: nothing more is written, and the network closed."""
        if self._failure is None:
            self._failure = LinkFailed(Loss.STOPPED) if self._closing else failure
            self._stream.end()
            self._ended.set()
            self._scope.cancel()


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
            websocket_nursery.start_soon(stream.write_queued, name="writer")
            websocket = await trio_websocket.wrap_client_stream(
                websocket_nursery,
                stream,  # type: ignore[arg-type]  # it asks for the two that trio has
                address.authority,
                address.target,
                subprotocols=[options.subprotocol] if options.subprotocol else None,
                extra_headers=options.extra_headers(address),
                max_message_size=MAX_MESSAGE,
            )
            link = Link(stream, websocket, websocket_nursery.cancel_scope)
            websocket_nursery.start_soon(stream.watch_writes, name="write watch")
            task_status.started(link)
    except* LinkFailed as failures:  # of the upgrade, or of our tasks
        first = failures.exceptions[0]  # of one nursery, ours
        assert isinstance(first, LinkFailed)
        failure = first
    except* (h11.ProtocolError, wsproto.utilities.ProtocolError, UnicodeError):
        failure = LinkFailed(Loss.PROTOCOL_ERROR, "the peer does not speak websocket")
    finally:
        if link is not None:
            link.end(failure)
        await trio.aclose_forcefully(network)
    if link is None:
        raise failure
