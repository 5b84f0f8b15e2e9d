"""The command line, assembled from what each command declares."""

import argparse
from collections.abc import Collection
from importlib import import_module
from typing import Any

from .commands import MODULES
from .commands.options import add_env_file
from .version import __version__


class Strict(argparse.ArgumentParser):
    """A parser that takes no option by its first letters: another one may come to begin so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


class Top(Strict):
    """The top-level parser, whose help explains the settings."""

    def format_help(self) -> str:
        from .settings import VARIABLES

        self.epilog = (
            "settings, from the environment or a .env file; a secret NAME may stand in the file\n"
            "that NAME_FILE names:\n"
        )
        for variable in VARIABLES.values():
            shown = f"  {variable.name} ({variable.default})\n      {variable.meaning}\n"
            self.epilog += shown.replace("`", "")
        return super().format_help()


def command_line(names: Collection[str] = MODULES) -> argparse.ArgumentParser:
    """The parser of the service and of the commands with these names.

    Their modules are imported: for all of them that takes several times as long as for
    `verify` alone. What it parses has as `run` the function that runs the command: it takes
    the options and returns the exit code.
    """
    parser = Top(
        prog="ratebridge",
        description="Converts a trading platform's stakes to euro. Without a command it runs the\n"
        "service, configured by the environment and a .env file (see the README).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"ratebridge {__version__}")
    parser.set_defaults(run=run_service)
    add_env_file(parser)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Strict)
    for module in dict.fromkeys(MODULES[name] for name in MODULES if name in names):
        import_module(f".commands.{module}", __package__).declare(commands)
    return parser


def run_service(options: argparse.Namespace) -> int:
    """Run the service until a signal stops it."""
    from .app import run
    from .settings import load_settings

    run(load_settings(env_file=getattr(options, "env_file", None)))
    return 0
