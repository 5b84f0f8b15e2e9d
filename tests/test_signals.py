"""The signals: before trio runs, while it runs, and after it."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import attrs
import pytest
import trio
from support import environment

from ratebridge import signals
from ratebridge.app import serve
from ratebridge.errors import BadSettings
from ratebridge.settings import Settings
from ratebridge.signals import run_unless_stopped, run_until_signal


def test_bad_settings_of_a_run_are_no_group_of_errors():
    async def run(_stop: trio.Event) -> None:
        await serve(Settings())

    with pytest.raises(BadSettings, match="is required but not set"):
        run_until_signal(run)


@attrs.define
class SignallingClock(trio.abc.Clock):
    """Raises SIGTERM when trio's own code asks for the time, as often as `armed` says."""

    armed: int = 0

    def start_clock(self) -> None: ...

    def current_time(self) -> float:
        if self.armed:
            self.armed -= 1
            signal.raise_signal(signal.SIGTERM)
        return 0.0

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()


@pytest.fixture
def signalling_clock(monkeypatch):
    """The clock of `trio.run`, and a handler of SIGTERM that raises, as that of `cli` does."""

    def leave(_number: int, _frame: object) -> NoReturn:
        raise SystemExit(0)

    clock = SignallingClock()
    monkeypatch.setattr(trio, "run", partial(trio.run, clock=clock))
    before = signal.signal(signal.SIGTERM, leave)
    yield clock
    assert clock.armed == 0
    assert signal.signal(signal.SIGTERM, before) is leave


def test_a_signal_while_trio_starts_stops_the_run(signalling_clock):
    signalling_clock.armed = 1
    run_until_signal(trio.Event.wait)


def test_a_second_signal_while_trio_ends_changes_nothing(signalling_clock, monkeypatch):
    receiver = trio.open_signal_receiver

    @contextmanager
    def receive(*numbers: int) -> Iterator[AsyncIterator[int]]:
        with receiver(*numbers) as signals:
            yield signals
        signalling_clock.armed = 1

    monkeypatch.setattr(trio, "open_signal_receiver", receive)
    assert run_unless_stopped(partial(trio.sleep, 0)) is None


BLOCKED = """
import os, signal
from ratebridge import signals
signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOPS)
os.kill(os.getpid(), signal.SIGTERM)
signals.install(lambda number: 128 + number)
"""


def test_a_stop_that_the_parent_has_blocked_is_unblocked():
    assert subprocess.run([sys.executable, "-c", BLOCKED]).returncode == 143


def test_work_that_a_signal_stops_ends_as_its_handler_says():
    signals.install(lambda number: 128 + number)

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    with pytest.raises(SystemExit) as exited:
        run_unless_stopped(work)
    assert exited.value.code == 130


FIRST_MOMENT = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
class Finder:
    def find_spec(self, name, *_):
        if name == "attr":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
sys.argv[1:] = {arguments}
from ratebridge.cli import main
main()
"""


@pytest.mark.parametrize(
    ("number", "arguments", "code"),
    [
        (signal.SIGHUP, [], 2),  # it went on to the settings
        (signal.SIGHUP, ["verify", "x"], -signal.SIGHUP),
        (signal.SIGUSR1, ["completion", "no"], 2),
        (signal.SIGINT, [], 0),
        (signal.SIGINT, ["check"], 130),
        (signal.SIGTERM, ["convert", "1", "USD"], 143),
        (signal.SIGTERM, ["demo"], 0),
    ],
)
def test_a_signal_during_the_imports_is_no_traceback(number, arguments, code, tmp_path):
    script = FIRST_MOMENT.format(number=int(number), arguments=arguments)
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
