"""How commands declare themselves, and the types of their options."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    *examples: tuple[str, str],
    **more: Any,
) -> argparse.ArgumentParser:
    """The parser of a command that `run` runs, which returns the exit code.

    Each example is a command line and what it does; `more` goes to the parser.
    """
    width = max(len(command) for command, _ in examples)
    described = {"description": summary[0].upper() + summary[1:] + ".", **more}
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        epilog="examples:\n"
        + "\n".join(f"  {command:<{width}}  {what}" for command, what in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **described,
    )
    parser.set_defaults(run=run)
    add_env_file(parser)
    return parser


# How the completions of shtab know a file.
FILE: Final = {"bash": "_shtab_compgen_files", "zsh": "_files"}


def add_env_file(parser: argparse.ArgumentParser) -> None:
    """The option of every command; where it is not given it is no attribute."""
    option = parser.add_argument(
        "--env-file",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="read settings from this file instead of .env",
    )
    option.complete = FILE  # type: ignore[attr-defined]


def number(
    kind: Callable[[str], float], holds: Callable[[float], bool], expected: str
) -> Callable[[str], float]:
    """The type of a numeric option.

    Args:
        kind: makes the number of the text, or raises ValueError, as `int` does.
        holds: whether the number is a good one.
        expected: what is expected, for the error message.
    """

    def parse(text: str) -> float:
        with suppress(ValueError):
            value = kind(text)
            if holds(value):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return parse


PORT: Final = number(int, lambda n: 0 <= n <= 65535, "a port from 0 to 65535")
RATE: Final = number(float, lambda n: 0 < n < 1e9, "a number above 0")
COUNT: Final = number(int, lambda n: n > 0, "a whole number above 0")
