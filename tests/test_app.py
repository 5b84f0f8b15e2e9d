"""The whole service over memory streams, on a virtual clock."""

import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import attrs
import pytest
import structlog
import trio

from ratebridge import __version__, app
from ratebridge.app import Dependencies, open_outbox, serve, tls_context
from ratebridge.errors import BadSettings, CannotStart, FetchOutcome, Loss, SourceFailed
from ratebridge.fakes.feed import FeedPeer, MemoryFeed, request_text
from ratebridge.link.address import Address
from ratebridge.link.dial import Dial
from ratebridge.observer import Observer
from ratebridge.operating.logs import event_log
from ratebridge.operating.stats import Stats
from ratebridge.outbox import Reply
from ratebridge.providers.http import HttpClient
from ratebridge.rates import Quote, RateSheet
from ratebridge.settings import Settings

START = datetime(2021, 6, 1, 12, tzinfo=UTC)
FEED = Address("feed.example", 80, "/", secure=False)
MAY_17, MAY_18, TODAY = date(2021, 5, 17), date(2021, 5, 18), START.date()
DOLLARS = {MAY_17: "1.2", MAY_18: "1.25", TODAY: "1.5"}


@attrs.define
class Bank:
    """A source of the rates in `DOLLARS`; `before` may delay it."""

    name: str = "bank"
    quota: None = None
    currencies: None = None
    every: float | None = None
    calls: list[date] = attrs.Factory(list)
    before: Callable[[date], Awaitable[None]] = trio.lowlevel.checkpoint  # type: ignore[assignment]

    def asks(self, day: date, today: date) -> str:
        return str(day)

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        self.calls.append(day)
        await self.before(day)
        if day not in DOLLARS:
            raise SourceFailed(FetchOutcome.BAD_TABLE, "has no table")
        rows = {day: {"USD": Quote(Decimal(DOLLARS[day]))}}
        return RateSheet(self.name, str(day), day, day, rows, now, frozenset({"USD"}))


async def at_once(_day: date) -> None:
    await trio.lowlevel.checkpoint()


@attrs.define
class Service:
    """A running service and what it is made of."""

    feed: MemoryFeed
    bank: Bank
    stats: Stats
    stop: trio.Event
    ended: trio.Event

    async def next_peer(self, number: int) -> FeedPeer:
        """The connection with this number, once it is there and open."""
        while len(self.feed.peers) <= number or not self.feed.peers[number].path:
            await trio.sleep(0.01)
        return self.feed.peers[number]


@asynccontextmanager
async def running(
    script: Callable[[FeedPeer], Awaitable[None]], bank: Bank | None = None, **settings: Any
) -> AsyncIterator[Service]:
    bank = bank or Bank(before=at_once)
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


async def beat(peer: FeedPeer) -> None:
    while True:
        await peer.heartbeat()
        await trio.sleep(1)


async def quiet(peer: FeedPeer) -> None:
    """A feed that only beats and listens."""
    await peer.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat, peer)
        while True:
            await peer.receive()


def asking(*texts: str) -> tuple[Callable[[FeedPeer], Awaitable[None]], list[Any]]:
    """A feed that asks all of this once per connection, and the replies it got."""
    replies: list[Any] = []

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, peer)
            for text in texts:
                await peer.send(text)
            while True:
                replies.append(await peer.receive_reply())

    return script, replies


async def test_a_request_gets_its_stake_in_euro_and_all_else_back(autojump_clock):
    script, replies = asking(request_text(456))
    async with running(script):
        await trio.sleep(1)
    assert replies == [
        {
            "type": "message",
            "id": "456",
            "payload": {
                "marketId": "123456",
                "selectionId": "987654",
                "odds": "2.2",
                "stake": "202.936",
                "currency": "EUR",
                "date": "2021-06-01T12:00:00.000Z",
            },
        }
    ]


async def test_equal_ids_are_separate_requests(autojump_clock):
    script, replies = asking(*(request_text(7, stake) for stake in ("100", "50", "100")))
    async with running(script):
        await trio.sleep(1)
    assert [reply["id"] for reply in replies] == ["7"] * 3
    assert sorted(reply["payload"]["stake"] for reply in replies) == ["40", "80", "80"]


@pytest.mark.parametrize(
    ("when", "stake"),
    [
        ("2021-05-18T21:32:42.324Z", "80"),
        ("2021-05-17T21:32:42.324Z", "83.33333"),
        ("2021-05-18T00:30:00+02:00", "83.33333"),
        ("2021-05-17T23:30:00-02:00", "80"),
        ("2021-05-18T21:32:42", "80"),
        ("2021-06-01T00:00:00Z", "66.66667"),
        ("2021-06-01T12:05:00Z", "66.66667"),
    ],
)
async def test_the_rate_is_the_one_of_the_requests_utc_day(autojump_clock, when, stake):
    script, replies = asking(request_text(1, "100", date=when))
    async with running(script):
        await trio.sleep(1)
    assert [reply["payload"]["stake"] for reply in replies] == [stake]


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ("2021-06-01T12:05:01Z", "is in the future"),
        ("2022-01-01T00:00:00Z", "is in the future"),
        ("1999-01-03T23:59:59Z", "is before 1999-01-04"),
    ],
)
async def test_a_date_without_rates_is_an_error(autojump_clock, when, what):
    script, replies = asking(request_text(1, "100", date=when))
    async with running(script) as service:
        await trio.sleep(0.5)
        assert service.bank.calls == []
    [reply] = replies
    assert reply["type"] == "error"
    assert reply["id"] == "1"
    assert what in reply["message"]


