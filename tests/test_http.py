"""One GET: answers, failures, and no secret in any text."""

import logging
import socket
import ssl
import sys
import threading
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import trio
from support import open_proxy, tls_contexts
from trio.testing import memory_stream_pair

from ratebridge.errors import SourceFailed
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI
from ratebridge.fakes.rates import (
    CLOSE,
    GZIP,
    HANG,
    HUGE,
    REDIRECT,
    RESET,
    FakeRates,
    Fault,
    serve_rates,
)
from ratebridge.link.dial import MAX_INTERIM
from ratebridge.names import Names
from ratebridge.providers import http
from ratebridge.providers.http import HttpClient
from ratebridge.providers.transport import MAX_PIECES
from ratebridge.proxies import Proxies

KEY = "fca_live_s3cr3t"
MAX_BODY = 1024 * 1024  # bytes, as it stands in the error
HEADERS = {"apikey": KEY}
DAY = {"date": "2021-05-18"}
TLS = ssl.create_default_context()
OVER_1_MIB = "answered with over 1 MiB, or in over 4096 pieces"


@asynccontextmanager
async def open_server(*faults, tls=None):
    """The fake on a port, a client for it, and the URL."""
    fake = FakeRates()
    fake.order(FREECURRENCYAPI, *faults)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda **kw: serve_rates(fake, tls=tls, **kw))
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}/v1/historical"
        yield fake, HttpClient(TLS, Proxies()), url
        nursery.cancel_scope.cancel()


async def test_an_answer_of_any_status_has_headers_and_body():
    async with open_server(Fault(), Fault(status=503, headers={"Retry-After": "7"})) as server:
        fake, client, url = server
        answer = await client.get(url, DAY, HEADERS)
        unwell = await client.get(url, {"date": "2021-05-17", "a b": "ä&="})
    assert (answer.status, unwell.status) == (200, 503)
    assert answer.headers["x-ratelimit-remaining-quota-minute"] == "9"
    assert unwell.headers["retry-after"] == "7"
    assert answer.body.startswith(b'{"data":{"2021-05-18":{')
    first, second = fake.calls
    assert (first.params, first.key, second.key) == (DAY, KEY, None)
    assert second.params == {"date": "2021-05-17", "a b": "ä&="}


@pytest.mark.parametrize(
    ("fault", "outcome", "text", "again"),
    [
        (RESET, "unreachable", "broke off the connection", True),
        (CLOSE, "unreachable", "broke off the connection", True),
        (REDIRECT, "redirect", "answered with a redirect, which is not followed", False),
        (GZIP, "bad-body", "answered with a compressed body", False),
        (HUGE, "bad-body", OVER_1_MIB, False),
    ],
    ids=["reset", "closed", "redirect", "gzip", "2 MB"],
)
async def test_what_is_no_whole_answer_is_a_failure(fault, outcome, text, again):
    async with open_server(fault) as (fake, client, url):
        with pytest.raises(SourceFailed) as caught:
            await client.get(url, DAY, HEADERS)
    failure = caught.value
    assert (failure.outcome, failure.text, failure.again) == (outcome, text, again)
    assert fake.count() == 1


# What comes, byte by byte.

URL = "http://rates.test:8080/v1"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\n\r\n"
MUCH = 200 * 1024


def client_of(*answers):
    """A client whose connections get these bytes in turn, and the other ends."""
    servers: list[trio.abc.Stream] = []

    async def dial():
        client, server = memory_stream_pair()
        await server.send_all(answers[len(servers)])
        servers.append(server)
        return client

    return HttpClient(TLS, Proxies(), dial), servers


async def test_surplus_bytes_answer_no_later_request():
    first, other = (OK + b"Content-Length: 5\r\n\r\n" + body for body in (b"first", b"other"))
    client, _ = client_of(first + first, other)
    assert [(await client.get(URL, {})).body for _ in range(2)] == [b"first", b"other"]


async def test_what_is_sent_and_that_no_cookie_is_kept():
    client, servers = client_of(*[OK + b"Set-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"] * 2)
    for _ in range(2):
        await client.get(URL, {"at": "12:00"}, {"Accept": "*/*"})
    for server in servers:
        line, *headers = bytes(await server.receive_some()).split(b"\r\n")
        assert line == b"GET /v1?at=12%3A00 HTTP/1.1"
        agent = headers.pop(3)
        assert headers == [
            *(b"Host: rates.test:8080", b"Accept-Encoding: identity", b"Connection: close"),
            *(b"Accept: */*", b"", b""),
        ]
        assert agent.startswith(b"User-Agent: ratebridge/")


@pytest.mark.parametrize(
    "endless",
    [
        OK + b"a:" + b"x" * MUCH,
        OK + b"a:\r\n" * MUCH,
        CHUNKED + b"1;" + b"x" * MUCH,
        CHUNKED + b"2\r\n{}\r\n0\r\n" + b"a:\r\n" * MUCH,
        HINT * (MAX_INTERIM + 1) + OK + b"\r\n",
    ],
    ids=["header", "headers", "length of a chunk", "trailer", "interim responses"],
)
async def test_bytes_outside_the_body_are_bounded(endless):
    with pytest.raises(SourceFailed, match="headers without end"):
        await client_of(endless)[0].get(URL, {})


