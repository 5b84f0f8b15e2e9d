"""TLS on a socket in two steps: to seal bytes, and to write them.

trio's SSLStream does both at once and waits meanwhile. Here what is sealed is
bytes like any, which the link's queue writes at once or later, in their order.
"""

import ssl
from contextlib import suppress
from typing import Any, Final

import trio

READ_SIZE: Final = 64 * 1024  # bytes, the most that one read gives


class TlsStream(trio.abc.Stream):
    """TLS over `network`, as a client of `host`; `handshake` comes first."""

    def __init__(self, network: trio.SocketStream, context: ssl.SSLContext, host: str) -> None:
        self._network = network
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.socket: Final = network.socket

    async def handshake(self) -> None:
        """Agree with the peer. Raises `ssl.SSLError` and `trio.BrokenResourceError`."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._network.send_all(self.owed())
                self._feed(await self._network.receive_some(READ_SIZE))
            except ssl.SSLError:
                with suppress(trio.BrokenResourceError):
                    await self._network.send_all(self.owed())  # the alert that says why
                raise
            else:
                await self._network.send_all(self.owed())
                return

    def certificate(self) -> dict[str, Any] | None:
        """The peer's, as `ssl.SSLSocket.getpeercert` tells it; empty where it was not checked."""
        return self._tls.getpeercert()

    def seal(self, data: bytes) -> bytes:
        """The records that carry the data; they have to be written in the order of the calls.

        Raises `trio.BrokenResourceError` once TLS has failed.
        """
        try:
            self._tls.write(data)
        except ssl.SSLError:
            raise trio.BrokenResourceError("TLS has failed") from None
        return self.owed()

    def unseal(self, data: bytes | bytearray) -> bytes | None:
        """What came in records: None when one is not whole yet, empty at the peer's end.

        `data` is the next of the socket's bytes, empty at their end. Raises
        `trio.BrokenResourceError`. Afterwards TLS may owe the peer an answer.
        """
        self._feed(data)
        chunks: list[bytes] = []
        try:
            while not chunks or (chunks[-1] and self._incoming.pending):
                chunks.append(self._tls.read(READ_SIZE))
        except ssl.SSLWantReadError:
            if not chunks:
                return None
        except ssl.SSLEOFError:
            pass  # the end without a goodbye, found again at the next call
        except ssl.SSLError:
            if not chunks:  # else the texts first: at the next call it is the end
                raise trio.BrokenResourceError("TLS has failed") from None
        return b"".join(chunks)

    def owed(self) -> bytes:
        """What TLS has to say to the peer of its own."""
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
