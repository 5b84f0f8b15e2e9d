"""The legal conversion rates of currencies that became the euro. Pure.

Article 1 of Council Regulation (EC) No 2866/98 of 31 December 1998, as amended for each
Member State that adopted the euro later (the last: Bulgaria). From that day on an amount
in the old currency is divided by this number (Council Regulation (EC) No 1103/97,
article 4), even if a source still quotes the currency.
"""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import Final

REGULATION: Final = "Council Regulation (EC) No 2866/98"

# The first day, and units for one euro, six significant digits each.
_CHANGEOVERS: Final = """
1999-01-01  ATS 13.7603  BEF 40.3399  DEM 1.95583  ESP 166.386  FIM 5.94573  FRF 6.55957
1999-01-01  IEP 0.787564 ITL 1936.27  LUF 40.3399  NLG 2.20371  PTE 200.482
2001-01-01  GRD 340.750
2007-01-01  SIT 239.640
2008-01-01  CYP 0.585274 MTL 0.429300
2009-01-01  SKK 30.1260
2011-01-01  EEK 15.6466
2014-01-01  LVL 0.702804
2015-01-01  LTL 3.45280
2023-01-01  HRK 7.53450
2026-01-01  BGN 1.95583
"""


def _read(text: str) -> dict[str, tuple[date, Decimal]]:
    found = {}
    for line in text.strip().splitlines():
        day, *words = line.split()
        for code, units in zip(words[::2], words[1::2], strict=True):
            found[code] = (date.fromisoformat(day), Decimal(units))
    return found


CONVERSION_RATES: Final[Mapping[str, tuple[date, Decimal]]] = MappingProxyType(_read(_CHANGEOVERS))
"""By currency: the first day, and units for one euro."""
