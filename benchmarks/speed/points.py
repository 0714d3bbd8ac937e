"""One point of `scaling.py`, measured in this process: ``python points.py POINT``, POINT and the answer being JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

N_TYPES, N_BATCHES = 4, 4
N_SIMULATED = 256  # cells that are simulated; more are these, repeated
MIB = 2**20
Point = dict[str, Any]


def memory() -> dict[str, float]:
    """Return resident memory in MiB and, on Linux, what of it is the process's own."""
    info = psutil.Process().memory_info()
    own = {"own": (info.rss - info.shared) / MIB} if hasattr(info, "shared") else {}
    return {"resident": info.rss / MIB, **own}


@contextlib.contextmanager
def measured(found: Point) -> Iterator[None]:
    """Put into `found` the time in seconds and the memory in MiB that the block takes at its peak."""
    before = memory()
    peak, done = dict(before), threading.Event()

    def note() -> None:
        for name, value in memory().items():
            peak[name] = max(peak[name], value)

    def watch() -> None:
        while not done.wait(0.005):
            note()

    threading.Thread(target=watch, daemon=True).start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        found["cpu"], found["wall"] = time.process_time() - cpu, time.perf_counter() - wall
        done.set()
        note()
        found |= {"own": None, **{name: peak[name] - before[name] for name in before}}


