"""A faulty feed: a plan for each connection, from the dial to the end."""

import random
import re
from collections.abc import Iterable, Iterator
from math import inf
from typing import Any, Final, Literal

import trio
from wsproto.utilities import generate_accept_token

from ratebridge.errors import LinkFailed, Loss

from .faults import Faults
from .trace import Attempt, Trace
from .traffic import Traffic
from .wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Kernel,
    Mark,
    Sealed,
    Segment,
    Uplink,
    Wire,
    server_frame,
)

# What happens to a connection, by the state in which it is dialled, and with which weight.
MOODS: Final = {
    "calm": 9,
    "flaky": 5,
    "sluggish": 4,
    "storm": 3,  # accepts, and closes at once
    "outage": 2,
    "gate": 2,  # upgrades that fail
    "forbidden": 0.3,
}
BEAT: Final = 1.0  # s, the peer's own

Piece = tuple[bytes, Mark | None]  # a message, framed, and its meaning for the checker

GARBAGE: Final = b"\xc3\x28\x00garbage"
CODES: Final = (
    *(1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014),
    *(3000, 3999, 4000, 4999),
    *(0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535),  # those that nobody may send
)

FAILED_UPGRADES: Final = (
    *("status", "hangs", "cut and reset", "cut and fin", "half and hangs"),
    *("garbage", "wrong accept", "drip"),
)

FADES: Final = 0.08  # share of connections that go silent instead of ending

# Ends of an open connection. Bytes after a fatal frame must be ignored.
ENDS: Final = {
    "silence": 2,
    "fragments without end": 1,
    "half-open": 3,
    "reset": 2,
    "reset in a frame": 2,
    "fin": 1,
    "fin in a frame": 1,
    "close": 4,
    "violation": 4,
    "oversized": 0.1,
}
VIOLATIONS: Final = {
    "garbage": GARBAGE,
    "masked frame": b"\x81\x82\x00\x00\x00\x00{}",
    "reserved bit": b"\xc1\x02{}",
    "reserved opcode": b"\x83\x02{}",
    "stray continuation": b"\x80\x02{}",
    "text in a fragmented text": b"\x01\x01{\x81\x02{}",
    "invalid UTF-8": b"\x81\x02\xc3\x28",
    "fragmented ping": b"\x09\x02hi",
    "long ping": b"\x89\x7e\x00\x80" + bytes(128),
    "padded length": b"\x81\x7e\x00\x02{}",
    "close of one byte": b"\x88\x01\x03",
    "close with a bad reason": b"\x88\x04\x03\xe8\xc3\x28",
}


class Feed:
    """What the service dials."""

    def __init__(
        self, chance: random.Random, faults: Faults, traffic: Traffic, trace: Trace
    ) -> None:
        self._chance = chance
        self._faults = faults
        self._traffic = traffic
        self._trace = trace
        self._most_asks = 10 ** chance.uniform(0.0, 1.7)  # a second
        self.kernel: Final = Kernel()

    async def dial(self) -> Any:
        """See `dial.Dial`."""
        chance, trace = self._chance, self._trace
        for attempt in trace.attempts:
            if attempt.wire is not None and attempt.wire.closed == inf:
                trace.complain("a link is dialled while another is open")
        attempt = Attempt(trio.current_time())
        trace.attempts.append(attempt)
        state, _ = self._faults.at(attempt.began)
        trace.note("dial", state=state)
        trace.on("dial")
        if state == "outage":
            await self._fail_to_dial()
        elif chance.random() < 0.5:
            await trio.sleep(chance.uniform(0, 0.3))
        else:
            await trio.lowlevel.checkpoint()
        peer = ScriptedPeer(chance, state, self._most_asks, self._traffic, attempt, trace)
        pieces = chance.randrange(1, 200) if chance.random() < 0.1 else 65536
        wire = attempt.wire = Wire(peer, pieces, trace)
        self.kernel.wires[wire.fileno()] = wire
        if chance.random() < 0.5:
            return trio.SocketStream(wire)
        attempt.sealed = True
        return Sealed(wire)

    async def _fail_to_dial(self) -> None:
        chance = self._chance
        dice = chance.random()
        if dice < 0.6:
            self._trace.fault("dial: refused")
            await trio.sleep(chance.uniform(0, 0.05))
            raise LinkFailed(Loss.REFUSED, "connection refused: nobody listens on that port")
        if dice < 0.8:
            self._trace.fault("dial: hangs")
            await trio.sleep_forever()
        self._trace.fault("dial: slow")
        await trio.sleep(chance.uniform(0.5, 7))


