"""The invariants, checked on the trace of a run.

Definitions. A request counts as received if its last byte was read from a connection
that was still up at a later instant, before the stop. A reply has left once the
system has taken the last byte of its frame. So a reply may be lost in a connection
that breaks with the bytes under way, but none leaves twice (at most once). A reply
that has not left when its write is cut short must begin the next connection, byte
for byte, unless it was reported as undelivered. TLS is the exception, because the
stream does not show how far a write has come: there the whole write is repeated, so
the peer may get its first replies twice (at least once).

Things also happen in time (liveness). On a connection that is up, what has arrived is
read at once; a request that was read is answered within the deadline of the rates; and
a reply is written within a second, not counting the time in which a write is stalled.
A connection counts as healthy until it is lost or until it has a fatal error.
"""

import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import zip_longest
from math import inf
from typing import Final

import attrs

from ratebridge import outbox
from ratebridge.settings import Settings

from .sources import ScriptedSource, acceptable
from .trace import Attempt, Trace
from .traffic import Ask, day_of, id_of, number_of, read_reply, to_euro
from .wire import CLOSE, PONG, TEXT, Mark, Wire, Write

TOLERANCE: Final = 1e-3  # s; on a virtual clock nothing takes time but waiting
GRACE: Final = 0.1  # s to read what has arrived, then the peer is silent
OPEN_WITHIN: Final = 5.0
WRITE_WITHIN: Final = 2.0 * 9 / 8  # s: it is polled eight times, and begins between two polls
CLOSE_WITHIN: Final = 1.0
LEAVES_WITHIN: Final = 1.0  # s from a reply to its write, on a healthy connection
STABLE_AFTER: Final = 5.0  # s up
BLIP: Final = 0.1
EAGER: Final = 1.0
EAGER_WAITS: Final = 8
FORBIDDEN: Final = (30.0, 33.0)
# s, and how many dials follow a dial within them at most: 7 are usual after a first
# failure, and full jitter makes 16 of them in one case of some ten million.
STORM: Final = (5.0, 16)
STOPPED: Final = "the service stopped"  # why a reply is undelivered
HEARTBEAT: Final = b'{"type":"heartbeat"}'

_ONE: Final = Decimal(1)
_ERROR: Final = re.compile(
    r'\{"type":"error","id":[^,]+,"message":"Unable to convert stake\. Error: [^\n]+"\}'
)


@attrs.frozen
class Batch:
    """A write with replies: their frames, and how many of these have left.

    It was taken from the queue at trio time `taken` at the earliest, and began `at`.
    """

    taken: float
    at: float
    replies: list[bytes]
    left: int


