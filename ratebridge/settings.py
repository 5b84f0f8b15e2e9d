"""The settings: read from the environment and a `.env` file, and checked together."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from .errors import BadSettings
from .link.address import Address
from .messages import clipped, quoted
from .providers.registry import NAMES, provider
from .setting import (
    Setting,
    Values,
    file,
    host_names,
    host_port,
    one_of,
    seconds,
    seconds_from_zero,
    some_of,
    switch,
)

FEED: Final = "CURRENCY_ASSIGNMENT_WS_URI"
PROVIDERS: Final = "RATEBRIDGE_PROVIDERS"
USUAL_SOURCES: Final = 2  # without a list: one, and one to fail over to
_MIN: Final = "RATEBRIDGE_RECONNECT_MIN"
_MAX: Final = "RATEBRIDGE_RECONNECT_MAX"

DOTENV: Final = Path(".env")
MAX_DOTENV: Final = 1024 * 1024  # bytes; a larger file does not hold settings

LogFormat = Literal["auto", "console", "json"]


def _row(name: str, parse: Any, default: Any = None, *, secret: bool = False) -> Any:
    row = Setting(name, parse, default, secret)
    return attrs.field(default=default, repr=not secret, metadata={"row": row})


@attrs.frozen
class Settings:
    """Everything an operator can set; times are in seconds. The defaults are the protocol's.

    `sources` holds the values of the settings that the rate sources declare.
    """

    feed: Address | None = _row(FEED, Address.parse, secret=True)
    verify_ssl: bool = _row("VERIFY_SSL", switch, default=True)
    providers: tuple[str, ...] = _row(PROVIDERS, some_of(*NAMES), ("frankfurter", "ecb"))
    cache_ttl: float = _row("RATEBRIDGE_CACHE_TTL", seconds, 7200.0)
    rate_deadline: float = _row("RATEBRIDGE_RATE_DEADLINE", seconds, 5.0)
    heartbeat_interval: float = _row("RATEBRIDGE_HEARTBEAT_INTERVAL", seconds, 1.0)
    heartbeat_timeout: float = _row("RATEBRIDGE_HEARTBEAT_TIMEOUT", seconds, 2.0)
    reconnect_min: float = _row(_MIN, seconds, 0.25)
    reconnect_max: float = _row(_MAX, seconds, 5.0)
    drain_timeout: float = _row("RATEBRIDGE_DRAIN_TIMEOUT", seconds_from_zero, 5.0)
    log_level: str = _row(
        "RATEBRIDGE_LOG_LEVEL", one_of("debug", "info", "warning", "error"), "info"
    )
    log_format: LogFormat = _row("RATEBRIDGE_LOG_FORMAT", one_of("auto", "console", "json"), "auto")
    status_address: tuple[str, int] | None = _row("RATEBRIDGE_STATUS_ADDRESS", host_port)
    status_hosts: tuple[str, ...] = _row("RATEBRIDGE_STATUS_HOSTS", host_names, ())
    audit_file: Path | None = _row("RATEBRIDGE_AUDIT_FILE", file)
    sources: Values = attrs.field(factory=Values)
    unknown: tuple[str, ...] = ()  # variables with our prefix that are not settings


_FIELDS: Final = {
    attribute.name: attribute.metadata["row"]
    for attribute in attrs.fields(Settings)
    if attribute.metadata
}


def rows() -> Iterator[Setting[Any]]:
    """Every setting: the service's own, then those of each source."""
    yield from _FIELDS.values()
    for name in NAMES:
        yield from provider(name).settings


def read_environment(environ: Mapping[str, str], dotenv: Path | None = DOTENV) -> dict[str, str]:
    """The environment on top of a `.env` file, if there is one. Empty values count as unset.

    Raises `BadSettings` if `dotenv` is not a text file of at most `MAX_DOTENV` bytes, or
    has lines that hold no setting: one left out would be another setting than was meant.
    """
    values, problems = _read(environ, dotenv)
    if problems:
        raise BadSettings(*problems)
    return values


def _read(environ: Mapping[str, str], dotenv: Path | None) -> tuple[dict[str, str], list[str]]:
    """The values, and a problem for each line of the file that holds no setting."""
    found: dict[str, str] = {}
    problems: list[str] = []
    if dotenv is not None and os.path.lexists(dotenv):
        # This import takes as long as the rest of the module.
        from dotenv.parser import parse_stream

        lines = list(parse_stream(StringIO(_read_dotenv(dotenv), newline=None)))
        wrong = [_number(line.original) for line in lines if line.error]
        problems = [f"{dotenv.name}: line {n}: expected NAME=value" for n in wrong]
        found = {line.key: line.value for line in lines if line.key and line.value is not None}
    values = {name: value for name, value in {**found, **environ}.items() if value.strip()}
    return values, problems


def _number(line: Any) -> int:
    """The number of a line in the file; dotenv counts from the blank lines before it."""
    blank, _, _ = line.string.partition(line.string.strip())
    return int(line.line + blank.count("\n"))


def _read_dotenv(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise BadSettings(f"{path.name}: expected a file, got something else")
        with path.open("rb") as file:
            content = file.read(MAX_DOTENV + 1)
    except OSError as error:
        raise BadSettings(
            f"{path.name}: expected a file that can be read ({error.strerror})"
        ) from None
    if len(content) > MAX_DOTENV:
        raise BadSettings(f"{path.name}: expected a text file of at most 1 MiB")
    with suppress(UnicodeDecodeError):
        text = content.decode("utf-8-sig")
        if "\0" not in text:  # no file name and no host can hold it; UTF-16 is full of it
            return text
    raise BadSettings(f"{path.name}: expected a text file in UTF-8")


def load_settings(values: Mapping[str, str] | None = None, *, need_feed: bool = True) -> Settings:
    """Make settings from names and values (None: those of the environment and `.env`).

    Raises `BadSettings` with every problem.
    """
    problems: list[str] = []
    if values is None:
        values, problems = _read(os.environ, DOTENV)
    read: dict[str, Any] = {}
    if need_feed and FEED not in values:
        problems.append(f"{FEED}: is required but not set")
    for row in rows():
        if row.name not in values:
            continue
        value = values[row.name].strip()
        try:
            read[row.name] = row.parse(value)
        except ValueError as expected:
            got = "" if row.secret else f", got {quoted(value)}"
            problems.append(f"{row.name}: expected {expected}{got}")
    lacking = {
        name: [row for row in provider(name).settings if row.required and row.name not in values]
        for name in NAMES
    }
    usable = [name for name in NAMES if not lacking[name]]
    for name in read.setdefault(PROVIDERS, tuple(usable[:USUAL_SOURCES])):
        problems += [
            f"{row.name}: is required but not set, as {name} is among the sources"
            for row in lacking[name]
        ]
    own = {field: read.pop(row.name) for field, row in _FIELDS.items() if row.name in read}
    settings = Settings(**own, sources=Values(read))
    if settings.reconnect_max < settings.reconnect_min:
        if "reconnect_max" in own:
            problems.append(f"{_MAX}: expected no less than {_MIN} ({settings.reconnect_min:g})")
        settings = attrs.evolve(settings, reconnect_max=settings.reconnect_min)
    names = {row.name for row in rows()}
    strange = sorted(
        clipped(name) for name in values if name.startswith("RATEBRIDGE_") and name not in names
    )
    if problems:
        raise BadSettings(*problems, *(f"{name}: is not a setting" for name in strange))
    return attrs.evolve(settings, unknown=tuple(strange))
