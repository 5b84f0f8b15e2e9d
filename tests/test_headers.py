"""Numbers and times in headers."""

import pytest

from ratebridge.headers import LONGEST_WAIT, read_count, retry_after

MIDNIGHT = "Fri, 20 Nov 2026 00:00:00 GMT"
HALF_PAST = "Fri, 20 Nov 2026 00:30:00 GMT"


@pytest.mark.parametrize(
    ("header", "count"),
    [
        *(("7", 7), ("0", 0), ("-1", -1), ("9" * 12, 10**12 - 1)),
        *((bad, None) for bad in (None, "", "many", "1.5", "1_0", "\u0661", " 7", "9" * 13)),
    ],
)
def test_a_count_is_a_whole_number(header, count):
    assert read_count(header) == count


@pytest.mark.parametrize(
    ("text", "at", "seconds"),
    [
        *(("1", None, 1.0), ("999999999", None, LONGEST_WAIT), ("0", None, None)),
        *(("-5", None, None), ("\u00b2", MIDNIGHT, None), (HALF_PAST, MIDNIGHT, 1800.0)),
        *((MIDNIGHT, HALF_PAST, None), ("Fri, 20 Nov 2099 00:00:00 GMT", MIDNIGHT, LONGEST_WAIT)),
        # By our own clock.
        *(("Fri, 20 Nov 2099 00:00:00 GMT", at, LONGEST_WAIT) for at in (None, "soon")),
        ("Fri, 20 Nov 2015 00:00:00 GMT", None, None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(text, at, seconds):
    assert retry_after({"retry-after": text, **({"date": at} if at else {})}) == seconds
