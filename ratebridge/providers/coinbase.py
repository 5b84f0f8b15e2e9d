"""Coinbase Exchange: the daily prices of coins in euro, no key.

The rate of a day is the closing price of its candle, by UTC; for the day that runs it is the last
price. A price is euro for one coin, and is used as it stands.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

from msgspec import Raw
from trio.lowlevel import checkpoint

from ..errors import FetchOutcome, SourceFailed
from ..rates import Quote, RateSheet, Row
from .source import Http, Provider, json_decoder, make_sheet, read_body, read_quote

MOST_CANDLES: Final = 300  # that one call brings; a longer range is refused
EPOCH: Final = date(2015, 1, 1)  # spans of days are counted from here
NOT_FOUND: Final = 404

_ONE: Final = Decimal(1)
_NONE: Final = (None,) * 6

_candles = json_decoder(list[list[Raw]])  # of time, low, high, open, close and volume


class Coinbase:
    """One call for each coin and 300 days."""

    name = "coinbase"
    quota = None
    every = 10.0  # s: "should not be polled frequently"

    def __init__(self, http: Http, url: str, coins: tuple[str, ...]) -> None:
        self.currencies: Final = frozenset(coins)
        self._coins = coins
        self._http = http
        self._url = url

    def asks(self, day: date, today: date) -> str:  # noqa: ARG002
        """See `Source`: the first of the 300 days, of a division of the calendar."""
        return str(day - timedelta(days=(day - EPOCH).days % MOST_CANDLES))

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        """See `Source`. A coin without a candle in these days, or without a market, has no rate."""
        first = date.fromisoformat(self.asks(day, day))
        last = min(first + timedelta(days=MOST_CANDLES - 1), now.date())
        params = {
            "granularity": "86400",
            "start": f"{first}T00:00:00Z",
            "end": f"{last}T00:00:00Z",
        }
        rows: dict[date, dict[str, Row]] = {}
        headers: Mapping[str, str] = {}
        for coin in self._coins:
            answer = await self._http.get(f"{self._url}/products/{coin}-EUR/candles", params)
            headers = answer.headers
            if answer.status == NOT_FOUND:
                continue
            for candle in read_body(_candles, answer):
                time, _, _, _, price, _ = (
                    map(read_quote, candle) if len(candle) == len(_NONE) else _NONE
                )
                if time is None or price is None:
                    continue
                opened = datetime.fromtimestamp(int(time), UTC).date()
                known = rows.setdefault(opened, {})
                if known.setdefault(coin, Quote(_ONE, price)) != Quote(_ONE, price):
                    raise SourceFailed(
                        FetchOutcome.BAD_TABLE, f"has two different prices for {coin} on {opened}"
                    )
            await checkpoint()
        return make_sheet(self.name, str(first), (first, last), rows, now, headers)


PROVIDER: Final = Provider(
    Coinbase.name,
    lambda http, settings: Coinbase(http, settings.coinbase_url, settings.coinbase_coins),
)
