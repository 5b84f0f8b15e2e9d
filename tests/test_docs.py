"""The documents match the code: tests, settings, commands, metrics, events."""

import html
import json
import re
import shlex
from datetime import timedelta
from pathlib import Path

import pytest
from status_service import NOW, Shop, make_service, samples, sheet, trail

from ratebridge.command_line import command_line
from ratebridge.commands import MODULES
from ratebridge.errors import Drop, FetchOutcome, Loss, Refusal
from ratebridge.fakes.rates import FakeRates
from ratebridge.operating.metrics import Metrics
from ratebridge.providers.source import Quota
from ratebridge.reporting import observer
from ratebridge.settings import VARIABLES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = ROOT / "ratebridge" / "operating" / "page"
SAMPLES = ROOT / "ratebridge" / "samples"
ALERTS = (SAMPLES / "alerts.yml").read_text(encoding="utf-8")
USERS = {
    "README": README,
    "alerts": ALERTS,
    "dashboard": (SAMPLES / "dashboard.json").read_text(encoding="utf-8"),
}
NAME = r"\b(?:ratebridge|process)_[a-z_]+\b(?=[{\[` )=]|$)"
NAMED = sorted(set(re.findall(r"`(test_\w+)::(test_\w+)`", (ROOT / "TASK.md").read_text("utf-8"))))


def test_task_md_names_tests():
    assert len(NAMED) > 10


@pytest.mark.parametrize(("module", "test"), NAMED, ids=lambda name: name)
def test_each_test_that_task_md_names_is_there(module, test):
    text = (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE)


@pytest.mark.parametrize("variable", VARIABLES.values(), ids=lambda variable: variable.name)
def test_the_readme_tells_of_a_setting_what_the_help_does(variable):
    assert f"\n| `{variable.name}` | {variable.default} | {variable.meaning} |\n" in README


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml", "ratebridge.service"])
def test_the_operators_files_name_settings_that_there_are(name):
    text = (ROOT / "scripts" / name).read_text(encoding="utf-8")
    known = {variable.name for variable in VARIABLES.values()}
    named = re.findall(rf"\b(?:{'|'.join({name.split('_')[0] for name in known})})_[A-Z_]+", text)
    assert named
    assert set(named) <= known


@pytest.mark.parametrize(
    ("file", "base"),
    [("README.md", "http://127.0.0.1:8080"), ("scripts/compose.yaml", "http://feed:8080")],
)
def test_a_service_is_pointed_at_the_stand_in_sources(file, base):
    named = re.findall(rf"(\w+_URL)(?:=|: )({base}\S+)", (ROOT / file).read_text("utf-8"))
    assert dict(named) == FakeRates().urls(base)


def test_the_readme_and_the_command_line_agree_on_commands_and_options():
    assert [name for name in MODULES if f"`ratebridge {name}" not in README] == []
    lines = re.findall(rf"ratebridge ((?:{'|'.join(MODULES)})\b[^`\n#]*)", README)
    for line in lines:
        command_line().parse_args(shlex.split(line.replace("...", "")))  # exits for another
    options = re.findall(r"`(?:verify )?(--[a-z-]+)", README)
    assert (len(lines), len(options)) > (10, 4)
    completed = (ROOT / "ratebridge" / "commands" / "completion.bash").read_text("utf-8")
    others = {"--build-arg", "--soak"}  # of podman, and of a script
    assert {option for option in options if option not in completed} == others


def test_the_alerts_of_the_readme_are_rules():
    [table] = re.findall(r"\*\*Alerts worth having.*?\n\n\|.*?\n\n", README, re.DOTALL)
    [_, _, *expressions] = re.findall(r"`(.+?)`", table)
    assert len(expressions) > 5
    assert [text for text in expressions if text not in ALERTS] == []
    rules = [re.split(" or | unless ", text)[0] for text in re.findall(r"expr: \(?(.+)", ALERTS)]
    assert [text for text in rules if text.split(" < ")[0] not in table] == []


def test_the_events_of_the_readme_are_there():
    tellers = ("reporting/observer.py", "reporting/logs.py", "operating/status.py", "app.py")
    code = "".join((ROOT / "ratebridge" / name).read_text(encoding="utf-8") for name in tellers)
    [table] = re.findall(r"\| event \| means .*?\n\n", README, re.DOTALL)
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", table))
    assert len(named) > 8
    listed = set(re.findall(r"`([a-z]+\.[a-z_]+)`", observer.__doc__ or ""))
    assert listed - named == set(), "events that the README does not explain"
    assert [name for name in named if f'"{name}"' not in code] == []


def test_each_error_on_the_page_links_to_what_the_readme_says_of_it():
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    [rows] = re.findall(r"\| event \| means \| to do \|\n.*?\n(.*?)\n\n", README, re.DOTALL)
    said = {}
    for row in rows.splitlines():
        events, means, to_do = (cell.strip() for cell in row.strip("|").split("|"))
        if to_do:
            said[tuple(re.findall("`(.+?)`", events))] = f"{means}. {to_do}.".replace("`", "")
    shown = {}
    for line in page.splitlines():
        if events := re.findall(r'<dt id="(.+?)">', line):
            assert events == re.findall(">([a-z._]+)</dt>", line)
            shown[tuple(events)] = html.unescape(re.sub("<dt.*</dt>|<.+?>", "", line).strip())
    assert shown == said
    code = (ROOT / "ratebridge" / "reporting" / "observer.py").read_text(encoding="utf-8")
    reported = set(re.findall(r'_report\(\s*"(.+?)"', code)) | {"connection.lost"}
    assert reported | set(re.findall(r'/#(.+?)"', ALERTS)) <= {one for row in shown for one in row}
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    linked = set(re.findall(r'"([a-z]+\.[a-z]+)"\]', script))
    assert linked <= {one for row in shown for one in row}
    for word in (*Loss, *Drop, *Refusal, *FetchOutcome):
        assert word == "ok" or any(re.search(rf"\b{word}\b", text) for text in shown.values()), word


@pytest.mark.parametrize("user", USERS)
async def test_each_metric_that_is_named_is_there(user, nursery, autojump_clock):
    service, observer = make_service(nursery, Shop("shop", Quota(4929, 5000)), audit=trail())
    observer.heartbeat_received(1.0)
    observer.fetched(sheet(NOW.date()), 0.25)
    service.chain.cache.store(sheet(NOW.date(), fetched=NOW - timedelta(seconds=17)))
    text = USERS[user]
    if user == "dashboard":
        panels = json.loads(text)["panels"]
        text = "\n".join(target["expr"] for panel in panels for target in panel["targets"])
    named = set(re.findall(NAME, text, re.MULTILINE))
    assert len(named) > 7
    assert named <= {name.partition(",")[0] for name in samples(service)}
    if user == "dashboard":
        told = {family.name for family in Metrics(service).collect()}
        shown = {re.sub("_(?:total|bucket)$", "", name) for name in named}
        assert told <= shown, "a metric that nobody looks at"
