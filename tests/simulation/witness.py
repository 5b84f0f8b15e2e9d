"""The service's own report of itself, into the chronicle; and watches on its bounds."""

from collections.abc import Callable, MutableMapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import structlog
import trio

from ratebridge import bridge as bridge_module
from ratebridge import outbox as outbox_module
from ratebridge.bridge import Bridge, Moment
from ratebridge.errors import NoRate, Refused, SourceFailed
from ratebridge.messages import Heartbeat, Request
from ratebridge.operating.journal import Journal
from ratebridge.operating.stats import Stats
from ratebridge.outbox import Outbox, Reply
from ratebridge.rates import Rate
from ratebridge.session import SessionEnd

from .chronicle import Chronicle, Made
from .sources import ScriptedSource
from .traffic import number_of


class Witness(Journal):
    """A journal whose log goes into the chronicle, and which keeps there what is to be judged."""

    def __init__(
        self,
        chronicle: Chronicle,
        clock: Callable[[], datetime],
        sources: Sequence[ScriptedSource],
    ) -> None:
        super().__init__(Stats(), clock)
        self._chronicle = chronicle
        self._sources = {source.name: source for source in sources}
        self.outbox: Outbox | None = None
        self.bridge: Bridge | None = None

        def into_chronicle(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> Any:
            if error := event.pop("exc_info", None):
                event["error"] = repr(error)
            chronicle.note(**event)
            raise structlog.DropEvent

        level = "info" if chronicle.log is not None else "critical"
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(),
            processors=[into_chronicle],
            wrapper_class=structlog.make_filtering_bound_logger(level),
        ).bind()
        self._debug = False

    # The link.

    def link_up(self) -> None:
        super().link_up()
        attempt = self._chronicle.attempts[-1]
        if attempt.up is not None or attempt.lost is not None:
            self._chronicle.complain("a link is up that was not dialled")
        attempt.up = trio.current_time()

    def link_lost(self, end: SessionEnd, retry_in: float | None) -> None:
        super().link_lost(end, retry_in)
        attempts = self._chronicle.attempts
        if attempts and attempts[-1].lost is None:
            attempts[-1].lost = trio.current_time()
            attempts[-1].end = end
            attempts[-1].retry_in = retry_in
        elif retry_in is not None:
            self._chronicle.complain("a link is lost that was not dialled")
        self._chronicle.on("backoff")

    def session_crashed(self, error: Exception) -> None:
        super().session_crashed(error)
        self._chronicle.complain(f"a session crashed: {error!r}")

    def excused(self, late: float) -> None:
        super().excused(late)
        self._chronicle.fault("our stall is allowed for")

    # The messages.

    def dropped(self, reason: str, frame: bytes) -> None:
        super().dropped(reason, frame)
        self._chronicle.dropped[reason] += 1

    def converted(
        self, request: Request, eur: Decimal, rate: Rate | None, at: datetime, seconds: float
    ) -> None:
        super().converted(request, eur, rate, at, seconds)
        number = number_of(request.reply.decode("latin-1"))
        assert number is not None
        self._chronicle.converted.append((trio.current_time(), number))
        self._make(request.id, "converted", seconds)

    def refused(self, problem: Refused | NoRate, message_id: bytes, seconds: float) -> None:
        super().refused(problem, message_id, seconds)
        assert self.bridge is not None
        if problem.kind == "overloaded" and self.bridge.waiting < bridge_module.MOST_WAITING:
            self._chronicle.complain(f"overloaded, with {self.bridge.waiting} requests waiting")
        self._make(message_id, problem.kind, seconds)

    def _make(self, message_id: bytes, kind: str, seconds: float) -> None:
        made = Made(trio.current_time(), kind, seconds)
        self._chronicle.made.setdefault(message_id.decode(), []).append(made)

    def given_up(self, message_id: bytes, why: str) -> None:
        super().given_up(message_id, why)
        now = trio.current_time()
        key = message_id.decode()
        self._chronicle.given_up.setdefault(key, []).append((now, why))
        self._chronicle.faults[f"given up: {why}"] += 1
        made = self._chronicle.made.get(key, ())
        assert self.outbox is not None
        if not (
            self._chronicle.stop_at is not None
            or len(self.outbox) >= outbox_module.MOST_REPLIES - 1
            or any(reply.kind == "overloaded" for reply in made)
            or any(reply.at <= now - outbox_module.OLDEST_REPLY + 1e-6 for reply in made)
        ):
            self._chronicle.complain(f"the reply {key} is given up without need ({why})")

    def request_crashed(self, error: Exception) -> None:
        super().request_crashed(error)
        self._chronicle.complain(f"a request crashed: {error!r}")

    # The rates.

    def fetch_failed(self, provider: str, day: date, failure: SourceFailed) -> None:
        super().fetch_failed(provider, day, failure)
        self._sources[provider].remember(day)

    def source_crashed(self, provider: str, error: Exception) -> None:
        super().source_crashed(provider, error)
        if not isinstance(error, ZeroDivisionError):  # the one that the script raises
            self._chronicle.complain(f"asking {provider} crashed: {error!r}")

    # The service.

    def note(self, event: str, **fields: Any) -> None:
        super().note(event, **fields)
        if event == "service.stopping":
            self._note_stop(**fields)

    def _note_stop(self, *, waiting: int, outbox: int) -> None:
        chronicle = self._chronicle
        attempt = chronicle.attempts[-1] if chronicle.attempts else None
        if attempt is None or attempt.lost is not None:
            state = "backing off"
        elif attempt.up is None:
            state = "connecting"
        elif attempt.wire is not None and any(write.ended is None for write in attempt.wire.writes):
            state = "writing"
        elif waiting:
            state = "in flight"
        else:
            state = "replies queued" if outbox else "idle"
        chronicle.fault(f"stop while {state}")


def watched_outbox(chronicle: Chronicle, witness: Witness) -> type[Outbox]:
    """An outbox that is looked at whenever it grows."""

    class WatchedOutbox(Outbox):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            witness.outbox = self

        def add(self, *replies: Reply) -> None:
            super().add(*replies)
            if len(self) > outbox_module.MOST_REPLIES:
                chronicle.complain(f"{len(self)} replies wait to be written")

    return WatchedOutbox


def watched_bridge(chronicle: Chronicle, witness: Witness) -> type[Bridge]:
    """A bridge that is looked at after each frame."""

    class WatchedBridge(Bridge):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            witness.bridge = self

        def answer(self, frame: bytes, moment: Moment) -> Heartbeat | Reply | None:
            answer = super().answer(frame, moment)
            if self.waiting > bridge_module.MOST_WAITING:
                chronicle.complain(f"{self.waiting} requests wait for rates")
            return answer

    return WatchedBridge
