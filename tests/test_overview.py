"""Readiness, the history, and the data of the status page."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import attrs
import msgspec
import pytest
import trio
import trio.testing
from status_service import NOW, Shop, make_service, table

from ratebridge.errors import LinkFailed, Loss, NoRate, Refusal, SourceFailed
from ratebridge.operating.overview import MOST_SHOWN, SAMPLES, History, overview, readiness
from ratebridge.operating.stats import Stats
from ratebridge.outbox import Reply
from ratebridge.providers.source import Quota

REFUSED = LinkFailed(Loss.REFUSED, "connection refused: nobody listens on that port")
DAY = (NOW - timedelta(days=14)).date()


async def test_before_the_first_link_it_is_not_ready(nursery, autojump_clock):
    service, journal = make_service(nursery)
    await trio.sleep(1.5)
    assert readiness(service, trio.current_time()) == (
        False,
        "no connection yet, 1.5 s after the start",
    )
    journal.link_lost(REFUSED, 0.0, 1.0)
    assert readiness(service, trio.current_time()) == (
        False,
        (
            "no connection yet, 1.5 s after the start: "
            "connection refused: nobody listens on that port"
        ),
    )


async def test_it_is_ready_from_the_first_heartbeat_until_one_is_two_seconds_old(
    nursery, autojump_clock
):
    service, journal = make_service(nursery)
    journal.link_up()
    assert readiness(service, trio.current_time()) == (
        False,
        "the connection is up, but no heartbeat has come on it yet",
    )
    journal.heartbeat_received(0.0)
    beat = trio.current_time()
    assert readiness(service, beat) == (
        True,
        "the connection is up, its last heartbeat came 0.0 s ago",
    )
    assert readiness(service, beat + 1.9375)[0]
    assert readiness(service, beat + 2.0) == (
        False,
        "the connection is up, but its last heartbeat came 2.0 s ago",
    )


async def test_an_audit_file_that_cannot_be_written_is_shown(nursery, autojump_clock):
    service, journal = make_service(nursery)
    audit: Any = SimpleNamespace(failing="No space left on device", waiting=12, lost=3)
    service = attrs.evolve(service, audit=audit)
    seen = overview(service, History(journal.stats), trio.current_time())
    assert seen["audit"] == {"failing": "No space left on device", "waiting": 12, "lost": 3}


async def test_a_lost_link_says_for_how_long_and_why(nursery, autojump_clock):
    service, journal = make_service(nursery)
    journal.link_up()
    journal.heartbeat_received(0.0)
    journal.link_lost(LinkFailed(Loss.CLOSED), 1.0, 0.5)
    await trio.sleep(1)
    assert readiness(service, trio.current_time()) == (False, "no connection for 1.0 s: closed")
    await trio.sleep(2.25)
    journal.link_lost(REFUSED, 0.0, 1.0)
    assert readiness(service, trio.current_time()) == (
        False,
        "no connection for 3.2 s: connection refused: nobody listens on that port",
    )


async def test_a_heartbeat_of_the_link_before_does_not_count(nursery, autojump_clock):
    service, journal = make_service(nursery)
    journal.link_up()
    journal.heartbeat_received(0.0)
    await trio.sleep(0.25)
    journal.link_lost(LinkFailed(Loss.RESET), 0.25, 0.0)
    journal.link_up()
    assert not readiness(service, trio.current_time())[0]


async def test_while_stopping_it_is_not_ready(nursery, autojump_clock):
    service, journal = make_service(nursery)
    journal.link_up()
    journal.heartbeat_received(0.0)
    service.bridge.stopping = True
    assert readiness(service, trio.current_time()) == (False, "stopping")


def answer(stats: Stats, seconds: float) -> None:
    stats.converted += 1
    stats.latency.add(seconds)


def test_a_sample_is_what_happened_since_the_one_before():
    stats = Stats()
    answer(stats, 9.0)
    history = History(stats)
    answer(stats, 0.25)
    answer(stats, 0.75)
    stats.refused["bad-date"] += 1
    stats.latency.add(0.5)
    history.take(2.0)
    history.take(1.0)
    (busy, idle) = history.since(0)
    assert (busy.converted, busy.refused, busy.mean, busy.slowest) == (1.0, 0.5, 0.5, 0.75)
    assert (idle.converted, idle.refused, idle.mean, idle.slowest) == (0.0, 0.0, None, None)


def test_the_history_ends_after_ten_minutes():
    stats = Stats()
    history = History(stats)
    for _ in range(SAMPLES + 5):
        answer(stats, 0.1)
        history.take(1.0)
    assert history.taken == SAMPLES + 5
    assert len(history.since(0)) == SAMPLES


@pytest.mark.parametrize(("seen", "new"), [(0, 3), (1, 2), (3, 0), (4, 0), (10**15, 0)])
def test_a_client_gets_the_samples_it_has_not_seen(seen, new):
    stats = Stats()
    history = History(stats)
    for count in range(1, 4):
        stats.converted += count
        history.take(1.0)
    assert [sample.converted for sample in history.since(seen)] == [1.0, 2.0, 3.0][3 - new :]


async def test_a_sample_is_taken_each_second(nursery, autojump_clock):
    stats = Stats()
    history = History(stats)
    nursery.start_soon(history.keep)
    for _ in range(3):
        await trio.sleep(0.5)
        answer(stats, 0.1)
        await trio.sleep(0.5)
    await trio.sleep(0.25)
    assert [sample.converted for sample in history.since(0)] == [1.0, 1.0, 1.0]
    nursery.cancel_scope.cancel()


async def test_after_a_stall_a_sample_covers_the_stall(nursery, mock_clock):
    stats = Stats()
    history = History(stats)
    nursery.start_soon(history.keep)
    await trio.testing.wait_all_tasks_blocked()
    answer(stats, 0.1)
    mock_clock.jump(4.0)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(1.0)
    await trio.testing.wait_all_tasks_blocked()
    assert [sample.converted for sample in history.since(0)] == [0.25, 0.0]
    nursery.cancel_scope.cancel()


async def test_an_overview_of_a_service_that_has_just_begun(nursery, autojump_clock):
    service, _ = make_service(nursery, feed=None)
    seen = overview(service, History(service.stats), trio.current_time())
    assert seen["feed"] is None
    assert not seen["ready"]
    assert seen["connection"] == {
        "up": False,
        "since": None,
        "age": None,
        "opened": 0,
        "lost": 0,
        "last_ended": None,
        "retry_in": None,
    }
    assert seen["heartbeat"]["gaps"] == []
    assert seen["heartbeat"]["median"] is seen["heartbeat"]["longest"] is None
    assert seen["sources"][0]["state"] == "not asked yet"
    assert seen["tables"] == {"held": 0, "shown": []}
    assert seen["recent_errors"] == []
    assert seen["history"] == {"taken": 0, "samples": []}


async def test_an_overview_names_the_feed_without_its_path(nursery, autojump_clock):
    service, _ = make_service(nursery)
    text = msgspec.json.encode(overview(service, History(service.stats), trio.current_time()))
    assert b'"feed":"feed.example"' in text
    assert b"secret" not in text


async def test_an_overview_of_a_busy_service(nursery, autojump_clock):
    service, journal = make_service(nursery)
    history = History(service.stats)
    journal.link_up()
    for gap in (0.0, 1.0, 1.25, 0.75):
        await trio.sleep(gap)
        journal.heartbeat_received(gap)
    journal.dropped("not-json", b"what")
    refusal = NoRate(Refusal.UNKNOWN_CURRENCY, "currency 'ABC' is not known to shop")
    journal.refused(refusal, b"7", 0.002)
    journal.refused(refusal, b"8", 0.001)
    service.outbox.add(Reply(b"8", b"{}", trio.current_time()))
    service.bridge.waiting = 2
    history.take(1.0)
    seen = overview(service, history, trio.current_time())
    assert (seen["ready"], seen["stopping"]) == (True, False)
    assert seen["now"] == "2021-06-01T12:00:00.000Z"
    assert seen["uptime"] == 3.0
    assert seen["connection"]["since"] == "2021-06-01T11:59:57.000Z"
    assert seen["heartbeat"] == {
        "received": 4,
        "age": 0.0,
        "timeout": 2.0,
        "gaps": [0.0, 1.0, 1.25, 0.75],
        "median": 0.875,
        "longest": 1.25,
    }
    assert seen["messages"] == {
        "converted": 0,
        "refused": {"unknown-currency": 2},
        "dropped": {"not-json": 1},
        "undelivered": 0,
        "waiting": 2,
        "outbox": 1,
        "cache_hits": 0,
        "internal_errors": 0,
    }
    assert seen["audit"] is None
    assert seen["recent_errors"] == [
        {"at": "2021-06-01T12:00:00.000Z", "words": "message dropped: not-json", "count": 1},
        {
            "at": "2021-06-01T12:00:00.000Z",
            "words": "request 8 refused: currency 'ABC' is not known to shop",
            "count": 2,
        },
    ]
    assert seen["history"] == {"taken": 1, "samples": [[0.0, 2.0, 1.5, 2.0]]}
    assert overview(service, history, trio.current_time(), 1)["history"]["samples"] == []


async def test_an_overview_has_the_time_of_the_next_attempt(nursery, autojump_clock):
    service, journal = make_service(nursery)
    history = History(service.stats)
    journal.link_lost(REFUSED, 0.0, 1.5)
    link = overview(service, history, trio.current_time())["connection"]
    assert (link["lost"], link["last_ended"]) == (
        1,
        "connection refused: nobody listens on that port",
    )
    assert link["retry_in"] == 1.5
    await trio.sleep(2)
    assert overview(service, history, trio.current_time())["connection"]["retry_in"] == 0.0
    journal.link_up()
    assert overview(service, history, trio.current_time())["connection"]["retry_in"] is None


async def test_a_source_is_as_its_last_fetch_ended(nursery, autojump_clock):
    service, journal = make_service(nursery)

    def source():
        return overview(service, History(service.stats), trio.current_time())["sources"][0]

    down = SourceFailed("unreachable", "could not be reached")
    journal.fetch_failed("shop", DAY, down)
    assert (source()["state"], source()["failure"]) == ("failed", "could not be reached")
    await trio.sleep(1)
    journal.fetched(table(DAY), 0.25)
    await trio.sleep(180)
    assert (source()["state"], source()["failure"]) == ("succeeded", None)
    assert source()["fetched_ago"] == 180.0, "nobody has asked it since"
    assert (source()["answered"], source()["failed"]) == (1, 1)
    assert (source()["answered_ago"], source()["took"]) == (180.0, 0.25)
    journal.fetch_failed("shop", DAY, SourceFailed("no-table", "has no rates for today"))
    assert (source()["state"], source()["failure"]) == ("incomplete", "has no rates for today")
    assert (source()["fetched_ago"], source()["answered_ago"]) == (0.0, 180.0)
    journal.rate_limited("shop", SourceFailed("quota-month", "has no calls left", limited_for=60.0))
    assert (source()["state"], source()["limited_for"]) == ("rate-limited", 60.0)
    assert source()["failure"] == "has no calls left"
    await trio.sleep(60)
    assert (source()["state"], source()["limited_for"]) == ("incomplete", None)
    assert source()["failure"] == "has no rates for today"
    assert source()["implausible"] == 0
    journal.implausible_quotes("shop", DAY, {"USD": SourceFailed("implausible", "gives it at 9")})
    assert source()["implausible"] == 1


async def test_a_source_that_never_had_a_day_has_failed(nursery, autojump_clock):
    service, journal = make_service(nursery)
    journal.fetch_failed("shop", DAY, SourceFailed("no-table", "has no rates for that day"))
    seen = overview(service, History(service.stats), trio.current_time())
    assert seen["sources"][0]["state"] == "failed"


async def test_a_source_shows_its_quota_and_a_minute_s_for_a_minute(nursery, autojump_clock):
    service, journal = make_service(
        nursery, Shop("one", Quota(9, 4929, 5000)), Shop("two", Quota()), Shop("three")
    )

    def quotas():
        return [
            (source["minute_left"], source["month_left"], source["month_total"])
            for source in overview(service, History(service.stats), trio.current_time())["sources"]
        ]

    assert quotas()[0] == (None, 4929, 5000), "of a minute long ago"
    journal.fetched(table(DAY, "one"), 0.1)
    await trio.sleep(59)
    assert quotas() == [(9, 4929, 5000), (None, None, None), (None, None, None)]
    await trio.sleep(1)
    assert quotas()[0] == (None, 4929, 5000)
    journal.fetch_failed("one", DAY, SourceFailed("quota-minute", "has no calls left"))
    assert quotas()[0] == (9, 4929, 5000)


async def test_tables_of_a_day_stand_in_the_order_of_their_sources(nursery, autojump_clock):
    service, _ = make_service(nursery)
    for day, provider in ((DAY - timedelta(days=1), "a"), (DAY, "b"), (DAY, "a")):
        service.chain.tables.store(table(day, provider), trio.current_time())
    shown = overview(service, History(service.stats), trio.current_time())["tables"]["shown"]
    assert [(held["day"], held["provider"]) for held in shown] == [
        (str(DAY), "a"),
        (str(DAY), "b"),
        (str(DAY - timedelta(days=1)), "a"),
    ]


async def test_the_newest_days_are_shown_and_all_tables_counted(nursery, autojump_clock):
    service, _ = make_service(nursery)
    days = [DAY - timedelta(days=back) for back in range(MOST_SHOWN + 1)]
    for day in (*days[30:], *days[:30]):
        service.chain.tables.store(table(day), trio.current_time())
    await trio.sleep(90)
    tables = overview(service, History(service.stats), trio.current_time())["tables"]
    assert tables["held"] == MOST_SHOWN + 1
    assert [shown["day"] for shown in tables["shown"]] == [str(day) for day in days[:MOST_SHOWN]]
    assert tables["shown"][0] == {
        "day": str(DAY),
        "provider": "shop",
        "currencies": 2,
        "age": 90.0,
        "remark": "",
    }


async def test_of_a_table_that_may_still_change_it_is_told_why(nursery, autojump_clock):
    service, _ = make_service(nursery)
    today, yesterday = NOW.date(), NOW.date() - timedelta(days=1)
    for held in (
        table(today),
        attrs.evolve(table(yesterday), latest=True),
        attrs.evolve(table(yesterday - timedelta(days=1)), fetched=NOW - timedelta(days=2)),
    ):
        service.chain.tables.store(held, trio.current_time())
    shown = overview(service, History(service.stats), trio.current_time())["tables"]["shown"]
    assert [held["remark"] for held in shown] == ["today's", "not final", "not final"]
