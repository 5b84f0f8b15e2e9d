"""The audit file: a line for every conversion, so that a rate can be proven years later.

`trail` defines the lines, their chain, and how it continues in a new file and a new process.
Lines are made in the event loop's thread: making them in another thread would cost more, as the
two would compete for the interpreter. A thread writes them.

Durability: lines are handed to the operating system every `FLUSH_EVERY` seconds, so that a kill of
the process loses no more than that. Nothing is synced to the disk: a crash of the machine loses
what the system had not written yet, by its defaults up to half a minute.

A write that fails is undone: the file is cut back to where it ended before, and all of it is
written again. So a full disk leaves no unfinished line. A kill can leave one, and a full disk in a
file that is append-only. It stays, and what is written next begins a line of its own.

A regular file is locked while it is open, because two processes would write two chains.
"""

import fcntl
import os
import signal
import stat
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ..errors import CannotStart
from ..reporting.observer import Converted, Observer
from .trail import Chain, Head, find_head

FLUSH_EVERY: Final = 0.25  # s; a second is promised, which leaves room for a slow disk
SLOW: Final = 5.0  # s: a write that takes longer is reported as failed
LAST_WITHIN: Final = 1.0  # s for the last write at the stop; a container gets 10 s for all
POLLS: Final = 10  # parts of a timeout
MOST_WAITING: Final = 16 * 1024 * 1024  # bytes: 50,000 lines, a quarter of an hour at 50 a second


