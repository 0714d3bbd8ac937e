"""From the results of `batch_removal.py` to tables, goals and the picture; knows no model and no image data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from comparison import IMAGE_METHODS, METHODS
from numpy.typing import NDArray
from rivals import RIVALS

Array = NDArray[Any]
Run = Mapping[str, Any]
Figures = dict[str, dict[str, Array]]  # method -> figure -> one value per seed

TITLES = {
    "simulated": "Simulated cells",
    "jurkat": "Real cells (Jurkat), simulated batches",
}
FEATURE_COLUMNS = {
    "cell_type": "cell type",
    "leakage_linear": "leak lin.",
    "leakage_mlp": "MLP",
    "leakage_15nn": "15-NN",
    "cross_batch": "cross-batch",
    "gap": "gap",
    "active": "active",
}
IMAGE_COLUMNS = {
    "mae": "MAE",
    "pearson": "Pearson",
    "leakage_linear": "leak lin.",
    "leakage_mlp": "MLP",
    "leakage_15nn": "15-NN",
    "cell_type": "cell type",
    "cross_batch": "cross-batch",
}
UNSEEN_COLUMNS = {"cell_type": "cell type", "mae": "MAE", "pearson": "Pearson"}

EXPLANATION = """\
All figures are of audit cells that no model and no probe has learned from; mean ± standard deviation over seeds.
cell type     Share of cells whose type a linear probe names. Higher is better.
leak lin. ... How well a linear probe, a small network and 15 nearest neighbours read the batch within one cell type: 0
              is chance, 1 is every time. Lower is better; a few hundredths around 0 are noise. See the ceiling.
cross-batch   Share of cells whose type is named by a linear probe that has never seen a cell of their batch. Higher is
              better.
gap           What it costs a probe not to have seen the batch: accuracy of one that has, minus cross-batch.
active        Share of features that vary (standard deviation above 1 % of the largest). Models only.
MAE, Pearson  Distance from and correlation with the batch-free image. Leakage of images: of their principal components.
told          What a method was told of the audit cells besides their images. No method is told their types."""

# What the default is held to; the numbers are those of the project's goals.
ABOVE_CEILING, GAP, OF_STAGE_1_MAE, ACTIVE = 0.15, 0.03, 0.65, 0.25


def collect(runs: Sequence[Run], data: str, kind: str) -> Figures:
    """Gather the figures of a data set over its seeds, for methods that all of its runs have."""
    found = [run[kind] for run in sorted(runs, key=lambda run: run["seed"]) if run["data"] == data and kind in run]
    if not found:
        return {}
    shared = [method for method in found[0] if all(method in figures for figures in found)]
    return {
        method: {name: np.array([figures[method][name] for figures in found]) for name in found[0][method]}
        for method in shared
    }


# Tables -----------------------------------------------------------------------------------------------------------


def spread(values: Array, digits: int = 2) -> str:
    """Write a mean and the standard deviation over seeds."""
    mean = f"{values.mean():.{digits}f}"
    mean = mean.removeprefix("-") if float(mean) == 0 else mean
    return mean if len(values) < 2 else f"{mean}±{values.std(ddof=1):.{digits}f}"


def table(
    labels: Mapping[str, str],
    figures: Figures,
    columns: Mapping[str, str],
    notes: Mapping[str, str],
    last: Mapping[str, tuple[str, Mapping[str, str]]],
) -> list[list[str]]:
    """Lay out a table: heading, then a row per method, with a note in place of figures that there are not."""
    rows = [["", *columns.values(), *(heading for heading, _ in last.values())]]
    for method, label in labels.items():
        if method in figures:
            found = figures[method]
            # Errors are in the units of the target and need more digits than shares do.
            numbers = [spread(found[k], 3 if k in ("mae", "pearson") else 2) if k in found else "-" for k in columns]
            rows.append([label, *numbers, *(cells.get(method, "-") for _, cells in last.values())])
        elif method in notes:
            rows.append([label, notes[method]])
    return rows


def as_text(rows: list[list[str]]) -> str:
    """Align a table for the screen; a note runs on to the right."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    widths[0] = max(widths[0], *(len(row[0]) for row in rows))
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += (
            [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)] if row in full else row[1:]
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row + [""] * (len(rows[0]) - len(row))) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def sections(results: Mapping[str, Any], data: str, layout: Callable[[list[list[str]]], str]) -> str:
    """Write all tables of a data set."""
    runs, skipped = results["runs"], results["skipped"]
    here = [run for run in runs if run["data"] == data]
    whole = [run for run in here if "features" in run]
    seeds = ", ".join(str(run["seed"]) for run in whole)
    parts = [f"{TITLES[data]} (seeds {seeds}; {whole[0]['n_train']} training, {whole[0]['n_audit']} audit cells)"]

    trained = whole[0]["training"]
    seen = {name: f"{training['images_seen']:,}" for name, training in trained.items()}
    seen |= {name: seen["stage1"] for name in RIVALS if "stage1" in seen}
    told = {name: "nothing" for name in METHODS} | {name: rival.given for name, rival in RIVALS.items()}
    told["ceiling"] = "the truth"
    last = {"seen": ("images seen", seen), "told": ("told", told)}
    parts.append(layout(table(METHODS, collect(here, data, "features"), FEATURE_COLUMNS, skipped, last)))
    images = collect(here, data, "images")
    parts.append("Images\n" + layout(table(IMAGE_METHODS, images, IMAGE_COLUMNS, {}, {})))
    unseen = collect(here, data, "unseen")
    if unseen:
        left_out = ", ".join(str(run["left_out"]) for run in here if "unseen" in run)
        title = f"Cells of a batch left out of training ({left_out})\n"
        parts.append(title + layout(table(METHODS, unseen, UNSEEN_COLUMNS, {}, {})))
    return "\n\n".join(parts)


