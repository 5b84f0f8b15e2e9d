"""Against an oracle that counts days and seconds by itself, without `datetime`'s parser."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratebridge.dates import BadDate, parse_instant, rate_day, wire_time

NOW = datetime(2021, 11, 18, 12, 0, tzinfo=UTC)


def days_of(year: int, month: int, day: int) -> int:
    """Days since 0000-03-01, by the rule of the calendar: a year begins in March, and ends in its
    leap day if it has one.
    """
    if month < 3:
        year, month = year - 1, month + 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * month - 457) // 5 + day - 1


EPOCH_DAYS = days_of(1970, 1, 1)


def microseconds_of(instant: datetime) -> int:
    """Since 1970, from the fields."""
    days = days_of(instant.year, instant.month, instant.day) - EPOCH_DAYS
    seconds = (days * 24 + instant.hour) * 3600 + instant.minute * 60 + instant.second
    return seconds * 10**6 + instant.microsecond


@st.composite
def written(draw: st.DrawFn) -> tuple[str, int]:
    """A date as it may be written, and the microseconds since 1970 that it means."""
    day = draw(st.dates())
    text = day.isoformat()
    seconds = (days_of(day.year, day.month, day.day) - EPOCH_DAYS) * 86400
    if draw(st.booleans()):
        return text, seconds * 10**6
    hour, minute = draw(st.integers(0, 23)), draw(st.integers(0, 59))
    text += draw(st.sampled_from("Tt ")) + f"{hour:02}:{minute:02}"
    seconds += hour * 3600 + minute * 60
    micros = 0
    if draw(st.booleans()):
        second = draw(st.integers(0, 59))
        text += f":{second:02}"
        seconds += second
        if draw(st.booleans()):
            places = draw(st.text("0123456789", min_size=1, max_size=9))
            text += "." + places
            micros = int(places.ljust(6, "0")[:6])
    if draw(st.booleans()):
        text += draw(st.sampled_from("Zz"))
    elif draw(st.booleans()):
        sign = draw(st.sampled_from((1, -1)))
        hours, minutes = draw(st.integers(0, 23)), draw(st.sampled_from((None, 0, 30, 59)))
        colon = draw(st.sampled_from((":", "")))
        text += f"{'+' if sign > 0 else '-'}{hours:02}"
        text += "" if minutes is None else f"{colon}{minutes:02}"
        seconds -= sign * (hours * 3600 + (minutes or 0) * 60)
    return text, seconds * 10**6 + micros


FIRST = microseconds_of(datetime(1, 1, 1, tzinfo=UTC))
LAST = microseconds_of(datetime(9999, 12, 31, 23, 59, 59, 999999, UTC))


@given(written())
@example(("0001-01-01T00:00:00+00:00", FIRST))
@example(("0001-01-01T00:00:00+00:01", FIRST - 60_000_000))
@example(("9999-12-31T23:59:59.999999Z", LAST))
@example(("9999-12-31T23:59:59.999999-00:01", LAST + 60_000_000))
@example(("2020-02-29T23:59:59.999999999+23:59", 1582934459999999))
def test_a_date_means_the_instant_that_it_says(case: tuple[str, int]):
    text, micros = case
    if FIRST <= micros <= LAST:
        instant = parse_instant(text)
        assert instant.tzinfo is UTC
        assert microseconds_of(instant) == micros
    else:
        with pytest.raises(BadDate, match="is out of range"):
            parse_instant(text)


@given(st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32))
@example(1900, 2, 29)
@example(2000, 2, 29)
@example(2021, 2, 29)
@example(0, 1, 1)
def test_only_days_of_the_calendar_are_days(year: int, month: int, day: int):
    following = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)
    there_is = (
        year >= 1 and 1 <= month <= 12 and 1 <= day <= days_of(*following) - days_of(year, month, 1)
    )
    text = f"{year:04}-{month:02}-{day:02}"
    if there_is:
        assert parse_instant(text).date() == date(year, month, day)
    else:
        with pytest.raises(BadDate, match="is not a day"):
            parse_instant(text)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2021-05-18T21:32:42.324Z", datetime(2021, 5, 18, 21, 32, 42, 324000, UTC)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, 0, UTC)),
        ("2016-12-31T23:59:60.5z", datetime(2016, 12, 31, 23, 59, 59, 500000, UTC)),
        ("2017-01-01T05:29:60+05:30", datetime(2016, 12, 31, 23, 59, 59, 0, UTC)),
    ],
)
def test_a_leap_second_is_the_second_before_it(text: str, instant: datetime):
    parsed = parse_instant(text)
    assert parsed == instant
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "20210518", "20210518T213242Z", "2021-W20-2", "2021-138", "2021-05"),
        *("2021-05-18T21", "2021-05-18T24:00:00Z", "2021-05-18T21:60:00Z", "2021-05-18T21:32:61Z"),
        *("2021-05-18T21:32:60Z", "2021-05-18T22:59:60Z", "2021-05-18T23:58:60Z"),
        *("2021-05-18T23:59:60+01:00", "2021-05-18T21:32:42,5Z", "2021-05-18T21:32:42."),
        *("2021-05-18T21:32:42.0123456789Z", "2021-05-18T21:32:42+24:00"),
        *("2021-05-18T21:32:42+01:60", "2021-05-18T21:32:42+01:00:00", "2021-05-18_21:32"),
        *(" 2021-05-18", "2021-05-18 ", "2021-05-18\n", "2021-05-18Z", "2021-05-18+01:00"),
        *("+2021-05-18", "-2021-05-18", "12021-05-18", "2021-5-18", "2021/05/18"),
        *(
            "\uff12\uff10\uff12\uff11-05-18",
            "2021-05-18T21:32:42\u221201:00",
            "2021-05-18T\u0662\u0661:32",
        ),
    ],
)
def test_anything_else_is_no_date(text: str):
    with pytest.raises(BadDate, match=r"^is not an ISO 8601 date and time$"):
        parse_instant(text)


def outcome(function: Callable[..., object], *arguments: object) -> object:
    """What a call returns, or the text of the `BadDate` that it raises."""
    try:
        return function(*arguments)
    except BadDate as flaw:
        return str(flaw)


BITS = ("2021-05-18", "0000-", "9999", "-12-31", "T", "23:59", ":60", ".9", "Z", "+01:00", "-2359")


@given(
    st.lists(st.sampled_from(BITS), max_size=8).map("".join)
    | st.text("0123456789-+:.TtZzW ,\u0660\uff11\u2212\n", max_size=40)
    | st.text(max_size=40)
)
def test_any_text_is_an_instant_in_utc_or_a_bad_date(text: str):
    found = outcome(parse_instant, text)
    if isinstance(found, datetime):
        assert found.tzinfo is UTC
    else:
        assert found in {"is not an ISO 8601 date and time", "is not a day", "is out of range"}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@given(
    st.integers(microseconds_of(at("1999-01-04T00:00:00Z")), microseconds_of(NOW)),
    st.integers(-4 * 86400 * 10**6, 4 * 86400 * 10**6) | st.integers(-(10**9), 10**9),
)
@example(microseconds_of(NOW), 300 * 10**6)
@example(microseconds_of(NOW), 300 * 10**6 + 1)
@example(microseconds_of(at("2021-11-18T23:59:59Z")), 299 * 10**6)  # tomorrow there, today here
@example(microseconds_of(at("1999-01-04T00:00:00Z")), -1)
def test_the_day_of_any_instant(now: int, ahead: int):
    epoch = at("1970-01-01T00:00:00Z")
    day = min(now, now + ahead) // (86400 * 10**6)
    expected: object = date(1970, 1, 1) + timedelta(days=day)
    if ahead > 300 * 10**6:
        expected = "is in the future"
    elif day + EPOCH_DAYS < days_of(1999, 1, 4):
        expected = "is before 1999-01-04, the first day with rates"
    instant = epoch + timedelta(microseconds=now + ahead)
    assert outcome(rate_day, instant, epoch + timedelta(microseconds=now)) == expected


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (datetime(2021, 5, 18, 21, 32, 42, 412000, UTC), "2021-05-18T21:32:42.412Z"),
        (datetime(2021, 5, 18, 21, 32, 42, 412999, UTC), "2021-05-18T21:32:42.412Z"),
        (datetime(2021, 1, 1, tzinfo=UTC), "2021-01-01T00:00:00.000Z"),
        (datetime(2021, 1, 1, 0, 0, 0, 1, UTC), "2021-01-01T00:00:00.000Z"),
        (datetime(2021, 1, 1, 0, 0, 0, 1000, UTC), "2021-01-01T00:00:00.001Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000Z"),
        (datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), "9999-12-31T23:59:59.999Z"),
    ],
)
def test_how_an_instant_stands_on_the_wire(instant: datetime, text: str):
    assert wire_time(instant) == text


@given(st.datetimes(timezones=st.just(UTC)))
def test_what_stands_on_the_wire_can_be_read(instant: datetime):
    parsed = parse_instant(wire_time(instant))
    assert microseconds_of(parsed) == microseconds_of(instant) // 1000 * 1000
