"""The way to a peer: names, addresses, ports. What TLS adds is in test_tls."""

import socket
import ssl
from functools import partial
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from support import ADDRESS, Known, accept_and_listen, feed_on_a_port, open_proxy, tls_contexts

from ratebridge.app import serve
from ratebridge.errors import LinkFailed
from ratebridge.fakes.port import serve_on_port
from ratebridge.link import dial, link
from ratebridge.link.address import Address
from ratebridge.link.dial import NetworkDial
from ratebridge.link.link import open_link
from ratebridge.names import names
from ratebridge.proxies import Proxy
from ratebridge.settings import Settings


@pytest.fixture(scope="module")
def tls_pair():
    """The contexts of a server and of its client."""
    return tls_contexts(name="127.0.0.1")


class Errors(trio.abc.SocketFactory):
    """A socket factory that has none to give."""

    def __init__(self, *errors: OSError) -> None:
        self._errors = list(errors)

    def socket(self, *args: Any, **kwargs: Any) -> Any:
        raise self._errors.pop(0)


TLS = ssl.create_default_context()
REFUSED = ConnectionRefusedError(111, "Connection refused")
UNREACHABLE = OSError(101, "Network is unreachable")
NOBODY = "connection refused: nobody listens on that port"


@pytest.mark.parametrize(
    ("addresses", "errors", "reason", "detail"),
    [
        (Known().answer, (), "dns", "the host was not found"),
        (UnicodeError("label too long"), (), "dns", "the host's name is not valid"),
        (["1.2.3.4"], (REFUSED,), "refused", NOBODY),
        (["::2", "1.2.3.4"], (UNREACHABLE, REFUSED), "refused", NOBODY),
        (["::2", "1.2.3.4"], (UNREACHABLE,) * 2, "unreachable", "Network is unreachable"),
        (["1.2.3.4"], (OSError("odd"),), "unreachable", "no connection could be made"),
        ([], (), "unreachable", "no connection could be made"),
    ],
)
async def test_a_connection_that_cannot_be_made_has_its_reason(addresses, errors, reason, detail):
    trio.socket.set_custom_hostname_resolver(Known(addresses))
    trio.socket.set_custom_socket_factory(Errors(*errors))
    with pytest.raises(LinkFailed) as caught:
        await NetworkDial(ADDRESS, TLS)()
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


