"""The readiness of a running service, its history, and the data of the status page.

`now` is trio's time in seconds, which only `History.keep` reads itself. The results are plain
data for JSON.
"""

from collections import deque
from collections.abc import Callable
from datetime import date, datetime, timedelta
from statistics import median
from typing import Any, Final

import attrs
import trio

from .. import __version__
from ..bridge import Bridge
from ..dates import wire_time
from ..outbox import Outbox
from ..providers.chain import RateChain
from ..providers.source import Quota, Source
from ..rates import RateSheet
from ..settings import Settings
from .audit import Audit
from .stats import LACKING, SourceStats, Stats

SAMPLES: Final = 600  # a second each: the ten minutes that the page shows
MOST_SHOWN: Final = 60  # tables in an overview, the newest days: two months of one source


@attrs.frozen
class Service:
    """The parts of a running service. `started` is when it started, in trio time."""

    settings: Settings
    stats: Stats
    bridge: Bridge
    outbox: Outbox
    chain: RateChain
    started: float
    utc_now: Callable[[], datetime]
    audit: Audit | None = None


def heartbeat_age(stats: Stats, now: float) -> float | None:
    """Seconds since the last heartbeat on the present connection; None if it has had none."""
    if not stats.link_up or stats.heartbeat_at is None or stats.link_since is None:
        return None
    return now - stats.heartbeat_at if stats.heartbeat_at >= stats.link_since else None


def readiness(service: Service, now: float) -> tuple[bool, str]:
    """Whether requests are answered, and one line for people on why."""
    stats = service.stats
    if service.bridge.stopping:
        return False, "stopping"
    if not stats.link_up:
        if stats.link_since is None:
            since = f"no connection yet, {now - service.started:.1f} s after the start"
        else:
            since = f"no connection for {now - stats.link_since:.1f} s"
        return False, f"{since}: {stats.link_ended}" if stats.link_ended else since
    age = heartbeat_age(stats, now)
    if age is None:
        return False, "the connection is up, but no heartbeat has come on it yet"
    if age >= service.settings.heartbeat_timeout:
        return False, f"the connection is up, but its last heartbeat came {age:.1f} s ago"
    return True, f"the connection is up, its last heartbeat came {age:.1f} s ago"


def calls_left(stats: Stats, source: Source, now: float) -> dict[str, int]:
    """The calls left by the source's own report, by "minute" and "month" if reported.

    The report for a minute is valid for a minute.
    """
    quota = source.quota or Quota()
    fetched_at = stats.sources.get(source.name, SourceStats()).fetched_at
    left = {}
    if quota.minute_left is not None and fetched_at is not None and now - fetched_at < 60:
        left["minute"] = quota.minute_left
    if quota.month_left is not None:
        left["month"] = quota.month_left
    return left


@attrs.frozen
class Sample:
    """About a second: converted and refused requests a second, and times to answer in seconds.

    `mean` and `slowest` are None if there was no answer.
    """

    converted: float
    refused: float
    mean: float | None
    slowest: float | None


