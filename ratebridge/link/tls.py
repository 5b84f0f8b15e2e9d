"""TLS: what is checked of a peer; and TLS on a socket in two steps, to seal and to write.

trio's SSLStream does both steps at once and waits meanwhile. Here what is sealed is
bytes like any, which the link's queue writes at once or later, in their order.
"""

import os
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from ..errors import BadSettings, CannotStart, LinkFailed, Loss

# Bytes, the most that one read of a socket gives: 16,384 empty texts, or 200 requests.
READ_SIZE: Final = 32 * 1024

_WANTED: Final = "the peer wants a client certificate"


def tls_context(
    verify: bool, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """The TLS of a client.

    The authorities are the system's, or those of the environment's `SSL_CERT_FILE` and
    `SSL_CERT_DIR` (folders, as on a `PATH`).

    Args:
        verify: whether certificates are checked; a name has to stand in the subject's
            alternative names (RFC 9525, 6.3), on every Python.
        cert_file: the client's certificate in PEM, with its chain.
        key_file: its key, unless that stands in the same file.

    Raises `BadSettings` for a certificate, a key or authorities that cannot be used, and
    `CannotStart` if the file that `SSLKEYLOGFILE` names cannot be written.
    """
    try:
        context = ssl.create_default_context()
    except OSError as error:
        raise CannotStart(f"SSLKEYLOGFILE: cannot be written ({error.strerror})") from None
    context.hostname_checks_common_name = False
    context.options |= ssl.OP_NO_RENEGOTIATION  # of TLS 1.2: no write works while it goes on
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # OpenSSL passes over what is not there, and then says that it does not know an issuer.
    elif os.environ.get("SSL_CERT_FILE") and not context.cert_store_stats()["x509"]:
        raise BadSettings("SSL_CERT_FILE: expected a file that can be read, certificates in PEM")
    elif not any(map(os.path.isdir, (os.environ.get("SSL_CERT_DIR") or "/").split(os.pathsep))):
        raise BadSettings("SSL_CERT_DIR: expected a folder of certificates")
    context.set_alpn_protocols(["http/1.1"])  # for the upgrade, too
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file, password=lambda: "")  # or it would ask
        except OSError as error:
            why = "they are none" if isinstance(error, ssl.SSLError) else error.strerror
            raise BadSettings(
                "RATEBRIDGE_FEED_CERT_FILE, RATEBRIDGE_FEED_KEY_FILE: expected a certificate and "
                f"its key in PEM, without a passphrase ({why})"
            ) from None
    return context


class TlsStream(trio.abc.Stream):
    """TLS over another stream, as a client; `handshake` comes first.

    Args:
        network: the stream below. It is closed with this one, without a close_notify: who
            ends a link does not wait for its peer.
        context: what is checked of the peer, see `tls_context`.
        host: its name for SNI (RFC 6066, 3) and for the check of its certificate, or its
            IP address. Without a dot at the end.

    `seal`, `unseal` and `unsent` do no input or output. The methods of a `trio.abc.Stream`
    do both steps in one, for the upgrade and for HTTP. `socket` is the one below, or None
    in a tunnel through a proxy.
    """

    def __init__(self, network: trio.abc.Stream, context: ssl.SSLContext, host: str) -> None:
        self._network = network
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        # None in a tunnel, which may be TLS itself.
        self.socket: Any = network.socket if isinstance(network, trio.SocketStream) else None

    async def handshake(self) -> None:
        """Agree with the peer on keys, and check its certificate.

        Raises `LinkFailed` if the peer wants a certificate of the client, `ssl.SSLError` for
        any other reason of either side (`ssl.SSLCertVerificationError` for a certificate that
        does not pass), and `trio.BrokenResourceError` when TCP breaks. A peer whose fault it
        is gets the alert that says why (RFC 8446, 6.2). There is no time limit.
        """
        flights = 0  # sent so far
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                flight = self.unsent()
                flights += bool(flight)
                await self._network.send_all(flight)
                self._feed(await self._network.receive_some(READ_SIZE))
            except ssl.SSLError as error:
                with suppress(trio.BrokenResourceError):
                    await self._network.send_all(self.unsent())  # the alert that says why
                # TLS 1.2 has no alert for a certificate that was asked for and did not come. This
                # one after the client's second flight, its place, is about it (RFC 5246, 7.4.6).
                if error.reason == "SSLV3_ALERT_HANDSHAKE_FAILURE" and flights > 1:
                    raise LinkFailed(Loss.CLIENT_CERTIFICATE, _WANTED) from None
                raise
            else:
                await self._network.send_all(self.unsent())
                return

    def certificate(self) -> dict[str, Any] | None:
        """The peer's, as `ssl.SSLSocket.getpeercert` tells it; empty where it was not checked."""
        return self._tls.getpeercert()

    def seal(self, data: bytes) -> bytes:
        """The records that carry the data, and before it what TLS has to answer the peer.

        They have to be written whole and in the order of the calls, or the peer cannot read
        what follows. Raises `trio.BrokenResourceError` once TLS has failed.
        """
        try:
            self._tls.write(data)
        except ssl.SSLError:
            raise trio.BrokenResourceError("TLS has failed") from None
        return self.unsent()

    def unseal(self, data: bytes | bytearray) -> bytes | None:
        """What came in records: None when one is not whole yet, empty at the peer's end.

        `data` is the next of the socket's bytes, a piece of any size, empty at their end.
        Raises `trio.BrokenResourceError` for a record that is none, and `LinkFailed` if the
        peer wants a certificate of the client; what came before that is given first. TLS may
        have to answer what came, as a KeyUpdate (RFC 8446, 4.6.3): see `unsent`.
        """
        self._feed(data)
        chunks: list[bytes] = []
        try:
            # The rest of a record of which a part was read is in OpenSSL, and not in `_incoming`.
            while not chunks or (chunks[-1] and (self._incoming.pending or self._tls.pending())):
                chunks.append(self._tls.read(READ_SIZE))
        except ssl.SSLWantReadError:
            if not chunks:
                return None
        except ssl.SSLError as error:
            # An end without a goodbye is one of these on some versions. Where texts came before
            # it, they go first: the next call finds it again.
            if not chunks and not isinstance(error, ssl.SSLEOFError):
                # That of TLS 1.3 comes behind the handshake (RFC 8446, 4.4.2.4).
                if error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
                    raise LinkFailed(Loss.CLIENT_CERTIFICATE, _WANTED) from None
                raise trio.BrokenResourceError("TLS has failed") from None
        return b"".join(chunks)

    def unsent(self) -> bytes:
        """Records of TLS's own for the peer, alerts and answers; empty if there are none."""
        return self._outgoing.read()

    def _feed(self, data: bytes | bytearray) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        plain = None
        while plain is None:
            plain = self.unseal(await self._network.receive_some(READ_SIZE))
        return plain

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._network.send_all(self.seal(bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        await self._network.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._network.aclose()
