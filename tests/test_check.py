"""The command `check`: a fault is reported at its step, and the steps that need it are skipped."""

import io
import json
import os
import re
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import attrs
import pytest
import trio
import trustme
from rate_bench import KEY, KEYED, make_client, make_source
from support import Bank, Known, accept_and_listen, feed_on_a_port, listen

from ratebridge.app import Dependencies
from ratebridge.command_line import command_line
from ratebridge.commands.check import Report, check, check_link, describe_certificate, explain, run
from ratebridge.errors import FetchOutcome, LinkFailed, Loss, SourceFailed
from ratebridge.fakes.feed import FeedPeer, MemoryFeed, Script, request_text
from ratebridge.fakes.rates import FakeRates, serve_rates
from ratebridge.link.address import Address
from ratebridge.providers.registry import provider
from ratebridge.providers.source import Source
from ratebridge.settings import SOURCES, Settings, load_settings

NOW = datetime(2021, 6, 15, 12, tzinfo=UTC)
FEED = Address("feed.example", 80, "/", secure=False)
USUAL = Settings()


def rows(text: str) -> dict[str, str]:
    """The table by step, each "mark text"; hints are left out."""
    found = {}
    for line in text.splitlines():
        if matched := re.fullmatch(r"(ok|FAIL|skip) +(\S+(?: \S+)?)  +(.*)", line):
            found[matched[2]] = f"{matched[1]} {matched[3]}"
    return found


def hints(text: str) -> list[str]:
    return re.findall(r"(?m)^ +hint: (.*)$", text)


def address(port: int, *, secure: bool = False, host: str = "127.0.0.1") -> Address:
    return Address(host, port, "/feed?token=feed-secret", secure)


async def outcome(
    settings: Settings, sources: list[Source] | None = None
) -> tuple[bool, dict[str, str], str]:
    out = io.StringIO()
    dependencies = Dependencies(sources=sources or [Bank()], clock=lambda: NOW)
    passed = await check(settings, Report(out), dependencies)
    return passed, rows(out.getvalue()), out.getvalue()


# All is well.


async def test_every_step_is_printed_when_all_is_well():
    bank = Bank()
    async with feed_on_a_port(beating(0, 0, 0)) as (port, peers):
        settings = Settings(address(port), providers=("ecb",))
        passed, found, text = await outcome(settings, [bank])
    assert passed
    feed_steps = ["settings", "dns", "tcp", "tls", "upgrade", "heartbeat"]
    assert list(found) == [*feed_steps, "ecb today", "ecb past"]
    assert found["settings"] == f"ok feed 127.0.0.1:{port}, sources ecb"
    assert found["dns"] == "ok 127.0.0.1"
    assert re.fullmatch(rf"ok connected to port {port} in \d+ ms", found["tcp"])
    assert found["tls"] == "skip ws:// has no TLS"
    assert re.fullmatch(r"ok open after \d+ ms", found["upgrade"])
    assert re.fullmatch(r"ok 3 in \d\.\d s, the longest wait \d\.\d\d s", found["heartbeat"])
    assert re.fullmatch(r"ok 3 currencies for 2021-06-15 in \d+ ms", found["ecb today"])
    assert re.fullmatch(r"ok 3 currencies for 2021-05-18 in \d+ ms", found["ecb past"])
    assert text.endswith("\n\n7 ok, 0 failed, 1 skipped.\n")
    assert bank.asked == [date(2021, 6, 15), date(2021, 5, 18)]
    # It has sent a heartbeat itself, and a close frame.
    assert peers[0].close_code == 1000


@pytest.fixture
def authority(tmp_path, monkeypatch):
    """A certificate authority that is trusted here."""
    made = trustme.CA(organization_name="Test Authority")
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    return server


def secure(port: int) -> Settings:
    return Settings(address(port, secure=True, host="localhost"))


async def test_a_certificate_is_shown_with_its_issuer_and_end(authority):
    async with feed_on_a_port(beating(0, 0, 0), server_tls(authority)) as (port, _):
        passed, found, _ = await outcome(secure(port))
        assert passed
        assert found["tls"].startswith("ok certificate of Test Authority, good until 3000-01-01 (")
        passed, found, text = await outcome(attrs.evolve(secure(port), verify_ssl=False))
        assert passed
        assert found["tls"] == "ok the certificate is not checked, as VERIFY_SSL is off"
        assert hints(text) == ["VERIFY_SSL is off, so anybody can pass for the feed or a source"]


