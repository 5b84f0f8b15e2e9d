"""The metrics: read back by Prometheus' own parser, named by its rules, bounded in their labels."""

import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from prometheus_client import ProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from status_service import NOW, Shop, make_service, table

import ratebridge
from ratebridge import __version__
from ratebridge.errors import LinkFailed, Loss, NoRate, Refusal, Refused, SourceFailed
from ratebridge.messages import decode
from ratebridge.operating import metrics
from ratebridge.operating.metrics import DROPS, FETCHES, LOSSES, REFUSALS, metrics_text
from ratebridge.operating.overview import Service
from ratebridge.operating.stats import LATENCY_BOUNDS, outcome_class
from ratebridge.outbox import Reply
from ratebridge.providers.source import Quota

DAY = (NOW - timedelta(days=14)).date()


def families(service: Service) -> dict[str, Any]:
    found = list(text_string_to_metric_families(metrics_text(service)))
    named = {family.name: family for family in found}
    assert len(named) == len(found)
    return named


def samples(service: Service) -> dict[str, float]:
    """Every sample, by its name and its labels."""
    return {
        sample.name + "".join(f",{label}={word}" for label, word in sample.labels.items()): (
            sample.value
        )
        for family in families(service).values()
        for sample in family.samples
    }


class Trail:
    """What the metrics ask of an audit trail."""

    waiting = 21
    lost = 22
    failing: str | None = None

    def add(self, *line: object) -> None:
        """The tests look at the figures only."""


TRAIL: Any = Trail()

# One value for each family, all different, as `busy` makes them.
FIGURES: dict[str, dict[str, float]] = {
    "ratebridge_conversions": {
        "ratebridge_conversions_total,outcome=converted": 2,
        "ratebridge_conversions_total,outcome=bad-stake": 3,
        "ratebridge_conversions_total,outcome=unavailable": 1,
    },
    "ratebridge_messages_dropped": {"ratebridge_messages_dropped_total,reason=not-json": 4},
    "ratebridge_answer_duration_seconds": {
        "ratebridge_answer_duration_seconds_bucket,le=0.0025": 3,
        "ratebridge_answer_duration_seconds_count": 6,
        "ratebridge_answer_duration_seconds_sum": 0.75,
    },
    "ratebridge_replies_undelivered": {"ratebridge_replies_undelivered_total": 5},
    "ratebridge_requests_waiting": {"ratebridge_requests_waiting": 7},
    "ratebridge_outbox_replies": {"ratebridge_outbox_replies": 8},
    "ratebridge_ready": {"ratebridge_ready": 1},
    "ratebridge_connection_up": {"ratebridge_connection_up": 1},
    "ratebridge_connections_opened": {"ratebridge_connections_opened_total": 9},
    "ratebridge_reconnects": {"ratebridge_reconnects_total,reason=stale": 10},
    "ratebridge_heartbeats_received": {"ratebridge_heartbeats_received_total": 11},
    "ratebridge_heartbeat_age_seconds": {"ratebridge_heartbeat_age_seconds": 0.75},
    "ratebridge_fetches": {
        "ratebridge_fetches_total,provider=shop,outcome=ok": 12,
        "ratebridge_fetches_total,provider=shop,outcome=http-5xx": 13,
        "ratebridge_fetches_total,provider=bank,outcome=timeout": 14,
    },
    "ratebridge_implausible_quotes": {
        "ratebridge_implausible_quotes_total,provider=shop": 25,
        "ratebridge_implausible_quotes_total,provider=bank": 0,
    },
    "ratebridge_cache_hits": {"ratebridge_cache_hits_total": 15},
    "ratebridge_tables": {
        "ratebridge_tables,provider=shop": 16,
        "ratebridge_tables,provider=bank": 0,
    },
    "ratebridge_oldest_table_age_seconds": {"ratebridge_oldest_table_age_seconds": 17.75},
    "ratebridge_quota_calls_left": {
        "ratebridge_quota_calls_left,provider=shop,window=minute": 18,
        "ratebridge_quota_calls_left,provider=shop,window=month": 4929,
    },
    "ratebridge_audit_up": {"ratebridge_audit_up": 1},
    "ratebridge_audit_lines_waiting": {"ratebridge_audit_lines_waiting": 21},
    "ratebridge_audit_lines_lost": {"ratebridge_audit_lines_lost_total": 22},
    "ratebridge_internal_errors": {"ratebridge_internal_errors_total": 23},
    "ratebridge_log_lines_dropped": {"ratebridge_log_lines_dropped_total": 24},
    "ratebridge_uptime_seconds": {"ratebridge_uptime_seconds": 20.75},
    "ratebridge_build_info": {
        f"ratebridge_build_info,version={__version__},python={sys.version.split()[0]}": 1
    },
}


