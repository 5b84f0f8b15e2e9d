"""The command `convert`: conversions with the provenance of their rates."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import attrs

from ..api import Conversion, Converter
from ..app import utc_now
from ..conversion import plain
from ..dates import BadDate, parse_instant
from ..errors import BadSettings, NoRate
from ..messages import clipped, is_currency, parse_stake, quoted
from ..providers.registry import NAMES
from ..providers.source import Source
from ..rates import FIXED
from ..settings import PROVIDERS, load_settings
from ..signals import run_unless_stopped
from .options import add_command

_GROUPED: Final = re.compile(r"[+-]?\d+([.,' _]\d+)+", re.ASCII)


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
        usage="ratebridge convert [options] STAKE CURRENCY\n       ratebridge convert [options] -",
    )
    parser.add_argument(
        "words",
        metavar="STAKE CURRENCY",
        nargs="+",
        help="a number such as 253.67, and a code such as USD; the target is always the euro",
    )
    parser.add_argument("--date", help="a day, or an instant with its offset (default: today)")
    parser.add_argument("--source", help=f"ask this source only: {', '.join(NAMES)}")
    parser.add_argument("--json", action="store_true", help="one JSON object for each conversion")


@attrs.frozen
class Wish:
    """A conversion that is asked for. `stake` is its text; without `when` it is today's."""

    stake: str
    amount: Decimal
    currency: str
    when: datetime | None


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
    source = options.source
    settings = None
    if source is not None and source not in NAMES:
        problems.append(f"--source: expected one of {', '.join(NAMES)}, got {quoted(source)}")
    else:
        chosen = {} if source is None else {PROVIDERS: source}
        try:
            settings = load_settings(
                need_feed=False, env_file=getattr(options, "env_file", None), overrides=chosen
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
                    done = await converter.convert(wish.amount, wish.currency, wish.when)
                except NoRate as problem:
                    failed = 1
                    told = {"stake": wish.stake, "currency": wish.currency, "error": str(problem)}
                    if options.json:
                        print(json.dumps(told))
                    else:
                        print(problem, file=sys.stderr)
                else:
                    _show(wish, done, as_json=options.json, alone=options.words != ["-"])
        return failed

    return run_unless_stopped(convert_all)


def _show(wish: Wish, done: Conversion, *, as_json: bool, alone: bool) -> None:
    rate, eur = done.rate, plain(done.eur)
    if as_json:
        document = {"stake": wish.stake, "currency": done.currency, "eur": eur}
        names = ("rate", "rate_date", "provider")
        values = (rate.text, str(rate.day), rate.provider) if rate else (None, None, None)
        print(json.dumps(document | dict(zip(names, values, strict=True))))
    elif rate is None:
        print(f"{wish.stake} EUR is {eur} EUR, and needs no rate")
    elif not alone:
        about = f"{rate.text} by {rate.provider} of {rate.day}"
        print(f"{wish.stake} {done.currency} is {eur} EUR, at {about}")
    else:
        print(f"{wish.stake} {done.currency} is {eur} EUR")
        print(f"rate      {rate.text} {done.currency} for one euro")
        print(f"source    {rate.provider}")
        print(f"day asked {rate.asked}")
        print(f"day used  {rate.day}")
        if rate.provider != FIXED:  # which was never fetched
            print(f"fetched   {rate.fetched:%Y-%m-%d %H:%M:%S} UTC")
        if rate.note:
            print(f"note      {rate.note}")


def _read_wishes(options: argparse.Namespace, problems: list[str]) -> Iterator[Wish]:
    """What is to be converted; `problems` gets what is wrong with it."""
    words = options.words
    if words != ["-"]:
        if len(words) == 3 and words[2].upper() != "EUR":
            problems.append(f"{clipped(words[2])}: the target is always the euro")
        elif len(words) == 1 or len(words) > 3:
            problems.append("expected STAKE CURRENCY, or - for lines of them")
        else:
            yield from _read_wish(words[0], words[1], options.date, problems)
        return
    for number, line in enumerate(sys.stdin, 1):
        found: list[str] = []
        match line.split():
            case [stake, currency]:
                yield from _read_wish(stake, currency, options.date, found)
            case [stake, currency, day]:
                yield from _read_wish(stake, currency, day, found)
            case [_, *_]:
                found.append("expected STAKE CURRENCY [DATE]")
        problems += [f"line {number}: {problem}" for problem in found]


def _read_wish(stake: str, currency: str, day: str | None, problems: list[str]) -> Iterator[Wish]:
    """One conversion; `problems` gets all that is wrong with it."""
    before = len(problems)
    amount, when = Decimal(), None
    try:
        amount = parse_stake(stake)
    except ValueError as flaw:
        grouped = _GROUPED.fullmatch(stake)
        hint = "; write it as 1000.50, with a point and no other separator" if grouped else ""
        problems.append(f"stake {quoted(stake)} {flaw}{hint}")
    if not currency.isascii() or not is_currency(currency.upper()):
        problems.append(f"currency {quoted(currency)} is not a three-letter code")
    try:
        when = None if day is None else parse_instant(day)
    except BadDate as flaw:
        problems.append(f"date {quoted(str(day))} {flaw}")
    if len(problems) == before:
        yield Wish(stake, amount, currency.upper(), when)
