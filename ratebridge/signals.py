"""The signals of a process: what each does, from the first moment to the last.

Nothing is imported here that takes time. A signal in the first moment would meet the
interpreter's own handlers: a traceback of an import, or a death by SIGHUP.
"""

import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

if TYPE_CHECKING:
    import trio

T = TypeVar("T")

STOPS: Final = (signal.SIGINT, signal.SIGTERM)
IGNORED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def install(exit_code: Callable[[int], int], *, ignored: tuple[int, ...] = IGNORED) -> None:
    """Let SIGINT and SIGTERM raise SystemExit with the code for their number.

    Those of `ignored` do nothing from now on. A parent may have blocked them; that is undone.
    As PID 1 a process has no handlers but its own.
    """

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(exit_code(number))

    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    for number in STOPS:
        signal.signal(number, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPS, signal.SIGHUP})


def ignore_stops() -> None:
    """Ignore SIGINT and SIGTERM for the last moments of the process."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def run_until_signal(
    run: Callable[["trio.Event"], Awaitable[None]], *, at_once: bool = False
) -> int | None:
    """Run in trio with an Event that SIGTERM or SIGINT sets; a second signal cancels it.

    With `at_once` the first one does.

    Returns the number of the first signal, None if there was none. The handlers that were
    installed before are back afterwards.
    """
    import trio

    from .errors import RatebridgeError

    got: list[int] = []

    async def main() -> None:
        with trio.open_signal_receiver(*STOPS) as signals:
            stop = trio.Event()

            async def obey(scope: trio.CancelScope) -> None:
                if not got:
                    got.append(await anext(signals))
                stop.set()
                if not at_once:
                    await anext(signals)
                scope.cancel()

            problem = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(obey, nursery.cancel_scope, name="signals")
                try:
                    await run(stop)
                except RatebridgeError as error:
                    problem = error  # raised outside, so that no nursery wraps it in a group
                nursery.cancel_scope.cancel()
            if problem is not None:
                raise problem

    # Before and after the receiver is open, trio's own code runs: a handler must not raise there.
    handlers = {
        number: signal.signal(number, lambda number, _frame: got.append(number)) for number in STOPS
    }
    try:
        trio.run(main)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return got[0] if got else None


def run_unless_stopped(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` in trio and return its result.

    SIGTERM and SIGINT cancel it, and then do what their handlers did before.
    """
    results: list[T] = []

    async def until(_stop: object) -> None:
        results.append(await work())

    number = run_until_signal(until, at_once=True)
    if not results:
        assert number is not None, "nothing else cancels the work"
        signal.raise_signal(number)
    return results[0]
