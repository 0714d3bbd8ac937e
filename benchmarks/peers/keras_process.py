"""The process that runs `keras_peer.py` in an environment with TensorFlow; it does nothing while it is not asked."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class KerasPeer:
    """Starts the process.

    Parameters
    ----------
    python : str
        Interpreter of an environment with TensorFlow.
    **sizes
        See `keras_peer.Peer`.

    Raises
    ------
    RuntimeError
        When the process cannot start, with the end of what it printed.
    """

    def __init__(self, python: str, **sizes: int) -> None:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [shutil.which(python) or python, str(Path(__file__).with_name("keras_peer.py")), json.dumps(sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.version = self._ask("ready")["version"]

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: what it printed says why
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise RuntimeError(f"the Keras process ended: ...{self._errors.read()[-600:]}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def prepare(self, run: str, build: str) -> None:
        """Build what a run needs, and run it once."""
        self._ask(f"{run} {build}")

    def run(self, name: str) -> float:
        """Return the seconds that a run took."""
        return float(self._ask(name)["seconds"])

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._errors.close()


def start_keras(python: str | None, wanted: bool, **sizes: int) -> KerasPeer | None:
    """Start the process with a Python, by default this one, or say on standard error why there is none."""
    if not wanted:
        return None
    try:
        return KerasPeer(python or sys.executable, **sizes)
    except (RuntimeError, OSError) as error:
        print(f"without Keras (--keras-python names an environment with TensorFlow): {error}", file=sys.stderr)
        return None
