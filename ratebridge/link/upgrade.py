"""The response to the upgrade, which wsproto tells neither where it ends nor what it is."""

import re
from email.utils import parsedate_to_datetime
from typing import Final

import h11

from ..errors import LinkFailed, Loss

_NOT_OFFERED: Final = {
    b"sec-websocket-extensions": "an extension",
    b"sec-websocket-protocol": "a subprotocol",
}


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


class UpgradeResponse:
    """Reads one response. Fed with a stream from its first byte, in pieces of any size."""

    def __init__(self) -> None:
        self._reader = h11.Connection(h11.CLIENT)
        headers = [("Host", ""), ("Connection", "Upgrade"), ("Upgrade", "websocket")]
        self._reader.send(h11.Request(method="GET", target="/", headers=headers))

    def feed(self, data: bytes) -> bytes | None:
        """Take the next piece: None while the head goes on, else the bytes behind it.

        Raises `LinkFailed` for a response that grants no upgrade, as soon as its
        head is there, and `h11.RemoteProtocolError` for what is no response.
        """
        self._reader.receive_data(data)
        event = self._reader.next_event()
        if event is h11.NEED_DATA:
            return None
        assert isinstance(event, h11.InformationalResponse | h11.Response)
        if event.status_code != 101:
            raise _rejected(event)
        for header, what in _NOT_OFFERED.items():
            if names := dict(event.headers).get(header):
                name = names.partition(b";")[0].decode("ascii", "replace")
                raise LinkFailed(
                    Loss.PROTOCOL_ERROR, f"the peer uses {what}, {name}, that was not offered"
                )
        behind, _ = self._reader.trailing_data
        return behind


def _rejected(response: h11.InformationalResponse | h11.Response) -> LinkFailed:
    status = response.status_code
    headers = dict(response.headers)
    retry_after = _retry_after(headers.get(b"retry-after", b""), headers.get(b"date", b""))
    return LinkFailed(
        Loss.REJECTED, f"the peer answered HTTP {status}", status=status, retry_after=retry_after
    )


def _retry_after(value: bytes, now: bytes) -> float | None:
    """Seconds of a Retry-After: a number, or a date, which is seen from the response's own Date."""
    if value.isdigit():
        return float(value[:9])
    try:
        until, since = (parsedate_to_datetime(date.decode("ascii")) for date in (value, now))
        return max(0.0, (until - since).total_seconds())
    except (ValueError, OverflowError, TypeError):  # no date, or one of them has no time zone
        return None
