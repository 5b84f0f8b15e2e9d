"""What holds for every source: a table, a failure, and no secret in any text.

Each is asked on a day that no embedded table will reach for a long time.
"""

from datetime import UTC, date, datetime, timedelta

import pytest
import trio
from rate_bench import KEY, URL, Wall, make_client, make_source

from ratebridge.errors import SourceFailed
from ratebridge.fakes.rates import CUT, EMPTY, HTML, FakeRates, Fault, quote
from ratebridge.providers.registry import NAMES, provider
from ratebridge.rates import MAX_DAYS_BACK

NOW = datetime(2090, 11, 20, 12, 0, 20, tzinfo=UTC)
DAY = date(2090, 11, 6)


@pytest.fixture(params=NAMES)
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


def test_a_declaration_goes_by_its_own_name(name):
    assert provider(name).name == name


def test_another_name_is_no_source():
    with pytest.raises(KeyError):
        provider("chain")


@pytest.mark.parametrize("day", [DAY, NOW.date(), DAY + timedelta(days=2)])
async def test_one_call_is_one_table_of_all_currencies(name, day):
    fake, source = open_source(name)
    table = await source.fetch(day, NOW)
    assert (table.provider, source.name, table.day, table.fetched) == (name, name, day, NOW)
    assert fake.count(name) == fake.count() == 1
    assert len(table.quotes) > 25
    assert table.quotes["EUR"].units == 1
    dollar = table.quotes["USD"]
    assert str(dollar.units) == quote(name, "USD", dollar.day)
    assert all(0 <= (day - q.day).days <= MAX_DAYS_BACK for q in table.quotes.values())


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 418, 422, 500, 503])
async def test_a_status_is_a_failure_which_only_the_servers_own_is_worth_trying_again(name, status):
    fake, source = open_source(name)
    fake.disturb = lambda _call: Fault(status=status, headers={"retry-after": "1"}, body=b"%d" % 7)
    failure = await failure_of(source)
    refused = "refused-key" if status in (401, 403) else ""
    assert failure.outcome in (f"http-{status}", refused)
    assert str(status) in str(failure)
    assert failure.again is (status >= 500)
    assert (failure.after, failure.limited_for) == (None, None)


@pytest.mark.parametrize(
    ("header", "wait"), [("7", 7.0), ("999999999999", 86400.0), ("soon", None), ("\u00b2", None)]
)
async def test_retry_after_is_obeyed(name, header, wait, autojump_clock):
    fake, source = open_source(name)
    fake.order(name, Fault(status=429, headers={"retry-after": header}))
    failure = await failure_of(source)
    if failure.outcome == "http-429":  # another tells of a quota, and knows itself when it ends
        assert (failure.again, failure.after) == (wait is not None, wait)
    else:
        assert failure.again
        assert failure.after == (wait or 40.0)
    assert failure.limited_for == failure.after
    await trio.sleep(failure.after or 0.0)
    await source.fetch(DAY, NOW)


BODIES = [
    *(b"", b"null", b"1", b'"rates"', b"\xff\xfe", b"[" * 100_000, b"<a>" * 100_000, b"PK\x03\x04"),
    *(b'{"message":"Down for maintenance"}', b"[1]", b"[{}]", b'{"data":[]}', HTML.body),
]


@pytest.mark.parametrize("fault", [*(Fault(body=body) for body in BODIES), CUT])
async def test_a_body_of_another_shape_is_a_failure(name, fault):
    fake, source = open_source(name)
    fake.order(name, fault)
    failure = await failure_of(source)
    assert failure.outcome in ("bad-body", "bad-table")  # some is of its shape, and holds nothing
    assert not failure.again
    assert "USD" in (await source.fetch(DAY, NOW)).quotes


async def test_a_table_without_quotes_is_a_failure(name):
    fake, source = open_source(name)
    fake.order(name, EMPTY)
    assert (await failure_of(source)).outcome in ("bad-table", "bad-body")


@pytest.mark.parametrize("bad", ["0", "-1", "1e11", "null"])
async def test_a_bad_quote_costs_that_quote(name, bad):
    fake, source = open_source(name)
    fake.order(name, Fault(quotes={"USD": bad}))
    table = await source.fetch(DAY, NOW)
    assert "USD" not in table.quotes
    assert "GBP" in table.quotes


async def test_a_day_far_ahead_has_no_table(name):
    fake, source = open_source(name)
    del fake
    with pytest.raises(SourceFailed):
        await source.fetch(DAY + timedelta(days=400), NOW + timedelta(days=400))
