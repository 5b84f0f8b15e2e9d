"""The upgrade to a websocket: what is sent beside the handshake's own, and the response.

wsproto tells neither where the response ends nor what it is.
"""

import re
from typing import Final

import attrs
import h11

from ..errors import LinkFailed, Loss
from ..headers import retry_after
from .address import Address

# The handshake's own (RFC 6455, 4.1), and those that say where a request ends.
_OWN: Final = {"host", "upgrade", "connection", "content-length", "transfer-encoding"}
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2


def parse_headers(text: str) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that stand in a text as lines `Name: value`; blank lines do not count.

    Raises ValueError with what was expected. Nothing is quoted: it may hold a secret.
    """
    headers = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        value = value.strip(" \t\r")
        if not (colon and _TOKEN.fullmatch(name) and value.isascii() and value.isprintable()):
            raise ValueError(f"lines `Name: value` of printable ASCII; line {number} is none")
        if name.lower() in _OWN or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"none of the handshake's own headers; line {number} is one")
        headers.append((name.encode(), value.encode()))
    return tuple(headers)


def parse_subprotocol(text: str) -> str:
    """The name of a subprotocol. Raises ValueError with what was expected."""
    if _TOKEN.fullmatch(text) is None:
        raise ValueError("the name of one subprotocol, without spaces and commas")
    return text


@attrs.frozen
class UpgradeOptions:
    """What an upgrade brings beside the handshake: headers as name and value, a subprotocol."""

    headers: tuple[tuple[bytes, bytes], ...] = attrs.field(default=(), repr=False)
    subprotocol: str | None = None

    def extra_headers(self, address: Address) -> list[tuple[bytes, bytes]]:
        """The headers, and the one that the user and the password of the address become."""
        given = address.authorization
        return [*self.headers, *([(b"Authorization", given.encode())] if given else [])]


class UpgradeResponse:
    """Reads one response. Fed with a stream from its first byte, in pieces of any size.

    `subprotocol` is the one that was offered. `head` is the head of a response that grants
    the upgrade, as wsproto reads it: of several lines `Connection` that knows the last only.
    """

    def __init__(self, subprotocol: str | None = None) -> None:
        self._subprotocol = subprotocol
        self._reader = h11.Connection(h11.CLIENT)
        headers = [("Host", ""), ("Connection", "Upgrade"), ("Upgrade", "websocket")]
        self._reader.send(h11.Request(method="GET", target="/", headers=headers))
        self.head = b""

    def feed(self, data: bytes) -> bytes | None:
        """Take the next piece: None while the head goes on, else the bytes behind it.

        Interim responses before the one that counts are passed over (RFC 9110, 15.2).
        Raises `LinkFailed` for a response that grants no upgrade, as soon as its
        head is there, and `h11.RemoteProtocolError` for what is no response.
        """
        self._reader.receive_data(data)
        while True:
            event = self._reader.next_event()
            if event is h11.NEED_DATA:
                return None
            assert isinstance(event, h11.InformationalResponse | h11.Response)
            if event.status_code == 101 or isinstance(event, h11.Response):
                break
        headers: dict[bytes, bytes] = {}
        for name, value in event.headers:  # lines of one name are one list (RFC 9110, 5.3)
            headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value
        if isinstance(event, h11.Response):
            told = {name.decode(): value.decode("latin-1") for name, value in headers.items()}
            status, text = event.status_code, f"the peer answered HTTP {event.status_code}"
            raise LinkFailed(Loss.REJECTED, text, status=status, retry_after=retry_after(told))
        used = headers.get(b"sec-websocket-protocol", b"").decode("ascii", "replace")
        if used not in ("", self._subprotocol):
            text = f"the peer uses a subprotocol, {used}, that was not offered"
            raise LinkFailed(Loss.PROTOCOL_ERROR, text)
        lines = (b"%b: %b\r\n" % header for header in headers.items())
        self.head = b"HTTP/1.1 101 \r\n%b\r\n" % b"".join(lines)
        behind, _ = self._reader.trailing_data
        return behind
