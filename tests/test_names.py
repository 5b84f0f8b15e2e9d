"""Lookups apart from the attempts that ask for them."""

import socket
import threading
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support import elapsed

from ratebridge import names as module
from ratebridge.names import MAX_NAMES, Names, names

FIRST, SECOND, THIRD = (
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 80)) for n in (1, 2, 3)
)
NOT_FOUND = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@attrs.define
class Server:
    """A name server: how long it takes, and what it says, which is the last for ever."""

    takes: float
    answers: list[Any]
    asked: list[float] = attrs.Factory(list)

    async def look_up(self, host, *_how):
        self.asked.append(elapsed())
        await trio.sleep(self.takes)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return list(answer)


def names_by(takes=0.0, *answers):
    server = Server(takes, list(answers))
    return server, partial(Names(server.look_up).getaddrinfo, b"feed.test", 80)


async def test_equal_lookups_are_one_and_others_are_not(autojump_clock):
    server, ask = names_by(3.0, [FIRST])
    found = []

    async def keep(look):
        found.append((await look(), elapsed()))

    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(keep, ask)
        nursery.start_soon(keep, partial(ask.func, b"rates.test", 443))
    assert found == [([FIRST], 3.0)] * 10
    assert server.asked == [0.0, 0.0]


async def test_a_lookup_outlives_the_attempt_that_asked_and_answers_the_next(autojump_clock):
    server, ask = names_by(12.0, [FIRST])
    for _ in range(2):
        with trio.move_on_after(5):
            await ask()
        await trio.sleep(0.5)
    assert await ask() == [FIRST]
    assert (elapsed(), server.asked) == (12.0, [0.0])


async def test_the_last_good_addresses_serve_while_a_lookup_takes_over_a_second(autojump_clock):
    server, ask = names_by(0.5, [FIRST], [SECOND], [THIRD])
    assert await ask() == [FIRST]
    assert await ask() == [SECOND], "within a second they are fresh"
    server.takes = 12.0
    began = elapsed()
    assert (await ask(), elapsed()) == ([SECOND], began + 1)
    await trio.sleep(11.5)
    server.takes = 0.5
    server.answers = [NOT_FOUND]
    assert await ask() == [THIRD], "the slow lookup has refreshed them, and the last one failed"


@pytest.mark.parametrize("failure", [NOT_FOUND, UnicodeError("label too long")])
async def test_a_lookup_that_fails_before_any_was_good_is_a_failure(failure, autojump_clock):
    _, ask = names_by(0.0, failure, [FIRST])
    with pytest.raises(type(failure)):
        await ask()
    assert await ask() == [FIRST]


async def test_a_name_begins_with_its_next_address_after_each_that_failed(autojump_clock):
    """However the name server shuffles them."""
    server = Server(0.0, [[FIRST, SECOND, THIRD], [THIRD, SECOND, FIRST], [SECOND, FIRST, THIRD]])
    resolver = Names(server.look_up)
    ask = partial(resolver.getaddrinfo, b"feed.test", 80)
    firsts = []
    for _ in range(4):
        firsts += [(await ask())[0], (await ask())[0]]
        resolver.skip("feed.test")
        resolver.skip("rates.test")
    assert firsts == [FIRST, FIRST, SECOND, SECOND, THIRD, THIRD, FIRST, FIRST]


async def test_no_more_names_are_kept_than_so_many(autojump_clock):
    server = Server(0.0, [[FIRST]])
    resolver = Names(server.look_up)
    for number in range(MAX_NAMES + 9):
        await resolver.getaddrinfo(f"{number}.test".encode(), 80)
    assert len(resolver._names) == MAX_NAMES


async def test_a_lookup_that_hangs_takes_no_thread_of_the_others(monkeypatch):
    """Those of `trio.to_thread` are for files; each name has its own beside them."""
    released = threading.Event()

    def hang(host, *_how):
        if host == b"feed.test":
            return [FIRST]
        released.wait(10)
        raise NOT_FOUND

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    ask = Names().getaddrinfo
    async with trio.open_nursery() as nursery:
        for number in range(module.MAX_LOOKUPS - 1):
            nursery.start_soon(ask, f"{number}.test".encode(), 80)
        await trio.testing.wait_all_tasks_blocked()
        assert await ask(b"feed.test", 80) == [FIRST]
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        nursery.cancel_scope.cancel()
    released.set()


async def test_without_a_thread_a_lookup_fails_and_the_run_goes_on(monkeypatch):
    async def no_thread(*_args, **_how):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    with pytest.raises(socket.gaierror, match="no thread"):
        await Names().getaddrinfo(b"feed.test", 80)


async def test_the_names_of_a_run_are_its_resolver(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args: [FIRST])
    mine = names()
    assert names() is mine
    assert trio.socket.set_custom_hostname_resolver(mine) is mine
    assert await mine.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST) == ("127.0.0.1", "http")


async def test_a_resolver_that_a_host_has_set_stays():
    class Own(trio.abc.HostnameResolver):
        getaddrinfo: Any = None
        getnameinfo: Any = None

    own = Own()
    trio.socket.set_custom_hostname_resolver(own)
    names().skip("feed.test")
    assert trio.socket.set_custom_hostname_resolver(None) is own
