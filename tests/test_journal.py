"""The journal: each fact becomes one event with the fields that an operator needs, and a figure."""

from datetime import UTC, date, datetime
from decimal import Decimal
from types import SimpleNamespace

import pytest
import structlog
import trio
from msgspec.structs import replace
from ratebridge.operating.journal import Journal
from structlog.testing import capture_logs
from support import CLOCK_START

from ratebridge.errors import LinkFailed, Loss, NoRate, Refusal, Refused, SourceFailed
from ratebridge.messages import Request, decode
from ratebridge.operating.logs import MINUTE, OFTEN, LineLimit
from ratebridge.operating.stats import RecentError, Stats
from ratebridge.rates import Quote, Rate, RateTable

NOW = datetime(2021, 6, 1, 12, tzinfo=UTC)
DAY = date(2021, 5, 18)
TABLE = RateTable("bank", DAY, {"EUR": Quote(Decimal(1), DAY), "USD": Quote(Decimal(2), DAY)}, NOW)
RATE = Rate("USD", Decimal("1.2222"), Decimal(1), DAY, DAY, "bank", NOW, cached=True)


@pytest.fixture
def log():
    with capture_logs() as events:
        yield events
    structlog.reset_defaults()


@pytest.fixture
def journal(log):
    return Journal(Stats(), lambda: NOW)


def request(currency: str = "USD") -> Request:
    text = (
        '{"type":"message","id":456,"payload":{"stake":253.67,"currency":"%s",'
        '"date":"2021-05-18T21:32:42.324Z"}}'
    )
    message = decode((text % currency).encode())
    assert isinstance(message, Request)
    return message


# The link.


async def test_a_link_comes_up(journal, log, autojump_clock):
    journal.link_up()
    assert log == [{"event": "connection.up", "log_level": "info", "connections": 1}]
    assert journal.stats.link_up
    assert journal.stats.link_since == trio.current_time()


async def test_a_link_is_lost(journal, log, autojump_clock):
    journal.link_up()
    await trio.sleep(3)
    end = LinkFailed(Loss.CLOSED, "see\nyou", code=1001)
    journal.link_lost(end, 3.0001, 0.08)
    assert log[1:] == [
        {
            "event": "connection.lost",
            "log_level": "warning",
            "reason": "closed",
            "detail": r"see\nyou",
            "code": 1001,
            "uptime": 3.0,
            "retry_in": 0.08,
        }
    ]
    stats = journal.stats
    assert (stats.link_up, stats.link_since) == (False, trio.current_time())
    assert (stats.link_ended, stats.lost) == (r"closed, see\nyou", {"closed": 1})
    assert stats.retry_at == trio.current_time() + 0.08
    assert [error.words for error in stats.recent_errors.values()] == [
        r"connection lost: closed, see\nyou"
    ]


async def test_a_failed_attempt_keeps_the_time_of_the_last_connection(journal, log, autojump_clock):
    await trio.sleep(1)
    journal.link_lost(LinkFailed(Loss.REJECTED, status=503), 0.0, 0.5)
    assert log == [
        {
            "event": "connection.failed",
            "log_level": "warning",
            "reason": "rejected",
            "status": 503,
            "retry_in": 0.5,
        }
    ]
    assert journal.stats.link_since is None
    assert journal.stats.link_ended == "rejected"


async def test_a_link_that_we_took_down_is_no_loss(journal, log, autojump_clock):
    journal.link_up()
    journal.link_lost(LinkFailed(Loss.STOPPED), 1.0, None)
    assert log[1:] == [
        {"event": "connection.down", "log_level": "info", "reason": "stopped", "uptime": 1.0}
    ]
    assert not journal.stats.lost
    assert not journal.stats.recent_errors
    journal.link_lost(LinkFailed(Loss.STOPPED), 0.0, None)
    assert len(log) == 2, "an attempt that a stop ends is not told"


async def test_heartbeats_are_counted_and_not_logged(journal, log, autojump_clock):
    await trio.sleep(1)
    journal.heartbeat_received(1.0)
    assert log == []
    assert (journal.stats.heartbeats, journal.stats.heartbeat_at) == (1, CLOCK_START + 1.0)
    assert list(journal.stats.heartbeat_gaps) == [1.0]


async def test_a_stall_of_our_own_is_logged(journal, log):
    journal.loop_stalled(3.01234)
    assert log == [{"event": "loop.stalled", "log_level": "warning", "our_own_stall": 3.012}]


