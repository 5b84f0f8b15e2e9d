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
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratebridge.commands.verify import Trail, judge, lines_of, run_verify, verify
from ratebridge.conversion import QUOTE_MAX, QUOTE_MIN, is_quote, plain, rounded, to_euro
from ratebridge.errors import BadSettings
from ratebridge.messages import Request
from ratebridge.observer import Converted
from ratebridge.operating.trail import MOST_LINE, NO_PROVIDER, Chain, Head
from ratebridge.rates import Rate

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


def request(raw_id: bytes, stake: Decimal, currency: str = "USD") -> Request:
    date = b'"2021-05-18T21:32:42.324Z"'
    return Request(raw_id, stake, currency, ASKED, date, b"", ())


def many_lines(count: int) -> bytes:
    """A trail as the service writes it."""
    return Chain().conversions(
        record(number, f"{number % 977}.{number % 100_000:05}", f"1.{number % 9973 + 1:04}")
        for number in range(count)
    )


TRUE = Chain().conversions([record()]).rstrip()
OLD = (  # as the release before the chain wrote it
    b'{"at":"2021-05-20T08:00:00.412Z","id":456,"currency":"USD","stake":"253.67",'
    b'"eur":"207.55196","rate":"1.2222","rate_date":"2021-05-18",'
    b'"date":"2021-05-18T21:32:42.324Z","provider":"ecb","crc":"82e2467d"}'
)


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


def test_a_line_of_the_service_is_true():
    assert judge(TRUE).kind == "true"
    assert forged() == TRUE
    assert judge(OLD).kind == "true"


@pytest.mark.parametrize("name", ["stake", "eur", "rate"])
def test_any_altered_digit_of_an_amount_is_found(name):
    # Small amounts at a rate of many digits: most alterations leave the rounded euros alone.
    line = Chain().conversions([record(stake="0.00312", units="1.1616963437")]).rstrip().decode()
    at = line.index(f'"{name}":"') + len(name) + 4
    value = json.loads(line)[name]
    assert line[at : at + len(value)] == value
    for place, digit in enumerate(value, at):
        for other in set("0123456789") - {digit}:
            if digit != ".":
                kind = judge((line[:place] + other + line[place + 1 :]).encode()).kind
                assert kind in ("false", "unreadable")


@attrs.frozen
class Row:
    name: str
    line: bytes
    kind: str
    text: str


