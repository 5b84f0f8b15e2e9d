"""The settings: the environment and `.env`, every problem reported, no secret printed."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from rate_bench import KEYED

from ratebridge.app import Dependencies, serve
from ratebridge.errors import BadSettings, FetchOutcome, LinkFailed, Loss, SourceFailed
from ratebridge.link.address import Address
from ratebridge.providers.registry import provider
from ratebridge.proxies import Proxy
from ratebridge.settings import (
    SOURCES,
    VARIABLES,
    Settings,
    Variable,
    load_settings,
    read_environment,
    resembled,
)

NO_HTTP: Any = None  # of a source that is never asked
SECRETS = [variable for variable in VARIABLES.values() if variable.secret]
FEED = {"CURRENCY_ASSIGNMENT_WS_URI": "ws://feed.example/stream"}


def test_the_defaults_are_the_documented_ones():
    """The others are those of `.env.example`, and of the README's table."""
    defaults = attrs.asdict(load_settings(FEED), recurse=False)
    documented = {
        "feed": Address("feed.example", 80, "/stream", secure=False),
        "verify_ssl": True,
        "providers": ("frankfurter", "ecb", "coinbase"),
        "plausibility": True,
        "cache_ttl": 7200,
        "rate_deadline": 5,
        "drain_timeout": 5,
        "heartbeat_interval": 1,
        "heartbeat_timeout": 2,
        "reconnect_min": 0.25,
        "reconnect_max": 5,
    }
    assert {name: defaults[name] for name in documented} == documented


def test_with_all_keys_all_sources_are_asked():
    assert load_settings({**FEED, **KEYED}).providers == SOURCES


def test_a_longer_first_wait_raises_the_longest():
    settings = load_settings({**FEED, "RATEBRIDGE_RECONNECT_MIN": "9"})
    assert (settings.reconnect_min, settings.reconnect_max) == (9.0, 9.0)


READ: list[tuple[str, str, Any]] = [
    ("feed", " wss://[::1]:9000/a?b=c ", Address("::1", 9000, "/a?b=c", secure=True)),
    ("feed_headers", "A: Bearer a:b\n\nX-T:  7 \n", ((b"A", b"Bearer a:b"), (b"X-T", b"7"))),
    ("feed_subprotocol", "bets.v2", "bets.v2"),
    ("feed_cert_file", "client.pem", Path("client.pem")),
    ("feed_key_file", "client.key", Path("client.key")),
    ("verify_ssl", "False", False),
    ("freecurrency_api_key", "k3y", "k3y"),
    ("freecurrency_api_url", "http://localhost:8080/v1/", "http://localhost:8080/v1"),
    ("frankfurter_url", "http://localhost:8081/v2", "http://localhost:8081/v2"),
    ("ecb_url", "http://localhost:8082", "http://localhost:8082"),
    ("coinbase_url", "http://localhost:8083", "http://localhost:8083"),
    ("coinbase_coins", "btc, ETH", ("BTC", "ETH")),
    ("providers", "ecb, Frankfurter", ("ecb", "frankfurter")),
    ("plausibility", "off", False),
    ("cache_ttl", "60", 60.0),
    ("rate_deadline", "2.5", 2.5),
    ("heartbeat_interval", "0.5", 0.5),
    ("heartbeat_timeout", "1.5", 1.5),
    ("reconnect_min", "0.1", 0.1),
    ("reconnect_max", "0.2", 0.2),
    ("drain_timeout", "0", 0.0),
    ("log_level", "DEBUG", "debug"),
    ("log_format", "json", "json"),
    ("status_address", "[::1]:8080", ("::1", 8080)),
    ("status_hosts", "Ratebridge, status.example", ("ratebridge", "status.example")),
    ("audit_file", "audit.jsonl", Path("audit.jsonl")),
]


def test_every_setting_is_read():
    values = {VARIABLES[field].name: text for field, text, _ in READ}
    assert set(values) == {variable.name for variable in VARIABLES.values()}
    assert load_settings(values) == Settings(**{field: value for field, _, value in READ})


