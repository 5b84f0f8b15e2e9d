"""The conversion rates by law: their days, their digits, and that they need no source."""

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from currency_converter import CurrencyConverter
from rate_bench import open_bench

from ratebridge.conversion import to_euro
from ratebridge.errors import NoRate
from ratebridge.euro import CONVERSION_RATES
from ratebridge.rates import fixed_rate

# Article 1 of Council Regulation (EC) No 2866/98, as amended, typed anew, by year of changeover.
LEGAL = """
1999: BEF 40.3399, DEM 1.95583, ESP 166.386, FRF 6.55957, IEP 0.787564, ITL 1936.27, LUF 40.3399,
      NLG 2.20371, ATS 13.7603, PTE 200.482, FIM 5.94573; 2001: GRD 340.750; 2007: SIT 239.640;
2008: CYP 0.585274, MTL 0.429300; 2009: SKK 30.1260; 2011: EEK 15.6466; 2014: LVL 0.702804;
2015: LTL 3.45280; 2023: HRK 7.53450; 2026: BGN 1.95583
"""


def test_each_has_its_day_and_its_six_digits():
    expected = {}
    for group in LEGAL.split(";"):
        year, rates = group.split(":")
        for code, units in (rate.split() for rate in rates.split(",")):
            expected[code] = date(int(year), 1, 1), units
    assert {code: (day, str(units)) for code, (day, units) in CONVERSION_RATES.items()} == expected
    assert {len(units.as_tuple().digits) for _, units in CONVERSION_RATES.values()} == {6}


def test_those_the_ecb_has_quoted_end_at_their_conversion_rate():
    history = CurrencyConverter(decimal=True)
    quoted = CONVERSION_RATES.keys() & history.currencies
    assert quoted >= {"CYP", "EEK", "HRK", "LTL", "LVL", "MTL", "SIT", "SKK"}
    for code in quoted:
        since, units = CONVERSION_RATES[code]
        last = history.bounds[code].last_date
        assert timedelta(0) < since - last <= timedelta(days=3)
        assert history.convert(1, "EUR", code, last) == pytest.approx(units, rel=Decimal("0.004"))


@pytest.mark.parametrize(
    ("stake", "currency", "day", "eur"),
    [
        ("100", "HRK", date(2023, 1, 1), "13.27228"),
        ("100", "BGN", date(2026, 1, 1), "51.12919"),
        ("1000000", "ITL", date(1999, 1, 4), "516.45690"),
        ("340.75", "GRD", date(2001, 1, 1), "1.00000"),
        ("1", "LVL", date(2026, 11, 20), "1.42287"),
    ],
)
async def test_from_the_changeover_on_it_is_the_law_and_no_source_is_asked(
    autojump_clock, stake, currency, day, eur
):
    async with open_bench() as bench:
        rate = await bench.ask(currency, day)
        assert (rate.provider, rate.day, rate.asked, rate.cached) == ("fixed", day, day, True)
        assert rate.note == "by Council Regulation (EC) No 2866/98"
        assert to_euro(Decimal(stake), rate.units, rate.euro) == Decimal(eur)
        assert Fraction(eur) == round(Fraction(stake) / Fraction(rate.units), 5)
        assert bench.fake.count() == 0


async def test_before_the_changeover_the_market_is_asked(autojump_clock):
    async with open_bench() as bench:
        assert (await bench.ask("HRK", date(2022, 12, 31))).provider == "freecurrencyapi"
        assert isinstance(await bench.ask("GRD", date(2000, 12, 31)), NoRate)
        assert fixed_rate("USD", date(2026, 1, 1)) is None
