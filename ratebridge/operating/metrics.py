"""The metrics of Prometheus, collected from `Stats` at each scrape.

Names begin with `ratebridge_`, except the standard metrics of the process. Label values are words
of `errors` and names of sources, never a currency, an id or any other text of a peer.
"""

import gzip
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

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

from .. import __version__
from .logs import lines_dropped
from .overview import Service, Status, calls_left, readiness
from .stats import Histogram

Values = Mapping[Any, float | Histogram]


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
        seen = [(source.name, stats.sources[source.name]) for source in sources]
        status, _why = readiness(service, now)
        to_unix = service.utc_now().timestamp() - now

        def unix(at: float | None) -> dict[tuple[()], float]:
            return {} if at is None else {(): at + to_unix}

        # The messages.
        yield _family(
            "conversions_total",
            "Requests answered: converted, or the kind of the error.",
            {"converted": stats.converted, **stats.refused},
            "outcome",
        )
        text = "Messages that could not be answered, by reason."
        yield _family("messages_dropped_total", text, stats.dropped, "reason")
        text = "Time from reading a request until its reply can be written."
        yield _family("answer_duration_seconds", text, {(): stats.latency})
        text = "Replies that were never sent: too old, too many, or the service stopped."
        yield _family("replies_undelivered_total", text, stats.undelivered)
        text = "Requests whose rate is being fetched."
        yield _family("requests_waiting", text, service.bridge.waiting)
        text = "Replies that have not been written yet."
        yield _family("outbox_replies", text, len(service.outbox))

        # The connection.
        text = "Whether requests are taken and answered, as /readyz says."
        yield _family("ready", text, status.is_ready)
        text = "Whether it is ready, but requests fail or the audit file cannot be written."
        yield _family("degraded", text, status is Status.DEGRADED)
        yield _family("connection_up", "Whether the websocket is open.", stats.link_up)
        yield _family("connections_opened_total", "Connections opened.", stats.links_opened)
        text = "Connections lost and attempts failed, by reason; each led to another attempt."
        yield _family("reconnects_total", text, stats.lost, "reason")
        yield _family("heartbeats_received_total", "Heartbeats of the feed.", stats.heartbeats)
        text = "When the last heartbeat of the feed came; absent before the first."
        yield _family("heartbeat_timestamp_seconds", text, unix(stats.heartbeat_at))

        # The rates.
        yield _family(
            "fetches_total",
            "Fetches of sheets, retries included, by outcome: ok, or why it failed.",
            {(name, word): count for name, one in seen for word, count in one.fetches.items()},
            *("provider", "outcome"),
        )
        text = "Duration of the fetches that succeeded."
        durations = {name: one.durations for name, one in seen}
        yield _family("fetch_duration_seconds", text, durations, "provider")
        text = "When the last successful fetch ended; absent before the first."
        answered = {
            name: one.answered_at + to_unix for name, one in seen if one.answered_at is not None
        }
        yield _family("fetch_success_timestamp_seconds", text, answered, "provider")
        text = "Quotes that were not used because they cannot be true."
        implausible = {name: one.implausible for name, one in seen}
        yield _family("implausible_quotes_total", text, implausible, "provider")
        text = "Conversions by a sheet that was held; legal rates take none and are not counted."
        yield _family("cache_hits_total", text, stats.from_cache)
        sheets = service.chain.cache.sheets
        held = Counter({name: 0 for name, _ in seen})
        held.update(sheet.provider for sheet in sheets)
        yield _family("sheets", "Sheets of rates held, one a call.", held, "provider")
        text = "When the oldest sheet held was fetched; absent with none."
        oldest = {(): min(sheet.fetched for sheet in sheets).timestamp()} if sheets else {}
        yield _family("oldest_sheet_timestamp_seconds", text, oldest)
        yield _family(
            "quota_calls_left",
            "Calls left by the source's own report; absent without a recent report.",
            {
                (source.name, window): left
                for source in sources
                for window, left in calls_left(stats, source, now).items()
            },
            *("provider", "window"),
        )

        # The audit trail, and the service.
        if audit is not None:
            text = "Whether the audit file can be written."
            yield _family("audit_up", text, audit.failing is None)
            yield _family("audit_lines_waiting", "Lines not written yet.", audit.waiting)
            text = "Lines that will never be written."
            yield _family("audit_lines_lost_total", text, audit.lost)
        text = "Internal errors after which the service went on; the log has their tracebacks."
        yield _family("internal_errors_total", text, stats.internal_errors)
        text = "Stalls of the event loop, after which the feed gets time for another heartbeat."
        yield _family("loop_stalls_total", text, stats.stalls)
        text = "Jumps of the wall clock against the monotonic one."
        yield _family("clock_jumps_total", text, stats.clock_jumps)
        text = "Log lines lost because the reader was slow or gone."
        yield _family("log_lines_dropped_total", text, lines_dropped())
        yield _family("start_timestamp_seconds", "When it started.", unix(service.started))
        text = "Versions of the service and Python; always 1."
        build = {(__version__, platform.python_version()): 1}
        yield _family("build_info", text, build, "version", "python")


def _family(name: str, text: str, values: Values | float, *labels: str) -> Metric:
    """A family: a counter if its name says so, else a histogram or a gauge by its values.

    The keys of `values` are the label values, as a tuple, or as a word for one label.
    """
    kind: Callable[..., Any] = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    values = values if isinstance(values, Mapping) else {(): values}
    if any(isinstance(value, Histogram) for value in values.values()):
        kind = HistogramMetricFamily
    family = kind(f"ratebridge_{name}", text, labels=labels)
    for key, value in values.items():
        words = (key,) if isinstance(key, str) else key
        if isinstance(value, Histogram):
            bounds = (*map(str, value.bounds), "+Inf")
            buckets = zip(bounds, accumulate(value.counts), strict=True)
            family.add_metric(words, list(buckets), value.total)
        else:
            family.add_metric(words, value)
    made: Metric = family
    return made
