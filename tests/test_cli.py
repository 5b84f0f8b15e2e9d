"""The command line. What the commands do is tested by their own modules, and `test_process`."""

import io
import os
import signal
from importlib.resources import files

import pytest
import shtab

from ratebridge import __version__
from ratebridge.cli import main
from ratebridge.command_line import command_line
from ratebridge.commands.completion import SHELLS
from ratebridge.settings import VARIABLES


def exit_code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    return exited.value.code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_exit_is_ignored(number, monkeypatch):
    monkeypatch.setattr("ratebridge.command_line.run_service", lambda _options: 0)
    assert exit_code() == 0
    signal.raise_signal(number)  # as while the log writes its last lines


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("mock-server", "--port", "65536"), "a port from 0 to 65535, got '65536'"),
        (("mock-server", "--rate", "0"), "a number above 0, got '0'"),
        (("demo", "--rate", "nan"), "a number above 0, got 'nan'"),
        (("demo", "--count", "0"), "a whole number above 0, got '0'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_option_is_reported_with_what_was_expected(arguments, expected, capsys):
    assert exit_code(*arguments) == 2
    option = arguments[1].partition("=")[0]
    problem = capsys.readouterr().err.splitlines()[-1]
    assert problem.endswith(f"error: argument {option}: expected {expected}")


@pytest.mark.parametrize("arguments", [("convert",), ("verify",), ("no-such-command",)])
def test_bad_usage_is_exit_code_2_with_how_to_use_it(arguments, capsys):
    assert exit_code(*arguments) == 2
    assert capsys.readouterr().err.startswith("usage: ratebridge")


def test_a_verification_that_a_signal_stops_has_not_passed(monkeypatch, capsys):
    class Endless(io.BytesIO):
        def readline(self, _size: int | None = -1) -> bytes:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Endless()))
    assert exit_code("verify", "-") == 143
    assert capsys.readouterr().out == ""


def test_the_help_tells_each_settings_default_and_meaning(capsys):
    assert exit_code("--help") == 0
    shown = capsys.readouterr().out
    cached = "  RATEBRIDGE_CACHE_TTL (7200)\n      seconds for which rates are cached\n"
    assert cached in shown
    assert [v.name for v in VARIABLES.values() if f"\n  {v.name} (" not in shown] == []


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version(option, capsys):
    assert exit_code(option) == 0
    assert capsys.readouterr().out == f"ratebridge {__version__}\n"


@pytest.mark.parametrize("arguments", [("--vers",), ("demo", "--for"), ("mock-server", "--q")])
def test_no_option_is_taken_by_its_first_letters(arguments, capsys):
    assert exit_code(*arguments) == 2
    assert f"unrecognized arguments: {arguments[-1]}" in capsys.readouterr().err


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completions_are_those_of_the_command_line(shell, capsys):
    """To make them anew, see the docstring of `commands.completion`."""
    assert exit_code("completion", shell) == 0
    made = shtab.complete(command_line(), shell=shell)
    assert capsys.readouterr().out == f"{made}\n"


LINES = "expected requests, a JSON line each"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "expected a file of JSON lines that can be read"),
        (b"\xff", "expected a file of JSON lines that can be read"),
        (b"", f"{LINES}; it holds none"),
        (b'{"type":"heartbeat"}\n\nhello', f"{LINES}; line 3 is not a JSON object"),
        (b"[1]", f"{LINES}; line 1 is not a JSON object"),
        (b"[" * 100_000, f"{LINES}; line 1 is not a JSON object"),
    ],
    ids=["no file", "no text", "empty", "no JSON", "an array", "deep"],
)
def test_a_file_that_cannot_be_replayed_is_reported(content, problem, tmp_path, capsys):
    file = tmp_path / "recorded.jsonl"
    if content is not None:
        file.write_bytes(content)
    assert exit_code("mock-server", "--replay", str(file)) == 2
    assert capsys.readouterr().err == f"--replay: {problem}\n"


@pytest.mark.parametrize(
    ("host", "why"),
    [("192.0.2.1", "Cannot assign requested address"), ("a" * 64, "no name of a host")],
)
def test_a_host_that_is_not_this_machines_is_reported(host, why, capsys):
    assert exit_code("mock-server", "--port", "0", "--host", host) == 2
    problem = capsys.readouterr().err
    assert problem.startswith(f"--port: cannot listen on '{host[:9]}")
    assert problem.endswith(f", port 0: {why}\n")


REPORTS = [("check",), ("verify", "FILE"), ("convert", "1", "USD")]


@pytest.mark.parametrize("command", [*REPORTS, ("samples",)], ids=lambda command: command[0])
@pytest.mark.parametrize("size", [1, 10_000], ids=["in a buffer", "at once"])
def test_what_cannot_be_written_has_not_passed(command, size, monkeypatch, capsys):
    """Who leaves has read enough, unless it is a report."""

    def tell(_options) -> int:
        print("x" * size)
        return 0

    monkeypatch.setattr(f"ratebridge.commands.{command[0]}.run", tell)
    reader, left_by_its_reader = os.pipe()
    os.close(reader)
    for target, code in ((left_by_its_reader, int(command in REPORTS)), ("/dev/full", 1)):
        with io.FileIO(target, "w") as raw, io.TextIOWrapper(io.BufferedWriter(raw)) as out:
            monkeypatch.setattr("sys.stdout", out)
            assert exit_code(*command) == code
    assert capsys.readouterr().err == "ratebridge: No space left on device\n"


def test_the_samples_are_listed_and_printed(capsys):
    assert exit_code("samples") == 0
    names = capsys.readouterr().out.splitlines()
    folder = files("ratebridge") / "samples"
    texts = {file.read_text("utf-8") for file in folder.iterdir()}
    for name in names:
        assert exit_code("samples", name) == 0
        texts.remove(capsys.readouterr().out)
    assert texts == set(), "each has a name"
    assert exit_code("samples", "none") == 2
