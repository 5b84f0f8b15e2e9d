"""The way to a peer: a proxy if there is one, TCP, and TLS; each failure with its reason."""

import socket
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

import h11
import trio

from ..errors import LinkFailed, Loss
from ..names import names
from ..proxies import Proxy
from .address import Address
from .tls import READ_SIZE, TlsStream, certificate_wanted

Dial = Callable[[], Awaitable[trio.abc.Stream]]

USER_TIMEOUT: Final = 5000  # ms until what is not acknowledged breaks TCP


class NetworkDial:
    """A dial, see `Dial`: opens TCP to `address`, and TLS where the address says so.

    `tls` is for the peer, `proxy` stands between if there is one, and `proxy_tls` is for
    a proxy that is spoken to by https.
    """

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        proxy: Proxy | None = None,
        proxy_tls: ssl.SSLContext | None = None,
    ) -> None:
        assert tls is not None or not address.secure, "TLS needs a context"
        self._address = address
        self._tls = tls
        self._proxy = proxy
        self._proxy_tls = proxy_tls

    async def __call__(self) -> trio.abc.Stream:
        """Open a stream. Raises `LinkFailed`."""
        stream = await open_tcp(self._address, self._proxy, self._proxy_tls)
        if self._tls is None or not self._address.secure:
            return stream
        return await add_tls(stream, self._address, self._tls)

    def next_address(self) -> None:
        """The last attempt failed, here or behind: begin with the host's next address."""
        names().skip((self._proxy or self._address).host)


async def open_tcp(
    address: Address, proxy: Proxy | None = None, proxy_tls: ssl.SSLContext | None = None
) -> Network:
    """A connection to an address, through a proxy if there is one. Raises `LinkFailed`.

    `proxy_tls` is for a proxy that is spoken to by https.
    """
    names()
    if proxy is None:
        return await connect(address.host, address.port)
    try:
        if proxy.scheme.startswith("socks"):
            return await connect_by_socks(address, proxy)
        tunnel: Network = await connect(proxy.host, proxy.port)
        if proxy.scheme == "https":
            assert proxy_tls is not None, "TLS needs a context"
            tunnel = await add_tls_in_tls(tunnel, proxy.host, proxy_tls)
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


async def connect_by_http(stream: trio.abc.Stream, address: Address, proxy: Proxy) -> None:
    """Ask a proxy for a tunnel (RFC 9110, 9.3.6). Raises `LinkFailed`."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    target = f"{host}:{address.port}"
    headers = [("Host", target)]
    if proxy.user:
        pair = b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
        headers.append(("Proxy-Authorization", f"Basic {pair}"))
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method="CONNECT", target=target, headers=headers)
    await stream.send_all(connection.send(request) + connection.send(h11.EndOfMessage()))
    try:
        while not isinstance(event := connection.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(READ_SIZE))
    except h11.ProtocolError:
        raise LinkFailed(Loss.PROXY, "it does not answer in HTTP") from None
    if not 200 <= event.status_code < 300:
        raise LinkFailed(Loss.PROXY, f"it answered HTTP {event.status_code}")


async def connect_by_socks(address: Address, proxy: Proxy) -> trio.SocketStream:
    """Let a proxy connect, by SOCKS 5 (RFC 1928). Raises `LinkFailed`."""
    from python_socks import ProxyConnectionError, ProxyError, ProxyType
    from python_socks.async_.trio import Proxy as SocksProxy

    looked_up_there = proxy.scheme == "socks5h"
    tunnel = SocksProxy(
        *(ProxyType.SOCKS5, proxy.host, proxy.port, proxy.user, proxy.password, looked_up_there)
    )
    try:
        return trio.SocketStream(await tunnel.connect(address.host, address.port))
    except ProxyError as error:
        raise LinkFailed(Loss.PROXY, str(error)) from None
    except ProxyConnectionError as error:
        raise tcp_failure(error.__cause__ or error) from None
    except (OSError, ValueError) as error:  # such as a password that is too long
        raise tcp_failure(error) from None


async def add_tls(stream: trio.SocketStream, address: Address, tls: ssl.SSLContext) -> TlsStream:
    """Put TLS on a connection; on failure that is closed. Raises `LinkFailed`."""
    async with AsyncExitStack() as on_failure:
        on_failure.push_async_callback(trio.aclose_forcefully, stream)
        secured = TlsStream(stream, tls, address.host)
        try:
            await secured.handshake()
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            raise tls_failure(error, secured.flights) from None
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


def tls_failure(cause: BaseException, flights: int) -> LinkFailed:
    """Why a handshake failed, from what it raised and how many flights were sent before."""
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
        return certificate_wanted(cause, flights) or LinkFailed(Loss.TLS, f"TLS failed: {words}")
    return LinkFailed(Loss.TLS, "the peer broke off the TLS handshake")
