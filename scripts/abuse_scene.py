"""What abuse.py attacks and measures: one service in a process of its own, its feed, its sources.

The feed speaks RFC 6455 by hand from the upgrade on, so that it costs little and can be as wrong
as bytes can be. Times are trio's, in seconds.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import attrs
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import BEAT, ask, environment, server_frame

from ratebridge.fakes.feed import FeedGone, FeedPeer, Script, request_text, serve_feed
from ratebridge.fakes.rates import FakeRates, serve_rates

SECONDS: Final = 5.0  # s that an attack goes on
START_WITHIN: Final = 20.0  # s
STOP_WITHIN: Final = 8.0  # s from SIGTERM; a container gets 10 s
REPLY_WITHIN: Final = 3.0  # s
RATE: Final = 50.0  # requests a second
LARGE: Final = 4096  # bytes of a payload that is not looked at
COMMAND: Final = (sys.executable, "-m", "ratebridge")
NO_SETTINGS: Final[Mapping[str, str]] = {}
FIRST_DAY: Final = date(1999, 1, 4)
TEXT, CLOSE, PONG = 0x81, 0x88, 0x8A  # first bytes of whole frames

Answer = Callable[[bytes], bytes]  # the head of an HTTP request to all of the response


# The feed.


@attrs.define(eq=False)
class Feed:
    """The server's side. It beats, asks and reads as told, and attacks once it is `armed`.

    What it measures from then on: `gaps` between our heartbeats, or the opening or end of a link,
    `delays` of replies, and `lives` of links.
    """

    beats: bool = True
    reads: bool = True
    asks: bool = False  # 50 times a second, for what needs no rate
    abuse: Callable[[FeedPeer], Awaitable[None]] | None = None
    armed: trio.Event = attrs.Factory(trio.Event)
    heard: trio.Event = attrs.Factory(trio.Event)  # a heartbeat
    peer: FeedPeer | None = None  # the present one
    gaps: list[float] = attrs.Factory(list)
    delays: list[float] = attrs.Factory(list)
    lives: list[float] = attrs.Factory(list)
    _over: bool = False
    _opened: float = 0.0
    _last: float = 0.0  # heartbeat, or the opening
    _sent: dict[str, float] = attrs.Factory(dict)  # when, by id
    _awaited: dict[str, trio.Event] = attrs.Factory(dict)  # by id
    _replies: dict[str, str] = attrs.Factory(dict)  # to those, by id

    async def play(self, peer: FeedPeer) -> None:
        """The script of one connection."""
        await upgrade(peer)
        self.peer = peer
        self._opened = self._last = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat, peer)
                nursery.start_soon(self._read, peer)
                await self.armed.wait()
                if self.asks:
                    nursery.start_soon(self._ask, peer)
                if self.abuse is not None:
                    await self.abuse(peer)
        finally:
            if self.peer is peer:  # and the service is not back yet
                self._note_end()
                self.peer = None

    def stop_measuring(self) -> None:
        """What comes from now on counts no more; what is still due counts as if it came now."""
        if not self._over:
            if self.peer is not None:
                self._note_end()
            self.delays += [trio.current_time() - sent for sent in self._sent.values()]
            self._over = True

    def _note_end(self) -> None:
        now = trio.current_time()
        if self.armed.is_set() and not self._over:
            self.gaps.append(now - self._last)
            self.lives.append(now - self._opened)

    async def request(self, name: str, currency: str, day: date) -> str:
        """Ask, and wait for the reply; gives its text, or nothing when it does not come."""
        came = self._awaited[name] = trio.Event()
        if self.peer is not None:
            with trio.move_on_after(REPLY_WITHIN), suppress(FeedGone):
                await self.peer.send_raw(request(name, currency, day))
                await came.wait()
        return self._replies.pop(name, "")

    async def _beat(self, peer: FeedPeer) -> None:
        while True:
            if self.beats:
                await peer.send_raw(server_frame(BEAT))
            await trio.sleep(1)

    async def _ask(self, peer: FeedPeer) -> None:
        due = trio.current_time()
        while not self._over:
            name = f"asked-{len(self._sent) + len(self.delays)}"
            self._sent[name] = trio.current_time()
            await peer.send_raw(server_frame(ask(name).encode()))
            due += 1 / RATE
            await trio.sleep_until(due)

    async def _read(self, peer: FeedPeer) -> None:
        while self.reads:
            await read_frames(peer, self._hear)
        await trio.sleep_forever()

    def _hear(self, first: int, payload: bytes) -> None:
        now = trio.current_time()
        if payload == BEAT:
            if self.armed.is_set() and not self._over:
                self.gaps.append(now - self._last)
            self._last = now
            self.heard.set()
        elif first == TEXT and payload:
            name = json.loads(payload)["id"]
            if name in self._sent:
                self.delays.append(now - self._sent.pop(name))
            elif name in self._awaited:
                self._replies[name] = payload.decode()
                self._awaited.pop(name).set()


async def upgrade(peer: FeedPeer) -> None:
    """Grant the upgrade."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await receive(peer)
    key = re.findall(rb"(?i)sec-websocket-key: *(\S+)", head)[0]
    proof = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    await peer.send_raw(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % proof
    )


