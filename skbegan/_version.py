"""Versions: of this package, and of those whose numbers a fitted model depends on."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import sys
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


def show_versions() -> None:
    """Print the versions of Python, of the system, of this package and of all that it can use, for a bug report.

    Examples
    --------
    >>> import skbegan
    >>> skbegan.show_versions()  # doctest: +ELLIPSIS
    System:
    ...
    """
    system = {
        "python": sys.version.replace("\n", " "),
        "executable": sys.executable,
        "machine": platform.platform(),
        "cores": str(os.cpu_count()),
    }
    core, optional = _dependencies()
    sections = {
        "System": system,
        "skbegan and what it needs": {"skbegan": __version__} | {name: _installed(name) for name in core},
        "Optional": {name: _installed(name) for name in optional},
        "PyTorch": _torch(),
    }
    for title, lines in sections.items():
        width = max(map(len, lines), default=0)
        print(f"{title}:", *(f"    {name:>{width}}: {value}" for name, value in lines.items()), "", sep="\n")


def _dependencies() -> tuple[list[str], list[str]]:
    """Return the names of what this package needs and of what its extras name, tools of its developers left out."""
    try:
        requirements = metadata.requires("skbegan") or []
    except metadata.PackageNotFoundError:  # run from a folder
        requirements = list(_PACKAGES)
    core: list[str] = []
    optional: list[str] = []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if extra is None:
            core.append(name)
        elif extra[1] not in ("test", "dev") and name not in [*optional, "skbegan"]:
            optional.append(name)
    return core, sorted(optional, key=str.lower)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch() -> dict[str, str]:
    import torch

    about = {
        "CUDA": torch.version.cuda or "not in this build",
        "CUDA available": str(torch.cuda.is_available()),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        about["cuDNN"] = str(torch.backends.cudnn.version())
        for number in range(torch.cuda.device_count()):
            about[f"device {number}"] = torch.cuda.get_device_name(number)
    return about
