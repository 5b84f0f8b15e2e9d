"""The audit trail as text: its lines, their chain, and where a chain can be continued.

This is the one place that defines the format; `audit` writes it, `verify` checks it. A line is
JSON in printable ASCII, without white space between its parts:

    {"n":12,"prev":"…","at":"2021-05-18T21:32:42.412Z","id":456,
     "date":"2021-05-18T21:32:42.324Z","stake":"253.67","currency":"USD","rate":"1.2222",
     "rate_date":"2021-05-18","provider":"ecb","eur":"207.55196","hash":"…"}

`at` is the reply's date. `id` and `date` are as they came, except that the id has escapes for all
that is not printable ASCII. Numbers are exact text. `rate` is units for one euro, or units/euro:
the two quotes, if the table's base is not the euro, and 1/price for a coin. A stake that was in
euro already has the rate 1 of the request's own UTC day, by the provider "none". The provider of
a currency's legal conversion rate to the euro is "fixed".

`n` counts the lines from 1. `hash` is the SHA-256, in hex, of the line's bytes before `,"hash"`.
`prev` is the hash before it in the trail, and 64 zeros in line 1. So each line shows whether it
was altered, and which line came before it.

A number and a hash are a head of the trail. A head that is kept elsewhere, as in the log, proves
every line up to it. Without one the chain shows neither that its last lines are missing nor that
all of it was written anew.

The first line that a process writes has `"started"` behind `n` and `prev`, the time of its start.
What a run that was killed had not written, which is at most the last second, is missing before it.

Lines that were lost because the queue was full are replaced by one line, whose `at` is the time of
the first of them:

    {"n":13,"prev":"…","at":"2021-05-18T21:32:43.001Z","lost":17,"hash":"…"}

A line that a kill or a power cut left unfinished, or NUL bytes after it, stay on a line of their
own, and are not part of the chain. The next line continues from the last whole one.
"""

import gzip
import re
import stat
import zlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from ..dates import wire_time
from ..messages import MAX_TEXT, Request
from ..rates import Rate
from ..reporting.observer import Converted

MOST_LINE: Final = 6 * MAX_TEXT + 4096  # bytes; an escape in an id takes six for one
MOST_PRICES: Final = 4096  # cached texts of rates, about 1 MB
LAST: Final = 64  # lines of a file that are looked at; the first may lack its beginning
TAIL: Final = 2 * MOST_LINE  # bytes: the last whole line, and one cut short after it

_TEXT: Final = r'[^"]*'
_NUMBER: Final = r"(?:0|[1-9]\d*)(?:\.\d+)?"
_DAY: Final = r"\d{4}-\d\d-\d\d"

LINE: Final = re.compile(
    r'\{"n":(?P<n>[1-9]\d{0,17})(?:,"prev":"(?P<prev>[0-9a-f]{64})")?'
    rf'(?:,"started":"(?P<started>{_TEXT})")?,"at":(?P<at>"{_TEXT}")'
    # No member after the id can hold a quote, so a line matches in one way only. Text inserted
    # into a line becomes part of its id, where it is not valid JSON.
    r'(?:,"id":(?P<id>\d++|[ -~]+),"date":(?P<date>"[^"]*")'
    rf',"stake":"(?P<stake>-?{_NUMBER})","currency":"(?P<currency>[A-Z]{{3}})"'
    rf',"rate":"(?P<rate>{_NUMBER}(?:/{_NUMBER})?)","rate_date":"(?P<rate_date>{_DAY})"'
    rf',"provider":"{_TEXT}","eur":"(?P<eur>{_TEXT})"'
    r'|,"lost":(?P<lost>[1-9]\d{0,17}))(?:,"hash":"(?P<hash>[0-9a-f]{64})")?\}'.encode()
)
"""A whole line, without its line end."""


