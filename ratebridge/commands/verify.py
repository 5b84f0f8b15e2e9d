"""The command `verify`: is every line of an audit file what exact arithmetic makes of it?

A line is true when its euros are those of its stake and rate, its rate is of a
day that its date may take, and its checksum is that of its content. A line that
lost its end, to a kill or a full disk, is no false one: it is counted and told.
"""

import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from functools import lru_cache
from time import monotonic
from typing import BinaryIO, Final, Literal, TextIO

import msgspec
from msgspec import Raw

from ..conversion import is_quote, plain, to_euro
from ..dates import BadDate, parse_instant
from ..errors import BadSettings
from ..messages import clipped, parse_stake
from ..operating.audit import checksum
from ..rates import MAX_DAYS_BACK

MOST_LINE: Final = 128 * 1024  # bytes; an id, the only part without a bound of its own, has 64 KiB
LISTED: Final = 10  # lines of each kind that are told one by one
SHOWN_EVERY: Final = 0.2  # s between two updates of the progress

Kind = Literal["true", "bare", "false", "unreadable", "cut"]  # bare: true, without a checksum


class _Line(msgspec.Struct):
    at: str
    id: Raw
    currency: str
    stake: str
    eur: str
    rate: str
    rate_date: str
    date: Raw
    provider: str
    crc: str | None = None


_line = msgspec.json.Decoder(_Line).decode
_string = msgspec.json.Decoder(str).decode
_NUMBER: Final = re.compile(r"-?\d{1,40}(\.\d{1,40})?", re.ASCII)
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class _Fault(Exception):
    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


def judge(text: bytes) -> tuple[Kind, str]:
    """What a line, without its end, is, and half a sentence on why."""
    try:
        line = _read(text)
        _check_amounts(line)
        _check_dates(line)
        _check_sum(line)
    except _Fault as fault:
        return fault.kind, fault.text
    return ("bare" if line.crc is None else "true"), ""


def _read(text: bytes) -> _Line:
    if len(text) >= MOST_LINE:
        raise _Fault("unreadable", "is too long for a line of an audit file")
    try:
        return _line(text)
    except msgspec.ValidationError as error:
        raise _Fault(
            "unreadable", f"is no line of an audit file: {clipped(str(error), 120)}"
        ) from None
    except (msgspec.DecodeError, RecursionError):
        # What was cut begins as a line does, and lacks the brace that ends one.
        if text.startswith(b"{") and not text.endswith(b"}"):
            raise _Fault("cut", f"was cut short after {len(text)} bytes") from None
        raise _Fault("unreadable", f"is not JSON: {clipped(text)}") from None


def _check_amounts(line: _Line) -> None:
    try:
        stake = parse_stake(_number(line.stake))
    except ValueError:
        raise _unreadable("stake", line.stake, "a number in range") from None
    try:
        eur = Decimal(_number(line.eur))
    except ValueError:
        raise _unreadable("eur", line.eur, "a number") from None
    try:
        units, euro = _rate(line.rate)
    except ValueError:
        raise _unreadable("rate", line.rate, "a rate in range") from None
    if line.currency == "EUR" and units != euro:
        raise _Fault("false", f"differs: rate is {clipped(line.rate)}, should be 1 for EUR")
    should_be = to_euro(stake, units, euro)
    if eur != should_be:
        raise _Fault(
            "false",
            f"differs: eur is {clipped(line.eur)}, should be {plain(should_be)} ("
            f"{clipped(line.stake)} {clipped(line.currency)} at {clipped(line.rate, 80)} a euro)",
        )


def _number(text: str) -> str:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError
    return text


@lru_cache(4096)  # a file has many lines of few rates
def _rate(text: str) -> tuple[Decimal, Decimal]:
    """Units and euro of "units" or "units/euro"."""
    units, slash, euro = text.partition("/")
    quotes = Decimal(_number(units)), Decimal(_number(euro) if slash else 1)
    if not all(map(is_quote, quotes)):
        raise ValueError
    return quotes


def _check_dates(line: _Line) -> None:
    try:
        parse_instant(line.at)
    except BadDate:
        raise _unreadable("at", line.at, "a date") from None
    try:
        day = parse_instant(_string(line.date)).date()
    except (msgspec.DecodeError, BadDate):
        raise _unreadable("date", line.date, "a date") from None
    try:
        rate_day = _day(line.rate_date)
    except ValueError:
        raise _unreadable("rate_date", line.rate_date, "a day") from None
    # A peer's clock a little ahead of ours, about midnight, makes for one day more.
    oldest = day - timedelta(days=MAX_DAYS_BACK + 1)
    if not oldest <= rate_day <= day:
        raise _Fault("false", f"differs: rate_date is {rate_day}, should be from {oldest} to {day}")


