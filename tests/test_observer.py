"""The observer: each fact becomes one event, a figure of the metrics, and a part of the page."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import attrs
import pytest
import structlog
import trio
from msgspec.structs import replace
from status_service import NOW, make_service, request, samples, sheet, trail
from structlog.testing import capture_logs

from ratebridge.errors import (
    Drop,
    FetchOutcome,
    LinkFailed,
    Loss,
    NoRate,
    Refusal,
    Refused,
    SourceFailed,
)
from ratebridge.operating.overview import Chart, overview
from ratebridge.rates import FIXED, Rate
from ratebridge.reporting.logs import OFTEN, LineLimit, event_log
from ratebridge.reporting.observer import Observer

DAY = date(2021, 5, 18)
SHEET = sheet(DAY)
RATE = Rate("USD", Decimal("1.2222"), Decimal(1), DAY, DAY, "shop", NOW, cached=True)
BUG = RuntimeError("what")
DOUBTED = dict.fromkeys(("CZK", "USD"), SourceFailed(FetchOutcome.IMPLAUSIBLE, "gives it at 9"))


@pytest.fixture
def log():
    with capture_logs() as events:
        yield events
    structlog.reset_defaults()


@pytest.fixture
def at_info(log):
    """An observer at a level where nobody has asked for every line."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    return Observer(event_log(), lambda: NOW)


@attrs.frozen
class Fact:
    """Calls of the observer, the line that is logged, samples of the metrics ("name value, ..."),
    and parts of the page by their paths."""

    tell: Callable[[Observer], object]
    line: str = ""
    metrics: str = ""
    page: Mapping[str, Any] = attrs.Factory(dict)


def rendered(entry: Mapping[str, Any]) -> str:
    """An event as a line: its level, name and fields."""
    fields = (f"{name}={value}" for name, value in entry.items() if name != "event")
    return " ".join([entry["event"], *fields]).replace("log_level=", "")


def lost(cause: LinkFailed, *, up: bool = True, retry_in: float | None = 0.0625) -> Any:
    def tell(observer: Observer) -> None:
        if up:
            observer.link_up()
        observer.link_lost(cause, 3.0001 if up else 0.0, retry_in)

    return tell


def converted(currency: str, rate: Rate | None) -> Any:
    records = [(request(currency=currency), "1.5", rate, NOW)]
    return lambda observer: observer.converted(records, 0.00031)


def refused(kind: Refusal, text: str) -> Any:
    return lambda observer: observer.refused(Refused(b"7", kind, text), b'"7\x07"', 0.001)


def fetch_failed(outcome: FetchOutcome, text: str, meanwhile: datetime | None = None) -> Any:
    failure = SourceFailed(outcome, text)
    return lambda observer: observer.fetch_failed("shop", "2021-05-18", failure, meanwhile)


def limited(seconds: float | None) -> Any:
    failure = SourceFailed(FetchOutcome.QUOTA_MONTH, "has no calls left", limited_for=seconds)
    return lambda observer: observer.rate_limited("shop", failure)


def recovered(observer: Observer) -> None:
    fetch_failed(FetchOutcome.TIMEOUT, "did not answer")(observer)
    observer.fetched(SHEET, 0.12345)


DONE = "conversion.done id=456 stake=253.67 currency=USD eur=1.5 ms=0.31 rate=1.2222"
DONE += " rate_date=2021-05-18 asked=2021-05-18 provider={} cached={}"
DONE += " fetched=2021-06-01T12:00:00Z{} debug"
FETCHED = "provider=shop asked=2021-05-18 days=1 currencies=2 seconds=0.123"
USED = "did not answer; its answer of 2021-06-01 12:00 UTC is used meanwhile"
LIMITED = "rates.limited provider=shop detail=has no calls left limited_for={} {}"
UNKNOWN = "currency 'BTC' is not known"
FULL = "No space left on device"