WRONG = [
    ("CURRENCY_ASSIGNMENT_WS_URI", "http://feed", "ws://"),
    ("FREECURRENCY_API_KEY", "two words", "printable ASCII"),
    ("VERIFY_SSL", "maybe", "true or false"),
    ("FREECURRENCY_API_URL", "ftp://rates", "http://"),
    ("FREECURRENCY_API_URL", "http://rates/ v1", "http://"),
    ("FRANKFURTER_URL", "http://rates:0", "http://"),
    ("ECB_URL", "https://user@rates", "http://"),
    ("COINBASE_URL", "https://rates:port", "http://"),
    ("COINBASE_COINS", "USDT", "codes of three letters"),
    ("RATEBRIDGE_FEED_HEADERS", "no colon", "lines `Name: value`"),
    ("RATEBRIDGE_FEED_HEADERS", "a b: c", "lines `Name: value`"),
    ("RATEBRIDGE_FEED_HEADERS", "A: b\x7f", "printable ASCII"),
    ("RATEBRIDGE_FEED_HEADERS", "Sec-WebSocket-Key: h", "none of the handshake's own"),
    ("RATEBRIDGE_FEED_SUBPROTOCOL", "a, b", "the name of one subprotocol"),
    ("RATEBRIDGE_PROVIDERS", "ecb,ecb", "a list"),
    ("RATEBRIDGE_PROVIDERS", "bank", "a list"),
    ("RATEBRIDGE_CACHE_TTL", "two hours", "seconds above 0"),
    ("RATEBRIDGE_RATE_DEADLINE", "0", "seconds above 0"),
    ("RATEBRIDGE_HEARTBEAT_INTERVAL", "-1", "seconds above 0"),
    ("RATEBRIDGE_HEARTBEAT_TIMEOUT", "nan", "seconds above 0"),
    ("RATEBRIDGE_RECONNECT_MIN", "inf", "seconds above 0"),
    ("RATEBRIDGE_RECONNECT_MAX", "0.1", "no less than RATEBRIDGE_RECONNECT_MIN (0.25)"),
    ("RATEBRIDGE_DRAIN_TIMEOUT", "-0.1", "a number of seconds"),
    ("RATEBRIDGE_LOG_LEVEL", "loud", "one of debug, info, warning, error"),
    ("RATEBRIDGE_LOG_FORMAT", "xml", "one of auto, console, json"),
    ("RATEBRIDGE_STATUS_ADDRESS", "8080", "host:port"),
    ("RATEBRIDGE_STATUS_ADDRESS", "localhost:70000", "host:port"),
    ("RATEBRIDGE_STATUS_HOSTS", "status.example:8080", "without ports"),
    ("RATEBRIDGE_AUDIT_FILE", "/no/such/folder/audit.jsonl", "a file in a directory"),
    ("RATEBRIDGE_AUDIT_FILE", f"{'a' * 300}/audit.jsonl", "a file in a directory"),
]


def problems_of(values: dict[str, str] | None) -> tuple[str, ...]:
    with pytest.raises(BadSettings) as caught:
        load_settings(values)
    return caught.value.args


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_value_is_named_with_what_was_expected(name, value, expected):
    [problem] = problems_of({**FEED, name: value})
    assert expected in problem
    assert problem.startswith(f"{name}: expected ")


def test_what_a_source_requires_is_required_where_it_is_among_the_providers():
    assert problems_of({**FEED, "RATEBRIDGE_PROVIDERS": "ecb,freecurrencyapi"}) == (
        "FREECURRENCY_API_KEY: is required but not set, as freecurrencyapi is among the sources",
    )


def test_every_problem_is_reported_together():
    names = ("VERIFY_SSL", "RATEBRIDGE_CACHE_TTL", "RATEBRIDGE_LOG_LEVEL")
    values = dict.fromkeys(names, "?") | {"HTTPS_PROXY": "gopher://127.0.0.1:1"}
    told = [problem.partition(":")[0] for problem in problems_of(values)]
    assert told == ["CURRENCY_ASSIGNMENT_WS_URI", *names, "HTTPS_PROXY"]


def test_a_command_without_a_feed_needs_none():
    assert load_settings({}, need_feed=False).feed is None


