"""An observer that writes to the trace, and checks of the queues' bounds."""

from collections.abc import Callable, MutableMapping, Sequence
from datetime import datetime
from math import inf
from typing import Any

import structlog
import trio
from support import SessionEnd

from ratebridge import bridge as bridge_module
from ratebridge import outbox as outbox_module
from ratebridge.bridge import Bridge
from ratebridge.errors import Drop, LinkFailed, NoRate, Refused, SourceFailed
from ratebridge.outbox import Outbox
from ratebridge.reporting.observer import Converted, Observer

from .sources import ScriptedSource
from .trace import Made, Trace
from .traffic import number_of


class Recorder(Observer):
    """An observer that writes its log and what the checker needs to the trace."""

    outbox: Outbox
    bridge: Bridge

    def __init__(
        self, trace: Trace, clock: Callable[[], datetime], sources: Sequence[ScriptedSource]
    ) -> None:
        super().__init__(utc_now=clock)
        self._trace = trace
        self._sources = {source.name: source for source in sources}

        def into_chronicle(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> Any:
            if error := event.pop("exc_info", None):
                event["error"] = repr(error)
            trace.note(**event)
            raise structlog.DropEvent

        level = "info" if trace.log is not None else "critical"
        self.log = structlog.wrap_logger(
            structlog.PrintLogger(),
            processors=[into_chronicle],
            wrapper_class=structlog.make_filtering_bound_logger(level),
        ).bind()

    def make_outbox(self, *args: Any) -> Outbox:
        """In place of `Outbox`, to know it."""
        self.outbox = Outbox(*args)
        return self.outbox

    def make_bridge(self, *args: Any, **kwargs: Any) -> Bridge:
        """In place of `Bridge`, to know it."""
        self.bridge = Bridge(*args, **kwargs)
        return self.bridge

    # The link.

    def link_up(self) -> None:
        super().link_up()
        attempt = self._trace.attempts[-1]
        if min(attempt.up, attempt.lost) < inf:
            self._trace.complain("a link is up that was not dialled")
        attempt.up = trio.current_time()

    def link_lost(self, cause: LinkFailed, uptime: float, retry_in: float | None) -> None:
        super().link_lost(cause, uptime, retry_in)
        attempts = self._trace.attempts
        if attempts and attempts[-1].lost == inf:
            attempts[-1].lost = trio.current_time()
            attempts[-1].end = SessionEnd(cause, uptime)
        elif retry_in is not None:
            self._trace.complain("a link is lost that was not dialled")
        self._trace.on("backoff")

    def loop_stalled(self, late: float) -> None:
        super().loop_stalled(late)
        self._trace.fault("our stall is allowed for")

    # The messages.

    def dropped(self, reason: Drop, frame: bytes) -> None:
        super().dropped(reason, frame)
        self._trace.dropped[reason] += 1

    def converted(self, conversions: Sequence[Converted], seconds: float) -> None:
        super().converted(conversions, seconds)
        for request, *_ in conversions:
            number = number_of(b"".join(request.parts).decode("latin-1"))
            assert number is not None
            self._trace.converted.append((trio.current_time(), number))
            self._make(request.id, "converted", seconds)

    def refused(self, problem: Refused | NoRate, message_id: bytes, seconds: float) -> None:
        super().refused(problem, message_id, seconds)
        if problem.kind == "overloaded" and self.bridge.waiting < bridge_module.MOST_WAITING:
            self._trace.complain(f"overloaded, with {self.bridge.waiting} requests waiting")
        self._make(message_id, problem.kind, seconds)

    def _make(self, message_id: bytes, kind: str, seconds: float) -> None:
        if self.bridge.waiting > bridge_module.MOST_WAITING:
            self._trace.complain(f"{self.bridge.waiting} requests wait for rates")
        if len(self.outbox) > outbox_module.MOST_REPLIES:
            self._trace.complain(f"{len(self.outbox)} replies wait to be written")
        made = Made(trio.current_time(), kind, seconds)
        self._trace.made.setdefault(message_id.decode(), []).append(made)

    def undelivered(self, message_id: bytes, why: str) -> None:
        super().undelivered(message_id, why)
        now = trio.current_time()
        key = message_id.decode()
        self._trace.undelivered.setdefault(key, []).append((now, why))
        self._trace.faults[f"undelivered: {why}"] += 1
        made = self._trace.made.get(key, ())
        if not (
            self._trace.stop_at < inf
            or len(self.outbox) >= outbox_module.MOST_REPLIES - 1
            or "too many" in why  # bytes: how many there were, is known to the outbox alone
            or any(reply.at <= now - outbox_module.OLDEST_REPLY + 1e-6 for reply in made)
        ):
            self._trace.complain(f"the reply {key} is undelivered without need ({why})")

    # The rates.

    def fetch_failed(
        self, provider: str, asked: str, failure: SourceFailed, meanwhile: datetime | None
    ) -> None:
        super().fetch_failed(provider, asked, failure, meanwhile)
        self._sources[provider].remember(asked)

    def internal_error(self, where: str, error: BaseException) -> None:
        super().internal_error(where, error)
        if not isinstance(error, ZeroDivisionError):  # the one that the script raises
            self._trace.complain(f"internal error in {where}: {error!r}")
