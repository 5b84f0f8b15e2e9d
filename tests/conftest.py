"""Settings of all tests."""

import os
import signal
from importlib import import_module

import pytest
from hypothesis import HealthCheck, settings
from support import virtual_clock
from trio.testing import MockClock

from ratebridge.history import embedded
from ratebridge.settings import VARIABLES
from ratebridge.signals import IGNORED, STOPS

# Most machines have it not, and what a process leaves unwritten at its end depends on it.
os.environ.pop("PYTHONUNBUFFERED", None)
# Those of the shell, such as README has them exported.
for variable in VARIABLES.values():
    os.environ.pop(variable.name, None)

# A machine that is busy with other things is slow: that is no flaw of what is tested.
settings.register_profile(
    "patient", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


# Loaded here once: a virtual clock does not wait for the thread that would load them.
embedded()
import_module("httpx")


@pytest.fixture
def mock_clock() -> MockClock:
    return virtual_clock()


@pytest.fixture
def autojump_clock() -> MockClock:
    return virtual_clock(autojump_threshold=0)


@pytest.fixture(autouse=True)
def signals_as_before():
    """The command line leaves its own handlers."""
    handlers = {number: signal.getsignal(number) for number in (*STOPS, *IGNORED)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
