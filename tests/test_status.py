"""The status server: its answers in memory, and what its clients cannot do to the service."""

import os
import re
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import pairwise

import httpx
import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from watched import make_service

from ratebridge.app import Dependencies, serve
from ratebridge.backoff import Backoff
from ratebridge.errors import CannotStart, SourceFailed
from ratebridge.fakes.feed import MemoryFeed, request_text
from ratebridge.link.address import Address
from ratebridge.link.link import open_link
from ratebridge.operating import status
from ratebridge.operating.journal import Journal
from ratebridge.operating.overview import History
from ratebridge.operating.stats import Stats
from ratebridge.operating.status import HEADERS, StatusServer, make_app
from ratebridge.session import HeartbeatSettings
from ratebridge.settings import Settings
from ratebridge.supervisor import Supervisor

FEED = Address("feed.example", 80, "/", secure=False)
PATHS = ["/", "/page.css", "/page.js", "/status.json", "/healthz", "/readyz", "/metrics"]


@asynccontextmanager
async def asking(app):
    """An HTTP client of an application in memory; what the application raises, it raises."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://status") as client:
        yield client


@pytest.fixture
async def journal_and_client(nursery):
    service, journal = make_service(nursery)
    async with asking(make_app(service, History(service.stats), journal)) as client:
        yield journal, client


@pytest.fixture
def client(journal_and_client):
    return journal_and_client[1]


@pytest.fixture
def journal(journal_and_client):
    return journal_and_client[0]


# What it answers.


async def test_it_is_healthy_while_the_loop_turns(client):
    answer = await client.get("/healthz")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"healthy", "why", "uptime"}
    assert answer.json()["healthy"] is True


async def test_readiness_says_why(client, journal):
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert answer.json()["why"].startswith("no connection yet")
    journal.link_up()
    journal.heartbeat_received(0.0)
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    assert answer.json()["why"].startswith("the connection is up")


async def test_the_metrics_are_read_by_prometheus_parser(client):
    answer = await client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"ratebridge_conversions", "ratebridge_connection_up", "ratebridge_build_info"} <= names


async def test_the_page_gets_its_figures_as_json(client):
    answer = await client.get("/status.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["now"] == "2021-06-01T12:00:00.000Z"


@pytest.mark.parametrize(
    ("after", "samples"),
    [
        ("0", 3),
        ("2", 1),
        ("", 3),
        ("-1", 3),
        ("nan", 3),
        ("\u0661", 3),
        ("9" * 15, 0),
        ("9" * 5000, 3),
    ],
)
async def test_only_what_is_new_of_the_history_is_asked_for(nursery, after, samples):
    service, journal = make_service(nursery)
    history = History(service.stats)
    for _ in range(3):
        history.take(1.0)
    async with asking(make_app(service, history, journal)) as client:
        answer = await client.get("/status.json", params={"after": after})
    assert len(answer.json()["history"]["samples"]) == samples


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_forbids_what_the_page_does_not_need(client, path):
    answer = await client.get(path)
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", PATHS)
async def test_a_head_is_a_get_and_nothing_else_is_allowed(client, path):
    got, head = await client.get(path), await client.head(path)
    assert head.status_code == got.status_code
    assert head.headers["content-type"] == got.headers["content-type"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = await client.request(method, path)
        assert answer.status_code == 405
        assert {word.strip() for word in answer.headers["allow"].split(",")} == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "path", ["/x", "/metrics/", "/page", "/page.html", "/page/page.js", "/..%2fstatus.py"]
)
async def test_there_is_nothing_else(client, path):
    answer = await client.get(path)
    assert answer.status_code == 404
    assert set(HEADERS) <= {(name, value) for name, value in answer.headers.raw}


# The page.


async def test_the_page_brings_all_it_needs(client):
    page = (await client.get("/")).text
    asked = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {path for path in asked if not path.startswith("data:")} <= {
        path.removeprefix("/") for path in PATHS
    }
    for path in asked:
        if not path.startswith("data:"):
            assert (await client.get(f"/{path}")).status_code in (200, 503)
    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page) == []


def test_nothing_on_the_page_is_read_as_markup_or_fetched_from_elsewhere():
    script = files("ratebridge.operating").joinpath("page", "page.js").read_text(encoding="utf-8")
    dangerous = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\("
    )
    assert re.findall(dangerous, script) == []
    assert re.findall(r"https?://[^\"']+", script) == ["http://www.w3.org/2000/svg"]
    style = files("ratebridge.operating").joinpath("page", "page.css").read_text(encoding="utf-8")
    assert re.findall(r"url\(|@import", style) == []


def test_the_script_names_only_elements_that_the_page_has():
    page = files("ratebridge.operating").joinpath("page", "page.html").read_text(encoding="utf-8")
    script = files("ratebridge.operating").joinpath("page", "page.js").read_text(encoding="utf-8")
    calls = r'(?:byId|say|fill|facts|scale|describe)\(\s*"([\w-]+)"'
    assert set(re.findall(calls, script)) <= set(re.findall(r'\sid="([\w-]+)"', page))


# Its own bugs.


async def test_a_bug_costs_one_answer(client, journal, monkeypatch):
    bug = RuntimeError("what")

    def fail(*_):
        raise bug

    monkeypatch.setattr(status, "overview", fail)
    with capture_logs() as log:
        answer = await client.get("/status.json")
    assert (answer.status_code, answer.text) == (500, "an internal error, see the service's log")
    assert set(HEADERS) <= {(name, value) for name, value in answer.headers.raw}
    assert log == [
        {"event": "internal_error", "log_level": "error", "where": "status", "exc_info": bug}
    ]
    assert (await client.get("/healthz")).status_code == 200


async def test_a_bug_in_the_middle_of_an_answer_ends_there():
    async def half(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("what")

    sent = []

    async def send(message):
        sent.append(message["type"])

    journal = Journal(Stats())
    await status._Contained(half, journal)({"type": "http"}, trio.sleep_forever, send)
    assert sent == ["http.response.start"]
    assert journal.stats.internal_errors == 1


# Readiness over time.


async def test_readiness_follows_the_heartbeats_of_the_feed(nursery, autojump_clock):
    service, journal = make_service(nursery)
    last_beat = []

    async def beat_thrice_then_ask_only(peer):
        await peer.accept()
        for _ in range(3):
            await peer.heartbeat()
            last_beat.append(trio.current_time())
            await trio.sleep(1)
        for number in range(100):
            await peer.send(request_text(number, currency="EUR"))
            await trio.sleep(0.1)

    feed = MemoryFeed(nursery, beat_thrice_then_ask_only)
    supervisor = Supervisor(
        lambda link_nursery: open_link(link_nursery, FEED, feed.dial),
        service.bridge,
        service.outbox,
        heartbeat=HeartbeatSettings(),
        backoff=Backoff(0.25, 5.0, lambda: 0.5),
        observer=journal,
    )
    nursery.start_soon(supervisor.run)
    seen = []
    async with asking(make_app(service, History(service.stats), journal)) as client:
        while trio.current_time() < 6.0:
            seen.append((trio.current_time(), (await client.get("/readyz")).status_code))
            await trio.sleep(0.05)
    nursery.cancel_scope.cancel()

    changes = [(at, code) for (_, before), (at, code) in pairwise(seen) if code != before]
    assert seen[0][1] == 503, "nothing was heard yet"
    (up, up_code), (down, down_code), (again, again_code) = changes[:3]
    assert (up_code, down_code, again_code) == (200, 503, 200)
    assert up < 0.2
    assert 2.0 <= down - last_beat[2] < 2.1
    assert last_beat[3] <= again < last_beat[3] + 0.1


# On a port.


@asynccontextmanager
async def listening():
    """A status server on a port, with its journal."""
    async with trio.open_nursery() as status_nursery:
        service, journal = make_service(status_nursery)
        server = StatusServer(("127.0.0.1", 0), journal)
        await status_nursery.start(server.run, service)
        yield server.address, journal
        status_nursery.cancel_scope.cancel()


async def connect(address):
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def read_all(stream):
    """All that comes until the server closes."""
    got = bytearray()
    try:
        with trio.fail_after(5):
            while True:
                data = await stream.receive_some()
                if not data:
                    break
                got += data
    except trio.BrokenResourceError:
        got += b"(reset)"
    return bytes(got)


async def until(condition):
    with trio.fail_after(5):
        await trio.lowlevel.checkpoint()
        while not condition():
            await trio.sleep(0.001)


async def is_healthy(address):
    async with await connect(address) as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return (await read_all(stream)).startswith(b"HTTP/1.1 200")


async def test_a_service_shows_its_state_until_its_very_end(nursery):
    stop = trio.Event()

    async def feed_script(peer):
        await peer.accept()
        await peer.heartbeat()
        await peer.send(request_text(1))
        while True:
            await peer.receive()

    asked, let_go = trio.Event(), trio.Event()

    class Slow:
        name = "slow"
        quota = None

        async def fetch(self, _day, _now):
            asked.set()
            await let_go.wait()
            raise SourceFailed("no-table", "has none")

    feed = MemoryFeed(nursery, feed_script)
    settings = Settings(FEED, status_address=("127.0.0.1", 0))
    journal = Journal(Stats())
    ended = trio.Event()

    async def run():
        await serve(settings, stop, Dependencies(feed.dial, [Slow()], journal=journal))
        ended.set()

    with capture_logs() as log:
        nursery.start_soon(run)
        with trio.fail_after(20):
            await asked.wait()
            address = next(e["address"] for e in log if e["event"] == "status.listening")
            async with httpx.AsyncClient(base_url=f"http://{address}") as client:
                answer = await client.get("/readyz")
                assert answer.status_code == 200
                assert set(HEADERS) <= {(name, value) for name, value in answer.headers.raw}
                assert "server" not in answer.headers
                assert (await client.head("/")).headers["content-length"] != "0"
                stop.set()
                await trio.testing.wait_all_tasks_blocked()
                answer = await client.get("/readyz")
                assert answer.status_code == 503
                assert answer.json() == {"ready": False, "why": "stopping"}
            let_go.set()
            await ended.wait()
    with pytest.raises(OSError, match="all attempts to connect"):
        await connect(address)
    nursery.cancel_scope.cancel()


def test_a_taken_port_is_told():
    journal = Journal(Stats())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        with pytest.raises(CannotStart) as failure:
            StatusServer(address, journal)
    assert str(failure.value) == (
        f"RATEBRIDGE_STATUS_ADDRESS: cannot listen on 127.0.0.1:{address[1]}"
        " (Address already in use)"
    )


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:8080 (Cannot assign requested address)"),
        ("2001:db8::1", "cannot listen on [2001:db8::1]:8080 ("),
        (70 * "x", "x:8080 (there is no such host)"),
        (70 * "\xe4", "\xe4:8080 (there is no such host)"),
    ],
)
def test_an_address_that_is_not_ours_is_told(host, words):
    with pytest.raises(CannotStart) as failure:
        StatusServer((host, 8080), Journal(Stats()))
    assert words in str(failure.value)
    assert not str(failure.value).endswith("()")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
async def test_it_listens_on_ipv6():
    async with trio.open_nursery() as status_nursery:
        service, journal = make_service(status_nursery)
        server = StatusServer(("::1", 0), journal)
        await status_nursery.start(server.run, service)
        async with httpx.AsyncClient(base_url=f"http://{server.address}") as client:
            assert (await client.get("/healthz")).status_code == 200
        status_nursery.cancel_scope.cancel()


def test_a_service_that_cannot_listen_ends_with_code_1_and_a_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {
            **os.environ,
            "CURRENCY_ASSIGNMENT_WS_URI": "ws://127.0.0.1:9",
            "RATEBRIDGE_STATUS_ADDRESS": f"127.0.0.1:{port}",
        }
        done = subprocess.run(
            [sys.executable, "-m", "ratebridge"], env=environment, capture_output=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"RATEBRIDGE_STATUS_ADDRESS: cannot listen on 127.0.0.1:{port} (Address already in use)"
    ]


def test_with_no_address_nothing_of_it_is_imported():
    code = "import ratebridge.app, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    loaded = set(done.stdout.decode().split())
    assert "ratebridge.app" in loaded
    assert not loaded & {
        "hypercorn",
        "starlette",
        "prometheus_client",
        "ratebridge.operating.status",
    }


# What clients cannot do.

NONSENSE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    "an endless head": b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    "an upgrade followed by junk": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: xx\r\n\r\njunk",
    "HTTP/2 and junk": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"junk" * 100,
    "h2c with bad settings": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: !!!\r\n\r\n",
    "an invalid target": b"GET http://[ HTTP/1.1\r\nHost: [[[\r\n\r\n",
    "a body in scraps": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\nx\r\n" * 200,
    "a length that is none": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_costs_a_client_its_own_connection_only(nonsense):
    async with listening() as (address, journal):
        async with await connect(address) as stream:
            await stream.send_all(nonsense)
            await stream.send_eof()
            await read_all(stream)
        assert await is_healthy(address)
        assert journal.stats.internal_errors == 0


async def test_what_the_server_s_library_cannot_take_is_logged():
    async with listening() as (address, journal), await connect(address) as stream:
        await stream.send_all(NONSENSE["an upgrade followed by junk"])
        await until(lambda: "status.client nonsense" in journal.stats.recent_errors)


async def test_a_client_that_says_nothing_is_sent_off(mock_clock):
    mock_clock.rate = 1.0
    async with listening() as (address, _), await connect(address) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(6)
        assert await read_all(stream) in (b"", b"(reset)")


async def test_an_answer_that_hangs_is_cut_off(mock_clock, monkeypatch):
    asked = trio.Event()

    async def hang(_scope, _receive, _send):
        asked.set()
        await trio.sleep_forever()

    monkeypatch.setattr(status, "make_app", lambda *_: hang)
    mock_clock.rate = 1.0
    async with listening() as (address, _), await connect(address) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asked.wait()
        mock_clock.jump(11)
        assert await read_all(stream) in (b"", b"(reset)")


async def test_a_client_that_asks_now_and_then_may_stay(mock_clock):
    mock_clock.rate = 1.0
    async with listening() as (address, _), await connect(address) as stream:
        for _ in range(6):
            await stream.send_all(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(3)


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_has_closed_its_side_still_gets_its_answer(path):
    async with listening() as (address, _), await connect(address) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await stream.send_eof()
        head, _, body = (await read_all(stream)).partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}\r\n".encode() in head


async def ask_and_never_read(stream):
    """Ask for the page for as long as the questions are taken."""
    while True:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)


async def test_a_client_that_does_not_read_is_sent_off(monkeypatch):
    monkeypatch.setattr(status, "WRITE_WITHIN", 0.05)
    async with listening() as (address, journal):
        async with await connect(address) as stream:
            with trio.fail_after(2), pytest.raises(trio.BrokenResourceError):
                await ask_and_never_read(stream)
        assert await is_healthy(address)
        assert journal.stats.internal_errors == 0


async def test_a_client_that_does_not_read_cannot_hold_up_the_stop():
    began = 0.0
    with trio.fail_after(2):
        async with listening() as (address, _):
            stream = await connect(address)
            with trio.move_on_after(0.1):
                await ask_and_never_read(stream)
            began = trio.current_time()
        assert trio.current_time() - began < 0.5
        await trio.aclose_forcefully(stream)


async def test_many_clients_leave_descriptors_for_the_feed(monkeypatch):
    monkeypatch.setattr(status, "MOST_CLIENTS", 3)
    async with listening() as (address, _):
        held = [await connect(address) for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        async with await connect(address) as one_too_many:
            assert await read_all(one_too_many) in (b"", b"(reset)")
        await held.pop().aclose()
        with trio.fail_after(2):
            while not await is_healthy(address):
                await trio.sleep(0.01)
        for stream in held:
            await trio.aclose_forcefully(stream)
