"""The metrics of Prometheus, collected from `Stats` at each scrape.

Names begin with `ratebridge_`, except the standard metrics of the process. Label values are words
of `errors` and names of sources, never a currency, an id or any other text of a peer.
"""

import gzip
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, TypeAlias

import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ..reporting.logs import lines_dropped
from ..reporting.stats import Histogram
from ..version import __version__
from .overview import Service, Status, readiness

Values: TypeAlias = Mapping[Any, Any] | Histogram | float | None
"""One value, or those of several labels: numbers, histograms, or None."""


class Metrics(Collector):
    """The metrics of a service and of its process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def answer(self, accept: str, accept_encoding: str) -> tuple[bytes, str, bool]:
        """The body for these two headers of a request, its media type, and whether it is gzip."""
        encode, media_type = choose_encoder(accept)
        body, zipped = encode(self._registry), gzip_accepted(accept_encoding)
        return gzip.compress(body, 1, mtime=0) if zipped else body, media_type, zipped

    def collect(self) -> Iterator[Metric]:
        """All families but those of the process."""
        service, now = self._service, trio.current_time()
        stats, audit, sources = service.stats, service.audit, service.chain.sources
        seen = {source.name: stats.sources[source.name] for source in sources}
        status, _why = readiness(service, now)
        to_unix = service.utc_now().timestamp() - now

        def unix(at: float | None) -> float | None:
            return None if at is None else at + to_unix

        # The messages.
        outcomes: dict[Any, int] = {"converted": stats.converted, **stats.refused}
        yield family("conversions_total", "Requests answered, by outcome.", outcomes, "outcome")
        yield family("messages_dropped_total", "Messages without answer.", stats.dropped, "reason")
        yield family("answer_duration_seconds", "From a request to its reply.", stats.latency)
        yield family("replies_undelivered_total", "Replies never sent.", stats.undelivered)
        yield family("requests_waiting", "Requests that wait for a rate.", service.bridge.waiting)
        yield family("outbox_replies", "Replies that are not written yet.", len(service.outbox))

        # The connection.
        yield family("ready", "Whether requests are taken, as /readyz says.", status.is_ready)
        text = "Whether it is ready, but requests fail or the audit file cannot be written."
        yield family("degraded", text, status is Status.DEGRADED)
        yield family("connection_up", "Whether the websocket is open.", stats.link_up)
        yield family("connections_opened_total", "Connections opened.", stats.links_opened)
        yield family("reconnects_total", "Losses and failed attempts.", stats.lost, "reason")
        yield family("heartbeats_received_total", "Heartbeats of the feed.", stats.heartbeats)
        yield family("heartbeat_timestamp_seconds", "Of the last one.", unix(stats.heartbeat_at))

        # The rates. A fetch includes its retries.
        fetches = {(name, word): n for name, one in seen.items() for word, n in one.fetches.items()}
        yield family("fetches_total", "Fetches, by outcome.", fetches, "provider", "outcome")
        durations = {name: one.durations for name, one in seen.items()}
        yield family("fetch_duration_seconds", "Of fetches that succeeded.", durations, "provider")
        answered = {name: unix(one.answered_at) for name, one in seen.items()}
        text = "When the last good fetch ended."
        yield family("fetch_success_timestamp_seconds", text, answered, "provider")
        implausible = {name: one.implausible for name, one in seen.items()}
        yield family("implausible_quotes_total", "Quotes not used.", implausible, "provider")
        held = Counter(dict.fromkeys(seen, 0))
        held.update(sheet.provider for sheet in service.chain.cache.sheets)
        yield family("sheets", "Sheets of rates held, one a call.", held, "provider")
        left = {source.name: source.quota.month_left for source in sources if source.quota}
        yield family("quota_calls_left", "Left this month, by the last report.", left, "provider")

        # The audit trail, and the service.
        if audit is not None:
            yield family("audit_up", "Whether its file can be written.", audit.failing is None)
            yield family("audit_lines_waiting", "Lines not written yet.", audit.waiting)
            yield family("audit_lines_lost_total", "Lines never written.", audit.lost)
        yield family("internal_errors_total", "Bugs that the log tells of.", stats.internal_errors)
        yield family("loop_stalls_total", "Stalls of the event loop.", stats.stalls)
        yield family("clock_jumps_total", "Jumps of the wall clock.", stats.clock_jumps)
        yield family("log_lines_dropped_total", "Lost for want of a reader.", lines_dropped())
        build = {(__version__, platform.python_version()): 1}
        yield family("build_info", "Versions; always 1.", build, "version", "python")


def family(name: str, text: str, values: Values, *labels: str) -> Any:
    """A family: a counter if its name says so, else a histogram or a gauge by its values.

    The keys of `values` are the label values, as a tuple, or as a word for one label. A value
    that is None is not known, and left out.
    """
    by_label = values if isinstance(values, Mapping) else {(): values}
    kind: Callable[..., Any] = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    if any(isinstance(value, Histogram) for value in by_label.values()):
        kind = HistogramMetricFamily
    made = kind(f"ratebridge_{name}", text, labels=labels)
    for key, value in by_label.items():
        words = (key,) if isinstance(key, str) else key
        if isinstance(value, Histogram):
            buckets = zip((*map(str, value.bounds), "+Inf"), accumulate(value.counts), strict=True)
            made.add_metric(words, list(buckets), value.total)
        elif value is not None:
            made.add_metric(words, value)
    return made