async def test_interim_responses_are_passed_over_and_an_empty_coding_is_none():
    head = HINT * MAX_INTERIM + OK + b"Content-Encoding: \r\nContent-Length: 2\r\n\r\n{}"
    assert (await client_of(head)[0].get(URL, {})).body == b"{}"


ONE_BYTE = b"1\r\n \r\n"
END = b"0\r\n\r\n"


async def test_a_body_is_read_no_further_than_its_bounds():
    async def dial():
        client, server = memory_stream_pair()
        client.receive_stream.receive_some_hook = lambda: server.send_all(next(pieces, END))
        return client

    client = HttpClient(TLS, Proxies(), dial)
    piece, most = b"1000\r\n%b\r\n" % bytes(4096), MAX_BODY // 4096
    pieces = iter([CHUNKED, *[piece] * most])
    assert len((await client.get(URL, {})).body) == MAX_BODY
    pieces = iter([CHUNKED, *[piece] * 2 * most])
    with pytest.raises(SourceFailed, match=OVER_1_MIB):
        await client.get(URL, {})
    assert len(list(pieces)) == most - 1
    with pytest.raises(SourceFailed, match=OVER_1_MIB):
        await client_of(CHUNKED + ONE_BYTE * (MAX_PIECES + 1) + END)[0].get(URL, {})


async def test_each_piece_of_a_body_lets_the_other_tasks_run():
    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client_of(CHUNKED + ONE_BYTE * MAX_PIECES + END)[0].get, URL, {})
        while nursery.child_tasks:
            await trio.lowlevel.checkpoint()
            turns += 1
    assert turns > MAX_PIECES / 2


# No answer.


async def failure_of(url):
    with pytest.raises(SourceFailed) as caught:
        await HttpClient(TLS, Proxies()).get(url, DAY, HEADERS)
    assert caught.value.outcome == "unreachable"
    return caught.value.text, caught.value.again


async def test_why_there_is_no_connection_is_told_as_the_feeds_dial_has_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for host, why, again in [
        (f"localhost:{port}", "connection refused: nobody listens on that port", True),
        ("a" * 64 + ".test", "the host's name is not valid", True),
        ("[::1", "its address is not valid", False),
    ]:
        assert await failure_of(f"http://{host}/v1") == (f"could not be reached ({why})", again)


async def test_certificates_are_checked():
    server, trusting = tls_contexts(name="127.0.0.1")
    async with open_server(tls=server) as (_, _, url):
        text, _ = await failure_of(url)
        answer = await HttpClient(trusting, Proxies()).get(url, DAY, HEADERS)
    assert text.startswith("could not be reached (the certificate does not pass: unable to get")
    assert answer.status == 200


# Secrets.


async def test_no_log_and_no_text_shows_the_key_or_a_url_and_others_may_log_theirs(caplog):
    caplog.set_level(logging.DEBUG)
    server = open_server(RESET)
    async with server as (_, client, url), httpx.AsyncClient(trust_env=False) as other:
        with pytest.raises(SourceFailed) as caught:
            await client.get(url, DAY, HEADERS)
        answer = await client.get(url, DAY, HEADERS)
        shown = f"{caplog.text}{caught.value}{caught.value!r}{client!r}"
        await other.get(url)
    assert answer.status == 200
    assert KEY not in shown
    assert "127.0.0.1" not in shown
    assert url in caplog.text


# The import of httpx.


async def test_httpx_is_imported_once_and_in_a_thread(monkeypatch):
    imported = []

    def load(name):
        imported.append((name, threading.current_thread() is threading.main_thread()))
        sys.modules[name] = httpx

    monkeypatch.delitem(sys.modules, "httpx")
    monkeypatch.setattr(http, "import_module", load)
    async with open_server() as (_, client, url), trio.open_nursery() as nursery:
        nursery.start_soon(client.get, url, DAY)
        nursery.start_soon(client.get, url, DAY)
    assert imported == [("httpx", False)]


# Addresses and proxies.


@pytest.mark.parametrize("fault", [CLOSE, Fault(status=503), HANG, Fault()])
async def test_after_a_failure_a_source_is_asked_at_its_next_address(monkeypatch, fault):
    skipped = []
    monkeypatch.setattr(Names, "skip", lambda _names, host: skipped.append(host))
    async with open_server(fault) as (_, client, url):
        with trio.move_on_after(0.05 if fault is HANG else 5), suppress(SourceFailed):
            await client.get(url, DAY, HEADERS)
    assert skipped == ([] if fault == Fault() else ["127.0.0.1"])


async def test_a_source_is_asked_through_the_proxy_of_the_environment():
    async with open_proxy() as proxy, open_server() as (_, _, url):
        way = f"http://us%40er:s3cret@127.0.0.1:{proxy.port}"
        proxies = Proxies.read({"HTTP_PROXY": way, "NO_PROXY": "a.test"})
        assert (await HttpClient(TLS, proxies).get(url, DAY, HEADERS)).status == 200
        assert proxy.asked == ["CONNECT 127.0.0.1 us@er:s3cret"]
        proxy.refusal = 407
        with pytest.raises(SourceFailed, match="HTTP 407") as caught:
            await HttpClient(TLS, proxies).get(url, DAY, HEADERS)
    assert (caught.value.again, caught.value.limited_for) == (False, 30)
