"""The status server: `/healthz`, `/readyz`, `/metrics`, and a page for people.

It runs in the service's event loop, so that `/healthz` shows whether that runs. It must not slow
the service down. Hence a small server on h11: HTTP/1.1 only, one request a connection, no bodies.
At the limit of clients an idle one is dropped for the next, and all requests together get a fifth
of the loop, in turn.
"""

import os
import re
import resource
import socket
import time
from collections.abc import Callable, Collection
from functools import partial
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, Final

import attrs
import h11
import msgspec
import trio

from ..errors import CannotStart
from ..reporting.observer import Observer
from .metrics import Metrics
from .overview import Chart, Service, overview, readiness

MOST_CLIENTS: Final = 64
CLIENTS_SHARE: Final = 8  # one descriptor in so many: the feed and the sources need them too
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
    (b"allow", b"GET, HEAD"),
    (b"connection", b"close"),
]

FILES: Final = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


@attrs.frozen
class Page:
    """The answer to a request: text, unless it says otherwise."""

    body: bytes
    media_type: str = "text/plain; charset=utf-8"
    status: int = 200
    zipped: bool = False


class Pages:
    """The pages of the server. `hosts` are further host names that it accepts."""

    def __init__(self, service: Service, history: Chart, hosts: Collection[str]) -> None:
        self._service = service
        self._history = history
        self._metrics = Metrics(service)
        self._hosts = {"", "localhost", *map(str.lower, hosts)}
        folder = files(__package__) / "page"
        self._files = {
            f"/{name}": Page((folder / name).read_bytes(), f"{media_type}; charset=utf-8")
            for name, media_type in FILES.items()
        }
        self._files["/"] = self._files.pop("/page.html")

    def answer(self, method: str, target: str, headers: dict[str, str]) -> Page:
        """The answer to a request.

        `target` is a path with its query, or a URI (RFC 9112, 3.2.1 and 3.2.2). Of its host the
        header is asked, which a page in a browser cannot choose. `headers` have lower-case names. A
        request without a host, as HTTP/1.0 allows, is answered: no browser sends one.
        """
        # Only by a name that is ours: a page elsewhere can have its own name resolved to our
        # address, and then read the answers.
        name = re.sub(r":\d*$", "", headers.get("host", "")).lower()
        if name not in self._hosts:
            try:
                ip_address(name.removeprefix("[").removesuffix("]"))
            except ValueError:
                how = b"ask by an IP address, localhost, or a name of RATEBRIDGE_STATUS_HOSTS\n"
                return Page(how, status=421)
        if method not in ("GET", "HEAD"):
            return Page(b"GET and HEAD only\n", status=405)
        path, _, query = re.sub("(?i)^https?://[^/?]*", "", target).partition("?")
        now, status = trio.current_time(), 200
        told: dict[str, Any]
        if path == "/metrics":
            accepted = headers.get("accept", ""), headers.get("accept-encoding", "")
            body, media_type, zipped = self._metrics.answer(*accepted)
            return Page(body, media_type, zipped=zipped)
        if path == "/healthz":
            uptime = round(now - self._service.started, 3)
            told = {"healthy": True, "why": "the event loop turns", "uptime": uptime}
        elif path == "/readyz":
            state, why = readiness(self._service, now)
            told = {"ready": state.is_ready, "status": state, "why": why}
            status = 200 if state.is_ready else 503
        elif path == "/status.json":
            after = re.fullmatch(r"after=(\d{1,15})", query, re.ASCII)
            told = overview(self._service, self._history, now, int(after[1]) if after else 0)
        else:
            return self._files.get(path or "/", Page(b"there is no such page\n", status=404))
        return Page(msgspec.json.encode(told), "application/json", status)


