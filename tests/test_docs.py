"""Documentation: every public name has an example, and the tables of docs/ hold what the code says."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import skbegan
from skbegan import BeGANTransformer, datasets, metrics, plotting, report

GUIDE = Path(__file__).parents[1] / "docs" / "coming_from_the_original.md"
needs_guide = pytest.mark.skipif(not GUIDE.is_file(), reason="docs/ is in the repository, not in the package")


def public() -> list[tuple[str, Any]]:
    """Return all public classes and functions by name."""
    everything = [(f"{home.__name__}.{name}", getattr(home, name)) for home in HOMES for name in home.__all__]
    return [(name, thing) for name, thing in everything if inspect.isclass(thing) or inspect.isfunction(thing)]


HOMES = (skbegan, metrics, datasets, plotting, report)


def test_public_names_are_found():
    names = dict(public())
    assert {
        "skbegan.BeGANTransformer",
        "skbegan.load",
        "skbegan.metrics.audit",
        "skbegan.plotting.HistoryDisplay",
    } <= set(names)
    assert len(names) > 25


@pytest.mark.parametrize(("name", "thing"), public(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_public_name_has_an_example(name, thing):
    # That the examples run is tested by pytest --doctest-modules, see tasks.py.
    sections = (inspect.getdoc(thing) or "").split("\nExamples\n--------\n")
    assert len(sections) == 2, f"{name} needs one section Examples"
    assert [line for line in sections[1].split("\n") if line.startswith(">>> ") and "+SKIP" not in line], name


@needs_guide
def test_the_table_of_published_parameters_is_that_of_the_code():
    table = GUIDE.read_text(encoding="utf-8").split("## `PUBLISHED`, parameter by parameter")[1].split("\n\n")[1]
    parameters = BeGANTransformer(**skbegan.PUBLISHED).get_params()
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", table, re.MULTILINE)
    written = {}
    for names, values in rows:
        values = re.split(r", (?=\d)", values)
        for name, value in zip(re.findall(r"`(\w+)`", names), values, strict=True):
            value = value.strip("`")
            written[name] = skbegan.PublishedRemoval() if name == "removal" else ast.literal_eval(value)
    assert written == {name: parameters[name] for name in written}
    assert set(skbegan.PUBLISHED) <= set(written)
    assert {name for name in parameters if name.startswith("removal__")} <= set(written)


@needs_guide
def test_code_in_the_guide_parses_and_names_real_parameters():
    known = inspect.signature(BeGANTransformer).parameters
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "BeGANTransformer":
                assert {keyword.arg for keyword in node.keywords if keyword.arg} <= set(known)
