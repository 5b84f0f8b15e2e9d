"""The figures of a running service: plain numbers, cheap to count, for logs and metrics to read.

Counting costs a few additions on the way of a message; what the figures look
like to Prometheus or on the status page is decided when somebody asks.
"""

from bisect import bisect_left
from collections import Counter, deque
from datetime import datetime
from typing import Final

import attrs

# Seconds. A reply from a table at hand takes some 0.0001, one that waits for a rate up to 5.
LATENCY_BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
TROUBLES: Final = 20  # how many of the last troubles are kept for the status page


@attrs.define
class Histogram:
    """Counts per bound of `LATENCY_BOUNDS` (and one beyond), and their sum in seconds."""

    counts: list[int] = attrs.Factory(lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.total += seconds


@attrs.define
class Stats:
    """What has happened since the start. The keys of the counters are stable words of ours."""

    converted: int = 0
    from_cache: int = 0
    refused: Counter[str] = attrs.Factory(Counter)
    dropped: Counter[str] = attrs.Factory(Counter)
    given_up: int = 0
    latency: Histogram = attrs.Factory(Histogram)

    link_up: bool = False
    link_since: float | None = None  # trio time of the last change
    links_opened: int = 0
    lost: Counter[str] = attrs.Factory(Counter)
    crashes: int = 0
    heartbeats: int = 0
    heartbeat_at: float | None = None  # trio time
    heartbeat_gaps: deque[float] = attrs.Factory(lambda: deque(maxlen=120))

    fetches: Counter[tuple[str, str]] = attrs.Factory(Counter)  # (provider, outcome)
    troubles: deque[tuple[datetime, str]] = attrs.Factory(lambda: deque(maxlen=TROUBLES))

    @property
    def answered(self) -> int:
        """Every reply made, conversions and errors."""
        return self.converted + self.refused.total()