ROWS = [
    Row(
        "other euros",
        forged(eur="207.55197"),
        "false",
        "differs: eur is 207.55197, should be 207.55196 (253.67 USD at 1.2222 a euro)",
    ),
    Row(
        "the same euros",
        forged(eur="207.551960"),
        "false",
        "differs: eur is 207.551960, should be 207.55196 X",
    ),
    Row(
        "other rate",
        forged(rate="1.2322"),
        "false",
        "differs: eur is 207.55196, should be 205.86755 (253.67 USD at 1.2322 a euro)",
    ),
    Row(
        "other base",
        forged(rate="1.2222/0.5"),
        "false",
        "differs: eur is 207.55196, should be 103.77598 (253.67 USD at 1.2222/0.5 a euro)",
    ),
    Row(
        "euro at another rate than one",
        forged(currency="EUR"),
        "false",
        "differs: rate is 1.2222, should be 1 for EUR",
    ),
    Row(
        "euros that are none",
        forged(currency="EUR", rate="1", eur="253.68"),
        "false",
        "differs: eur is 253.68, should be 253.67 (253.67 EUR at 1 a euro)",
    ),
    Row(
        "older rate",
        forged(rate_date="2021-05-11"),
        "false",
        "differs: rate_date is 2021-05-11, should be from 2021-05-12 to 2021-05-18",
    ),
    Row(
        "rate of a later day",
        forged(rate_date="2021-05-19"),
        "false",
        "differs: rate_date is 2021-05-19, should be from 2021-05-12 to 2021-05-18",
    ),
    Row("other hash", forged(hash=ZEROS), "false", "was altered: its hash is not that of X"),
    Row("no hash", forged(hash=None), "unproven", "is not proven: X"),
    Row("no place", forged(n=None, prev=None), "unproven", "is not proven: X"),
    Row("nothing of a chain", forged(n=None, prev=None, hash=None), "unproven", "is not proven: X"),
    Row("no number", forged(n=None), "unreadable", "is no line of an audit file: X"),
    Row("one more member", forged(more=1), "unreadable", "is no line of an audit file: X"),
    Row(
        "more in front", forged(TRUE.replace(b'"id"', b'"a":1,"id"')), "unreadable", "is no line X"
    ),
    Row(
        "more behind the id",
        TRUE.replace(b"456,", b'456,"a":1,'),
        "unreadable",
        'cannot be checked: id 456,"a":1 is not a JSON value',
    ),
    Row("doubled member", TRUE.replace(b'"id":4', b'"id":5,"id":4'), "unreadable", "cannot be X"),
    Row("doubled eur", TRUE.replace(b'"eur"', b'"eur":"1","eur"'), "unreadable", "is no line X"),
    Row("spaced", TRUE.replace(b",", b", "), "unreadable", "is no line of an audit file: X"),
    Row("escaped", TRUE.replace(b"USD", b"\\u0055SD"), "unreadable", "is no line X"),
    Row("not ASCII", TRUE.replace(b"456", b'"\xff"'), "unreadable", "is no line X"),
    Row("old: other id", OLD.replace(b"456", b"457"), "false", "was altered: its checksum is X"),
    Row(
        "old: not UTF-8", OLD.replace(b"456", b'"\xff"'), "false", "was altered: its checksum is X"
    ),
    Row("old: no sum", OLD[:-18] + b"}", "unproven", "is not proven: it has neither X"),
    Row("old: more", OLD[:-1] + b',"a":1}', "unreadable", "is no line X"),
    Row("old: other end", OLD[:-1] + b"]", "unreadable", "is no line X"),
    Row("old: one byte more", OLD + b"\r", "unreadable", "is no line X"),
    Row("no JSON", b"\x1b[2Jhello", "unreadable", "is no line of an audit file: \\x1b[2Jhello"),
    Row("nothing", b"", "unreadable", "is no line of an audit file: "),
    Row(
        "deep", forged(id="X").replace(b'"X"', b"[" * 5000), "unreadable", "cannot be checked: id X"
    ),
    Row("stake no text", forged(stake=1), "unreadable", "is no line of an audit file: X"),
    Row("stake", forged(stake="1e3"), "unreadable", "cannot be checked: stake 1e3 is not a X"),
    Row("long stake", forged(stake="9" * 16), "unreadable", "cannot be checked: stake 9X"),
    Row("eur", forged(eur="NaN"), "false", "differs: eur is NaN, should be 207.55196 X"),
    Row("rate", forged(rate="0"), "unreadable", "cannot be checked: rate 0 is not a rate in range"),
    Row("half rate", forged(rate="1/"), "unreadable", "cannot be checked: rate 1/ is not a rate X"),
    Row("at", forged(at="now"), "unreadable", "cannot be checked: at now is not a date"),
    Row("date", forged(date="20210518"), "unreadable", "cannot be checked: date X is not a date"),
    Row("date no text", forged(date=5), "unreadable", "is no line of an audit file: X"),
    Row("week", forged(rate_date="2021-W20-2"), "unreadable", "cannot be checked: rate_date X"),
    Row("no day", forged(rate_date="2021-02-30"), "unreadable", "cannot be checked: rate_date X"),
    Row("too long", forged(id="x" * MOST_LINE), "unreadable", "is too long for a line of X"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_false_line_is_reported_with_the_expected_value(row):
    kind, text, *_ = judge(row.line)
    assert kind == row.kind
    assert re.fullmatch(re.escape(row.text).replace("X", ".*"), text)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 50, 100, len(TRUE) - 1])
def test_a_line_that_lost_its_end_is_cut_and_not_false(size):
    assert judge(TRUE[:size])[:2] == ("cut", f"was cut short after {size} bytes")


def test_a_rate_may_be_a_day_older_where_the_clocks_differed_about_midnight():
    assert judge(forged(rate_date="2021-05-12")).kind == "true"
    assert judge(forged(rate_date="2021-05-11")).kind == "false"


