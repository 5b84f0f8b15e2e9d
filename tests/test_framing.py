"""`FrameDecoder` and `client_frames` against plain wsproto as the oracle of RFC 6455."""

import os
import random
from array import array
from collections.abc import Iterable
from itertools import count, islice, pairwise
from typing import Any

import pytest
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from ratebridge.link.framing import FrameDecoder, client_frames, masking_keys

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA
FIN = 0x80
MAX_MESSAGE = 1024 * 1024  # bytes, as the contract has it

Happening = tuple[str, object]


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    key: bytes = b"",
    length_bytes: int | None = None,
) -> bytes:
    """One frame; a key masks it, `length_bytes` (0, 2 or 8) writes its length in that form."""
    size = len(payload)
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 65536 else 8
    masked = FIN if key else 0
    header = bytes(((FIN if fin else 0) | reserved | opcode,))
    if length_bytes:
        header += bytes((masked | (126 if length_bytes == 2 else 127),)) + size.to_bytes(
            length_bytes
        )
    else:
        header += bytes((masked | size,))
    if key:
        payload = bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    return header + key + payload


class Peer:
    """A wsproto connection and what has happened on it, up to its end."""

    def __init__(self, kind: ConnectionType = ConnectionType.CLIENT) -> None:
        self._connection = Connection(kind)
        self._parts: list[str | bytes] = []
        self.happened: list[Happening] = []
        self.over = False

    def feed(self, data: bytes) -> None:
        if self.over:
            return
        self._connection.receive_data(data)
        for event in self._connection.events():
            match event:
                case TextMessage() | BytesMessage():
                    self._take(event)
                case Ping() | Pong():
                    self.happened.append((type(event).__name__, bytes(event.payload)))
                case CloseConnection():
                    self.happened.append(("close", int(event.code)))
                    self.over = True
                    return

    def _take(self, event: TextMessage | BytesMessage) -> None:
        self._parts.append(event.data if isinstance(event, TextMessage) else bytes(event.data))
        if event.message_finished:
            kind = "text" if isinstance(event, TextMessage) else "binary"
            empty: str | bytes = "" if kind == "text" else b""
            self.happened.append((kind, empty.join(self._parts)))  # type: ignore[arg-type]  # of one kind
            self._parts = []


def by_wsproto(pieces: Iterable[bytes]) -> list[Happening]:
    peer = Peer()
    for piece in pieces:
        peer.feed(piece)
    return peer.happened


def by_decoder(pieces: Iterable[bytes]) -> list[Happening]:
    """The same as the link does it: texts from the decoder, the rest to wsproto."""
    peer = Peer()
    decoder = FrameDecoder()
    for piece in pieces:
        unread = piece
        while not peer.over:
            texts, rest = decoder.decode(unread)
            unread = b""
            peer.happened += [("text", text.decode()) for text in texts]
            if not rest:
                break
            peer.feed(rest)
    return peer.happened


def in_pieces(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[a:b] for a, b in pairwise(edges)]


SIZES = (0, 1, 2, 124, 125, 126, 127, 300)
WORDS = ("a", "\u00e9", "\u20ac", "\U0001f600")
BAD_UTF8 = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"a\x80", b"\xf0\x9f\x98")
CLOSES = (b"", b"\x03", b"\x03\xe8bye", b"\x03\xe8\xff", b"\x03\xed", b"\x0f\xa0x")
OPCODES = (TEXT, TEXT, BINARY, CONTINUATION, PING, PONG, 0x3, 0x7, 0xB, 0xF)


def any_payload(rnd: random.Random) -> bytes:
    match rnd.randrange(4):
        case 0:
            return bytes(rnd.choice(SIZES))
        case 1:
            return rnd.choice(BAD_UTF8)
        case _:
            return (rnd.choice(WORDS) * rnd.choice(SIZES)).encode()


def any_frame(rnd: random.Random) -> bytes:
    return frame(
        rnd.choice(OPCODES),
        any_payload(rnd),
        fin=rnd.random() < 0.7,
        reserved=rnd.choice((0, 0, 0, 0, 0x10, 0x20, 0x40)),
        key=rnd.choice((b"", b"", b"", b"\1\2\3\4")),
        length_bytes=rnd.choice((None, None, None, None, 2, 8)),
    )