# Goals ------------------------------------------------------------------------------------------------------------


def goals(runs: Sequence[Run], data: str) -> list[dict[str, Any]]:
    """Hold the default to what it promises.

    Parameters
    ----------
    runs : sequence of dict
    data : str

    Returns
    -------
    goals : list of dict
        ``goal`` (str), ``value`` and ``limit`` (one per seed), ``slack`` (how much better than asked for; negative is
        missed), ``reached`` (one per seed) and ``met`` (in every seed). Goals whose methods were not run are left out.
    """
    features, images, unseen = (collect(runs, data, kind) for kind in ("features", "images", "unseen"))
    found: list[dict[str, Any]] = []

    def at_most(goal: str, value: Array, limit: Array | float, strict: bool = False) -> None:
        add(goal, value, limit, np.asarray(limit) - value, strict)

    def at_least(goal: str, value: Array, limit: Array | float, strict: bool = False) -> None:
        add(goal, value, limit, value - np.asarray(limit), strict)

    def add(goal: str, value: Array, limit: Array | float, slack: Array, strict: bool) -> None:
        reached = slack > 0 if strict else slack >= -1e-12
        limits = np.broadcast_to(limit, value.shape).tolist()
        found.append({"goal": goal, "value": value.tolist(), "limit": limits, "slack": slack.tolist()})
        found[-1] |= {"reached": reached.tolist(), "met": bool(reached.all())}

    default, stage1, ceiling = (features.get(name) for name in ("default", "stage1", "ceiling"))
    if default is not None:
        if ceiling is not None:
            for name in ("linear", "mlp", "15nn"):
                goal = f"leakage, {name}: at most {ABOVE_CEILING} above the ceiling"
                at_most(goal, default[f"leakage_{name}"], ceiling[f"leakage_{name}"] + ABOVE_CEILING)
        if stage1 is not None:
            at_least("cell type: at least stage 1", default["cell_type"], stage1["cell_type"])
        at_most(f"cross-batch: at most {GAP} below within-batch", default["gap"], GAP)
        at_least(f"active features: more than {ACTIVE:.0%}", default["active"], ACTIVE, strict=True)
    short, published = features.get("default-fifth"), features.get("published")
    if short is not None and published is not None:
        fifth = "a fifth of the images: "
        at_least(f"{fifth}cross-batch at least published", short["cross_batch"], published["cross_batch"])
        for name in ("linear", "mlp", "15nn"):
            key = f"leakage_{name}"
            at_most(f"{fifth}leakage, {name}, at most published", short[key], published[key])
    if "default" in images and "stage1" in images:
        ours, before = images["default"], images["stage1"]
        at_most(f"image MAE: at most {OF_STAGE_1_MAE} of stage 1", ours["mae"], OF_STAGE_1_MAE * before["mae"])
        at_least("image Pearson: above stage 1", ours["pearson"], before["pearson"], strict=True)
        for name in ("linear", "mlp", "15nn"):
            key = f"leakage_{name}"
            at_most(f"image leakage, {name}: below stage 1", ours[key], before[key], strict=True)
    if "default" in unseen and "stage1" in unseen:
        ours, before = unseen["default"], unseen["stage1"]
        at_least("batch not trained on, cell type: above stage 1", ours["cell_type"], before["cell_type"], strict=True)
        at_most("batch not trained on, image MAE: below stage 1", ours["mae"], before["mae"], strict=True)
    return found


def goals_text(found: list[dict[str, Any]]) -> str:
    """Write the goals with how far they are met or missed, at the mean and in the worst seed."""
    width = max((len(goal["goal"]) for goal in found), default=0)
    lines = []
    for goal in found:
        slack = np.array(goal["slack"])
        digits = 3 if "MAE" in goal["goal"] or "Pearson" in goal["goal"] else 2
        times = f"{goal['reached'].count(False)} of {len(slack)}"
        by = "" if goal["met"] else f", missed by up to {max(-slack.min(), 0):.{digits}f} in {times}"
        value, limit = (np.mean(goal[name]) for name in ("value", "limit"))
        state = "met   " if goal["met"] else "MISSED"
        lines.append(f"{state}  {goal['goal'].ljust(width)}  {value:.{digits}f}, limit {limit:.{digits}f}{by}")
    return "\n".join(lines)


