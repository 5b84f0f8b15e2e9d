"""The metrics: formats and encodings that Prometheus asks for, its rules, and what uses them."""

import gzip
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families
from status_service import NOW, Shop, make_service, samples, sheet, trail

from ratebridge.errors import LinkFailed, Loss, Refusal, Refused
from ratebridge.operating import metrics
from ratebridge.operating.metrics import Metrics
from ratebridge.outbox import Reply
from ratebridge.providers.source import Quota
from ratebridge.reporting.stats import FETCH_BOUNDS, LATENCY_BOUNDS, Histogram


def families(text: str, parse: Any = text_string_to_metric_families) -> dict[str, Any]:
    found = list(parse(text))
    named = {family.name: family for family in found}
    assert len(named) == len(found)
    return named


async def test_every_name_has_a_help_and_a_known_type(nursery, autojump_clock):
    service, _ = make_service(nursery, audit=trail())
    for name, family in families(Metrics(service).answer("", "")[0].decode()).items():
        assert name.startswith(("ratebridge_", "process_"))
        assert family.documentation.endswith("."), name
        assert family.type in ("counter", "gauge", "histogram"), name
        assert not name.endswith(("_total", "_ms", "_milliseconds", "_minutes", "_age_seconds"))
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{name}_total"}


async def test_the_metrics_are_read_by_prometheus_parsers(nursery, autojump_clock):
    service, _ = make_service(nursery)
    body, media_type, _ = Metrics(service).answer("", "")
    assert media_type == "text/plain; version=0.0.4; charset=utf-8"
    asked = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    zipped, media_type, is_zipped = Metrics(service).answer(asked, "gzip, deflate")
    assert is_zipped
    other = gzip.decompress(zipped)
    assert media_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert set(families(other.decode(), open_metrics)) == set(families(body.decode()))


async def test_the_state_of_the_service_and_its_process_is_told(
    nursery, autojump_clock, monkeypatch
):
    monkeypatch.setattr(metrics, "lines_dropped", lambda: 24)
    shop = Shop("shop", Quota(4929, 5000))
    service, observer = make_service(nursery, shop, Shop("bank"), audit=trail(waiting=21, lost=22))
    service.chain.cache.store(sheet(NOW.date()))
    service.bridge.waiting = 7
    service.outbox.add(*[Reply(b"1", b"{}", trio.current_time())] * 8)
    observer.fetched(sheet(NOW.date()), 0.25)
    observer.link_up()
    found = samples(service)
    for sample in (
        *["requests_waiting 7", "outbox_replies 8", "ready 0", "degraded 0", "audit_up 1"],
        *["audit_lines_waiting 21", "audit_lines_lost_total 22", "log_lines_dropped_total 24"],
        *("sheets,provider=shop 1", "sheets,provider=bank 0"),
        "quota_calls_left,provider=shop 4929",
    ):
        name, value = sample.split(" ")
        assert found[f"ratebridge_{name}"] == float(value), name
    assert found["process_resident_memory_bytes"] > 2**20
    assert found["process_open_fds"] < found["process_max_fds"]
    assert [name for name in found if name.startswith("ratebridge_build_info,python=3.")]
    observer.heartbeat_received(1.0)
    observer.refused(Refused(b"1", Refusal.UNAVAILABLE, "no rate"), b"1", 5.0)
    found = samples(service)
    assert (found["ratebridge_ready"], found["ratebridge_degraded"]) == (1, 1)


async def test_what_is_not_known_is_absent_and_what_is_over_stays(nursery, autojump_clock):
    audit = trail(failing="No space left on device")
    service, observer = make_service(nursery, audit=audit)
    known = {name.partition(",")[0] for name in samples(service)}
    assert not [name for name in known if name.endswith("_timestamp_seconds")]
    assert samples(service)["ratebridge_audit_up"] == 0
    observer.link_up()
    observer.heartbeat_received(0.0)
    observer.link_lost(LinkFailed(Loss.STALE), 0.75, 0.1)
    await trio.sleep(60)
    heartbeat = samples(service)["ratebridge_heartbeat_timestamp_seconds"]
    assert heartbeat == NOW.timestamp() - 60
    without, _ = make_service(nursery)
    assert not [name for name in samples(without) if "audit" in name], "there is no audit file"


# The figures behind them.


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 3)), max_size=20))
def test_a_histogram_counts_what_is_not_slower_than_each_bound(durations):
    for bounds in (LATENCY_BOUNDS, FETCH_BOUNDS):
        assert list(bounds) == sorted(set(bounds))
        histogram = Histogram(bounds)
        for seconds, count in [*durations, (bounds[2], 1)]:
            histogram.add(seconds, count)
        every = sorted([s for s, count in durations for _ in range(count)] + [bounds[2]])
        assert [sum(histogram.counts[: at + 1]) for at in range(len(bounds))] == [
            sum(seconds <= bound for seconds in every) for bound in bounds
        ]
        assert sum(histogram.counts) == len(every)
        assert histogram.total == pytest.approx(sum(every))
        p50, p99 = histogram.take_percentiles()
        assert p50 == every[(len(every) - 1) // 2]
        assert p99 == every[-(len(every) // 100) - 1]
        assert histogram.take_percentiles() == (None, None)
