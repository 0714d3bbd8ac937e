"""The rows of an audit's table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.utils import Bunch

from skbegan.metrics._checks import Array, check_pixels
from skbegan.metrics.activity import active_features, effective_rank
from skbegan.metrics.images import image_error
from skbegan.metrics.integration import integration_scores
from skbegan.metrics.probes import Design, NothingToMeasure
from skbegan.metrics.report import Measure
from skbegan.metrics.retained import RetainedVariation

PROBES = {"linear": "linear probe", "mlp": "MLP", "knn": "15-NN", "trees": "boosted trees", "cnn": "CNN"}
FEATURES, IMAGES, _INTEGRATION = "features", "predicted images", "features, integration scores"
_TO_MEASURED, _TO_TRUTH = "image error to the measured images", "image error to the batch-free truth"
_ERRORS = {
    "mae": ("mean absolute error", "lower"),
    "rmse": ("root mean square error", "lower"),
    "psnr": ("PSNR (dB)", "higher"),
    "ssim": ("SSIM", "higher"),
    "pearson": ("Pearson correlation", "higher"),
}
_SCORES = {
    "kbet": "kBET acceptance",
    "ilisi": "iLISI",
    "batch_asw": "batch silhouette",
    "graph_connectivity": "graph connectivity",
    "clisi": "cLISI",
    "cell_type_asw": "cell type silhouette",
}


class Sheet:
    """Rows as they are found."""

    def __init__(self) -> None:
        self.measures: dict[str, Measure] = {}
        self.skipped: dict[str, str] = {}

    def add(
        self,
        key: str,
        name: str,
        section: str,
        value: float,
        n_cells: int,
        *,
        better: str | None,
        spread: float | None = None,
        chance: float | None = None,
        raw: float | None = None,
        truth: float | None = None,
    ) -> None:
        self.measures[key] = Measure(name, section, value, spread, chance, better, raw, truth, n_cells)

    def add_probes(
        self,
        section: str,
        prefix: str,
        found: dict[str, Any],
        raw: dict[str, Any],
        truth: dict[str, Any],
        probes: Sequence[str],
    ) -> None:
        reader = PROBES[probes[0]]
        rows = {
            "cell_type_accuracy": (f"cell type accuracy, {reader}", "higher"),
            "cross_batch_accuracy": (f"cross-batch accuracy, {reader}", "higher"),
            "cross_batch_gap": ("  less than within batch by", "lower"),
            **{f"leakage_{probe}": (f"batch leakage, {PROBES[probe]}", "lower") for probe in probes},
        }
        if not prefix:
            rows["batch_removal_score"] = ("batch removal score", "higher")
        for key, (name, better) in rows.items():
            details = found[key]
            if isinstance(details, str):
                self.skipped[prefix + key] = details
                continue
            self.add(
                prefix + key,
                name,
                section,
                details.score,
                details.n_cells,
                better=better,
                spread=math.hypot(0.0 if math.isnan(details.std) else details.std, details.stderr),
                chance=details.chance if "accuracy" in key else 0.0,
                raw=raw[key].score if raw else None,
                truth=truth[key].score if truth else None,
            )


def add_activity(sheet: Sheet, features: Array) -> None:
    alive: Any = active_features(features, return_details=True)
    n = len(features)
    sheet.add(
        "active_features", f"active share of {alive.n_features} features", FEATURES, alive.score, n, better="higher"
    )
    sheet.add(
        "effective_dimensions",
        "effective dimensions",
        FEATURES,
        alive.effective_dimensions,
        n,
        better=None,
    )


def add_rank(sheet: Sheet, features: Array) -> None:
    """Add the number of independent directions."""
    rank: Any = effective_rank(features, return_details=True)
    sheet.add("effective_rank", "effective rank", FEATURES, rank.score, len(features), better=None)
    sheet.add(
        "directions",
        f"directions above {rank.floor:g} of an average one",
        FEATURES,
        float(rank.n_directions),
        len(features),
        better=None,
    )


def add_precision(sheet: Sheet, found: Any, raw: Any, truth: Any) -> None:
    """Add cell types found again in other batches; a string says why there is no figure."""
    if isinstance(found, str):
        sheet.skipped["cross_batch_precision"] = found
        return
    sheet.add(
        "cross_batch_precision",
        "cross-batch mean average precision",
        FEATURES,
        found.score,
        found.n_cells,
        better="higher",
        spread=None if math.isnan(found.stderr) else found.stderr,
        chance=found.chance,
        raw=raw.score if isinstance(raw, Bunch) else None,
        truth=truth.score if isinstance(truth, Bunch) else None,
    )


def add_retained(sheet: Sheet, found: Any, raw: Any, truth: Any, source: str) -> None:
    """Add what the kernel probe predicts of the cells' measurements; None: not asked; a string: why there is none."""
    if found is None:
        return
    if isinstance(found, str):
        sheet.skipped["retained_variation"] = found
        return
    references = [each if isinstance(each, RetainedVariation) else None for each in (raw, truth)]
    section = f"features, R2 within type of cell measurements {source}"
    for name, figures in found.measurements.items():
        for mode, suffix, label in (("seen", "", ""), ("left_out", "_left_out", ", batch left out")):
            figure = figures.kernel[mode]
            if math.isnan(figure.score):
                continue
            others = [
                float(each[name].kernel[mode].score) if each is not None and name in each.measurements else None
                for each in references
            ]
            sheet.add(
                f"retained_{name}{suffix}",
                f"{name.replace('_', ' ')}{label}",
                section,
                figure.score,
                figure.n_cells,
                better="higher",
                spread=figure.stderr,
                chance=figure.chance,
                raw=others[0],
                truth=others[1],
            )


