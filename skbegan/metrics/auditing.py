"""One table for a fitted model, on cells that it did not train on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.utils import Bunch

from skbegan.metrics._checks import (
    Array,
    RandomState,
    check_count,
    check_features,
    check_pixels,
    digest,
    make_generator,
)
from skbegan.metrics._estimators import features_of, images_of, unwrap
from skbegan.metrics.accuracy import measure_cell_type, measure_gap
from skbegan.metrics.activity import active_features
from skbegan.metrics.images import image_error
from skbegan.metrics.integration import integration_scores
from skbegan.metrics.leakage import measure_leakage
from skbegan.metrics.probes import Design, NothingToMeasure, spread
from skbegan.metrics.report import Audit, Measure
from skbegan.metrics.tuning import removal_score, removal_stderr

_PROBES = {"linear": "linear probe", "mlp": "MLP", "knn": "15-NN"}
_FEATURES, _IMAGES, _INTEGRATION = "features", "predicted images", "features, integration scores"
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


def audit(
    estimator: Any,
    X_bf: ArrayLike,
    y_qpi: ArrayLike | None,
    batch: ArrayLike,
    cell_type: ArrayLike,
    *,
    truth: ArrayLike | None = None,
    probe_train: ArrayLike | None = None,
    trained_on: ArrayLike | None = None,
    probes: Sequence[str] = ("linear", "mlp", "knn"),
    n_splits: int = 5,
    n_repeats: int = 3,
    n_components: int = 50,
    references: bool = True,
    integration: bool = False,
    random_state: RandomState = 0,
) -> Audit:
    """Measure what a fitted model leaves of the batch and keeps of the biology, on cells it did not train on.

    Fresh probes read features and predicted images, and images are compared pixel by pixel; see
    :func:`batch_leakage`, :func:`image_leakage`, :func:`cross_batch_accuracy` and :func:`image_error` for what each
    figure means. Every figure comes with its chance level, its spread and, as a reference, the same figure from the
    raw images: a leakage says little without the leakage there was before.

    Parameters
    ----------
    estimator : fitted transformer
        A BeGANTransformer; a Pipeline that contains one, also with a classifier at its end (audited are the features
        that reach the classifier); a fitted search over either; or any transformer. Without ``predict_image`` there
        are no rows about images.
    X_bf : array-like of shape (n_cells, H, W) or (n_cells, H, W, C)
        Brightfield images, **of cells that the model was not fitted on**. A model that has learned its training cells
        by heart looks better on them than it is, and nothing in a fitted model tells which they were: keep cells
        aside. ``trained_on`` checks it.
    y_qpi : array-like of shape (n_cells, H, W) or (n_cells, H, W, C), or None
        Measured target images.
    batch, cell_type : array-like of shape (n_cells,)
    truth : array-like of the shape of ``y_qpi``, default=None
        Target images without any batch effect, where they are known (simulated cells): errors are given to them too,
        and what probes read from them is the best that can be expected.
    probe_train : array-like of bool of shape (n_cells,), default=None
        None: probes are cross-fitted on the cells. A mask: probes are trained on the True cells and only the False
        ones are scored. The True cells may then be the model's training cells, for want of others.
    trained_on : array-like of shape (n, H, W) or (n, H, W, C), default=None
        The images that the model was fitted on; warns if scored cells are among them (by content).
    probes : sequence of {"linear", "mlp", "knn"}, default=all three
        Probes of leakage. The first reads the cell types as well.
    n_splits, n_repeats : int, default=5 and 3
        Folds of the cross-fitting and repeats, as in :func:`batch_leakage`. References are measured once.
    n_components : int, default=50
        Principal components of images that probes get, as in :func:`image_leakage`.
    references : bool, default=True
        Also measure the raw images: brightfield pixels beside the features, measured beside predicted images.
    integration : bool, default=False
        Add :func:`integration_scores` of the features.
    random_state : int, Generator, RandomState or None, default=0

    Returns
    -------
    audit : Audit
        ``print(audit)`` shows the table; ``audit["leakage_linear"].value`` is one figure; ``to_frame()``, ``to_dict()``
        and ``skbegan.plotting.AuditDisplay.from_audit(audit)`` show it otherwise. Keys of the rows:

        - ``cell_type_accuracy``, ``cross_batch_accuracy``, ``cross_batch_gap``, ``leakage_linear``, ``leakage_mlp``,
          ``leakage_knn``, ``batch_removal_score`` (of the first probe), from the features;
        - ``active_features``, ``effective_dimensions``: see :func:`active_features`;
        - ``classifier_accuracy``: of a Pipeline's own classifier on these cells;
        - the first six with the prefix ``image_``, from the predicted images;
        - ``mae``, ``rmse``, ``psnr``, ``ssim``, ``pearson`` to the measured images, and with the prefix ``truth_`` to
          the batch-free truth; the raw column has the measured images' error to the truth;
        - with ``integration``, ``kbet``, ``ilisi``, ``batch_asw``, ``graph_connectivity``, ``clisi``,
          ``cell_type_asw``.

        What the design does not allow (leakage with one batch) is left out and named in ``skipped``.

    Raises
    ------
    TypeError
        If the estimator has no ``transform``.
    ValueError
        On bad input.

    Warns
    -----
    UserWarning
        If scored cells are among ``trained_on``.

    Notes
    -----
    Most of the time goes into the probes, in proportion to the cells: about half a minute on one core for 1000 cells
    with all defaults and ``truth``. A few thousand cells tell a lab what it needs to know; with a few hundred, probes
    have little to learn from, and leakage is underrated. Give them more with ``probe_train``.

    Examples
    --------
    >>> from skbegan import BeGANTransformer
    >>> from skbegan.datasets import make_cell_images
    >>> from skbegan.metrics import audit
    >>> train, new = (make_cell_images(300, 2, 2, 16, random_state=0, cells_random_state=s) for s in (0, 1))
    >>> began = BeGANTransformer(base_width=4, n_features=16, pretrain_epochs=1, removal_epochs=1, random_state=0)
    >>> began.fit(train.bf, train.qpi, train.batch, train.cell_type)
    BeGANTransformer(...)
    >>> result = audit(began, new.bf, new.qpi, new.batch, new.cell_type, truth=new.clean_qpi)
    >>> print(result)  # doctest: +SKIP
    """
    estimator = unwrap(estimator)
    bf = np.asarray(X_bf)
    if bf.ndim < 2 or 0 in bf.shape:
        raise ValueError(f"X_bf must hold one image per cell, got shape {bf.shape}.")
    for name, labels in (("batch", batch), ("cell_type", cell_type)):
        if labels is None:
            raise ValueError(
                f"An audit needs the {name} of each cell; if there is one only, give it that label for all."
            )
    design = Design.of(batch, cell_type, probe_train, len(bf))
    scored = np.ones(len(bf), bool) if design.train is None else ~design.train
    known = [probe for probe in probes if probe in _PROBES] if not isinstance(probes, str) else []
    if not known or len(known) != len(probes) or len(set(known)) != len(known):
        raise ValueError(f"probes must be some of {list(_PROBES)}, e.g. ('linear',), got {probes!r}.")
    n_splits, n_repeats = check_count(n_splits, "n_splits", 2), check_count(n_repeats, "n_repeats", 1)
    n_components = check_count(n_components, "n_components", 1)
    targets = {name: _target(images, name, len(bf)) for name, images in (("y_qpi", y_qpi), ("truth", truth))}
    _check_shapes(estimator, X_bf, bf, targets)
    if trained_on is not None:
        _warn_of_training_cells(bf[scored], np.asarray(trained_on))
    is_int = isinstance(random_state, int | np.integer)
    seed: int = random_state if is_int else int(make_generator(random_state).integers(2**31))  # type: ignore[assignment]

    features = check_features(features_of(estimator, X_bf))
    if len(features) != len(bf):
        raise ValueError(f"transform gave {len(features)} rows of features for {len(bf)} cells.")
    predicted = images_of(estimator, X_bf)

    def read(X: Array | None, repeats: int, components: int | None) -> dict[str, Any]:
        return {} if X is None else _read(X, design, known, n_splits, repeats, components, seed)

    def pixels(images: Array | None, name: str) -> Array | None:
        if images is None:
            return None
        return check_pixels(images if images.ndim > 2 else images[:, :, None], name)

    model = {
        _FEATURES: read(features, n_repeats, None),
        _IMAGES: read(pixels(predicted, "predicted images"), n_repeats, n_components),
    }
    ceiling = read(pixels(targets["truth"], "truth"), 1, n_components)
    raw: dict[str, dict[str, Any]] = {_FEATURES: {}, _IMAGES: {}}
    if references:
        raw[_FEATURES] = read(pixels(bf, "X_bf"), 1, n_components)
        if predicted is not None:
            raw[_IMAGES] = read(pixels(targets["y_qpi"], "y_qpi"), 1, n_components)

    sheet = _Sheet()
    for section, prefix in ((_FEATURES, ""), (_IMAGES, "image_")):
        if model[section]:
            sheet.add_probes(section, prefix, model[section], raw[section], ceiling, known)
            if section == _FEATURES:
                _add_activity(sheet, features[scored])
                _add_classifier(sheet, estimator, X_bf, design, scored)
    if integration:
        _add_integration(sheet, features[scored], bf[scored], design, scored, references, n_components, seed)
    errors = _add_errors(sheet, predicted, targets, design, scored, references)

    per_batch, per_type = _groups(design, scored, model[_FEATURES], errors, known)
    how = (
        f"cross-fitted on these cells ({n_splits} folds)"
        if design.train is None
        else f"trained on {int(design.train.sum())} other cells (probe_train)"
    )
    return Audit(
        title=f"Audit of {type(estimator).__name__} on {int(scored.sum())} cells, "
        f"{_count(len(design.batches), 'batch')} and {_count(len(design.types), 'cell type')}",
        about=[
            f"Probes are {how}, {_count(n_repeats, 'repeat')}; images are given to them as {n_components} principal "
            "components.",
            "The figures hold only if the model was not fitted on the scored cells, which it cannot tell.",
        ],
        measures=sheet.measures,
        per_batch=per_batch,
        per_type=per_type,
        skipped=sheet.skipped,
        details=Bunch(model=Bunch(features=model[_FEATURES], images=model[_IMAGES], **errors), raw=raw, truth=ceiling),
    )


# ------------------------------------------------------------------------------------------------------------ input
def _target(images: ArrayLike | None, name: str, n: int) -> Array | None:
    if images is None:
        return None
    array = np.asarray(images)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"{name} must be images of shape (n, H, W) or (n, H, W, C), got {array.shape}.")
    if len(array) != n:
        raise ValueError(f"X_bf has {n} cells but {name} has {len(array)}; they must be pairs of the same cells.")
    return array


def _check_shapes(estimator: Any, X_bf: Any, bf: Array, targets: dict[str, Array | None]) -> None:
    """Predict two cells to find a misfit before all are predicted."""
    few = images_of(estimator, X_bf[:2] if hasattr(X_bf, "shape") else bf[:2])
    for name, images in targets.items():
        if few is not None and images is not None and images.shape[1:] != few.shape[1:]:
            raise ValueError(
                f"{name} has images of shape {images.shape[1:]}, but the model predicts {few.shape[1:]}; they must be "
                "targets like those it was fitted on."
            )


def _warn_of_training_cells(scored: Array, trained_on: Array) -> None:
    if trained_on.shape[1:] != scored.shape[1:]:
        raise ValueError(f"trained_on has images of shape {trained_on.shape[1:]}, X_bf of shape {scored.shape[1:]}.")
    seen = {digest(image.astype(np.float32)) for image in trained_on}
    n = sum(digest(image.astype(np.float32)) in seen for image in scored)
    if n:
        warnings.warn(
            f"{n} of the {len(scored)} scored cells are among trained_on: the model has learned from them, so their "
            "figures flatter it. Audit cells that were kept aside.",
            UserWarning,
            stacklevel=3,
        )


# --------------------------------------------------------------------------------------------------------- measures
def _read(
    X: Array, design: Design, probes: Sequence[str], n_splits: int, n_repeats: int, components: int | None, seed: int
) -> dict[str, Any]:
    """Return key -> details of what probes read, or the reason why there is none; same seeds as the metric alone."""
    found: dict[str, Any] = {}
    first: Any = probes[0]

    def attempt(keys: Sequence[str], measure: Callable[[], Sequence[Any]]) -> None:
        try:
            found.update(zip(keys, measure(), strict=True))
        except NothingToMeasure as reason:
            found.update(dict.fromkeys(keys, str(reason)))

    counts = n_splits, n_repeats, components
    attempt(
        ["cell_type_accuracy"],
        lambda: [measure_cell_type(X, design, first, *counts, np.random.default_rng(seed))],
    )

    def gap() -> list[Any]:
        gap = measure_gap(X, design, first, *counts, np.random.default_rng(seed))
        return [gap.cross, gap]

    attempt(["cross_batch_accuracy", "cross_batch_gap"], gap)
    names: Any = list(probes)
    attempt(
        [f"leakage_{name}" for name in probes],
        lambda: measure_leakage(X, design, names, *counts, np.random.default_rng(seed)),
    )
    leakage, cross = found[f"leakage_{probes[0]}"], found["cross_batch_accuracy"]
    if isinstance(leakage, str) or isinstance(cross, str):
        found["batch_removal_score"] = leakage if isinstance(leakage, str) else cross
    else:
        repeats = removal_score(leakage.repeats, cross.repeats, cross.chance)
        found["batch_removal_score"] = Bunch(
            score=float(repeats.mean()),
            std=spread(repeats),
            stderr=removal_stderr(leakage, cross),
            repeats=repeats,
            chance=0.0,
            n_cells=leakage.n_cells,
        )
    return found


class _Sheet:
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
        reader = _PROBES[probes[0]]
        rows = {
            "cell_type_accuracy": (f"cell type accuracy, {reader}", "higher"),
            "cross_batch_accuracy": (f"cross-batch accuracy, {reader}", "higher"),
            "cross_batch_gap": ("  less than within batch by", "lower"),
            **{f"leakage_{probe}": (f"batch leakage, {_PROBES[probe]}", "lower") for probe in probes},
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


def _add_activity(sheet: _Sheet, features: Array) -> None:
    alive: Any = active_features(features, return_details=True)
    n = len(features)
    sheet.add(
        "active_features", f"active share of {alive.n_features} features", _FEATURES, alive.score, n, better="higher"
    )
    sheet.add(
        "effective_dimensions",
        "effective dimensions",
        _FEATURES,
        alive.effective_dimensions,
        n,
        better=None,
    )


def _add_classifier(sheet: _Sheet, estimator: Any, X_bf: ArrayLike, design: Design, scored: Array) -> None:
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
        _FEATURES,
        float(right.mean()),
        len(right),
        better="higher",
        spread=float(right.std() / np.sqrt(len(right))),
        chance=float(np.bincount(design.cell_type[scored]).max() / len(right)),
    )


def _add_integration(
    sheet: _Sheet,
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


def _add_errors(
    sheet: _Sheet,
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


# ------------------------------------------------------------------------------------------- each batch, each type
def _groups(
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


def _count(n: int, what: str) -> str:
    plural = "batches" if what == "batch" else f"{what}s"
    return f"{n} {what if n == 1 else plural}"
