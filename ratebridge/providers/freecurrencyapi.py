"""freecurrencyapi.com: 33 currencies, a key, 10 calls a minute and 5,000 a month in its free plan.

Its rates are not the ECB's. A weekend has rates of its own.
"""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

import attrs
import msgspec
import trio
from msgspec import Raw

from ..budget import Budget
from ..errors import SourceFailed
from ..rates import RateTable
from .source import (
    Answer,
    Http,
    Provider,
    Quota,
    json_decoder,
    make_table,
    read_body,
    read_count,
    read_members,
    retry_after,
)

MONTH_OF_CALLS: Final = 5000  # of the free plan

LATE: Final = timedelta(hours=1)  # yesterday's table may be missing for so long after midnight

_BASES: Final = ("EUR", "USD")  # the one requested, and the only one of some plans
_NOTHING: Final = Raw(b"{}")
_DAY_NAME: Final = re.compile(rb'"(\d{4}-\d\d-\d\d)"\s*:')


class _Latest(msgspec.Struct):
    data: Raw


class _Historical(msgspec.Struct):
    data: dict[date, Raw]


class _Month(msgspec.Struct):
    total: int | None = None
    remaining: int | None = None


class _Quotas(msgspec.Struct):
    month: _Month


class _Status(msgspec.Struct):
    quotas: _Quotas


_latest = json_decoder(_Latest)
_historical = json_decoder(_Historical)
_status = json_decoder(_Status)


class FreeCurrencyApi:
    """One call for each day-table, with a euro base.

    The key goes in a header, so that no URL holds it.
    """

    name = "freecurrencyapi"

    def __init__(self, http: Http, key: str, url: str) -> None:
        self.budget: Final = Budget.of_month(MONTH_OF_CALLS)
        self._http = http
        self._headers = {"apikey": key}
        self._url = url
        self._base: dict[str, str] = {"base_currency": "EUR"}
        self.quota: Final = Quota()
        self._limited_until = 0.0  # trio time
        self._limit = SourceFailed("quota-minute", "")

    async def fetch(self, day: date, now: datetime) -> RateTable:
        """See `Source`. Today is `/latest`, any other day `/historical`."""
        ended = day < now.date()
        if ended:
            answer = await self._get("historical", {"date": day.isoformat()}, now)
            # Just after midnight it may lack yesterday; `/latest` has yesterday's last quotes.
            midnight = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
            if answer.status != 422 or now - midnight > LATE:
                days = read_body(_historical, answer).data
                names = _DAY_NAME.findall(answer.body)  # the decoder keeps the last of two
                if len(set(names)) < len(names):
                    raise SourceFailed("bad-table", "has two tables for one day")
                quoted_on = max((known for known in days if known <= day), default=day)
                return self._table(day, now, answer, days.get(quoted_on, _NOTHING), quoted_on)
        answer = await self._get("latest", {}, now)
        return self._table(day, now, answer, read_body(_latest, answer).data, day, latest=ended)

    def _table(
        self,
        day: date,
        now: datetime,
        answer: Answer,
        quotes: Raw,
        quoted_on: date,
        *,
        latest: bool = False,
    ) -> RateTable:
        rows = ((currency, raw, quoted_on) for currency, raw in read_members(quotes))
        return make_table(
            self.name, day, now, rows, headers=answer.headers, bases=_BASES, latest=latest
        )

    async def check_key(self) -> str:
        """Ask `/status`, which no quota counts, for the key's validity and remaining calls."""
        answer = await self._http.get(f"{self._url}/status", {}, self._headers)
        _check_key(answer)
        month = read_body(_status, answer).quotas.month
        self.quota.month_left = month.remaining
        self.quota.month_total = month.total
        if month.remaining is None:
            return "accepted"
        total = "" if month.total is None else f" of {month.total:,}"
        left = f"{month.remaining:,}{total} calls left this month"
        if month.remaining <= 0:
            raise SourceFailed("quota-month", f"accepted, but {left}")
        return f"accepted, {left}"

    async def _get(self, path: str, params: dict[str, str], now: datetime) -> Answer:
        """A usable answer. Raises `SourceFailed` while the quota is used up."""
        self._raise_if_limited()
        url = f"{self._url}/{path}"
        answer = await self._http.get(url, {**params, **self._base}, self._headers)
        if answer.status == 403 and self._base:
            # Some plans allow only the dollar as the base, which a table may have as well.
            answer = await self._http.get(url, params, self._headers)
            if answer.status == 200:
                self._base = {}
        self._read_quota(answer, now)
        if answer.status == 429:
            self._raise_if_limited()
        _check_key(answer)
        return answer

    def _read_quota(self, answer: Answer, now: datetime) -> None:
        def count(name: str) -> int | None:
            return read_count(answer.headers.get(f"x-ratelimit-{name}"))

        minute = count("remaining-quota-minute")
        month = count("remaining-quota-month")
        total = count("limit-quota-month")
        quota = self.quota
        quota.minute_left = quota.minute_left if minute is None else minute
        quota.month_left = quota.month_left if month is None else month
        quota.month_total = quota.month_total if total is None else total
        if month is not None and month <= 0:
            first = next_month(now)
            self._limit_for(
                (first - now).total_seconds(),
                SourceFailed(
                    "quota-month", f"has no calls left this month (until {first:%Y-%m-%d} UTC)"
                ),
            )
        elif answer.status == 429 or (minute is not None and minute <= 0):
            to_next_minute = 60 - now.second - now.microsecond / 1e6
            self._limit_for(
                retry_after(answer.headers) or to_next_minute,
                SourceFailed("quota-minute", "has no calls left this minute", again=True),
            )

    def _limit_for(self, seconds: float, why: SourceFailed) -> None:
        until = trio.current_time() + seconds
        if until > self._limited_until:
            self._limited_until = until
            self._limit = why

    def _raise_if_limited(self) -> None:
        left = self._limited_until - trio.current_time()
        if left > 0:
            raise attrs.evolve(self._limit, after=left, limited_for=left)


def _check_key(answer: Answer) -> None:
    if answer.status in (401, 403):
        raise SourceFailed("refused-key", f"did not accept the key (HTTP {answer.status})")


def next_month(now: datetime) -> datetime:
    """The first instant of the month after `now`, UTC."""
    return datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)


PROVIDER: Final = Provider(
    FreeCurrencyApi.name,
    lambda http, settings: FreeCurrencyApi(
        http, settings.freecurrency_api_key, settings.freecurrency_api_url
    ),
    hints={
        "refused-key": "compare FREECURRENCY_API_KEY with the one in the source's dashboard",
        "quota-month": "wait, take a larger plan, or put another source first in "
        "RATEBRIDGE_PROVIDERS",
        "quota-minute": "wait a minute and try again",
    },
    check=("key", FreeCurrencyApi.check_key),
)
