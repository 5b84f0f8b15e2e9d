"""Soak the real process: a real feed on loopback, a fault every few seconds, and the balance.

Prints a line a minute: memory and open files of the process, requests and replies,
undelivered replies (read from its log), reconnects. Linux only.

    uv run scripts/soak.py --minutes 20
    uv run scripts/soak.py --minutes 20 --cuts   in a network namespace, whose loopback is cut too
    uv run scripts/soak.py --reconnects 1000     links that end at once; a line a hundred

The balance. Each request has an id of its own. It is "safe" if it was sent at least half a second
before a fault of its connection, else "in the fault": then it, or its reply, may be lost. Every
safe request must be answered exactly once, on any connection, or be logged as undelivered. Of
those in the fault the answered, the undelivered and the lost are counted. No request is answered
twice. Only faults may end a connection, except "stall" (SIGSTOP for 3 s), which must not. Exits
with 1 if any of this is violated.
"""

import argparse
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Final

import attrs
import trio

from ratebridge.fakes.feed import FeedPeer, play, random_requests

MARGIN: Final = 0.5  # s before a fault for which a request may still be on its way
RATE: Final = 40.0  # requests a second
FLOOD: Final = 10_000  # requests at once to a service whose replies nobody reads
FLOOD_PIECE: Final = 500  # of them between two chances for a heartbeat
RECEIVE_BUFFER: Final = 65536  # bytes; the system's own would take all replies of a flood
NEWEST: Final = date(2025, 6, 13)  # of the dates in requests; the embedded table has it
LINGER: Final = struct.pack("ii", 1, 0)  # on, 0 s: a close is a RST
WARM: Final = 60.0  # s until all code and tables are loaded: what memory is compared with
FAULTS: Final = {
    "reset": 4,
    "fin": 2,
    "close": 4,
    "garbage": 2,
    "silence": 2,
    "requests but no heartbeats": 2,
    "half-open": 3,
    "half-open, not even read": 2,
    "not reading, flood": 2,
    "not reading a while": 1,
    "refused upgrade next": 1,
    "no upgrade next": 1,
    "stall": 2,
}
CUT: Final = {"network cut": 4}  # with --cuts
ENDS: Final = ("reset", "fin", "close", "garbage", "refused upgrade next")  # those that are quick


@attrs.define(eq=False)
class Connection:
    """One link as the feed sees it. Times are trio's."""

    opened: float
    tap: "Tap"
    fault: str = ""
    fault_at: float | None = None
    stalled: bool = False
    writing: trio.Lock = attrs.Factory(trio.Lock)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)

    def strike(self, fault: str) -> None:
        self.fault = fault
        self.fault_at = trio.current_time()


@attrs.define(eq=False)
class Books:
    """What was asked, what came of it, and what the log told."""

    asked: dict[str, tuple[float, Connection]] = attrs.Factory(dict)
    answered: Counter[str] = attrs.Factory(Counter)
    undelivered: Counter[str] = attrs.Factory(Counter)
    unnamed: int = 0  # undelivered replies that the log told by their number alone
    links: int = 0
    linked: trio.Event = attrs.Factory(trio.Event)  # set and renewed with each
    faults: Counter[str] = attrs.Factory(Counter)
    ends: Counter[tuple[str, str]] = attrs.Factory(Counter)  # (fault, what the log calls it)
    events: Counter[str] = attrs.Factory(Counter)
    unexpected: list[str] = attrs.Factory(list)
    last_fault: str = "none"

    def hear(self, line: str) -> None:
        """A line of the service's log."""
        event = json.loads(line)
        name = event["event"]
        self.events[name] += 1
        if name == "reply.undelivered":
            self.undelivered[event["id"]] += 1
        elif name == "log.limited":
            self.unnamed += event["lines"].get("reply.undelivered", 0)
        elif name in ("connection.lost", "connection.failed"):
            self.ends[self.last_fault, event["reason"]] += 1
        elif name == "internal_error":
            self.unexpected.append(line)


