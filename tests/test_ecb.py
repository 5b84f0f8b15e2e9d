"""The ECB: the embedded table, and its files beyond that."""

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from threading import current_thread
from time import sleep

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from rate_bench import as_zip, csv, make_client, make_source

from ratebridge.conversion import to_euro
from ratebridge.errors import SourceFailed
from ratebridge.fakes.ecb import ECB
from ratebridge.fakes.rates import FakeRates, Fault, quote, working_day
from ratebridge.history import embedded, read_zip
from ratebridge.providers.ecb import EMBEDDED, XML, ZIP, Ecb, load_embedded, read_xml
from ratebridge.providers.source import reading
from ratebridge.rates import MAX_DAYS_BACK

NOON = datetime(2090, 11, 17, 12, tzinfo=UTC)  # a Friday, three hours before its rates appear
FRIDAY, THURSDAY = NOON.date(), NOON.date() - timedelta(days=1)


async def fetch(day, *faults, now=NOON):
    """The sheet of a day, and the files that were asked for."""
    fake = FakeRates(lambda: now)
    fake.order(ECB, *faults)
    sheet = await make_source(ECB, make_client(fake)).fetch(day, now)
    return sheet, [call.path.rpartition("/")[2] for call in fake.calls]


# The embedded table.


async def test_one_sheet_has_the_whole_history_and_needs_no_network():
    sheet, files = await fetch(date(2021, 5, 18))
    assert (sheet.provider, sheet.asked, files) == ("ecb", EMBEDDED, [])
    assert (sheet.first, sheet.last) == (date(1999, 1, 4), embedded().newest)
    assert sheet.rows is await load_embedded()
    found, known_on = sheet.find("USD", date(2021, 5, 18))
    assert known_on == date(2021, 5, 18)
    assert to_euro(Decimal("253.67"), found.units, found.euro) == Decimal("207.55196")
    assert Ecb().currencies == sheet.currencies == frozenset(embedded().currencies)
    assert (Ecb().quota, Ecb().every) == (None, 10.0)


async def test_it_is_loaded_once_in_a_thread_when_it_is_first_needed(monkeypatch):
    threads = []

    @cache
    def load():
        threads.append(current_thread())
        sleep(0.01)  # so that the next one would begin meanwhile
        return embedded()

    monkeypatch.setattr("ratebridge.providers.ecb.embedded", load)
    assert Ecb().currencies is None
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(load_embedded)
    assert await load_embedded() is embedded()
    [thread] = threads
    assert thread is not current_thread()


@pytest.mark.parametrize(
    ("currency", "day", "quoted_on"),
    [
        ("USD", date(2021, 5, 16), date(2021, 5, 14)),  # a Sunday
        ("ISK", date(2008, 12, 14), date(2008, 12, 9)),
        ("ISK", date(2008, 12, 15), None),
        ("EUR", date(2021, 5, 18), None),
    ],
)
async def test_a_day_has_the_last_rate_of_five_days_and_nothing_is_guessed(
    currency, day, quoted_on
):
    sheet, _ = await fetch(day)
    found = sheet.find(currency, day)
    assert (found and found[1]) == quoted_on


async def test_without_a_network_it_is_the_embedded_table_alone():
    last = embedded().newest
    assert (await Ecb().fetch(last, NOON)).find("USD", last)
    with pytest.raises(SourceFailed, match=f"has no rates for {FRIDAY}") as caught:
        await Ecb().fetch(FRIDAY, NOON)
    assert caught.value.outcome == "no-table"


# The files, as a stand-in serves them long after the embedded table.


@pytest.mark.parametrize(("back", "file"), [(0, XML), (80, XML), (81, ZIP), (300, ZIP)])
async def test_one_file_brings_all_the_days_that_the_embedded_table_lacks(back, file):
    day = FRIDAY - timedelta(days=back)
    sheet, files = await fetch(day)
    assert (files, sheet.asked, sheet.last) == ([file], file, FRIDAY)
    assert sheet.first == min(sheet.rows) <= working_day(day)
    for one in (day - timedelta(days=n) for n in range(9)):
        found, known_on = sheet.find("USD", one)
        assert known_on == (THURSDAY if one == FRIDAY else working_day(one))
        assert str(found.units) == quote(ECB, "USD", known_on)
    assert len(sheet.rows) == (64 if file == XML else 285)


