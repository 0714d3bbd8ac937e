"""Versions: of this package, and of those whose numbers a fitted model depends on."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

__version__ = "0.1.0"

_PACKAGES = ("scikit-learn", "torch", "numpy")
_TRAINING_CODE = ("config.py", "design.py", "fit.py", "core", "data")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that a model is written with, by name of the package."""
    return {"skbegan": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


@functools.cache
def training_code() -> str:
    """Return a digest of the code that training runs, so that no cache or checkpoint outlives a change of it."""
    root = Path(__file__).parent
    files = (
        path
        for part in _TRAINING_CODE
        for path in ([root / part] if part.endswith(".py") else root.glob(f"{part}/**/*.py"))
    )
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
