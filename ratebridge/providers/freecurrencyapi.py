"""freecurrencyapi.com: 33 currencies, a key, 10 calls a minute and 5,000 a month in its free plan.

Its rates are not the ECB's. A weekend has rates of its own.

The month is the source's own count, which it tells with each answer, and by `/status`, which it
does not count. An ended day is asked for only while more calls are left than the rates of today
need until the month ends: one each time a sheet is renewed, and those at midnight, for each day
left. So neither restarts nor a feed use up a month.
"""

import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from math import ceil
from typing import Final

import msgspec
import trio
from msgspec import Raw

from ..errors import FetchOutcome, SourceFailed
from ..headers import read_count, retry_after
from ..rates import CLOCK_SLACK, MAX_DAYS_BACK, RENEWED_FROM, Quote, RateSheet, midnight_after
from .source import (
    Http,
    HttpAnswer,
    Provider,
    Quota,
    json_decoder,
    make_sheet,
    read_body,
    read_members,
    read_rows,
)

_CODES: Final = (
    "AUD BGN BRL CAD CHF CNY CZK DKK GBP HKD HRK HUF IDR ILS INR ISK JPY KRW MXN MYR NOK NZD PHP "
    "PLN RON RUB SEK SGD THB TRY USD ZAR"
)
CURRENCIES: Final = frozenset(_CODES.split())  # and EUR
MONTH_OF_CALLS: Final = 5000  # of the free plan, where it does not tell
MOST_FOR_TODAY: Final = 0.5  # of the month: for more than that a life of sheets is too short
AT_MIDNIGHT: Final = 3  # calls: the new day and twice the ended one, beside those of `chain`
COUNT_LIFE: Final = timedelta(hours=1)  # others may use the key, and a plan can be changed
STATUS_WITHIN: Final = 1.0  # s; without it the next answer tells
LATE: Final = timedelta(hours=1)  # yesterday's table may be missing for so long after midnight

_DAY_NAME: Final = re.compile(rb'"(\d{4}-\d\d-\d\d)"\s*:')


class _Latest(msgspec.Struct):
    data: Raw


class _Historical(msgspec.Struct):
    data: dict[date, Raw]


class _Status(msgspec.Struct):
    quotas: dict[str, dict[str, int | None]]


_latest = json_decoder(_Latest)
_historical = json_decoder(_Historical)
_status = json_decoder(_Status)


