"""The whole service over memory streams, on a virtual clock."""

import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio
from support import Bank, accept_and_beat, beat, in_turn, listen

from ratebridge import __version__, app
from ratebridge.app import Dependencies, serve
from ratebridge.errors import CannotStart
from ratebridge.fakes.feed import FeedPeer, MemoryFeed, Script, request_text
from ratebridge.link.address import Address
from ratebridge.providers.http import HttpClient
from ratebridge.proxies import Proxies
from ratebridge.reporting.logs import event_log
from ratebridge.reporting.observer import Observer
from ratebridge.reporting.stats import Stats
from ratebridge.settings import Settings

START = datetime(2021, 6, 1, 12, tzinfo=UTC)
FEED = Address("feed.example", 80, "/", secure=False)
MAY_17, MAY_18 = date(2021, 5, 17), date(2021, 5, 18)


@attrs.define
class Service:
    """A running service and what it is made of."""

    feed: MemoryFeed
    bank: Bank
    stats: Stats
    stop: trio.Event
    ended: trio.Event

    def replies(self) -> list[Any]:
        """The replies over all connections."""
        received = [got.message for peer in self.feed.peers for got in peer.received]
        return [message for message in received if message["type"] != "heartbeat"]


@asynccontextmanager
async def running(
    script: Script, bank: Bank | None = None, **settings: Any
) -> AsyncIterator[Service]:
    bank = bank or Bank()
    began = trio.current_time()
    stats = Stats()
    stop, ended = trio.Event(), trio.Event()

    def clock() -> datetime:
        return START + timedelta(seconds=trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, script)

        async def run() -> None:
            dependencies = Dependencies(
                feed.dial, [bank], clock, lambda: 0.5, Observer(event_log(), clock, stats)
            )
            await serve(Settings(FEED, **settings), stop, dependencies)
            ended.set()

        nursery.start_soon(run)
        yield Service(feed, bank, stats, stop, ended)
        stop.set()
        await ended.wait()
        nursery.cancel_scope.cancel()


