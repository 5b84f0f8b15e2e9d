"""The clients that bench.py measures ratebridge against, each a process of its own.

uv run --group bench scripts/bench_peers.py NAME URI TABLES, where TABLES is a
JSON file of {day: {currency: units for one euro, as text}}.

Each does the same work in the plainest competent way its library has: read the
request, look up the table of its day, convert exactly, reply; and beat once a
second. They lack what the service has beyond that: the watchdog, reconnecting,
the outbox, the error tree, bounds against number bombs, the byte for byte echo,
provenance, figures, fetching of tables. `picows`, whose messages are typed, drops the
members that it does not know; `node-ws` is in bench_peers.cjs. `floor` is a bare trio
loop that answers without reading what it is asked: what is left to gain lies above it.
"""

import asyncio
import json
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HEARTBEAT = '{"type":"heartbeat"}'
PLACES = Decimal("0.00001")

Tables = dict[date, dict[str, Decimal]]


def read_tables(path: str) -> Tables:
    days = json.loads(Path(path).read_text())
    return {
        date.fromisoformat(day): {code: Decimal(units) for code, units in table.items()}
        for day, table in days.items()
    }


def to_euro(stake: Decimal, made: datetime, currency: str, tables: Tables) -> Decimal | None:
    table = tables[made.date()]
    units = table.get(currency)
    return None if units is None else (stake * table["EUR"] / units).quantize(PLACES)


def answer(text: str | bytes, tables: Tables) -> str | None:
    """A text in, the reply out, with the stdlib's json. A heartbeat has none."""
    message = json.loads(text, parse_float=Decimal)
    if message["type"] == "heartbeat":
        return None
    payload = message["payload"]
    made = datetime.fromisoformat(payload["date"])
    euro = to_euro(Decimal(payload["stake"]), made, payload["currency"], tables)
    if euro is None:
        problem = f"Unable to convert stake. Error: unknown currency {payload['currency']}"
        return json.dumps({"type": "error", "id": message["id"], "message": problem})
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    payload |= {"stake": euro, "currency": "EUR", "date": now}
    return json.dumps(message, default=float, separators=(",", ":"))


def run_plain_trio(uri: str, tables: Tables) -> None:
    import trio
    import trio_websocket

    async def beat(link: trio_websocket.WebSocketConnection) -> None:
        while True:
            await link.send_message(HEARTBEAT)
            await trio.sleep(1)

    async def main() -> None:
        async with trio_websocket.open_websocket_url(uri) as link, trio.open_nursery() as nursery:
            nursery.start_soon(beat, link)
            while True:
                reply = answer(await link.get_message(), tables)
                if reply is not None:
                    await link.send_message(reply)

    trio.run(main)


async def beat_with(send: Callable[[str], Awaitable[Any]]) -> None:
    while True:
        await send(HEARTBEAT)
        await asyncio.sleep(1)


def run_websockets(uri: str, tables: Tables) -> None:
    from websockets.asyncio.client import connect

    async def main() -> None:
        async with connect(uri, compression=None, ping_interval=None) as link:
            beating = asyncio.create_task(beat_with(link.send))
            async for text in link:
                reply = answer(text, tables)
                if reply is not None:
                    await link.send(reply)
            beating.cancel()

    asyncio.run(main())


def run_aiohttp(uri: str, tables: Tables) -> None:
    import aiohttp

    async def main() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(uri) as link:
            beating = asyncio.create_task(beat_with(link.send_str))
            async for message in link:
                reply = answer(message.data, tables)
                if reply is not None:
                    await link.send_str(reply)
            beating.cancel()

    asyncio.run(main())


def run_picows(uri: str, tables: Tables) -> None:
    """The fastest there is: Cython for the frames, C for typed JSON."""
    import msgspec
    import picows

    class Payload(msgspec.Struct):
        marketId: int  # noqa: N815 - the wire's names
        selectionId: int  # noqa: N815 - the wire's names
        odds: float
        stake: Decimal
        currency: str
        date: datetime

    class Message(msgspec.Struct, omit_defaults=True):
        type: str
        id: int | str | None = None
        payload: Payload | None = None

    class Error(msgspec.Struct):
        type: str
        id: int | str | None
        message: str

    decode = msgspec.json.Decoder(Message).decode
    encode = msgspec.json.Encoder(decimal_format="number").encode
    heartbeat = HEARTBEAT.encode()
    text = picows.WSMsgType.TEXT

    class Client(picows.WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type != text:
                return
            message = decode(frame.get_payload_as_memoryview())
            payload = message.payload
            if payload is None:
                return
            euro = to_euro(payload.stake, payload.date, payload.currency, tables)
            if euro is None:
                problem = f"Unable to convert stake. Error: unknown currency {payload.currency}"
                transport.send(text, encode(Error("error", message.id, problem)))
                return
            payload.stake = euro
            payload.currency = "EUR"
            now = datetime.now(UTC)  # to milliseconds, as the wire has it
            payload.date = now.replace(microsecond=now.microsecond // 1000 * 1000)
            transport.send(text, encode(message))

    async def main() -> None:
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        secure = {"ssl_context": tls} if uri.startswith("wss:") else {}
        transport, _client = await picows.ws_connect(Client, uri, **secure)

        async def send(_text: str) -> None:
            transport.send(text, heartbeat)

        beating = asyncio.create_task(beat_with(send))
        await transport.wait_disconnected()
        beating.cancel()

    asyncio.run(main())


def run_floor(uri: str, _tables: Tables) -> None:
    """A bare trio loop: counts the frames that come, and sends as many made beforehand."""
    import os

    import trio

    where = urlsplit(uri)
    frame = struct.pack("!BBH4x", 0x81, 0xFE, 160) + b"{" + b" " * 158 + b"}"
    beat = struct.pack("!BB4x", 0x81, 0x80 | len(HEARTBEAT)) + HEARTBEAT.encode()

    async def main() -> None:
        link = await trio.open_tcp_stream(str(where.hostname), where.port or 80)
        await link.send_all(
            f"GET / HTTP/1.1\r\nHost: {where.netloc}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += await link.receive_some(65536)
        data = data.partition(b"\r\n\r\n")[2]
        number = link.socket.fileno()
        due = 0.0
        while True:
            at = requests = 0
            while len(data) - at >= 4:
                size = data[at + 1]
                end = at + 2 + size if size < 126 else at + 4 + (data[at + 2] << 8 | data[at + 3])
                if end > len(data):
                    break
                at = end
                requests += size == 126
            data = data[at:]
            now = trio.current_time()
            replies = frame * requests + (beat if now >= due else b"")
            due = now + 1 if now >= due else due
            if replies and os.write(number, replies) < len(replies):
                raise SystemExit("the feed does not read")
            await trio.lowlevel.wait_readable(link.socket)
            came = os.read(number, 65536)
            if not came:
                return
            data += came

    trio.run(main)


NODE = "node-ws"

RUNS: dict[str, Callable[[str, Tables], None]] = {
    "trio-websocket": run_plain_trio,
    "websockets": run_websockets,
    "aiohttp": run_aiohttp,
    "picows": run_picows,
    "floor": run_floor,
}
PEERS = (*RUNS, NODE)

if __name__ == "__main__":
    name, uri, path = sys.argv[1:]
    RUNS[name](uri, read_tables(path))