@pytest.mark.parametrize(
    ("name", "resembles"),
    [
        ("RATEBRIDGE_CACHETTL", "RATEBRIDGE_CACHE_TTL"),
        ("RATEBRIDGE_QUITE_ANOTHER_THING", None),
        ("FREECURENCY_API_KEY", "FREECURRENCY_API_KEY"),
        ("FREECURRENCY_API_KEY_FIL", "FREECURRENCY_API_KEY_FILE"),
        ("FRANKFURTER_CALL", "FRANKFURTER_URL"),
    ],
)
def test_a_variable_that_is_nearly_a_setting_is_noted_with_the_one_it_resembles(name, resembles):
    assert load_settings({**FEED, name: "1"}).unknown == (name,)
    assert resembled(name) == resembles
    hint = f" ({resembles} is one)" if resembles else ""
    assert problems_of({name: "1"}) == (
        "CURRENCY_ASSIGNMENT_WS_URI: is required but not set",
        f"{name}: is not a setting{hint}",
    )


@pytest.mark.parametrize(
    "name",
    [
        *("RATEBRIDGE_SERVICE_HOST", "RATEBRIDGE_SERVICE_PORT", "RATEBRIDGE_SERVICE_PORT_STATUS"),
        *("RATEBRIDGE_PORT", "RATEBRIDGE_PORT_8766_TCP", "RATEBRIDGE_PORT_8766_TCP_ADDR"),
        *("RATEBRIDGE_STATUS_SERVICE_HOST", "RATEBRIDGE_STATUS_PORT"),
        *("HOME", "DATABASE_URL", "PIP_VERIFY_SSL", "FEED", "COINBASE_API_KEY", "EDITOR"),
    ],
)
def test_the_variables_of_kubernetes_and_of_others_are_not_noted(name):
    assert load_settings({**FEED, name: "tcp://10.0.0.1:80"}).unknown == ()


SECRET = "s3cr3t"
SHAPES = (
    *("{0}", "{0} {0}", "http://{0}", "http://h/{0}", "http://{0}@h", "http://h:{0}/"),
    *("http://[{0}", "ws://h/{0}", "ws://h/?{0}", "ws://{0}@h", "ws://h:{0}", "ws://[{0}/"),
    "{0}:1",
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret.name)
def test_no_value_of_a_secret_setting_is_ever_printed(secret, shape):
    """Whichever it is, good or bad, however its source uses it."""
    values = {**FEED, "FREECURRENCY_API_KEY": "k3y"}
    try:
        settings = load_settings({**values, secret.name: shape.format(SECRET)})
    except BadSettings as bad:
        shown = f"{bad} {bad!r}"
    else:
        sources = [provider(name).make(NO_HTTP, settings) for name in SOURCES]
        shown = f"{settings} {settings!r} {sources}"
    assert SECRET not in shown


async def test_no_secret_is_logged_by_a_service_that_can_reach_nothing(autojump_clock, caplog):
    """From its start to its stop, with every secret there is in every setting that takes one."""

    class Unreachable:
        async def get(self, url, params, headers=None):
            raise SourceFailed(FetchOutcome.UNREACHABLE, "could not be reached")

    async def dial():
        raise LinkFailed(Loss.REFUSED, "connection refused")

    values = {variable.name: good_text(variable) for variable in SECRETS}
    settings = load_settings(values)
    sources = [provider(name).make(Unreachable(), settings) for name in SOURCES]
    stop = trio.Event()
    caplog.set_level("DEBUG")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, settings, stop, Dependencies(dial, sources))
        await trio.sleep(2)
        stop.set()
    events = {record.__dict__.get("event") for record in caplog.records}
    assert {"service.started", "connection.failed", "service.stopped"} <= events
    assert SECRET not in str([vars(record) for record in caplog.records])


def good_text(variable: Variable) -> str:
    """A good value that holds the secret."""
    for shape in (*SHAPES, "X-Token: {0}"):
        text = shape.format(f"h/{SECRET}")
        with suppress(ValueError):
            variable.parse(text)
            return text
    raise AssertionError(variable)


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret.name)
def test_a_secret_may_stand_in_a_file(secret, tmp_path):
    text = good_text(secret)
    file = tmp_path / "secret"
    file.write_text(f"{text}\n")
    in_file = {f"{secret.name}_FILE": str(file)}
    needed = {} if secret.name in FEED else FEED
    assert load_settings({**needed, **in_file}) == load_settings({**needed, secret.name: text})
    assert problems_of({**FEED, secret.name: text, **in_file}) == (
        f"{secret.name}, {secret.name}_FILE: expected one of them, got both",
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "a file that can be read (No such file or directory)"),
        (b"k\xff", "a text file in UTF-8"),
        (b"", "printable ASCII without spaces"),
        (b"k3y\n\n", "printable ASCII without spaces"),
    ],
)
def test_a_file_without_a_secret_is_a_problem(content, problem, tmp_path):
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    assert problems_of({**FEED, "FREECURRENCY_API_KEY_FILE": str(file)}) == (
        f"FREECURRENCY_API_KEY_FILE: expected {problem}",
    )


