"""One GET: answers, failures, and no secret in any text."""

import itertools
import logging
import socket
import ssl
import sys
import threading
from contextlib import asynccontextmanager, suppress
from functools import partial

import httpx
import pytest
import trio
from support import open_proxy, tls_contexts

from ratebridge.errors import SourceFailed
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI
from ratebridge.fakes.rates import (
    CLOSE,
    CUT,
    DRIP,
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
from ratebridge.providers.transport import MAX_PIECES, read_response
from ratebridge.proxies import Proxies

KEY = "fca_live_s3cr3t"
MAX_BODY = 1024 * 1024  # bytes, as it stands in the error
HEADERS = {"apikey": KEY}
DAY = {"date": "2021-05-18"}
TLS = ssl.create_default_context()


@asynccontextmanager
async def open_server(fake, tls=None):
    """The fake on a port, and a client for it."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda **kw: serve_rates(fake, tls=tls, **kw))
        yield (
            HttpClient(TLS, Proxies()),
            f"http{'s' if tls else ''}://127.0.0.1:{port}/v1/historical",
        )
        nursery.cancel_scope.cancel()


async def test_an_answer_has_status_headers_and_body():
    fake = FakeRates()
    async with open_server(fake) as (client, url):
        answer = await client.get(url, DAY, HEADERS)
        refused = await client.get(url, DAY)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-remaining-quota-minute"] == "9"
    assert answer.body.startswith(b'{"data":{"2021-05-18":{')
    assert refused.status == 401
    first, second = fake.calls
    assert (first.params, first.key, second.key) == (DAY, KEY, None)


@pytest.mark.parametrize(
    ("fault", "outcome", "text", "again"),
    [
        (RESET, "unreachable", "broke off the connection", True),
        (CLOSE, "unreachable", "broke off the connection", True),
        (REDIRECT, "redirect", "answered with a redirect, which is not followed", False),
        (
            *(Fault(status=307, headers={"location": "//["}), "redirect"),
            *("answered with a redirect, which is not followed", False),
        ),
        (GZIP, "bad-body", "answered with a compressed body", False),
        (HUGE, "bad-body", "answered with over 1 MiB", False),
    ],
    ids=["reset", "closed", "redirect", "bad redirect", "gzip", "30 MB"],
)
async def test_what_is_no_whole_answer_is_a_failure(fault, outcome, text, again):
    fake = FakeRates()
    fake.order(FREECURRENCYAPI, fault)
    async with open_server(fake) as (client, url):
        with pytest.raises(SourceFailed) as caught:
            await client.get(url, DAY, HEADERS)
        assert (await client.get(url, DAY, HEADERS)).status == 200
    failure = caught.value
    assert (failure.outcome, failure.text, failure.again) == (outcome, text, again)
    assert fake.count() == 2


async def test_other_statuses_and_bodies_are_the_callers_to_judge():
    fake = FakeRates()
    fake.order(FREECURRENCYAPI, Fault(status=503, headers={"Retry-After": "7"}), CUT)
    async with open_server(fake) as (client, url):
        unwell = await client.get(url, DAY, HEADERS)
        cut = await client.get(url, DAY, HEADERS)
    assert (unwell.status, unwell.headers["retry-after"]) == (503, "7")
    assert len(cut.body) == CUT.cut


# What comes, byte by byte.

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\n\r\n"
MUCH = 200 * 1024


@asynccontextmanager
async def open_raw_server(answer):
    """A server that sends what `answer` makes of a path and a head, and a client for it."""

    async def serve(stream):
        with suppress(trio.BrokenResourceError):
            async for head in stream:
                await stream.send_all(answer(head.split()[1], head))

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield HttpClient(TLS, Proxies()), f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_surplus_bytes_answer_no_later_request():
    def answer(path, _head):
        return b"".join(OK + b"Content-Length: 6\r\n\r\n" + body for body in (path, b"behind"))

    async with open_raw_server(answer) as (client, url):
        answers = [await client.get(f"{url}/{path}", {}) for path in ("first", "other")]
    assert [answer.body for answer in answers] == [b"/first", b"/other"]


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
    async with open_raw_server(lambda *_: endless) as (client, url):
        with pytest.raises(SourceFailed, match="headers without end"):
            await client.get(url, {})


async def test_interim_responses_are_passed_over_and_an_empty_coding_is_none():
    head = HINT * MAX_INTERIM + OK + b"Content-Encoding: \r\nContent-Length: 2\r\n\r\n{}"
    async with open_raw_server(lambda *_: head) as (client, url):
        assert (await client.get(url, {})).body == b"{}"


@pytest.mark.parametrize("fault", [HANG, DRIP], ids=["hang", "drip"])
async def test_a_request_can_be_cancelled_and_made_again(fault):
    fake = FakeRates()
    fake.order(FREECURRENCYAPI, fault)
    async with open_server(fake) as (client, url):
        with trio.move_on_after(0.05) as patience:
            await client.get(url, DAY, HEADERS)
        assert patience.cancelled_caught
        assert (await client.get(url, DAY, HEADERS)).status == 200


# No answer.


async def failure_of(url):
    with pytest.raises(SourceFailed) as caught:
        await HttpClient(TLS, Proxies()).get(url, DAY, HEADERS)
    assert (caught.value.outcome, caught.value.again) == ("unreachable", True)
    return caught.value.text


async def test_why_there_is_no_connection_is_told_as_the_feeds_dial_has_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused = "could not be reached (connection refused: nobody listens on that port)"
    assert await failure_of(f"http://localhost:{port}/v1/latest") == refused


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "rates..test", "[::1"])
async def test_an_invalid_address(host):
    assert "not valid)" in await failure_of(f"http://{host}/v1/latest")


async def test_certificates_are_checked():
    server, trusting = tls_contexts(name="127.0.0.1")
    async with open_server(FakeRates(), server) as (_, url):
        text = await failure_of(url)
        answer = await HttpClient(trusting, Proxies()).get(url, DAY, HEADERS)
    assert text.startswith("could not be reached (the certificate does not pass: unable to get")
    assert answer.status == 200


# Secrets.


async def test_no_log_and_no_text_shows_the_key_or_a_url_and_others_may_log_theirs(caplog):
    caplog.set_level(logging.DEBUG)
    fake = FakeRates()
    fake.order(FREECURRENCYAPI, RESET)
    async with open_server(fake) as (client, url), httpx.AsyncClient(trust_env=False) as other:
        with pytest.raises(SourceFailed) as caught:
            await client.get(url, DAY, HEADERS)
        await client.get(url, DAY, HEADERS)
        shown = f"{caplog.text}{caught.value}{caught.value!r}{client!r}"
        await other.get(url)
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
    async with open_server(FakeRates()) as (client, url), trio.open_nursery() as nursery:
        nursery.start_soon(client.get, url, DAY)
        nursery.start_soon(client.get, url, DAY)
    assert imported == [("httpx", False)]


async def test_without_a_thread_it_is_imported_here(monkeypatch):
    async def no_thread(*_args, **_how):
        monkeypatch.setitem(sys.modules, "httpx", httpx)
        raise RuntimeError("can't start new thread")

    monkeypatch.delitem(sys.modules, "httpx")
    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    async with open_server(FakeRates()) as (client, url):
        assert (await client.get(url, DAY, HEADERS)).status == 200


# Addresses and proxies.


@pytest.mark.parametrize("fault", [CLOSE, Fault(status=503), HANG, None])
async def test_after_a_failure_a_source_is_asked_at_its_next_address(monkeypatch, fault):
    skipped = []
    monkeypatch.setattr(Names, "skip", lambda _names, host: skipped.append(host))
    fake = FakeRates()
    if fault is not None:
        fake.order(FREECURRENCYAPI, fault)
    async with open_server(fake) as (client, url):
        with trio.move_on_after(0.05 if fault is HANG else 5), suppress(SourceFailed):
            await client.get(url, DAY, HEADERS)
    assert skipped == ([] if fault is None else ["127.0.0.1"])


@pytest.mark.parametrize(
    ("proxy_url", "asked"),
    [
        ("http://us%40er:s3cret@127.0.0.1:{}", "CONNECT 127.0.0.1 us@er:s3cret"),
        ("socks5h://us%40er:s3cret@127.0.0.1:{}", "SOCKS 127.0.0.1 us@er:s3cret"),
    ],
)
async def test_a_source_is_asked_through_the_proxy_of_the_environment(proxy_url, asked):
    async with open_proxy() as proxy, open_server(FakeRates()) as (_, url):
        proxies = Proxies.read({"HTTP_PROXY": proxy_url.format(proxy.port), "NO_PROXY": "a.test"})
        assert (await HttpClient(TLS, proxies).get(url, DAY, HEADERS)).status == 200
        assert proxy.asked == [asked]


# What is read of a body, and what is sent.


async def test_a_body_is_read_no_further_than_its_bounds():
    async def body(size, end=None):
        for number in itertools.islice(itertools.count(1), end):
            yield bytes(size)
            sent.append(number * size)

    sent: list[int] = []
    for size, most, text in (65536, MAX_BODY, "over 1 MiB"), (1, MAX_PIECES, "over 4096 pieces"):
        with pytest.raises(SourceFailed, match=text):
            await read_response(200, [], body(size))
        assert sent[-1] == most
    assert len((await read_response(200, [], body(65536, 16))).content) == MAX_BODY


async def test_each_piece_of_a_body_lets_the_other_tasks_run():
    async def at_hand():
        for _ in range(MAX_PIECES):
            yield b" "

    turns = 0

    async def count():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        response = await read_response(200, [], at_hand())
        nursery.cancel_scope.cancel()
    assert len(response.content) == MAX_PIECES
    assert turns > MAX_PIECES / 2


async def test_what_is_sent_and_that_no_cookie_is_kept():
    seen = []

    def answer(_path, head):
        seen.append(head.lower())
        return OK + b"Set-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"

    async with open_raw_server(answer) as (client, url):
        for _ in range(2):
            await client.get(url, {})
    for line in (
        b"accept: application/json",
        b"accept-encoding: identity",
        b"user-agent: ratebridge",
    ):
        assert all(line in head for head in seen)
    assert [b"cookie" in head for head in seen] == [False, False]
