"""How time and memory grow with the number of cells.

    python benchmarks/speed/scaling.py                     # about 15 minutes of one processor, 7 GB of disk
    python benchmarks/speed/scaling.py --quick             # shows in a minute that everything runs
    python benchmarks/speed/scaling.py --parts metrics     # the others are kept as they are in --out
    python benchmarks/speed/scaling.py --redraw            # table and picture from the figures that are there

Every point is measured in a process of its own, so that its peak of memory belongs to it. Times are processor time (of
all threads of the process), which other work on the machine disturbs less than wall time; both are kept. Memory is that
above what was there just before the call, sampled every 5 ms. "Own" leaves out pages of mapped files, which the system
takes back whenever it needs them; it is known on Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common
from common import Goal, number

Point = dict[str, Any]
METRICS = {
    "linear": "batch_leakage, linear",
    "mlp": "batch_leakage, mlp",
    "knn": "batch_leakage, knn",
    "cross_batch": "cross_batch_accuracy",
    "cell_type": "cell_type_accuracy",
    "image": "image_leakage",
    "image_knn": "image_leakage, knn",
    "integration": "integration_scores",
}
PARTS = {"fit": "fit", "inference": "inference", "metric": "metrics"}  # of the command, by kind of point
FIT_PARTS = ("stage 1, once", "stage 1, epoch", "stage 2, once", "stage 2, epoch", "statistics", "stage 3")
EXPONENT, FLAT, FIT_MEMORY, INFERENCE_MEMORY = 1.2, 1.25, 1.3, 1024.0  # goals, at most
EPOCHS = {"pretrain_epochs": 2, "removal_epochs": 4, "refresh_epochs": 3}
LEAST = {"pretrain_epochs": 1, "removal_epochs": 1, "refresh_epochs": 3, "warmup_epochs": 0}
NETWORKS = {"side": 32, "base_width": 8, "n_features": 64}
SIZES: dict[str, Any] = {
    "cells": [1000, 3000, 10_000],  # of fits
    "memory_cells": 30_000,  # of one more fit, as short as can be, for its memory; 0: none
    "inference_cells": [1000, 10_000, 100_000],
    "memory_sides": [128],  # more sides for inference
    "metric_cells": [1000, 4000, 16_000, 64_000],
    **NETWORKS,
}
QUICK: dict[str, Any] = {"cells": [100, 200], "memory_cells": 0, "inference_cells": [50, 100], "memory_sides": []}
QUICK |= {"metric_cells": [200, 400], "side": 16, "base_width": 4, "n_features": 16}


# Points ---------------------------------------------------------------------------------------------------------------


def run_point(point: Point, threads: int) -> Point:
    """Measure a point in a fresh process and return it with its figures."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, str(Path(__file__).with_name("points.py")), json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the process of {point} ended with {done.returncode}:\n{done.stderr}")
    return {**point, **json.loads(done.stdout.splitlines()[-1])}


