"""One point of `scaling.py`, measured in the process that calls it: a fit, an inference or a metric at one size."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

N_TYPES, N_BATCHES = 4, 4
N_SIMULATED = 256  # cells that are simulated; more are these, repeated
MIB = 2**20
STATUS = Path("/proc/self/status")
EPOCHS = {"pretrain_epochs": 2, "removal_epochs": 4, "refresh_epochs": 3}
Point = dict[str, Any]


def resident() -> dict[str, float | None]:
    """Return resident memory in MiB: ``now``, its ``peak``, and what is the process's ``own``; None if not known."""
    if STATUS.exists():
        lines = (line.split() for line in STATUS.read_text(encoding="utf-8").splitlines())
        sizes = {line[0]: int(line[1]) / 1024 for line in lines if line[0].startswith(("VmRSS", "VmHWM", "RssAnon"))}
        return {"now": sizes.get("VmRSS:"), "peak": sizes.get("VmHWM:"), "own": sizes.get("RssAnon:")}
    try:
        import resource
    except ImportError:  # Windows
        return {"now": None, "peak": None, "own": None}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
    return {"now": peak, "peak": peak, "own": None}


@contextlib.contextmanager
def measured(found: Point) -> Iterator[None]:
    """Put into `found` the time in seconds and the memory in MiB that the block takes."""
    with contextlib.suppress(OSError):  # the peak so far is of no interest
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident()
    own_peak, done = [before["own"] or 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            own_peak[0] = max(own_peak[0], resident()["own"] or 0.0)

    watcher = threading.Thread(target=watch, daemon=True)
    if before["own"] is not None:
        watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        found["cpu"], found["wall"] = time.process_time() - cpu, time.perf_counter() - wall
        done.set()
        after = resident()
        found["resident_before"], found["resident_peak"] = before["now"], after["peak"]
        known = before["now"] is not None and after["peak"] is not None
        found["resident"] = after["peak"] - before["now"] if known else None  # type: ignore[operator]
        found["own"] = None if before["own"] is None else own_peak[0] - before["own"]


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

    return BeGANTransformer(
        base_width=point["base_width"], n_features=point["n_features"], device="cpu", random_state=0, **parameters
    )


def timed(function: Callable[..., Any], into: dict[str, float], name: str) -> Callable[..., Any]:
    """Return a function that does the same and adds its processor time to ``into[name]``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            into[name] = into.get(name, 0.0) + time.process_time() - start

    return call


def training_bytes(stage: Any) -> dict[str, int]:
    """Return what each network of a stage takes: weights, gradients, two moments of Adam, and buffers."""
    found = {}
    for name, network in stage.networks.items():
        weights = sum(weight.numel() * weight.element_size() for weight in network.parameters())
        found[name] = 4 * weights + sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    return found


def measure_fit(point: Point) -> Point:
    """Measure one fit, in parts."""
    from skbegan import fitting, validation
    from skbegan.core import inference, recipe  # noqa: F401  imported before memory is looked at

    data = simulated(point["cells"], point["side"])
    ends: dict[str, list[float]] = {}
    parts: dict[str, float] = {}
    networks: dict[str, int] = {}

    def after_epoch(info: Any) -> None:
        ends.setdefault(info.stage, []).append(time.process_time())

    def train(stage: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = original(stage, *args, **kwargs)
        networks.clear()
        networks.update(training_bytes(stage))
        return outcome

    original, recipe.train = recipe.train, train
    validation.check_fit_input = timed(validation.check_fit_input, parts, "checks")
    fitting._arrays = timed(fitting._arrays, parts, "checks")
    for name in ("pretrain", "remove_batch", "calibrate", "finish"):
        setattr(recipe, name, timed(getattr(recipe, name), parts, name))
    parameters = {name: point[name] for name in EPOCHS}
    if "warmup_epochs" in point:
        parameters["warmup_epochs"] = point["warmup_epochs"]
    model = estimator(point, callback=after_epoch, **parameters)
    found: Point = {}
    with measured(found):
        model.fit(*data)
    found["data"] = (data[0].nbytes + data[1].nbytes) / MIB
    found["networks"] = {name: size / MIB for name, size in networks.items()}
    found["parts"] = {"checks": parts["checks"], "statistics": parts["calibrate"], "closing fits": parts["finish"]}
    for stage, name, label in (
        ("pretraining", "pretrain", "stage 1"),
        ("batch_removal", "remove_batch", "stage 2"),
    ):
        if len(ends.get(stage, ())) > 1:  # the first epoch is left out: what is due once comes before it
            epoch = (ends[stage][-1] - ends[stage][0]) / (len(ends[stage]) - 1)
            found["parts"][f"{label}, epoch"] = epoch
            found["parts"][f"{label}, once"] = max(0.0, parts[name] - len(ends[stage]) * epoch)
    return found


def write_cells(point: Point) -> Point:
    """Write brightfields to a file that can be mapped, in chunks."""
    bf = simulated(N_SIMULATED, point["side"])[0]
    shape = (point["cells"], *bf.shape[1:])
    with Path(point["file"]).open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(bf.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, point["cells"], len(bf)):
            file.write(bf[: point["cells"] - start].tobytes())
    return {}


def write_model(point: Point) -> Point:
    """Write a model: after one epoch of stage 2, or untrained if its networks are wide."""
    from skbegan import save

    data = simulated(64, point["side"])
    trained = point["base_width"] < 32
    model = estimator(point, pretrain_epochs=0, removal_epochs=int(trained), warmup_epochs=0, minibatch_size=16)
    save(model.fit(*data), point["model"])
    return {}


def measure_inference(point: Point) -> Point:
    """Measure transform or predict_image of a memory map."""
    from skbegan import load
    from skbegan.core import inference, recipe  # noqa: F401  imported before memory is looked at

    model = load(point["model"])
    images = np.load(point["file"], mmap_mode="r")[: point["cells"]]
    getattr(model, point["method"])(np.array(images[:2]))  # builds the generator
    found: Point = {}
    with measured(found):
        result = getattr(model, point["method"])(images)
    return {**found, "output": result.nbytes / MIB, "input": images.nbytes / MIB}


def measure_metric(point: Point) -> Point:
    """Measure one audit of features, or of images, in which types and batches can be told, not without error."""
    from skbegan import metrics
    from skbegan.metrics import auditing  # noqa: F401  imported before memory is looked at

    rng = np.random.default_rng(0)
    n, name = point["cells"], point["metric"]
    cell_type, batch = rng.integers(N_TYPES, size=n), rng.integers(N_BATCHES, size=n)
    size = 64 if not name.startswith("image") else 32 * 32
    features = rng.normal(size=(n, size)).astype(np.float32)
    features += (0.3 * rng.normal(size=(N_TYPES, size))[cell_type]).astype(np.float32)
    features += (0.15 * rng.normal(size=(N_BATCHES, size))[batch]).astype(np.float32)
    images = features.reshape(n, 32, 32) if name.startswith("image") else features
    runs: dict[str, Callable[[], Any]] = {
        **{probe: lambda: metrics.batch_leakage(features, batch, cell_type, probe=name) for probe in ("linear", "mlp")},
        "knn": lambda: metrics.batch_leakage(features, batch, cell_type, probe="knn"),
        "cross_batch": lambda: metrics.cross_batch_accuracy(features, batch, cell_type),
        "cell_type": lambda: metrics.cell_type_accuracy(features, cell_type),
        "image": lambda: metrics.image_leakage(images, batch, cell_type),
        "image_knn": lambda: metrics.image_leakage(images, batch, cell_type, probe="knn"),
        "integration": lambda: metrics.integration_scores(features, batch, cell_type).ilisi.score,
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
