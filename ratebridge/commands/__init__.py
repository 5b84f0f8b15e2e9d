"""The commands other than the service. Each module declares its options, and runs them."""

from typing import Final

MODULES: Final = {
    "demo": "demo",
    "mock-server": "demo",
    "check": "check",
    "convert": "convert",
    "verify": "verify",
    "completion": "completion",
    "samples": "samples",
}
"""The module of each command; one is imported when its command is named, or all for the help."""

REPORTS: Final = frozenset({"check", "convert", "verify"})
"""Commands for the sake of their output: one interrupted, or not read, has not passed."""
