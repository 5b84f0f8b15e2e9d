"""The audit trail's file: a line for every conversion, so that a rate can be shown years later.

`trail` says what a line is, and how the lines are chained. Lines are made in the service's own
thread, some at a time: a thread that competes for the interpreter costs more than it takes off.

When lines are safe: they are handed to the operating system every `FLUSH_EVERY` seconds, so that
a kill of the process loses no more than that. Nothing is synced to the disk: a crash of the whole
machine loses what the system had not written yet, by its defaults up to half a minute.

The chain goes on over the end of a file and of a process. A file that is moved is followed by a
new one, whose first line goes on from the last one of the old. At the start the last whole line of
the file tells the head; when the file is empty, that of the file that was moved away last and
stands beside it, `audit.jsonl.1` or `audit.jsonl-20240101`. What was compressed is not looked
into: behind it, and where nothing is found, a new chain begins. The file is locked while it is
open, as two processes would make two chains of it.

A line cut short (by a kill in the middle of a write, or a disk that filled up) stays alone on its
line, as the file is only ever appended to after a line's end. `verify` knows such lines.
"""

import errno
import fcntl
import os
import signal
import stat
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from functools import partial
from math import inf
from pathlib import Path
from typing import Final, NamedTuple

import trio

from ..errors import BadSettings
from ..messages import Request
from ..observer import Observer
from ..rates import Rate
from .trail import MOST_LINE, START, Chain, Head, Record, head_of

FLUSH_EVERY: Final = 0.25  # s; a second is promised, which leaves room for a slow disk
POLL_EVERY: Final = 1.0  # s between looks whether the file was moved
SLOW: Final = 5.0  # s: a write that takes longer is told like one that failed
LAST_WITHIN: Final = 1.0  # s for the last write at the stop; a container gets 10 s for all
POLLS: Final = 10  # that a time of patience is divided into
BATCH: Final = 64  # records that are made into lines together; it halves the cost of each
LONG_ID: Final = 1024  # bytes; a longer one does not wait for others
BLOCK: Final = 1024 * 1024  # bytes of lines that are written together, and a line more at most
MOST_BLOCKS: Final = 16  # that wait: 50,000 lines, a quarter of an hour at 50 a second
TAIL: Final = 2 * MOST_LINE  # bytes: the last whole line, and one cut short behind it


class Block(NamedTuple):
    """Whole lines on their way to the file, their number, and the head behind them."""

    text: bytes | bytearray
    lines: int
    head: Head


class AuditFile:
    """The file, as a worker thread sees it: appends whole lines, and takes up where it failed.

    Everything may raise OSError; what could not be written is written next time.
    `head` is that of the last block that is in the file whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._looked = -inf
        self._busy = threading.Lock()  # a write that was given up on at the stop may still run
        self.head = find_head(path)
        self._block = Block(b"", 0, self.head)  # on its way
        self._written = 0  # bytes of it

    @property
    def unfinished(self) -> int:
        """How many lines of a block under way are not written."""
        text, lines, _ = self._block
        return lines - text.count(b"}\n", 0, self._written)

    def write(
        self, blocks: deque[Block], now: float, *, reopen: bool = False, last: bool = False
    ) -> None:
        """Append all the blocks, which are taken from the deque one by one.

        `now` is in seconds, on any clock. The file is opened anew when it was
        moved or removed, or `reopen` says so, and closed behind the `last` write.
        """
        with self._busy:
            if reopen or self._was_moved(now):
                self._close()
            if self._fd < 0:
                self.open()
            while True:
                text, _, head = self._block
                while self._written < len(text):
                    self._written += os.write(self._fd, memoryview(text)[self._written :])
                self.head = head
                self._block, self._written = Block(b"", 0, head), 0
                if not blocks:
                    break
                self._block = blocks.popleft()
            if last:
                self._close()

    def open(self) -> None:
        """Open for appending, and see to it that what is appended begins a line."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o640)
        try:
            _lock(fd)
            half = _ends_in_half_a_line(fd)
        except OSError:
            os.close(fd)
            raise
        # A line that was begun elsewhere, or stands half written here, is begun again.
        text, lines, head = self._block
        begun = text.rfind(b"\n", 0, self._written) + 1
        lines -= text.count(b"}\n", 0, begun)
        self._block = Block((b"\n" if half else b"") + text[begun:], lines, head)
        self._written = 0
        self._fd = fd

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _was_moved(self, now: float) -> bool:
        if self._fd < 0 or now - self._looked < POLL_EVERY:
            return False
        self._looked = now
        try:
            return not os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:  # gone, or out of reach: opening it will tell
            return True


