"""The status server: its answers without a socket, and its limits for clients."""

import errno
import re
import resource
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from itertools import pairwise
from unittest.mock import ANY

import httpx
import msgspec
import pytest
import support
import trio
import trio.testing
from status_service import make_service, stopping
from structlog.testing import capture_logs

from ratebridge.errors import CannotStart, NoRate, Refusal
from ratebridge.operating import status
from ratebridge.operating.overview import Chart
from ratebridge.operating.status import HEADERS, Pages, Share, StatusServer
from ratebridge.reporting.logs import event_log
from ratebridge.reporting.observer import Observer

SCRIPT = files("ratebridge.operating").joinpath("page", "page.js").read_text(encoding="utf-8")
PATHS = ["/", "/page.css", "/page.js", "/status.json", "/healthz", "/readyz", "/metrics"]


@pytest.fixture
async def get(nursery):
    """Asks for a target, and gives the answer."""
    service, _ = make_service(nursery)
    pages = Pages(service, Chart(service.stats), ["status.example"])
    return lambda target, method="GET", **headers: pages.answer(method, target, headers)


# What it answers.


@pytest.mark.parametrize("target", ["/healthz", "HTTP://127.0.0.1:8766/healthz?now"])
async def test_it_is_healthy_while_the_loop_runs(target, get):
    answer = get(target)
    assert (answer.status, answer.media_type) == (200, "application/json")
    why = "the event loop turns"
    assert msgspec.json.decode(answer.body) == {"healthy": True, "why": why, "uptime": ANY}


async def test_readiness_is_a_status_and_a_reason(nursery):
    service, observer = make_service(nursery)
    pages = Pages(service, Chart(service.stats), ())

    def readyz() -> tuple[int, bytes]:
        page = pages.answer("GET", "/readyz", {})
        return page.status, page.body.partition(b", its last heartbeat")[0]

    assert readyz()[0] == 503
    assert readyz()[1].startswith(b'{"ready":false,"status":"not ready","why":"no connection yet')
    observer.link_up()
    observer.heartbeat_received(0.0)
    well = b'{"ready":true,"status":"ready","why":"the connection is up'
    assert readyz() == (200, well)
    observer.refused(NoRate(Refusal.UNAVAILABLE, "no rate"), b"1", 5.0)
    assert readyz() == (200, well.replace(b'"ready",', b'"degraded",'))


@pytest.mark.parametrize(
    ("query", "samples"),
    [("", 3), ("?after=2", 1), ("?after=\u0661", 3), ("?after=99", 0), ("?after=" + "9" * 5000, 3)],
)
async def test_only_what_is_new_of_the_history_is_asked_for(nursery, query, samples):
    service, _ = make_service(nursery)
    history = Chart(service.stats)
    for _ in range(3):
        history.take(1.0)
    answer = Pages(service, history, ()).answer("GET", f"/status.json{query}", {})
    assert answer.media_type == "application/json"
    assert len(msgspec.json.decode(answer.body)["samples"]) == samples


@pytest.mark.parametrize(
    "path", ["/x", "/metrics/", "/page.html", "/..%2fstatus.py", "*", "x:/", "http://localhost/x"]
)
async def test_there_is_nothing_else(get, path):
    assert get(path).status == 404


# HTTP/1.0 needs no host, and no browser speaks it.
SERVED = ["", "10.1.2.3:8766", "[::1]:8766", "LocalHost", "localhost:", "status.example:80", ":80"]
FOREIGN = ["rebound.example:8766", "localhost.rebound.example", "status.example.", "2130706433"]
FOREIGN += ["[", "127.0.0.1.rebound.example", "[::1].rebound.example", "127.0.0.1@rebound.example"]


@pytest.mark.parametrize("host", [*SERVED, *FOREIGN])
async def test_a_name_that_is_not_ours_is_not_served(get, host):
    """A page elsewhere can have its own name resolved to our address, and then read our answers."""
    for path in PATHS:
        assert (get(path, host=host).status == 421) == (host in FOREIGN)


# The page.


async def test_the_page_brings_all_it_needs(get):
    page = get("/").body.decode()
    asked = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {path for path in asked if not path.startswith("data:")} <= {
        path.removeprefix("/") for path in PATHS
    }
    for path in asked:
        if not path.startswith("data:"):
            assert get(f"/{path}").status in (200, 503)
    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page) == []


async def test_nothing_on_the_page_is_read_as_markup_or_fetched_from_elsewhere(get):
    dangerous = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\("
    )
    assert re.findall(dangerous, SCRIPT) == []
    assert re.findall(r"https?://[^\"']+", SCRIPT) == ["http://www.w3.org/2000/svg"]
    assert re.findall(rb"url\(|@import", get("/page.css").body) == []


