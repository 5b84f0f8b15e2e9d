"""The way to a peer: names and addresses. What needs a peer on a port is in test_real_feed."""

import socket
import ssl
from typing import Any

import attrs
import pytest
import trio
from support import ADDRESS

from ratebridge.errors import LinkFailed
from ratebridge.link.dial import network_dial


@attrs.define
class Names(trio.abc.HostnameResolver):
    """A resolver that knows what it is told, or fails as it is told."""

    answer: list[Any] | Exception

    async def getaddrinfo(self, host: Any, port: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(self.answer, Exception):
            raise self.answer
        return [
            (
                socket.AF_INET6 if ":" in host else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (host, port),
            )
            for host in self.answer
        ]

    async def getnameinfo(self, *args: Any) -> Any:
        raise NotImplementedError


class Errors(trio.abc.SocketFactory):
    """A socket factory that has none to give."""

    def __init__(self, *errors: OSError) -> None:
        self._errors = list(errors)

    def socket(self, *args: Any, **kwargs: Any) -> Any:
        raise self._errors.pop(0)


REFUSED = ConnectionRefusedError(111, "Connection refused")
UNREACHABLE = OSError(101, "Network is unreachable")


@pytest.mark.parametrize(
    ("addresses", "errors", "reason", "detail"),
    [
        pytest.param(
            socket.gaierror(-2, "Name or service not known"),
            *((), "dns", "the host was not found"),
            id="not found",
        ),
        pytest.param(
            UnicodeError("label too long"),
            *((), "dns", "the host's name is not valid"),
            id="no name",
        ),
        pytest.param(
            ["1.2.3.4"],
            (REFUSED,),
            *("refused", "nobody listens on that port"),
            id="refused",
        ),
        pytest.param(
            ["::2", "1.2.3.4"],
            (UNREACHABLE, REFUSED),
            *("refused", "nobody listens on that port"),
            id="refused by the one address that was reached",
        ),
        pytest.param(
            ["::2", "1.2.3.4"],
            (UNREACHABLE, UNREACHABLE),
            *("unreachable", "Network is unreachable"),
            id="unreachable",
        ),
        pytest.param(
            ["1.2.3.4"],
            (OSError("odd"),),
            *("unreachable", "no connection could be made"),
            id="for no stated reason",
        ),
        pytest.param([], (), *("unreachable", "no connection could be made"), id="no address"),
    ],
)
async def test_a_connection_that_cannot_be_made_has_its_reason(addresses, errors, reason, detail):
    trio.socket.set_custom_hostname_resolver(Names(addresses))
    trio.socket.set_custom_socket_factory(Errors(*errors))
    with pytest.raises(LinkFailed) as caught:
        await network_dial(ADDRESS, ssl.create_default_context())()
    assert (caught.value.reason, caught.value.detail) == (reason, detail)
