"""Recomputes every line of an audit trail and its hash chain.

Reports each line that is altered, missing, duplicated, moved or without its hash, and where.

A line is true if it has the format that `operating/trail` defines, its euros follow from its
stake and rate, its rate is of a day that its date allows, and its hash is that of its content.
A trail is true if every line is, and each continues from the one before it, from number 1 on.
A line that a kill or a power cut left unfinished is no part of the trail. It is reported, and
no error if the next line continues from the last whole one; at the end it is one.

Exit codes: 0 every line is true and in its place and every head was found; 1 anything
else, such as an empty trail, or one that begins late or ends in a line cut short; 2 bad
usage, or a file that cannot be opened; 130 or 143 interrupted.

Only a head shows that the last lines are missing, or that the whole trail was written
anew. A head is the number and hash of a line; the log has one as audit_head each minute.
"""

import argparse
import gzip
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import date
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from io import TextIOWrapper
from typing import Any, BinaryIO, Final, TypeAlias, cast

import msgspec

from ..conversion import is_quote, plain, to_euro
from ..dates import parse_instant
from ..errors import BadSettings
from ..messages import clipped, parse_stake
from ..operating.trail import LINE, MOST_LINE, START, Head
from ..rates import MAX_DAYS_BACK
from .options import COUNT, FILE, add_command

LISTED: Final = 10  # problems of each kind that are listed
# Days; one more than usual, for a peer's clock that is ahead of ours about midnight.
OLDEST: Final = MAX_DAYS_BACK + 1
HASH: Final = -len(',"hash":""}') - 64  # of a line's bytes: where its hash begins
EXCUSED: Final = {"cut short", "lost"}  # kinds of problems that do not make a trail false

_raw = msgspec.json.Decoder(msgspec.Raw).decode
_string = msgspec.json.Decoder(str).decode
_rate_day = lru_cache(4096)(date.fromisoformat)


@lru_cache(4096)  # lines of one batch share their time
def _day(raw: bytes) -> date:
    """The UTC day of a JSON string that is an instant, as the service reads it."""
    return parse_instant(_string(raw)).date()


@lru_cache(4096)  # many lines share few rates
def _quotes(text: bytes) -> tuple[Decimal, Decimal]:
    """Units and euro of "units" or "units/euro"."""
    units, _, euro = text.decode().partition("/")
    quotes = Decimal(units), Decimal(euro or 1)
    if not all(map(is_quote, quotes)):
        raise ValueError
    return quotes


def judge(line: re.Match[bytes]) -> tuple[str, str] | None:
    """What is wrong with the facts of a line that `LINE` has matched: a kind, and the problem.

    None if they are true.
    """
    _, _, _, at, raw_id, asked, stake, currency, rate, rate_date, eur, lost, _ = line.groups()
    name = "at"
    try:
        _day(at)
        if lost:
            return None
        name = "id"
        _raw(raw_id)
        name = "date"
        day = _day(asked)
        name = "stake"
        amount = parse_stake(stake.decode())
        name = "rate"
        units, euro = _quotes(rate)
        name = "rate_date"
        rate_day = _rate_day(rate_date.decode())
    except (ValueError, RecursionError, msgspec.DecodeError):
        return "unreadable", f"cannot be checked: {name} is {clipped(line[name])}"
    should_be = plain(to_euro(amount, units, euro))
    if eur != should_be.encode():
        of = f"{clipped(stake)} {clipped(currency)} at {clipped(rate, 100)} a euro"
        return "false", f"differs: eur is {clipped(eur)}, should be {should_be} ({of})"
    if currency == b"EUR" and units != euro:
        return "false", f"differs: rate is {clipped(rate)}, should be 1 for EUR"
    if not 0 <= (day - rate_day).days <= OLDEST:
        return "false", f"differs: rate_date is {rate_day}, not up to {OLDEST} days before {day}"
    return None


Place: TypeAlias = tuple[str | None, int | None]
"""A file and the number of a line in it, where there is one."""


