"""Finds the declaration of a rate source, by its name in `settings.SOURCES`."""

from functools import cache
from importlib import import_module

from .source import Provider


@cache
def provider(name: str) -> Provider:
    """The `PROVIDER` of `providers/NAME.py`, which is imported when it is first asked for.

    So a source that is not in use costs nothing.
    """
    declared: Provider = import_module(f".{name}", __package__).PROVIDER
    return declared
