"""What the service reports of itself: one method per fact, which counts it and logs it.

The other modules call these and stay free of logs, metrics and files. Each method is called from
the event loop, returns at once and does not raise.

No peer can fill the log: at most ten lines of a kind are written in any minute. `log.limited`
counts the others, once a minute and at the end, with the first and the last id of undelivered
replies. Its level is the highest of theirs. At the level debug every line is written; those
beyond the ten have that level.

Events have stable names: `connection.up`, `connection.lost`, `connection.failed`,
`connection.down`, `loop.stalled`, `rates.fetched`, `rates.failed`, `rates.recovered`,
`rates.limited`, `rates.implausible`, `clock.jumped`, `clock.differs`, `message.dropped`,
`conversion.done`, `conversion.failed`, `reply.undelivered`, `internal_error`, `summary`,
`audit.failed`, `audit.lost`, `audit.recovered`, `audit.reopened`, `log.limited`,
`status.listening`, `status.failed`, `tls.unverified`, `settings.unknown`, `settings.no_proxy`,
`service.started`, `service.stopping`, `service.stopped`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any, Final, Protocol, TypeAlias

import attrs
import trio

from ..errors import Drop, FetchOutcome, LinkFailed, NoRate, Refusal, Refused, SourceFailed
from ..messages import Request, clipped
from ..rates import Rate, RateSheet
from .logs import LineLimit, library_limit
from .stats import LACKING, RecentError, Stats

Converted: TypeAlias = tuple[Request, str, Rate | None, datetime]
"""A request, its stake in euro as the reply has it, the rate (None if it was in euro already),
and the reply's date."""

LONG_LIMIT: Final = 3600.0  # s; after so long a used-up month is looked at again
OFF: Final = "RATEBRIDGE_PLAUSIBILITY=off lets them through"
OUR_FAULT: Final = (Refusal.UNAVAILABLE, Refusal.OVERLOADED, Refusal.INTERNAL_ERROR)


class AuditTrail(Protocol):
    """What the observer asks of an audit trail, such as `operating.audit.Audit`.

    It is named here because a trail reports to the observer, and so is made after it.
    """

    @property
    def head(self) -> object:
        """The head of the lines that are in the file; its `str` is "NUMBER:HASH"."""

    @property
    def waiting(self) -> int:
        """The lines that are not written yet."""

    def add(self, records: Sequence[Converted], /) -> None:
        """Queue a line for each of the conversions, which were made together. Raises nothing."""


