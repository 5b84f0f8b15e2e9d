"""The audit trail: the lines, their durability, and failures of the file."""

import errno
import fcntl
import gzip
import hashlib
import json
import logging
import os
import re
import resource
import select
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio
from msgspec.structs import replace
from status_service import request, stopping

from ratebridge.commands.verify import Trail, run_verify
from ratebridge.conversion import plain
from ratebridge.errors import CannotStart
from ratebridge.messages import Request
from ratebridge.operating import audit as audit_module
from ratebridge.operating import trail as trail_module
from ratebridge.operating.audit import FLUSH_EVERY, LAST_WITHIN, SLOW, Audit, AuditFile
from ratebridge.operating.trail import START, Chain, Head, find_head
from ratebridge.rates import Rate
from ratebridge.reporting.logs import event_log
from ratebridge.reporting.observer import Observer

NOW = datetime(2021, 5, 20, 8, 0, 0, 412_000, tzinfo=UTC)
NOON = datetime(2021, 5, 20, 12, tzinfo=UTC)
START_TOLD = "2021-05-20T12:00:00.000Z"
MAY_18 = date(2021, 5, 18)
DOLLAR = Rate("USD", Decimal("1.2222"), Decimal(1), MAY_18, MAY_18, "ecb", NOW, cached=True)
EUROS = "207.55196"


class Told(list[Any]):
    """A log that keeps what the trail reports."""

    def is_enabled_for(self, level: int) -> bool:
        return level > logging.DEBUG

    def log(self, _level: int, event: str, **fields: Any) -> None:
        self.append((event.removeprefix("audit."), *fields.values()))


def add(audit: Audit, *ids: int) -> None:
    for message_id in ids:
        audit.add([(request(message_id), EUROS, DOLLAR, NOW)])


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def ids(path: Path) -> list[Any]:
    """The ids in a file, and "3 lost" for a line that stands for lost ones."""
    return [line["id"] if "id" in line else f"{line['lost']} lost" for line in lines(path)]


def is_true(*paths: Path) -> bool:
    """Whether `verify` finds nothing wrong with the trail in these files."""
    return run_verify([str(path) for path in paths]) == 0


@attrs.define
class Here:
    """Replaces the thread, so that a virtual clock can be used.

    It waits for `wait` first. If it `fails`, no thread can be started.
    """

    wait: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    fails: bool = False

    async def __call__(self, write: Callable[[], None], **_options: object) -> None:
        await self.wait()
        if self.fails:
            raise RuntimeError("can't start new thread")
        write()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl.1"


@asynccontextmanager
async def auditing(path: Path, run_sync: Any = None):
    """The audit of a service that runs, and what it reports."""
    told = Told()
    audit = Audit(path, Observer(told, lambda: NOON), run_sync or Here())
    async with trio.open_nursery() as nursery:
        await nursery.start(audit.run)
        yield audit, told
        nursery.cancel_scope.cancel()


# What a line holds.


def line(asked: Request, eur: str = "207.55196", rate: Rate | None = DOLLAR) -> bytes:
    return Chain().conversions([(asked, plain(Decimal(eur)), rate, NOW)])


def test_lines_are_the_nine_facts_in_a_chain_of_sha_256():
    chain = Chain()
    records = [(request(message_id), EUROS, DOLLAR, NOW) for message_id in range(50)]
    # In pieces: the chain goes on from one call to the next.
    text = b"".join(map(chain.conversions, (records[:1], records[1:3], records[3:])))
    prev = "0" * 64
    for number, line in enumerate(text.decode().splitlines()):
        facts = (
            f'{{"n":{number + 1},"prev":"{prev}","at":"2021-05-20T08:00:00.412Z","id":{number},'
            '"date":"2021-05-18T21:32:42.324Z","stake":"253.67","currency":"USD","rate":"1.2222",'
            '"rate_date":"2021-05-18","provider":"ecb","eur":"207.55196"'
        )
        prev = hashlib.sha256(facts.encode()).hexdigest()
        assert line == f'{facts},"hash":"{prev}"}}'
    assert chain.head == (50, prev)
    assert str(chain.head) == f"50:{prev}"


