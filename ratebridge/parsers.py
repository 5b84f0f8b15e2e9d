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


def seconds(value: str, *, zero: bool = False) -> float:
    """A time above 0, or with `zero` that one as well."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if 0 < number <= 1e9 or (zero and number == 0):
        return number
    raise ValueError("a number of seconds" + ("" if zero else " above 0"))


def one_of(*words: W) -> Callable[[str], W]:
    def parse(value: str) -> W:
        for word in words:
            if value.lower() == word:
                return word
        raise ValueError(f"one of {', '.join(words)}")

    return parse


def some_of(
    expected: str, is_good: Callable[[str], object], fold: Callable[[str], str] = str.lower
) -> Callable[[str], tuple[str, ...]]:
    """Words separated by commas, each once; they are folded before `is_good` judges them."""

    def parse(value: str) -> tuple[str, ...]:
        words = tuple(fold(word.strip()) for word in value.split(","))
        if not all(map(is_good, words)) or len(set(words)) < len(words):
            raise ValueError(f"a list, separated by commas, of {expected}")
        return words

    return parse


def host_port(value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError("host:port")
    return host, int(port)


def file(value: str) -> Path:
    path = Path(value)
    try:
        usable = path.parent.is_dir() and not path.is_dir()
    except OSError:  # such as a directory that this user may not enter
        usable = False
    if not usable:
        raise ValueError("a file in a directory that exists")
    return path
