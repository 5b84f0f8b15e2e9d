"""The command `verify`: every line is recomputed, and every altered one is found.

The oracle of the chain is `forged`: hashlib and json alone.
"""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratebridge.commands.verify import Trail, run_verify, verify
from ratebridge.conversion import QUOTE_MAX, QUOTE_MIN, is_quote, plain, to_euro
from ratebridge.errors import BadSettings
from ratebridge.messages import Request
from ratebridge.operating.trail import MOST_LINE, Chain, Head
from ratebridge.rates import Rate
from ratebridge.reporting.observer import Converted

AT = datetime(2021, 6, 1, 12, 0, 0, 412_000, tzinfo=UTC)
ASKED = datetime(2021, 5, 18, 21, 32, 42, 324_000, tzinfo=UTC)
MAY_18 = date(2021, 5, 18)
ZEROS = "0" * 64


def record(
    message_id: int = 456, stake: str = "253.67", units: str = "1.2222", euro: str = "1"
) -> Converted:
    """A conversion as the service keeps it."""
    quotes = Decimal(units), Decimal(euro)
    rate = Rate("USD", *quotes, MAY_18, MAY_18, "ecb", AT, cached=True)
    asked = request(b"%d" % message_id, Decimal(stake))
    return asked, plain(to_euro(asked.stake, *quotes)), rate, AT


def request(raw_id: bytes, stake: Decimal) -> Request:
    date = b'"2021-05-18T21:32:42.324Z"'
    return Request(raw_id, stake, "USD", ASKED, date, (), ())


TRUE = Chain().conversions([record()]).rstrip()


def forged(line: bytes = TRUE, **members: Any) -> bytes:
    """The line with some members changed, or without those that are None, and its hash made anew.

    A hash among the members stays what it is.
    """
    changed = json.loads(line) | members
    seal = changed.pop("hash") if "hash" in members else ZEROS
    changed.pop("hash", None)
    kept = {key: value for key, value in changed.items() if value is not None}
    text = json.dumps(kept, separators=(",", ":"))
    if seal is None:
        return text.encode()
    seal = members.get("hash", hashlib.sha256(text[:-1].encode()).hexdigest())
    return f'{text[:-1]},"hash":"{seal}"}}'.encode()


# One line.


def problems(line: bytes) -> list[tuple[str, str]]:
    """The kind of each problem of a trail of this line, which may have any number, and its text."""
    trail = Trail(10**18, ())
    trail.take(line, ("", 1))
    trail.end()
    return [(found["kind"], found["problem"]) for found in trail.problems]


def test_a_line_of_the_service_is_true():
    assert forged() == TRUE, "the oracle makes the same line"
    assert problems(TRUE) == []


@pytest.mark.parametrize("name", ["stake", "eur", "rate"])
def test_any_altered_digit_of_an_amount_is_found(name):
    """Also where the rounded euros stay the same: a small amount, a rate of many digits."""
    line = Chain().conversions([record(stake="0.00312", units="1.1616963437")]).rstrip().decode()
    at = line.index(f'"{name}":"') + len(name) + 4
    value = json.loads(line)[name]
    assert line[at : at + len(value)] == value
    for place, digit in enumerate(value, at):
        for other in set("0123456789") - {digit}:
            if digit != ".":
                assert problems((line[:place] + other + line[place + 1 :]).encode())


DIFFERS, NONE, BAD = "differs: ", "is no line of an audit file: ", "cannot be checked: "
KINDS = {DIFFERS: "false", NONE: "unreadable", BAD: "unreadable", "is not proven: ": "not proven"}
TOO_EARLY = "not up to 6 days before 2021-05-18"

