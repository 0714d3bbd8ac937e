"""Timing in alternation, ratios, and the machine's own rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Run = Callable[[], float | None]


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


def synchronise(device: torch.device) -> None:
    """Wait for a CUDA device, so that a time is that of the work and not of its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def void(value: object) -> None:
    """Drop a value, so that a run that returns one is not taken for one that timed itself."""


def gflop(run: Callable[[], object]) -> float:
    """Count the arithmetic of matrix products and convolutions in a run, forward and backward, in 1e9 operations.

    As it is done: on CPUs some convolutions in float32 need fewer operations than the direct sum, those in bfloat16 do
    not, and count as direct sums.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 2048, repeats: int = 7) -> float:
    """Measure the best rate of a square matrix product, in 1e9 operations per second."""
    size = 8192 if device.type == "cuda" else size
    a, b = torch.randn(2, size, size).to(device, dtype)
    seconds = alternate({"product": lambda: void(a @ b)}, repeats, device)["product"]
    return 2e-9 * size**3 / float(seconds.min())


def profile(run: Run, device: torch.device) -> dict[str, float]:
    """Return the share of a run's time that each kind of operation takes itself, the largest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: float(getattr(event, own)) for event in profiler.key_averages()}
    return {name: value / sum(times.values()) for name, value in sorted(times.items(), key=lambda i: -i[1])[:12]}


def ratio(seconds: Mapping[str, np.ndarray], slow: str, fast: str) -> np.ndarray:
    """Return the quartiles of how many times as long `slow` takes, turn by turn."""
    found: np.ndarray = np.percentile(seconds[slow] / seconds[fast], [25, 50, 75])
    return found


def row(seconds: Mapping[str, np.ndarray], name: str, n_cells: int | None, peers: Mapping[str, str]) -> list[str]:
    """Return median, quartiles, cells per second and ratios to peers (heading -> name of the run) for a table."""
    low, middle, high = np.percentile(seconds[name], [25, 50, 75])
    found = [name, f"{1e3 * middle:.0f}", f"{1e3 * low:.0f}-{1e3 * high:.0f}"]
    found.append("" if n_cells is None else f"{n_cells / middle:.3g}")
    for peer in peers.values():
        quartiles: Any = ratio(seconds, peer, name) if peer in seconds else None
        found.append("" if quartiles is None else "{1:.2f} ({0:.2f}-{2:.2f})".format(*quartiles))
    return found
