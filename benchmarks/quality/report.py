"""From results to tables and goals; knows no model and reads no images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from common import number, spread, table
from numpy.typing import NDArray
from quality.data_sets import DATA_SETS
from quality.methods import IMAGE_METHODS, METHODS
from quality.rivals import RIVALS

Run = Mapping[str, Any]
Figures = dict[str, dict[str, NDArray[Any]]]  # method -> figure -> one value per seed

LEAKAGE = {"leakage_linear": "leakage linear", "leakage_mlp": "MLP", "leakage_15nn": "15-NN"}
TYPES = {"cell_type": "cell type", "cross_batch": "cross-batch"}
FIDELITY = {"mae": "MAE", "within": "r within", "texture": "r texture"}
FEATURE_COLUMNS = {**TYPES, **LEAKAGE}
IMAGE_COLUMNS = {**FIDELITY, **LEAKAGE}
UNSEEN_COLUMNS = {"cell_type": "cell type", **FIDELITY}
CURVE_COLUMNS = {"per_cell": "images per cell", **FIDELITY, **TYPES}

EXPLANATION = (
    "Figures are of audit cells that no model and no probe has learned from; mean ± standard deviation over seeds. "
    "benchmarks/README.md says what each column means."
)

# What the default is held to; the numbers are those of the project's goals. A data set that is not named has no goal.
BELOW_TRUTH, BELOW_WITHIN, LEAKAGE_BOUND = 0.02, 0.02, 0.10
OF_TRUE_R2 = {"total_phase": 0.90, "area": 0.90, "texture": 0.90, "elongation": 0.70}
RANK, DIRECTIONS, IMAGES_PER_CELL = 6, 20, 54
WITHIN, TEXTURE = {"simulated": 0.92, "jurkat": 0.92, "wbc": 0.85}, {"simulated": 0.75, "jurkat": 0.75}
IMAGE_MLP, UNSEEN, UNSEEN_OF_SEEN = {"simulated": 0.30, "jurkat": 0.10}, {"simulated": 0.65, "jurkat": 0.68}, 0.85
FIVE_PROBES = {"linear": "linear", "mlp": "MLP", "15nn": "15-NN", "trees": "trees", "cnn": "CNN, of images"}
NAMES = {"total_phase": "dry mass (total phase)", "area": "area", "texture": "granularity", "elongation": "elongation"}


def collect(runs: Sequence[Run], data: str, kind: str, **like: Any) -> Figures:
    """Gather the figures of a data set by seed, for methods that all of its runs have; `like`: of some runs only.

    A seed with several runs, one for each batch that was left out in turn, counts with their mean.
    """
    found: dict[int, list[Any]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        if run["data"] == data and kind in run and all(run.get(name) == value for name, value in like.items()):
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
            numbers = [spread(values[k], 3 if k == "mae" else 2) if k in values else "-" for k in columns]
            found.append([label, *numbers, *(cells.get(method, "-") for cells in (last or {}).values())])
        elif method in (notes or {}):
            found.append([label, (notes or {})[method]])
    return found


def section(results: Mapping[str, Any], data: str) -> str:
    """Return all tables of a data set, that of the goals first."""
    runs = [run for run in results["runs"] if run["data"] == data]
    if any("curve" in run for run in runs):
        return "\n\n".join([f"## {DATA_SETS[data].title}", table(curve_rows(runs, data))])
    whole = [run for run in runs if "features" in run]
    seeds = ", ".join(str(run["seed"]) for run in whole)
    sizes = f"{whole[0]['n_train']} training, {whole[0]['n_audit']} audit cells"
    seen = {name: f"{training['images_seen']:,}" for name, training in whole[0]["training"].items()}
    seen |= {name: seen["stage1"] for name in RIVALS if "stage1" in seen}
    given = {name: "nothing" for name in METHODS} | {name: rival.given for name, rival in RIVALS.items()}
    last = {"images seen": seen, "given of audit cells": given | {"ceiling": "the truth", "measured": "the target"}}
    notes = results["skipped"]
    parts = [
        f"## {DATA_SETS[data].title} (seeds {seeds}; {sizes})",
        goals_table(goals(runs, data), data),
        "**Features**",
        table(rows(METHODS, collect(runs, data, "features"), FEATURE_COLUMNS, notes, last)),
        f"**Images**, held against the {'batch-free' if DATA_SETS[data].has_truth else 'measured'} ones",
        table(rows(IMAGE_METHODS, collect(runs, data, "images"), IMAGE_COLUMNS)),
    ]
    left_out = list(dict.fromkeys(run["left_out"] for run in runs if "unseen" in run))
    if left_out:
        found = rows(METHODS, collect(runs, data, "unseen"), UNSEEN_COLUMNS)
        parts += [f"**Cells of a batch left out of training** ({', '.join(left_out)})", table(found)]
    return "\n\n".join(parts)


def curve_rows(runs: Sequence[Run], data: str) -> list[list[str]]:
    """Return a heading and, for each part of the epochs, a row per model."""
    found: list[list[str]] = []
    for part in sorted({run["part"] for run in runs}):
        labels = {method: f"{label}, {part:g} x the epochs" for method, label in METHODS.items()}
        of_part = rows(labels, collect(runs, data, "curve", part=part), CURVE_COLUMNS)
        found += of_part[bool(found) :]
    return [found[0], *sorted(found[1:], key=lambda row: row[0].partition(",")[0] != METHODS["stage1"])]


# Goals ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of the table of goals: a figure of several methods, one value per seed, and what the default is held to.

    Attributes
    ----------
    what : str
    figures : dict of str to ndarray
        Of "stage1", "default" and "truth", as far as they were measured.
    sign : {">=", "<="}
    limit : ndarray or None
        None: there is no goal, or it was not run what the goal is held against.
    wanted : str
        The goal in words.
    bound : dict of str to ndarray
        Upper bounds of the figures. If there are any, the default's is held to the limit.
    """

    what: str
    figures: Mapping[str, NDArray[Any]]
    sign: str = ">="
    limit: Any = None
    wanted: str = ""
    bound: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def missed(self) -> float:
        """By how much the mean over seeds misses the goal; below 0 it is met, NaN if there is nothing to compare."""
        held = (self.bound or self.figures).get("default")
        if held is None or self.limit is None:
            return np.nan
        return float(np.mean(self.limit - held) * (1 if self.sign == ">=" else -1))

    def row(self) -> list[str]:
        def written(name: str) -> str:
            if name not in self.figures or np.isnan(self.figures[name]).all():
                return "-"
            bound = f" (bound {np.mean(self.bound[name]):.2f})" if name in self.bound else ""
            return spread(self.figures[name]) + bound

        missed = self.missed
        verdict = "-" if not self.wanted else "not measured" if np.isnan(missed) else "met"
        if missed > 1e-9:
            verdict = f"**missed by {number(missed)}**"
        wanted = self.wanted or "-"
        if self.limit is not None and not np.isnan(self.limit).any():
            limit = number(np.mean(self.limit))
            wanted += f" {limit}" if wanted.endswith("=") else f" ({limit})"
        return [self.what, wanted, *map(written, ("stage1", "default", "truth")), verdict]

    def record(self) -> dict[str, Any]:
        """Return what results.json keeps."""
        values = {name: np.asarray(found).tolist() for name, found in self.figures.items()}
        limit = None if self.limit is None else np.asarray(self.limit).tolist()
        bound = {name: np.asarray(found).tolist() for name, found in self.bound.items()}
        words = {"goal": self.what, "wanted": self.wanted, "sign": self.sign}
        return {**words, "limit": limit, "values": values, "bound": bound, "missed_by": self.missed}


