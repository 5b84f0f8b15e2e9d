"""One simulation: the whole service under faults, on a virtual clock, from one seed."""

import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from math import inf
from typing import Final
from unittest.mock import patch

import attrs
import trio
from trio.testing import MockClock

from ratebridge import app, bridge, outbox
from ratebridge.app import Dependencies, serve
from ratebridge.history import embedded
from ratebridge.link.address import Address
from ratebridge.link.tls import tls_context
from ratebridge.settings import Settings

from . import feed as feed_module
from . import sources as sources_module
from .checker import Checker
from .faults import Faults
from .feed import Feed
from .injected_bugs import INJECTED_BUGS
from .recorder import Recorder
from .sources import ScriptedSource
from .trace import Trace
from .traffic import Traffic

embedded()  # a virtual clock would not wait for the thread that loads it

MEAN_LENGTH: Final = 30.0  # s, of a run
MIDDAY: Final = datetime(2025, 6, 13, 12, tzinfo=UTC)
BEFORE_MIDNIGHT: Final = datetime(2025, 6, 13, 23, 59, 45, tzinfo=UTC)


@attrs.frozen
class Report:
    """The result of a seed. `seconds` are simulated.

    `received` counts the requests that were read whole, also on a closing connection.
    """

    seed: int
    seconds: float
    links: int
    received: int
    replies: int
    undelivered: int
    faults: Counter[str]
    violations: tuple[str, ...]


def simulate(
    seed: int,
    *,
    length: float | None = None,
    inject: str | None = None,
    log: Callable[[str], None] | None = None,
) -> Report:
    """Run and check the simulation of a seed; the same seed gives the same run.

    `length` is the time in simulated seconds after which it is stopped at the
    latest, `inject` the name of a bug to inject (see `injected_bugs`). `log` gets a line
    for each event.
    """
    simulation = _Simulation(random.Random(seed), length, Trace(log))
    with ExitStack() as stack:
        stack.enter_context(_scheduled_by(seed))
        stack.enter_context(simulation.patched())
        if inject is not None:
            stack.enter_context(INJECTED_BUGS[inject].inject())
        simulation.run()
    return simulation.report(seed)


