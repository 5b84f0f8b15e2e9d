"""The settings: the environment and `.env`, every fault told at once, and no secret told at all."""

from pathlib import Path

import attrs
import pytest

from ratebridge.errors import BadSettings
from ratebridge.link.address import Address
from ratebridge.settings import Secret, Settings, load_settings, read_environment

FEED = {"CURRENCY_ASSIGNMENT_WS_URI": "ws://feed.example/stream"}


def test_the_defaults_are_those_of_the_protocol():
    assert load_settings(FEED) == Settings(
        feed=Address("feed.example", 80, "/stream", secure=False),
        key=None,
        verify_ssl=True,
        freecurrencyapi_url="https://api.freecurrencyapi.com/v1",
        frankfurter_url="https://api.frankfurter.dev/v2",
        providers=("frankfurter",),
        cache_ttl=7200,
        rate_deadline=5,
        heartbeat_interval=1,
        heartbeat_timeout=2,
        reconnect_min=0.25,
        reconnect_max=5,
        drain_timeout=5,
        log_level="info",
        log_format="auto",
        status_address=None,
        status_hosts=(),
        audit_file=None,
    )


def test_a_key_puts_freecurrencyapi_first():
    settings = load_settings({**FEED, "FREECURRENCY_API_KEY": "k3y"})
    assert settings.providers == ("freecurrencyapi", "frankfurter")
    assert settings.key is not None
    assert settings.key.reveal() == "k3y"


def test_a_longer_first_wait_raises_the_longest():
    settings = load_settings({**FEED, "RATEBRIDGE_RECONNECT_MIN": "9"})
    assert (settings.reconnect_min, settings.reconnect_max) == (9.0, 9.0)


def test_every_setting_is_read(tmp_path):
    audit = tmp_path / "audit.jsonl"
    settings = load_settings(
        {
            "CURRENCY_ASSIGNMENT_WS_URI": " wss://[::1]:9000/a?b=c ",
            "FREECURRENCY_API_KEY": "k3y",
            "VERIFY_SSL": "False",
            "FREECURRENCY_API_URL": "http://localhost:8080/v1/",
            "FRANKFURTER_URL": "http://localhost:8081/v2",
            "RATEBRIDGE_PROVIDERS": "ecb, Frankfurter",
            "RATEBRIDGE_CACHE_TTL": "60",
            "RATEBRIDGE_RATE_DEADLINE": "2.5",
            "RATEBRIDGE_HEARTBEAT_INTERVAL": "0.5",
            "RATEBRIDGE_HEARTBEAT_TIMEOUT": "1.5",
            "RATEBRIDGE_RECONNECT_MIN": "0.1",
            "RATEBRIDGE_RECONNECT_MAX": "0.2",
            "RATEBRIDGE_DRAIN_TIMEOUT": "0",
            "RATEBRIDGE_LOG_LEVEL": "DEBUG",
            "RATEBRIDGE_LOG_FORMAT": "json",
            "RATEBRIDGE_STATUS_ADDRESS": "[::1]:8080",
            "RATEBRIDGE_STATUS_HOSTS": "Ratebridge, status.example",
            "RATEBRIDGE_AUDIT_FILE": str(audit),
        }
    )
    assert settings == Settings(
        feed=Address("::1", 9000, "/a?b=c", secure=True),
        key=settings.key,
        verify_ssl=False,
        freecurrencyapi_url="http://localhost:8080/v1",
        frankfurter_url="http://localhost:8081/v2",
        providers=("ecb", "frankfurter"),
        cache_ttl=60,
        rate_deadline=2.5,
        heartbeat_interval=0.5,
        heartbeat_timeout=1.5,
        reconnect_min=0.1,
        reconnect_max=0.2,
        drain_timeout=0,
        log_level="debug",
        log_format="json",
        status_address=("::1", 8080),
        status_hosts=("ratebridge", "status.example"),
        audit_file=audit,
    )


@attrs.frozen
class Wrong:
    name: str
    value: str
    expected: str


