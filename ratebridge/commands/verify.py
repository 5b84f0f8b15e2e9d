"""The command `verify`: checks an audit trail by exact arithmetic and by its hash chain.

A line is true if it has the service's format, its euros follow from its stake and rate, its rate
is of a day that its date allows, and its hash matches its content. A trail is true if every line
is, and each continues from the one before it, from number 1 on. `operating/trail` defines the
lines and the chain.

Lines of an older release have a checksum instead, and no chain. They may come before the chain.

A line that was cut short, by a kill or a full disk, is not part of the trail and not an error if
the next line continues from the last whole one. At the end of the trail it is an error.
"""

import argparse
import gzip
import os
import re
import stat
import sys
import zlib
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from datetime import date, timedelta
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from time import monotonic
from typing import Any, BinaryIO, Final, Literal, NamedTuple, TextIO, cast

import msgspec

from ..conversion import QUOTE_DIGITS, QUOTE_MIN, is_quote, plain, to_euro
from ..dates import BadDate, parse_instant
from ..errors import BadSettings
from ..messages import clipped, parse_stake
from ..operating.trail import MOST_LINE, START, Head
from ..rates import MAX_DAYS_BACK
from .options import COUNT, add_command

LISTED: Final = 10  # lines of each kind that are listed
SHOWN_EVERY: Final = 0.2  # s between updates of the progress
MOST_GAPS: Final = 1000  # remembered, to tell a moved line from a duplicate

# `lost`: a true line in place of lost ones; `unproven`: right, but without a hash.
Kind = Literal["true", "lost", "false", "unproven", "unreadable", "cut"]


class Link(NamedTuple):
    """A line's place in the chain: its own head, and the hash of the line before it."""

    number: int
    hash: str
    prev: str


class Judged(NamedTuple):
    """The result for one line: its kind, half a sentence on why, its link, its count of lost lines.

    A true line without a link is of an older release.
    """

    kind: Kind
    why: str = ""
    link: Link | None = None
    lost: int = 0


class _Fault(Exception):
    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


# No member after the id can hold a quote, so a line matches in one way only. Text inserted into a
# line becomes part of its id, where it is not valid JSON.
def _shape(*members: str) -> re.Pattern[bytes]:
    return re.compile(rf"\{{{','.join(members)}\}}".encode(), re.DOTALL)


def _texts(*names: str) -> str:
    return ",".join(rf'"{name}":"(?P<{name}>[ !#-\[\]-~]*)"' for name in names)


_BEGIN: Final = r'(?:"n":(?P<n>[1-9]\d{0,17}),"prev":"(?P<prev>[0-9a-f]{64})",)?' + _texts("at")
_END: Final = r'(?:,"hash":"(?P<hash>[0-9a-f]{64})")?'
_DATE: Final = r'"date":(?P<date>"(?:[^"\\]|\\.)*")'
_CONVERSION: Final = _shape(
    _BEGIN,
    '"id":(?P<id>[ -~]+)',
    _DATE,
    _texts("stake", "currency", "rate", "rate_date", "provider", "eur") + _END,
)
_LOSS: Final = _shape(_BEGIN, r'"lost":(?P<lost>[1-9]\d{0,17})' + _END)
_OLD: Final = _shape(
    _texts("at"),
    '"id":(?P<id>.+)',
    _texts("currency", "stake", "eur", "rate", "rate_date"),
    _DATE,
    _texts("provider") + r'(?:,"crc":"(?P<crc>[0-9a-f]{8})")?',
)

_raw = msgspec.json.Decoder(msgspec.Raw).decode
_string = msgspec.json.Decoder(str).decode
# Decimals: a quote has 34 digits, the first in the tenth place or before.
_PLACES: Final = QUOTE_DIGITS - 1 - QUOTE_MIN.adjusted()
_NUMBER: Final = re.compile(rf"-?\d{{1,35}}(\.\d{{1,{_PLACES}}})?", re.ASCII)
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def judge(text: bytes) -> Judged:
    """Check a line (without its line end) by itself."""
    try:
        return _judge(text)
    except _Fault as fault:
        return Judged(fault.kind, fault.text)


