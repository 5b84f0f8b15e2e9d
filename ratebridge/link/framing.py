"""Frames of RFC 6455, as far as speed asks for it. Pure: bytes in, bytes out.

Nearly every frame of a feed is a whole, unmasked text. Those are cut out here;
every other frame is handed on untouched, so that wsproto, and trio-websocket on
top of it, decide on all that is unusual.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final

MAX_FRAME: Final = 1024 * 1024  # bytes of payload; a longer one is trio-websocket's to refuse

_MASKED: Final = 0x80
_WHOLE_TEXT: Final = 0x81
_FIRST_FRAGMENTS: Final = frozenset((0x01, 0x02))
_MORE_FRAGMENTS: Final = frozenset((0x00, 0x80))
_LAST_FRAGMENT: Final = 0x80
_WHOLE_BINARY: Final = 0x82
_CLOSE: Final = 0x88
_PING: Final = 0x89
_PING_AND_PONG: Final = frozenset((0x89, 0x8A))


class FrameCutter:
    """Cuts a server's byte stream into whole texts and the rest.

    The stream begins with the first byte after the HTTP upgrade, and comes in pieces
    of any size. Put together, the rest is what came without the whole texts.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0  # how far it is cut
        self._passing = 0  # bytes of an unusual frame that are still to be handed on
        self._fragmented = False  # between the first and the last frame of a message
        self._over = False  # a close or a violation went by: wsproto has the word
        self.saw_close = False  # it was a close
        self.drops_pings = False  # set: wsproto, once it has sent a close, cannot answer them

    def cut(self, data: bytes | None = None) -> tuple[list[bytes], bytes]:
        """The next whole texts (UTF-8), and the rest behind them, after one more piece if given.

        The rest reaches to the end of an unusual frame at most: wsproto decides
        on that one before anything behind it is cut. It can be a part of a frame.
        Both are empty when another piece is needed.
        """
        if data:
            # A frame in pieces is copied for each of them, `MAX_FRAME` bytes at most.
            left = self._buffer[self._at :]
            self._buffer = left + data if left else data
            self._at = 0
        texts: list[bytes] = []
        end = self._cut_usual(texts)
        if end == len(self._buffer):  # as it is nearly always
            self._at = end
            return texts, b""
        return texts, self._cut_others(texts, end)

    def _cut_others(self, texts: list[bytes], end: int) -> bytes:
        """Cut whatever begins at `end` and is not usual: further texts, and the rest."""
        buffer = self._buffer
        have = len(buffer)
        at = end
        while not self._over and not self._passing:
            at = end
            if have - at < 2:
                break
            first = buffer[at]
            length = size = buffer[at + 1]
            begin = at + 2
            if length in (126, 127):
                begin += 2 if length == 126 else 8
                if have < begin:
                    break
                size = int.from_bytes(buffer[at + 2 : begin])
            end = begin + size
            usual = length < _MASKED and size >= _SHORTEST[length]
            if first == _WHOLE_TEXT and usual and size <= MAX_FRAME and not self._fragmented:
                if have < end:
                    break
                text = buffer[begin:end]
                if _is_utf8(text):
                    texts.append(text)
                    continue
                usual = False
            if first in _PING_AND_PONG and usual and length < 126:
                if have < end:
                    break
                if first == _PING and self.drops_pings:
                    continue
            if usual and self._is_lawful(first, length):
                self._passing = end - at
                goes_on = self._fragmented and first != _LAST_FRAGMENT
                self._fragmented = goes_on or first in _FIRST_FRAGMENTS
            else:
                self._over = True
                self.saw_close = first == _CLOSE
        self._at = have if self._over else min(have, at + self._passing)
        rest = buffer[at : self._at]
        self._passing = max(0, self._passing - len(rest))
        return rest

    def _cut_usual(self, texts: list[bytes]) -> int:
        """Cut the first whole texts, in ASCII and below 64 KiB, and tell where they end.

        Nearly all are such, and this takes half the time of all the checks.
        """
        data = self._buffer
        have = len(data)
        end = self._at
        if self._over or self._passing or self._fragmented:
            return end
        while have - end >= 4 and data[end] == _WHOLE_TEXT:
            begin = end + 2
            size = data[end + 1]
            if size == 126:
                begin = end + 4
                size = data[end + 2] << 8 | data[end + 3]
                if size < 126:
                    break
            elif size > 126:
                break
            after = begin + size
            text = data[begin:after]
            if after > have or not text.isascii():
                break
            texts.append(text)
            end = after
        return end

    def _is_lawful(self, first: int, length: int) -> bool:
        """Whether a frame, though unusual, leaves the stream such that texts may follow."""
        if first in _PING_AND_PONG:
            return length < 126
        if self._fragmented:
            return first in _MORE_FRAGMENTS
        return first in _FIRST_FRAGMENTS or first in (_WHOLE_TEXT, _WHOLE_BINARY)


# The least size that each length byte may announce: a length is written as short as can be.
_SHORTEST: Final = (*[0] * 126, 126, 65536)


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def masking_keys() -> Iterator[int]:
    """Masking keys of 32 bits from the system's entropy (section 5.3), many drawn at a time."""
    while True:
        yield from array("I", os.urandom(_KEYS_AT_A_TIME * 4))


_KEYS_AT_A_TIME: Final = 1024
_from_bytes: Final = int.from_bytes


def client_frames(texts: Sequence[bytes], keys: Iterator[int]) -> bytes:
    """The texts as masked frames of one write, each with the next of the keys.

    One integer XOR masks a frame: the multiple of a key is the key again and again.
    """
    frames: list[bytes] = []
    for text in texts:
        header, ones = _layout(len(text))
        # Little-endian, as the machine is: that takes a quarter less.
        plain = _from_bytes(header + text, "little")
        size = len(header) + len(text)
        frames.append((plain ^ next(keys) * ones).to_bytes(size + 3, "little")[:size])
    return b"".join(frames)


def client_close(code: int) -> bytes:
    """A masked close frame with this code and no reason."""
    key = os.urandom(4)
    masked = bytes(byte ^ mask for byte, mask in zip(code.to_bytes(2), key, strict=False))
    return bytes((_CLOSE, _MASKED | len(masked))) + key + masked


def whole_frames(texts: Sequence[bytes], size: int) -> int:
    """How many of the texts have their frame within the first `size` bytes of `client_frames`."""
    ends = accumulate(len(_layout(len(text))[0]) + len(text) for text in texts)
    return sum(end <= size for end in ends)


@lru_cache(maxsize=64)  # of 64 KiB each at most, where the lengths of the messages vary widely
def _layout(size: int) -> tuple[bytes, int]:
    """The header of a text of so many bytes, with zeros for the key, and what masks the frame.

    That is a number with a one wherever the key has to stand: in the header, and at
    every fourth byte of the text. The last one reaches up to three bytes beyond it.
    """
    if size < 126:
        header = bytes((_WHOLE_TEXT, _MASKED | size))
    elif size < 65536:
        header = bytes((_WHOLE_TEXT, _MASKED | 126)) + size.to_bytes(2)
    else:
        header = bytes((_WHOLE_TEXT, _MASKED | 127)) + size.to_bytes(8)
    ones = bytes(len(header)) + b"\1\0\0\0" * ((size + 3) // 4 + 1)
    return header + bytes(4), int.from_bytes(ones, "little")