# Each line with its problem, where X is any text.
ROWS = {
    "other euros": (
        forged(eur="207.55197"),
        "differs: eur is 207.55197, should be 207.55196 (253.67 USD at 1.2222 a euro)",
    ),
    "other base": (
        forged(rate="1.2222/0.5"),
        "differs: eur is 207.55196, should be 103.77598 (253.67 USD at 1.2222/0.5 a euro)",
    ),
    "a rate of the euro": (forged(currency="EUR"), "differs: rate is 1.2222, should be 1 for EUR"),
    "older rate": (forged(rate_date="2021-05-11"), f"differs: rate_date is X, {TOO_EARLY}"),
    "later rate": (forged(rate_date="2021-05-19"), f"differs: rate_date is X, {TOO_EARLY}"),
    "no day before": (
        forged(date="0001-01-02T00:00:00Z"),
        "differs: rate_date is X, not up to 6 days before 0001-01-02",
    ),
    "other hash": (forged(hash=ZEROS), "was altered: the hash is not that of the content"),
    "no hash": (forged(hash=None), "is not proven: the hash is missing"),
    "no hash before": (forged(prev=None), "is not proven: it has no hash of the line before"),
    "more behind the id": (TRUE.replace(b"456,", b'456,"a":1,'), f'{BAD}id is 456,"a":1'),
    "deep": (forged(id="X").replace(b'"X"', b"[" * 5000), f"{BAD}id X"),
    "long stake": (forged(stake="9" * 16), f"{BAD}stake is 9X"),
    "rate": (forged(rate="0"), f"{BAD}rate is 0"),
    "at": (forged(at="now"), f'{BAD}at is "now"'),
    "date": (forged(date="20210518"), f"{BAD}date is X"),
    "no day": (forged(rate_date="2021-02-30"), f"{BAD}rate_date is X"),
    "nothing of a chain": (forged(n=None, prev=None, hash=None), f"{NONE}X"),
    "more in front": (forged(TRUE.replace(b'"id"', b'"a":1,"id"')), f"{NONE}X"),
    "spaced": (TRUE.replace(b",", b", "), f"{NONE}X"),
    "no JSON": (b"\x1b[2Jhello", f"{NONE}\\x1b[2Jhello"),
    "nothing": (b"", NONE),
    "stake": (forged(stake="1e3"), f"{NONE}X"),
    "too long": (forged(id="x" * MOST_LINE)[:MOST_LINE] + b"}", f"{NONE}X"),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_false_line_is_reported_with_the_expected_value(row):
    line, expected = ROWS[row]
    kind, text = problems(line)[0]
    assert kind == next((KINDS[begin] for begin in KINDS if text.startswith(begin)), "altered")
    assert re.fullmatch(re.escape(expected).replace("X", ".*"), text)


def test_dates_are_read_by_the_rule_of_the_wire():
    """The oldest rate: a day older than usual, where the clocks differed about midnight."""
    for asked, rate_date in [
        ("2021-05-18T21:32:42.324Z", "2021-05-12"),
        ("2021-05-18T23:59:59.9999999Z", "2021-05-12"),
        ("2016-12-31T23:59:60Z", "2016-12-31"),
        ("2021-05-18T23:30:00-02:00", "2021-05-19"),
        ("2021-05-18", "2021-05-18"),
    ]:
        assert problems(forged(date=asked, rate_date=rate_date)) == []
    assert problems(forged(date="2021-05-18T23:59:59.9999999Z", rate_date="2021-05-19"))


def test_the_longest_id_is_true():
    raw_id = b'"' + b"\x7f" * (64 * 1024 - 200) + b'"'
    longest = request(raw_id, Decimal("253.67")), *record()[1:]
    assert problems(Chain().conversions([longest]).rstrip()) == []


stakes = st.decimals(-999_999_999_999_999, 999_999_999_999_999, places=19)
quotes = st.builds(
    lambda digits, shift: Decimal(digits).scaleb(shift),
    st.integers(1, 10**34 - 1),  # all the digits that a quote can have
    st.integers(-43, 9),
).filter(lambda quote: QUOTE_MIN <= quote <= QUOTE_MAX)


@given(
    stake=stakes, units=quotes, euro=st.one_of(st.just(Decimal(1)), quotes), more=st.integers(1, 9)
)
@example(  # as long and as small a quote as there can be, and the greatest stake
    stake=Decimal(999_999_999_999_999),
    units=Decimal("1.234567890123456789012345678901234e-10"),
    euro=Decimal(1),
    more=1,
)
def test_exactly_the_euros_of_exact_arithmetic_are_true(stake, units, euro, more):
    exact = Fraction(stake) * Fraction(euro) / Fraction(units)
    cents = round(exact * 10**5)  # of Fractions: half to even, as the rule is
    assert is_quote(units)
    rate = f"{units:f}" if euro == 1 else f"{units:f}/{euro:f}"

    def line(cents: int) -> bytes:
        return forged(stake=f"{stake:f}", rate=rate, eur=plain(Decimal(f"{cents}e-5")))

    assert problems(line(cents)) == []
    assert problems(line(cents + more))[0][0] == "false"


# A trail.


def check(data: bytes, *heads: Head, first: int = 1) -> tuple[Trail, bool]:
    """What is found in a trail, and whether it is true."""
    trail = Trail(first, heads)
    return trail, verify(trail, [("", io.BytesIO(data))])


def is_true(data: bytes, *heads: Head, first: int = 1) -> bool:
    return check(data, *heads, first=first)[1]


def told_lines(data: bytes) -> set[int]:
    """The numbers of the lines with problems."""
    problems = check(data)[0].problems
    return {found["line"] for found in problems if found["kind"] not in ("lost", "wrong end")}


def said(data: bytes, *heads: Head, first: int = 1) -> list[str]:
    return [found["problem"] for found in check(data, *heads, first=first)[0].problems]


def head_at(data: bytes, line: int) -> Head:
    """Number and hash of a line, counted from 1."""
    found = json.loads(data.splitlines()[line - 1])
    return Head(found["n"], found["hash"])


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def ten_lines() -> list[bytes]:
    """Ten lines of a trail, the sixth of which stands for lost ones."""
    chain = Chain(started=AT)
    text = chain.conversions([record(number) for number in range(5)])
    text += chain.loss(AT, 17)
    return (text + chain.conversions([record(number) for number in range(5, 9)])).splitlines()


TEN = ten_lines()
TRAIL = joined(TEN)
places = st.integers(0, 9)


def test_an_empty_trail_is_not_true():
    assert not is_true(b"")
    assert said(b"") == ["an empty trail shows nothing"]


@given(at=st.integers(0, len(TRAIL) - 1), byte=st.integers(0, 255))
def test_any_altered_byte_is_found_and_located(at, byte):
    if TRAIL[at] == byte:
        return
    altered = TRAIL[:at] + bytes([byte]) + TRAIL[at + 1 :]
    assert not is_true(altered)
    assert TRAIL.count(b"\n", 0, at) + 1 in told_lines(altered)


@given(place=places)
def test_a_missing_line_is_found_and_located(place):
    rest = joined(TEN[:place] + TEN[place + 1 :])
    # Behind the last one there is none that could tell, but the log.
    assert is_true(rest) == (place == 9)
    assert told_lines(rest) == ({place + 1} if place < 9 else set())
    assert not is_true(rest, head_at(TRAIL, 10))


@given(place=places, to=places)
def test_a_duplicated_line_is_found_and_located(place, to):
    doubled = joined([*TEN[: to + 1], TEN[place], *TEN[to + 1 :]])
    assert not is_true(doubled)
    assert {to + 2, to + 3} & told_lines(doubled)  # of two equal lines, the second


@given(first=places, second=places)
def test_swapped_lines_are_found_and_located(first, second):
    lines = list(TEN)
    lines[first], lines[second] = lines[second], lines[first]
    swapped = joined(lines)
    assert is_true(swapped) == (first == second)
    if first != second:
        assert {min(first, second) + 1, max(first, second) + 1} <= told_lines(swapped)


@given(place=places, member=st.sampled_from(["n", "prev", "hash", "at", "id", "eur"]))
def test_a_line_that_lacks_a_member_is_found_and_located(place, member):
    line = json.loads(TEN[place])
    kept = {key: value for key, value in line.items() if key != member}
    stripped = json.dumps(kept, separators=(",", ":")).encode()
    lines = joined([*TEN[:place], stripped, *TEN[place + 1 :]])
    assert is_true(lines) == (len(kept) == len(line))
    assert len(kept) == len(line) or place + 1 in told_lines(lines)


@given(size=st.integers(0, len(TRAIL)))
def test_a_trail_that_ends_early_is_reported_where_it_can_be_known(size):
    rest = TRAIL[:size]
    # A line is whole without the mere line end behind it.
    is_whole = size > 0 and (TRAIL + b"\n")[size : size + 1] in (b"{", b"\n")
    assert is_true(rest) == is_whole
    if size and not is_whole:
        assert rest.count(b"\n") + 1 in told_lines(rest)
        assert said(rest)[-1] == "the trail ends early: its last line is cut short"
    if size < len(TRAIL) - 1:
        head = head_at(TRAIL, 10)
        assert not is_true(rest, head)
        assert said(rest, head)[-1] == f"the trail ends early, before the head {head}"


def rewritten(lines: list[bytes], **members: Any) -> bytes:
    """The first line altered, and it and all behind it chained anew."""
    prev = json.loads(lines[0])["prev"]
    made = []
    for line in lines:
        made.append(forged(line, prev=prev, **members))
        prev = json.loads(made[-1])["hash"]
        members = {}
    return joined(made)


@given(place=places)
def test_a_line_with_its_hash_made_anew_is_found_by_the_next(place):
    head = head_at(TRAIL, 10)
    made_anew = forged(TEN[place], at="2021-06-01T12:00:00Z")
    trail = joined([*TEN[:place], made_anew, *TEN[place + 1 :]])
    assert told_lines(trail) == ({place + 2} if place < 9 else set())
    assert is_true(trail) == (place == 9)
    assert not is_true(trail, head)
    # All behind it made anew as well: the trail is whole, and not the one that the log tells of.
    trail = joined(TEN[:place]) + rewritten(TEN[place:], at="2021-06-01T12:00:00Z")
    assert is_true(trail)
    assert not is_true(trail, head)
    assert said(trail, head)[-1] == f"the trail is another one, without the head {head}"


def test_a_line_whose_hash_is_gone_is_located_and_its_place_is_no_gap():
    for line in (forged(TEN[3], hash=None), b"hello"):
        trail = joined([*TEN[:3], line, *TEN[4:]])
        assert not is_true(trail)
        assert told_lines(trail) == {4}


def test_a_trail_that_begins_late_is_true_where_that_is_known():
    late = joined(TEN[4:])
    assert said(late)[0] == "is number 5: 4 lines missing before it"
    assert [is_true(late, first=first) for first in (1, 4, 5, 6)] == [False, False, True, True]
    assert is_true(late, head_at(TRAIL, 4))
    assert not is_true(late, head_at(TRAIL, 3), first=5)


def test_a_new_chain_is_not_bound_to_what_is_before_it():
    two = TRAIL + TRAIL
    assert not is_true(two)
    assert told_lines(two) == {11}
    assert said(two)[1:2] == ["begins a new chain: nothing binds it to those before it"]
    assert told_lines(Chain(Head(0, "1" * 64)).conversions([record(0)])) == {1}


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (TEN[3][:70], "was cut short after 70 bytes"),
        (b"\0" * 4096, "was cut short after 0 bytes; 4,096 NUL bytes follow, as after a power cut"),
        (b'{"n\0', "was cut short after 3 bytes; 1 NUL bytes follow, as after a power cut"),
    ],
    ids=["begun", "NUL bytes", "both"],
)
def test_a_line_that_was_cut_is_excused_by_the_next_that_goes_on(cut, why):
    trail = joined([*TEN[:3], cut, *TEN[3:]])
    assert is_true(trail)
    assert why in said(trail)
    assert not is_true(joined([*TEN[:3], cut, *TEN[4:]]))
    assert not is_true(joined([*TEN[:3], cut]))


