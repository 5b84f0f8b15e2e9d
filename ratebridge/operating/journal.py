"""The observer that writes down what it is told: into the log and the figures.

Events have stable names: `connection.up`, `connection.lost`, `connection.down`, `loop.stalled`,
`rates.fetched`, `rates.failed`, `rates.limited`, `rates.implausible`, `clock.jumped`,
`clock.differs`, `message.dropped`,
`conversion.done`, `conversion.failed`, `reply.undelivered`, `internal_error`, `summary`,
`audit.failed`, `audit.lost`, `audit.recovered`, `status.listening`, `status.client`,
`tls.unverified`, `settings.unknown`, `service.started`, `service.stopping`,
`service.stopped`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

import structlog
import trio

from ..errors import LinkFailed, NoRate, Refused, SourceFailed
from ..messages import Request, clipped
from ..observer import Observer
from ..rates import Rate, RateTable
from .audit import Audit
from .stats import RecentError, Stats

LONG_SILENCE: Final = 3600.0  # s
OFTEN: Final = 10  # lines a minute for one kind of trouble; the rest at debug and in the summary


class Journal(Observer):
    """Logs and counts. `utc_now` dates the recent_errors that are kept for the status page.

    `audit` is the audit trail, where there is one.
    """

    def __init__(
        self, stats: Stats, utc_now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.stats = stats
        self.audit: Audit | None = None
        self._utc_now = utc_now
        self._log = structlog.get_logger()
        self._debug = self._log.is_enabled_for(10)
        self._this_minute: Counter[str] = Counter()
        self._at_last_summary = (0, 0, 0)

    # The link.

    def link_up(self) -> None:
        stats = self.stats
        stats.link_up = True
        stats.link_since = trio.current_time()
        stats.retry_at = None
        stats.links_opened += 1
        self._log.info("connection.up", links=stats.links_opened)

    def link_lost(self, cause: LinkFailed, uptime: float, retry_in: float | None) -> None:
        stats = self.stats
        was_up = stats.link_up
        stats.link_up = False
        if was_up:
            stats.link_since = trio.current_time()
        fields: dict[str, Any] = {"reason": cause.reason}
        stats.link_ended = cause.reason
        if cause.detail:
            fields["detail"] = clipped(cause.detail, 120)
            stats.link_ended += f", {fields['detail']}"
        if cause.code is not None:
            fields["code"] = cause.code
        if cause.status is not None:
            fields["status"] = cause.status
        if was_up:
            fields["uptime"] = round(uptime, 3)
        if retry_in is None:
            self._log.info("connection.down", **fields)
            return
        stats.lost[cause.reason] += 1
        stats.retry_at = trio.current_time() + retry_in
        fields["retry_in"] = round(retry_in, 3)
        what = "connection lost" if was_up else "no connection"
        self._report("connection.lost", fields, f"{what}: {stats.link_ended}")

    def heartbeat_received(self, gap: float) -> None:
        stats = self.stats
        stats.heartbeats += 1
        stats.heartbeat_at = trio.current_time()
        stats.heartbeat_gaps.append(gap)

    def loop_stalled(self, late: float) -> None:
        self._log.warning("loop.stalled", our_own_stall=round(late, 3))

    # The messages.

    def dropped(self, reason: str, frame: bytes) -> None:
        self.stats.dropped[reason] += 1
        self._report(
            "message.dropped",
            {"reason": reason, "size": len(frame), "begins": clipped(frame)},
            f"message dropped: {reason}",
        )

    def converted(
        self, request: Request, eur: Decimal, rate: Rate | None, at: datetime, seconds: float
    ) -> None:
        stats = self.stats
        stats.converted += 1
        stats.latency.add(seconds)
        if rate is not None and rate.cached:
            stats.from_cache += 1
        if self.audit is not None:
            self.audit.add(request, eur, rate, at)
        if self._debug:
            fields: dict[str, Any] = {
                "id": clipped(request.id),
                "stake": str(request.stake),
                "currency": request.currency,
                "eur": str(eur),
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
        self._report(
            "conversion.failed",
            {"id": shown, "kind": problem.kind, "error": problem.text},
            f"request {shown} refused: {problem.text}",
        )

    def undelivered(self, message_id: bytes, why: str) -> None:
        self.stats.undelivered += 1
        self._keep(
            "reply.undelivered", f"the reply to request {clipped(message_id)} given up: {why}"
        )
        self._log.warning("reply.undelivered", id=clipped(message_id), why=why)

    # The rates.

    def fetched(self, table: RateTable, seconds: float) -> None:
        self.stats.fetches[table.provider, "ok"] += 1
        source = self.stats.sources[table.provider]
        source.heard_at = source.answered_at = trio.current_time()
        source.seconds = seconds
        source.outcome, source.failure = "ok", ""
        self._log.info(
            "rates.fetched",
            provider=table.provider,
            day=str(table.day),
            currencies=len(table.quotes),
            seconds=round(seconds, 3),
        )

    def fetch_failed(self, provider: str, day: date, failure: SourceFailed) -> None:
        self.stats.fetches[provider, failure.outcome] += 1
        source = self.stats.sources[provider]
        source.heard_at = trio.current_time()
        source.outcome, source.failure = failure.outcome, failure.text
        self._report(
            "rates.failed",
            {
                "kind": failure.outcome,
                "provider": provider,
                "day": str(day),
                "detail": failure.text,
            },
            f"{provider} {failure.text}",
        )

    def implausible_quotes(
        self, provider: str, day: date, quotes: Mapping[str, SourceFailed]
    ) -> None:
        self.stats.implausible[provider] += len(quotes)
        code, why = next(iter(quotes.items()))
        more = f", and {len(quotes) - 1} more" if len(quotes) > 1 else ""
        self._report(
            "rates.implausible",
            {
                "kind": provider,
                "provider": provider,
                "day": str(day),
                "currencies": len(quotes),
                "first": code,
                "detail": why.text,
            },
            f"{provider} {why}: {code} on {day}{more}",
        )

    def rate_limited(self, provider: str, failure: SourceFailed) -> None:
        silence = failure.limited_for or 0.0
        self.stats.sources[provider].limited_until = trio.current_time() + silence
        # A minute's quota is soon there again; a month's needs somebody.
        tell = self._log.error if silence > LONG_SILENCE else self._log.warning
        tell(
            "rates.limited",
            provider=provider,
            detail=failure.text,
            seconds=round(silence, 1),
        )

    def clock_jumped(self, seconds: float) -> None:
        fields = {"kind": "jump", "seconds": round(seconds, 1)}
        self._report("clock.jumped", fields, f"the wall clock moved by {seconds:.0f} s")

    def clock_differs(self, provider: str, seconds: float) -> None:
        fields = {"kind": provider, "provider": provider, "seconds": round(seconds, 1)}
        words = f"our clock is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"
        self._report("clock.differs", fields, f"{words} {provider}'s")

    # The audit trail.

    def audit_failed(self, why: str, waiting: int) -> None:
        self._keep("audit.failed", f"the audit file cannot be written: {why}")
        self._log.error("audit.failed", detail=why, waiting=waiting)

    def audit_lost(self, lines: int, why: str) -> None:
        self._keep("audit.lost", f"lines of the audit trail are lost: {why}")
        self._log.error("audit.lost", lines=lines, why=why)

    def audit_recovered(self, lost: int) -> None:
        self._log.warning("audit.recovered", lost=lost)

    # The service.

    def internal_error(self, where: str, error: BaseException) -> None:
        self.stats.internal_errors += 1
        self._keep(f"internal_error {where}", f"an internal error ({where}), see the log")
        self._log.error("internal_error", where=where, exc_info=error)

    def status_client_failed(self, error: BaseException) -> None:
        """What a client of the status server sent was too much for the server's library."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        fields = {"kind": "nonsense", "detail": clipped(f"{type(error).__name__}: {error}", 120)}
        self._report("status.client", fields, "a client of the status server sent nonsense")

    def note(self, event: str, **fields: Any) -> None:
        """An event in the life of the service itself."""
        self._log.info(event, **fields)

    def warn(self, event: str, **fields: Any) -> None:
        """A state of the service that an operator should know of."""
        self._log.warning(event, **fields)

    def summarize(self, *, waiting: int, outbox: int, tables: int) -> None:
        """Log what the last minute brought; called once a minute."""
        stats = self.stats
        counts = (stats.converted, stats.refused.total(), stats.dropped.total())
        converted, refused, dropped = (
            now - before for now, before in zip(counts, self._at_last_summary, strict=True)
        )
        self._at_last_summary = counts
        self._this_minute.clear()
        self._log.info(
            "summary",
            link="up" if stats.link_up else "down",
            converted=converted,
            refused=refused,
            dropped=dropped,
            waiting=waiting,
            outbox=outbox,
            tables=tables,
            links=stats.links_opened,
        )

    def _report(self, event: str, fields: dict[str, Any], words: str) -> None:
        """Keep a trouble for the page, and log it unless there were many of its kind."""
        key = f"{event} {fields.get('kind') or fields.get('reason')}"
        self._keep(key, words)
        self._this_minute[key] += 1
        said = self._this_minute[key]
        if said < OFTEN:
            self._log.warning(event, **fields)
        elif said == OFTEN:
            self._log.warning(event, **fields, further="counted in the summary, logged at debug")
        elif self._debug:
            self._log.debug(event, **fields)

    def _keep(self, kind: str, words: str) -> None:
        """Keep the last trouble of a kind; the kinds are few and ours."""
        before = self.stats.recent_errors.get(kind)
        count = before.count + 1 if before else 1
        self.stats.recent_errors[kind] = RecentError(self._utc_now(), words, count)
