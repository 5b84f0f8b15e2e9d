"""The whole story of a message: a frame in, a reply out.

A reply is made at once when the rate is cached. Otherwise a task of the service's
nursery waits for the rate, and the reply goes to the outbox later, for whichever
link is up by then.
"""

from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Final

import msgspec
import trio

from .conversion import plain, rounded, to_euro
from .dates import BadDate, rate_day, wire_json, wire_time
from .errors import NoRate, Refusal, Refused, Unreadable
from .messages import Heartbeat, Request, encode_error, encode_reply
from .outbox import Reply
from .providers.chain import RateChain
from .rates import Rate
from .reporting.observer import Converted, Observer
from .shapes import Reader

MOST_WAITING: Final = 1_000  # requests without a rate: what a flood may cost in memory
MOST_WAITING_BYTES: Final = 8 * 1024 * 1024  # of their replies; their ids can be as much again


class Moment(msgspec.Struct, frozen=True, gc=False):
    """Now, by trio's clock (s) and by the wall's (aware UTC), and as a JSON string of the wire."""

    mono: float
    utc: datetime
    wire: bytes


class Bridge:
    """Answers frames. `deliver` takes each reply that was not ready at once."""

    def __init__(
        self,
        chain: RateChain,
        nursery: trio.Nursery,
        deliver: Callable[[Reply], None],
        *,
        utc_now: Callable[[], datetime],
        observer: Observer,
    ) -> None:
        self._chain = chain
        self._nursery = nursery
        self._deliver = deliver
        self._utc_now = utc_now
        self._trio_now = trio.lowlevel.current_clock().current_time  # without two calls each time
        self._observer = observer
        self.waiting = 0  # requests whose rate is being fetched
        self._waiting_bytes = 0
        self.stopping = False  # set: new requests are refused
        self._settled = trio.Event()
        self._reader = Reader()
        self._made: list[Converted] = []  # and not reported yet

    def moment(self) -> Moment:
        """Now, for all the frames that were read together."""
        utc = self._utc_now()
        return Moment(self._trio_now(), utc, wire_json(utc))

    def answer(self, frames: Sequence[bytes], moment: Moment) -> tuple[list[Reply], int]:
        """Take text frames, which came at `moment`.

        Returns the replies that are ready, and how many of the frames were heartbeats. `report`
        has to follow when the replies have been handed on.
        """
        replies: list[Reply] = []
        heartbeats = 0
        for frame, request in zip(frames, self._reader.read(frames), strict=True):
            try:
                if request is None:
                    message = self._reader.walk(frame)
                    if isinstance(message, Heartbeat):
                        heartbeats += 1
                        continue
                    request = message  # noqa: PLW2901
                day = rate_day(request.instant, moment.utc)
                if self.stopping:
                    raise NoRate(Refusal.STOPPING, "the service is stopping")  # noqa: TRY301
                rate = None
                if request.currency != "EUR":
                    rate = self._chain.cached_rate(request.currency, day, moment.utc)
                    if rate is None:
                        self._start_waiting(request, len(frame), day, moment.mono)
                        continue
                replies.append(self._convert(request, rate, moment))
            except Unreadable as problem:
                self._observer.dropped(problem.reason, frame)
            except Refused as problem:
                replies.append(self._refuse(problem.id, problem, moment.mono))
            except Exception as problem:  # noqa: BLE001 - a bug costs one text and not the link
                if request is None:
                    self._observer.internal_error("reading", problem)
                else:
                    replies.append(self._excuse(request, problem, moment.mono))
        return replies, heartbeats

    def _start_waiting(self, request: Request, size: int, day: date, came: float) -> None:
        """Answer a request of `size` bytes when its rate is there. Raises `NoRate`."""
        if self.waiting >= MOST_WAITING or self._waiting_bytes > MOST_WAITING_BYTES:
            raise NoRate(Refusal.OVERLOADED, "overloaded, too many requests wait for rates")
        self.waiting += 1
        self._waiting_bytes += size
        self._nursery.start_soon(self._answer_later, request, size, day, came, name="request")

    def report(self, came: float) -> None:
        """Tell the observer of the conversions made, whose requests came at `came` (trio time).

        The peer need not wait for that.
        """
        if self._made:
            made, self._made = self._made, []
            self._observer.converted(made, self._trio_now() - came)

    async def _answer_later(self, request: Request, size: int, day: date, came: float) -> None:
        try:
            rate = await self._chain.rate(request.currency, day)
            reply = self._convert(request, rate, self.moment())
        except trio.Cancelled:
            self._observer.undelivered(request.id, "the service stopped")
            raise
        except Exception as problem:  # noqa: BLE001 - a bug costs one request and not the service
            reply = self._excuse(request, problem, came)
        self._deliver(reply)
        self.report(came)
        self.waiting -= 1
        self._waiting_bytes -= size
        if not self.waiting:
            self._settled.set()

    async def wait_settled(self) -> None:
        """Returns when no request waits for its rate."""
        while self.waiting:
            self._settled = trio.Event()
            await self._settled.wait()

    def _convert(self, request: Request, rate: Rate | None, at: Moment) -> Reply:
        stake = request.stake
        text = plain(to_euro(stake, rate.units, rate.euro) if rate else rounded(stake))
        reply = Reply(request.id, encode_reply(request, text, at.wire), at.mono)
        self._made.append((request, text, rate, at.utc))
        return reply

    def _excuse(self, request: Request, problem: Exception, came: float) -> Reply:
        """The error for a request that `problem` kept from being converted."""
        if isinstance(problem, BadDate):
            problem = NoRate(Refusal.BAD_DATE, f"date {wire_time(request.instant)} {problem}")
        elif not isinstance(problem, NoRate):
            self._observer.internal_error("request", problem)
            problem = NoRate(Refusal.INTERNAL_ERROR, "an internal error, see the service's log")
        return self._refuse(request.id, problem, came)

    def _refuse(self, message_id: bytes, problem: Refused | NoRate, came: float) -> Reply:
        now = self._trio_now()
        self._observer.refused(problem, message_id, now - came)
        return Reply(message_id, encode_error(message_id, problem.text), now)