def test_euro_to_euro_is_true():
    stake = Decimal("7.123455")
    record = request(b"1", stake, "EUR"), plain(rounded(stake)), None, AT
    line = Chain().conversions([record]).rstrip()
    assert json.loads(line)["provider"] == NO_PROVIDER
    assert judge(line).kind == "true"


def test_the_longest_id_makes_a_line_that_is_read():
    raw_id = b'"' + b"\x7f" * (64 * 1024 - 200) + b'"'
    line = Chain().conversions([(request(raw_id, Decimal("253.67")), *record()[1:])]).rstrip()
    assert judge(line).kind == "true"


stakes = st.decimals(-999_999_999_999_999, 999_999_999_999_999, places=19)
quotes = st.builds(
    lambda digits, shift: Decimal(digits).scaleb(shift),
    st.integers(1, 10**34 - 1),  # all the digits that a quote can have
    st.integers(-43, 9),
).filter(lambda quote: QUOTE_MIN <= quote <= QUOTE_MAX)


@given(
    stake=stakes, units=quotes, euro=st.one_of(st.just(Decimal(1)), quotes), more=st.integers(1, 9)
)
def test_exactly_the_euros_of_exact_arithmetic_are_true(stake, units, euro, more):
    exact = Fraction(stake) * Fraction(euro) / Fraction(units)
    cents = round(exact * 10**5)  # of Fractions: half to even, as the rule is
    assert is_quote(units)
    rate = f"{units:f}" if euro == 1 else f"{units:f}/{euro:f}"

    def line(cents: int) -> bytes:
        return forged(stake=f"{stake:f}", rate=rate, eur=_plain(cents))

    assert judge(line(cents)).kind == "true"
    assert judge(line(cents + more)).kind == "false"


def _plain(cents: int) -> str:
    """A number of 10^-5 as text, without a trailing zero."""
    whole, places = divmod(abs(cents), 10**5)
    text = f"{'-' if cents < 0 else ''}{whole}.{places:05}"
    return text.rstrip("0").rstrip(".")


# A trail.


def check(
    data: bytes, *heads: Head, first: int = 1, terminal: bool = False
) -> tuple[int, str, str]:
    """Exit code, standard output, and what a terminal would have got."""
    out, progress = io.StringIO(), io.StringIO()
    if terminal:
        progress.isatty = lambda: True  # type: ignore[method-assign]  # a terminal is all it is
    parts = [("", io.BytesIO(data))]
    code = verify(parts, len(data), out, progress, Trail(first, heads))
    return code, out.getvalue(), progress.getvalue()


def head_at(data: bytes, line: int) -> Head:
    """Number and hash of a line, counted from 1."""
    found = json.loads(data.splitlines()[line - 1])
    return Head(found["n"], found["hash"])


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def test_a_whole_trail_is_true_and_its_limits_are_printed():
    trail = many_lines(1234)
    head = head_at(trail, 1234)
    found = "1,234 lines checked: 1,234 true.\n"
    found += f"The chain is whole from number 1 to its head {head}\n"
    code, out, _ = check(trail)
    assert code == 0
    assert out == (
        f"{found}The chain cannot show whether later lines are missing or all of it was written "
        "anew. To find out, give a head from the log (--head).\n"
    )
    code, out, _ = check(trail, head)
    assert code == 0
    assert out == f"{found}By the heads given, it is proven up to number 1234.\n"


def test_an_empty_trail_is_not_true():
    assert check(b"") == (1, "0 lines checked: an empty trail shows nothing.\n", "")


def ten_lines() -> list[bytes]:
    """Ten lines of a trail, the sixth of which stands for lost ones."""
    chain = Chain()
    text = chain.conversions(map(record, range(5)))
    text += chain.loss(AT, 17)
    return (text + chain.conversions(map(record, range(5, 9)))).splitlines()


TEN = ten_lines()
TRAIL = joined(TEN)
places = st.integers(0, 9)


def told_lines(out: str) -> set[int]:
    """The numbers of the lines that something is told of, but for losses."""
    found = re.findall(r"^line (\d+) (?!stands)", out, re.MULTILINE)
    return set(map(int, found))


def test_lost_lines_are_reported():
    code, out, _ = check(TRAIL)
    assert code == 0
    assert out.startswith(
        "line 6 stands for 17 lines lost\n"
        "10 lines checked: 10 true.\n"
        "17 lines lost before they were written, as the trail itself tells.\n"
    )


