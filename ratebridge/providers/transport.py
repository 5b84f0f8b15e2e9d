"""The network under httpx: a connection for each request, by the dial that the feed has.

So one place knows how a host is looked up, which of its addresses is next, which proxy is
on the way, what TLS checks, and why there is no connection.

httpx's own transport reads interim responses without end, 64 KiB of them in one step,
and leaves the sockets of refused requests to the garbage collector.
"""

import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

import h11
import httpx
import trio

from ..errors import FetchOutcome, SourceFailed
from ..link.address import Address
from ..link.dial import NetworkDial
from ..link.tls import READ_SIZE
from ..proxies import Proxies

MAX_INTERIM: Final = 16  # responses before the one that counts; a server has use for one or two


class Transport(httpx.AsyncBaseTransport):
    """Connects with this TLS, and through these proxies: to an http:// URL by CONNECT, too."""

    def __init__(self, tls: ssl.SSLContext, proxies: Proxies) -> None:
        self._tls = tls
        self._proxies = proxies

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The response to a request without a body, whose own is read as it is asked for.

        Raises `LinkFailed`, `SourceFailed`, `trio.BrokenResourceError` and h11's errors.
        """
        url = request.url
        host, secure = url.raw_host.decode("ascii"), url.scheme == "https"
        port = url.port or (443 if secure else 80)
        proxy = self._proxies.find(url.scheme, host, port)
        dial = NetworkDial(Address(host, port, "", secure), self._tls, proxy, self._tls)
        body = None
        try:
            body = Body(await dial())
            response = await body.ask(request)
        except BaseException:  # the caller's deadline, too
            dial.next_address()
            if body is not None:
                await body.aclose()
            raise
        if response.status_code >= 500:
            dial.next_address()
        headers = response.headers.raw_items()
        return httpx.Response(response.status_code, headers=headers, stream=body)


class Body(httpx.AsyncByteStream):
    """The body of one response on a connection of its own."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._connection = h11.Connection(h11.CLIENT)  # whose bound for all else is 16 KiB

    async def ask(self, request: httpx.Request) -> h11.Response:
        """Send the request and read the head of the response."""
        asked = h11.Request(
            method=request.method, target=request.url.raw_path, headers=request.headers.raw
        )
        await self._stream.send_all(self._connection.send(asked) or b"")
        self._connection.send(h11.EndOfMessage())
        for _ in range(MAX_INTERIM + 1):
            event = await self._next_event()
            if isinstance(event, h11.Response):
                return event
        raise SourceFailed(FetchOutcome.BAD_BODY, f"answered in over {MAX_INTERIM} heads")

    async def _next_event(self) -> Any:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(bytes(await self._stream.receive_some(READ_SIZE)))
        return event

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next_event(), h11.Data):
            yield bytes(event.data)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)