def test_values_that_contradict_each_other_are_a_problem():
    feed = {"CURRENCY_ASSIGNMENT_WS_URI": "wss://user:pass@feed"}
    headers = {"RATEBRIDGE_FEED_HEADERS": "authorization: Bearer x"}
    found = problems_of({**feed, **headers, "RATEBRIDGE_FEED_KEY_FILE": "k"})
    assert [problem.partition(": ")[2] for problem in found] == [
        "expected a user and password in one of them",
        "expected RATEBRIDGE_FEED_CERT_FILE beside it",
    ]


DOTENV = """
# a comment
export CURRENCY_ASSIGNMENT_WS_URI=ws://feed.example  # behind a value

FREECURRENCY_API_KEY="a#b${HOME}"
VERIFY_SSL="false"
RATEBRIDGE_LOG_LEVEL=
FRANKFURTER_URL
"""


def test_the_proxies_of_the_environment_come_before_those_of_a_dotenv_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "first.test:1")
    (tmp_path / "other.env").write_text("HTTPS_PROXY=second.test:1\nHTTP_PROXY=third.test:1\n")
    proxies = load_settings(need_feed=False, env_file=tmp_path / "other.env").proxies
    assert proxies.find("wss", "feed.test", 443) == Proxy("http", "first.test", 1)
    assert proxies.find("ws", "feed.test", 80) == Proxy("http", "third.test", 1)
    assert Settings().proxies.find("ws", "feed.test", 80) is None


def test_a_dotenv_file_may_hold_exports_comments_quotes_and_blanks(tmp_path):
    file = tmp_path / ".env"
    file.write_text(DOTENV, "utf-8-sig")  # with a byte order mark, as Windows writes it
    values = {
        "CURRENCY_ASSIGNMENT_WS_URI": "ws://feed.example",
        "FREECURRENCY_API_KEY": "a#b${HOME}",
        "VERIFY_SSL": "false",
    }
    assert read_environment({}, file) == (values, [])


def test_the_environment_wins_over_dotenv_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_environment({"A": "b"}) == ({"A": "b"}, [])
    (tmp_path / ".env").write_text("A=c\nB=d")
    assert read_environment({"A": "b"}) == ({"A": "b", "B": "d"}, [])
    _, [problem] = read_environment({}, tmp_path / "other.env")
    assert problem == "other.env: expected a file that can be read (No such file or directory)"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda file: file.write_bytes(b"RATEBRIDGE_AUDIT_FILE=a\0b"), "a text file in UTF-8"),
        (lambda file: file.symlink_to("x"), "a file that can be read (No such file or directory)"),
    ],
    ids=["a null", "a dead link"],
)
def test_a_bad_dotenv_file_is_reported_with_all_other_problems(
    make, problem, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATEBRIDGE_CACHE_TTL", "-1")
    make(tmp_path / ".env")
    assert problems_of(None) == (
        f".env: expected {problem}",
        "CURRENCY_ASSIGNMENT_WS_URI: is required but not set",
        "RATEBRIDGE_CACHE_TTL: expected a number of seconds above 0, got '-1'",
    )


def test_each_line_of_a_dotenv_file_that_holds_no_setting_is_reported(tmp_path, caplog):
    """Such as a quote without its end: the key would be missing, and another source asked."""
    file = tmp_path / ".env"
    file.write_bytes(f"VERIFY_SSL=true\r\n{SECRET} is here\r\n\r\nKEY='{SECRET}\r\nA=b\n".encode())
    values, problems = read_environment({}, file)
    assert values["VERIFY_SSL"] == "true"
    assert problems == [".env: line 2: expected NAME=value", ".env: line 4: expected NAME=value"]
    assert not caplog.records
