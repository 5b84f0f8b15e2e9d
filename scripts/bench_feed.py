"""The feed and the rate source of bench.py, with made-up rates.

The feed is cheap: its requests are frames made beforehand, and a reply is found by
its header and parsed only on demand. One connection at a time, one thread, one poll
a turn; frames of RFC 6455 by hand.
"""

import base64
import hashlib
import json
import random
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs

from ratebridge.euro import CONVERSION_RATES

HEARTBEAT = b'\x81\x14{"type":"heartbeat"}'
REPLY_LEAST = 64  # bytes of payload: a heartbeat has fewer, a reply has more
PATIENCE = 30.0  # s for what ought to take a moment

# Those of freecurrencyapi.
CODES = [
    *("EUR", "AUD", "BGN", "BRL", "CAD", "CHF", "CNY", "CZK", "DKK", "GBP", "HKD", "HRK", "HUF"),
    *("IDR", "ILS", "INR", "ISK", "JPY", "KRW", "MXN", "MYR", "NOK", "NZD", "PHP", "PLN", "RON"),
    *("RUB", "SEK", "SGD", "THB", "TRY", "USD", "ZAR"),
]


@cache
def table(day: date) -> dict[str, Decimal]:
    """Quotes for one euro: ten decimals, other ones each day, the same in each run.

    Those that are law are what the law says.
    """
    chance = random.Random(day.toordinal())
    quotes = {code: Decimal(chance.randrange(5 * 10**9, 10**10)).scaleb(-10) for code in CODES}
    law = {code: units for code, (_, units) in CONVERSION_RATES.items() if code in quotes}
    return {**quotes, **law, "EUR": Decimal(1)}