@given(at=st.integers(0, len(TRAIL) - 1), byte=st.integers(0, 255))
def test_any_altered_byte_is_found_and_located(at, byte):
    if TRAIL[at] == byte:
        return
    code, out, _ = check(TRAIL[:at] + bytes([byte]) + TRAIL[at + 1 :])
    assert code == 1
    assert TRAIL.count(b"\n", 0, at) + 1 in told_lines(out)


@given(place=places)
def test_a_missing_line_is_found_and_located(place):
    rest = joined(TEN[:place] + TEN[place + 1 :])
    code, out, _ = check(rest)
    # Behind the last one there is none that could tell, but the log.
    assert (code, told_lines(out)) == ((1, {place + 1}) if place < 9 else (0, set()))
    assert check(rest, head_at(TRAIL, 10))[0] == 1


@given(place=places, to=places)
def test_a_duplicated_line_is_found_and_located(place, to):
    code, out, _ = check(joined([*TEN[: to + 1], TEN[place], *TEN[to + 1 :]]))
    assert code == 1
    assert {to + 2, to + 3} & told_lines(out)  # of two equal lines, the second
    if place <= to:
        assert f"line {to + 2} is doubled: number {place + 1} was there before\n" in out


@given(place=places, to=places)
def test_a_moved_line_is_found_and_located(place, to):
    lines = [*TEN[:place], *TEN[place + 1 :]]
    lines.insert(to, TEN[place])
    code, out, _ = check(joined(lines))
    assert code == (place != to)
    if place < to:
        assert f"line {to + 1} was moved: it is number {place + 1}, behind number {to + 1}" in out
        assert "missing" not in out.splitlines()[-1]
    elif place > to:
        assert to + 1 in told_lines(out)


@given(first=places, second=places)
def test_swapped_lines_are_found_and_located(first, second):
    lines = list(TEN)
    lines[first], lines[second] = lines[second], lines[first]
    code, out, _ = check(joined(lines))
    assert code == (first != second)
    if code:
        assert {min(first, second) + 1, max(first, second) + 1} <= told_lines(out)


@given(size=st.integers(0, len(TRAIL)))
def test_a_trail_that_ends_early_is_reported_where_it_can_be_known(size):
    rest = TRAIL[:size]
    code, out, _ = check(rest)
    # A line is whole without the mere line end behind it.
    is_whole = size > 0 and (TRAIL + b"\n")[size : size + 1] in (b"{", b"\n")
    assert code == (0 if is_whole else 1)
    if size and not is_whole:
        assert rest.count(b"\n") + 1 in told_lines(out)
        assert "The trail ends early: its last line is cut short.\n" in out
    if size < len(TRAIL) - 1:
        code, out, _ = check(rest, head_at(TRAIL, 10))
        assert code == 1
        assert f"The trail ends early, before the head {head_at(TRAIL, 10)}.\n" in out


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
    code, out, _ = check(trail)
    assert (code, told_lines(out)) == ((1, {place + 2}) if place < 9 else (0, set()))
    assert check(trail, head)[0] == 1
    # All behind it made anew as well: the trail is whole, and not the one that the log tells of.
    trail = joined(TEN[:place]) + rewritten(TEN[place:], at="2021-06-01T12:00:00Z")
    assert check(trail)[0] == 0
    code, out, _ = check(trail, head)
    assert code == 1
    assert f"The trail is another one, without the head {head}.\n" in out


def test_a_line_whose_hash_is_gone_is_located_and_its_place_is_no_gap():
    for line in (forged(TEN[3], hash=None), OLD):
        code, out, _ = check(joined([*TEN[:3], line, *TEN[4:]]))
        assert (code, told_lines(out)) == (1, {4})
        assert "10 lines checked: 9 true, 1 not proven.\n" in out


def test_a_trail_that_begins_late_is_true_where_that_is_known():
    late = joined(TEN[4:])
    code, out, _ = check(late)
    assert code == 1
    assert "line 1 begins late: it is number 5, and those before it are not here\n" in out
    assert check(late, first=5)[0] == 0
    assert check(late, first=4)[0] == 1
    assert check(late, head_at(TRAIL, 4))[0] == 0
    assert check(late, head_at(TRAIL, 5))[0] == 1