async def test_a_feed_that_wants_a_client_certificate(authority, tmp_path):
    server = server_tls(authority)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    client = tmp_path / "client.pem"
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(client))
    async with feed_on_a_port(beating(0, 0, 0), server) as (port, _):
        passed, found, _ = await outcome(secure(port))
        assert not passed
        assert found["tls"].startswith("ok"), "by TLS 1.3 the refusal comes behind the handshake"
        passed, found, _ = await outcome(attrs.evolve(secure(port), feed_cert_file=client))
        assert passed, found


# What is wrong is named.


async def test_a_feed_that_refuses_the_connection():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        passed, found, text = await outcome(Settings(address(free.getsockname()[1])))
    assert not passed
    assert found["tcp"] == "FAIL connection refused: nobody listens on that port"
    assert [found[step] for step in ("tls", "upgrade", "heartbeat")] == ["skip needs tcp"] * 3
    assert found["ecb past"].startswith("ok")  # the sources do not depend on the feed
    assert "is the feed running" in hints(text)[0]
    assert text.endswith("\n\n4 ok, 1 failed, 3 skipped.\n")


@pytest.mark.parametrize(
    ("reason", "detail", "hint"),
    [
        (Loss.CLIENT_CERTIFICATE, "the peer wants a client certificate", "CERT_FILE"),
        (Loss.CERTIFICATE, "Missing Authority Key Identifier", "since 3.13"),
        (Loss.TLS, "the peer broke off the TLS handshake", "begins with ws://"),
        (Loss.PROXY, "the proxy: it answered HTTP 407", "NO_PROXY"),
        (Loss.OPEN_TIMEOUT, "no connection within 5 s", "does not answer"),
        (Loss.STALE, "", ""),
    ],
)
def test_the_hint_says_what_to_do(reason, detail, hint):
    broken = explain(LinkFailed(reason, detail), {})
    assert broken.text == (detail or reason)
    assert hint in broken.hint


async def test_a_certificate_of_an_unknown_issuer():
    async with feed_on_a_port(beating(0, 0, 0), server_tls(trustme.CA())) as (port, _):
        passed, found, text = await outcome(secure(port))
    assert not passed
    assert found["tls"].startswith("FAIL the certificate does not pass: unable to get local issuer")
    assert found["upgrade"] == "skip needs tls"
    assert hints(text)[0].endswith("to try things out, set VERIFY_SSL=false")


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (404, "the path in CURRENCY_ASSIGNMENT_WS_URI is not the feed's"),
        (403, "are CURRENCY_ASSIGNMENT_WS_URI and RATEBRIDGE_FEED_HEADERS right?"),
        (503, "the feed's host answers, but not with a websocket: is the feed healthy?"),
    ],
)
async def test_an_upgrade_that_is_refused(status, hint, autojump_clock):
    found, text = await talk(lambda peer: peer.reject(status))
    assert found["upgrade"] == f"FAIL the peer answered HTTP {status}"
    assert found["heartbeat"] == "skip needs upgrade"
    assert hints(text) == [hint]


# The heartbeats, on a virtual clock.


async def talk(script: Script, settings: Settings = USUAL) -> tuple[dict[str, str], str]:
    """The upgrade and the heartbeat of a feed in memory."""
    out = io.StringIO()
    async with trio.open_nursery() as feed_nursery:
        feed = MemoryFeed(feed_nursery, script)
        async with trio.open_nursery() as nursery:
            with Report(out).steps("upgrade", "heartbeat") as done:
                await check_link(done, settings, FEED, await feed.dial(), nursery)
            nursery.cancel_scope.cancel()
        feed_nursery.cancel_scope.cancel()
    return rows(out.getvalue()), out.getvalue()


