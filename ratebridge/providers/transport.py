"""The network under httpx: a connection for each request, opened by the dial that the feed has.

So one place knows how a host is looked up, which of its addresses is next, which proxy is
on the way, what TLS checks, and why there is no connection.

On a kept connection, surplus bytes of one answer would be taken for the next one; with so
few requests a handshake for each is cheap. A body is bounded in bytes and in pieces, and
other tasks run between the pieces, because parsing takes time for each. What is no body
(a head, the length of a chunk, the trailer) is bounded by h11: 16 KiB for each.
"""

import ssl
from contextlib import ExitStack
from typing import Final

import h11
import httpx
import trio

from ..errors import FetchOutcome, SourceFailed
from ..link.address import Address
from ..link.dial import Dial, NetworkDial, ask, next_event
from ..proxies import Proxies

MAX_BODY: Final = 1024 * 1024  # bytes; a table has some 15 KiB, the ECB's whole history 650
MAX_PIECES: Final = 4096  # of a body: enough for segments of 536 bytes and chunks of 512


class Transport(httpx.AsyncBaseTransport):
    """Connects with this TLS, and through these proxies: to an http:// URL by CONNECT, too.

    `dial` replaces the network in tests.
    """

    def __init__(self, tls: ssl.SSLContext, proxies: Proxies, dial: Dial | None) -> None:
        self._tls = tls
        self._proxies = proxies
        self._dial = dial

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The whole response to a request that has no body.

        Raises `LinkFailed`, and as `read_response` does.
        """
        url = request.url
        host, secure = url.raw_host.decode("ascii"), url.scheme == "https"
        port = url.port or (443 if secure else 80)
        proxy = self._proxies.find(url.scheme, host, port)
        network = NetworkDial(Address(host, port, "", secure), self._tls, proxy, self._tls)
        head = h11.Request(method=request.method, target=url.raw_path, headers=request.headers.raw)
        with ExitStack() as on_failure:  # the caller's deadline is one, too
            on_failure.callback(network.next_address)
            async with await (self._dial or network)() as stream:
                response = await read_response(stream, head)
            if response.status_code < 500:
                on_failure.pop_all()
        return response


async def read_response(stream: trio.abc.Stream, request: h11.Request) -> httpx.Response:
    """Send a request that has no body, and read the whole answer.

    Raises `SourceFailed` for a redirect and for a body that is compressed or exceeds the bounds,
    `trio.BrokenResourceError` and `h11.RemoteProtocolError` for what is no answer.
    """
    connection = h11.Connection(h11.CLIENT)
    head = await ask(stream, connection, request)
    headers = httpx.Headers(head.headers.raw_items())
    if 300 <= head.status_code < 400:
        # Its headers would travel with the request, the key among them.
        text = "answered with a redirect, which is not followed"
        raise SourceFailed(FetchOutcome.REDIRECT, text)
    if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise SourceFailed(FetchOutcome.BAD_BODY, "answered with a compressed body")
    body = bytearray()
    pieces = 0
    while isinstance(event := await next_event(stream, connection), h11.Data):
        body += event.data
        pieces += 1
        if len(body) > MAX_BODY or pieces > MAX_PIECES:
            text = f"answered with over 1 MiB, or in over {MAX_PIECES} pieces"
            raise SourceFailed(FetchOutcome.BAD_BODY, text)
        await trio.lowlevel.cancel_shielded_checkpoint()
    return httpx.Response(head.status_code, headers=headers, content=bytes(body))
