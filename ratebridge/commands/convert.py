"""The command `convert`: one conversion with the provenance of its rate."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, TypeVar

from ..api import Conversion, convert
from ..app import run_unless_stopped, utc_now
from ..conversion import plain
from ..dates import BadDate, parse_instant
from ..errors import BadSettings, NoRate
from ..messages import parse_stake, quoted
from ..providers.registry import NAMES
from ..providers.source import Source
from ..rates import FIXED
from ..settings import PROVIDERS, Settings, load_settings, read_environment

T = TypeVar("T")

_CURRENCY: Final = re.compile(r"[A-Za-z]{3}", re.ASCII)


def run_convert(
    *,
    stake: str,
    currency: str,
    date_text: str | None,
    source: str | None,
    sources: Sequence[Source] | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> int:
    """Convert a stake on a day (None: today) by the sources of the settings, or by one source.

    Prints the result with its provenance and returns 0, or prints the reason to
    standard error and returns 1 (after a signal: 0). Raises `BadSettings` with every
    problem, bad usage included. `sources` and `clock` replace the real ones in tests.
    """
    problems: list[str] = []
    now = clock()
    amount = _read(_stake, stake, problems)
    code = _read(_code, currency, problems)
    instant = now if date_text is None else _read(_instant, date_text, problems)
    settings = _settings(source, problems)
    if amount is None or code is None or instant is None or settings is None:
        raise BadSettings(*problems)

    async def ask() -> Conversion | NoRate:
        try:
            return await convert(amount, code, instant, settings, sources=sources, clock=clock)
        except NoRate as problem:
            return problem

    done = run_unless_stopped(ask)
    if isinstance(done, NoRate):
        print(done, file=sys.stderr)
        return 1
    if done is None:
        print("stopped before there was a rate: nothing was converted", file=sys.stderr)
    else:
        _show(done, stake)
    return 0


def _show(done: Conversion, stake: str) -> None:
    rate = done.rate
    if rate is None:
        print(f"{stake} EUR is {plain(done.eur)} EUR, and needs no rate")
        return
    print(f"{stake} {done.currency} is {plain(done.eur)} EUR")
    print(f"rate      {rate.text} {done.currency} for one euro")
    print(f"source    {rate.provider}")
    print(f"day asked {rate.asked}")
    print(f"day used  {rate.day}")
    if rate.provider != FIXED:  # which was never fetched
        print(f"fetched   {rate.fetched:%Y-%m-%d %H:%M:%S} UTC")
    if rate.note:
        print(f"note      {rate.note}")


def _read(read: Callable[[str], T], text: str, problems: list[str]) -> T | None:
    try:
        return read(text)
    except ValueError as problem:
        problems.append(str(problem))
        return None


def _stake(text: str) -> Decimal:
    try:
        return parse_stake(text)
    except ValueError as flaw:
        raise ValueError(f"stake {quoted(text)} {flaw}") from None


def _code(text: str) -> str:
    if not _CURRENCY.fullmatch(text):
        raise ValueError(f"currency {quoted(text)} is not a three-letter code")
    return text.upper()


def _instant(text: str) -> datetime:
    try:
        return parse_instant(text)
    except BadDate as flaw:
        raise ValueError(f"date {quoted(text)} {flaw}") from None


def _settings(source: str | None, problems: list[str]) -> Settings | None:
    if source is not None and source not in NAMES:
        problems.append(f"--source: expected one of {', '.join(NAMES)}, got {quoted(source)}")
        return None
    try:
        values = read_environment(os.environ)
        if source is not None:
            values[PROVIDERS] = source
        return load_settings(values, need_feed=False)
    except BadSettings as bad:
        problems.extend(bad.args)
        return None
