"""The public API, used from outside."""

import inspect
import pydoc
import re
import subprocess
import sys
from textwrap import dedent

import pytest

import ratebridge


def test_every_public_name_exists_and_is_in_the_docstring():
    assert ratebridge.__doc__ is not None
    for name in ratebridge.__all__:
        assert getattr(ratebridge, name) is not None
        assert f"`{name}" in ratebridge.__doc__


def test_the_help_shows_the_api_and_nothing_else():
    assert dir(ratebridge) == sorted(ratebridge.__all__)
    shown = pydoc.plain(pydoc.render_doc(ratebridge))
    listed = re.findall(r"(?m)^    (?:class |async )?([A-Za-z]\w*)(?:\(|$| = )", shown)
    assert {"Converter", "convert", "serve"} <= set(listed)
    assert "import_module" not in shown
    assert "TYPE_CHECKING" not in shown


def test_the_types_of_public_signatures_are_public():
    """Of their arguments, fields and results, as far as they are ours."""
    named = set()
    for name in ratebridge.__all__:
        found = getattr(ratebridge, name)
        members = [found, *vars(found).values()] if inspect.isclass(found) else [found]
        for member in members:
            for annotation in getattr(member, "__annotations__", {}).values():
                named |= set(re.findall(r"ratebridge\.[\w.]*\.(\w+)", str(annotation)))
    assert named - {"Observer", "Budget", "Quota"} <= set(ratebridge.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = ratebridge.nothing


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, ratebridge\n"
        "print([name for name in ('trio', 'httpx', 'attrs') if name in sys.modules])\n"
        "assert ratebridge.fakes"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "[]\n")


def test_the_example_of_the_fakes_is_a_test_that_passes():
    assert ratebridge.fakes.__doc__ is not None
    lines = ratebridge.fakes.__doc__.splitlines()
    example = "\n".join(line for line in lines if line.startswith("    "))
    assert "assert" in example
    exec(dedent(example), {})
