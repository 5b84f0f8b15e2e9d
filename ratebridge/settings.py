"""The settings: read from the environment and a `.env` file, judged all at once."""

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import attrs

from .errors import BadSettings
from .link.address import Address
from .messages import clipped, quoted

PROVIDERS: Final = ("freecurrencyapi", "frankfurter", "ecb")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("auto", "console", "json")

FEED: Final = "CURRENCY_ASSIGNMENT_WS_URI"
KEY: Final = "FREECURRENCY_API_KEY"
_NEVER_QUOTED: Final = frozenset({FEED, KEY, "FREECURRENCY_API_URL", "FRANKFURTER_URL"})  # secrets
_MIN: Final = "RATEBRIDGE_RECONNECT_MIN"
_MAX: Final = "RATEBRIDGE_RECONNECT_MAX"

LogFormat = Literal["auto", "console", "json"]


class Secret:
    """A text that no print, log, repr or traceback shows. Only `reveal` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"


def _key(value: str) -> Secret:
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError("printable ASCII without spaces")
    return Secret(value)


def _switch(value: str) -> bool:
    lowered = value.lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off"):
        return False
    raise ValueError("true or false")


def _seconds_from_zero(value: str) -> float:
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
        seconds = _seconds_from_zero(value)
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


def _host_port(value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError("host:port")
    return host, int(port)


def _hosts(value: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in value.split(","))
    if not all(re.fullmatch(r"[a-z0-9._-]+", name) for name in names):
        raise ValueError("a list, separated by commas, of host names without ports")
    return names


def _file(value: str) -> Path:
    path = Path(value)
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError("a file in a directory that exists")
    return path


# What each setting is called, and what makes its value of a text, or tells what it expects.
_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "feed": (FEED, Address.parse),
    "key": (KEY, _key),
    "verify_ssl": ("VERIFY_SSL", _switch),
    "freecurrencyapi_url": ("FREECURRENCY_API_URL", _base_url),
    "frankfurter_url": ("FRANKFURTER_URL", _base_url),
    "providers": ("RATEBRIDGE_PROVIDERS", _providers),
    "cache_ttl": ("RATEBRIDGE_CACHE_TTL", _seconds),
    "rate_deadline": ("RATEBRIDGE_RATE_DEADLINE", _seconds),
    "heartbeat_interval": ("RATEBRIDGE_HEARTBEAT_INTERVAL", _seconds),
    "heartbeat_timeout": ("RATEBRIDGE_HEARTBEAT_TIMEOUT", _seconds),
    "reconnect_min": (_MIN, _seconds),
    "reconnect_max": (_MAX, _seconds),
    "drain_timeout": ("RATEBRIDGE_DRAIN_TIMEOUT", _seconds_from_zero),
    "log_level": ("RATEBRIDGE_LOG_LEVEL", _one_of(*LOG_LEVELS)),
    "log_format": ("RATEBRIDGE_LOG_FORMAT", _one_of(*LOG_FORMATS)),
    "status_address": ("RATEBRIDGE_STATUS_ADDRESS", _host_port),
    "status_hosts": ("RATEBRIDGE_STATUS_HOSTS", _hosts),
    "audit_file": ("RATEBRIDGE_AUDIT_FILE", _file),
}


@attrs.frozen
class Settings:
    """Everything an operator can set; times are in seconds. The defaults are the protocol's."""

    feed: Address | None = None
    key: Secret | None = None
    verify_ssl: bool = True
    freecurrencyapi_url: str = "https://api.freecurrencyapi.com/v1"
    frankfurter_url: str = "https://api.frankfurter.dev/v2"
    providers: tuple[str, ...] = ("frankfurter",)
    cache_ttl: float = 7200.0
    rate_deadline: float = 5.0
    heartbeat_interval: float = 1.0
    heartbeat_timeout: float = 2.0
    reconnect_min: float = 0.25
    reconnect_max: float = 5.0
    drain_timeout: float = 5.0
    log_level: str = "info"
    log_format: LogFormat = "auto"
    status_address: tuple[str, int] | None = None
    status_hosts: tuple[str, ...] = ()
    audit_file: Path | None = None
    unknown: tuple[str, ...] = ()  # variables with our prefix that mean nothing to us


def read_environment(
    environ: Mapping[str, str], dotenv: Path | None = Path(".env")
) -> dict[str, str]:
    """The environment on top of a `.env` file, if there is one. Empty values count as none."""
    found: dict[str, str] = {}
    if dotenv is not None and os.path.lexists(dotenv):
        from dotenv import dotenv_values  # it takes as long as all the rest here

        try:
            values = dotenv_values(dotenv, interpolate=False, encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise BadSettings(".env: expected a text file that can be read") from None
        found = {name: value for name, value in values.items() if value is not None}
    return {name: value for name, value in {**found, **environ}.items() if value.strip()}


def load_settings(values: Mapping[str, str], *, need_feed: bool = True) -> Settings:
    """Make settings of names and values. Raises `BadSettings` with all that is wrong with them."""
    read: dict[str, Any] = {}
    problems: list[str] = []
    for setting, (name, parse) in _VARIABLES.items():
        if name not in values:
            if name == FEED and need_feed:
                problems.append(f"{FEED}: is required but not set")
            continue
        value = values[name].strip()
        try:
            read[setting] = parse(value)
        except ValueError as expected:
            got = "" if name in _NEVER_QUOTED else f", got {quoted(value)}"
            problems.append(f"{name}: expected {expected}{got}")
    if KEY in values:
        read.setdefault("providers", ("freecurrencyapi", "frankfurter"))
    elif "freecurrencyapi" in read.get("providers", ()):
        problems.append(f"{KEY}: expected a key, as freecurrencyapi is among the sources")
    settings = Settings(**read)
    if settings.reconnect_max < settings.reconnect_min:
        if "reconnect_max" in read:
            problems.append(f"{_MAX}: expected no less than {_MIN}")
        settings = attrs.evolve(settings, reconnect_max=settings.reconnect_min)
    if problems:
        raise BadSettings(*problems)
    names = {name for name, _ in _VARIABLES.values()}
    strange = sorted(
        name for name in values if name.startswith("RATEBRIDGE_") and name not in names
    )
    return attrs.evolve(settings, unknown=tuple(map(clipped, strange)))
