"""What the speed benchmarks share: timing in alternation, ratios, the machine's own rate, the Keras process, tables."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from skbegan.core import winograd

Run = Callable[[], float | None]


def synchronise(device: torch.device) -> None:
    """Wait for a CUDA device, so that a time is that of the work and not of its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(runs: Mapping[str, Run], repeats: int, device: torch.device, warm_up: int = 2) -> dict[str, np.ndarray]:
    """Return the seconds of `repeats` runs of each, taken in turn, every turn in another order.

    A run that returns a number has timed itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(warm_up + repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            synchronise(device)
            start = time.perf_counter()
            own = runs[name]()
            synchronise(device)
            seconds[name].append(time.perf_counter() - start if own is None else own)
    return {name: np.array(values[warm_up:]) for name, values in seconds.items()}


def gflop(run: Callable[[], object], direct: bool = True) -> float:
    """Count the arithmetic of matrix products and convolutions in a run, forward and backward, in 1e9 operations.

    With `direct` as if every convolution were the direct sum, which is the usual measure; else as it is done.
    """
    pays = winograd.pays
    if direct:
        winograd.pays = lambda *args: False
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        winograd.pays = pays
    return counter.get_total_flops() / 1e9


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 2048, repeats: int = 7) -> float:
    """Measure the best rate of a square matrix product, in 1e9 operations per second."""
    size = 8192 if device.type == "cuda" else size
    a, b = torch.randn(2, size, size).to(device, dtype)
    seconds = alternate({"product": lambda: void(a @ b)}, repeats, device)["product"]
    return 2e-9 * size**3 / float(seconds.min())


def void(value: object) -> None:
    """Drop a value, so that a run that returns one is not taken for one that timed itself."""


def quartiles(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.percentile(values, [25, 50, 75])]


def ratio(seconds: Mapping[str, np.ndarray], slow: str, fast: str) -> list[float]:
    """Return the quartiles of how many times as long `slow` takes, turn by turn."""
    return quartiles(seconds[slow] / seconds[fast])


def show_ratio(found: list[float]) -> str:
    low, middle, high = found
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def machine(device: torch.device) -> dict[str, Any]:
    """Return what figures depend on."""
    found: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": str(device) if device.type != "cuda" else torch.cuda.get_device_name(device),
    }
    if hasattr(os, "getloadavg"):
        found["load_before"] = round(os.getloadavg()[0], 2)
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} x {os.cpu_count()}"
    return f"{platform.processor() or platform.machine()} x {os.cpu_count()}"


def table(rows: list[list[str]]) -> str:
    """Align rows, the first of which is the heading, as a Markdown table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Goal:
    """A goal, and what was measured; more is better."""

    what: str
    wanted: float
    found: float

    def __str__(self) -> str:
        verdict = "met" if self.found >= self.wanted else f"MISSED by {1 - self.found / self.wanted:.0%}"
        return f"{self.what}: {self.found:.2f}, wanted {self.wanted:.2f}: {verdict}"


class KerasPeer:
    """The process that runs `keras_peer.py`; it does nothing while it is not asked.

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
        script = Path(__file__).with_name("keras_peer.py")
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [shutil.which(python) or python, str(script), json.dumps(sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.version = self._ask("ready")["version"]

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: what it printed says why
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
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._errors.close()


def start_keras(python: str | None, wanted: bool, **sizes: int) -> KerasPeer | None:
    """Start the Keras process with a Python, by default this one, or say on standard error why there is none."""
    if not wanted:
        return None
    try:
        return KerasPeer(python or sys.executable, **sizes)
    except (RuntimeError, OSError) as error:
        print(f"without Keras (--keras-python names an environment with TensorFlow): {error}", file=sys.stderr)
        return None
