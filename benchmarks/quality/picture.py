"""The picture of the comparison: leakage against accuracy on unseen batches, and some predicted images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import spread
from quality.data_sets import DATA_SETS, Array
from quality.methods import METHODS
from quality.report import Figures, collect

STYLES = {  # colour and marker: grey for pixels, blues and greens for rivals, warm for this package's two procedures
    "pixels": ("#7f7f7f", "v"),
    "background": ("#7f7f7f", "<"),
    "contrast": ("#7f7f7f", ">"),
    "stage1": ("#222222", "o"),
    "stage1-longer": ("#222222", "d"),
    "combat": ("#1f77b4", "s"),
    "combat-types": ("#1f77b4", "D"),
    "harmony": ("#17a2b8", "P"),
    "sphering": ("#6a51a3", "X"),
    "leace": ("#2ca02c", "^"),
    "leace-types": ("#2ca02c", "h"),
    "published": ("#ff7f0e", "o"),
    "default": ("#d62728", "o"),
    "ceiling": ("#e6b800", "*"),
}
LARGE = ("default", "ceiling", "published", "stage1")
SHOWN = {
    "brightfield": "brightfield",
    "measured": "measured",
    "stage1": "stage 1",
    "background": "stage 1, no background",
    "contrast": "… one contrast",
    "published": "published",
    "default": "default",
    "ceiling": "batch-free",
}
WIDTH, HEIGHT, FOOT, HEAD = 17.0, 6.2, 1.25, 0.95  # inches: of all, of a data set, of the legend, of the titles


def draw(results: Mapping[str, Any], panels: Mapping[str, Mapping[str, Array]], path: Path) -> None:
    """Draw leakage against cross-batch accuracy for the three probes, and some cells, one row per data set."""
    import matplotlib

    matplotlib.use("Agg")  # into a file, on machines without a screen too
    from matplotlib import pyplot as plt

    total = HEIGHT * len(panels) + FOOT
    figure = plt.figure(figsize=(WIDTH, total))
    handles: dict[str, Any] = {}
    for index, (data, panel) in enumerate(panels.items()):
        top, bottom = (1 - (HEIGHT * place) / total for place in (index, index + 1))
        figure.text(0.01, top - 0.2 / total, DATA_SETS[data].title, fontsize=14, fontweight="bold", va="top")
        place = {"top": top - HEAD / total, "bottom": bottom + 0.6 / total}
        handles |= _draw_leakage(figure, place, collect(results["runs"], data, "features"))
        side = (HEIGHT - HEAD - 0.25) / len([name for name in SHOWN if name in panel])  # inches, squares
        place |= {"left": 0.69, "right": 0.69 + len(panel["batch"]) * side / WIDTH, "bottom": bottom + 0.25 / total}
        shown = next(run["cell_type_shown"] for run in results["runs"] if run["data"] == data and "features" in run)
        images = collect(results["runs"], data, "images")
        _draw_cells(figure, place, panel, shown, images, "mae" if DATA_SETS[data].has_truth else "within")
    labels = {name: label.replace("the same,", "pixels,") for name, label in METHODS.items() if name in handles}
    where = {"loc": "lower left", "bbox_to_anchor": (0.03, 0.0), "ncols": 5}
    figure.legend([handles[name] for name in labels], list(labels.values()), frameon=False, fontsize=10, **where)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_leakage(figure: Any, place: dict[str, float], figures: Figures) -> dict[str, Any]:
    """Draw the three scatter plots; return a handle of each method for the legend."""
    handles = {}
    axes = figure.add_gridspec(1, 3, left=0.04, right=0.59, wspace=0.06, **place).subplots(sharey=True)
    probes = {"linear": "linear probe", "mlp": "small network", "15nn": "15 nearest neighbours"}
    for axis, (probe, title) in zip(axes, probes.items(), strict=True):
        axis.axvline(0, color="0.75", lw=1, zorder=0)
        for method in (name for name in STYLES if name in figures):
            colour, marker = STYLES[method]
            x, y = figures[method][f"leakage_{probe}"], figures[method]["cross_batch"]
            errors = {"xerr": x.std(ddof=1), "yerr": y.std(ddof=1)} if len(x) > 1 else {}
            size = {"ms": 17 if marker == "*" else 11 if method in LARGE else 8, "mew": 0.8, "elinewidth": 1.2}
            drawn = {"fmt": marker, "color": colour, "mec": "black" if marker == "*" else "white", **size, **errors}
            handles[method] = axis.errorbar(x.mean(), y.mean(), zorder=3 + (method in LARGE), **drawn)
        axis.set_title(title, fontsize=11)
        axis.set(xlim=(-0.2, 1.1), xticks=[0, 0.25, 0.5, 0.75, 1])
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.93")
        axis.set_axisbelow(True)
    axes[0].set_ylabel("cell type on a batch that the probe never saw", fontsize=11)
    axes[0].set_ylim(0, 1)
    axes[0].text(-0.17, 0.98, "↖ better", fontsize=10, color="0.4", va="top")
    axes[1].set_xlabel("batch leakage within a cell type (0 chance, 1 fully readable)", fontsize=11)
    return handles


def _draw_cells(
    figure: Any, place: dict[str, float], panel: Mapping[str, Array], shown: str, images: Figures, figure_shown: str
) -> None:
    """Draw a few cells of one type in three batches, one row per method, with a figure of its images."""
    names = [name for name in SHOWN if name in panel]
    axes = figure.add_gridspec(len(names), len(panel["batch"]), wspace=0.04, hspace=0.04, **place)
    axes = axes.subplots(squeeze=False)
    low, high = np.percentile(panel["ceiling" if "ceiling" in panel else "measured"], [1, 99.7])
    margin = 0.15 * (high - low)
    notes = {name: spread(images[name][figure_shown], 3) for name in names if name in images}
    notes["brightfield"] = "MAE to\nbatch-free" if figure_shown == "mae" else "r within"
    for row, name in zip(axes, names, strict=True):
        for axis, image in zip(row, panel[name], strict=True):
            limits = {} if name == "brightfield" else {"vmin": low - margin, "vmax": high + margin}
            axis.imshow(image, cmap="gray" if name == "brightfield" else "viridis", aspect="auto", **limits)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(SHOWN[name], rotation=0, ha="right", va="center", fontsize=10)
        row[-1].text(1.06, 0.5, notes.get(name, ""), transform=row[-1].transAxes, va="center", fontsize=9)
    for axis, batch, before in zip(axes[0], panel["batch"], ["", *panel["batch"]], strict=False):
        if batch != before:
            axis.set_title(str(batch), fontsize=10, loc="left")
    title = f"audit cells of one type ({shown}), images on one scale\n\n"
    figure.text((place["left"] + place["right"]) / 2, place["top"], title, ha="center", va="bottom", fontsize=11)
