"""What the service reports of itself: one method per fact.

The other modules call these and stay free of logs, metrics and files;
`operating.journal.Journal` is the observer that records them. Each method is called
from the event loop, returns at once and does not raise.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, TypeAlias

from .errors import LinkFailed, NoRate, Refused, SourceFailed
from .rates import Rate, RateSheet

if TYPE_CHECKING:
    from .messages import Request

Converted: TypeAlias = "tuple[Request, str, Rate | None, datetime]"
"""A request, its stake in euro as the reply has it, the rate (None if it was in euro already),
and the reply's date."""


class Observer:
    """The base of observers; does nothing."""

    # The connection.

    def link_up(self) -> None:
        """A connection is open."""

    def link_lost(self, cause: LinkFailed, uptime: float, retry_in: float | None) -> None:
        """A connection ended after `uptime` seconds, or an attempt failed (0.0).

        The next attempt is in `retry_in` seconds; None for never.
        """

    def heartbeat_received(self, gap: float) -> None:
        """A heartbeat came, `gap` seconds after the one before it, or after the open."""

    def loop_stalled(self, late: float) -> None:
        """The event loop stalled for `late` seconds, so the peer gets another period."""

    # The messages.

    def dropped(self, reason: str, frame: bytes) -> None:
        """A frame came that cannot be answered."""

    def converted(self, conversions: Sequence[Converted], seconds: float) -> None:
        """Stakes were converted, `seconds` after their requests came."""

    def refused(self, problem: Refused | NoRate, message_id: bytes, seconds: float) -> None:
        """A request was answered with an error."""

    def undelivered(self, message_id: bytes, why: str) -> None:
        """A reply will never be sent."""

    # The rates.

    def fetched(self, sheet: RateSheet, seconds: float) -> None:
        """A source gave a sheet, `seconds` after it was asked."""

    def implausible_quotes(
        self, provider: str, day: date, quotes: Mapping[str, SourceFailed]
    ) -> None:
        """A source gave quotes that cannot be true and are not used; reasons by currency."""

    def fetch_failed(
        self, provider: str, asked: str, failure: SourceFailed, meanwhile: datetime | None
    ) -> None:
        """A source gave no sheet, retries included.

        `asked` is what it was asked for, such as "2021-05"; `meanwhile` is when the sheet was
        fetched that is used meanwhile, None if there is none.
        """

    def rate_limited(self, provider: str, failure: SourceFailed) -> None:
        """A source is not asked again for `failure.limited_for` seconds."""

    def clock_jumped(self, seconds: float) -> None:
        """The wall clock moved by so much against the monotonic one; negative: back."""

    def clock_differs(self, provider: str, seconds: float) -> None:
        """Our wall clock is ahead of a source's by so much; negative: behind."""

    # The audit trail.

    def audit_failed(self, why: str, waiting: int) -> None:
        """The audit file cannot be written from now on; `waiting` lines are queued."""

    def audit_lost(self, lines: int, why: str) -> None:
        """Lines will never be written: the first beyond the queue, or those left at the stop."""

    def audit_recovered(self, lost: int) -> None:
        """The audit file is written again; `lost` lines were lost meanwhile."""

    def audit_reopened(self) -> None:
        """The audit file was opened anew, as it was moved or a SIGHUP came."""

    # The service.

    def internal_error(self, where: str, error: BaseException) -> None:
        """A bug in the part named `where` raised `error`; the service goes on."""