def add_classifier(sheet: Sheet, estimator: Any, X_bf: ArrayLike, design: Design, scored: Array) -> None:
    classes = getattr(estimator, "classes_", None)
    if not hasattr(estimator, "predict") or classes is None:
        return
    t = design.types[design.cell_type]
    if not set(classes) & set(design.types):
        sheet.skipped["classifier_accuracy"] = "The classifier's classes are none of these cell types."
        return
    right = (np.asarray(estimator.predict(X_bf), dtype=object) == t)[scored]
    sheet.add(
        "classifier_accuracy",
        "accuracy of the pipeline's classifier",
        FEATURES,
        float(right.mean()),
        len(right),
        better="higher",
        spread=float(right.std() / np.sqrt(len(right))),
        chance=float(np.bincount(design.cell_type[scored]).max() / len(right)),
    )


def add_integration(
    sheet: Sheet,
    features: Array,
    bf: Array,
    design: Design,
    scored: Array,
    references: bool,
    n_components: int,
    seed: int,
) -> None:
    labels = design.batch[scored], design.cell_type[scored]
    try:
        found = integration_scores(features, *labels, random_state=seed)
    except NothingToMeasure as reason:
        sheet.skipped["integration"] = str(reason)
        return
    raw = None
    if references:
        flat = check_pixels(bf if bf.ndim > 2 else bf[:, :, None], "X_bf")
        k = min(n_components, *flat.shape)
        raw = integration_scores(PCA(k, random_state=seed).fit_transform(flat), *labels, random_state=seed)
    for key, name in _SCORES.items():
        score = found[key]
        best = key in ("kbet", "ilisi", "batch_asw")
        sheet.add(
            key,
            f"{name} (batch-free: {score.shuffled:.2f})" if best else name,
            _INTEGRATION,
            score.score,
            found.n_cells,
            better="higher",
            chance=None if best else score.shuffled,
            raw=None if raw is None else raw[key].score,
        )