def beating(*waits: float, others: int = 0, end: Callable[[FeedPeer], Any] | None = None) -> Script:
    """A feed that waits so long before each heartbeat."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        for message_id in range(others):
            await peer.send(request_text(message_id))
        if others:
            await peer.send("no JSON")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, peer)
            for wait in waits:
                await trio.sleep(wait)
                await peer.heartbeat()
            if end is not None:
                await end(peer)

    return script


@attrs.frozen
class Beat:
    name: str
    script: Script
    shown: str
    settings: Settings = USUAL


ALSO = "; also {} other messages, left unanswered"
SLOW = Settings(heartbeat_interval=5, heartbeat_timeout=10)
BEATS = [
    Beat("one", beating(1.75), "ok 1 in 1.8 s, the longest wait 1.75 s"),
    Beat("only requests", beating(others=2), f"FAIL none came within 3.5 s{ALSO.format(3)}"),
    Beat(
        "requests too",
        beating(0, 1, 1, others=4),
        f"ok 3 in 2.0 s, the longest wait 1.00 s{ALSO.format(5)}",
    ),
    Beat("falls silent", beating(0.5, 0.5), "FAIL 2 in 1.0 s, the longest wait 2.50 s"),
    Beat("late", beating(2.5, 0.5, 0.4), "FAIL 3 in 3.4 s, the longest wait 2.50 s"),
    Beat("slow", beating(5, 10, 5), "ok 2 in 15.0 s, the longest wait 10.00 s", SLOW),
    Beat("closes", beating(1, end=lambda peer: peer.close(1008, "a\x1bb")), "FAIL a\\x1bb"),
]


@pytest.mark.parametrize("beat", BEATS, ids=lambda beat: beat.name)
async def test_the_heartbeats_of_the_feed(beat, autojump_clock):
    found, _ = await talk(beat.script, beat.settings)
    assert found["upgrade"].startswith("ok")
    assert found["heartbeat"] == beat.shown


async def test_check_sends_heartbeats_itself(autojump_clock):
    heard: list[Any] = []

    async def script(peer: FeedPeer) -> None:
        heard.append(peer.received)
        await accept_and_listen(peer)

    await talk(script)
    assert {got.text for got in heard[0]} == {'{"type":"heartbeat"}'}
    assert [got.at - heard[0][0].at for got in heard[0]] == pytest.approx([0, 1, 2, 3])


# The sources.


def freecurrencyapi(rates: FakeRates) -> Source:
    return make_source("freecurrencyapi", make_client(rates))


async def source_rows(source: Source, **changes: Any) -> tuple[dict[str, str], str]:
    """The rows of one source; the feed's host is one that does not exist."""
    trio.socket.set_custom_hostname_resolver(Known())
    _, found, text = await outcome(Settings(FEED, **changes), [source])
    return {step: row for step, row in found.items() if step.startswith(source.name)}, text


async def test_a_good_key_and_its_quota():
    rates = FakeRates(lambda: NOW, key=KEY, per_month=5000)
    found, _ = await source_rows(freecurrencyapi(rates))
    assert found["freecurrencyapi key"] == "ok accepted, 5,000 of 5,000 calls left this month"
    assert found["freecurrencyapi today"].startswith("ok 32 currencies for 2021-06-15 in ")
    assert found["freecurrencyapi past"].startswith("ok 32 currencies for 2021-05-18 in ")
    assert {call.path for call in rates.calls} == {"/v1/status", "/v1/latest", "/v1/historical"}


async def test_a_bad_key():
    found, text = await source_rows(freecurrencyapi(FakeRates(lambda: NOW, key="another")))
    assert found["freecurrencyapi key"] == "FAIL did not accept the key (HTTP 401)"
    assert found["freecurrencyapi today"] == "skip needs freecurrencyapi key"
    assert found["freecurrencyapi past"] == "skip needs freecurrencyapi key"
    assert hints(text)[1].startswith("is FREECURRENCY_API_KEY the one")


async def test_the_sources_of_the_settings_are_asked_over_the_network():
    async with trio.open_nursery() as nursery:
        rates = FakeRates(key=KEY)
        port = await nursery.start(serve_rates, rates)
        trio.socket.set_custom_hostname_resolver(Known())
        values = {**KEYED, **rates.urls(f"http://127.0.0.1:{port}")}
        settings = attrs.evolve(load_settings(values, need_feed=False), feed=FEED)
        out = io.StringIO()
        assert not await check(settings, Report(out))  # there is no feed
        nursery.cancel_scope.cancel()
    found = rows(out.getvalue())
    assert [step for step, row in found.items() if row.startswith("ok")] == [
        "settings",
        *(f"{name} {step}" for name in SOURCES for step in (*steps(name), "today", "past")),
    ]


def steps(name: str) -> list[str]:
    """Those that a source declares."""
    declared = provider(name).check
    return [declared[0]] if declared else []


@pytest.mark.parametrize(
    ("outcome", "hint"),
    [
        (
            FetchOutcome.UNREACHABLE,
            ["is there a way from this machine to the source, or to its proxy?"],
        ),
        (FetchOutcome.HTTP_4XX, ["is the source's URL right, with the version in its path?"]),
        (FetchOutcome.HTTP_5XX, []),
    ],
)
async def test_a_source_that_fails(outcome, hint):
    bank = Bank(failure=SourceFailed(outcome, "failed"))
    found, text = await source_rows(bank)
    assert found == {"ecb today": "FAIL failed", "ecb past": "skip needs ecb today"}
    assert [shown[: len(hint[0])] for shown in hints(text)[1:]] == hint  # the first is the feed's
    assert bank.asked == [date(2021, 6, 15)]