def test_a_new_chain_is_not_bound_to_what_is_before_it():
    code, out, _ = check(TRAIL + many_lines(3))
    assert (code, told_lines(out)) == (1, {11})
    assert "line 11 begins a new chain: nothing binds it to the lines before it\n" in out


def test_a_first_line_that_goes_on_from_another_is_told():
    code, out, _ = check(Chain(Head(0, "1" * 64)).conversions([record(0)]))
    assert (code, told_lines(out)) == (1, {1})
    assert "line 1 has number 1, and goes on from another line\n" in out


def test_a_line_that_was_cut_is_excused_by_the_next_that_goes_on():
    whole = joined(TEN[:3])
    cut = TEN[3][:70] + b"\n"
    code, out, _ = check(whole + cut + cut + joined(TEN[3:]))
    assert code == 0
    assert "line 4 was cut short after 70 bytes\n" in out
    assert "12 lines checked: 10 true, 2 cut short.\n" in out
    code, out, _ = check(whole + cut + joined(TEN[4:]))
    assert code == 1
    assert "line 5 is number 5: 1 line missing behind number 3\n" in out


def test_lines_of_an_older_release_are_checked_by_their_checksum():
    old = joined([OLD, OLD[:99], OLD])
    code, out, _ = check(old)
    assert code == 0
    assert out == (
        "line 2 was cut short after 99 bytes\n"
        "3 lines checked: 2 true, 1 cut short.\n"
        "2 of the true are of an older release: no chain binds them, "
        "so missing, duplicated and moved ones among them are not found.\n"
    )
    assert check(old + TRAIL)[0] == 0
    assert check(old + joined(TEN[1:]))[0] == 1
    assert check(TRAIL + old)[0] == 1


def test_the_first_lines_that_differ_are_listed_and_all_counted():
    text = many_lines(2000)
    at = text.index(b'"stake":"', 100_000) + 9
    number = text.count(b"\n", 0, at) + 1
    wrong = b"8" if text[at : at + 1] == b"7" else b"7"
    code, out, _ = check(text[:at] + wrong + text[at + 1 :])
    assert code == 1
    first, summary = out.splitlines()
    assert first.startswith(f"line {number} differs: eur is ")
    assert summary == "2,000 lines checked: 1,999 true, 1 false."


def test_what_is_no_audit_file_fails():
    code, out, _ = check(b"root:x:0:0\n" * 30)
    assert code == 1
    assert out.count("is no line of an audit file: root:x:0:0") == 10
    assert out.endswith("30 lines checked: 30 unreadable.\n")


def test_a_huge_line_is_one_unreadable_line_and_costs_no_memory():
    monster = TRUE + b"\n" + b"x" * (3 * MOST_LINE) + b"\n" + TRUE + b"\n"
    found = list(lines_of(io.BytesIO(monster)))
    assert [size for _, size in found] == [len(TRUE) + 1, 3 * MOST_LINE + 1, len(TRUE) + 1]
    assert max(len(text) for text, _ in found) == MOST_LINE
    code, out, _ = check(monster)
    assert code == 1
    assert "3 lines checked: 2 true, 1 unreadable.\n" in out


