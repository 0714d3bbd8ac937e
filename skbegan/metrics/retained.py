"""How much of what differs from cell to cell within a type is kept by the features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist
from sklearn.linear_model import RidgeCV
from sklearn.utils import Bunch

from skbegan.metrics._checks import (
    Array,
    RandomState,
    check_count,
    check_features,
    make_generator,
    without_unknown_types,
)
from skbegan.metrics.probes import MIN_CELLS, Design, NothingToMeasure, Prepared, deal, prepare, spread

PROBES = ("linear", "kernel")
MODES = ("seen", "left_out")
MIN_TRAIN = 10  # cells; a regression on fewer says nothing
KERNEL_CELLS = 700  # most that a kernel probe learns from: its time grows with their cube
_WIDTHS = (0.3, 2.0)  # of the kernel, 1 / (median squared distance of the cells)
_PENALTIES = np.logspace(-3, 3, 13)
_LINEAR_PENALTIES = np.logspace(-2, 5, 15)


class _Scored(NamedTuple):
    """Cells scored in one fold: their types, positions, targets, and squared errors (cells, 1 + permutations)."""

    fold: Any
    cell_type: Array
    cell: Array
    target: Array
    missed: Array


@dataclass(eq=False)
class RetainedVariation:
    """What :func:`retained_variation` found; ``result["area"].kernel.left_out.score`` is one figure.

    Attributes
    ----------
    measurements : dict of str to Bunch
        Measurement -> Bunch of ``linear`` and ``kernel``, each a Bunch of ``seen`` and ``left_out``, each a Bunch of

        - ``score``: R2, the mean over cell types weighted by their scored cells; NaN where it could not be measured;
        - ``std``: over the folds, or over the left-out batches, whose own R2 are in ``folds``;
        - ``stderr``: standard error due to the number of scored cells;
        - ``chance``, ``chance_bound``: mean and 95 % quantile of the score under permutations of the cells;
        - ``per_type``: cell type -> R2; ``n_cells`` scored.
    center : {"cell_type", "batch"}
    n_permutations : int
    skipped : dict of label to str
        Measurements that are left out, and why.

    Examples
    --------
    >>> from skbegan.metrics import RetainedVariation
    >>> found = RetainedVariation({}, "cell_type", 0, {"area": "it does not vary"})
    >>> found.skipped["area"]
    'it does not vary'
    """

    measurements: dict[str, Bunch]
    center: str
    n_permutations: int
    skipped: dict[Any, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Bunch:
        if name not in self.measurements:
            why = f": {self.skipped[name]}" if name in self.skipped else ""
            raise KeyError(f"{name!r} was not measured{why}. There are {', '.join(self.measurements)}.")
        return self.measurements[name]

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row for each measurement, probe and kind of batch.

        Returns
        -------
        frame : DataFrame

        Raises
        ------
        ImportError
            Without pandas.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas.") from error
        keys = ("score", "std", "stderr", "chance", "chance_bound", "n_cells")
        rows = {
            (name, probe, mode): {key: found[probe][mode][key] for key in keys}
            for name, found in self.measurements.items()
            for probe in PROBES
            for mode in MODES
        }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index = pd.MultiIndex.from_tuples(rows, names=["measurement", "probe", "batches"])
        return frame


@without_unknown_types
def retained_variation(
    features: ArrayLike,
    measurements: Any,
    batch: ArrayLike,
    cell_type: ArrayLike | None = None,
    *,
    center: Literal["cell_type", "batch"] = "cell_type",
    n_splits: int = 5,
    n_repeats: int = 1,
    n_permutations: int = 20,
    n_components: int | None = None,
    probe_train: ArrayLike | None = None,
    random_state: RandomState = 0,
) -> RetainedVariation:
    r"""Measure how much of what differs between cells of one type fresh probes predict from the features.

    Two probes predict each measurement from the features and the cell type: ridge regression, and kernel ridge
    regression with a Gaussian kernel (penalty and kernel width by leave-one-out errors of the training cells, for each
    measurement). They learn from all types together and are scored within each type, on other cells: once on batches
    that the probe saw (cross-fitting), and once on each batch, left out of its training. The figure is the coefficient
    of determination

    .. math:: R^2 = 1 - \frac{\sum_i (y_i - \hat y_i)^2}{\sum_i (y_i - \bar y)^2},

    of the cells of a type, with :math:`\bar y` their mean, for left-out batches their mean in the batch; so to know
    the type, or the batch, earns nothing. It is averaged over types, weighted by their cells.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    measurements : DataFrame, dict of str to array-like, or array-like of shape (n_cells, n_measurements)
        What to predict, such as :func:`cell_measurements` of the batch-free images where they are known. NaN leaves
        the cell out for this measurement.
    batch : array-like of shape (n_cells,)
    cell_type : array-like of shape (n_cells,), default=None
        None treats all cells as one type.
    center : {"cell_type", "batch"}, default="cell_type"
        "cell_type" takes measurements as they are. **"batch" is for measurements of images that carry their batch**
        themselves: within each type, those of each batch are brought to the type's mean and standard deviation, since
        features that know the instrument would else be rewarded for predicting what it does to the measurement.
    n_splits, n_repeats : int, default=5 and 1
        Folds of the cross-fitting, and repeats with other folds.
    n_permutations : int, default=20
        For the chance level, the measurements are permuted so often among the cells of a type in a batch, all
        measurements of a cell together, and predicted in the same way. It is what can be had from the batch alone.
    n_components : int, default=None
        Reduce the features to so many principal components before, as in :func:`batch_leakage`; for images.
    probe_train : array-like of bool of shape (n_cells,), default=None
        If given, probes learn from True cells only and only False cells are scored.
    random_state : int, Generator, RandomState or None, default=0

    Returns
    -------
    result : RetainedVariation
        1: fully predicted. 0: no better than the mean. Negative: misled, as by a batch that looks like other cells.

    Raises
    ------
    ValueError
        On bad input, and when there are not 10 cells to learn from and others to score.

    Notes
    -----
    The kernel probe learns from 700 cells at most, drawn at random. A type counts where it has 3 cells to learn from.
    More cells let probes read more, above all what is not linear in the features: compare at equal numbers.

    *What the figure is bounded by.* Noise of the measurement itself cannot be predicted. Hold the figure against that
    of the batch-free images, which is the most to be expected.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import retained_variation
    >>> rng = np.random.default_rng(0)
    >>> size, batch = rng.normal(size=300), np.arange(300) % 3
    >>> features = np.c_[size + 0.1 * rng.normal(size=300), rng.normal(size=300)]
    >>> found = retained_variation(features, {"size": size, "other": rng.normal(size=300)}, batch)
    >>> found["size"].linear.left_out.score > 0.95, found["other"].kernel.seen.score < 0.05
    (True, True)
    """
    X = check_features(features)
    names, Y = check_measurements(measurements, len(X))
    design = Design.of(batch, cell_type, probe_train, len(X))
    if center not in ("cell_type", "batch"):
        raise ValueError(f"center must be 'cell_type' or 'batch', got {center!r}.")
    counts = check_count(n_splits, "n_splits", 2), check_count(n_repeats, "n_repeats", 1)
    n_permutations = check_count(n_permutations, "n_permutations", 0)
    if n_components is not None:
        n_components = check_count(n_components, "n_components", 1)
    rng = make_generator(random_state)
    return measure_retained(X, names, Y, design, center, *counts, n_permutations, n_components, rng)


def check_measurements(measurements: Any, n_cells: int) -> tuple[list[str], Array]:
    """Return the names and the numbers, (n_cells, n_measurements) float64 with NaN where there is none."""
    if hasattr(measurements, "columns") or isinstance(measurements, Mapping):
        names = [str(name) for name in measurements]
        columns = [np.asarray(measurements[name]) for name in measurements]
    else:
        array = np.asarray(measurements)
        if array.ndim != 2:
            raise ValueError(
                "measurements must be a DataFrame, a dict of names to arrays, or 2-D (n_cells, n_measurements), got "
                f"shape {array.shape}."
            )
        names, columns = [str(k) for k in range(array.shape[1])], list(array.T)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"measurements must have one or more columns, each with its own name, got {names}.")
    for name, column in zip(names, columns, strict=True):
        if column.shape != (n_cells,) or column.dtype.kind not in "biuf":
            raise ValueError(
                f"measurement {name!r} must be {n_cells} real numbers, one per cell, got {column.dtype} of shape "
                f"{column.shape}."
            )
        if np.isinf(column.astype(float)).any():
            raise ValueError(f"measurement {name!r} holds infinity. Use NaN for cells without a value.")
    return names, np.stack([column.astype(np.float64) for column in columns], axis=1)


def measure_retained(
    X: Array,
    names: list[str],
    Y: Array,
    design: Design,
    center: str,
    n_splits: int,
    n_repeats: int,
    n_permutations: int,
    n_components: int | None,
    rng: np.random.Generator,
) -> RetainedVariation:
    """Return what :func:`retained_variation` does, of checked input."""
    parts: dict[tuple[str, str, str], list[_Scored]] = {(n, p, m): [] for n in names for p in PROBES for m in MODES}
    known = np.isfinite(Y)
    for pattern in np.unique(known, axis=1).T:  # measurements known of the same cells are predicted together
        columns = np.flatnonzero((known == pattern[:, None]).all(axis=0))
        cells = np.flatnonzero(pattern)
        b, t = design.batch[cells], design.cell_type[cells]
        train = None if design.train is None else design.train[cells]
        targets, varies = _scaled(Y[np.ix_(cells, columns)], b, t, center)
        columns, targets = columns[varies], targets[:, varies]
        if not len(columns):
            continue
        groups = b * len(design.types) + t
        stack = np.concatenate([targets, *(targets[_permuted(groups, rng)] for _ in range(n_permutations))], axis=1)
        for mode, fold, fit, score in _jobs(b, groups, train, n_splits, n_repeats, rng):
            score = score[np.bincount(t[fit], minlength=len(design.types))[t[score]] >= MIN_CELLS]
            if len(fit) < MIN_TRAIN or not len(score):
                continue
            seed = int(rng.integers(2**31))
            ready = prepare(X[cells[fit]], X[cells[score]], n_components, seed)
            one_hot = np.eye(len(design.types))[t]
            for probe, predict in (("linear", _linear), ("kernel", _kernel)):
                found = predict(ready, one_hot[fit], one_hot[score], stack[fit], seed)
                missed = np.square(stack[score] - found).reshape(len(score), n_permutations + 1, -1)
                for k, column in enumerate(columns):
                    scored = _Scored(fold, t[score], cells[score], targets[score, k], missed[:, :, k])
                    parts[names[column], probe, mode].append(scored)
    if not any(parts.values()):
        raise NothingToMeasure(
            f"There is no retained variation to measure in {len(X)} cells: it takes {MIN_TRAIN} cells to learn from, "
            f"of types with {MIN_CELLS} of them, others to score, and a measurement that varies within a type."
        )
    measured, skipped = {}, {}
    for name in names:
        figures = {p: Bunch(**{m: _summary(parts[name, p, m], design, m) for m in MODES}) for p in PROBES}
        if all(np.isnan(figures[p][m].score) for p in PROBES for m in MODES):
            skipped[name] = "It does not vary within a cell type, or is known of too few cells."
        else:
            measured[name] = Bunch(**figures)
    return RetainedVariation(measured, center, n_permutations, skipped)


def _scaled(values: Array, b: Array, t: Array, center: str) -> tuple[Array, Array]:
    """Return measurements in units of their spread within types, without batches if wanted, and which of them vary."""
    centred = np.zeros_like(values)
    means = np.zeros_like(values)
    for code in np.unique(t):
        here = t == code
        means[here] = values[here].mean(axis=0)
        centred[here] = values[here] - means[here]
    spread = np.sqrt(np.square(centred).mean(axis=0))
    varies = spread > 1e-9 * np.maximum(np.abs(values).max(axis=0), 1e-30)
    spread = np.where(varies, spread, 1.0)
    if center == "batch":
        for code in np.unique(t):
            of_type = t == code
            wide = np.sqrt(np.square(centred[of_type]).mean(axis=0))
            for batch in np.unique(b[of_type]):
                here = of_type & (b == batch)
                std = values[here].std(axis=0)
                flat = std <= 1e-9 * np.maximum(wide, 1e-30)
                centred[here] = np.where(
                    flat, 0.0, (values[here] - values[here].mean(axis=0)) / np.where(flat, 1.0, std)
                )
                centred[here] *= wide
    return (means - values.mean(axis=0) + centred) / spread, varies


def _permuted(groups: Array, rng: np.random.Generator) -> Array:
    """Return an order of the cells that keeps them in their group."""
    order = np.empty(len(groups), int)
    for code in np.unique(groups):
        here = np.flatnonzero(groups == code)
        order[here] = rng.permutation(here)
    return order


def _jobs(
    b: Array, groups: Array, train: Array | None, n_splits: int, n_repeats: int, rng: np.random.Generator
) -> Iterator[tuple[str, Any, Array, Array]]:
    """Yield the splits: mode, name of the fold, positions to learn from, positions to score."""
    if train is not None:
        yield "seen", (0, 0), np.flatnonzero(train), np.flatnonzero(~train)
    for repeat in range(n_repeats if train is None else 0):
        fold = deal(groups, n_splits, rng)
        for k in range(n_splits):
            yield "seen", (repeat, k), np.flatnonzero(fold != k), np.flatnonzero(fold == k)
    learn, score = (np.ones(len(b), bool),) * 2 if train is None else (train, ~train)
    for code in np.unique(b):
        yield "left_out", int(code), np.flatnonzero((b != code) & learn), np.flatnonzero((b == code) & score)


# ------------------------------------------------------------------------------------------------------------ probes
def _ways(cells: Prepared) -> list[tuple[Array, Array]]:
    """Return standardised cells, and principal components also as they vary."""
    ways = [(cells.train, cells.test)]
    return ways if cells.scale is None else [*ways, (cells.train * cells.scale, cells.test * cells.scale)]


def _linear(cells: Prepared, type_train: Array, type_test: Array, targets: Array, seed: int) -> Array:
    """Return the predictions of ridge regression, given the cell type, for the cells to score."""
    best = np.full(targets.shape[1], -np.inf)
    found = np.empty((len(cells.test), targets.shape[1]))
    strong = 10.0  # so that the mean of a type is hardly penalised
    for train, test in _ways(cells):
        ridge = RidgeCV(_LINEAR_PENALTIES, alpha_per_target=True).fit(np.c_[train, strong * type_train], targets)
        score = np.atleast_1d(ridge.best_score_)
        better = score > best
        found[:, better] = ridge.predict(np.c_[test, strong * type_test]).reshape(len(test), -1)[:, better]
        best = np.maximum(best, score)
    return found


def _kernel(cells: Prepared, type_train: Array, type_test: Array, targets: Array, seed: int) -> Array:
    """Return the predictions of kernel ridge regression, by the penalty and width of the least leave-one-out error."""
    kept = np.arange(len(targets))
    if len(kept) > KERNEL_CELLS:
        kept = np.sort(np.random.default_rng(seed).choice(kept, KERNEL_CELLS, replace=False))
    mean = targets[kept].mean(axis=0)
    y = targets[kept] - mean
    same, known = type_train[kept] @ type_train[kept].T, type_test @ type_train[kept].T
    best = np.full(targets.shape[1], np.inf)
    found = np.zeros((len(cells.test), targets.shape[1]))
    for train, test in _ways(cells):
        train = train[kept]
        within, across = cdist(train, train, "sqeuclidean"), cdist(test, train, "sqeuclidean")
        scale = float(np.median(within[np.triu_indices(len(train), 1)])) or 1.0
        for width in _WIDTHS:
            values, vectors = np.linalg.eigh(np.exp(-width / scale * within) + same)
            projected = vectors.T @ y
            reach = (np.exp(-width / scale * across) + known) @ vectors
            for penalty in _PENALTIES:
                shrunk = 1 / (values.clip(0) + penalty)
                # the error of a cell that is left out is its dual weight over the inverse's diagonal
                errors = (vectors @ (shrunk[:, None] * projected)) / ((vectors**2) @ shrunk)[:, None]
                error = np.square(errors).mean(axis=0)
                better = error < best
                if better.any():
                    found[:, better] = reach @ (shrunk[:, None] * projected[:, better])
                    best[better] = error[better]
    return found + mean


# ---------------------------------------------------------------------------------------------------------- figures
def _summary(parts: list[_Scored], design: Design, mode: str) -> Bunch:
    """Return the figures of one measurement by one probe."""
    names = list(dict.fromkeys(part.fold for part in parts))
    fold = np.concatenate([np.full(len(part.cell), names.index(part.fold)) for part in parts] or [np.zeros(0, int)])
    t, cell, y, missed = (
        np.concatenate([part[k] for part in parts]) if parts else np.zeros((0, 1), int)[:, 0] for k in range(1, 5)
    )
    per_type: dict[Any, float] = {}
    by_type, variances, weights = [], [], []
    by_fold = np.zeros((len(names), 2))  # sums of R2 times cells, and of cells
    for code in np.unique(t):
        here = t == code
        total = np.zeros(len(t))
        for group in np.unique(fold[here]) if mode == "left_out" else [-1]:
            part = here & ((fold == group) | (group < 0))
            total[part] = np.square(y[part] - y[part].mean())
        if total.sum() <= 0:
            continue
        scores = 1 - missed[here].sum(axis=0) / total.sum()
        n = len(np.unique(cell[here]))  # repeats score the same cells again
        scatter = np.var(missed[here, 0] - (1 - scores[0]) * total[here])
        variances.append(scatter * (here.sum() / total.sum()) ** 2 / n)
        per_type[design.types[code]] = float(scores[0])
        by_type.append(scores)
        weights.append(n)
        for group in np.unique(fold[here]):
            part = here & (fold == group)
            if total[part].sum() > 0:
                by_fold[group] += part.sum() * np.array([1 - missed[part, 0].sum() / total[part].sum(), 1.0])
    if not by_type:
        nothing = dict.fromkeys(("score", "std", "stderr", "chance", "chance_bound"), float("nan"))
        return Bunch(**nothing, folds={}, per_type={}, n_cells=0)
    share = np.array(weights) / np.sum(weights)
    scores = share @ np.stack(by_type)
    permuted = scores[1:]
    folds = {
        design.batches[name] if mode == "left_out" else name: float(score / n)
        for name, (score, n) in zip(names, by_fold, strict=True)
        if n > 0
    }
    return Bunch(
        score=float(scores[0]),
        std=spread(np.array(list(folds.values()))),
        stderr=float(np.sqrt(share**2 @ np.array(variances))),
        chance=float(permuted.mean()) if len(permuted) else float("nan"),
        chance_bound=float(np.quantile(permuted, 0.95)) if len(permuted) else float("nan"),
        folds=folds,
        per_type=per_type,
        n_cells=int(np.sum(weights)),
    )