def _judge(text: bytes) -> Judged:
    if len(text) >= MOST_LINE:
        raise _Fault("unreadable", "is too long for a line of an audit file")
    if found := _CONVERSION.fullmatch(text):
        _check_facts(found)
        return Judged("true", link=_check_hash(found))
    if found := _LOSS.fullmatch(text):
        _check_at(found)
        lost = int(found["lost"])
        return Judged("lost", f"stands for {_lines(lost)} lost", _check_hash(found), lost)
    if found := _OLD.fullmatch(text):
        _check_facts(found)
        _check_sum(found)
        return Judged("true")
    if _was_cut(text):
        raise _Fault("cut", f"was cut short after {len(text)} bytes")
    raise _Fault("unreadable", f"is no line of an audit file: {clipped(text)}")


def _was_cut(text: bytes) -> bool:
    """Whether a text is the beginning of a line, without at least its closing brace."""
    if not text or text.endswith(b"}"):
        return False
    if not any(text[: len(begin)] == begin[: len(text)] for begin in (b'{"n":', b'{"at":"')):
        return False
    # A whole line with its last byte altered, or one byte added, was not cut.
    whole = (text[:-1], text[:-1] + b"}")
    found = [shape.fullmatch(line) for shape in (_CONVERSION, _LOSS, _OLD) for line in whole]
    return not any(match and match.lastgroup in ("hash", "crc") for match in found)


def _check_facts(found: re.Match[bytes]) -> None:
    _check_at(found)
    try:
        _raw(found["id"])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _unreadable("id", found["id"], "a JSON value") from None
    names = ("currency", "stake", "eur", "rate", "rate_date")
    currency, stake, eur, rate, rate_date = (part.decode() for part in found.group(*names))
    _check_amounts(currency, stake, eur, rate)
    _check_days(found["date"], rate_date)


def _check_at(found: re.Match[bytes]) -> None:
    try:
        parse_instant(found["at"].decode())
    except BadDate:
        raise _unreadable("at", found["at"], "a date") from None


def _check_amounts(currency: str, stake: str, eur: str, rate: str) -> None:
    try:
        amount = parse_stake(_number(stake))
    except ValueError:
        raise _unreadable("stake", stake, "a number in range") from None
    try:
        units, euro = _quotes(rate)
    except ValueError:
        raise _unreadable("rate", rate, "a rate in range") from None
    if currency == "EUR" and units != euro:
        raise _Fault("false", f"differs: rate is {clipped(rate)}, should be 1 for EUR")
    should_be = plain(to_euro(amount, units, euro))
    if eur != should_be:
        raise _Fault(
            "false",
            f"differs: eur is {clipped(eur)}, should be {should_be} ("
            f"{clipped(stake)} {clipped(currency)} at {clipped(rate, 100)} a euro)",
        )


def _number(text: str) -> str:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError
    return text


@lru_cache(4096)  # many lines share few rates
def _quotes(text: str) -> tuple[Decimal, Decimal]:
    """Units and euro of "units" or "units/euro"."""
    units, slash, euro = text.partition("/")
    quotes = Decimal(_number(units)), Decimal(_number(euro) if slash else 1)
    if not all(map(is_quote, quotes)):
        raise ValueError
    return quotes


def _check_days(asked: bytes, rate_date: str) -> None:
    try:
        day = parse_instant(_string(asked)).date()
    except (msgspec.DecodeError, UnicodeDecodeError, BadDate):
        raise _unreadable("date", asked, "a date") from None
    try:
        rate_day = _day(rate_date)
    except ValueError:
        raise _unreadable("rate_date", rate_date, "a day") from None
    # One day more, for a peer's clock that is ahead of ours about midnight.
    oldest = day - timedelta(days=MAX_DAYS_BACK + 1)
    if not oldest <= rate_day <= day:
        raise _Fault("false", f"differs: rate_date is {rate_day}, should be from {oldest} to {day}")


@lru_cache(4096)
def _day(text: str) -> date:
    if _DAY.fullmatch(text) is None:
        raise ValueError
    return date.fromisoformat(text)


