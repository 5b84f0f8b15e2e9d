"""The ECB's history: against its own package, and what is no history."""

import struct
import tracemalloc
import zipfile
from datetime import date, timedelta
from decimal import Decimal
from zlib import compress

import pytest
from currency_converter import CurrencyConverter, RateNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from rate_bench import as_zip, csv

from ratebridge.history import MAX_CSV, MOST_COLUMNS, History, embedded, read_zip
from ratebridge.providers.source import is_coarse
from ratebridge.rates import Quote

FIRST = date(1999, 1, 4)


@pytest.fixture(scope="module")
def package():
    return CurrencyConverter(decimal=True)


@given(data=st.data())
def test_the_embedded_history_is_what_the_package_makes_of_it(package, data):
    history = embedded()
    assert set(history.currencies) == package.currencies - {"EUR"}
    day = FIRST + timedelta(days=data.draw(st.integers(0, (history.newest - FIRST).days)))
    code = data.draw(st.sampled_from(history.currencies))
    try:
        expected = package.convert(Decimal(1), "EUR", code, day)
    except (RateNotFoundError, ValueError):
        expected = None
    quote = history.get(day, {}).get(code)
    assert (quote and quote.units) == expected
    assert quote is None or not is_coarse(quote.units)


def test_it_reaches_from_the_first_day_of_the_euro_to_the_packages_last(package):
    assert (min(embedded()), embedded().newest) == package.bounds["USD"]
    assert len(embedded()) == len(list(embedded())) > 7_000


@given(
    table=st.dictionaries(
        st.integers(0, 40), st.tuples(*[st.sampled_from(["N/A", "", "1.1", "2.2"])] * 3), min_size=1
    ),
    asked=st.integers(-5, 50),
)
def test_the_nearest_is_the_last_before_a_day_or_else_the_first_after_it(table, asked):
    rows = [(FIRST + timedelta(days=at), values) for at, values in table.items()]
    history = History(csv(["AAA", "BBB", "CCC"], rows))
    for place, code in enumerate(("AAA", "BBB", "CCC")):
        known = sorted(at for at, values in table.items() if values[place][:1].isdigit())
        at = max((at for at in known if at <= asked), default=min(known, default=None))
        expected = None if at is None else (float(table[at][place]), abs(asked - at))
        assert history.nearest(code, FIRST + timedelta(days=asked)) == expected
    assert history.nearest("DDD", FIRST) is None


@pytest.mark.parametrize("bad", ["0", "0.00", "1_0", "1e3", "+1", " 1", "NaN", "-1", "9" * 13])
def test_what_is_no_number_in_range_is_no_quote(bad):
    history = History(csv(["USD", "ISK"], [(FIRST, [bad, "136"])]))
    assert history[FIRST] == {"ISK": Quote(Decimal(136))}
    with pytest.raises(KeyError):
        history[FIRST + timedelta(days=1)]


GOOD = csv(["USD"], [(FIRST, ["1.1"])])
CODES = [f"A{n // 26 + 65:c}{n % 26 + 65:c}" for n in range(MOST_COLUMNS + 1)]


@pytest.mark.parametrize(
    "text",
    [
        *("", "Date,USD,", "USD\n1", f"{GOOD}\n\n{GOOD[10:]}", GOOD.replace("1999-01-04", "4.1.")),
        csv(["USD", "USD"], [(FIRST, ["1.1", "1.2"])]),
        csv(["EUR"], [(FIRST, ["2"])]),
        csv(["usd"], [(FIRST, ["1.1"])]),
        csv(["USD"], [(FIRST, ["1.1"]), (FIRST, ["1.1"])]),
        csv(["USD"], [("1999-01-03", ["1.1"])]),
        csv(["USD"], [("1999-02-29", ["1.1"])]),
        csv(CODES, [(FIRST, ["2"] * len(CODES))]),
    ],
    ids=range(12),
)
def test_a_text_that_is_no_history_or_contradicts_itself_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - its words go nowhere
        History(text)


# The zip.


def far_away():
    """A zip whose member begins beyond any file, by the fields for large files."""
    body = bytearray(as_zip(GOOD))
    entry, end = body.index(b"PK\1\2"), body.index(b"PK\5\6")
    extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)
    struct.pack_into("<L", body, end + 12, end - entry + len(extra))
    struct.pack_into("<H", body, entry + 30, len(extra))
    struct.pack_into("<L", body, entry + 42, 2**32 - 1)
    body[end:end] = extra
    return bytes(body)


def encrypted():
    body = bytearray(as_zip(GOOD))
    body[body.index(b"PK\1\2") + 8] |= 1
    return bytes(body)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", GOOD.encode(), compress(GOOD.encode()), as_zip(GOOD)[:-30], as_zip(GOOD, "other")),
        *(as_zip(GOOD, how=zipfile.ZIP_LZMA), as_zip("\u20ac"), far_away(), encrypted()),
    ],
    ids=range(9),
)
def test_a_zip_that_is_none_is_refused(body):
    assert list(read_zip(as_zip(GOOD))) == [FIRST]
    with pytest.raises(ValueError):  # noqa: PT011 - its words go nowhere
        read_zip(body)


def test_a_zip_bomb_is_not_unpacked():
    bomb = as_zip(b"0" * 10 * MAX_CSV)
    tracemalloc.start()
    with pytest.raises(ValueError, match="too large"):
        read_zip(bomb)
    assert tracemalloc.get_traced_memory()[1] < 3 * MAX_CSV
    tracemalloc.stop()
