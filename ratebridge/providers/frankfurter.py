"""Frankfurter v2: some 220 currencies of over 80 central banks, no key, self-hostable.

A blend of the banks' rates, cut to five decimals, so that small ones have few digits. Each row has
its own day. One call brings a calendar month, with the days around it: a range has a row only for a
day on which a quote was published, so the rate of the first days stands in rows before them; and a
spike on the last days shows by the rows behind them.
"""

from datetime import date, datetime, timedelta
from typing import Final

import msgspec
from msgspec import Raw

from ..errors import FetchOutcome, SourceFailed
from ..rates import MAX_DAYS_BACK, RateSheet
from .source import Http, Provider, drop_euro, json_decoder, make_sheet, read_body, read_rows

MARGIN: Final = timedelta(days=MAX_DAYS_BACK)

# The currencies of ISO 4217 since 1999 with its metals and accounting units, and a few that banks
# quote without a code of it. For anything else, such as a coin, there is no call.
_CODES: Final = """
    AED AFA AFN ALL AMD ANG AOA AOR ARS AUD AWG AZM AZN BAM BBD BDT BGL BGN BHD BIF BMD BND BOB BOV
    BRL BSD BTN BWP BYB BYN BYR BZD CAD CDF CHE CHF CHW CLF CLP CNH CNY COP COU CRC CSD CUC CUP CVE
    CYP CZK DJF DKK DOP DZD EEK EGP ERN ETB FJD FKP FOK GBP GEL GGP GHC GHS GIP GMD GNF GRD GTQ GYD
    HKD HNL HRK HTG HUF IDR ILS IMP INR IQD IRR ISK JEP JMD JOD JPY KES KGS KHR KID KMF KPW KRW KWD
    KYD KZT LAK LBP LKR LRD LSL LTL LVL LYD MAD MDL MGA MGF MKD MMK MNT MOP MRO MRU MTL MUR MVR MWK
    MXN MXV MYR MZM MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR ROL RON RSD RUB
    RWF SAR SBD SCR SDD SDG SEK SGD SHP SIT SKK SLE SLL SOS SRD SRG SSP STD STN SVC SYP SZL THB TJR
    TJS TMM TMT TND TOP TPE TRL TRY TTD TVD TWD TZS UAH UGX USD UYI UYU UYW UZS VEB VED VEF VES VND
    VUV WST XAD XAF XAG XAU XBA XBB XBC XBD XCD XCG XDR XOF XPD XPF XPT XSU XUA YER YUM ZAR ZMK ZMW
    ZWD ZWG ZWL ZWR"""
CURRENCIES: Final = frozenset(_CODES.split())


class _Row(msgspec.Struct, gc=False):
    day: date = msgspec.field(name="date")
    base: str
    quote: str
    rate: Raw = Raw(b"null")


_rows = json_decoder(list[_Row])


class Frankfurter:
    """One call for each calendar month, with the euro as the base.

    Args:
        http: the client.
        url: the base URL, without a slash at its end.
    """

    name = "frankfurter"
    currencies = CURRENCIES
    quota = None
    every = 10.0  # s: it has no quota, but blocks abuse

    def __init__(self, http: Http, url: str) -> None:
        self._http = http
        self._url = url

    def asks(self, day: date, today: date) -> str:  # noqa: ARG002
        """See `Source`: the month."""
        return f"{day:%Y-%m}"

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        """See `Source`."""
        first = day.replace(day=1)
        last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
        until = min(last + MARGIN, now.date())
        params = {"from": str(first - MARGIN), "to": str(until), "base": "EUR"}
        answer = await self._http.get(f"{self._url}/rates", params)
        rows = read_body(_rows, answer)
        if any(row.base != "EUR" for row in rows):
            raise SourceFailed(FetchOutcome.BAD_TABLE, "answered with another base than the euro")
        good = await read_rows(
            (row.quote, row.rate, row.day) for row in rows if first - MARGIN <= row.day <= until
        )
        drop_euro(good)
        days = first, min(last, now.date())
        return make_sheet(self.name, self.asks(day, day), days, good, now, answer.headers)


PROVIDER: Final = Provider(
    Frankfurter.name, lambda http, settings: Frankfurter(http, settings.frankfurter_url)
)
