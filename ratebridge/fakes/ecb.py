"""A fake of the ECB's files: the last 90 days as XML, and the last 400 in a zip."""

from collections.abc import Iterator
from datetime import date, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from io import BytesIO
from typing import Final
from zipfile import ZIP_DEFLATED, ZipFile

import attrs

from .rates import COMMON, Call, FakeSource, Fault, Rejected, working_day

ECB: Final = "ecb"
PUBLISHED: Final = 15  # the hour of the day, UTC

_NOT_QUOTED: Final = frozenset({"EUR", "BGN", "HRK", "RUB"})
_CODES: Final = tuple(code for code in COMMON if code not in _NOT_QUOTED)
_FIVE_DIGITS: Final = Context(prec=5, rounding=ROUND_HALF_EVEN)

_XML: Final = """<?xml version="1.0" encoding="UTF-8"?>\
<gesmes:Envelope xmlns:gesmes="http://www.gesmes.org/xml/2002-08-01" \
xmlns="http://www.ecb.int/vocabulary/2002-08-01/eurofxref">\
<gesmes:subject>Reference rates</gesmes:subject><Cube>{}</Cube></gesmes:Envelope>"""


@attrs.define
class FakeEcb(FakeSource):
    """The two files; the rates of a working day appear at `PUBLISHED`."""

    prefix = "/stats/eurofxref"
    url = "ECB_URL"

    @staticmethod
    def text(rate: Decimal) -> str:
        """Five digits, without trailing zeros."""
        return f"{_FIVE_DIGITS.plus(rate).normalize():f}"

    def body(self, call: Call, fault: Fault) -> str | bytes:
        """See `FakeSource`."""
        match call.path.removeprefix(self.prefix):
            case "/eurofxref-hist-90d.xml":
                xml = []
                for day in self._days(call, fault, 90):
                    rates = [f'currency="{c}" rate="{_quote(c, day, fault)}"' for c in _CODES]
                    xml.append(f'<Cube time="{day}"><Cube {"/><Cube ".join(rates)}/></Cube>')
                return _XML.format("".join(xml))
            case "/eurofxref-hist.zip":
                lines = [
                    ",".join([str(day), *(_quote(code, day, fault) for code in _CODES), ""])
                    for day in self._days(call, fault, 400)
                ]
                file = BytesIO()
                with ZipFile(file, "w", ZIP_DEFLATED) as archive:
                    header = ",".join(["Date", *_CODES, ""])
                    archive.writestr("eurofxref-hist.csv", "\n".join([header, *lines, ""]))
                return file.getvalue()
            case _:
                raise Rejected(404, "not found")

    def _days(self, call: Call, fault: Fault, count: int) -> Iterator[date]:
        """The working days with rates, the newest first."""
        for back in range(0 if call.at.hour >= PUBLISHED else 1, count):
            day = call.at.date() - timedelta(days=back)
            if day == working_day(day) and not fault.empty:
                yield day


def _quote(currency: str, day: date, fault: Fault) -> str:
    return fault.quotes.get(currency) or FakeEcb.quote(currency, day)


FAKE: Final = FakeEcb
