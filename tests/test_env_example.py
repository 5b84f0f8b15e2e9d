"""`.env.example`: every setting, with its default, read alike by us and by podman."""

from pathlib import Path

from ratebridge.settings import FEED, VARIABLES, load_settings, read_environment

EXAMPLE = Path(__file__).parent.parent / ".env.example"


def literal_lines() -> dict[str, str]:
    """The file as podman and docker read it: a line that is no comment, cut at its first `=`."""
    lines = EXAMPLE.read_text(encoding="ascii").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_example_holds_the_settings_that_there_are_and_no_other():
    assert set(literal_lines()) == {variable.name for variable in VARIABLES.values()}


def test_our_reading_of_the_example_is_the_literal_one():
    stated = {name: value for name, value in literal_lines().items() if value}
    assert read_environment({}, EXAMPLE) == (stated, [])


def test_the_example_states_the_defaults():
    lines = literal_lines()
    example = load_settings({name: value for name, value in lines.items() if value})
    assert example == load_settings({FEED: lines[FEED]})
