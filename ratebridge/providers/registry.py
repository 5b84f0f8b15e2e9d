"""The rate sources that there are: a name here, and `providers/NAME.py`, which declares the rest.

A module is imported when its declaration is first asked for: a command's help
needs the names alone.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .source import Provider

# The order in which they are tried, where no setting says otherwise.
NAMES: Final = ("freecurrencyapi", "frankfurter", "ecb")


@cache
def provider(name: str) -> "Provider":
    """What the module of that name declares. Raises KeyError for a name that is not here."""
    if name not in NAMES:
        raise KeyError(name)
    declared: Provider = import_module(f".{name}", __package__).PROVIDER
    return declared
