"""The figures of a running service: plain counters, which the log, the metrics and the page read.

The keys of the counters are the words of `errors`, each there from the start, because Prometheus'
rate() needs the zero before the first event. Times are trio's, in seconds; None means never.
"""

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from datetime import datetime
from itertools import accumulate
from typing import Final

import attrs

from ..errors import Drop, FetchOutcome, Loss, Refusal
from ..rates import Rate

# Seconds. A reply by a cached rate takes about 0.0001, one that waits for a rate up to 5.
LATENCY_BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
FETCH_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # a fetch ends after 30 s
MOST_RECENT: Final = 4096  # durations kept for the percentiles of a second

LACKING: Final = (FetchOutcome.NO_TABLE, FetchOutcome.BAD_TABLE)  # failures of one day only


@attrs.define
class Histogram:
    """Counts per bound (and one beyond), their total in seconds, and the latest durations."""

    bounds: tuple[float, ...] = LATENCY_BOUNDS
    counts: list[int] = attrs.Factory(lambda self: [0] * (len(self.bounds) + 1), takes_self=True)
    total: float = 0.0
    _recent: deque[tuple[float, int]] = attrs.Factory(lambda: deque(maxlen=MOST_RECENT))

    def add(self, seconds: float, count: int = 1) -> None:
        """Count `count` durations of so many seconds each. One on a bound is not above it."""
        self.counts[bisect_left(self.bounds, seconds)] += count
        self.total += seconds * count
        self._recent.append((seconds, count))

    def take_percentiles(self) -> tuple[float | None, float | None]:
        """p50 and p99 in seconds of what came since the last call, by the nearest rank."""
        if not self._recent:
            return None, None
        recent = sorted(self._recent)
        self._recent.clear()
        ranks = list(accumulate(count for _, count in recent))
        p50, p99 = (recent[bisect_left(ranks, share * ranks[-1])][0] for share in (0.5, 0.99))
        return p50, p99


@attrs.define
class SourceStats:
    """The fetches from one rate source."""

    fetches: Counter[FetchOutcome] = attrs.Factory(lambda: Counter(dict.fromkeys(FetchOutcome, 0)))
    durations: Histogram = attrs.Factory(lambda: Histogram(FETCH_BOUNDS))  # of successful ones
    implausible: int = 0  # quotes
    fetched_at: float | None = None  # the end of the last fetch
    answered_at: float | None = None  # the end of the last successful fetch
    seconds: float = 0.0  # duration of the last successful fetch
    outcome: FetchOutcome = FetchOutcome.OK  # of the last fetch
    failure: str = ""  # of the last fetch, a phrase whose subject is the source
    limited_until: float | None = None
    limit: str = ""  # why it is not asked until then, such a phrase too


@attrs.define
class CurrencyStats:
    """The conversions from one currency. A float is exact enough for a volume."""

    converted: int = 0
    euros: float = 0.0
    rate: Rate | None = None  # the last one used


@attrs.define
class RecentError:
    """A kind of error: its event, when it last occurred, its last text, and its count."""

    event: str
    at: datetime
    words: str
    count: int = 1


@attrs.define
class Stats:
    """Counts since the start."""

    converted: int = 0
    currencies: defaultdict[str, CurrencyStats] = attrs.Factory(lambda: defaultdict(CurrencyStats))
    refused: Counter[Refusal] = attrs.Factory(lambda: Counter(dict.fromkeys(Refusal, 0)))
    dropped: Counter[Drop] = attrs.Factory(lambda: Counter(dict.fromkeys(Drop, 0)))
    undelivered: int = 0
    latency: Histogram = attrs.Factory(Histogram)
    failed_at: float | None = None  # when a request was refused through no fault of its own,
    failed: str = ""  # and why; nothing again after a successful fetch

    link_up: bool = False
    link_since: float | None = None  # the last change
    link_ended: str = ""  # why the last connection or attempt ended: a word and a detail
    retry_at: float | None = None  # the next attempt
    links_opened: int = 0
    lost: Counter[Loss] = attrs.Factory(lambda: Counter(dict.fromkeys(Loss, 0)))
    heartbeats: int = 0
    heartbeat_at: float | None = None  # the last one, on any connection
    heartbeat_gaps: deque[float] = attrs.Factory(lambda: deque(maxlen=120))

    sources: defaultdict[str, SourceStats] = attrs.Factory(lambda: defaultdict(SourceStats))
    stalls: int = 0
    clock_jumps: int = 0
    internal_errors: int = 0
    # One of each kind, so that a frequent one does not displace the others.
    recent_errors: dict[str, RecentError] = attrs.Factory(dict)