async def test_what_the_embedded_table_has_is_not_read_twice_but_for_the_days_before_its_end():
    now = datetime.combine(embedded().newest + timedelta(days=9), NOON.time(), UTC)
    sheet, files = await fetch(now.date(), now=now)
    assert files == [XML]
    assert min(sheet.rows) >= embedded().newest - timedelta(days=MAX_DAYS_BACK)
    next_day = embedded().newest + timedelta(days=1)
    assert sheet.find("USD", next_day)[1] == embedded().newest


def xml(*days):
    rows = "".join(
        f'<Cube time="{day}">'
        + "".join(f'<Cube currency="{code}" rate="{rate}"/>' for code, rate in quotes)
        + "</Cube>"
        for day, quotes in days
    )
    return f'<E xmlns="urn:x"><note>text</note><Cube currency="USD"/>{rows}</E>'.encode()


USD, ISK = ("USD", "1.10"), ("ISK", "136")


def bodies(*days):
    """The same as XML and as a zip, with the day that makes the source ask for that file."""
    codes = list(dict.fromkeys(code for _, quotes in days for code, _ in quotes))
    rows = [(day, [dict(quotes).get(code, "N/A") for code in codes]) for day, quotes in days]
    return [(xml(*days), THURSDAY), (as_zip(csv(codes, rows)), FRIDAY - timedelta(days=81))]


@pytest.mark.parametrize("kind", [0, 1], ids=["xml", "zip"])
async def test_a_file_is_read_as_it_stands(kind):
    later = FRIDAY + timedelta(days=1), [("USD", "9")]
    given = (later, (FRIDAY, [USD, ("GBP", "0.001")]), (THURSDAY, [ISK, ("GBP", "x")]))
    body, day = bodies(*given)[kind]
    sheet, _ = await fetch(day, Fault(body=body))
    assert {
        published_on: {code: str(getattr(row, "units", row)) for code, row in of_day.items()}
        for published_on, of_day in sheet.rows.items()
    } == {
        FRIDAY: {"USD": "1.10", "GBP": "gives it in too few digits (0.001)"},
        THURSDAY: {"ISK": "136"},
    }


REFUSED = [
    (xml((FRIDAY, [USD, ("EUR", "2")])), "has another quote than 1 for EUR on 2090-11-17"),
    (xml((FRIDAY, [USD]), (FRIDAY, [("USD", "1.2")])), "has two different quotes for USD on"),
    (xml((FRIDAY + timedelta(days=1), [USD])), f"has no rates for {XML}"),
]


@pytest.mark.parametrize(("body", "why"), REFUSED, ids=range(len(REFUSED)))
async def test_a_file_that_contradicts_itself_or_says_nothing_is_refused(body, why):
    with pytest.raises(SourceFailed, match=why):
        await fetch(THURSDAY, Fault(body=body))
    assert (await fetch(THURSDAY, Fault(body=xml((FRIDAY, [USD, ("EUR", "1")])))))[0].rows


@pytest.mark.parametrize("name", ["UTF-8", "bogus", "hex", "unicode_escape", "utf-16"])
def test_an_xml_is_utf_8_whatever_it_says(name):
    body = f'<?xml version="1.0" encoding="{name}"?>'.encode() + xml((FRIDAY, [USD]))
    assert read_xml(body) == [("USD", Raw(b"1.10"), FRIDAY)]


BOMB = b'<!DOCTYPE E [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<E/>", b"<E>", xml(), xml((FRIDAY, [USD])).replace(b"text", b"&a;")),
        *(declared + xml((FRIDAY, [USD])) for declared in (BOMB, b"<!DOCTYPE E>")),
        *(xml((day, [USD])) for day in ("17 November 2090", "2090-11-31")),
    ],
    ids=range(9),
)
def test_what_is_no_xml_of_rates_or_has_a_document_type_is_refused(body):
    with pytest.raises(ValueError):  # noqa: PT011 - its words go nowhere
        read_xml(body)


@pytest.mark.parametrize(
    ("read", "sound"),
    [(read_xml, xml((FRIDAY, [USD, ISK]))), (read_zip, as_zip(csv(["USD"], [(FRIDAY, ["1.1"])])))],
)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_are_read_or_refused(read, sound, changes):
    body = bytearray(sound)
    for place, byte in changes:
        body[place % len(body)] = byte
    with suppress(ValueError):
        assert read(bytes(body))


async def test_who_needs_the_embedded_table_does_not_wait_for_answers_being_read():
    async with reading():
        assert await load_embedded() is embedded()
