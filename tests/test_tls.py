"""TLS in two steps, and what is checked. How it ends on a link: test_stream."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import TypeVar

import attrs
import pytest
import trio
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from support import ADDRESS, socket_pair, tls_contexts, within

from ratebridge.errors import BadSettings, CannotStart, LinkFailed
from ratebridge.link import tls as tls_module
from ratebridge.link.address import Address
from ratebridge.link.dial import add_tls
from ratebridge.link.tls import TlsStream, tls_context

T = TypeVar("T")


@attrs.define
class Server:
    """The other end, byte by byte."""

    stream: trio.SocketStream
    context: ssl.SSLContext
    incoming: ssl.MemoryBIO = attrs.Factory(ssl.MemoryBIO)
    outgoing: ssl.MemoryBIO = attrs.Factory(ssl.MemoryBIO)
    tls: ssl.SSLObject = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tls = self.context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    async def run(self, step: Callable[[], T]) -> T:
        """One step of TLS, with what has to be read and written for it."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self.stream.send_all(self.outgoing.read())
                self.incoming.write(await self.stream.receive_some(65536))
            except ssl.SSLError:
                await self.stream.send_all(self.outgoing.read())  # its alert, if it has one
                raise
            else:
                await self.stream.send_all(self.outgoing.read())
                return result

    async def read(self) -> bytes:
        return await self.run(lambda: self.tls.read(1000))

    def sealed(self, *texts: bytes) -> bytes:
        for text in texts:
            self.tls.write(text)
        return self.outgoing.read()


@asynccontextmanager
async def agreed(
    *, tickets: int = 0, protocols: Sequence[str] = (), client: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[TlsStream, Server]]:
    """Both ends after the handshake, and so many tickets behind it.

    `protocols` are those that the server knows by ALPN.
    """
    server_context, client_context = tls_contexts()
    server_context.num_tickets = tickets
    if protocols:
        server_context.set_alpn_protocols(protocols)
    client_context = client or client_context
    ours, theirs = socket_pair()
    server = Server(theirs, server_context)
    stream = TlsStream(ours, client_context, ADDRESS.host)
    async with within(10), ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run, server.tls.do_handshake)
            await stream.handshake()
        yield stream, server


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_nothing_is_read_of_a_record_before_it_is_whole(size):
    async with agreed() as (stream, server):
        records = server.sealed(b"text"), server.sealed(b" and more")
        sealed = b"".join(records)
        read = {}
        for at in range(0, len(sealed), size):
            if (plain := stream.unseal(sealed[at : at + size])) is not None:
                read[at + size] = plain
        assert b"".join(read.values()) == b"text and more"
        assert min(read) >= len(records[0])


async def test_all_of_a_record_is_given_however_little_is_read_at_once(monkeypatch):
    monkeypatch.setattr(tls_module, "READ_SIZE", 7)
    async with agreed() as (stream, server):
        assert stream.unseal(server.sealed(b"x" * 1000)) == b"x" * 1000