# The messages.


async def test_a_dropped_message_is_quoted_cut_short_and_harmless(journal, log):
    journal.dropped("not-json", b"\x1b[31m" + b"x" * 5000)
    (event,) = log
    assert event["event"] == "message.dropped"
    assert (event["reason"], event["size"]) == ("not-json", 5005)
    assert event["begins"].startswith(r"\x1b[31mxxx")
    assert len(event["begins"]) < 60
    assert journal.stats.dropped == {"not-json": 1}


async def test_above_debug_a_conversion_is_counted_and_silent(log):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    journal = Journal(Stats())
    rates = (RATE, replace(RATE, cached=False))
    journal.converted([(request(), "207.55", rate, NOW) for rate in rates], 0.0003)
    assert log == []
    assert (journal.stats.converted, journal.stats.from_cache) == (2, 1)
    assert sum(journal.stats.latency.counts) == 2


async def test_at_debug_a_conversion_is_logged_with_its_rates_provenance(journal, log):
    journal.converted([(request(), "207.55196", RATE, NOW)], 0.00031)
    assert log == [
        {
            "event": "conversion.done",
            "log_level": "debug",
            "id": "456",
            "stake": "253.67",
            "currency": "USD",
            "eur": "207.55196",
            "ms": 0.31,
            "rate": "1.2222",
            "rate_date": "2021-05-18",
            "asked": "2021-05-18",
            "provider": "bank",
            "fetched": "2021-06-01T12:00:00Z",
            "cached": True,
        }
    ]


async def test_at_debug_a_rate_that_is_unusual_says_why(journal, log):
    rate = replace(RATE, note="by law")
    journal.converted([(request(), "207.55196", rate, NOW)], 0.0003)
    assert log[0]["note"] == "by law"


async def test_a_conversion_from_euro_has_no_rate_and_is_no_hit(journal, log):
    journal.converted([(request("EUR"), "253.67", None, NOW)], 0.0003)
    assert "rate" not in log[0]
    assert (journal.stats.converted, journal.stats.from_cache) == (1, 0)


async def test_every_conversion_goes_to_the_audit_trail(journal):
    class Trail:
        def __init__(self) -> None:
            self.lines: list[object] = []

        def add(self, lines: list[object]) -> None:
            self.lines += lines

    journal.audit = Trail()
    asked = request()
    journal.converted([(asked, "207.55", RATE, NOW)], 0.0003)
    assert journal.audit.lines == [(asked, "207.55", RATE, NOW)]


@pytest.mark.parametrize(
    "problem",
    [Refused(b"7", Refusal.BAD_DATE, "the date is missing"), NoRate(Refusal.BAD_DATE, "no, no")],
)
async def test_a_refusal_is_logged_with_the_id_and_the_error(journal, log, problem):
    journal.refused(problem, b'"7\x07"', 0.001)
    assert log == [
        {
            "event": "conversion.failed",
            "log_level": "warning",
            "id": r'"7\x07"',
            "kind": "bad-date",
            "error": problem.text,
        }
    ]
    assert journal.stats.refused == {"bad-date": 1}
    assert sum(journal.stats.latency.counts) == 1


async def test_an_unknown_currency_is_ordinary_traffic(log):
    """A third of the recorded traffic: no warning, and nothing to hold back at that level."""
    problem = NoRate(Refusal.UNKNOWN_CURRENCY, "currency 'BTC' is not known to bank")
    for level, written in (
        ("info", ["conversion.failed"] * OFTEN + ["log.limited"]),
        ("warning", []),
    ):
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
        journal = Journal(Stats(), lambda: NOW)
        for _ in range(OFTEN + 1):
            journal.refused(problem, b"1", 0.001)
        await journal.aclose()
        assert [event["event"] for event in log if event["event"] != "service.stopped"] == written
        assert {event["log_level"] for event in log} <= {"info"}
        assert journal.stats.refused == {"unknown-currency": OFTEN + 1}
        log.clear()


async def test_errors_held_back_are_counted_at_the_level_error(log):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    journal = Journal(Stats(), lambda: NOW)
    for _ in range(OFTEN + 1):
        journal.internal_error("bank", RuntimeError())
    await journal.aclose()
    assert log[OFTEN:] == [
        {"event": "log.limited", "log_level": "error", "lines": {"internal_error bank": 1}}
    ]


