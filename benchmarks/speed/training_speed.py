"""Time training steps against an equivalent of the original in Keras and against the obvious port to eager PyTorch.

    python benchmarks/training_speed.py [--keras-python PATH] [--profile]     # full size; some minutes on two cores
    python benchmarks/training_speed.py --device cuda --minibatch-size 256    # a card; without Keras unless it is there
    python benchmarks/training_speed.py --quick                               # does it run?

All do the same step on the same sizes, in turn and in changing order; figures are medians and quartiles of times and of
their ratios turn by turn. Beside them stand the arithmetic of our step and the machine's own rate of matrix products.
See README.md in this folder for what is compared and what was found.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from eager_port import EagerPort
from timing import Goal, KerasPeer

from skbegan import PUBLISHED, BeGANTransformer
from skbegan.core import recipe
from skbegan.core.classifiers import fit_classifier
from skbegan.core.data import Scaling
from skbegan.core.device import new_rng, place, resolve_device
from skbegan.core.networks import CELL_TYPE_HIDDEN, FeatureClassifier, build
from skbegan.core.published_removal import FeatureSubsets

N_CLASSES = 7
SIZES = {"side": 128, "base_width": 64, "n_features": 512, "minibatch_size": 10, "n_cells": 2000}
QUICK = {"side": 16, "base_width": 4, "n_features": 16, "minibatch_size": 10, "n_cells": 140}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Ratios to Keras and to the eager port that are wanted of a step, by precision; 1.4 is against Keras with the
# predictions that the original makes for its progress line.
GOALS = {
    ("stage 1", "float32"): {"Keras": 1.1, "eager": 1.25},
    ("stage 1", "bfloat16"): {"Keras": 2.0},
    ("published stage 2", "float32"): {"Keras": 1.1, "Keras, printing": 1.4},
    ("published stage 2", "bfloat16"): {"Keras": 2.0},
    ("classifier fits", "float32"): {"Keras": 10.0},
}
RATE_GOALS = {"float32": 0.95, "bfloat16": 0.85}  # of stage 1, as a share of the rate of matrix products


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"default: {value}")
    parser.add_argument("--repeats", type=int, default=7, metavar="N")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS), metavar="STEP")
    parser.add_argument("--compile", action="store_true", help="train with compile=True")
    parser.add_argument("--no-keras", action="store_true", help="without Keras")
    parser.add_argument(
        "--keras-python", default=None, metavar="PATH", help="Python with TensorFlow; default: this one"
    )
    parser.add_argument("--profile", action="store_true", help="also say where the time of our steps goes")
    parser.add_argument("--out", type=Path, default=Path("outputs/training_speed"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; the figures mean nothing")
    return parser.parse_args(arguments)


class Ours:
    """What is to be timed of skbegan.

    Parameters
    ----------
    sizes : dict of str to int
    device : torch.device
    compile : bool
    """

    def __init__(self, sizes: dict[str, int], device: torch.device, compile: bool) -> None:
        rng = np.random.default_rng(0)
        n, side = max(4 * N_CLASSES * 8, sizes["minibatch_size"]), sizes["side"]
        images = rng.normal(size=(2, n, side, side)).astype(np.float32)
        codes = np.arange(n)
        self.arrays = recipe.Arrays(
            images[0],
            images[1],
            codes % N_CLASSES,
            codes // N_CLASSES % N_CLASSES,
            codes,
            codes[:0],
            *[Scaling.identity(1)] * 2,
        )
        self.sizes, self.device, self.compile = sizes, device, compile
        names = ("split", "weights", "order", "dropout", "classifiers")
        self.seeds = dict(zip(names, range(len(names)), strict=True))

    def settings(self, precision: str, published: bool = False) -> dict[str, Any]:
        defaults = {name: p.default for name, p in inspect.signature(BeGANTransformer).parameters.items()}
        given: dict[str, Any] = {name: self.sizes[name] for name in ("base_width", "n_features", "minibatch_size")}
        return {
            **defaults,
            **(PUBLISHED if published else {}),
            **given,
            "precision": precision,
            "compile": self.compile,
        }

    def _step(self, prepared: recipe.Prepared) -> Callable[[], None]:
        """Return one step of training as the loop makes it: cells taken, augmented, trained on."""
        prepared.compile({"compile": self.compile, "minibatch_size": self.sizes["minibatch_size"]})
        order = torch.arange(self.sizes["minibatch_size"])

        def step() -> None:
            timing.void(prepared.stage.step(prepared.prepare(prepared.cells.take(order)), 0.5))

        return step

    def _removal(self, precision: str, published: bool) -> Callable[[], None]:
        settings = self.settings(precision, published)
        start = recipe.prepare_pretraining(self.arrays, settings, self.seeds, str(self.device)).stage
        weights = (recipe.to_numpy(network) for network in (start.generator, start.discriminator))
        outcome = recipe.Outcome(*weights, history={"epoch": []}, events=[], interrupted=False)
        prepared = recipe.prepare_removal(
            self.arrays,
            outcome,
            settings,
            self.seeds,
            str(self.device),
            n_batches=N_CLASSES,
            n_cell_types=N_CLASSES,
            reference=0,
        )
        return self._step(prepared)

    def stage_1(self, precision: str, change: Callable[[Any], None] | None = None) -> Callable[[], None]:
        """Return the step of stage 1; `change` is applied to the stage before."""
        settings = self.settings(precision, published=True)
        prepared = recipe.prepare_pretraining(self.arrays, settings, self.seeds, str(self.device))
        if change is not None:
            change(prepared.stage)
        return self._step(prepared)

    def published(self, precision: str) -> Callable[[], None]:
        return self._removal(precision, published=True)

    def default(self, precision: str) -> Callable[[], None]:
        return self._removal(precision, published=False)

    def classifiers(self, precision: str) -> Callable[[], None]:
        """Ten epochs of the four batch classifiers of a refresh and of the cell-type classifier."""
        n, n_features = self.sizes["n_cells"], self.sizes["n_features"]
        rng = new_rng(0)
        features = torch.randn(n, n_features, generator=rng).to(self.device)
        labels = torch.randint(N_CLASSES, (n,), generator=rng).to(self.device)
        subsets = place(FeatureSubsets(4, n_features, N_CLASSES, rng), self.device, torch.float32)
        cell = place(
            build(FeatureClassifier, n_features, N_CLASSES, CELL_TYPE_HIDDEN, rng=rng), self.device, torch.float32
        )

        def run() -> None:
            for network, seen, rate in ((subsets.classifiers, subsets.select(features), 0.05), (cell, features, 1e-3)):
                fit_classifier(network, seen, labels, learning_rate=rate, epochs=10, minibatch_size=32, rng=rng)

        return run


# Key: label of the step, name of ours, what builds it in Keras, and what it is called there.
STEPS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "stage1": ("stage 1", "stage_1", "build_stage_1", {"Keras": "stage_1_step"}),
    "published": (
        "published stage 2",
        "published",
        "build_stage_2",
        {"Keras": "stage_2_step", "Keras, printing": "stage_2_step_printing"},
    ),
    "default": ("default stage 2", "default", "", {}),
    "classifiers": ("classifier fits", "classifiers", "build_classifiers", {"Keras": "refresh"}),
}


def eager_runs(sizes: dict[str, int], device: torch.device) -> dict[str, timing.Run]:
    rng = new_rng(0)
    n, side = sizes["minibatch_size"], sizes["side"]
    bf, qpi = torch.randn(2, n, 1, side, side, generator=rng).to(device)
    types = torch.randint(N_CLASSES, (n,), generator=rng).to(device)
    port = EagerPort(side, sizes["base_width"], sizes["n_features"], N_CLASSES, device)
    return {"stage1": lambda: port.stage_1_step(bf, qpi), "published": lambda: port.stage_2_step(bf, qpi, types)}


def measure(args: argparse.Namespace, sizes: dict[str, int], device: torch.device, keras: KerasPeer | None) -> Any:
    ours, eager = Ours(sizes, device, args.compile), eager_runs(sizes, device)
    results: dict[str, Any] = {}
    for key in args.steps:
        label, own, build_keras, in_keras = STEPS[key]
        fits = key == "classifiers"
        runs: dict[str, timing.Run] = {
            f"skbegan {precision}": getattr(ours, own)(precision)
            for precision in args.precisions
            if not (fits and precision != "float32")
        }
        first = next(iter(runs.values()))
        counted, done = (0.0, 0.0) if fits else (timing.gflop(first), timing.gflop(first, direct=False))
        if key in eager:
            runs["eager"] = eager[key]
        if keras is not None:
            for name, what in in_keras.items():
                keras.prepare(what, build_keras)
                build_keras = ""
                runs[name] = lambda what=what: keras.run(what)  # type: ignore[misc]
        seconds = timing.alternate(runs, args.repeats, device)
        results[label] = {
            "gflop": counted,
            "gflop_done": done,
            "seconds": {name: list(values) for name, values in seconds.items()},
        }
        if args.profile and not fits:
            results[label]["profile"] = {
                name: profile(run, device) for name, run in runs.items() if name.startswith("skbegan")
            }
        print(f"{label}: measured", flush=True)
    return results


def profile(run: timing.Run, device: torch.device) -> dict[str, float]:
    """Return the share of a step's time that each kind of operation takes itself, the largest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    on_device = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: float(getattr(event, on_device)) for event in profiler.key_averages()}
    total = sum(times.values())
    return {name: value / total for name, value in sorted(times.items(), key=lambda item: -item[1])[:12]}