def test_the_first_problems_of_each_kind_are_listed_and_all_counted():
    trail, _ = check(b"root:x:0:0\n" * 30 + b'{"n":\n' * 3)
    assert trail.counts == {"unreadable": 30, "cut short": 3, "wrong end": 1}
    assert [found["line"] for found in trail.problems] == [*range(1, 11), 31, 32, 33, None]


def test_a_huge_line_is_one_unreadable_line_and_costs_no_memory():
    monster = TRUE + b"\n" + b"x" * (3 * MOST_LINE) + b"\n" + b"hello\n"
    trail, _ = check(monster)
    assert (trail.lines, trail.counts) == (3, {"unreadable": 2})


# The command.


@pytest.mark.parametrize(
    ("name", "head", "why"),
    [
        ("missing.jsonl", [], "No such file"),
        (".", [], "Is a directory"),
        ("a\0b", [], "not the name of a file"),
        ("-", ["12:" + ZEROS[1:]], "expected a number, a colon and 64 hex digits"),
    ],
)
def test_a_file_that_cannot_be_opened_and_a_head_that_is_none_are_bad_usage(name, head, why):
    with pytest.raises(BadSettings, match=why):
        run_verify([name], head)


def test_the_report_of_a_true_trail_tells_its_limits(tmp_path, capsys):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(TRAIL)
    head, early = str(head_at(TRAIL, 10)), str(head_at(TRAIL, 4))
    found = "line 6 stands for 17 lines lost\n10 lines checked: 17 lost. Starts: 1.\n"
    found += f"The chain is whole from number 1 to its head {head}\n"
    limits = "The chain cannot show whether later lines are missing or all of it was written\n"
    limits += "anew. To find out, give the newest head of the log (--head).\n"
    for heads, more in [
        ([], limits),
        ([early], f"By the heads given, it is proven up to number 4.\n{limits}"),
        ([early, head], "By the heads given, it is proven up to number 10.\n"),
    ]:
        assert run_verify([str(path)], heads) == 0
        assert capsys.readouterr().out == found + more


