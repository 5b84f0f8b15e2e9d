"""The attacks of abuse.py, one function each; `expect` records what the figures do not show."""

import fcntl
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import Final

import trio
from abuse_scene import CLOSE, PONG, SECONDS, Scene, days, request, response, status_of, table
from check_autobahn import free_port
from support import ask, server_frame

from ratebridge.fakes.feed import FeedPeer
from ratebridge.fakes.frankfurter import FakeFrankfurter
from ratebridge.fakes.rates import HANG, Call, FakeAnswer, FakeRates, Fault

MOST_CALLS: Final = 100  # of a source in a row: a month of days, and what is refilled meanwhile
LONGEST_SILENCE: Final = 3.0  # s that a link may live without a heartbeat: 2 s, and some grace
PIECE: Final = 64 * 1024  # bytes
LARGE_ID: Final = "x" * 65_000  # a longer text would not be parsed
UNLIMITED: Final = 10**9  # calls

Row = Callable[[Scene], Awaitable[None]]


# The rows that are measured.


async def large_ids_unread(scene: Scene) -> None:
    """The feed sends ids of nearly 64 KiB, and never reads."""
    await scene.start()
    scene.feed.reads = False
    await scene.flood(server_frame(ask(LARGE_ID).encode()))


async def small_ids_unread(scene: Scene) -> None:
    """The feed sends small ids, and never reads."""
    await scene.start()
    scene.feed.reads = False
    await scene.flood(server_frame(ask(1).encode()) * 400)


async def large_ids_waiting(scene: Scene) -> None:
    """Requests with ids of nearly 64 KiB wait for a rate."""
    rates = FakeRates()
    await scene.start_with_rates(rates, {"RATEBRIDGE_RATE_DEADLINE": "3"})
    rates.disturb = lambda _call: HANG
    frame = request(LARGE_ID, "USD", days(1)[0])

    async def send(peer: FeedPeer) -> None:
        for _ in range(3_000):
            await peer.send_raw(frame)

    scene.feed.abuse = send
    await scene.attack()


async def empty_fragments(scene: Scene) -> None:
    """The feed sends empty continuation frames without end, and no heartbeat."""
    await scene.start()
    scene.feed.beats = False
    await scene.flood(bytes(PIECE), first=b"\x01\0")
    scene.feed.stop_measuring()
    longest = max(scene.feed.lives)
    seen = f"a link lived {longest:.1f} s without a heartbeat"
    scene.expect(longest <= LONGEST_SILENCE, seen, f"{LONGEST_SILENCE:g} s at most")


