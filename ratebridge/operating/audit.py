"""The audit file: a line for every conversion, so that a rate can be proven years later.

`trail` defines the lines and their chain. Lines are made in batches in the event loop's thread:
making them in another thread would cost more, as the two would compete for the interpreter.

Durability: lines are handed to the operating system every `FLUSH_EVERY` seconds, so that a kill of
the process loses no more than that. Nothing is synced to the disk: a crash of the machine loses
what the system had not written yet, by its defaults up to half a minute.

The chain continues in a new file and in a new process. After a file is moved, a new file continues
from its last line. At the start the last whole line of the file gives the head. If the file has
none, it is the last line of the newest file that was moved to a name such as `audit.jsonl.1` or
`audit.jsonl-20240101`. Compressed files are not read; without a last line a new chain begins. The
file is locked while it is open, because two processes would write two chains.

A line that was cut short, by a kill or a full disk, stays on a line of its own: the next write
begins a new line. `verify` knows such lines.
"""

import errno
import fcntl
import os
import signal
import stat
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Final, NamedTuple

import trio

from ..errors import BadSettings
from ..observer import Converted, Observer
from .trail import MOST_LINE, START, Chain, Head, head_of

FLUSH_EVERY: Final = 0.25  # s; a second is promised, which leaves room for a slow disk
POLL_EVERY: Final = 1.0  # s between polls for a moved file
SLOW: Final = 5.0  # s: a write that takes longer is reported as failed
LAST_WITHIN: Final = 1.0  # s for the last write at the stop; a container gets 10 s for all
POLLS: Final = 10  # parts of a timeout
BLOCK: Final = 1024 * 1024  # bytes of lines that are written together, plus at most one batch
MOST_BLOCKS: Final = 16  # in the queue: 50,000 lines, a quarter of an hour at 50 a second
TAIL: Final = 2 * MOST_LINE  # bytes: the last whole line, and one cut short after it


class Block(NamedTuple):
    """Whole lines to be written, their number, and the head after them."""

    text: bytes | bytearray
    lines: int
    head: Head


class AuditFile:
    """The file, open, for use in a worker thread: appends whole lines, and resumes after a failure.

    Making it and every method may raise OSError; the unwritten rest is written next
    time. `head` is that of the last block that is completely in the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self.opened = 0  # times
        self._polled = -inf
        self._busy = threading.Lock()  # a write abandoned at the stop may still run
        self._block = Block(b"", 0, START)  # under way
        self._written = 0  # bytes of it
        self._open()
        try:
            self.head = find_head(path)  # only now, when no other process can write
        except OSError:
            self._close()
            raise
        self._block = self._block._replace(head=self.head)

    @property
    def unfinished(self) -> int:
        """How many lines of a block under way are not written."""
        text, lines, _ = self._block
        return lines - text.count(b"}\n", 0, self._written)

    def write(
        self, blocks: deque[Block], now: float, *, reopen: bool = False, last: bool = False
    ) -> None:
        """Append all blocks, taking them from the deque one by one.

        `now` is in seconds, on any clock. The file is reopened if it was moved or
        removed, or if `reopen` is set, and closed after the `last` write.
        """
        with self._busy:
            if reopen or self._was_moved(now):
                self._close()
            if self._fd < 0:
                self._open()
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

    def _open(self) -> None:
        """Open for appending at the beginning of a line."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o640)
        try:
            _lock(fd)
            half = _ends_in_half_a_line(fd)
        except OSError:
            os.close(fd)
            raise
        # A line that was written in part, here or in another file, is written again.
        text, lines, head = self._block
        begun = text.rfind(b"\n", 0, self._written) + 1
        lines -= text.count(b"}\n", 0, begun)
        # A line end for a half line of the file before belongs to no other file.
        text = text[begun:].lstrip(b"\n")
        self._block = Block((b"\n" if half else b"") + text, lines, head)
        self._written = 0
        self._fd = fd
        self.opened += 1

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _was_moved(self, now: float) -> bool:
        if self._fd < 0 or now - self._polled < POLL_EVERY:
            return False
        self._polled = now
        try:
            return not os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:  # opening it will raise the reason
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
    size = os.fstat(fd).st_size  # a device or a pipe has none
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"


def find_head(path: Path) -> Head:
    """The head from which the chain in this file continues; `START` for a new chain.

    Raises OSError if a file cannot be read.
    """
    for file in (path, _moved_last(path)):
        # The first of these lines may lack its beginning; then its hash does not match.
        for line in reversed(_tail(file).splitlines()):
            if head := head_of(line):
                return head
    return START


