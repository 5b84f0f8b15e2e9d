"""A scripted feed, in memory or on a port.

`MemoryFeed` is dialled in memory, for a virtual clock; `serve_feed` listens on a
port. In both a script plays the server's side of one connection. It can write any
bytes, and so break the protocol in any way.
"""

import json
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import Any

import attrs
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection, events
from wsproto.utilities import LocalProtocolError, ProtocolError

from .port import reset, serve_on_port

HEARTBEAT = '{"type":"heartbeat"}'


class FeedGone(Exception):
    """The client has closed or broken off the connection."""


@attrs.frozen
class Received:
    """A text message from the client, and the trio time at which it came."""

    at: float
    text: str

    @property
    def message(self) -> Any:
        """The message as read by the standard library, numbers as text."""
        return json.loads(self.text, parse_float=str, parse_int=str)


@attrs.define(eq=False)
class FeedPeer:
    """The server's side of one connection. Every call may raise `FeedGone`.

    Args:
        stream: the connection, to which a script may write what it likes.
        received: the texts that `receive` has given, in order.
        close_code: that of the client's close frame, None before it.
        path: the target of the upgrade request, empty before it.
        host: the value of its Host header.
    """

    stream: trio.abc.Stream
    received: list[Received] = attrs.Factory(list)
    close_code: int | None = None  # of the close frame that the client sent
    path: str = ""
    host: str = ""
    _protocol: WSConnection = attrs.Factory(lambda: WSConnection(ConnectionType.SERVER))
    _sending: trio.Lock = attrs.Factory(trio.Lock)
    _parts: list[str] = attrs.Factory(list)
    _texts: list[str] = attrs.Factory(list)

    async def accept(self) -> None:
        """Wait for the upgrade request and grant it."""
        await self.wait_for_request()
        await self.send_raw(self._protocol.send(events.AcceptConnection()))

    async def reject(
        self, status: int, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> None:
        """Wait for the upgrade request and refuse it, with this HTTP status, headers and body."""
        await self.wait_for_request()
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        head = b"HTTP/1.1 %d No\r\n%bContent-Length: %d\r\n\r\n" % (status, lines, len(body))
        await self.send_raw(head + body)

    async def wait_for_request(self) -> None:
        """Wait for the upgrade request without answering it."""
        while not self.path:
            await self._read()

    async def send(self, text: str) -> None:
        await self._send_event(events.TextMessage(data=text))

    async def heartbeat(self) -> None:
        await self.send(HEARTBEAT)

    async def ping(self, payload: bytes = b"") -> None:
        await self._send_event(events.Ping(payload=payload))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame; `receive` sees the answer."""
        await self._send_event(events.CloseConnection(code=code, reason=reason))

    async def _send_event(self, event: events.Event) -> None:
        try:
            data = self._protocol.send(event)
        except LocalProtocolError:  # another task has just read the client's close frame
            raise FeedGone from None
        await self.send_raw(data)

    async def send_raw(self, data: bytes) -> None:
        """Send raw bytes. Several tasks of a script may send at the same time."""
        try:
            async with self._sending:
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise FeedGone from None

    async def reset(self) -> None:
        """Break the connection, by a RST on a socket."""
        await reset(self.stream)

    async def receive(self) -> Received:
        """The next text message of the client; also appended to `received`."""
        while not self._texts:
            await self._read()
        received = Received(trio.current_time(), self._texts.pop(0))
        self.received.append(received)
        return received

    async def receive_reply(self) -> Any:
        """The next message of the client except heartbeats."""
        while (message := (await self.receive()).message)["type"] == "heartbeat":
            pass
        return message

    async def _read(self) -> None:
        """Read once, and handle every event in it."""
        try:
            data = await self.stream.receive_some(65536)
            self._protocol.receive_data(bytes(data) or None)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError, UnicodeError):
            raise FeedGone from None
        for event in self._protocol.events():
            match event:
                case events.Request():
                    self.path, self.host = event.target, event.host
                case events.TextMessage():
                    self._parts.append(event.data)
                    if event.message_finished:
                        self._texts.append("".join(self._parts))
                        self._parts.clear()
                case events.Ping():
                    await self.send_raw(self._protocol.send(event.response()))
                case events.CloseConnection():
                    self.close_code = event.code
                    if data and self._protocol.state.name == "REMOTE_CLOSING":
                        await self.send_raw(self._protocol.send(event.response()))
                    raise FeedGone
        if not data:  # before the upgrade wsproto reports no end
            raise FeedGone


Script = Callable[[FeedPeer], Awaitable[None]]


async def play(script: Script, stream: trio.abc.Stream, peers: list[FeedPeer]) -> None:
    """Play a script on one connection, then close that forcefully."""
    peer = FeedPeer(stream)
    peers.append(peer)
    try:
        await script(peer)
    except* FeedGone:  # from the script itself, or from its nurseries
        pass
    finally:
        await trio.aclose_forcefully(stream)


@attrs.define(eq=False)
class MemoryFeed:
    """A feed in memory, whose connections live in a nursery.

    `script` is played on each of them. `peers` are the server's sides so far, in order.
    """

    _nursery: trio.Nursery
    script: Script
    peers: list[FeedPeer] = attrs.field(factory=list, init=False)

    async def dial(self) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        self._nursery.start_soon(play, self.script, server, self.peers)
        await trio.lowlevel.checkpoint()
        return client


async def serve_feed(script: Script, peers: list[FeedPeer], **where: Any) -> None:
    """A feed on a port, for ever; `nursery.start` returns the port's number.

    Args:
        script: the server's side, played on each connection.
        peers: gets each connection, in order.
        where: `host`, `port` and `tls`, see `serve_on_port`.
    """
    await serve_on_port(lambda stream: play(script, stream, peers), **where)


# Traffic.

# Those of the real feed.
CURRENCIES = ("UAH", "EUR", "PLN", "USD", "ZWL", "HRK", "GBP", "CZK", "BTC")


def request_text(
    message_id: int | str,
    stake: str | float = "253.67",
    currency: str = "USD",
    date: str = "2021-05-18T21:32:42.324Z",
) -> str:
    """A request as the real feed writes it; `stake` is written literally."""
    return (
        f'{{"type":"message","id":{json.dumps(message_id)},"payload":{{"marketId":123456,'
        f'"selectionId":987654,"odds":2.2,"stake":{stake},"currency":{json.dumps(currency)},'
        f'"date":{json.dumps(date)}}}}}'
    )


def random_requests(
    chance: random.Random, newest: date, currencies: Sequence[str] = CURRENCIES
) -> Iterator[str]:
    """Endless requests like those of the real feed, dated up to two weeks before `newest`."""
    message_id = chance.randrange(1, 10_000)
    while True:
        made = datetime.combine(newest, datetime.min.time()) - timedelta(
            days=chance.randrange(14), milliseconds=-chance.randrange(86_400_000)
        )
        stake = chance.randrange(1_00000, 10_000_00000) / 100_000
        date = f"{made.isoformat(timespec='milliseconds')}Z"
        yield request_text(message_id, stake, chance.choice(currencies), date)
        message_id += 1


def requests_of(lines: Sequence[str]) -> list[str]:
    """The requests among recorded messages, one JSON text a line; heartbeats are left out.

    Raises ValueError, whose text goes on behind the file's name, for a line that is not a
    JSON object, and if there is no request.
    """
    requests: list[str] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line:
            message = read_json(line)
            if not isinstance(message, dict):
                raise ValueError(f"line {number} is not a JSON object")
            if message.get("type") != "heartbeat":
                requests.append(line)
    if not requests:
        raise ValueError("it holds none")
    return requests


def read_json(text: str) -> Any:
    """What a text says, its numbers as text; None if it is no JSON: any client may connect."""
    with suppress(ValueError, RecursionError):
        return json.loads(text, parse_float=str, parse_int=str)


@attrs.define(eq=False)
class StandIn:
    """The script of a well-behaved feed: heartbeats each second, requests at random intervals.

    `rate` is the mean number of requests a second. `requests` may end; the heartbeats
    go on. `on_reply` gets the texts of each request and its reply. `done` is set when
    the requests have ended and all of them are answered.
    """

    requests: Iterator[str]
    rate: float
    on_reply: Callable[[str, str], None] = lambda _request, _reply: None
    chance: random.Random = attrs.Factory(random.Random)
    sent: int = 0
    replies: int = 0
    errors: int = 0
    heartbeats: int = 0
    connections: int = 0
    done: trio.Event = attrs.Factory(trio.Event)
    _open: dict[str, list[str]] = attrs.Factory(dict)
    _ended: bool = False

    async def __call__(self, peer: FeedPeer) -> None:
        await peer.accept()
        self.connections += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat, peer)
            nursery.start_soon(self._ask, peer)
            while True:
                self._hear((await peer.receive()).text)

    async def _beat(self, peer: FeedPeer) -> None:
        while True:
            await peer.heartbeat()
            await trio.sleep(1.0)

    async def _ask(self, peer: FeedPeer) -> None:
        due = trio.current_time()
        for text in self.requests:
            due += self.chance.expovariate(self.rate)
            await trio.sleep_until(due)
            self._open.setdefault(json.dumps(read_json(text).get("id")), []).append(text)
            self.sent += 1
            await peer.send(text)
        self._ended = True
        if not self._open:
            self.done.set()

    def _hear(self, text: str) -> None:
        match read_json(text):
            case {"type": "heartbeat"}:
                self.heartbeats += 1
            case {"type": "message" | "error" as kind, "id": message_id}:
                self.replies += 1
                self.errors += kind == "error"
                key = json.dumps(message_id)
                if requests := self._open.pop(key, None):
                    self.on_reply(requests.pop(0), text)
                    if requests:
                        self._open[key] = requests
                if self._ended and not self._open:
                    self.done.set()
