"""The documents match the code: tests, settings, commands, metrics, events."""

import re
from pathlib import Path

import pytest

from ratebridge.command_line import command_line
from ratebridge.operating import journal
from ratebridge.settings import VARIABLES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALERTS = (ROOT / "scripts" / "alerts.yml").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(test_\w+)::(test_\w+)`", (ROOT / "TASK.md").read_text("utf-8"))))


def test_task_md_names_tests():
    assert len(NAMED) > 10


@pytest.mark.parametrize(("module", "test"), NAMED, ids=lambda name: name)
def test_each_test_that_task_md_names_is_there(module, test):
    text = (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE)


def test_the_readme_lists_every_setting():
    settings = re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text("ascii"), re.MULTILINE)
    assert [name for name in settings if f"`{name}`" not in README] == []


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml", "ratebridge.service"])
def test_the_operators_files_name_settings_that_there_are(name):
    text = (ROOT / "scripts" / name).read_text(encoding="utf-8")
    named = re.findall(r"\b(?:RATEBRIDGE|CURRENCY|FREECURRENCY|FRANKFURTER|ECB)_[A-Z_]+", text)
    assert named
    assert set(named) <= {variable.name for variable in VARIABLES.values()}


def test_the_readme_lists_every_command():
    commands = re.findall(r"\n    ([a-z-]+)(?: {2,}|\n)", command_line().format_help())
    assert len(commands) > 2
    assert [name for name in commands if f"`ratebridge {name}" not in README] == []


def test_the_metrics_of_the_readme_and_the_alerts_are_there():
    code = (ROOT / "ratebridge" / "operating" / "metrics.py").read_text(encoding="utf-8")
    named = set(re.findall(r"ratebridge_([a-z_]+?)(?:_total)?[{[` ]", README + ALERTS))
    assert len(named) > 7
    assert [name for name in named if f'"{name}"' not in code] == []


def test_the_alerts_of_the_readme_are_rules():
    [table] = re.findall(r"\*\*Alerts worth having.*?\n\n\|.*?\n\n", README, re.DOTALL)
    [_, _, *expressions] = re.findall(r"`(.+?)`", table)
    assert len(expressions) > 5
    assert [text for text in expressions if text not in ALERTS] == []
    rules = [text.split(" or absent")[0] for text in re.findall(r"expr: (.+)", ALERTS)]
    assert [text for text in rules if text.split(" < ")[0] not in table] == []


def test_the_events_of_the_readme_are_there():
    tellers = ("operating/journal.py", "operating/logs.py", "operating/status.py", "app.py")
    code = "".join((ROOT / "ratebridge" / name).read_text(encoding="utf-8") for name in tellers)
    [table] = re.findall(r"\| event \| means .*?\n\n", README, re.DOTALL)
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", table))
    assert len(named) > 8
    listed = set(re.findall(r"`([a-z]+\.[a-z_]+)`", journal.__doc__ or ""))
    assert listed - named == set(), "events that the README does not explain"
    assert [name for name in named if f'"{name}"' not in code] == []