class Failing(io.BytesIO):
    def readline(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError(5, "Input/output error")
        return super().readline(size)


def test_a_file_that_cannot_be_read_to_its_end_fails():
    out = io.StringIO()
    assert verify([("", Failing(TRUE + b"\n" + TRUE))], None, out, io.StringIO()) == 1
    assert out.getvalue() == (
        "1 line checked: 1 true.\nThe file could not be read to its end: Input/output error.\n"
    )


# Progress.


@pytest.fixture
def ticking(monkeypatch):
    """Each look at the clock finds a tenth of a second gone."""
    ticks = iter(range(1_000_000))
    monkeypatch.setattr("ratebridge.commands.verify.monotonic", lambda: next(ticks) / 10)


@pytest.mark.usefixtures("ticking")
def test_progress_is_shown_on_a_terminal_and_cleared_before_the_result():
    _, out, shown = check(many_lines(40), terminal=True)
    assert out.startswith("40 lines checked: 40 true.\n")
    updates = shown.removesuffix("\r\x1b[K").split("\r")[1:]
    assert len(updates) > 5
    assert all(re.fullmatch(r"[ \d]{3}%, \d+ lines", update) for update in updates)
    assert [int(update[:3]) for update in updates] == sorted(int(u[:3]) for u in updates)
    assert shown.endswith("\r\x1b[K")


@pytest.mark.usefixtures("ticking")
def test_a_found_line_does_not_run_into_the_progress():
    text = many_lines(20) + forged(eur="1") + b"\n"
    _, _, shown = check(text, terminal=True)
    assert shown.count("\r\x1b[K") == 2


@pytest.mark.usefixtures("ticking")
def test_progress_of_a_pipe_has_no_share():
    progress = io.StringIO()
    progress.isatty = lambda: True  # type: ignore[method-assign]  # a terminal is all it is
    assert verify([("", io.BytesIO(many_lines(20)))], None, io.StringIO(), progress) == 0
    assert "\r4 lines" in progress.getvalue()
    assert "%" not in progress.getvalue()


# The command.


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing.jsonl", "No such file"),
        (".", "Is a directory"),
        ("a\0b", "not the name of a file"),
    ],
)
def test_a_file_that_cannot_be_opened_is_bad_usage(name, why):
    with pytest.raises(BadSettings, match=why):
        run_verify([name])


def test_several_files_are_one_trail_gzipped_ones_by_their_names(tmp_path, capsys):
    first, second, third = (tmp_path / f"audit.jsonl{end}" for end in (".2.gz", ".1", ""))
    first.write_bytes(gzip.compress(joined(TEN[:3]) + TEN[3][:50]))
    second.write_bytes(joined(TEN[3:7]))
    third.write_bytes(joined(TEN[7:]))
    names = [str(path) for path in (first, second, third)]
    assert run_verify(names, [str(head_at(TRAIL, 4)), str(head_at(TRAIL, 10))]) == 0
    assert "11 lines checked: 10 true, 1 cut short.\n" in capsys.readouterr().out
    assert run_verify([names[0], names[2]]) == 1
    found = f"{third}: line 1 is number 8: 4 lines missing behind number 3\n"
    assert found in capsys.readouterr().out
    assert run_verify(names[1:]) == 1
    assert f"{second}: line 1 begins late: it is number 4" in capsys.readouterr().out
    assert run_verify(names[1:], first=4) == 0


@pytest.mark.parametrize("damage", ["cut", "altered", "none"])
def test_a_damaged_gzip_file_fails(tmp_path, capsys, damage):
    path = tmp_path / "audit.jsonl.gz"
    text = gzip.compress(many_lines(99))
    at = len(text) // 2
    path.write_bytes(
        {"cut": text[:at], "altered": text[:at] + b"\0\0\0" + text[at + 3 :], "none": TRUE}[damage]
    )
    assert run_verify([str(path)]) == 1
    assert "could not be read to its end: " in capsys.readouterr().out


@pytest.mark.parametrize("head", ["12", "x:" + ZEROS, "12:" + ZEROS[1:], "-1:" + ZEROS])
def test_a_head_that_is_none_is_bad_usage(head):
    with pytest.raises(BadSettings, match="expected a number, a colon and 64 hex digits"):
        run_verify(["-"], [head])


def test_a_pipe_by_its_name(capsys):
    reader, writer = os.pipe()
    os.write(writer, many_lines(1))
    os.close(writer)
    assert run_verify([f"/dev/fd/{reader}"]) == 0
    os.close(reader)
    assert capsys.readouterr().out.startswith("1 line checked: 1 true.\n")


def test_standard_input_the_options_and_the_exit_code(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(joined(TEN[3:5]))
    command = [sys.executable, "-m", "ratebridge", "verify", "--from", "4"]
    command += ["--head", str(head_at(TRAIL, 4)), "--head", str(head_at(TRAIL, 5)), str(path), "-"]
    done = subprocess.run(command, input=joined(TEN[5:]), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run(command, input=joined(TEN[6:]), capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.decode().splitlines() == [
        "-: line 1 is number 7: 1 line missing behind number 5",
        "6 lines checked: 6 true.",
        "The chain is broken: 1 line missing.",
    ]