@attrs.define(eq=False)
class Observer:
    """Counts in `stats`, and writes to `log`, if there is one: a logger like those of structlog.

    `utc_now` dates the recent errors of the status page. `audit` is the audit trail, if there
    is one; it gets every conversion.
    """

    log: Any = None
    utc_now: Callable[[], datetime] = lambda: datetime.now(UTC)
    stats: Stats = attrs.Factory(Stats)
    audit: AuditTrail | None = None
    _limit: LineLimit = attrs.Factory(LineLimit)
    _unlogged_ids: list[str] = attrs.Factory(list)  # first and last id of undelivered replies
    _limited_level: int = INFO  # the highest of the lines held back
    _at_last_summary: Counter[str] = attrs.Factory(Counter)
    _debug: bool = attrs.field(init=False)  # whether every line is written

    def __attrs_post_init__(self) -> None:
        self._debug = self.log is not None and self.log.is_enabled_for(DEBUG)

    # The connection.

    def link_up(self) -> None:
        """A connection is open."""
        stats = self.stats
        stats.link_up = True
        stats.link_since = trio.current_time()
        stats.retry_at = None
        stats.links_opened += 1
        self.note("connection.up", connections=stats.links_opened)

    def link_lost(self, cause: LinkFailed, uptime: float, retry_in: float | None) -> None:
        """A connection ended after `uptime` seconds, or an attempt failed (0.0).

        The next attempt is in `retry_in` seconds; None for never.
        """
        stats = self.stats
        was_up, stats.link_up = stats.link_up, False
        detail = clipped(cause.detail, 120) if cause.detail else None
        stats.link_ended = f"{cause.reason}, {detail}" if detail else cause.reason
        fields: dict[str, Any] = {"reason": cause.reason, "detail": detail}
        fields |= {"code": cause.code, "status": cause.status}
        if was_up:
            stats.link_since = trio.current_time()
            fields["uptime"] = round(uptime, 3)
        if retry_in is not None:
            stats.lost[cause.reason] += 1
            stats.retry_at = trio.current_time() + retry_in
            fields["retry_in"] = round(retry_in, 3)
            event = "connection.lost" if was_up else "connection.failed"
            self._report(event, cause.reason, **fields)
        elif was_up:
            self.note("connection.down", **fields)

    def heartbeat_received(self, gap: float) -> None:
        """A heartbeat came, `gap` seconds after the one before it, or after the open."""
        self.stats.heartbeats += 1
        self.stats.heartbeat_at = trio.current_time()
        self.stats.heartbeat_gaps.append(gap)

    def loop_stalled(self, late: float) -> None:
        """The event loop stalled, for `late` seconds at least: so late a task of it was woken."""
        self.stats.stalls += 1
        self._report("loop.stalled", seconds=round(late, 3))

    # The messages.

    def dropped(self, reason: Drop, text: bytes) -> None:
        """A text came that cannot be answered."""
        self.stats.dropped[reason] += 1
        self._report("message.dropped", reason, reason=reason, size=len(text), begins=clipped(text))

    def converted(self, conversions: Sequence[Converted], seconds: float) -> None:
        """Stakes were converted, `seconds` after their requests came.

        They were made together, and are counted, kept in the audit trail, and logged at debug. This
        is called for each batch that a feed sends: what it does per conversion costs throughput.
        """
        stats = self.stats
        stats.converted += len(conversions)
        stats.latency.add(seconds, len(conversions))
        currencies = stats.currencies
        for request, euro, rate, _ in conversions:
            currency = currencies[request.currency]
            currency.converted += 1
            currency.euros += float(euro)
            if rate is not None:
                currency.rate = rate
        if self.audit is not None:
            self.audit.add(conversions)
        for request, euro, rate, _ in conversions if self._debug else ():
            fields: dict[str, Any] = {"id": clipped(request.id), "stake": str(request.stake)}
            fields |= {"currency": request.currency, "eur": euro, "ms": round(seconds * 1000, 3)}
            if rate is not None:
                fields |= {"rate": rate.text, "rate_date": str(rate.day), "asked": str(rate.asked)}
                fields |= {"provider": rate.provider, "cached": rate.cached}
                fields["fetched"] = f"{rate.fetched:%Y-%m-%dT%H:%M:%SZ}"
                fields |= {"note": rate.note} if rate.note else {}
            self.log.log(DEBUG, "conversion.done", **fields)

    def refused(self, problem: Refused | NoRate, message_id: bytes, seconds: float) -> None:
        """A request was answered with an error, `seconds` after it came.

        `message_id` is the raw JSON of its id. An error that is no fault of the request's, such as
        a source that is down, makes the service degraded until the next good fetch.
        """
        stats = self.stats
        stats.refused[problem.kind] += 1
        stats.latency.add(seconds)
        if problem.kind in OUR_FAULT:
            stats.failed_at, stats.failed = trio.current_time(), problem.text
        # A third of the recorded traffic is in currencies that no source has.
        level = INFO if problem.kind == Refusal.UNKNOWN_CURRENCY else WARNING
        fields = {"id": clipped(message_id), "kind": problem.kind, "error": problem.text}
        self._report("conversion.failed", problem.kind, level, **fields)

    def undelivered(self, message_id: bytes, why: str) -> None:
        """A reply will never be sent; `message_id` is the raw JSON of the request's id."""
        self.stats.undelivered += 1
        shown = clipped(message_id)
        if not self._report("reply.undelivered", id=shown, why=why):
            self._unlogged_ids = [*self._unlogged_ids[:1], shown]

    # The rates.

    def fetched(self, sheet: RateSheet, seconds: float) -> None:
        """A source gave a sheet, `seconds` after it was asked."""
        source = self.stats.sources[sheet.provider]
        source.fetches[FetchOutcome.OK] += 1
        source.durations.add(seconds)
        source.fetched_at = source.answered_at = trio.current_time()
        source.seconds = seconds
        self.stats.failed_at = None
        recovered = source.failure and source.outcome not in LACKING
        fields: dict[str, Any] = {"provider": sheet.provider, "asked": sheet.asked}
        fields |= {"days": (sheet.last - sheet.first).days + 1, "currencies": len(sheet.currencies)}
        fields |= {"seconds": round(seconds, 3), "after": source.failure if recovered else None}
        level, event = (WARNING, "rates.recovered") if recovered else (INFO, "rates.fetched")
        self._write(level, event, **fields)
        source.outcome, source.failure = FetchOutcome.OK, ""

    def fetch_failed(
        self, provider: str, asked: str, failure: SourceFailed, meanwhile: datetime | None
    ) -> None:
        """A source gave no sheet, retries included.

        `asked` is what it was asked for, such as "2021-05"; `meanwhile` is when the sheet was
        fetched that is used meanwhile, None if there is none.
        """
        source = self.stats.sources[provider]
        outcome = failure.outcome
        source.fetches[outcome] += 1
        source.fetched_at = now = trio.current_time()
        source.outcome, source.failure = outcome, failure.text
        if meanwhile is not None:
            source.failure += f"; its answer of {meanwhile:%Y-%m-%d %H:%M} UTC is used meanwhile"
        if failure.limited_for and now < (source.limited_until or now):
            return  # `rate_limited` has reported it, once for all fetches that are refused alike
        # A key needs somebody.
        level = ERROR if outcome == FetchOutcome.REFUSED_KEY else WARNING
        fields = {"kind": outcome, "provider": provider, "asked": asked, "detail": source.failure}
        self._report("rates.failed", f"{provider} {outcome}", level, **fields)

    def implausible_quotes(
        self, provider: str, day: date, quotes: Mapping[str, SourceFailed]
    ) -> None:
        """A source gave quotes that cannot be true and are not used; reasons by currency."""
        self.stats.sources[provider].implausible += len(quotes)
        code, why = next(iter(quotes.items()))
        fields = {"provider": provider, "day": str(day), "currencies": len(quotes), "first": code}
        self._report("rates.implausible", provider, **fields, detail=why.text, off=OFF)

    def rate_limited(self, provider: str, failure: SourceFailed) -> None:
        """A source is not asked again for `failure.limited_for` seconds."""
        seconds = failure.limited_for or 0.0
        source = self.stats.sources[provider]
        source.limited_until, source.limit = trio.current_time() + seconds, failure.text
        # A minute's quota is soon there again; a month's needs somebody.
        level = ERROR if seconds >= LONG_LIMIT else WARNING
        fields = {"provider": provider, "detail": failure.text, "limited_for": round(seconds, 1)}
        self._report("rates.limited", provider, level, **fields)

    def clock_jumped(self, seconds: float) -> None:
        """The wall clock moved by so much against the monotonic one; negative: back."""
        self.stats.clock_jumps += 1
        self._report("clock.jumped", seconds=round(seconds, 1))

    def clock_differs(self, provider: str, seconds: float) -> None:
        """Our wall clock is ahead of a source's by so much; negative: behind."""
        self._report("clock.differs", provider, provider=provider, seconds=round(seconds, 1))

    # The audit trail.

    def audit_failed(self, why: str, waiting: int) -> None:
        """The audit file cannot be written from now on; `waiting` lines are queued."""
        self._report("audit.failed", "", ERROR, detail=why, waiting=waiting)

    def audit_lost(self, lines: int, why: str) -> None:
        """Lines will never be written: the first beyond the queue, or those left at the stop."""
        self._report("audit.lost", "", ERROR, lines=lines, why=why)

    def audit_recovered(self, lost: int) -> None:
        """The audit file is written again; `lost` lines were lost meanwhile."""
        self.warn("audit.recovered", lost=lost)

    def audit_reopened(self) -> None:
        """The audit file was opened anew, as it was moved or a SIGHUP came."""
        self.note("audit.reopened", **self.audit_head())

    def audit_head(self) -> dict[str, str]:
        """The head of the audit trail, if there is one, as a field of an event."""
        return {} if self.audit is None else {"audit_head": str(self.audit.head)}

    # The service.

    def internal_error(self, where: str, error: BaseException) -> None:
        """A bug in the part named `where` raised `error`; the service goes on."""
        self.stats.internal_errors += 1
        self._report("internal_error", where, ERROR, where=where, exc_info=error)

    def note(self, event: str, **fields: Any) -> None:
        """Log an ordinary event."""
        self._write(INFO, event, **fields)

    def warn(self, event: str, **fields: Any) -> None:
        """Log a state that an operator should know of."""
        self._write(WARNING, event, **fields)

    def summarize(self, *, waiting: int, outbox: int, sheets: int) -> None:
        """Log the counts of the last minute; called once a minute."""
        stats = self.stats
        counts = {"converted": stats.converted, "refused": stats.refused.total()}
        counts |= {"dropped": stats.dropped.total(), "undelivered": stats.undelivered}
        before, self._at_last_summary = self._at_last_summary, Counter(counts)
        fields: dict[str, Any] = {"connection": "up" if stats.link_up else "down"}
        fields |= {name: count - before[name] for name, count in counts.items()}
        fields |= {"waiting": waiting, "outbox": outbox, "sheets": sheets}
        fields |= {"connections": stats.links_opened}
        fields["audit_waiting"] = self.audit.waiting if self.audit is not None else None
        self.note("summary", **fields, **self.audit_head())
        self._write_limited()

    async def aclose(self) -> None:
        """Log what is not logged yet, and the end: stopped, cancelled, or failed by a bug."""
        self._write_limited()
        answered = self.stats.converted + self.stats.refused.total()
        self.note("service.stopped", answered=answered, **self.audit_head())

    # Writing lines.

    def _report(self, event: str, kind: str = "", level: int = WARNING, /, **fields: Any) -> bool:
        """Keep an error for the status page, by its event and `kind`, and `_write` it."""
        shown = (f"{name} {value}" for name, value in fields.items() if value is not None)
        words = ", ".join(text for text in shown if not text.startswith("exc_info "))
        errors, key = self.stats.recent_errors, f"{event} {kind}"
        count = errors[key].count + 1 if key in errors else 1
        errors[key] = RecentError(event, self.utc_now(), words, count)
        return self._write(level, event, kind, **fields)

    def _write(self, level: int, event: str, kind: str = "", /, **fields: Any) -> bool:
        """Log a line, or count it if its event and `kind` had too many; whether it had not.

        An event has few kinds, and none is a peer's text. A field that is None is left out.
        """
        if self.log is None or not self.log.is_enabled_for(level):
            return True
        place = self._limit.admit(f"{event} {kind}".rstrip(), trio.current_time())
        if not place:
            self._limited_level = max(self._limited_level, level)
        if place or self._debug:
            known = {name: value for name, value in fields.items() if value is not None}
            self.log.log(level if place else DEBUG, event, **known)
        return bool(place)

    def _write_limited(self) -> None:
        """Log how many lines of which kinds were held back since the last time, if any."""
        libraries = library_limit.take_held()
        held = self._limit.take_held() + libraries
        level = max(self._limited_level, WARNING if libraries else INFO)
        ids = self._unlogged_ids
        self._limited_level, self._unlogged_ids = INFO, []
        if held and self.log is not None and not self._debug:
            ends = {"first_undelivered": ids[0], "last_undelivered": ids[-1]} if ids else {}
            self.log.log(level, "log.limited", lines=dict(held), **ends)