class Checker:
    """Checks one trace and adds the violations to it."""

    def __init__(
        self,
        trace: Trace,
        settings: Settings,
        sources: Sequence[ScriptedSource],
        utc_at: Callable[[float], datetime],
    ) -> None:
        self._trace = trace
        self._settings = settings
        self._sources = sources
        self._utc_at = utc_at
        self._stop_at = trace.stop_at

    def judge(self) -> None:
        self._check_stop()
        self._check_dials()
        for attempt in self._trace.attempts:
            self._check_opening(attempt)
            if attempt.wire is None:
                continue
            self._check_writes(attempt.wire)
            if max(attempt.up, attempt.lost) < inf:
                self._check_refresh(attempt.wire, attempt.up)
                self._check_staleness(attempt, attempt.wire, attempt.up)
                self._check_heartbeats_sent(attempt, attempt.wire, attempt.up, attempt.lost)
                self._check_pongs(attempt, attempt.wire)
                self._check_reading(attempt.wire, attempt.up, attempt.lost)
                self._check_goodbye(attempt, attempt.wire)
        self._check_order_of_what_was_refused()
        self._check_accounts()
        self._check_answers()
        self._check_departures()
        self._check_replies()
        self._check_refusals()

    def _complain(self, what: str, at: float | None = None) -> None:
        self._trace.complain(what, (self._trace.served_at or 0.0) if at is None else at)

    # The stop.

    def _check_stop(self) -> None:
        served_at = self._trace.served_at
        if served_at is None:
            self._complain("the service did not end")
            return
        stop_at = self._stop_at
        bound = self._settings.drain_timeout + CLOSE_WITHIN
        bound += self._trace.stalled(stop_at, served_at) + TOLERANCE
        if served_at - stop_at > bound:
            self._complain(f"the stop took {served_at - stop_at:.2f} s")
        self._check_drain()
        for attempt in self._trace.attempts:
            if attempt.wire is not None and attempt.wire.closed == inf:
                self._complain("a stream was left open", attempt.began)
            if attempt.lost == inf:
                self._complain("a link was left without an end", attempt.began)

    def _check_drain(self) -> None:
        """The stop discards requests from before it only after the drain timeout."""
        late = {ask.id for came, ask in self._asks().values() if came >= self._stop_at - TOLERANCE}
        over = self._stop_at + self._settings.drain_timeout - TOLERANCE
        for key, times in self._trace.undelivered.items():
            for at, why in times:
                if why == STOPPED and at < over and key not in late:
                    self._complain(f"{key} was undelivered {over - at:.2f} s too soon", at)

    def _check_goodbye(self, attempt: Attempt, wire: Wire) -> None:
        """A close ends a connection at the stop, and one at whose peer's fault it ends.

        So RFC 6455 has it (7.1.7), if the peer reads.
        """
        if attempt.end is None:
            return
        cause = attempt.end.cause
        if cause.reason in ("protocol-error", "oversized") and cause.code:
            self._check_close(attempt, wire, cause.code)
        elif cause.reason == "stopped" and _fatal(wire.arrived) == inf:
            self._check_close(attempt, wire, 1001)

    def _check_close(self, attempt: Attempt, wire: Wire, code: int) -> None:
        """One close frame with this code left, unless a write was stalled or refused."""
        closes = [f for write in wire.writes for f in write.frames if f.opcode == CLOSE]
        last = wire.writes[-2:]
        held_up = any(write.ended != write.at or not write.done for write in last)
        if not held_up and [frame.payload[:2] for frame in closes] != [code.to_bytes(2)]:
            self._complain(f"the link was closed by {closes}, not {code}", attempt.lost)

    # Connects and reconnects.

    def _check_dials(self) -> None:
        dials = [attempt.began for attempt in self._trace.attempts]
        span, most = STORM
        for first, last in zip(dials, dials[most:], strict=False):
            if last - first < span:
                self._complain(f"{most + 1} dials in {last - first:.2f} s", last)
                break
        failures = EAGER_WAITS  # since the last stable connection
        for before, after in zip(self._trace.attempts, self._trace.attempts[1:], strict=False):
            failures = 0 if _was_stable(before) else failures + 1
            self._check_wait(before, after, failures)

    def _check_wait(self, before: Attempt, after: Attempt, failures: int) -> None:
        if before.end is None:
            return
        waited = after.began - before.lost - self._trace.stalled(before.lost, after.began)
        end = before.end
        refused = end.cause.reason == "rejected"
        away = before.asked_to_stay_away if refused else 0.0
        most, why = self._settings.reconnect_max, "after a failure"
        if before.forbidden and refused:
            least, most = FORBIDDEN
            if after.began - before.lost < least - TOLERANCE:
                self._complain(f"came back {waited:.2f} s after a 401 or 403", after.began)
        elif failures == 0:
            most, why = BLIP, "after a blip"
        elif failures < EAGER_WAITS:
            most, why = min(most, EAGER), "soon after a stable link"
        if waited > max(most, away) + TOLERANCE:
            self._complain(f"waited {waited:.2f} s {why}", after.began)
        if after.began - before.lost < away - TOLERANCE:
            self._complain(f"waited {waited:.2f} s, asked for {away:g}", after.began)

    def _check_opening(self, attempt: Attempt) -> None:
        opened = min(attempt.up, attempt.lost)
        stalled = self._trace.stalled(attempt.began, opened)
        if opened - attempt.began > OPEN_WITHIN + stalled + TOLERANCE:
            self._complain(f"an opening took {opened - attempt.began:.2f} s", opened)

    # Open connections.

    def _check_refresh(self, wire: Wire, up: float) -> None:
        """A connection ends without heartbeats, and after a fatal error of the peer."""
        trace = self._trace
        closed = wire.closed
        fatal = max(_fatal(wire.read), up)
        beats = [max(at, up) for at, mark in wire.read if mark.kind == "beat"]
        for heard, then in zip([up, *beats], [*beats, closed], strict=True):
            bound = self._settings.heartbeat_timeout + GRACE
            if self._stop_at <= then:
                bound += CLOSE_WITHIN
            bound += trace.stalled(heard, then) + TOLERANCE
            if then - heard > bound:
                self._complain(f"no heartbeat for {then - heard:.2f} s, and no refresh", heard)
        bound = trace.stalled(fatal, closed) + _held_up(wire, fatal, closed) + TOLERANCE
        if fatal < self._stop_at and closed - fatal > bound:
            self._complain(f"the link lived on for {closed - fatal:.2f} s after its end", fatal)

    def _check_staleness(self, attempt: Attempt, wire: Wire, up: float) -> None:
        """A stale connection has had no heartbeat for the timeout, read or unread."""
        lost = attempt.lost
        if attempt.end is None or attempt.end.cause.reason != "stale":
            return
        beats = [at for at, mark in wire.read if mark.kind == "beat"]
        heard = max([up, *(at for at in beats if at < lost - TOLERANCE)])
        came = [at for at, mark in wire.arrived if mark.kind == "beat" and heard < at < lost]
        silence = max(then - at for at, then in zip([heard, *came], [*came, lost], strict=True))
        if silence < self._settings.heartbeat_timeout - TOLERANCE:
            self._complain(f"called stale, and was never silent for over {silence:.2f} s", lost)

    def _check_heartbeats_sent(self, attempt: Attempt, wire: Wire, up: float, lost: float) -> None:
        """One a period from the open on, except while a write is stalled."""
        sent = [
            write.at
            for write in wire.writes
            if any(frame.payload == HEARTBEAT for frame in write.frames)
        ]
        # The first is due at once.
        before = [up - self._settings.heartbeat_interval, *sent]
        for one, other in zip(before, [*sent, lost], strict=True):
            bound = self._settings.heartbeat_interval + TOLERANCE
            bound += self._trace.stalled(one, other) + _held_up(wire, one, other)
            if self._stop_at <= other:
                bound += CLOSE_WITHIN
            if other - one > bound:
                self._complain(f"{other - one:.2f} s between heartbeats of ours", other)

    def _check_writes(self, wire: Wire) -> None:
        for write in wire.writes:
            limit = WRITE_WITHIN if write.frames else OPEN_WITHIN
            limit += self._trace.stalled(write.at, write.ended) + TOLERANCE
            if write.ended - write.at > limit:
                self._complain(f"a write hung for {write.ended - write.at:.2f} s", write.at)

    def _check_pongs(self, attempt: Attempt, wire: Wire) -> None:
        """Each ping is answered, in order, unless a write is stalled."""
        pongs = [
            frame.payload
            for write in wire.writes
            for frame in write.frames
            if frame.opcode == PONG and write.taken  # a write of no byte may be repeated
        ]
        pings = [mark.what for _, mark in wire.read if mark.kind == "ping"]
        if not _is_subsequence(pongs, pings):
            self._complain("pongs that nobody asked for, or out of order", attempt.began)
        sure = [
            mark.what for at, mark in wire.read if mark.kind == "ping" and self._sure(attempt, at)
        ]
        held_up = any(write.ended != write.at for write in wire.writes)
        if not held_up and not _is_subsequence(sure, pongs):
            self._complain("a ping was not answered", attempt.began)

    # Liveness.

    def _check_reading(self, wire: Wire, up: float, lost: float) -> None:
        """What arrives on a healthy connection is read at once."""
        healthy_until = min(lost, _fatal(wire.arrived))
        for (came, mark), (read, _) in zip_longest(wire.arrived, wire.read, fillvalue=(inf, None)):
            since = self._trace.settled(max(came, up))
            till = min(read, healthy_until)
            if till - since > self._trace.stalled(since, till) + TOLERANCE:
                self._complain(f"{mark} was not read for {till - since:.2f} s", since)
                return

    def _check_answers(self) -> None:
        """A request that was read has its reply within the deadline of the rates."""
        due: defaultdict[str, list[float]] = defaultdict(list)
        for attempt, at, ask in self._trace.reads("ask"):
            if self._sure(attempt, at):
                since = self._trace.settled(max(at, attempt.up))
                till = since + self._settings.rate_deadline
                due[ask.id].append(till + self._trace.stalled(since, till) + TOLERANCE)
        for key, times in due.items():
            made = [reply.at for reply in self._trace.made.get(key, ())]
            for number, time in enumerate(sorted(times), start=1):
                if time < self._stop_at and sum(at <= time for at in made) < number:
                    self._complain(f"request {key} had no reply in time", time)

    def _check_departures(self) -> None:
        """A reply is written within a second while a healthy connection takes bytes."""
        trace = self._trace
        gone: defaultdict[str, list[float]] = defaultdict(list)
        for key, times in trace.undelivered.items():
            gone[key] += [at for at, _ in times]
        for batch in self._batches():
            for frame in batch.replies[: batch.left]:
                gone[id_of(frame.decode())].append(batch.at)
        healthy = [
            (attempt.wire, attempt.up, min(attempt.lost, self._stop_at, _fatal(attempt.wire.read)))
            for attempt in trace.attempts
            if attempt.wire is not None and max(attempt.up, attempt.lost) < inf
        ]
        for key, replies in trace.made.items():
            made = sorted(reply.at for reply in replies)
            for one, left in zip_longest(made, sorted(gone[key]), fillvalue=inf):
                for wire, up, until in healthy:
                    since, till = trace.settled(max(one, up)), min(left, until)
                    if till - since <= LEAVES_WITHIN:
                        continue
                    bound = LEAVES_WITHIN + trace.stalled(since, till)
                    if till - since > bound + _held_up(wire, since, till) + TOLERANCE:
                        self._complain(f"the reply {key} waited for {till - since:.2f} s", since)

    # The messages.

    def _sure(self, attempt: Attempt, at: float) -> bool:
        """Whether what was read at `at` must have been dealt with: see the module's text."""
        fatal = _fatal(attempt.wire.read) if attempt.wire is not None else 0.0
        settled = self._trace.settled(max(at, attempt.up))
        return settled + 1e-9 < min(fatal, attempt.lost, self._stop_at)

    def _batches(self) -> Iterator[Batch]:
        """Every write with replies, in order."""
        for attempt in self._trace.attempts:
            before: Write | None = None
            taken = 0.0
            for write in attempt.wire.writes if attempt.wire is not None else ():
                # It may have waited for others, of heartbeats and pongs, one after another.
                if before is None or before.ended != write.at:
                    taken = write.at
                before = write
                replies = [f for f in write.frames if f.opcode == TEXT and f.payload != HEARTBEAT]
                if replies:
                    counted = write.taken if write.done or not attempt.sealed else 0
                    left = sum(frame.end <= counted for frame in replies)
                    yield Batch(taken, write.at, [frame.payload for frame in replies], left)
                    taken = write.ended

    def _check_order_of_what_was_refused(self) -> None:
        unsent: deque[bytes] = deque()
        undelivered = Counter({key: len(times) for key, times in self._trace.undelivered.items()})
        for batch in self._batches():
            for frame in batch.replies:
                while unsent and unsent[0] != frame and undelivered[id_of(unsent[0].decode())] > 0:
                    undelivered[id_of(unsent.popleft().decode())] -= 1
                if unsent and unsent[0] == frame:
                    unsent.popleft()
                elif unsent:
                    self._complain(
                        f"{frame!r} went before {unsent[0]!r}, which was refused", batch.at
                    )
                    unsent.clear()
            unsent.extendleft(reversed(batch.replies[batch.left :]))

    def _check_accounts(self) -> None:
        """Each request received has one reply that left, or one undelivered."""
        trace = self._trace
        sure: Counter[str] = Counter()
        perhaps: Counter[str] = Counter()
        junk_sure: Counter[str] = Counter()
        junk_perhaps: Counter[str] = Counter()
        for attempt, at, ask in trace.reads("ask"):
            perhaps[ask.id] += 1
            sure[ask.id] += self._sure(attempt, at)
        for attempt, at, reason in trace.reads("junk"):
            junk_perhaps[reason] += 1
            junk_sure[reason] += self._sure(attempt, at)
        left: Counter[str] = Counter()
        for batch in self._batches():
            left.update(id_of(frame.decode()) for frame in batch.replies[: batch.left])
        self._trace.left = left.total()
        for key in {*perhaps, *trace.made, *trace.undelivered, *left}:
            made = len(trace.made.get(key, ()))
            undelivered = len(trace.undelivered.get(key, ()))
            figures = f"{made} made, {left[key]} left, {undelivered} undelivered"
            if not sure[key] <= left[key] + undelivered <= perhaps[key]:
                self._complain(f"request {key}: {sure[key]} to {perhaps[key]} received, {figures}")
            if left[key] > made or left[key] + undelivered < made:
                self._complain(f"request {key}: {figures}")
        for reason in {*junk_perhaps, *trace.dropped}:
            dropped = trace.dropped[reason]
            if not junk_sure[reason] <= dropped <= junk_perhaps[reason]:
                self._complain(
                    f"{reason}: {junk_sure[reason]} to {junk_perhaps[reason]} came, "
                    f"{dropped} dropped"
                )

    def _asks(self) -> dict[int, tuple[float, Ask]]:
        """Each request by its number, and when it was read."""
        return {ask.number: (at, ask) for _, at, ask in self._trace.reads("ask")}

    def _check_replies(self) -> None:
        """Every conversion is correct, byte for byte."""
        asks = self._asks()
        for batch in self._batches():
            for frame in batch.replies:
                reply, at = frame.decode(), batch.at
                number = number_of(reply)
                if number is None:
                    if not _ERROR.fullmatch(reply) or len(reply) - len(id_of(reply)) > 350:
                        self._complain(f"an odd error: {reply}", at)
                elif number not in asks:
                    self._complain(f"an answer to what was not asked: {reply}", at)
                else:
                    self._check_reply(*asks[number], reply, batch)

    def _check_reply(self, came: float, ask: Ask, reply: str, batch: Batch) -> None:
        trace, at = self._trace, batch.at
        read = read_reply(ask, reply)
        if read is None:
            self._complain(f"not an echo of {ask.text}: {reply}", at)
            return
        stake, made = read
        begin, settled = self._utc_at(came), self._utc_at(trace.settled(came))
        if not begin - timedelta(milliseconds=1) <= made <= self._utc_at(trace.settled(at)):
            self._complain(f"dated {made}, which is wrong: {reply}", at)
        oldest = outbox.OLDEST_REPLY + 0.002 + trace.stalled(came, at)
        if self._utc_at(batch.taken) - made > timedelta(seconds=oldest):
            self._complain(f"a reply was written when too old: {reply}", at)
        if ask.kind == "euro":
            wanted = {to_euro(ask.stake, _ONE, _ONE)}
        elif ask.kind == "rate":
            since = came - self._settings.cache_ttl - TOLERANCE
            wanted = {
                to_euro(ask.stake, units, euro)
                for day in {day_of(ask, begin), day_of(ask, settled)}
                # What was today's table when the request came still counts after midnight.
                for final in {day < begin.date(), day < made.date()}
                for units, euro in acceptable(
                    self._sources, day, ask.currency, final=final, since=since
                )
            }
        else:
            self._complain(f"converted what cannot be: {reply}", at)
            return
        if stake not in wanted:
            self._complain(f"{stake} is none of {sorted(wanted)[:4]}: {reply}", at)

    def _check_refusals(self) -> None:
        """Each refusal has a cause and is in time; nothing after the stop is converted."""
        trace = self._trace
        asks = self._asks()
        by_id: dict[str, list[Ask]] = {}
        for _, ask in asks.values():
            by_id.setdefault(ask.id, []).append(ask)
        stop = trace.settled(self._stop_at) + 1e-9
        for at, number in trace.converted:
            if asks[number][0] > stop:
                self._complain(f"request {number} came after the stop, and was converted", at)
        for key, replies in trace.made.items():
            for reply in replies:
                stalled = trace.stalled(reply.at - reply.seconds, reply.at)
                if reply.seconds > self._settings.rate_deadline + stalled + TOLERANCE:
                    self._complain(f"{key} was answered after {reply.seconds:.2f} s", reply.at)
                if not self._has_cause(reply.kind, reply.at, by_id.get(key, ())):
                    self._complain(f"{key} was refused as {reply.kind} without cause", reply.at)

    def _has_cause(self, kind: str, at: float, asks: Sequence[Ask]) -> bool:
        kinds = {ask.kind for ask in asks}
        match kind:
            case "converted":
                return bool(kinds & {"rate", "euro"})
            case "unknown-currency":
                return "unknown" in kinds or "lacking" in self._states(at)
            case "unavailable":
                return bool(kinds & {"rate", "unknown"}) and self._states(at) != {"up"}
            case "overloaded":
                return bool(kinds & {"rate", "unknown"})
            case "stopping":
                return at >= self._stop_at
            case "internal-error":
                return False
            case _:
                return "bad" in kinds

    def _states(self, at: float) -> set[str]:
        """The sources' states that can have affected a reply."""
        # A fetch may take the deadline, a failure is remembered for 5 s, stalls come on top.
        since = at - 20.0
        states = {state for source in self._sources for state in source.faults.during(since, at)}
        if self._trace.stalled(since, at):
            states.add("stalled")  # a fetch may have run out of time for it
        # A table without some of the currencies is kept as long as any other.
        before = {state for source in self._sources for state in source.faults.during(0.0, at)}
        return states | (before & {"lacking"})


def _was_stable(attempt: Attempt) -> bool:
    """Whether the connection was up long enough and had a heartbeat."""
    if attempt.end is None or attempt.wire is None or attempt.end.uptime < STABLE_AFTER:
        return False
    return any(mark.kind == "beat" for _, mark in attempt.wire.read)


def _fatal(marks: Sequence[tuple[float, Mark]]) -> float:
    """When the first fatal error of the peer came."""
    return next((at for at, mark in marks if mark.kind == "fatal"), inf)


def _held_up(wire: Wire, begin: float, end: float) -> float:
    """Seconds within a span of time during which a write was stalled."""
    return sum(max(0.0, min(write.ended, end) - max(write.at, begin)) for write in wire.writes)


def _is_subsequence(few: Sequence[bytes], many: Sequence[bytes]) -> bool:
    rest = iter(many)
    return all(one in rest for one in few)