class Tap(trio.abc.Stream):
    """A proxy of a line: it passes bytes on, or swallows them, and reads what came or does not."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.swallows = False
        self.reads = True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.swallows:
            await trio.lowlevel.checkpoint()
        else:
            await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        while True:
            if not self.reads:
                await trio.sleep(0.05)
                continue
            data = await self._stream.receive_some(max_bytes)
            if not self.swallows or not data:
                return data

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def reset(self) -> None:
        """End it with a RST."""
        self._stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, LINGER)
        await trio.aclose_forcefully(self._stream)


class Feed:
    """A feed that beats and asks, until a fault is due; `freeze` stops the service for 3 s."""

    def __init__(
        self,
        books: Books,
        chance: random.Random,
        faults: Mapping[str, float],
        freeze: Callable[[], Awaitable[None]],
        life: tuple[float, float] = (1.0, 8.0),
    ) -> None:
        self.quiet = False  # the end is near: no faults, no requests
        self._books = books
        self._chance = chance
        self._faults = faults
        self._freeze = freeze
        self._life = life
        self._refuse_next = ""
        self._requests = random_requests(chance, NEWEST)
        self._present: Connection | None = None

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, for `trio.serve_listeners`."""
        tap = Tap(stream)

        async def script(peer: FeedPeer) -> None:
            await self._play(peer, tap)

        await play(script, tap, [])

    async def _play(self, peer: FeedPeer, tap: Tap) -> None:
        if self._present is not None and self._present.fault:
            self._present.scope.cancel()  # the service has left it
        if self._refuse_next:
            await self._refuse(peer)
            return
        await peer.accept()
        connection = self._present = Connection(trio.current_time(), tap)
        self._books.links += 1
        self._books.linked.set()
        self._books.linked = trio.Event()
        try:
            with connection.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._beat, peer, connection)
                    nursery.start_soon(self._ask, peer, connection)
                    nursery.start_soon(self._hear, peer)
                    await self._harm_in_time(peer, connection)
                    nursery.cancel_scope.cancel()
        finally:
            if not connection.fault and not self.quiet:
                after = trio.current_time() - connection.opened
                stall = ", in a stall of its own" if connection.stalled else ""
                self._books.unexpected.append(f"a link ended by itself after {after:.1f} s{stall}")
                connection.strike("none")

    async def _refuse(self, peer: FeedPeer) -> None:
        how, self._refuse_next = self._refuse_next, ""
        if how == "refused upgrade next":
            await peer.reject(503)
        else:
            await peer.wait_for_request()
            await trio.sleep(10)

    async def _beat(self, peer: FeedPeer, connection: Connection) -> None:
        due = trio.current_time()
        while connection.fault not in ("silence", "requests but no heartbeats"):
            async with connection.writing:
                await peer.heartbeat()
            due += 1
            await trio.sleep_until(due)

    async def _ask(self, peer: FeedPeer, connection: Connection) -> None:
        while connection.fault != "silence" and not self.quiet:
            await self._send_requests(peer, connection, 1)
            await trio.sleep(self._chance.expovariate(RATE))

    async def _send_requests(self, peer: FeedPeer, connection: Connection, count: int) -> None:
        """So many requests in one piece."""
        async with connection.writing:
            frames = []
            for text in islice(self._requests, count):
                message_id = str(json.loads(text)["id"])
                self._books.asked[message_id] = (trio.current_time(), connection)
                frames.append(text_frame(text.encode()))
            await peer.send_raw(b"".join(frames))

    async def _hear(self, peer: FeedPeer) -> None:
        while True:
            message = (await peer.receive()).message
            peer.received.clear()
            if message["type"] != "heartbeat":
                self._books.answered[message["id"]] += 1

    async def _harm_in_time(self, peer: FeedPeer, connection: Connection) -> None:
        """Let the link live a while, then do something to it; returns when it shall be closed."""
        while True:
            await trio.sleep(self._chance.uniform(*self._life))
            if self.quiet:
                await trio.sleep_forever()
            fault = self._chance.choices(list(self._faults), list(self._faults.values()))[0]
            self._books.faults[fault] += 1
            if fault == "stall":
                connection.stalled = True
                await self._freeze()
                await trio.sleep(2)
                connection.stalled = False
            elif fault == "not reading a while":
                connection.tap.reads = False
                await trio.sleep(1.5)
                connection.tap.reads = True
            else:
                self._books.last_fault = fault
                connection.strike(fault)
                await self._harm(peer, connection)
                return

    async def _harm(self, peer: FeedPeer, connection: Connection) -> None:
        tap, chance = connection.tap, self._chance
        if connection.fault in ("reset", "refused upgrade next", "no upgrade next"):
            if connection.fault != "reset":
                self._refuse_next = connection.fault
            await tap.reset()
        elif connection.fault == "close":
            async with connection.writing:
                await peer.close(chance.choice((1000, 1001, 1008, 1011, 1012, 1013)))
            await trio.sleep(chance.choice((0, 5)))
        elif connection.fault == "garbage":
            async with connection.writing:
                await peer.send_raw(b"\xff" + chance.randbytes(200))
            await trio.sleep(5)
        elif connection.fault == "network cut":
            await set_loopback("down")
            await trio.sleep(chance.uniform(4, 7))
            await set_loopback("up")
            await trio.sleep(60)
        elif connection.fault != "fin":
            # Till the service leaves: see `_play`. The others go on in their tasks.
            tap.swallows = connection.fault.startswith("half-open")
            tap.reads = connection.fault not in ("half-open, not even read", "not reading, flood")
            if connection.fault == "not reading, flood":
                for _ in range(FLOOD // FLOOD_PIECE):
                    await self._send_requests(peer, connection, FLOOD_PIECE)
            await trio.sleep(60)


async def set_loopback(state: str) -> None:
    """Cut the network of this namespace, or join it again."""
    await trio.run_process(["ip", "link", "set", "lo", state])


def text_frame(text: bytes) -> bytes:
    """A text of under 64 KiB as a server sends it."""
    size = len(text)
    return (bytes((0x81, size)) if size < 126 else b"\x81\x7e" + size.to_bytes(2)) + text


# The process.


@attrs.frozen
class Size:
    """What the process takes: resident memory in MB, open files, threads."""

    memory: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Size":
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        fields = dict(line.split(":", 1) for line in status.splitlines())
        files = len([*Path(f"/proc/{pid}/fd").iterdir()])
        return cls(int(fields["VmRSS"].split()[0]) / 1024, files, int(fields["Threads"]))

    def __str__(self) -> str:
        return f"{self.memory:7.1f} MB {self.files:3} files {self.threads:2} threads"


@asynccontextmanager
async def running_service(uri: str, books: Books, **settings: str) -> AsyncIterator[trio.Process]:
    """The service in a process of its own, its log in the books; stopped by SIGTERM in the end."""
    ours = ("RATEBRIDGE_", "CURRENCY_ASSIGNMENT_", "FREECURRENCY_", "FRANKFURTER_", "VERIFY_SSL")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ |= {
        "CURRENCY_ASSIGNMENT_WS_URI": uri,
        "RATEBRIDGE_PROVIDERS": "ecb",
        "RATEBRIDGE_LOG_FORMAT": "json",
        **settings,
    }
    with tempfile.TemporaryDirectory() as empty:
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "ratebridge"],
                env=environ,
                cwd=empty,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            nursery.start_soon(read_log, process, books)
            try:
                yield process
                began = trio.current_time()
                process.send_signal(signal.SIGTERM)
                with trio.move_on_after(20):
                    await process.wait()
                print(f"stopped in {trio.current_time() - began:.2f} s, exit {process.returncode}")
                if process.returncode != 0:
                    books.unexpected.append(f"exit code {process.returncode}")
            finally:
                if process.returncode is None:
                    process.kill()


