"""Tells a service manager how the service fares, by the protocol of sd_notify(3).

READY at the start, WATCHDOG while the event loop turns, and STOPPING at the stop go to the socket
that `NOTIFY_SOCKET` names, a path or, after an @, an abstract name. READY does not wait for the
feed, or a host would not come up while that is away. A manager that does not read them costs
nothing.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Final

import trio

from ..bridge import Bridge

POLL_EVERY: Final = 0.25  # s


async def notify(bridge: Bridge, environment: Mapping[str, str]) -> None:
    """Tell it until cancelled; returns at once where nobody is to be told.

    `bridge` says whether the service stops, and `environment` has the variables by which the
    manager asks, `NOTIFY_SOCKET` and two more.
    A watchdog hears at least twice within the microseconds of `WATCHDOG_USEC`, unless
    `WATCHDOG_PID` names another process.
    """
    name = environment.get("NOTIFY_SOCKET", "")
    if name[:1] not in ("/", "@"):
        return
    address = f"\0{name[1:]}" if name.startswith("@") else name
    usec = environment.get("WATCHDOG_USEC", "")
    ours = str(os.getpid())
    watched = usec.isdecimal() and environment.get("WATCHDOG_PID", ours) == ours
    every = (int(usec) / 2e6 if watched else 0) or inf
    due = trio.current_time()
    told: set[str] = set()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)

        def tell_once(state: str) -> None:
            if state not in told:
                with suppress(OSError):  # a full queue: it is told in the next turn
                    manager.sendto(state.encode(), address)
                    told.add(state)

        try:
            while True:
                tell_once("READY=1")
                if bridge.stopping:
                    tell_once("STOPPING=1")
                if every < inf and trio.current_time() >= due:
                    due = trio.current_time() + every
                    told.discard("WATCHDOG=1")
                    tell_once("WATCHDOG=1")
                await trio.sleep(min(POLL_EVERY, every))
        finally:
            tell_once("STOPPING=1")
