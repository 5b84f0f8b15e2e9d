"""Which quotes cannot be true. Pure.

A quote is compared with the ECB's own history of its day, in units for one euro, and with nothing
that happens to be held: so the verdict depends on the quote alone. A currency that the ECB has
never quoted has no bound. But where an answer brings many days, a spike among them is doubted: a
row that is off by over `SPIKE` from the rows before and after it, which agree within `AGREEING`.
A step, after which the rows stay where they are, is paid.

A doubted quote is used if another source gives the same, see `alike`: a crash is a crash.

The bounds are the greatest moves of the history, rounded up, so that no day of its 27 years is
doubted. `scripts/measure_plausibility.py` measures them, and what they find.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Final

from .errors import FetchOutcome, SourceFailed
from .history import History
from .rates import Doubted, Quote, Row

# (days to the ECB's nearest quote, the factor by which a quote may be off it). Two sources differ
# by 0.3 % on the same day. The greatest moves: 1.68 within a day (TRL 2001), 1.70 within 5 days,
# 2.40 within 30, 2.68 within 180, 3.59 within 365 and 4.27 within 3 years (ISK 2008), 6.21 within 5
# years (TRY 2024).
BOUNDS: Final = ((0, 1.5), (5, 2.0), (30, 2.5), (180, 2.75), (365, 3.75), (1095, 4.5), (1825, 6.5))
WIDEST: Final = 9.0  # a shifted point is a factor of 10
SPIKE: Final = 3.0
AGREEING: Final = 1.5
ALIKE: Final = 1.05  # sources differ by 0.3 % as a rule


def doubt(
    rows: Mapping[date, Mapping[str, Row]], history: History, day: date
) -> tuple[dict[str, Row], SourceFailed | None]:
    """The rows of one day of an answer, with the implausible quotes doubted.

    Args:
        rows: those of the whole answer, by day and currency, for what comes before and after.
        history: that of the ECB.
        day: the day to be judged.

    Returns the rows, in which a wrong quote is a `Doubted` one. All the quotes of the day are
    doubted if most of those that can be judged by the history are wrong, two at least: then the
    second value says why, else it is None. A row that is no quote stays as it is.
    """
    judged: dict[str, Row] = dict(rows[day])
    days = sorted(rows)
    known = wrong = 0
    for currency, row in rows[day].items():
        if not isinstance(row, Quote):
            continue
        near = history.nearest(currency, day)
        if near is None:
            expected = _unlike_its_neighbours(rows, days, currency, day)
        else:
            known += 1
            expected = near[0] if off(row.per_euro, near[0]) > bound(near[1]) else None
            wrong += expected is not None
        if expected is not None:
            told = f"{row.per_euro:.6g} for one euro (expected: about {expected:.4g})"
            why = SourceFailed(FetchOutcome.IMPLAUSIBLE, f"gives an implausible {told}")
            judged[currency] = Doubted(row, why)
    if wrong < 2 or 2 * wrong <= known:
        return judged, None
    why = SourceFailed(
        FetchOutcome.IMPLAUSIBLE,
        f"gives an implausible table for {day} ({wrong} of {known} currencies)",
    )
    for currency, row in judged.items():
        if isinstance(row, Quote):
            judged[currency] = Doubted(row, why)
    return judged, why


def bound(gap: int) -> float:
    """The factor by which a quote may be off the ECB's quote of `gap` days before or after."""
    return next((factor for days, factor in BOUNDS if gap <= days), WIDEST)


def off(one: float, other: float) -> float:
    """The factor between two numbers, 1 or more."""
    return max(one / other, other / one)


def alike(one: Quote, other: Quote) -> bool:
    """Whether two sources say the same: their quotes are within `ALIKE` of each other."""
    return off(one.per_euro, other.per_euro) <= ALIKE


def _unlike_its_neighbours(
    rows: Mapping[date, Mapping[str, Row]], days: Sequence[date], currency: str, day: date
) -> float | None:
    """What a spike should have been, None for no spike."""
    place = bisect_left(days, day)
    around = []
    for known in (reversed(days[:place]), days[place:], days[place + 1 :]):
        quotes = (rows[one].get(currency) for one in known)
        around.append(next((quote for quote in quotes if isinstance(quote, Quote)), None))
    before, quoted, after = around
    if before is None or quoted is None or after is None:
        return None
    if off(before.per_euro, after.per_euro) > AGREEING:
        return None
    spike = min(off(quoted.per_euro, before.per_euro), off(quoted.per_euro, after.per_euro))
    return before.per_euro if spike > SPIKE else None
