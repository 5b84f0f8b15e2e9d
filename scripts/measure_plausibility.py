"""How many true and false quotes `ratebridge.plausibility` doubts, over the ECB's history.

Prints the greatest moves within the distances of its bounds, which these are made of; how many true
quotes of the history are doubted, and how many of the errors that are planted into them are found.
A source's quotes are the ECB's own, the same off by about 0.3 % as those of another source are, or
those of the day before, as of a source that publishes late. Ends with 1 if a move is greater than
its bound, or if one of the ECB's own quotes is doubted.

    uv run scripts/measure_plausibility.py
"""

import random
import sys
from collections import deque
from collections.abc import Callable
from datetime import date
from decimal import Decimal

from ratebridge.history import embedded
from ratebridge.plausibility import BOUNDS, doubt, off
from ratebridge.rates import Doubted, Quote

TRIALS = 2_000  # errors planted of each kind
NOISE = 0.003  # the standard deviation of another source's quotes
SEED = 22

Row = dict[str, Decimal]  # units for one euro, by currency
DAYS = sorted(embedded())
ROWS: list[Row] = [{code: q.units for code, q in embedded()[day].items()} for day in DAYS]


def greatest_move(within: int) -> tuple[float, str, date]:
    """The greatest move of all currencies within so many days, up or down."""
    greatest = 1.0, "", DAYS[0]
    for code in embedded().currencies:
        # The values that a later one can be furthest from: rising from the left, and falling.
        lowest: deque[tuple[int, float]] = deque()
        highest: deque[tuple[int, float]] = deque()
        for day, row in zip(DAYS, ROWS, strict=True):
            if code not in row:
                continue
            value, today = float(row[code]), day.toordinal()
            for window, sign in ((lowest, 1), (highest, -1)):
                while window and sign * window[-1][1] >= sign * value:
                    window.pop()
                window.append((today, value))
                while window[0][0] < today - within:
                    window.popleft()
                greatest = max(greatest, (off(value, window[0][1]), code, day))
    return greatest


# What a source gives for the day at a place of the history.


def as_quoted(_chance: random.Random, at: int) -> Row:
    return ROWS[at]


def of_another_source(chance: random.Random, at: int) -> Row:
    return {code: units * Decimal(1 + chance.gauss(0, NOISE)) for code, units in ROWS[at].items()}


def of_the_day_before(_chance: random.Random, at: int) -> Row:
    return ROWS[max(at - 1, 0)]


def doubted(row: Row, day: date) -> set[str]:
    judged, _ = doubt({day: {code: Quote(units) for code, units in row.items()}}, embedded(), day)
    return {code for code, found in judged.items() if isinstance(found, Doubted)}


# The errors: a row in which the quotes of some currencies, the first ones of a shuffle, are wrong.


def swapped(row: Row, wrong: list[str]) -> Row:
    return {code: 1 / row[code] for code in wrong}


def of_the_next_row(row: Row, wrong: list[str]) -> Row:
    codes = list(row)
    return {code: row[codes[(codes.index(code) + 1) % len(codes)]] for code in wrong}


def off_by_ten(row: Row, wrong: list[str]) -> Row:
    return {code: row[code] * (10 if wrong[0] < "M" else Decimal("0.1")) for code in wrong}


def two_exchanged(row: Row, wrong: list[str]) -> Row:
    one, other = wrong[0], next(code for code in reversed(row) if code != wrong[0])
    return {one: row[other], other: row[one]}


def share_found(
    give: Callable[[random.Random, int], Row], spoil: Callable[[Row, list[str]], Row], most: int
) -> float:
    """Of the quotes that are wrong, the share that is doubted, on random days."""
    chance = random.Random(SEED)
    wrong = found = 0
    for _ in range(TRIALS):
        at = chance.randrange(len(DAYS))
        row = give(chance, at)
        spoilt = spoil(row, chance.sample(list(row), min(most, len(row))))
        wrong += len(spoilt)
        found += len(spoilt.keys() & doubted({**row, **spoilt}, DAYS[at]))
    return found / wrong


def main() -> int:
    failed = False
    print("Within days    greatest move         bound")
    for within, bound in ((1, BOUNDS[1][1]), *BOUNDS):
        move, code, day = greatest_move(within)
        failed |= move > bound
        print(f"{within:11}{move:9.3f} {code} {day}{bound:9.2f}")
    sources = as_quoted, of_another_source, of_the_day_before
    print(f"\n{'':32}" + "".join(f"{give.__name__.replace('_', ' '):>20}" for give in sources))
    counts = []
    for give in sources:
        chance = random.Random(SEED)
        counts.append(sum(len(doubted(give(chance, at), day)) for at, day in enumerate(DAYS)))
    print(
        f"{f'true quotes of {sum(map(len, ROWS)):,} doubted':32}"
        + "".join(f"{n:20}" for n in counts)
    )
    for spoil in (two_exchanged, of_the_next_row, swapped, off_by_ten):
        for most, name in ((1, "one"), (len(embedded().currencies), "all")):
            if spoil is not two_exchanged or most == 1:
                shares = [share_found(give, spoil, most) for give in sources]
                title = f"{name} {spoil.__name__.replace('_', ' ')}"
                print(f"{title:32}" + "".join(f"{share:20.1%}" for share in shares))
    return int(failed or counts[0] > 0)


if __name__ == "__main__":
    sys.exit(main())