async def read_log(process: trio.Process, books: Books) -> None:
    """Every line of the service's log into the books."""
    assert process.stderr is not None
    rest = b""
    async for data in process.stderr:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            books.hear(line.decode())


async def soak(minutes: float, faults: Mapping[str, float], seed: int) -> int:
    """Faults every few seconds for so long; the exit code."""
    books = Books()
    process: trio.Process | None = None

    async def freeze() -> None:
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        await trio.sleep(3)
        process.send_signal(signal.SIGCONT)

    feed = Feed(books, random.Random(seed), faults, freeze)
    sizes: list[Size] = []
    async with trio.open_nursery() as feed_nursery:
        uri = await open_feed(feed, feed_nursery)
        async with running_service(uri, books) as process:
            await trio.sleep(min(WARM, 15 * minutes))
            sizes.append(Size.of(process.pid))
            tell(0, sizes[-1], books)
            for minute in range(1, round(minutes) + 1):
                await trio.sleep(60)
                sizes.append(Size.of(process.pid))
                tell(minute, sizes[-1], books)
            feed.quiet = True
            await trio.sleep(15)  # whatever was broken last is mended, and what is left answered
        feed_nursery.cancel_scope.cancel()
    print(f"first  {sizes[0]}\nlast   {sizes[-1]}\nmost   {max(s.memory for s in sizes):7.1f} MB")
    return balance(books)


