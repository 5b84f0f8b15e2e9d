"""One setting: a row with its name, parser, default and secrecy; and the parsers.

A parser turns a text into a value, or raises ValueError with what it expects. The
error must not quote the text, which may be a secret.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, cast
from urllib.parse import urlsplit

import attrs

T = TypeVar("T")


@attrs.frozen
class Setting(Generic[T]):
    """The row of a setting. Its value is never shown unless `secret` is False.

    A URL is a secret too, as it can hold a token. A `required` setting must be set if
    its source is among the providers.
    """

    name: str
    parse: Callable[[str], T]
    default: T | None = None
    secret: bool = True
    required: bool = False


class Values:
    """The values of settings, looked up by their rows; the repr shows names only."""

    __slots__ = ("_set",)

    def __init__(self, by_name: Mapping[str, Any] | None = None) -> None:
        self._set = dict(by_name or {})

    def __getitem__(self, setting: Setting[T]) -> T:
        return cast("T", self._set.get(setting.name, setting.default))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self._set == other._set

    __hash__ = None  # type: ignore[assignment]  # it holds a dict

    def __repr__(self) -> str:
        return f"Values({', '.join(self._set)})"


def key(value: str) -> str:
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError("printable ASCII without spaces")
    return value


def base_url(value: str) -> str:
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


def switch(value: str) -> bool:
    lowered = value.lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off"):
        return False
    raise ValueError("true or false")


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def seconds_from_zero(value: str) -> float:
    number = _number(value)
    if not 0 <= number <= 1e9:
        raise ValueError("a number of seconds")
    return number


def seconds(value: str) -> float:
    number = _number(value)
    if not 0 < number <= 1e9:
        raise ValueError("a number of seconds above 0")
    return number


def one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value.lower()

    return parse


def some_of(*words: str) -> Callable[[str], tuple[str, ...]]:
    def parse(value: str) -> tuple[str, ...]:
        names = tuple(name.strip().lower() for name in value.split(","))
        if not set(names) <= set(words) or len(set(names)) < len(names):
            raise ValueError(f"a list, separated by commas, of {', '.join(words)}")
        return names

    return parse


def host_port(value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError("host:port")
    return host, int(port)


def count(value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII) or int(value) == 0:
        raise ValueError("a whole number above 0")
    return int(value)


def host_names(value: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in value.split(","))
    if not all(re.fullmatch(r"[a-z0-9._-]+", name) for name in names):
        raise ValueError("a list, separated by commas, of host names without ports")
    return names


def file(value: str) -> Path:
    path = Path(value)
    try:
        usable = path.parent.is_dir() and not path.is_dir()
    except OSError:  # such as a directory that this user may not enter
        usable = False
    if not usable:
        raise ValueError("a file in a directory that exists")
    return path