FACTS = {
    "a connection is open": Fact(
        lambda observer: observer.link_up(),
        "connection.up connections=1 info",
        "connection_up 1, connections_opened_total 1",
        {"stats.link_up": True, "stats.links_opened": 1, "link_age": 0.0},
    ),
    "a connection is lost": Fact(
        lost(LinkFailed(Loss.CLOSED, "see\nyou", code=1001)),
        r"connection.lost reason=closed detail=see\nyou code=1001 uptime=3.0"
        r" retry_in=0.062 warning",
        "connection_up 0, reconnects_total,reason=closed 1",
        {"stats.link_ended": r"closed, see\nyou", "retry_in": 0.0625},
    ),
    "an attempt failed": Fact(
        lost(LinkFailed(Loss.REJECTED, status=503), up=False),
        "connection.failed reason=rejected status=503 retry_in=0.062 warning",
        "reconnects_total,reason=rejected 1",
        {"link_age": None, "stats.link_ended": "rejected", "stats.lost.rejected": 1},
    ),
    "a connection that we took down is no loss": Fact(
        lost(LinkFailed(Loss.STOPPED), retry_in=None),
        "connection.down reason=stopped uptime=3.0 info",
        "reconnects_total,reason=stopped 0",
        {"stats.lost.stopped": 0},
    ),
    "an attempt that a stop ends": Fact(lost(LinkFailed(Loss.STOPPED), up=False, retry_in=None)),
    "a heartbeat": Fact(
        lambda observer: observer.heartbeat_received(1.0),
        "",
        f"heartbeats_received_total 1, heartbeat_timestamp_seconds {NOW.timestamp()}",
        {"stats.heartbeats": 1, "heartbeat.gaps": [1.0]},
    ),
    "a stall of our own": Fact(
        lambda observer: observer.loop_stalled(3.01234),
        "loop.stalled seconds=3.012 warning",
        "loop_stalls_total 1",
    ),
    "a dropped message is quoted cut short and harmless": Fact(
        lambda observer: observer.dropped(Drop.NOT_JSON, b"\x1b[31m" + b"x" * 5000),
        rf"message.dropped reason=not-json size=5005 begins=\x1b[31m{'x' * 35}... warning",
        "messages_dropped_total,reason=not-json 1",
        {"stats.dropped.not-json": 1},
    ),
    "a conversion": Fact(
        converted("USD", RATE),
        DONE.format("shop", True, ""),
        "conversions_total,outcome=converted 1, "
        "answer_duration_seconds_bucket,le=+Inf 1, answer_duration_seconds_sum 0.00031",
        {"stats.converted": 1},
    ),
    "a conversion by a legal rate": Fact(
        converted("USD", replace(RATE, provider=FIXED, note="by law")),
        DONE.format("fixed", True, " note=by law"),
        "conversions_total,outcome=converted 1",
    ),
    "a conversion from euro has no rate": Fact(
        converted("EUR", None),
        "conversion.done id=456 stake=253.67 currency=EUR eur=1.5 ms=0.31 debug",
        "conversions_total,outcome=converted 1",
    ),
    "an error reply": Fact(
        refused(Refusal.BAD_DATE, "the date is missing"),
        r'conversion.failed id="7\x07" kind=bad-date error=the date is missing warning',
        "conversions_total,outcome=bad-date 1, answer_duration_seconds_count 1",
        {"stats.refused.bad-date": 1, "stats.converted": 0},
    ),
    "a currency that nobody knows is ordinary traffic": Fact(
        refused(Refusal.UNKNOWN_CURRENCY, UNKNOWN),
        rf'conversion.failed id="7\x07" kind=unknown-currency error={UNKNOWN} info',
    ),
    "a reply is undelivered": Fact(
        lambda observer: observer.undelivered(b"7", "it was too old"),
        "reply.undelivered id=7 why=it was too old warning",
        "replies_undelivered_total 1",
        {"stats.undelivered": 1},
    ),
    "a source answered": Fact(
        lambda observer: observer.fetched(SHEET, 0.12345),
        f"rates.fetched {FETCHED} info",
        "fetches_total,outcome=ok,provider=shop 1, "
        "fetch_duration_seconds_bucket,le=0.1,provider=shop 0, "
        "fetch_duration_seconds_bucket,le=0.25,provider=shop 1, "
        f"fetch_success_timestamp_seconds,provider=shop {NOW.timestamp()}",
        {"sources.0.state": "succeeded", "sources.0.answered": 1, "sources.0.took": 0.12345},
    ),
    "a source answered after a failure": Fact(
        recovered,
        f"rates.recovered {FETCHED} after=did not answer warning",
        "fetches_total,outcome=timeout,provider=shop 1",
        {"sources.0.state": "succeeded", "sources.0.failed": 1, "sources.0.failure": ""},
    ),
    "a fetch failed": Fact(
        fetch_failed(FetchOutcome.TIMEOUT, "did not answer", NOW),
        f"rates.failed kind=timeout provider=shop asked=2021-05-18 detail={USED} warning",
        "fetches_total,outcome=timeout,provider=shop 1",
        {"sources.0.state": "failed", "sources.0.failure": USED},
    ),
    "a refused key is an error": Fact(
        fetch_failed(FetchOutcome.REFUSED_KEY, "refuses the key"),
        "rates.failed kind=refused-key provider=shop asked=2021-05-18 detail=refuses the key error",
    ),
    "a source is limited for long": Fact(
        limited(3600.0),
        LIMITED.format(3600.0, "error"),
        "",
        {"sources.0.state": "rate-limited", "sources.0.limited_for": 3600.0},
    ),
    "a source is limited for no time": Fact(
        limited(None), LIMITED.format(0.0, "warning"), "", {"sources.0.state": "not asked yet"}
    ),
    "quotes are implausible": Fact(
        lambda observer: observer.implausible_quotes("shop", DAY, DOUBTED),
        "rates.implausible provider=shop day=2021-05-18 currencies=2 first=CZK"
        " detail=gives it at 9 off=RATEBRIDGE_PLAUSIBILITY=off lets them through warning",
        "implausible_quotes_total,provider=shop 2",
        {"sources.0.implausible": 2},
    ),
    "the clock jumped": Fact(
        lambda observer: observer.clock_jumped(-3600.04),
        "clock.jumped seconds=-3600.0 warning",
        "clock_jumps_total 1",
    ),
    "our clock is behind": Fact(
        lambda observer: observer.clock_differs("shop", -90.04),
        "clock.differs provider=shop seconds=-90.0 warning",
    ),
    "the audit file cannot be written": Fact(
        lambda observer: observer.audit_failed(FULL, 12),
        f"audit.failed detail={FULL} waiting=12 error",
    ),
    "audit lines are lost": Fact(
        lambda observer: observer.audit_lost(3, "too many wait"),
        "audit.lost lines=3 why=too many wait error",
    ),
    "the audit file is written again": Fact(
        lambda observer: observer.audit_recovered(3), "audit.recovered lost=3 warning"
    ),
    "the audit file was reopened": Fact(
        lambda observer: observer.audit_reopened(), "audit.reopened audit_head=3:abc info"
    ),
    "a bug": Fact(
        lambda observer: observer.internal_error("session", BUG),
        "internal_error where=session exc_info=what error",
        "internal_errors_total 1",
        {"stats.internal_errors": 1},
    ),
}