async def receive(peer: FeedPeer) -> bytes:
    """The next bytes. Raises `FeedGone` when there will be none."""
    try:
        data = bytes(await peer.stream.receive_some(1 << 20))
    except trio.BrokenResourceError:
        raise FeedGone from None
    if not data:
        raise FeedGone
    return data


async def read_frames(peer: FeedPeer, hear: Callable[[int, bytes], None]) -> None:
    """Read to the end of a frame; `hear` gets first byte and payload of each, none of a large."""
    data = b""
    while True:
        data += await receive(peer)
        at = 0
        while len(data) - at >= 2:
            size = data[at + 1] & 0x7F
            more = {126: 2, 127: 8}.get(size, 0)
            begin = at + 2 + more
            if more:
                size = int.from_bytes(data[at + 2 : begin])
            end = begin + 4 + size
            if end > len(data):
                break
            hear(data[at], _unmasked(data[begin:end]) if size < LARGE else b"")
            at = end
        data = data[at:]
        if not data:
            return


def _unmasked(data: bytes) -> bytes:
    """A payload, from its key and itself."""
    size = len(data) - 4
    key = data[:4] * (size // 4 + 1)
    return (int.from_bytes(data[4:]) ^ int.from_bytes(key[:size])).to_bytes(size)


def request(name: str, currency: str, day: date) -> bytes:
    """The frame of a request; no character of its id is escaped."""
    quoted = json.dumps(name, ensure_ascii=False)
    text = request_text(0, "1.5", currency, f"{day}T12:00:00.000Z")
    return server_frame(text.replace('"id":0', f'"id":{quoted}').encode())


# The rate sources.


async def serve_raw(
    answer: Answer, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """A source whose answers are bytes as they are."""

    async def handle(stream: trio.SocketStream) -> None:
        head = b""
        with suppress(trio.BrokenResourceError):
            async with stream:
                async for data in stream:
                    *requests, head = (head + data).split(b"\r\n\r\n")
                    for asked in requests:
                        await stream.send_all(answer(asked))

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(handle, listeners)


def table(asked: bytes, dollars: str, more: str = "") -> bytes:
    """A table of freecurrencyapi for what was asked."""
    quotes = f'{{"EUR":1,"USD":{dollars}{more}}}'
    if days := re.findall(r"[?&]date=([\d-]+)", asked.decode()):
        quotes = f'{{"{days[0]}":{quotes}}}'
    return f'{{"data":{quotes}}}'.encode()


def response(body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def days(count: int) -> list[date]:
    """Distinct days, none of them that of the first request."""
    return [FIRST_DAY + timedelta(days=1 + number) for number in range(count)]


async def status_of(port: int, path: str, host: str = "localhost") -> int:
    """The HTTP status of a GET at the status port; 0 when none comes within a second."""
    with trio.move_on_after(1), suppress(OSError, trio.BrokenResourceError):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            return int((await stream.receive_some())[9:12] or 0)
    return 0


# The service.


@attrs.frozen
class Cost:
    """What a process has cost so far: MiB, at present and at the most; s it waited for a core."""

    memory: float = 0.0
    peak: float = 0.0
    waited: float = 0.0

    @classmethod
    def of(cls, pid: int) -> "Cost":
        """Nothing, when the process has died."""
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            schedule = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii")
        except OSError:
            return cls()
        memory, peak = (
            sum(map(int, re.findall(rf"{field}:\s+(\d+)", status))) / 1024
            for field in ("VmRSS", "VmHWM")
        )
        return cls(memory, peak, int(schedule.split()[1]) / 1e9)


@attrs.define(eq=False)
class Scene:
    """A service (or some), its feed, and what is found out. Servers live in `nursery`."""

    nursery: trio.Nursery
    folder: Path
    feed: Feed = attrs.Factory(Feed)
    script: Script | None = None  # in place of the feed's own
    processes: list[trio.Process] = attrs.Factory(list)
    findings: list[tuple[str, bool]] = attrs.Factory(list)  # and whether it is as wanted
    before: Cost = Cost()  # the attack
    after: Cost = Cost()
    _port: int = 0  # of the feed
    _came: trio.Event = attrs.Factory(trio.Event)  # a connection
    _stopped: bool = False

    def expect(self, good: bool, seen: str, wanted: str) -> None:
        """Note what was seen, besides the figures."""
        self.findings.append((f"{seen}; wanted: {wanted}", good))

    @property
    def log(self) -> list[dict[str, Any]]:
        """The events of the log so far."""
        lines = [line for file in self.folder.glob("log.*") for line in file.open("rb")]
        return [json.loads(line) if line[:1] == b"{" else {"event": "no JSON"} for line in lines]

    @property
    def ends(self) -> list[dict[str, Any]]:
        """The events of links that were lost, or did not come to be."""
        events = ("connection.lost", "connection.failed")
        return [event for event in self.log if event["event"] in events]

    async def start(
        self,
        settings: Mapping[str, str] = NO_SETTINGS,
        *,
        stderr: int | None = None,
        host: str = "127.0.0.1",
    ) -> trio.Process:
        """Start a service. It has beaten, or with a `script` connected, when this returns."""
        if not self._port:
            self._port = await self.nursery.start(serve_feed, self._play, [])
        env = {
            "CURRENCY_ASSIGNMENT_WS_URI": f"ws://{host}:{self._port}",
            "RATEBRIDGE_PROVIDERS": "ecb",
            "RATEBRIDGE_DRAIN_TIMEOUT": "1",
            "RATEBRIDGE_LOG_FORMAT": "json",
            "NO_PROXY": "*",
            **settings,
        }
        number = len([*self.folder.glob("log.*")])
        with (self.folder / f"log.{number}").open("wb") as log:
            process = await trio.lowlevel.open_process(
                COMMAND,
                env=environment(**env),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log if stderr is None else stderr,
            )
        self.processes.append(process)
        self._came = trio.Event()
        with trio.move_on_after(START_WITHIN):
            await (self._came if self.script else self.feed.heard).wait()
        return process

    async def _play(self, peer: FeedPeer) -> None:
        self._came.set()
        await (self.script or self.feed.play)(peer)

    async def start_with_rates(
        self, rates: FakeRates | Answer, settings: Mapping[str, str] = NO_SETTINGS
    ) -> None:
        """Start with a rate source; it has answered once when this returns."""
        serve = serve_rates if isinstance(rates, FakeRates) else serve_raw
        port = await self.nursery.start(serve, rates)
        urls = {
            "FREECURRENCY_API_URL": f"http://127.0.0.1:{port}/v1",
            "FREECURRENCY_API_KEY": "any",
            "FRANKFURTER_URL": f"http://127.0.0.1:{port}/v2",
            "RATEBRIDGE_PROVIDERS": "freecurrencyapi",
        }
        await self.start({**urls, **settings})
        await self.feed.request("first", "USD", FIRST_DAY)

    async def attack(self) -> None:
        """Let the feed attack, and measure."""
        self.before = Cost.of(self.processes[0].pid)
        self.feed.armed.set()
        await trio.sleep(SECONDS)

    async def flood(self, data: bytes, first: bytes = b"") -> None:
        """Attack by sending `data` again and again, behind what comes `first`."""

        async def send(peer: FeedPeer) -> None:
            await peer.send_raw(first)
            while True:
                await peer.send_raw(data)

        self.feed.abuse = send
        await self.attack()

    async def stop(self) -> None:
        """End the measuring, and the services by SIGTERM; does nothing the second time."""
        if self._stopped:
            return
        self._stopped = True
        self.after = Cost.of(self.processes[0].pid)
        self.feed.stop_measuring()
        for process in self.processes:
            process.terminate()
        with trio.move_on_after(STOP_WITHIN):
            async with trio.open_nursery() as waiting:
                for process in self.processes:
                    waiting.start_soon(process.wait)
        codes = {process.poll() for process in self.processes}
        if codes != {0}:
            seen = f"exit code {', '.join(map(str, codes))}"
            self.expect(False, seen, f"0, at most {STOP_WITHIN:g} s after SIGTERM")
