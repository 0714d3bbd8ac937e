"""Docstrings of the public face hold what numpydoc asks of them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest

import skbegan
from skbegan import datasets, metrics, plotting, report

pytest.importorskip("numpydoc", reason="needs the extra docs")

# Left out: SA01 (See Also), ES01 (a further summary) and EX01 (examples, which tests/test_docs.py asks for) are matters
# of style; SS06, RT03, RT04, RT05 and PR09 too. PR04, PR07: several parameters share one line, with their type or with
# "As in ...". RT02: what is returned has a name, which the house wants.
CHECKS = {"GL06", "GL07", "GL08", "SS01", "SS02", "SS03", "SS04", "PR01", "PR02", "PR03", "PR05", "PR06", "PR10"}
CHECKS |= {"RT01", "YD01"}
REFERS = re.compile(r"(?:see|as in) :meth:`(\w+)`")


def public() -> dict[str, Any]:
    """Return classes and functions of the face, and methods of ours, by the name that numpydoc imports."""
    found = {}
    for home in (skbegan, metrics, datasets, plotting, report):
        for thing in (getattr(home, name) for name in home.__all__):
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found[f"{thing.__module__}.{thing.__qualname__}"] = thing
            if inspect.isclass(thing):
                for name, member in inspect.getmembers(thing):
                    function = getattr(member, "__func__", member)
                    ours = inspect.isfunction(function) and function.__module__.startswith("skbegan")
                    if ours and not name.startswith("_"):
                        found[f"{function.__module__}.{function.__qualname__}"] = function
    return found


PUBLIC = public()


def test_the_face_is_found():
    assert {"skbegan.estimator.BeGANTransformer.fit", "skbegan.report.writing.write_report"} <= set(PUBLIC)
    assert len(PUBLIC) > 60


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring(name):
    from numpydoc.validate import validate

    skipped = set()
    text = inspect.getdoc(PUBLIC[name]) or ""
    # One line that refers to another method has that one's parameters.
    if (refers := REFERS.search(text)) and "\n" not in text:
        assert f"{name.rpartition('.')[0]}.{refers[1]}" in PUBLIC
        skipped = {"PR01", "RT01"}
    # Results are not made by users: their fields are attributes.
    if dataclasses.is_dataclass(PUBLIC[name]) and "Attributes\n----------" in text:
        named = {n.strip() for line in re.findall(r"^([\w, ]+) : ", text, re.M) for n in line.split(",")}
        named |= {n.strip() for line in re.findall(r"^([\w, ]+)$", text, re.M) for n in line.split(",")}
        assert {field.name for field in dataclasses.fields(PUBLIC[name])} <= named
        skipped = {"PR01"}
    errors = [f"{code}: {what}" for code, what in validate(name)["errors"] if code in CHECKS - skipped]
    assert not errors, errors


@pytest.mark.parametrize("name", PUBLIC)
def test_errors_that_are_raised_are_documented(name):
    # Only what stands in the function itself, as a class by name: checks that are called raise too, and say so there.
    thing = PUBLIC[name]
    if inspect.isclass(thing):
        pytest.skip("a class")
    raised = set(re.findall(r"^\s+raise (\w+(?:Error|Interrupt))\(", inspect.getsource(thing), re.M))
    raised -= {"AttributeError", "KeyError", "AssertionError"}
    documented = inspect.getdoc(thing) or ""
    section = documented.partition("\nRaises\n------\n")[2]
    missing = {error for error in raised if error not in section}
    assert not missing or REFERS.search(documented), missing
