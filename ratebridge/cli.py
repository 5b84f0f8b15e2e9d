"""The entry point: runs the service, or the command that is named."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from .errors import BadSettings, CannotStart

DONE, FAILED, BAD_USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done or stopped by a signal, 1 failed, 2 bad usage or settings."""
    # As PID 1 an unhandled SIGTERM would be ignored until the service has its own receiver.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    _open_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    run = _command(arguments) if arguments else _run_service
    code = DONE
    unread = False
    try:
        code = run()
    except* BadSettings as bad:
        print(*_words(bad), sep="\n", file=sys.stderr)
        code = BAD_USAGE
    except* CannotStart as failed:
        print(*_words(failed), sep="\n", file=sys.stderr)
        code = FAILED
    except* BrokenPipeError:  # standard output has no reader any more
        unread = True
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # or the interpreter's flush at exit would fail as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            unread = unread or stream is sys.stdout
    if unread and set(arguments[:1]) & {"check", "verify"}:  # what is not reported has not passed
        code = code or FAILED
    # The log's last lines may take a second: a handler that raised then would have its error
    # written to standard error, whose reader may be stuck.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _command(arguments: Sequence[str]) -> Callable[[], int]:
    from .command_line import read_command  # argparse takes 3 ms, which the service does without

    return read_command(arguments)


def _words(errors: BaseExceptionGroup[BadSettings | CannotStart]) -> Iterator[str]:
    """The lines of all errors in a group and its subgroups."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _words(error)
        else:
            yield from error.args


def _open_standard_streams() -> None:
    """Open the closed ones: the next file or socket would take a closed one's number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 - open as long as the process lives
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115


def _leave(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(DONE)


def _run_service() -> int:
    from .settings import load_settings

    settings = load_settings()

    from .app import run

    run(settings)
    return DONE
