"""The figures of a running service: plain counters, which the log, metrics and page read."""

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from datetime import datetime
from typing import Final

import attrs

# Seconds. A reply by a cached rate takes about 0.0001, one that waits for a rate up to 5.
LATENCY_BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)

LACKING: Final = ("no-table", "bad-table")  # failures of one day, not of the source


@attrs.define
class Histogram:
    """Counts per bound of `LATENCY_BOUNDS` (and one beyond), and the total in seconds."""

    counts: list[int] = attrs.Factory(lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    total: float = 0.0
    slowest: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS, seconds)] += count
        self.total += seconds * count
        if seconds > self.slowest:
            self.slowest = seconds

    def take_slowest(self) -> float:
        """The slowest in seconds since the last call; 0 if there was none."""
        slowest, self.slowest = self.slowest, 0.0
        return slowest


@attrs.define
class SourceStats:
    """The last fetches from one rate source. Times are trio's; None: never."""

    fetched_at: float | None = None  # the end of the last fetch
    answered_at: float | None = None  # the end of the last successful fetch
    seconds: float = 0.0  # duration of the last successful fetch
    outcome: str = "ok"  # of the last fetch, a word
    failure: str = ""  # of the last fetch, half a sentence
    limited_until: float | None = None
    limit: str = ""  # why it is not asked until then, in half a sentence


@attrs.define
class RecentError:
    """A kind of error: when it last occurred, its last text, and its count."""

    at: datetime
    words: str
    count: int = 1


@attrs.define
class Stats:
    """Counts since the start. The keys of the counters are fixed words."""

    converted: int = 0
    from_cache: int = 0  # conversions by a cached rate
    refused: Counter[str] = attrs.Factory(Counter)
    dropped: Counter[str] = attrs.Factory(Counter)
    undelivered: int = 0
    latency: Histogram = attrs.Factory(Histogram)

    link_up: bool = False
    link_since: float | None = None  # trio time of the last change
    link_ended: str = ""  # why the last connection or attempt ended: a word and a detail
    retry_at: float | None = None  # trio time of the next attempt
    links_opened: int = 0
    lost: Counter[str] = attrs.Factory(Counter)
    internal_errors: int = 0
    heartbeats: int = 0
    heartbeat_at: float | None = None  # trio time of the last one, on any connection
    heartbeat_gaps: deque[float] = attrs.Factory(lambda: deque(maxlen=120))

    fetches: Counter[tuple[str, str]] = attrs.Factory(Counter)  # (provider, class of outcome)
    implausible: Counter[str] = attrs.Factory(Counter)  # quotes, by provider
    sources: defaultdict[str, SourceStats] = attrs.Factory(lambda: defaultdict(SourceStats))
    # One of each kind, so that a frequent one does not displace the others.
    recent_errors: dict[str, RecentError] = attrs.Factory(dict)

    @property
    def answered(self) -> int:
        """Replies made, conversions and errors."""
        return self.converted + self.refused.total()