async def make_busy(nursery: trio.Nursery) -> Service:
    """A service to which everything has happened, each as often as `FIGURES` says."""
    shop, bank = Shop("shop", Quota(18, 4929, 5000)), Shop("bank", Quota())
    service, journal = make_service(nursery, shop, bank)
    stats = service.stats
    service = attrs.evolve(service, audit=TRAIL)
    await trio.sleep(3)
    for back in range(16):
        service.chain.tables.store(table(DAY - timedelta(days=back)), trio.current_time())
        await trio.sleep(0.0625)
    await trio.sleep(16)
    request: Any = decode(
        b'{"type":"message","id":1,"payload":'
        b'{"stake":1,"currency":"EUR","date":"2021-05-18T21:32:42.324Z"}}'
    )
    no_table = SourceFailed("http-503", "answered HTTP 503"), SourceFailed("timeout", "is slow")
    for times, tell, *what in (
        (1, journal.converted, [(request, "1", None, NOW)] * 2, 0.34375),
        (3, journal.refused, Refused(b"1", Refusal.BAD_STAKE, "no stake"), b"1", 0.001953125),
        (1, journal.refused, NoRate(Refusal.UNAVAILABLE, "no rate"), b"2", 0.056640625),
        (4, journal.dropped, "not-json", b"what"),
        (5, journal.undelivered, b"7", "it was too old"),
        (10, journal.link_lost, LinkFailed(Loss.STALE), 0.75, 0.1),
        (9, journal.link_up),
        (11, journal.heartbeat_received, 1.0),
        (12, journal.fetched, table(DAY), 0.25),
        (13, journal.fetch_failed, "shop", DAY, no_table[0]),
        (14, journal.fetch_failed, "bank", DAY, no_table[1]),
        (25, journal.implausible_quotes, "shop", DAY, {"CZK": no_table[0]}),
        (23, journal.internal_error, "request", RuntimeError()),
    ):
        for _ in range(times):
            tell(*what)
    service.bridge.waiting = 7
    service.outbox.add(*[Reply(b"1", b"{}", 0.0)] * 8)
    stats.from_cache += 15
    await trio.sleep(0.75)
    return service


async def test_every_metric_shows_what_was_counted(nursery, autojump_clock, monkeypatch):
    """Whoever adds a metric adds its line to `FIGURES`, as the names on both sides are equal."""
    monkeypatch.setattr(metrics, "lines_dropped", lambda: 24)
    busy = await make_busy(nursery)
    found = families(busy)
    assert {name for name in found if not name.startswith("process_")} == set(FIGURES)
    values = samples(busy)
    for figures in FIGURES.values():
        assert {name: values.get(name) for name in figures} == figures


async def test_every_name_has_a_help_and_a_known_type(nursery, autojump_clock):
    for name, family in families(await make_busy(nursery)).items():
        assert name.startswith(("ratebridge_", "process_"))
        assert family.documentation.endswith("."), name
        assert family.type in ("counter", "gauge", "histogram"), name
        assert not name.endswith(("_total", "_ms", "_milliseconds", "_minutes", "_info_info"))
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{name}_total"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a process in /proc")
async def test_the_process_has_the_metrics_of_prometheus_own_client(nursery):
    service, _ = make_service(nursery)
    ours = {name: value for name, value in samples(service).items() if name.startswith("process_")}
    theirs = {
        sample.name: sample.value
        for family in ProcessCollector(registry=None).collect()
        for sample in family.samples
    }
    assert ours == {name: pytest.approx(value, rel=0.1, abs=0.2) for name, value in theirs.items()}
    started = "process_start_time_seconds"
    assert ours[started] == pytest.approx(theirs[started], abs=2)


async def test_where_there_is_no_proc_a_process_has_no_metrics(nursery, monkeypatch):
    def no_such_file(path: Path) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", no_such_file)
    service, _ = make_service(nursery)
    assert not any(name.startswith("process_") for name in families(service))


