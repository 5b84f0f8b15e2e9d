"""The arithmetic: Decimal in, Decimal out, nothing else.

The rule (Council Regulation (EC) 1103/97, articles 4 and 5, as TASK.md
states it): the euro amount is ``stake * euro / units``, over one table of
quotes, rounded once, half to even, to five places. No inverse rate is made.
"""

from decimal import ROUND_05UP, ROUND_HALF_EVEN, Context, Decimal, Inexact, InvalidOperation
from typing import Final

PLACES: Final = 5

STAKE_DIGITS: Final = 34  # as many as an IEEE 754 decimal128 holds
STAKE_ADJUSTED_MAX: Final = 14  # a magnitude below 10^15
STAKE_EXPONENT_MIN: Final = -19  # above -20
QUOTE_DIGITS: Final = 34
QUOTE_MIN: Final = Decimal("1e-10")
QUOTE_MAX: Final = Decimal("1e10")

_QUANTUM: Final = Decimal((0, (1,), -PLACES))
_ONE: Final = Decimal(1)

# A product of a stake and a quote has at most 34 + 34 digits; the trap on
# Inexact proves it at every multiplication.
_EXACT: Final = Context(prec=STAKE_DIGITS + QUOTE_DIGITS, traps=[Inexact, InvalidOperation])

# A quotient is below 10^15 * 10^10 / 10^-10 = 10^35: 35 digits before the
# point, five behind it, and one to stand for all the rest (see `to_euro`).
_DIGITS: Final = 35 + PLACES + 1
_STICKY: Final = Context(prec=_DIGITS, rounding=ROUND_05UP)
_HALF_EVEN: Final = Context(prec=_DIGITS, rounding=ROUND_HALF_EVEN)

_multiply = _EXACT.multiply
_divide = _STICKY.divide
_round = _HALF_EVEN.quantize


def to_euro(stake: Decimal, units: Decimal, euro: Decimal = _ONE) -> Decimal:
    """The stake in euro: ``stake * euro / units``, correctly rounded to five places.

    `units` and `euro` are the quotes of the stake's currency and of the euro in
    the same table: how much of each makes one of the table's base. The stake is
    within the bounds of TASK.md, the quotes pass `is_quote`.

    Why this is the result of exact arithmetic, though a quotient may be endless
    and is cut after 41 digits. The product is exact. The division cuts towards
    zero, and where it cuts anything off behind a last digit of 0 or 5 it makes
    that digit 1 or 6 (ROUND_05UP). So the last of 41 digits is 0 or 5 only if
    the quotient is exact. The second rounding has to know on which side of a tie
    (an odd multiple of 10^-5 / 2) the quotient lies, or that it is one. The
    quotient is below 10^35, so its digits reach to the sixth place at least, and
    there a tie ends in 5, or further on in 0. Hence a quotient that was cut
    neither becomes a tie nor gets to the other side of one.

    The same digit serves half up, half down and the directed modes, which ask no
    more than where the quotient lies: another rule is another mode of the last
    context, and nothing else.

    Why two ordinary roundings would not do. Let the product be a, a whole number
    A of 68 digits at most over 10^i, and `units` b, a whole number over 10^j. A
    quotient that is not the tie t = (2n + 1) / (2 * 10^5) differs from it by

        |a/b - t| = |2 * 10^5 * a - (2n + 1) * b| / (2 * 10^5 * b),

    where the numerator is a whole number of 10^-max(i - 5, j). With A < 10^68,
    a < 10^25 and j <= 43 (34 digits, the first in the tenth place or before), the
    difference is more than 10^-73 / 2 of the quotient, and can be as little as a
    few times that (the tests make such). At any precision of up to 72 digits an
    ordinary rounding turns some of these into ties, and the second one errs.
    """
    return _round(_divide(_multiply(stake, euro), units), _QUANTUM)


def rounded(stake: Decimal) -> Decimal:
    """A stake that is in euro already, rounded half to even to five places."""
    return _round(stake, _QUANTUM)


def plain(amount: Decimal) -> str:
    """An amount in plain notation, its trailing zeros cut: `207.5`, `100`, never `1E+2` or `-0`.

    The amount comes from `to_euro` or `rounded`: with five places, and few
    digits before them, its `str` has a point and no exponent.
    """
    text = str(amount).rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def is_quote(quote: Decimal) -> bool:
    """Whether a number can stand in a table: finite, positive, in range, not too long.

    The range keeps a quotient below 10^35, the length keeps a product exact.
    """
    return (
        quote.is_finite()
        and QUOTE_MIN <= quote <= QUOTE_MAX
        and len(quote.as_tuple().digits) <= QUOTE_DIGITS
    )