async def test_each_source_gets_the_whole_deadline(autojump_clock):
    trio.socket.set_custom_hostname_resolver(Known())
    settings = Settings(FEED, rate_deadline=5.0)
    sources: list[Source] = [Bank({NOW.date(): 4.9}, "frankfurter"), Bank({NOW.date(): 5.1})]
    _, found, _ = await outcome(settings, sources)
    assert found["frankfurter past"].startswith("ok 3 currencies")
    assert found["ecb today"] == "FAIL no answer in time"


async def test_rates_of_an_earlier_day_are_shown_as_such():
    found, _ = await source_rows(Bank(older=timedelta(days=2)))
    assert found["ecb today"].startswith("ok 3 currencies for 2021-06-15, of 2021-06-13 in ")


# The rest of the table.


async def test_no_secret_is_printed():
    source = freecurrencyapi(FakeRates(lambda: NOW, key="another"))
    async with feed_on_a_port(lambda peer: peer.reject(404)) as (port, _):
        settings = Settings(
            address(port),
            freecurrency_api_key=KEY,
            freecurrency_api_url="https://source.example/url-secret",
        )
        _, _, text = await outcome(settings, [source])
    assert "FAIL" in text
    assert "secret" not in text
    assert KEY not in text


async def test_remarks_on_misleading_settings():
    unknown = ("RATEBRIDGE_CACHE_TLL", "RATEBRIDGE_X")
    _, text = await source_rows(Bank(), verify_ssl=False, providers=("ecb",), unknown=unknown)
    assert rows(text)["settings"] == "ok feed feed.example, sources ecb"
    assert hints(text)[0].split("; ") == [
        "RATEBRIDGE_CACHE_TLL: is not a setting (RATEBRIDGE_CACHE_TTL is one)",
        "RATEBRIDGE_X: is not a setting",
        "VERIFY_SSL is off, so anybody can pass for the feed or a source",
    ]


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("allowed", [True, False])
async def test_an_audit_file_is_tried_without_touching_it(tmp_path, monkeypatch, exists, allowed):
    path = tmp_path / "audit.jsonl"
    if exists:
        path.write_text("half a li")
    access = os.access  # who runs tests may be root
    monkeypatch.setattr(os, "access", lambda file, how: access(file, how) and allowed)
    _, text = await source_rows(Bank(), audit_file=path)
    expected = "ok can be written" if allowed else "FAIL cannot be read and written"
    assert rows(text)["audit file"] == expected
    assert (path.read_text() if path.exists() else None) == ("half a li" if exists else None)


@pytest.mark.parametrize(
    ("issuer", "shown"),
    [({"commonName": "R3\x1b[0m"}, "R3\\x1b[0m"), ({}, "somebody without a name")],
)
def test_a_certificate_in_words(issuer, shown):
    end = f"{NOW + timedelta(days=40):%b %d %H:%M:%S %Y} GMT"
    certificate = {"issuer": tuple((pair,) for pair in issuer.items()), "notAfter": end}
    found = describe_certificate(certificate, NOW)
    assert found == f"certificate of {shown}, good until 2021-07-25 (40 days)"


# The command.


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_exit_code(monkeypatch, passed, code):
    async def check(settings: Settings, report: Report) -> Any:
        await trio.lowlevel.checkpoint()
        return passed

    monkeypatch.setenv("CURRENCY_ASSIGNMENT_WS_URI", "ws://feed.example")
    monkeypatch.setattr("ratebridge.commands.check.configure_logs", lambda *_: None)
    monkeypatch.setattr("ratebridge.commands.check.check", check)
    assert run(command_line(["check"]).parse_args(["check"])) == code


async def test_in_json_it_is_one_document():
    out = io.StringIO()
    trio.socket.set_custom_hostname_resolver(Known())
    settings = Settings(FEED)
    dependencies = Dependencies(sources=[Bank()], clock=lambda: NOW)
    assert not await check(settings, Report(out, as_json=True), dependencies)
    document = json.loads(out.getvalue())
    assert document["ok"] is False
    lookup = document["steps"][1]
    assert lookup.pop("hint").startswith("is the host in CURRENCY_ASSIGNMENT_WS_URI right, and")
    assert lookup == {"step": "dns", "result": "fail", "text": "the host was not found"}
    assert [step["result"] for step in document["steps"][-2:]] == ["ok", "ok"]