@contextmanager
def _scheduled_by(seed: int) -> Iterator[None]:
    """Let trio choose among ready tasks by the seed instead of at random."""
    from trio._core import _run  # it has no public name; pytest-trio and hypothesis do the same

    state = _run._r.getstate()
    with patch.object(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
        _run._r.seed(seed)
        try:
            yield
        finally:
            _run._r.setstate(state)


_tls_context = cache(tls_context)  # 70 ms, and nothing here is encrypted


class _Simulation:
    """The parts of a run, drawn from one random generator."""

    def __init__(self, chance: random.Random, length: float | None, trace: Trace) -> None:
        self._chance = chance
        self._trace = trace
        self._clock = MockClock(autojump_threshold=0)
        self._begin = BEFORE_MIDNIGHT if chance.random() < 0.2 else MIDDAY
        self._begin += timedelta(milliseconds=chance.randrange(10_000))
        if length is None:
            length = min(600.0, 1.0 + chance.expovariate(1 / MEAN_LENGTH))
        self._length = length
        names = chance.choice((("plain",), ("plain", "dollar"), ("dollar", "plain")))
        self._settings = Settings(
            Address("feed.example", 80, "/", secure=False),
            providers=names,
            cache_ttl=chance.choice((7200.0, 7200.0, 5.0)),
            rate_deadline=chance.choice((5.0, 5.0, 2.0, 8.0)),
            drain_timeout=chance.choice((5.0, 5.0, 5.0, 1.0, 0.0)),
        )
        calm = chance.random() < 0.3
        self._sources = [
            ScriptedSource(
                name,
                Faults(
                    chance, {"up": 1} if calm else sources_module.MOODS, 10.0, self._length + 20
                ),
                random.Random(chance.random()),
                trace,
            )
            for name in names
        ]
        self._traffic = Traffic(random.Random(chance.random()), self._utc_at)
        self._feed = Feed(
            random.Random(chance.random()),
            Faults(chance, feed_module.MOODS, chance.choice((3.0, 8.0, 25.0)), self._length + 20),
            self._traffic,
            trace,
        )
        self._jitter = random.Random(chance.random()).random
        self._recorder = Recorder(trace, self._utc_now, self._sources)

    def _utc_at(self, at: float) -> datetime:
        return self._begin + timedelta(seconds=at)

    def _utc_now(self) -> datetime:
        return self._utc_at(trio.current_time())

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Watches on the queues, and in some runs bounds so small that they are met."""
        chance = self._chance
        with ExitStack() as stack:
            put = stack.enter_context
            put(self._feed.kernel.patched())
            put(patch.object(app, "tls_context", _tls_context))
            put(patch.object(app, "Outbox", self._recorder.make_outbox))
            put(patch.object(app, "Bridge", self._recorder.make_bridge))
            if chance.random() < 0.3:
                # Less than the queue, as it is in earnest: all of it is never under way.
                most, size = chance.choice(((5, 1), (30, 600), (30, 600)))
                put(patch.object(outbox, "MOST_REPLIES", most))
                put(patch.object(outbox, "WRITE_SIZE", size))
            if chance.random() < 0.2:
                put(patch.object(outbox, "MOST_BYTES", 100_000))
            if chance.random() < 0.3:
                put(patch.object(outbox, "OLDEST_REPLY", chance.choice((2.0, 8.0))))
            if chance.random() < 0.3:
                put(patch.object(bridge, "MOST_WAITING", chance.choice((1, 10))))
            yield

    def run(self) -> None:
        try:
            trio.run(self._main, clock=self._clock)
        except BaseExceptionGroup:
            self._trace.complain(f"the service crashed: {traceback.format_exc()}", 0.0)
        else:
            Checker(self._trace, self._settings, self._sources, self._utc_at).judge()

    async def _main(self) -> None:
        trace = self._trace
        stop = trio.Event()
        async with trio.open_nursery() as world_nursery:
            world_nursery.start_soon(self._stall, name="stalls")
            world_nursery.start_soon(self._stop, stop, name="stop")
            dependencies = Dependencies(
                self._feed.dial, self._sources, self._utc_now, self._jitter, self._recorder
            )
            with trio.move_on_at(self._length + 1000.0):
                await serve(self._settings, stop, dependencies)
                trace.served_at = trio.current_time()
            if self._utc_now().date() > self._begin.date():
                trace.fault("midnight")
            world_nursery.cancel_scope.cancel()

    async def _stall(self) -> None:
        """Stall our own loop at times: the clock goes on, no task does."""
        chance = self._chance
        mean = chance.choice((5.0, 20.0, 1e6, 1e6))
        while True:
            await trio.sleep(chance.expovariate(1 / mean))
            seconds = chance.choice((0.1, 0.3, 1.0, 2.5, 3.0, 10.0))
            since = trio.current_time()
            self._clock.jump(seconds)
            self._trace.stalls.append((since, since + seconds))
            self._trace.fault("stall")

    async def _stop(self, stop: trio.Event) -> None:
        """Ask for the stop: at a certain time, or at the first moment of a kind after a while."""
        chance, trace = self._chance, self._trace
        moment = chance.choice(("time", "time", "dial", "backoff", "asked", "blocked"))
        if moment == "time":
            await trio.sleep(self._length)
        else:
            await trio.sleep(self._length * 0.6)
            struck = trio.Event()

            def strike(what: str) -> None:
                if what == moment:
                    struck.set()

            trace.on = strike
            with trio.move_on_at(self._length):
                await struck.wait()
                await trio.sleep(chance.choice((0.0, 0.01, 0.2, 1.5)))
        trace.stop_at = trio.current_time()
        trace.note("stop")
        stop.set()

    def report(self, seed: int) -> Report:
        trace = self._trace
        return Report(
            seed,
            trace.served_at or 0.0,
            sum(attempt.up < inf for attempt in trace.attempts),
            len(trace.reads("ask")),
            trace.left,
            sum(map(len, trace.undelivered.values())),
            trace.faults,
            tuple(trace.violations),
        )
