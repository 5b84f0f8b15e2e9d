"""`.env.example`: every setting, with its default, read alike by us and by podman."""

from pathlib import Path
from typing import Any

from ratebridge.settings import FEED, load_settings, read_environment

EXAMPLE = Path(__file__).parent.parent / ".env.example"


def literal_lines() -> dict[str, str]:
    """The file as podman and docker read it: a line that is no comment, cut at its first `=`."""
    lines = EXAMPLE.read_text(encoding="ascii").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Recording(dict[str, str]):
    """Settings that remember which of them were asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: set[str] = set()

    def get(self, name: Any, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def __contains__(self, name: Any) -> bool:
        self.asked.add(name)
        return super().__contains__(name)


def test_the_example_holds_the_settings_that_there_are_and_no_other():
    values = Recording({FEED: "ws://feed.example"})
    load_settings(values)
    assert set(literal_lines()) == values.asked


def test_our_reading_of_the_example_is_the_literal_one():
    stated = {name: value for name, value in literal_lines().items() if value}
    assert read_environment({}, EXAMPLE) == stated


def test_the_example_states_the_defaults():
    example = read_environment({}, EXAMPLE)
    assert load_settings(example) == load_settings({FEED: example[FEED]})
