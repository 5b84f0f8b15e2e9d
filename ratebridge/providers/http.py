"""A bounded GET, by httpx.

httpx is imported and the certificates are read when a source is first asked, off the
event loop. That takes as long as the rest of the start, and the feed must not wait
for it.

Each request has a connection of its own (`transport`). On a kept connection, surplus
bytes of one answer would be taken for the next one; with so few requests a handshake
for each is cheap. Cookies are not stored. A body is bounded in bytes and in pieces, and
other tasks run between the pieces, because parsing takes time for each. What is no body
(a head, the length of a chunk, the trailer) is bounded by h11: 16 KiB for each.

The caller limits the time by a cancel scope, as httpx has no limit for a whole
request, and does the retries.
"""

import logging
import os
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Final

import h11
import trio

from .. import __version__
from ..errors import FetchOutcome, LinkFailed, SourceFailed
from ..proxies import Proxies
from .source import HttpAnswer

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
        self._client: httpx.AsyncClient | None = None

    def _make(self) -> "httpx.AsyncClient":
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx

        from .transport import Transport

        return httpx.AsyncClient(
            transport=self._transport or Transport(self._make_tls(), self._proxies),
            trust_env=False,  # `Proxies` has read it
            timeout=None,  # noqa: S113 - the caller has a deadline for the whole request
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            headers=HEADERS,
        )

    async def aclose(self) -> None:
        """Close the client, even if cancelled."""
        if self._client is not None:
            with trio.CancelScope(shield=True):
                await self._client.aclose()

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        """GET `url` with `params`, without redirects and compression.

        Raises `SourceFailed`, whose text names neither the URL nor a header.
        """
        async with self._making:
            if self._client is None:
                try:
                    threaded = self._transport is None
                    made = await trio.to_thread.run_sync(self._make) if threaded else self._make()
                except RuntimeError:  # "can't start new thread"
                    made = self._make()
                self._client = made
            client = self._client
        import httpx

        text = "broke off the connection"
        try:
            return await read(client.stream("GET", url, params=params, headers=headers))
        except LinkFailed as failure:
            text = f"could not be reached ({failure.detail})"
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:  # what has no end
                text = "answered with over 16 KiB of headers"
        except (httpx.InvalidURL, UnicodeError):
            text = "could not be reached (its address is not valid)"
        except (httpx.HTTPError, trio.BrokenResourceError):
            pass
        raise SourceFailed(FetchOutcome.UNREACHABLE, text, again=True)


async def read(streaming: "AbstractAsyncContextManager[httpx.Response]") -> HttpAnswer:
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
        return HttpAnswer(response.status_code, dict(response.headers.items()), bytes(body))
