"""The HTTP client of a running service, made when a source is first asked.

Importing httpx and reading the certificates takes as long as all the rest of the
start; the feed need not wait for it, and a restart should cost little.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import trio

from .source import Answer

if TYPE_CHECKING:
    from .http import HttpClient

_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})


class LateHttp:
    """`HttpClient` to the sources, made by `make` off the event loop.

    Where the environment names a proxy it is made at once, so that what is wrong
    with the proxy is told at the start: raises `BadSettings`, as `make` does.
    """

    def __init__(self, make: "Callable[[], HttpClient]") -> None:
        self._make = make
        self._making = trio.Lock()
        proxied = any(name.lower() in _PROXIES for name in os.environ)
        self._client = make() if proxied else None

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """See `HttpClient`."""
        client = self._client or await self._made()
        return await client.get(url, params, headers)

    async def _made(self) -> "HttpClient":
        async with self._making:
            if self._client is None:
                self._client = await trio.to_thread.run_sync(self._make)
            return self._client

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()
