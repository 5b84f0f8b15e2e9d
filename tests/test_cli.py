"""The command line. What the commands do is tested by their own modules, and `test_process`."""

import signal

import pytest

from ratebridge.cli import main


@pytest.fixture(autouse=True)
def signals_as_before():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def exit_code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    return exited.value.code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_service_listens_for_it_ends_it_all_the_same(number, monkeypatch):
    def run(_options: object) -> int:
        signal.raise_signal(number)
        raise AssertionError

    monkeypatch.setattr("ratebridge.cli._run", run)
    assert exit_code() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("mock-server", "--port", "65536"),
        ("mock-server", "--rates-port", "-1"),
        ("mock-server", "--rate", "0"),
        ("mock-server", "--rate", "fast"),
        ("demo", "--rate", "nan"),
        ("demo", "--count", "0"),
        ("convert", "253.67"),
        ("verify",),
        ("no-such-command",),
    ],
    ids=" ".join,
)
def test_bad_usage_is_exit_code_2_with_how_to_use_it(arguments, capsys):
    assert exit_code(*arguments) == 2
    assert capsys.readouterr().err.startswith("usage: ratebridge")


def test_a_file_to_replay_that_cannot_be_read_is_told(tmp_path, capsys):
    assert exit_code("mock-server", "--replay", str(tmp_path / "none.jsonl")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "--replay: expected a file of JSON lines that can be read"
    )


def test_a_check_that_finds_something_wrong_is_exit_code_1(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CURRENCY_ASSIGNMENT_WS_URI", "ws://feed.example")
    monkeypatch.setenv("RATEBRIDGE_PROVIDERS", "ecb")
    monkeypatch.setattr("ratebridge.commands.check.run_check", lambda _settings: 1)
    assert exit_code("check") == 1