ROWS: dict[str, tuple[Request, dict[str, Any], str, Rate | None]] = {
    "euro": (
        request(currency="EUR", stake="7.100", date="2021-05-18T23:30:00-02:00"),
        {"currency": "EUR", "stake": "7.100", "eur": "7.1", "rate": "1", "provider": "none"}
        # The UTC day of the request, which is as it came.
        | {"rate_date": "2021-05-19", "date": "2021-05-18T23:30:00-02:00"},
        "7.10000",
        None,
    ),
    "dollar base": (
        request(currency="GBP"),
        {"rate": "0.7035/0.8183", "rate_date": "2021-05-18", "provider": "ecb"},
        "1.00000",
        replace(DOLLAR, units=Decimal("0.7035"), euro=Decimal("0.8183")),
    ),
    "coin": (
        request(currency="BTC"),
        {"currency": "BTC", "rate": "1/36715.5", "eur": "9313620.885"},
        "9313620.88500",
        replace(DOLLAR, currency="BTC", units=Decimal(1), euro=Decimal("36715.5")),
    ),
    "small": (request(stake="1e-19"), {"stake": f"0.{'0' * 18}1", "eur": "0"}, "0.00000", DOLLAR),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_line_holds_numbers_as_exact_text_and_the_rest_as_it_came(name):
    asked, shown, eur, rate = ROWS[name]
    text = line(asked, eur, rate)
    found = json.loads(text)
    assert {key: found[key] for key in shown} == shown
    trail = Trail(1, ())
    trail.take(text.rstrip(), ("", 1))
    assert trail.end() == (name in ("euro", "coin", "small"))


# White space between parts; a C1 escape sequence, a direction mark, a letter beyond 16 bits.
HOSTILE = '["a\\u001b\x9b2J\x7f\u202e\u2028\U0001f600é\\"",\r\n\t{"a":\r2}]'


def test_what_is_kept_of_the_texts_of_rates_is_bounded(monkeypatch):
    monkeypatch.setattr(trail_module, "MOST_PRICES", 2)
    chain = Chain()
    for units in range(1, 10):
        rate = replace(DOLLAR, units=Decimal(units))
        assert json.loads(chain.conversions([(request(), EUROS, rate, NOW)]))["rate"] == str(units)
    assert len(chain._prices) <= 3


def test_an_id_acts_on_no_terminal_and_keeps_its_value():
    text = line(replace(request(), id=HOSTILE.encode()))
    assert re.fullmatch(rb"[ -~]+\n", text)
    assert json.loads(text)["id"] == json.loads(HOSTILE)


# When a line is safe.


async def test_lines_are_in_the_file_in_their_order_within_a_second(path, autojump_clock):
    async with auditing(path) as (audit, _told):
        for first in range(0, 40, 4):
            await trio.sleep(0.17)
            add(audit, *range(first, first + 4))
            made = trio.current_time()
            while ids(path)[-1:] != [first + 3]:
                assert trio.current_time() - made <= 1.0
                await trio.sleep(0.01)
    assert ids(path) == list(range(40))


def test_a_file_that_cannot_be_opened_now_is_no_bad_setting(tmp_path):
    for where, why in (("", "Is a directory"), ("none/audit.jsonl", "No such file or directory")):
        with pytest.raises(CannotStart, match=rf"^RATEBRIDGE_AUDIT_FILE: .* \({why}\)$"):
            Audit(tmp_path / where, Observer())


def test_a_file_that_another_writes_or_whose_chain_cannot_be_read_is_not_written(
    path, moved, monkeypatch
):
    (moved).touch()
    with monkeypatch.context() as forbidding:
        forbidding.setattr(Path, "open", forbid)  # who runs tests may be root
        with pytest.raises(CannotStart, match=r"\(Permission denied\)$"):
            Audit(path, Observer())
    audit = Audit(path, Observer())
    files = set(Path("/dev/fd").iterdir())
    with pytest.raises(CannotStart, match="another process writes it"):
        Audit(path, Observer())
    assert set(Path("/dev/fd").iterdir()) <= files, "each try would keep one open"
    assert audit.head == START


def forbid(*_anything: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


# The chain, over files and restarts.


async def keep(path: Path, *message_ids: int) -> Any:
    """A run of the service that writes these."""
    async with auditing(path) as (audit, _):
        add(audit, *message_ids)
    return audit


async def test_the_chain_goes_on_after_a_restart_which_its_first_line_tells(
    path, autojump_clock, monkeypatch
):
    monkeypatch.setattr(trail_module, "TAIL", 500)  # the first line is not in it
    await keep(path, 1, 2)
    audit = await keep(path, 3, 4)
    assert is_true(path)
    assert audit.head == (4, lines(path)[-1]["hash"])
    assert path.stat().st_mode & 0o137 == 0, "it is private"
    assert [line.get("started") for line in lines(path)] == [START_TOLD, None, START_TOLD, None]


NOT_OURS = {
    "audit.jsonl.2": b"",  # moved without a line
    "audit.jsonl.sha256": b"0" * 64 + b"  audit.jsonl.1\n",
    "audit.jsonl.2.gz": gzip.compress(b"x" * 99_999)[:-9],  # not whole yet
    "audit.jsonl.3.gz": b"not packed",
}


@pytest.mark.parametrize(
    "name", ["audit.jsonl.1", "audit.jsonl-20240101", "audit.jsonl.1.gz", "audit.jsonl"]
)
@pytest.mark.parametrize("now", [None, b"", b'{"n":3,"prev":"', b"\0" * 5000])
async def test_the_chain_goes_on_from_the_newest_file_that_holds_a_line(
    path, tmp_path, autojump_clock, name, now
):
    moved, older = tmp_path / name, tmp_path / "audit.jsonl.9"
    await keep(older, 0)
    os.utime(older, (0, 0))
    await keep(path, 1, 2)
    text = path.read_bytes()
    path.unlink()
    moved.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    os.utime(moved, (1, 1))
    for other, content in NOT_OURS.items():  # are all newer
        (tmp_path / other).write_bytes(content)
    os.mkfifo(tmp_path / "audit.jsonl.pipe")
    (tmp_path / "audit.jsonl.d").mkdir()
    (tmp_path / "audit.jsonl.latest").symlink_to("gone")
    if now is not None:
        with path.open("ab") as file:
            file.write(now)
    await keep(path, 3)
    assert is_true(*dict.fromkeys([older, moved, path]))


def test_what_is_no_line_holds_no_head_whatever_an_id_looks_like(path, monkeypatch):
    text = line(request(1))
    # An id that looks like the end of a line, cut short there, and more lines of other kinds.
    cut = line(request(2)).replace(b'"id":2', b'"id":{"a":1,"hash":"%b"}' % (b"0" * 64))
    path.write_bytes(text + cut[: cut.index(b"}") + 1] + b"\n" + b"hello\n" * 30)
    assert find_head(path) == Head(1, json.loads(text)["hash"])
    path.unlink()
    path.touch()
    monkeypatch.setattr(Path, "iterdir", forbid)
    assert find_head(path) == START, "in a directory that cannot be listed"


def test_a_file_system_without_locks_keeps_a_trail_all_the_same(path, monkeypatch):
    def no_locks(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert Audit(path, Observer()).head == START


# A file that is moved.


async def hang_up() -> None:
    """Send SIGHUP, and let the time pass in which it is obeyed."""
    os.kill(os.getpid(), signal.SIGHUP)
    await trio.sleep(2 * FLUSH_EVERY)


@pytest.mark.parametrize("then", ["nothing", "a new file", "a hangup"])
async def test_after_a_rename_or_a_hangup_the_lines_go_to_a_new_file(
    path, moved, autojump_clock, then
):
    async with auditing(path) as (audit, told):
        await write(audit, 1)
        path.rename(moved)
        if then == "a new file":
            path.touch()
        elif then == "a hangup":
            await hang_up()
            assert ids(path) == [], "it is there, though no line has come since"
        await write(audit, 2)
        assert (ids(moved), ids(path)) == ([1], [2])
    assert told == [("reopened",)]
    assert is_true(moved, path)


async def write(audit: Audit, *message_ids: int) -> None:
    """Add lines and let the time pass in which they are written."""
    add(audit, *message_ids)
    await trio.sleep(FLUSH_EVERY)
    await trio.testing.wait_all_tasks_blocked()


async def test_a_missing_directory_is_a_failure_until_it_is_back(tmp_path, autojump_clock):
    """Though there is nothing to write."""
    path = tmp_path / "logs" / "audit.jsonl"
    path.parent.mkdir()
    async with auditing(path) as (audit, told):
        path.unlink()
        path.parent.rmdir()
        await hang_up()
        await hang_up()
        assert told == [("failed", "No such file or directory", 0)]
        path.parent.mkdir()
        await trio.sleep(FLUSH_EVERY)
        assert audit.failing is None
        assert path.read_bytes() == b""
    assert told[1:] == [("recovered", 0), ("reopened",)]


# Failures.


@contextmanager
def full_at(size: int):
    """No file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("more", [99, 0, -1], ids=["in a line", "at its end", "before that"])
async def test_a_full_disk_costs_no_line_of_an_append_only_file(
    path, autojump_clock, monkeypatch, more
):
    """What is whole of a write that was cut short stays, and is not written again."""

    def refuse(_fd: int, _size: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "ftruncate", refuse)
    async with auditing(path) as (audit, told):
        await write(audit, 1)
        before = path.stat().st_size
        await write(audit, 2)  # as long as the next one
        size = path.stat().st_size
        with full_at(size + size - before + more):
            await write(audit, 3, 4, 5)
            assert told == [("failed", "File too large", 2)]
            assert audit.waiting == 2
        await write(audit, 6)
        assert told[1:] == [("recovered", 0)]
    assert is_true(path)
    whole = [found for found in path.read_bytes().splitlines() if found[-1:] == b"}"]
    assert [json.loads(found)["id"] for found in whole] == [1, 2, 3, 4, 5, 6]


async def test_a_full_disk_is_reported_once_and_costs_no_line(path, autojump_clock):
    """A write is cut short in the middle of a line, and those after it are refused."""
    async with auditing(path) as (audit, told):
        await write(audit, 1)
        size = path.stat().st_size
        with full_at(size + 500):
            await write(audit, 2, 3, 4)
            assert path.stat().st_size == size, "no half line, and no line of a failed write"
            for message_id in range(5, 30):
                await write(audit, message_id)
            assert told == [("failed", "File too large", 3)]
            assert audit.waiting == 28
        await write(audit)
        assert told[1:] == [("recovered", 0)]
    assert ids(path) == [*range(1, 30)]
    assert is_true(path)


async def test_a_line_that_lacks_its_end_only_is_whole_again(path, autojump_clock):
    path.write_bytes(line(request(1)).rstrip())
    await keep(path, 2)
    assert ids(path) == [1, 2]
    assert is_true(path)


async def test_lines_beyond_the_queue_are_lost_and_the_trail_says_so(
    path, autojump_clock, monkeypatch
):
    monkeypatch.setattr(audit_module, "MOST_WAITING", 900)  # three lines
    async with auditing(path) as (audit, told):
        add(audit, 1, 2, 3, 4, 5)
        assert told == [("lost", 1, "too many lines wait to be written")]
        await write(audit)
        await write(audit)
        assert ids(path) == [1, 2, 3, "2 lost"]  # no further line is needed
        await write(audit, 6)
        assert told[1:] == [("recovered", 2)]
        add(audit, 7, 8, 9, 10)  # another time, told again
        assert audit.waiting == 3
        assert told[2:] == [("lost", 1, "too many lines wait to be written")]
    assert told[3:] == [("recovered", 1)]
    assert ids(path) == [1, 2, 3, "2 lost", 6, 7, 8, 9, "1 lost"]
    assert audit.lost == 3
    assert is_true(path)


async def test_without_a_thread_lines_wait_as_with_a_full_disk(path, autojump_clock):
    here = Here(fails=True)
    async with auditing(path, here) as (audit, told):
        await trio.sleep(60)
        assert told == [], "nothing to write costs no thread"
        await write(audit, 1)
        await hang_up()
        assert told == [("failed", "can't start new thread", 1)]
        here.fails = False
        await write(audit)
        await write(audit, 2)
        assert told[1:] == [("recovered", 0), ("reopened",)]
        assert ids(path) == [1, 2]
        here.fails = True
        add(audit, 3)
    assert told[3:] == [("failed", "can't start new thread", 1), ("lost", 1, "the service stopped")]
    assert audit.lost == 1
    AuditFile(path).close()  # the next service of this process can have it


async def test_a_slow_write_is_reported_before_it_ends(path, autojump_clock):
    async with auditing(path, Here(partial(trio.sleep, 60))) as (audit, told):
        add(audit, 1)
        await trio.sleep(FLUSH_EVERY + SLOW + 0.1)
        assert told == [("failed", "a write has taken over 5 s", 1)]
        await trio.sleep(60)
        assert told[1:] == [("recovered", 0)]
    assert ids(path) == [1]


async def test_a_close_that_fails_is_reported_and_ends_nothing(path, autojump_clock, monkeypatch):
    """It may tell what became of the lines before it."""
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    async with auditing(path) as (audit, told):
        await write(audit, 1)
        monkeypatch.setattr(os, "close", fail)
    assert told == [("failed", "Disk quota exceeded", 0)]


async def test_a_disk_that_hangs_does_not_delay_the_stop(path, autojump_clock):
    async with auditing(path, Here(trio.sleep_forever)) as (audit, told):
        add(audit, 1, 2)
        await trio.sleep(1)
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(LAST_WITHIN)
    assert told == [("lost", 2, "the service stopped")]


async def test_a_bug_while_a_line_is_made_costs_lines_and_nothing_else(path, autojump_clock):
    async with auditing(path) as (audit, told):
        audit.add([(request(), EUROS, "no rate", NOW)] * 3)
        assert audit.waiting == 0
        add(audit, 2)
        assert audit.waiting == 2, "with that for the lost ones"
        await write(audit)
    assert told[0][:2] == ("internal_error", "audit")
    assert told[1:] == [("lost", 3, "an internal error"), ("recovered", 3)]
    assert ids(path) == ["3 lost", 2]


async def test_a_suspended_process_is_not_reported_as_a_failed_disk(path, autojump_clock):
    let = trio.Event()
    async with auditing(path, Here(let.wait)) as (audit, told):
        add(audit, 1)
        await trio.sleep(FLUSH_EVERY + 0.1)
        autojump_clock.jump(60)
        await trio.sleep(0.4)
        let.set()
    assert told == []
    assert ids(path) == [1]


async def test_writes_wait_for_each_other_and_for_no_other_thread(path, monkeypatch):
    """The first hangs in a pipe that nobody reads, the last waits behind, and other work has all
    threads of the default limiter.
    """
    limiter = trio.to_thread.current_default_thread_limiter()
    for number in range(int(limiter.total_tokens)):
        limiter.acquire_on_behalf_of_nowait(number)
    monkeypatch.setattr(audit_module, "FLUSH_EVERY", 0.0)
    monkeypatch.setattr(audit_module, "LAST_WITHIN", 0.01)
    os.mkfifo(path)
    other = AuditFile(path)  # a pipe or a device may have two writers
    async with auditing(path, trio.to_thread.run_sync) as (audit, told):
        reader = os.open(path, os.O_RDONLY)
        add(audit, *range(1000))
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(reader)
    assert told == [("lost", 1000, "the service stopped")]
    other.close()
    text = piece = b"\n"
    while piece and select.select([reader], [], [], 10.0)[0]:
        piece = os.read(reader, 65536)
        text += piece
    os.close(reader)
    assert piece == b"", "the write that hung closes the file"
    assert [json.loads(found)["id"] for found in text.split()] == list(range(1000))


# In the service.


async def test_the_service_keeps_a_line_per_conversion_and_its_log_proves_them(path):
    with structlog.testing.capture_logs() as logs:
        observer = Observer(event_log())
        async with stopping(observer, audit_file=path):
            assert 3 not in ids(path)
        observer.summarize(waiting=0, outbox=0, sheets=0)
    assert [(line["id"], line["eur"], line["provider"]) for line in lines(path)] == [
        (1, "253.67", "none"),
        (3, "207.55196", "bank"),
    ]
    heads = {event["event"]: event["audit_head"] for event in logs if "audit_head" in event}
    assert list(heads) == ["service.started", "service.stopped", "summary"]
    assert heads["service.started"] == str(START)
    assert heads["service.stopped"] == heads["summary"]
    assert run_verify([str(path)], list(heads.values())) == 0


def test_a_service_off_the_main_thread_keeps_a_trail_without_the_signal(path):
    """Signals are for the main thread alone; a file that was moved is reopened anyway."""

    async def serve_once() -> None:
        async with stopping(Observer(), audit_file=path):
            pass

    other = threading.Thread(target=trio.run, args=(serve_once,), daemon=True)
    other.start()
    other.join(10)
    assert ids(path) == [1, 3]


async def test_a_kill_loses_a_second_at_most_and_the_next_run_goes_on_after_it(
    path, autojump_clock, tmp_path
):
    """What the system has at some moment is what a kill at that moment leaves."""
    killed = tmp_path / "killed.jsonl"
    async with auditing(path) as (audit, _):
        for message_id in range(101):
            await trio.sleep(0.02)
            add(audit, message_id)
        half = line(request(7))[:99]  # as if the kill had come in the middle of a write
        killed.write_bytes(path.read_bytes() + half)
        assert ids(path) == list(range(len(ids(path))))
        assert ids(path)[-1] >= 100 - 1.0 / 0.02
    written = killed.read_bytes().count(b"\n")
    await keep(killed, 8)
    assert len(killed.read_bytes().splitlines()) == written + 2
    assert is_true(killed)