async def test_an_undelivered_reply_is_logged_with_its_id(journal, log):
    journal.undelivered(b"7", "it was too old")
    assert log == [
        {
            "event": "reply.undelivered",
            "log_level": "warning",
            "id": "7",
            "why": "it was too old",
        }
    ]
    assert journal.stats.undelivered == 1


# The rates.


async def test_a_fetched_table_is_logged(journal, log, autojump_clock):
    await trio.sleep(2)
    journal.fetched(TABLE, 0.12345)
    assert log == [
        {
            "event": "rates.fetched",
            "log_level": "info",
            "provider": "bank",
            "day": "2021-05-18",
            "currencies": 2,
            "seconds": 0.123,
        }
    ]
    assert journal.stats.fetches == {("bank", "ok"): 1}
    assert journal.stats.sources["bank"].answered_at == CLOCK_START + 2.0


async def test_a_failed_fetch_is_shown_until_the_source_answers_again(journal, log, autojump_clock):
    journal.fetch_failed("bank", DAY, SourceFailed("timeout", "did not answer within 5 s"))
    assert log == [
        {
            "event": "rates.failed",
            "log_level": "warning",
            "kind": "timeout",
            "provider": "bank",
            "day": "2021-05-18",
            "detail": "did not answer within 5 s",
        }
    ]
    assert journal.stats.fetches == {("bank", "timeout"): 1}
    assert journal.stats.sources["bank"].failure == "did not answer within 5 s"
    journal.fetched(TABLE, 0.1)
    assert log[1:] == [
        {
            "event": "rates.recovered",
            "log_level": "warning",
            "provider": "bank",
            "day": "2021-05-18",
            "currencies": 2,
            "seconds": 0.1,
            "after": "did not answer within 5 s",
        }
    ]
    assert journal.stats.sources["bank"].failure == ""
    journal.fetched(TABLE, 0.1)
    assert log[-1]["event"] == "rates.fetched"


async def test_a_refused_key_is_an_error(journal, log, autojump_clock):
    journal.fetch_failed("bank", DAY, SourceFailed("refused-key", "did not accept the key"))
    assert [(event["event"], event["log_level"]) for event in log] == [("rates.failed", "error")]


async def test_a_day_that_a_source_lacked_is_nothing_to_recover_from(journal, log, autojump_clock):
    journal.fetch_failed("bank", DAY, SourceFailed("no-table", "has no rates for that day"))
    journal.fetched(TABLE, 0.1)
    assert log[-1]["event"] == "rates.fetched"


@pytest.mark.parametrize(
    ("limited_for", "seconds", "level"),
    [(864_000.0, 864_000.0, "error"), (59.96, 60.0, "warning"), (None, 0.0, "warning")],
)
async def test_a_source_limited_for_long_is_an_error_in_the_log_for_a_minute_a_warning(
    journal, log, limited_for, seconds, level, autojump_clock
):
    journal.rate_limited(
        "bank", SourceFailed("quota-month", "has no calls left", limited_for=limited_for)
    )
    assert log == [
        {
            "event": "rates.limited",
            "log_level": level,
            "provider": "bank",
            "detail": "has no calls left",
            "limited_for": seconds,
        }
    ]
    assert journal.stats.sources["bank"].limited_until == CLOCK_START + (limited_for or 0.0)
    [kept] = journal.stats.recent_errors.values()
    assert kept.words == "bank has no calls left"


async def test_a_fetch_that_a_limit_ends_has_no_second_line(journal, log, autojump_clock):
    limit = SourceFailed("quota-minute", "has no calls left", limited_for=30.0)
    journal.rate_limited("bank", limit)
    journal.fetch_failed("bank", DAY, limit)
    journal.fetch_failed("bank", DAY, SourceFailed("timeout", "did not answer"))
    journal.fetch_failed("shop", DAY, SourceFailed("http-429", "is busy", limited_for=0.5))
    assert [(event["event"], event["detail"]) for event in log] == [
        ("rates.limited", "has no calls left"),
        ("rates.failed", "did not answer"),
        ("rates.failed", "is busy"),
    ]
    assert journal.stats.fetches["bank", "quota-minute"] == 1


