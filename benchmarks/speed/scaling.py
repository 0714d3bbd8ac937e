"""How time and memory grow with the number of cells: ``python benchmarks/scaling.py [--cells 1000 3000 10000]``.

Every point is measured in a process of its own, so that its peak of memory belongs to it. Written to --out: `table.md`,
`scaling.png`, and `results.json` with every figure. ``--quick`` shows in a minute that everything runs; its figures
mean nothing. ``--redraw`` makes table and picture anew from the figures that are there.

Times are processor time (of all threads of the process), which other work on the machine disturbs less than wall time;
both are kept. Memory is resident memory above what was resident just before the call. "Own" leaves out pages of mapped
files, which the system takes back whenever it needs them; it is known on Linux only, sampled every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scaling_points import EPOCHS, KINDS, Point, resident

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
GOALS = {"exponent": 1.2, "flat": 1.25, "fit_memory": 1.3, "inference_memory": 1024.0}


# Points, each in a process of its own --------------------------------------------------------------------------------


def run_point(point: Point, threads: int) -> Point:
    """Measure a point in a fresh process and return it with its figures."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, str(Path(__file__).resolve()), "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the process of {point} ended with {done.returncode}:\n{done.stderr}")
    return {**point, **json.loads(done.stdout.splitlines()[-1])}


def label(point: Point) -> str:
    """Return what a point is, for the eye."""
    what = point.get("method") or METRICS.get(point.get("metric", "")) or point["kind"]
    sizes = f", side {point['side']}, base width {point['base_width']}" if "base_width" in point else ""
    return f"{what}: {point['cells']:,} cells{sizes}"