def test_several_files_are_one_trail_gzipped_ones_by_their_names(tmp_path, capsys):
    first, second, third = (tmp_path / f"audit.jsonl{end}" for end in (".2.gz", ".1", ""))
    first.write_bytes(gzip.compress(joined(TEN[:3]) + TEN[3][:50]))
    second.write_bytes(joined(TEN[3:7]))
    third.write_bytes(joined(TEN[7:]))
    names = [str(path) for path in (first, second, third)]
    assert run_verify(names, [str(head_at(TRAIL, 4)), str(head_at(TRAIL, 10))]) == 0
    assert "11 lines checked: 1 cut short, 17 lost. Starts: 1.\n" in capsys.readouterr().out
    assert run_verify([names[0], names[2]]) == 1
    found = f"{third}: line 1 is number 8: 4 lines missing before it\n"
    assert found in capsys.readouterr().out
    assert run_verify([*names, names[2]]) == 1, "one is there twice"


@pytest.mark.parametrize("damage", ["cut", "altered", "none"])
def test_a_damaged_gzip_file_fails(tmp_path, capsys, damage):
    path = tmp_path / "audit.jsonl.gz"
    text = gzip.compress(TRAIL)
    at = len(text) // 2
    path.write_bytes(
        {"cut": text[:at], "altered": text[:at] + b"\0\0\0" + text[at + 3 :], "none": TRUE}[damage]
    )
    assert run_verify([str(path)]) == 1
    line = "1" if damage == "none" else r"\d+"
    problem = rf"^line {line} cannot be read: the file is damaged$"
    assert re.search(problem, capsys.readouterr().out, re.MULTILINE)