class ScriptedPeer:
    """The feed's side of one connection, the far end of a wire."""

    def __init__(
        self,
        chance: random.Random,
        state: str,
        most_asks: float,
        traffic: Traffic,
        attempt: Attempt,
        trace: Trace,
    ) -> None:
        self._chance = chance
        self._state = state
        self._asks = chance.uniform(0, most_asks)
        self._traffic = traffic
        self._attempt = attempt
        self._trace = trace
        self._latency = chance.choice((0.0, 0.0005, 0.02, 0.1))
        self._whole_at = -inf  # when the last frame that was cut has come whole
        self._clock = 0.0  # no segment arrives before the one in front of it
        self.uplink = Uplink()

    # The upgrade.

    def begin(self, now: float, request: bytes) -> Iterator[Segment]:
        """Begin to send, on the upgrade request."""
        self._clock = now
        if self._state in ("gate", "forbidden") or self._chance.random() < 0.02:
            yield from self._fail_the_upgrade(now + self._latency, request)
            return
        at = now + self._latency
        if self._chance.random() < 0.05:
            self._trace.fault("upgrade: slow")
            at += self._chance.uniform(0.3, 4.5)
        self._set_uplink(at)
        response = _accept(request)
        life = self._live(at)
        if self._chance.random() < 0.2:
            self._trace.fault("upgrade: glued to the first frames")
            first = next(life, Segment(at))
            marks = tuple((offset + len(response), mark) for offset, mark in first.marks)
            yield Segment(at, response + first.data, marks, first.end)
        elif self._chance.random() < 0.1:
            self._trace.fault("upgrade: in two pieces")
            cut = self._chance.randrange(1, len(response))
            yield self._segment(at, response[:cut])
            yield self._segment(at + 0.01, response[cut:])
        else:
            yield self._segment(at, response)
        yield from life

    def _fail_the_upgrade(self, at: float, request: bytes) -> Iterator[Segment]:
        chance = self._chance
        kind = chance.choice(FAILED_UPGRADES)
        if self._state == "forbidden":
            kind = "status"
        self._trace.fault(f"upgrade: {kind}")
        response = _accept(request)
        cut = chance.randrange(len(response))
        match kind:
            case "status":
                yield self._refusal(at)
            case "cut and reset":
                yield _fatal(at, response[:cut], kind, end="reset")
            case "cut and fin":
                yield _fatal(at, response[:cut], kind, end="fin")
            case "half and hangs":
                yield Segment(at, response[:cut])
            case "garbage":
                yield _fatal(at, b"\x00\x01\x02 SSH-2.0\r\n\r\n", kind)
            case "wrong accept":
                yield _fatal(at, _accept(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"), kind)
            case "drip":
                yield Segment(at, b"HTTP/1.1 101 Switching Protocols\r\n")
                while True:
                    at += 0.3
                    yield Segment(at, b"X-Drip: drop\r\n")

    def _refusal(self, at: float) -> Segment:
        chance = self._chance
        status = chance.choice((200, 301, 400, 404, 429, 500, 502, 503))
        if self._state == "forbidden":
            status = chance.choice((401, 403))
            self._attempt.forbidden = True
        head = f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\n"
        if chance.random() < 0.3:
            away = chance.choice((0, 1, 3, 90))
            head += f"Retry-After: {away}\r\n"
            self._attempt.asked_to_stay_away = min(away, 60)
        return _fatal(at, head.encode() + b"\r\nno", f"status {status}")

    # The open link.

    def _set_uplink(self, at: float) -> None:
        """How fast the peer reads."""
        chance = self._chance
        if self._state != "sluggish" and chance.random() < 0.9:
            return
        capacity = chance.choice((80, 400, 3000))
        turn = at + chance.uniform(0, 8)
        kind = chance.choice(("slow", "turns slow", "stops reading", "stalls a while", "breaks"))
        self._trace.fault(f"uplink: {kind}")
        match kind:
            case "slow":
                self.uplink = Uplink(capacity, rate=chance.uniform(50, 3000))
            case "turns slow":
                self.uplink = Uplink(capacity, turns_at=turn, then=chance.uniform(5, 500))
            case "stops reading":
                self.uplink = Uplink(capacity, turns_at=turn, then=0.0)
            case "stalls a while":
                self.uplink = Uplink(capacity, rate=0.0, turns_at=at + chance.uniform(0.5, 2.5))
            case "breaks":
                self.uplink = Uplink(breaks_after=chance.randrange(200, 20_000))

    def _live(self, at: float) -> Iterator[Segment]:
        """Heartbeats, requests and other messages, until the end of this connection."""
        chance = self._chance
        ends = at + {
            "calm": chance.expovariate(1 / 40),
            "flaky": chance.expovariate(1 / 3),
            "sluggish": chance.expovariate(1 / 15),
            "storm": chance.uniform(0, 0.05),
            "outage": chance.expovariate(1 / 3),
        }.get(self._state, 1.0)
        if self._state == "storm":
            self._trace.fault("accept, then close")
        gaps = self._gaps()
        beat = at + (next(gaps) if chance.random() < 0.3 else 0.0)
        # Some, or a peer that takes little would never be full.
        asks = max(self._asks, 5.0 if self._state == "sluggish" else 0.01)
        ask = at + chance.expovariate(asks)
        while True:
            now = min(beat, ask)
            if now >= ends:
                if chance.random() > FADES:
                    yield from self._end(ends)
                    return
                # It sends requests but no heartbeats, and reads next to nothing.
                self._trace.fault("end: fades")
                self.uplink = Uplink(80, turns_at=ends, then=chance.uniform(10, 60))
                beat = ends = inf
                continue
            pieces: list[Piece]
            if now == beat:
                beat += next(gaps)
                pieces = [_beat(chance)]
            else:
                ask += chance.expovariate(asks)
                pieces = [self._piece(now) for _ in range(self._bundle())]
                # A bundle counts for as many requests as it holds.
                ask += (len(pieces) - 1) / asks
            yield from self._deliver(now + self._latency, pieces)

    def _gaps(self) -> Iterator[float]:
        """Seconds between the peer's heartbeats."""
        chance = self._chance
        kind = "steady"
        if chance.random() < 0.4:
            kind = chance.choice(("every 1.9 s", "late", "lost", "never", "run dry"))
            self._trace.fault(f"heartbeats: {kind}")
        dry = chance.randrange(1, 20)
        while True:
            match kind:
                case "every 1.9 s":
                    yield 1.9
                case "late":
                    yield chance.uniform(0.2, 2.2)
                case "lost":
                    yield BEAT * (1 + (chance.random() < 0.3))
                case "never":
                    yield inf
                case "run dry" if dry == 0:
                    yield inf
                case _:
                    dry -= 1
                    yield BEAT + chance.uniform(-0.02, 0.02)

    def _bundle(self) -> int:
        """How many messages come in one segment."""
        chance = self._chance
        return 1 if chance.random() < 0.9 else chance.choice((2, 3, 10, 60))

    def _piece(self, now: float) -> Piece:
        """One message of any kind but heartbeats, framed."""
        chance = self._chance
        dice = chance.random()
        # A pong is what may want to follow a write that was cut short.
        if dice < 0.05 or (self._state == "sluggish" and dice > 0.8):
            payload = chance.randbytes(chance.randrange(20))
            return server_frame(PING, payload), Mark("ping", payload)
        if dice < 0.07:
            return server_frame(BINARY, b"\x00\x01"), Mark("junk", "not-json")
        if dice < 0.08:
            return server_frame(PONG, b"unasked"), None
        if dice < 0.12:
            text, reason = self._traffic.junk()
            return server_frame(TEXT, text), Mark("junk", reason)
        ask = self._traffic.ask(now)
        return self._fragmented(ask.text.encode()), Mark("ask", ask)

    def _fragmented(self, text: bytes) -> bytes:
        """The frame of a text; sometimes two, with an unsolicited pong between."""
        chance = self._chance
        if chance.random() > 0.03:
            return server_frame(TEXT, text)
        cut = chance.randrange(len(text))
        return (
            server_frame(TEXT, text[:cut], fin=False)
            + (server_frame(PONG) if chance.random() < 0.3 else b"")
            + server_frame(CONTINUATION, text[cut:])
        )

    def _deliver(self, at: float, pieces: list[Piece]) -> Iterator[Segment]:
        """The frames in one segment, or cut anywhere into two."""
        data = b"".join(frame for frame, _ in pieces)
        marks: list[tuple[int, Mark]] = []
        offset = 0
        for frame, mark in pieces:
            offset += len(frame)
            if mark is not None:
                marks.append((offset, mark))
        if self._chance.random() > 0.05:
            yield self._segment(at, data, marks)
            return
        cut = self._chance.randrange(len(data))
        yield self._segment(at, data[:cut], [(o, mark) for o, mark in marks if o <= cut])
        later = self._whole_at = at + self._chance.choice((0.0, 0.01, 0.4))
        yield self._segment(later, data[cut:], [(o - cut, mark) for o, mark in marks if o > cut])

    def _segment(self, at: float, data: bytes, marks: Iterable[tuple[int, Mark]] = ()) -> Segment:
        self._clock = max(self._clock, at)
        return Segment(self._clock, data, tuple(marks))

    def _end(self, at: float) -> Iterator[Segment]:
        chance = self._chance
        at = max(at + self._latency, self._clock)
        ends = ENDS if self._state != "storm" else {"reset": 1, "fin": 1, "close": 3}
        kind = chance.choices(list(ends), list(ends.values()))[0]
        frame = server_frame(TEXT, b'{"type":"message","id":1}')
        cut = chance.randrange(1, len(frame))
        if kind not in ("close", "violation"):
            self._trace.fault(f"end: {kind}")
        match kind:
            case "half-open":
                # What is written is lost, or is not even taken.
                then = chance.choice((inf, 0.0))
                self.uplink = Uplink(chance.choice((80, 3000)), turns_at=at, then=then)
            case "fragments without end":
                yield from _fragments(at)
            case "reset" | "fin":
                yield _fatal(at, b"", kind, end=kind)
            case "reset in a frame":
                yield _fatal(at, frame[:cut], kind, end="reset")
            case "fin in a frame":
                yield _fatal(at, frame[:cut], kind, end="fin")
            case "close":
                yield from self._close(at)
            case "violation":
                name = chance.choice(list(VIOLATIONS))
                self._trace.fault(f"end: {name}")
                yield _fatal(at, VIOLATIONS[name], name)
                while chance.random() < 0.9:
                    at += 0.1
                    yield Segment(at, server_frame(TEXT, b'{"type":"heartbeat"}'))
            case "oversized":
                yield _fatal(at, server_frame(TEXT, b" " * 1_100_000), kind)

    def _close(self, at: float) -> Iterator[Segment]:
        chance = self._chance
        code = chance.choice(CODES)
        payload = b"" if chance.random() < 0.1 else code.to_bytes(2) + b"bye"
        name = f"close {code}" if payload else "close without a code"
        self._trace.fault(f"end: {name}")
        yield _fatal(at, server_frame(CLOSE, payload), name)
        # It ought to end TCP now; it may as well keep that open for ever.
        if chance.random() < 0.3:
            yield Segment(at + 0.05, end="fin")

    def hear_close(self, now: float) -> Iterator[Segment]:
        """Answer a close frame: correctly, wrongly, or not at all."""
        chance = self._chance
        at = max(now + self._latency, self._whole_at)  # no frame may stand within another
        kind = chance.choices(("answers", "does not answer", "resets", "pings"), (6, 1, 1, 2))[0]
        if kind != "answers":
            self._trace.fault(f"goodbye: {kind}")
        match kind:
            case "resets":
                yield Segment(at, end="reset")
                return
            case "does not answer":
                return
            case "pings":
                yield Segment(at, server_frame(PING, b"late") * chance.choice((1, 3)))
                if chance.random() < 0.3:  # and goes without an answer
                    return
        yield Segment(at, server_frame(CLOSE, b"\x03\xe9"))
        yield Segment(at + 0.01, end="fin")


def _accept(request: bytes) -> bytes:
    """The response that grants an upgrade (RFC 6455, section 4.2.2)."""
    [key] = re.findall(rb"Sec-WebSocket-Key: *(\S+)", request, re.IGNORECASE)
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + generate_accept_token(key) + b"\r\n\r\n"
    )


def _beat(chance: random.Random) -> Piece:
    """A heartbeat in one of its spellings."""
    if chance.random() < 0.9:
        return server_frame(TEXT, b'{"type":"heartbeat"}'), Mark("beat")
    text = chance.choice((b'{"type": "heartbeat"}', b' {"type":"heartbeat","at":1}\n'))
    if chance.random() < 0.5:
        return server_frame(TEXT, text), Mark("beat")
    return server_frame(TEXT, text[:5], fin=False) + server_frame(CONTINUATION, text[5:]), Mark(
        "beat"
    )


def _fragments(at: float) -> Iterator[Segment]:
    """A message that never ends, and so no heartbeat."""
    yield Segment(at, server_frame(TEXT, fin=False))
    while True:
        at += 0.05
        yield Segment(at, server_frame(CONTINUATION, fin=False) * 40)


def _fatal(at: float, data: bytes, name: str, *, end: Literal["", "fin", "reset"] = "") -> Segment:
    """A segment that must end the connection as soon as it is read."""
    return Segment(at, data, ((len(data), Mark("fatal", name)),), end)
