"""The entry point: runs the service, or the command that is named."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from . import signals
from .commands import MODULES, REPORTS

DONE, FAILED, BAD_USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    The code is 0 when it is done, or for the service when a signal stopped it; 1 when it
    failed; 2 for bad usage or settings; 130 or 143 for a report that a signal interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    named = set(arguments) & MODULES.keys()
    reports = bool(named & REPORTS)
    # A command on a terminal ends with it.
    ignored = signals.IGNORED[1:] if named else signals.IGNORED
    signals.install(lambda number: 128 + number if reports else DONE, ignored=ignored)

    from .errors import BadSettings, CannotStart  # the first import that takes time

    _open_standard_streams()
    code = DONE
    # A command meets no other one: its standard output has no reader any more, or no room.
    of_the_output = (OSError,) if named else ()
    unwritten: OSError | None = None
    try:
        from .command_line import command_line

        service = not arguments or arguments[0].startswith("--env-file")
        options = command_line(named or (() if service else MODULES)).parse_args(arguments)
        code = options.run(options)
    except* (BadSettings, CannotStart) as errors:
        for error in _leaves(errors):
            print(*error.args, sep="\n", file=sys.stderr)
        code = BAD_USAGE if errors.subgroup(BadSettings) else FAILED
    except* of_the_output as errors:
        unwritten = next(_leaves(errors))
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:  # or the interpreter's flush at exit would fail as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            unwritten = unwritten or (error if stream is sys.stdout else None)
    if isinstance(unwritten, BrokenPipeError):  # who left has read enough, but not of a report
        code = code or (FAILED if reports else DONE)
    elif unwritten is not None:
        code = FAILED
        print(f"ratebridge: {unwritten.strerror}", file=sys.stderr)
    # The log's last lines may take a second: a handler that raised then would have its error
    # written to standard error, whose reader may be stuck.
    signals.ignore_stops()
    sys.exit(code)


def _leaves(errors: BaseExceptionGroup[Any]) -> Iterator[Any]:
    """All errors of a group and its subgroups, as trio's nurseries nest them."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _open_standard_streams() -> None:
    """Open the closed ones: the next file or socket would take a closed one's number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 - open as long as the process lives
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
