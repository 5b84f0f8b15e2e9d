"""The commands and their options. Each command imports what it needs when it runs."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from . import __version__
from .providers.registry import NAMES


def read_command(arguments: Sequence[str]) -> Callable[[], int]:
    """What runs the command and returns the exit code.

    Exits with 2 on bad usage, and with 0 after a help or the version.
    """
    options = command_line().parse_args(arguments)
    return partial(options.run, options)


class _Top(argparse.ArgumentParser):
    """The top-level parser, whose help names the settings."""

    def format_help(self) -> str:
        from .settings import FEED, VARIABLES

        names = (
            f"  {name}{' (required)' if name == FEED else ''}\n"
            for name in (variable.name for variable in VARIABLES.values())
        )
        self.epilog = f"settings, from the environment or a .env file:\n{''.join(names)}"
        return super().format_help()


def command_line() -> argparse.ArgumentParser:
    parser = _Top(
        prog="ratebridge",
        description="Converts a trading platform's stakes to euro. Without a command it runs the\n"
        "service, configured by the environment and a .env file (see the README).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ratebridge {__version__}")
    commands = parser.add_subparsers(
        metavar="COMMAND", title="commands", required=True, parser_class=argparse.ArgumentParser
    )

    demo = _add(
        commands,
        "demo",
        _demo,
        "a feed and the service on this machine: no key, no account, no network",
        ("ratebridge demo", "20 conversions, then a summary"),
        ("ratebridge demo --forever --rate 50", "50 requests a second until Ctrl-C"),
    )
    demo.add_argument("--count", type=_COUNT, default=20, help="how many requests (default: 20)")
    demo.add_argument("--rate", type=_RATE, default=5.0, help="requests a second (default: 5)")
    demo.add_argument("--forever", action="store_true", help="run until stopped")

    mock = _add(
        commands,
        "mock-server",
        _mock_server,
        "a fake feed for a service to connect to",
        ("ratebridge mock-server --port 8765", "random requests at ws://127.0.0.1:8765"),
        ("ratebridge mock-server --replay traffic.jsonl", "recorded requests, in order"),
    )
    mock.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    mock.add_argument("--port", type=_PORT, default=8765, help="port to listen on (default: 8765)")
    mock.add_argument(
        "--rates-port",
        type=_PORT,
        metavar="PORT",
        help="play the rate sources too, on this port; their URLs are logged",
    )
    mock.add_argument("--rate", type=_RATE, default=5.0, help="requests a second (default: 5)")
    mock.add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="send the messages of this file, a JSON line each, and no random ones",
    )
    mock.add_argument("--loop", action="store_true", help="start the file again at its end")
    mock.add_argument(
        "--seed", type=_SEED, help="seed of the random requests, to get the same ones again"
    )

    check = _add(
        commands,
        "check",
        _check,
        "tries the settings against the real feed and sources, and reports what works",
        ("ratebridge check", "a line for each step; exit code 1 if one fails"),
        ("ratebridge check && ratebridge", "the service, only if every step succeeds"),
    )
    check.description = (
        "Tries the settings against the real feed and sources, and reports what works.\n"
        "For a few seconds it is another client of the feed, which answers no request. It uses\n"
        "two calls of each source's quota."
    )

    convert = _add(
        commands,
        "convert",
        _convert,
        "one conversion, with the source and day of its rate",
        ("ratebridge convert 253.67 USD --date 2021-05-18", "the sources of the settings"),
        ("ratebridge convert 253.67 USD --source ecb --date 2021-05-18", "no network"),
    )
    convert.add_argument("stake", metavar="STAKE", help="a number such as 253.67")
    convert.add_argument("currency", metavar="CURRENCY", help="a code such as USD")
    convert.add_argument("--date", help="a day, or an instant with its offset (default: today)")
    convert.add_argument("--source", help=f"ask this source only: {', '.join(NAMES)}")

    verify = _add(
        commands,
        "verify",
        _verify,
        "recomputes every line of an audit trail and its hash chain",
        ("ratebridge verify audit.jsonl", "a trail in one file"),
        (
            "ratebridge verify audit.jsonl.2.gz audit.jsonl.1 audit.jsonl",
            "in several, oldest first",
        ),
        (
            "ratebridge verify --head 1200:9f86... audit.jsonl",
            "does it hold the line that the log names?",
        ),
    )
    verify.description = (
        "Recomputes every line of an audit trail and its hash chain. Reports each line that is\n"
        "altered, missing, duplicated, moved or without its hash, and where.\n\n"
        "Exit codes: 0 every line is true and in its place and every head was found, or a signal\n"
        "stopped the command (its last line says so); 1 anything else, such as an empty trail, or\n"
        "one that begins late or ends in a line cut short; 2 bad usage, or a file that cannot be\n"
        "opened.\n\n"
        "Only a head shows that the last lines are missing, or that the whole trail was written\n"
        "anew. A head is the number and hash of a line; the log has one as audit_head each minute."
    )
    verify.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="an audit file; gzipped if its name ends in .gz; - for standard input",
    )
    verify.add_argument(
        "--head",
        metavar="N:HASH",
        action="append",
        default=[],
        help="number and hash of a line that must be in the trail; can be repeated",
    )
    verify.add_argument(
        "--from",
        dest="first",
        metavar="N",
        type=_COUNT,
        default=1,
        help="the number that the trail may begin with if older files are gone (default: 1)",
    )
    return parser


def _add(
    commands: Any, name: str, run: Any, summary: str, *examples: tuple[str, str]
) -> argparse.ArgumentParser:
    width = max(len(command) for command, _ in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n"
        + "\n".join(f"  {command:<{width}}  {what}" for command, what in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _number(
    kind: Callable[[str], float], holds: Callable[[float], bool], expected: str
) -> Callable[[str], float]:
    """The type of a numeric option; `expected` is for its error message."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            number = kind(text)
            if holds(number):
                return number
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return parse


_PORT: Final = _number(int, lambda n: 0 <= n <= 65535, "a port from 0 to 65535")
_RATE: Final = _number(float, lambda n: 0 < n < 1e9, "a number above 0")
_COUNT: Final = _number(int, lambda n: n > 0, "a whole number above 0")
_SEED: Final = _number(int, lambda _: True, "a whole number")


def _demo(options: argparse.Namespace) -> int:
    from .commands.demo import run_demo

    return run_demo(count=None if options.forever else options.count, rate=options.rate)


def _mock_server(options: argparse.Namespace) -> int:
    from .commands.demo import run_mock_server

    return run_mock_server(
        host=options.host,
        port=options.port,
        rates_port=options.rates_port,
        rate=options.rate,
        replay=options.replay,
        loop=options.loop,
        seed=options.seed,
    )


def _check(_options: argparse.Namespace) -> int:
    from .commands.check import run_check
    from .settings import load_settings

    return run_check(load_settings())


def _verify(options: argparse.Namespace) -> int:
    from .commands.verify import run_verify

    return run_verify(options.files, options.head, options.first)


def _convert(options: argparse.Namespace) -> int:
    from .commands.convert import run_convert

    return run_convert(
        stake=options.stake,
        currency=options.currency,
        date_text=options.date,
        source=options.source,
    )