async def test_implausible_quotes_are_counted_and_the_first_is_logged(journal, log):
    wrong = {code: SourceFailed("implausible", "gives it at 9") for code in ("CZK", "USD")}
    journal.implausible_quotes("bank", TABLE.day, wrong)
    assert log == [
        {
            "event": "rates.implausible",
            "log_level": "warning",
            "provider": "bank",
            "day": str(TABLE.day),
            "currencies": 2,
            "first": "CZK",
            "detail": "gives it at 9",
        }
    ]
    assert journal.stats.implausible == {"bank": 2}
    journal.implausible_quotes("another", TABLE.day, {"USD": wrong["USD"]})
    assert [kept.words for kept in journal.stats.recent_errors.values()] == [
        f"bank gives it at 9: CZK on {TABLE.day}, and 1 more",
        f"another gives it at 9: USD on {TABLE.day}",
    ]


async def test_clocks_that_jump_or_differ_are_logged(journal, log):
    journal.clock_jumped(-3600.04)
    journal.clock_differs("bank", 90.0)
    journal.clock_differs("fund", -90.0)
    assert [(line["event"], line.get("provider"), line["seconds"]) for line in log] == [
        ("clock.jumped", None, -3600.0),
        ("clock.differs", "bank", 90.0),
        ("clock.differs", "fund", -90.0),
    ]
    assert [kept.words for kept in journal.stats.recent_errors.values()] == [
        "the wall clock moved by -3600 s",
        "our clock is 90 s ahead of bank's",
        "our clock is 90 s behind fund's",
    ]


# Bugs, summaries.


async def test_a_bug_is_logged_with_its_trace(journal, log):
    where = "session"
    bug = RuntimeError("what")
    journal.internal_error(where, bug)
    assert log == [
        {"event": "internal_error", "log_level": "error", "where": where, "exc_info": bug}
    ]
    assert journal.stats.internal_errors == 1
    assert journal.stats.recent_errors == {
        f"internal_error {where}": RecentError(NOW, f"an internal error ({where}), see the log")
    }


async def test_the_audit_trail_s_events_are_logged(journal, log):
    journal.audit_failed("No space left on device", 12)
    journal.audit_lost(3, "too many wait")
    journal.audit_recovered(3)
    journal.audit_reopened()
    assert log == [
        {
            "event": "audit.failed",
            "log_level": "error",
            "detail": "No space left on device",
            "waiting": 12,
        },
        {"event": "audit.lost", "log_level": "error", "lines": 3, "why": "too many wait"},
        {"event": "audit.recovered", "log_level": "warning", "lost": 3},
        {"event": "audit.reopened", "log_level": "info"},
    ]
    assert set(journal.stats.recent_errors) == {"audit.failed", "audit.lost"}
    journal.audit = SimpleNamespace(waiting=12, head="3:abc")
    journal.summarize(waiting=0, outbox=0, tables=0)
    assert (log[-1]["audit_waiting"], log[-1]["audit_head"]) == (12, "3:abc")


# No peer can fill the log.


