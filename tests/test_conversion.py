"""Against `fractions.Fraction`, whose arithmetic has no precision to run out of."""

import random
import re
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from math import gcd

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratebridge import conversion
from ratebridge.conversion import QUOTE_DIGITS, QUOTE_MAX, QUOTE_MIN, is_quote, rounded, to_euro

WIDE = Context(prec=100)  # wide enough for every number here, so that nothing is rounded by it


def number(coefficient: int, exponent: int) -> Decimal:
    return WIDE.scaleb(Decimal(coefficient), exponent)


def is_exactly(amount: Decimal, hundred_thousandths: int) -> bool:
    return amount.as_tuple().exponent == -5 and WIDE.scaleb(amount, 5) == hundred_thousandths


# Cases as (stake, units, euro), each a coefficient and an exponent.
Number = tuple[int, int]
Case = tuple[Number, Number, Number]
ONE: Number = (1, 0)


def any_stake(rnd: random.Random) -> Number:
    digits = rnd.randint(1, 34)
    exponent = rnd.randint(-19, 15 - digits)
    return rnd.choice((1, -1)) * rnd.randrange(10 ** (digits - 1), 10**digits), exponent


def any_quote(rnd: random.Random) -> Number:
    digits = rnd.randint(1, 34)
    adjusted = rnd.randint(-10, 9)
    return rnd.randrange(10 ** (digits - 1), 10**digits), adjusted - digits + 1


def ordinary(rnd: random.Random) -> Case:
    """What the feed sends and sources give: two to five places, four to ten digits."""
    stake = (rnd.randrange(1, 10**9), -rnd.randint(2, 5))
    units = (rnd.randrange(10**4, 10 ** rnd.randint(5, 10)), -rnd.randint(4, 6))
    return stake, units, ONE


def long(rnd: random.Random) -> Case:
    return any_stake(rnd), any_quote(rnd), rnd.choice((ONE, any_quote(rnd)))


def tie(rnd: random.Random) -> Case:
    """stake * euro = (2n + 1) / 2 * 10^-5 * units, exactly."""
    odd = 2 * rnd.randrange(10 ** rnd.randint(1, 12)) + 1
    units = rnd.randrange(1, 10 ** rnd.randint(1, 13)), -rnd.randint(0, 10)
    zeros = rnd.randint(0, 3)
    stake = rnd.choice((1, -1)) * odd * 5 * units[0], units[1] - 6 - zeros
    if abs(number(*stake)) < 10**15 and is_quote(number(*units)):
        return stake, units, (10**zeros, 0)
    return tie(rnd)


def beside_a_tie(rnd: random.Random) -> Case:
    """A tie whose stake is off by one in the nineteenth place."""
    (coefficient, exponent), units, euro = tie(rnd)
    scale: int = 10 ** (exponent + 19)
    return (coefficient * scale + rnd.choice((1, -1)), -19), units, euro


def nearest_to_a_tie(rnd: random.Random) -> Case:
    """The quotients nearest to a tie that there are: 2 * 10^5 * stake * euro is, in units of
    the 43rd place of `units`, one off a multiple of it.
    """
    while True:
        units = rnd.randrange(10**33, 10**34)
        euro = rnd.randrange(10**33, 10**34)
        factor = 2 * 10**5 * euro
        if gcd(units, factor) == 1:
            stake = rnd.choice((1, -1)) * pow(factor, -1, units) % units
            return (stake, -19), (units, -43), (euro, -24)


def extreme(rnd: random.Random) -> Case:
    stake = rnd.choice([(10**34 - 1, -19), (1, -19), (1, 14), (5, -6), (15, -6), (10**15 - 1, 0)])
    quotes = [(1, -10), (1, 10), (10**34 - 1, -24), (10**34 - 1, -43), (10**33 + 1, -43), ONE]
    return stake, rnd.choice(quotes), rnd.choice(quotes)


KINDS = (ordinary, long, tie, beside_a_tie, nearest_to_a_tie, extreme)


