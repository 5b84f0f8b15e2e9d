"""ratebridge: answers a trading platform's stakes in euro, exactly and in milliseconds.

For those who embed it:

- `Settings`, or `load_settings(values)` for settings by their names in the environment
- `serve(settings)`, the service as an async function, to run in a nursery of yours
- `run(settings)`, the same until SIGTERM or SIGINT, for a program that does nothing else
- `convert(stake, currency, instant)`, one conversion, async; `convert_sync` outside of trio
- `fakes`, the stand-in feed and rate sources, for your tests

Names are imported when they are first used, so that `import ratebridge` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from . import fakes
    from .app import run, serve
    from .commands.convert import Conversion, convert, convert_sync
    from .errors import BadSettings, CannotStart, NoRate
    from .settings import Settings, load_settings

__version__ = "0.1.0"
__all__ = [
    "BadSettings",
    "CannotStart",
    "Conversion",
    "NoRate",
    "Settings",
    "convert",
    "convert_sync",
    "fakes",
    "load_settings",
    "run",
    "serve",
]

_HOMES: Final = {
    "BadSettings": "errors",
    "CannotStart": "errors",
    "Conversion": "commands.convert",
    "NoRate": "errors",
    "Settings": "settings",
    "convert": "commands.convert",
    "convert_sync": "commands.convert",
    "load_settings": "settings",
    "run": "app",
    "serve": "app",
}


def __getattr__(name: str) -> Any:
    if name == "fakes":
        return import_module(".fakes", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
