"""Names and their addresses, looked up apart from the attempts that ask for them.

A name server that is dead costs glibc ten seconds and more, twice what an attempt has.
So a lookup goes on when the attempt that began it is over, and the next one gets what
it finds. Equal lookups at the same time are one, so that there are never more threads
than names, and no lookup waits for the thread of another. The threads are none of those
that files, the audit trail and the rest of a program share.

This is trio's hook for all lookups of a `trio.run`: the feed's, the sources', the proxies'.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs
import trio

PATIENCE: Final = 1.0  # s that a lookup may take before the last good addresses are used
MAX_NAMES: Final = 256  # kept in memory; a service has some seven
MAX_LOOKUPS: Final = 32  # threads: more than any service has names, as many as a host may spare

Addresses = list[Any]  # as `socket.getaddrinfo` gives them


@attrs.define
class Name:
    """What is known of one name and port.

    `found` are its last good addresses, `failure` is how the last lookup failed, if it
    did, and `looking` is set while one is under way.
    """

    found: Addresses | None = None
    failure: Exception | None = None
    looking: trio.Event | None = None


class Names(trio.abc.HostnameResolver):
    """A resolver for trio.

    Args:
        look_up: gets the arguments of `socket.getaddrinfo` and answers as that does.
            By default it is that, in a thread.
    """

    def __init__(self, look_up: Callable[..., Awaitable[Addresses]] | None = None) -> None:
        limiter = trio.CapacityLimiter(MAX_LOOKUPS)
        self._look_up = look_up or (
            lambda *how: trio.to_thread.run_sync(
                socket.getaddrinfo, *how, abandon_on_cancel=True, limiter=limiter
            )
        )
        self._names: dict[tuple[Any, ...], Name] = {}

    async def getaddrinfo(self, host: Any, *how: Any) -> Addresses:
        """The addresses of a host: fresh ones, or else the last good ones.

        `how` are the other arguments of `socket.getaddrinfo`. Raises what that raises
        if the lookup fails and none before it was good.
        """
        key = (host, *how)
        name = self._names.pop(key, None) or Name()
        self._names[key] = name  # at the end: those not asked for the longest are at the start
        while len(self._names) > MAX_NAMES:
            del self._names[next(iter(self._names))]
        if name.looking is None:
            name.looking = trio.Event()
            # A system task lives as long as the run, whatever becomes of who asks.
            trio.lowlevel.spawn_system_task(self._refresh, name, key, name.looking)
        with trio.move_on_after(PATIENCE if name.found else float("inf")):
            await name.looking.wait()
        if not name.found:
            assert name.failure is not None, "a lookup that is over has found, or has failed"
            raise name.failure.with_traceback(None)
        return list(name.found)

    async def _refresh(self, name: Name, key: tuple[Any, ...], looking: trio.Event) -> None:
        """Look a name up, and tell all who wait."""
        try:
            found = await self._look_up(*key)
            # Name servers shuffle. In another order the next address could be the last one tried.
            if sorted(found) != sorted(name.found or []):
                name.found = found
        except (OSError, UnicodeError) as error:
            name.failure = error
        except RuntimeError:  # "can't start new thread"
            name.failure = socket.gaierror(socket.EAI_AGAIN, "no thread for the lookup")
        finally:
            looking.set()
            name.looking = None

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """As `socket.getnameinfo`. Nothing here asks for it, but a host of the service may."""
        return await trio.to_thread.run_sync(socket.getnameinfo, sockaddr, flags)

    def skip(self, host: str) -> None:
        """Begin with the next address of a host from now on: with the first one it failed."""
        for key, name in self._names.items():
            if key[0] == host.encode() and name.found:
                name.found = [*name.found[1:], name.found[0]]


def names() -> Names:
    """The resolver of this `trio.run`, made at the first call; none is used where it has another.

    A host of the service may have set one, which stays.
    """
    resolver = Names()
    other = trio.socket.set_custom_hostname_resolver(resolver)
    if other is not None:
        trio.socket.set_custom_hostname_resolver(other)
    return other if isinstance(other, Names) else resolver