def add_errors(
    sheet: Sheet,
    predicted: Array | None,
    targets: dict[str, Array | None],
    design: Design,
    scored: Array,
    references: bool,
) -> dict[str, Bunch]:
    """Add the image errors and return them in full, as "error" and "truth_error"."""
    measured, truth = targets["y_qpi"], targets["truth"]
    found: dict[str, Bunch] = {}
    if predicted is None:
        return found
    batch, cell_type = design.batches[design.batch[scored]], design.types[design.cell_type[scored]]
    rows = (("", _TO_MEASURED, measured, None, truth), ("truth_", _TO_TRUTH, truth, measured, None))
    for prefix, section, target, raw, best in rows:
        if target is None:
            continue
        error = found[f"{prefix}error"] = image_error(
            predicted[scored], target[scored], batch=batch, cell_type=cell_type
        )
        others = [
            image_error(images[scored], target[scored], data_range=error.data_range) if images is not None else None
            for images in (raw if references else None, best)
        ]
        for key, (name, better) in _ERRORS.items():
            sheet.add(
                prefix + key,
                name,
                section,
                error[key],
                error.n_cells,
                better=better,
                spread=error.stderr[key],
                raw=None if others[0] is None else others[0][key],
                truth=None if others[1] is None else others[1][key],
            )
    return found


def about_probes(design: Design, n_splits: int, n_repeats: int, n_components: int) -> list[str]:
    """Say how the probes of an audit are trained."""
    how = (
        f"cross-fitted on these cells ({n_splits} folds)"
        if design.train is None
        else f"trained on {int(design.train.sum())} other cells (probe_train)"
    )
    return [
        f"Probes are {how}, {counted(n_repeats, 'repeat')}; images are given to them as {n_components} principal "
        "components.",
        "The figures hold only if the model was not fitted on the scored cells, which it cannot tell.",
    ]


def about_measurements(sheet: Sheet, center: str) -> list[str]:
    """Say where the cell measurements of an audit come from."""
    if not any(key.startswith("retained_") for key in sheet.measures):
        return []
    if center == "batch":
        return [
            "The truth is unknown: cell measurements are those of the measured images, with their noise, each batch",
            "brought to its type's mean and spread.",
        ]
    return []


# ------------------------------------------------------------------------------------------- each batch, each type
def groups(
    design: Design, scored: Array, found: dict[str, Any], errors: dict[str, Bunch], probes: Sequence[str]
) -> tuple[dict[Any, dict[str, float]], dict[Any, dict[str, float]]]:
    b, t = design.batch[scored], design.cell_type[scored]
    per_batch: dict[Any, dict[str, float]] = {}
    per_type: dict[Any, dict[str, float]] = {}
    gap, cell_type, cross = (found[k] for k in ("cross_batch_gap", "cell_type_accuracy", "cross_batch_accuracy"))
    for code, label in enumerate(design.batches):
        row: dict[str, float] = {"n_cells": int((b == code).sum()), "n_types": len(np.unique(t[b == code]))}
        if not isinstance(gap, str) and label in gap.per_batch:
            row["within_batch_accuracy"] = gap.per_batch[label].within
            row["cross_batch_accuracy"] = gap.per_batch[label].cross
            row["chance"] = cross.per_batch[label].chance
        per_batch[label] = row | _errors_of(errors, "per_batch", label)
    for code, label in enumerate(design.types):
        row = {"n_cells": int((t == code).sum()), "n_batches": len(np.unique(b[t == code]))}
        for key, details in (("cell_type_accuracy", cell_type), ("cross_batch_accuracy", cross)):
            if not isinstance(details, str) and label in details.per_type:
                row[key] = details.per_type[label]
        for probe in probes:
            leakage = found[f"leakage_{probe}"]
            if not isinstance(leakage, str) and label in leakage.per_type:
                row[f"leakage_{probe}"] = leakage.per_type[label].score
        per_type[label] = row | _errors_of(errors, "per_type", label)
    return per_batch, per_type


def _errors_of(errors: dict[str, Bunch], groups: str, label: Any) -> dict[str, float]:
    return {
        f"{prefix}{key}": errors[f"{prefix}error"][groups][label][key]
        for prefix in ("", "truth_")
        if f"{prefix}error" in errors
        for key in ("mae", "pearson")
        if label in errors[f"{prefix}error"][groups]
    }


def counted(n: int, what: str) -> str:
    plural = "batches" if what == "batch" else f"{what}s"
    return f"{n} {what if n == 1 else plural}"
