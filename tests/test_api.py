"""The library's `convert`: its results and its errors."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import ratebridge
from ratebridge.errors import RatebridgeError, SourceFailed

MAY_18 = datetime(2021, 5, 18, 21, 32, tzinfo=UTC)
EMBEDDED = ratebridge.load_settings({"RATEBRIDGE_PROVIDERS": "ecb"}, need_feed=False)


def test_one_conversion_without_trio():
    done = ratebridge.convert_sync(Decimal("253.67"), "USD", MAY_18, EMBEDDED)
    assert (done.stake, done.currency, done.eur) == (
        *(Decimal("253.67"), "USD", Decimal("207.55196")),
    )
    assert done.rate is not None
    assert done.rate.provider == "ecb"


async def test_one_conversion_within_trio():
    with pytest.raises(ratebridge.NoRate, match="'BTC' is not known to ecb"):
        await ratebridge.convert(Decimal(1), "BTC", MAY_18, EMBEDDED)


async def test_a_proxy_of_no_use_is_a_bad_setting(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(ratebridge.BadSettings, match="HTTPS_PROXY"):
        await ratebridge.convert(Decimal(1), "USD", MAY_18, EMBEDDED)


async def test_the_instants_utc_day_counts():
    evening = datetime(2021, 5, 17, 22, tzinfo=timezone(timedelta(hours=-5)))
    done = await ratebridge.convert(Decimal(1), "USD", evening, EMBEDDED)
    assert done.rate is not None
    assert done.rate.asked == MAY_18.date()


async def convert(stake="1", currency="EUR", instant=MAY_18):
    return await ratebridge.convert(Decimal(stake), currency, instant, EMBEDDED)


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        ({"stake": "NaN"}, "stake NaN is not a number"),
        ({"stake": "sNaN"}, "stake sNaN is not a number"),
        ({"stake": "-Infinity"}, "stake -Infinity is not a number"),
        ({"stake": "1E+40"}, "stake 1E+40 is out of range"),
        ({"stake": "1e999999"}, "stake 1E+999999 is out of range"),
        ({"stake": "1e-20"}, "stake 1E-20 is out of range"),
        ({"currency": "usd"}, "currency 'usd' is not three capital letters"),
        ({"currency": ""}, "currency '' is not three capital letters"),
        (
            {"instant": datetime(2021, 5, 18)},  # noqa: DTZ001 - it is what is refused
            "instant 2021-05-18T00:00:00 has no time zone",
        ),
        (
            {"instant": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))},
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
    "instant", [datetime(1999, 1, 3, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1)]
)
async def test_a_day_without_rates_is_a_missing_rate(currency, instant):
    with pytest.raises(ratebridge.NoRate) as caught:
        await convert("1", currency, instant)
    assert caught.value.kind == "bad-date"


@given(
    st.decimals(),
    st.text(max_size=4) | st.just("EUR"),
    st.datetimes(timezones=st.none() | st.just(UTC)) | st.just(MAY_18),
)
def test_any_input_gives_an_exact_amount_or_a_documented_error(stake, currency, instant):
    async def ask():
        return await ratebridge.convert(stake, currency, instant, EMBEDDED, sources=[Nothing()])

    try:
        done = trio.run(ask)
    except RatebridgeError:
        return
    assert done.eur == Decimal(round(Fraction(stake) * 10**5)).scaleb(-5)


class Nothing:
    """A source without rates."""

    name = "nothing"
    quota = budget = None

    async def fetch(self, day, now):
        raise SourceFailed("no-table", "has nothing")
