"""The ECB: the embedded table against its own package, and its files beyond that."""

import io
import tracemalloc
import zipfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
import trio
import trio.testing
from currency_converter import CurrencyConverter, RateNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from rate_bench import make_client, make_source, open_bench

from ratebridge.conversion import to_euro
from ratebridge.errors import NoRate, SourceFailed
from ratebridge.fakes.ecb import ECB
from ratebridge.fakes.rates import HANG, RESET, FakeRates, Fault, quote, working_day
from ratebridge.providers.ecb import MAX_CSV, RECHECK, Ecb, read_xml, read_zip
from ratebridge.rates import FAILURE_LIFE, Quote, Rate, rate_from

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


# Beyond the embedded table: the files, as a stand-in serves them long after it.

NOON = datetime(2090, 11, 17, 12, tzinfo=UTC)  # a Friday, three hours before its rates appear
FRIDAY, THURSDAY = NOON.date(), NOON.date() - timedelta(days=1)
LONG_AGO = FRIDAY - timedelta(days=200)


class Live:
    """The source and its stand-in. `now` is the wall clock of both; trio's is not moved by it."""

    def __init__(self, now=NOON):
        self.now = now
        self.fake = FakeRates(lambda: self.now)
        self.source = make_source("ecb", make_client(self.fake))

    async def fetch(self, day, **later):
        """A table, asked for when the wall clock has gone on so far."""
        self.now += timedelta(**later)
        return await self.source.fetch(day, self.now)

    @property
    def files(self):
        return [call.path.rpartition("-")[2] for call in self.fake.calls]


def quoted_on(table):
    return {quote.day for code, quote in table.quotes.items() if code != "EUR"}


async def test_one_small_file_serves_the_last_weeks():
    live = Live()
    for back in range(1, 81):
        day = FRIDAY - timedelta(days=back)
        table = await live.fetch(day)
        assert quoted_on(table) == {working_day(day)}
        assert table.quotes["USD"].units == Decimal(quote(ECB, "USD", working_day(day)))
        assert table.final
    assert live.files == ["90d.xml"]


async def test_one_large_file_serves_the_days_before_those():
    live = Live()
    for back in (81, 82, 100, 200, 300):
        day = FRIDAY - timedelta(days=back)
        assert quoted_on(await live.fetch(day)) == {working_day(day)}
    assert live.files == ["hist.zip"]


async def test_the_embedded_days_need_no_network_and_later_ones_fail_without_it(ecb):
    live = Live()
    live.fake.disturb = lambda _call: RESET
    last = await ecb.last_day()
    assert (await live.fetch(last)).quotes == (await ecb.fetch(last, NOON)).quotes
    assert live.files == []
    for day in (last + timedelta(days=1), LONG_AGO, FRIDAY):
        with pytest.raises(SourceFailed, match="broke off"):
            await live.fetch(day)


async def test_the_network_that_comes_back_is_used_at_once():
    live = Live()
    live.fake.order(ECB, RESET)
    with pytest.raises(SourceFailed):
        await live.fetch(THURSDAY)
    assert "USD" in (await live.fetch(THURSDAY)).quotes


async def test_a_failure_of_a_file_is_that_of_all_its_days_for_five_seconds(autojump_clock):
    live = Live()
    live.fake.order(ECB, *[RESET] * 4)
    for calls in (2, 4):
        for back in (1, 1, 2, 3, 4):  # the chain tries a day again at once
            with pytest.raises(SourceFailed, match="broke off"):
                await live.fetch(FRIDAY - timedelta(days=back))
        assert len(live.files) == calls
        await trio.sleep(FAILURE_LIFE)
    assert "USD" in (await live.fetch(THURSDAY)).quotes


@pytest.fixture
def no_threads(monkeypatch):
    """Work is done in the event loop: a virtual clock does not wait for threads."""

    async def work(function, *args):
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", work)


async def test_a_retry_for_one_day_serves_all_days_of_the_file(autojump_clock, no_threads):
    async with open_bench("ecb", start=NOON) as bench:
        bench.fake.order(ECB, RESET)
        bench.fake.latency = 0.5
        async with trio.open_nursery() as nursery:
            for back in range(1, 9):
                nursery.start_soon(bench.ask, "USD", FRIDAY - timedelta(days=back))
        assert (len(bench.notes.fetches), bench.notes.failures) == (8, [])
        assert bench.fake.count() == 2