def test_the_script_knows_each_state_of_a_source_and_only_elements_that_the_page_has():
    package = files("ratebridge.operating")
    overview = package.joinpath("overview.py").read_text(encoding="utf-8")
    lines = re.findall("state(?:, failure)? = .*", overview)
    states = {word for line in lines for word in line.split('"')[1::2]}
    assert states == {"not asked yet", *re.findall('case "(.*?)": return `.*_', SCRIPT)}
    page = package.joinpath("page", "page.html").read_text(encoding="utf-8")
    calls = r'(?:byId|say|fill|facts|scale|describe)\(\s*"([\w-]+)"'
    assert set(re.findall(calls, SCRIPT)) <= set(re.findall(r'\sid="([\w-]+)"', page))


# On a port.


@asynccontextmanager
async def listening(host="127.0.0.1"):
    """A status server on a port, with its observer."""
    async with trio.open_nursery() as status_nursery:
        service, observer = make_service(status_nursery)
        server = StatusServer((host, 0), observer)
        await status_nursery.start(server.run, service)
        yield server.address, observer
        status_nursery.cancel_scope.cancel()


async def connect(address):
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def read_all(stream):
    """All that comes until the server closes."""
    got = b""
    with trio.fail_after(5), suppress(trio.BrokenResourceError):
        async for data in stream:
            got += data
    return got


async def ask(address, request):
    """All that comes in answer to these bytes."""
    async with await connect(address) as stream:
        await stream.send_all(request)
        return await read_all(stream)


async def is_healthy(address):
    answer = await ask(address, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_on_the_wire(path):
    async with listening() as (address, _):
        strange = f"GET {path} HTTP/1.1\r\nHost: x.example\r\n\r\n"
        assert (await ask(address, strange.encode())).startswith(b"HTTP/1.1 421 ")
        async with httpx.AsyncClient(base_url=f"http://{address}") as client:
            got, head = await client.get(path), await client.head(path)
            refused = await client.post(path, content=b"x" * 100_000)
            others = [await client.request(other, path) for other in ("PUT", "DELETE", "OPTIONS")]
        assert got.content
        assert not head.content
        lengths = [int(answer.headers["content-length"]) for answer in (got, head)]
        assert lengths[1] == pytest.approx(lengths[0], rel=0.05)
        assert {answer.status_code for answer in (refused, *others)} == {405}
        for answer in (got, head, refused):
            assert set(HEADERS) <= {(name, value) for name, value in answer.headers.raw}
            assert answer.headers["date"].endswith(" GMT")
            assert "server" not in answer.headers


async def test_a_service_shows_its_state_until_its_very_end():
    with capture_logs() as log, trio.fail_after(20):
        async with stopping(Observer(event_log()), status_address=("127.0.0.1", 0)):
            address = next(e["address"] for e in log if e["event"] == "status.listening")
            async with httpx.AsyncClient(base_url=f"http://{address}") as client:
                answer = await client.get("/readyz")
            assert (answer.status_code, answer.json()["why"]) == (503, "stopping")
    with pytest.raises(OSError, match="all attempts to connect"):
        await connect(address)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:8080 (Cannot assign requested address)"),
        ("2001:db8::1", "cannot listen on [2001:db8::1]:8080 ("),
        (70 * "x", "x:8080 (there is no such host)"),
        (70 * "\xe4", "\xe4:8080 (there is no such host)"),
    ],
)
def test_a_foreign_address_is_reported(host, words):
    with pytest.raises(CannotStart) as failure:
        StatusServer((host, 8080), Observer())
    assert words in str(failure.value)
    assert not str(failure.value).endswith("()")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(
    ("host", "asked"), [("::1", ["[::1]"]), ("::", ["[::1]", "127.0.0.1"]), ("six", ["[::1]"])]
)
async def test_it_listens_on_ipv6(host, asked, monkeypatch):
    """By its address, by every address, IPv4 too, and by a name that has no other address."""
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda name, *rest, **kinds: look_up("::1" if name == "six" else name, *rest, **kinds),
    )
    async with listening(host) as (address, _):
        port = address.rpartition(":")[2]
        for place in asked:
            async with httpx.AsyncClient(base_url=f"http://{place}:{port}") as client:
                assert (await client.get("/healthz")).status_code == 200


def test_a_service_that_cannot_listen_ends_with_code_1_and_a_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = support.environment(
            CURRENCY_ASSIGNMENT_WS_URI="ws://127.0.0.1:9",
            RATEBRIDGE_STATUS_ADDRESS=f"127.0.0.1:{port}",
        )
        done = subprocess.run(
            [sys.executable, "-m", "ratebridge"], env=environment, capture_output=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"RATEBRIDGE_STATUS_ADDRESS: cannot listen on 127.0.0.1:{port} (Address already in use)"
    ]


# Limits for clients.

STRANGE = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, 400),
    "an endless head": (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, 431),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: x.example\r\n\r\n", 400),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", 200),
    "a body in scraps": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\nx\r\n" * 200,
        405,
    ),
    "a second request behind the first": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2, 200),
}


