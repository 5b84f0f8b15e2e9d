"""What the service reports of itself: one method per fact, and nothing done about it here.

The modules that decide call these and stay free of logs, metrics and files;
`operating.journal.Journal` is the observer that writes them down. Each method is called
from the event loop, returns at once and does not raise.
"""

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from .errors import LinkFailed, NoRate, Refused, SourceFailed
from .rates import Rate, RateTable

if TYPE_CHECKING:
    from .messages import Request


class Observer:
    """An observer that does nothing; the base of those that do not."""

    # The link.

    def link_up(self) -> None:
        """A link is open."""

    def link_lost(self, cause: LinkFailed, uptime: float, retry_in: float | None) -> None:
        """A link ended after `uptime` seconds, or an attempt failed (0.0).

        The next is tried in `retry_in` seconds, None for never.
        """

    def heartbeat_received(self, gap: float) -> None:
        """A heartbeat came, `gap` seconds after the one before it (the first: after the open)."""

    def loop_stalled(self, late: float) -> None:
        """The event loop stalled for `late` seconds, so the peer got another period."""

    # The messages.

    def dropped(self, reason: str, frame: bytes) -> None:
        """A frame came to which there is no answer."""

    def converted(
        self, request: "Request", eur: Decimal, rate: Rate | None, at: datetime, seconds: float
    ) -> None:
        """A stake was converted; `rate` is None where it was in euro already."""

    def refused(self, problem: Refused | NoRate, message_id: bytes, seconds: float) -> None:
        """A request was answered with an error."""

    def undelivered(self, message_id: bytes, why: str) -> None:
        """A reply will never be sent."""

    # The rates.

    def fetched(self, table: RateTable, seconds: float) -> None:
        """A source gave a table."""

    def implausible_quotes(
        self, provider: str, day: date, quotes: Mapping[str, SourceFailed]
    ) -> None:
        """Quotes that a source gave cannot be true and are not used; why, by their currency."""

    def fetch_failed(self, provider: str, day: date, failure: SourceFailed) -> None:
        """A source did not give a table, after the retries."""

    def rate_limited(self, provider: str, failure: SourceFailed) -> None:
        """A source is not asked again for `failure.limited_for` seconds."""

    def clock_jumped(self, seconds: float) -> None:
        """The wall clock moved by so much against the monotonic one; back, where negative."""

    def clock_differs(self, provider: str, seconds: float) -> None:
        """Our wall clock is ahead of a source's by so much; behind, where negative."""

    # The audit trail.

    def audit_failed(self, why: str, waiting: int) -> None:
        """The audit file cannot be written from now on; so many lines wait for it."""

    def audit_lost(self, lines: int, why: str) -> None:
        """Lines will never be written: the first that found no room, or those left at the stop."""

    def audit_recovered(self, lost: int) -> None:
        """The audit file is written again; so many lines were lost meanwhile."""

    # The service.

    def internal_error(self, where: str, error: BaseException) -> None:
        """A bug came up in the part named `where`; the service goes on."""