def serve_rates() -> int:
    """Serve the rates as freecurrencyapi would; returns the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked = parse_qs(url.query).get("date")
            day = date.fromisoformat(asked[0]) if asked else datetime.now(UTC).date()
            quotes = ",".join(f'"{code}":{units}' for code, units in table(day).items())
            dated = f'"{day}":{{{quotes}}}' if url.path == "/v1/historical" else quotes
            body = f'{{"data":{{{dated}}}}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(60.0,), daemon=True).start()
    return server.server_port


@attrs.frozen
class Asked:
    """A request as a frame, and the stake that the reply has to hold."""

    frame: bytes
    eur: Decimal


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as recorded": lambda text: text,
    "with spaces": lambda text: json.dumps(json.loads(text)),
    "+00:00 for Z": lambda text: text.replace('Z"', '+00:00"'),
    "two more members": lambda text: text.replace(
        ',"odds"', ',"book":"a house","live":true,"odds"'
    ),
    "sorted keys": lambda text: json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")),
    "an id that is a string": lambda text: re.sub(r'"id":(\d+)', r'"id":"9f8e7d6c-\1"', text),
}


def make_requests(days: int, spelling: str, count: int = 8192) -> list[Asked]:
    """Requests like the real feed's, of the `days` up to three weeks ago, ids 0, 1, 2 and on.

    The first of them ask for each day and currency in turn.
    """
    chance = random.Random(7)
    newest = datetime.now(UTC).date() - timedelta(days=21)
    asked = []
    for number in range(count):
        day = newest - timedelta(days=number % days)
        code = CODES[number % len(CODES)]
        stake = Decimal(chance.randrange(10**5, 10**9)).scaleb(-5)
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        made = midnight + timedelta(milliseconds=chance.randrange(86_400_000))
        text = SPELLINGS[spelling](
            f'{{"type":"message","id":{number},"payload":{{'
            f'"marketId":{chance.randrange(1, 10_000)},"selectionId":{chance.randrange(1, 10_000)},'
            f'"odds":{chance.randrange(101, 1000) / 100},"stake":{stake},"currency":"{code}",'
            f'"date":"{made.replace(tzinfo=None).isoformat(timespec="milliseconds")}Z"}}}}'
        ).encode()
        frame = b"\x81\x7e" + len(text).to_bytes(2) + text
        # By exact arithmetic; round() of a Fraction is half to even.
        euro = round(Fraction(stake) / Fraction(table(day)[code]) * 10**5)
        asked.append(Asked(frame, Decimal(euro).scaleb(-5)))
    return asked


class Feed:
    """Listens, and is one connection's server at a time. Every call may raise `OSError`."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.port: int = self._listener.getsockname()[1]
        self._link = self._listener  # until there is one
        self._poll = select.poll()
        self._came = b""
        self._out = b""
        self._beat_due = 0.0
        self._requests: list[Asked] = []
        self._next = 0
        self._exact = True
        self.heartbeats = 0

    def use(self, requests: list[Asked], *, exact: bool) -> None:
        """What is asked from now on are `requests`, in turn and again.

        `exact` replies echo every member; others may lack some.
        """
        self._requests = requests
        self._exact = exact
        self._next = 0

    def accept(self) -> None:
        """Wait for the next client and upgrade it."""
        self.heartbeats = 0
        self._out = b""
        self._link, _ = self._listener.accept()
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self._link = self._tls.wrap_socket(self._link, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._link.recv(4096)
        head, _, self._came = head.partition(b"\r\n\r\n")
        lines = (line.partition(b":") for line in head.split(b"\r\n"))
        key = next(value for name, _, value in lines if name.lower() == b"sec-websocket-key")
        proof = hashlib.sha1(key.strip() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        self._link.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(proof) + b"\r\n\r\n"
        )
        self._link.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._link, select.POLLIN)
        self._beat_due = 0.0

    def wait_heartbeat(self) -> None:
        """Return when the client has beaten once."""
        until = time.perf_counter() + PATIENCE
        while not self.heartbeats:
            self._turn(until)
            self._count()

    def rest(self) -> None:
        """Beat if it is time, and take what has come, where nothing is asked for a while."""
        self._turn(inf, wake=time.perf_counter())
        self._count()

    def load(
        self, outstanding: int, warm: float, seconds: float, cpu: Callable[[], float]
    ) -> tuple[float, float]:
        """Keep so many requests unanswered; measures `seconds` after the first `warm` ones.

        Returns how many were answered a second, and how much `cpu` grew for each.
        """
        self._ask(outstanding)
        self._keep_up(time.perf_counter() + warm)
        before, began = cpu(), time.perf_counter()
        answered = self._keep_up(began + seconds)
        took, used = time.perf_counter() - began, cpu() - before
        self._drain(outstanding)
        return answered / took, used / max(answered, 1)

    def _keep_up(self, until: float) -> int:
        """Put a new request for each one answered; the number of these."""
        answered = 0
        while time.perf_counter() < until:
            self._turn(inf, wake=until)
            count = self._count()
            answered += count
            self._ask(count)
        return answered

    def _drain(self, outstanding: int) -> None:
        """Wait for the replies that are still to come."""
        until = time.perf_counter() + PATIENCE
        while outstanding:
            self._turn(until)
            outstanding -= self._count()

    def ask_all(self, count: int, outstanding: int) -> None:
        """Ask the first `count` requests, not more than `outstanding` at a time.

        Raises ValueError for a reply that is not the right one.
        """
        asked = answered = 0
        self._next = 0
        until = time.perf_counter() + PATIENCE
        while answered < count:
            more = min(outstanding - (asked - answered), count - asked)
            self._ask(more)
            asked += more
            self._turn(until)
            for reply in self._replies():
                answered += 1
                self._judge(reply)

    def pace(self, rate: float, count: int) -> list[float]:
        """Ask at random moments, `rate` a second in the mean; the seconds that each reply took.

        Raises ValueError for a reply that is not the right one.
        """
        chance = random.Random(count)
        sent: dict[int, float] = {}
        took: list[float] = []
        due = time.perf_counter()
        until = due + count / rate + PATIENCE
        asked = 0
        while len(took) < count:
            now = time.perf_counter()
            if asked < count and now >= due:
                sent[self._next] = now
                self._ask(1)
                asked += 1
                due += chance.expovariate(rate)
            self._turn(until, wake=due if asked < count else until)
            came = time.perf_counter()
            took += [came - sent.pop(self._judge(reply)) for reply in self._replies()]
        return took

    def hang_up(self) -> None:
        self._link.close()
        self._listener.close()

    def _turn(self, until: float, wake: float = inf) -> None:
        """Write what is to be written, then wait for what comes, till `wake` at the latest.

        Raises TimeoutError when it is later than `until`.
        """
        now = time.perf_counter()
        if now > until:
            raise TimeoutError("replies that were due never came")
        if now >= self._beat_due:
            self._out += HEARTBEAT
            self._beat_due = now + 1
        self._write()
        wait = max(0.0, min(wake, self._beat_due) - now)
        self._poll.modify(self._link, select.POLLIN | (select.POLLOUT if self._out else 0))
        # Poll counts in milliseconds: the last one is spent in turns without waiting.
        for _, what in self._poll.poll(int(wait * 1000)):
            if what & ~select.POLLOUT:
                self._came += self._read()

    def _read(self) -> bytes:
        """What has come: all of it, also over TLS, which gives a record at a time."""
        came = b""
        with suppress(ssl.SSLWantReadError):
            came = self._link.recv(1 << 20)
            if not came:
                raise ConnectionResetError("the client has left")
            while isinstance(self._link, ssl.SSLSocket) and self._link.pending():
                came += self._link.recv(1 << 20)
        return came

    def _write(self) -> None:
        if self._out:
            with suppress(BlockingIOError, ssl.SSLWantWriteError):
                self._out = self._out[self._link.send(self._out) :]

    def _ask(self, count: int) -> None:
        """Put the next requests in line."""
        if count <= 0:
            return
        requests = self._requests
        at = self._next
        if at + count <= len(requests):
            chosen = requests[at : at + count]
        else:
            chosen = [requests[i % len(requests)] for i in range(at, at + count)]
        self._out += b"".join([asked.frame for asked in chosen])
        self._next = (at + count) % len(requests)

    def _count(self) -> int:
        """The replies among what has come, which is used up."""
        data = self._came
        have = len(data)
        at = replies = 0
        while have - at >= 4:
            size = data[at + 1] & 127
            end = at + 6 + size if size < 126 else at + 8 + (data[at + 2] << 8 | data[at + 3])
            if end > have:
                break
            at = end
            if size < REPLY_LEAST:
                self.heartbeats += 1
            else:
                replies += 1
        self._came = data[at:]
        return replies

    def _replies(self) -> Iterator[bytes]:
        """The texts of the replies among what has come, which is used up."""
        data = self._came
        at = 0
        while len(data) - at >= 4:
            size = data[at + 1] & 127
            begin = at + 6
            if size == 126:
                size = int.from_bytes(data[at + 2 : at + 4])
                begin += 2
            if begin + size > len(data):
                break
            at = begin + size
            key = data[begin - 4 : begin] * (size // 4 + 1)
            text = int.from_bytes(data[begin:at]) ^ int.from_bytes(key[:size])
            if size < REPLY_LEAST:
                self.heartbeats += 1
            else:
                yield text.to_bytes(size)
        self._came = data[at:]

    def _judge(self, reply: bytes) -> int:
        """The id of a reply. Raises ValueError when it is not the right one."""
        message = json.loads(reply, parse_float=Decimal)
        number = int(str(message["id"]).rpartition("-")[2])
        asked = self._requests[number]
        right = json.loads(asked.frame[4:], parse_float=Decimal)
        late = datetime.now(UTC) - datetime.fromisoformat(message["payload"]["date"])
        right["payload"] |= {"stake": asked.eur, "currency": "EUR"}
        right["payload"]["date"] = message["payload"]["date"]
        if not self._exact:
            right["payload"] = {name: right["payload"][name] for name in message["payload"]}
        if message != right or not timedelta(milliseconds=-1) <= late < timedelta(seconds=30):
            raise ValueError(f"{right} was expected, and {message} came")
        return number
