"""A bounded GET, by httpx, whose network is `transport`.

httpx is imported when a source is first asked, off the event loop. That takes as long as
the rest of the start, and the feed must not wait for it.

The caller limits the time by a cancel scope, and does the retries.
"""

import logging
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from importlib import import_module
from typing import Final

import h11
import trio

from ..backoff import FORBIDDEN, FORBIDS
from ..errors import FetchOutcome, LinkFailed, SourceFailed
from ..link.dial import Dial
from ..proxies import Proxies
from ..version import __version__
from .source import HttpAnswer

HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": f"ratebridge/{__version__}",
}

# httpx writes the URL of each request to its log. Those of our requests are left out there, and
# no others: an embedding program may have some.
_asking: Final = ContextVar("asking", default=False)
logging.getLogger("httpx").addFilter(lambda _record: not _asking.get())


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
        self._importing = trio.Lock()

    async def get(
        self, url: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        """GET `url` with `params` as its query, and with `headers` beside `HEADERS`.

        The answer may have any status but a redirect's. Raises `SourceFailed`, whose text names
        neither the URL nor a header: `unreachable` if there was no whole answer, `redirect`, and
        `bad-body` for a body that is compressed or exceeds the bounds.
        """
        async with self._importing:
            if "httpx" not in sys.modules:
                with suppress(RuntimeError):  # "can't start new thread": then here
                    await trio.to_thread.run_sync(import_module, "httpx")
        import httpx

        from .transport import Transport

        # A client for each request: no cookie of one is there for the next.
        client = httpx.AsyncClient(
            transport=Transport(self._tls, self._proxies, self._dial),
            trust_env=False,  # the proxies are known
            headers=HEADERS,
        )
        text, rest = "broke off the connection", None
        unlogged = _asking.set(True)
        try:
            response = await client.get(url, params=params, headers=headers)
            # dict(headers) would look each name up among all of them, in quadratic time. Of a name
            # on two lines the last counts: joined, as by `items`, a Retry-After is no number.
            found = dict(response.headers.multi_items())
            return HttpAnswer(response.status_code, found, response.content)
        except LinkFailed as failure:
            text = f"could not be reached ({failure.detail})"
            rest = FORBIDDEN if failure.status in FORBIDS else None  # the proxy refuses us
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                text = "answered with headers without end"
        except (httpx.InvalidURL, UnicodeError):
            text = "could not be reached (its address is not valid)"
            raise SourceFailed(FetchOutcome.UNREACHABLE, text) from None
        except trio.BrokenResourceError:
            pass
        finally:
            _asking.reset(unlogged)
        raise SourceFailed(FetchOutcome.UNREACHABLE, text, again=rest is None, limited_for=rest)