def fragments(rnd: random.Random) -> bytes:
    """A message in fragments, with pings in between, cut anywhere, within characters too."""
    parts = in_pieces(any_payload(rnd), [rnd.randrange(400) for _ in range(3)]) or [b""]
    frames = []
    for i, part in enumerate(parts):
        opcode = CONTINUATION if i else rnd.choice((TEXT, BINARY))
        frames.append(frame(opcode, part, fin=i == len(parts) - 1))
        if rnd.random() < 0.3:
            frames.append(frame(rnd.choice((PING, PONG)), rnd.randbytes(rnd.randrange(4))))
    return b"".join(frames)


def any_frames(rnd: random.Random) -> bytes:
    """Mostly lawful, so that many follow each other before one ends the stream."""
    chance = rnd.random()
    if chance < 0.6:
        return frame(TEXT, (rnd.choice(WORDS) * rnd.choice(SIZES)).encode())
    if chance < 0.75:
        return fragments(rnd)
    if chance < 0.85:
        return frame(rnd.choice((PING, PONG, BINARY)), rnd.randbytes(rnd.randrange(126)))
    return any_frame(rnd) if chance < 0.95 else frame(CLOSE, rnd.choice(CLOSES))


@pytest.mark.parametrize("seed", range(10))
def test_what_happens_is_what_happens_with_plain_wsproto(seed: int):
    rnd = random.Random(seed)
    for _ in range(200):
        stream = b"".join(any_frames(rnd) for _ in range(rnd.randrange(12)))
        expected = by_wsproto([stream])
        assert by_decoder([stream]) == expected
        cuts = [rnd.randrange(len(stream) + 1) for _ in range(rnd.randrange(20))]
        assert by_decoder(in_pieces(stream, cuts)) == expected


