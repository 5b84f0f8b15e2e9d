"""What the figures look like to Prometheus: read from `Stats` at the moment of a scrape.

Nothing is counted here, so a message costs nothing for it. Every name begins
with `ratebridge_`; the labels' values are words of ours, never a currency, an
id or any other text of a peer.
"""

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

import trio
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from .. import __version__
from .overview import Service, calls_left, readiness
from .stats import LATENCY_BOUNDS, Stats

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # what every Prometheus reads

# Words that are there from the start: a rate over a first event has to see the zero before it.
REFUSALS: Final = (
    *("bad-message", "bad-stake", "bad-currency", "bad-date"),
    *("unknown-currency", "unavailable", "overloaded", "stopping", "internal-error"),
)
DROPS: Final = ("too-long", "not-json", "not-an-object", "no-type", "unknown-type", "no-id")
LOSSES: Final = (
    *("dns", "refused", "unreachable", "certificate", "tls", "open-timeout", "rejected"),
    *("stale", "closed", "reset", "write-stalled", "protocol-error", "oversized", "internal-error"),
)

Values = Mapping[tuple[str, ...], float]  # by the values of the labels, which may be none


class Metrics:
    """The metrics of one service, and those of its process where the system tells them."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ServiceCollector(service))
        ProcessCollector(namespace="ratebridge", registry=self._registry)

    def text(self) -> bytes:
        """All of them as `CONTENT_TYPE`; to be called from the event loop."""
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        service = self._service
        now = trio.current_time()
        yield from _messages(service)
        yield from _link(service, now)
        yield from _rates(service, now)
        yield _counter(
            "internal_errors",
            "Bugs that were contained; the log has their traces.",
            service.stats.internal_errors,
        )
        yield _gauge("uptime_seconds", "Seconds since the start.", now - service.started)
        build = {"version": __version__, "python": platform.python_version()}
        values = {tuple(build.values()): 1}
        yield _gauges("build_info", "What is running; always 1.", build, values)


def _messages(service: Service) -> Iterator[Metric]:
    stats = service.stats
    yield _counters(
        "conversions",
        "Requests answered: converted, or why they were answered with an error.",
        ("outcome",),
        {("converted",): stats.converted, **_from_zero(REFUSALS, stats.refused)},
    )
    yield _counters(
        "messages_dropped",
        "Messages that could not be answered, by what was wrong with them.",
        ("reason",),
        _from_zero(DROPS, stats.dropped),
    )
    yield _latency(stats)
    yield _counter(
        "replies_undelivered",
        "Replies that were never sent: too old, too many, or the service stopped.",
        stats.undelivered,
    )
    yield _gauge(
        "requests_waiting", "Requests whose rate is being fetched.", service.bridge.waiting
    )
    yield _gauge("outbox_replies", "Replies that have not been written yet.", len(service.outbox))


def _latency(stats: Stats) -> Metric:
    bounds = [*map(floatToGoString, LATENCY_BOUNDS), "+Inf"]
    counts = accumulate(stats.latency.counts)
    return HistogramMetricFamily(
        "ratebridge_answer_duration_seconds",
        "From reading a request to its reply being ready to be written.",
        buckets=list(zip(bounds, counts, strict=True)),
        sum_value=stats.latency.total,
    )


def _link(service: Service, now: float) -> Iterator[Metric]:
    stats = service.stats
    ready, _why = readiness(service, now)
    yield _gauge("ready", "Whether requests are taken and answered, as /readyz says.", ready)
    yield _gauge("connection_up", "Whether the websocket is open.", stats.link_up)
    yield _counter("connections_opened", "Links that were opened.", stats.links_opened)
    yield _counters(
        "reconnects",
        "Links lost and attempts failed, by why; after each there was another attempt.",
        ("reason",),
        _from_zero(LOSSES, stats.lost),
    )
    yield _counter("heartbeats_received", "Heartbeats of the feed.", stats.heartbeats)
    yield _gauges(
        "heartbeat_age_seconds",
        "Seconds since the last heartbeat of the feed; absent before the first.",
        (),
        {} if stats.heartbeat_at is None else {(): now - stats.heartbeat_at},
    )


def _rates(service: Service, now: float) -> Iterator[Metric]:
    stats = service.stats
    sources = service.chain.sources
    fetches: Counter[tuple[str, ...]] = Counter({(source.name, "ok"): 0 for source in sources})
    for (name, outcome), count in stats.fetches.items():
        fetches[name, _bounded(outcome)] += count
    yield _counters(
        "fetches",
        "Tables fetched (ok), or why they could not be, after the retries.",
        ("provider", "outcome"),
        fetches,
    )
    yield _counters(
        "implausible_quotes",
        "Quotes that were not used, as they cannot be true by all that is known.",
        ("provider",),
        _from_zero([source.name for source in sources], stats.implausible),
    )
    yield _counter(
        "cache_hits",
        "Conversions whose rate was at hand; those from euro need none and do not count.",
        stats.from_cache,
    )
    tables = service.chain.tables.tables()
    held: Counter[tuple[str, ...]] = Counter({(source.name,): 0 for source in sources})
    held.update((table.provider,) for table, _ in tables)
    yield _gauges("tables", "Day-tables of rates that are held.", ("provider",), held)
    yield _gauges(
        "oldest_table_age_seconds",
        "Seconds since the oldest table held was fetched; absent with none.",
        (),
        {(): now - min(fetched for _, fetched in tables)} if tables else {},
    )
    yield _gauges(
        "quota_calls_left",
        "Calls that a source said it has left for us; absent where it has not of late.",
        ("provider", "window"),
        {
            (source.name, window): left
            for source in sources
            for window, left in calls_left(stats, source, now).items()
        },
    )


def _bounded(outcome: str) -> str:
    """The outcome of a fetch, with the HTTP statuses brought together by their class."""
    if not outcome.startswith("http-"):
        return outcome
    return f"http-{outcome[5]}xx" if outcome[5:6] in "345" and len(outcome) == 8 else "http-other"


def _from_zero(words: Iterable[str], counts: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    return {(word,): count for word, count in {**dict.fromkeys(words, 0), **counts}.items()}


def _counter(name: str, text: str, value: float) -> Metric:
    return _counters(name, text, (), {(): value})


def _counters(name: str, text: str, labels: Iterable[str], values: Values) -> Metric:
    family = CounterMetricFamily(f"ratebridge_{name}", text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return _gauges(name, text, (), {(): value})


def _gauges(name: str, text: str, labels: Iterable[str], values: Values) -> Metric:
    family = GaugeMetricFamily(f"ratebridge_{name}", text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(key, value)
    return family
