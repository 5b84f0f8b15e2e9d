"""The readiness of a running service, its history, and the data of the status page.

`now` is trio's time in seconds, which only `Chart.keep` reads itself. The results are plain
data for JSON.
"""

from collections import deque
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import attrs
import trio

from ..bridge import Bridge
from ..dates import wire_time
from ..errors import FetchOutcome
from ..outbox import Outbox
from ..providers.chain import RateChain
from ..providers.source import Quota, Source
from ..reporting.stats import LACKING, Stats
from ..settings import Settings
from ..version import __version__
from .audit import Audit

SAMPLES: Final = 600  # a second each: the ten minutes that the page shows
PLAIN: Final = attrs.filters.include(
    *("converted", "refused", "dropped", "undelivered", "heartbeats"),
    *("link_up", "link_ended", "links_opened", "lost", "internal_errors"),
)
RATE: Final = ("text", "provider", "day", "asked")  # of the rate last used
FAILED_FOR: Final = 60.0  # s: without requests nobody knows whether they would still fail


@attrs.frozen
class Service:
    """The parts of a running service, as the status server reads them; it changes none.

    `started` is when it started, in trio time. `utc_now` is the wall clock, aware UTC. `audit` is
    None without an audit file.
    """

    settings: Settings
    stats: Stats
    bridge: Bridge
    outbox: Outbox
    chain: RateChain
    started: float
    utc_now: Callable[[], datetime]
    audit: Audit | None = None


class Status(StrEnum):
    """Whether requests are answered."""

    READY = "ready"
    DEGRADED = "degraded"
    NOT_READY = "not ready"
    STOPPING = "stopping"

    @property
    def is_ready(self) -> bool:
        """Whether the connection is up and requests are taken, be it that some fail."""
        return self in (Status.READY, Status.DEGRADED)


def heartbeat_age(stats: Stats, now: float) -> float | None:
    """Seconds since the last heartbeat on the present connection; None if it has had none."""
    if not stats.link_up or stats.heartbeat_at is None or stats.link_since is None:
        return None
    return now - stats.heartbeat_at if stats.heartbeat_at >= stats.link_since else None


def readiness(service: Service, now: float) -> tuple[Status, str]:
    """The status, and one line for people on why.

    It is degraded if a request was refused through no fault of its own within `FAILED_FOR`, and
    no fetch has succeeded since; or if the audit file cannot be written.
    """
    stats, audit = service.stats, service.audit
    if service.bridge.stopping:
        return Status.STOPPING, "stopping"
    if not stats.link_up:
        why = f"no connection yet, {now - service.started:.1f} s after the start"
        if stats.link_since is not None:
            why = f"no connection for {now - stats.link_since:.1f} s"
        return Status.NOT_READY, f"{why}: {stats.link_ended}".removesuffix(": ")
    age = heartbeat_age(stats, now)
    if age is None:
        return Status.NOT_READY, "the connection is up, but no heartbeat has come on it yet"
    last = f"its last heartbeat came {age:.1f} s ago"
    if age >= service.settings.heartbeat_timeout:
        return Status.NOT_READY, f"the connection is up, but {last}"
    up = f"the connection is up, {last}"
    if stats.failed_at is not None and now - stats.failed_at < FAILED_FOR:
        return Status.DEGRADED, f"{up}, but requests fail: {stats.failed}"
    if audit is not None and audit.failing is not None:
        return Status.DEGRADED, f"{up}, but the audit file cannot be written: {audit.failing}"
    return Status.READY, up


