"""docs/promises.md: every test that it names exists, and every promise names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "promises.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="docs/ is in the repository, not in the package")


def promises() -> list[tuple[str, list[str]]]:
    """Rows of the tables: the promise, and the tests that it names."""
    part = PAGE.read_text(encoding="utf-8").split("## How it was tried")[0]
    rows = re.findall(r"^\| (?!Promise|---)(.+?) \| (.+) \|$", part, re.MULTILINE)
    return [(promise, re.findall(r"`([^`]+)`", names)) for promise, names in rows]


def test_every_promise_names_a_test():
    rows = promises()
    assert len(rows) > 20
    for promise, names in rows:
        assert names and all(re.fullmatch(r"test_\w+\.py::test_\w+", name) for name in names), promise


@pytest.mark.parametrize("name", sorted({name for _, names in promises() for name in names}) if PAGE.is_file() else [])
def test_every_test_that_is_named_exists(name):
    file, function = name.split("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
