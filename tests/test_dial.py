"""The way to a peer: names, addresses, ports. What TLS adds is in test_tls."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support import ADDRESS, accept_and_listen, within

from ratebridge.errors import LinkFailed
from ratebridge.fakes.feed import FeedPeer, serve_feed
from ratebridge.link.address import Address
from ratebridge.link.dial import NetworkDial, open_tcp
from ratebridge.link.link import open_link


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


class Loopback(trio.abc.HostnameResolver):
    """A resolver by which every name has two addresses, of this machine both."""

    async def getaddrinfo(self, host: Any, port: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
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
            *("refused", "connection refused: nobody listens on that port"),
            id="refused",
        ),
        pytest.param(
            ["::2", "1.2.3.4"],
            (UNREACHABLE, REFUSED),
            *("refused", "connection refused: nobody listens on that port"),
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
        await NetworkDial(ADDRESS, ssl.create_default_context())()
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


@asynccontextmanager
async def listening(host: str = "127.0.0.1") -> AsyncIterator[tuple[int, list[FeedPeer]]]:
    """A feed on a real port: its number, and the peers so far."""
    peers: list[FeedPeer] = []
    async with within(10), trio.open_nursery() as nursery:
        yield await nursery.start(partial(serve_feed, accept_and_listen, peers, host=host)), peers
        nursery.cancel_scope.cancel()


async def test_of_two_addresses_the_one_that_listens_is_found():
    trio.socket.set_custom_hostname_resolver(Loopback())
    async with listening() as (port, _):
        stream = await open_tcp(Address("feed.test", port, "/", secure=False))
        assert stream.socket.getpeername() == ("127.0.0.1", port)
        await stream.aclose()


async def test_two_addresses_of_which_none_listens_are_refused():
    trio.socket.set_custom_hostname_resolver(Loopback())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LinkFailed, match="refused: connection refused: nobody listens"):
        await open_tcp(Address("feed.test", port, "/", secure=False))


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_an_ipv6_address_is_dialled_and_stands_in_brackets_in_the_host_header():
    async with listening("::1") as (port, peers), trio.open_nursery() as nursery:
        address = Address.parse(f"ws://[::1]:{port}/stream?a=b")
        await open_link(nursery, address, NetworkDial(address, None))
        assert (peers[0].host, peers[0].path) == (f"[::1]:{port}", "/stream?a=b")
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not on this platform")
async def test_what_is_not_acknowledged_for_five_seconds_breaks_the_connection():
    async with listening() as (port, _):
        stream = await open_tcp(Address("127.0.0.1", port, "/", secure=False))
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
        await stream.aclose()


async def test_a_platform_without_that_option_does_without(monkeypatch):
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    async with listening() as (port, _):
        await (await open_tcp(Address("127.0.0.1", port, "/", secure=False))).aclose()