def talking(ask: Callable[[FeedPeer], Awaitable[None]]) -> Script:
    """A feed that beats, listens and asks."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, peer)
            nursery.start_soon(ask, peer)
            await listen(peer)

    return script


def asking(*texts: str) -> Script:
    """A feed that asks all of this once per connection."""

    async def ask(peer: FeedPeer) -> None:
        for text in texts:
            await peer.send(text)

    return talking(ask)


async def leave(peer: FeedPeer) -> None:
    """A feed that asks, and breaks off before there is a reply."""
    await peer.accept()
    await peer.send(request_text("early", "100"))
    await trio.sleep(0.1)


async def open_late(peer: FeedPeer) -> None:
    await trio.sleep(3)
    await accept_and_beat(peer)


async def test_a_request_gets_its_stake_in_euro_and_all_else_back(autojump_clock):
    async with running(asking(request_text(456))) as service:
        await trio.sleep(1)
    payload = {"marketId": "123456", "selectionId": "987654", "odds": "2.2", "stake": "202.936"}
    payload |= {"currency": "EUR", "date": "2021-06-01T12:00:00.000Z"}
    assert service.replies() == [{"type": "message", "id": "456", "payload": payload}]


async def test_equal_ids_are_separate_requests(autojump_clock):
    texts = (request_text(7, stake) for stake in ("100", "50", "100"))
    async with running(asking(*texts)) as service:
        await trio.sleep(1)
    assert [reply["id"] for reply in service.replies()] == ["7"] * 3
    assert sorted(reply["payload"]["stake"] for reply in service.replies()) == ["40", "80", "80"]


async def test_heartbeats_and_answers_go_on_while_a_rates_call_hangs(autojump_clock):
    async def ask(peer: FeedPeer) -> None:
        await peer.send(request_text("hangs", "100", date="2021-05-17T12:00:00Z"))
        for number in range(200):
            await peer.send(request_text(number, "100"))
            await trio.sleep(0.02)

    async with running(talking(ask), Bank({MAY_17: inf})) as service:
        await trio.sleep(6)
        received = service.feed.peers[0].received
    answered = [got for got in received if got.message["type"] == "message"]
    assert [got.message["id"] for got in answered] == [str(number) for number in range(200)]
    assert answered[-1].at - answered[0].at < 4.1
    [error] = [got for got in received if got.message["type"] == "error"]
    assert error.message["id"] == "hangs"
    assert error.at - received[0].at == pytest.approx(5, abs=0.1)
    beats = [got.at for got in received if got.message["type"] == "heartbeat"]
    gaps = [later - sooner for sooner, later in pairwise(beats)]
    assert gaps == pytest.approx([1.0] * len(gaps), abs=0.05)
    assert len(gaps) >= 5


async def test_a_reply_whose_rate_came_after_the_link_was_lost_goes_first_on_the_next(
    autojump_clock,
):
    async with running(in_turn(leave, accept_and_beat), Bank({MAY_18: 1})) as service:
        await trio.sleep(3)
        peer = service.feed.peers[1]
    assert [got.message["id"] for got in peer.received if "id" in got.message] == ["early"]
    assert [reply["payload"]["stake"] for reply in service.replies()] == ["80"]
    assert service.bank.asked == [MAY_18]


async def test_a_stop_answers_what_is_in_flight_and_refuses_what_is_new(autojump_clock):
    async def ask(peer: FeedPeer) -> None:
        await peer.send(request_text("old", "100"))
        await trio.sleep(1)
        service.stop.set()
        await trio.sleep(0.1)
        await peer.send(request_text("new", "100"))

    async with running(talking(ask), Bank({MAY_18: 2})) as service:
        began = trio.current_time()
        await service.ended.wait()
        assert trio.current_time() - began < 3.2
    new, old = service.replies()
    assert (new["id"], old["id"]) == ("new", "old")
    assert "the service is stopping" in new["message"]
    assert old["payload"]["stake"] == "80"
    assert service.feed.peers[0].close_code == 1001


async def test_a_stop_waits_no_longer_than_the_drain_timeout(autojump_clock):
    bank = Bank({MAY_18: inf})
    async with running(asking(request_text(1)), bank, rate_deadline=60, drain_timeout=3) as service:
        await trio.sleep(1)
        began = trio.current_time()
        service.stop.set()
        await service.ended.wait()
        assert 3 <= trio.current_time() - began <= 4.1
    assert service.replies() == []
    assert service.stats.undelivered == 1


async def test_a_stop_waits_for_the_link_that_takes_what_is_answered(autojump_clock):
    async with running(in_turn(leave, open_late), Bank({MAY_18: 1})) as service:
        await trio.sleep(2)  # the reply is made, and the next link is being opened
        service.stop.set()
        await service.ended.wait()
    assert [reply["id"] for reply in service.replies()] == ["early"]


async def test_undelivered_replies_at_the_stop_are_logged_by_id_and_count(autojump_clock, log):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))

    script = asking(*map(request_text, range(30)))
    async with running(script, Bank({MAY_18: inf}), rate_deadline=60, drain_timeout=0):
        await trio.sleep(1)
    told = [event["id"] for event in log if event["event"] == "reply.undelivered"]
    [rest] = [event for event in log if event["event"] == "log.limited"]
    assert rest["lines"]["reply.undelivered"] + len(told) == 30
    assert {rest["first_undelivered"], rest["last_undelivered"]} < set(map(str, range(30)))
    assert log[-1]["event"] == "service.stopped"


async def test_what_is_left_in_the_outbox_is_undelivered_whichever_way_the_service_ends(
    autojump_clock,
):
    """Here it is cancelled, as by a second signal, with a reply that waits for the next link."""

    observer = Observer()
    async with trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, in_turn(leave, open_late))
        dependencies = Dependencies(feed.dial, [Bank({MAY_18: 1})], observer=observer)
        with trio.move_on_after(2):
            await serve(Settings(FEED), None, dependencies)
        nursery.cancel_scope.cancel()
    assert observer.stats.undelivered == 1


async def test_a_service_logs_its_start_each_minute_and_its_end(autojump_clock, log):
    async with running(accept_and_beat, providers=("bank",)):
        await trio.sleep(121)
    assert [event["connection"] for event in log if event["event"] == "summary"] == ["up", "up"]
    about = {"version": __version__, "feed": FEED.authority, "sources": ["bank"]}
    assert [log[0], log[-3], log[-1]] == [  # between the last two the connection goes down
        {"event": "service.started", "log_level": "info", **about},
        {"event": "service.stopping", "log_level": "info", "waiting": 0, "outbox": 0},
        {"event": "service.stopped", "log_level": "info", "answered": 0},
    ]


async def test_a_start_that_fails_leaves_no_file_locked_and_no_port_open(tmp_path):
    audit = tmp_path / "audit.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(CannotStart):
        await serve(Settings(FEED, status_address=taken.getsockname(), audit_file=audit))
    assert not audit.exists()
    with pytest.raises(CannotStart, match="RATEBRIDGE_AUDIT_FILE"):
        await serve(Settings(FEED, status_address=("127.0.0.1", 0), audit_file=tmp_path))


async def test_a_service_that_is_cancelled_at_once_leaves_no_file_locked_and_no_port_open(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    settings = Settings(FEED, status_address=address, audit_file=tmp_path / "audit.jsonl")
    for _ in range(2):
        with trio.CancelScope() as scope:
            scope.cancel()
            await serve(settings, dependencies=Dependencies(sources=[Bank()]))


async def test_the_feed_and_the_sources_have_one_tls_context(monkeypatch, autojump_clock):
    used: list[object] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def client_with(tls: ssl.SSLContext, proxies: Proxies) -> HttpClient:
        used.append(tls)
        return HttpClient(tls, proxies)

    def make(*how: object) -> ssl.SSLContext:
        used.append(how)
        return context

    monkeypatch.setattr(app, "tls_context", make)
    monkeypatch.setattr(app, "HttpClient", client_with)
    settings = Settings(attrs.evolve(FEED, secure=True), providers=("ecb",))
    with trio.move_on_after(1):
        await serve(settings, None, Dependencies(trio.sleep_forever))
    assert used == [(True,), context]
    files = Path("client.pem"), Path("client.key")
    with_certificate = attrs.evolve(settings, feed_cert_file=files[0], feed_key_file=files[1])
    assert app.feed_dial(settings, context).tls is context
    app.feed_dial(with_certificate, context)
    assert used[-1] == (True, *files)


@pytest.fixture
def log():
    """The events logged meanwhile."""
    with structlog.testing.capture_logs() as events:
        yield events
    structlog.reset_defaults()


async def test_what_does_nothing_in_the_environment_is_logged(autojump_clock, monkeypatch, log):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "feed.example, ::1/999")
    async with running(beat, unknown=("VERIFY_SLL", "RATEBRIDGE_FOO")):
        await trio.sleep(1)
    told = [event for event in log if event["event"].startswith("settings.")]
    warning = {"event": "settings.unknown", "log_level": "warning"}
    assert told[:2] == [
        {**warning, "name": "VERIFY_SLL", "resembles": "VERIFY_SSL"},
        {**warning, "name": "RATEBRIDGE_FOO"},
    ]
    assert [(event["event"], event["entry"]) for event in told[2:]] == [
        ("settings.no_proxy", "::1/999")
    ]


async def test_a_start_is_reported_when_the_first_connection_is_up(autojump_clock):
    async with trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, open_late)
        dependencies = Dependencies(feed.dial, [Bank()])
        began = trio.current_time()
        await nursery.start(serve, Settings(FEED), None, dependencies)
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)
        nursery.cancel_scope.cancel()


async def test_a_stop_before_the_first_connection_is_no_error_of_a_start(autojump_clock):
    stop = trio.Event()
    stop.set()
    async with trio.open_nursery() as nursery:
        dependencies = Dependencies(trio.sleep_forever, [Bank()])
        await nursery.start(serve, Settings(FEED), stop, dependencies)


async def test_an_embedded_service_writes_nothing_by_itself(
    autojump_clock, capsys, caplog, monkeypatch
):
    """Its events are records of a logger, which the host may show."""
    logger = logging.getLogger("ratebridge")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    monkeypatch.setattr(logger, "propagate", False)  # other tests have configured the root
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level("INFO", logger="ratebridge")
    async with trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, accept_and_beat)
        dependencies = Dependencies(feed.dial, [Bank()])
        await nursery.start(serve, Settings(FEED, verify_ssl=False), None, dependencies)
        nursery.cancel_scope.cancel()
    assert capsys.readouterr() == ("", "")
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == (
        "tls.unverified detail='VERIFY_SSL is off: certificates are not checked'"
    )
    told = [(record.__dict__["event"], record.__dict__["fields"]) for record in caplog.records]
    assert ("connection.up", {"connections": 1}) in told