def cases(count: int, seed: int) -> Iterator[Case]:
    rnd = random.Random(seed)
    for i in range(count):
        yield KINDS[i % len(KINDS)](rnd)


def in_places(case: Case) -> Fraction:
    """The exact quotient of a case in hundred-thousandths. `round` makes it half-even."""
    stake, units, euro = case
    exponent = stake[1] + euro[1] - units[1] + 5
    return Fraction(stake[0] * euro[0] * 10 ** max(exponent, 0), units[0] * 10 ** max(-exponent, 0))


def convert(case: Case) -> Decimal:
    stake, units, euro = case
    return to_euro(number(*stake), number(*units), number(*euro))


def test_a_hundred_thousand_conversions_equal_the_fractions():
    wrong = [
        case
        for case in cases(100_000, seed=20211118)
        if not is_exactly(convert(case), round(in_places(case)))
    ]
    assert wrong == []


def distance_to_a_tie(case: Case) -> Fraction:
    """How far the quotient is from the nearest tie, relative to the quotient."""
    halves = 2 * in_places(case)
    nearest = 2 * round((halves - 1) / 2) + 1
    return abs((halves - nearest) / halves)


def test_the_generated_cases_are_what_they_say():
    rnd = random.Random(7)
    for _ in range(200):
        assert distance_to_a_tie(tie(rnd)) == 0
        assert 0 < distance_to_a_tie(beside_a_tie(rnd)) < Fraction(1, 10**2)
        assert 0 < distance_to_a_tie(nearest_to_a_tie(rnd)) < Fraction(1, 10**65)


def test_no_quotient_is_nearer_to_a_tie_than_the_docstring_says():
    distances = [distance_to_a_tie(case) for case in cases(6_000, seed=3)]
    assert min(d for d in distances if d) > Fraction(1, 2 * 10**73)


def test_ordinary_roundings_are_wrong_at_every_precision_up_to_72():
    """Why the division is sticky. If this fails, a plainer way would do."""
    rnd = random.Random(4)
    hardest = [nearest_to_a_tie(rnd) for _ in range(500)]
    for precision in range(41, 73):
        divide = Context(prec=precision, rounding=ROUND_HALF_EVEN).divide
        assert any(
            WIDE.quantize(
                divide(WIDE.multiply(number(*stake), number(*euro)), number(*units)),
                Decimal("0.00001"),
            )
            != convert((stake, units, euro))
            for stake, units, euro in hardest
        ), precision


@st.composite
def stakes(draw: st.DrawFn) -> Decimal:
    digits = draw(st.integers(1, 34))
    coefficient = draw(st.integers(-(10**digits) + 1, 10**digits - 1))
    return number(coefficient, draw(st.integers(-19, 15 - digits)))


@st.composite
def quotes(draw: st.DrawFn) -> Decimal:
    coefficient = draw(st.integers(1, 10**QUOTE_DIGITS - 1))
    adjusted = draw(st.integers(-10, 9))
    return number(coefficient, adjusted - len(str(coefficient)) + 1)


@given(stakes(), quotes(), quotes() | st.just(Decimal(1)))
@example(Decimal("1000000000000.12345"), Decimal("1.2222"), Decimal(1))
@example(Decimal("-999999999999999.9999999999999999999"), QUOTE_MIN, QUOTE_MAX)
@example(Decimal("1e-19"), QUOTE_MAX, QUOTE_MIN)
@example(Decimal("0e-19"), Decimal(3), Decimal(7))
@example(Decimal("0.000025"), Decimal(1), Decimal(1))  # a tie, which goes to the even neighbour
@example(Decimal("-0.000075"), Decimal(2), Decimal(2))
def test_a_conversion_equals_the_fraction(stake: Decimal, units: Decimal, euro: Decimal):
    exact = Fraction(stake) * Fraction(euro) / Fraction(units)
    assert is_exactly(to_euro(stake, units, euro), round(exact * 10**5))


@given(stakes(), quotes())
def test_a_euro_base_may_be_left_out(stake: Decimal, units: Decimal):
    assert to_euro(stake, units) == to_euro(stake, units, Decimal("1.000"))


