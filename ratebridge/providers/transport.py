"""The network under httpx: a connection for each request, by the dial that the feed has.

So one place knows how a host is looked up, which of its addresses is next, which proxy is
on the way, what TLS checks, and why there is no connection.

On a kept connection, surplus bytes of one answer would be taken for the next one; with so
few requests a handshake for each is cheap. A body is bounded in bytes and in pieces, and
other tasks run between the pieces, because parsing takes time for each. What is no body
(a head, the length of a chunk, the trailer) is bounded by h11: 16 KiB for each.
"""

import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from typing import Final

import h11
import httpx
import trio

from ..errors import FetchOutcome, SourceFailed
from ..link.address import Address
from ..link.dial import NetworkDial, ask, next_event
from ..proxies import Proxies

MAX_BODY: Final = 1024 * 1024  # bytes; a table has some 15 KiB, the ECB's whole history 650
MAX_PIECES: Final = 4096  # of a body: enough for segments of 536 bytes and chunks of 512


class Transport(httpx.AsyncBaseTransport):
    """Connects with this TLS, and through these proxies: to an http:// URL by CONNECT, too."""

    def __init__(self, tls: ssl.SSLContext, proxies: Proxies) -> None:
        self._tls = tls
        self._proxies = proxies

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The whole response to a request without a body.

        Raises `LinkFailed`, `trio.BrokenResourceError`, h11's errors, and as `read_response`.
        """
        url = request.url
        host, secure = url.raw_host.decode("ascii"), url.scheme == "https"
        port = url.port or (443 if secure else 80)
        proxy = self._proxies.find(url.scheme, host, port)
        dial = NetworkDial(Address(host, port, "", secure), self._tls, proxy, self._tls)
        head = h11.Request(method=request.method, target=url.raw_path, headers=request.headers.raw)
        with ExitStack() as on_failure:  # the caller's deadline is one, too
            on_failure.callback(dial.next_address)
            async with await dial() as stream:
                connection = h11.Connection(h11.CLIENT)
                answer = await ask(stream, connection, head)
                headers = answer.headers.raw_items()
                body = pieces(stream, connection)
                response = await read_response(answer.status_code, headers, body)
            if answer.status_code < 500:
                on_failure.pop_all()
        return response


async def pieces(
    stream: trio.abc.Stream, connection: h11.Connection
) -> AsyncGenerator[bytes, None]:
    """A body, as it comes."""
    while isinstance(event := await next_event(stream, connection), h11.Data):
        yield bytes(event.data)


async def read_response(
    status: int, headers: Sequence[tuple[bytes, bytes]], body: AsyncGenerator[bytes, None]
) -> httpx.Response:
    """A response with its whole body. Raises `SourceFailed` for one that is not read."""
    whole = bytearray()
    async with aclosing(body):
        if 300 <= status < 400:
            text = "answered with a redirect, which is not followed"
            raise SourceFailed(FetchOutcome.REDIRECT, text)
        coding = httpx.Headers(headers).get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            raise SourceFailed(FetchOutcome.BAD_BODY, "answered with a compressed body")
        number = 0
        async for piece in body:
            whole += piece
            number += 1
            if len(whole) > MAX_BODY:
                raise SourceFailed(FetchOutcome.BAD_BODY, "answered with over 1 MiB")
            if number > MAX_PIECES:
                text = f"answered in over {MAX_PIECES} pieces"
                raise SourceFailed(FetchOutcome.BAD_BODY, text)
            await trio.lowlevel.cancel_shielded_checkpoint()
    return httpx.Response(status, headers=headers, content=bytes(whole))
