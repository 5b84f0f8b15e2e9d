"""What a service manager is told, on a datagram socket."""

import os
import socket
from contextlib import suppress
from typing import Any

import pytest
import trio
from status_service import make_service

from ratebridge.operating.notify import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """The manager's end, and the name of it for the service."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@ratebridge-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name.replace("@", "\0"))
        end.setblocking(False)
        yield end, name


def heard(end: socket.socket) -> list[str]:
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(end.recv(100).decode())
    return found


@pytest.mark.parametrize("pid", [{}, {"WATCHDOG_PID": str(os.getpid())}])
async def test_it_hears_of_the_start_the_loop_and_the_stop(manager, pid, nursery, autojump_clock):
    end, name = manager
    service, _ = make_service(nursery)
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000", **pid}
    async with trio.open_nursery() as notify_nursery:
        notify_nursery.start_soon(notify, service.bridge, environment)
        await trio.sleep(0.95)
        assert heard(end) == ["READY=1", *["WATCHDOG=1"] * 10]
        service.bridge.stopping = True
        await trio.sleep(0.1)
        assert heard(end) == ["STOPPING=1", "WATCHDOG=1"]
        notify_nursery.cancel_scope.cancel()
    assert heard(end) == [], "each of the two once"


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}]
)
async def test_without_a_watchdog_it_hears_the_two_states(
    manager, watchdog, nursery, autojump_clock
):
    end, name = manager
    service, _ = make_service(nursery)
    with trio.move_on_after(3):
        await notify(service.bridge, {"NOTIFY_SOCKET": name, **watchdog})
    assert heard(end) == ["READY=1", "STOPPING=1"]


async def test_where_nobody_listens_it_costs_nothing(tmp_path, nursery, autojump_clock):
    service, _ = make_service(nursery)
    no_bridge: Any = None
    for environment in ({}, {"NOTIFY_SOCKET": "relative"}):
        await notify(no_bridge, environment)
    with trio.move_on_after(1):
        gone = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"}
        await notify(service.bridge, gone)