class FreeCurrencyApi:
    """One call for each day, with the euro as the base where the plan allows it.

    Args:
        http: the client.
        key: goes in a header, so that no URL holds it.
        url: the base URL, without a slash at its end.
        life: that of a sheet, in seconds; it says how many calls today's rates need.
    """

    name = "freecurrencyapi"
    currencies = CURRENCIES
    every = 30 * 86400 / MONTH_OF_CALLS

    def __init__(self, http: Http, key: str, url: str, life: float = 7200.0) -> None:
        self._http = http
        self._headers = {"apikey": key}
        self._url = url
        self._life = life
        self._base: dict[str, str] = {"base_currency": "EUR"}
        self.quota: Final = Quota()
        self._counted: datetime | None = None  # when the source told what is left of the month
        self._limited_until = 0.0  # trio time

    def asks(self, day: date, today: date) -> str:  # noqa: ARG002
        """See `Source`: the day."""
        return str(day)

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        """See `Source`. Today is `/latest`, any other day `/historical`."""
        self._raise_if_limited()
        counted = self._counted or now - COUNT_LIFE
        # The source's month may end a minute after ours.
        new = any((counted - gap).month != (now - gap).month for gap in (timedelta(), CLOCK_SLACK))
        if new or now - counted >= COUNT_LIFE:
            with trio.move_on_after(STATUS_WITHIN), suppress(SourceFailed):
                await self._read_status(now)
            if self._counted == counted:
                self.quota.month_left = None  # or the count of a month that is over would stay
        self._keep_for_today(day, now)
        if day < now.date():
            answer = await self._get("historical", {"date": str(day)}, now)
            # Just after midnight it may lack yesterday; `/latest` has yesterday's last quotes.
            if answer.status != 422 or now - midnight_after(day) > LATE:
                days = read_body(_historical, answer).data
                names = _DAY_NAME.findall(answer.body)  # the decoder keeps the last of two
                if len(set(names)) < len(names):
                    raise SourceFailed(FetchOutcome.BAD_TABLE, "has two tables for one day")
                oldest = day - timedelta(days=MAX_DAYS_BACK)
                quoted_on = max((known for known in days if oldest <= known <= day), default=day)
                quotes = days.get(quoted_on, Raw(b"{}"))
                return await self._sheet(day, now, answer, quotes, quoted_on)
        answer = await self._get("latest", {}, now)
        return await self._sheet(day, now, answer, read_body(_latest, answer).data, None)

    async def _sheet(
        self, day: date, now: datetime, answer: HttpAnswer, quotes: Raw, quoted_on: date | None
    ) -> RateSheet:
        """The sheet of a table of quotes in any base, with the euro made their other side.

        `quoted_on` is the day that they are of; None for the latest.
        """
        latest = quoted_on is None and day < now.date()
        quoted_on = quoted_on or day
        members = read_members(quotes)
        rows = (await read_rows((code, raw, quoted_on) for code, raw in members)).get(quoted_on, {})
        euro, dollar = rows.pop("EUR", None), rows.get("USD")
        if rows and not isinstance(euro, Quote):
            raise SourceFailed(FetchOutcome.BAD_TABLE, f"has no EUR on {day}")
        if isinstance(euro, Quote) and euro.units != 1:
            if isinstance(dollar, Quote) and dollar.units != 1:
                raise SourceFailed(FetchOutcome.BAD_TABLE, f"has no quote of 1 for a base on {day}")
            rows = {
                code: Quote(row.units, euro.units) if isinstance(row, Quote) else row
                for code, row in rows.items()
            }
        days, by_day = (day, day), {quoted_on: rows}
        return make_sheet(self.name, str(day), days, by_day, now, answer.headers, latest=latest)

    def _keep_for_today(self, day: date, now: datetime) -> None:
        """Raise `SourceFailed` if no calls are left, or for an ended day, if few are."""
        left = self.quota.month_left
        if left is None:
            return
        if left <= 0:
            ended = next_month(now - CLOCK_SLACK) + CLOCK_SLACK  # by the source's clock, too
            wait = min(ended - now, COUNT_LIFE).total_seconds()
            text = "has no calls left this month"
            raise SourceFailed(FetchOutcome.QUOTA_MONTH, text, limited_for=wait)
        a_day = 86400 / (self._life * RENEWED_FROM) + AT_MIDNIGHT
        most = (self.quota.month_total or MONTH_OF_CALLS) * MOST_FOR_TODAY
        kept = min(ceil(a_day * ((next_month(now) - now).days + 1)), int(most))
        if day < now.date() and left <= kept:
            text = f"has {left} calls left this month, kept for the rates of the days to come"
            raise SourceFailed(FetchOutcome.QUOTA_MONTH, text)

    async def check_key(self) -> str:
        """Ask `/status`, which no quota counts, for the key's validity and remaining calls.

        Returns what it found, as a line for people. Raises `SourceFailed` if the key is refused, if
        no call is left this month, and if there is no answer of that kind.
        """
        answer = await self._read_status(datetime.now(UTC))
        _check_key(answer)
        read_body(_status, answer)
        if self.quota.month_left is None:
            return "accepted"
        total = "" if self.quota.month_total is None else f" of {self.quota.month_total:,}"
        left = f"{self.quota.month_left:,}{total} calls left this month"
        if self.quota.month_left <= 0:
            raise SourceFailed(FetchOutcome.QUOTA_MONTH, f"accepted, but {left}")
        return f"accepted, {left}"

    async def _read_status(self, now: datetime) -> HttpAnswer:
        """The answer of `/status`; what it says of the month is noted."""
        answer = await self._http.get(f"{self._url}/status", {}, self._headers)
        with suppress(SourceFailed):  # the next call tells why, and with which consequence
            month = read_body(_status, answer).quotas.get("month", {})
            self.quota.month_left, self.quota.month_total = map(month.get, ("remaining", "total"))
            self._counted = now
        return answer

    async def _get(self, path: str, params: dict[str, str], now: datetime) -> HttpAnswer:
        """A usable answer. Raises `SourceFailed` while the quota is used up."""
        url, base = f"{self._url}/{path}", self._base  # another call may change it meanwhile
        answer = await self._http.get(url, {**params, **base}, self._headers)
        base_refused = answer.status == 403 and _refuses_the_key(answer)
        # A 422 (validation error) may be about the date as well.
        base_refused |= answer.status == 422 and b'"base_currency"' in answer.body
        if base and base_refused:
            # Some plans allow only the dollar as the base, which a table may have as well.
            answer = await self._http.get(url, params, self._headers)
            if answer.status == 200:
                self._base = {}
        self._read_quota(answer, now)
        if answer.status == 429:
            self._raise_if_limited()
        _check_key(answer)
        return answer

    def _read_quota(self, answer: HttpAnswer, now: datetime) -> None:
        def count(name: str) -> int | None:
            return read_count(answer.headers.get(f"x-ratelimit-{name}"))

        minute = count("remaining-quota-minute")
        month = count("remaining-quota-month")
        total = count("limit-quota-month")
        self.quota.month_left = self.quota.month_left if month is None else month
        self.quota.month_total = self.quota.month_total if total is None else total
        if month is not None:
            self._counted = now
        if answer.status == 429 and month is not None and month <= 0:
            self._keep_for_today(now.date(), now)
        if answer.status == 429 or (minute is not None and minute <= 0):
            # The minute's quota comes back with the next minute.
            wait = retry_after(answer.headers) or 60 - now.second - now.microsecond / 1e6
            self._limited_until = max(self._limited_until, trio.current_time() + wait)

    def _raise_if_limited(self) -> None:
        left = self._limited_until - trio.current_time()
        if left > 0:
            text = "has no calls left this minute"
            raise SourceFailed(FetchOutcome.QUOTA_MINUTE, text, again=True, limited_for=left)


def _refuses_the_key(answer: HttpAnswer) -> bool:
    """Whether it is a 401 or 403 of the source's own, and no page of a content network."""
    return answer.status in (401, 403) and "html" not in answer.headers.get("content-type", "")


def _check_key(answer: HttpAnswer) -> None:
    if _refuses_the_key(answer):
        text = f"did not accept the key (HTTP {answer.status})"
        raise SourceFailed(FetchOutcome.REFUSED_KEY, text)


def next_month(now: datetime) -> datetime:
    """The first instant of the month after `now`, UTC."""
    return datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)


PROVIDER: Final = Provider(
    FreeCurrencyApi.name,
    lambda http, settings: FreeCurrencyApi(
        http, settings.freecurrency_api_key, settings.freecurrency_api_url, settings.cache_ttl
    ),
    hints={
        FetchOutcome.REFUSED_KEY: "is FREECURRENCY_API_KEY the one in the source's dashboard?",
        FetchOutcome.QUOTA_MONTH: "wait, take a larger plan, or put another source first",
        FetchOutcome.QUOTA_MINUTE: "wait a minute and try again",
    },
    check=("key", FreeCurrencyApi.check_key),
)
