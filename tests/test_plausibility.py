"""Implausible quotes. The yardstick, and the oracle, is the ECB's own history.

`scripts/measure_plausibility.py` judges all of it, and measures which errors are found.
"""

import random
from datetime import date, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest

from ratebridge.errors import FetchOutcome, SourceFailed
from ratebridge.history import History, embedded
from ratebridge.plausibility import alike, doubt, off
from ratebridge.rates import Doubted, Quote

DAY = date(2021, 5, 18)
TRUE = {"USD": "1.2222", "GBP": "0.85998", "CZK": "25.427", "JPY": "133.09", "UAH": "33.4"}


def row(quotes, euro="1"):
    return {code: Quote(Decimal(units), Decimal(euro)) for code, units in quotes.items()}


def doubted_in(rows, day=DAY, history=None):
    """The currencies that are doubted on a day of an answer, and whether all are for one reason."""
    judged, whole = doubt(rows, history or embedded(), day)
    assert judged.keys() == rows[day].keys()
    doubted = {code: found for code, found in judged.items() if isinstance(found, Doubted)}
    for code, found in judged.items():
        given = rows[day][code]
        assert found == given or (code in doubted and doubted[code].quote == given)
    assert whole is None or doubted.keys() == judged.keys()
    return doubted.keys(), whole is not None


def test_no_day_of_the_history_is_doubted_nor_one_with_the_quotes_of_the_days_around_it():
    """As a source may publish late, or early. `TRL` fell by over a third within a day of 2001."""
    chance = random.Random(4)
    days = sorted(embedded())
    for at in chance.sample(range(5, len(days) - 5), 150):
        published = embedded()[days[at + chance.randint(-5, 5)]]
        assert doubted_in({days[at]: published}, days[at]) <= ({"TRL"}, False)


GREATEST = [
    # the currency, the day, the greatest move's days, and its factor
    ("CHF", date(2015, 1, 15), 1, 1.15),
    ("TRY", date(2021, 12, 21), 1, 1.2),
    ("TRL", date(2001, 2, 22), 1, 1.4),
    ("ISK", date(2008, 10, 9), 7, 1.9),
    ("ISK", date(2008, 10, 9), 30, 2.3),
    ("ISK", date(2008, 12, 3), 365, 3.1),
    ("RUB", date(2014, 12, 16), 30, 1.4),
    ("TRY", date(2024, 10, 30), 1825, 5.0),
]


@pytest.mark.parametrize(("code", "day", "most", "move"), GREATEST)
def test_the_greatest_moves_are_not_doubted(code, day, most, move):
    """Were the history to end up to so many days before, at its worst day."""
    known = {day - timedelta(days=back): back for back in range(1, most + 1)}
    before = [(embedded()[then][code], then) for then in known if code in embedded().get(then, {})]
    quoted = embedded()[day][code]
    furthest, then = max(before, key=lambda one: off(one[0].per_euro, quoted.per_euro))
    assert off(furthest.per_euro, quoted.per_euro) > move
    history = History(f"Date,{code},\n{then},{furthest.units},")
    assert doubted_in({day: {code: quoted}}, day, history) == (set(), False)


# As TASK.md has them: up to so many days, and the factor of the days beyond.
BOUNDS = [(0, 1.5), (5, 2.0), (30, 2.5), (180, 2.75), (365, 3.75), (1095, 4.5), (1825, 6.5)]


@pytest.mark.parametrize("sign", [1, -1], ids=["after", "before"])
@pytest.mark.parametrize(
    ("days", "factor"),
    [*BOUNDS, *((days + 1, then) for (days, _), (_, then) in pairwise([*BOUNDS, (0, 9.0)]))],
)
def test_the_bound_widens_with_the_distance_to_the_nearest_quote(days, factor, sign):
    day, units = DAY + sign * timedelta(days=days), Decimal("1.2345")
    history = History(f"Date,USD,\n{DAY},{units},")
    for times, wrong in ((0.999, set()), (1.001, {"USD"})):
        for moved in (factor * times, 1 / (factor * times)):
            quotes = {"USD": Quote(units * Decimal(moved))}
            assert doubted_in({day: quotes}, day, history) == (wrong, False)


