"""One conversion, and where its rate comes from: for programs, and as the command `convert`."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, TypeVar

import attrs
import trio

from ..app import open_chain, run_until_signal, utc_now
from ..conversion import plain, rounded, to_euro
from ..dates import BadDate, parse_instant, rate_day
from ..errors import BadSettings, NoRate
from ..messages import parse_stake, quoted
from ..observer import Observer
from ..providers.source import Source
from ..rates import Rate
from ..settings import PROVIDERS, Settings, load_settings, read_environment

T = TypeVar("T")

_CURRENCY: Final = re.compile(r"[A-Za-z]{3}", re.ASCII)


@attrs.frozen
class Conversion:
    """A stake and what it is in euro; `rate` is None where it was in euro already."""

    stake: Decimal
    currency: str
    eur: Decimal
    rate: Rate | None


async def convert(
    stake: Decimal,
    currency: str,
    instant: datetime | None = None,
    settings: Settings | None = None,
    *,
    sources: Sequence[Source] | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> Conversion:
    """Convert one stake at the rate valid at `instant` (aware; None: now), as the service would.

    `stake` is within the protocol's bounds (`messages.parse_stake` sees to that).
    `settings` name the sources; without them it is Frankfurter. `sources` and
    `clock` replace the real ones, as tests do. Raises `NoRate`, and `BadDate`
    for an instant that has no rates.
    """
    now = clock()
    day = rate_day(now if instant is None else instant.astimezone(UTC), now)
    if currency == "EUR":
        return Conversion(stake, currency, rounded(stake), None)
    problem = None
    async with trio.open_nursery() as fetch_nursery:
        async with open_chain(
            settings or Settings(), fetch_nursery, Observer(), sources=sources, clock=clock
        ) as chain:
            try:
                rate = await chain.rate(currency, day)
            except NoRate as error:  # to be raised by itself, and not in the nursery's group
                problem = error
        fetch_nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
    return Conversion(stake, currency, to_euro(stake, rate.units, rate.euro), rate)


def convert_sync(
    stake: Decimal,
    currency: str,
    instant: datetime | None = None,
    settings: Settings | None = None,
) -> Conversion:
    """`convert`, for a program that does not run trio."""
    return trio.run(convert, stake, currency, instant, settings)


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
        done = _convert_until_signal(amount, code, instant, settings, sources, clock)
    except BadDate as flaw:
        print(f"date {quoted(date_text or '')} {flaw}", file=sys.stderr)
        return 1
    except NoRate as problem:
        print(problem, file=sys.stderr)
        return 1
    if done is not None:
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


def _convert_until_signal(
    stake: Decimal,
    currency: str,
    instant: datetime,
    settings: Settings,
    sources: Sequence[Source] | None,
    clock: Callable[[], datetime],
) -> Conversion | None:
    """`convert`, or None when a signal came first."""
    outcomes: list[Conversion | NoRate | BadDate] = []

    async def ask(stop: trio.Event) -> None:
        async with trio.open_nursery() as nursery:

            async def leave_when_told() -> None:
                await stop.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(leave_when_told)
            try:
                outcomes.append(
                    await convert(stake, currency, instant, settings, sources=sources, clock=clock)
                )
            except (NoRate, BadDate) as problem:
                outcomes.append(problem)
            nursery.cancel_scope.cancel()

    trio.run(run_until_signal, ask)
    if not outcomes:
        return None
    [outcome] = outcomes
    if not isinstance(outcome, Conversion):
        raise outcome
    return outcome
