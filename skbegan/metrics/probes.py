"""Fresh probes: how they are made, prepared, trained and scored.

The audits never look at a fitted model. They train *fresh* probes on the features they are given and score them on
cells that the probes never saw, so a network that merely fools its own classifiers gains nothing here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.neural_network import MLPClassifier

from skbegan.metrics._checks import Array, check_labels, check_mask

Probe: TypeAlias = Literal["linear", "mlp", "knn", "trees"] | BaseEstimator

MIN_CELLS = 3  # a group (a batch within a type, a type) with fewer cells is left out
MIX = "In a search, folds must mix the batches (a shuffled KFold, not LeaveOneGroupOut over batches)."
_MIN_RELATIVE_STD = 1e-5  # of the most variable feature; below, a feature is dead and what varies is rounding noise
MIN_STD_TO_MEAN = 1e-6  # a few float32 rounding steps of the feature's own size
NEIGHBOR_CELLS = 1000  # that nearest neighbours are looked for among, per class: or else time grows with their square
_RIDGE = 5.0  # chose the scale that is best for the linear probe most often, on simulated and on real cells


class NothingToMeasure(ValueError):
    """The cells are good, but their design does not allow the measure, such as leakage with one batch."""


class Design(NamedTuple):
    """The labels of the cells, coded, and which of them train the probes (None: cross-fitting)."""

    batches: Array
    batch: Array
    types: Array
    cell_type: Array
    train: Array | None

    @classmethod
    def of(cls, batch: ArrayLike | None, cell_type: ArrayLike | None, probe_train: ArrayLike | None, n: int) -> Design:
        """Check the labels; a label that is None is one label for all."""
        one = np.zeros(n, int)
        batches, b = check_labels(one if batch is None else batch, "batch", n)
        types, t = check_labels(one if cell_type is None else cell_type, "cell_type", n)
        return cls(batches, b, types, t, check_mask(probe_train, n))


def make_probe(probe: Probe, n_train: int, seed: int) -> Any:
    """Return an unfitted probe."""
    if isinstance(probe, str):
        if probe == "linear":
            return LogisticRegression(C=1.0, max_iter=300)
        if probe == "mlp":  # a fixed number of epochs: with early stopping, small groups would stop at random
            epochs: dict[str, Any] = {"max_iter": 60, "n_iter_no_change": 60, "tol": 0.0, "learning_rate_init": 3e-3}
            size = min(64, max(8, n_train // 4))
            return MLPClassifier((64,), alpha=1e-2, batch_size=size, random_state=seed, **epochs)
        if probe == "knn":
            return KNeighborsClassifier(n_neighbors=min(15, n_train))
        if probe == "trees":
            small: dict[str, Any] = {"max_leaf_nodes": 8, "min_samples_leaf": max(2, min(20, n_train // 10))}
            return HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed, **small)
        if probe == "cnn":
            raise ValueError("probe='cnn' reads images, not features: use image_leakage.")
    elif not isinstance(probe, type) and hasattr(probe, "fit") and hasattr(probe, "predict"):
        fresh = clone(probe)
        unset = [k for k, v in fresh.get_params().items() if k.endswith("random_state") and v is None]
        return fresh.set_params(**dict.fromkeys(unset, seed))
    raise ValueError(f"probe must be 'linear', 'mlp', 'knn', 'trees' or a scikit-learn classifier, got {probe!r}.")


def is_deterministic(probe: Probe) -> bool:
    """Say whether the probe answers the same whenever it is trained on the same cells."""
    return isinstance(probe, str) and probe in ("linear", "knn", "trees")


class Prepared(NamedTuple):
    """Standardised cells to train on and to score; for principal components, how much each varied before."""

    train: Array
    test: Array
    scale: Array | None = None


def prepare(train: Array, test: Array, n_components: int | None, seed: int) -> Prepared:
    """Drop dead features, reduce to principal components if asked for, standardise; all learned from ``train``."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    lively = std > MIN_STD_TO_MEAN * np.abs(mean)
    if n_components is None:
        lively &= std > _MIN_RELATIVE_STD * std.max()
    if not lively.any():  # nothing to read, and a constant says so
        return Prepared(np.zeros((len(train), 1)), np.zeros((len(test), 1)))
    train, test, mean, std = train[:, lively], test[:, lively], mean[lively], std[lively]
    if n_components is None:
        return Prepared((train - mean) / std, (test - mean) / std)
    # n cells span n - 1 directions; one more would be rounding noise
    pca = PCA(min(n_components, len(train) - 1, train.shape[1]), random_state=seed).fit(train)
    train, test = pca.transform(train).astype(np.float64), pca.transform(test).astype(np.float64)
    mean, std = train.mean(axis=0), train.std(axis=0)
    keep = std > _MIN_RELATIVE_STD * std.max()
    train, test = ((cells[:, keep] - mean[keep]) / std[keep] for cells in (train, test))
    return Prepared(train, test, std[keep] / std.max())


def reads_images(probe: Probe) -> bool:
    """Say whether the probe takes pixels as they are."""
    return bool(getattr(probe, "reads_images", False))


