"""A fake of freecurrencyapi.com: 33 currencies, ten decimals, a key and a quota."""

import json
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Final

import attrs

from .rates import (
    COMMON,
    CONTEXT,
    Call,
    FakeAnswer,
    FakeSource,
    Fault,
    Rejected,
    json_object,
    read_day,
)

FREECURRENCYAPI: Final = "freecurrencyapi"

_FIRST_DAY: Final = date(1999, 1, 1)
_TEN_PLACES: Final = Decimal("1e-10")

NO_CALLS_THIS_MINUTE: Final = Fault(
    status=429,
    headers={"x-ratelimit-remaining-quota-minute": "0", "x-ratelimit-remaining-quota-month": "900"},
    body=b'{"message":"API rate limit exceeded for \'quota\'"}',
)
NO_CALLS_THIS_MONTH: Final = attrs.evolve(
    NO_CALLS_THIS_MINUTE, headers={"x-ratelimit-remaining-quota-month": "0"}
)


@attrs.define
class FakeFreeCurrencyApi(FakeSource):
    """`key` is the one that is accepted (None: any), `per_minute` and `per_month` are the quotas.

    `dollar_only` makes it refuse any other base.
    """

    prefix = "/v1"
    url = "FREECURRENCY_API_URL"

    key: str | None = None
    per_minute: int = 10
    per_month: int = 5000
    dollar_only: bool = False
    _used: dict[str, int] = attrs.field(factory=dict, init=False)  # by minute and by month

    @staticmethod
    def text(rate: Decimal) -> str:
        """Up to 10 decimals."""
        return f"{rate.quantize(_TEN_PLACES, context=CONTEXT):f}".rstrip("0").rstrip(".")

    def answer(self, call: Call, fault: Fault) -> FakeAnswer:
        """See `FakeSource`. Only successful calls for rates count."""
        answer = super().answer(call, fault)
        if call.path.endswith("/status"):
            return answer
        if answer.status == 200 and fault.status is None:
            for period in _periods(call.at):
                self._used[period] = self._used.get(period, 0) + 1
        minute, month = self._left(call.at)
        quota = {
            "x-ratelimit-limit-quota-minute": str(self.per_minute),
            "x-ratelimit-remaining-quota-minute": str(minute),
            "x-ratelimit-limit-quota-month": str(self.per_month),
            "x-ratelimit-remaining-quota-month": str(month),
        }
        return attrs.evolve(answer, headers={**answer.headers, **quota})

    def body(self, call: Call, fault: Fault) -> str:
        """See `FakeSource`."""
        if call.key is None or self.key not in (None, call.key):
            raise Rejected(401, {"message": "Invalid authentication credentials"})
        path = call.path.removeprefix(self.prefix)
        left = self._left(call.at)
        if path == "/status":
            month = {"total": self.per_month, "used": self.per_month - left[1]}
            quotas = {"month": {**month, "remaining": left[1]}}
            return json.dumps({"account_id": 1, "quotas": quotas})
        if min(left) <= 0:
            raise Rejected(429, {"message": "API rate limit exceeded for 'quota'"})
        today = call.at.date()
        if path == "/latest":
            return f'{{"data":{self._quotes(today, call.params, fault)}}}'
        if path != "/historical":
            raise Rejected(404, {"message": "The route could not be found."})
        day = read_day(call.params.get("date", ""))
        if day is None or not _FIRST_DAY <= day < today:
            raise _invalid("date", f"The date must be from {_FIRST_DAY} to yesterday.")
        return f'{{"data":{{"{day}":{self._quotes(day, call.params, fault)}}}}}'

    def _left(self, at: datetime) -> tuple[int, int]:
        minute, month = (self._used.get(period, 0) for period in _periods(at))
        return self.per_minute - minute, self.per_month - month

    def _quotes(self, day: date, params: Mapping[str, str], fault: Fault) -> str:
        base = params.get("base_currency", "USD")
        if base not in COMMON:
            raise _invalid("base_currency", "The selected base currency is invalid.")
        if self.dollar_only and base != "USD":
            raise Rejected(403, {"message": "Your plan does not allow this base."})
        base = fault.base or base
        quotes = {} if fault.empty else {code: self.quote(code, day, base) for code in COMMON}
        return json_object({**quotes, **fault.quotes})


def _periods(at: datetime) -> tuple[str, str]:
    return f"minute {at:%Y-%m-%d %H:%M}", f"month {at:%Y-%m}"


def _invalid(field: str, problem: str) -> Rejected:
    body = {"message": "Validation error", "errors": {field: [problem]}, "info": "See the docs."}
    return Rejected(422, body)


FAKE: Final = FakeFreeCurrencyApi
