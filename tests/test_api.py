"""The library's `convert`: its results and its errors."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from rate_bench import Wall, make_client, make_source
from support import Bank

import ratebridge
from ratebridge.errors import FetchOutcome, RatebridgeError, SourceFailed
from ratebridge.fakes.rates import FakeRates, Fault

MAY_18 = datetime(2021, 5, 18, 21, 32, tzinfo=UTC)
NOTHING = SourceFailed(FetchOutcome.NO_TABLE, "has nothing")
EMBEDDED = ratebridge.load_settings({"RATEBRIDGE_PROVIDERS": "ecb"}, need_feed=False)


def test_one_conversion_without_trio():
    done = ratebridge.convert_sync(Decimal("253.67"), "USD", MAY_18, EMBEDDED)
    assert (str(done.stake), done.currency, str(done.eur)) == ("253.67", "USD", "207.55196")
    assert done.rate is not None
    assert done.rate.provider == "ecb"


async def test_one_conversion_within_trio():
    with pytest.raises(ratebridge.NoRate, match="'BTC' is not known to ecb"):
        await ratebridge.convert(Decimal(1), "BTC", MAY_18, EMBEDDED)


async def convert(stake=Decimal(1), currency="EUR", when=MAY_18, sources=None):
    async with ratebridge.Converter(EMBEDDED, sources=sources) as converter:
        return await converter.convert(stake, currency, when)


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        ({"stake": Decimal("NaN")}, "stake NaN is not a number"),
        ({"stake": Decimal("1E+40")}, "stake 1E+40 is out of range"),
        ({"stake": Decimal("1e-20")}, "stake 1E-20 is out of range"),
        ({"stake": 10**5000}, f"stake 1{'0' * 39}... is out of range"),
        ({"stake": 1.5}, "stake 1.5 is not a Decimal"),
        ({"stake": True}, "stake True is not a Decimal"),
        ({"currency": "\u017f\u017fa"}, "currency '\u017f\u017fa' is not a three-letter code"),
        ({"currency": None}, "currency 'None' is not a three-letter code"),
        ({"when": "2021-05-18"}, "'2021-05-18' is not a date"),
        (
            {"when": datetime(2021, 5, 18)},  # noqa: DTZ001 - it is what is refused
            "instant 2021-05-18T00:00:00 has no time zone",
        ),
        (
            {"when": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))},
            "instant 9999-12-31T23:59:59.999999-05:00 is out of range",
        ),
    ],
)
async def test_what_no_rate_can_help_is_a_bad_request(wish, line):
    with pytest.raises(ratebridge.BadRequest) as caught:
        await convert(**wish)
    assert str(caught.value) == line
    assert isinstance(caught.value, ratebridge.RatebridgeError)


@pytest.mark.parametrize("currency", ["EUR", "USD"])
@pytest.mark.parametrize(
    "when",
    [datetime(1999, 1, 3, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1), date(1999, 1, 3)],
)
async def test_a_day_without_rates_is_a_missing_rate(currency, when):
    with pytest.raises(ratebridge.NoRate) as caught:
        await convert(currency=currency, when=when)
    assert caught.value.kind == "bad-date"


async def test_a_day_a_whole_number_and_small_letters_will_do():
    evening = datetime(2021, 5, 17, 22, tzinfo=timezone(timedelta(hours=-5)))  # the UTC day counts
    for when in (date(2021, 5, 18), evening):
        done = await convert(100, "usd", when)
        assert (done.stake, done.currency, done.eur) == (Decimal(100), "USD", Decimal("81.81967"))


async def test_two_hundred_conversions_of_a_day_are_one_call(autojump_clock):
    fake = FakeRates(lambda: MAY_18)
    source = make_source("frankfurter", make_client(fake))
    async with ratebridge.Converter(sources=[source], clock=lambda: MAY_18) as converter:
        for _ in range(100):
            for currency in ("USD", "GBP"):
                await converter.convert(1, currency)
        with trio.testing.assert_checkpoints():
            await converter.convert(1, "USD")
    assert fake.count() == 1


async def test_a_day_stays_with_the_source_that_stood_in_for_another(autojump_clock):
    wall, fake = Wall(), FakeRates()
    fake.order("frankfurter", Fault(status=404))
    sources = [make_source(name, make_client(fake)) for name in ("frankfurter", "ecb")]
    async with ratebridge.Converter(EMBEDDED, sources=sources, clock=wall) as converter:
        for jump, provider in ((0, "ecb"), (0, "ecb"), (8, "frankfurter")):
            wall.jump(timedelta(hours=-jump))  # what was chosen by a wrong clock is not used
            rate = (await converter.convert(1, "USD", MAY_18)).rate
            assert rate is not None
            assert rate.provider == provider
            await trio.sleep(6)


async def test_an_error_of_the_callers_own_comes_out_as_it_is():
    with pytest.raises(KeyError):
        async with ratebridge.Converter(EMBEDDED):
            raise KeyError


async def test_a_converter_that_is_not_open_converts_nothing():
    with pytest.raises(ratebridge.BadRequest, match="inside of its `async with`"):
        await ratebridge.Converter(EMBEDDED).convert(1, "EUR")


@given(
    st.decimals() | st.integers(),
    st.text(max_size=4) | st.just("EUR"),
    st.datetimes(timezones=st.none() | st.just(UTC)) | st.dates() | st.just(MAY_18),
)
def test_any_input_gives_an_exact_amount_or_a_documented_error(stake, currency, when):
    try:
        done = trio.run(convert, stake, currency, when, [Bank(failure=NOTHING)])
    except RatebridgeError:
        return
    assert done.eur == Decimal(round(Fraction(stake) * 10**5)).scaleb(-5)
