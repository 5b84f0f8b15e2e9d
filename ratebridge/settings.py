"""The settings: read from the environment and a `.env` file, and checked together."""

# ruff: noqa: RUF009 - `setting` makes a field of attrs

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import attrs
from dotenv.parser import parse_stream

from .errors import BadSettings
from .link.address import Address
from .link.upgrade import parse_headers, parse_subprotocol
from .messages import clipped, quoted
from .parsers import (
    base_url,
    coins,
    file,
    host_names,
    host_port,
    key,
    one_of,
    seconds,
    seconds_from_zero,
    some_of,
    switch,
)
from .providers.registry import NAMES

T = TypeVar("T")

FEED: Final = "CURRENCY_ASSIGNMENT_WS_URI"
PROVIDERS: Final = "RATEBRIDGE_PROVIDERS"

DOTENV: Final = Path(".env")
MAX_DOTENV: Final = 1024 * 1024  # bytes; a larger file does not hold settings

LogFormat = Literal["auto", "console", "json"]


@attrs.frozen
class Variable:
    """The environment variable that a field of `Settings` is read from.

    `default` and `meaning` are for people; the meaning is one line of Markdown. The value
    of a `secret` is never shown. `required_by` is the source that cannot do without it.
    """

    name: str
    parse: Callable[[str], Any]
    default: str
    meaning: str
    secret: bool
    required_by: str | None


def setting(
    name: str,
    parse: Callable[[str], T],
    default: T,
    meaning: str,
    *,
    shown: str | None = None,
    secret: bool = False,
    required_by: str | None = None,
) -> T:
    """A field of `Settings`, in the type of its default; see `Variable` for the arguments.

    `shown` is how the default is told to people, where its own text does not tell it.
    """
    variable = Variable(name, parse, shown or _spelled(default), meaning, secret, required_by)
    return attrs.field(default=default, repr=not secret, metadata={"variable": variable})


