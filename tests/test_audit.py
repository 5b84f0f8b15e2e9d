"""The audit trail: the lines, their durability, and failures of the file."""

import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio
from msgspec.structs import replace

from ratebridge.app import Dependencies, serve
from ratebridge.commands.verify import judge, run_verify
from ratebridge.conversion import plain
from ratebridge.errors import BadSettings
from ratebridge.fakes.feed import FeedPeer, MemoryFeed, request_text
from ratebridge.link.address import Address
from ratebridge.messages import Request, decode
from ratebridge.observer import Observer
from ratebridge.operating import audit as audit_module
from ratebridge.operating import trail as trail_module
from ratebridge.operating.audit import FLUSH_EVERY, LAST_WITHIN, MOST_BLOCKS, SLOW, Audit
from ratebridge.operating.logs import event_log
from ratebridge.operating.trail import START, Chain, Head
from ratebridge.rates import Quote, Rate, RateTable
from ratebridge.settings import Settings

NOW = datetime(2021, 5, 20, 8, 0, 0, 412_000, tzinfo=UTC)
MAY_18 = date(2021, 5, 18)
DOLLAR = Rate("USD", Decimal("1.2222"), Decimal(1), MAY_18, MAY_18, "ecb", NOW, cached=True)
EUROS = "207.55196"


@attrs.define
class Listener(Observer):
    """Keeps what the trail reports."""

    told: list[tuple[Any, ...]] = attrs.Factory(list)

    def audit_failed(self, why, waiting):
        self.told.append(("failed", why, waiting))

    def audit_lost(self, lines, why):
        self.told.append(("lost", lines, why))

    def audit_recovered(self, lost):
        self.told.append(("mended", lost))

    def audit_reopened(self):
        self.told.append(("reopened",))

    def internal_error(self, where, error):
        self.told.append(("crashed", type(error)))


def request(message_id: int | str = 456, **fields: Any) -> Request:
    found = decode(request_text(message_id, **fields).encode())
    assert isinstance(found, Request)
    return found


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


class Here:
    """Replaces the thread, so that a virtual clock can be used."""

    def __init__(self) -> None:
        self.flushes = 0
        self.flushed = trio.Event()

    async def __call__(self, write: Callable[[], None], *, abandon_on_cancel: bool) -> None:
        await trio.lowlevel.checkpoint()
        try:
            write()
        finally:
            self.flushes += 1
            self.flushed.set()
            self.flushed = trio.Event()


@asynccontextmanager
async def running(audit: Audit):
    async with trio.open_nursery() as nursery:
        await nursery.start(audit.run)
        yield nursery
        nursery.cancel_scope.cancel()


# What a line holds.


def line(asked: Request, eur: str = "207.55196", rate: Rate | None = DOLLAR) -> bytes:
    return Chain().conversions([(asked, plain(Decimal(eur)), rate, NOW)])


def test_lines_are_the_nine_facts_in_a_chain_of_sha_256():
    chain = Chain()
    records = [(request(message_id), EUROS, DOLLAR, NOW) for message_id in (456, 457, 458)]
    # In two pieces: the chain goes on from one call to the next.
    written = chain.conversions(records[:1]) + chain.conversions(records[1:])
    prev = "0" * 64
    for n, (message_id, text) in enumerate(zip((456, 457, 458), written.splitlines(), strict=True)):
        covered = (
            f'{{"n":{n + 1},"prev":"{prev}","at":"2021-05-20T08:00:00.412Z","id":{message_id},'
            '"date":"2021-05-18T21:32:42.324Z","stake":"253.67","currency":"USD","rate":"1.2222",'
            '"rate_date":"2021-05-18","provider":"ecb","eur":"207.55196"'
        )
        prev = hashlib.sha256(covered.encode()).hexdigest()
        assert text.decode() == f'{covered},"hash":"{prev}"}}'
    assert chain.head == (3, prev)
    assert str(chain.head) == f"3:{prev}"


@attrs.frozen
class Row:
    name: str
    asked: Request
    shown: dict[str, Any]
    eur: str = "1.00000"
    rate: Rate | None = DOLLAR


