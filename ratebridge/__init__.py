"""ratebridge: answers a trading platform's stakes in euro, exactly and in milliseconds.

For those who embed it:

- `Settings`, or `load_settings(values)` for settings by their names in the environment;
  `load_settings()` reads them there, and from `.env`
- `serve(settings)`, the service as an async function, to run in a nursery of yours
- `run(settings)`, the same until SIGTERM or SIGINT, for a program that does nothing else
- `Dependencies`, what a service touches beyond its settings, to be replaced in tests
- `convert(stake, currency, instant)`, one conversion, async; `convert_sync` outside of trio
- `fakes`, the stand-in feed and rate sources, for your tests

Every error that is raised on purpose is a `RatebridgeError`: `BadSettings` and
`CannotStart` before the service begins; `BadRequest` and `NoRate` by `convert`, whose
result is a `Conversion`.

Names are imported when they are first used, so that `import ratebridge` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from . import fakes
    from .api import Conversion, convert, convert_sync
    from .app import Dependencies, run, serve
    from .errors import BadRequest, BadSettings, CannotStart, NoRate, RatebridgeError
    from .settings import Settings, load_settings

__version__ = "0.1.0"
__all__ = [
    "BadRequest",
    "BadSettings",
    "CannotStart",
    "Conversion",
    "Dependencies",
    "NoRate",
    "RatebridgeError",
    "Settings",
    "convert",
    "convert_sync",
    "fakes",
    "load_settings",
    "run",
    "serve",
]

_HOMES: Final = {
    "BadRequest": "errors",
    "BadSettings": "errors",
    "CannotStart": "errors",
    "Conversion": "api",
    "Dependencies": "app",
    "NoRate": "errors",
    "RatebridgeError": "errors",
    "Settings": "settings",
    "convert": "api",
    "convert_sync": "api",
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
