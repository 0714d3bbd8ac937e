"""Time training steps against an equivalent of the original in Keras and against the obvious port to eager PyTorch.

    python benchmarks/speed/training_speed.py [--keras-python PATH] [--profile]    # some minutes on two cores
    python benchmarks/speed/training_speed.py --device cuda --minibatch-size 256   # a card; without Keras unless there
    python benchmarks/speed/training_speed.py --quick                              # does it run?

All do the same step on the same sizes, in turn and in changing order; figures are medians and quartiles of times and of
their ratios turn by turn. Beside them stand the arithmetic of our step and the machine's own rate of matrix products.
"""

from __future__ import annotations

import argparse
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
from peers.keras_process import KerasPeer, start_keras
from speed import timing
from speed.steps import N_CLASSES, Steps
from speed.timing import PRECISIONS

from skbegan.core.engine import new_rng, resolve_device

SIZES = {"side": 128, "base_width": 64, "n_features": 512, "minibatch_size": 10, "n_cells": 2000}
QUICK = {"side": 16, "base_width": 4, "n_features": 16, "n_cells": 140}
FITS = "classifier fits"
# Key of an option -> label; what builds it in Keras, and what it is called there.
STEPS = {"stage1": "stage 1", "published": "published stage 2", "default": "default stage 2", "classifiers": FITS}
KERAS: dict[str, tuple[str, dict[str, str]]] = {
    "stage 1": ("build_stage_1", {"Keras": "stage_1_step"}),
    "published stage 2": ("build_stage_2", {"Keras": "stage_2_step", "Keras, printing": "stage_2_step_printing"}),
    FITS: ("build_classifiers", {"Keras": "refresh"}),
}
# How many times as fast as a peer a step is to be, by precision; "printing" is Keras with the predictions that the
# original makes for its progress line.
GOALS = {
    ("stage 1", "float32"): {"Keras": 1.1, "eager": 1.25},
    ("stage 1", "bfloat16"): {"Keras": 2.0},
    ("published stage 2", "float32"): {"Keras": 1.1, "Keras, printing": 1.4},
    ("published stage 2", "bfloat16"): {"Keras": 2.0},
    (FITS, "float32"): {"Keras": 10.0},
}
RATE_GOALS = {"float32": 0.95, "bfloat16": 0.85}  # of stage 1, as a share of the rate of matrix products


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "training_speed")
    common.add_sizes(parser, SIZES)
    add_options(parser)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS), metavar="STEP")
    parser.add_argument("--compile", action="store_true", help="train with compile=True")
    parser.add_argument("--profile", action="store_true", help="also say where the time of our steps goes")
    return parser.parse_args(arguments)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark and that of inference have in common."""
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="with --quick 2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--no-keras", action="store_true", help="without Keras")
    parser.add_argument("--keras-python", metavar="PATH", help="Python with TensorFlow; default: this one")


def eager_runs(sizes: dict[str, int], device: torch.device) -> dict[str, timing.Run]:
    n, side, rng = sizes["minibatch_size"], sizes["side"], new_rng(0)
    bf, qpi = torch.randn(2, n, 1, side, side, generator=rng).to(device)
    types = torch.randint(N_CLASSES, (n,), generator=rng).to(device)
    port = EagerPort(side, sizes["base_width"], sizes["n_features"], N_CLASSES, device)
    return {
        "stage 1": lambda: port.stage_1_step(bf, qpi),
        "published stage 2": lambda: port.stage_2_step(bf, qpi, types),
    }


def measure(args: argparse.Namespace, sizes: dict[str, int], device: torch.device, keras: KerasPeer | None) -> Any:
    ours, eager = Steps(sizes, device, args.compile), eager_runs(sizes, device)
    results: dict[str, Any] = {}
    for label in (STEPS[key] for key in args.steps):
        found: dict[str, Any] = {}
        if label == FITS:
            runs: dict[str, timing.Run] = {"skbegan float32": ours.classifier_fits()}
        else:
            steps = {name: ours.step(label, dtype) for name, dtype in PRECISIONS.items()}
            found |= {"gflop": timing.gflop(steps["bfloat16"]), "gflop_done": timing.gflop(steps["float32"])}
            runs = {f"skbegan {name}": steps[name] for name in args.precisions}
            if args.profile:
                found["profile"] = {name: timing.profile(run, device) for name, run in runs.items()}
        if label in eager:
            runs["eager"] = eager[label]
        if keras is not None and label in KERAS:
            build, calls = KERAS[label]
            for number, (name, call) in enumerate(calls.items()):
                keras.prepare(call, "" if number else build)
                runs[name] = lambda call=call: keras.run(call)  # type: ignore[misc]
        found["seconds"] = timing.alternate(runs, 2 if args.quick else args.repeats, device)
        results[label] = found
        print(f"{label}: measured", flush=True)
    return results


def report(results: dict[str, Any], rates: dict[str, float], minibatch_size: int) -> tuple[str, list[Goal]]:
    """Return the tables, and the goals with what was found."""
    rows = [["step", "of", "ms", "quartiles", "images/s", "vs Keras", "vs eager", "GFLOP/s", "of the rate"]]
    goals, texts = [], []
    for label, found in results.items():
        seconds = {name: np.array(values) for name, values in found["seconds"].items()}
        for name in seconds:
            n_cells = None if label == FITS else minibatch_size
            row = [label, *timing.row(seconds, name, n_cells, {"vs Keras": "Keras", "vs eager": "eager"})]
            rows.append(row)
            if not name.startswith("skbegan"):
                continue
            precision = name.removeprefix("skbegan ")
            if "gflop" in found:
                rate = found["gflop"] / float(np.median(seconds[name]))
                row += [f"{rate:.0f}", f"{rate / rates[precision]:.0%}"]
                if label == "stage 1":
                    what = f"{label}, {precision}: share of the rate"
                    goals.append(Goal(what, rate / rates[precision], ">=", RATE_GOALS[precision]))
            for peer, wanted in GOALS.get((label, precision), {}).items():
                if peer in seconds:
                    middle = timing.ratio(seconds, peer, name)[1]
                    goals.append(Goal(f"{label}, {precision}: times as fast as {peer}", middle, ">=", wanted))
        if "gflop" in found:
            texts.append(f"{label}: {found['gflop']:.3g} GFLOP as direct sums, {found['gflop_done']:.3g} as in float32")
        for name, shares in found.get("profile", {}).items():
            texts.append(f"{label}, {name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()))
    rate_text = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    texts.append(f"matrix products, GFLOP/s: {rate_text}")
    return "\n\n".join([common.table(rows), *texts, f"```text\n{common.goals_text(goals)}\n```"]), goals


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, keep the figures."""
    args = parse_arguments(arguments)
    sizes = common.sizes(args, SIZES, QUICK)
    device, about = resolve_device(args.device), common.machine()
    keras = start_keras(args.keras_python, not args.no_keras, n_classes=N_CLASSES, **sizes)
    try:
        rates = {name: timing.matrix_rate(PRECISIONS[name], device) for name in args.precisions}
        results = measure(args, sizes, device, keras)
    finally:
        if keras is not None:
            keras.close()
    about |= {"device": str(device), "threads": torch.get_num_threads(), "keras": keras and keras.version}
    for found in results.values():
        found["seconds"] = {name: list(values) for name, values in found["seconds"].items()}
    text, goals = report(results, rates, sizes["minibatch_size"])
    kept = {"machine": about, "sizes": sizes, "matrix_rate": rates, "results": results}
    kept["goals"] = [goal.record() for goal in goals]
    common.write(args.out, f"{about}\n\n{sizes}\n\n{text}", kept)


if __name__ == "__main__":
    main()
