"""The way to a peer: a proxy if there is one, TCP, and TLS; each failure with its reason."""

import socket
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from types import SimpleNamespace
from typing import Any, Final

import attrs
import h11
import trio

from ..errors import LinkFailed, Loss
from ..names import names
from ..proxies import Proxy
from .address import Address
from .tls import READ_SIZE, TlsStream

Dial = Callable[[], Awaitable[trio.abc.Stream]]

MAX_INTERIM: Final = 16  # responses before the one that counts; a server has use for one or two
USER_TIMEOUT: Final = 5000  # ms until what is not acknowledged breaks TCP


@attrs.define(eq=False)
class NetworkDial:
    """A dial, see `Dial`: opens TCP to `address`, and TLS where the address says so.

    Args:
        address: the peer.
        tls: what is checked of the peer; needed if the address is secure.
        proxy: the proxy on the way to it, if there is one.
        proxy_tls: what is checked of a proxy that is spoken to by https; needed for such.

    There is no time limit here. `link.open_link` has one for the whole of an opening.
    """

    address: Address
    tls: ssl.SSLContext | None
    proxy: Proxy | None = None
    proxy_tls: ssl.SSLContext | None = None

    async def __call__(self) -> trio.abc.Stream:
        """Open a stream, encrypted if the address says so.

        Raises `LinkFailed` with the reason: DNS, TCP, the proxy, TLS, or a certificate.
        """
        stream = await self.open_tcp()
        return await add_tls(stream, self.address, self.tls) if self.address.secure else stream

    async def open_tcp(self) -> trio.abc.Stream:
        """A connection to the address, through the proxy if there is one. Raises `LinkFailed`."""
        address, proxy = self.address, self.proxy
        names()  # from now on they look up
        by_socks = proxy is not None and proxy.scheme.startswith("socks")
        try:
            if proxy is not None and by_socks:
                stream = await connect_by_socks(address, proxy)
            else:
                peer = proxy or address
                stream = await trio.open_tcp_stream(peer.host, peer.port)
            with suppress(AttributeError, OSError):  # not every platform knows it
                # Keepalive never fires while we send, and we send each second.
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
            if proxy is None or by_socks:
                return stream
            secure = proxy.scheme == "https"
            tunnel = await add_tls(stream, proxy, self.proxy_tls) if secure else stream
            return await connect_by_http(tunnel, address, proxy)
        except (OSError, UnicodeError, LinkFailed) as error:
            why = error if isinstance(error, LinkFailed) else tcp_failure(error)
            if proxy is None:
                raise why from None
            raise LinkFailed(Loss.PROXY, f"the proxy: {why.detail}", status=why.status) from None

    def next_address(self) -> None:
        """The last attempt came to nothing, here or behind: begin with the host's next address.

        With the proxy's too, if there is one, as who looks the host up depends on its kind.
        """
        for host in {self.address.host, (self.proxy or self.address).host}:
            names().skip(host)


async def connect_by_http(stream: trio.abc.Stream, peer: Address, proxy: Proxy) -> trio.abc.Stream:
    """Ask a proxy for a tunnel (CONNECT, RFC 9110, 9.3.6), with basic authentication if it has a
    user (RFC 7617).

    `stream` leads to the proxy. It is the tunnel afterwards, and is closed on failure. Raises
    `LinkFailed` when the proxy refuses, with its status, and when it does not speak HTTP.
    """
    target = f"[{peer.host}]:{peer.port}" if ":" in peer.host else f"{peer.host}:{peer.port}"
    pair = b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
    secret = [("Proxy-Authorization", f"Basic {pair}")] if proxy.user else []
    request = h11.Request(method="CONNECT", target=target, headers=[("Host", target), *secret])
    async with AsyncExitStack() as on_failure:
        on_failure.push_async_callback(trio.aclose_forcefully, stream)
        try:
            answer = await ask(stream, h11.Connection(h11.CLIENT), request)
        except (h11.ProtocolError, trio.BrokenResourceError):
            raise LinkFailed(Loss.PROXY, "it broke off, or does not speak HTTP") from None
        if not 200 <= (status := answer.status_code) < 300:
            raise LinkFailed(Loss.PROXY, f"it answered HTTP {status}", status=status)
        on_failure.pop_all()
    return stream