class Trail:
    """The verification of a trail, line by line.

    The trail may begin with number `first`, or after one of the `heads`, which are known from
    elsewhere and have to be in it. `lines` and `starts` count what was read, and `counts` the
    lines by the kind of their problem; `problems` has the first `LISTED` of each kind, as JSON
    shows them: kind, file, line, problem. `head` is that of the last line with its hash.
    """

    def __init__(self, first: int, heads: Collection[Head]) -> None:
        self.heads = heads
        self.not_found = set(heads)
        self.lines = self.starts = 0  # lines, and starts of the service among them
        self.counts: Counter[str] = Counter()
        self.problems: list[dict[str, Any]] = []  # as JSON shows them
        self.began = 0  # the number of the first line; 0 before it
        self.head = START  # of the last line that has its hash
        self._first = first
        self._number = 0  # of the last line in its place
        self._prev: bytes | None = None  # what follows it has to have, if known
        self._unplaced = 0  # unreadable lines since then: they may fill a gap
        self._ends_cut = False

    def tell(self, kind: str, problem: str, at: Place = (None, None), lines: int = 1) -> None:
        """Count `lines` that have a problem, and list it, with its place."""
        self.counts[kind] += lines
        if sum(found["kind"] == kind for found in self.problems) < LISTED:
            file, line = at
            self.problems.append({"kind": kind, "file": file, "line": line, "problem": problem})

    def take(self, text: bytes, at: Place) -> None:
        """Check the next line of the trail, without its line end, which stands at `at`."""
        self.lines += 1
        self._ends_cut = False
        if line := LINE.fullmatch(text):
            if fault := judge(line):
                self.tell(*fault, at)
            self._place(line, at)
            return
        begin = text.rstrip(b"\0")
        if text and begin[-1:] != b"}" and begin[:5] == b'{"n":'[: len(begin)]:
            self._ends_cut = True
            zeros = len(text) - len(begin)
            behind = f"; {zeros:,} NUL bytes follow, as after a power cut" if zeros else ""
            self.tell("cut short", f"was cut short after {len(begin)} bytes{behind}", at)
        else:
            self._unplaced += 1
            self.tell("unreadable", f"is no line of an audit file: {clipped(text)}", at)

    def _place(self, line: re.Match[bytes], at: Place) -> None:
        """Find the line's place in the chain."""
        n, prev, started, *_, lost, digest = line.groups()
        number = int(n)
        if not self.began:
            self.began = number
            before = Head(number - 1, (prev or b"").decode())
            self.not_found.discard(before)
            self._number = number - 1 if before in self.heads else min(number, self._first) - 1
            self._prev = START.hash.encode() if number == 1 else None
        elif number == 1:
            self._number, self._prev = 0, None
            self.tell("not bound", "begins a new chain: nothing binds it to those before it", at)
        if number <= self._number:
            what = f"is doubled or moved: it is number {number}, behind number {self._number}"
            self.tell("doubled or moved", what, at)
            return
        skipped = number - self._number - 1 - self._unplaced
        if skipped > 0:
            what = f"is number {number}: {_lines(skipped)} missing before it"
            self.tell("missing", what, at, skipped)
        if not prev:
            self.tell("not proven", "is not proven: it has no hash of the line before", at)
        elif number == self._number + 1 and self._prev not in (None, prev):
            self.tell("not bound", "does not go on from the line before: one was replaced", at)
        self._number, self._unplaced = number, 0
        if started:
            self.starts += 1
        if lost:
            self.tell("lost", f"stands for {_lines(int(lost))} lost", at, int(lost))
        self._prev = None
        if not digest:
            self.tell("not proven", "is not proven: the hash is missing", at)
        elif sha256(line.string[:HASH]).hexdigest().encode() != digest:
            self.tell("altered", "was altered: the hash is not that of the content", at)
        else:
            self._prev = digest
            self.head = Head(number, digest.decode())
            self.not_found.discard(self.head)

    def end(self) -> bool:
        """Take the end of the trail; whether the trail is true."""
        if not self.lines:
            self.tell("wrong end", "an empty trail shows nothing")
        if self._ends_cut:
            self.tell("wrong end", "the trail ends early: its last line is cut short")
        for head in sorted(self.not_found):
            what = "ends early, before" if head.number > self._number else "is another one, without"
            self.tell("wrong end", f"the trail {what} the head {head}")
        return self.counts.keys() <= EXCUSED


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without their ends. Of too long a line, only the beginning is kept."""
    while text := file.readline(MOST_LINE):
        rest = text
        while len(rest) == MOST_LINE and rest[-1:] != b"\n":
            rest = file.readline(MOST_LINE)
        yield text.removesuffix(b"\n")


def verify(trail: Trail, files: Iterable[tuple[str, BinaryIO]]) -> bool:
    """Take all lines of the files, each with its name, oldest first; whether the trail is true."""
    for name, file in files:
        number = 0
        try:
            for number, text in enumerate(lines_of(file), 1):
                trail.take(text, (name, number))
        except (OSError, EOFError, zlib.error) as error:
            why = (isinstance(error, OSError) and error.strerror) or "the file is damaged"
            trail.tell("not read", f"cannot be read: {why}", (name, number + 1))
    return trail.end()


def run_verify(
    names: Sequence[str], heads: Sequence[str] = (), first: int = 1, *, as_json: bool = False
) -> int:
    """Check the trail in the files with these names, "-" for standard input; the exit code.

    `heads` are "N:HASH", `first` is the number that the trail may begin with. Prints a report,
    for people or as one JSON document. Raises `BadSettings` for a bad head, and for a file that
    cannot be opened.
    """
    known = [re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text, re.ASCII) for text in heads]
    if not all(known):
        raise BadSettings("--head: expected a number, a colon and 64 hex digits")
    trail = Trail(first, [Head(int(found[1]), found[2]) for found in known if found])
    with ExitStack() as stack:
        is_true = verify(trail, [(name, _open(name, stack)) for name in names])
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # it may be unable to show a name
    if as_json:
        counts = {"ok": is_true, "lines": trail.lines, "starts": trail.starts}
        head = str(trail.head) if trail.head.number else None
        print(json.dumps({**counts, "head": head, "problems": trail.problems}))
    else:
        print(*_report(trail, is_true, many=len(names) > 1), sep="\n")
    return 0 if is_true else 1


def _open(name: str, stack: ExitStack) -> BinaryIO:
    if name == "-":
        return sys.stdin.buffer
    try:
        file = stack.enter_context(open(name, "rb"))  # noqa: PTH123, SIM115 - any name, closed
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not the name of a file"
        raise BadSettings(f"{clipped(name, 200)}: {why}") from None
    if name.endswith(".gz"):
        return cast("BinaryIO", stack.enter_context(gzip.open(file, "rb")))
    return file


def _report(trail: Trail, is_true: bool, *, many: bool) -> Iterator[str]:
    """The lines for people; they name the file where there are `many`."""
    for found in trail.problems:
        name = f"{clipped(found['file'], 200)}: " if found["file"] and many else ""
        yield name + (f"line {found['line']} " if found["line"] else "") + found["problem"]
    counts = ", ".join(f"{count:,} {kind}" for kind, count in trail.counts.items())
    yield f"{_lines(trail.lines)} checked: {counts or 'all are true'}. Starts: {trail.starts:,}."
    if is_true:
        yield f"The chain is whole from number {trail.began} to its head {trail.head}"
        if trail.heads:
            yield f"By the heads given, it is proven up to number {max(trail.heads).number}."
        if trail.head not in trail.heads:
            yield "The chain cannot show whether later lines are missing or all of it was written"
            yield "anew. To find out, give the newest head of the log (--head)."


def _lines(count: int) -> str:
    return f"{count:,} {'line' if count == 1 else 'lines'}"


def declare(commands: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "verify",
        run,
        "recomputes every line of an audit trail and its hash chain",
        ("ratebridge verify audit.jsonl", "a trail in one file"),
        ("ratebridge verify audit.jsonl.1.gz audit.jsonl", "in several, oldest first"),
        ("ratebridge verify --head 1200:9f86... audit.jsonl", "does it hold the log's head?"),
        description=__doc__,
    )
    files = parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="an audit file; gzipped if its name ends in .gz; - for standard input",
    )
    files.complete = FILE  # type: ignore[attr-defined]
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
    parser.add_argument("--json", action="store_true", help="one JSON object with all problems")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    return run_verify(options.files, options.head, options.first, as_json=options.json)