@pytest.mark.parametrize("fact", FACTS.values(), ids=FACTS)
async def test_a_fact_is_logged_counted_and_shown(fact, nursery, log, autojump_clock):
    service, observer = make_service(nursery)
    observer.audit = trail(head="3:abc", add=lambda _: None)
    fact.tell(observer)
    assert [rendered(entry) for entry in log[-1:]] == [fact.line] * bool(fact.line)
    found = samples(service)
    for sample in filter(None, fact.metrics.split(", ")):
        name, value = sample.split(" ")
        assert found[f"ratebridge_{name}"] == float(value), name
    page: Any = overview(service, Chart(service.stats), trio.current_time())
    for path, value in fact.page.items():
        part = page
        for member in path.split("."):
            part = part[int(member) if member.isdecimal() else member]
        assert part == value, path
    errors = [(error["event"], error["words"], error["count"]) for error in page["recent_errors"]]
    assert errors == [(e["event"], words(e), 1) for e in log if e["event"] not in NO_ERRORS]


NO_ERRORS = {"connection.up", "connection.down", "rates.fetched", "rates.recovered"}
NO_ERRORS |= {"conversion.done", "audit.recovered", "audit.reopened"}


def words(entry: Mapping[str, Any]) -> str:
    """The fields of an event as the page has them; a traceback is in the log only."""
    others = ("event", "log_level", "exc_info")
    return ", ".join(f"{name} {value}" for name, value in entry.items() if name not in others)