async def test_heartbeats_and_answers_go_on_while_a_rates_call_hangs(autojump_clock):
    async def hang_on_may_17(day: date) -> None:
        if day == MAY_17:
            await trio.sleep_forever()

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, peer)
            nursery.start_soon(ask, peer)
            while True:
                await peer.receive()

    async def ask(peer: FeedPeer) -> None:
        await peer.send(request_text("hangs", "100", date="2021-05-17T12:00:00Z"))
        for number in range(200):
            await peer.send(request_text(number, "100"))
            await trio.sleep(0.02)

    async with running(script, Bank(before=hang_on_may_17)) as service:
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


async def test_when_heartbeats_stop_and_requests_go_on_the_link_is_refreshed(autojump_clock):
    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.heartbeat()
        while True:
            await peer.send(request_text(1))
            await trio.sleep(0.1)

    async with running(script) as service:
        opened = trio.current_time()
        await service.next_peer(1)
        assert 2 <= trio.current_time() - opened <= 3.2
        assert service.stats.lost[Loss.STALE] == 1


async def test_a_reply_whose_rate_came_after_the_link_was_lost_goes_first_on_the_next(
    autojump_clock,
):
    async def slow(_day: date) -> None:
        await trio.sleep(1)

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        if len(service.feed.peers) == 1:
            await peer.send(request_text("early", "100"))
            await trio.sleep(0.1)
            return
        await quiet_from_here(peer)

    async def quiet_from_here(peer: FeedPeer) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, peer)
            while True:
                await peer.receive()

    async with running(script, Bank(before=slow)) as service:
        peer = await service.next_peer(1)
        await trio.sleep(2)
    replies = [got.message for got in peer.received if got.message["type"] != "heartbeat"]
    assert [(reply["id"], reply["payload"]["stake"]) for reply in replies] == [("early", "80")]
    assert service.bank.calls == [MAY_18]


async def test_a_stop_answers_what_is_in_flight_and_refuses_what_is_new(autojump_clock):
    async def slow(_day: date) -> None:
        await trio.sleep(2)

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, peer)
            nursery.start_soon(ask, peer)
            while True:
                await peer.receive()

    async def ask(peer: FeedPeer) -> None:
        await peer.send(request_text("old", "100"))
        await trio.sleep(1)
        service.stop.set()
        await trio.sleep(0.1)
        await peer.send(request_text("new", "100"))

    async with running(script, Bank(before=slow)) as service:
        began = trio.current_time()
        await service.ended.wait()
        assert trio.current_time() - began < 3.2
    [peer] = service.feed.peers
    replies = [got.message for got in peer.received if got.message["type"] != "heartbeat"]
    assert [reply["id"] for reply in replies] == ["new", "old"]
    assert "the service is stopping" in replies[0]["message"]
    assert replies[1]["payload"]["stake"] == "80"
    assert peer.close_code == 1001


async def test_a_stop_waits_no_longer_than_the_drain_timeout(autojump_clock):
    async def hang(_day: date) -> None:
        await trio.sleep_forever()

    script, replies = asking(request_text(1))
    async with running(script, Bank(before=hang), rate_deadline=60, drain_timeout=3) as service:
        await trio.sleep(1)
        began = trio.current_time()
        service.stop.set()
        await service.ended.wait()
        assert 3 <= trio.current_time() - began <= 4.1
    assert replies == []
    assert service.stats.undelivered == 1


async def test_a_stop_waits_for_the_link_that_takes_what_is_answered(autojump_clock):
    async def slow(_day: date) -> None:
        await trio.sleep(1)

    async def script(peer: FeedPeer) -> None:
        if len(service.feed.peers) == 1:
            await peer.accept()
            await peer.send(request_text("early", "100"))
            await trio.sleep(0.1)
        else:
            await trio.sleep(3)
            await quiet(peer)

    async with running(script, Bank(before=slow)) as service:
        await trio.sleep(2)  # the reply is made, and the next link is being opened
        service.stop.set()
        await service.ended.wait()
    replies = [got.message["id"] for got in service.feed.peers[1].received if "id" in got.message]
    assert replies == ["early"]


