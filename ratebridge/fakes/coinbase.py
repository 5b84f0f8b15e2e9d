"""A fake of Coinbase Exchange: the daily candles of coins in euro."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

import attrs

from .rates import CONTEXT, Call, FakeSource, Fault, Rejected, read_day, units_of

COINBASE: Final = "coinbase"

_PRICES: Final = units_of("EUR 1  BTC 46231.57  ETH 3127.44  LTC 158.31")  # euro for one coin
_FIRST_DAY: Final = date(2015, 4, 23)
_MOST_CANDLES: Final = 300
_CENT: Final = Decimal("0.01")


@attrs.define
class FakeCoinbase(FakeSource):
    """Candles of a day each, the newest first; the day that runs has one too."""

    prefix = "/coinbase"
    url = "COINBASE_URL"
    units = _PRICES

    @staticmethod
    def text(rate: Decimal) -> str:
        """Two decimals, without trailing zeros."""
        return f"{rate.quantize(_CENT, context=CONTEXT).normalize():f}"

    def body(self, call: Call, fault: Fault) -> str:
        """See `FakeSource`."""
        coin, _, rest = call.path.removeprefix(f"{self.prefix}/products/").partition("-EUR/")
        if coin not in _PRICES.keys() - {"EUR"} or rest != "candles":
            raise Rejected(404, {"message": "NotFound"})
        first, last = (read_day(call.params.get(name, "")[:10]) for name in ("start", "end"))
        if first is None or last is None or call.params.get("granularity") != "86400":
            raise Rejected(400, {"message": "Invalid start or end, or granularity"})
        if (last - first).days >= _MOST_CANDLES:
            raise Rejected(400, {"message": "granularity too small for the requested time range"})
        candles = []
        day = min(last, call.at.date())
        while day >= max(first, _FIRST_DAY) and not fault.empty:
            opened = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
            price = fault.quotes.get(coin) or self.quote(coin, day)
            candles.append(f"[{opened},{price},{price},{price},{price},812.5]")
            day -= timedelta(days=1)
        return f"[{','.join(candles)}]"


FAKE: Final = FakeCoinbase