TELL: dict[type, tuple[str, Any]] = {
    Loss: ("reconnects_total,reason={}", lambda word: lost(LinkFailed(word), up=False)),
    Drop: ("messages_dropped_total,reason={}", lambda word: lambda one: one.dropped(word, b"")),
    Refusal: ("conversions_total,outcome={}", lambda word: refused(word, "no rate")),
    FetchOutcome: ("fetches_total,outcome={},provider=shop", lambda word: fetch_failed(word, "")),
}


@pytest.mark.parametrize("words", TELL)
async def test_each_word_counts_from_zero_under_its_name(words, nursery, log, autojump_clock):
    service, observer = make_service(nursery)
    name, tell = TELL[words]
    counters = {word: f"ratebridge_{name.format(word)}" for word in words}
    before = samples(service)
    assert [word for word in words if before[counters[word]] != 0] == []
    for times, word in enumerate(words):
        for _ in range(times):
            tell(word)(observer)
    after = samples(service)
    assert [after[counters[word]] for word in words] == list(range(len(words)))
    assert after.keys() == before.keys(), "no text of a peer is a label"


async def test_a_failed_fetch_is_shown_until_the_source_answers_again(log, autojump_clock):
    observer = Observer(event_log())
    recovered(observer)
    observer.fetched(SHEET, 0.1)
    fetch_failed(FetchOutcome.NO_TABLE, "has no rates for that day")(observer)  # of that day only
    observer.fetched(SHEET, 0.1)
    assert [entry["event"].removeprefix("rates.") for entry in log] == [
        *("failed", "recovered", "fetched", "failed", "fetched")
    ]


async def test_a_fetch_that_a_limit_ends_has_no_second_line(log, autojump_clock):
    observer = Observer(event_log())
    limit = SourceFailed(FetchOutcome.QUOTA_MINUTE, "has no calls left", limited_for=30.0)
    observer.rate_limited("shop", limit)
    observer.fetch_failed("shop", "2021-05", limit, None)
    fetch_failed(FetchOutcome.TIMEOUT, "did not answer")(observer)
    observer.fetch_failed("bank", "2021-05", limit, None)
    assert [event["event"] for event in log] == ["rates.limited", *["rates.failed"] * 2]
    assert observer.stats.sources["shop"].fetches[FetchOutcome.QUOTA_MINUTE] == 1


async def test_a_summary_counts_the_last_minute(log, autojump_clock):
    observer = Observer(event_log())
    observer.link_up()
    for minute, count in enumerate((3, 2)):
        observer.converted([(request(currency="EUR"), "1", None, NOW)] * count, 0.001)
        observer.refused(NoRate(Refusal.UNAVAILABLE, "no rate"), b"1", 0.001)
        if minute:
            observer.dropped(Drop.NOT_JSON, b"what")
            observer.undelivered(b"7", "it was too old")
            observer.link_lost(LinkFailed(Loss.RESET), 1.0, 0.1)
            observer.audit = trail(waiting=12, head="3:abc")
        observer.summarize(waiting=4, outbox=5, sheets=6)
    common = {"event": "summary", "log_level": "info", "refused": 1, "waiting": 4, "outbox": 5}
    common |= {"sheets": 6, "connections": 1}
    audit = {"audit_waiting": 12, "audit_head": "3:abc"}
    assert [entry for entry in log if entry["event"] == "summary"] == [
        {**common, "connection": "up", "converted": 3, "dropped": 0, "undelivered": 0},
        {**common, **audit, "connection": "down", "converted": 2, "dropped": 1, "undelivered": 1},
    ]