def _spelled(value: object) -> str:
    """A default as it would stand in the environment."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple():
            return ",".join(value) or "none"
        case _:
            return str(value or "none")


@attrs.frozen
class Settings:
    """Everything an operator can set; times are in seconds, certificates are files in PEM.

    Each field has the environment variable beside it. Without `providers` all sources are
    asked, in the order of their registry, except those whose key is not set.
    """

    feed: Address | None = setting(
        FEED, Address.parse, None, "the feed, `ws://` or `wss://`", shown="required", secret=True
    )
    feed_headers: tuple[tuple[bytes, bytes], ...] = setting(
        "RATEBRIDGE_FEED_HEADERS",
        parse_headers,
        (),
        "lines `Name: value`, sent to the feed with each upgrade",
        secret=True,
    )
    feed_subprotocol: str | None = setting(
        "RATEBRIDGE_FEED_SUBPROTOCOL",
        parse_subprotocol,
        None,
        "the websocket subprotocol that is offered to the feed",
    )
    feed_cert_file: Path | None = setting(
        "RATEBRIDGE_FEED_CERT_FILE", file, None, "a client certificate for the feed, PEM"
    )
    feed_key_file: Path | None = setting(
        "RATEBRIDGE_FEED_KEY_FILE",
        file,
        None,
        "the key of that certificate, unless it stands in the same file",
    )
    verify_ssl: bool = setting(
        "VERIFY_SSL",
        switch,
        True,
        "whether the certificates of feed and sources are checked; `false` is logged as a warning",
    )
    freecurrency_api_key: str = setting(
        "FREECURRENCY_API_KEY",
        key,
        "",
        "required when `freecurrencyapi` is among the sources",
        secret=True,
        required_by="freecurrencyapi",
    )
    freecurrency_api_url: str = setting(
        "FREECURRENCY_API_URL",
        base_url,
        "https://api.freecurrencyapi.com/v1",
        "its base URL, for a mirror or a cache",
        secret=True,
    )
    frankfurter_url: str = setting(
        "FRANKFURTER_URL",
        base_url,
        "https://api.frankfurter.dev/v2",
        "its base URL, for a self-hosted one",
        secret=True,
    )
    ecb_url: str = setting(
        "ECB_URL",
        base_url,
        "https://www.ecb.europa.eu/stats/eurofxref",
        "the base URL of the ECB's files",
        secret=True,
    )
    coinbase_url: str = setting(
        "COINBASE_URL",
        base_url,
        "https://api.exchange.coinbase.com",
        "the base URL of Coinbase's exchange",
        secret=True,
    )
    coinbase_coins: tuple[str, ...] = setting(
        "COINBASE_COINS", coins, ("BTC",), "the coins asked of it, codes separated by commas"
    )
    providers: tuple[str, ...] = setting(
        PROVIDERS,
        some_of(*NAMES),
        attrs.Factory(lambda self: usable_sources(self.freecurrency_api_key), takes_self=True),
        "the sources in the order of trying",
        shown=f"{','.join(NAMES)}; without a key all but the first",
    )
    plausibility: bool = setting(
        "RATEBRIDGE_PLAUSIBILITY",
        switch,
        True,
        "`off` uses quotes that cannot be true, too",
        shown="on",
    )
    cache_ttl: float = setting(
        "RATEBRIDGE_CACHE_TTL", seconds, 7200.0, "seconds for which a table of rates is cached"
    )
    rate_deadline: float = setting(
        "RATEBRIDGE_RATE_DEADLINE",
        seconds,
        5.0,
        "seconds for one rate, retries and failover included; then the reply is an error",
    )
    heartbeat_interval: float = setting(
        "RATEBRIDGE_HEARTBEAT_INTERVAL", seconds, 1.0, "seconds between heartbeats sent"
    )
    heartbeat_timeout: float = setting(
        "RATEBRIDGE_HEARTBEAT_TIMEOUT",
        seconds,
        2.0,
        "seconds without a heartbeat received until it reconnects",
    )
    reconnect_min: float = setting(
        "RATEBRIDGE_RECONNECT_MIN", seconds, 0.25, "seconds, the least wait before a reconnect"
    )
    reconnect_max: float = setting(
        "RATEBRIDGE_RECONNECT_MAX", seconds, 5.0, "seconds, the longest wait before a reconnect"
    )
    drain_timeout: float = setting(
        "RATEBRIDGE_DRAIN_TIMEOUT",
        seconds_from_zero,
        5.0,
        "seconds for the requests in flight at a stop",
    )
    log_level: str = setting(
        "RATEBRIDGE_LOG_LEVEL",
        one_of("debug", "info", "warning", "error"),
        "info",
        "`debug`, `info`, `warning` or `error`",
    )
    log_format: LogFormat = setting(
        "RATEBRIDGE_LOG_FORMAT",
        one_of("auto", "console", "json"),
        "auto",
        "`console`, `json`, or `auto`: console on a terminal, JSON otherwise",
    )
    status_address: tuple[str, int] | None = setting(
        "RATEBRIDGE_STATUS_ADDRESS", host_port, None, "`host:port` of the status server"
    )
    status_hosts: tuple[str, ...] = setting(
        "RATEBRIDGE_STATUS_HOSTS",
        host_names,
        (),
        "further host names of the status server, separated by commas; any IP address, "
        "`localhost` and the host of its address always work",
    )
    audit_file: Path | None = setting(
        "RATEBRIDGE_AUDIT_FILE", file, None, "the file for a JSON line per conversion"
    )
    unknown: tuple[str, ...] = ()  # variables with our prefix that are not settings


VARIABLES: Final[Mapping[str, Variable]] = {
    field.name: field.metadata["variable"] for field in attrs.fields(Settings) if field.metadata
}
"""The variable of each field that has one."""


def usable_sources(key: str) -> tuple[str, ...]:
    """The sources in the order of trying: all, if there is a key, else those that need none."""
    needy = {variable.required_by for variable in VARIABLES.values()}
    return tuple(name for name in NAMES if key or name not in needy)


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
    for field, variable in VARIABLES.items():
        if variable.name not in values:
            continue
        value = values[variable.name].strip()
        try:
            read[field] = variable.parse(value)
        except ValueError as expected:
            got = "" if variable.secret else f", got {quoted(value)}"
            problems.append(f"{variable.name}: expected {expected}{got}")
    settings = Settings(**read)
    problems += [
        f"{variable.name}: is required but not set, as {variable.required_by} is among the sources"
        for variable in VARIABLES.values()
        if variable.required_by in settings.providers and variable.name not in values
    ]
    if settings.reconnect_max < settings.reconnect_min:
        least, most = VARIABLES["reconnect_min"].name, VARIABLES["reconnect_max"].name
        if "reconnect_max" in read:
            problems.append(f"{most}: expected no less than {least} ({settings.reconnect_min:g})")
        settings = attrs.evolve(settings, reconnect_max=settings.reconnect_min)
    names = {variable.name for variable in VARIABLES.values()}
    strange = sorted(
        clipped(name) for name in values if name.startswith("RATEBRIDGE_") and name not in names
    )
    if problems:
        raise BadSettings(*problems, *(f"{name}: is not a setting" for name in strange))
    return attrs.evolve(settings, unknown=tuple(strange))