async def control_frames(scene: Scene) -> None:
    """The feed sends empty pongs without end."""
    await scene.start()
    await scene.flood(bytes((PONG, 0)) * (PIECE // 2))


async def empty_texts(scene: Scene) -> None:
    """The feed sends empty texts without end."""
    await scene.start()
    await scene.flood(b"\x81\0" * (PIECE // 2))


async def huge_tables(scene: Scene) -> None:
    """A rate source answers 1 MiB with 110,000 names, for 33 days."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    names = [a + b + c + d for a in digits[:3] for b in digits for c in digits for d in digits]
    more = "".join(f',"{name}":1' for name in names[:110_000])

    def answer(asked: bytes) -> bytes:
        return response(table(asked, "1.25", more if scene.feed.armed.is_set() else ""))

    await scene.start_with_rates(answer)
    await ask_for_days(scene, days(33))


async def one_byte_chunks(scene: Scene) -> None:
    """A rate source answers in chunks of one byte, for 8 days."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    spaces = b"1\r\n \r\n" * 900_000

    def answer(asked: bytes) -> bytes:
        body = table(asked, "1.25")
        chunks = spaces if scene.feed.armed.is_set() else b""
        return head + chunks + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    await scene.start_with_rates(answer)
    await ask_for_days(scene, days(8))


class Months(FakeFrankfurter):
    """Months of 160 currencies that are made in no time: this process measures the replies."""

    def answer(self, call: Call, fault: Fault) -> FakeAnswer:  # noqa: ARG002
        first, last = (date.fromisoformat(call.params[name]) for name in ("from", "to"))
        codes = [f"X{a}{b}" for a in "ABCDEFGHIJ" for b in "ABCDEFGHIJKLMNOP"]
        tail = "".join(f',"base":"EUR","quote":"{code}","rate":1.23456}},' for code in codes)
        rows = ""
        for number in range((last - first).days + 1):
            rows += tail.replace(',"base"', f'{{"date":"{first + timedelta(number)}","base"')
        return FakeAnswer(200, {"content-type": "application/json"}, f"[{rows[:-1]}]".encode())


async def many_days(scene: Scene) -> None:
    """The feed asks for 10,000 distinct days, in a currency that no source knows."""
    rates = FakeRates(per_minute=UNLIMITED, per_month=UNLIMITED)
    rates.sources["frankfurter"] = Months()
    await scene.start_with_rates(rates, {"RATEBRIDGE_PROVIDERS": "freecurrencyapi,frankfurter"})
    await ask_for_days(scene, days(10_000), pace=SECONDS / 12_000)
    calls = max(rates.count("freecurrencyapi"), rates.count("frankfurter"))
    scene.expect(calls <= MOST_CALLS, f"{calls} calls of a source", f"{MOST_CALLS} at most")


async def ask_for_days(scene: Scene, asked: list[date], pace: float = 0.0) -> None:
    """Measure, and ask for rates of each day; `pace` is in s."""

    async def send(peer: FeedPeer) -> None:
        for number, day in enumerate(asked):
            await peer.send_raw(request(f"day-{number}", "BTC", day))
            await trio.sleep(pace)

    scene.feed.abuse = send
    scene.feed.asks = True
    await scene.attack()


async def idle_clients(scene: Scene) -> None:
    """64 idle clients of the status port, who come back when they are dropped."""

    async def idle(stream: trio.SocketStream) -> None:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await read_all(stream)

    await serve_clients(scene, 64, idle)


async def h2c_flood(scene: Scene) -> None:
    """60 clients of the status port that send HTTP/2 pings."""
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    pings = b"\0\0\x08\6\0\0\0\0\0ratebrid" * (PIECE // 17)

    async def flood(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all, stream)
            await stream.send_all(hello)
            while True:
                await stream.send_all(pings)

    await serve_clients(scene, 60, flood)


async def read_all(stream: trio.SocketStream) -> None:
    """Read until the other side has closed, and raise then."""
    async for _ in stream:
        pass
    raise trio.BrokenResourceError


async def serve_clients(
    scene: Scene, count: int, client: Callable[[trio.SocketStream], Awaitable[None]]
) -> None:
    """Measure, and ask for `/healthz` 33 times, while clients attack the status port."""
    port = free_port()
    await scene.start({"RATEBRIDGE_STATUS_ADDRESS": f"127.0.0.1:{port}"})
    scene.feed.asks = True
    answers: list[int] = []

    async def visit() -> None:
        while True:
            with suppress(OSError):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                try:
                    await client(stream)
                except* trio.BrokenResourceError:
                    await trio.aclose_forcefully(stream)
            await trio.sleep(0.5)

    async def look() -> None:
        answers.append(await status_of(port, "/healthz"))

    async def look_often() -> None:
        for _ in range(33):
            clients.start_soon(look)
            await trio.sleep((SECONDS - 1.5) / 33)

    async with trio.open_nursery() as clients:
        for _ in range(count):
            clients.start_soon(visit)
        clients.start_soon(look_often)
        await scene.attack()
        scene.feed.stop_measuring()
        clients.cancel_scope.cancel()
    scene.expect(answers.count(200) == 33, f"/healthz answered {answers.count(200)} of 33", "all")


async def log_unread(scene: Scene) -> None:
    """Nobody reads the pipe of the log, which is at debug: a line for each conversion."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        await scene.start({"RATEBRIDGE_LOG_LEVEL": "debug"}, stderr=writer)
        os.close(writer)
        scene.feed.asks = True
        await scene.attack()
        await scene.stop()
    finally:
        os.close(reader)


# The rows without measurements.


async def audit_stopped(scene: Scene) -> None:
    """SIGSTOP for over 5 s in the middle of a write of the audit file."""
    file = scene.folder / "audit"
    process = await scene.start({"RATEBRIDGE_AUDIT_FILE": str(file)})
    burst = b"".join(server_frame(ask(number).encode()) for number in range(20_000))

    def stop_when_it_grows() -> None:
        until = time.monotonic() + 5
        while not file.stat().st_size and time.monotonic() < until:
            pass
        process.send_signal(signal.SIGSTOP)

    scene.feed.abuse = lambda peer: peer.send_raw(burst)
    scene.feed.armed.set()
    await trio.to_thread.run_sync(stop_when_it_grows)
    await trio.sleep(5.5)
    process.send_signal(signal.SIGCONT)
    await trio.sleep(1)
    failed = sum(event["event"] == "audit.failed" for event in scene.log)
    scene.expect(not failed, f"{failed} audit.failed", "none")


async def dead_name_server(scene: Scene) -> None:
    """The first name server is dead: each lookup of the feed takes 12 s, as glibc has it."""
    await scene.start(patched(scene, {"feed.test": 12.0}), host="feed.test")
    await trio.sleep(0.5)  # for its log
    started, up = (
        datetime.fromisoformat(event["timestamp"])
        for event in scene.log
        if event["event"] in ("service.started", "connection.up")
    )
    first = (up - started).total_seconds()
    scene.expect(first < 13, f"connected after {first:.1f} s", "13 s at most")
    came = scene.feed.heard = trio.Event()
    assert scene.feed.peer is not None, "it is connected"
    began = trio.current_time()
    await scene.feed.peer.send_raw(server_frame((1001).to_bytes(2), CLOSE))
    with trio.move_on_after(14):
        await came.wait()
    again = trio.current_time() - began
    scene.expect(again < 2, f"and again {again:.1f} s after a loss", "2 s at most")


async def sources_without_names(scene: Scene) -> None:
    """Lookups of the sources hang; the feed asks for 60 days of dollars, and for euros."""
    slow = {"rates.test": 3600.0, "more.test": 3600.0}
    urls = {"FREECURRENCY_API_URL": "http://rates.test/v1", "FRANKFURTER_URL": "http://more.test"}
    key = {"FREECURRENCY_API_KEY": "any", "RATEBRIDGE_PROVIDERS": "freecurrencyapi,frankfurter"}
    file = scene.folder / "audit"
    process = await scene.start(
        {**patched(scene, slow), **urls, **key, "RATEBRIDGE_AUDIT_FILE": str(file)}
    )

    async def send(peer: FeedPeer) -> None:
        for number, day in enumerate(days(60)):
            await peer.send_raw(request(f"day-{number}", "USD", day))

    scene.feed.abuse = send
    scene.feed.asks = True
    await scene.attack()
    answered = len(scene.feed.delays)
    scene.feed.stop_measuring()
    await trio.sleep(1)
    lines = file.read_bytes().count(b"\n")
    scene.expect(lines >= answered > 200, f"{lines} lines 1 s after {answered} answers", "all")
    threads = sum(1 for _ in os.scandir(f"/proc/{process.pid}/task"))
    scene.expect(threads < 12, f"{threads} threads", "less than 12")


async def no_threads(scene: Scene) -> None:
    """No thread can be started for 14 s (a limit of processes), so that the idle ones end."""
    file = scene.folder / "audit"
    await scene.start({**patched(scene, {}), "RATEBRIDGE_AUDIT_FILE": str(file)})
    (scene.folder / "no-threads").touch()
    scene.feed.asks = True
    scene.feed.armed.set()
    await trio.sleep(14)
    answered = len(scene.feed.delays)
    scene.feed.stop_measuring()
    (scene.folder / "no-threads").unlink()
    ends = len(scene.ends)
    scene.expect(not ends and answered > 600, f"{ends} ends, {answered} answers", "no end, all")
    await trio.sleep(8)
    lines = file.read_bytes().count(b"\n")
    scene.expect(lines >= answered, f"{lines} lines of {answered}", "all")


PATCH: Final = """
import os, socket, threading, time
look_up, start = socket.getaddrinfo, threading.Thread.start

def slow(host, *how, **named):
    takes = {slow}.get(host.decode() if isinstance(host, bytes) else host)
    if takes is not None and not how[-1] & socket.AI_NUMERICHOST:  # trio asks for that first
        time.sleep(takes)
        host = "127.0.0.1"
    return look_up(host, *how, **named)

def start_if_allowed(thread):
    if os.path.exists({flag!r}):
        raise RuntimeError("can't start new thread")
    start(thread)

socket.getaddrinfo, threading.Thread.start = slow, start_if_allowed
"""


def patched(scene: Scene, slow: Mapping[str, float]) -> dict[str, str]:
    """Settings by which Python looks these names up in so many s, and obeys `no-threads`."""
    text = PATCH.format(slow=dict(slow), flag=str(scene.folder / "no-threads"))
    (scene.folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": str(scene.folder)}


# All of them.

MEASURED: Final[tuple[Row, ...]] = (
    *(large_ids_unread, small_ids_unread, large_ids_waiting, empty_fragments, control_frames),
    empty_texts,
    *(huge_tables, one_byte_chunks, many_days, idle_clients, h2c_flood, log_unread),
)
JUDGED: Final[tuple[Row, ...]] = (
    *(audit_stopped, dead_name_server, sources_without_names, no_threads),
)
