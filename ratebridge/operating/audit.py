"""The audit trail: a JSON line for every conversion, so that a rate can be proved years later.

A line is
``{"at":"…","id":456,"currency":"USD","stake":"253.67","eur":"207.55196","rate":"1.2222",
"rate_date":"2021-05-18","date":"2021-05-18T21:32:42.324Z","provider":"ecb","crc":"1a2b3c4d"}``
with numbers as exact text, `id` and `date` as they came, and `at` the reply's date. `rate` is in
units for one euro, or units/euro as the table has them where its base is no euro. A stake that
was in euro already has the rate 1 of the request's own UTC day, by the provider "none".

`crc` is the CRC-32 of the other nine, see `checksum`. The amounts alone would not do: a stake and
a rate can be changed in their last digits without a change in the rounded euros. It finds
what was damaged or altered by hand; it is no signature.

When lines are safe: they are handed to the operating system every `FLUSH_EVERY` seconds, so that
a kill of the process loses no more than that. Nothing is synced to the disk: a crash of the whole
machine loses what the system had not written yet, by its defaults up to half a minute.

A line cut short (by a kill in the middle of a write, or a disk that filled up) stays alone on its
line, as the file is only ever appended to after a line's end. `verify` knows such lines.
"""

import os
import signal
import stat
import threading
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

import trio

from ..conversion import plain
from ..dates import wire_time
from ..errors import BadSettings
from ..messages import Request
from ..observer import Observer
from ..rates import Rate

FLUSH_EVERY: Final = 0.25  # s; a second is promised, which leaves room for a slow disk
POLL_EVERY: Final = 1.0  # s between looks whether the file was moved
SLOW: Final = 5.0  # s: a write that takes longer is told like one that failed
LAST_WITHIN: Final = 1.0  # s for the last write at the stop; a container gets 10 s for all
MOST_WAITING: Final = 50_000  # lines: some 50 MB, and a quarter of an hour at 50 a second
MOST_ID_BYTES: Final = 16 * 1024 * 1024  # of their ids; one can have 64 KiB
BATCH: Final = 64  # lines to a write, which is where the thread lets go of the interpreter's lock

NO_PROVIDER: Final = "none"  # of the rate 1 of euro to euro

# When, the id, currency, stake, euros and rate, the request's date as it came and as it was read.
Record = tuple[datetime, bytes, str, Decimal, Decimal, Rate | None, bytes, datetime]

_LINE: Final = (
    b'{"at":"%b","id":%b,"currency":"%b","stake":"%b","eur":"%b","rate":"%b",'
    b'"rate_date":"%b","date":%b,"provider":"%b","crc":"%b"}\n'
)


def line_of(record: Record) -> bytes:
    """A record as its line."""
    at, message_id, currency, stake, eur, rate, date, instant = record
    if rate is None:
        text, day, provider = "1", instant.date(), NO_PROVIDER
    else:
        text, day, provider = rate.text, rate.day, rate.provider
    values = (
        wire_time(at).encode(),
        # Between the parts of an id that is an array there can be line ends: mere white space.
        message_id.replace(b"\n", b" ").replace(b"\r", b" "),
        currency.encode(),
        format(stake, "f").encode(),
        plain(eur).encode(),
        text.encode(),
        day.isoformat().encode(),
        date,
        provider.encode(),
    )
    return _LINE % (*values, checksum(values))


def checksum(values: tuple[bytes, ...]) -> bytes:
    """The CRC-32, as eight hex digits, of a line's values in their order, joined by line ends.

    The values are texts without their quotes, but `id` and `date` as JSON.
    Those of a line that was only spaced in another way give the same.
    """
    return b"%08x" % zlib.crc32(b"\n".join(values))