ERRORS = [
    ("true", {}, set()),
    ("swapped", {"CZK": "0.0393"}, {"CZK"}),
    ("a point to the right", {"GBP": "8.5998"}, {"GBP"}),
    ("never quoted by the ECB", {"UAH": "3340"}, set()),
    ("crude", {"USD": "1.25", "GBP": "0.8", "CZK": "25", "JPY": "160"}, set()),
    ("two of four", {"CZK": "2.5", "JPY": "13"}, {"CZK", "JPY"}),
]


@pytest.mark.parametrize(("name", "quotes", "wrong"), ERRORS, ids=[name for name, *_ in ERRORS])
@pytest.mark.parametrize("euro", ["1", "0.5"], ids=["for one euro", "for another base"])
def test_a_gross_error_is_found_by_the_history(name, quotes, wrong, euro):
    given = {**TRUE, **quotes}
    rows = {DAY: row({code: Decimal(units) * Decimal(euro) for code, units in given.items()}, euro)}
    assert doubted_in(rows) == (wrong, False)


@pytest.mark.parametrize(
    ("quotes", "shares"),
    [
        ({code: 1 / Decimal(units) for code, units in [*TRUE.items(), ("HUF", "350")]}, "3 of 5"),
        ({code: Decimal(units) / 10 for code, units in TRUE.items()}, "4 of 4"),
        ({**TRUE, "CZK": "2.5", "JPY": "13", "GBP": "8"}, "3 of 4"),
        ({"HUF": "1", "CZK": "1", "UAH": "1"}, "2 of 2"),
    ],
    ids=["swapped", "off by ten", "three of four", "ones"],
)
def test_a_table_that_is_mostly_wrong_is_doubted_whole(quotes, shares):
    """Its plausible quotes as well, and those that the ECB never had."""
    rows = {DAY: row(quotes)}
    assert doubted_in(rows) == (quotes.keys(), True)
    assert str(doubt(rows, embedded(), DAY)[1]) == (
        f"gives an implausible table for 2021-05-18 ({shares} currencies)"
    )


def test_a_single_wrong_quote_is_no_wrong_table():
    assert doubted_in({DAY: row({"CZK": "2.5", "UAH": "33"})}) == ({"CZK"}, False)


COARSE = SourceFailed(FetchOutcome.COARSE, "gives it in too few digits (0.00027)")


@pytest.mark.parametrize(
    ("series", "wrong"),
    [
        (["50.5", "506", "50.7"], [1]),
        (["50.5", "5.06", "50.7"], [1]),
        ([None, "50.5", None, "506", None, "50.7"], [3]),  # days without news in between
        (["50.5", COARSE, "506", "50.7"], [2]),
        *((["50", "149.9", "50"], []), (["50", "150.1", "50"], [1])),
        (["49337", "1311685", "1311700"], []),  # a step is paid
        (["1311685", "49337", "49338"], []),
        *((["50", "506", "74.9"], [1]), (["50", "506", "75.1"], [])),  # those around it agree
        (["50.5", "506", "506", "50.7"], []),  # it lasts
        (["506", "50.5"], []),  # nothing before it
        (["50.5", "506"], []),  # nothing behind it yet
    ],
)
def test_among_many_days_a_spike_is_doubted_and_a_step_is_paid(series, wrong):
    rows = {
        DAY + timedelta(days=at): {"UAH": text if text is COARSE else Quote(Decimal(text))}
        for at, text in enumerate(series)
        if text is not None
    }
    assert [(day - DAY).days for day in rows if doubted_in(rows, day)[0]] == wrong
    backwards = dict(reversed(rows.items()))
    assert [doubted_in(rows, day) for day in rows] == [doubted_in(backwards, day) for day in rows]


def test_two_quotes_within_a_twentieth_are_alike():
    euro, dollar = Quote(Decimal("33.4")), Quote(Decimal("40.8"), Decimal("1.2222"))
    assert alike(euro, dollar)
    assert alike(dollar, euro)
    for times, same in ((1.0499, True), (1.0501, False)):
        other = Quote(euro.units * Decimal(times))
        assert alike(euro, other) is alike(other, euro) is same
