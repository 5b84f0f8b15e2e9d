"""The one module that knows httpx: a bounded GET.

httpx is imported and the certificates are read when a source is first asked, off the
event loop. That takes as long as the rest of the start, and the feed must not wait
for it.

Each request has a connection of its own. On a kept connection, surplus bytes of one
answer would be taken for the next one; with so few requests a handshake for each is
cheap. Cookies are not stored. A body is bounded in bytes and in pieces, and other
tasks run between the pieces, because parsing takes time for each. What is no body (the
head, the lengths of chunks, the trailer) is bounded by httpcore: 100 KiB for each.

The caller limits the time by a cancel scope, as httpx has no limit for a whole
request, and does the retries. It must keep few requests open at a time: httpx's pool
of 100 leaks the slot of a request that is cancelled in its queue.
"""

import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio

from .. import __version__
from ..errors import FetchOutcome, SourceFailed
from ..names import names
from ..proxies import Proxies, Proxy
from .source import Answer

if TYPE_CHECKING:
    import httpx

MAX_BODY: Final = 1024 * 1024  # bytes; a table has some 15 KiB, the ECB's whole history 650
MAX_PIECES: Final = 4096  # of a body: enough for segments of 536 bytes and chunks of 512

HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": f"ratebridge/{__version__}",
}

_NO_ADDRESS: Final = "could not be reached (its address is not valid)"

# httpx and httpcore write whole URLs and headers to their logs.
logging.getLogger("httpx").disabled = True
logging.getLogger("httpcore").setLevel(logging.CRITICAL)


class HttpClient:
    """The client for all the sources.

    Args:
        make_tls: makes the TLS context.
        transport: replaces the network in tests. Then nothing is made in a thread, as a
            virtual clock does not wait for one.
        proxies: those on the way to the sources; by default those of the environment.

    Raises `BadSettings` for a proxy of the environment that is none.
    """

    def __init__(
        self,
        make_tls: Callable[[], ssl.SSLContext],
        transport: "httpx.AsyncBaseTransport | None" = None,
        proxies: Proxies | None = None,
    ) -> None:
        self._make_tls = make_tls
        self._transport = transport
        self._proxies = proxies or Proxies.read({} if transport else os.environ)
        self._making = trio.Lock()
        self._clients: dict[Proxy | None, httpx.AsyncClient] = {}

    def _make(self, proxy: Proxy | None) -> "httpx.AsyncClient":
        """A client whose requests take this proxy."""
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx

        tls = self._make_tls()
        way = None
        if proxy is not None:
            way = httpx.Proxy(
                f"{proxy.scheme}://{proxy.authority}",
                ssl_context=tls if proxy.scheme == "https" else None,
                auth=(proxy.user, proxy.password) if proxy.user else None,
            )
        return httpx.AsyncClient(
            verify=tls,
            transport=self._transport,
            proxy=way,
            trust_env=False,  # `Proxies` has read it
            timeout=None,  # noqa: S113 - the caller has a deadline for the whole request
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            headers=HEADERS,
        )

    async def aclose(self) -> None:
        """Close the connections, even if cancelled."""
        with trio.CancelScope(shield=True):
            for client in self._clients.values():
                await client.aclose()

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """GET `url` with `params`, without redirects and compression.

        Raises `SourceFailed`, whose text names neither the URL nor a header.
        """
        resolver = names()
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme[4:] else 80)
        except ValueError:
            raise SourceFailed(FetchOutcome.UNREACHABLE, _NO_ADDRESS, again=True) from None
        proxy = self._proxies.find(parts.scheme, host, port)
        async with self._making:
            if proxy not in self._clients:
                make = partial(self._make, proxy)
                try:
                    threaded = self._transport is None
                    client = await trio.to_thread.run_sync(make) if threaded else make()
                except RuntimeError:  # "can't start new thread"
                    client = make()
                self._clients[proxy] = client
        import httpx

        well = False
        streaming = self._clients[proxy].stream("GET", url, params=params, headers=headers)
        try:
            answer = await read(streaming)
            well = answer.status < 500
            return answer
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise SourceFailed(FetchOutcome.UNREACHABLE, explain(error), again=True) from None
        finally:
            if not well:  # cancelled at the caller's deadline, too
                resolver.skip(proxy.host if proxy else host)


async def read(streaming: "AbstractAsyncContextManager[httpx.Response]") -> Answer:
    """A whole answer. Raises `SourceFailed` for one that is not read, and httpx's errors."""
    bad = partial(SourceFailed, FetchOutcome.BAD_BODY)
    async with streaming as response:
        if response.is_redirect:
            text = "answered with a redirect, which is not followed"
            raise SourceFailed(FetchOutcome.REDIRECT, text)
        if response.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise bad("answered with a compressed body")
        body = bytearray()
        pieces = 0
        # httpx's generators are closed by the garbage collector unless they end by an error
        # of their own, such as this cancellation.
        with trio.CancelScope() as reading:
            async for piece in response.aiter_raw():
                body += piece
                pieces += 1
                if len(body) > MAX_BODY or pieces > MAX_PIECES:
                    reading.cancel()
                await trio.lowlevel.cancel_shielded_checkpoint()
        if len(body) > MAX_BODY:
            raise bad("answered with over 1 MiB")
        if pieces > MAX_PIECES:
            raise bad(f"answered in over {MAX_PIECES} pieces")
        # dict(headers) would look each name up among all of them, in quadratic time.
        return Answer(response.status_code, dict(response.headers.items()), bytes(body))


def explain(error: BaseException) -> str:
    """Why a request failed, without httpx's own text, which may have a URL."""
    import httpx

    for cause in causes(error):
        match cause:
            case httpx.ProxyError():
                status = str(cause)[:3]
                answer = f"answered HTTP {status}" if status.isdigit() else "refused"
                return f"could not be reached (its proxy {answer})"
            case ssl.SSLCertVerificationError():
                return f"has a certificate that does not pass ({cause.verify_message})"
            case ssl.SSLError():
                return "could not be reached (TLS failed)"
            case socket.gaierror():
                return "could not be reached (host not found)"
            case ConnectionRefusedError():
                return "could not be reached (connection refused)"
            case UnicodeError() | httpx.InvalidURL():
                return _NO_ADDRESS
        if getattr(cause, "error_status_hint", None) == 431:  # h11's, for what has no end
            return "answered with over 100 KiB of headers"
    if isinstance(error, httpx.ConnectError):
        return "could not be reached"
    return "broke off the connection"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes, the members of groups included."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for failed in error.exceptions:
                yield from causes(failed)
        error = error.__cause__ or error.__context__
