"""The audit trail as text: its lines and their hash chain.

A line is JSON in printable ASCII, without white space between its parts:

    {"n":12,"prev":"…","at":"2021-05-18T21:32:42.412Z","id":456,
     "date":"2021-05-18T21:32:42.324Z","stake":"253.67","currency":"USD","rate":"1.2222",
     "rate_date":"2021-05-18","provider":"ecb","eur":"207.55196","hash":"…"}

`at` is the reply's date. `id` and `date` are as they came, except that the id has escapes for all
that is not printable ASCII. Numbers are exact text. `rate` is units for one euro, or the table's
units/euro if its base is not the euro. A stake that was in euro already has the rate 1 of the
request's own UTC day, by the provider "none".

`n` counts the lines from 1. `hash` is the SHA-256, in hex, of the line's bytes before `,"hash"`.
`prev` is the hash of line n - 1, and 64 zeros in line 1. So each line shows whether it was
altered, and which line came before it. The number and hash of the last line are the trail's head.
A head that is kept elsewhere, as in the log, proves every line up to it. Without one the chain
shows neither that its last lines are missing nor that all of it was written anew.

Lines that were lost because the queue was full are replaced by one line, whose `at` is the time of
the first of them:

    {"n":13,"prev":"…","at":"2021-05-18T21:32:43.001Z","lost":17,"hash":"…"}

A line that was cut short, by a kill or a full disk, is not part of the chain. The next line
continues from the last whole one: it is the same line again, or, after a kill, another one with
the same number.
"""

import re
from collections.abc import Iterable
from datetime import date, datetime
from hashlib import sha256
from typing import Final, NamedTuple

from ..dates import wire_time
from ..messages import MAX_TEXT, Request
from ..observer import Converted
from ..rates import Rate

NO_PROVIDER: Final = "none"  # of the rate 1 of euro to euro
MOST_LINE: Final = 6 * MAX_TEXT + 4096  # bytes; an escape in an id takes six for one
MOST_PRICES: Final = 4096  # cached texts of rates, about 1 MB


class Head(NamedTuple):
    """A line's number and hash: the position of a chain."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


START: Final = Head(0, "0" * 64)  # before the first line


class Chain:
    """Makes lines; `head` is that of the last one."""

    def __init__(self, head: Head = START) -> None:
        self.head = head
        self._prices: dict[int, tuple[str, Rate]] = {}  # by the identity of the rate

    def conversions(self, records: Iterable[Converted]) -> bytes:
        """A line for each record. One loop, because it runs for every request: 1.2 µs each."""
        number, digest = self.head
        prices = self._prices
        lines = []
        at = None
        for request, eur, rate, replied in records:
            if replied is not at:  # one batch has one time
                at, when = replied, wire_time(replied)
            kept = prices.get(id(rate))
            price = kept[0] if kept is not None else self._make_price(request, rate)
            raw_id = request.id
            stake = str(request.stake)
            if "E" in stake:
                stake = format(request.stake, "f")
            number += 1
            line = (
                f'{{"n":{number},"prev":"{digest}","at":"{when}",'
                f'"id":{raw_id.decode() if raw_id.isdigit() else printable(raw_id)},'
                # A valid date is printable ASCII.
                f'"date":{request.date.decode()},"stake":"{stake}{price}{eur}"'
            )
            hashed = _new_hash()
            hashed.update(line.encode())
            digest = hashed.hexdigest()
            lines.append(f'{line},"hash":"{digest}"}}\n')
        self.head = Head(number, digest)
        return "".join(lines).encode()

    def _make_price(self, request: Request, rate: Rate | None) -> str:
        """What stands between the stake and its euros: it depends on the rate alone."""
        if rate is None:
            return _price("EUR", "1", request.instant.date(), NO_PROVIDER)
        price = _price(rate.currency, rate.text, rate.day, rate.provider)
        if len(self._prices) >= MOST_PRICES:
            self._prices.clear()
        # The entry holds the rate, so that its identity is not reused.
        self._prices[id(rate)] = price, rate
        return price

    def loss(self, at: datetime, lines: int) -> bytes:
        """The line in place of `lines` lost ones, the first of them at `at`."""
        number, digest = self.head
        number += 1
        line = f'{{"n":{number},"prev":"{digest}","at":"{wire_time(at)}","lost":{lines}'
        digest = sha256(line.encode()).hexdigest()
        self.head = Head(number, digest)
        return f'{line},"hash":"{digest}"}}\n'.encode()


def _price(currency: str, rate: str, day: date, provider: str) -> str:
    return (
        f'","currency":"{currency}","rate":"{rate}","rate_date":"{day}","provider":"{provider}",'
        '"eur":"'
    )


_new_hash: Final = sha256().copy  # at three quarters of the constructor's cost

_CHAINED: Final = re.compile(rb'(\{"n":([1-9]\d{0,17}),[ -~]*),"hash":"([0-9a-f]{64})"\}')


def head_of(line: bytes) -> Head | None:
    """The head of a line (without its line end); None if it has no matching hash."""
    found = _CHAINED.fullmatch(line)
    if found is None or sha256(found[1]).hexdigest().encode() != found[3]:
        return None
    return Head(int(found[2]), found[3].decode())


_WHITE: Final = bytes.maketrans(b"\t\n\r", b"   ")
_OTHERS: Final = re.compile("[^ -~]+")


def printable(raw: bytes) -> str:
    """Raw JSON as the same JSON in printable ASCII.

    Tabs and line ends can only be white space between tokens, as JSON escapes them in
    strings. All other characters outside printable ASCII are in strings.
    """
    return _OTHERS.sub(_escapes, raw.translate(_WHITE).decode())


def _escapes(found: re.Match[str]) -> str:
    """JSON escapes, one for each UTF-16 code unit."""
    return "\\u" + found[0].encode("utf-16-be").hex("u", 2).replace("u", "\\u")
