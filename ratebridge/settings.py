"""The settings: read from the environment and a `.env` file, and checked together."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import attrs
from dotenv.parser import parse_stream

from .errors import BadSettings
from .link.address import Address
from .link.upgrade import parse_headers, parse_subprotocol
from .messages import clipped, is_currency, quoted
from .parsers import base_url, file, host_port, key, one_of, seconds, some_of, switch
from .proxies import Proxies

T = TypeVar("T")

FEED: Final = "CURRENCY_ASSIGNMENT_WS_URI"
PROVIDERS: Final = "RATEBRIDGE_PROVIDERS"

SOURCES: Final = ("freecurrencyapi", "frankfurter", "ecb", "coinbase")
"""The rate sources, in the default order of failover; `providers/NAME.py` is the rest of one."""

KEYS: Final = {"freecurrencyapi": "freecurrency_api_key"}
"""The sources that need a key, and the field that holds it."""

DOTENV: Final = Path(".env")

LogFormat = Literal["auto", "console", "json"]
LEVELS: Final = ("debug", "info", "warning", "error")


@attrs.frozen
class Variable:
    """The environment variable that a field of `Settings` is read from.

    `parse` makes the value of the text, or raises ValueError with what it expects. `default`
    and `meaning` are for people, in one line of Markdown: `--help`, README and a test share
    them. The value of a `secret` is never shown, and may stand in the file that `NAME_FILE`
    names.
    """

    name: str
    parse: Callable[[str], Any]
    default: str
    meaning: str
    secret: bool


def setting(
    parse: Callable[[str], T],
    default: T,
    meaning: str,
    *,
    shown: str | None = None,
    secret: bool = False,
) -> T:
    """A field of `Settings`, in the type of its default; see `Variable` for the arguments.

    `shown` is how the default is told to people, where its own text does not tell it. For a
    type checker the result is the default: one of another type than the field's is an error.
    """
    text = ",".join(default) if isinstance(default, tuple) else str(default or "")
    if isinstance(default, float):
        text = f"{default:g}"
    usual = f"`{text.lower() if default is True else text}`" if text else "none"
    row = Variable("", parse, shown or usual, meaning, secret)
    return attrs.field(default=default, repr=not secret, metadata={"variable": row})


def url(default: str, meaning: str) -> str:
    """A field for a base URL, which is a secret, as it may hold one."""
    return setting(base_url, default, meaning, secret=True)


@attrs.frozen
class Settings:
    """Everything an operator can set; times are in seconds, certificates are files in PEM.

    Without `providers` all sources are asked, in the order of `SOURCES`, except those
    whose key is not set. Without `proxies` they are those that the environment names; raises
    `BadSettings` if one of them is none.
    """

    feed: Address | None = setting(
        Address.parse, None, "the feed, `ws://` or `wss://`", shown="required", secret=True
    )
    feed_headers: tuple[tuple[bytes, bytes], ...] = setting(
        parse_headers, (), "lines `Name: value`, sent to the feed with each upgrade", secret=True
    )
    feed_subprotocol: str | None = setting(
        parse_subprotocol, None, "the websocket subprotocol that is offered to the feed"
    )
    feed_cert_file: Path | None = setting(file, None, "a client certificate for the feed, PEM")
    feed_key_file: Path | None = setting(file, None, "its key, unless that is in the same file")
    verify_ssl: bool = setting(switch, True, "`false` leaves all peers' certificates unchecked")
    freecurrency_api_key: str = setting(
        key, "", "required when `freecurrencyapi` is among the sources", secret=True
    )
    freecurrency_api_url: str = url("https://api.freecurrencyapi.com/v1", "base URL, for a cache")
    frankfurter_url: str = url("https://api.frankfurter.dev/v2", "base URL, for a self-hosted one")
    ecb_url: str = url("https://www.ecb.europa.eu/stats/eurofxref", "base URL of the ECB's files")
    coinbase_url: str = url("https://api.exchange.coinbase.com", "base URL of Coinbase Exchange")
    coinbase_coins: tuple[str, ...] = setting(
        some_of("codes of three letters", is_currency, str.upper),  # those of the wire have three
        ("BTC",),
        "the coins asked of it, codes separated by commas",
    )
    providers: tuple[str, ...] = setting(
        some_of(", ".join(SOURCES), SOURCES.__contains__),
        attrs.Factory(
            lambda own: tuple(s for s in SOURCES if s not in KEYS or getattr(own, KEYS[s])),
            takes_self=True,
        ),
        "the sources in the order of trying",
        shown=f"`{','.join(SOURCES)}`, but those whose key is not set",
    )
    plausibility: bool = setting(switch, True, "`off` uses implausible quotes, too", shown="`on`")
    cache_ttl: float = setting(seconds, 7200.0, "seconds for which rates are cached")
    rate_deadline: float = setting(seconds, 5.0, "seconds for one rate, failover included")
    heartbeat_interval: float = setting(seconds, 1.0, "seconds between heartbeats sent")
    heartbeat_timeout: float = setting(seconds, 2.0, "seconds without one until it reconnects")
    reconnect_min: float = setting(seconds, 0.25, "seconds, the first bound of a reconnect's wait")
    reconnect_max: float = setting(
        seconds,
        attrs.Factory(lambda own: max(5.0, own.reconnect_min), takes_self=True),
        "seconds, the last one; 401, 403, 407 and Retry-After wait longer",
        shown="`5`",
    )
    drain_timeout: float = setting(
        partial(seconds, zero=True), 5.0, "seconds for what is under way at a stop"
    )
    log_level: str = setting(one_of(*LEVELS), "info", "`debug`, `info`, `warning` or `error`")
    log_format: LogFormat = setting(
        one_of("auto", "console", "json"), "auto", "`auto`: `console` on a terminal, else `json`"
    )
    status_address: tuple[str, int] | None = setting(
        host_port, None, "`host:port` of the status server"
    )
    status_hosts: tuple[str, ...] = setting(
        some_of("host names without ports", re.compile(r"[a-z0-9._-]+").fullmatch),
        (),
        "its further host names, beside `localhost` and all IP addresses",
    )
    audit_file: Path | None = setting(file, None, "the file for a JSON line per conversion")
    proxies: Proxies = attrs.Factory(lambda: Proxies.read(os.environ))
    unknown: tuple[str, ...] = ()  # variables that are nearly settings


def variable_name(field: str) -> str:
    """The variable of a field: in capitals, behind `RATEBRIDGE_` unless it is about a peer."""
    if field == "feed":
        return FEED
    bare = field.startswith(("verify_", "freecurrency_", "frankfurter_", "ecb_", "coinbase_"))
    return field.upper() if bare else f"RATEBRIDGE_{field.upper()}"


VARIABLES: Final[Mapping[str, Variable]] = {
    field.name: attrs.evolve(row, name=variable_name(field.name))
    for field in attrs.fields(Settings)
    if (row := field.metadata.get("variable")) is not None
}
"""The variable of each field that has one."""

_SECRETS: Final = {v.name for v in VARIABLES.values() if v.secret}
_KNOWN: Final = {v.name for v in VARIABLES.values()} | {f"{name}_FILE" for name in _SECRETS}

# What Kubernetes sets for each service of a namespace, here for those named as we are.
_KUBERNETES: Final = re.compile(
    r"RATEBRIDGE(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)=.*"
    r"|RATEBRIDGE(_\w+)?_PORT=[a-z]+://.*"
)


def resembled(name: str) -> str | None:
    """The setting that a variable's name resembles, as a misspelt one does; None without one.

    One begins with the same letter, and has most of the others in the same order.
    """
    alike = [known for known in _KNOWN if known[0] == name[:1] and known != name]
    return next(iter(get_close_matches(name, alike, 1, 0.8)), None)


def read_environment(
    environ: Mapping[str, str], env_file: Path | None = None
) -> tuple[dict[str, str], list[str]]:
    """The environment on top of a file of `NAME=value` lines, blank values left out.

    Without `env_file` that is `.env`, if there is one. A line with a name alone leaves that to
    the environment, as podman and docker read it. Returns the values, and a problem for
    a file that cannot be read and for each line that holds no setting: one left out would be
    another setting than was meant.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    path = env_file or DOTENV
    if env_file is not None or os.path.lexists(path):
        try:
            text = read_text(path)
        except ValueError as expected:
            problems.append(f"{path.name}: expected {expected}")
            text = ""
        for line in parse_stream(StringIO(text, newline=None)):
            if line.error:  # its number is counted from the blank lines before it
                blank, _, _ = line.original.string.partition(line.original.string.strip())
                number = line.original.line + blank.count("\n")
                problems.append(f"{path.name}: line {number}: expected NAME=value")
            elif line.key and line.value is not None:
                found[line.key] = line.value
    return {name: value for name, value in {**found, **environ}.items() if value.strip()}, problems


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises ValueError with what was expected.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"a file that can be read ({error.strerror})") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # no name of a file or a host holds it; UTF-16 is full of it
        raise ValueError("a text file in UTF-8")
    return text


