"""What all benchmarks share: options and sizes, tables, goals, the machine, and how results are kept."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

PACKAGES = ("skbegan", "torch", "numpy", "scikit-learn", "combatlearn", "harmonypy", "concept-erasure")


# Options --------------------------------------------------------------------------------------------------------------


def parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--out", type=Path, default=Path("outputs") / out, metavar="DIR", help=f"default: outputs/{out}")
    made.add_argument("--quick", action="store_true", help="tiny, to see that it runs; the figures mean nothing")
    return made


def add_sizes(made: Any, full: Mapping[str, Any]) -> None:
    """Add an option for each size: an integer, or several where the default is a list."""
    for name, value in full.items():
        several = {"nargs": "*"} if isinstance(value, list) else {}
        made.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"default: {value}", **several)


def sizes(args: argparse.Namespace, full: Mapping[str, Any], quick: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes as given, else as they are by default, or with --quick."""
    defaults = {**full, **quick} if args.quick else full
    return {name: value if getattr(args, name) is None else getattr(args, name) for name, value in defaults.items()}


# Tables and goals -----------------------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which is the heading, as an aligned Markdown table; short rows are filled up."""
    full = [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in full]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def spread(values: ArrayLike, digits: int = 2) -> str:
    """Write a mean and, for several values, their standard deviation."""
    found = np.atleast_1d(values)
    mean = f"{found.mean():.{digits}f}"
    mean = mean.removeprefix("-") if float(mean) == 0 else mean
    return mean if len(found) < 2 else f"{mean}±{found.std(ddof=1):.{digits}f}"


def number(value: float) -> str:
    """Write a number with three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Goal:
    """A figure and its limit; a figure that was not measured (None) meets no goal.

    Attributes
    ----------
    what : str
    value : float or None
    sign : {"<=", "<", ">=", ">"}
    limit : float
    """

    what: str
    value: float | None
    sign: str
    limit: float

    @property
    def missed(self) -> float:
        """By how much it is missed; negative is better than asked for, NaN was not measured."""
        return np.nan if self.value is None else (self.limit - self.value) * (1 if self.sign[0] == ">" else -1)

    @property
    def met(self) -> bool:
        return bool(self.missed <= 1e-12 if self.sign.endswith("=") else self.missed < 0)

    def __str__(self) -> str:
        if self.value is None:
            return f"-       {self.what}: not measured"
        text = f"{self.what}: {number(self.value)}, wanted {self.sign} {number(self.limit)}"
        return f"met     {text}" if self.met else f"MISSED  {text}, missed by {number(abs(self.missed))}"

    def record(self) -> dict[str, Any]:
        """Return what results.json keeps."""
        return {"goal": self.what, "sign": self.sign, "value": self.value, "limit": self.limit, "met": self.met}


def goals_text(goals: Sequence[Goal]) -> str:
    """Write goals, those that were missed first."""
    if not goals:
        return "No goal could be checked: what it is held against was not run."
    ordered = sorted(goals, key=lambda goal: goal.met)
    return "\n".join([f"Goals met: {sum(goal.met for goal in goals)} of {len(goals)}", *map(str, ordered)])


# Results --------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return what figures may depend on."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    found: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "processor": f"{names[0] if names else platform.processor() or platform.machine()} x {os.cpu_count()}",
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if hasattr(os, "getloadavg"):
        found["load before"] = round(os.getloadavg()[0], 2)
    return found


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_json(path: Path, value: Any) -> None:
    """Write at once or not at all, so that what is stopped leaves no half of a file."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1, default=str), encoding="utf-8")
    part.replace(path)


def write(out: Path, text: str, results: Mapping[str, Any]) -> None:
    """Print a text and keep it as table.md, with the results as results.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    write_json(out / "results.json", results)
    print(f"\n{text}\n\nWritten to {out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}")