async def test_undelivered_replies_at_the_stop_are_logged_by_id_and_count(autojump_clock, log):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))

    async def hang(_day: date) -> None:
        await trio.sleep_forever()

    script, _replies = asking(*map(request_text, range(30)))
    async with running(script, Bank(before=hang), rate_deadline=60, drain_timeout=0):
        await trio.sleep(1)
    told = [event["id"] for event in log if event["event"] == "reply.undelivered"]
    [rest] = [event for event in log if event["event"] == "log.limited"]
    assert rest["lines"]["reply.undelivered"] + len(told) == 30
    assert {rest["first_undelivered"], rest["last_undelivered"]} < set(map(str, range(30)))
    assert log[-1]["event"] == "service.stopped"


async def test_what_is_left_in_the_outbox_is_undelivered_whichever_way_the_service_ends(
    autojump_clock,
):
    observer = Observer()
    with trio.CancelScope() as scope:  # as a second signal does
        async with open_outbox(observer) as outbox:
            outbox.add(Reply(b"1", b"a reply", trio.current_time()))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert observer.stats.undelivered == 1


async def test_a_service_logs_its_start_each_minute_and_its_end(autojump_clock, log):
    bank = Bank(before=at_once)
    async with running(quiet, bank, providers=("bank",)):
        await trio.sleep(121)
    assert [event["connection"] for event in log if event["event"] == "summary"] == ["up", "up"]
    about = {"version": __version__, "feed": FEED.authority, "sources": ["bank"]}
    assert [log[0], log[-3], log[-1]] == [  # between the last two the connection goes down
        {"event": "service.started", "log_level": "info", **about},
        {"event": "service.stopping", "log_level": "info", "waiting": 0, "outbox": 0},
        {"event": "service.stopped", "log_level": "info", "answered": 0},
    ]


async def test_a_proxy_of_no_use_is_a_bad_setting_and_leaves_no_port_open(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(BadSettings, match="HTTPS_PROXY"):
        await serve(Settings(FEED, status_address=("127.0.0.1", 0)))


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


def test_certificates_are_checked_unless_told_otherwise():
    assert tls_context(verify=True).verify_mode.name == "CERT_REQUIRED"
    unchecked = tls_context(verify=False)
    assert unchecked.verify_mode.name == "CERT_NONE"
    assert not unchecked.check_hostname


async def test_the_feed_and_the_sources_have_one_tls_context(monkeypatch, autojump_clock):
    used: list[object] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def dial_with(_address: Address, tls: object) -> Dial:
        used.append(tls)
        return trio.sleep_forever

    def client_with(make_tls: Callable[[], ssl.SSLContext]) -> HttpClient:
        used.append(make_tls())
        return HttpClient(make_tls)

    monkeypatch.setattr(app, "tls_context", lambda _verify: context)
    monkeypatch.setattr(app, "network_dial", dial_with)
    monkeypatch.setattr(app, "HttpClient", client_with)
    with trio.move_on_after(1):
        await serve(Settings(attrs.evolve(FEED, secure=True), providers=("ecb",)))
    assert used == [context, context]


@pytest.fixture
def log():
    """The events logged meanwhile."""
    with structlog.testing.capture_logs() as events:
        yield events
    structlog.reset_defaults()


async def test_an_unknown_setting_is_logged(autojump_clock):
    with structlog.testing.capture_logs() as log:
        async with running(beat, unknown=("VERIFY_SLL", "RATEBRIDGE_FOO")):
            await trio.sleep(1)
    told = [event for event in log if event["event"] == "settings.unknown"]
    warning = {"event": "settings.unknown", "log_level": "warning"}
    assert told == [
        {**warning, "name": "VERIFY_SLL", "resembles": "VERIFY_SSL"},
        {**warning, "name": "RATEBRIDGE_FOO"},
    ]


async def test_a_start_is_reported_when_the_first_connection_is_up(autojump_clock):
    async def script(peer: FeedPeer) -> None:
        await trio.sleep(3)
        await quiet(peer)

    async with trio.open_nursery() as nursery:
        feed = MemoryFeed(nursery, script)
        dependencies = Dependencies(feed.dial, [Bank(before=at_once)])
        began = trio.current_time()
        await nursery.start(serve, Settings(FEED), None, dependencies)
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)
        nursery.cancel_scope.cancel()


async def test_a_stop_before_the_first_connection_is_no_error_of_a_start(autojump_clock):
    stop = trio.Event()
    stop.set()
    async with trio.open_nursery() as nursery:
        dependencies = Dependencies(trio.sleep_forever, [Bank(before=at_once)])
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
        feed = MemoryFeed(nursery, quiet)
        dependencies = Dependencies(feed.dial, [Bank(before=at_once)])
        await nursery.start(serve, Settings(FEED, verify_ssl=False), None, dependencies)
        nursery.cancel_scope.cancel()
    assert capsys.readouterr() == ("", "")
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == (
        "tls.unverified detail='VERIFY_SSL is off: certificates are not checked'"
    )
    told = [(record.__dict__["event"], record.__dict__["fields"]) for record in caplog.records]
    assert ("connection.up", {"connections": 1}) in told
