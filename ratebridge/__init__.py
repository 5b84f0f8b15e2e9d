"""ratebridge: answers a trading platform's stakes in euro, exactly and in milliseconds.

For those who embed it:

- `Settings`, or `load_settings(values)` for settings by their names in the environment;
  `load_settings()` reads them there, and from `.env`. A feed's `Address` is one of them, and
  so are the `Proxies`, each a `Proxy`
- `serve(settings)`, the service as an async function, to run in a nursery of yours; it logs to
  the stdlib logger `ratebridge`
- `run(settings)`, the same until SIGTERM or SIGINT, with a log of its own, for a program that
  does nothing else
- `Dependencies`, what a service touches beyond its settings, to be replaced in tests: the `Dial`
  of the feed, and each `Source` of rates, which gives a `RateSheet`, with a `Quote`, or a
  `Doubted` one, for each currency and day
- `Converter(settings)`, to convert many stakes; `convert(stake, currency, when)` for one, and
  `convert_sync` outside of trio. The result is a `Conversion` with its `Rate`
- `fakes`, the stand-in feed and rate sources, for your tests

Every error that is raised on purpose is a `RatebridgeError`: `BadSettings` and
`CannotStart` before the service begins; `BadRequest` and `NoRate` by a conversion;
`SourceFailed` by a source.

Names are imported when they are first used, so that `import ratebridge` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import fakes
    from .api import Conversion, Converter, convert, convert_sync
    from .app import Dependencies, run, serve
    from .errors import BadRequest, BadSettings, CannotStart, NoRate, RatebridgeError, SourceFailed
    from .link.address import Address
    from .link.dial import Dial
    from .providers.source import Source
    from .proxies import Proxies, Proxy
    from .rates import Doubted, Quote, Rate, RateSheet
    from .settings import Settings, load_settings

__all__ = ["Address", "Proxies", "Proxy", "Settings", "load_settings"]
__all__ += ["Dependencies", "Dial", "run", "serve"]
__all__ += ["Doubted", "Quote", "RateSheet", "Source"]
__all__ += ["Conversion", "Converter", "Rate", "convert", "convert_sync"]
__all__ += ["BadRequest", "BadSettings", "CannotStart", "NoRate", "RatebridgeError", "SourceFailed"]
__all__ += ["fakes"]

# Each imports most of those before it, so that a name is found at no further import.
_MODULES: Final = (
    *("errors", "rates", "proxies", "settings", "link.address", "link.dial", "providers.source"),
    *("app", "api"),
)


def __getattr__(name: str) -> Any:
    if name == "fakes":
        return import_module(".fakes", __name__)
    if name in __all__:
        modules = (import_module(f".{module}", __name__) for module in _MODULES)
        return getattr(next(module for module in modules if hasattr(module, name)), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