class Head(NamedTuple):
    """A line's number and hash: the position of a chain."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


START: Final = Head(0, "0" * 64)  # before the first line


class Chain:
    """Makes the lines of a trail.

    The chain goes on after `head`, by default from its beginning. `started`, an aware UTC time, is
    that of the process, which the first line tells. `head` is always that of the last line made.
    """

    def __init__(self, head: Head = START, started: datetime | None = None) -> None:
        self.head = head
        self._started = "" if started is None else f',"started":"{wire_time(started)}"'
        # Texts by the identity of the rate, or by the day of a request in euro. An entry holds the
        # rate, so that its identity is not used again.
        self._prices: dict[int | date, tuple[str, Rate | None]] = {}

    def conversions(self, records: Sequence[Converted]) -> bytes:
        """The lines of conversions, in their order. An exception leaves the chain as it was."""
        # A line takes some 2 µs, which is most of what a trail costs the service; 0.8 of them are
        # SHA-256. So there is one pass, and no call that has no need to be there.
        number, digest = self.head
        started, prices = self._started, self._prices
        lines = []
        at = None
        for request, eur, rate, replied in records:
            if replied is not at:  # conversions that were made together have one time
                at, when = replied, wire_time(replied)
            kept = prices.get(request.instant.date() if rate is None else id(rate))
            price = kept[0] if kept is not None else self._make_price(request, rate)
            raw, stake = request.id.decode(), str(request.stake)
            if "E" in stake:
                stake = format(request.stake, "f")
            number += 1
            text = (
                f'{{"n":{number},"prev":"{digest}"{started},"at":"{when}",'
                f'"id":{raw if raw.isascii() and raw.isprintable() else printable(raw)},'
                # A valid date is printable ASCII.
                f'"date":{request.date.decode()},"stake":"{stake}{price}{eur}"'
            )
            digest, started = sha256(text.encode()).hexdigest(), ""
            lines.append(f'{text},"hash":"{digest}"}}\n')
        self.head, self._started = Head(number, digest), started
        return "".join(lines).encode()

    def loss(self, at: datetime, lines: int) -> bytes:
        """The line in place of `lines` lost ones, the first of them at `at`."""
        number = self.head.number + 1
        text = f'{{"n":{number},"prev":"{self.head.hash}"{self._started},"at":"{wire_time(at)}"'
        text += f',"lost":{lines}'
        self.head, self._started = Head(number, sha256(text.encode()).hexdigest()), ""
        return f'{text},"hash":"{self.head.hash}"}}\n'.encode()

    def _make_price(self, request: Request, rate: Rate | None) -> str:
        """What stands between the stake and its euros: it depends on the rate alone."""
        day = request.instant.date()
        facts: tuple[object, ...] = ("EUR", "1", day, "none")
        if rate is not None:
            facts = (rate.currency, rate.text, rate.day, rate.provider)
        form = '","currency":"{}","rate":"{}","rate_date":"{}","provider":"{}","eur":"'
        price = form.format(*facts)
        if len(self._prices) >= MOST_PRICES:
            self._prices.clear()
        self._prices[day if rate is None else id(rate)] = price, rate
        return price


def find_head(path: Path) -> Head:
    """The head from which the chain in this file continues.

    It is in the file itself, or else in the newest file beside it that holds one and whose
    name goes on with "." or "-", such as `audit.jsonl.1`, `audit.jsonl-20240101` or
    `audit.jsonl.2.gz`; without any, `START`. Raises OSError if a file cannot be read.
    """
    beside = (f"{path.name}.", f"{path.name}-")
    found: list[tuple[int, Path]] = []
    with suppress(OSError):  # the directory cannot be listed
        for file in path.parent.iterdir():
            if file.name.startswith(beside):
                with suppress(OSError):  # it was moved meanwhile, or is a link to nothing
                    found.append((file.stat().st_mtime_ns, file))
    files = [file for _, file in sorted(found, reverse=True)]
    for text in (text for file in (path, *files) for text in reversed(_last_lines(file))):
        line = LINE.fullmatch(text.removesuffix(b"\n"))
        if line and line["hash"]:
            return Head(int(line["n"]), line["hash"].decode())
    return START


def _last_lines(path: Path) -> deque[bytes]:
    """The last lines of a regular file, unpacked; none of others."""
    about = path.stat()
    packed = path.suffix == ".gz"
    if not stat.S_ISREG(about.st_mode):
        return deque()
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            if not packed:
                file.seek(max(0, about.st_size - TAIL))
            return deque(file, maxlen=LAST)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return deque()  # not whole yet: it is being made from a file that is still there


_WHITE: Final = str.maketrans("\t\n\r", "   ")
_OTHERS: Final = re.compile("[^ -~]+")


def printable(raw: str) -> str:
    """Raw JSON as the same JSON in printable ASCII.

    Tabs and line ends can only be white space between tokens, as JSON escapes them in
    strings. All other characters outside printable ASCII are in strings.
    """
    # JSON escapes, one for each UTF-16 code unit.
    return _OTHERS.sub(
        lambda found: "\\u" + found[0].encode("utf-16-be").hex("u", 2).replace("u", "\\u"),
        raw.translate(_WHITE),
    )