ROWS = [
    Row(
        "euro",
        request(currency="EUR", stake="7.100", date="2021-05-18T23:30:00-02:00"),
        {"currency": "EUR", "stake": "7.100", "eur": "7.1", "rate": "1", "provider": "none"}
        # The UTC day of the request, which is as it came.
        | {"rate_date": "2021-05-19", "date": "2021-05-18T23:30:00-02:00"},
        eur="7.10000",
        rate=None,
    ),
    Row(
        "dollar base",
        request(currency="GBP"),
        {"rate": "0.7035/0.8183", "rate_date": "2021-05-17", "provider": "freecurrencyapi"},
        rate=replace(
            DOLLAR,
            units=Decimal("0.7035"),
            euro=Decimal("0.8183"),
            day=date(2021, 5, 17),
            provider="freecurrencyapi",
        ),
    ),
    Row("exponents", request(stake="1.50E+2"), {"stake": "150", "eur": "100"}, eur="100.00000"),
    Row("small", request(stake="1e-19"), {"stake": f"0.{'0' * 18}1", "eur": "0"}, eur="0.00000"),
    Row("negative", request(stake="-0.00001"), {"stake": "-0.00001", "eur": "0"}, eur="-0.00000"),
    Row("string id", request('a"\\\n\u2028'), {"id": 'a"\\\n\u2028'}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_line_holds_numbers_as_exact_text_and_the_rest_as_it_came(row):
    text = line(row.asked, row.eur, row.rate)
    found = json.loads(text)
    assert {key: found[key] for key in row.shown} == row.shown


# White space between parts; a C1 escape sequence, a direction mark, a letter beyond 16 bits.
HOSTILE = '["a\\u001b\x9b2J\x7f\u202e\u2028\U0001f600é\\"",\r\n\t{"a":\r2}]'


def test_rates_beyond_number_are_told_as_the_first_ones_are(monkeypatch):
    """What is kept of their texts is bounded."""
    monkeypatch.setattr(trail_module, "MOST_PRICES", 2)
    chain = Chain()
    asked = request()
    for units in range(1, 10):
        rate = replace(DOLLAR, units=Decimal(units))
        assert json.loads(chain.conversions([(asked, EUROS, rate, NOW)]))["rate"] == str(units)
    assert len(chain._prices) <= 3


def test_an_id_acts_on_no_terminal_and_keeps_its_value():
    frame = request_text(1).replace('"id":1,', f'"id":{HOSTILE},').encode()
    asked = decode(frame)
    assert isinstance(asked, Request)
    text = line(asked)
    assert re.fullmatch(rb"[ -~]+\n", text)
    assert json.loads(text)["id"] == json.loads(HOSTILE)
    assert judge(text.rstrip()).kind == "true"


# When a line is safe.


async def test_lines_are_in_the_file_in_their_order_within_a_second(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        for first in range(0, 40, 4):
            await trio.sleep(0.17)
            add(audit, *range(first, first + 4))
            made = trio.current_time()
            while ids(path)[-1:] != [first + 3]:
                assert trio.current_time() - made <= FLUSH_EVERY
                await trio.sleep(0.01)
    assert ids(path) == list(range(40))


async def test_a_backlog_of_many_batches_keeps_its_order(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        add(audit, *range(200))
        assert audit.waiting == 200
        await trio.sleep(FLUSH_EVERY)
        await trio.testing.wait_all_tasks_blocked()
        assert audit.waiting == 0
        assert ids(path) == list(range(200))


async def test_nothing_to_write_costs_no_thread(tmp_path, autojump_clock):
    here = Here()
    async with running(Audit(tmp_path / "audit.jsonl", Listener(), here)):
        await trio.sleep(60)
        assert here.flushes == 0


async def test_what_came_just_before_the_stop_is_written(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    listener = Listener()
    audit = Audit(path, listener, Here())
    async with running(audit):
        add(audit, 1, 2, 3)
    assert ids(path) == [1, 2, 3]
    assert listener.told == []


async def test_the_file_is_private_and_is_appended_to(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    for message_id in (1, 2):
        audit = Audit(path, Listener(), Here())
        async with running(audit):
            add(audit, message_id)
    assert ids(path) == [1, 2]
    assert path.stat().st_mode & 0o777 == 0o640 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("where", ["", "missing/audit.jsonl"])
def test_a_file_that_cannot_be_opened_at_the_start_is_a_bad_setting(tmp_path, where):
    with pytest.raises(BadSettings, match=r"^RATEBRIDGE_AUDIT_FILE: expected a file that can be"):
        Audit(tmp_path / where, Listener())


def test_a_moved_file_that_cannot_be_read_is_a_bad_setting(tmp_path, monkeypatch):
    path, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    rotated.touch()
    with monkeypatch.context() as forbidding:
        forbidding.setattr(Path, "open", forbid)  # who runs tests may be root
        with pytest.raises(BadSettings, match=r"\(Permission denied\)$"):
            Audit(path, Listener())
    assert Audit(path, Listener()).head == START, "no lock is left"


def test_in_a_directory_that_cannot_be_listed_a_new_chain_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", forbid)
    assert Audit(tmp_path / "audit.jsonl", Listener()).head == START


def forbid(*_anything: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


# The chain, over files and restarts.


async def keep(path: Path, *message_ids: int) -> Audit:
    """A run of the service that writes these."""
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        add(audit, *message_ids)
    return audit


async def test_the_chain_goes_on_after_a_restart(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.setattr(audit_module, "TAIL", 500)  # the first line is not in it
    path = tmp_path / "audit.jsonl"
    await keep(path, 1, 2)
    audit = await keep(path, 3)
    assert is_true(path)
    last = lines(path)[-1]
    assert audit.head == (3, last["hash"])
    assert last["n"] == 3


@pytest.mark.parametrize("name", ["audit.jsonl.1", "audit.jsonl-20240101"])
@pytest.mark.parametrize("created", [True, False])
async def test_the_chain_goes_on_when_the_file_was_moved_before_the_start(
    tmp_path, autojump_clock, name, created
):
    path, rotated, older = tmp_path / "audit.jsonl", tmp_path / name, tmp_path / "audit.jsonl.2"
    await keep(older, 0)
    os.utime(older, (0, 0))
    await keep(path, 1, 2)
    path.rename(rotated)
    if created:
        path.touch()
    await keep(path, 3)
    assert is_true(older, rotated, path)


async def test_the_chain_goes_on_when_the_first_line_after_a_move_was_cut_short(
    tmp_path, autojump_clock
):
    path, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    await keep(path, 1, 2)
    path.rename(rotated)
    path.write_bytes(b'{"n":3,"prev":"')
    await keep(path, 3)
    assert is_true(rotated, path)


async def test_the_chain_goes_on_behind_what_the_last_run_wrote_just_before_it_left_the_file(
    tmp_path, autojump_clock, monkeypatch
):
    path = tmp_path / "audit.jsonl"
    await keep(path, 1)
    text = path.read_bytes()
    await keep(path, 2)
    last_line = path.read_bytes().removeprefix(text)
    path.write_bytes(text)

    def other_writes_and_leaves(_fd: int, _how: int) -> None:
        path.write_bytes(text + last_line)

    monkeypatch.setattr(fcntl, "flock", other_writes_and_leaves)
    assert Audit(path, Listener()).head.number == 2


async def test_a_new_chain_begins_behind_what_was_compressed_or_has_no_chain(
    tmp_path, autojump_clock
):
    path = tmp_path / "audit.jsonl"
    await keep(path, 1, 2)
    (tmp_path / "audit.jsonl.1.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    await keep(path, 3)
    assert is_true(path)
    assert lines(path)[0]["n"] == 1

    path.write_bytes(OLD * 3)
    await keep(path, 4)
    assert is_true(path)
    assert lines(path)[-1]["n"] == 1


# Of the release that knew no chain.
OLD = (
    b'{"at":"2021-05-20T08:00:00.412Z","id":456,"currency":"USD","stake":"253.67",'
    b'"eur":"207.55196","rate":"1.2222","rate_date":"2021-05-18",'
    b'"date":"2021-05-18T21:32:42.324Z","provider":"ecb","crc":"82e2467d"}\n'
)


async def test_the_chain_goes_on_from_the_last_line_that_holds(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    await keep(path, 1, 2)
    text = path.read_bytes()
    # A line whose id looks like the end of one, cut short there; and a whole screen of others.
    forged = text.splitlines()[1].replace(b'"id":2', b'"id":{"a":1,"hash":"%b"}' % (b"0" * 64))
    cut = forged[: forged.index(b"}") + 1]
    path.write_bytes(text + cut + b"\n" + b"x" * 100_000)
    await keep(path, 3)
    found = path.read_bytes().splitlines()
    assert json.loads(found[-1])["prev"] == json.loads(found[1])["hash"]


async def test_the_head_is_of_what_is_in_the_file(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, Listener(), Here())
    assert audit.head == START
    async with running(audit):
        await write(audit, 1, 2)
        head = audit.head
        assert head == Head(2, lines(path)[-1]["hash"])
        with disk_full_at(path.stat().st_size + 100):
            await write(audit, 3)
            states = [(audit.head, audit.failing)]
        await write(audit)
        states += [(audit.head, audit.failing)]
        last = Head(3, json.loads(path.read_bytes().splitlines()[-1])["hash"])
        assert states == [(head, "File too large"), (last, None)]
    assert is_true(path)


def test_a_file_that_another_writes_is_a_bad_setting(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, Listener())
    with pytest.raises(BadSettings, match="another process writes it"):
        Audit(path, Listener())
    assert audit.waiting == 0


def test_a_file_system_without_locks_keeps_a_trail_all_the_same(tmp_path, monkeypatch):
    def no_locks(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert Audit(tmp_path / "audit.jsonl", Listener()).head == START


# A file that is moved.


async def test_after_a_rename_the_lines_go_to_a_new_file(tmp_path, autojump_clock):
    path, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        await write(audit, 1)
        path.rename(rotated)
        await trio.sleep(1)
        await write(audit, 2)
        assert (ids(rotated), ids(path)) == ([1], [2])
    assert is_true(rotated, path)


async def test_the_file_is_looked_for_once_a_second_at_most(tmp_path, autojump_clock):
    path, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        await write(audit, 1)
        path.rename(rotated)
        await write(audit, 2)  # within the second: it goes to the file that was moved
        await trio.sleep(1)
        await write(audit, 3)
        assert (ids(rotated), ids(path)) == ([1, 2], [3])


async def test_a_file_in_the_place_of_ours_is_written_to(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        await write(audit, 1)
        path.rename(tmp_path / "audit.jsonl.1")
        path.touch()
        await trio.sleep(1)
        await write(audit, 2)
        assert ids(path) == [2]


async def test_a_hangup_opens_the_file_anew_at_once(tmp_path, autojump_clock):
    path, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    here = Here()
    listener = Listener()
    audit = Audit(path, listener, here)
    async with running(audit):
        await write(audit, 1)
        path.rename(rotated)
        add(audit, 2)
        flushed = here.flushed
        os.kill(os.getpid(), signal.SIGHUP)
        await flushed.wait()
        assert (ids(rotated), ids(path)) == ([1], [2])
    assert listener.told == [("reopened",)]


async def test_a_hangup_makes_an_empty_file_when_there_is_nothing_to_write(
    tmp_path, autojump_clock
):
    path = tmp_path / "audit.jsonl"
    here = Here()
    async with running(Audit(path, Listener(), here)):
        path.unlink()
        flushed = here.flushed
        os.kill(os.getpid(), signal.SIGHUP)
        await flushed.wait()
        assert path.read_bytes() == b""


async def test_a_missing_directory_is_a_failure_until_it_is_back(tmp_path, autojump_clock):
    path = tmp_path / "logs" / "audit.jsonl"
    path.parent.mkdir()
    listener = Listener()
    here = Here()
    audit = Audit(path, listener, here)
    async with running(audit):
        path.unlink()
        path.parent.rmdir()
        await write(audit, 1)
        flushed = here.flushed
        os.kill(os.getpid(), signal.SIGHUP)
        await flushed.wait()
        assert listener.told == [("failed", "No such file or directory", 1)]
        path.parent.mkdir()
        await write(audit, 2)
        assert listener.told[1:] == [("mended", 0), ("reopened",)]
        assert ids(path) == [1, 2]


async def test_an_unreachable_path_is_reported_once(tmp_path, autojump_clock):
    path = tmp_path / "logs" / "audit.jsonl"
    path.parent.mkdir()
    listener = Listener()
    audit = Audit(path, listener, Here())
    async with running(audit):
        await write(audit, 1)
        path.parent.rename(tmp_path / "logs.1")
        path.parent.touch()  # a file where the directory was
        await trio.sleep(1)
        for message_id in range(2, 10):
            await write(audit, message_id)
            await trio.sleep(1)
        [trouble] = listener.told
        assert trouble[:2] == ("failed", "Not a directory")
        path.parent.unlink()
        path.parent.mkdir()
        await write(audit, 10)
        assert listener.told[1:] == [("mended", 0), ("reopened",)]
        assert ids(path) == list(range(2, 11))


async def test_a_file_whose_end_cannot_be_read_is_not_written_to(
    tmp_path, autojump_clock, monkeypatch
):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(line(request(1)))
    listener = Listener()
    here = Here()
    audit = Audit(path, listener, here)

    def unreadable(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    async with running(audit):
        with monkeypatch.context() as broken:
            broken.setattr(os, "pread", unreadable)
            flushed = here.flushed
            os.kill(os.getpid(), signal.SIGHUP)
            await flushed.wait()
            await trio.testing.wait_all_tasks_blocked()
            await write(audit, 2)
            assert ids(path) == [1]
        await write(audit, 3)
        assert listener.told == [("failed", "Input/output error", 0), ("mended", 0), ("reopened",)]
    assert ids(path) == [1, 2, 3]


async def write(audit: Audit, *message_ids: int) -> None:
    """Add lines and let the time pass in which they are written."""
    add(audit, *message_ids)
    await trio.sleep(FLUSH_EVERY)
    await trio.testing.wait_all_tasks_blocked()


# Failures.


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: a write is cut short there, and the next refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_reported_once_and_costs_no_line(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    listener = Listener()
    audit = Audit(path, listener, Here())
    async with running(audit):
        with disk_full_at(800):  # in the middle of the third line
            await write(audit, 1, 2, 3, 4)
            assert listener.told == [("failed", "File too large", 2)]
            assert path.stat().st_size == 800
            for message_id in range(5, 5 + 2 * MOST_BLOCKS):  # which wait in one block
                await write(audit, message_id)
            assert listener.told == [("failed", "File too large", 2)]
            assert audit.waiting == 2 + 2 * MOST_BLOCKS
        await trio.sleep(FLUSH_EVERY)
        await trio.testing.wait_all_tasks_blocked()
        assert listener.told[1:] == [("mended", 0)]
    assert ids(path) == [*range(1, 5 + 2 * MOST_BLOCKS)]


async def test_a_full_device_is_a_failure_and_nothing_else(autojump_clock):
    listener = Listener()
    audit = Audit(Path("/dev/full"), listener, Here())
    async with running(audit):
        await write(audit, 1, 2)
        assert listener.told == [("failed", "No space left on device", 2)]
        Audit(Path("/dev/full"), Listener())  # as it has no chain, another may write it, too
    assert listener.told[1:] == [("lost", 2, "the service stopped")]


async def test_a_line_cut_short_by_a_full_disk_is_whole_in_the_next_file(tmp_path, autojump_clock):
    path, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        with disk_full_at(800):
            await write(audit, 1, 2, 3, 4)
            path.rename(rotated)
            await trio.sleep(1)
            await trio.testing.wait_all_tasks_blocked()
    assert ids(path) == [3, 4]
    whole, half = rotated.read_bytes().splitlines()[:2], rotated.read_bytes().splitlines()[2]
    assert [json.loads(text)["id"] for text in whole] == [1, 2]
    assert judge(half).kind == "cut"
    assert is_true(rotated, path)


async def test_a_line_cut_short_stands_alone_when_the_same_file_is_opened_anew(
    tmp_path, autojump_clock
):
    path = tmp_path / "audit.jsonl"
    here = Here()
    audit = Audit(path, Listener(), here)
    async with running(audit):
        with disk_full_at(800):
            await write(audit, 1, 2, 3, 4)
            flushed = here.flushed
            os.kill(os.getpid(), signal.SIGHUP)
            await flushed.wait()
            assert audit.waiting == 2
    assert kinds(path) == ["true", "true", "cut", "true", "true"]
    assert is_true(path)


def kinds(path: Path) -> list[str]:
    return [judge(text).kind for text in path.read_bytes().splitlines()]


async def test_after_a_half_line_of_the_last_run_a_line_begins_its_own(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(line(request(1)) + line(request(2))[:50])
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        add(audit, 3)
    assert kinds(path) == ["true", "cut", "true"]


async def test_a_half_line_of_the_last_run_that_is_moved_leaves_no_mark_in_the_next_file(
    tmp_path, autojump_clock
):
    path, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    path.write_bytes(line(request(1)) + line(request(2))[:50])
    audit = Audit(path, Listener(), Here())
    path.rename(rotated)
    async with running(audit):
        add(audit, 2)
    assert (kinds(rotated), kinds(path)) == (["true", "cut"], ["true"])
    assert is_true(rotated, path)


async def test_a_line_that_lacks_its_end_only_is_whole_again(tmp_path, autojump_clock):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(line(request(1)).rstrip())
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        await trio.lowlevel.checkpoint()
    assert path.read_bytes() == line(request(1))


async def test_lines_beyond_the_queue_are_lost_and_the_trail_says_so(
    tmp_path, autojump_clock, monkeypatch
):
    monkeypatch.setattr(audit_module, "BLOCK", 1)
    monkeypatch.setattr(audit_module, "MOST_BLOCKS", 3)
    path = tmp_path / "audit.jsonl"
    listener = Listener()
    audit = Audit(path, listener, Here())
    async with running(audit):
        add(audit, 1, 2, 3, 4, 5)
        assert listener.told == [("lost", 1, "too many lines wait to be written")]
        await write(audit)
        assert ids(path) == [1, 2, 3, "2 lost"]  # no further line is needed
        await write(audit, 6)
        assert listener.told[1:] == [("mended", 2)]
        add(audit, 7, 8, 9, 10)  # another time, told again
        assert listener.told[2:] == [("lost", 1, "too many lines wait to be written")]
    assert listener.told[3:] == [("mended", 1)]
    assert ids(path) == [1, 2, 3, "2 lost", 6, 7, 8, 9, "1 lost"]
    assert audit.lost == 3
    assert is_true(path)


async def test_what_is_lost_while_the_disk_is_full_is_one_line(
    tmp_path, autojump_clock, monkeypatch
):
    monkeypatch.setattr(audit_module, "BLOCK", 1)
    monkeypatch.setattr(audit_module, "MOST_BLOCKS", 3)
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        with disk_full_at(0):
            for message_id in range(10):
                await write(audit, message_id)
    assert ids(path) == [0, 1, 2, 3, "6 lost"]


async def test_a_full_block_is_written_at_once(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.setattr(audit_module, "BLOCK", 1)
    monkeypatch.setattr(audit_module, "MOST_BLOCKS", 3)
    audit = Audit(tmp_path / "audit.jsonl", Listener(), Here())
    async with running(audit):
        for message_id in range(10):
            add(audit, message_id)
            await trio.testing.wait_all_tasks_blocked()
    assert audit.lost == 0


async def test_ids_of_any_length_cannot_fill_the_memory(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.setattr(audit_module, "BLOCK", 10_000)
    monkeypatch.setattr(audit_module, "MOST_BLOCKS", 4)
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, Listener(), Here())
    async with running(audit):
        for _ in range(2):  # what was written makes room
            for _ in range(100):  # six times as long in the file
                audit.add([(request("\x7f" * 2000), EUROS, DOLLAR, NOW)])
            assert audit.waiting == 4
            await write(audit)
    assert audit.lost == 2 * 96
    assert is_true(path)


class Stuck:
    """A thread that does its work, but after a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __call__(self, write: Callable[[], None], *, abandon_on_cancel: bool) -> None:
        await trio.sleep(self.seconds)
        write()


async def test_a_slow_write_is_reported_before_it_ends(tmp_path, autojump_clock):
    listener = Listener()
    audit = Audit(tmp_path / "audit.jsonl", listener, Stuck(60))
    async with running(audit) as nursery:
        add(audit, 1)
        await trio.sleep(FLUSH_EVERY + SLOW + 0.1)
        assert listener.told == [("failed", "a write has taken over 5 s", 1)]
        await trio.sleep(60)
        assert listener.told[1:] == [("mended", 0)]
        nursery.cancel_scope.cancel()
    assert ids(tmp_path / "audit.jsonl") == [1]


@pytest.mark.parametrize(
    ("hung_for", "told"),
    [(1, []), (FLUSH_EVERY + SLOW + 1, [("failed", "a write has taken over 5 s", 2)])],
)
async def test_a_disk_that_hangs_does_not_delay_the_stop(tmp_path, hung_for, told, autojump_clock):
    listener = Listener()
    audit = Audit(tmp_path / "audit.jsonl", listener, Stuck(1e9))
    async with running(audit) as nursery:
        add(audit, 1, 2)
        await trio.sleep(hung_for)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began == pytest.approx(LAST_WITHIN)
    assert listener.told == [*told, ("lost", 2, "the service stopped")]


async def test_a_bug_while_a_line_is_made_costs_lines_and_nothing_else(tmp_path, autojump_clock):
    listener = Listener()
    audit = Audit(tmp_path / "audit.jsonl", listener, Here())
    async with running(audit):
        audit.add([(request(), EUROS, "no rate", NOW)] * 3)  # type: ignore[list-item]  # on purpose
        assert audit.waiting == 0
        add(audit, 2)
        assert audit.waiting == 2, "with that for the lost ones"
        await write(audit)
    assert listener.told == [
        ("crashed", AttributeError),
        ("lost", 3, "an internal error"),
        ("mended", 3),
    ]
    assert ids(tmp_path / "audit.jsonl") == ["3 lost", 2]


class Held:
    """A thread that waits for the test before it works."""

    def __init__(self) -> None:
        self.let = trio.Event()
        self.under_way = self.most = 0

    async def __call__(self, write: Callable[[], None], *, abandon_on_cancel: bool) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.let.wait()
        self.under_way -= 1
        write()


async def test_a_suspended_process_is_not_reported_as_a_failed_disk(tmp_path, autojump_clock):
    listener, held = Listener(), Held()
    audit = Audit(tmp_path / "audit.jsonl", listener, held)
    async with running(audit) as nursery:
        add(audit, 1)
        await trio.sleep(FLUSH_EVERY + 0.1)
        autojump_clock.jump(60)
        await trio.sleep(0.4)
        held.let.set()
        await trio.sleep(1)
        held.let = trio.Event()
        add(audit, 2)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(0.1)
            autojump_clock.jump(60)
            await trio.sleep(0.1)
            held.let.set()
    assert listener.told == []
    assert ids(tmp_path / "audit.jsonl") == [1, 2]


async def test_hangups_during_a_write_that_hangs_wait_for_it(tmp_path, autojump_clock):
    path, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    held = Held()
    audit = Audit(path, Listener(), held)
    async with running(audit):
        add(audit, 1)
        await trio.sleep(1)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
            await trio.sleep(1)
        held.let.set()
        await trio.sleep(0.1)
        path.rename(rotated)
        os.kill(os.getpid(), signal.SIGHUP)
        add(audit, 2)
        await trio.sleep(0.1)
    assert held.most == 1
    assert (ids(rotated), ids(path)) == ([1], [2])


async def test_a_write_that_hangs_and_the_last_one_do_not_mix_their_lines(tmp_path, monkeypatch):
    """With real threads: the first hangs in a pipe that nobody reads, the second waits behind."""
    monkeypatch.setattr(audit_module, "FLUSH_EVERY", 0.0)
    monkeypatch.setattr(audit_module, "LAST_WITHIN", 0.01)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    listener = Listener()
    audit = Audit(path, listener)
    reader = os.open(path, os.O_RDONLY)
    add(audit, *range(1000))
    async with running(audit) as nursery:
        await trio.lowlevel.wait_readable(reader)
        nursery.cancel_scope.cancel()
    assert listener.told == [("lost", 1000, "the service stopped")]
    text = b""
    while text.count(b"\n") < 1000:
        text += await trio.to_thread.run_sync(os.read, reader, 65536)
    os.close(reader)
    assert [json.loads(found)["id"] for found in text.splitlines()] == list(range(1000))


# In the service.


@attrs.define
class Bank:
    """A source with one rate; it waits for the test before it answers."""

    let: trio.Event
    name: str = "bank"
    quota: None = None
    budget: None = None

    async def fetch(self, day: date, now: datetime) -> RateTable:
        await self.let.wait()
        quotes = {"EUR": Quote(Decimal(1), day), "USD": Quote(Decimal("1.2222"), day)}
        return RateTable(self.name, day, quotes, now)


async def test_the_service_keeps_a_line_per_conversion_and_its_log_proves_them(tmp_path):
    path = tmp_path / "audit.jsonl"
    stop, asked, let = trio.Event(), trio.Event(), trio.Event()
    peers: list[FeedPeer] = []

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        peers.append(peer)
        await peer.heartbeat()
        await peer.send(request_text(1, currency="EUR"))
        await peer.send(request_text(2, currency="XXX"))
        await peer.send(request_text(3))
        assert (await peer.receive_reply())["id"] == "1"
        asked.set()
        while True:
            await peer.receive()

    with structlog.testing.capture_logs() as logs:
        observer = Observer(event_log())
        async with trio.open_nursery() as nursery:
            feed = MemoryFeed(nursery, script)
            settings = Settings(Address("feed.example", 80, "/", secure=False), audit_file=path)
            dependencies = Dependencies(dial=feed.dial, sources=[Bank(let)], clock=lambda: NOW)

            async def run() -> None:
                await serve(settings, stop, attrs.evolve(dependencies, observer=observer))
                observer.summarize(waiting=0, outbox=0, tables=0)
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            await asked.wait()
            stop.set()
            await trio.testing.wait_all_tasks_blocked()
            assert 3 not in ids(path)
            let.set()
    assert [(line["id"], line["eur"], line["provider"]) for line in lines(path)] == [
        (1, "253.67", "none"),
        (3, "207.55196", "bank"),
    ]
    heads = {event["event"]: event["audit_head"] for event in logs if "audit_head" in event}
    assert list(heads) == ["service.started", "service.stopped", "summary"]
    assert heads["service.started"] == str(START)
    assert heads["service.stopped"] == heads["summary"]
    assert run_verify([str(path)], list(heads.values())) == 0


async def test_a_service_without_an_audit_file_keeps_none(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.chdir(tmp_path)
    observer = Observer()
    observer.converted([(request(), EUROS, DOLLAR, NOW)], 0.001)
    assert observer.audit is None


# A real process.

WRITER = """
import sys, trio
from datetime import UTC, datetime
from pathlib import Path
from decimal import Decimal
from ratebridge.operating.audit import Audit
from ratebridge.messages import decode
from ratebridge.observer import Observer

async def main():
    audit = Audit(Path(sys.argv[1]), Observer())
    async with trio.open_nursery() as nursery:
        await nursery.start(audit.run)
        for message_id in range(10**9):
            frame = sys.argv[2].replace("456", str(message_id)).encode()
            audit.add([(decode(frame), "253.67", None, datetime.now(UTC))])
            print(message_id, flush=True)
            await trio.sleep(0.002)

trio.run(main)
"""


def test_a_kill_loses_a_second_at_most_and_the_next_run_goes_on_after_it(tmp_path):
    path = tmp_path / "audit.jsonl"
    frame = request_text(456, currency="EUR")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), frame], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer.stdout:
        made: list[tuple[float, int]] = []
        while not made or made[-1][0] < made[0][0] + 1.3:
            message_id = int(writer.stdout.readline())
            made.append((time.monotonic(), message_id))
        writer.kill()
        killed = time.monotonic()
        writer.wait()
    written = ids(path)
    assert written == list(range(len(written)))
    assert written[-1] >= max(number for at, number in made if at < killed - 1.0)
    assert written[-1] < made[-1][1] + 100

    with path.open("ab") as file:  # as if the kill had come in the middle of a write
        file.write(line(request(7))[:99])

    async def next_run() -> None:
        audit = Audit(path, Listener())
        async with running(audit):
            add(audit, 8)

    trio.run(next_run)
    assert kinds(path) == ["true"] * len(written) + ["cut", "true"]
    assert is_true(path)
