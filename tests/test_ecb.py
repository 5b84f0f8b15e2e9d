"""The embedded table of the ECB: its days, its holes, and conversions against its own package."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
import trio
from currency_converter import CurrencyConverter, RateNotFoundError
from hypothesis import given
from hypothesis import strategies as st

from ratebridge.conversion import to_euro
from ratebridge.errors import SourceFailed
from ratebridge.providers.ecb import Ecb
from ratebridge.rates import Quote, rate_from

NOW = datetime(2026, 11, 20, tzinfo=UTC)
FIRST = date(1999, 1, 4)


@pytest.fixture(scope="module")
def ecb():
    return Ecb()


@pytest.fixture(scope="module")
def oracle():
    return CurrencyConverter(decimal=True)


def table_of(ecb, day):
    return trio.run(ecb.fetch, day, NOW)


def test_a_day_that_is_known(ecb):
    table = table_of(ecb, date(2021, 5, 18))
    assert (table.provider, table.day, table.fetched) == ("ecb", date(2021, 5, 18), NOW)
    known = {"EUR": "1", "USD": "1.2222", "GBP": "0.85998", "CZK": "25.427", "JPY": "133.09"}
    assert {code: str(table.quotes[code].units) for code in known} == known
    rate = rate_from(table, "USD", cached=False)
    assert rate is not None
    assert to_euro(Decimal("253.67"), rate.units, rate.euro) == Decimal("207.55196")
    assert ecb.quota is None


def test_a_weekend_has_the_rates_of_friday(ecb):
    friday = table_of(ecb, date(2021, 5, 14)).quotes["USD"]
    assert table_of(ecb, date(2021, 5, 16)).quotes["USD"] == friday
    assert friday.day == date(2021, 5, 14)


def test_good_friday_to_easter_monday_is_within_the_five_days(ecb):
    assert table_of(ecb, date(2021, 4, 5)).quotes["USD"].day == date(2021, 4, 1)


@pytest.mark.parametrize(
    ("currency", "day", "quoted_on"),
    [
        ("RUB", date(2022, 3, 1), date(2022, 3, 1)),
        ("RUB", date(2022, 3, 2), None),
        ("HRK", date(2022, 12, 30), date(2022, 12, 30)),
        ("HRK", date(2022, 12, 31), None),
        ("BGN", date(2026, 1, 1), None),
        ("ISK", date(2008, 12, 14), date(2008, 12, 9)),
        ("ISK", date(2008, 12, 15), None),
        ("ISK", date(2018, 1, 31), None),
        ("ISK", date(2018, 2, 1), date(2018, 2, 1)),
        ("BTC", date(2021, 5, 18), None),
    ],
)
def test_beyond_its_days_a_currency_is_not_guessed(ecb, currency, day, quoted_on):
    found = table_of(ecb, day).quotes.get(currency)
    assert (found and found.day) == quoted_on


@pytest.mark.parametrize(
    "day", [FIRST - timedelta(days=1), date(2090, 11, 20)], ids=["before", "after"]
)
def test_beyond_the_history_there_is_no_table(ecb, day):
    with pytest.raises(SourceFailed, match="has no rates for") as caught:
        table_of(ecb, day)
    assert (caught.value.outcome, caught.value.again) == ("no-table", False)


def test_its_last_day_has_a_table_and_the_next_has_none(ecb):
    last = trio.run(ecb.last_day)
    assert table_of(ecb, last).quotes["USD"].day == last
    with pytest.raises(SourceFailed):
        table_of(ecb, last + timedelta(days=1))


def test_it_is_loaded_once_however_many_ask(monkeypatch, oracle):
    loads = []

    def load():
        loads.append(1)
        return oracle

    monkeypatch.setattr("ratebridge.providers.ecb._read_history", load)
    ecb = Ecb()

    async def main():
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ecb.fetch, FIRST, NOW)

    trio.run(main)
    assert len(loads) == 1


# The oracle: the package's own rates, and exact arithmetic on them.


@given(
    days=st.integers(0, (date(2026, 10, 30) - FIRST).days),
    stake=st.decimals(-(10**9), 10**9, places=5, allow_nan=False, allow_infinity=False),
    data=st.data(),
)
def test_a_conversion_is_what_the_package_makes_of_it(ecb, oracle, days, stake, data):
    day = FIRST + timedelta(days=days)
    table = table_of(ecb, day)
    currency = data.draw(st.sampled_from(sorted(oracle.currencies)))
    rate = rate_from(table, currency, cached=False)
    expected = last_known(oracle, currency, day)
    if expected is None:
        assert rate is None
        return
    assert rate is not None
    assert rate.day == expected.day
    exact = Fraction(stake) / Fraction(expected.units)
    assert to_euro(stake, rate.units, rate.euro) == half_even(exact)
    assert abs(to_euro(stake, rate.units) - oracle.convert(stake, currency, "EUR", rate.day)) <= (
        Decimal("0.00000500001")
    )


def last_known(oracle, currency, day):
    """The package's rate of a day or of one of the five before, found by its public means."""
    if currency == "EUR":
        return Quote(Decimal(1), day)
    if not oracle.bounds[currency].first_date <= day <= oracle.bounds[currency].last_date:
        return None
    for back in range(6):
        quoted_on = day - timedelta(days=back)
        try:
            return Quote(oracle.convert(Decimal(1), "EUR", currency, quoted_on), quoted_on)
        except RateNotFoundError:
            pass
    return None


def half_even(exact):
    """A fraction as a Decimal with five places; `round` on a Fraction rounds half to even."""
    return Decimal(round(exact * 10**5)).scaleb(-5)
