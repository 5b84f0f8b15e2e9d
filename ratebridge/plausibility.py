"""Which quotes of a fresh table cannot be true, by all that is known. Pure.

What is known of a currency is the nearest table held, of whichever source, and
the ranges it moved in by the ECB's history (`levels`). The bounds are those of
that history, widened: no table of its 27 years is refused. They are far from
tight, as true rates have moved by as much as they allow: what is caught are errors
of kind (a swapped rate, a shifted point, another row), and not those of degree.
`scripts/measure_plausibility.py` measures both.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Final

import attrs

from .errors import SourceFailed
from .levels import LAST_YEAR, VOLATILE, ranges
from .rates import RateTable

# By how much a currency of the ECB's may have moved, up or down, within so many days. The greatest
# moves of 1999 to 2026: 1.68 within a day (TRL 2001), 1.95, 2.40 and 3.59 within 7, 30 and 365
# (ISK 2008).
MOVES: Final = ((7, 2.0), (30, 2.5), (365, 4.0))
# Of others no such history is at hand; official rates have been moved by a factor of nearly 10
# at once, and by more within a year.
OTHER_DAYS: Final = 30
OTHER_MOVE: Final = 9.0

# How far off the range of its year, and the years beside it, a currency may be: wide, for sources
# that differ from the ECB and for what has not happened yet. The volatile have moved by over 2
# in a year. Each year beyond the history adds 1, but a factor of 10 is never true.
FACTOR: Final = 3.0
VOLATILE_FACTOR: Final = 6.0
MOST_FACTOR: Final = 9.0

# Pegs that have held since 1999 or before, by the central banks, of currencies that the ECB has
# no rates of: units for one of the anchor.
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
# A peg is no measure where its anchor is off the range of its years by more than this.
ANCHOR_FACTOR: Final = 1.1

_ROUNDING: Final = 1 + 1e-9  # of the floats: a move by the bound itself is within it


def implausible(
    table: RateTable, held: Iterable[RateTable]
) -> tuple[Mapping[str, SourceFailed], bool]:
    """The currencies of a table whose quotes cannot be true, each with why.

    `held` are the tables to compare with. The second is whether the table as a whole
    cannot be: most of what can be compared is off (two at least), or all is one.
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
    """The table without the quotes that are wrong, which it refuses for the reasons given."""
    if not wrong:
        return table
    quotes = {code: quote for code, quote in table.quotes.items() if code not in wrong}
    return attrs.evolve(table, quotes=quotes, refused={**table.refused, **wrong})


@attrs.frozen
class _Level:
    """The range a currency should be in, and by which factor it may be off it."""

    low: float
    high: float
    factor: float

    @property
    def middle(self) -> float:
        return float((self.low * self.high) ** 0.5)

    def distance(self, quoted: float) -> float:
        """By which factor a quote is off the range, 1 within it."""
        return max(self.low / quoted, quoted / self.high, 1.0)


def _units_for_one_euro(table: RateTable) -> dict[str, float]:
    euro = float(table.quotes["EUR"].units)
    return {
        currency: float(quote.units) / euro
        for currency, quote in table.quotes.items()
        if currency != "EUR"
    }


def _nearest(table: RateTable, held: Iterable[RateTable]) -> dict[str, tuple[float, int]]:
    """What the nearest table within a year has of each currency, and how many days off it is."""
    year, _ = MOVES[-1]
    by_gap = sorted(((abs((other.day - table.day).days), other) for other in held), key=_gap)
    known: dict[str, tuple[float, int]] = {}
    for gap, other in by_gap:
        if gap > year or known.keys() >= table.quotes.keys() - {"EUR"}:
            break
        for currency, quoted in _units_for_one_euro(other).items():
            known.setdefault(currency, (quoted, gap))
    return known


def _gap(item: tuple[int, RateTable]) -> int:
    return item[0]


def _level(currency: str, day: date) -> _Level | None:
    by_year = ranges().get(currency)
    if by_year is None:
        return None
    near = [by_year[year] for year in range(day.year - 1, day.year + 2) if year in by_year]
    if not near:  # in a hole of the history, or after its end: what was before
        before = [year for year in by_year if year < day.year]
        if not before:
            return None
        near = [by_year[max(before)]]
    factor = VOLATILE_FACTOR if currency in VOLATILE else FACTOR
    factor += max(0, day.year - min(max(by_year), LAST_YEAR))
    lows, highs = zip(*near, strict=True)
    return _Level(min(lows), max(highs), min(factor, MOST_FACTOR))


def _unlike_its_level(quoted: float, level: _Level | None) -> float | None:
    """What was to be expected of a quote that is off its level; None where it is not."""
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
    """The same for a currency that is pegged to another one of the table."""
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
