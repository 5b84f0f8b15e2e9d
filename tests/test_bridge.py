"""The bridge: a frame in, a reply out, now or when the rate has come."""

import gc
import json
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from unittest.mock import Mock

import attrs
import pytest
import trio
from rate_bench import DAY, START, Notes, open_bench
from support import CLOCK_START, elapsed

from ratebridge.bridge import MOST_WAITING_BYTES, Bridge
from ratebridge.errors import Refused, Unreadable
from ratebridge.fakes.feed import request_text
from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.rates import HANG, Fault, quote
from ratebridge.messages import THE_HEARTBEAT
from ratebridge.outbox import Reply
from ratebridge.rates import Quote, RateSheet
from ratebridge.reporting.observer import Observer

NOON = "2026-11-03T12:00:00Z"
MOST_WAITING = 1_000  # as the contract has it


class Log(Notes):
    """What the bridge tells its observer."""

    def __init__(self):
        super().__init__()
        self.conversions = []
        self.refusals = []
        self.lost = []
        self.bugs = []

    def converted(self, conversions, seconds):
        self.conversions += [
            (asked.id, euro, rate, seconds) for asked, euro, rate, _ in conversions
        ]

    def refused(self, problem, message_id, seconds):
        self.refusals.append((message_id, problem.kind, seconds))

    def undelivered(self, message_id, why):
        self.lost.append((message_id, why))

    def internal_error(self, where, error):
        self.bugs.append(error)


@attrs.define
class Desk:
    """A bridge, and what it delivered later."""

    bridge: Bridge
    log: Log
    later: list[Reply]
    fake: object
    nursery: trio.Nursery

    def ask(self, *wish, **more):
        moment = self.bridge.moment()
        replies, _ = self.bridge.answer([request_text(*wish, **more).encode()], moment)
        self.bridge.report(moment.mono)
        return replies[0] if replies else None


@asynccontextmanager
async def open_desk(*sources, **how):
    async with open_bench(*sources or ("frankfurter",), **how) as bench:
        later: list[Reply] = []
        log = Log()
        bridge = Bridge(bench.chain, bench.nursery, later.append, utc_now=bench.wall, observer=log)
        yield Desk(bridge, log, later, bench.fake, bench.nursery)


class Asked:
    """A source that keeps for which days it was asked."""

    name = "asked"
    currencies = quota = every = None

    def __init__(self):
        self.days = []

    def asks(self, day, today):
        return str(day)

    async def fetch(self, day, now):
        self.days.append(str(day))
        return RateSheet("asked", str(day), day, day, {day: {"USD": Quote(Decimal(1))}}, now)


def said(reply):
    return json.loads(reply.frame, parse_float=Decimal, parse_int=Decimal)


def text_of(reply):
    return said(reply)["message"].removeprefix("Unable to convert stake. Error: ")


async def test_a_reply_comes_later_when_the_rate_has_to_be_fetched_and_at_once_from_then_on(
    autojump_clock,
):
    async with open_desk() as desk:
        desk.fake.latency = 1.0
        assert desk.ask(1, "253.67", "USD", NOON) is None
        assert desk.bridge.waiting == 1
        await desk.bridge.wait_settled()
        assert elapsed() == 1.0
        (reply,) = desk.later
        at_once = desk.ask("two", "253.67", "USD", NOON)
        euro = Decimal("253.67") / Decimal(quote(FRANKFURTER, "USD", DAY))
        payload = {"marketId": 123456, "selectionId": 987654, "odds": Decimal("2.2")}
        payload |= {"stake": round(euro, 5), "currency": "EUR", "date": "2026-11-20T12:00:21.000Z"}
        assert said(reply) == {"type": "message", "id": 1, "payload": payload}
        assert said(at_once) == {"type": "message", "id": "two", "payload": payload}
        assert (reply.id, reply.made_at) == (b"1", CLOCK_START + 1.0)
        (first, second) = desk.log.conversions
        assert (first[0], Decimal(first[1]), first[2].cached, first[3]) == (
            b"1",
            round(euro, 5),
            False,
            1.0,
        )
        assert (second[0], second[2].cached, second[3]) == (b'"two"', True, 0.0)
        assert desk.bridge.waiting == 0