# Picture ----------------------------------------------------------------------------------------------------------

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
    "default-fifth": ("#d62728", "d"),
    "ceiling": ("#e6b800", "*"),
}
SHOWN = {
    "brightfield": "brightfield",
    "measured": "measured",
    "stage1": "stage 1",
    "background": "stage 1, no background",
    "contrast": "… one contrast",
    "published": "published",
    "default": "default",
    "truth": "batch-free",
}


def draw(results: Mapping[str, Any], panels: Mapping[str, Mapping[str, Array]], path: Path) -> None:
    """Draw leakage against cross-batch accuracy for the three probes, and some cells, one row per data set."""
    import matplotlib

    matplotlib.use("Agg")  # into a file, on machines without a screen too
    from matplotlib import pyplot as plt

    names = [data for data in TITLES if collect(results["runs"], data, "features")]
    height, foot = 6.2, 1.25  # inches of a data set, and of the legend
    total = height * len(names) + foot
    figure = plt.figure(figsize=(17, total))
    handles: dict[str, Any] = {}
    for index, data in enumerate(names):
        top, bottom = (1 - (height * place) / total for place in (index, index + 1))
        inch = 1 / total
        figure.text(0.01, top - 0.2 * inch, TITLES[data], fontsize=14, fontweight="bold", va="top")
        left = figure.add_gridspec(
            1, 3, left=0.04, right=0.59, wspace=0.06, top=top - 0.95 * inch, bottom=bottom + 0.6 * inch
        )
        handles |= _draw_leakage(figure, left, collect(results["runs"], data, "features"))
        if data in panels:
            side = (height - 0.95 - 0.25) / len([name for name in SHOWN if name in panels[data]])  # inches, squares
            right = {"left": 0.69, "right": 0.69 + len(panels[data]["batch"]) * side / 17}
            right |= {"top": top - 0.95 * inch, "bottom": bottom + 0.25 * inch}
            shown = next(run["cell_type_shown"] for run in results["runs"] if run["data"] == data and "features" in run)
            _draw_cells(figure, right, panels[data], shown, collect(results["runs"], data, "images"))
    labels = {name: label.replace("the same,", "pixels,") for name, label in METHODS.items() if name in handles}
    figure.legend(
        [handles[name] for name in labels],
        list(labels.values()),
        loc="lower left",
        bbox_to_anchor=(0.03, 0.0),
        ncols=5,
        frameon=False,
        fontsize=10,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_leakage(figure: Any, grid: Any, figures: Figures) -> dict[str, Any]:
    """Draw the three scatter plots; return a handle of each method for the legend."""
    handles = {}
    axes = grid.subplots(sharey=True)
    probes = {"linear": "linear probe", "mlp": "small network", "15nn": "15 nearest neighbours"}
    for axis, (probe, title) in zip(axes, probes.items(), strict=True):
        axis.axvline(0, color="0.75", lw=1, zorder=0)
        for method, (colour, marker) in STYLES.items():
            if method not in figures:
                continue
            x, y = figures[method][f"leakage_{probe}"], figures[method]["cross_batch"]
            errors = {"xerr": x.std(ddof=1), "yerr": y.std(ddof=1)} if len(x) > 1 else {}
            big = method in ("default", "ceiling", "published", "stage1")
            handles[method] = axis.errorbar(
                x.mean(),
                y.mean(),
                **errors,
                fmt=marker,
                color=colour,
                ms=(17 if marker == "*" else 11) if big else 8,
                mec="black" if marker == "*" else "white",
                mew=0.8,
                elinewidth=1.2,
                zorder=4 if big else 3,
            )
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


def _draw_cells(figure: Any, place: dict[str, float], panel: Mapping[str, Array], shown: str, images: Figures) -> None:
    """Draw a few cells of one type in three batches, one row per method, with its image error."""
    names = [name for name in SHOWN if name in panel]
    batches = panel["batch"]
    axes = figure.add_gridspec(len(names), len(batches), wspace=0.04, hspace=0.04, **place).subplots(squeeze=False)
    low, high = np.percentile(panel["truth"], [1, 99.7])
    margin = 0.15 * (high - low)
    for row, name in zip(axes, names, strict=True):
        for axis, image in zip(row, panel[name], strict=True):
            limits = {} if name == "brightfield" else {"vmin": low - margin, "vmax": high + margin}
            axis.imshow(image, cmap="gray" if name == "brightfield" else "viridis", aspect="auto", **limits)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(SHOWN[name], rotation=0, ha="right", va="center", fontsize=10)
        note = (
            "MAE to\nbatch-free" if name == "brightfield" else spread(images[name]["mae"], 3) if name in images else ""
        )
        row[-1].text(1.06, 0.5, note, transform=row[-1].transAxes, va="center", fontsize=9)
    for axis, batch, before in zip(axes[0], batches, ["", *batches], strict=False):
        if batch != before:
            axis.set_title(str(batch), fontsize=10, loc="left")
    middle = (place["left"] + place["right"]) / 2
    title = f"audit cells of one type ({shown}), images on one scale"
    figure.text(middle, place["top"], title + "\n\n", ha="center", va="bottom", fontsize=11)
