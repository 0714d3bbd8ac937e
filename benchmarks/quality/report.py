"""From results to tables and goals; knows no model and reads no images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common import Goal, goals_text, spread, table
from numpy.typing import NDArray
from quality.data_sets import DATA_SETS
from quality.methods import IMAGE_METHODS, METHODS
from quality.rivals import RIVALS

Run = Mapping[str, Any]
Figures = dict[str, dict[str, NDArray[Any]]]  # method -> figure -> one value per seed

PROBES = ("linear", "mlp", "15nn")
LEAKAGE = {"leakage_linear": "leakage linear", "leakage_mlp": "MLP", "leakage_15nn": "15-NN"}
TYPES = {"cell_type": "cell type", "cross_batch": "cross-batch"}
FIDELITY = {"mae": "MAE", "pearson": "Pearson", "within": "r within"}
FEATURE_COLUMNS = {**TYPES, "gap": "gap", **LEAKAGE, "active": "active"}
IMAGE_COLUMNS = {**FIDELITY, **LEAKAGE, **TYPES}
UNSEEN_COLUMNS = {"cell_type": "cell type", **FIDELITY}

EXPLANATION = (
    "Figures are of audit cells that no model and no probe has learned from; mean ± standard deviation over seeds. "
    "benchmarks/README.md says what each column means."
)

# What the default is held to; the numbers are those of the project's goals.
ABOVE_CEILING, GAP, OF_STAGE_1_MAE, ACTIVE = 0.15, 0.03, 0.65, 0.25


def collect(runs: Sequence[Run], data: str, kind: str, left_out: str | None = None) -> Figures:
    """Gather the figures of a data set by seed, for methods that all of its runs have.

    A seed with several runs, one for each batch that was left out in turn, counts with their mean.
    """
    found: dict[int, list[Any]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        if run["data"] == data and kind in run and left_out in (None, run.get("left_out")):
            found.setdefault(run["seed"], []).append(run[kind])
    every = [figures for of_seed in found.values() for figures in of_seed]
    shared = [method for method in every[0] if all(method in figures for figures in every)] if every else []
    return {
        method: {
            name: np.array([np.mean([figures[method][name] for figures in of_seed]) for of_seed in found.values()])
            for name in every[0][method]
        }
        for method in shared
    }


# Tables ---------------------------------------------------------------------------------------------------------------


def rows(
    labels: Mapping[str, str],
    figures: Figures,
    columns: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
    last: Mapping[str, Mapping[str, str]] | None = None,
) -> list[list[str]]:
    """Return a heading and a row per method, with a note in place of figures that there are not."""
    found = [["", *columns.values(), *(last or {})]]
    for method, label in labels.items():
        if method in figures:
            # Errors and correlations of images need more digits than shares do.
            values = figures[method]
            numbers = [spread(values[k], 3 if k in ("mae", "pearson") else 2) if k in values else "-" for k in columns]
            found.append([label, *numbers, *(cells.get(method, "-") for cells in (last or {}).values())])
        elif method in (notes or {}):
            found.append([label, (notes or {})[method]])
    return found


def section(results: Mapping[str, Any], data: str) -> str:
    """Return all tables and the goals of a data set."""
    runs = [run for run in results["runs"] if run["data"] == data]
    whole = [run for run in runs if "features" in run]
    seeds = ", ".join(str(run["seed"]) for run in whole)
    sizes = f"{whole[0]['n_train']} training, {whole[0]['n_audit']} audit cells"
    seen = {name: f"{training['images_seen']:,}" for name, training in whole[0]["training"].items()}
    seen |= {name: seen["stage1"] for name in RIVALS if "stage1" in seen}
    given = {name: "nothing" for name in METHODS} | {name: rival.given for name, rival in RIVALS.items()}
    last = {"images seen": seen, "given of audit cells": given | {"ceiling": "the truth"}}
    notes = results["skipped"]
    parts = [
        f"## {DATA_SETS[data].title} (seeds {seeds}; {sizes})",
        table(rows(METHODS, collect(runs, data, "features"), FEATURE_COLUMNS, notes, last)),
        f"**Images**, held against the {'batch-free' if DATA_SETS[data].has_truth else 'measured'} ones",
        table(rows(IMAGE_METHODS, collect(runs, data, "images"), IMAGE_COLUMNS)),
    ]
    left_out = list(dict.fromkeys(run["left_out"] for run in runs if "unseen" in run))
    if left_out:
        found = rows(METHODS, collect(runs, data, "unseen"), UNSEEN_COLUMNS)
        n_seeds = len({run["seed"] for run in runs if "unseen" in run})
        if sum("unseen" in run for run in runs) > n_seeds:  # every batch in turn: each has rows of its own
            for name in left_out:
                labels = {method: f"{label}, without {name}" for method, label in METHODS.items()}
                found += rows(labels, collect(runs, data, "unseen", name), UNSEEN_COLUMNS)[1:]
        parts += [f"**Cells of a batch left out of training** ({', '.join(left_out)})", table(found)]
    return "\n\n".join([*parts, f"```text\n{goals_text(goals(runs, data))}\n```"])


# Goals ----------------------------------------------------------------------------------------------------------------


def goals(runs: Sequence[Run], data: str) -> list[Goal]:
    """Hold the default to what it promises; goals whose methods were not run are left out."""
    features, images, unseen = (collect(runs, data, kind) for kind in ("features", "images", "unseen"))
    has_truth = DATA_SETS[data].has_truth
    found: list[Goal] = []
    default, stage1, ceiling = (features.get(name) for name in ("default", "stage1", "ceiling"))
    if default is not None:
        for name in PROBES if ceiling or not has_truth else ():
            key, text = f"leakage_{name}", f"at most {ABOVE_CEILING} above {'the ceiling' if has_truth else 'chance'}"
            limit = ABOVE_CEILING + (ceiling[key] if ceiling else 0.0)
            found.append(Goal(f"leakage, {name}: {text}", default[key], "<=", limit))
        if stage1 is not None:
            found.append(Goal("cell type: at least stage 1", default["cell_type"], ">=", stage1["cell_type"]))
        found.append(Goal(f"cross-batch: at most {GAP} below within-batch", default["gap"], "<=", GAP))
        found.append(Goal(f"active features: more than {ACTIVE:.0%}", default["active"], ">", ACTIVE))
    short, published = features.get("default-fifth"), features.get("published")
    if short is not None and published is not None:
        fifth, key = "a fifth of the images: ", "cross_batch"
        found.append(Goal(f"{fifth}cross-batch at least published", short[key], ">=", published[key]))
        for name in PROBES:
            key = f"leakage_{name}"
            found.append(Goal(f"{fifth}leakage, {name}, at most published", short[key], "<=", published[key]))
    if "default" in images and "stage1" in images:
        ours, before = images["default"], images["stage1"]
        if has_truth:
            limit = OF_STAGE_1_MAE * before["mae"]
            found.append(Goal(f"image MAE: at most {OF_STAGE_1_MAE} of stage 1", ours["mae"], "<=", limit))
            found.append(Goal("image Pearson: above stage 1", ours["pearson"], ">", before["pearson"]))
        else:  # an image without batch effect is not the measured one, but differs within a batch as that does
            found.append(Goal("images, r within: at least stage 1", ours["within"], ">=", before["within"]))
        for name in PROBES:
            key = f"leakage_{name}"
            found.append(Goal(f"image leakage, {name}: below stage 1", ours[key], "<", before[key]))
    if "default" in unseen and "stage1" in unseen:
        ours, before, batch = unseen["default"], unseen["stage1"], "batch not trained on, "
        found.append(Goal(f"{batch}cell type: above stage 1", ours["cell_type"], ">", before["cell_type"]))
        if has_truth:
            found.append(Goal(f"{batch}image MAE: below stage 1", ours["mae"], "<", before["mae"]))
        else:
            found.append(Goal(f"{batch}images, r within: at least stage 1", ours["within"], ">=", before["within"]))
    return found
