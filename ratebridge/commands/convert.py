"""The command `convert`: conversions with the provenance of their rates."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from ..api import Conversion, Converter
from ..app import utc_now
from ..conversion import plain
from ..dates import BadDate, parse_instant
from ..errors import BadSettings, NoRate
from ..messages import is_currency, parse_stake, quoted
from ..providers.source import Source
from ..rates import FIXED
from ..settings import PROVIDERS, SOURCES, load_settings
from ..signals import run_unless_stopped
from .options import add_command


def declare(commands: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "convert",
        run,
        "one conversion, with the source and day of its rate",
        ("ratebridge convert 253.67 USD --date 2021-05-18", "the sources of the settings"),
        ("ratebridge convert 253.67 USD --source ecb --date 2021-05-18", "no network"),
        ("ratebridge convert - < stakes.txt", "lines STAKE CURRENCY [DATE]"),
        usage="ratebridge convert [options] (STAKE CURRENCY [DATE] | -)",
    )
    parser.add_argument(
        "words",
        metavar="STAKE CURRENCY",
        nargs="+",
        help="a number such as 253.67, and a code such as USD; the target is always the euro",
    )
    parser.add_argument("--date", help="a day or an instant, if no DATE is given (default: today)")
    parser.add_argument("--source", choices=SOURCES, help="ask this source only")
    parser.add_argument("--json", action="store_true", help="one JSON object for each conversion")


Wish = tuple[Decimal, str, datetime | None]
"""The arguments of `Converter.convert`: a stake, its currency, and when, None for today."""


def run(
    options: argparse.Namespace,
    *,
    sources: Sequence[Source] | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> int:
    """Convert stakes by the sources of the settings, or by one source.

    Prints the results and returns 0, or 1 if there is no rate for one of them. Raises
    `BadSettings` with every problem, bad usage included. `sources` and `clock` replace the
    real ones in tests.
    """
    problems: list[str] = []
    wishes = list(_read_wishes(options, problems))
    settings = None
    try:
        settings = load_settings(
            need_feed=False,
            env_file=getattr(options, "env_file", None),
            overrides={} if options.source is None else {PROVIDERS: options.source},
        )
    except BadSettings as bad:
        problems += bad.args
    if problems:
        raise BadSettings(*problems)

    async def convert_all() -> int:
        failed = 0
        async with Converter(settings, sources=sources, clock=clock) as converter:
            for wish in wishes:
                try:
                    _show(await converter.convert(*wish), options)
                except NoRate as problem:
                    failed = 1
                    told = {"stake": f"{wish[0]:f}", "currency": wish[1], "error": str(problem)}
                    print(
                        json.dumps(told) if options.json else problem,
                        file=sys.stdout if options.json else sys.stderr,
                    )
        return failed

    return run_unless_stopped(convert_all)


def _show(done: Conversion, options: argparse.Namespace) -> None:
    rate, stake, eur = done.rate, f"{done.stake:f}", plain(done.eur)
    told = f"{stake} {done.currency} is {eur} EUR"
    if options.json:
        document = {"stake": stake, "currency": done.currency, "eur": eur}
        names = ("rate", "rate_date", "provider")
        values = (rate.text, str(rate.day), rate.provider) if rate else (None, None, None)
        print(json.dumps(document | dict(zip(names, values, strict=True))))
    elif rate is None:
        print(f"{told}, and needs no rate")
    elif options.words == ["-"]:
        print(f"{told}, at {rate.text} by {rate.provider} of {rate.day}")
    else:
        print(told)
        print(f"rate      {rate.text} {done.currency} for one euro")
        print(f"source    {rate.provider}")
        print(f"day asked {rate.asked}")
        print(f"day used  {rate.day}")
        if rate.provider != FIXED:  # which was never fetched
            print(f"fetched   {rate.fetched:%Y-%m-%d %H:%M:%S} UTC")
        if rate.note:
            print(f"note      {rate.note}")


def _read_wishes(options: argparse.Namespace, problems: list[str]) -> Iterator[Wish]:
    """What is to be converted: the words of the command, or each line of standard input.

    `problems` gets all that is wrong with it, a line each; behind one a wish is not usable.
    """
    lines = [("", options.words)]
    if options.words == ["-"]:
        lines = [(f"line {n}: ", line.split()) for n, line in enumerate(sys.stdin, 1)]
    for place, words in lines:
        if not words:
            continue
        if len(words) not in (2, 3):
            problems.append(f"{place}expected STAKE CURRENCY [DATE]")
            continue
        stake, currency, day = (*words, options.date)[:3]
        amount, when = Decimal(), None
        try:
            amount = parse_stake(stake)
        except ValueError as flaw:
            problems.append(f"{place}stake {quoted(stake)} {flaw}")
        if not currency.isascii() or not is_currency(currency.upper()):
            problems.append(f"{place}currency {quoted(currency)} is not a three-letter code")
        try:
            when = None if day is None else parse_instant(day)
        except BadDate as flaw:
            problems.append(f"{place}date {quoted(day)} {flaw}")
        yield amount, currency.upper(), when
