"""The metrics in Prometheus' text format, read from `Stats` at each scrape.

Names begin with `ratebridge_`, except the standard metrics of the process. Label values are fixed
words, never a currency, an id or any other text of a peer, so none needs escaping.
"""

import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, product
from pathlib import Path
from typing import Final

import trio

from .. import __version__
from .logs import lines_dropped
from .overview import Service, calls_left, readiness
from .stats import LATENCY_BOUNDS, Stats

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # every Prometheus reads this

# Label values that exist from the start: rate() needs the zero before the first event.
REFUSALS: Final = (
    *("bad-message", "bad-stake", "bad-currency", "bad-date"),
    *("unknown-currency", "unavailable", "overloaded", "stopping", "internal-error"),
)
DROPS: Final = ("too-long", "not-json", "not-an-object", "no-type", "unknown-type", "no-id")
LOSSES: Final = (
    *("dns", "refused", "unreachable", "certificate", "tls", "open-timeout", "rejected"),
    *("stale", "closed", "reset", "write-stalled", "protocol-error", "oversized", "internal-error"),
)
FETCHES: Final = (
    *("ok", "unreachable", "timeout", "redirect", "http-3xx", "http-4xx", "http-5xx", "http-other"),
    *("refused-key", "quota-minute", "quota-month", "bad-body", "bad-table", "no-table"),
    *("implausible", "internal-error"),
)

Values = Mapping[tuple[str, ...], float]  # by the label values; () for none


def metrics_text(service: Service) -> str:
    """All metrics of a service and its process."""
    now = trio.current_time()
    families = (
        _messages(service),
        _connection(service, now),
        _rates(service, now),
        _audit(service),
        _service(service, now),
        _process(),
    )
    return "".join(line for lines in families for line in lines)


def _messages(service: Service) -> Iterator[str]:
    stats = service.stats
    yield from _counters(
        "conversions",
        "Requests answered: converted, or the kind of the error.",
        ("outcome",),
        {("converted",): stats.converted, **_from_zero(REFUSALS, stats.refused)},
    )
    yield from _counters(
        "messages_dropped",
        "Messages that could not be answered, by reason.",
        ("reason",),
        _from_zero(DROPS, stats.dropped),
    )
    yield from _latency(stats)
    yield from _counter(
        "replies_undelivered",
        "Replies that were never sent: too old, too many, or the service stopped.",
        stats.undelivered,
    )
    yield from _gauge(
        "requests_waiting", "Requests whose rate is being fetched.", service.bridge.waiting
    )
    yield from _gauge(
        "outbox_replies", "Replies that have not been written yet.", len(service.outbox)
    )


def _latency(stats: Stats) -> Iterator[str]:
    name = "ratebridge_answer_duration_seconds"
    yield _head(name, "histogram", "Time from reading a request until its reply can be written.")
    counts = list(accumulate(stats.latency.counts))
    for bound, count in zip((*LATENCY_BOUNDS, "+Inf"), counts, strict=True):
        yield f'{name}_bucket{{le="{bound}"}} {count}\n'
    yield f"{name}_sum {stats.latency.total}\n{name}_count {counts[-1]}\n"


def _connection(service: Service, now: float) -> Iterator[str]:
    stats = service.stats
    ready, _why = readiness(service, now)
    yield from _gauge("ready", "Whether requests are taken and answered, as /readyz says.", ready)
    yield from _gauge("connection_up", "Whether the websocket is open.", stats.link_up)
    yield from _counter("connections_opened", "Connections opened.", stats.links_opened)
    yield from _counters(
        "reconnects",
        "Connections lost and attempts failed, by reason; each led to another attempt.",
        ("reason",),
        _from_zero(LOSSES, stats.lost),
    )
    yield from _counter("heartbeats_received", "Heartbeats of the feed.", stats.heartbeats)
    yield from _gauges(
        "heartbeat_age_seconds",
        "Seconds since the last heartbeat of the feed; absent before the first.",
        (),
        {} if stats.heartbeat_at is None else {(): now - stats.heartbeat_at},
    )


