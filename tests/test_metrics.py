"""The metrics: read back by Prometheus' own parser, named by its rules, bounded in their labels."""

import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from watched import NOW, Shop, make_service, table

import ratebridge
from ratebridge import __version__
from ratebridge.errors import LinkFailed, NoRate, Refused, SourceFailed
from ratebridge.messages import decode
from ratebridge.operating.metrics import DROPS, LOSSES, REFUSALS, Metrics
from ratebridge.operating.overview import Service
from ratebridge.operating.stats import LATENCY_BOUNDS
from ratebridge.outbox import Reply
from ratebridge.providers.source import Quota

DAY = (NOW - timedelta(days=14)).date()


def families(service: Service) -> dict[str, Any]:
    text = Metrics(service).text().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(service: Service, name: str, **labels: str) -> float | None:
    """The value of one sample; None when it is not there."""
    found = [
        sample.value
        for family in families(service).values()
        for sample in family.samples
        if sample.name == f"ratebridge_{name}" and sample.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


async def test_conversions_are_counted_by_their_outcome(nursery, autojump_clock):
    service, journal = make_service(nursery)
    request: Any = decode(
        b'{"type":"message","id":1,"payload":'
        b'{"stake":1,"currency":"EUR","date":"2021-05-18T21:32:42.324Z"}}'
    )
    journal.converted(request, request.stake, None, NOW, 0.001)
    for _ in range(2):
        journal.refused(Refused(b"1", "bad-stake", "the stake is missing"), b"1", 0.001)
    journal.refused(NoRate("unavailable", "no rate"), b"2", 0.001)
    assert value(service, "conversions_total", outcome="converted") == 1
    assert value(service, "conversions_total", outcome="bad-stake") == 2
    assert value(service, "conversions_total", outcome="unavailable") == 1


async def test_what_never_happened_is_there_as_a_zero(nursery, autojump_clock):
    service, _ = make_service(nursery)
    found = families(service)

    def zeros(name: str, label: str) -> set[str]:
        samples = found[f"ratebridge_{name}"].samples
        return {sample.labels[label] for sample in samples if sample.value == 0}

    assert zeros("conversions", "outcome") == {"converted", *REFUSALS}
    assert zeros("messages_dropped", "reason") == set(DROPS)
    assert zeros("reconnects", "reason") == set(LOSSES)
    assert zeros("fetches", "provider") == zeros("tables", "provider") == {"shop"}


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
    assert value(service, "answer_duration_seconds_count") == 4
    assert value(service, "answer_duration_seconds_sum") == pytest.approx(60.3003)


async def test_the_link_and_its_heartbeats(nursery, autojump_clock):
    service, journal = make_service(nursery)
    assert value(service, "connection_up") == value(service, "ready") == 0
    assert value(service, "heartbeat_age_seconds") is None
    journal.link_up()
    journal.heartbeat_received(0.0)
    await trio.sleep(0.75)
    assert value(service, "connection_up") == value(service, "ready") == 1
    assert value(service, "connections_opened_total") == 1
    assert value(service, "heartbeats_received_total") == 1
    assert value(service, "heartbeat_age_seconds") == 0.75
    journal.link_lost(LinkFailed("stale"), 0.75, 0.1)
    await trio.sleep(10)
    assert value(service, "connection_up") == value(service, "ready") == 0
    assert value(service, "reconnects_total", reason="stale") == 1
    assert value(service, "heartbeat_age_seconds") == 10.75, "an alert on it must fire"


async def test_the_messages_and_what_waits(nursery, autojump_clock):
    service, journal = make_service(nursery)
    journal.dropped("not-json", b"what")
    journal.undelivered(b"7", "it was too old")
    journal.internal_error("request", RuntimeError())
    service.bridge.waiting = 3
    service.outbox.add(Reply(b"1", b"{}", 0.0))
    assert value(service, "messages_dropped_total", reason="not-json") == 1
    assert value(service, "replies_undelivered_total") == 1
    assert value(service, "internal_errors_total") == 1
    assert value(service, "requests_waiting") == 3
    assert value(service, "outbox_replies") == 1


async def test_the_sources_and_their_tables(nursery, autojump_clock):
    shop, bank = Shop("shop", Quota(9, 4929, 5000)), Shop("bank", Quota())
    service, journal = make_service(nursery, shop, bank)
    assert value(service, "oldest_table_age_seconds") is None
    service.chain.tables.store(table(DAY), trio.current_time())
    await trio.sleep(30)
    service.chain.tables.store(table(DAY - timedelta(days=1)), trio.current_time())
    journal.fetched(table(DAY), 0.25)
    service.stats.from_cache += 5
    assert value(service, "fetches_total", provider="shop", outcome="ok") == 1
    assert value(service, "cache_hits_total") == 5
    assert value(service, "implausible_quotes_total", provider="shop") == 0
    assert value(service, "tables", provider="shop") == 2
    assert value(service, "tables", provider="bank") == 0
    assert value(service, "oldest_table_age_seconds") == 30
    assert value(service, "quota_calls_left", provider="shop", window="minute") == 9
    assert value(service, "quota_calls_left", provider="shop", window="month") == 4929
    assert value(service, "quota_calls_left", provider="bank", window="month") is None
    await trio.sleep(60)
    assert value(service, "quota_calls_left", provider="shop", window="minute") is None
    assert value(service, "quota_calls_left", provider="shop", window="month") == 4929


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
async def test_http_statuses_come_together_by_their_class(nursery, outcome, label):
    service, journal = make_service(nursery)
    for _ in range(2):
        journal.fetch_failed("shop", DAY, SourceFailed(outcome, "answered badly"))
    assert value(service, "fetches_total", provider="shop", outcome=label) == 2


async def test_what_is_running(nursery, autojump_clock):
    service, _ = make_service(nursery)
    await trio.sleep(12)
    (build,) = families(service)["ratebridge_build_info"].samples
    assert build.value == 1
    assert build.labels["version"] == __version__
    assert value(service, "uptime_seconds") == 12


async def test_every_name_is_ours_with_a_help_and_a_known_type(nursery, autojump_clock):
    service, _ = make_service(nursery, Shop("shop", Quota(9, 4929, 5000)))
    for name, family in families(service).items():
        assert name.startswith("ratebridge_")
        assert family.documentation.endswith("."), name
        assert family.type in ("counter", "gauge", "histogram"), name
        assert not name.endswith(("_total", "_ms", "_milliseconds", "_minutes", "_info_info"))
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{name}_total"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a process in /proc")
async def test_the_process_shows_where_the_system_tells(nursery):
    service, _ = make_service(nursery)
    assert (value(service, "process_resident_memory_bytes") or 0) > 1e6


