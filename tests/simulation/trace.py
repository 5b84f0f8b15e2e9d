"""The trace of one simulation: written while it runs, checked when it is over."""

from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

import attrs
import trio
from support import SessionEnd

from .wire import MarkKind, Wire


@attrs.define(eq=False)
class Attempt:
    """One attempt, from the dial to the end. Times are trio's, infinite if not reached."""

    began: float
    wire: Wire | None = None
    sealed: bool = False  # it does not tell how far a write has come
    up: float = inf
    lost: float = inf
    end: SessionEnd | None = None
    asked_to_stay_away: float = 0.0  # s, by a Retry-After that the service can have read
    forbidden: bool = False  # its upgrade was answered with 401 or 403


@attrs.frozen
class Made:
    """A reply that the service says it made: its kind is "converted" or that of an error."""

    at: float
    kind: str
    seconds: float


@attrs.define(eq=False)
class Trace:
    """The record of a run. `log` gets each line as it is written."""

    log: Callable[[str], None] | None = None
    attempts: list[Attempt] = attrs.Factory(list)
    stalls: list[tuple[float, float]] = attrs.Factory(list)  # of our own loop, from and to
    made: dict[str, list[Made]] = attrs.Factory(dict)  # by id, raw JSON
    converted: list[tuple[float, int]] = attrs.Factory(list)  # (time, number of the request)
    undelivered: dict[str, list[tuple[float, str]]] = attrs.Factory(dict)  # by id: when, and why
    left: int = 0  # replies that the system has taken
    dropped: Counter[str] = attrs.Factory(Counter)
    stop_at: float = inf
    served_at: float | None = None
    faults: Counter[str] = attrs.Factory(Counter)
    violations: list[str] = attrs.Factory(list)
    on: Callable[[str], None] = lambda _moment: None

    def note(self, event: str, **fields: Any) -> None:
        """A line of the log."""
        if self.log is not None:
            words = " ".join(f"{name}={value}" for name, value in fields.items())
            self.log(f"{trio.current_time():10.4f}  {event:<20} {words}".rstrip())

    def fault(self, name: str) -> None:
        """A fault, or another state worth counting, has come into play."""
        self.faults[name] += 1
        self.note("~", fault=name)

    def complain(self, what: str, at: float | None = None) -> None:
        """An invariant is violated."""
        if at is None:
            at = trio.current_time()
        self.violations.append(f"at {at:.4f}: {what}")
        if self.log is not None:
            self.log(f"{at:10.4f}  VIOLATION            {what}")

    def reads(self, kind: MarkKind) -> list[tuple[Attempt, float, Any]]:
        """What of this kind was read: on which connection, when, and what."""
        return [
            (attempt, at, mark.what)
            for attempt in self.attempts
            if attempt.wire is not None
            for at, mark in attempt.wire.read
            if mark.kind == kind
        ]

    def stalled(self, begin: float, end: float) -> float:
        """Seconds for which our own loop stood still, in stalls begun within a span of time."""
        return sum(to - since for since, to in self.stalls if begin - 1e-9 <= since <= end + 1e-9)

    def settled(self, at: float) -> float:
        """When our loop goes on after `at`: behind the stall that begins or lasts then, if any."""
        for since, to in self.stalls:
            if since - 1e-9 < at < to:
                at = to
        return at
