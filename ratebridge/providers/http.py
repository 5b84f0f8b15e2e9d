"""The one module that knows httpx: a bounded GET.

httpx is imported and the certificates are read when a source is first asked, off the
event loop. That takes as long as the rest of the start, and the feed must not wait
for it.

Each request has a connection of its own. On a kept connection, surplus bytes of one
answer would be taken for the next one; with so few requests a handshake for each is
cheap. Cookies are not stored. A response is bounded in bytes and in pieces, and other
tasks run between the pieces, because parsing takes time for each.

The caller limits the time by a cancel scope, as httpx has no limit for a whole
request, and does the retries. It must keep few requests open at a time: httpx's pool
of 100 leaks the slot of a request that is cancelled in its queue.
"""

import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from .. import __version__
from ..errors import BadSettings, FetchOutcome, SourceFailed
from .source import HttpAnswer

if TYPE_CHECKING:
    import httpx

MAX_BODY: Final = 1024 * 1024  # bytes; a table has some 15 KiB, the ECB's whole history 650
MAX_PIECES: Final = 4096  # of a body: enough for segments of 536 bytes and chunks of 512
MAX_HEAD: Final = 16 * 1024  # bytes, h11's own limit; sources send 1 or 2 KiB

_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})

# httpx and httpcore write whole URLs and headers to their logs.
logging.getLogger("httpx").disabled = True
logging.getLogger("httpcore").setLevel(logging.CRITICAL)


class HttpClient:
    """The client for all the sources.

    `make_tls` makes the TLS context. The proxies of the environment are used. If there
    is one, the client is made at once, so that a bad one raises `BadSettings` here.
    `transport` replaces the network in tests. Then the client is made at once too, as a
    virtual clock does not wait for threads.
    """

    def __init__(
        self,
        make_tls: Callable[[], ssl.SSLContext],
        transport: "httpx.AsyncBaseTransport | None" = None,
    ) -> None:
        self._make_tls = make_tls
        self._transport = transport
        self._making = trio.Lock()
        self._proxied = any(name.lower() in _PROXIES for name in os.environ)
        self._client = self._make() if self._proxied or transport is not None else None

    def _make(self) -> "httpx.AsyncClient":
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx

        try:
            return httpx.AsyncClient(
                verify=self._make_tls(),
                transport=self._transport,
                trust_env=self._proxied,  # a bad NO_PROXY matters to nobody else
                timeout=None,  # noqa: S113 - the caller has a deadline for the whole request
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                    "User-Agent": f"ratebridge/{__version__}",
                },
            )
        except (ImportError, ValueError, httpx.InvalidURL):  # SOCKS, or not a URL
            raise BadSettings(
                "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY: expected http:// or https:// "
                "proxies, and hosts that need none"
            ) from None

    async def _made(self) -> "httpx.AsyncClient":
        async with self._making:
            if self._client is None:
                self._client = await trio.to_thread.run_sync(self._make)
            return self._client

    async def aclose(self) -> None:
        """Close the connections, even if cancelled."""
        if self._client is not None:
            with trio.CancelScope(shield=True):
                await self._client.aclose()

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        """GET `url` with `params`, without redirects and compression.

        Raises `SourceFailed`, whose text names neither the URL nor a header.
        """
        client = await self._made()
        import httpx

        try:
            return await self._get(client, url, params, headers)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise SourceFailed(FetchOutcome.UNREACHABLE, _explain(error), again=True) from None

    async def _get(
        self,
        client: "httpx.AsyncClient",
        url: str,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None,
    ) -> HttpAnswer:
        head = _Head()
        hook = {"trace": head.trace}
        async with client.stream(
            "GET", url, params=params, headers=headers, extensions=hook
        ) as response:
            if response.is_redirect:
                raise SourceFailed(
                    FetchOutcome.REDIRECT, "answered with a redirect, which is not followed"
                )
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise SourceFailed(FetchOutcome.BAD_BODY, "answered with a compressed body")
            body = bytearray()
            pieces = 0
            head.left = MAX_HEAD
            # httpx's generators are closed by the garbage collector unless they end by an error
            # of their own, such as this cancellation.
            with trio.CancelScope() as reading:
                async for piece in response.aiter_raw():
                    body += piece
                    pieces += 1
                    head.left = MAX_HEAD
                    if len(body) > MAX_BODY or pieces > MAX_PIECES:
                        reading.cancel()
                    await trio.lowlevel.cancel_shielded_checkpoint()
            if len(body) > MAX_BODY:
                raise SourceFailed(FetchOutcome.BAD_BODY, "answered with over 1 MiB")
            if pieces > MAX_PIECES:
                raise SourceFailed(FetchOutcome.BAD_BODY, f"answered in over {MAX_PIECES} pieces")
            # dict(headers) would look each name up among all of them, in quadratic time.
            return HttpAnswer(response.status_code, dict(response.headers.items()), bytes(body))


@attrs.define(eq=False)
class _Head:
    """Bounds the bytes of a response that are not its body.

    These are its head, the heads of interim responses, the lengths of chunks, and the
    trailer. `left` is how many may still come before the next piece of the body.
    """

    left: int = MAX_HEAD

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Httpcore's hook: count what is read from a new connection."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            stream = info["return_value"]
            stream.read = partial(self._read, stream.read)

    async def _read(
        self,
        read: Callable[[int, float | None], Awaitable[bytes]],
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
    ) -> bytes:
        if not self.left:
            raise SourceFailed(FetchOutcome.BAD_BODY, "answered with over 16 KiB of headers")
        data = await read(min(max_bytes, self.left), timeout)
        self.left -= len(data)
        return data


def _explain(error: Exception) -> str:
    """Half a sentence on why a request failed, without httpx's own text, which may have a URL."""
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
    """An exception and its causes, the members of groups included."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for failed in error.exceptions:
                yield from _causes(failed)
        error = error.__cause__ or error.__context__