def _lock(fd: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # a device or a pipe holds no chain to fork
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "another process writes it") from None
    except OSError:  # a file system without locks
        pass


def _ends_in_half_a_line(fd: int) -> bool:
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or not about.st_size:
        return False
    return os.pread(fd, 1, about.st_size - 1) != b"\n"


def find_head(path: Path) -> Head:
    """The head that a chain in this file goes on from; `START` where a new one begins.

    Raises OSError when the file is there and cannot be read.
    """
    tail = _tail(path)
    if not tail:
        moved = _moved_last(path)
        tail = b"" if moved is None else _tail(moved)
    # The first of these lines may lack its beginning; then its hash does not hold.
    heads = map(head_of, reversed(tail.splitlines()))
    return next((head for head in heads if head is not None), START)


def _moved_last(path: Path) -> Path | None:
    """Of the files that were moved away from this name, the one that was written last."""
    beside = (f"{path.name}.", f"{path.name}-")
    try:
        moved = [file for file in path.parent.iterdir() if file.name.startswith(beside)]
        return max(moved, key=lambda file: file.stat().st_mtime_ns, default=None)
    except OSError:
        return None


def _tail(path: Path) -> bytes:
    """The last `TAIL` bytes of a file; nothing of what is no file."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return b""
    if not stat.S_ISREG(about.st_mode):
        return b""
    with path.open("rb") as file:
        file.seek(max(0, about.st_size - TAIL))
        return file.read(TAIL)


class Audit:
    """The lines that are to be written, and the task that has them written.

    Raises `BadSettings` when the file cannot be opened. Later trouble is told to
    the observer, and costs lines only when more wait than can be held.
    `run_sync` runs a function in a thread, as that of `trio.to_thread` does.
    """

    def __init__(
        self,
        path: Path,
        observer: Observer,
        run_sync: Callable[..., Awaitable[None]] = trio.to_thread.run_sync,
    ) -> None:
        self._observer = observer
        self._run_sync = run_sync
        self.lost = 0  # lines, since the start
        self._lost_told = 0  # of them, those that the observer knows of
        # Those that no line of the trail stands for yet: when the first was lost, and how many.
        self._unmarked: tuple[datetime, int] | None = None
        self.failing: str | None = None  # why the file cannot be written, while it cannot
        try:
            self._file = AuditFile(path)
            self._file.open()
        except OSError as error:
            raise BadSettings(
                "RATEBRIDGE_AUDIT_FILE: expected a file that can be read and written "
                f"({error.strerror})"
            ) from None
        self._chain = Chain(self._file.head)
        self._records: list[Record] = []
        self._text = bytearray()  # lines that are in no block yet
        self._lines = 0  # of them
        self._blocks: deque[Block] = deque()
        self._wake = trio.Event()
        self._reopen = False

    @property
    def head(self) -> Head:
        """Number and hash of the last line that is known to be in the file."""
        return self._file.head

    @property
    def waiting(self) -> int:
        """The lines that are not written yet."""
        in_blocks = sum(block.lines for block in tuple(self._blocks))
        return len(self._records) + self._lines + in_blocks + self._file.unfinished

    def add(self, request: Request, eur: Decimal, rate: Rate | None, at: datetime) -> None:
        """Queue the line of a conversion; `rate` is None where the stake was in euro already."""
        self._records.append(
            (at, request.id, request.date, request.instant, request.stake, eur, rate)
        )
        if len(self._records) >= BATCH or len(request.id) > LONG_ID:
            self._make_lines()

    def _make_lines(self) -> None:
        records, self._records = self._records, []
        if len(self._blocks) >= MOST_BLOCKS:
            self._lose(records, "too many lines wait to be written")
            return
        self._mark_lost()
        try:
            self._text += self._chain.conversions(records)
        except Exception as bug:  # noqa: BLE001 - a bug here costs lines and no reply
            self._observer.internal_error("audit", bug)
            self._lose(records, "an internal error")
            return
        self._lines += len(records)
        if len(self._text) >= BLOCK:
            self._cut_block()
            self._wake.set()

    def _cut_block(self) -> None:
        if self._lines:
            self._blocks.append(Block(self._text, self._lines, self._chain.head))
            self._text = bytearray()
            self._lines = 0

    def _lose(self, records: list[Record], why: str) -> None:
        if self.lost == self._lost_told:  # the first of them; how many they were is told in the end
            self._observer.audit_lost(len(records), why)
        first, before = self._unmarked or (records[0][0], 0)
        self._unmarked = first, before + len(records)
        self.lost += len(records)

    def _mark_lost(self) -> None:
        """Let a line stand for those that were lost since the last one that was not."""
        if self._unmarked is not None:
            self._text += self._chain.loss(*self._unmarked)
            self._lines += 1
            self._unmarked = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled, then what there still is. SIGHUP opens the file anew."""
        with trio.open_signal_receiver(signal.SIGHUP) as hangups:
            task_status.started()
            try:
                async with trio.open_nursery() as audit_nursery:
                    audit_nursery.start_soon(self._obey, hangups, name="audit SIGHUP")
                    while True:
                        with trio.move_on_after(FLUSH_EVERY):
                            await self._wake.wait()
                        self._wake = trio.Event()
                        if self._reopen or self._unmarked is not None or self.waiting:
                            await self._flush()
            finally:
                with trio.CancelScope(shield=True):
                    await self._flush(last=True)
                if self.waiting:
                    self._observer.audit_lost(self.waiting, "the service stopped")

    async def _obey(self, hangups: AsyncIterator[int]) -> None:
        async for _ in hangups:
            self._reopen = True
            self._wake.set()

    async def _flush(self, *, last: bool = False) -> None:
        if self._records:
            self._make_lines()
        if last or len(self._blocks) < MOST_BLOCKS:
            self._mark_lost()
        if last or not self._blocks:  # while none is taken, what comes makes full ones
            self._cut_block()
        reopen, self._reopen = self._reopen, False
        trouble = None
        async with trio.open_nursery() as flush_nursery:
            limit = flush_nursery.cancel_scope
            if last:
                flush_nursery.start_soon(self._give_up, limit, name="audit last write")
            else:
                flush_nursery.start_soon(self._tell_if_slow, name="audit patience")
            now = trio.current_time()
            try:
                await self._run_sync(
                    partial(self._file.write, self._blocks, now, reopen=reopen, last=last),
                    abandon_on_cancel=True,
                )
            except OSError as error:
                trouble = error.strerror or "the write failed"
            limit.cancel()
        self._judge(trouble)

    async def _tell_if_slow(self) -> None:
        await _bear(SLOW)
        self._judge(f"a write has taken over {SLOW:g} s")

    async def _give_up(self, write: trio.CancelScope) -> None:
        await _bear(LAST_WITHIN)
        write.cancel()

    def _judge(self, trouble: str | None) -> None:
        """Tell the observer when the trail begins to fail, and when it works again."""
        before, self.failing = self.failing, trouble
        if trouble is not None:
            if before is None:
                self._observer.audit_failed(trouble, self.waiting)
        elif before is not None or self.lost > self._lost_told:
            self._observer.audit_recovered(self.lost - self._lost_told)
            self._lost_told = self.lost
            self._wake.set()  # for what came meanwhile


async def _bear(seconds: float) -> None:
    """Wait for a time in which this process ran: one stop of it, however long, is one poll."""
    for _ in range(POLLS):
        await trio.sleep(seconds / POLLS)
