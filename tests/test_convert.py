"""The command `convert`: what it prints, and its exit codes."""

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from rate_bench import make_client, make_source
from support import OURS

from ratebridge.command_line import command_line
from ratebridge.errors import BadSettings
from ratebridge.fakes.rates import FakeRates
from ratebridge.providers.ecb import Ecb

NOW = datetime(2090, 11, 20, 12, 0, 20, tzinfo=UTC)  # beyond every embedded table
KEY_NAME = "FREECURRENCY_API_KEY"
ECB = Ecb()  # loaded once for all


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """None of the machine's settings, and no `.env`."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run(*arguments, sources=(ECB,)):
    options = command_line(["convert"]).parse_args(["convert", *arguments])
    return options.run(options, sources=sources, clock=lambda: NOW)


def convert(stake="253.67", currency="USD", date_text="2021-05-18", sources=(ECB,), **more):
    dated = [] if date_text is None else ["--date", date_text]
    options = [word for name, value in more.items() for word in (f"--{name}", value)]
    return run(*dated, *options, "--", stake, currency, sources=sources)


def test_a_conversion_with_its_provenance(capsys):
    assert convert(date_text="2021-05-16T22:30:00-05:00") == 0
    assert capsys.readouterr().out.splitlines() == [
        "253.67 USD is 208.90225 EUR",
        "rate      1.2143 USD for one euro",
        "source    ecb",
        "day asked 2021-05-17",
        "day used  2021-05-17",
        "fetched   2090-11-20 12:00:20 UTC",
    ]


def test_the_day_used_may_be_an_earlier_one(capsys):
    assert convert(date_text="2021-05-16", currency="usd", stake="-1e2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("-100 USD is -82.")
    assert lines[3:5] == ["day asked 2021-05-16", "day used  2021-05-14"]


def test_a_rate_of_two_quotes_is_shown_as_both(capsys):
    fake = FakeRates(lambda: NOW, dollar_only=True)
    assert convert(sources=[make_source("freecurrencyapi", make_client(fake))], currency="GBP") == 0
    units, _, euro = capsys.readouterr().out.splitlines()[1].split()[1].partition("/")
    assert 0.5 < float(units) < float(euro) < 1


def test_what_is_unusual_about_a_rate_is_told(capsys):
    assert convert("7.5345", "HRK", sources=[], date_text="2024-01-02") == 0
    assert capsys.readouterr().out.splitlines() == [
        "7.5345 HRK is 1 EUR",
        "rate      7.53450 HRK for one euro",
        "source    fixed",
        "day asked 2024-01-02",
        "day used  2024-01-02",
        "note      by Council Regulation (EC) No 2866/98",
    ]


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        ({"currency": "BTC"}, "currency 'BTC' is not known to ecb"),
        ({"date_text": None}, "no rate for 'USD' on 2090-11-20: ecb has no rates for 2090-11-20"),
        ({"date_text": "2090-11-21"}, "date 2090-11-21T00:00:00.000Z is in the future"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_exit_code_1(capsys, wish, line):
    assert convert(**wish) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"{line}\n")


@pytest.mark.parametrize(
    ("wish", "problem"),
    [
        ({"stake": "abc"}, "stake 'abc' is not a number"),
        ({"stake": "1e15"}, "stake '1e15' is out of range"),
        ({"currency": "\u20ac" * 3}, "currency '\u20ac\u20ac\u20ac' is not a three-letter code"),
        ({"date_text": "yesterday"}, "date 'yesterday' is not an ISO 8601 date and time"),
        ({"date_text": "2021-02-29"}, "date '2021-02-29' is not a day"),
        (
            {"source": "freecurrencyapi"},
            f"{KEY_NAME}: is required but not set, as freecurrencyapi is among the sources",
        ),
    ],
)
def test_bad_usage_says_what_was_expected(wish, problem):
    with pytest.raises(BadSettings) as caught:
        convert(**wish)
    assert caught.value.args == (problem,)


def test_every_problem_is_reported_together(monkeypatch):
    monkeypatch.setenv("RATEBRIDGE_CACHE_TTL", "soon")
    with pytest.raises(BadSettings) as caught:
        convert("abc", "EURO", "yesterday")
    told = [problem.partition(" ")[0] for problem in caught.value.args]
    assert told == ["stake", "currency", "date", "RATEBRIDGE_CACHE_TTL:"]


def test_the_named_source_takes_the_place_of_those_in_the_settings(monkeypatch, capsys):
    monkeypatch.setenv("RATEBRIDGE_PROVIDERS", "ecb")
    monkeypatch.setenv("FRANKFURTER_URL", "http://127.0.0.1:1/v2")
    monkeypatch.setenv("RATEBRIDGE_RATE_DEADLINE", "0.05")
    assert convert(source="frankfurter", sources=None) == 1
    assert capsys.readouterr().err.startswith("no rate for 'USD' on 2021-05-18: frankfurter")


LINES = """\
253.67 USD 2021-05-18

