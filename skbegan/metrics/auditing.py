"""One table for a fitted model, on cells that it did not train on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch

from skbegan._progress import Progress
from skbegan.labels.tables import as_batch_table, rows_of
from skbegan.metrics._checks import (
    Array,
    RandomState,
    check_count,
    check_features,
    check_pixels,
    digest,
    known_types,
    make_generator,
)
from skbegan.metrics._estimators import features_of, images_of, unwrap
from skbegan.metrics.accuracy import measure_cell_type, measure_gap
from skbegan.metrics.audit_columns import measure_columns, notes_on_columns, rows_of_columns
from skbegan.metrics.audit_rows import (
    FEATURES,
    IMAGES,
    PROBES,
    Sheet,
    about_measurements,
    about_probes,
    add_activity,
    add_classifier,
    add_errors,
    add_integration,
    add_precision,
    add_rank,
    add_retained,
    counted,
    groups,
)
from skbegan.metrics.leakage import measure_leakage, of_images
from skbegan.metrics.measurements import measure
from skbegan.metrics.probes import Design, NothingToMeasure, spread
from skbegan.metrics.report import Audit
from skbegan.metrics.retained import check_measurements, measure_retained
from skbegan.metrics.retrieval import measure_precision
from skbegan.metrics.tuning import removal_score, removal_stderr

_PERMUTATIONS = 10  # for the chance level of retained variation; references go without
# How long parts take, roughly, in units of a linear probe: for the time that is left.
_PARTS = {"linear": 1, "mlp": 8, "knn": 1, "trees": 6, "cnn": 60}
_RETAINED = {"model": 30, "raw": 5, "truth": 5}
_COLUMN = 10


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
    measurements: Any = True,
    random_state: RandomState = 0,
    verbose: int = 0,
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
        Brightfield images, **of cells that the model was not fitted on**. A model that has overfit looks better on
        its training cells than it is, and nothing in a fitted model tells which they were: keep cells
        aside. ``trained_on`` checks it.
    y_qpi : array-like of shape (n_cells, H, W) or (n_cells, H, W, C), or None
        Measured target images.
    batch : array-like of shape (n_cells,), or table
        Of a table of several columns (day, plate, position), each distinct row is a batch, and ``per_column`` says how
        well each column is read.
    cell_type : array-like of shape (n_cells,)
        Cells without one (None, NaN) are left out.
    truth : array-like of the shape of ``y_qpi``, default=None
        Target images without any batch effect, where they are known (simulated cells): errors are given to them too,
        and what probes read from them is the best that can be expected.
    probe_train : array-like of bool of shape (n_cells,), default=None
        None: probes are cross-fitted on the cells. A mask: probes are trained on the True cells and only the False
        ones are scored. The True cells may then be the model's training cells, for want of others.
    trained_on : array-like of shape (n, H, W) or (n, H, W, C), default=None
        The images that the model was fitted on; warns if scored cells are among them (by content).
    probes : sequence of {"linear", "mlp", "knn", "trees", "cnn"}, default=("linear", "mlp", "knn")
        Probes of leakage, see :func:`batch_leakage`; ``"cnn"`` reads the predicted images only, and slowly. The first
        reads the cell types as well.
    n_splits, n_repeats : int, default=5 and 3
        Folds of the cross-fitting and repeats, as in :func:`batch_leakage`. References are measured once.
    n_components : int, default=50
        Principal components of images that probes get, as in :func:`image_leakage`.
    references : bool, default=True
        Also measure the raw images: brightfield pixels beside the features, measured beside predicted images.
    integration : bool, default=False
        Add :func:`integration_scores` of the features.
    measurements : bool, DataFrame or dict of str to array-like, default=True
        What the features are asked for within each cell type, by :func:`retained_variation`. True: the measurements
        (:func:`cell_measurements`) of ``truth``, or, **where the truth is unknown, of the measured images**, noise and
        errors of the instrument included, each batch brought to its type's mean and spread; the table says which. A
        table of your own is taken as it is. Needs scikit-image (the extra ``measurements``), and says so in ``skipped``
        without it.
    random_state : int, Generator, RandomState or None, default=0
    verbose : int, default=0
        1 shows a progress bar with the time left; where the output is no terminal, a line per tenth of the logger
        ``"skbegan"``.

    Returns
    -------
    audit : Audit
        ``print(audit)`` shows the table; ``audit["leakage_linear"].value`` is one figure; ``to_frame()``, ``to_dict()``
        and ``skbegan.plotting.AuditDisplay.from_audit(audit)`` show it otherwise. Keys of the rows:

        - ``cell_type_accuracy``, ``cross_batch_accuracy``, ``cross_batch_gap``, ``leakage_linear``, ``leakage_mlp``,
          ``leakage_knn``, ``batch_removal_score`` (of the first probe), from the features;
        - ``active_features``, ``effective_dimensions``: see :func:`active_features`; ``effective_rank``,
          ``directions``: see :func:`effective_rank`;
        - ``cross_batch_precision``: see :func:`cross_batch_precision`;
        - ``retained_area``, ``retained_elongation`` and so on for each measurement: R2 of the kernel probe of
          :func:`retained_variation` on batches that it saw, and ``retained_area_left_out`` on batches that it did not;
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
    n_unknown = 0
    if (known_cells := known_types(cell_type)) is not None:  # nothing can be said of the others within a type
        n_unknown, columns_given = int((~known_cells).sum()), isinstance(measurements, bool)
        X_bf, batch, cell_type = (rows_of(values, known_cells) for values in (X_bf, batch, cell_type))
        y_qpi, truth, probe_train = (
            None if values is None else rows_of(values, known_cells) for values in (y_qpi, truth, probe_train)
        )
        measurements = measurements if columns_given else rows_of(measurements, known_cells)
    bf = np.asarray(X_bf)
    if bf.ndim < 2 or 0 in bf.shape:
        raise ValueError(f"X_bf must hold one image per cell, got shape {bf.shape}.")
    for name, labels in (("batch", batch), ("cell_type", cell_type)):
        if labels is None:
            raise ValueError(
                f"An audit needs the {name} of each cell; if there is one only, give it that label for all."
            )
    columns = as_batch_table(batch, len(bf))
    design = Design.of(batch, cell_type, probe_train, len(bf))
    scored = np.ones(len(bf), bool) if design.train is None else ~design.train
    known = [probe for probe in probes if probe in PROBES] if not isinstance(probes, str) else []
    if known and known[0] == "cnn":
        raise ValueError(
            "The first of the probes reads cell types from the features, which 'cnn' cannot: put another first."
        )
    if not known or len(known) != len(probes) or len(set(known)) != len(known):
        raise ValueError(f"probes must be some of {list(PROBES)}, e.g. ('linear',), got {probes!r}.")
    n_splits, n_repeats = check_count(n_splits, "n_splits", 2), check_count(n_repeats, "n_repeats", 1)
    n_components = check_count(n_components, "n_components", 1)
    targets = {name: _target(images, name, len(bf)) for name, images in (("y_qpi", y_qpi), ("truth", truth))}
    predicts = _check_shapes(estimator, X_bf, bf, targets)
    if trained_on is not None:
        _warn_of_training_cells(bf[scored], np.asarray(trained_on))
    table = _table(measurements, len(bf))
    is_int = isinstance(random_state, int | np.integer)
    seed: int = random_state if is_int else int(make_generator(random_state).integers(2**31))  # type: ignore[assignment]

    n_images = 0 if not predicts else 1 + (truth is not None) + (references and y_qpi is not None)
    n_pixels = (truth is not None and not predicts) + bool(references)
    n_types = len(design.types)
    total = n_types * (
        _n_parts(known, n_repeats, False)
        + predicts * _n_parts(known, n_repeats, True)
        + (n_images - predicts) * _n_parts(known, 1, True)
        + n_pixels * _n_parts(known, 1, False)
        + sum(_RETAINED.values())
    )
    total += 0 if columns is None else _COLUMN * len(columns.columns)
    with Progress("audit", total, unit="part", verbose=verbose) as bar:
        features = check_features(features_of(estimator, X_bf))
        if len(features) != len(bf):
            raise ValueError(f"transform gave {len(features)} rows of features for {len(bf)} cells.")
        predicted = images_of(estimator, X_bf)

        def read(X: Array | None, repeats: int, components: int | None, shape: tuple[int, ...] = ()) -> dict[str, Any]:
            return {} if X is None else _read(X, design, known, n_splits, repeats, components, seed, shape, bar)

        def pixels(images: Array | None, name: str) -> Array | None:
            if images is None:
                return None
            return check_pixels(images if images.ndim > 2 else images[:, :, None], name)

        bf_pixels, truth_pixels = pixels(bf, "X_bf"), pixels(targets["truth"], "truth")
        shape = () if predicted is None else predicted.shape[1:]
        model = {
            FEATURES: read(features, n_repeats, None),
            IMAGES: read(pixels(predicted, "predicted images"), n_repeats, n_components, shape),
        }
        ceiling = read(truth_pixels, 1, n_components, shape)
        raw: dict[str, dict[str, Any]] = {FEATURES: {}, IMAGES: {}}
        if references:
            raw[FEATURES] = read(bf_pixels, 1, n_components)
            if predicted is not None:
                raw[IMAGES] = read(pixels(targets["y_qpi"], "y_qpi"), 1, n_components, shape)
        sources = {
            "model": (features, None),
            "raw": (bf_pixels if references else None, n_components),
            "truth": (truth_pixels, n_components),
        }
        found = {name: _precision(X, components, design, scored, seed) for name, (X, components) in sources.items()}
        table, center, source = _measured(table, targets)
        kept = {}
        for name, (X, components) in sources.items():
            n_permutations = _PERMUTATIONS if name == "model" else 0
            kept[name] = _retained(X, components, table, center, design, n_splits, n_permutations, seed)
            bar.update(n_types * _RETAINED[name])

        sheet = Sheet()
        for section, prefix in ((FEATURES, ""), (IMAGES, "image_")):
            if model[section]:
                readers = known if prefix else [probe for probe in known if probe != "cnn"]
                sheet.add_probes(section, prefix, model[section], raw[section], ceiling, readers)
                if section == FEATURES:
                    add_precision(sheet, found["model"], found["raw"], found["truth"])
                    add_activity(sheet, features[scored])
                    add_rank(sheet, features[scored])
                    add_classifier(sheet, estimator, X_bf, design, scored)
                    add_retained(sheet, kept["model"], kept["raw"], kept["truth"], source)
        if integration:
            add_integration(sheet, features[scored], bf[scored], design, scored, references, n_components, seed)
        errors = add_errors(sheet, predicted, targets, design, scored, references)
        by_column = Bunch()
        if columns is not None:
            images = pixels(predicted, "predicted images")
            measured = pixels(targets["y_qpi"], "y_qpi") if references and images is not None else None
            parts = {
                "features": (features, None, n_repeats),
                "raw": (bf_pixels if references else None, n_components, 1),
                "image": (images, n_components, 1),
                "image_raw": (measured, n_components, 1),
            }
            by_column = measure_columns(parts, columns, design, known[0], n_splits, seed)
            bar.update(_COLUMN * len(by_column))

    per_batch, per_type = groups(design, scored, model[FEATURES], errors, [probe for probe in known if probe != "cnn"])
    details = Bunch(
        model=Bunch(features=model[FEATURES], images=model[IMAGES], **errors),
        raw=raw,
        truth=ceiling,
        retained=Bunch(**kept),
        cross_batch_precision=Bunch(**found),
        columns=by_column,
    )
    notes, skipped = notes_on_columns(by_column, PROBES[known[0]]) if by_column else ([], {})
    return Audit(
        title=f"Audit of {type(estimator).__name__} on {int(scored.sum())} cells, "
        f"{counted(len(design.batches), 'batch')} and {counted(len(design.types), 'cell type')}",
        about=[
            *about_probes(design, n_splits, n_repeats, n_components),
            *about_measurements(sheet, center),
            *([f"{n_unknown} cells without a cell type are left out."] if n_unknown else []),
            *notes,
        ],
        measures=sheet.measures,
        per_batch=per_batch,
        per_type=per_type,
        skipped=sheet.skipped | skipped,
        details=details,
        per_column=rows_of_columns(by_column),
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


def _check_shapes(estimator: Any, X_bf: Any, bf: Array, targets: dict[str, Array | None]) -> bool:
    """Predict two cells to find a misfit before all are predicted; return whether images can be predicted."""
    few = images_of(estimator, X_bf[:2] if hasattr(X_bf, "shape") else bf[:2])
    for name, images in targets.items():
        if few is not None and images is not None and images.shape[1:] != few.shape[1:]:
            raise ValueError(
                f"{name} has images of shape {images.shape[1:]}, but the model predicts {few.shape[1:]}; they must be "
                "targets like those it was fitted on."
            )
    return few is not None


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


def _n_parts(probes: Sequence[str], n_repeats: int, of_images: bool) -> int:
    """Return how many parts, per cell type, the reading of features or images has: two more are of the cell type."""
    return n_repeats * (2 + sum(_PARTS[probe] for probe in probes if of_images or probe != "cnn"))


def _table(measurements: Any, n: int) -> Any:
    """Return True, False, or the names and numbers of a table."""
    return measurements if isinstance(measurements, bool) else check_measurements(measurements, n)


# --------------------------------------------------------------------------------------------------------- measures
def _measured(table: Any, targets: dict[str, Array | None]) -> tuple[Any, str, str]:
    """Return names and numbers of the cell measurements (None: not wanted; a string: why not), center, their source."""
    if not isinstance(table, bool):
        return table, "cell_type", "that were given"
    images = targets["y_qpi"] if targets["truth"] is None else targets["truth"]
    if not table or images is None:
        return None, "cell_type", ""
    center, source = ("cell_type", "in the truth") if targets["truth"] is not None else ("batch", "in measured images")
    try:
        columns = measure(images[..., 0] if images.ndim == 4 else images, foreground="auto")
    except ImportError as missing:
        return str(missing), center, source
    return check_measurements(columns, len(images)), center, source


def _retained(
    X: Array | None,
    components: int | None,
    table: Any,
    center: str,
    design: Design,
    n_splits: int,
    n_permutations: int,
    seed: int,
) -> Any:
    """Return the retained variation, or why there is none; None where it is not asked for."""
    if X is None or table is None:
        return None
    if isinstance(table, str):
        return table
    rng = np.random.default_rng(seed)
    try:
        names, numbers = table
        return measure_retained(X, names, numbers, design, center, n_splits, 1, n_permutations, components, rng)
    except NothingToMeasure as reason:
        return str(reason)


def _precision(X: Array | None, components: int | None, design: Design, scored: Array, seed: int) -> Any:
    """Return the cross-batch precision of the scored cells, or why there is none."""
    if X is None:
        return None
    part = design._replace(batch=design.batch[scored], cell_type=design.cell_type[scored], train=None)
    try:
        return measure_precision(X[scored], part, True, components, 0, 10_000, np.random.default_rng(seed))
    except NothingToMeasure as reason:
        return str(reason)


def _read(
    X: Array,
    design: Design,
    probes: Sequence[str],
    n_splits: int,
    n_repeats: int,
    components: int | None,
    seed: int,
    shape: tuple[int, ...] = (),
    bar: Progress | None = None,
) -> dict[str, Any]:
    """Return key -> details of what probes read, or the reason why there is none; same seeds as the metric alone."""
    found: dict[str, Any] = {}
    first: Any = probes[0]

    def attempt(keys: Sequence[str], measure: Callable[[], Sequence[Any]], parts: int = n_repeats) -> None:
        end = bar.done + parts * len(design.types) if bar is not None else 0
        try:
            found.update(zip(keys, measure(), strict=True))
        except NothingToMeasure as reason:
            found.update(dict.fromkeys(keys, str(reason)))
        if bar is not None:
            bar.reach(end)

    counts = n_splits, n_repeats, components
    attempt(
        ["cell_type_accuracy"],
        lambda: [measure_cell_type(X, design, first, *counts, np.random.default_rng(seed))],
    )

    def gap() -> list[Any]:
        gap = measure_gap(X, design, first, *counts, np.random.default_rng(seed))
        return [gap.cross, gap]

    attempt(["cross_batch_accuracy", "cross_batch_gap"], gap)
    readers = [probe for probe in probes if shape or probe != "cnn"]
    used = [of_images(probe, shape) for probe in readers]
    parts = _n_parts(probes, n_repeats, bool(shape)) - 2 * n_repeats
    tick = None if bar is None else lambda: bar.update(parts)
    attempt(
        [f"leakage_{name}" for name in readers],
        lambda: measure_leakage(X, design, used, *counts, np.random.default_rng(seed), tick),
        parts,
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
