"""Time features and predicted images against Keras' predict and against the obvious port to eager PyTorch.

    python benchmarks/speed/inference_speed.py [--keras-python PATH]    # full size; a few minutes on two cores
    python benchmarks/speed/inference_speed.py --device cuda
    python benchmarks/speed/inference_speed.py --quick                  # does it run?

All infer the same number of cells from arrays to arrays, in turn and in changing order. Keras' predict always computes
features and image, so it is what both are compared with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common
from common import Goal
from peers.eager_port import EagerPort
from peers.keras_process import start_keras
from speed import timing
from speed.steps import N_CLASSES
from speed.training_speed import QUICK, SIZES, add_options

from skbegan.core.engine import new_rng, resolve_device
from skbegan.core.networks import Generator, new_network, to_numpy
from skbegan.data.source import Scaling
from skbegan.model import FittedModel

OWN_SIZES = {**SIZES, "n_cells": 256}
GOALS = {("features", "float32"): 4.5, ("features", "bfloat16"): 10.0}
GOALS |= {("images", "float32"): 1.0, ("images", "bfloat16"): 2.0}


def our_runs(sizes: dict[str, int], device: torch.device, precisions: list[str]) -> dict[str, timing.Run]:
    """Return features and images as `transform` and `predict_image` compute them, by precision."""
    side, shape = sizes["side"], (sizes["side"], sizes["side"])
    images = np.random.default_rng(0).normal(size=(sizes["n_cells"], *shape)).astype(np.float32)
    how = {"base_width": sizes["base_width"], "n_features": sizes["n_features"]}
    weights = to_numpy(new_network(Generator, side, **how, rng=new_rng(0)))
    runs: dict[str, timing.Run] = {}
    for precision in precisions:
        model = FittedModel(weights, Scaling.identity(1), Scaling.identity(1), shape, shape)

        def run(want: Any, model: FittedModel = model, precision: str = precision) -> None:
            model.predict(images, want, device=str(device), precision=precision)

        for want in ("features", "images"):
            runs[f"{want}, skbegan {precision}"] = lambda want=want, run=run: run(want)  # type: ignore[misc]
    return runs


def eager_run(sizes: dict[str, int], device: torch.device) -> timing.Run:
    bf = torch.randn(sizes["n_cells"], 1, sizes["side"], sizes["side"], generator=new_rng(0))
    port = EagerPort(sizes["side"], sizes["base_width"], sizes["n_features"], N_CLASSES, device)
    return lambda: timing.void([values.cpu().numpy() for values in port.predict(bf.to(device))])


def report(seconds: dict[str, np.ndarray], n_cells: int) -> tuple[str, list[Goal]]:
    """Return the table, and the goals with what was found."""
    peers = {"vs Keras": "Keras predict", "vs eager": "eager"}
    rows = [["of", "ms", "quartiles", "cells/s", *peers]]
    rows += [timing.row(seconds, name, n_cells, peers) for name in seconds]
    goals = []
    for (want, precision), wanted in GOALS.items():
        name = f"{want}, skbegan {precision}"
        if "Keras predict" in seconds and name in seconds:
            found = timing.ratio(seconds, "Keras predict", name)[1]
            goals.append(Goal(f"{want}, {precision}: times as fast as Keras", found, ">=", wanted))
    return f"{common.table(rows)}\n\n```text\n{common.goals_text(goals)}\n```", goals


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, keep the figures."""
    parser = common.parser(__doc__, "inference_speed")
    common.add_sizes(parser, OWN_SIZES)
    add_options(parser)
    args = parser.parse_args(arguments)
    sizes = common.sizes(args, OWN_SIZES, QUICK)
    device, about = resolve_device(args.device), common.machine()
    keras = start_keras(args.keras_python, not args.no_keras, n_classes=N_CLASSES, **sizes)
    try:
        runs = {**our_runs(sizes, device, args.precisions), "eager": eager_run(sizes, device)}
        if keras is not None:
            runs["Keras predict"] = lambda: keras.run("predict")
        seconds = timing.alternate(runs, 2 if args.quick else args.repeats, device)
    finally:
        if keras is not None:
            keras.close()
    about |= {"device": str(device), "threads": torch.get_num_threads(), "keras": keras and keras.version}
    text, goals = report(seconds, sizes["n_cells"])
    kept = {"machine": about, "sizes": sizes, "seconds": {name: list(values) for name, values in seconds.items()}}
    common.write(args.out, f"{about}\n\n{sizes}\n\n{text}", kept | {"goals": [goal.record() for goal in goals]})


if __name__ == "__main__":
    main()