@pytest.mark.parametrize(("request_bytes", "code"), STRANGE.values(), ids=STRANGE)
async def test_a_connection_gets_one_answer_in_http_1_1(request_bytes, code):
    async with listening() as (address, observer):
        answer = await ask(address, request_bytes)
        assert answer.startswith(b"HTTP/1.1 %d " % code)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert await is_healthy(address)
        assert observer.stats.internal_errors == 0


async def test_a_request_may_come_in_scraps():
    async with listening() as (address, _), await connect(address) as stream:
        for scrap in (b"GET /hea", b"lthz HTTP/1.1\r\nHo", b"st: localhost\r\n\r", b"\n"):
            await stream.send_all(scrap)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200")


async def test_a_bug_costs_one_connection(monkeypatch):
    bug = RuntimeError("what")

    def fail(*_):
        raise bug

    monkeypatch.setattr(status, "overview", fail)
    async with listening() as (address, _):
        with capture_logs() as log:
            assert await ask(address, b"GET /status.json HTTP/1.0\r\n\r\n") == b""
        assert log == [
            {"event": "internal_error", "log_level": "error", "where": "status", "exc_info": bug}
        ]
        assert await is_healthy(address)


async def test_a_silent_client_is_disconnected(mock_clock):
    mock_clock.rate = 1.0
    async with listening() as (address, _), await connect(address) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        await trio.testing.wait_all_tasks_blocked(0.02)
        mock_clock.jump(6)
        assert await read_all(stream) == b""


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET /healthz HTTP/1.0\r\n\r\n"])
async def test_idle_clients_make_room_for_new_ones(monkeypatch, sent):
    """Whether they say nothing, or not all, or have their answer and stay."""
    monkeypatch.setattr(status, "MOST_CLIENTS", 3)
    async with listening() as (address, _):
        idle = [await connect(address) for _ in range(5)]
        for stream in idle:
            await stream.send_all(sent)
        assert await is_healthy(address)
        for stream in idle[:3]:
            with trio.fail_after(4):
                await read_all(stream)
        for stream in idle:
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    ("limit", "clients"), [(40, 5), (4, 2), (20_000, 64), (resource.RLIM_INFINITY, 64)]
)
def test_the_descriptors_are_left_to_the_feed_and_the_sources(monkeypatch, limit, clients):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    server = StatusServer(("127.0.0.1", 0), Observer())
    server.close()
    assert server._most_clients == clients


async def test_where_no_descriptor_is_left_the_next_one_is_waited_for(monkeypatch):
    monkeypatch.setattr(status, "NO_DESCRIPTOR_REST", 0.01)
    accept, full = trio.SocketListener.accept, [OSError(errno.EMFILE, "too many open files")]

    async def accept_later(listener):
        await trio.lowlevel.checkpoint()
        if full:
            raise full.pop()
        return await accept(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", accept_later)
    with capture_logs() as log:
        async with listening() as (address, _):
            assert await is_healthy(address)
    assert not full
    assert [event["detail"] for event in log if event["event"] == "status.failed"] == [
        "Too many open files"
    ]


async def test_a_client_waiting_for_its_turn_is_not_idle(monkeypatch):
    monkeypatch.setattr(status, "MOST_CLIENTS", 3)
    monkeypatch.setattr(status, "LEAST_REST", 0.02)
    async with listening() as (address, _):

        async def probe():
            assert await is_healthy(address)

        async with trio.open_nursery() as probe_nursery:
            for _ in range(8):
                probe_nursery.start_soon(probe)


async def test_a_request_that_drips_is_cut_off():
    async def drip(stream):
        while True:
            await stream.send_all(b"G")
            await trio.sleep(0.002)

    async with listening() as (address, _), await connect(address) as stream:
        with trio.fail_after(4), pytest.raises(trio.BrokenResourceError):
            await drip(stream)


async def test_a_client_that_does_not_read_is_no_bug_and_holds_up_no_stop():
    with trio.fail_after(4):
        async with listening() as (address, observer):
            stream = await connect(address)
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n" * 10_000)
            assert await is_healthy(address)
        assert observer.stats.internal_errors == 0
        await trio.aclose_forcefully(stream)


async def test_all_clients_together_get_a_fifth_of_the_loop(autojump_clock, nursery):
    """Each piece of work takes 10 ms here, by a CPU clock that only the work moves."""
    cpu = 0.0
    done = []

    def work():
        nonlocal cpu
        cpu += 0.01
        done.append(trio.current_time())

    share = Share(lambda: cpu)
    began = trio.current_time()
    for _ in range(60):
        nursery.start_soon(share.run, work)
    await trio.testing.wait_all_tasks_blocked()
    await share.run(lambda: None)
    assert len(done) == 60, "whoever came later has its turn later"
    assert trio.current_time() - began == pytest.approx(60 * 0.04, rel=0.01)
    assert [later - sooner for sooner, later in pairwise(done)] == pytest.approx([0.04] * 59)
