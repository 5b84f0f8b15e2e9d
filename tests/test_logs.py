"""The log: JSON for machines, a console for people, and no fault when its reader is gone."""

import io
import json
import logging

import pytest
import structlog

from ratebridge.operating.logs import configure_logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _as_before():
    handlers = logging.getLogger().handlers[:]
    level = logging.getLogger().level
    yield
    structlog.reset_defaults()
    logging.basicConfig(level=level, handlers=handlers, force=True)


def test_a_pipe_gets_json_lines():
    stream = io.StringIO()
    configure_logs("info", "auto", stream)
    structlog.get_logger().info("connection.up", links=1)
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "connection.up", "level": "info", "links": 1}


def test_a_terminal_gets_lines_for_people():
    stream = Terminal()
    configure_logs("info", "auto", stream)
    structlog.get_logger().info("connection.up", links=1)
    assert "connection.up" in stream.getvalue()
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(stream.getvalue())


def test_what_is_below_the_level_is_not_written():
    stream = io.StringIO()
    configure_logs("warning", "json", stream)
    structlog.get_logger().info("connection.up")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_trace_shows_no_local_variable(log_format):
    stream = Terminal()
    configure_logs("info", log_format, stream)
    password = "s3cret"[::-1]  # noqa: F841 - what must not be shown
    try:
        raise RuntimeError("a bug")
    except RuntimeError as bug:
        structlog.get_logger().error("crash", exc_info=bug)
    assert "RuntimeError: a bug" in stream.getvalue()
    assert "terc3s" not in stream.getvalue()


def test_a_reader_who_left_is_no_fault():
    configure_logs("info", "json", Gone())
    structlog.get_logger().info("connection.up")


def test_what_a_library_warns_of_comes_into_our_log():
    stream = io.StringIO()
    configure_logs("info", "json", stream)
    logging.getLogger("some.library").warning("%s is low", "disk")
    logging.getLogger("some.library").info("nothing of interest")
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "disk is low"
    assert json.loads(line)["logger"] == "some.library"
