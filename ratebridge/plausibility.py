"""Which quotes of a new table cannot be true. Pure.

A currency is compared with the nearest table held, of whichever source, and with
the ranges of the ECB's history (`levels`). The bounds are those of that history,
widened, so that no table of its 27 years is refused. True rates have moved by
nearly as much as the bounds allow. So gross errors are caught (a swapped rate, a
shifted decimal point, another row), and small ones are not.
`scripts/measure_plausibility.py` measures both.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Final

import attrs

from .errors import SourceFailed
from .levels import LAST_YEAR, VOLATILE, ranges
from .rates import RateTable

# (days, the factor by which an ECB currency may move within them). The greatest moves of 1999 to
# 2026: 1.68 within a day (TRL 2001), 1.95, 2.40 and 3.59 within 7, 30 and 365 days (ISK 2008).
MOVES: Final = ((7, 2.0), (30, 2.5), (365, 4.0))
# Other currencies have no such history. Official rates have moved by a factor of nearly 10 at once,
# and by more within a year.
OTHER_DAYS: Final = 30
OTHER_MOVE: Final = 9.0

# The factor by which a currency may be off the range of its year and the two beside it: wide, for
# sources that differ from the ECB and for the future. Volatile ones have moved by over 2 in a
# year. Each year after the history adds 1, up to a factor below 10.
FACTOR: Final = 3.0
VOLATILE_FACTOR: Final = 6.0
MOST_FACTOR: Final = 9.0

# Units for one of the anchor: pegs that central banks have held since 1999 or before, for
# currencies without ECB rates.
PEGS: Final[Mapping[str, tuple[str, float]]] = {
    "AED": ("USD", 3.6725),
    "BHD": ("USD", 0.376),
    "JOD": ("USD", 0.709),
    "OMR": ("USD", 0.3845),
    "QAR": ("USD", 3.64),
    "SAR": ("USD", 3.75),
    "BAM": ("EUR", 1.95583),
}
PEG_FACTOR: Final = 1.1  # off a peg: banks publish at different hours, and not all each day
# A peg is not used if its anchor is off the range of its years by more than this.
ANCHOR_FACTOR: Final = 1.1

_ROUNDING: Final = 1 + 1e-9  # float tolerance: a move by the bound itself is allowed


def implausible(
    table: RateTable, held: Iterable[RateTable]
) -> tuple[Mapping[str, SourceFailed], bool]:
    """The currencies of a table whose quotes cannot be true, with reasons; and whether all of it.

    `held` are the tables to compare with. The table as a whole is implausible if most
    of what can be compared is (two quotes at least), or if every quote is one.
    """
    units = _units_for_one_euro(table)
    known = _nearest(table, held)
    wrong: dict[str, SourceFailed] = {}
    judged = 0
    for currency, quoted in units.items():
        level = _level(currency, table.day)
        near = known.get(currency)
        judged += level is not None or near is not None
        expected = _unlike_its_level(quoted, level)
        if expected is None:
            expected = _unlike_its_neighbour(quoted, level, near)
        if expected is None:
            expected = _unlike_its_peg(currency, quoted, table.day, units)
        if expected is not None:
            wrong[currency] = SourceFailed(
                "implausible",
                f"gives an implausible {quoted:.6g} (expected: {expected:.4g})",
            )
    all_one = len(units) > 1 and all(quoted == 1 for quoted in units.values())
    if all_one:
        why = SourceFailed("implausible", "gives all currencies at one for one euro")
        wrong = dict.fromkeys(units, why)
    return wrong, all_one or (len(wrong) > 1 and 2 * len(wrong) > judged)


def without(table: RateTable, wrong: Mapping[str, SourceFailed]) -> RateTable:
    """The table without the wrong quotes; their reasons are added to `refused`."""
    if not wrong:
        return table
    quotes = {code: quote for code, quote in table.quotes.items() if code not in wrong}
    return attrs.evolve(table, quotes=quotes, refused={**table.refused, **wrong})


@attrs.frozen
class _Level:
    """The range a currency should be in, and the factor by which it may be off."""

    low: float
    high: float
    factor: float

    @property
    def middle(self) -> float:
        return float((self.low * self.high) ** 0.5)

    def distance(self, quoted: float) -> float:
        """The factor by which a quote is off the range; 1 within it."""
        return max(self.low / quoted, quoted / self.high, 1.0)


def _units_for_one_euro(table: RateTable) -> dict[str, float]:
    euro = float(table.quotes["EUR"].units)
    return {
        currency: float(quote.units) / euro
        for currency, quote in table.quotes.items()
        if currency != "EUR"
    }


def _nearest(table: RateTable, held: Iterable[RateTable]) -> dict[str, tuple[float, int]]:
    """By currency: the quote of the nearest table within a year, and how many days off it is."""
    year, _ = MOVES[-1]

    def gap(other: RateTable) -> int:
        return abs((other.day - table.day).days)

    known: dict[str, tuple[float, int]] = {}
    for other in sorted(held, key=gap):
        if gap(other) > year or known.keys() >= table.quotes.keys() - {"EUR"}:
            break
        for currency, quoted in _units_for_one_euro(other).items():
            known.setdefault(currency, (quoted, gap(other)))
    return known


def _level(currency: str, day: date) -> _Level | None:
    by_year = ranges().get(currency)
    if by_year is None:
        return None
    near = [by_year[year] for year in range(day.year - 1, day.year + 2) if year in by_year]
    if not near:  # in a gap of the history, or after its end: the last range before
        before = [year for year in by_year if year < day.year]
        if not before:
            return None
        near = [by_year[max(before)]]
    factor = VOLATILE_FACTOR if currency in VOLATILE else FACTOR
    factor += max(0, day.year - min(max(by_year), LAST_YEAR))
    lows, highs = zip(*near, strict=True)
    return _Level(min(lows), max(highs), min(factor, MOST_FACTOR))


def _unlike_its_level(quoted: float, level: _Level | None) -> float | None:
    """The expected quote, if this one is off its level; else None."""
    if level is None or level.distance(quoted) <= level.factor:
        return None
    return level.middle


def _unlike_its_neighbour(
    quoted: float, level: _Level | None, near: tuple[float, int] | None
) -> float | None:
    """The same for the nearest table. Of two that differ, the one further off its level errs."""
    if near is None:
        return None
    expected, gap = near
    if level is None and gap > OTHER_DAYS:
        return None
    allowed = OTHER_MOVE if level is None else next(most for days, most in MOVES if gap <= days)
    if max(quoted / expected, expected / quoted) <= allowed * _ROUNDING:
        return None
    if level is not None and level.distance(expected) > level.distance(quoted):
        return None
    return expected


def _unlike_its_peg(
    currency: str, quoted: float, day: date, units: Mapping[str, float]
) -> float | None:
    """The same for a currency that is pegged to another one in the table."""
    if currency not in PEGS:
        return None
    anchor, peg = PEGS[currency]
    expected = peg * units.get(anchor, 1.0)
    level = _level(anchor, day)
    if anchor != "EUR" and (
        anchor not in units or level is None or level.distance(units[anchor]) > ANCHOR_FACTOR
    ):
        return None
    return None if max(quoted / expected, expected / quoted) <= PEG_FACTOR else expected
