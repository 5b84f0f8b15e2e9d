"""freecurrencyapi.com: 33 currencies, a key, 10 calls a minute and 5,000 a month in its free plan.

Its rates are not the ECB's. Weekends are served under their own day.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import attrs
import msgspec
import trio
from msgspec import Raw

from ..errors import SourceFailed
from ..rates import RateTable
from .http import Answer, HttpClient
from .source import Quota, make_table

T = TypeVar("T")

_latest = msgspec.json.Decoder(dict[str, dict[str, Raw]]).decode
_historical = msgspec.json.Decoder(dict[str, dict[str, dict[str, Raw]]]).decode
_status = msgspec.json.Decoder(dict[str, dict[str, dict[str, int]]]).decode


class FreeCurrencyApi:
    """One call a day-table, asked for with a euro base.

    The key goes in a header, so that no URL ever holds it.
    """

    name = "freecurrencyapi"

    def __init__(self, http: HttpClient, key: str, url: str) -> None:
        self._http = http
        self._headers = {"apikey": key}
        self._url = url
        self._base: dict[str, str] = {"base_currency": "EUR"}
        self._quota = Quota()
        self._rests_until = 0.0  # trio time
        self._rest = SourceFailed("quota-minute", "")

    @property
    def quota(self) -> Quota:
        return self._quota

    async def fetch(self, day: date, now: datetime) -> RateTable:
        """See `Source`. Today is `/latest`, any other day `/historical`."""
        today = now.date()
        if day < today:
            answer = await self._get("historical", {"date": day.isoformat()}, now)
            # Just after midnight it may not have yesterday yet; the latest is yesterday's last.
            if answer.status != 422 or day < today - timedelta(days=1):
                tables = _read(_historical, answer)
                return self._table(day, now, tables.get(day.isoformat(), {}))
        answer = await self._get("latest", {}, now)
        return self._table(day, now, _read(_latest, answer))

    def _table(self, day: date, now: datetime, quotes: dict[str, Raw]) -> RateTable:
        return make_table(self.name, day, now, ((code, raw, day) for code, raw in quotes.items()))

    async def check(self) -> Quota:
        """Ask `/status`, which is not counted: is the key good, and what has it left?"""
        answer = await self._http.get(f"{self._url}/status", {}, self._headers)
        month = _read(_status, answer, "quotas").get("month", {})
        self._quota.month_left = month.get("remaining")
        self._quota.month_total = month.get("total")
        return self._quota

    async def _get(self, path: str, params: dict[str, str], now: datetime) -> Answer:
        self._rest_if_due()
        url = f"{self._url}/{path}"
        answer = await self._http.get(url, {**params, **self._base}, self._headers)
        if answer.status == 403 and self._base:
            # Some plans allow no other base than the dollar; the arithmetic does not care.
            answer = await self._http.get(url, params, self._headers)
            if answer.status == 200:
                self._base = {}
        self._read_quota(answer, now)
        return answer

    def _read_quota(self, answer: Answer, now: datetime) -> None:
        headers = answer.headers
        minute = _count(headers.get("x-ratelimit-remaining-quota-minute"))
        month = _count(headers.get("x-ratelimit-remaining-quota-month"))
        total = _count(headers.get("x-ratelimit-limit-quota-month"))
        quota = self._quota
        quota.minute_left = minute if minute is not None else quota.minute_left
        quota.month_left = month if month is not None else quota.month_left
        quota.month_total = total if total is not None else quota.month_total
        if month is not None and month <= 0:
            first = next_month(now)
            self._rests_until = trio.current_time() + (first - now).total_seconds()
            self._rest = SourceFailed(
                "quota-month", f"has no calls left this month (until {first:%Y-%m-%d} UTC)"
            )
        elif answer.status == 429 or (minute is not None and minute <= 0):
            asked = _count(headers.get("retry-after"))
            to_next_minute = 60 - now.second - now.microsecond / 1e6
            self._rests_until = trio.current_time() + (asked or to_next_minute)
            self._rest = SourceFailed("quota-minute", "has no calls left this minute", again=True)
        if answer.status == 429:
            self._rest_if_due()

    def _rest_if_due(self) -> None:
        """Raises `SourceFailed` while the quota is used up."""
        left = self._rests_until - trio.current_time()
        if left > 0:
            raise attrs.evolve(self._rest, after=left, silence=left)


def _read(decode: Callable[[bytes], dict[str, T]], answer: Answer, member: str = "data") -> T:
    """One member of the body of a good answer.

    Raises `SourceFailed` for any other; the body's prose decides nothing.
    """
    status = answer.status
    if status in (401, 403):
        raise SourceFailed("refused-key", f"did not accept the key (HTTP {status})")
    if status != 200:
        raise SourceFailed(f"http-{status}", f"answered HTTP {status}", again=status >= 500)
    try:
        return decode(answer.body)[member]
    except (msgspec.DecodeError, KeyError, RecursionError):
        raise SourceFailed("bad-body", "answered with something else than rates") from None


def _count(header: str | None) -> int | None:
    """A whole number from a header, None when there is none to be had."""
    if header is None or len(header) > 12:
        return None
    try:
        return int(header)
    except ValueError:
        return None


def next_month(now: datetime) -> datetime:
    """The first instant of the month after `now`, UTC."""
    return datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