async def test_euro_is_answered_without_a_call(autojump_clock):
    async with open_desk() as desk:
        assert said(desk.ask(1, "2.500005", "EUR", NOON))["payload"]["stake"] == Decimal("2.5")
        assert desk.fake.count() == 0
        assert desk.log.conversions == [(b"1", "2.5", None, 0.0)]


# Which day.


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-11-19T23:59:59.999Z", "2026-11-19"),
        ("2026-11-19T22:30:00-05:00", "2026-11-20"),
        ("2026-11-20T00:30:00+01:00", "2026-11-19"),
        ("2026-11-20T12:05:20Z", "2026-11-20"),
        ("1999-01-04", "1999-01-04"),
    ],
    ids=["yesterday", "today there", "yesterday here", "five minutes ahead", "the first"],
)
async def test_the_utc_day_chooses_the_table(autojump_clock, text, day):
    asked = Asked()
    async with open_desk(asked) as desk:
        assert desk.ask(1, "1", "USD", text) is None
        await desk.bridge.wait_settled()
        assert asked.days == [day]
        assert said(desk.later[0])["type"] == "message"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("2026-11-20T12:05:20.001Z", "date 2026-11-20T12:05:20.001Z is in the future"),
        (
            "1999-01-03T23:59:59Z",
            "date 1999-01-03T23:59:59.000Z is before 1999-01-04, the first day with rates",
        ),
    ],
)
async def test_days_without_rates_are_refused_without_a_call(autojump_clock, text, problem):
    async with open_desk() as desk:
        assert text_of(desk.ask(1, "1", "EUR", text)) == problem
        assert desk.log.refusals == [(b"1", "bad-date", 0.0)]


# When there is no rate.


async def test_an_unknown_currency_is_named(autojump_clock):
    async with open_desk() as desk:
        desk.ask(1, "1", "BTC", NOON)
        await desk.bridge.wait_settled()
        text = "currency 'BTC' is not known to frankfurter"
        assert text_of(desk.later[0]) == text_of(desk.ask(2, "1", "BTC", NOON)) == text


async def test_a_failure_is_answered_within_the_deadline_and_other_days_at_once(autojump_clock):
    async with open_desk(deadline=5.0) as desk:
        desk.fake.disturb = lambda call: HANG if call.params["to"] > str(DAY) else None
        desk.ask(1, "1", "USD", NOON)
        desk.ask(2, "1", "USD", "2026-09-04T12:00:00Z")
        await trio.sleep(0.1)
        assert [said(reply)["id"] for reply in desk.later] == [2]
        await desk.bridge.wait_settled()
        assert elapsed() == 5.0
        assert text_of(desk.later[1]).startswith("no rate for 'USD' on 2026-11-03: frankfurter")
        assert desk.log.refusals == [(b"1", "unavailable", 5.0)]


async def test_a_thousand_may_wait_and_one_more_is_overloaded(autojump_clock):
    async with open_desk() as desk:
        earlier = "2026-09-03T12:00:00Z"
        desk.ask(0, "1", "USD", earlier)
        await desk.bridge.wait_settled()
        desk.later.clear()
        desk.fake.latency = 1.0
        for i in range(MOST_WAITING):
            assert desk.ask(i, "1", "USD", NOON) is None
        reply = desk.ask(MOST_WAITING, "1", "USD", NOON)
        assert text_of(reply) == "overloaded, too many requests wait for rates"
        for currency, day in (("EUR", NOON), ("USD", earlier)):
            assert said(desk.ask(0, "1", currency, day))["type"] == "message"
        assert desk.bridge.waiting == MOST_WAITING
        await desk.bridge.wait_settled()
        assert elapsed() == 1.0
        assert sorted(int(reply.id) for reply in desk.later) == list(range(MOST_WAITING))
        assert desk.fake.count() == 2
        assert said(desk.ask(1, "1", "USD", NOON))["type"] == "message"


async def test_those_that_wait_are_bounded_in_bytes(autojump_clock):
    async with open_desk() as desk:
        desk.fake.latency = 1.0
        waiting = 0
        while desk.ask("x" * 60_000, "1", "USD", NOON) is None:
            waiting += 1
        assert MOST_WAITING_BYTES < waiting * 61_000 < MOST_WAITING_BYTES + 200_000
        await desk.bridge.wait_settled()
        assert desk.ask("x", "1", "USD", "2026-09-02T12:00:00Z") is None


