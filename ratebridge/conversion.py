"""The arithmetic: Decimal in, Decimal out, nothing else.

The rule (Council Regulation (EC) 1103/97, articles 4 and 5, as the protocol
states it): the euro amount is ``stake * euro / units``, over one table of
quotes, rounded once, half to even, to five places. No inverse rate is made.
"""

from decimal import (
    ROUND_05UP,
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
)
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
# point, five behind it, one to stand for all the rest, and three to spare.
_STICKY: Final = Context(
    prec=44, rounding=ROUND_05UP, traps=[InvalidOperation, DivisionByZero, Overflow]
)
_ROUND: Final = Context(prec=44, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])

_multiply = _EXACT.multiply
_divide = _STICKY.divide


def to_euro(stake: Decimal, units: Decimal, euro: Decimal = _ONE) -> Decimal:
    """The stake in euro, correctly rounded to five places.

    `units` and `euro` are the quotes of the stake's currency and of the euro in
    the same table: how much of each makes one of the table's base. The stake is
    within the bounds of the protocol, the quotes within `QUOTE_MIN` and
    `QUOTE_MAX` and of at most `QUOTE_DIGITS` digits.

    Why the result is that of exact arithmetic, though a quotient may be endless.
    The product is exact. The division is cut after p = 44 significant digits,
    and ROUND_05UP makes the last of them sticky: when digits are lost behind a
    last digit of 0 or 5, it becomes 1 or 6. A rounding tie, or a number with five
    places, followed by nothing but zeros, is what a lost digit could be taken
    for; both end in a 5 or a 0 where the quotient is cut. So after the
    division the two are told apart from everything near them, however near (a
    quotient of a 68 by a 34 digit number that is no tie can be as near as 10^-40
    to one, so that no modest precision with a common rounding would do). This
    needs one digit behind the fifth place to be kept; the quotient is below
    10^35, so at least 44 - 35 - 5 = 4 are.
    """
    amount = stake if euro == _ONE else _multiply(stake, euro)
    return _divide(amount, units).quantize(_QUANTUM, None, _ROUND)


def rounded(stake: Decimal) -> Decimal:
    """A stake that is in euro already, rounded half to even to five places."""
    return stake.quantize(_QUANTUM, None, _ROUND)


def plain(amount: Decimal) -> str:
    """An amount in plain notation, its trailing zeros cut: `207.5`, `100`, never `1E+2` or `-0`.

    The amount comes from `to_euro` or `rounded`, so its text is short.
    """
    text = format(amount, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def is_quote(quote: Decimal) -> bool:
    """Whether a number can stand in a table: finite, positive, in range, not too long.

    The bounds are the protocol's; the length is what keeps a product exact.
    """
    return (
        quote.is_finite()
        and -11 < quote.adjusted() < 11  # before a comparison: 1e999999 is cheap to write
        and QUOTE_MIN <= quote <= QUOTE_MAX
        and len(quote.as_tuple().digits) <= QUOTE_DIGITS
    )