@lru_cache(4096)
def _day(text: str) -> date:
    if _DAY.fullmatch(text) is None:
        raise ValueError
    return date.fromisoformat(text)


def _check_sum(line: _Line) -> None:
    if line.crc is None:
        return
    values = (
        line.at.encode(),
        bytes(line.id),
        line.currency.encode(),
        line.stake.encode(),
        line.eur.encode(),
        line.rate.encode(),
        line.rate_date.encode(),
        bytes(line.date),
        line.provider.encode(),
    )
    should_be = checksum(values).decode()
    if line.crc != should_be:
        raise _Fault(
            "false",
            f"differs: crc is {clipped(line.crc)}, should be {should_be} "
            "(the euros agree, so something else was altered)",
        )


def _unreadable(name: str, value: str | Raw, expected: str) -> _Fault:
    return _Fault("unreadable", f"cannot be checked: {name} {clipped(value)} is not {expected}")


def lines_of(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The lines without their ends, and how many bytes each took; of a monster its beginning."""
    while text := file.readline(MOST_LINE):
        size = len(text)
        rest = text
        while len(rest) == MOST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MOST_LINE)
            size += len(rest)
        yield text.rstrip(b"\r\n"), size


def run_verify(name: str) -> int:
    """Check the file with that name, "-" for standard input; 0 when no line is false, else 1."""
    if name == "-":
        return verify(sys.stdin.buffer, None, sys.stdout, sys.stderr)
    try:
        file = open(name, "rb")  # noqa: SIM115, PTH123 - closed below; a name may be any
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not the name of a file"
        raise BadSettings(f"{clipped(name, 200)}: {why}") from None
    with file:
        about = os.fstat(file.fileno())
        size = about.st_size if stat.S_ISREG(about.st_mode) else None
        return verify(file, size, sys.stdout, sys.stderr)


def verify(file: BinaryIO, size: int | None, out: TextIO, terminal: TextIO) -> int:
    """Check all lines of a file of `size` bytes, if that is known; the exit code."""
    counts: Counter[Kind] = Counter()
    progress = _Progress(size, terminal)
    trouble = None
    try:
        for number, (text, taken) in enumerate(lines_of(file), 1):
            kind, why = judge(text)
            counts[kind] += 1
            if why and counts[kind] <= LISTED:
                progress.clear()
                print(f"line {number} {why}", file=out)
            progress.advance(taken)
    except OSError as error:
        trouble = f"The file could not be read to its end: {error.strerror}."
    progress.clear()
    print(_summary(counts), file=out)
    if trouble:
        print(trouble, file=out)
    return 1 if trouble or counts["false"] or counts["unreadable"] else 0


def _summary(counts: Counter[Kind]) -> str:
    lines = counts.total()
    kinds = [
        (counts["true"] + counts["bare"], "true"),
        (counts["false"], "false"),
        (counts["unreadable"], "unreadable"),
        (counts["cut"], "cut short"),
    ]
    found = ", ".join(f"{count:,} {kind}" for count, kind in kinds if count) or "nothing in it"
    summary = f"{lines:,} {'line' if lines == 1 else 'lines'} checked: {found}."
    if counts["bare"]:
        summary += (
            f"\n{counts['bare']:,} of the true have no checksum: "
            "in those, a change that leaves the rounded euros as they are is not seen."
        )
    return summary


class _Progress:
    """How far it is, on a terminal; nothing elsewhere."""

    def __init__(self, size: int | None, terminal: TextIO) -> None:
        self._size = size
        self._terminal = terminal if terminal.isatty() else None
        self._lines = self._bytes = 0
        self._next = monotonic() + SHOWN_EVERY
        self._shown = False

    def advance(self, taken: int) -> None:
        if self._terminal is None:
            return
        self._lines += 1
        self._bytes += taken
        if monotonic() < self._next:
            return
        self._next = monotonic() + SHOWN_EVERY
        share = f"{min(1.0, self._bytes / self._size):4.0%}, " if self._size else ""
        print(f"\r{share}{self._lines:,} lines", end="", file=self._terminal, flush=True)
        self._shown = True

    def clear(self) -> None:
        """Make room for a line of the result."""
        if self._terminal is not None and self._shown:
            print("\r\x1b[K", end="", file=self._terminal, flush=True)
            self._shown = False