class History:
    """The last ten minutes, a sample a second. `taken` counts the samples since the start."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._before = self._counts()
        stats.latency.take_slowest()
        self.taken = 0

    def _counts(self) -> tuple[int, int, int, float]:
        stats = self._stats
        latency = stats.latency
        return stats.converted, stats.refused.total(), sum(latency.counts), latency.total

    def take(self, elapsed: float) -> None:
        """Take a sample of the `elapsed` seconds (above 0) since the one before."""
        counts = self._counts()
        converted, refused, answers, seconds = (
            now - before for now, before in zip(counts, self._before, strict=True)
        )
        self._before = counts
        slowest = self._stats.latency.take_slowest()
        self._samples.append(
            Sample(
                converted / elapsed,
                refused / elapsed,
                seconds / answers if answers else None,
                slowest if answers else None,
            )
        )
        self.taken += 1

    def since(self, taken: int) -> list[Sample]:
        """The samples kept that came after the first `taken` ones."""
        samples = list(self._samples)
        return samples[max(0, len(samples) - max(0, self.taken - taken)) :]

    async def keep(self) -> None:
        """Take a sample each second, until cancelled."""
        before = trio.current_time()
        while True:
            await trio.sleep(1.0)
            now = trio.current_time()
            self.take(now - before)
            before = now


def overview(service: Service, history: History, now: float, taken: int = 0) -> dict[str, Any]:
    """The data of the status page, with the samples after the first `taken`; times in seconds.

    It holds clipped texts of peers, which the page must escape.
    """
    stats = service.stats
    today = service.utc_now()
    ready, why = readiness(service, now)

    def instant(at: float) -> str:
        return wire_time(today - timedelta(seconds=now - at))

    sheets = sorted(service.chain.cache.sheets, key=lambda sheet: sheet.provider)
    sheets.sort(key=lambda sheet: sheet.last, reverse=True)
    recent_errors = sorted(stats.recent_errors.values(), key=lambda error: error.at, reverse=True)
    feed = service.settings.feed
    return {
        "version": __version__,
        "feed": feed.authority if feed else None,
        "now": wire_time(today),
        "uptime": now - service.started,
        "ready": ready,
        "why": why,
        "stopping": service.bridge.stopping,
        "connection": {
            "up": stats.link_up,
            "since": None if stats.link_since is None else instant(stats.link_since),
            "age": None if stats.link_since is None else now - stats.link_since,
            "opened": stats.links_opened,
            "lost": stats.lost.total(),
            "last_ended": stats.link_ended or None,
            "retry_in": None if stats.retry_at is None else max(0.0, stats.retry_at - now),
        },
        "heartbeat": {
            "received": stats.heartbeats,
            "age": heartbeat_age(stats, now),
            "timeout": service.settings.heartbeat_timeout,
            "gaps": [round(gap, 3) for gap in list(stats.heartbeat_gaps)[-60:]],
            "median": median(stats.heartbeat_gaps) if stats.heartbeat_gaps else None,
            "longest": max(stats.heartbeat_gaps, default=None),
        },
        "messages": {
            "converted": stats.converted,
            "refused": dict(stats.refused.most_common()),
            "dropped": dict(stats.dropped.most_common()),
            "undelivered": stats.undelivered,
            "waiting": service.bridge.waiting,
            "outbox": len(service.outbox),
            "cache_hits": stats.from_cache,
            "internal_errors": stats.internal_errors,
        },
        "audit": None if (audit := service.audit) is None else _audit(audit),
        "sources": [_source(service, source, now) for source in service.chain.sources],
        "sheets": {
            "held": len(sheets),
            "shown": [
                {
                    "asked": sheet.asked,
                    "provider": sheet.provider,
                    "days": sheet.days,
                    "currencies": len(sheet.currencies),
                    "age": (today - sheet.fetched).total_seconds(),
                    "remark": _remark(sheet, today.date()),
                }
                for sheet in sheets[:MOST_SHOWN]
            ],
        },
        "recent_errors": [
            {"at": wire_time(error.at), "words": error.words, "count": error.count}
            for error in recent_errors
        ],
        "history": {
            "taken": history.taken,
            "samples": [_rounded(sample) for sample in history.since(taken)],
        },
    }


def _remark(sheet: RateSheet, today: date) -> str:
    """Why a sheet may still change, if so."""
    if sheet.is_final(sheet.last):
        return ""
    return "with today" if sheet.last == today else "not final"


def _source(service: Service, source: Source, now: float) -> dict[str, Any]:
    """How a source's last fetch ended, and how long ago."""
    stats = service.stats
    seen = stats.sources.get(source.name, SourceStats())
    left = calls_left(stats, source, now)
    answered = stats.fetches[source.name, "ok"]
    asked = sum(count for (name, _), count in stats.fetches.items() if name == source.name)
    limited_for = 0.0 if seen.limited_until is None else seen.limited_until - now
    failure = seen.failure
    if limited_for > 0:
        state = "rate-limited"
        failure = seen.limit
    elif seen.failure:
        state = "incomplete" if seen.outcome in LACKING and answered else "failed"
    else:
        state = "succeeded" if answered else "not asked yet"
    return {
        "name": source.name,
        "state": state,
        "failure": failure or None,
        "limited_for": limited_for if limited_for > 0 else None,
        "answered": answered,
        "failed": asked - answered,
        "implausible": stats.implausible[source.name],
        "fetched_ago": None if seen.fetched_at is None else now - seen.fetched_at,
        "answered_ago": None if seen.answered_at is None else now - seen.answered_at,
        "took": None if seen.answered_at is None else seen.seconds,
        "minute_left": left.get("minute"),
        "month_left": left.get("month"),
        "month_total": source.quota.month_total if source.quota else None,
    }


def _audit(audit: Audit) -> dict[str, Any]:
    return {"failing": audit.failing, "waiting": audit.waiting, "lost": audit.lost}


def _rounded(sample: Sample) -> list[float | None]:
    """A sample for JSON, times in milliseconds, rounded for a chart."""
    return [
        round(sample.converted, 2),
        round(sample.refused, 2),
        None if sample.mean is None else round(sample.mean * 1000, 4),
        None if sample.slowest is None else round(sample.slowest * 1000, 4),
    ]
