"""Set up a virtual environment and run something in it: ``python tasks.py quickstart`` or ``python tasks.py tests``.

Needs only Python 3.11 or newer; the same on Linux, macOS and Windows. The package is built into a wheel and the wheel
is installed, so that what runs is what users get.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("SKBEGAN_VENV", ROOT / ".venv"))
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# -P keeps the checkout off sys.path: the installed wheel is imported, not the folder beside it.
TASKS = {
    "quickstart": [["-P", "examples/quickstart.py"]],
    "tests": [["-P", "-m", "pytest", "tests", "-q"]],
    "fast-tests": [["-P", "-m", "pytest", "tests", "-q", "-m", "not slow"]],
    "checks": [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "mypy"]],
    "install": [],
}


def run(*command: str | Path) -> None:
    """Run a command in the repository and stop here if it fails."""
    print("$", *command, flush=True)
    code = subprocess.run([str(part) for part in command], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def install() -> None:
    """Create the environment if it is missing, and install the wheel with all that the tasks need."""
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    dist = ROOT / "dist"
    for old in dist.glob("skbegan-*.whl"):
        old.unlink()
    run(PYTHON, "-m", "pip", "wheel", "-q", "--no-deps", "-w", dist, ROOT)
    (wheel,) = dist.glob("skbegan-*.whl")
    run(PYTHON, "-m", "pip", "install", "-q", "-c", "constraints.txt", f"skbegan[dev,plots] @ {wheel.as_uri()}")
    run(PYTHON, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)


def main() -> None:
    """Install, then run the task named on the command line."""
    task = sys.argv[1] if len(sys.argv) == 2 else ""
    if task not in TASKS:
        sys.exit(f"usage: python tasks.py {{{'|'.join(TASKS)}}}")
    install()
    for arguments in TASKS[task]:
        run(PYTHON, *arguments)


if __name__ == "__main__":
    main()