def report(results: dict[str, Any], rates: dict[str, float], minibatch_size: int) -> tuple[str, list[Goal]]:
    """Return the table, and the goals with what was found."""
    rows = [["step", "of", "ms", "quartiles", "images/s", "vs Keras", "vs eager", "GFLOP/s", "of the rate"]]
    goals = []
    for label, found in results.items():
        seconds = {name: np.array(values) for name, values in found["seconds"].items()}
        for name, values in seconds.items():
            low, middle, high = timing.quartiles(values)
            precision = name.removeprefix("skbegan ")
            ratios = {peer: timing.ratio(seconds, peer, name) for peer in ("Keras", "eager") if peer in seconds}
            row = [label, name, f"{1e3 * middle:.0f}", f"{1e3 * low:.0f}-{1e3 * high:.0f}"]
            row.append("" if label == "classifier fits" else f"{minibatch_size / middle:.2f}")
            row += [timing.show_ratio(ratios[peer]) if peer in ratios else "" for peer in ("Keras", "eager")]
            if name.startswith("skbegan") and found["gflop"]:
                rate = found["gflop"] / middle
                row += [f"{rate:.0f}", f"{rate / rates[precision]:.0%}"]
                if label == "stage 1":
                    goals.append(
                        Goal(f"{label}, {precision}: share of the rate", RATE_GOALS[precision], rate / rates[precision])
                    )
            else:
                row += ["", ""]
            rows.append(row)
            for peer, wanted in GOALS.get((label, precision), {}).items():
                if name.startswith("skbegan") and peer in seconds:
                    middle_ratio = timing.ratio(seconds, peer, name)[1]
                    goals.append(Goal(f"{label}, {precision}: times as fast as {peer}", wanted, middle_ratio))
    return timing.table(rows), goals


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, keep the figures."""
    args = parse_arguments(arguments)
    given = {name: value for name, value in vars(args).items() if value is not None}
    sizes = {name: given.get(name, value) for name, value in (QUICK if args.quick else SIZES).items()}
    repeats = 2 if args.quick else args.repeats
    args.repeats = repeats
    device = resolve_device(args.device)
    about = timing.machine(device)
    keras = timing.start_keras(args.keras_python, not args.no_keras, n_classes=N_CLASSES, **sizes)
    try:
        rates = {name: timing.matrix_rate(PRECISIONS[name], device) for name in args.precisions}
        results = measure(args, sizes, device, keras)
    finally:
        if keras is not None:
            keras.close()
    if keras is not None:
        about["keras"] = keras.version
    text, goals = report(results, rates, sizes["minibatch_size"])
    print(f"\n{about}\n{sizes}\nmatrix products, GFLOP/s: { {n: round(r) for n, r in rates.items()} }\n")
    print(text + "\n")
    print("\n".join(map(str, goals)))
    for label, found in results.items():
        if found["gflop"]:
            print(f"{label}: {found['gflop']:.0f} GFLOP as direct sums, {found['gflop_done']:.0f} as done in float32")
        for name, shares in found.get("profile", {}).items():
            print(f"\nwhere the time goes, {label}, {name}:")
            print("\n".join(f"  {share:6.1%}  {kind}" for kind, share in shares.items()))
    kept = {"machine": about, "sizes": sizes, "matrix_rate": rates, "results": results, "goals": list(map(str, goals))}
    timing.write_json(args.out / "results.json", kept)
    (args.out / "table.md").write_text(text + "\n\n" + "\n".join(map(str, goals)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
