"""Fakes on a port: what those of the feed and of the sources share."""

import ssl
import struct
from collections.abc import Awaitable, Callable

import trio


async def serve_on_port(
    handle: Callable[[trio.abc.Stream], Awaitable[None]],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Handle each connection, for ever; `nursery.start` returns the port's number.

    Args:
        handle: gets the stream of a connection, which it closes.
        host: the address to listen on.
        port: 0 lets the system choose.
        tls: the context of a server, for `wss://` and `https://`.
    """

    async def secure(stream: trio.SocketStream) -> None:
        secured = tls and trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        await handle(secured or stream)

    listeners = await trio.open_tcp_listeners(port, host=host)
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(secure, listeners)


async def reset(stream: trio.abc.Stream) -> None:
    """Break a connection, by a RST on a socket."""
    transport = getattr(stream, "transport_stream", stream)
    if isinstance(transport, trio.SocketStream):
        transport.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)