@pytest.fixture
def at_info(log):
    """A journal at a level where nobody has asked for every line."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    return Journal(Stats(), lambda: NOW)


def every_line(journal, number):
    """Each call that writes a line, in a turn that differs from the others by `number`."""
    journal.link_up()
    journal.link_lost(LinkFailed(Loss.CLOSED, f"reason {number}", code=4000), 1.0, 0.1)
    journal.link_lost(LinkFailed(Loss.REFUSED), 0.0, 0.1)
    journal.link_up()
    journal.link_lost(LinkFailed(Loss.STOPPED), 1.0, None)
    journal.loop_stalled(1.0)
    journal.dropped("not-json", b"%d" % number)
    journal.refused(NoRate(Refusal.UNAVAILABLE, f"no rate {number}"), b"%d" % number, 0.001)
    journal.undelivered(b"%d" % number, "it was too old")
    journal.fetched(TABLE, 0.1)
    journal.fetched(TABLE, 0.1)
    journal.fetch_failed("bank", DAY, SourceFailed(f"http-{400 + number % 100}", "bad"))
    journal.rate_limited("bank", SourceFailed("quota-minute", "no", limited_for=number))
    journal.audit_failed("No space left on device", number)
    journal.audit_lost(number, "too many lines wait to be written")
    journal.audit_recovered(number)
    journal.audit_reopened()
    journal.internal_error("session", RuntimeError(number))
    journal.note("service.started", number=number)
    journal.warn("settings.unknown", name=f"RATEBRIDGE_{number}")


async def test_no_kind_of_line_comes_more_than_ten_times_in_any_minute(
    at_info, log, autojump_clock
):
    written = []
    for number in range(120):
        every_line(at_info, number)
        written += [(event["event"], trio.current_time()) for event in log]
        log.clear()
        await trio.sleep(1.75)
    events = {event for event, _ in written}
    assert len(events) == 19
    for event in events:
        times = [at for other, at in written if other == event]
        assert [
            begin for begin in times if sum(0 <= at - begin < MINUTE for at in times) > OFTEN
        ] == []
        assert len(times) >= 2 * OFTEN, "and the minutes after are told of as well"


async def test_what_is_held_back_is_counted_and_the_ids_have_their_ends(
    at_info, log, autojump_clock
):
    for number in range(1000):
        at_info.undelivered(b"%d" % number, "it was too old")
    assert len(at_info._unlogged_ids) == 2, "however many there are"
    for _ in range(OFTEN + 2):
        at_info.dropped("not-json", b"what")
    at_info.dropped("no-id", b"another kind")
    assert [event["id"] for event in log if "id" in event] == [
        str(number) for number in range(OFTEN)
    ]
    assert [event["begins"] for event in log if "begins" in event] == ["what"] * 10 + [
        "another kind"
    ]
    assert [at for at, event in enumerate(log) if "further" in event] == [OFTEN - 1, 2 * OFTEN - 1]
    log.clear()
    at_info.summarize(waiting=0, outbox=0, tables=0)
    assert log[1:] == [
        {
            "event": "log.limited",
            "log_level": "warning",
            "lines": {"reply.undelivered": 990, "message.dropped not-json": 2},
            "first_undelivered": "10",
            "last_undelivered": "999",
        }
    ]
    at_info.summarize(waiting=0, outbox=0, tables=0)
    assert len(log) == 3, "it is told once"
    at_info.undelivered(b"last", "the service stopped")
    await at_info.aclose()
    assert log[3]["lines"] == {"reply.undelivered": 1}
    assert (log[3]["first_undelivered"], log[3]["last_undelivered"]) == ("last", "last")
    assert [error.count for error in at_info.stats.recent_errors.values()] == [1001, 12, 1]


async def test_what_the_libraries_say_too_often_is_counted_too(at_info, log, monkeypatch):
    library_limit = LineLimit()
    monkeypatch.setattr("ratebridge.operating.journal.library_limit", library_limit)
    for _ in range(OFTEN + 3):
        library_limit.admit("library h11", 0.0)
    await at_info.aclose()
    assert (log[0]["lines"], log[0]["log_level"]) == ({"library h11": 3}, "warning")


async def test_at_debug_every_line_is_written(journal, log, autojump_clock):
    for number in range(OFTEN + 5):
        journal.undelivered(b"%d" % number, "it was too old")
    await journal.aclose()
    assert log.pop()["event"] == "service.stopped"
    assert [event["id"] for event in log] == [str(number) for number in range(OFTEN + 5)]
    assert [event["log_level"] for event in log] == ["warning"] * OFTEN + ["debug"] * 5


async def test_a_summary_counts_the_last_minute(journal, log, autojump_clock):
    journal.link_up()
    for minute, converted in enumerate((3, 2)):
        for _ in range(converted):
            journal.converted([(request(), "1", None, NOW)], 0.001)
        journal.refused(NoRate(Refusal.UNAVAILABLE, "no rate"), b"1", 0.001)
        if minute:
            journal.dropped("not-json", b"what")
            journal.undelivered(b"7", "it was too old")
            journal.link_lost(LinkFailed(Loss.RESET), 1.0, 0.1)
        journal.summarize(waiting=4, outbox=5, tables=6)
    common = {"event": "summary", "log_level": "info", "refused": 1}
    common |= {"waiting": 4, "outbox": 5, "tables": 6, "connections": 1}
    assert [event for event in log if event["event"] == "summary"] == [
        {**common, "connection": "up", "converted": 3, "dropped": 0, "undelivered": 0},
        {**common, "connection": "down", "converted": 2, "dropped": 1, "undelivered": 1},
    ]


async def test_the_service_s_own_events_pass_through(journal, log):
    journal.note("service.started", feed="feed.example")
    journal.warn("tls.unverified", detail="off")
    assert log == [
        {"event": "service.started", "log_level": "info", "feed": "feed.example"},
        {"event": "tls.unverified", "log_level": "warning", "detail": "off"},
    ]


async def test_without_a_clock_of_its_own_errors_are_dated_by_the_wall():
    journal = Journal(Stats())
    before = datetime.now(UTC)
    journal.dropped("not-json", b"what")
    (error,) = journal.stats.recent_errors.values()
    assert before <= error.at <= datetime.now(UTC)
