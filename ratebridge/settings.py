"""The settings: read from the environment and a `.env` file, judged all at once."""

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar, cast
from urllib.parse import urlsplit

import attrs

from .address import Address
from .errors import BadSettings
from .messages import clipped, quoted

T = TypeVar("T")

PROVIDERS: Final = ("freecurrencyapi", "frankfurter", "ecb")
FREECURRENCYAPI_URL: Final = "https://api.freecurrencyapi.com/v1"
FRANKFURTER_URL: Final = "https://api.frankfurter.dev/v2"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("auto", "console", "json")

FEED: Final = "CURRENCY_ASSIGNMENT_WS_URI"
KEY: Final = "FREECURRENCY_API_KEY"
_PREFIX: Final = "RATEBRIDGE_"


class Secret:
    """A text that no print, log, repr or traceback shows. Only `reveal` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"


@attrs.frozen
class Settings:
    """Everything an operator can set; times are in seconds. The defaults are the protocol's."""

    feed: Address | None = None
    key: Secret | None = None
    verify_ssl: bool = True
    freecurrencyapi_url: str = FREECURRENCYAPI_URL
    frankfurter_url: str = FRANKFURTER_URL
    providers: tuple[str, ...] = ("frankfurter",)
    cache_ttl: float = 7200.0
    rate_deadline: float = 5.0
    heartbeat_interval: float = 1.0
    heartbeat_timeout: float = 2.0
    reconnect_min: float = 0.25
    reconnect_max: float = 5.0
    drain_timeout: float = 5.0
    log_level: str = "info"
    log_format: Literal["auto", "console", "json"] = "auto"
    status_address: tuple[str, int] | None = None
    audit_file: Path | None = None
    unknown: tuple[str, ...] = ()  # variables with our prefix that mean nothing to us


def read_environment(
    environ: Mapping[str, str], dotenv: Path | None = Path(".env")
) -> dict[str, str]:
    """The environment on top of a `.env` file, if there is one. Empty values count as none."""
    found: dict[str, str] = {}
    if dotenv is not None and os.path.lexists(dotenv):
        from dotenv import dotenv_values  # as long as the rest of reading the settings

        try:
            values = dotenv_values(dotenv, interpolate=False, encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise BadSettings(".env: expected a text file that can be read") from None
        found = {name: value for name, value in values.items() if value is not None}
    return {name: value for name, value in {**found, **environ}.items() if value.strip()}


def load_settings(values: Mapping[str, str], *, need_feed: bool = True) -> Settings:
    """Make settings of names and values. Raises `BadSettings` with all that is wrong with them."""
    reader = _Reader(values)
    feed = reader.read(FEED, _feed, None, required=need_feed)
    key = Secret(values[KEY].strip()) if KEY in values else None
    default: tuple[str, ...] = ("freecurrencyapi", "frankfurter") if key else ("frankfurter",)
    providers = reader.read("RATEBRIDGE_PROVIDERS", _providers, default)
    if key is None and "freecurrencyapi" in providers:
        reader.problems.append(f"{KEY}: expected a key, as freecurrencyapi is among the sources")
    if key is not None and not re.fullmatch(r"[!-~]+", key.reveal()):
        reader.problems.append(f"{KEY}: expected printable ASCII without spaces")
    reconnect_min = reader.read("RATEBRIDGE_RECONNECT_MIN", _seconds, 0.25)
    reconnect_max = reader.read("RATEBRIDGE_RECONNECT_MAX", _seconds, max(5.0, reconnect_min))
    if reconnect_max < reconnect_min:
        reader.problems.append(
            "RATEBRIDGE_RECONNECT_MAX: expected no less than RATEBRIDGE_RECONNECT_MIN"
        )
    settings = Settings(
        feed=feed,
        key=key,
        verify_ssl=reader.read("VERIFY_SSL", _switch, True),
        freecurrencyapi_url=reader.read("FREECURRENCY_API_URL", _base_url, FREECURRENCYAPI_URL),
        frankfurter_url=reader.read("FRANKFURTER_URL", _base_url, FRANKFURTER_URL),
        providers=providers,
        cache_ttl=reader.read("RATEBRIDGE_CACHE_TTL", _seconds, 7200.0),
        rate_deadline=reader.read("RATEBRIDGE_RATE_DEADLINE", _seconds, 5.0),
        heartbeat_interval=reader.read("RATEBRIDGE_HEARTBEAT_INTERVAL", _seconds, 1.0),
        heartbeat_timeout=reader.read("RATEBRIDGE_HEARTBEAT_TIMEOUT", _seconds, 2.0),
        reconnect_min=reconnect_min,
        reconnect_max=reconnect_max,
        drain_timeout=reader.read("RATEBRIDGE_DRAIN_TIMEOUT", _seconds_or_none, 5.0),
        log_level=reader.read("RATEBRIDGE_LOG_LEVEL", _one_of(*LOG_LEVELS), "info"),
        log_format=cast(
            'Literal["auto", "console", "json"]',
            reader.read("RATEBRIDGE_LOG_FORMAT", _one_of(*LOG_FORMATS), "auto"),
        ),
        status_address=reader.read("RATEBRIDGE_STATUS_ADDRESS", _host_port, None),
        audit_file=reader.read("RATEBRIDGE_AUDIT_FILE", _file, None),
        unknown=tuple(
            clipped(name)
            for name in sorted(values)
            if name.startswith(_PREFIX) and name not in reader.names
        ),
    )
    if reader.problems:
        raise BadSettings(*reader.problems)
    return settings


class _Reader:
    """Reads values one by one and collects what is wrong with them.

    A parser raises ValueError with what was expected. A value is quoted only
    where it cannot hold a secret: URLs can.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.names: set[str] = set()
        self.problems: list[str] = []

    def read(
        self, name: str, parse: Callable[[str], T], default: T, *, required: bool = False
    ) -> T:
        self.names.add(name)
        value = self._values.get(name)
        if value is None:
            if required:
                self.problems.append(f"{name}: expected a value, it is required")
            return default
        try:
            return parse(value.strip())
        except ValueError as expected:
            got = "" if "UR" in name else f", got {quoted(value)}"
            self.problems.append(f"{name}: expected {expected}{got}")
            return default


def _feed(value: str) -> Address | None:
    return Address.parse(value)


def _switch(value: str) -> bool:
    lowered = value.lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off"):
        return False
    raise ValueError("true or false")


def _seconds_or_none(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 1e9:
        raise ValueError("a number of seconds")
    return seconds


def _seconds(value: str) -> float:
    expected = "a number of seconds above 0"
    try:
        seconds = _seconds_or_none(value)
    except ValueError:
        raise ValueError(expected) from None
    if seconds == 0:
        raise ValueError(expected)
    return seconds


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value.lower()

    return parse


def _providers(value: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in value.split(","))
    if not set(names) <= set(PROVIDERS) or len(set(names)) < len(names):
        raise ValueError(f"a list, separated by commas, of {', '.join(PROVIDERS)}")
    return names


def _base_url(value: str) -> str:
    expected = "a URL that begins with http:// or https://, without user, query or fragment"
    if not value.isascii() or not value.isprintable() or set(value) & set(' ?#"<>\\^`{|}'):
        raise ValueError(expected)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable or "@" in parts.netloc:
        raise ValueError(expected)
    return value.rstrip("/")


def _host_port(value: str) -> tuple[str, int] | None:
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError("host:port")
    return host, int(port)


def _file(value: str) -> Path | None:
    path = Path(value)
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError("a file in a directory that exists")
    return path