async def test_a_thousand_different_days_are_all_answered_by_the_deadline(autojump_clock):
    async with open_desk(deadline=5.0) as desk:
        desk.fake.disturb = lambda _call: HANG
        for i in range(MOST_WAITING):
            desk.ask(i, "1", "USD", (START - timedelta(days=i)).isoformat())
        await desk.bridge.wait_settled()
        assert elapsed() == 5.0
        assert len(desk.later) == MOST_WAITING


async def test_a_stopping_bridge_refuses_what_is_new_and_answers_what_waits(autojump_clock):
    async with open_desk() as desk:
        desk.fake.latency = 1.0
        desk.ask(1, "1", "USD", NOON)
        desk.bridge.stopping = True
        assert text_of(desk.ask(2, "1", "EUR", NOON)) == "the service is stopping"
        await desk.bridge.wait_settled()
        assert said(desk.later[0])["type"] == "message"


class Fragile(Asked):
    """A source with a bug for one day."""

    async def fetch(self, day, now):
        if day == DAY:
            raise ZeroDivisionError("oops")
        return await super().fetch(day, now)


async def test_a_bug_in_a_source_costs_one_error(autojump_clock):
    async with open_desk(Fragile()) as desk:
        desk.ask(1, "1", "USD", NOON)
        desk.ask(2, "1", "USD", "2026-11-04T12:00:00Z")
        await desk.bridge.wait_settled()
        texts = {reply.id: said(reply)["type"] for reply in desk.later}
        assert texts == {b"1": "error", b"2": "message"}
        assert "oops" not in str(desk.later)


@pytest.mark.parametrize("cached", [False, True])
async def test_a_bug_in_a_request_costs_that_request(cached, autojump_clock, monkeypatch):
    async with open_desk() as desk:
        if cached:
            desk.ask(0, "1", "USD", NOON)
            await desk.bridge.wait_settled()
        bug = ValueError("oops")

        def broken(*_args):
            raise bug

        with monkeypatch.context() as patch:
            patch.setattr("ratebridge.bridge.to_euro", broken)
            at_once = desk.ask(1, "1", "USD", NOON)
            await desk.bridge.wait_settled()
        reply = at_once if cached else desk.later[0]
        assert text_of(reply) == "an internal error, see the service's log"
        assert desk.log.bugs == [bug]
        assert said(desk.ask(2, "1", "USD", NOON))["type"] == "message"


async def test_a_bug_in_reading_costs_that_text(autojump_clock, monkeypatch):
    async with open_desk() as desk:
        bug = ValueError("oops")
        monkeypatch.setattr("ratebridge.shapes.decode", Mock(side_effect=[bug, THE_HEARTBEAT]))
        assert desk.bridge.answer([b"1", b"2"], desk.bridge.moment()) == ([], 1)
        assert desk.log.bugs == [bug]


async def test_nothing_keeps_a_bad_text_until_the_next_collection(autojump_clock):
    """Texts of a mebibyte would fill the memory before the collector counts enough objects."""
    async with open_desk() as desk:
        desk.bridge._observer = Observer()
        gc.disable()
        try:
            texts = [b"?", b"{}", b'{"type":"message","id":1}', b"[" * 101, b"x" * 70_000]
            desk.bridge.answer(texts, desk.bridge.moment())
            kept = [one for one in gc.get_objects() if isinstance(one, Unreadable | Refused)]
        finally:
            gc.enable()
        assert not kept


async def test_requests_that_wait_when_the_service_ends_are_reported(autojump_clock):
    async with open_desk() as desk:
        desk.fake.disturb = lambda _call: HANG
        desk.ask(1, "1", "USD", NOON)
        await trio.sleep(0.1)
        desk.nursery.cancel_scope.cancel()
    assert desk.log.lost == [(b"1", "the service stopped")]
    assert desk.later == []


async def test_a_failure_leaves_room_for_others(autojump_clock):
    """Each that was refused makes room again."""
    async with open_desk("freecurrencyapi") as desk:
        desk.fake.disturb = lambda _call: Fault(status=404)
        for day in ("2026-11-03", "2026-11-04"):
            for i in range(MOST_WAITING):
                assert desk.ask(i, "1", "USD", day) is None
            await desk.bridge.wait_settled()
            assert desk.bridge.waiting == 0
        assert len(desk.later) == 2 * MOST_WAITING
