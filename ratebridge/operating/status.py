"""The status server: `/healthz`, `/readyz`, `/metrics`, and a page for people.

It runs in the service's event loop, so it must never cost the service anything.
hypercorn speaks the HTTP, one connection at a time, and the rest is ours,
because its own `serve` does not hold against a client: an upgrade followed by
junk ends the whole server, one that does not read its answers keeps the service
from stopping (writes are shielded and have no limit), and nothing bounds how
many file descriptors clients hold. Here each connection fails for itself.
"""

import os
import socket
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, Final

import msgspec
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import CannotStart
from .journal import Journal
from .metrics import CONTENT_TYPE, Metrics
from .overview import History, Service, overview, readiness

MOST_CLIENTS: Final = 64  # connections; more are closed at once, a feed must find descriptors left
ANSWER_WITHIN: Final = 10.0  # s from one write to the next, or from the opening: above any idling
WRITE_WITHIN: Final = 5.0  # s for a client to take an answer
CLOSE_WITHIN: Final = 0.5  # s for what a client asked before it closed its side
BACKLOG: Final = 64

# Sent with every answer. The page brings all it needs and talks to nobody but us.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
HEADERS: Final = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]

_PAGE: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_to_json = msgspec.json.Encoder().encode


def make_app(service: Service, history: History, journal: Journal) -> ASGIApp:
    """The routes, as an ASGI application whose bugs end with it."""
    metrics = Metrics(service)

    async def healthz(_request: Request) -> Response:
        uptime = round(trio.current_time() - service.started, 3)
        return _json({"healthy": True, "why": "the event loop turns", "uptime": uptime})

    async def readyz(_request: Request) -> Response:
        ready, why = readiness(service, trio.current_time())
        return _json({"ready": ready, "why": why}, 200 if ready else 503)

    async def prometheus(_request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def status(request: Request) -> Response:
        after = request.query_params.get("after", "")
        taken = int(after) if after.isascii() and after.isdigit() and len(after) < 16 else 0
        return _json(overview(service, history, trio.current_time(), taken))

    routes = [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", prometheus),
        Route("/status.json", status),
    ]
    routes += [Route(path, _file(*asset)) for path, asset in _PAGE.items()]
    return _Contained(Router(routes, redirect_slashes=False), journal)


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(_to_json(content), status, media_type="application/json")


def _file(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    body = files(__package__).joinpath("page", name).read_bytes()

    async def file(_request: Request) -> Response:
        return Response(body, headers={"content-type": media_type})

    return file


class _Contained:
    """An application with our headers on each answer, and with no error getting out."""

    def __init__(self, app: ASGIApp, journal: Journal) -> None:
        self._app = app
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = client_lost = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun, client_lost
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message["headers"], *HEADERS]
            try:
                await send(message)
            except Exception:
                client_lost = True
                raise

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as bug:
            if client_lost:
                raise  # the server's library could not send: it closes, and no bug is ours
            self._journal.internal_error("status", bug)
            if not begun:
                answer = PlainTextResponse("an internal error, see the service's log", 500)
                await answer(scope, receive, send_with_headers)


class StatusServer:
    """Listens from the moment it is made, answers while `run` runs.

    `address` is host and port; port 0 takes a free one. Raises `CannotStart`
    when nothing can listen there.
    """

    def __init__(self, address: tuple[str, int], journal: Journal) -> None:
        self._journal = journal
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            host.encode("idna")  # a name that fails here would cost `create_server` a socket
            self._socket = socket.create_server(address, family=family, backlog=BACKLOG)
        except (OSError, ValueError) as error:
            where = _spelled(host, port)
            raise CannotStart(
                f"RATEBRIDGE_STATUS_ADDRESS: cannot listen on {where} ({_why(error)})"
            ) from None
        host, port = self._socket.getsockname()[:2]
        self.address: Final = _spelled(host, port)

    async def run(
        self, service: Service, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer, until cancelled."""
        history = History(service.stats)
        door = _Door(make_app(service, history, self._journal), self._journal)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        async with trio.open_nursery() as status_nursery:
            status_nursery.start_soon(history.keep, name="status history")
            self._journal.note("status.listening", address=self.address)
            task_status.started()
            try:
                await trio.serve_listeners(door.handle, [listener], handler_nursery=status_nursery)
            finally:
                door.shut()


def _why(error: OSError | ValueError) -> str:
    """The system's own words, without the address that `create_server` puts behind them."""
    if isinstance(error, OSError) and (error.errno or 0) > 0:
        return os.strerror(error.errno or 0)
    return "there is no such host"  # the resolver has negative numbers, a strange name no number


def _spelled(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Door:
    """Takes clients in, a bounded number of them, and has hypercorn serve each."""

    def __init__(self, app: ASGIApp, journal: Journal) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # Starlette's types are looser
        self._journal = journal
        self._clients: set[trio.SocketStream] = set()
        self._config = Config()
        self._config.accesslog = self._config.errorlog = None  # what matters is logged by us
        self._config.include_server_header = False

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end. Raises nothing."""
        try:
            if len(self._clients) < MOST_CLIENTS:
                self._clients.add(stream)
                await self._serve(stream)
        finally:
            self._clients.discard(stream)
            stream.socket.close()

    def shut(self) -> None:
        """Break all connections off: a write that hypercorn shields would hold up the stop."""
        for stream in self._clients:
            stream.socket.close()

    async def _serve(self, stream: trio.SocketStream) -> None:
        deadline = trio.current_time() + ANSWER_WITHIN
        try:
            with trio.CancelScope(deadline=deadline) as client_scope:
                await TCPServer(
                    self._app,
                    self._config,
                    WorkerContext(None),
                    ConnectionState({}),
                    _Client(stream, client_scope),  # type: ignore[arg-type]  # all that it uses
                ).run()
        except* Exception as failures:  # noqa: BLE001 - it costs one client and not the service
            self._journal.status_client_failed(failures)


class _Client:
    """A client's stream: soon over when the client has closed, in time when it does nothing.

    `scope` is that of the connection. A write has its time too.
    """

    def __init__(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        self._stream = stream
        self._scope = scope
        self._has_closed = False
        self.socket: Final = stream.socket  # hypercorn asks it for the addresses

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if not data:
            self._has_closed = True  # hypercorn would keep the connection for its idle time
            self._scope.deadline = trio.current_time() + CLOSE_WITHIN
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(WRITE_WITHIN):
            await self._stream.send_all(data)
            if not self._has_closed:
                self._scope.deadline = trio.current_time() + ANSWER_WITHIN
            return
        self.socket.close()
        raise trio.BrokenResourceError("the client does not read")

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
