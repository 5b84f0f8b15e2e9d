"""Parsers of settings: from the text of a variable to its value. Pure, but for `file`.

Each raises ValueError with what it expects. That text never quotes the value, which may be
a secret.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from .messages import is_currency

W = TypeVar("W", bound=str)


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


def one_of(*words: W) -> Callable[[str], W]:
    def parse(value: str) -> W:
        for word in words:
            if value.lower() == word:
                return word
        raise ValueError(f"one of {', '.join(words)}")

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


def coins(value: str) -> tuple[str, ...]:
    """Codes that a request can name: those of the wire have three letters."""
    codes = tuple(code.strip().upper() for code in value.split(","))
    if not all(map(is_currency, codes)) or len(set(codes)) < len(codes):
        raise ValueError("a list, separated by commas, of codes of three letters")
    return codes


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
