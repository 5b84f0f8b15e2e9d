"""The command `samples`: prints the files for operators that come with the package."""

import argparse
from importlib.resources import files
from typing import Any, Final

from .options import add_command

SAMPLES: Final = {
    file.name.partition(".")[0]: file for file in (files("ratebridge") / "samples").iterdir()
}
"""Each file, by its name without the ending."""


def declare(commands: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "samples",
        run,
        "prints a sample file for operators, or what there is",
        ("ratebridge samples", "lists them"),
        ("ratebridge samples alerts > alerts.yml", "alerts for Prometheus"),
    )
    parser.add_argument(
        "name", nargs="?", choices=sorted(SAMPLES), help="the sample; without it, a list"
    )


def run(options: argparse.Namespace) -> int:
    """Print the sample, or the names of all."""
    if options.name is None:
        print("\n".join(sorted(SAMPLES)))
    else:
        print(SAMPLES[options.name].read_text("utf-8"), end="")
    return 0
