"""The way to a peer: a proxy if there is one, TCP, and TLS; each failure with its reason."""

import socket
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

import attrs
import h11
import trio

from ..errors import LinkFailed, Loss
from ..names import names
from ..proxies import Proxy
from .address import Address
from .tls import READ_SIZE, TlsStream

Dial = Callable[[], Awaitable[trio.abc.Stream]]

USER_TIMEOUT: Final = 5000  # ms until what is not acknowledged breaks TCP


@attrs.define(eq=False)
class NetworkDial:
    """A dial, see `Dial`: opens TCP to `address`, and TLS where the address says so.

    `tls` is for the peer, `proxy` stands between if there is one, and `proxy_tls` is for
    a proxy that is spoken to by https.
    """

    address: Address
    tls: ssl.SSLContext | None
    proxy: Proxy | None = None
    proxy_tls: ssl.SSLContext | None = None

    async def __call__(self) -> trio.abc.Stream:
        """Open a stream. Raises `LinkFailed`."""
        stream = await open_tcp(self.address, self.proxy, self.proxy_tls)
        if not self.address.secure:
            return stream
        assert self.tls is not None, "TLS needs a context"
        return await add_tls(stream, self.address, self.tls)

    def next_address(self) -> None:
        """The last attempt failed, here or behind: begin with the host's next address."""
        names().skip((self.proxy or self.address).host)


async def open_tcp(
    address: Address, proxy: Proxy | None = None, proxy_tls: ssl.SSLContext | None = None
) -> trio.abc.Stream:
    """A connection to an address, through a proxy if there is one. Raises `LinkFailed`.

    `proxy_tls` is for a proxy that is spoken to by https.
    """
    names()  # from now on they look up
    if proxy is None:
        return await connect(address.host, address.port)
    try:
        if proxy.scheme.startswith("socks"):
            return await connect_by_socks(address, proxy)
        tunnel: trio.abc.Stream = await connect(proxy.host, proxy.port)
        if proxy.scheme == "https":
            assert proxy_tls is not None, "TLS needs a context"
            tunnel = await add_tls(tunnel, proxy, proxy_tls)
        return await connect_by_http(tunnel, address, proxy)
    except LinkFailed as failure:
        raise LinkFailed(Loss.PROXY, f"the proxy: {failure.detail}") from None


async def connect(host: str, port: int) -> trio.SocketStream:
    """Look a host up and connect. Raises `LinkFailed`."""
    try:
        stream = await trio.open_tcp_stream(host, port)
    except (OSError, UnicodeError) as error:
        raise tcp_failure(error) from None
    with suppress(AttributeError, OSError):  # not every platform knows it
        # Keepalive never fires while we send, and we send each second.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
    return stream


async def connect_by_http(stream: trio.abc.Stream, peer: Address, proxy: Proxy) -> trio.abc.Stream:
    """Ask a proxy for a tunnel (RFC 9110, 9.3.6). Raises `LinkFailed`."""
    host = f"[{peer.host}]" if ":" in peer.host else peer.host
    target = f"{host}:{peer.port}"
    pair = b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
    secret = [("Proxy-Authorization", f"Basic {pair}")] if proxy.user else []
    request = h11.Request(method="CONNECT", target=target, headers=[("Host", target), *secret])
    connection = h11.Connection(h11.CLIENT)
    async with AsyncExitStack() as on_failure:
        on_failure.push_async_callback(trio.aclose_forcefully, stream)
        try:
            await stream.send_all(connection.send(request) or b"")
            connection.send(h11.EndOfMessage())
            while not isinstance(event := connection.next_event(), h11.Response):
                if event is h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some(READ_SIZE)))
        except (h11.ProtocolError, trio.BrokenResourceError):
            raise LinkFailed(Loss.PROXY, "it broke off, or does not speak HTTP") from None
        if not 200 <= event.status_code < 300:
            raise LinkFailed(Loss.PROXY, f"it answered HTTP {event.status_code}")
        on_failure.pop_all()
    return stream


async def connect_by_socks(peer: Address, proxy: Proxy) -> trio.SocketStream:
    """Let a proxy connect, by SOCKS 5 (RFC 1928). Raises `LinkFailed`."""
    import python_socks
    from python_socks.async_.trio import Proxy as SocksProxy

    there = proxy.scheme == "socks5h"  # the name is looked up
    way = (python_socks.ProxyType.SOCKS5, proxy.host, proxy.port, proxy.user, proxy.password)
    try:
        return trio.SocketStream(await SocksProxy(*way, there).connect(peer.host, peer.port))
    except python_socks.ProxyError as error:
        raise LinkFailed(Loss.PROXY, str(error)) from None
    except ValueError:  # not ASCII, or over 255 characters
        raise LinkFailed(Loss.PROXY, "SOCKS cannot carry its user and password") from None
    except OSError as error:
        raise tcp_failure(error.__cause__ or error) from None


async def add_tls(
    stream: trio.abc.Stream, peer: Address | Proxy, tls: ssl.SSLContext
) -> TlsStream | trio.SSLStream[trio.abc.Stream]:
    """Put TLS on a connection; on failure that is closed. Raises `LinkFailed`."""
    async with AsyncExitStack() as on_failure:
        on_failure.push_async_callback(trio.aclose_forcefully, stream)
        secured: TlsStream | trio.SSLStream[trio.abc.Stream]
        try:
            if isinstance(stream, trio.SocketStream):
                secured = TlsStream(stream, tls, peer.host)
                await secured.handshake()
            else:  # it is a tunnel in TLS
                secured = trio.SSLStream(
                    stream, tls, server_hostname=peer.host, https_compatible=True
                )
                await secured.do_handshake()
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
            raise tls_failure(cause) from None
        on_failure.pop_all()
    return secured


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


def tls_failure(cause: BaseException) -> LinkFailed:
    """Why a handshake failed, from what it raised."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return LinkFailed(
            Loss.CERTIFICATE, f"the certificate does not pass: {cause.verify_message}"
        )
    # A peer who goes is one of these two errors, which one depends on the version of Python.
    gone = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    if isinstance(cause, ssl.SSLError) and not gone:
        # "[SSL: NAME] words (_ssl.c:1006)". Not every alert has a name in Python: that of ALPN
        # has none.
        words = str(cause).partition("] ")[2].rpartition(" (")[0]
        return LinkFailed(Loss.TLS, f"TLS failed: {words}")
    return LinkFailed(Loss.TLS, "the peer broke off the TLS handshake")
