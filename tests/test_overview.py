"""Readiness, the history, and the data of the status page."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from msgspec.structs import replace
from status_service import NOW, Shop, make_service, request, sheet, trail

from ratebridge.errors import Drop, FetchOutcome, LinkFailed, Loss, NoRate, Refusal, SourceFailed
from ratebridge.operating.overview import (
    FAILED_FOR,
    SAMPLES,
    Chart,
    Service,
    Status,
    overview,
    readiness,
)
from ratebridge.providers.source import Quota
from ratebridge.rates import Rate
from ratebridge.reporting.stats import Stats

REFUSED = LinkFailed(Loss.REFUSED, "nobody listens on that port")
DAY = (NOW - timedelta(days=14)).date()
UP = "the connection is up, its last heartbeat came {} s ago"


def state(service: Service) -> tuple[Status, str]:
    return readiness(service, trio.current_time())


def page(service: Service, taken: int = 0) -> dict[str, Any]:
    return overview(service, Chart(service.stats), trio.current_time(), taken)


# Readiness.


async def test_readiness_says_why(nursery, autojump_clock):
    service, observer = make_service(nursery)
    await trio.sleep(1.5)
    first = "no connection yet, 1.5 s after the start"
    assert state(service) == ("not ready", first)
    observer.link_lost(REFUSED, 0.0, 1.0)
    assert state(service) == ("not ready", f"{first}: refused, {REFUSED.detail}")
    observer.link_up()
    none_yet = "the connection is up, but no heartbeat has come on it yet"
    assert state(service) == ("not ready", none_yet)
    observer.heartbeat_received(0.0)
    assert state(service) == ("ready", UP.format("0.0"))
    await trio.sleep(1.9375)
    assert state(service) == ("ready", UP.format("1.9"))
    await trio.sleep(0.0625)
    late = "the connection is up, but its last heartbeat came 2.0 s ago"
    assert state(service) == ("not ready", late)
    observer.link_lost(LinkFailed(Loss.CLOSED), 1.0, 0.5)
    await trio.sleep(3.25)
    assert state(service) == ("not ready", "no connection for 3.2 s: closed")
    observer.link_lost(REFUSED, 0.0, 1.0)
    assert state(service) == ("not ready", f"no connection for 3.2 s: refused, {REFUSED.detail}")
    observer.link_up()
    assert state(service) == ("not ready", none_yet), "that of the link before does not count"
    service.bridge.stopping = True
    assert state(service) == ("stopping", "stopping")


@pytest.mark.parametrize("kind", Refusal)
async def test_requests_that_fail_through_no_fault_of_theirs_degrade_it(
    kind, nursery, autojump_clock
):
    service, observer = make_service(nursery)
    observer.link_up()
    observer.heartbeat_received(0.0)
    observer.refused(NoRate(kind, "no rate for 'USD'"), b"1", 5.0)
    ours = kind in (Refusal.UNAVAILABLE, Refusal.OVERLOADED, Refusal.INTERNAL_ERROR)
    failing = ("degraded", f"{UP.format('0.0')}, but requests fail: no rate for 'USD'")
    well = ("ready", UP.format("0.0"))
    assert state(service) == (failing if ours else well)
    assert page(service)["status"] == state(service)[0]
    observer.fetch_failed("shop", str(DAY), SourceFailed(FetchOutcome.TIMEOUT, "is slow"), None)
    assert state(service) == (failing if ours else well)
    observer.fetched(sheet(DAY), 0.1)
    assert state(service) == well, "at once, with the next good fetch"
    observer.refused(NoRate(kind, "no rate"), b"1", 5.0)
    await trio.sleep(FAILED_FOR)
    observer.heartbeat_received(1.0)
    assert state(service) == well, "nobody has asked since"


async def test_an_audit_file_that_cannot_be_written_degrades_it(nursery, autojump_clock):
    audit = trail(failing="No space left on device", waiting=12, lost=3)
    service, observer = make_service(nursery, audit=audit)
    assert state(service)[0] == "not ready"
    observer.link_up()
    observer.heartbeat_received(0.0)
    why = f"{UP.format('0.0')}, but the audit file cannot be written: No space left on device"
    assert state(service) == ("degraded", why)
    assert page(service)["audit"] == {"failing": audit.failing, "waiting": 12, "lost": 3}
    audit.failing = None
    assert state(service)[0] == "ready"


# The history.


def answer(stats: Stats, *seconds: float) -> None:
    stats.converted += len(seconds)
    for one in seconds:
        stats.latency.add(one)


def test_a_sample_is_what_happened_since_the_one_before_and_ten_minutes_are_kept():
    stats = Stats()
    answer(stats, 9.0)
    history = Chart(stats)
    answer(stats, 0.25, 0.75)
    stats.refused[Refusal.BAD_DATE] += 1
    stats.latency.add(0.5)
    history.take(2.0)
    history.take(1.0)
    assert history.since(0) == [[1.0, 0.5, 500.0, 750.0], [0.0, 0.0, None, None]]
    for _ in range(SAMPLES + 3):
        history.take(1.0)
    assert (history.taken, len(history.since(0))) == (SAMPLES + 5, SAMPLES)


async def test_a_sample_is_taken_each_second_and_covers_a_stall(nursery, mock_clock):
    stats = Stats()
    history = Chart(stats)
    nursery.start_soon(history.keep)
    await trio.testing.wait_all_tasks_blocked()
    for seconds in (1.0, 4.0, 1.0):
        answer(stats, 0.1)
        mock_clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()
    assert [sample[0] for sample in history.since(0)] == [1.0, 0.25, 1.0]
    nursery.cancel_scope.cancel()


# The page.


async def test_an_overview_of_a_busy_service(nursery, autojump_clock):
    service, observer = make_service(nursery)
    history = Chart(service.stats)
    observer.link_up()
    for gap in (0.0, 1.0, 1.25, 0.75):
        await trio.sleep(gap)
        observer.heartbeat_received(gap)
    observer.dropped(Drop.NOT_JSON, b"what")
    observer.utc_now = lambda: NOW + timedelta(seconds=1)
    observer.refused(NoRate(Refusal.UNKNOWN_CURRENCY, "not known"), b"8", 0.002)
    service.bridge.waiting = 2
    history.take(1.0)
    seen = overview(service, history, trio.current_time())
    assert {
        "now": "2021-06-01T12:00:00.000Z",
        "feed": "feed.example",  # without its path, which may be a secret
        "uptime": 3.0,
        "link_age": 3.0,
        "heartbeat": {"age": 0.0, "timeout": 2.0, "gaps": [0.0, 1.0, 1.25, 0.75]},
        "waiting": 2,
        "outbox": 0,
        "taken": 1,
        "samples": [[0.0, 1.0, 2.0, 2.0]],
    }.items() <= seen.items()
    events = [error["event"] for error in seen["recent_errors"]]
    assert events == ["conversion.failed", "message.dropped"], "the newest first"
    assert overview(service, history, trio.current_time(), 1)["samples"] == []
    assert b"secret" not in msgspec.json.encode(seen)


async def test_a_source_is_as_its_last_fetch_ended(nursery, autojump_clock):
    service, observer = make_service(nursery)
    lacks = SourceFailed(FetchOutcome.NO_TABLE, "has no rates")
    limit = SourceFailed(FetchOutcome.QUOTA_MONTH, "has no calls", limited_for=60.0)

    def source() -> list[Any]:
        names = ("state", "failure", "fetched_ago", "answered_ago")
        return [page(service)["sources"][0][name] for name in names]

    observer.fetch_failed("shop", str(DAY), lacks, None)
    assert source() == ["failed", "has no rates", 0.0, None], "it never had one"
    await trio.sleep(1)
    observer.fetched(sheet(DAY), 0.25)
    await trio.sleep(180)
    assert source() == ["succeeded", "", 180.0, 180.0], "nobody has asked it since"
    observer.fetch_failed("shop", str(DAY), lacks, None)
    assert source() == ["incomplete", "has no rates", 0.0, 180.0]
    observer.rate_limited("shop", limit)
    assert source()[:2] == ["rate-limited", "has no calls"]
    await trio.sleep(60)
    assert source() == ["incomplete", "has no rates", 60.0, 240.0]


async def test_a_source_shows_its_quota(nursery, autojump_clock):
    shops = Shop("one", Quota(4929, 5000)), Shop("two", Quota()), Shop("three")
    service, _ = make_service(nursery, *shops)
    quotas = [(one["month_left"], one["month_total"]) for one in page(service)["sources"]]
    assert quotas == [(4929, 5000), (None, None), (None, None)]


async def test_each_currency_has_its_volume_and_the_rate_last_used(nursery, autojump_clock):
    service, observer = make_service(nursery)
    used = Rate("GBP", Decimal("0.86"), Decimal(1), DAY, NOW.date(), "bank", NOW, cached=True)
    old = replace(used, units=Decimal(9))
    for currency, euro, rate in (("EUR", "1", None), ("GBP", "2.5", old), ("GBP", "0.25", used)):
        observer.converted([(request(currency=currency), euro, rate, NOW)], 0.001)
    gbp = {"currency": "GBP", "converted": 2, "euros": 2.75, "text": "0.86", "provider": "bank"}
    assert page(service)["currencies"] == [
        gbp | {"day": str(DAY), "asked": "2021-06-01"},
        {"currency": "EUR", "converted": 1, "euros": 1.0},
    ]