async def test_what_never_happened_is_there_as_a_zero(nursery, autojump_clock):
    service, _ = make_service(nursery)
    found = families(service)

    def zeros(name: str, label: str) -> set[str]:
        samples = found[f"ratebridge_{name}"].samples
        return {sample.labels[label] for sample in samples if sample.value == 0}

    assert zeros("conversions", "outcome") == {"converted", *REFUSALS}
    assert zeros("messages_dropped", "reason") == set(DROPS)
    assert zeros("reconnects", "reason") == set(LOSSES)
    assert zeros("fetches", "outcome") == set(FETCHES)
    assert zeros("fetches", "provider") == zeros("tables", "provider") == {"shop"}
    assert "ratebridge_audit_up" not in found, "there is no audit file"


async def test_what_is_not_known_yet_is_absent_and_what_is_over_stays(nursery, autojump_clock):
    service, journal = make_service(nursery, Shop("shop", Quota(9, 4929, 5000)))
    trail: Any = Trail()
    service = attrs.evolve(service, audit=trail)
    found = samples(service)
    assert found["ratebridge_connection_up"] == found["ratebridge_ready"] == 0
    assert "ratebridge_heartbeat_age_seconds" not in found
    assert "ratebridge_oldest_table_age_seconds" not in found
    journal.link_up()
    journal.heartbeat_received(0.0)
    journal.fetched(table(DAY), 0.25)
    journal.link_lost(LinkFailed(Loss.STALE), 0.75, 0.1)
    trail.failing = "No space left on device"
    await trio.sleep(60)
    found = samples(service)
    assert found["ratebridge_connection_up"] == found["ratebridge_ready"] == 0
    assert found["ratebridge_heartbeat_age_seconds"] == 60, "an alert on it must fire"
    assert "ratebridge_quota_calls_left,provider=shop,window=minute" not in found
    assert found["ratebridge_quota_calls_left,provider=shop,window=month"] == 4929
    assert found["ratebridge_audit_up"] == 0
    trail.failing = None
    assert samples(service)["ratebridge_audit_up"] == 1


async def test_the_latency_is_a_histogram_in_seconds(nursery, autojump_clock):
    service, _ = make_service(nursery)
    for seconds in (0.0001, 0.0002, 0.3, 60.0):
        service.stats.latency.add(seconds)
    family = families(service)["ratebridge_answer_duration_seconds"]
    assert family.type == "histogram"
    buckets = {
        sample.labels["le"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_bucket")
    }
    assert [float(bound) for bound in buckets] == [*LATENCY_BOUNDS, float("inf")]
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets["0.0001"], buckets["0.00025"], buckets["0.5"]) == (1, 2, 3)
    assert (buckets["5.0"], buckets["+Inf"]) == (3, 4)


@pytest.mark.parametrize(
    ("outcome", "label"),
    [
        ("timeout", "timeout"),
        ("http-503", "http-5xx"),
        ("http-418", "http-4xx"),
        ("http-302", "http-3xx"),
        ("http-204", "http-other"),
        ("http-999", "http-other"),
        ("http-4", "http-other"),
        ("http-", "http-other"),
    ],
)
def test_http_statuses_come_together_by_their_class(outcome, label):
    assert outcome_class(outcome) == label
    assert label in FETCHES


async def test_no_text_of_a_peer_becomes_a_label(nursery, autojump_clock):
    service, journal = make_service(nursery)
    poison = "p0ison"
    journal.dropped("not-json", poison.encode())
    journal.undelivered(poison.encode(), "it was too old")
    journal.refused(
        Refused(b"1", Refusal.BAD_CURRENCY, f"currency '{poison}'"), poison.encode(), 0.1
    )
    journal.link_lost(LinkFailed(Loss.CLOSED, poison, code=4000), 0.0, 1.0)
    journal.fetch_failed("shop", DAY, SourceFailed("bad-body", f"has a {poison}"))
    assert poison not in metrics_text(service)


def test_the_words_that_begin_at_zero_are_the_package_s_own():
    package = Path(ratebridge.__file__).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))

    def given(before: str) -> set[str]:
        return set(re.findall(rf'\b{before}\s*"([a-z-]+)"', source))  # no status: it has digits

    assert given(r"Unreadable\(") == set(DROPS)
    assert given(r"LinkFailed\(") - {"stopped"} == set(LOSSES)
    refusals = given(r"_Flaw\(") | given(r"NoRate\(") | given(r"Refused\(\w+,")
    assert refusals == set(REFUSALS)
    statuses = {outcome for outcome in FETCHES if outcome.startswith("http-")}
    no_fetch = {"stopped", "coarse", "budget"}  # one quote's failure, and why there is no fetch
    assert given(r"SourceFailed\(") - no_fetch == set(FETCHES) - statuses - {"ok"}
