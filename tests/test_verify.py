"""The command `verify`: every line is recomputed, and none that was altered passes."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratebridge.commands.verify import MOST_LINE, judge, lines_of, run_verify, verify
from ratebridge.conversion import rounded, to_euro
from ratebridge.errors import BadSettings
from ratebridge.operating.audit import NO_PROVIDER, line_of
from ratebridge.rates import Rate

AT = datetime(2021, 6, 1, 12, 0, 0, 412_000, tzinfo=UTC)
ASKED = datetime(2021, 5, 18, 21, 32, 42, 324_000, tzinfo=UTC)
MAY_18 = date(2021, 5, 18)


def make_line(
    message_id: int = 456,
    stake: str = "253.67",
    units: str = "1.2222",
    euro: str = "1",
    day: date = MAY_18,
) -> bytes:
    """A line as the service writes it."""
    quotes = Decimal(units), Decimal(euro)
    rate = Rate("USD", *quotes, day, MAY_18, "ecb", AT, cached=True)
    eur = to_euro(Decimal(stake), *quotes)
    came = b'"2021-05-18T21:32:42.324Z"'
    return line_of((AT, b"%d" % message_id, "USD", Decimal(stake), eur, rate, came, ASKED))


def many_lines(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield make_line(
            number, f"{number % 977}.{number % 100_000:05}", f"1.{number % 9973 + 1:04}"
        )


TRUE = make_line().rstrip()


def altered(**members: Any) -> bytes:
    """The line with some members changed, or without those that are None; it keeps its checksum."""
    line = json.loads(TRUE) | members
    return json.dumps({key: value for key, value in line.items() if value is not None}).encode()


def bare(**members: Any) -> bytes:
    """The same without a checksum."""
    return altered(**members, crc=None)


# One line.


def test_a_line_of_the_service_is_true():
    assert judge(TRUE) == ("true", "")


def test_a_line_spaced_in_another_way_is_true_all_the_same():
    assert judge(altered()) == ("true", "")
    assert altered() != TRUE


def test_a_line_without_a_checksum_is_recomputed():
    assert judge(bare()) == ("bare", "")
    assert judge(bare(eur="207.551960", stake="253.67000")) == ("bare", "")  # the same numbers


@pytest.mark.parametrize("name", ["stake", "eur", "rate"])
def test_any_altered_digit_of_an_amount_is_found(name):
    # Small amounts at a rate of many digits: most alterations leave the rounded euros alone.
    line = make_line(stake="0.00312", units="1.1616963437").decode()
    at = line.index(f'"{name}":"') + len(name) + 4
    value = json.loads(line)[name]
    assert line[at : at + len(value)] == value
    for place, digit in enumerate(value, at):
        for other in set("0123456789") - {digit}:
            if digit != ".":
                kind, _ = judge((line[:place] + other + line[place + 1 :]).rstrip().encode())
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
        bare(eur="207.55197"),
        "false",
        "differs: eur is 207.55197, should be 207.55196 (253.67 USD at 1.2222 a euro)",
    ),
    Row(
        "other rate",
        altered(rate="1.2322"),
        "false",
        "differs: eur is 207.55196, should be 205.86755 (253.67 USD at 1.2322 a euro)",
    ),
    Row(
        "other base",
        bare(rate="1.2222/0.5"),
        "false",
        "differs: eur is 207.55196, should be 103.77598 (253.67 USD at 1.2222/0.5 a euro)",
    ),
    Row(
        "euro at another rate than one",
        bare(currency="EUR"),
        "false",
        "differs: rate is 1.2222, should be 1 for EUR",
    ),
    Row(
        "euros that are none",
        bare(currency="EUR", rate="1", eur="253.68"),
        "false",
        "differs: eur is 253.68, should be 253.67 (253.67 EUR at 1 a euro)",
    ),
    Row(
        "older rate",
        bare(rate_date="2021-05-11"),
        "false",
        "differs: rate_date is 2021-05-11, should be from 2021-05-12 to 2021-05-18",
    ),
    Row(
        "rate of a later day",
        bare(rate_date="2021-05-19"),
        "false",
        "differs: rate_date is 2021-05-19, should be from 2021-05-12 to 2021-05-18",
    ),
    Row(
        "other id",
        altered(id=457),
        "false",
        "differs: crc is 86ecfe2e, should be X (the euros agree, so something else was altered)",
    ),
    Row("no JSON", b"\x1b[2Jhello", "unreadable", "is not JSON: \\x1b[2Jhello"),
    Row("nothing", b"", "unreadable", "is not JSON: "),
    Row("no object", b"[]", "unreadable", "is no line of an audit file: Expected `object`, X"),
    Row("deep", b"{" + b'"a":[' * 5000 + b"]}", "unreadable", "is not JSON: X"),
    Row("no euros", bare(eur=None), "unreadable", "is no line of an audit file: Object missing X"),
    Row("stake no text", bare(stake=1), "unreadable", "is no line of an audit file: Expected X"),
    Row("stake", bare(stake="1e3"), "unreadable", "cannot be checked: stake 1e3 is not a X"),
    Row("long stake", bare(stake="9" * 16), "unreadable", "cannot be checked: stake 9X"),
    Row("eur", bare(eur="NaN"), "unreadable", "cannot be checked: eur NaN is not a number"),
    Row("rate", bare(rate="0"), "unreadable", "cannot be checked: rate 0 is not a rate in range"),
    Row("half rate", bare(rate="1/"), "unreadable", "cannot be checked: rate 1/ is not a rate X"),
    Row(
        "digits",
        bare(stake="\uff11"),
        "unreadable",
        "cannot be checked: stake \uff11 is not a number X",
    ),
    Row("at", bare(at="now"), "unreadable", "cannot be checked: at now is not a date"),
    Row("date", bare(date="20210518"), "unreadable", "cannot be checked: date X is not a date"),
    Row("date no text", bare(date=5), "unreadable", "cannot be checked: date 5 is not a date"),
    Row("week", bare(rate_date="2021-W20-2"), "unreadable", "cannot be checked: rate_date X"),
    Row("no day", bare(rate_date="2021-02-30"), "unreadable", "cannot be checked: rate_date X"),
    Row("too long", bare(id="x" * MOST_LINE), "unreadable", "is too long for a line of X"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_line_that_is_not_true_is_told_with_what_it_should_be(row):
    kind, text = judge(row.line)
    assert kind == row.kind
    assert re.fullmatch(re.escape(row.text).replace("X", ".*"), text)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 50, 100, len(TRUE) - 1])
def test_a_line_that_lost_its_end_is_cut_and_not_false(size):
    assert judge(TRUE[:size]) == ("cut", f"was cut short after {size} bytes")


def test_a_rate_may_be_a_day_older_where_the_clocks_differed_about_midnight():
    assert judge(bare(rate_date="2021-05-12")) == ("bare", "")
    assert judge(bare(rate_date="2021-05-11"))[0] == "false"


def test_euro_to_euro_is_true():
    stake = Decimal("7.123455")
    record = (AT, b"1", "EUR", stake, rounded(stake), None, b'"2021-05-18"', ASKED)
    line = line_of(record).rstrip()
    assert json.loads(line)["provider"] == NO_PROVIDER
    assert judge(line) == ("true", "")


stakes = st.decimals(Decimal("-1e9"), Decimal("1e9"), places=5)
quotes = st.decimals(Decimal("0.00001"), Decimal(100_000), places=10).filter(
    lambda quote: quote > 0
)


@given(
    stake=stakes, units=quotes, euro=st.one_of(st.just(Decimal(1)), quotes), more=st.integers(1, 9)
)
def test_exactly_the_euros_of_exact_arithmetic_are_true(stake, units, euro, more):
    exact = Fraction(stake) * Fraction(euro) / Fraction(units)
    cents = round(exact * 10**5)  # of Fractions: half to even, as the rule is
    rate = f"{units:f}" if euro == 1 else f"{units:f}/{euro:f}"

    def line(cents: int) -> bytes:
        return bare(stake=f"{stake:f}", rate=rate, eur=f"{Decimal(cents).scaleb(-5):f}")

    assert judge(line(cents)) == ("bare", "")
    assert judge(line(cents + more))[0] == "false"


# A file.


def check(data: bytes, *, terminal: bool = False) -> tuple[int, str, str]:
    """Exit code, standard output, and what a terminal would have got."""
    out, progress = io.StringIO(), io.StringIO()
    if terminal:
        progress.isatty = lambda: True  # type: ignore[method-assign]  # a terminal is all it is
    code = verify(io.BytesIO(data), len(data), out, progress)
    return code, out.getvalue(), progress.getvalue()


def test_all_true():
    assert check(b"".join(many_lines(1234))) == (0, "1,234 lines checked: 1,234 true.\n", "")


def test_an_empty_file_holds_nothing_false():
    assert check(b"") == (0, "0 lines checked: nothing in it.\n", "")


def test_the_first_that_differs_is_told_and_all_are_counted():
    text = b"".join(many_lines(2000))
    at = text.index(b'"stake":"', 100_000) + 9
    number = text.count(b"\n", 0, at) + 1
    wrong = b"8" if text[at : at + 1] == b"7" else b"7"
    code, out, _ = check(text[:at] + wrong + text[at + 1 :])
    assert code == 1
    first, summary = out.splitlines()
    assert first.startswith(f"line {number} differs: eur is ")
    assert summary == "2,000 lines checked: 1,999 true, 1 false."


def test_lines_without_an_end_or_with_two_are_lines():
    assert check(TRUE + b"\r\n" + TRUE)[:2] == (0, "2 lines checked: 2 true.\n")


def test_a_cut_line_is_counted_and_fails_nothing():
    code, out, _ = check(TRUE + b"\n" + TRUE[:70] + b"\n" + TRUE + b"\n" + TRUE[:9])
    assert code == 0
    assert out == (
        "line 2 was cut short after 70 bytes\n"
        "line 4 was cut short after 9 bytes\n"
        "4 lines checked: 2 true, 2 cut short.\n"
    )


def test_what_is_no_audit_file_fails():
    code, out, _ = check(b"root:x:0:0\n" * 30)
    assert code == 1
    assert out.count("is not JSON: root:x:0:0") == 10
    assert out.endswith("30 lines checked: 30 unreadable.\n")


def test_lines_without_a_checksum_are_pointed_out():
    code, out, _ = check(bare() + b"\n" + TRUE)
    assert code == 0
    assert out == (
        "2 lines checked: 2 true.\n1 of the true have no checksum: "
        "in those, a change that leaves the rounded euros as they are is not seen.\n"
    )


def test_a_monster_of_a_line_is_one_unreadable_line_and_costs_no_memory():
    monster = TRUE + b"\n" + b"x" * (3 * MOST_LINE) + b"\n" + TRUE + b"\n"
    found = list(lines_of(io.BytesIO(monster)))
    assert [size for _, size in found] == [len(TRUE) + 1, 3 * MOST_LINE + 1, len(TRUE) + 1]
    assert max(len(text) for text, _ in found) == MOST_LINE
    code, out, _ = check(monster)
    assert (code, out.splitlines()[-1]) == (1, "3 lines checked: 2 true, 1 unreadable.")


class Failing(io.BytesIO):
    def readline(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError(5, "Input/output error")
        return super().readline(size)


def test_a_file_that_cannot_be_read_to_its_end_fails():
    out = io.StringIO()
    assert verify(Failing(TRUE + b"\n" + TRUE), None, out, io.StringIO()) == 1
    assert out.getvalue().endswith(
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
    _, out, shown = check(b"".join(many_lines(40)), terminal=True)
    assert out == "40 lines checked: 40 true.\n"
    updates = shown.removesuffix("\r\x1b[K").split("\r")[1:]
    assert len(updates) > 5
    assert all(re.fullmatch(r"[ \d]{3}%, \d+ lines", update) for update in updates)
    assert [int(update[:3]) for update in updates] == sorted(int(u[:3]) for u in updates)
    assert shown.endswith("\r\x1b[K")


@pytest.mark.usefixtures("ticking")
def test_a_found_line_does_not_run_into_the_progress():
    text = b"".join(many_lines(20)) + bare(eur="1") + b"\n" + b"".join(many_lines(20))
    _, _, shown = check(text, terminal=True)
    assert shown.count("\r\x1b[K") == 2


@pytest.mark.usefixtures("ticking")
def test_progress_of_a_pipe_has_no_share():
    progress = io.StringIO()
    progress.isatty = lambda: True  # type: ignore[method-assign]  # a terminal is all it is
    assert verify(io.BytesIO(b"".join(many_lines(20))), None, io.StringIO(), progress) == 0
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
        run_verify(name)


def test_a_file_by_its_name(tmp_path, capsys):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(many_lines(3)))
    assert run_verify(str(path)) == 0
    assert capsys.readouterr().out == "3 lines checked: 3 true.\n"


def test_a_pipe_by_its_name(capsys):
    reader, writer = os.pipe()
    os.write(writer, make_line())
    os.close(writer)
    assert run_verify(f"/dev/fd/{reader}") == 0
    os.close(reader)
    assert capsys.readouterr().out == "1 line checked: 1 true.\n"


def test_standard_input_and_the_exit_code():
    command = [sys.executable, "-m", "ratebridge", "verify", "-"]
    done = subprocess.run(command, input=make_line() + bare(eur="1"), capture_output=True)
    assert done.returncode == 1
    assert done.stdout.decode().splitlines() == [
        "line 2 differs: eur is 1, should be 207.55196 (253.67 USD at 1.2222 a euro)",
        "2 lines checked: 1 true, 1 false.",
    ]
    assert done.stderr == b""