def plan(args: argparse.Namespace, sizes: Point, folder: Path) -> tuple[list[Point], list[Point]]:
    """Return what has to be written before, and the points to measure."""
    networks = {name: sizes[name] for name in NETWORKS}
    files: dict[int, Point] = {}
    models: list[Point] = []
    points: list[Point] = []
    if "fit" in args.parts:
        points += [{"kind": "fit", "cells": n, **networks, **EPOCHS} for n in sizes["cells"]]
        if sizes["memory_cells"]:
            points.append({"kind": "fit", "cells": sizes["memory_cells"], **networks, **LEAST})
    if "inference" in args.parts:
        most = max(sizes["inference_cells"])
        wanted = [(networks, sizes["inference_cells"], sizes["inference_cells"])]
        wanted += [({**networks, "side": side}, [most], [max(1, most // 10)]) for side in sizes["memory_sides"]]
        if not args.quick:
            wanted.append(({"side": 128, "base_width": 64, "n_features": 512}, [256], [256]))  # the published size
        for index, (its, transformed, predicted) in enumerate(wanted):
            side, model = its["side"], str(folder / f"model-{index}.began")
            file = {"kind": "cells", "side": side, "file": str(folder / f"cells-{side}.npy"), "cells": 0}
            file = files.setdefault(side, file)
            file["cells"] = max(file["cells"], *transformed, *predicted)
            models.append({"kind": "model", "cells": 64, **its, "model": model})
            for method, counts in (("transform", transformed), ("predict_image", predicted)):
                given = {"kind": "inference", "method": method, **its, "file": file["file"], "model": model}
                points += [{**given, "cells": n} for n in counts]
    if "metrics" in args.parts:
        points += [
            {"kind": "metric", "metric": name, "cells": n} for name in args.metrics for n in sizes["metric_cells"]
        ]
    return [*files.values(), *models], points


def measure(args: argparse.Namespace, sizes: Point) -> dict[str, Any]:
    """Run all points and return the results."""
    folder = args.out / "scratch"
    before, points = plan(args, sizes, folder)
    needed = sum(4 * p["cells"] * p["side"] ** 2 for p in before if p["kind"] == "cells")
    args.out.mkdir(parents=True, exist_ok=True)
    if needed > 0.9 * shutil.disk_usage(args.out).free:
        raise SystemExit(f"{args.out} needs {needed / 2**30:.1f} GiB for images; choose fewer --inference-cells")
    settings = {**sizes, "threads": args.threads}
    results: dict[str, Any] = {"settings": settings, "machine": common.machine(), "points": kept_points(args, sizes)}
    print(f"{len(points)} points, each in a process of its own", flush=True)
    folder.mkdir(exist_ok=True)
    try:
        for point in [*before, *points]:
            done = run_point(point, args.threads)
            if "cpu" in done:
                results["points"].append({name: done[name] for name in done if name not in ("file", "model")})
                print(f"{label(point):<62}{done['cpu']:>9.2f} s processor {done['wall']:>9.2f} s wall", flush=True)
                common.write_json(args.out / "results.json", results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return results


def kept_points(args: argparse.Namespace, sizes: Point) -> list[Point]:
    """Return the points that are there of the parts that are not measured now, if they are of networks of this size."""
    file = args.out / "results.json"
    earlier = common.read_json(file) if file.exists() else {"settings": {}, "points": []}
    if any(earlier["settings"].get(name) != sizes[name] for name in NETWORKS):
        return []
    return [point for point in earlier["points"] if PARTS[point["kind"]] not in args.parts]


# Reading the figures --------------------------------------------------------------------------------------------------


def label(point: Point) -> str:
    """Return what a point is, for the eye."""
    what = point.get("method") or METRICS.get(point.get("metric", "")) or point["kind"]
    sizes = f", side {point['side']}, base width {point['base_width']}" if "base_width" in point else ""
    return f"{what}: {point['cells']:,} cells{sizes}"


def exponent(points: list[Point], part: str | None = None) -> float:
    """Return the slope of log time, of all or of a part of a fit, over log cells; NaN for fewer than two sizes."""
    cells = [point["cells"] for point in points]
    seconds = [point["cpu"] if part is None else point["parts"][part] for point in points]
    if len(set(cells)) < 2 or min(seconds) <= 0:
        return math.nan
    return float(np.polyfit(np.log(cells), np.log(seconds), 1)[0])


def pick(results: dict[str, Any], **wanted: Any) -> list[Point]:
    """Return the points of these properties, by number of cells."""
    chosen = [p for p in results["points"] if all(p.get(name) == value for name, value in wanted.items())]
    return sorted(chosen, key=lambda point: point["cells"])


def main_inference(results: dict[str, Any], method: str) -> list[Point]:
    """Return the points of a method that differ in the number of cells only."""
    size = {name: results["settings"][name] for name in ("side", "base_width")}
    return pick(results, kind="inference", method=method, **size)


def timed_fits(results: dict[str, Any]) -> list[Point]:
    """Return the fits whose time counts."""
    return [point for point in pick(results, kind="fit") if "stage 2, epoch" in point["parts"]]


def added(point: Point) -> float:
    """Return the MiB that a call took: its own, where the system says; NaN where nothing is known."""
    own, resident = point.get("own"), point.get("resident")
    return float(own if own is not None else resident if resident is not None else math.nan)


def counted(point: Point) -> float:
    """Return the MiB that a fit has to hold: data, networks, gradients, optimizers."""
    return float(point["data"] + sum(point["networks"].values()))


def fit_growth(smaller: Point, larger: Point) -> float:
    """Return by how much memory grows from one fit to the other, data included, over how much the data do."""
    more = larger["data"] - smaller["data"]
    return (more + added(larger) - added(smaller)) / more if more > 0 else math.nan


def goals(results: dict[str, Any]) -> list[Goal]:
    """Return the goals of all that was measured."""
    found: list[Goal] = []
    if fits := timed_fits(results):
        for part in ("stage 1, epoch", "stage 2, epoch", "stage 2, once", "statistics"):
            found.append(Goal(f"fit, {part}: exponent", exponent(fits, part), "<=", EXPONENT))
        *_, last = every = pick(results, kind="fit")
        what = f"fit of {last['cells']:,} cells: memory over data, networks, gradients, optimizers"
        found.append(Goal(what, (last["data"] + added(last)) / counted(last), "<=", FIT_MEMORY))
        if len(every) > 1:
            what = f"fit from {every[-2]['cells']:,} to {last['cells']:,} cells: memory over data, of what is more"
            found.append(Goal(what, fit_growth(every[-2], last), "<=", FIT_MEMORY))
    for method in ("transform", "predict_image"):
        if points := main_inference(results, method)[-2:]:
            # From the second size on: the first is over before caches are warm.
            each = [point["cpu"] / point["cells"] for point in points]
            found.append(Goal(f"{method}: time per cell, last over last but one", each[-1] / each[0], "<=", FLAT))
        for point in pick(results, kind="inference", method=method)[-3:]:
            beyond = added(point) - point["output"]
            found.append(Goal(f"{label(point)}: MiB besides the output", beyond, "<=", INFERENCE_MEMORY))
    for name, title in METRICS.items():
        if points := pick(results, kind="metric", metric=name)[-2:]:
            found.append(Goal(f"{title}: exponent between the largest sizes", exponent(points), "<=", EXPONENT))
    return found


def tables(results: dict[str, Any]) -> str:
    """Return all tables and the goals as Markdown."""
    texts: list[str] = []

    def mib(*values: float) -> list[str]:
        return ["not measured" if math.isnan(value) else f"{value:,.0f}" for value in values]

    if fits := timed_fits(results):
        rows = [["processor ms per cell", *(f"{p['cells']:,}" for p in fits), "exponent"]]
        for part in FIT_PARTS:
            each = [number(1e3 * point["parts"][part] / point["cells"]) for point in fits]
            rows.append([part, *each, f"{exponent(fits, part):.2f}"])
        texts += [f"**fit, side {results['settings']['side']}**", common.table(rows)]
    if every := pick(results, kind="fit"):
        rows = [["fit, MiB", "data", "networks and optimizers", "fit adds, own", "resident", "(data + own) / counted"]]
        for point in every:
            figures = mib(point["data"], counted(point) - point["data"], added(point), point["resident"])
            rows.append([f"{point['cells']:,}", *figures, number((point["data"] + added(point)) / counted(point))])
        texts += ["**memory of fit**", common.table(rows)]
    if points := pick(results, kind="inference"):
        rows = [["of a memory map", "ms per cell", "input, MiB", "output", "own besides output", "resident, all"]]
        for p in sorted(points, key=lambda p: (p["side"], p["base_width"], p["method"], p["cells"])):
            resident = math.nan if p["resident"] is None else p["resident"]
            figures = mib(p["input"], p["output"], added(p) - p["output"], resident)
            rows.append([label(p), number(1e3 * p["cpu"] / p["cells"]), *figures])
        texts += ["**inference**", common.table(rows)]
    if points := pick(results, kind="metric"):
        sizes = sorted({point["cells"] for point in points})
        rows = [["processor seconds", *(f"{n:,}" for n in sizes), "exponent, all", "last two", "own MiB at the last"]]
        for name, title in METRICS.items():
            if own := pick(results, kind="metric", metric=name):
                times = {point["cells"]: number(point["cpu"]) for point in own}
                slopes = [f"{exponent(part):.2f}" for part in (own, own[-2:])]
                rows.append([title, *(times.get(n, "") for n in sizes), *slopes, *mib(added(own[-1]))])
        texts += ["**metrics**", common.table(rows)]
    return "\n\n".join([*texts, f"```text\n{common.goals_text(goals(results))}\n```"])


# Picture --------------------------------------------------------------------------------------------------------------


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what was measured: time of fit and inference per cell, memory, and time of the metrics."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = [panel for panel in panels(results) if panel[2]]
    shape = -(-len(found) // 2), min(len(found), 2)
    figure, axes = plt.subplots(*shape, figsize=(7.5 * shape[1], 4.4 * shape[0]), layout="constrained", squeeze=False)
    for axis in axes.ravel()[len(found) :]:
        axis.remove()
    for (title, unit, lines), axis in zip(found, axes.ravel(), strict=False):
        for label, points, values, style in lines:
            axis.plot([point["cells"] for point in points], values, style, label=label)
        axis.set(xscale="log", yscale="log", xlabel="cells", ylabel=unit, title=title)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def panels(results: dict[str, Any]) -> list[tuple[str, str, list[tuple[str, list[Point], list[float], str]]]]:
    """Return title, unit and lines (label, points, values, style) of each panel; without lines it is not drawn."""
    fit, memory, inference, metric = [], [], [], []
    fits, every = timed_fits(results), pick(results, kind="fit")
    for part in FIT_PARTS if fits else ():
        each = [1e3 * point["parts"][part] / point["cells"] for point in fits]
        fit.append((part, fits, each, "o-" if part.endswith("epoch") else "s--"))
    if every:
        memory.append(("fit, with its data", every, [p["data"] + added(p) for p in every], "o-"))
        memory.append(("data, networks, optimizers", every, [counted(p) for p in every], ":"))
    for method in ("transform", "predict_image"):
        if points := main_inference(results, method):
            inference.append((method, points, [1e3 * p["cpu"] / p["cells"] for p in points], "o-"))
            memory.append((method, points, [added(p) for p in points], "o-"))
            memory.append((f"{method}: output", points, [p["output"] for p in points], ":"))
    for name, title in METRICS.items():
        if points := pick(results, kind="metric", metric=name):
            metric.append((title, points, [p["cpu"] for p in points], "o-"))
    if metric:  # guides for the eye, from the fastest metric on
        _, points, values, _ = min(metric, key=lambda line: line[2][0])
        for power, text, style in ((1, "in proportion to the cells", "k:"), (2, "to their square", "k-.")):
            growth = [0.5 * values[0] * (p["cells"] / points[0]["cells"]) ** power for p in points]
            metric.append((text, points, growth, style))
    per_cell = "processor ms per cell"
    return [
        ("fit: epochs (solid) and what is due once (dashed)", per_cell, fit),
        ("inference of a memory map", per_cell, inference),
        (f"memory that a call takes, side {results['settings']['side']}", "MiB", memory),
        ("metrics", "processor seconds", metric),
    ]


# The command ----------------------------------------------------------------------------------------------------------


def arguments(given: list[str] | None) -> tuple[argparse.Namespace, Point]:
    """Return the checked arguments, and the sizes."""
    parser = common.parser(__doc__, "scaling")
    every = list(PARTS.values())
    parser.add_argument("--parts", nargs="+", choices=every, default=every, help="others are kept as they are in OUT")
    parser.add_argument("--metrics", nargs="+", choices=tuple(METRICS), default=list(METRICS))
    common.add_sizes(parser, SIZES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--redraw", action="store_true", help="table and picture from OUT/results.json")
    args = parser.parse_args(given)
    sizes = common.sizes(args, SIZES, QUICK)
    for name in ("cells", "inference_cells", "metric_cells"):
        if min(sizes[name], default=0) < 50:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least 50, got {sizes[name]}")
    if args.threads < 1 or sizes["memory_cells"] < 0:
        raise SystemExit("--threads must be at least 1 and --memory-cells at least 0")
    return args, sizes


def main(given: list[str] | None = None) -> None:
    """Measure, print the tables, and write them with the picture."""
    args, sizes = arguments(given)
    results = common.read_json(args.out / "results.json") if args.redraw else measure(args, sizes)
    results["goals"] = [goal.record() for goal in goals(results)]
    draw(results, args.out / "scaling.png")
    common.write(args.out, tables(results), results)


if __name__ == "__main__":
    main()
