"""Parsers of settings: from the text of a variable to its value. Pure, but for `file`.

Each raises ValueError with what it expects. That text never quotes the value, which may be
a secret.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

W = TypeVar("W", bound=str)


def key(value: str) -> str:
    """A secret that a header or a query can carry as it is."""
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError("printable ASCII without spaces")
    return value


def base_url(value: str) -> str:
    """The base of a source's URLs, without a slash at its end (RFC 3986, 3)."""
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
    """On or off, in any of the usual words and in any case."""
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
    """A parser that takes one of these words, in any case."""

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
    """An address to listen on; one of IPv6 may stand in brackets. Port 0 is any free one."""
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError("host:port")
    return host, int(port)


def file(value: str) -> Path:
    """A file, which need not be there yet, in a directory that is."""
    path = Path(value)
    # Path.is_dir raises for a name that is too long, or in a directory that may not be entered.
    if not os.path.isdir(path.parent) or os.path.isdir(path):  # noqa: PTH112
        raise ValueError("a file in a directory that exists")
    return path