def load_settings(
    values: Mapping[str, str] | None = None,
    *,
    need_feed: bool = True,
    env_file: Path | None = None,
    overrides: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Make settings from names and values (None: those of the environment and an env file).

    The text of a secret may stand in the file that `NAME_FILE` names instead. `env_file` is
    as for `read_environment`; `overrides` win over everything. Raises `BadSettings` with
    every problem.
    """
    problems: list[str] = []
    if values is None:
        values, problems = read_environment(os.environ, env_file)
    values = {**values, **overrides}
    read: dict[str, Any] = {}
    for field, variable in VARIABLES.items():
        name, in_file = variable.name, f"{variable.name}_FILE"
        from_file = variable.secret and in_file in values
        if from_file and name in values:
            problems.append(f"{name}, {in_file}: expected one of them, got both")
            continue
        name = in_file if from_file else name
        if name not in values:
            if need_feed and name == FEED:
                problems.append(f"{FEED}: is required but not set")
            continue
        text = values[name].strip()
        try:
            text = read_text(Path(text)).removesuffix("\n") if from_file else text
            read[field] = variable.parse(text)
        except ValueError as expected:
            got = "" if variable.secret else f", got {quoted(text)}"
            problems.append(f"{name}: expected {expected}{got}")
    try:
        read["proxies"] = Proxies.read(values)
    except BadSettings as found:
        problems += found.args
        read["proxies"] = Proxies()
    settings = Settings(**read)
    problems += contradictions(settings, values)
    unknown = [
        name
        for name in sorted(set(values) - _KNOWN)
        if not _KUBERNETES.fullmatch(f"{name}={values[name]}")
        and (name.startswith("RATEBRIDGE_") or resembled(name))
    ]
    if problems:
        raise BadSettings(*problems, *map(unknown_in_words, unknown))
    return attrs.evolve(settings, unknown=tuple(unknown))


def contradictions(settings: Settings, values: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the settings together, a line each.

    `values` has all that is set: what is there and was refused is one problem and not two.
    """
    for source, field in KEYS.items():
        name = variable_name(field)
        if source in settings.providers and not {name, f"{name}_FILE"} & set(values):
            yield f"{name}: is required but not set, as {source} is among the sources"
    names = {name.lower() for name, _ in settings.feed_headers}
    if settings.feed is not None and settings.feed.authorization and b"authorization" in names:
        yield f"{FEED}, RATEBRIDGE_FEED_HEADERS: expected a user and password in one of them"
    if settings.feed_key_file is not None and "RATEBRIDGE_FEED_CERT_FILE" not in values:
        yield "RATEBRIDGE_FEED_KEY_FILE: expected RATEBRIDGE_FEED_CERT_FILE beside it"
    if settings.reconnect_max < settings.reconnect_min:
        least = f"RATEBRIDGE_RECONNECT_MIN ({settings.reconnect_min:g})"
        yield f"RATEBRIDGE_RECONNECT_MAX: expected no less than {least}"


def unknown_in_words(name: str) -> str:
    """A line about a variable that is not a setting."""
    other = resembled(name)
    return f"{clipped(name)}: is not a setting" + (f" ({other} is one)" if other else "")
