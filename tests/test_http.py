"""One GET: answers, failures, and no secret in any text."""

import logging
import ssl
import threading
from contextlib import asynccontextmanager, suppress
from functools import partial

import httpx
import pytest
import trio
import trustme
from support import elapsed, open_proxy

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
    memory_transport,
    serve_rates,
)
from ratebridge.names import Names
from ratebridge.providers.http import MAX_PIECES, HttpClient
from ratebridge.providers.transport import MAX_INTERIM
from ratebridge.proxies import Proxies

KEY = "fca_live_s3cr3t"
MAX_BODY = 1024 * 1024  # bytes, as it stands in the error
HEADERS = {"apikey": KEY}
DAY = {"date": "2021-05-18"}
TLS = ssl.create_default_context()


@asynccontextmanager
async def open_server(fake, **how):
    """The fake on a port, and a client for it."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda **kw: serve_rates(fake, **how, **kw))
        client = HttpClient(lambda: TLS)
        yield client, f"http://127.0.0.1:{port}/v1/historical"
        await client.aclose()
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
        (GZIP, "bad-body", "answered with a compressed body", False),
        (HUGE, "bad-body", "answered with over 1 MiB", False),
    ],
    ids=["reset", "closed", "redirect", "gzip", "30 MB"],
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


async def test_a_redirect_is_not_followed_wherever_it_leads():
    fake = FakeRates()
    fake.disturb = lambda _call: Fault(status=307, headers={"location": "/v1/latest"})
    async with open_server(fake) as (client, url):
        with pytest.raises(SourceFailed, match="redirect"):
            await client.get(url, DAY, HEADERS)
    assert fake.count() == 1


async def test_other_statuses_and_bodies_are_the_callers_to_judge():
    fake = FakeRates()
    fake.order(FREECURRENCYAPI, Fault(status=503, headers={"Retry-After": "7"}), CUT)
    async with open_server(fake) as (client, url):
        unwell = await client.get(url, DAY, HEADERS)
        cut = await client.get(url, DAY, HEADERS)
    assert (unwell.status, unwell.headers["retry-after"]) == (503, "7")
    assert len(cut.body) == CUT.cut


async def test_a_body_of_the_maximum_size_is_accepted():
    fake = FakeRates()
    size = len(fake.answer("/v1/historical?date=2021-05-18", HEADERS).body)
    fake.order(FREECURRENCYAPI, Fault(padding=MAX_BODY - size), Fault(padding=MAX_BODY - size + 1))
    async with open_server(fake) as (client, url):
        assert len((await client.get(url, DAY, HEADERS)).body) == MAX_BODY
        with pytest.raises(SourceFailed, match="over 1 MiB"):
            await client.get(url, DAY, HEADERS)


# What comes, byte by byte.

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MUCH = 200 * 1024


@asynccontextmanager
async def open_raw_server(answer):
    """A server that sends what `answer` makes of a path, and a client for it."""

    async def serve(stream):
        with suppress(trio.BrokenResourceError):
            async for head in stream:
                await stream.send_all(answer(head.split()[1]))

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        client = HttpClient(lambda: TLS)
        yield client, f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        await client.aclose()
        nursery.cancel_scope.cancel()


async def test_surplus_bytes_answer_no_later_request():
    def answer(path):
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
    ],
    ids=["header", "headers", "length of a chunk", "trailer"],
)
async def test_bytes_outside_the_body_are_bounded(endless):
    async with open_raw_server(lambda _path: endless) as (client, url):
        with pytest.raises(SourceFailed, match="over 16 KiB of headers"):
            await client.get(url, {})


async def test_interim_responses_are_passed_over_and_an_empty_coding_is_none():
    hint = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    head = hint * MAX_INTERIM + OK + b"Content-Encoding: \r\nContent-Length: 2\r\n\r\n{}"
    async with open_raw_server(lambda _path: head) as (client, url):
        assert (await client.get(url, {})).body == b"{}"
    async with open_raw_server(lambda _path: hint + head) as (client, url):
        with pytest.raises(SourceFailed, match="over 16 heads"):
            await client.get(url, {})


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


async def failure_of(url, tls=TLS):
    client = HttpClient(lambda: tls)
    with pytest.raises(SourceFailed) as caught:
        await client.get(url, DAY, HEADERS)
    await client.aclose()
    failure = caught.value
    assert (failure.outcome, failure.again) == ("unreachable", True)
    return failure.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_refused_connection(host):
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    refused = "could not be reached (connection refused: nobody listens on that port)"
    assert await failure_of(f"http://{host}:{port}/v1/latest") == refused


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "rates..test", "[::1"])
async def test_an_invalid_address(host):
    assert "not valid)" in await failure_of(f"http://{host}/v1/latest")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@asynccontextmanager
async def open_tls_server(authority, *names, fake=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda **kw: serve_rates(fake or FakeRates(), tls=context, **kw))
        yield port
        nursery.cancel_scope.cancel()


async def test_a_certificate_that_passes(authority):
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with open_tls_server(authority, "127.0.0.1") as port:
        client = HttpClient(lambda: trusting)
        answer = await client.get(f"https://127.0.0.1:{port}/v1/latest", {}, HEADERS)
        await client.aclose()
    assert answer.status == 200


async def test_a_certificate_of_an_unknown_authority(authority):
    async with open_tls_server(authority, "127.0.0.1") as port:
        text = await failure_of(f"https://127.0.0.1:{port}/v1/latest")
    assert text.startswith("could not be reached (the certificate does not pass: unable to get")


# Secrets.


async def test_no_log_and_no_text_shows_the_key_or_a_url(caplog):
    caplog.set_level(logging.DEBUG)
    fake = FakeRates()
    fake.order(FREECURRENCYAPI, RESET)
    async with open_server(fake) as (client, url):
        with pytest.raises(SourceFailed) as caught:
            await client.get(url, DAY, HEADERS)
        await client.get(url, DAY, HEADERS)
        shown = f"{caplog.text}{caught.value}{caught.value!r}{client!r}"
    assert KEY not in shown
    assert "127.0.0.1" not in shown


# When it is made.


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def test_the_first_request_makes_the_client_and_all_share_it():
    made = []

    def make_tls():
        made.append(threading.current_thread())
        return TLS

    async with open_server(FakeRates()) as (_, url):
        http = HttpClient(make_tls)
        assert made == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(http.get, url, DAY)
            nursery.start_soon(http.get, url, DAY)
        assert (await http.get(url, DAY)).status == 401
    [thread] = made
    assert thread is not threading.main_thread()
    await http.aclose()


async def test_an_unused_client_is_not_made_to_be_closed():
    def make_tls():
        raise AssertionError

    await HttpClient(make_tls).aclose()


async def test_without_a_thread_it_is_made_here(monkeypatch):
    async def no_thread(*_args, **_how):
        raise RuntimeError("can't start new thread")

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


@asynccontextmanager
async def open_proxied(proxy_url):
    """A fake that is reached through this proxy, whose port is to be put in, and its client."""
    async with open_proxy() as proxy, open_server(FakeRates()) as (_, url):
        proxies = Proxies.read({"HTTP_PROXY": proxy_url.format(proxy.port), "NO_PROXY": "a.test"})
        client = HttpClient(lambda: TLS, proxies=proxies)
        yield client, url, proxy
        await client.aclose()


@pytest.mark.parametrize(
    ("proxy_url", "asked"),
    [
        ("http://us%40er:s3cret@127.0.0.1:{}", "CONNECT 127.0.0.1 us@er:s3cret"),
        ("socks5h://us%40er:s3cret@127.0.0.1:{}", "SOCKS 127.0.0.1 us@er:s3cret"),
        ("socks5://127.0.0.1:{}", "SOCKS 127.0.0.1 "),
    ],
)
async def test_a_source_is_asked_through_the_proxy_of_the_environment(proxy_url, asked):
    async with open_proxied(proxy_url) as (client, url, proxy):
        assert (await client.get(url, DAY, HEADERS)).status == 200
        assert proxy.asked == [asked]


async def test_a_proxy_that_refuses_is_named_with_its_status():
    for scheme, why in (("http", "it answered HTTP 407"), ("socks5", "Username and password")):
        async with open_proxied(f"{scheme}://a:s3cret@127.0.0.1:{{}}") as (client, url, proxy):
            proxy.refusal = 407
            with pytest.raises(SourceFailed) as caught:
                await client.get(url, DAY)
        assert caught.value.text.startswith(f"could not be reached (the proxy: {why}")


# Surroundings.


async def test_a_transport_takes_the_networks_place(autojump_clock):
    fake = FakeRates(latency=3.0)
    client = HttpClient(lambda: TLS, memory_transport(fake))
    answer = await client.get("http://rates.test/v1/latest", {"base_currency": "EUR"}, HEADERS)
    assert (answer.status, elapsed()) == (200, 3.0)
    assert fake.calls[0].params == {"base_currency": "EUR"}
    assert fake.calls[0].key == KEY


async def test_what_is_requested_and_that_the_caller_limits_the_time():
    seen: dict[str, object] = {}

    async def look(request):
        seen.update(request.headers, timeouts=set(request.extensions["timeout"].values()))
        raise httpx.ConnectError("")

    with pytest.raises(SourceFailed):
        await HttpClient(lambda: TLS, httpx.MockTransport(look)).get(
            "http://rates.test/v1", {}, HEADERS
        )
    assert seen["accept-encoding"] == "identity"
    assert seen["accept"] == "application/json"
    assert str(seen["user-agent"]).startswith("ratebridge/")
    assert seen["timeouts"] == {None}


@pytest.mark.parametrize(
    ("size", "most", "text"),
    [(65536, MAX_BODY, "over 1 MiB"), (1, MAX_PIECES, "over 4096 pieces")],
    ids=["long", "in single bytes"],
)
async def test_a_body_is_read_no_further_than_its_bounds(size, most, text):
    class Endless(httpx.AsyncByteStream):
        sent = 0

        async def __aiter__(self):
            while self.sent < 20 * MAX_BODY:
                await trio.lowlevel.checkpoint()
                self.sent += size
                yield bytes(size)

    body = Endless()
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, stream=body))
    with pytest.raises(SourceFailed, match=text):
        await HttpClient(lambda: TLS, transport).get("http://rates.test/v1/latest", {})
    assert body.sent <= most + 2 * size


async def test_each_piece_of_a_body_lets_the_other_tasks_run():
    class AtHand(httpx.AsyncByteStream):
        async def __aiter__(self):
            for _ in range(MAX_PIECES):
                yield b" "

    turns = 0

    async def count():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    transport = httpx.MockTransport(lambda _request: httpx.Response(200, stream=AtHand()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        answer = await HttpClient(lambda: TLS, transport).get("http://rates.test/v1/latest", {})
        nursery.cancel_scope.cancel()
    assert len(answer.body) == MAX_PIECES
    assert turns > MAX_PIECES / 2  # each turn, but for those of the start and the end


async def test_no_cookie_is_kept():
    seen = []

    def answer(request):
        seen.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"Set-Cookie": "a=b"}, stream=httpx.ByteStream(b""))

    client = HttpClient(lambda: TLS, httpx.MockTransport(answer))
    for _ in range(2):
        await client.get("http://rates.test/v1/latest", {})
    assert seen == [None, None]


async def test_a_network_timeout_of_the_system_is_no_more_than_unreachable():
    class Late(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            raise httpx.ConnectTimeout("")

    with pytest.raises(SourceFailed, match="broke off"):
        await HttpClient(lambda: TLS, Late()).get("http://rates.test/v1/latest", {})
