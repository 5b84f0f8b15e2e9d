"""The figures of a running service: plain numbers, cheap to count, for logs and metrics to read.

Counting costs a few additions on the way of a message; what the figures look
like to Prometheus or on the status page is decided when somebody asks.
"""

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from datetime import datetime
from typing import Final

import attrs

# Seconds. A reply by a cached rate takes some 0.0001, one that waits for a rate up to 5.
LATENCY_BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)


@attrs.define
class Histogram:
    """Counts per bound of `LATENCY_BOUNDS` (and one beyond), and their sum in seconds.

    `slowest` is the largest since somebody last took it.
    """

    counts: list[int] = attrs.Factory(lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    total: float = 0.0
    slowest: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.total += seconds
        if seconds > self.slowest:
            self.slowest = seconds

    def take_slowest(self) -> float:
        """The slowest in seconds since the last taking; 0 when there was none."""
        slowest, self.slowest = self.slowest, 0.0
        return slowest


@attrs.define
class SourceStats:
    """How one rate source has been lately. Times are trio's; None is never."""

    fetched_at: float | None = None  # when the last fetch ended, well or not
    answered_at: float | None = None  # when the last successful one did
    seconds: float = 0.0  # that the last successful one took
    outcome: str = "ok"  # of the last fetch, a word
    failure: str = ""  # the same in half a sentence, where it failed
    limited_until: float | None = None
    limit: str = ""  # why it is not asked until then, in half a sentence


def outcome_class(outcome: str) -> str:
    """The outcome of a fetch, with the HTTP statuses brought together by their class."""
    if not outcome.startswith("http-"):
        return outcome
    return f"http-{outcome[5]}xx" if outcome[5:6] in "345" and len(outcome) == 8 else "http-other"


@attrs.define
class RecentError:
    """A kind of error: when it last occurred, in which words, and how often it has."""

    at: datetime
    words: str
    count: int = 1


@attrs.define
class Stats:
    """What has happened since the start. The keys of the counters are stable words of ours."""

    converted: int = 0
    from_cache: int = 0  # conversions by a cached rate; those from euro need none
    refused: Counter[str] = attrs.Factory(Counter)
    dropped: Counter[str] = attrs.Factory(Counter)
    undelivered: int = 0
    latency: Histogram = attrs.Factory(Histogram)

    link_up: bool = False
    link_since: float | None = None  # trio time of the last change
    link_ended: str = ""  # why the last link, or attempt, ended: a word, and some more for people
    retry_at: float | None = None  # trio time of the next attempt
    links_opened: int = 0
    lost: Counter[str] = attrs.Factory(Counter)
    internal_errors: int = 0
    audit_failing: bool = False
    heartbeats: int = 0
    heartbeat_at: float | None = None  # trio time of the last one, on whichever link
    heartbeat_gaps: deque[float] = attrs.Factory(lambda: deque(maxlen=120))

    fetches: Counter[tuple[str, str]] = attrs.Factory(Counter)  # (provider, class of outcome)
    implausible: Counter[str] = attrs.Factory(Counter)  # quotes, by provider
    sources: defaultdict[str, SourceStats] = attrs.Factory(lambda: defaultdict(SourceStats))
    # By kind, so that many of one hide no other.
    recent_errors: dict[str, RecentError] = attrs.Factory(dict)

    @property
    def answered(self) -> int:
        """Every reply made, conversions and errors."""
        return self.converted + self.refused.total()
