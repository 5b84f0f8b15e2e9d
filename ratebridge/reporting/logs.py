"""The log: lines for people on a terminal, JSON otherwise, written by a thread of its own.

The reader of standard error may stall, leave, or be missing; that must not stop the service.
Lines wait in a bounded queue. Those beyond it are dropped and counted, and the count is logged
as `log.dropped` when the reader is back.
"""

import atexit
import logging
import os
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, Final, TextIO

import structlog

OFTEN: Final = 10  # lines of one kind in any minute: enough to identify the problem
MINUTE: Final = 60.0  # s
MOST_WAITING: Final = 4 * 1024 * 1024  # bytes of lines: some 20,000
LAST_WITHIN: Final = 1.0  # s for the queue at the exit


class LineLimit:
    """Lets `OFTEN` lines of a kind through in any minute, and counts those of the minute after."""

    def __init__(self) -> None:
        self._admitted: defaultdict[str, deque[float]] = defaultdict(deque)
        self._held: Counter[str] = Counter()

    def admit(self, kind: str, now: float) -> int:
        """This line's number within its kind and the minute before `now`; 0: hold it back."""
        admitted = self._admitted[kind]
        if len(admitted) == OFTEN and now - admitted[-1] < MINUTE:
            self._held[kind] += 1
            return 0
        while admitted and now - admitted[0] >= MINUTE:
            admitted.popleft()
        admitted.append(now)
        return len(admitted)

    def take_held(self) -> Counter[str]:
        """How many lines of which kinds were held back since the last call."""
        held, self._held = self._held, Counter()
        return held


library_limit: Final = LineLimit()  # of what the libraries log


class LogWriter:
    """A thread that writes lines, behind a bounded queue; it has the methods of a logger.

    `write` takes bytes and returns how many of them it wrote, as `os.write` does.
    """

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write = write
        self._lines: list[bytes] = []
        self._size = 0  # bytes of the lines that are not written yet
        self._changed = threading.Condition()
        self._closing = False
        self._limit = LineLimit()
        self._reported = 0
        self.dropped = 0  # lines, since the start
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        """Queue a line, or drop it if the queue is full."""
        encoded = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._size + len(encoded) > MOST_WAITING:
                self.dropped += 1
                return
            self._size += len(encoded)
            self._lines.append(encoded)
            self._changed.notify()

    debug = info = warning = error = critical = msg

    def close(self) -> None:
        """Write the queue within `LAST_WITHIN` seconds, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(LAST_WITHIN)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing)
                if not self._lines:
                    return
                lines, self._lines = self._lines, []
            block, written = b"".join(lines), True
            while block and written:
                try:
                    block = block[self._write(block) :]
                # The reader has left, the stream was closed, or another process made the
                # descriptor non-blocking and it is full.
                except (OSError, ValueError):
                    written = False
            with self._changed:
                self._size -= sum(map(len, lines))
                self.dropped += 0 if written else len(lines)
                unreported = self.dropped - self._reported
            if written and unreported and self._limit.admit("", time.monotonic()):
                self._reported += unreported
                structlog.get_logger().warning("log.dropped", lines=unreported)


def _writing_to(stream: TextIO) -> Callable[[bytes], int]:
    """A write to the stream's descriptor: the stream's own lock could block the exit."""
    try:
        return partial(os.write, stream.fileno())
    except OSError:  # it is in memory
        return lambda block: stream.write(block.decode()) and len(block)


class _LibraryHandler(logging.Handler):
    """Passes the records of libraries on to our own log."""

    def emit(self, record: logging.LogRecord) -> None:
        if library_limit.admit(f"library {record.name}", time.monotonic()):
            structlog.get_logger().log(
                record.levelno, "library", logger=record.name, message=record.getMessage()
            )


_writer: LogWriter | None = None  # one for the process, like structlog's configuration


# Or a warning went to standard error where the host has configured nothing.
logging.getLogger("ratebridge").addHandler(logging.NullHandler())


class HostLog:
    """The log of an embedded service: its events are records of the stdlib logger `ratebridge`.

    A record's message is the event with its fields; it has them as `event` and `fields` too.
    The host configures the logger. This class has the two methods of structlog's that are used.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("ratebridge")

    def is_enabled_for(self, level: int) -> bool:
        """Whether the host wants records of this level, one of `logging`'s numbers."""
        return self._logger.isEnabledFor(level)

    def log(self, level: int, event: str, *, exc_info: Any = None, **fields: Any) -> None:
        """Make a record of an event. `exc_info` is an exception, whose traceback is kept."""
        words = {name: str(value) for name, value in fields.items()}
        shown = (f"{name}={repr(word) if ' ' in word else word}" for name, word in words.items())
        extra = {"event": event, "fields": fields}
        self._logger.log(level, "%s", " ".join((event, *shown)), exc_info=exc_info, extra=extra)


def lines_dropped() -> int:
    """How many lines of this process's log were lost since the start; 0 of an embedded one."""
    return _writer.dropped if _writer else 0


def _event_first(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """The members of a JSON line in the order in which people read it."""
    return {key: event[key] for key in ("timestamp", "level", "event")} | dict(event)


def event_log() -> Any:
    """structlog's log for the events of an `Observer`, however it is configured."""
    return structlog.get_logger()


def configure_logs(level: str, log_format: str, stream: TextIO | None = None) -> LogWriter:
    """Configure structlog for the process.

    `level` is a name such as "info", `log_format` is "json", "console", or "auto" for the second
    of them on a terminal.
    Lines go to `stream` (default: standard error); the writer is closed at the exit.
    """
    global _writer  # noqa: PLW0603 - one log for the process
    if _writer is not None:
        _writer.close()
    stream = stream or sys.stderr
    as_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    known = structlog.processors
    processors: list[Any] = [known.add_log_level, known.TimeStamper(fmt="iso", utc=True)]
    if as_json:
        processors += [known.format_exc_info, _event_first, known.JSONRenderer(default=str)]
    else:
        # The default tracebacks print local variables, and so secrets.
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty() and not os.environ.get("NO_COLOR"),
                exception_formatter=structlog.dev.plain_traceback,
                sort_keys=False,  # fields stand in the order in which they explain each other
            )
        )
    writer = _writer = LogWriter(_writing_to(stream))
    atexit.register(writer.close)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda: writer,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryHandler()], force=True)
    return writer