async def test_no_day_remembers_a_failure_of_its_file_for_longer_than_the_first(
    autojump_clock, no_threads
):
    async with open_bench("ecb", start=NOON) as bench:
        bench.fake.order(ECB, Fault(status=404))
        for back, seconds in ((1, 4.9), (2, 0.1)):
            assert isinstance(await bench.ask("USD", FRIDAY - timedelta(days=back)), NoRate)
            await trio.sleep(seconds)
        assert isinstance(await bench.ask("USD", FRIDAY - timedelta(days=2)), Rate)


async def test_before_the_rates_of_today_appear_it_has_those_of_yesterday(autojump_clock):
    live = Live()
    assert quoted_on(await live.fetch(FRIDAY)) == {THURSDAY}
    live.now += timedelta(hours=3)  # now they have appeared
    await trio.sleep(RECHECK - 1)
    assert quoted_on(await live.fetch(FRIDAY)) == {THURSDAY}
    assert len(live.files) == 1
    await trio.sleep(1)
    assert quoted_on(await live.fetch(FRIDAY)) == {FRIDAY}
    assert len(live.files) == 2
    await trio.sleep(8 * 3600)
    assert quoted_on(await live.fetch(FRIDAY, hours=8)) == {FRIDAY}
    assert len(live.files) == 2  # what it has changes no more


async def test_a_weekend_is_not_asked_for_again_and_again(autojump_clock):
    live = Live(NOON + timedelta(hours=4))
    for hours in range(0, 53, 4):
        await trio.sleep(4 * 3600)
        table = await live.fetch(live.now.date(), hours=4 if hours else 0)
        assert quoted_on(table) == {FRIDAY}
    assert live.now.date() == FRIDAY + timedelta(days=2)
    assert len(live.files) == 1
    monday = FRIDAY + timedelta(days=3)
    assert quoted_on(await live.fetch(monday, hours=24)) == {monday}
    assert len(live.files) == 2


async def test_a_day_that_has_ended_since_is_asked_for_at_once():
    live = Live()
    assert quoted_on(await live.fetch(FRIDAY)) == {THURSDAY}
    assert quoted_on(await live.fetch(FRIDAY, hours=12)) == {FRIDAY}
    assert len(live.files) == 2


async def test_concurrent_requests_share_a_file():
    live = Live()
    live.fake.latency = 0.01
    async with trio.open_nursery() as nursery:
        for back in range(1, 9):
            nursery.start_soon(live.fetch, FRIDAY - timedelta(days=back))
    assert len(live.files) == 1


async def test_a_site_that_hangs_does_not_delay_known_days(autojump_clock):
    live = Live()
    await live.fetch(THURSDAY)
    live.fake.disturb = lambda _call: HANG
    await trio.sleep(RECHECK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.fetch, FRIDAY)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            assert quoted_on(await live.fetch(THURSDAY)) == {THURSDAY}
        nursery.cancel_scope.cancel()
    assert len(live.files) == 2


# What a file says, and what it does not.


def xml(days):
    rows = "".join(
        f'<Cube time="{day}">'
        + "".join(f'<Cube currency="{code}" rate="{rate}"/>' for code, rate in quotes)
        + "</Cube>"
        for day, quotes in days
    )
    return f'<E xmlns="urn:x"><note>text</note><Cube>{rows}</Cube></E>'.encode()


