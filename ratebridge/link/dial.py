"""The way to a peer: TCP, and TLS where its address says so, each failure with its reason."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import trio

from ..errors import LinkFailed, Loss
from .address import Address
from .tls import TlsStream

Dial = Callable[[], Awaitable[trio.abc.Stream]]


def network_dial(address: Address, tls: ssl.SSLContext | None) -> Dial:
    """A dial that opens TCP, and TLS where the address says so. It raises `LinkFailed`."""
    assert tls is not None or not address.secure, "TLS needs a context"

    async def dial() -> trio.abc.Stream:
        stream = await open_tcp(address)
        if tls is None or not address.secure:
            return stream
        return await add_tls(stream, address, tls)

    return dial


async def open_tcp(address: Address) -> trio.SocketStream:
    """Look the host up and connect. Raises `LinkFailed`."""
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except (OSError, UnicodeError) as error:
        raise _dial_failure(error) from None
    with suppress(AttributeError, OSError):  # not every platform knows it
        # Keepalive never fires while we send, and we send each second.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
    return stream


async def add_tls(stream: trio.SocketStream, address: Address, tls: ssl.SSLContext) -> TlsStream:
    """Put TLS on a connection; on failure that is closed. Raises `LinkFailed`."""
    async with AsyncExitStack() as on_failure:
        on_failure.push_async_callback(trio.aclose_forcefully, stream)
        try:
            secured = TlsStream(stream, tls, address.host)
            await secured.handshake()
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            raise _tls_failure(error) from None
        on_failure.pop_all()
    return secured


def _dial_failure(error: OSError | UnicodeError) -> LinkFailed:
    if isinstance(error, socket.gaierror):
        return LinkFailed(Loss.DNS, "the host was not found")
    if isinstance(error, UnicodeError):
        return LinkFailed(Loss.DNS, "the host's name is not valid")
    attempts = error.__cause__
    if isinstance(attempts, ExceptionGroup):  # an error for each address that was tried
        if attempts.subgroup(ConnectionRefusedError) is not None:
            return LinkFailed(Loss.REFUSED, "connection refused: nobody listens on that port")
        error = next(e for e in attempts.exceptions if isinstance(e, OSError))
    return LinkFailed(Loss.UNREACHABLE, error.strerror or "no connection could be made")


def _tls_failure(cause: Exception) -> LinkFailed:
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
