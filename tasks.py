"""Set up a virtual environment and run something in it: ``python tasks.py quickstart`` or ``python tasks.py tests``.

Needs only Python 3.11 or newer; the same on Linux, macOS and Windows. The package is built into a wheel and the wheel
is installed, so that what runs is what users get.

``python tasks.py docs`` builds the documentation into ``docs/_build/html``; a warning is an error.

``python tasks.py lowest`` runs the fast tests in another environment, with the lowest versions that pyproject.toml
allows. PyPI's torch of that age comes with CUDA on Linux (several GB); SKBEGAN_TORCH=2.13.0 takes another torch there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("SKBEGAN_VENV", ROOT / ".venv"))
# -P keeps the checkout off sys.path: the installed wheel is imported, not the folder beside it.
TESTS = ["-P", "-m", "pytest", "tests", "-q", "-n", "auto"]  # a process per core, one thread each
EXAMPLES = ["-P", "-m", "pytest", "--doctest-modules", "--pyargs", "skbegan", "-q", "-n", "auto"]  # in docstrings
TASKS = {
    "quickstart": [["-P", "examples/quickstart.py"]],
    "tests": [TESTS, EXAMPLES],
    "fast-tests": [[*TESTS, "-m", "not slow"], EXAMPLES],
    "checks": [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "mypy"]],
    "docs": [["-P", "-m", "sphinx", "-q", "-W", "--keep-going", "docs", "docs/_build/html"]],
    "lowest": [[*TESTS, "-m", "not slow"]],
    "install": [],
}


def run(*command: str | Path) -> None:
    """Run a command in the repository and stop here if it fails."""
    print("$", *command, flush=True)
    # Figures need no screen; test processes share the cores, on which waiting threads of OpenMP must not spin.
    environment = {"MPLBACKEND": "Agg", **os.environ}
    if "pytest" in command:
        environment = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **environment}
    code = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment).returncode
    if code:
        sys.exit(code)


def install(venv_path: Path, constraints: Path, extras: str) -> Path:
    """Create the environment if it is missing, install the wheel with all that the tasks need, return its Python."""
    python = venv_path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(venv_path, with_pip=True)
    dist = ROOT / "dist"
    for old in dist.glob("skbegan-*.whl"):
        old.unlink()
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", dist, ROOT)
    (wheel,) = dist.glob("skbegan-*.whl")
    run(python, "-m", "pip", "install", "-q", "-c", constraints, f"skbegan[{extras}] @ {wheel.as_uri()}")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
    return python


def install_lowest() -> Path:
    """Install the lowest versions beside the usual environment; SKBEGAN_TORCH replaces that of torch."""
    venv_path = VENV.with_name(f"{VENV.name}-lowest")
    constraints = ROOT / "constraints-lowest.txt"
    if torch := os.environ.get("SKBEGAN_TORCH"):
        lines = constraints.read_text(encoding="utf-8").splitlines()
        lines = [f"torch=={torch}" if line.startswith("torch==") else line for line in lines]
        venv_path.mkdir(parents=True, exist_ok=True)
        constraints = venv_path / "constraints.txt"
        constraints.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return install(venv_path, constraints, "test")


def main() -> None:
    """Install, then run the task named on the command line."""
    task = sys.argv[1] if len(sys.argv) == 2 else ""
    if task not in TASKS:
        sys.exit(f"usage: python tasks.py {{{'|'.join(TASKS)}}}")
    python = install_lowest() if task == "lowest" else install(VENV, ROOT / "constraints.txt", "dev,plots")
    for arguments in TASKS[task]:
        run(python, *arguments)


if __name__ == "__main__":
    main()