def _check_hash(found: re.Match[bytes]) -> Link:
    if found["n"] is None or found["hash"] is None:
        raise _Fault("unproven", "is not proven: it has no hash, or no place in the chain")
    covered = found.string[: found.start("hash") - len(',"hash":"')]
    link = Link(int(found["n"]), sha256(covered).hexdigest(), found["prev"].decode())
    if found["hash"].decode() != link.hash:
        raise _Fault("false", "was altered: its hash is not that of its content")
    return link


def _check_sum(found: re.Match[bytes]) -> None:
    """The checksum is the CRC-32 of the nine values, joined by line ends."""
    if found["crc"] is None:
        raise _Fault("unproven", "is not proven: it has neither a hash nor a checksum")
    names = ("at", "id", "currency", "stake", "eur", "rate", "rate_date", "date", "provider")
    if found["crc"] != b"%08x" % zlib.crc32(b"\n".join(found.group(*names))):
        raise _Fault("false", "was altered: its checksum is not that of its content")


def _unreadable(name: str, value: str | bytes, expected: str) -> _Fault:
    return _Fault("unreadable", f"cannot be checked: {name} {clipped(value)} is not {expected}")


def _lines(count: int) -> str:
    return f"{count:,} {'line' if count == 1 else 'lines'}"


class Trail:
    """The chain over all lines: finds missing, moved and duplicated ones.

    The trail may begin with number `first`, or after one of the `heads`, which are
    known from elsewhere. The counts are of lines.
    """

    def __init__(self, first: int = 1, heads: Collection[Head] = ()) -> None:
        self._first = first
        self._not_found = set(heads)
        self._unplaced = 0  # bad lines since the last good one; they may fill the gap
        self._gaps: deque[range] = deque(maxlen=MOST_GAPS)
        self._first_hash = ""
        self.proven = 0  # the greatest number of a head that was found
        self.began = 0  # the number of the first line; 0 before it
        self.head = START  # of the last line in its place
        self.missing = 0
        self.misplaced = 0
        self.unbound = 0  # lines that do not continue from the one before
        self.ends_cut = False

    @property
    def not_found(self) -> list[Head]:
        """The heads that were not found."""
        return sorted(self._not_found)

    @property
    def whole(self) -> bool:
        """Whether every line is in its place, and every head was found."""
        return not (
            self.missing or self.misplaced or self.unbound or self.ends_cut or self._not_found
        )

    def follow(self, judged: Judged) -> tuple[Judged, str]:
        """Take the next line; returns it as judged here, and half a sentence on a broken link."""
        self.ends_cut = judged.kind == "cut"
        if judged.link is not None:
            return judged, self._place(judged.link)
        if judged.kind == "true" and self.began:
            judged = Judged("unproven", "is not proven: it stands in the chain and has no hash")
        if judged.kind not in ("true", "cut"):
            self._unplaced += 1
        return judged, ""

    def _place(self, link: Link) -> str:
        number, digest, prev = link
        self._find(Head(number, digest))
        if not self.began:
            return self._begin(link)
        if number == 1 and digest != self._first_hash and self._first_hash:
            self._gaps.clear()
            self.unbound += 1
            self._first_hash = digest
            self._go_on(link)
            return "begins a new chain: nothing binds it to the lines before it"
        if number <= self.head.number:
            return self._misplace(number)
        before = self.head
        skipped = number - before.number - 1 - self._unplaced
        self._go_on(link)
        if skipped > 0:
            self._miss(range(before.number + 1, number), skipped)
            return f"is number {number}: {_lines(skipped)} missing behind number {before.number}"
        if number == before.number + 1 and prev != before.hash:
            self.unbound += 1
            return (
                f"does not go on from number {before.number}: "
                "that line or this one was put in the place of another"
            )
        return ""

    def _begin(self, link: Link) -> str:
        number, digest, prev = link
        self.began = number
        skipped = number - self._first - self._unplaced
        anchored = self._find(Head(number - 1, prev))
        if number == 1:
            self._first_hash = digest
        self._go_on(link)
        if skipped > 0 and not anchored:
            self._miss(range(1, number), skipped)
            return f"begins late: it is number {number}, and those before it are not here"
        if number == 1 and prev != START.hash:
            self.unbound += 1
            return "has number 1, and goes on from another line"
        return ""

    def _find(self, head: Head) -> bool:
        if head not in self._not_found:
            return False
        self._not_found.remove(head)
        self.proven = max(self.proven, head.number)
        return True

    def _go_on(self, link: Link) -> None:
        self.head = Head(link.number, link.hash)
        self._unplaced = 0

    def _miss(self, gap: range, lines: int) -> None:
        self._gaps.append(gap)
        self.missing += lines

    def _misplace(self, number: int) -> str:
        self.misplaced += 1
        for gap in self._gaps:
            if number in gap:
                self._gaps.remove(gap)
                self._gaps.extend((range(gap.start, number), range(number + 1, gap.stop)))
                self.missing = max(0, self.missing - 1)
                return f"was moved: it is number {number}, behind number {self.head.number}"
        return f"is doubled: number {number} was there before"