async def reconnect(times: int, seed: int) -> int:
    """So many links that end as soon as they are open; the exit code."""
    books = Books()

    async def no_freeze() -> None:
        pass

    faults = dict.fromkeys(ENDS, 1.0)
    feed = Feed(books, random.Random(seed), faults, no_freeze, life=(0.0, 0.05))
    # Back at once: what is looked at is what a link leaves behind, not the waiting for it.
    quick = {"RATEBRIDGE_RECONNECT_MIN": "0.001", "RATEBRIDGE_RECONNECT_MAX": "0.02"}
    sizes: list[Size] = []
    async with trio.open_nursery() as feed_nursery:
        uri = await open_feed(feed, feed_nursery)
        async with running_service(uri, books, **quick) as process:
            for goal in range(100, times + 101, 100):
                while books.links < goal:
                    await books.linked.wait()
                sizes.append(Size.of(process.pid))
                print(f"{books.links:6} links  {sizes[-1]}", flush=True)
            feed.quiet = True
            await trio.sleep(3)
        feed_nursery.cancel_scope.cancel()
    return balance(books)


async def open_feed(feed: Feed, nursery: trio.Nursery) -> str:
    """Let the feed listen on a port of loopback; its URI."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    # What is accepted inherits it.
    listeners[0].socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, RECEIVE_BUFFER)
    nursery.start_soon(trio.serve_listeners, feed.serve, listeners)
    return f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


def tell(minute: int, size: Size, books: Books) -> None:
    print(
        f"{minute:3} min  {size}  {len(books.asked):7} requests {books.answered.total():7} replies"
        f" {books.undelivered.total():6} undelivered {books.links:5} links"
        f" {books.faults.total():5} faults",
        flush=True,
    )


def balance(books: Books) -> int:
    """Print what became of every request; 1 if one that was safe is missing, or any came twice."""
    safe: Counter[str] = Counter()
    in_the_fault: Counter[str] = Counter()
    missing: list[str] = []
    for message_id, (sent, connection) in books.asked.items():
        answered, undelivered = books.answered[message_id], books.undelivered[message_id]
        fate = "answered" if answered else "undelivered" if undelivered else "lost"
        if connection.fault_at is None or sent < connection.fault_at - MARGIN:
            safe[fate] += 1
            if fate == "lost":
                missing.append(message_id)
        else:
            in_the_fault[fate] += 1
    twice = [key for key, count in (books.answered + books.undelivered).items() if count > 1]
    unasked = [key for key in books.answered if key not in books.asked]
    for name, fates in (("safe", safe), ("in the fault", in_the_fault)):
        figures = ", ".join(f"{fates[fate]} {fate}" for fate in ("answered", "undelivered", "lost"))
        print(f"requests, {name}: {fates.total()} = {figures}")
    print("faults:", ", ".join(f"{name} {count}" for name, count in books.faults.most_common()))
    for (fault, reason), count in sorted(books.ends.items()):
        print(f"    {fault:28} {reason:16} {count}")
    print("log:", ", ".join(f"{name} {count}" for name, count in books.events.most_common()))
    print(f"undelivered and logged by count only: {books.unnamed}")
    print(f"missing {missing[:9]}, twice {twice[:9]}, unasked {unasked[:9]}")
    print(f"unexpected: {books.unexpected[:9]}")
    return 1 if len(missing) > books.unnamed or twice or unasked or books.unexpected else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="how long (default: 20)")
    parser.add_argument("--cuts", action="store_true", help="cut the network too (needs unshare)")
    parser.add_argument("--reconnects", type=int, help="only reconnect, so many times")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (default: 1)")
    options = parser.parse_args()
    faults: dict[str, float] = dict(FAULTS)
    if options.cuts:
        if "SOAK_NAMESPACE" not in os.environ:
            os.environ["SOAK_NAMESPACE"] = "own"
            os.execvp("unshare", ["unshare", "-rn", sys.executable, *sys.argv])
        trio.run(set_loopback, "up")
        faults |= CUT
    if options.reconnects is not None:
        return trio.run(reconnect, options.reconnects, options.seed)
    return trio.run(soak, options.minutes, faults, options.seed)


if __name__ == "__main__":
    sys.exit(main())
