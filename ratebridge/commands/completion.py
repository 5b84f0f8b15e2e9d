"""The command `completion`: prints the completions of a shell.

shtab made the files from the command line; a test compares them with it. To make one anew:

    uv run shtab --shell=bash ratebridge.command_line.command_line \\
        > ratebridge/commands/completion.bash
"""

import argparse
from importlib.resources import files
from typing import Any, Final

from .options import add_command

SHELLS: Final = ("bash", "zsh")


def declare(commands: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "completion",
        run,
        "prints the completions of a shell",
        ("ratebridge completion bash > ~/.local/share/bash-completion/completions/ratebridge", ""),
        ('ratebridge completion zsh > "${fpath[1]}/_ratebridge"', ""),
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")


def run(options: argparse.Namespace) -> int:
    """Print the file of the shell."""
    print((files(__package__) / f"completion.{options.shell}").read_text("utf-8"), end="")
    return 0