async def connect_by_socks(peer: Address, proxy: Proxy) -> trio.SocketStream:
    """Let a proxy connect, by SOCKS 5 (RFC 1928, with RFC 1929 if it has a user).

    By `socks5` this machine looks the peer's name up, and its first address is asked for. By
    `socks5h` the proxy looks it up, and so it does if the name is not found here. Raises OSError
    when the proxy cannot be reached, and `LinkFailed` when it refuses, with status 407 for the
    user or password, or does not speak SOCKS.
    """
    import python_socks
    from python_socks.async_.trio import Proxy as SocksProxy

    async def connect(dest_host: str, dest_port: int, **_: object) -> trio.socket.SocketType:
        """To the proxy: python-socks itself tries one address, and an IPv6 one last."""
        return (await trio.open_tcp_stream(dest_host, dest_port)).socket

    host = peer.host
    if proxy.scheme == "socks5":
        with suppress(socket.gaierror):
            found = await trio.socket.getaddrinfo(host, peer.port, type=socket.SOCK_STREAM)
            host = str(found[0][4][0])
    by: Any = SimpleNamespace(connect=connect)
    way = (python_socks.ProxyType.SOCKS5, proxy.host, proxy.port, proxy.user, proxy.password)
    try:
        return trio.SocketStream(await SocksProxy(*way, True, by).connect(host, peer.port))
    except python_socks.ProxyError as error:
        status = 407 if "authentication" in str(error) else None  # as HTTP says it
        raise LinkFailed(Loss.PROXY, str(error), status=status) from None
    except ValueError:  # not ASCII, or over 255 characters
        raise LinkFailed(Loss.PROXY, "SOCKS cannot carry its name, user or password") from None


async def add_tls(
    stream: trio.abc.Stream, peer: Address | Proxy, tls: ssl.SSLContext | None
) -> TlsStream:
    """Put TLS on a connection, as a client of `peer`; on failure the connection is closed.

    Raises `LinkFailed`: `certificate` for one that does not pass, `client-certificate` when
    the peer wants one of ours, `tls` for all else.
    """
    assert tls is not None, "TLS needs a context"
    async with AsyncExitStack() as on_failure:
        on_failure.push_async_callback(trio.aclose_forcefully, stream)
        # A dot at the end is for the lookup. Neither SNI (RFC 6066, 3) nor a certificate has it.
        secured = TlsStream(stream, tls, peer.host.removesuffix("."))
        try:
            await secured.handshake()
        except ssl.SSLCertVerificationError as error:
            text = f"the certificate does not pass: {error.verify_message}"
            raise LinkFailed(Loss.CERTIFICATE, text) from None
        except (trio.BrokenResourceError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            # Which of them it is depends on the version of Python.
            raise LinkFailed(Loss.TLS, "the peer broke off the TLS handshake") from None
        except ssl.SSLError as error:
            # "[SSL: NAME] words (_ssl.c:1006)". Not every alert has a name in Python: that of
            # ALPN has none.
            words = str(error).partition("] ")[2].rpartition(" (")[0]
            raise LinkFailed(Loss.TLS, f"TLS failed: {words}") from None
        on_failure.pop_all()
    return secured


async def ask(
    stream: trio.abc.Stream, connection: h11.Connection, request: h11.Request
) -> h11.Response:
    """Send a request that has no body, and read the head of its response.

    Raises `trio.BrokenResourceError` and `h11.RemoteProtocolError`; for a head of over 16 KiB
    and for over `MAX_INTERIM` heads before it (RFC 9110, 15.2) with the hint 431.
    """
    await stream.send_all(connection.send(request) or b"")
    connection.send(h11.EndOfMessage())
    for _ in range(MAX_INTERIM + 1):
        event = await next_event(stream, connection)
        if isinstance(event, h11.Response):
            return event
    raise h11.RemoteProtocolError("heads without end", error_status_hint=431)


async def next_event(stream: trio.abc.Stream, connection: h11.Connection) -> Any:
    """What comes next, of h11's events. Raises as `ask`."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(bytes(await stream.receive_some(READ_SIZE)))
    return event


def tcp_failure(error: BaseException) -> LinkFailed:
    """Why there is no connection, from what a lookup or TCP raised."""
    if isinstance(error, socket.gaierror):
        return LinkFailed(Loss.DNS, "the host was not found")
    if isinstance(error, UnicodeError):
        return LinkFailed(Loss.DNS, "the host's name is not valid")
    attempts = error.__cause__
    # trio raises a group with an error for each address that was tried.
    errors = attempts.exceptions if isinstance(attempts, ExceptionGroup) else (error,)
    if any(isinstance(each, ConnectionRefusedError) for each in errors):
        return LinkFailed(Loss.REFUSED, "connection refused: nobody listens on that port")
    why = next((each.strerror for each in errors if isinstance(each, OSError)), None)
    return LinkFailed(Loss.UNREACHABLE, why or "no connection could be made")