def plan(args: argparse.Namespace, folder: Path) -> tuple[list[Point], list[Point]]:
    """Return what has to be written before, and the points to measure."""
    sizes = {"side": args.side, "base_width": args.base_width, "n_features": args.n_features}
    before: list[Point] = []
    points: list[Point] = []
    if "fit" in args.parts:
        points += [{"kind": "fit", "cells": n, **sizes, **EPOCHS} for n in args.cells]
        if args.memory_cells:
            least = {"pretrain_epochs": 0, "removal_epochs": 1, "refresh_epochs": 3, "warmup_epochs": 0}
            points.append({"kind": "fit", "cells": args.memory_cells, **sizes, **least})
    if "inference" in args.parts:
        most = max(args.inference_cells)
        models = [(args.side, sizes, args.inference_cells, args.inference_cells)]
        for side in args.memory_sides:
            models.append((side, {**sizes, "side": side}, [most], [max(1, most // 10)]))
        if not args.quick:  # the published size
            models.append((128, {"side": 128, "base_width": 64, "n_features": 512}, [256], [256]))
        for number, (side, its, transformed, predicted) in enumerate(models):
            file, model = str(folder / f"cells-{side}.npy"), str(folder / f"model-{number}.began")
            n_cells = max(*transformed, *predicted)
            known = next((p for p in before if p["kind"] == "cells" and p["side"] == side), None)
            if known is None:
                before.append({"kind": "cells", "side": side, "cells": n_cells, "file": file})
            else:
                known["cells"] = max(known["cells"], n_cells)
            before.append({"kind": "model", "cells": 64, **its, "model": model})
            for method, counts in (("transform", transformed), ("predict_image", predicted)):
                common = {"kind": "inference", "method": method, **its, "file": file, "model": model}
                points += [{**common, "cells": n} for n in counts]
    if "metrics" in args.parts:
        points += [{"kind": "metric", "metric": name, "cells": n} for name in args.metrics for n in args.metric_cells]
    return before, points


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all points and return the results."""
    folder = args.out / "scratch"
    before, points = plan(args, folder)
    needed = sum(4 * p["cells"] * p["side"] ** 2 for p in before if p["kind"] == "cells")
    args.out.mkdir(parents=True, exist_ok=True)
    if needed > 0.9 * shutil.disk_usage(args.out).free:
        raise SystemExit(
            f"{args.out} needs room for {needed / 2**30:.1f} GiB of images; choose fewer --inference-cells"
        )
    folder.mkdir(exist_ok=True)
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "point", "redraw")}
    results: dict[str, Any] = {"settings": settings, "machine": machine(), "points": kept_points(args)}
    if resident()["peak"] is None:
        print("memory is not measured: this system does not tell a process its peak", flush=True)
    try:
        for number, point in enumerate([*before, *points]):
            done = run_point(point, args.threads)
            kept = {name: value for name, value in done.items() if name not in ("file", "model")}
            if "cpu" in done:
                results["points"].append(kept)
                print(f"{label(point):<62}{done['cpu']:>9.2f} s processor {done['wall']:>9.2f} s wall", flush=True)
            elif number == 0:
                print(f"{len(points)} points, each in a process of its own", flush=True)
            (args.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return results


def kept_points(args: argparse.Namespace) -> list[Point]:
    """Return the points that are there of the parts that are not measured now, if they are of networks of this size."""
    file = args.out / "results.json"
    if not file.exists():
        return []
    earlier = json.loads(file.read_text(encoding="utf-8"))
    if any(earlier["settings"][name] != getattr(args, name) for name in ("side", "base_width", "n_features")):
        return []
    return [point for point in earlier["points"] if PARTS[point["kind"]] not in args.parts]


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    from importlib.metadata import version

    versions = {name: version(name) for name in ("numpy", "scikit-learn", "torch")}
    return {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count(), **versions}


# Reading the figures -------------------------------------------------------------------------------------------------


def exponent(cells: list[int], seconds: list[float]) -> float:
    """Return the slope of log time over log cells; NaN for fewer than two sizes."""
    if len(set(cells)) < 2 or min(seconds) <= 0:
        return math.nan
    return float(np.polyfit(np.log(cells), np.log(seconds), 1)[0])


def spans(points: list[Point]) -> tuple[list[Point], list[Point]]:
    """Return all points, and the last two: small sizes hide a growth that comes later."""
    return points, points[-2:]


def pick(results: dict[str, Any], **wanted: Any) -> list[Point]:
    """Return the points of these properties, by number of cells."""
    chosen = [p for p in results["points"] if all(p.get(name) == value for name, value in wanted.items())]
    return sorted(chosen, key=lambda point: point["cells"])


def fit_ratio(point: Point) -> float | None:
    """Return the memory of a fit, data included, over that of data, networks, gradients and optimizers."""
    added = point["own"] if point["own"] is not None else point["resident"]
    counted = point["data"] + sum(point["networks"].values())
    return None if added is None else (point["data"] + added) / counted


def fit_growth(smaller: Point, larger: Point) -> float | None:
    """Return by how much memory grows from one fit to the other, data included, over how much the data do."""
    added = [p["own"] if p["own"] is not None else p["resident"] for p in (smaller, larger)]
    more = larger["data"] - smaller["data"]
    return None if None in added or more <= 0 else (more + added[1] - added[0]) / more


def beyond_output(point: Point) -> float | None:
    """Return the MiB that an inference took besides its output; its own, where the system tells."""
    added = point["own"] if point["own"] is not None else point["resident"]
    return None if added is None else added - point["output"]


def main_inference(results: dict[str, Any], method: str) -> list[Point]:
    """Return the points of a method that differ in the number of cells only."""
    size = {name: results["settings"][name] for name in ("side", "base_width")}
    return [p for p in pick(results, kind="inference", method=method) if all(p[k] == v for k, v in size.items())]


def fits(results: dict[str, Any]) -> list[Point]:
    """Return the fits whose time counts."""
    return [point for point in pick(results, kind="fit") if "stage 2, epoch" in point["parts"]]


def goals(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each goal with the figure reached; None where it was not measured."""
    found: list[dict[str, Any]] = []

    def goal(text: str, value: float | None, limit: float) -> None:
        known = value is not None and math.isfinite(value)
        found.append({"goal": text, "value": value if known else None, "limit": limit, "met": known and value <= limit})

    timed_fits = fits(results)
    for part in ("stage 1, epoch", "stage 2, epoch", "stage 2, once", "statistics") if timed_fits else ():
        seconds = [point["parts"][part] for point in timed_fits]
        goal(f"fit, {part}: exponent", exponent([p["cells"] for p in timed_fits], seconds), GOALS["exponent"])
    if timed_fits:
        every = pick(results, kind="fit")
        text = f"fit of {every[-1]['cells']:,} cells: memory over data, networks, gradients, optimizers"
        goal(text, fit_ratio(every[-1]), GOALS["fit_memory"])
        if len(every) > 1:
            text = f"fit from {every[-2]['cells']:,} to {every[-1]['cells']:,} cells: memory over data, of what is more"
            goal(text, fit_growth(*every[-2:]), GOALS["fit_memory"])
    for method in ("transform", "predict_image"):
        if points := main_inference(results, method):
            # From the second size on: the first is over before caches are warm.
            each = [point["cpu"] / point["cells"] for point in points[-2:]]
            goal(f"{method}: time per cell, last over last but one", each[-1] / each[0], GOALS["flat"])
        for point in pick(results, kind="inference", method=method)[-3:]:
            goal(f"{label(point)}: MiB besides the output", beyond_output(point), GOALS["inference_memory"])
    for name in METRICS:
        if points := pick(results, kind="metric", metric=name)[-2:]:
            value = exponent([p["cells"] for p in points], [p["cpu"] for p in points])
            goal(f"{METRICS[name]}: exponent between the largest sizes", value, GOALS["exponent"])
    return found


def table(results: dict[str, Any]) -> str:
    """Return all tables as Markdown."""
    lines: list[str] = []

    def rows(title: str, head: list[str], body: list[list[str]]) -> None:
        lines.extend([f"**{title}**", "", "| " + " | ".join(head) + " |"])
        lines.append("| --- |" + " ---: |" * (len(head) - 1))
        lines.extend(["| " + " | ".join(row) + " |" for row in body])
        lines.append("")

    def mib(value: float | None) -> str:
        return "not measured" if value is None else f"{value:,.0f}"

    if timed_fits := fits(results):
        names = ["checks", "stage 1, epoch", "stage 2, epoch", "stage 2, once", "statistics", "closing fits"]
        body = []
        for name in names:
            seconds = [point["parts"][name] for point in timed_fits]
            per_cell = [f"{1e3 * s / point['cells']:.3g}" for s, point in zip(seconds, timed_fits, strict=True)]
            body.append([name, *per_cell, f"{exponent([p['cells'] for p in timed_fits], seconds):.2f}"])
        head = ["processor ms per cell", *(f"{p['cells']:,}" for p in timed_fits), "exponent"]
        rows(f"fit, side {results['settings']['side']}", head, body)
    if every_fit := pick(results, kind="fit"):
        body = []
        for point in every_fit:
            ratio = fit_ratio(point)
            sizes = [point["data"], sum(point["networks"].values())]
            figures = [*map(mib, [*sizes, point["own"], point["resident"]])]
            body.append([f"{point['cells']:,}", *figures, "not measured" if ratio is None else f"{ratio:.2f}"])
        head = ["fit, MiB", "data", "networks and optimizers", "fit adds, own", "resident", "(data + own) / counted"]
        rows("memory of fit", head, body)
    if points := pick(results, kind="inference"):
        body = [
            [label(p), f"{1e3 * p['cpu'] / p['cells']:.3g}"]
            + [mib(p[name]) for name in ("input", "output")]
            + [mib(beyond_output(p)), mib(p["resident"])]
            for p in sorted(points, key=lambda p: (p["side"], p["base_width"], p["method"], p["cells"]))
        ]
        head = ["of a memory map", "ms per cell", "input, MiB", "output", "own besides output", "resident, all"]
        rows("inference", head, body)
    if points := pick(results, kind="metric"):
        sizes = sorted({point["cells"] for point in points})
        body = []
        for name in METRICS:
            if own := {point["cells"]: point for point in pick(results, kind="metric", metric=name)}:
                times = [f"{own[n]['cpu']:.3g}" if n in own else "" for n in sizes]
                each = [
                    exponent([p["cells"] for p in part], [p["cpu"] for p in part]) for part in spans(list(own.values()))
                ]
                body.append(
                    [METRICS[name], *times, *(f"{slope:.2f}" for slope in each), mib(max(own.items())[1]["own"])]
                )
        head = ["processor seconds", *(f"{n:,}" for n in sizes), "exponent, all", "last two", "own MiB at the last"]
        rows("metrics", head, body)
    for item in goals(results):
        value = "not measured" if item["value"] is None else f"{item['value']:,.2f}"
        verdict = "met   " if item["met"] else "MISSED" if item["value"] is not None else "-     "
        lines.append(f"    {verdict}  {item['goal']}: {value} (at most {item['limit']:,g})")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what was measured: time of fit and inference per cell, memory, and time of the metrics."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    kinds = {point["kind"] for point in results["points"]}
    panels = {draw_fit: "fit", draw_inference: "inference", draw_memory: "", draw_metrics: "metric"}
    wanted = [panel for panel, kind in panels.items() if kind in kinds or (not kind and kinds & {"fit", "inference"})]
    n_columns = min(2, len(wanted))
    n_rows = -(-len(wanted) // n_columns)
    size = (7.5 * n_columns, 4.4 * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.ravel()[len(wanted) :]:
        axis.remove()
    for panel, axis in zip(wanted, axes.ravel(), strict=False):
        axis.set(xscale="log", yscale="log", xlabel="cells")
        panel(results, axis)
        for side, text in ((axis.xaxis, "{:,.0f}"), (axis.yaxis, "{:,g}")):
            low, high = side.get_view_interval()
            subs = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0)
            side.set_major_locator(LogLocator(subs=subs))
            side.set_major_formatter(FuncFormatter(lambda value, _, text=text: text.format(value)))
            side.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25, which="major")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_fit(results: dict[str, Any], axis: Any) -> None:
    """Draw the time of a fit, in parts, per cell."""
    points = fits(results)
    names = ("stage 1, epoch", "stage 2, epoch", "stage 2, once", "closing fits", "statistics", "checks")
    for name in names if points else ():
        each = [1e3 * point["parts"][name] / point["cells"] for point in points]
        axis.plot([p["cells"] for p in points], each, "o-" if name.endswith("epoch") else "s--", label=name)
    axis.set(ylabel="processor ms per cell", title="fit: epochs (solid) and what is due once (dashed)")


def draw_inference(results: dict[str, Any], axis: Any) -> None:
    """Draw the time of inference per cell."""
    for method in ("transform", "predict_image"):
        points = main_inference(results, method)
        each = [1e3 * point["cpu"] / point["cells"] for point in points]
        axis.plot([p["cells"] for p in points], each, "o-", label=method)
    axis.set(ylabel="processor ms per cell", title="inference of a memory map")


def draw_metrics(results: dict[str, Any], axis: Any) -> None:
    """Draw the time of the metrics, with guides for the eye."""
    for name in METRICS:
        if points := pick(results, kind="metric", metric=name):
            axis.plot([p["cells"] for p in points], [p["cpu"] for p in points], "o-", ms=4, label=METRICS[name])
    points = pick(results, kind="metric")
    sizes = np.array(sorted({point["cells"] for point in points}), dtype=float)
    lowest = min(point["cpu"] for point in points)
    for power, style, text in ((1, ":", "in proportion to the cells"), (2, "-.", "to their square")):
        axis.plot(sizes, 0.5 * lowest * (sizes / sizes[0]) ** power, style, color="0.5", lw=1, label=text)
    axis.set(ylabel="processor seconds", title="metrics")


def draw_memory(results: dict[str, Any], axis: Any) -> None:
    """Draw the memory that a call takes over the cells, with what must be there for comparison."""

    def added(point: Point) -> float:
        value = point["own"] if point["own"] is not None else point["resident"]
        return math.nan if value is None else value

    points = pick(results, kind="fit")
    if points:
        cells = [point["cells"] for point in points]
        counted = [point["data"] + sum(point["networks"].values()) for point in points]
        axis.plot(cells, [p["data"] + added(p) for p in points], "o-", color="C0", label="fit, with its data")
        axis.plot(cells, counted, ":", color="C0", label="data, networks, optimizers")
    for color, method in (("C1", "transform"), ("C2", "predict_image")):
        chosen = main_inference(results, method)
        cells = [point["cells"] for point in chosen]
        axis.plot(cells, [added(p) for p in chosen], "o-", color=color, label=method)
        if method == "predict_image":
            axis.plot(cells, [p["output"] for p in chosen], ":", color=color, label="the images it returns")
    if pick(results, kind="inference"):
        axis.axhline(1024, color="0.5", lw=1, ls="--", label="1 GiB")
    side = results["settings"]["side"]
    axis.set(ylabel="MiB", title=f"memory that a call takes, side {side}")


# The command ---------------------------------------------------------------------------------------------------------


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS.values()), help="others are kept as they are in OUT")
    parser.add_argument("--cells", nargs="+", type=int, help="sizes of fit [1000 3000 10000]")
    parser.add_argument("--memory-cells", type=int, help="one more fit, of one epoch, for its memory; 0: none [30000]")
    parser.add_argument("--inference-cells", nargs="+", type=int, help="[1000 10000 100000]")
    parser.add_argument("--memory-sides", nargs="*", type=int, help="more sides for inference [128]")
    parser.add_argument("--metric-cells", nargs="+", type=int, help="[1000 4000 16000 64000]")
    parser.add_argument("--metrics", nargs="+", choices=tuple(METRICS), default=list(METRICS))
    parser.add_argument("--side", type=int)
    parser.add_argument("--base-width", type=int)
    parser.add_argument("--n-features", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/scaling"))
    parser.add_argument("--quick", action="store_true", help="the tiniest sizes: shows that everything runs")
    parser.add_argument("--redraw", action="store_true", help="table and picture from OUT/results.json")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    full: dict[str, Any] = {
        "parts": list(PARTS.values()),
        "cells": [1000, 3000, 10_000],
        "memory_cells": 30_000,
        "inference_cells": [1000, 10_000, 100_000],
        "memory_sides": [128],
        "metric_cells": [1000, 4000, 16_000, 64_000],
        "side": 32,
        "base_width": 8,
        "n_features": 64,
    }
    tiny: dict[str, Any] = {"cells": [100, 200], "memory_cells": 0, "inference_cells": [50, 100], "memory_sides": []}
    tiny |= {"metric_cells": [200, 400], "side": 16, "base_width": 4, "n_features": 16}
    for name, value in (full | (tiny if args.quick else {})).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("cells", "inference_cells", "metric_cells"):
        if min(getattr(args, name)) < 50:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least 50, got {min(getattr(args, name))}")
    if args.threads < 1 or args.memory_cells < 0:
        raise SystemExit("--threads must be at least 1 and --memory-cells at least 0")
    return args


def main(given: list[str] | None = None) -> None:
    """Measure, print the tables, and write them with the picture."""
    args = arguments(given)
    if args.point:
        point = json.loads(args.point)
        print(json.dumps(KINDS[point["kind"]](point)))
        return
    if args.redraw:
        results = json.loads((args.out / "results.json").read_text(encoding="utf-8"))
    else:
        results = measure(args)
    results["goals"] = goals(results)
    (args.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    text = table(results)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    draw(results, args.out / "scaling.png")
    print(f"written to {args.out}: table.md, scaling.png, results.json")


if __name__ == "__main__":
    main()
