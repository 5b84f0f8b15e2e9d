"""The one module that knows httpx: a GET whose answer is small, whole and ours to judge.

httpx is imported, and the certificates are read, when a source is first asked,
off the event loop: that takes as long as all the rest of the start, and the feed
need not wait for it.

A request has no time limit here: httpx has none for the whole of it, so the
caller puts a cancel scope around it. Nor does the client's pool ever queue; the
chain lets fewer requests go at a time than the pool has connections. A request
that breaks off is not sent again here either: the chain does so.
"""

import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import trio

from .. import __version__
from ..errors import BadSettings, SourceFailed
from .source import Answer

if TYPE_CHECKING:
    import httpx

MAX_BODY: Final = 1024 * 1024  # bytes; a table has some 15 KiB, the ECB's whole history 650
POOL: Final = 10  # more than the fetches at a time, or cancelled ones leak its slots

_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})

# httpx and httpcore write whole URLs and headers to their logs.
logging.getLogger("httpx").disabled = True
logging.getLogger("httpcore").setLevel(logging.CRITICAL)


class HttpClient:
    """A pool of connections for all the sources.

    `make_tls` makes the context for TLS. The proxies of the environment are used, as
    by other programs. Where it names one, the client is made at once: raises
    `BadSettings` when it cannot be. `transport` takes the network's place in tests,
    at once too: a virtual clock does not wait for threads.
    """

    def __init__(
        self,
        make_tls: Callable[[], ssl.SSLContext],
        transport: "httpx.AsyncBaseTransport | None" = None,
    ) -> None:
        self._make_tls = make_tls
        self._transport = transport
        self._making = trio.Lock()
        proxied = any(name.lower() in _PROXIES for name in os.environ)
        self._client = self._make() if proxied or transport is not None else None

    def _make(self) -> "httpx.AsyncClient":
        import httpx

        try:
            return httpx.AsyncClient(
                verify=self._make_tls(),
                transport=self._transport,
                timeout=None,  # noqa: S113 - the caller has a deadline for the whole of it
                limits=httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL),
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "User-Agent": f"ratebridge/{__version__}",
                },
            )
        except (ImportError, ValueError, httpx.InvalidURL):  # SOCKS, or no URL at all
            raise BadSettings(
                "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY: expected http:// or https:// proxies"
            ) from None

    async def _made(self) -> "httpx.AsyncClient":
        async with self._making:
            if self._client is None:
                self._client = await trio.to_thread.run_sync(self._make)
            return self._client

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """GET `url` with `params`. No redirect is followed, no compressed body taken.

        Raises `SourceFailed`, with a text that names neither URL nor header.
        """
        client = self._client or await self._made()
        import httpx

        try:
            return await self._get(client, url, params, headers)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise SourceFailed("unreachable", _explain(error), again=True) from None

    async def _get(
        self,
        client: "httpx.AsyncClient",
        url: str,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None,
    ) -> Answer:
        async with client.stream("GET", url, params=params, headers=headers) as response:
            if response.is_redirect:
                raise SourceFailed("redirect", "answered with a redirect, which is not followed")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise SourceFailed("bad-body", "answered with a compressed body")
            body = bytearray()
            # Left in any other way than by an error of their own, the generators of httpx
            # would wait for the garbage collector.
            with trio.CancelScope() as reading:
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > MAX_BODY:
                        reading.cancel()
            if len(body) > MAX_BODY:
                raise SourceFailed("bad-body", "answered with over 1 MiB")
            return Answer(response.status_code, dict(response.headers), bytes(body))


def _explain(error: Exception) -> str:
    """Half a sentence on why a request failed, from the system's words and never httpx's."""
    import httpx

    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return f"has a certificate that does not pass ({cause.verify_message})"
            case ssl.SSLError():
                return "could not be reached (TLS failed)"
            case socket.gaierror():
                return "could not be reached (host not found)"
            case ConnectionRefusedError():
                return "could not be reached (connection refused)"
            case UnicodeError() | httpx.InvalidURL():
                return "could not be reached (its address is not valid)"
    if isinstance(error, httpx.ConnectError):
        return "could not be reached"
    return "broke off the connection"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it, the failures of each address tried among it."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for failed in error.exceptions:
                yield from _causes(failed)
        error = error.__cause__ or error.__context__
