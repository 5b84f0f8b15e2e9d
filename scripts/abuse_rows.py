"""The attacks of abuse.py, one function each; `expect` records what the figures do not show."""

import fcntl
import os
import signal
import time
import unicodedata
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import date
from functools import partial
from math import inf
from typing import Final

import trio
from abuse_scene import (
    CLOSE,
    COMMAND,
    FIRST_DAY,
    PING,
    PONG,
    SECONDS,
    Scene,
    days,
    read_frames,
    receive,
    request,
    response,
    status_of,
    table,
    upgrade,
)
from check_autobahn import free_port
from support import BEAT, ask, server_frame

from ratebridge.fakes.feed import FeedGone, FeedPeer
from ratebridge.fakes.rates import HANG, FakeRates

MOST_CALLS: Final = 100  # of a source in a row: a month of days, and what is refilled meanwhile
LONGEST_SILENCE: Final = 3.0  # s that a link may live without a heartbeat: 2 s, and some grace
LONGEST_WAIT: Final = 1.0  # s before each of the first attempts after a proven link
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


async def many_days(scene: Scene) -> None:
    """The feed asks for 10,000 distinct days, in a currency that no source knows."""
    rates = FakeRates(per_minute=UNLIMITED, per_month=UNLIMITED)
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


async def cookies(scene: Scene) -> None:
    """A rate source sets a cookie of 2,000 bytes with each answer."""
    heads: list[bytes] = []

    def answer(asked: bytes) -> bytes:
        heads.append(asked.lower())
        return response(table(asked, "1.25"), f"Set-Cookie: c{len(heads)}={'x' * 2_000}\r\n")

    await scene.start_with_rates(answer)
    for day in days(10):
        await scene.feed.request(f"{day}", "USD", day)
    sent = sum(b"\r\ncookie:" in head for head in heads)
    good = sent == 0 and len(heads) > 10
    scene.expect(good, f"{sent} of {len(heads)} calls brought cookies", "none")


async def second_response(scene: Scene) -> None:
    """A rate source answers a question, and with the same bytes one that is yet to come."""

    def answer(asked: bytes) -> bytes:
        return response(table(asked, "1.2")) + response(table(asked, "1.25", days_later=1))

    await scene.start_with_rates(answer)
    replies = [await scene.feed.request(f"{day}", "USD", day) for day in days(10)]
    good, wrong = (sum(f'"stake":{eur},' in reply for reply in replies) for eur in (1.25, 1.2))
    seen = f"of 10 replies {good} by their own answer, {wrong} by the one before"
    scene.expect(good == 10, seen, "all by their own")


async def host_header(scene: Scene) -> None:
    """A web page elsewhere asks for `/status.json` by the name of its own host."""
    port = free_port()
    await scene.start({"RATEBRIDGE_STATUS_ADDRESS": f"127.0.0.1:{port}"})
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
        status = await status_of(port, "/status.json", host)
        scene.expect(400 <= status < 500, f"Host {host} got {status}", "400 to 499")
    for host in ("127.0.0.1", f"localhost:{port}", "[::1]"):
        status = await status_of(port, "/status.json", host)
        scene.expect(status == 200, f"Host {host} got {status}", "200")


