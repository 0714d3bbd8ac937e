"""Type checkers see every public name with its type, and no name that is not there."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skbegan
from skbegan import datasets, metrics, plotting, report

ROOMS = (datasets, metrics, plotting, report)
NAMES = [f"skbegan.{name}" for name in skbegan.__all__ if not inspect.ismodule(getattr(skbegan, name))]
NAMES += [f"{room.__name__}.{name}" for room in ROOMS for name in room.__all__]
WRONG = ["skbegan.no_such_name", "skbegan.BeGANTransformer(no_such_parameter=1)"]


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    """A file of a user that names everything public, and then two things that are not there."""
    path = tmp_path / "user.py"
    reveals = [f"reveal_type({name})" for name in NAMES]
    path.write_text("\n".join(["import skbegan", *reveals, *WRONG]) + "\n", encoding="utf-8")
    return path


def check(command: list[str], path: Path) -> str:
    """Return what a checker says of the file, run from its folder, with the package that is tested."""
    home = str(Path(skbegan.__file__).parents[1])
    environment = {**os.environ, "MYPYPATH": "" if "site-packages" in home else home, "PYTHONPATH": home}
    done = subprocess.run(
        [sys.executable, "-m", *command, path.name],
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_mypy(user_file: Path):
    pytest.importorskip("mypy")
    said = check(["mypy", "--no-error-summary"], user_file)
    types = dict(re.findall(r"user\.py:(\d+): note: Revealed type is \"(.*)\"", said))
    assert len(types) == len(NAMES), said
    assert not [name for name, kind in zip(NAMES, types.values(), strict=True) if kind == "Any"], said
    errors = re.findall(r"user\.py:(\d+): error: ", said)
    assert errors == [str(len(NAMES) + 2), str(len(NAMES) + 3)], said


@pytest.mark.slow
def test_pyright(user_file: Path):
    pytest.importorskip("pyright", reason="it fetches Node on its first run, so that it is in no extra")
    said = check(["pyright", "--pythonpath", sys.executable], user_file)
    types = dict(re.findall(r"user\.py:(\d+):\d+ - information: Type of .* is \"(.*)\"", said))
    assert len(types) == len(NAMES), said
    assert not [name for name, kind in zip(NAMES, types.values(), strict=True) if kind in ("Any", "Unknown")], said
    errors = re.findall(r"user\.py:(\d+):\d+ - error: ", said)
    assert errors == [str(len(NAMES) + 2), str(len(NAMES) + 3)], said