def _moved_last(path: Path) -> Path:
    """The newest of the files that were moved from this name; the path itself without any."""
    beside = (f"{path.name}.", f"{path.name}-")
    try:
        moved = [file for file in path.parent.iterdir() if file.name.startswith(beside)]
        return max(moved, key=lambda file: file.stat().st_mtime_ns, default=path)
    except OSError:
        return path


def _tail(path: Path) -> bytes:
    """The last `TAIL` bytes of a regular file; else b""."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        return b""
    with path.open("rb") as file:
        file.seek(max(0, about.st_size - TAIL))
        return file.read(TAIL)


class Audit:
    """The queue of lines, and the task that writes them.

    Raises `BadSettings` if the file cannot be opened. Later failures are reported to
    the observer; lines are lost only when the queue is full. `run_sync` runs a function
    in a thread, like `trio.to_thread.run_sync`.
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
        self._lost_reported = 0  # lines, to the observer
        # Losses without a line of the trail: when the first was lost, and how many.
        self._unmarked: tuple[datetime, int] | None = None
        self.failing: str | None = None  # why the file cannot be written, while it cannot
        try:
            self._file = AuditFile(path)
        except OSError as error:
            raise BadSettings(
                "RATEBRIDGE_AUDIT_FILE: expected a file that can be read and written "
                f"({error.strerror})"
            ) from None
        self._opened_reported = self._file.opened
        self._chain = Chain(self._file.head)
        self._text = bytearray()  # lines of the next block
        self._lines = 0  # of them
        self._blocks: deque[Block] = deque()
        self._wake = trio.Event()
        self._reopen = False

    @property
    def head(self) -> Head:
        """The head of the lines that are known to be in the file."""
        return self._file.head

    @property
    def waiting(self) -> int:
        """The lines that are not written yet."""
        in_blocks = sum(block.lines for block in tuple(self._blocks))
        return self._lines + in_blocks + self._file.unfinished

    def add(self, records: Sequence[Converted]) -> None:
        """Queue the lines of conversions: many together cost a third less than one by one."""
        if len(self._blocks) >= MOST_BLOCKS:
            self._lose(records, "too many lines wait to be written")
            return
        self._mark_lost()
        try:
            self._text += self._chain.conversions(records)
        except Exception as bug:  # noqa: BLE001 - a bug here must not cost a reply
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

    def _lose(self, records: Sequence[Converted], why: str) -> None:
        if self.lost == self._lost_reported:  # the first; `audit_recovered` reports how many
            self._observer.audit_lost(len(records), why)
        first, before = self._unmarked or (records[0][3], 0)
        self._unmarked = first, before + len(records)
        self.lost += len(records)

    def _mark_lost(self) -> None:
        """Put a line in place of those that were lost."""
        if self._unmarked is not None:
            self._text += self._chain.loss(*self._unmarked)
            self._lines += 1
            self._unmarked = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled, then write the rest. SIGHUP reopens the file."""
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

    async def _flush(self, *, last: bool = False) -> None:
        if last or len(self._blocks) < MOST_BLOCKS:
            self._mark_lost()
        if last or not self._blocks:  # while blocks are queued, only full ones are added
            self._cut_block()
        reopen, self._reopen = self._reopen, False
        async with trio.open_nursery() as flush_nursery:
            limit = flush_nursery.cancel_scope
            if last:
                flush_nursery.start_soon(self._give_up, limit, name="audit last write")
            else:
                flush_nursery.start_soon(self._report_if_slow, name="audit slow write")
            now = trio.current_time()
            try:
                await self._run_sync(
                    partial(self._file.write, self._blocks, now, reopen=reopen, last=last),
                    abandon_on_cancel=True,
                )
                self._set_failing(None)
            except OSError as error:
                self._set_failing(error.strerror or "the write failed")
            limit.cancel()
        if self._file.opened > self._opened_reported:
            self._opened_reported = self._file.opened
            self._observer.audit_reopened()

    async def _report_if_slow(self) -> None:
        await _sleep_while_running(SLOW)
        self._set_failing(f"a write has taken over {SLOW:g} s")

    async def _give_up(self, write: trio.CancelScope) -> None:
        await _sleep_while_running(LAST_WITHIN)
        write.cancel()

    def _set_failing(self, failure: str | None) -> None:
        """Report when the trail begins to fail, and when it works again."""
        before, self.failing = self.failing, failure
        if failure is not None:
            if before is None:
                self._observer.audit_failed(failure, self.waiting)
        elif before is not None or self.lost > self._lost_reported:
            self._observer.audit_recovered(self.lost - self._lost_reported)
            self._lost_reported = self.lost
            self._wake.set()  # for lines queued meanwhile


async def _sleep_while_running(seconds: float) -> None:
    """Sleep, not counting time in which this process was suspended: that is one poll at most."""
    for _ in range(POLLS):
        await trio.sleep(seconds / POLLS)