def lines_of(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The lines without their ends, and the bytes of each; too long a line is truncated."""
    while text := file.readline(MOST_LINE):
        size = len(text)
        rest = text
        while len(rest) == MOST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MOST_LINE)
            size += len(rest)
        yield text.removesuffix(b"\n"), size


def run_verify(names: Sequence[str], heads: Sequence[str] = (), first: int = 1) -> int:
    """Check the trail in the files with these names, "-" for standard input; the exit code.

    `heads` are "N:HASH". Raises `BadSettings` for a bad head, and for a file that
    cannot be opened.
    """
    known = [_read_head(text) for text in heads]
    with ExitStack() as files:
        parts = []
        sizes: list[int | None] = []
        for name in names:
            file, size = _open(name, files)
            parts.append((clipped(name, 200) if len(names) > 1 else "", file))
            sizes.append(size)
        known_sizes = [size for size in sizes if size is not None]
        total = sum(known_sizes) if len(known_sizes) == len(sizes) else None
        return verify(parts, total, sys.stdout, sys.stderr, Trail(first, known))


def _read_head(text: str) -> Head:
    found = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text, re.ASCII)
    if found is None:
        raise BadSettings(
            f"--head {clipped(text, 100)}: expected a number, a colon and 64 hex digits"
        )
    return Head(int(found[1]), found[2])


def _open(name: str, files: ExitStack) -> tuple[BinaryIO, int | None]:
    """The file with that name, and its size if known."""
    if name == "-":
        return sys.stdin.buffer, None
    try:
        file = files.enter_context(open(name, "rb"))  # noqa: PTH123, SIM115 - any name, closed
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not the name of a file"
        raise BadSettings(f"{clipped(name, 200)}: {why}") from None
    if name.endswith(".gz"):
        return cast("BinaryIO", files.enter_context(gzip.open(file, "rb"))), None
    about = os.fstat(file.fileno())
    return file, about.st_size if stat.S_ISREG(about.st_mode) else None


def verify(
    parts: Sequence[tuple[str, BinaryIO]],
    size: int | None,
    out: TextIO,
    terminal: TextIO,
    trail: Trail | None = None,
) -> int:
    """Check all lines of a trail in files of `size` bytes in all (None: unknown).

    Each part is a file and its name in the output. Returns the exit code.
    """
    trail = trail or Trail()
    told: Counter[str] = Counter()
    counts: Counter[Kind] = Counter()
    old = lost = 0
    progress = _Progress(size, terminal)
    failures = ""

    def tell(name: str, number: int, sort: str, why: str) -> None:
        told[sort] += 1
        if told[sort] <= LISTED:
            progress.clear()
            print(f"{name}{': ' if name else ''}line {number} {why}", file=out)

    for name, file in parts:
        try:
            for number, (text, taken) in enumerate(lines_of(file), 1):
                judged, lack = trail.follow(judge(text))
                counts[judged.kind] += 1
                lost += judged.lost
                old += judged.kind == "true" and judged.link is None
                if judged.why:
                    tell(name, number, judged.kind, judged.why)
                if lack:
                    tell(name, number, "place", lack)
                progress.advance(taken)
        except SystemExit:  # by a signal, see `cli`
            progress.clear()
            print("Stopped before the end of the trail: it is not verified.", file=out)
            raise
        except (OSError, EOFError, zlib.error) as error:
            why = (isinstance(error, OSError) and error.strerror) or "it is damaged"
            failures += f"{name or 'The file'} could not be read to its end: {why}.\n"
    progress.clear()
    bad = counts["false"] + counts["unproven"] + counts["unreadable"]
    failed = bool(failures or bad or not counts or not trail.whole)
    print(_summary(counts, old, lost) + failures + _chain(trail, failed), end="", file=out)
    return 1 if failed else 0


def _summary(counts: Counter[Kind], old: int, lost: int) -> str:
    kinds = [
        (counts["true"] + counts["lost"], "true"),
        (counts["false"], "false"),
        (counts["unproven"], "not proven"),
        (counts["unreadable"], "unreadable"),
        (counts["cut"], "cut short"),
    ]
    found = ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)
    summary = f"{_lines(counts.total())} checked: {found or 'an empty trail shows nothing'}.\n"
    if lost:
        summary += f"{_lines(lost)} lost before they were written, as the trail itself tells.\n"
    if old:
        summary += (
            f"{old:,} of the true are of an older release: no chain binds them, "
            "so missing, duplicated and moved ones among them are not found.\n"
        )
    return summary


def _chain(trail: Trail, failed: bool) -> str:
    """What the chain proves, and what it cannot prove."""
    text = ""
    last = trail.head.number
    if trail.ends_cut:
        text += "The trail ends early: its last line is cut short.\n"
    for head in trail.not_found:
        what = "ends early, before" if head.number > last else "is another one, without"
        text += f"The trail {what} the head {head}.\n"
    lacks = [
        (trail.missing, "missing"),
        (trail.misplaced, "doubled or moved"),
        (trail.unbound, "not bound to the line before"),
    ]
    if found := ", ".join(f"{_lines(count)} {what}" for count, what in lacks if count):
        text += f"The chain is broken: {found}.\n"
    if failed or not trail.began:
        return text
    text += f"The chain is whole from number {trail.began} to its head {trail.head}\n"
    if trail.proven:
        text += f"By the heads given, it is proven up to number {trail.proven}.\n"
    if trail.proven < last:
        text += (
            "The chain cannot show whether later lines are missing or all of it was written anew. "
            "To find out, give a head from the log (--head).\n"
        )
    return text


class _Progress:
    """The progress on a terminal; nothing elsewhere."""

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
        """Clear the line for a line of output."""
        if self._terminal is not None and self._shown:
            print("\r\x1b[K", end="", file=self._terminal, flush=True)
            self._shown = False


def declare(commands: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "verify",
        run,
        "recomputes every line of an audit trail and its hash chain",
        ("ratebridge verify audit.jsonl", "a trail in one file"),
        (
            "ratebridge verify audit.jsonl.2.gz audit.jsonl.1 audit.jsonl",
            "in several, oldest first",
        ),
        (
            "ratebridge verify --head 1200:9f86... audit.jsonl",
            "does it hold the line that the log names?",
        ),
        description="Recomputes every line of an audit trail and its hash chain. Reports each line "
        "that is\naltered, missing, duplicated, moved or without its hash, and where.\n\n"
        "Exit codes: 0 every line is true and in its place and every head was found; 1 anything\n"
        "else, such as an empty trail, or one that begins late or ends in a line cut short; 2 bad\n"
        "usage, or a file that cannot be opened; 130 or 143 interrupted.\n\n"
        "Only a head shows that the last lines are missing, or that the whole trail was written\n"
        "anew. A head is the number and hash of a line; the log has one as audit_head each minute.",
    )
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="an audit file; gzipped if its name ends in .gz; - for standard input",
    )
    parser.add_argument(
        "--head",
        metavar="N:HASH",
        action="append",
        default=[],
        help="number and hash of a line that must be in the trail; can be repeated",
    )
    parser.add_argument(
        "--from",
        dest="first",
        metavar="N",
        type=COUNT,
        default=1,
        help="the number that the trail may begin with if older files are gone (default: 1)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    return run_verify(options.files, options.head, options.first)
