"""The names of the rate sources; `providers/NAME.py` declares the rest.

A module is imported when its declaration is first needed: the command line's help
needs only the names.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .source import Provider

# In the default order of failover.
NAMES: Final = ("freecurrencyapi", "frankfurter", "ecb", "coinbase")


@cache
def provider(name: str) -> "Provider":
    """The declaration of the module of that name, one of `NAMES`."""
    declared: Provider = import_module(f".{name}", __package__).PROVIDER
    return declared
