"""The status server: `/healthz`, `/readyz`, `/metrics`, and a page for people.

It runs in the service's event loop, so that `/healthz` shows whether that runs. It must not slow
the service down. Hence a small server on h11: HTTP/1.1 only, one request a connection, no bodies.
At the limit of clients an idle one is dropped for the next, and all requests together get a fifth
of the loop, in turn.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Collection
from functools import partial
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, Final, TypeVar

import attrs
import h11
import msgspec
import trio

from ..errors import CannotStart
from .journal import Journal
from .metrics import CONTENT_TYPE, metrics_text
from .overview import History, Service, overview, readiness

MOST_CLIENTS: Final = 64  # the feed and the sources need file descriptors too
MOST_HEAD: Final = 8192  # bytes of a request
MOST_READS: Final = 8  # for a request, which usually takes one, and again for what follows it
SERVED_WITHIN: Final = 5.0  # s for a connection, from its opening to its end
REST: Final = 4  # times the CPU time of a turn, before the next one
LEAST_REST: Final = 0.001  # s: a turn costs the loop more than the CPU time measured
CONNECTION_REST: Final = 0.002  # s between accepts, which cost some 0.3 ms each
NO_DESCRIPTOR_REST: Final = 0.1  # s
BACKLOG: Final = 128  # connections: they are accepted within a quarter of a second

# Sent with every answer. The page loads nothing from elsewhere.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
HEADERS: Final = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"connection", b"close"),
]

_PAGE: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_to_json = msgspec.json.Encoder().encode

T = TypeVar("T")


@attrs.frozen
class Answer:
    body: bytes
    media_type: str = _TEXT
    status: int = 200


class Pages:
    """The pages of the server. `hosts` are further host names that it accepts."""

    def __init__(self, service: Service, history: History, hosts: Collection[str]) -> None:
        self._service = service
        self._history = history
        self._hosts = {"", "localhost", *map(str.lower, hosts)}
        self._routes: dict[str, Callable[[str], Answer]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/status.json": self._status,
        }
        for path, (name, media_type) in _PAGE.items():
            file = Answer(files(__package__).joinpath("page", name).read_bytes(), media_type)
            self._routes[path] = partial(_same, file)

    def answer(self, method: str, target: str, host: str = "") -> Answer:
        """The answer to a request. `host` is its Host header; HTTP/1.0 needs none."""
        if not self._is_ours(host):
            text = b"ask by an IP address, as localhost, or by a name of RATEBRIDGE_STATUS_HOSTS\n"
            return Answer(text, status=421)
        path, _, query = target.partition("?")
        if path not in self._routes:
            return Answer(b"there is no such page\n", status=404)
        if method not in ("GET", "HEAD"):
            return Answer(b"GET and HEAD only\n", status=405)
        return self._routes[path](query)

    def _is_ours(self, host: str) -> bool:
        """Whether a request by this host name is safe from DNS rebinding."""
        name = re.sub(r":\d*$", "", host).lower()
        if name in self._hosts:
            return True
        try:
            ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True

    def _healthz(self, _query: str) -> Answer:
        uptime = round(trio.current_time() - self._service.started, 3)
        return _json({"healthy": True, "why": "the event loop turns", "uptime": uptime})

    def _readyz(self, _query: str) -> Answer:
        ready, why = readiness(self._service, trio.current_time())
        return _json({"ready": ready, "why": why}, 200 if ready else 503)

    def _metrics(self, _query: str) -> Answer:
        return Answer(metrics_text(self._service).encode(), CONTENT_TYPE)

    def _status(self, query: str) -> Answer:
        after = re.fullmatch(r"after=(\d{1,15})", query, re.ASCII)
        seen = int(after[1]) if after else 0
        return _json(overview(self._service, self._history, trio.current_time(), seen))


def _json(content: dict[str, Any], status: int = 200) -> Answer:
    return Answer(_to_json(content), _JSON, status)


def _same(answer: Answer, _query: str) -> Answer:
    return answer


class Share:
    """A share of the event loop, for pieces of work that run in turn.

    After each piece none runs for `REST` times the CPU time it took.
    """

    def __init__(self, cpu_time: Callable[[], float] = time.thread_time) -> None:
        self._cpu_time = cpu_time
        self._turn = trio.StrictFIFOLock()

    async def run(self, work: Callable[[], T]) -> T:
        async with self._turn:
            began = self._cpu_time()
            result = work()
            await trio.sleep(max(LEAST_REST, REST * (self._cpu_time() - began)))
        return result


class StatusServer:
    """Listens as soon as it is made, and answers while `run` runs.

    `address` is host and port; port 0 takes a free one. Raises `CannotStart` if it
    cannot listen there.
    """

    def __init__(self, address: tuple[str, int], journal: Journal) -> None:
        self._journal = journal
        self._host, port = address
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._host.encode("idna")  # `create_server` would leak a socket for such a name
            self._socket = socket.create_server(address, family=family, backlog=BACKLOG)
        except (OSError, ValueError) as error:
            where = _spelled(self._host, port)
            raise CannotStart(
                f"RATEBRIDGE_STATUS_ADDRESS: cannot listen on {where} ({_why(error)})"
            ) from None
        self.address: Final = _spelled(*self._socket.getsockname()[:2])
        self._share = Share()
        # The oldest first; True while its request is being answered.
        self._clients: dict[trio.CancelScope, bool] = {}

    def close(self) -> None:
        """Listen no more, without a `run`."""
        self._socket.close()

    async def run(
        self, service: Service, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer, until cancelled."""
        history = History(service.stats)
        pages = Pages(service, history, (self._host, *service.settings.status_hosts))
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        async with listener, trio.open_nursery() as status_nursery:
            status_nursery.start_soon(history.keep, name="status history")
            self._journal.note("status.listening", address=self.address)
            task_status.started()
            while True:
                await trio.sleep(CONNECTION_REST)
                if len(self._clients) == MOST_CLIENTS:
                    self._drop_an_idle_one()
                    continue
                try:
                    stream = await listener.accept()
                except OSError as error:  # there is no file descriptor left
                    self._journal.warn("status.failed", detail=_why(error))
                    await trio.sleep(NO_DESCRIPTOR_REST)
                    continue
                client_scope = trio.CancelScope(deadline=trio.current_time() + SERVED_WITHIN)
                self._clients[client_scope] = False
                status_nursery.start_soon(self._serve, stream, pages, client_scope)

    def _drop_an_idle_one(self) -> None:
        """End the oldest connection that waits for its client, if any, but not the newest."""
        for client_scope, in_turn in list(self._clients.items())[:-1]:
            if not in_turn:
                client_scope.cancel()
                return

    async def _serve(
        self, stream: trio.SocketStream, pages: Pages, client_scope: trio.CancelScope
    ) -> None:
        """Serve one connection to its end. Raises nothing."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
        try:
            with client_scope:
                for _ in range(MOST_READS):
                    received = await stream.receive_some(MOST_HEAD)
                    self._clients[client_scope] = True
                    work = partial(_take, connection, received, pages)
                    answer = await self._share.run(work)
                    self._clients[client_scope] = False
                    if answer is not None:
                        break
                else:
                    return
                await stream.send_all(answer)
                await stream.send_eof()
                # A close with unread bytes sends a reset, which can destroy the answer.
                for _ in range(MOST_READS):
                    if not await stream.receive_some(MOST_HEAD):
                        break
        except trio.BrokenResourceError:
            pass  # the client has gone
        except Exception as bug:  # noqa: BLE001 - a bug here must not stop the service
            self._journal.internal_error("status", bug)
        finally:
            del self._clients[client_scope]
            stream.socket.close()


def _take(connection: h11.Connection, received: bytes, pages: Pages) -> bytes | None:
    """The response to the bytes so far; None: read on; b"": none."""
    method = "GET"
    try:
        connection.receive_data(received)
        request = connection.next_event()
    except h11.RemoteProtocolError as error:
        answer = Answer(f"{error}\n".encode(), status=error.error_status_hint)
    else:
        if request is h11.NEED_DATA:
            return None
        if not isinstance(request, h11.Request):
            return b""
        method = request.method.decode()
        host = dict(request.headers).get(b"host", b"").decode("latin-1")
        answer = pages.answer(method, request.target.decode("latin-1"), host)
    headers = [
        *HEADERS,
        (b"content-type", answer.media_type.encode()),
        (b"content-length", b"%d" % len(answer.body)),
        (b"date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode()),
    ]
    if answer.status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    response = connection.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    if method != "HEAD":
        response += connection.send(h11.Data(answer.body)) or b""
    return response + (connection.send(h11.EndOfMessage()) or b"")


def _why(error: OSError | ValueError) -> str:
    """The system's error text, without the address that `create_server` adds."""
    if isinstance(error, OSError) and (error.errno or 0) > 0:
        return os.strerror(error.errno or 0)
    return "there is no such host"  # a resolver's error has a negative number, a bad name none


def _spelled(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