def test_the_json_document_has_what_the_report_has(tmp_path, capsys):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(TRAIL + b"hello\n")
    assert run_verify([str(path)], as_json=True) == 1
    lost = {"kind": "lost", "file": str(path), "line": 6, "problem": "stands for 17 lines lost"}
    other = {"kind": "unreadable", "file": str(path), "line": 11}
    told = {"ok": False, "lines": 11, "starts": 1, "head": str(head_at(TRAIL, 10))}
    assert json.loads(capsys.readouterr().out) == told | {
        "problems": [lost, other | {"problem": "is no line of an audit file: hello"}]
    }
    path.write_bytes(b"")
    with redirect_stdout(io.StringIO()) as out:
        assert run_verify([str(path)], as_json=True) == 1
    assert json.loads(out.getvalue())["head"] is None


def test_standard_input_pipes_and_names_that_the_output_cannot_show(tmp_path):
    path = tmp_path / "prüfung.jsonl"
    command = [sys.executable, "-m", "ratebridge", "verify", "--from", "4", str(path), "-"]
    for content, rest, code, told in [
        (TEN[3:5], TEN[5:], 0, "7 lines checked"),
        (TEN[3:5], [b"hello"], 1, "-: line 1 is no line"),
        ([b"hello"], [], 1, "/pr\\xfcfung.jsonl: line 1 is no line"),
    ]:
        path.write_bytes(joined(content))
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, input=joined(rest), capture_output=True, env=environment)
        assert (done.returncode, done.stderr) == (code, b"")
        assert told in done.stdout.decode("ascii")
