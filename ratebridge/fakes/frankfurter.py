"""A fake of Frankfurter v2: more currencies, five decimals, and a day for each row."""

from datetime import date, timedelta
from decimal import Decimal
from typing import Final

import attrs

from .rates import (
    COMMON,
    CONTEXT,
    Call,
    FakeSource,
    Fault,
    Rejected,
    json_object,
    read_day,
    units_of,
    working_day,
)

FRANKFURTER: Final = "frankfurter"

_RARE: Final = units_of("""
    AED 4.49   ALL 123.4  AMD 637   ARS 115   AZN 2.08  BAM 1.956 BDT 103.7 CLP 872   COP 4460
    EGP 19.1   GEL 4.13   KES 131.6 KWD 0.367 KZT 521   MAD 10.8  MDL 21.6  MKD 61.6  NGN 502
    PEN 4.52   PKR 187    RSD 117.6 SAR 4.58  TMT 4.28  TWD 34.2  UAH 33.4  UZS 12930 VND 28170
    ZWL 442
""")
_UNITS: Final = dict(sorted({**COMMON, **_RARE}.items()))
_LIVES: Final = {  # first and last day
    "BGN": (date(1999, 1, 4), date(2025, 12, 31)),
    "HRK": (date(1999, 1, 4), date(2022, 12, 31)),
    "ZWL": (date(2010, 1, 1), date(2024, 8, 30)),
}
_A_DAY_BEHIND: Final = frozenset({"UAH", "UZS"})  # their banks publish late
_FORTNIGHTLY: Final = "TMT"  # its bank publishes on the 1st and the 15th

_FIVE_PLACES: Final = Decimal("1e-5")
_SIX_PLACES: Final = Decimal("1e-6")
_SMALL: Final = Decimal("1e-4")


@attrs.define
class FakeFrankfurter(FakeSource):
    """Frankfurter v2."""

    prefix = "/v2"
    url = "FRANKFURTER_URL"
    units = _UNITS

    @staticmethod
    def text(rate: Decimal) -> str:
        """Five decimals, six below 0.0001, without trailing zeros."""
        places = _FIVE_PLACES if rate >= _SMALL else _SIX_PLACES
        text = f"{rate.quantize(places, context=CONTEXT):f}".rstrip("0")
        return f"{text}0" if text.endswith(".") else text

    def body(self, call: Call, fault: Fault) -> str:
        """See `FakeSource`. Of the parameters it has those of a range."""
        params = call.params
        if call.path != f"{self.prefix}/rates":
            raise _rejected(404, "not found")
        if unknown := params.keys() - {"from", "to", "base"}:
            raise _rejected(422, f"unknown parameter: {min(unknown)}")
        first, last = (read_day(params.get(name, str(call.at.date()))) for name in ("from", "to"))
        if first is None or last is None or last < first:
            raise _rejected(422, "invalid date")
        base = params.get("base", "EUR")
        if base not in _UNITS:
            raise _rejected(422, f"invalid currency: {base}")
        base = fault.base or base
        codes = () if fault.empty else _UNITS
        published = [(day, code) for code in codes for day in _days_of_rows(code, first, last)]
        rows = []
        for day, code in sorted(published):
            rate = fault.quotes.get(code) or self.quote(code, day, base)
            row = {"date": f'"{day}"', "base": f'"{base}"', "quote": f'"{code}"'}
            rows.append(json_object({**row, "rate": rate}))
        return f"[{','.join(rows)}]"


def _rejected(status: int, message: str) -> Rejected:
    return Rejected(status, {"status": status, "message": message})


def _days_of_rows(currency: str, first: date, last: date) -> list[date]:
    """The days of the rows of a range: those that were published, and the last before them."""
    days = (first + timedelta(days=number) for number in range((last - first).days + 1))
    return sorted({known for day in days if (known := _day_of_row(currency, day)) is not None})


def _day_of_row(currency: str, day: date) -> date | None:
    """The day whose rate stands in the row for `day`; None if there is no row."""
    first, last = _LIVES.get(currency, (date.min, date.max))
    if currency == _FORTNIGHTLY:
        quoted_on = day.replace(day=15 if day.day >= 15 else 1)
    else:
        quoted_on = working_day(day)
        if currency in _A_DAY_BEHIND:
            quoted_on = working_day(quoted_on - timedelta(days=1))
    quoted_on = min(quoted_on, last)
    return quoted_on if first <= quoted_on and (day - quoted_on).days <= 14 else None


FAKE: Final = FakeFrankfurter