def as_zip(text, name="eurofxref-hist.csv", how=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr(name, text)
    return file.getvalue()


def units(history, day):
    found = history.table(day, NOON).quotes
    return {code: (str(q.units), q.day) for code, q in found.items() if code != "EUR"}


TUESDAY, WEDNESDAY = FRIDAY - timedelta(days=3), FRIDAY - timedelta(days=2)
USD, ISK = ("USD", "1.1"), ("ISK", "136")


@pytest.mark.parametrize("kind", ["xml", "zip"])
def test_a_file_is_read_as_it_stands_and_nothing_is_guessed(kind):
    if kind == "xml":
        history = read_xml(
            FRIDAY, xml([(FRIDAY, [USD]), (THURSDAY, [("USD", "1.20")]), (TUESDAY, [USD, ISK])])
        )
    else:
        lines = [f"{FRIDAY},1.1,N/A,,", f"{THURSDAY},1.20,N/A,,", f"{TUESDAY},1.1,136,,"]
        history = read_zip(FRIDAY, as_zip("\n".join(["Date,USD,ISK,NOK,", *lines])))
    assert units(history, THURSDAY) == {"USD": ("1.20", THURSDAY)}
    assert units(history, TUESDAY) == {"USD": ("1.1", TUESDAY), "ISK": ("136", TUESDAY)}
    # A holiday has the rates before it, but not of a currency that has ended.
    assert units(history, WEDNESDAY) == {"USD": ("1.1", TUESDAY)}
    # After the last row all of its currencies go on, five days and no more.
    assert units(history, FRIDAY + timedelta(days=5)) == {"USD": ("1.1", FRIDAY)}
    for day in (FRIDAY + timedelta(days=6), TUESDAY - timedelta(days=1)):
        with pytest.raises(SourceFailed, match="has no rates for"):
            history.table(day, NOON)


@pytest.mark.parametrize("bad", ["0", "1,2", "1_0", "1e3", "+1", " 1", "\u0661", "NaN", "9" * 13])
def test_a_bad_quote_is_lost_and_not_replaced_by_an_older_one(bad):
    history = read_xml(FRIDAY, xml([(FRIDAY, [("USD", bad), ISK]), (THURSDAY, [USD, ISK])]))
    assert set(units(history, FRIDAY)) == {"ISK"}


@pytest.mark.parametrize("name", ["UTF-8", "bogus", "hex", "unicode_escape", "utf-16"])
def test_an_xml_is_utf_8_whatever_it_says(name):
    body = f'<?xml version="1.0" encoding="{name}"?>'.encode() + xml([(FRIDAY, [USD])])
    assert units(read_xml(FRIDAY, body), FRIDAY) == {"USD": ("1.1", FRIDAY)}


def test_rows_from_the_future_are_none():
    history = read_xml(THURSDAY, xml([(FRIDAY, [("USD", "9")]), (THURSDAY, [USD])]))
    assert history.newest == THURSDAY
    assert units(history, FRIDAY) == {"USD": ("1.1", THURSDAY)}


BOMB = b'<!DOCTYPE E [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<E/>", b"<E>", BOMB + xml([(FRIDAY, [USD])]), b"<!DOCTYPE E>" + xml([])),
        xml([(FRIDAY, [USD])]).replace(b"text", b"&a;"),
        xml([(FRIDAY, [USD]), (FRIDAY, [USD])]),
        xml([(FRIDAY, [USD, ("USD", "1.2")])]),
        xml([(FRIDAY, [("US,", "1.2")])]),
        xml([("17 November 2090", [USD])]),
        xml([("2090-11-31", [USD])]),
        xml([(FRIDAY + timedelta(days=1), [USD])]),
    ],
    ids=range(12),
)
def test_an_xml_that_is_none_or_contradicts_itself_is_refused(body):
    with pytest.raises(ValueError):  # noqa: PT011 - its words go nowhere
        read_xml(FRIDAY, body)


CSV = f"Date,USD,\n{FRIDAY},1.1,"


@pytest.mark.parametrize(
    "body",
    [
        *(b"", CSV.encode(), as_zip(CSV)[:-30]),
        as_zip(CSV, "other.csv"),
        as_zip(CSV, how=zipfile.ZIP_LZMA),
        *(as_zip(text) for text in ("", "Date,USD,", "USD\n1", CSV + "\u20ac")),
        as_zip(f"Date,USD,USD,\n{FRIDAY},1.1,1.2,"),
        as_zip(f"{CSV}\n{FRIDAY},1.1,"),
        as_zip(f"{CSV}\n1999-01-03,1.1,"),
        as_zip(f"{CSV[:8]}{',' * 1000}{CSV[8:]}"),
    ],
    ids=range(13),
)
def test_a_zip_that_is_none_or_contradicts_itself_is_refused(body):
    with pytest.raises(ValueError):  # noqa: PT011 - its words go nowhere
        read_zip(FRIDAY, body)


def test_a_zip_bomb_is_not_unpacked():
    bomb = as_zip(b"0" * 10 * MAX_CSV)
    tracemalloc.start()
    with pytest.raises(ValueError, match="too large"):
        read_zip(FRIDAY, bomb)
    assert tracemalloc.get_traced_memory()[1] < 3 * MAX_CSV
    tracemalloc.stop()


@given(data=st.data())
def test_any_bytes_are_read_or_refused(data):
    read, sound = data.draw(
        st.sampled_from([(read_xml, xml([(FRIDAY, [USD, ISK])])), (read_zip, as_zip(CSV))])
    )
    body = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        history = read(FRIDAY, bytes(body))
    except ValueError:
        return
    assert history.newest <= FRIDAY