class AuditFile:
    """The file, open: appends whole blocks of lines. For one thread at a time.

    Making it and every method may raise OSError; `write` can then be called again.
    `head` is that of the last block in the file, at first where the chain continues.
    `reopen` asks for the file to be opened anew, and `reopened` is set when it was.
    `ended` asks a write that is under way to close it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reopen = self.reopened = self.ended = False
        self._open()
        try:
            self.head = find_head(path)  # now that no other process can write
        except OSError:
            self.close()
            raise

    def write(self, blocks: deque[tuple[bytearray, Head]]) -> None:
        """Append all blocks, each with the head after it; what is in the file leaves the deque.

        The file is opened anew if it was moved or removed, or if `reopen` is set.
        """
        try:
            self._write(blocks)
        finally:
            if self.ended:
                self.close()

    def _write(self, blocks: deque[tuple[bytearray, Head]]) -> None:
        try:
            moved = not os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:  # it is not open, or not there: opening it raises the reason
            moved = True
        if moved or self.reopen:
            self.close()
            self._open()
            self.reopen, self.reopened = False, True
        while blocks:
            text, head = blocks[0]
            size = os.fstat(self._fd).st_size  # 0 of a device or a pipe
            if size and os.pread(self._fd, 1, size - 1) != b"\n":
                text = bytearray(b"\n") + text
            written = 0
            try:
                while written < len(text):
                    written += os.write(self._fd, memoryview(text)[written:])
            except OSError:
                try:
                    os.ftruncate(self._fd, size)
                except OSError:  # it is append-only: lines that are whole stay
                    blocks[0] = text[text.rfind(b"\n", 0, written + 1) + 1 :].lstrip(b"\n"), head
                raise
            self.head = head
            blocks.popleft()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise OSError(error.errno, "another process writes it") from None
        except OSError:  # a file system without locks
            pass

    def close(self) -> None:
        """Close it, if it is open; a write opens it again."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Audit:
    """The queue of lines, and the task that writes them.

    `path` is the file; its chain is continued, or begun. `observer` is told of failures, losses
    and reopened files, and has the wall clock. `run_sync` runs a function in a thread, like
    `trio.to_thread.run_sync`. Raises `CannotStart` if the file cannot be opened or read, or if
    another process writes it. Later failures are reported; lines are lost only when the queue is
    full, and at the stop. `lost` counts them since the start, and `failing` says why the file
    cannot be written at present, None while it can.
    """

    def __init__(
        self,
        path: Path,
        observer: Observer,
        run_sync: Callable[..., Awaitable[None]] = trio.to_thread.run_sync,
    ) -> None:
        self._observer = observer
        self._run_sync = run_sync
        # One write at a time, also when the last one finds another that hangs; and none waits for
        # what other threads of the process do.
        self._limiter = trio.CapacityLimiter(1)
        self.lost = 0  # lines, since the start
        self._lost_reported = 0  # lines, to the observer
        # Losses without a line of the trail: when the first was lost, and how many.
        self._unmarked: tuple[datetime, int] | None = None
        self.failing: str | None = None  # why the file cannot be written, while it cannot
        try:
            self._file = AuditFile(path)
        except OSError as error:
            why = f"RATEBRIDGE_AUDIT_FILE: cannot be read and written ({error.strerror})"
            raise CannotStart(why) from None
        self._chain = Chain(self._file.head, observer.utc_now())
        self._text = bytearray()  # lines of the next block
        self._blocks: deque[tuple[bytearray, Head]] = deque()

    @property
    def head(self) -> Head:
        """The head of the lines that are known to be in the file."""
        return self._file.head

    @property
    def waiting(self) -> int:
        """The lines that are not written yet."""
        texts = [self._text, *(text for text, _ in tuple(self._blocks))]
        return sum(text.count(b"\n") for text in texts)

    def add(self, records: Sequence[Converted]) -> None:
        """Queue the lines of conversions that were made together. Raises nothing.

        If `MOST_WAITING` bytes wait already, they are lost, and so they are if a bug keeps them
        from being made; a line of the trail tells how many, as soon as there is room.
        """
        why = "too many lines wait to be written"
        if len(self._text) < MOST_WAITING:
            self._mark_lost()
            try:
                self._text += self._chain.conversions(records)
                return
            except Exception as bug:  # noqa: BLE001 - a bug here must not cost a reply
                self._observer.internal_error("audit", bug)
                why = "an internal error"
        if self.lost == self._lost_reported:  # the first; `audit_recovered` reports how many
            self._observer.audit_lost(len(records), why)
        first, before = self._unmarked or (records[0][3], 0)
        self._unmarked = first, before + len(records)
        self.lost += len(records)

    def _mark_lost(self) -> None:
        """Put a line in place of those that were lost."""
        if self._unmarked is not None:
            self._text += self._chain.loss(*self._unmarked)
            self._unmarked = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled, then write the rest, for `LAST_WITHIN` seconds at most.

        SIGHUP reopens the file, where this is the main thread. `task_status` is told when the
        signal is caught.
        """
        main = threading.current_thread() is threading.main_thread()  # it alone gets signals
        with trio.open_signal_receiver(signal.SIGHUP) if main else nullcontext() as hangups:
            task_status.started()
            try:
                async with trio.open_nursery() as audit_nursery:
                    if hangups is not None:
                        audit_nursery.start_soon(self._obey, hangups, name="audit SIGHUP")
                    while True:
                        await trio.sleep(FLUSH_EVERY)
                        due = self._file.reopen or self._unmarked or self._text
                        if due or self.failing is not None:
                            await self._flush()
            finally:
                with trio.CancelScope(shield=True):
                    await self._flush(last=True)
                self._file.ended = True
                try:
                    if not self._limiter.borrowed_tokens:  # no write hangs
                        self._file.close()
                except OSError as error:  # of what was written and is not on the disk
                    self._set_failing(error.strerror)
                if waiting := self.waiting:
                    self.lost += waiting
                    self._observer.audit_lost(waiting, "the service stopped")

    async def _obey(self, hangups: AsyncIterator[int]) -> None:
        async for _ in hangups:
            self._file.reopen = True

    async def _flush(self, *, last: bool = False) -> None:
        if last or len(self._text) < MOST_WAITING:
            self._mark_lost()
        if self._text and (last or not self._blocks):  # else more is added to it meanwhile
            self._blocks.append((self._text, self._chain.head))
            self._text = bytearray()
        write = partial(self._file.write, self._blocks)
        async with trio.open_nursery() as flush_nursery:
            flush_nursery.start_soon(self._watch, flush_nursery.cancel_scope, last)
            try:
                await self._run_sync(write, abandon_on_cancel=True, limiter=self._limiter)
                self._set_failing(None)
            except (OSError, RuntimeError) as error:  # or no thread can be started now
                self._set_failing(getattr(error, "strerror", None) or str(error))
            flush_nursery.cancel_scope.cancel()
        if self._file.reopened:
            self._file.reopened = False
            self._observer.audit_reopened()

    async def _watch(self, write: trio.CancelScope, last: bool) -> None:
        """Report a write that takes long; abandon the last one."""
        # Of time in which this process was suspended, one poll counts at most.
        for _ in range(POLLS):
            await trio.sleep((LAST_WITHIN if last else SLOW) / POLLS)
        if last:
            write.cancel()
        else:
            self._set_failing(f"a write has taken over {SLOW:g} s")

    def _set_failing(self, failure: str | None) -> None:
        """Report when the trail begins to fail, and when it works again."""
        before, self.failing = self.failing, failure
        if failure is not None:
            if before is None:
                self._observer.audit_failed(failure, self.waiting)
        elif before is not None or self.lost > self._lost_reported:
            self._observer.audit_recovered(self.lost - self._lost_reported)
            self._lost_reported = self.lost