def goals(runs: Sequence[Run], data: str) -> list[Line]:
    """Return all lines of the table of goals; what was not run is empty."""
    features, images = (_renamed(collect(runs, data, kind)) for kind in ("features", "images"))
    has_truth = DATA_SETS[data].has_truth

    def of(figures: Figures, key: str) -> dict[str, NDArray[Any]]:
        return {name: figures[name][key] for name in ("stage1", "default", "truth") if key in figures.get(name, {})}

    def line(what: str, figures: Figures, key: str, sign: str = ">=", limit: Any = None, wanted: str = "") -> None:
        found.append(Line(what, of(figures, key), sign, limit, wanted))

    found: list[Line] = []
    for key, probe in (("cell_type", "linear"), ("cell_type_mlp", "MLP")):
        against = of(features, key)
        limit, wanted = against.get("stage1"), ">= stage 1"
        if data == "simulated":
            limit, wanted = against.get("truth"), f">= truth - {BELOW_TRUTH}"
            limit = None if limit is None else limit - BELOW_TRUTH
        line(f"cell type, {probe}", features, key, ">=", limit, wanted)
    truth = of(features, "cross_batch").get("truth") if has_truth else None
    wanted = f">= truth - {BELOW_TRUTH}" if has_truth else ""
    left_out = "type, batch left out of the probe"
    line(left_out, features, "cross_batch", ">=", None if truth is None else truth - BELOW_TRUTH, wanted)
    line(f"{left_out}: below in-batch", features, "gap", "<=", BELOW_WITHIN, "<=")
    line("type in other batches, mean average precision", features, "precision")
    for key, probe in FIVE_PROBES.items():
        where = images if key == "cnn" else features
        limits = {"sign": "<=", "limit": LEAKAGE_BOUND, "wanted": "95 % bound <="}
        values = of(where, f"excess_{key}"), of(where, f"bound_{key}")
        found.append(Line(f"leakage beyond chance, {probe}", values[0], bound=values[1], **limits))
    for key, share in OF_TRUE_R2.items():
        # Measured images carry the site, so what they hold is asked on sites that the probe saw.
        values = of(features, f"left_out_{key}")
        values |= {k: v for k, v in of(features, f"seen_{key}").items() if k == "truth" and not has_truth}
        limit = share * np.maximum(values["truth"], 0) if "truth" in values else None
        wanted = f">= {share} of {'truth' if has_truth else 'measured, batches seen'}"
        found.append(Line(f"{NAMES[key]}, R2 within type, unseen batch", values, ">=", limit, wanted))
    line("effective rank", features, "rank", ">=", RANK, ">=")
    line("directions above the floor", features, "directions", ">=", DIRECTIONS, ">=")
    limit, wanted = WITHIN.get(data), ">="
    if not has_truth:
        before = of(images, "within").get("stage1")
        limit, wanted = None if before is None else np.maximum(before, WITHIN[data]), f">= {WITHIN[data]}, >= stage 1"
    groups = "type" if has_truth else "batch and type"
    line(f"images, correlation within {groups}", images, "within", ">=", limit, wanted)
    line(f"images, correlation of texture within {groups}", images, "texture", *_goal(TEXTURE, data, ">="))
    line("images, leakage by MLP", images, "leakage_mlp", *_goal(IMAGE_MLP, data, "<="))
    if data in UNSEEN:
        line("type, batch that neither saw", collect(runs, data, "unseen"), "cell_type", *_goal(UNSEEN, data, ">="))
    else:
        seen = of(features, "cell_type").get("default")
        limit, first = None if seen is None else UNSEEN_OF_SEEN * seen, len(found)
        for name in sorted({run["left_out"] for run in runs if run["data"] == data and "unseen" in run}):
            figures = collect(runs, data, "unseen", left_out=name)
            line(
                f"type, site that neither saw: {name}",
                figures,
                "cell_type",
                ">=",
                limit,
                f">= {UNSEEN_OF_SEEN} of seen",
            )
        found[first:] = sorted(found[first:], key=lambda each: np.mean(each.figures["default"]))  # the worst first
    line("images seen per cell", features, "per_cell", "<=", IMAGES_PER_CELL, "<=")
    return found


def goals_table(lines: Sequence[Line], data: str) -> str:
    """Write the lines, and how many goals are met."""
    truth = "truth" if DATA_SETS[data].has_truth else "measured target"
    missed = np.array([each.missed for each in lines if each.wanted])
    met = f"Goals of the default, means over seeds: {(missed <= 1e-9).sum()} of {len(missed)} met"
    lost = f", {np.isnan(missed).sum()} not measured" if np.isnan(missed).any() else ""
    heading = ["", "goal", "stage 1", "default", truth, "verdict"]
    return f"{met}{lost}.\n\n{table([heading, *(each.row() for each in lines)])}"


def _renamed(figures: Figures) -> Figures:
    """Return the figures with what the default is compared with under "truth"."""
    reference = figures.get("ceiling", figures.get("measured"))
    return figures if reference is None else {**figures, "truth": reference}


def _goal(limits: Mapping[str, float], data: str, sign: str) -> tuple[str, float | None, str]:
    return sign, limits.get(data), sign if data in limits else ""