async def stderr_closed(scene: Scene) -> None:
    """It is started with standard error closed."""
    await scene.start(command=("/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND))
    runs = scene.feed.heard.is_set()
    scene.expect(runs, "heartbeats" if runs else "no heartbeat", "heartbeats")


async def audit_escapes(scene: Scene) -> None:
    """Ids with DEL, controls of C1, ends of lines, and what turns the writing's direction."""
    file = scene.folder / "audit"
    await scene.start({"RATEBRIDGE_AUDIT_FILE": str(file)})
    for mark in "\x7f\x9b\x9d\u200e\u202e\u2066\u2028":
        await scene.feed.request(f"id {mark}31m", "EUR", FIRST_DAY)
    await scene.stop()
    text = file.read_bytes().decode()
    raw = {mark for mark in text if unicodedata.category(mark) in ("Cc", "Cf", "Zl")} - {"\n"}
    scene.expect(not raw, f"raw in the file: {sorted(raw)!a}", "none, \\uXXXX in their place")
    verify = [*COMMAND, "verify", str(file)]
    code = (await trio.run_process(verify, check=False, capture_stdout=True)).returncode
    scene.expect(code == 0, f"verify ends with {code}", "0")


async def hangup(scene: Scene) -> None:
    """SIGHUP, without an audit file."""
    process = await scene.start()
    process.send_signal(signal.SIGHUP)
    await trio.sleep(1)
    seen = "it runs" if process.poll() is None else f"exit code {process.poll()}"
    scene.expect(process.poll() is None, seen, "it runs")


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


VIOLATIONS: Final = {  # and the close code that RFC 6455 has for it
    "masked": (b"\x81\x81\0\0\0\0a", 1002),
    "reserved bit": (b"\xc1\0", 1002),
    "reserved opcode": (b"\x83\0", 1002),
    "no UTF-8": (b"\x81\x01\xff", 1007),
    "fragmented ping": (b"\x09\0", 1002),
    "long ping": (b"\x89\x7e\0\x7e" + bytes(126), 1002),
    "continuation of nothing": (b"\x80\0", 1002),
    "text among fragments": (b"\x01\0\x81\0", 1002),
    "close of one byte": (b"\x88\x01\0", 1002),
}


async def violations(scene: Scene) -> None:
    """The feed breaks the protocol, in nine ways."""

    async def violate(name: str, data: bytes, wanted: int, peer: FeedPeer) -> None:
        codes: list[int] = []

        def hear(first: int, payload: bytes) -> None:
            if first == CLOSE:
                codes.append(int.from_bytes(payload[:2]))

        await upgrade(peer)
        try:
            with trio.move_on_after(2):
                await peer.send_raw(data)
                while True:
                    await read_frames(peer, hear)
            kept = ", and the connection kept"
        except FeedGone:
            kept = ""
        good = codes == [wanted] and not kept
        scene.expect(good, f"{name}: {codes or 'no close'}{kept}", f"[{wanted}]")

    await scene.play_in_turn([partial(violate, name, *how) for name, how in VIOLATIONS.items()])


async def ping_in_close(scene: Scene) -> None:
    """A ping comes while the service's close waits for its answer."""
    wanted = "the link held, unanswered"
    seen = "no close"
    open_enough = trio.Event()

    async def script(peer: FeedPeer) -> None:
        nonlocal seen
        firsts: list[int] = []
        await upgrade(peer)
        while CLOSE not in firsts:
            await read_frames(peer, lambda first, _payload: firsts.append(first))
            open_enough.set()  # a stop before the first heartbeat would only end the opening
        seen = wanted
        try:
            await peer.send_raw(server_frame(b"", PING))
            with trio.move_on_after(0.3):
                await receive(peer)
                seen = "something was sent behind the close"
            await peer.send_raw(server_frame((1001).to_bytes(2), CLOSE))
        except FeedGone:
            seen = "the link ended by force"

    scene.script = script
    await scene.start()
    await open_enough.wait()
    await scene.stop()
    scene.expect(seen == wanted, seen, wanted)


async def told_ends(scene: Scene) -> None:
    """The feed closes with codes that are usually ours, and a reason; grants an extension."""

    async def close(code: int, peer: FeedPeer) -> None:
        await upgrade(peer)
        await peer.send_raw(server_frame(code.to_bytes(2) + b"because-%d" % code, CLOSE))
        await trio.sleep(0.3)

    async def extend(peer: FeedPeer) -> None:
        await upgrade(peer, b"Sec-WebSocket-Extensions: permessage-deflate\r\n")
        await trio.sleep(0.3)

    codes = (1009, 1002, 1007)
    await scene.play_in_turn([extend, *(partial(close, code) for code in codes)])
    told = [(event["reason"], event.get("detail", "")) for event in scene.ends]
    scene.expect("extension" in str(told[:1]), f"an extension is told as {told[:1]}", "named")
    for code, (reason, detail) in zip(codes, told[1:], strict=False):
        good = reason == "closed" and f"because-{code}" in detail
        scene.expect(good, f"{code} is told as {reason}: {detail}", "closed, and the peer's words")


async def outage(scene: Scene) -> None:
    """Six services whose link has proved itself, and a feed that is away for 2 s."""
    services = 6
    back: list[float] = []
    all_back = trio.Event()
    ends = inf

    async def script(peer: FeedPeer) -> None:
        now = trio.current_time()
        if now < ends - 2:
            await upgrade(peer)
            while trio.current_time() < ends - 2:
                await peer.send_raw(server_frame(BEAT))
                await trio.sleep(0.5)
        elif now > ends:
            back.append(now - ends)
            if len(back) == services:
                all_back.set()
            await upgrade(peer)
            await trio.sleep_forever()

    scene.script = script
    async with trio.open_nursery() as starting:
        for _ in range(services):
            starting.start_soon(scene.start)
    ends = trio.current_time() + 9
    with trio.move_on_at(ends + 6):
        await all_back.wait()
    longest = max((event["retry_in"] for event in scene.ends), default=inf)
    seen = f"a wait of {longest:.2f} s, the last back {max(back, default=inf):.1f} s after the feed"
    scene.expect(longest <= LONGEST_WAIT, seen, f"{LONGEST_WAIT:g} s at most")


# All of them.

MEASURED: Final[tuple[Row, ...]] = (
    *(large_ids_unread, small_ids_unread, large_ids_waiting, empty_fragments, control_frames),
    *(huge_tables, one_byte_chunks, many_days, idle_clients, h2c_flood, log_unread),
)
JUDGED: Final[tuple[Row, ...]] = (
    *(outage, audit_stopped, cookies, second_response, host_header, stderr_closed),
    *(audit_escapes, hangup, violations, ping_in_close, told_ends),
)
