"""Coinbase Exchange: the daily prices of coins in euro, no key.

The rate of a day is the closing price of its candle, by UTC; for the day that runs it is the last
price. A price is euro for one coin, and is used as it stands. A day without trades has no candle.
So a call brings the days around its own as well, as with Frankfurter.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

from msgspec import Raw

from ..rates import MAX_DAYS_BACK, Quote, RateSheet
from .source import Http, Provider, json_decoder, make_sheet, read_body, read_quote, read_rows

MARGIN: Final = timedelta(days=MAX_DAYS_BACK)
SPAN: Final = 300 - 2 * MAX_DAYS_BACK  # days; a call for over 300 candles is refused
EPOCH: Final = date(2015, 1, 1)  # spans of days are counted from here, and prices begin
MOST_CANDLES: Final = 500  # that are read; 300 are asked for, and some may precede them


_candles = json_decoder(list[list[Raw]])


class Coinbase:
    """One call for each coin and 290 days.

    Args:
        http: the client.
        url: the base URL, without a slash at its end.
        coins: those asked of it. One that fails fails the others of that fetch, so that none counts
            as unknown while its market cannot be asked.
    """

    name = "coinbase"
    quota = None
    every = 10.0  # s: "should not be polled frequently"

    def __init__(self, http: Http, url: str, coins: tuple[str, ...]) -> None:
        self.currencies: Final = frozenset(coins)
        self._coins = coins
        self._http = http
        self._url = url

    def asks(self, day: date, today: date) -> str:  # noqa: ARG002
        """See `Source`: the first of the 290 days, of a division of the calendar."""
        return str(day - timedelta(days=(day - EPOCH).days % SPAN))

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        """See `Source`. A coin without a candle in these days, or without a market, has no rate."""
        first = date.fromisoformat(self.asks(day, day))
        last = first + timedelta(days=SPAN - 1)
        if last < EPOCH:  # there was no market yet
            return RateSheet(self.name, str(first), first, last, {}, now)
        until = min(last + MARGIN, now.date())
        params = {
            "granularity": "86400",
            "start": f"{first - MARGIN}T00:00:00Z",
            "end": f"{until}T00:00:00Z",
        }
        found: list[tuple[str, list[list[Raw]]]] = []
        headers: Mapping[str, str] = {}
        for coin in self._coins:
            answer = await self._http.get(f"{self._url}/products/{coin}-EUR/candles", params)
            if answer.status != 404:
                found.append((coin, read_body(_candles, answer)[:MOST_CANDLES]))
                headers = answer.headers
        prices = await read_rows(_closes(found))
        rows = {
            opened_on: {
                coin: Quote(Decimal(1), row.units) if isinstance(row, Quote) else row
                for coin, row in of_day.items()
            }
            for opened_on, of_day in prices.items()
            if opened_on <= until
        }
        return make_sheet(self.name, str(first), (first, min(last, now.date())), rows, now, headers)


def _closes(found: Iterable[tuple[str, list[list[Raw]]]]) -> Iterator[tuple[str, Raw, date]]:
    for coin, candles in found:
        for candle in candles:  # of time, low, high, open, close and volume
            time = read_quote(candle[0]) if len(candle) == 6 else None
            if time is not None:
                yield coin, candle[4], datetime.fromtimestamp(int(time), UTC).date()


PROVIDER: Final = Provider(
    Coinbase.name,
    lambda http, settings: Coinbase(http, settings.coinbase_url, settings.coinbase_coins),
)