def simulated(n_cells: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return brightfield, target, batch and cell type of `n_cells`, of which only a few are simulated."""
    from skbegan.datasets import make_cell_images

    cells = make_cell_images(min(n_cells, N_SIMULATED), N_TYPES, N_BATCHES, side, random_state=0)
    rows = np.arange(n_cells) % len(cells.bf)
    bf, qpi = (np.asarray(images, np.float32)[rows] for images in (cells.bf, cells.qpi))
    return bf, qpi, cells.batch[rows], cells.cell_type[rows]


def estimator(point: Point, **parameters: Any) -> Any:
    """Return the transformer of a point."""
    from skbegan import BeGANTransformer

    sizes = {name: point[name] for name in ("base_width", "n_features")}
    return BeGANTransformer(**sizes, device="cpu", random_state=0, **parameters)


def training_bytes(point: Point) -> dict[str, int]:
    """Return what each network of stage 2 takes: weights, gradients, two moments of Adam, and buffers."""
    import torch
    from speed.steps import Steps

    sizes = {**{name: point[name] for name in ("side", "base_width", "n_features")}, "minibatch_size": 64}
    plan, _ = Steps(sizes, torch.device("cpu"), n_classes=N_TYPES).plan("default stage 2", torch.float32)
    found = {}
    for name, network in plan.networks.items():
        weights = sum(weight.numel() * weight.element_size() for weight in network.parameters())
        found[name] = 4 * weights + sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    return found


def measure_fit(point: Point) -> Point:
    """Measure one fit; its parts are read off the ends of epochs.

    What is due once before stage 2 is what passes between the stages and is no epoch. The statistics are timed by
    themselves afterwards; what follows stage 2 without them is stage 3.
    """
    from skbegan import OnlineRemoval, fit  # noqa: F401  loaded before memory is read

    data = simulated(point["cells"], point["side"])
    ends: dict[str, list[float]] = {"pretraining": [], "batch_removal": []}
    model = estimator(
        point,
        **{name: point[name] for name in ("pretrain_epochs", "removal_epochs", "refresh_epochs")},
        removal=OnlineRemoval(warmup_epochs=point.get("warmup_epochs", OnlineRemoval().warmup_epochs)),
        callback=lambda info: ends[info.stage].append(time.process_time()),
    )
    found: Point = {}
    start = time.process_time()
    with measured(found):
        model.fit(*data)
    end = time.process_time()
    model.recalibrate(data[0])
    statistics = time.process_time() - end
    last = ends["batch_removal"][-1]
    parts = {"statistics": statistics, "stage 3": max(0.0, end - last - statistics)}
    for stage, label, began in (("pretraining", "stage 1", start), ("batch_removal", "stage 2", None)):
        if len(ends[stage]) > 1:
            epoch = (ends[stage][-1] - ends[stage][0]) / (len(ends[stage]) - 1)
            began = ends["pretraining"][-1] if began is None else began
            parts |= {f"{label}, epoch": epoch, f"{label}, once": max(0.0, ends[stage][0] - began - epoch)}
    networks = {name: size / MIB for name, size in training_bytes(point).items()}
    return {**found, "data": (data[0].nbytes + data[1].nbytes) / MIB, "networks": networks, "parts": parts}


def write_cells(point: Point) -> Point:
    """Write brightfields to a file that can be mapped, in chunks."""
    bf = simulated(N_SIMULATED, point["side"])[0]
    file = np.lib.format.open_memmap(point["file"], "w+", bf.dtype, (point["cells"], *bf.shape[1:]))
    for start in range(0, point["cells"], len(bf)):
        file[start : start + len(bf)] = bf[: point["cells"] - start]
    return {}


def write_model(point: Point) -> Point:
    """Write a model: after one epoch of stage 2, or untrained if its networks are wide."""
    from skbegan import OnlineRemoval, save

    short = {"pretrain_epochs": 0, "removal_epochs": int(point["base_width"] < 32), "minibatch_size": 16}
    model = estimator(point, **short, removal=OnlineRemoval(warmup_epochs=0))
    save(model.fit(*simulated(64, point["side"])), point["model"])
    return {}


def measure_inference(point: Point) -> Point:
    """Measure transform or predict_image of a memory map."""
    from skbegan import load

    model = load(point["model"])
    images = np.load(point["file"], mmap_mode="r")[: point["cells"]]
    getattr(model, point["method"])(np.array(images[:2]))  # builds the generator
    found: Point = {}
    with measured(found):
        result = getattr(model, point["method"])(images)
    return {**found, "output": result.nbytes / MIB, "input": images.nbytes / MIB}


def measure_metric(point: Point) -> Point:
    """Measure one audit of features, or of images, from which types and batches can be read, not without error."""
    from skbegan import metrics
    from skbegan.metrics import auditing  # noqa: F401  loaded before memory is read

    rng = np.random.default_rng(0)
    n, name = point["cells"], point["metric"]
    cell_type, batch = rng.integers(N_TYPES, size=n), rng.integers(N_BATCHES, size=n)
    size = 64 if not name.startswith("image") else 32 * 32
    features = rng.normal(size=(n, size)).astype(np.float32)
    features += (0.3 * rng.normal(size=(N_TYPES, size))[cell_type]).astype(np.float32)
    features += (0.15 * rng.normal(size=(N_BATCHES, size))[batch]).astype(np.float32)
    labels = (batch, cell_type)
    runs: dict[str, Callable[[], Any]] = {
        "linear": lambda: metrics.batch_leakage(features, *labels, probe="linear"),
        "mlp": lambda: metrics.batch_leakage(features, *labels, probe="mlp"),
        "knn": lambda: metrics.batch_leakage(features, *labels, probe="knn"),
        "cross_batch": lambda: metrics.cross_batch_accuracy(features, *labels),
        "cell_type": lambda: metrics.cell_type_accuracy(features, cell_type),
        "image": lambda: metrics.image_leakage(features.reshape(n, 32, 32), *labels),
        "image_knn": lambda: metrics.image_leakage(features.reshape(n, 32, 32), *labels, probe="knn"),
        "integration": lambda: metrics.integration_scores(features, *labels).ilisi.score,
    }
    found: Point = {}
    with measured(found):
        found["value"] = float(runs[name]())
    return found


KINDS = {
    "fit": measure_fit,
    "cells": write_cells,
    "model": write_model,
    "inference": measure_inference,
    "metric": measure_metric,
}

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(KINDS[given["kind"]](given)))
