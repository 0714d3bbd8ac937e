"""The supported versions: what pyproject.toml allows is what the two constraint files test the ends of."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="tests run without the repository")


def lower_bounds() -> dict[str, str]:
    """The lowest version of every dependency of the package, of its plots, of Dask and of its tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found = {}
    for requirement in [*project["dependencies"], *extras["plots"], *extras["distributed"], *extras["test"]]:
        name, version = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
        assert found.setdefault(name, version) == version, f"two lower bounds of {name}"
    return found


def pinned(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if re.fullmatch(r"[\w-]+==[\d.]+", line))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_lowest_constraints_are_the_lower_bounds():
    bounds, lowest = lower_bounds(), pinned("constraints-lowest.txt")
    assert bounds.keys() == lowest.keys()
    for name, version in bounds.items():
        short = numbers(version)
        exact = numbers(lowest[name])
        assert exact[: len(short)] == short and not any(exact[len(short) :]), name


def test_newest_constraints_cover_every_dependency():
    newest = pinned("constraints.txt")
    for name, version in lower_bounds().items():
        assert numbers(newest[name]) > numbers(version), name
