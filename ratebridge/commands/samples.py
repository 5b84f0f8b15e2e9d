"""The command `samples`: prints the files for operators that come with the package."""

import argparse
from importlib.resources import files
from typing import Any, Final

from .options import add_command

SAMPLES: Final = {
    "alerts": ("alerts.yml", "alerts for Prometheus"),
    "dashboard": ("dashboard.json", "a dashboard for Grafana"),
    "kubernetes": ("kubernetes.yaml", "a Kubernetes deployment with both probes"),
    "logrotate": ("logrotate.conf", "the audit file, rotated by logrotate"),
    "service": ("ratebridge.service", "a unit for systemd"),
}


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
    parser.add_argument("name", nargs="?", choices=tuple(SAMPLES), help="the sample; without it, a list")


def run(options: argparse.Namespace) -> int:
    """Print the sample, or the names of all."""
    if options.name is None:
        print("\n".join(f"{name:<12} {what}" for name, (_, what) in SAMPLES.items()))
    else:
        file, _ = SAMPLES[options.name]
        print((files("ratebridge") / "samples" / file).read_text("utf-8"), end="")
    return 0