@pytest.mark.parametrize(
    ("protocols", "chosen"),
    [([], None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1")],
    ids=["no ALPN", "HTTP/1.1", "HTTP/2 first"],
)
async def test_http_1_1_is_offered_and_the_streams_own_methods_do_both_steps(protocols, chosen):
    client = tls_context(verify=False)
    async with agreed(tickets=2, protocols=protocols, client=client) as (stream, server):
        assert server.tls.selected_alpn_protocol() == chosen
        await server.stream.send_all(server.sealed(b"hello"))  # behind two records without a text
        assert await stream.receive_some() == b"hello"
        await stream.wait_send_all_might_not_block()
        await stream.send_all(b"hello ")
        await stream.send_all(b"yourself")
        assert await server.read() + await server.read() == b"hello yourself"


# What is checked of a peer, and shown to it.


@pytest.mark.parametrize(
    ("host", "named", "passes"),
    [
        ("feed.example", ["feed.example"], True),
        ("feed.example.", ["feed.example"], True),
        ("feed.example", [], False),  # its common name is the host all the same
        ("other.example", ["feed.example"], False),
    ],
)
async def test_the_name_is_looked_for_without_its_last_dot_and_where_it_has_to_stand(
    host, named, passes
):
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*named, common_name="feed.example").configure_cert(server)
    client = tls_context(verify=True)
    authority.configure_trust(client)
    asked: list[str | None] = []
    server.sni_callback = lambda _tls, name, _context: asked.append(name)
    ours, theirs = socket_pair()
    failed = pytest.raises(LinkFailed, match="certificate: the certificate does not pass")
    async with within(10), ours, theirs, trio.open_nursery() as nursery:
        nursery.start_soon(answer_handshake, Server(theirs, server))
        with nullcontext() if passes else failed:
            await add_tls(ours, Address(host, 1, "/", secure=True), client)
    assert asked == [host.removesuffix(".")]


async def answer_handshake(server: Server) -> None:
    with suppress(ssl.SSLError, trio.BrokenResourceError):
        await server.run(server.tls.do_handshake)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", ["in one file", "in two", "none"])
async def test_a_peer_that_wants_a_client_certificate_gets_it_or_is_the_reason(
    version, shown, tmp_path
):
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(ADDRESS.host).configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    server.maximum_version = server.minimum_version = version
    ours_to_show = authority.issue_cert("client.example")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    ours_to_show.private_key_and_cert_chain_pem.write_to_path(cert)
    if shown == "in two":
        ours_to_show.cert_chain_pems[0].write_to_path(cert)
        ours_to_show.private_key_pem.write_to_path(key)
    client = tls_context(
        True, None if shown == "none" else cert, key if shown == "in two" else None
    )
    authority.configure_trust(client)
    ours, theirs = socket_pair()
    told: object = None
    async with within(10), ours, theirs, trio.open_nursery() as nursery:
        peer = Server(theirs, server)
        nursery.start_soon(answer_handshake, peer)
        try:
            stream = await add_tls(ours, ADDRESS, client)
            await trio.testing.wait_all_tasks_blocked()
            if shown != "none":
                await theirs.send_all(peer.sealed(b"hello"))
            told = await stream.receive_some()
        except LinkFailed as failure:
            told = str(failure)
    wanted = "client-certificate: the peer wants a client certificate"
    assert told == (wanted if shown == "none" else b"hello")


@pytest.mark.parametrize("flaw", ["missing", "another key", "a passphrase"])
def test_a_client_certificate_of_no_use_is_a_bad_setting_and_nobody_is_asked(flaw, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    pair, other = (trustme.CA().issue_cert("client.example") for _ in range(2))
    if flaw != "missing":
        pair.cert_chain_pems[0].write_to_path(cert)
    (other if flaw == "another key" else pair).private_key_pem.write_to_path(key)
    if flaw == "a passphrase":
        locked = PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"s3cret")
        loaded = load_pem_private_key(key.read_bytes(), None)
        key.write_bytes(loaded.private_bytes(Encoding.PEM, *locked))
    with pytest.raises(BadSettings, match=r"_CERT_FILE, RATEBRIDGE_FEED_KEY_FILE: expected"):
        tls_context(True, cert, key)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_authorities_that_are_not_there_are_a_bad_setting(name, monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    for value in ("", str(tmp_path)):
        monkeypatch.setenv("SSL_CERT_DIR", value)
        tls_context(verify=True)
    monkeypatch.setenv(name, str(tmp_path / "missing"))
    tls_context(verify=False)
    with pytest.raises(BadSettings, match=f"{name}: expected"):
        tls_context(verify=True)


def test_a_key_log_that_cannot_be_written_is_a_start_that_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys"))
    with pytest.raises(CannotStart, match="SSLKEYLOGFILE: cannot be written"):
        tls_context(verify=True)


# The end.


async def test_texts_that_come_with_a_bad_record_are_read_before_it_breaks_the_stream():
    async with agreed() as (stream, server):
        last, bad = server.sealed(b"last ", b"words"), server.sealed(b"bad")
        assert stream.unseal(last + bad[:-1] + bytes((bad[-1] ^ 1,))) == b"last words"
        with pytest.raises(trio.BrokenResourceError):
            stream.seal(b"too late")


# A handshake that fails.


Serve = Callable[[Server], Awaitable[None]]


async def agree(server: Server) -> None:
    await server.run(server.tls.do_handshake)


async def leave_after_one_flight(server: Server) -> None:
    server.incoming.write(await server.stream.receive_some(65536))
    with pytest.raises(ssl.SSLWantReadError):
        server.tls.do_handshake()
    await server.stream.socket.send(server.outgoing.read())
    server.stream.socket.close()  # before the flight is read


async def leave_when_asked(server: Server) -> None:
    await server.stream.receive_some(65536)


async def leave_with_it_unread(_server: Server) -> None:
    """Which is a reset."""
    await trio.testing.wait_all_tasks_blocked()


async def answer_in_plain_http(server: Server) -> None:
    await leave_when_asked(server)
    await server.stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def refuse_http_1_1(server: Server) -> None:
    """RFC 7301, 3.2: by this alert. Python's servers never do."""
    await leave_when_asked(server)
    await server.stream.send_all(b"\x15\x03\x03\x00\x02\x02\x78")


async def fail_to_agree(
    serve: Serve, authority: trustme.CA | None = None
) -> tuple[LinkFailed, str | None]:
    """How a handshake fails, and the alert by which the server learns of it, if it does."""
    server_context, client_context = tls_contexts(authority)
    ours, theirs = socket_pair()
    alerts: list[str] = []

    async def run() -> None:
        async with theirs:
            try:
                await serve(Server(theirs, server_context))
            except ssl.SSLError as error:
                alerts.append(error.reason)

    async with within(10), trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with pytest.raises(LinkFailed) as caught:
            await add_tls(ours, ADDRESS, client_context)
    assert ours.socket.fileno() == -1, "it is closed"
    return caught.value, alerts[0] if alerts else None


async def test_a_certificate_that_does_not_pass_is_the_reason_and_the_peer_is_told():
    failure, told = await fail_to_agree(agree, trustme.CA())
    assert failure.reason == "certificate"
    assert failure.detail.endswith(": unable to get local issuer certificate")
    assert told == "TLSV1_ALERT_UNKNOWN_CA"


async def test_a_peer_who_has_left_need_not_be_told():
    failure, _ = await fail_to_agree(leave_after_one_flight, trustme.CA())
    assert failure.reason == "certificate"


BROKE_OFF = "the peer broke off the TLS handshake"


@pytest.mark.parametrize(
    ("serve", "detail"),
    [
        (leave_when_asked, BROKE_OFF),
        (leave_with_it_unread, BROKE_OFF),
        (answer_in_plain_http, "TLS failed: "),
        (refuse_http_1_1, "TLS failed: tlsv1 alert no application protocol"),
    ],
)
async def test_a_handshake_that_fails_has_its_reason(serve, detail):
    failure, _ = await fail_to_agree(serve)
    assert failure.reason == "tls"
    assert failure.detail.startswith(detail)