# Those that are rare among the frames at random above.
STREAMS = {
    "two length bytes at their most": frame(TEXT, bytes(65535)),
    "eight length bytes at their least": frame(TEXT, bytes(65536)),
    "as long as can be": frame(TEXT, bytes(MAX_MESSAGE)),
    "a text within a fragmented one": frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
    "two length bytes for one": frame(TEXT, bytes(125), length_bytes=2),
    "eight length bytes for two": frame(TEXT, bytes(65535), length_bytes=8),
    "text that ends within a character": frame(TEXT, b"a\xe2\x82"),
    "garbage": b"HTTP/1.1 200 OK\r\n\r\n",
    "a fragment that is no UTF-8": frame(TEXT, b"\xff", fin=False) + frame(CONTINUATION, b"b"),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_each_kind_of_stream_goes_on_or_ends_as_with_plain_wsproto(stream: bytes):
    stream = frame(TEXT, b"before") + stream + frame(TEXT, b"behind")
    expected = by_wsproto([stream])
    assert by_decoder([stream]) == expected
    size = max(1, len(stream) // 1_000)
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert by_decoder(pieces) == expected


BEGUN = frame(TEXT, bytes(MAX_MESSAGE - 1), fin=False)


@pytest.mark.parametrize(
    ("stream", "too_big"),
    [
        pytest.param(frame(TEXT, bytes(MAX_MESSAGE)), False, id="a text"),
        pytest.param(frame(TEXT, bytes(MAX_MESSAGE + 1))[:10], True, id="the header of a text"),
        pytest.param(BEGUN + frame(CONTINUATION, b"ab"), True, id="longer fragments"),
        pytest.param(BEGUN + frame(PING, b"ab") + frame(CONTINUATION, b"a"), False, id="a ping"),
        pytest.param(frame(BINARY, bytes(MAX_MESSAGE)) * 2, False, id="two messages"),
    ],
)
def test_a_message_is_too_big_by_the_header_that_makes_it_so(stream: bytes, too_big: bool):
    decoder = FrameDecoder()
    _, rest = decoder.decode(stream)
    while rest and not decoder.too_big:
        _, rest = decoder.decode()
    assert decoder.too_big is too_big


def test_it_is_known_which_frames_end_a_message_and_when():
    decoder = FrameDecoder()
    binary = frame(BINARY, b"ab")
    for piece, ends in (
        (frame(TEXT, b"a", fin=False), False),
        (frame(PING), False),
        (frame(CONTINUATION, b"c"), True),
        (frame(CLOSE), False),
        (binary[:3], False),
        (binary[3:], True),
    ):
        assert decoder.decode(piece) == ([], piece)
        assert decoder.message_ends is ends


def test_whole_texts_are_cut_out_together_and_leave_no_rest():
    decoder = FrameDecoder()
    whole = (b"a", "\u20ac".encode(), b"")
    stream = b"".join(frame(TEXT, text) for text in whole) + b"\x81\x05hel"
    assert decoder.decode(stream) == ([*whole], b"")
    assert decoder.decode() == ([], b"")
    assert decoder.decode(b"lo") == ([b"hello"], b"")


def test_an_unusual_frame_is_passed_on_before_what_is_behind_it_is_decoded():
    decoder = FrameDecoder()
    ping = frame(PING, b"p")
    stream = frame(TEXT, b"a") + ping + frame(TEXT, b"b") + ping[:2]
    assert decoder.decode(stream) == ([b"a"], ping)
    assert decoder.decode() == ([b"b"], ping[:2])
    assert decoder.decode() == ([], b"")
    assert decoder.decode(ping[2:] + frame(TEXT, b"c")) == ([], ping[2:])
    assert decoder.decode() == ([b"c"], b"")


def test_there_is_no_frame_behind_a_masked_one():
    decoder = FrameDecoder()
    stream = frame(TEXT, bytes(126), key=b"\1\2\3\4") + frame(TEXT, b"a")
    assert decoder.decode(stream) == ([], stream)
    assert decoder.decode(frame(TEXT, b"b")) == ([], frame(TEXT, b"b"))
    assert not decoder.message_ends


# Our own frames.


def test_a_server_reads_our_frames_as_the_same_texts():
    rnd = random.Random(30)
    for _ in range(100):
        texts = [rnd.choice(WORDS) * rnd.choice(SIZES) for _ in range(rnd.randrange(6))]
        sent = client_frames([text.encode() for text in texts], masking_keys())
        server = Peer(ConnectionType.SERVER)
        for piece in in_pieces(sent, [rnd.randrange(len(sent) + 1) for _ in range(5)]):
            server.feed(piece)
        assert server.happened == [("text", text) for text in texts]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 65535, 65536])
def test_each_frame_is_masked_by_a_key_of_its_own(size: int, monkeypatch: pytest.MonkeyPatch):
    entropy = bytes(range(1, 13))
    monkeypatch.setattr(os, "urandom", lambda count: (entropy * count)[:count])
    text = (b"abcde" * (size // 5 + 1))[:size]
    assert client_frames([text, b"x", text], masking_keys()) == (
        frame(TEXT, text, key=entropy[:4])
        + frame(TEXT, b"x", key=entropy[4:8])
        + frame(TEXT, text, key=entropy[8:])
    )


def test_no_key_is_used_twice(monkeypatch: pytest.MonkeyPatch):
    numbers = count()
    monkeypatch.setattr(
        os, "urandom", lambda size: array("I", islice(numbers, size // 4)).tobytes()
    )
    assert list(islice(masking_keys(), 3000)) == list(range(3000))


def test_many_small_unusual_frames_cost_time_that_grows_with_their_number():
    """Each is cut without a copy of what is behind it: bytes touched, not seconds, are counted."""

    class Counted(bytes):
        copied = 0

        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, slice):
                Counted.copied += len(range(*key.indices(len(self))))
            return super().__getitem__(key)

    pings = frame(PING, b"") * 10_000
    decoder = FrameDecoder()
    decoder.decode(Counted(pings))
    while decoder.decode()[1]:
        pass
    assert len(pings) <= Counted.copied < 3 * len(pings)
