"""Frames of RFC 6455: a server's stream is decoded, texts of ours are encoded. Pure.

Nearly every frame of a feed is an unfragmented text. Those are decoded here. Every other
frame is passed on untouched, so that wsproto, and trio-websocket on top of it, decide on
all that is unusual.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from sys import maxsize
from typing import Final

CLOSE: Final = 0x88  # the first byte of a close frame: FIN, and its opcode
MAX_MESSAGE: Final = 1024 * 1024  # bytes of payload, of all the fragments together

_FIN: Final = 0x80  # in the first byte: the last frame of a message
_CONTROL: Final = 0x08  # in the opcode: a close, a ping, a pong, or a reserved one
_TEXT: Final = 0x81  # a first byte: FIN, and the opcode of a text
_MASKED: Final = 0x80  # in the second byte


class FrameDecoder:
    """Decodes the frames of a server. The stream begins behind the upgrade.

    `too_big` is set when the header of a frame makes its message longer than `MAX_MESSAGE`
    bytes. `message_ends` tells whether the frame that was passed on last is there to its
    end, and is the last one of a message.
    """

    def __init__(self) -> None:
        self.too_big = False
        self.message_ends = False
        self._buffer = b""
        self._at = 0  # how far it is decoded
        self._to_pass = 0  # bytes that have yet to come of the frame that is passed on
        self._ends_message = False  # that frame is the last of a message
        self._fragments: int | None = None  # bytes in the fragments of a message so far

    def decode(self, data: bytes = b"") -> tuple[list[bytes], bytes]:
        """Take the next bytes, a piece of any size, or go on with what is left of those before.

        Returns the next texts (UTF-8), and the bytes of one other frame behind them, or of a
        part of it. Whether the stream goes on behind that frame is for others to decide. Both
        are empty when more bytes are needed.
        """
        if data:
            # A text in pieces is copied for each of them, `MAX_MESSAGE` bytes at most.
            left = self._buffer[self._at :]
            self._buffer = left + data if left else data
            self._at = 0
        buffer = self._buffer
        have = len(buffer)
        texts: list[bytes] = []
        at = self._at
        end = at + self._to_pass if self._to_pass else 0  # of a frame that is passed on
        while not end and have - at >= 2:
            first = buffer[at]
            size = buffer[at + 1]
            begin = at + 2
            shortest = 0  # for each form of the length; it is written as short as can be
            if size >= _MASKED:
                # A server must not mask: nothing behind this counts as a frame.
                end = maxsize
                break
            if size >= 126:
                begin, shortest = (at + 4, 126) if size == 126 else (at + 10, 65536)
                if have < begin:
                    break
                if shortest == 126:  # `from_bytes` would take three times as long
                    size = buffer[at + 2] << 8 | buffer[at + 3]
                else:
                    size = int.from_bytes(buffer[at + 2 : begin])
            after = begin + size
            if first == _TEXT and shortest <= size <= MAX_MESSAGE and self._fragments is None:
                if after > have:
                    break
                text = buffer[begin:after]
                if text.isascii() or _is_utf8(text):
                    texts.append(text)
                    at = after
                    continue
            end = after
            self._ends_message = not first & _CONTROL and first & _FIN != 0
            if not first & _CONTROL:
                message = size + (self._fragments or 0)
                self.too_big = message > MAX_MESSAGE
                self._fragments = None if self._ends_message else message
        if not end:
            self._at = at
            return texts, b""
        self._at = min(end, have)
        self._to_pass = max(0, end - have)
        self.message_ends = self._ends_message and not self._to_pass
        return texts, buffer[at:end]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def masking_keys() -> Iterator[int]:
    """Masking keys of 32 bits from the system's entropy (section 5.3), many drawn at a time."""
    while True:
        yield from array("I", os.urandom(4096))


def client_frames(texts: Sequence[bytes], keys: Iterator[int]) -> bytes:
    """The texts as masked frames of one write, each with the next of the keys.

    One integer XOR masks a frame: the multiple of a key is the key again and again.
    """
    frames: list[bytes] = []
    for text, key in zip(texts, keys, strict=False):
        header, ones, size = _layout(len(text))
        # Little-endian, as the machine is: that takes a quarter less.
        plain = int.from_bytes(header + text, "little")
        frames.append((plain ^ key * ones).to_bytes(size + 3, "little")[:size])
    return b"".join(frames)


def client_close(code: int) -> bytes:
    """A masked close frame with this code and no reason."""
    return bytes((CLOSE,)) + client_frames([code.to_bytes(2)], masking_keys())[1:]


def whole_frames(texts: Sequence[bytes], size: int) -> int:
    """How many of the texts have their frame within the first `size` bytes of `client_frames`."""
    return sum(end <= size for end in accumulate(_layout(len(text))[2] for text in texts))


@lru_cache(maxsize=64)  # of 64 KiB each at most, where the lengths of the messages vary widely
def _layout(size: int) -> tuple[bytes, int, int]:
    """Of a text of so many bytes: the header, with zeros for the key; what masks; the frame's size.

    What masks the frame is a number with a one wherever the key has to stand: in the header, and
    at every fourth byte of the text. The last one reaches up to three bytes beyond it.
    """
    if size < 126:
        header = bytes((_TEXT, _MASKED | size))
    elif size < 65536:
        header = bytes((_TEXT, _MASKED | 126)) + size.to_bytes(2)
    else:
        header = bytes((_TEXT, _MASKED | 127)) + size.to_bytes(8)
    ones = bytes(len(header)) + b"\1\0\0\0" * ((size + 3) // 4 + 1)
    return header + bytes(4), int.from_bytes(ones, "little"), len(header) + 4 + size
