"""The observer that records events in the log and the figures.

No peer can fill the log: at most ten lines of a kind are written in any minute. `log.limited`
counts the others, once a minute and at the end, with the first and the last id of undelivered
replies. Its level is the highest of theirs. At the level debug every line is written; those
beyond the ten have that level.

Events have stable names: `connection.up`, `connection.lost`, `connection.failed`,
`connection.down`, `loop.stalled`, `rates.fetched`, `rates.failed`, `rates.recovered`,
`rates.limited`, `rates.implausible`, `clock.jumped`, `clock.differs`, `message.dropped`,
`conversion.done`, `conversion.failed`, `reply.undelivered`, `internal_error`, `summary`,
`audit.failed`, `audit.lost`, `audit.recovered`, `audit.reopened`, `log.limited`,
`status.listening`, `status.failed`, `tls.unverified`, `settings.unknown`,
`service.started`, `service.stopping`, `service.stopped`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from ..errors import LinkFailed, NoRate, Refused, SourceFailed
from ..messages import Request, clipped
from ..observer import Converted, Observer
from ..rates import Rate, RateSheet
from .logs import OFTEN, LineLimit, library_limit
from .stats import LACKING, RecentError, Stats

if TYPE_CHECKING:
    from .audit import Audit

LONG_LIMIT: Final = 3600.0  # s
LEVELS: Final = {"info": 20, "warning": 30, "error": 40}


class Journal(Observer):
    """Logs and counts. `utc_now` dates the recent errors of the status page.

    `audit` is the audit trail, if there is one.
    """

    def __init__(
        self, stats: Stats, utc_now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.stats = stats
        self.audit: Audit | None = None
        self._utc_now = utc_now
        self._log = structlog.get_logger()
        self._debug = self._log.is_enabled_for(10)
        self._limit = LineLimit()
        self._unlogged_ids: list[str] = []  # the first and the last id of undelivered replies
        self._limited_level = "info"  # the highest of the lines held back
        self._at_last_summary = (0, 0, 0, 0)

    # The connection.

    def link_up(self) -> None:
        stats = self.stats
        stats.link_up = True
        stats.link_since = trio.current_time()
        stats.retry_at = None
        stats.links_opened += 1
        self._write_line("info", "connection.up", connections=stats.links_opened)

    def link_lost(self, cause: LinkFailed, uptime: float, retry_in: float | None) -> None:
        stats = self.stats
        was_up = stats.link_up
        stats.link_up = False
        if was_up:
            stats.link_since = trio.current_time()
        fields: dict[str, Any] = {"reason": cause.reason}
        stats.link_ended = cause.reason
        if cause.detail:
            detail = fields["detail"] = clipped(cause.detail, 120)
            named = cause.reason in detail
            stats.link_ended = detail if named else f"{cause.reason}, {detail}"
        if cause.code is not None:
            fields["code"] = cause.code
        if cause.status is not None:
            fields["status"] = cause.status
        if was_up:
            fields["uptime"] = round(uptime, 3)
        if retry_in is None:
            if was_up:
                self._write_line("info", "connection.down", **fields)
            return
        stats.lost[cause.reason] += 1
        stats.retry_at = trio.current_time() + retry_in
        fields["retry_in"] = round(retry_in, 3)
        event = "connection.lost" if was_up else "connection.failed"
        words = f"{event.replace('.', ' ')}: {stats.link_ended}"
        self._report(event, cause.reason, words, **fields)

    def heartbeat_received(self, gap: float) -> None:
        stats = self.stats
        stats.heartbeats += 1
        stats.heartbeat_at = trio.current_time()
        stats.heartbeat_gaps.append(gap)

    def loop_stalled(self, late: float) -> None:
        self._write_line("warning", "loop.stalled", our_own_stall=round(late, 3))

    # The messages.

    def dropped(self, reason: str, frame: bytes) -> None:
        self.stats.dropped[reason] += 1
        fields = {"reason": reason, "size": len(frame), "begins": clipped(frame)}
        self._report("message.dropped", reason, f"message dropped: {reason}", **fields)

    def converted(self, conversions: Sequence[Converted], seconds: float) -> None:
        stats = self.stats
        stats.converted += len(conversions)
        stats.latency.add(seconds, len(conversions))
        for _, _, rate, _ in conversions:
            if rate is not None and rate.cached:
                stats.from_cache += 1
        if self.audit is not None:
            self.audit.add(conversions)
        if self._debug:
            for request, euro, rate, _ in conversions:
                self._log_conversion(request, euro, rate, seconds)

    def _log_conversion(
        self, request: Request, euro: str, rate: Rate | None, seconds: float
    ) -> None:
        fields: dict[str, Any] = {
            "id": clipped(request.id),
            "stake": str(request.stake),
            "currency": request.currency,
            "eur": euro,
            "ms": round(seconds * 1000, 3),
        }
        if rate is not None:
            fields |= {
                "rate": rate.text,
                "rate_date": str(rate.day),
                "asked": str(rate.asked),
                "provider": rate.provider,
                "fetched": f"{rate.fetched:%Y-%m-%dT%H:%M:%SZ}",
                "cached": rate.cached,
            }
            if rate.note:
                fields["note"] = rate.note
        self._log.debug("conversion.done", **fields)

    def refused(self, problem: Refused | NoRate, message_id: bytes, seconds: float) -> None:
        self.stats.refused[problem.kind] += 1
        self.stats.latency.add(seconds)
        shown = clipped(message_id)
        words = f"request {shown} refused: {problem.text}"
        fields = {"id": shown, "kind": problem.kind, "error": problem.text}
        # A third of the recorded traffic is in currencies that no source has.
        level = "info" if problem.kind == "unknown-currency" else "warning"
        self._report("conversion.failed", problem.kind, words, level, **fields)

    def undelivered(self, message_id: bytes, why: str) -> None:
        self.stats.undelivered += 1
        shown = clipped(message_id)
        words = f"the reply to request {shown} was not delivered: {why}"
        if not self._report("reply.undelivered", "", words, id=shown, why=why):
            self._unlogged_ids = [*self._unlogged_ids[:1], shown]

    # The rates.

    def fetched(self, sheet: RateSheet, seconds: float) -> None:
        self.stats.fetches[sheet.provider, "ok"] += 1
        source = self.stats.sources[sheet.provider]
        source.fetched_at = source.answered_at = trio.current_time()
        source.seconds = seconds
        fields: dict[str, Any] = {
            "provider": sheet.provider,
            "asked": sheet.asked,
            "days": sheet.days,
            "currencies": len(sheet.currencies),
            "seconds": round(seconds, 3),
        }
        if source.failure and source.outcome not in LACKING:
            self._write_line("warning", "rates.recovered", **fields, after=source.failure)
        else:
            self._write_line("info", "rates.fetched", **fields)
        source.outcome, source.failure = "ok", ""

    def fetch_failed(
        self, provider: str, asked: str, failure: SourceFailed, meanwhile: datetime | None
    ) -> None:
        outcome = failure.outcome
        self.stats.fetches[provider, outcome] += 1
        source = self.stats.sources[provider]
        source.fetched_at = now = trio.current_time()
        source.outcome, source.failure = failure.outcome, failure.text
        if failure.limited_for and now < (source.limited_until or now):
            return  # `rate_limited` has told it, once for all fetches that are refused alike
        self._report(
            "rates.failed",
            f"{provider} {outcome}",
            f"{provider} {failure.text}",
            "error" if outcome == "refused-key" else "warning",  # a key needs somebody
            kind=failure.outcome,
            provider=provider,
            asked=asked,
            detail=failure.text,
            **({} if meanwhile is None else {"meanwhile": f"{meanwhile:%Y-%m-%dT%H:%M:%SZ}"}),
        )

    def implausible_quotes(
        self, provider: str, day: date, quotes: Mapping[str, SourceFailed]
    ) -> None:
        self.stats.implausible[provider] += len(quotes)
        code, why = next(iter(quotes.items()))
        more = f", and {len(quotes) - 1} more" if len(quotes) > 1 else ""
        self._report(
            "rates.implausible",
            provider,
            f"{provider} {why}: {code} on {day}{more}",
            provider=provider,
            day=str(day),
            currencies=len(quotes),
            first=code,
            detail=why.text,
            setting="RATEBRIDGE_PLAUSIBILITY=off lets them through",
        )

    def rate_limited(self, provider: str, failure: SourceFailed) -> None:
        seconds = failure.limited_for or 0.0
        source = self.stats.sources[provider]
        source.limited_until, source.limit = trio.current_time() + seconds, failure.text
        # A minute's quota is soon there again; a month's needs somebody.
        level = "error" if seconds > LONG_LIMIT else "warning"
        fields = {"provider": provider, "detail": failure.text, "limited_for": round(seconds, 1)}
        self._report("rates.limited", provider, f"{provider} {failure.text}", level, **fields)

    def clock_jumped(self, seconds: float) -> None:
        words = f"the wall clock moved by {seconds:.0f} s"
        self._report("clock.jumped", "", words, seconds=round(seconds, 1))

    def clock_differs(self, provider: str, seconds: float) -> None:
        words = f"our clock is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"
        words = f"{words} {provider}'s"
        self._report("clock.differs", provider, words, provider=provider, seconds=round(seconds, 1))

    # The audit trail.

    def audit_failed(self, why: str, waiting: int) -> None:
        words = f"the audit file cannot be written: {why}"
        self._report("audit.failed", "", words, "error", detail=why, waiting=waiting)

    def audit_lost(self, lines: int, why: str) -> None:
        words = f"lines of the audit trail are lost: {why}"
        self._report("audit.lost", "", words, "error", lines=lines, why=why)

    def audit_recovered(self, lost: int) -> None:
        self._write_line("warning", "audit.recovered", lost=lost)

    def audit_reopened(self) -> None:
        self._write_line("info", "audit.reopened", **self.audit_head())

    def audit_head(self) -> dict[str, str]:
        """The head of the audit trail, if there is one, as a field of an event."""
        return {} if self.audit is None else {"audit_head": str(self.audit.head)}

    # The service.

    def internal_error(self, where: str, error: BaseException) -> None:
        self.stats.internal_errors += 1
        words = f"an internal error ({where}), see the log"
        self._report("internal_error", where, words, "error", where=where, exc_info=error)

    def note(self, event: str, **fields: Any) -> None:
        """Log an event of the service itself."""
        self._write_line("info", event, **fields)

    def warn(self, event: str, **fields: Any) -> None:
        """Log a state of the service that an operator should know of."""
        self._write_line("warning", event, **fields)

    def summarize(self, *, waiting: int, outbox: int, sheets: int) -> None:
        """Log the counts of the last minute; called once a minute."""
        stats = self.stats
        counts = (
            stats.converted,
            stats.refused.total(),
            stats.dropped.total(),
            stats.undelivered,
        )
        converted, refused, dropped, undelivered = (
            now - before for now, before in zip(counts, self._at_last_summary, strict=True)
        )
        self._at_last_summary = counts
        self._write_line(
            "info",
            "summary",
            connection="up" if stats.link_up else "down",
            converted=converted,
            refused=refused,
            dropped=dropped,
            undelivered=undelivered,
            waiting=waiting,
            outbox=outbox,
            sheets=sheets,
            connections=stats.links_opened,
            **({} if self.audit is None else {"audit_waiting": self.audit.waiting}),
            **self.audit_head(),
        )
        self._write_limited()

    async def aclose(self) -> None:
        """Log what is not logged yet, and the end: stopped, cancelled, or failed by a bug."""
        self._write_limited()
        self.note("service.stopped", answered=self.stats.answered, **self.audit_head())

    # Writing lines.

    def _report(
        self, event: str, kind: str, words: str, level: str = "warning", /, **fields: Any
    ) -> bool:
        """Keep an error for the status page, by its event and `kind`, and `_write_line` it."""
        key = f"{event} {kind}".rstrip()
        before = self.stats.recent_errors.get(key)
        count = before.count + 1 if before else 1
        self.stats.recent_errors[key] = RecentError(self._utc_now(), words, count)
        return self._write_line(level, event, kind, **fields)

    def _write_line(self, level: str, event: str, kind: str = "", /, **fields: Any) -> bool:
        """Log a line, or count it if its event and `kind` had too many; whether it had not.

        An event has few kinds, and none is a peer's text.
        """
        if not self._log.is_enabled_for(LEVELS[level]):
            return True
        place = self._limit.admit(f"{event} {kind}".rstrip(), trio.current_time())
        if not place:
            self._limited_level = max(self._limited_level, level, key=LEVELS.__getitem__)
        if place == OFTEN:
            fields["further"] = "only counted for a minute, see log.limited"
        if place or self._debug:
            getattr(self._log, level if place else "debug")(event, **fields)
        return bool(place)

    def _write_limited(self) -> None:
        """Log how many lines of which kinds were held back since the last time, if any."""
        libraries = library_limit.take_held()
        held = self._limit.take_held() + libraries
        least = "warning" if libraries else "info"
        level = max(self._limited_level, least, key=LEVELS.__getitem__)
        self._limited_level = "info"
        unlogged, self._unlogged_ids = self._unlogged_ids, []
        if held and not self._debug:
            fields: dict[str, Any] = {"lines": dict(held)}
            if unlogged:
                fields |= {"first_undelivered": unlogged[0], "last_undelivered": unlogged[-1]}
            getattr(self._log, level)("log.limited", **fields)
