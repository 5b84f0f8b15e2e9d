"""What holds for every source: a sheet, a failure, and no secret in any text.

Each is asked on a day that no embedded table will reach for a long time.
"""

from datetime import UTC, date, datetime, timedelta

import pytest
import trio
from rate_bench import KEY, URL, Wall, make_client, make_source

from ratebridge.errors import SourceFailed
from ratebridge.fakes.rates import CUT, EMPTY, HTML, FakeRates, Fault
from ratebridge.providers.registry import provider
from ratebridge.rates import Quote
from ratebridge.settings import SOURCES

NOW = datetime(2090, 11, 20, 12, 0, 20, tzinfo=UTC)
DAY = date(2090, 11, 6)


@pytest.fixture(params=SOURCES)
def name(request):
    return request.param


def open_source(name):
    fake = FakeRates(Wall(NOW), key=KEY)
    return fake, make_source(name, make_client(fake))


async def failure_of(source):
    with pytest.raises(SourceFailed) as caught:
        await source.fetch(DAY, NOW)
    assert not any(hidden in f"{caught.value!r} {source!r}" for hidden in (KEY, URL))
    return caught.value


@pytest.mark.parametrize("day", [DAY, NOW.date(), DAY + timedelta(days=2)])
async def test_one_call_is_one_sheet_of_all_that_it_can_have(name, day):
    fake, source = open_source(name)
    sheet = await source.fetch(day, NOW)
    assert (sheet.provider, sheet.asked) == (source.name, source.asks(day, NOW.date()))
    assert source.name == provider(name).name == name
    assert (sheet.fetched, sheet.latest) == (NOW, False)
    assert sheet.first <= day <= sheet.last <= NOW.date()
    assert fake.count(name) == fake.count() == 1
    assert sheet.currencies <= (source.currencies or sheet.currencies)
    quote, known_on = sheet.find("BTC" if name == "coinbase" else "USD", day)
    assert isinstance(quote, Quote)
    assert 0 <= (day - known_on).days <= 5


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_obeyed(name, status, autojump_clock):
    fake, source = open_source(name)
    fake.disturb = lambda _call: Fault(status=status, headers={"retry-after": "70"})
    failure = await failure_of(source)
    assert (failure.again, failure.limited_for) == (True, 70.0)
    fake.disturb = lambda _call: None
    await trio.sleep(70)
    await source.fetch(DAY, NOW)


BODIES = [
    *(b"", b"null", b"1", b'"rates"', b"\xff\xfe", b"[" * 100_000, b"<a>" * 100_000, b"PK\x03\x04"),
    *(b'{"message":"Down for maintenance"}', b"[1]", b"[{}]", b'{"data":[]}', HTML.body),
]


@pytest.mark.parametrize("fault", [*(Fault(body=body) for body in BODIES), CUT, EMPTY])
async def test_a_body_of_another_shape_is_a_failure(name, fault):
    fake, source = open_source(name)
    fake.disturb = lambda _call: fault
    failure = await failure_of(source)
    assert failure.outcome in ("bad-body", "no-table")  # some is of its shape, and holds nothing
    assert not failure.again
    fake.disturb = lambda _call: None
    assert (await source.fetch(DAY, NOW)).rows
