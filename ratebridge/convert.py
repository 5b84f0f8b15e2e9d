"""The command `convert`: one conversion, and where its rate comes from."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Final, TypeVar

import trio

from .app import open_chain, run_until_signal, utc_now
from .conversion import plain, rounded, to_euro
from .dates import BadDate, parse_instant, rate_day
from .errors import BadSettings, NoRate
from .messages import parse_stake, quoted
from .observer import Observer
from .providers.source import Source
from .rates import Rate
from .settings import PROVIDERS, Settings, load_settings, read_environment

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
    """Convert a stake on a day (None: today) by the sources of the settings, or by one of them.

    Prints the result with its provenance and returns 0, or why there is none on
    standard error and returns 1. Raises `BadSettings` for bad usage too, with all
    that is wrong. `sources` and `clock` replace the real ones, as tests do.
    """
    problems: list[str] = []
    now = clock()
    amount = _read(_stake, stake, problems)
    code = _read(_code, currency, problems)
    instant = now if date_text is None else _read(_instant, date_text, problems)
    settings = _settings(source, problems)
    if amount is None or code is None or instant is None or settings is None:
        raise BadSettings(*problems)
    try:
        day = rate_day(instant, now)
    except BadDate as flaw:
        print(f"date {quoted(date_text or '')} {flaw}", file=sys.stderr)
        return 1
    if code == "EUR":
        print(f"{stake} EUR is {plain(rounded(amount))} EUR, and needs no rate")
        return 0
    rate = _ask(settings, sources, code, day, clock)
    if isinstance(rate, NoRate):
        print(rate, file=sys.stderr)
        return 1
    if rate is not None:
        print(f"{stake} {code} is {plain(to_euro(amount, rate.units, rate.euro))} EUR")
        print(f"rate      {rate.text} {code} for one euro")
        print(f"source    {rate.provider}")
        print(f"day asked {rate.asked}")
        print(f"day used  {rate.day}")
        print(f"fetched   {rate.fetched:%Y-%m-%d %H:%M:%S} UTC")
    return 0


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
    if source is not None and source not in PROVIDERS:
        problems.append(f"--source: expected one of {', '.join(PROVIDERS)}, got {quoted(source)}")
        return None
    try:
        values = read_environment(os.environ)
        if source is not None:
            values["RATEBRIDGE_PROVIDERS"] = source
        return load_settings(values, need_feed=False)
    except BadSettings as bad:
        problems.extend(bad.args)
        return None


def _ask(
    settings: Settings,
    sources: Sequence[Source] | None,
    currency: str,
    day: date,
    clock: Callable[[], datetime],
) -> Rate | NoRate | None:
    """The rate, or why there is none; None when a signal came first."""
    found: list[Rate | NoRate] = []

    async def ask(stop: trio.Event) -> None:
        async with trio.open_nursery() as nursery:

            async def leave_when_told() -> None:
                await stop.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(leave_when_told)
            async with open_chain(
                settings, nursery, Observer(), sources=sources, clock=clock
            ) as chain:
                try:
                    found.append(await chain.rate(currency, day))
                except NoRate as problem:
                    found.append(problem)
            nursery.cancel_scope.cancel()

    trio.run(run_until_signal, ask)
    return found[0] if found else None