class Share:
    """A share of the event loop, for pieces of work that run in turn.

    After each piece none runs for `REST` times the CPU time it took.
    """

    def __init__(self, cpu_time: Callable[[], float] = time.thread_time) -> None:
        self._cpu_time = cpu_time
        self._turn = trio.StrictFIFOLock()

    async def run(self, work: Callable[[], bytes | None]) -> bytes | None:
        """Run `work` when its turn comes, and return what it returns after its rest.

        Turns are in the order of the calls. Raises what `work` raises, without a rest.
        """
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

    def __init__(self, address: tuple[str, int], observer: Observer) -> None:
        self._observer = observer
        self._host, port = address
        try:
            self._socket = _listen(self._host, port)
        except (OSError, UnicodeError) as error:
            what = f"cannot listen on {_spelled(self._host, port)} ({_why(error)})"
            raise CannotStart(f"RATEBRIDGE_STATUS_ADDRESS: {what}") from None
        self.address: Final = _spelled(*self._socket.getsockname()[:2])
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST_CLIENTS if most == resource.RLIM_INFINITY else most // CLIENTS_SHARE
        self._most_clients = max(2, min(MOST_CLIENTS, most))
        self._share = Share()
        # The oldest first; True while its request is being answered.
        self._clients: dict[trio.CancelScope, bool] = {}

    def close(self) -> None:
        """Listen no more, without a `run`."""
        self._socket.close()

    async def run(
        self, service: Service, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer, until cancelled. `task_status` is told when the first answer can be given.

        A bug in one answer is reported to the observer and costs that connection.
        """
        history = Chart(service.stats)
        pages = Pages(service, history, (self._host, *service.settings.status_hosts))
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        async with listener, trio.open_nursery() as status_nursery:
            status_nursery.start_soon(history.keep, name="status history")
            self._observer.note("status.listening", address=self.address)
            task_status.started()
            while True:
                await trio.sleep(CONNECTION_REST)
                if len(self._clients) == self._most_clients:
                    # End the oldest that waits for its client, if any, but not the newest.
                    waiting = [one for one, busy in list(self._clients.items())[:-1] if not busy]
                    for client_scope in waiting[:1]:
                        client_scope.cancel()
                    continue
                try:
                    stream = await listener.accept()
                except OSError as error:  # there is no file descriptor left
                    self._observer.warn("status.failed", detail=_why(error))
                    await trio.sleep(NO_DESCRIPTOR_REST)
                    continue
                client_scope = trio.CancelScope(deadline=trio.current_time() + SERVED_WITHIN)
                self._clients[client_scope] = False
                status_nursery.start_soon(self._serve, stream, pages, client_scope)

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
                    answer = await self._share.run(partial(_take, connection, received, pages))
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
            self._observer.internal_error("status", bug)
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
        page = Page(f"{error}\n".encode(), status=error.error_status_hint)
    else:
        if request is h11.NEED_DATA:
            return None
        if not isinstance(request, h11.Request):
            return b""
        method = request.method.decode()
        fields = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        page = pages.answer(method, request.target.decode("latin-1"), fields)
    headers = [
        *HEADERS,
        (b"content-type", page.media_type.encode()),
        (b"content-length", b"%d" % len(page.body)),
        (b"date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode()),
    ]
    if page.zipped:
        headers.append((b"content-encoding", b"gzip"))
    response = connection.send(h11.Response(status_code=page.status, headers=headers)) or b""
    if method != "HEAD":
        response += connection.send(h11.Data(page.body)) or b""
    return response + (connection.send(h11.EndOfMessage()) or b"")


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the first address of the host that can be had.

    An IPv6 one takes IPv4 as well where it stands for every address. Raises OSError or
    UnicodeError.
    """
    problem = OSError("there is no such host")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, *_, address in found:
        dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        try:
            return socket.create_server(
                address, family=family, backlog=BACKLOG, dualstack_ipv6=dual
            )
        except OSError as error:
            problem = error
    raise problem


def _why(error: OSError | UnicodeError) -> str:
    """The system's error text, without the address that `create_server` adds."""
    number = getattr(error, "errno", 0) or 0  # a resolver's is negative, a bad name has none
    return os.strerror(number) if number > 0 else "there is no such host"


def _spelled(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
