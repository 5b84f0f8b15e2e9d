"""A fake of freecurrencyapi.com: 33 currencies, ten decimals, a key and a quota."""

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
    to_json,
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
        text = f"{rate.quantize(_TEN_PLACES, context=CONTEXT):f}"
        return text.rstrip("0").rstrip(".")

    def answer(self, call: Call, fault: Fault) -> FakeAnswer:
        """See `FakeSource`."""
        counted = not call.path.endswith("/status")
        headers = {"content-type": "application/json"}
        try:
            self._check_key(call)
            if counted:
                self._check_quota(call.at)
            body = self._body(call, fault)
            status = 200
        except Rejected as rejected:
            status, body = rejected.args
        if counted:
            if status == 200 and fault.status is None:  # only successful calls count
                for period in _periods(call.at):
                    self._used[period] = self._used.get(period, 0) + 1
            headers |= self._quota_headers(call.at)
        return FakeAnswer(status, headers, body.encode())

    def _check_key(self, call: Call) -> None:
        key = call.key or call.params.get("apikey")
        if not key or self.key not in (None, key):
            raise Rejected(401, to_json({"message": "Invalid authentication credentials"}))

    def _check_quota(self, at: datetime) -> None:
        if min(self._left(at)) <= 0:
            raise Rejected(429, to_json({"message": "API rate limit exceeded for 'quota'"}))

    def _left(self, at: datetime) -> tuple[int, int]:
        minute, month = (self._used.get(period, 0) for period in _periods(at))
        return self.per_minute - minute, self.per_month - month

    def _quota_headers(self, at: datetime) -> dict[str, str]:
        minute, month = self._left(at)
        return {
            "x-ratelimit-limit-quota-minute": str(self.per_minute),
            "x-ratelimit-remaining-quota-minute": str(minute),
            "x-ratelimit-limit-quota-month": str(self.per_month),
            "x-ratelimit-remaining-quota-month": str(month),
        }

    def _body(self, call: Call, fault: Fault) -> str:
        params = call.params
        match call.path.removeprefix(self.prefix):
            case "/status":
                left = self._left(call.at)[1]
                month = {"total": self.per_month, "used": self.per_month - left, "remaining": left}
                return to_json({"account_id": 1, "quotas": {"month": month}})
            case "/latest":
                return f'{{"data":{self._flat(call.at.date(), params, fault)}}}'
            case "/historical":
                day = read_day(params.get("date", ""))
                if day is None:
                    raise _invalid("date", "The date is not a valid date.")
                if day < _FIRST_DAY:
                    raise _invalid("date", f"The date must be a date after {_FIRST_DAY}.")
                if day >= call.at.date():
                    raise _invalid("date", "The date must be a date before today.")
                return f'{{"data":{{"{day}":{self._flat(day, params, fault)}}}}}'
            case _:
                raise Rejected(404, to_json({"message": "The route could not be found."}))

    def _flat(self, day: date, params: Mapping[str, str], fault: Fault) -> str:
        base = params.get("base_currency", "USD")
        if base not in COMMON:
            raise _invalid("base_currency", "The selected base currency is invalid.")
        if self.dollar_only and base != "USD":
            raise Rejected(403, to_json({"message": "Your plan does not allow this base."}))
        codes = [code for code in params.get("currencies", "").split(",") if code] or list(COMMON)
        if not set(codes) <= set(COMMON):
            raise _invalid("currencies", "The selected currencies is invalid.")
        base = fault.base or base
        quotes = {} if fault.empty else {c: self.quote(c, day, base) for c in codes}
        return json_object({**quotes, **fault.quotes})


def _periods(at: datetime) -> tuple[str, str]:
    return f"minute {at:%Y-%m-%d %H:%M}", f"month {at:%Y-%m}"


def _invalid(field: str, problem: str) -> Rejected:
    body = {"message": "Validation error", "errors": {field: [problem]}, "info": "See the docs."}
    return Rejected(422, to_json(body))


FAKE: Final = FakeFreeCurrencyApi
