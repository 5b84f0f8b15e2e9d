"""Headers of HTTP responses that hold a number or a time. Pure.

Names are in lower case. What is not as it should be is as if it were not there.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_WAIT: Final = 86400.0  # s, the longest Retry-After that is obeyed

_COUNT: Final = re.compile(r"-?\d{1,12}", re.ASCII)


def read_count(header: str | None) -> int | None:
    """The whole number in a header; None if there is none."""
    return int(header) if header is not None and _COUNT.fullmatch(header) else None


def read_date(header: str | None) -> datetime | None:
    """The instant of an HTTP date (RFC 9110, 5.6.7), in UTC; None if it is none."""
    try:
        instant = parsedate_to_datetime(header or "")
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After, at most `LONGEST_WAIT`; None if there is none, or it is over.

    It is a number of seconds, or a date (RFC 9110, 10.2.3), which is seen from the response's own
    Date, or by our clock where the response has none.
    """
    value = headers.get("retry-after")
    seconds: float | None = read_count(value)
    if seconds is None and (until := read_date(value)):
        seconds = (until - (read_date(headers.get("date")) or datetime.now(UTC))).total_seconds()
    return min(float(seconds), LONGEST_WAIT) if seconds is not None and seconds > 0 else None
