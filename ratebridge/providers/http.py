"""A bounded GET by HTTP/1.1, each over a connection of its own.

The connection is opened by the dial that the feed has. So one place knows how a host is looked up,
which of its addresses is next, which proxy is on the way, what TLS checks, and why there is no
connection.

On a kept connection, surplus bytes of one answer would be taken for the next one; with so few
requests a handshake for each is cheap. A body is bounded in bytes and in pieces, and other tasks
run between the pieces, because parsing takes time for each. What is no body (a head, the length of
a chunk, the trailer) is bounded by h11: 16 KiB for each. No redirect is followed, as the headers
with the key would travel.

The caller limits the time by a cancel scope, and does the retries.
"""

import ssl
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final
from urllib.parse import urlencode

import h11
import trio

from .. import __version__
from ..errors import FetchOutcome, LinkFailed, SourceFailed
from ..link.address import Address
from ..link.dial import Dial, NetworkDial, ask, next_event
from ..proxies import Proxies
from .source import HttpAnswer

MAX_BODY: Final = 1024 * 1024  # bytes; a table has some 15 KiB, the ECB's whole history 650
MAX_PIECES: Final = 4096  # of a body: enough for segments of 536 bytes and chunks of 512
HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": f"ratebridge/{__version__}",
}


class HttpClient:
    """The client for all the sources.

    Args:
        tls: what is checked of a source, and of a proxy that is spoken to by https.
        proxies: those on the way to the sources.
        dial: replaces the network in tests.
    """

    def __init__(self, tls: ssl.SSLContext, proxies: Proxies, dial: Dial | None = None) -> None:
        self._tls = tls
        self._proxies = proxies
        self._dial = dial

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        """GET `url` with `params` as its query, and with `headers` beside `HEADERS`.

        The answer may have any status but a redirect's. Raises `SourceFailed`, whose text names
        neither the URL nor a header: `unreachable` if there was no whole answer, `redirect`, and
        `bad-body` for a body that is compressed or exceeds the bounds.
        """
        try:
            # The address of a feed has the same syntax (RFC 6455, 3), but for ws in place of http.
            address = Address.parse(f"ws{url[len('http') :]}")
        except ValueError:
            text = "could not be reached (its address is not valid)"
            raise SourceFailed(FetchOutcome.UNREACHABLE, text) from None
        scheme = "https" if address.secure else "http"
        proxy = self._proxies.find(scheme, address.host, address.port)
        network = NetworkDial(address, self._tls, proxy, self._tls)
        request = h11.Request(
            method="GET",
            target=f"{address.target}?{urlencode(params)}" if params else address.target,
            headers=[*{"Host": address.authority, **HEADERS, **(headers or {})}.items()],
        )
        text = "broke off the connection"
        try:
            with ExitStack() as on_failure:  # the caller's deadline is one, too
                on_failure.callback(network.next_address)
                async with await (self._dial or network)() as stream:
                    answer = await read_answer(stream, request)
                if answer.status < 500:
                    on_failure.pop_all()
            return answer
        except LinkFailed as failure:
            text = f"could not be reached ({failure.detail})"
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                text = "answered with headers without end"
        except trio.BrokenResourceError:
            pass
        raise SourceFailed(FetchOutcome.UNREACHABLE, text, again=True)


async def read_answer(stream: trio.abc.Stream, request: h11.Request) -> HttpAnswer:
    """Send a request that has no body, and read the whole answer.

    Raises `SourceFailed` for a redirect and for a body that is compressed or exceeds the bounds,
    `trio.BrokenResourceError` and `h11.RemoteProtocolError` for what is no answer.
    """
    connection = h11.Connection(h11.CLIENT)
    head = await ask(stream, connection, request)
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    if 300 <= head.status_code < 400:
        text = "answered with a redirect, which is not followed"
        raise SourceFailed(FetchOutcome.REDIRECT, text)
    if headers.get("content-encoding", "").lower() not in ("", "identity"):
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
    return HttpAnswer(head.status_code, headers, bytes(body))
