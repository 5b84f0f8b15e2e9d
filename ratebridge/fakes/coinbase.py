"""A fake of Coinbase Exchange: the daily candles of coins in euro."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

import attrs

from .rates import CONTEXT, Call, FakeAnswer, FakeSource, Fault, Rejected, to_json, units_of

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

    def answer(self, call: Call, fault: Fault) -> FakeAnswer:
        """See `FakeSource`."""
        headers = {"content-type": "application/json; charset=utf-8"}
        try:
            candles = ",".join(self._candles(call, fault))
            return FakeAnswer(200, headers, f"[{candles}]".encode())
        except Rejected as rejected:
            status, message = rejected.args
            return FakeAnswer(status, headers, to_json({"message": message}).encode())

    def _candles(self, call: Call, fault: Fault) -> Iterator[str]:
        coin, _, rest = call.path.removeprefix(f"{self.prefix}/products/").partition("-EUR/")
        if coin not in _PRICES.keys() - {"EUR"} or rest != "candles":
            raise Rejected(404, "NotFound")
        first, last = (_read_day(call.params.get(name, "")) for name in ("start", "end"))
        if first is None or last is None or call.params.get("granularity") != "86400":
            raise Rejected(400, "Invalid start or end, or granularity")
        if (last - first).days >= _MOST_CANDLES:
            raise Rejected(400, "granularity too small for the requested time range")
        day = min(last, call.at.date())
        while day >= max(first, _FIRST_DAY) and not fault.empty:
            opened = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
            price = fault.quotes.get(coin) or self.quote(coin, day)
            yield f"[{opened},{price},{price},{price},{price},812.5]"
            day -= timedelta(days=1)


def _read_day(text: str) -> date | None:
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        return None


FAKE: Final = FakeCoinbase