def fit_predict(probe: Probe, cells: Prepared, codes: Array, seed: int, *, uniform_prior: bool) -> Array:
    """Train a fresh probe on prepared cells and name the class of each cell to score.

    With ``uniform_prior`` the built-in probes decide as if all classes were equally likely (probability divided by the
    class's share of the training cells), the rule that maximises balanced accuracy.
    """
    train, test = cells.train, cells.test
    if isinstance(probe, str) and probe == "knn":
        kept = thinned(codes)
        train, codes = train[kept], codes[kept]
    if isinstance(probe, str) and cells.scale is not None and _as_they_vary(probe, train, cells.scale, codes):
        train, test = train * cells.scale, test * cells.scale
    if isinstance(probe, str) and probe == "mlp":
        train, test = train.astype(np.float32), test.astype(np.float32)  # twice as fast
    fresh = make_probe(probe, len(train), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed on purpose
        fresh.fit(train, codes)
    if not (uniform_prior and isinstance(probe, str)):
        return np.asarray(fresh.predict(test))
    share = np.bincount(codes)[fresh.classes_] / len(codes)
    return np.asarray(fresh.classes_[np.argmax(fresh.predict_proba(test) / share, axis=1)])


def thinned(codes: Array) -> Array:
    """Return the positions of `NEIGHBOR_CELLS` cells per class, on average, or of all where there are no more.

    Drawn at random, always in the same way. The mix of the classes stays, but none is left with fewer than 15 cells
    that had more.
    """
    counts = np.bincount(codes)
    limit = NEIGHBOR_CELLS * np.count_nonzero(counts)
    if len(codes) <= limit:
        return np.arange(len(codes))
    wanted = np.maximum(np.ceil(counts * (limit / len(codes))).astype(int), 15)
    order = np.random.default_rng(0).permutation(len(codes))
    kept = [order[codes[order] == code][:most] for code, most in enumerate(wanted)]
    return np.sort(np.concatenate(kept))


def _as_they_vary(probe: str, train: Array, scale: Array, codes: Array) -> bool:
    """Say whether principal components tell the class better as they vary than standardised.

    The batch sits in large components of raw images, where standardised noise hides it from probes with few cells to
    learn from, and in small ones of corrected images. The training cells decide, each named by the others: by its
    nearest neighbours, or by least squares, which is quick and stands in for the linear probe and the MLP.
    """
    share = np.bincount(codes) / len(codes)
    share[share == 0] = 1.0
    right = []
    for points in (train * scale, train):
        votes = (_votes_of_neighbors if probe == "knn" else _votes_of_least_squares)(points, np.eye(len(share))[codes])
        right.append(np.sum((np.argmax(votes / share, axis=1) == codes) / share[codes]))
    return bool(right[0] > right[1])


def _votes_of_neighbors(points: Array, classes: Array) -> Array:
    """Return each cell's mean of the one-hot ``classes`` of its nearest others."""
    near = NearestNeighbors(n_neighbors=min(15, len(points) - 1)).fit(points).kneighbors(return_distance=False)
    return np.asarray(classes[near].mean(axis=1))


def _votes_of_least_squares(points: Array, classes: Array) -> Array:
    """Return each cell's one-hot ``classes`` as predicted by ridge regression on all others (in closed form)."""
    points = np.c_[points, np.ones(len(points))]
    solved = np.linalg.solve(points.T @ points + _RIDGE * np.eye(points.shape[1]), points.T)
    leverage = np.einsum("ij,ji->i", points, solved)
    return np.asarray(classes - (classes - points @ (solved @ classes)) / np.maximum(1 - leverage, 1e-9)[:, None])


def splits(codes: Array, train: Array | None, n_splits: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Yield (train, test) positions; ``train`` fixes the one split, else stratified folds, fewer for small groups."""
    if train is not None:
        yield np.flatnonzero(train), np.flatnonzero(~train)
        return
    folds = StratifiedKFold(min(n_splits, int(np.bincount(codes).min())), shuffle=True, random_state=seed)
    yield from folds.split(np.zeros(len(codes)), codes)


def deal(groups: Array, n_splits: int, rng: np.random.Generator) -> Array:
    """Deal the cells of each group to folds in turn, from a random fold on: groups of any size are spread evenly."""
    fold = np.empty(len(groups), int)
    for group in np.unique(groups):
        cells = rng.permutation(np.flatnonzero(groups == group))
        fold[cells] = (np.arange(len(cells)) + rng.integers(n_splits)) % n_splits
    return fold


def enough(codes: Array, train: Array | None) -> Array:
    """Mark the cells whose group has enough cells to train on and to score."""
    if train is None:
        return np.bincount(codes)[codes] >= MIN_CELLS
    n = int(codes.max()) + 1
    fit, score = np.bincount(codes[train], minlength=n), np.bincount(codes[~train], minlength=n)
    return ((fit >= MIN_CELLS) & (score > 0))[codes]


def spread(repeats: Array) -> float:
    """Return the standard deviation over repeats, NaN for one."""
    return float(np.std(repeats)) if len(repeats) > 1 else float("nan")


def share_variance(right: Any, n: Any) -> Any:
    """Return the sampling variance of a share, ``right`` of ``n`` cells.

    One hit and one miss are added (Laplace's rule), so that a perfect score of few cells does not look certain.
    """
    p = (right + 1) / (n + 2)
    return p * (1 - p) / n