@given(stakes(), quotes())
def test_the_sign_changes_nothing_else(stake: Decimal, units: Decimal):
    assert to_euro(-stake, units) == to_euro(stake, units).copy_negate()


@pytest.mark.parametrize(
    ("stake", "units", "euro", "expected"),
    [
        ("253.67", "1.2222", "1", "207.55196"),
        ("253.67", "1", "0.8182", "207.55279"),
        ("0.000005", "1", "1", "0.00000"),
        ("0.000015", "1", "1", "0.00002"),
        ("0.000025", "1", "1", "0.00002"),
        ("0.0000150000000000001", "1", "1", "0.00002"),
        ("0.0000149999999999999", "1", "1", "0.00001"),
        ("1", "3", "1", "0.33333"),
        ("2", "3", "1", "0.66667"),
        ("-2", "3", "1", "-0.66667"),
        ("1e14", "1e-10", "1e10", "1" + "0" * 34 + ".00000"),
        ("999999999999999.9999999999999999999", "1e-10", "1e10", "9" * 34 + "0.00000"),
    ],
)
def test_a_conversion_by_hand(stake: str, units: str, euro: str, expected: str):
    assert str(to_euro(Decimal(stake), Decimal(units), Decimal(euro))) == expected


@pytest.mark.parametrize(
    ("stake", "units", "euro"),
    [
        ("9" * 35, "1.2222", "0." + "7" * 34),  # a product of more than 68 digits
        ("1", "0", "1"),
        ("0", "0", "1"),
        ("1e36", "1", "1"),
        ("Infinity", "1", "1"),
        ("sNaN", "1", "1"),
    ],
)
def test_what_breaks_the_bounds_raises_and_gives_no_amount(stake: str, units: str, euro: str):
    with pytest.raises(ArithmeticError):
        to_euro(Decimal(stake), Decimal(units), Decimal(euro))


@given(stakes())
@example(Decimal("999999999999999.9999999999999999999"))
@example(Decimal("0.000005"))
@example(Decimal("0.0000050000000000001"))
def test_a_stake_in_euro_is_rounded_half_even(stake: Decimal):
    assert is_exactly(rounded(stake), round(Fraction(stake) * 10**5))


@given(st.builds(number, st.integers(-(10**40), 10**40), st.just(-5)))
@example(Decimal("-0.00000"))
@example(Decimal("100.00000"))
@example(Decimal("-0.00001"))
def test_a_plain_number_is_the_shortest_text_of_the_same_value(amount: Decimal):
    text = conversion.plain(amount)
    assert re.fullmatch(r"0|-?(0\.\d*[1-9]|[1-9]\d*(\.\d*[1-9])?)", text)
    assert Fraction(text) == Fraction(amount)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("207.50000", "207.5"),
        ("100.00000", "100"),
        ("-100.00000", "-100"),
        ("0.00000", "0"),
        ("-0.00000", "0"),
        ("0.00001", "0.00001"),
        ("10.00010", "10.0001"),
    ],
)
def test_a_plain_number_by_hand(amount: str, text: str):
    assert conversion.plain(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("quote", "good"),
    [
        ("1.2222", True),
        ("1e-10", True),
        ("0.00000000009999999999", False),
        ("9.9e-11", False),
        ("1e10", True),
        ("10000000000.00000", True),
        ("10000000000.1", False),
        ("9.999e10", False),
        ("1e11", False),
        ("0", False),
        ("0e5", False),
        ("-1", False),
        ("NaN", False),
        ("sNaN", False),
        ("Infinity", False),
        ("-Infinity", False),
        ("1e999999", False),
        ("1e-999999", False),
        ("1." + "1" * 33, True),
        ("1." + "1" * 34, False),
        ("1." + "0" * 34, False),
        ("1.000000000000000000000000000000000e-10", True),
    ],
)
def test_what_can_stand_in_a_table(quote: str, good: bool):
    assert is_quote(Decimal(quote)) is good