# No peer can fill the log.


async def test_no_kind_of_line_comes_more_than_ten_times_in_any_minute(
    at_info, log, autojump_clock
):
    at_info.audit = trail(add=lambda _: None)
    lines: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
    kinds = ("event", "reason", "kind", "provider", "where")
    for _ in range(60):
        for fact in (*FACTS.values(), FACTS["a source answered"]):
            fact.tell(at_info)
        for entry in log:
            lines[tuple(str(entry.get(kind)) for kind in kinds)].append(trio.current_time())
        log.clear()
        await trio.sleep(3.5)
    assert {kind[0] for kind in lines} == {
        fact.line.split(" ")[0] for fact in FACTS.values() if not fact.line.endswith("debug")
    } - {""}
    for times in lines.values():
        for begin in times:
            assert sum(0 <= at - begin < 60 for at in times) <= 10
        assert len(times) >= 2 * OFTEN, "and the minutes after are told of as well"


async def test_what_is_held_back_is_counted_and_the_ids_have_their_ends(
    at_info, log, autojump_clock
):
    for number in range(1000):
        at_info.undelivered(b"%d" % number, "it was too old")
    assert len(at_info._unlogged_ids) == 2, "however many there are"
    for _ in range(OFTEN + 2):
        at_info.dropped(Drop.NOT_JSON, b"what")
    at_info.dropped(Drop.NO_ID, b"another kind")
    assert [event["id"] for event in log if "id" in event] == [*map(str, range(OFTEN))]
    begins = [event["begins"] for event in log if "begins" in event]
    assert begins == [*["what"] * OFTEN, "another kind"]
    log.clear()
    at_info.summarize(waiting=0, outbox=0, sheets=0)
    held = {"reply.undelivered": 990, "message.dropped not-json": 2}
    ends = {"first_undelivered": "10", "last_undelivered": "999"}
    assert log[1:] == [{"event": "log.limited", "log_level": "warning", "lines": held, **ends}]
    at_info.summarize(waiting=0, outbox=0, sheets=0)
    assert len(log) == 3, "it is told once"
    at_info.undelivered(b"last", "the service stopped")
    await at_info.aclose()
    assert log[3]["lines"] == {"reply.undelivered": 1}
    assert (log[3]["first_undelivered"], log[3]["last_undelivered"]) == ("last", "last")
    assert [error.count for error in at_info.stats.recent_errors.values()] == [1001, 12, 1]


@pytest.mark.parametrize("level", ["info", "warning", "error"])
async def test_what_is_held_back_is_counted_at_its_own_level(log, level):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    observer = Observer(event_log())
    for _ in range(OFTEN + 1):
        if level == "error":
            observer.internal_error("bank", BUG)
        else:
            observer.refused(NoRate(Refusal.UNKNOWN_CURRENCY, "not known"), b"1", 0.001)
    await observer.aclose()
    held = [entry["log_level"] for entry in log if entry["event"] == "log.limited"]
    assert held == [level] * (level != "warning"), "at warning there were none"


async def test_what_the_libraries_say_too_often_is_counted_too(at_info, log, monkeypatch):
    library_limit = LineLimit()
    monkeypatch.setattr("ratebridge.reporting.observer.library_limit", library_limit)
    for _ in range(OFTEN + 3):
        library_limit.admit("library h11", 0.0)
    await at_info.aclose()
    assert (log[0]["lines"], log[0]["log_level"]) == ({"library h11": 3}, "warning")


async def test_at_debug_every_line_is_written(log, autojump_clock):
    observer = Observer(event_log())
    for number in range(OFTEN + 5):
        observer.undelivered(b"%d" % number, "it was too old")
    await observer.aclose()
    assert log.pop()["event"] == "service.stopped"
    assert [event["id"] for event in log] == [*map(str, range(OFTEN + 5))]
    assert [event["log_level"] for event in log] == ["warning"] * OFTEN + ["debug"] * 5