class AuditFile:
    """The file, as a worker thread sees it: appends whole lines, and takes up where it failed.

    Everything may raise OSError; what could not be written is written next time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._block = b""  # lines on their way
        self._written = 0  # bytes of them
        self._looked = -inf
        self._busy = threading.Lock()  # a write that was given up on at the stop may still run
        self.id_bytes = 0  # of all the records taken so far

    @property
    def unfinished(self) -> int:
        """How many lines were taken to be written, and are not."""
        return self._block.count(b"}\n", max(0, self._written - 1))

    def write(
        self, records: deque[Record], now: float, *, reopen: bool = False, last: bool = False
    ) -> None:
        """Append the lines of all the records, which are taken from the deque one by one.

        `now` is in seconds, on any clock. The file is opened anew when it was
        moved or removed, or `reopen` says so, and closed behind the `last` write.
        """
        with self._busy:
            if reopen or self._was_moved(now):
                self._close()
            if self._fd < 0:
                self.open()
            while True:
                while self._written < len(self._block):
                    self._written += os.write(self._fd, self._block[self._written :])
                if not records:
                    break
                self._block = b"".join(map(line_of, self._take(records)))
                self._written = 0
            if last:
                self._close()

    def open(self) -> None:
        """Open for appending, and see to it that what is appended begins a line."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o640)
        try:
            half = _ends_in_half_a_line(fd)
        except OSError:
            os.close(fd)
            raise
        # A line that was begun elsewhere, or stands half written here, is begun again.
        begun = self._block.rfind(b"\n", 0, self._written) + 1
        self._block = (b"\n" if half else b"") + self._block[begun:]
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

    def _take(self, records: deque[Record]) -> list[Record]:
        taken = [records.popleft() for _ in range(min(BATCH, len(records)))]
        self.id_bytes += sum(len(record[1]) for record in taken)
        return taken


def _ends_in_half_a_line(fd: int) -> bool:
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or not about.st_size:
        return False
    return os.pread(fd, 1, about.st_size - 1) != b"\n"


class Audit:
    """The queue of what is to be written, and the task that has it written.

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
        self._records: deque[Record] = deque()
        self._id_bytes = 0  # of all the records added so far
        self._file = AuditFile(path)
        self._report: str | None = None
        self.lost = 0  # lines, since the start
        self._lost_told = 0  # of them, those that the observer knows of
        try:
            self._file.open()
        except OSError as error:
            raise BadSettings(
                "RATEBRIDGE_AUDIT_FILE: expected a file that can be read and written "
                f"({error.strerror})"
            ) from None

    @property
    def waiting(self) -> int:
        """The lines that are not written yet."""
        return len(self._records) + self._file.unfinished

    def add(self, request: Request, eur: Decimal, rate: Rate | None, at: datetime) -> None:
        """Queue the line of a conversion; `rate` is None where the stake was in euro already."""
        if (
            len(self._records) >= MOST_WAITING
            or self._id_bytes - self._file.id_bytes > MOST_ID_BYTES
        ):
            self._lose()
            return
        self._id_bytes += len(request.id)
        self._records.append(
            (
                at,
                request.id,
                request.currency,
                request.stake,
                eur,
                rate,
                request.date,
                request.instant,
            )
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled, then what there still is. SIGHUP opens the file anew."""
        with trio.open_signal_receiver(signal.SIGHUP) as hangups:
            task_status.started()
            try:
                async with trio.open_nursery() as audit_nursery:
                    audit_nursery.start_soon(self._obey, hangups, name="audit SIGHUP")
                    while True:
                        await trio.sleep(FLUSH_EVERY)
                        if self.waiting:
                            await self._flush()
            finally:
                with trio.move_on_after(LAST_WITHIN, shield=True):
                    await self._flush(last=True)
                if self.waiting:
                    self._observer.audit_lost(self.waiting, "the service stopped")

    async def _obey(self, hangups: AsyncIterator[int]) -> None:
        async for _ in hangups:
            await self._flush(reopen=True)

    async def _flush(self, *, reopen: bool = False, last: bool = False) -> None:
        trouble = None
        async with trio.open_nursery() as flush_nursery:
            flush_nursery.start_soon(self._tell_if_slow, name="audit patience")
            now = trio.current_time()
            try:
                await self._run_sync(
                    partial(self._file.write, self._records, now, reopen=reopen, last=last),
                    abandon_on_cancel=True,
                )
            except OSError as error:
                trouble = error.strerror or "the write failed"
            except Exception as bug:  # noqa: BLE001 - a bug here costs lines and no reply
                self._observer.internal_error("audit", bug)
            flush_nursery.cancel_scope.cancel()
        self._judge(trouble)

    async def _tell_if_slow(self) -> None:
        await trio.sleep(SLOW)
        self._judge(f"a write has taken over {SLOW:g} s")

    def _judge(self, trouble: str | None) -> None:
        """Tell the observer when the trail begins to fail, and when it works again."""
        before, self._report = self._report, trouble
        if trouble is not None:
            if before is None:
                self._observer.audit_failed(trouble, self.waiting)
        elif before is not None or self.lost > self._lost_told:
            self._observer.audit_recovered(self.lost - self._lost_told)
            self._lost_told = self.lost

    def _lose(self) -> None:
        if self.lost == self._lost_told:  # the first of them; how many they were is told in the end
            self._observer.audit_lost(1, "too many lines wait to be written")
        self.lost += 1