@pytest.mark.parametrize("scheme", [None, "http", "socks5"])
@pytest.mark.parametrize("known", [True, False])
async def test_what_is_not_acknowledged_for_five_seconds_breaks_the_connection(
    scheme, known, monkeypatch
):
    """By an option of TCP that some platforms do not know."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if not known:
        monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    async with open_proxy() as proxy, feed_on_a_port(accept_and_listen) as (port, _):
        by = scheme and Proxy(scheme, "127.0.0.1", proxy.port)
        stream: Any = await NetworkDial(attrs.evolve(FEED, port=port), None, by)()
        if option:
            assert stream.getsockopt(socket.IPPROTO_TCP, option) == 5000 * known
        await stream.aclose()


# Through a proxy.


FEED = Address("127.0.0.1", 0, "/stream", secure=False)


@pytest.mark.parametrize("pieces", [1, 65536])
@pytest.mark.parametrize(
    ("scheme", "user", "asked"),
    [
        ("http", "", "CONNECT 127.0.0.1 "),
        ("http", "us\u00e9r", "CONNECT 127.0.0.1 us\u00e9r:p:w"),
        ("https", "user", "CONNECT 127.0.0.1 user:p:w"),
        ("socks5", "", "SOCKS 127.0.0.1 "),
        ("socks5h", "user", "SOCKS 127.0.0.1 user:p:w"),
    ],
)
@pytest.mark.parametrize("secure", [False, True])
async def test_a_feed_is_reached_through_a_proxy(scheme, user, asked, secure, pieces, tls_pair):
    server, client = tls_pair
    async with (
        open_proxy(server if scheme == "https" else None) as proxy,
        feed_on_a_port(accept_and_listen, server if secure else None) as (port, peers),
        trio.open_nursery() as nursery,
    ):
        proxy.pieces = pieces
        by = Proxy(scheme, "127.0.0.1", proxy.port, user, "p:w" if user else "")
        feed = attrs.evolve(FEED, port=port, secure=secure)
        link = await open_link(nursery, feed, NetworkDial(feed, client, by, client))
        link.put([b"hello"])
        while not peers[0].received:
            await trio.lowlevel.checkpoint()
        assert proxy.asked == [asked]
        assert peers[0].host == f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("scheme", "detail", "status"),
    [
        ("http", "it answered HTTP 407", 407),
        ("socks5", "Connection not allowed by ruleset", None),
        ("socks5 with a password", "Username and password authentication failure", 407),
    ],
)
async def test_a_proxy_that_refuses_is_the_reason_with_what_it_says(scheme, detail, status):
    scheme, _, password = scheme.partition(" with ")
    async with open_proxy() as proxy:
        proxy.refusal = 407
        by = Proxy(scheme, "127.0.0.1", proxy.port, password and "user", password)
        with pytest.raises(LinkFailed) as caught:
            await NetworkDial(attrs.evolve(FEED, port=1), None, by)()
    assert str(caught.value) == f"proxy: the proxy: {detail}"
    assert caught.value.status == status


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
@pytest.mark.parametrize(
    ("host", "detail"), [("127.0.0.1", NOBODY), ("proxy.test", "the host was not found")]
)
async def test_a_proxy_that_is_not_there_is_the_reason(scheme, host, detail):
    trio.socket.set_custom_hostname_resolver(Known())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LinkFailed) as caught:
        await NetworkDial(FEED, None, Proxy(scheme, host, port), TLS)()
    assert str(caught.value) == f"proxy: the proxy: {detail}"


@pytest.mark.parametrize(
    ("scheme", "says", "detail"),
    [
        ("http", b"SSH-2.0\r\n\r\n", "it broke off, or does not speak HTTP"),
        ("http", b"", "it broke off, or does not speak HTTP"),
        ("https", b"HTTP/1.1 400 Bad\r\n\r\n", "TLS failed: "),
        ("socks5", b"HTTP/1.1 400 Bad\r\n\r\n", "Unexpected SOCKS version number: 72"),
        ("socks5", b"", "Connection closed unexpectedly"),
    ],
)
async def test_what_is_no_proxy_is_the_reason(scheme, says, detail):
    async def say(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(says)

    async with trio.open_nursery() as nursery:
        by = Proxy(scheme, "127.0.0.1", await nursery.start(serve_on_port, say))
        with pytest.raises(LinkFailed) as caught, trio.fail_after(5):
            await NetworkDial(FEED, None, by, TLS)()
        nursery.cancel_scope.cancel()
    assert str(caught.value).startswith(f"proxy: the proxy: {detail}")


KNOWN = Known(["::1", "127.0.0.2", "127.0.0.1"])


@pytest.mark.parametrize(
    ("scheme", "host", "known", "asked"),
    [
        ("socks5", "proxy.test", KNOWN, "::1"),
        ("socks5h", "proxy.test", KNOWN, ADDRESS.host),
        ("socks5", "127.0.0.1", Known(), ADDRESS.host),  # it may know what is not known here
    ],
)
async def test_all_addresses_of_a_socks_proxy_are_tried_and_the_first_of_the_feed(
    scheme, host, known, asked
):
    trio.socket.set_custom_hostname_resolver(known)
    async with open_proxy() as proxy:
        proxy.refusal = 407
        with pytest.raises(LinkFailed, match="not allowed by ruleset"):
            await NetworkDial(ADDRESS, None, Proxy(scheme, host, proxy.port))()
    assert proxy.asked == [f"SOCKS {asked} "]


async def test_a_password_that_socks_cannot_say_is_no_bug():
    async with open_proxy() as proxy:
        for password in ("\u20ac", "x" * 256):
            by = Proxy("socks5", "127.0.0.1", proxy.port, "user", password)
            with pytest.raises(LinkFailed, match="SOCKS cannot carry its name, user"):
                await NetworkDial(FEED, None, by)()


@pytest.mark.parametrize("fault", ["HTTP 503", "hangs up", "hangs"])
async def test_a_service_finds_the_address_that_works_behind_one_that_does_not(fault, monkeypatch):
    """The first accepts TCP each time. A `hang` ends with the attempt."""
    monkeypatch.setattr(link, "OPEN_WITHIN", 0.05)
    names()._look_up = Known(["127.0.0.2", "127.0.0.1"]).getaddrinfo
    tried = 0

    async def fail(stream: trio.SocketStream) -> None:
        nonlocal tried
        tried += 1
        await stream.receive_some()
        if fault == "HTTP 503":
            await stream.send_all(b"HTTP/1.1 503 Busy\r\n\r\n")
        if fault == "hangs":
            await stream.receive_some()

    async with feed_on_a_port(accept_and_listen) as (port, peers), trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, fail, port, host="127.0.0.2"))
        feed = Address("feed.test", port, "/", secure=False)
        nursery.start_soon(serve, Settings(feed, providers=("ecb",)))
        while not peers or not peers[0].received:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert (tried, len(peers)) == (1, 1)


def test_after_a_failure_the_next_address_of_the_proxy_and_of_the_host_comes_first(monkeypatch):
    """By socks5 it is this machine that looks the host up."""
    skipped: set[str] = set()
    monkeypatch.setattr(dial, "names", lambda: SimpleNamespace(skip=skipped.add))
    NetworkDial(ADDRESS, None, Proxy("socks5", "proxy.test", 1080)).next_address()
    assert skipped == {ADDRESS.host, "proxy.test"}
