"""The log: JSON for machines, a console for people, and readers that stall or leave."""

import io
import json
import logging
import re
import threading

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from ratebridge.reporting import logs
from ratebridge.reporting.logs import MINUTE, OFTEN, LineLimit, LogWriter, configure_logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    handlers = logging.getLogger().handlers[:]
    level = logging.getLogger().level
    monkeypatch.setattr(logs, "_writer", None)
    yield
    structlog.reset_defaults()
    logging.basicConfig(level=level, handlers=handlers, force=True)


@pytest.mark.parametrize(
    ("stream", "no_color", "form"),
    [
        (io.StringIO(), "", r'\{"timestamp": ".*Z", "level": "info", "event": ".*up", .*: 1\}'),
        (Terminal(), "", "\x1b.*connection.up.*"),
        (Terminal(), "1", r"[^\x1b{]*connection.up[^\x1b]*"),
    ],
)
def test_a_pipe_gets_json_lines_and_a_terminal_lines_for_people(
    stream, no_color, form, monkeypatch
):
    """In colours, unless the environment wants none."""
    monkeypatch.setenv("NO_COLOR", no_color)
    writer = configure_logs("info", "auto", stream)
    structlog.get_logger().info("connection.up", connections=1)
    structlog.get_logger().debug("conversion.done")
    writer.close()
    (text,) = stream.getvalue().splitlines()
    assert re.fullmatch(form, text)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_trace_shows_no_local_variable(log_format):
    stream = Terminal()
    writer = configure_logs("info", log_format, stream)
    password = "s3cret"[::-1]  # noqa: F841 - what must not be shown
    try:
        raise RuntimeError("a bug")
    except RuntimeError as bug:
        structlog.get_logger().error("crash", exc_info=bug)
    writer.close()
    assert "RuntimeError: a bug" in stream.getvalue()
    assert "terc3s" not in stream.getvalue()


def test_what_a_library_warns_of_comes_into_our_log_ten_times_a_minute(monkeypatch):
    monkeypatch.setattr(logs, "library_limit", LineLimit())
    stream = io.StringIO()
    writer = configure_logs("info", "json", stream)
    for _ in range(OFTEN + 1):
        logging.getLogger("some.library").warning("%s is low", "disk")
    logging.getLogger("some.library").info("nothing of interest")
    writer.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["message"], line["logger"]) for line in lines] == [
        ("disk is low", "some.library")
    ] * OFTEN
    assert logs.library_limit.take_held() == {"library some.library": 1}


@given(st.lists(st.floats(0, 20), max_size=60))
@example([0.0] * OFTEN + [20.0] * 3)
def test_behind_ten_lines_of_a_kind_in_a_minute_there_is_none_for_a_minute(waits):
    limit = LineLimit()
    now, silence = 2.0**20, 0.0
    admitted: list[float] = []
    for wait in waits:
        now += wait
        recent = [at for at in admitted if now - at < MINUTE]
        place = limit.admit("a kind", now)
        silent = now - silence < MINUTE
        assert place == (0 if silent else len(recent) + 1)
        assert place <= OFTEN
        admitted += [now] * bool(place)
        silence = now if place == OFTEN else silence
    assert limit.take_held().total() == len(waits) - len(admitted)
    assert not limit.take_held()


# The reader.


class Reader:
    """What is written, by a reader who reads while `reads` is set."""

    def __init__(self) -> None:
        self.got = b""
        self.reads = threading.Event()
        self.asked = threading.Event()

    def write(self, block: bytes) -> int:
        self.asked.set()
        assert self.reads.wait(10)
        self.got += block[:1000]
        return len(block[:1000])


@pytest.fixture
def reader(monkeypatch):
    reader = Reader()
    monkeypatch.setattr(logs, "MOST_WAITING", 5000)
    monkeypatch.setattr(logs, "LAST_WITHIN", 10)
    return reader


def test_lines_are_queued_without_a_reader_and_dropped_ones_counted(reader, monkeypatch):
    writer = LogWriter(reader.write)
    monkeypatch.setattr(logs, "_writer", writer)
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=lambda: writer
    )
    writer.msg("begun")
    assert reader.asked.wait(10)
    for number in range(200):
        writer.msg(f"{number:099}")
    assert writer.dropped == logs.lines_dropped() == 151
    reader.reads.set()
    writer.close()
    assert reader.got.decode().splitlines() == [
        "begun",
        *(f"{number:099}" for number in range(49)),
        '{"lines": 151, "event": "log.dropped"}',
    ]


def test_at_the_end_what_waits_gets_a_second(reader, monkeypatch):
    writer = LogWriter(reader.write)
    monkeypatch.setattr(logs, "LAST_WITHIN", 0.01)
    writer.msg("a line")
    writer.close()
    assert reader.got == b"", "and no more, when nobody reads"
    reader.reads.set()


@pytest.mark.parametrize(
    "gone", [BrokenPipeError(), BlockingIOError(), ValueError("I/O operation on closed file")]
)
def test_a_reader_who_left_costs_lines_only(gone):
    def write(_block: bytes) -> int:
        raise gone

    writer = LogWriter(write)
    writer.msg("half a pair \udce4")
    writer.close()
    assert writer.dropped == 1