def _rates(service: Service, now: float) -> Iterator[str]:
    stats = service.stats
    sources = service.chain.sources
    names = [source.name for source in sources]
    fetches: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(names, FETCHES), 0))
    fetches.update(stats.fetches)
    yield from _counters(
        "fetches",
        "Fetches of tables, retries included, by outcome: ok, or why it failed.",
        ("provider", "outcome"),
        fetches,
    )
    yield from _counters(
        "implausible_quotes",
        "Quotes that were not used because they cannot be true.",
        ("provider",),
        _from_zero(names, stats.implausible),
    )
    yield from _counter(
        "cache_hits",
        "Conversions by a cached rate; those from euro need no rate and are not counted.",
        stats.from_cache,
    )
    sheets = service.chain.cache.sheets
    held: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in names})
    held.update((sheet.provider,) for sheet in sheets)
    yield from _gauges("sheets", "Sheets of rates held, one a call.", ("provider",), held)
    oldest = min((sheet.fetched for sheet in sheets), default=None)
    yield from _gauges(
        "oldest_sheet_age_seconds",
        "Seconds since the oldest sheet held was fetched; absent with none.",
        (),
        {} if oldest is None else {(): (service.utc_now() - oldest).total_seconds()},
    )
    yield from _gauges(
        "quota_calls_left",
        "Calls left by the source's own report; absent without a recent report.",
        ("provider", "window"),
        {
            (source.name, window): left
            for source in sources
            for window, left in calls_left(stats, source, now).items()
        },
    )


def _audit(service: Service) -> Iterator[str]:
    """Nothing without an audit file."""
    audit = service.audit
    if audit is None:
        return
    yield from _gauge("audit_up", "Whether the audit file can be written.", audit.failing is None)
    yield from _gauge("audit_lines_waiting", "Lines not written yet.", audit.waiting)
    yield from _counter("audit_lines_lost", "Lines that will never be written.", audit.lost)


def _service(service: Service, now: float) -> Iterator[str]:
    yield from _counter(
        "internal_errors",
        "Internal errors after which the service went on; the log has their tracebacks.",
        service.stats.internal_errors,
    )
    yield from _counter(
        "log_lines_dropped",
        "Log lines lost because the reader was slow or gone.",
        lines_dropped(),
    )
    yield from _gauge("uptime_seconds", "Seconds since the start.", now - service.started)
    build = {"version": __version__, "python": platform.python_version()}
    values = {tuple(build.values()): 1}
    yield from _gauges("build_info", "Versions of the service and Python; always 1.", build, values)


def _process() -> Iterator[str]:
    """The standard metrics of a process; nothing without /proc."""
    try:
        stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
    except OSError:
        return
    seconds, pages = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    user, system, since_boot, virtual, resident = (int(stat[at]) for at in (11, 12, 19, 20, 21))
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot / seconds
    for name, kind, text, value in (
        ("cpu_seconds_total", "counter", "CPU time in seconds.", (user + system) / seconds),
        ("resident_memory_bytes", "gauge", "Resident memory in bytes.", resident * pages),
        ("virtual_memory_bytes", "gauge", "Virtual memory in bytes.", virtual),
        ("start_time_seconds", "gauge", "Start, in seconds since 1970.", time.time() - age),
        ("open_fds", "gauge", "Open file descriptors.", descriptors),
        (
            "max_fds",
            "gauge",
            "The limit of open file descriptors.",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        ),
    ):
        yield _head(f"process_{name}", kind, text) + f"process_{name} {value}\n"


def _from_zero(words: Iterable[str], counts: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    return {(word,): count for word, count in {**dict.fromkeys(words, 0), **counts}.items()}


def _counter(name: str, text: str, value: float) -> Iterator[str]:
    return _counters(name, text, (), {(): value})


def _counters(name: str, text: str, labels: Iterable[str], values: Values) -> Iterator[str]:
    return _family(f"ratebridge_{name}_total", "counter", text, labels, values)


def _gauge(name: str, text: str, value: float) -> Iterator[str]:
    return _gauges(name, text, (), {(): value})


def _gauges(name: str, text: str, labels: Iterable[str], values: Values) -> Iterator[str]:
    return _family(f"ratebridge_{name}", "gauge", text, labels, values)


def _family(
    name: str, kind: str, text: str, labels: Iterable[str], values: Values
) -> Iterator[str]:
    yield _head(name, kind, text)
    for key, value in values.items():
        pairs = ",".join(f'{label}="{word}"' for label, word in zip(labels, key, strict=True))
        yield f"{name}{{{pairs}}} {float(value)}\n" if pairs else f"{name} {float(value)}\n"


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
