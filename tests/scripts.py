"""Scripts of the repository, loaded by the tests that run them: examples/ and benchmarks/ are not in the package."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES, BENCHMARKS = ROOT / "examples", ROOT / "benchmarks"


def needs(path: Path) -> pytest.MarkDecorator:
    """Skip where tests run without the repository, as from an unpacked source distribution."""
    return pytest.mark.skipif(not path.exists(), reason=f"{path.parent.name}/{path.name} is in the repository only")


def load_example(name: str) -> ModuleType:
    """Return a new module of examples/NAME.py, so that what a test sets in it is gone with the test."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def benchmark_modules(*names: str) -> Iterator[list[ModuleType]]:
    """Give the modules of benchmarks/ that are named, as ``speed.steps``; within, further ones can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield [importlib.import_module(name) for name in names]