WRONG = [
    Wrong("CURRENCY_ASSIGNMENT_WS_URI", "http://feed", "ws://"),
    Wrong("CURRENCY_ASSIGNMENT_WS_URI", "ws://user:pass@feed", "without user"),
    Wrong("CURRENCY_ASSIGNMENT_WS_URI", "ws://feed/#part", "without a fragment"),
    Wrong("CURRENCY_ASSIGNMENT_WS_URI", "ws://feed:99999", "valid host and port"),
    Wrong("CURRENCY_ASSIGNMENT_WS_URI", "ws://", "with a host"),
    Wrong("CURRENCY_ASSIGNMENT_WS_URI", f"ws://{'a' * 64}.example", "valid host"),
    Wrong("CURRENCY_ASSIGNMENT_WS_URI", "ws://feed/a b", "without spaces"),
    Wrong("FREECURRENCY_API_KEY", "two words", "printable ASCII"),
    Wrong("VERIFY_SSL", "maybe", "true or false"),
    Wrong("FREECURRENCY_API_URL", "ftp://rates", "http://"),
    Wrong("FREECURRENCY_API_URL", "http://rates/ v1", "http://"),
    Wrong("FRANKFURTER_URL", "https://user@rates", "http://"),
    Wrong("FRANKFURTER_URL", "https://rates:port", "http://"),
    Wrong("RATEBRIDGE_PROVIDERS", "ecb,ecb", "a list"),
    Wrong("RATEBRIDGE_PROVIDERS", "bank", "a list"),
    Wrong("RATEBRIDGE_PROVIDERS", "freecurrencyapi", "a key"),
    Wrong("RATEBRIDGE_CACHE_TTL", "two hours", "seconds above 0"),
    Wrong("RATEBRIDGE_RATE_DEADLINE", "0", "seconds above 0"),
    Wrong("RATEBRIDGE_HEARTBEAT_INTERVAL", "-1", "seconds above 0"),
    Wrong("RATEBRIDGE_HEARTBEAT_TIMEOUT", "nan", "seconds above 0"),
    Wrong("RATEBRIDGE_RECONNECT_MIN", "inf", "seconds above 0"),
    Wrong("RATEBRIDGE_RECONNECT_MAX", "0.1", "no less than RATEBRIDGE_RECONNECT_MIN"),
    Wrong("RATEBRIDGE_DRAIN_TIMEOUT", "-0.1", "a number of seconds"),
    Wrong("RATEBRIDGE_LOG_LEVEL", "loud", "one of debug, info"),
    Wrong("RATEBRIDGE_LOG_FORMAT", "xml", "one of auto, console, json"),
    Wrong("RATEBRIDGE_STATUS_ADDRESS", "8080", "host:port"),
    Wrong("RATEBRIDGE_STATUS_ADDRESS", "localhost:70000", "host:port"),
    Wrong("RATEBRIDGE_STATUS_HOSTS", "status.example:8080", "without ports"),
    Wrong("RATEBRIDGE_STATUS_HOSTS", "one,,two", "separated by commas"),
    Wrong("RATEBRIDGE_AUDIT_FILE", "/no/such/folder/audit.jsonl", "a file in a directory"),
]


@pytest.mark.parametrize("row", WRONG, ids=lambda row: f"{row.name}={row.value}")
def test_a_wrong_value_is_named_with_what_was_expected(row):
    with pytest.raises(BadSettings) as caught:
        load_settings({**FEED, row.name: row.value})
    [problem] = caught.value.args
    assert row.expected in problem
    if row.expected != "a key":
        assert problem.startswith(f"{row.name}: expected ")


def test_all_faults_are_told_at_once():
    with pytest.raises(BadSettings) as caught:
        load_settings({"VERIFY_SSL": "?", "RATEBRIDGE_LOG_LEVEL": "?", "RATEBRIDGE_CACHE_TTL": "?"})
    assert [problem.partition(":")[0] for problem in caught.value.args] == [
        "CURRENCY_ASSIGNMENT_WS_URI",
        "VERIFY_SSL",
        "RATEBRIDGE_CACHE_TTL",
        "RATEBRIDGE_LOG_LEVEL",
    ]


def test_a_command_without_a_feed_needs_none():
    assert load_settings({}, need_feed=False).feed is None


def test_a_variable_of_our_prefix_that_means_nothing_is_noted():
    assert load_settings({**FEED, "RATEBRIDGE_CACHETTL": "1"}).unknown == ("RATEBRIDGE_CACHETTL",)


def test_no_secret_is_in_any_text():
    settings = load_settings({**FEED, "FREECURRENCY_API_KEY": "s3cret"})
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(attrs.asdict(settings))
    assert "s3cret" not in f"{Secret('s3cret')} {Secret('s3cret')!r}"
    with pytest.raises(BadSettings) as caught:
        load_settings(
            {
                "CURRENCY_ASSIGNMENT_WS_URI": "ws://user:s3cret@feed",
                "FREECURRENCY_API_KEY": "s3cret s3cret",
                "FREECURRENCY_API_URL": "http://user:s3cret@rates",
            }
        )
    assert len(caught.value.args) == 3
    assert "s3cret" not in str(caught.value)


DOTENV = """
# a comment
export CURRENCY_ASSIGNMENT_WS_URI=ws://feed.example  # behind a value

FREECURRENCY_API_KEY='a#b$HOME'
VERIFY_SSL="false"
RATEBRIDGE_LOG_LEVEL=
NOTHING
"""


def test_a_dotenv_file_may_hold_exports_comments_quotes_and_blanks(tmp_path):
    file = tmp_path / ".env"
    file.write_text(DOTENV)
    assert read_environment({}, file) == {
        "CURRENCY_ASSIGNMENT_WS_URI": "ws://feed.example",
        "FREECURRENCY_API_KEY": "a#b$HOME",
        "VERIFY_SSL": "false",
    }


def test_the_environment_wins_over_the_file(tmp_path):
    file = tmp_path / ".env"
    file.write_text(DOTENV)
    values = read_environment({"VERIFY_SSL": "true"}, file)
    assert values["VERIFY_SSL"] == "true"
    assert values["CURRENCY_ASSIGNMENT_WS_URI"] == "ws://feed.example"


def test_no_file_is_no_fault(tmp_path):
    assert read_environment({"A": "b"}, tmp_path / ".env") == {"A": "b"}
    assert read_environment({"A": "b"}, None) == {"A": "b"}


def test_a_file_that_is_no_text_is_a_fault(tmp_path):
    file = tmp_path / ".env"
    file.write_bytes(b"A=\xff\xfe")
    with pytest.raises(BadSettings, match=r"\.env: expected a text file"):
        read_environment({}, file)


def test_a_relative_audit_file_is_in_the_working_directory():
    assert load_settings({**FEED, "RATEBRIDGE_AUDIT_FILE": "audit.jsonl"}).audit_file == Path(
        "audit.jsonl"
    )
