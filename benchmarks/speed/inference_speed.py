"""Time features and predicted images against Keras' predict and against the obvious port to eager PyTorch.

    python benchmarks/inference_speed.py [--keras-python PATH]    # full size; a few minutes on two cores
    python benchmarks/inference_speed.py --device cuda
    python benchmarks/inference_speed.py --quick                  # does it run?

All infer the same number of cells from arrays to arrays, in turn and in changing order. Keras' predict always computes
features and image, so it is what both are compared with. See README.md in this folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from eager_port import EagerPort
from timing import Goal
from training_speed import N_CLASSES, PRECISIONS, QUICK, SIZES

from skbegan.core.data import ImageStack, Scaling
from skbegan.core.device import new_rng, place, resolve_device
from skbegan.core.inference import fold, infer
from skbegan.core.networks import Generator, build

N_CELLS = 256
GOALS = {("features", "float32"): 4.5, ("features", "bfloat16"): 10.0}
GOALS |= {("images", "float32"): 1.0, ("images", "bfloat16"): 2.0}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("side", "base_width", "n_features"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"default: {SIZES[name]}")
    parser.add_argument("--n-cells", type=int, metavar="N", help=f"default: {N_CELLS}")
    parser.add_argument("--repeats", type=int, default=7, metavar="N")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--no-keras", action="store_true", help="without Keras")
    parser.add_argument("--keras-python", metavar="PATH", help="Python with TensorFlow; default: this one")
    parser.add_argument("--out", type=Path, default=Path("outputs/inference_speed"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; the figures mean nothing")
    return parser.parse_args(arguments)


def our_runs(sizes: dict[str, int], device: torch.device, precisions: list[str]) -> dict[str, timing.Run]:
    """Return features and images as `transform` and `predict_image` compute them, by precision."""
    side = sizes["side"]
    images = np.random.default_rng(0).normal(size=(sizes["n_cells"], side, side)).astype(np.float32)
    runs: dict[str, timing.Run] = {}
    for precision in precisions:
        dtype = PRECISIONS[precision]
        generator = build(
            Generator, side, base_width=sizes["base_width"], n_features=sizes["n_features"], rng=new_rng(0)
        )
        generator = fold(place(generator, device, dtype), dtype)
        stack = ImageStack(images, Scaling.identity(1), device, dtype)
        for want in ("features", "images"):
            runs[f"{want}, skbegan {precision}"] = lambda g=generator, s=stack, w=want, d=dtype: timing.void(  # type: ignore[misc]
                infer(g, s, want=w, dtype=d)
            )
    return runs


def eager_run(sizes: dict[str, int], device: torch.device) -> timing.Run:
    side = sizes["side"]
    bf = torch.randn(sizes["n_cells"], 1, side, side, generator=new_rng(0))
    port = EagerPort(side, sizes["base_width"], sizes["n_features"], N_CLASSES, device)

    def run() -> None:
        for values in port.predict(bf.to(device)):
            values.cpu().numpy()

    return run


def report(seconds: dict[str, np.ndarray], n_cells: int) -> tuple[str, list[Goal]]:
    """Return the table, and the goals with what was found."""
    rows = [["of", "ms", "quartiles", "cells/s", "vs Keras", "vs eager"]]
    goals = []
    for name, values in seconds.items():
        low, middle, high = timing.quartiles(values)
        row = [name, f"{1e3 * middle:.0f}", f"{1e3 * low:.0f}-{1e3 * high:.0f}", f"{n_cells / middle:.0f}"]
        for peer in ("Keras predict", "eager"):
            row.append(timing.show_ratio(timing.ratio(seconds, peer, name)) if peer in seconds else "")
        rows.append(row)
        want, _, precision = name.partition(", skbegan ")
        if "Keras predict" in seconds and (want, precision) in GOALS:
            found = timing.ratio(seconds, "Keras predict", name)[1]
            goals.append(Goal(f"{want}, {precision}: times as fast as Keras", GOALS[want, precision], found))
    return timing.table(rows), goals


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, keep the figures."""
    args = parse_arguments(arguments)
    given = {name: value for name, value in vars(args).items() if value is not None}
    sizes = {**(QUICK if args.quick else SIZES | {"n_cells": N_CELLS}), **{n: given[n] for n in SIZES if n in given}}
    device = resolve_device(args.device)
    about: dict[str, Any] = timing.machine(device)
    keras = timing.start_keras(args.keras_python, not args.no_keras, n_classes=N_CLASSES, **sizes)
    try:
        runs = {**our_runs(sizes, device, args.precisions), "eager": eager_run(sizes, device)}
        if keras is not None:
            about["keras"] = keras.version
            runs["Keras predict"] = lambda: keras.run("predict")
        seconds = timing.alternate(runs, 2 if args.quick else args.repeats, device)
    finally:
        if keras is not None:
            keras.close()
    text, goals = report(seconds, sizes["n_cells"])
    print(f"{about}\n{sizes}\n\n{text}\n\n" + "\n".join(map(str, goals)))
    kept = {name: list(values) for name, values in seconds.items()}
    about |= {"sizes": sizes, "seconds": kept, "goals": list(map(str, goals))}
    timing.write_json(args.out / "results.json", about)
    (args.out / "table.md").write_text(text + "\n\n" + "\n".join(map(str, goals)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