class Chart:
    """The last ten minutes, a sample a second. `taken` counts the samples since the start.

    A sample has the converted and the refused requests a second, and the p50 and the p99 of the
    times to answer in milliseconds, None if there was no answer.
    """

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._samples: deque[list[float | None]] = deque(maxlen=SAMPLES)
        self._before = stats.converted, stats.refused.total()
        stats.latency.take_percentiles()
        self.taken = 0

    def take(self, elapsed: float) -> None:
        """Take a sample of the `elapsed` seconds (above 0) since the one before."""
        counts = self._stats.converted, self._stats.refused.total()
        rates = [(now - old) / elapsed for now, old in zip(counts, self._before, strict=True)]
        self._before = counts
        percentiles = self._stats.latency.take_percentiles()
        times = [None if one is None else round(one * 1000, 4) for one in percentiles]
        self._samples.append([*(round(rate, 2) for rate in rates), *times])
        self.taken += 1

    def since(self, taken: int) -> list[list[float | None]]:
        """The samples kept that came after the first `taken` ones."""
        return list(self._samples)[-(self.taken - taken) :] if taken < self.taken else []

    async def keep(self) -> None:
        """Take a sample each second, until cancelled."""
        before = trio.current_time()
        while True:
            await trio.sleep(1.0)
            now = trio.current_time()
            self.take(now - before)
            before = now


def overview(service: Service, history: Chart, now: float, taken: int = 0) -> dict[str, Any]:
    """The data of the status page, with the samples after the first `taken`; times in seconds.

    `stats` has the names of `Stats`. It holds clipped texts of peers, which the page must escape.
    """
    stats, audit, feed = service.stats, service.audit, service.settings.feed
    status, why = readiness(service, now)
    errors = sorted(stats.recent_errors.values(), key=lambda error: error.at, reverse=True)
    heartbeat = {"age": heartbeat_age(stats, now), "timeout": service.settings.heartbeat_timeout}
    return {
        "version": __version__,
        "feed": feed.authority if feed else None,
        "now": wire_time(service.utc_now()),
        "uptime": now - service.started,
        "status": status,
        "why": why,
        "stats": attrs.asdict(stats, filter=PLAIN),
        "link_age": None if stats.link_since is None else now - stats.link_since,
        "retry_in": None if stats.retry_at is None else max(0.0, stats.retry_at - now),
        "heartbeat": heartbeat | {"gaps": [round(gap, 3) for gap in stats.heartbeat_gaps]},
        "waiting": service.bridge.waiting,
        "outbox": len(service.outbox),
        "audit": audit and {name: getattr(audit, name) for name in ("failing", "waiting", "lost")},
        "currencies": [
            {"currency": currency, "converted": one.converted, "euros": round(one.euros, 2)}
            | ({} if one.rate is None else {name: str(getattr(one.rate, name)) for name in RATE})
            for currency, one in sorted(
                stats.currencies.items(), key=lambda item: (-item[1].converted, item[0])
            )
        ],
        "sources": [_source(stats, source, now) for source in service.chain.sources],
        "recent_errors": [attrs.asdict(error) | {"at": wire_time(error.at)} for error in errors],
        "taken": history.taken,
        "samples": history.since(taken),
    }


def _source(stats: Stats, source: Source, now: float) -> dict[str, Any]:
    """How a source's last fetch ended, and how long ago."""
    seen, quota = stats.sources[source.name], source.quota or Quota()
    answered = seen.fetches[FetchOutcome.OK]
    limited_for = max(0.0, (seen.limited_until or now) - now)
    state, failure = "succeeded" if answered else "not asked yet", seen.failure
    if limited_for:
        state, failure = "rate-limited", seen.limit
    elif failure:
        state = "incomplete" if seen.outcome in LACKING and answered else "failed"
    return {
        "name": source.name,
        "state": state,
        "failure": failure,
        "limited_for": limited_for,
        "answered": answered,
        "failed": seen.fetches.total() - answered,
        "implausible": seen.implausible,
        "fetched_ago": None if seen.fetched_at is None else now - seen.fetched_at,
        "answered_ago": None if seen.answered_at is None else now - seen.answered_at,
        "took": seen.seconds,
        "month_left": quota.month_left,
        "month_total": quota.month_total,
    }