async def test_no_text_of_a_peer_becomes_a_label(nursery, autojump_clock):
    service, journal = make_service(nursery)
    poison = "p0ison"
    journal.dropped("not-json", poison.encode())
    journal.undelivered(poison.encode(), "it was too old")
    journal.refused(Refused(b"1", "bad-currency", f"currency '{poison}'"), poison.encode(), 0.1)
    journal.link_lost(LinkFailed("closed", poison, code=4000), 0.0, 1.0)
    journal.fetch_failed("shop", DAY, SourceFailed("bad-body", f"has a {poison}"))
    assert poison.encode() not in Metrics(service).text()


async def test_two_services_in_one_process_do_not_meet(nursery, autojump_clock):
    one, journal = make_service(nursery)
    other, _ = make_service(nursery)
    journal.link_up()
    assert (value(one, "connection_up"), value(other, "connection_up")) == (1, 0)
    assert not [family for family in REGISTRY.collect() if family.name.startswith("ratebridge")]


def test_the_words_that_begin_at_zero_are_the_package_s_own():
    package = Path(ratebridge.__file__).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))

    def given(before: str) -> set[str]:
        return set(re.findall(rf'\b{before}\s*"([a-z-]+)"', source))

    assert given(r"Unreadable\(") == set(DROPS)
    assert given(r"LinkFailed\(") - {"stopped"} == set(LOSSES)
    refusals = given(r"_Flaw\(") | given(r"NoRate\(") | given(r"Refused\(\w+,")
    assert refusals == set(REFUSALS)