1 eur
100 GBP
1 BTC 2021-05-18
"""


def test_lines_are_converted_in_their_order(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(LINES))
    assert run("-", "--date", "2021-05-17") == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "253.67 USD is 207.55196 EUR, at 1.2222 by ecb of 2021-05-18",
        "1 EUR is 1 EUR, and needs no rate",
        "100 GBP is 115.9891 EUR, at 0.86215 by ecb of 2021-05-17",
    ]
    assert shown.err == "currency 'BTC' is not known to ecb\n"


def test_in_json_each_conversion_is_an_object(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(LINES))
    assert run("-", "--date", "2021-05-17", "--json") == 1
    shown = capsys.readouterr()
    first, second, _, last = map(json.loads, shown.out.splitlines())
    assert first == {
        "stake": "253.67",
        "currency": "USD",
        "eur": "207.55196",
        "rate": "1.2222",
        "rate_date": "2021-05-18",
        "provider": "ecb",
    }
    assert (second["eur"], second["rate"], second["provider"]) == ("1", None, None)
    assert last == {"stake": "1", "currency": "BTC", "error": "currency 'BTC' is not known to ecb"}
    assert shown.err == ""


def test_every_bad_line_is_reported_before_anything_is_converted(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1 USD\n1\nx USD 2021-05-18\n1 2 3 4\n"))
    with pytest.raises(BadSettings) as caught:
        run("-")
    assert caught.value.args == (
        "line 2: expected STAKE CURRENCY [DATE]",
        "line 3: stake 'x' is not a number",
        "line 4: expected STAKE CURRENCY [DATE]",
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words", [("--env-file", "other.env", "convert"), ("convert", "--env-file", "other.env")]
)
def test_an_env_file_takes_the_place_of_dotenv(words, tmp_path):
    (tmp_path / ".env").write_text("RATEBRIDGE_CACHE_TTL=soon")
    (tmp_path / "other.env").write_text("RATEBRIDGE_PROVIDERS=bank")
    options = command_line(["convert"]).parse_args([*words, "1", "USD"])
    with pytest.raises(BadSettings, match="RATEBRIDGE_PROVIDERS: expected"):
        options.run(options)


def test_a_mock_server_can_stand_in_for_the_sources_too(monkeypatch, capsys):
    """As an operator would try the service without network: any key will do."""
    options = ["--quiet", "--port", "0", "--rates-port", "0"]
    command = [sys.executable, "-m", "ratebridge", "mock-server", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        listening = [json.loads(server.stdout.readline()) for _ in range(2)][1]
        assert listening["event"] == "rates.listening"
        monkeypatch.setenv("FREECURRENCY_API_KEY", "any")
        urls = {name: url for name, url in listening.items() if name.endswith("_URL")}
        assert set(urls) == set(FakeRates().urls(""))
        for name, url in urls.items():
            monkeypatch.setenv(name, url)
        codes = [convert(currency=code, sources=None) for code in ("USD", "UAH", "ZZZ")]
        shown = capsys.readouterr()
        server.terminate()
    used = [line.split()[1] for line in shown.out.splitlines() if line.startswith("source")]
    assert (codes, used) == ([0, 0, 1], ["freecurrencyapi", "frankfurter"])
    assert shown.err.startswith("currency 'ZZZ' is not known to freecurrencyapi ")
    assert server.returncode == 0
