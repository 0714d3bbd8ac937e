"""How much batch is left and how much biology is kept: features in, number out.

The audits never look at a fitted model. They train *fresh* probes on the features they are given and score them on
cells that the probes never saw, so a network that merely fools its own classifiers gains nothing here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.utils import Bunch

Array: TypeAlias = NDArray[Any]
Probe: TypeAlias = Literal["linear", "mlp", "knn"] | BaseEstimator
RandomState: TypeAlias = int | np.random.Generator | np.random.RandomState | None

MIN_CELLS = 3  # a group (a batch within a type, a type) with fewer cells is left out
_MIN_RELATIVE_STD = 1e-5  # of the most variable feature; below, a feature is dead and what varies is rounding noise
_MIN_STD_TO_MEAN = 1e-6  # a few float32 rounding steps of the feature's own size
_MIX = "In a search, folds must mix the batches (a shuffled KFold, not LeaveOneGroupOut over batches)."


# ---------------------------------------------------------------------------------------------------------- input
def _check_features(features: ArrayLike) -> Array:
    array = np.asarray(features)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"features must be 2-D (n_cells, n_features) and not empty, got shape {array.shape}. "
            "Flatten images first: X.reshape(len(X), -1)."
        )
    if array.dtype.kind not in "biufO":
        raise ValueError(f"features must be real numbers, got dtype {array.dtype}.")
    array = array.astype(np.float64, copy=False)
    if not np.isfinite(array).all():
        raise ValueError("features holds NaN or infinity. Drop or repair these cells before an audit.")
    return array


def check_labels(labels: ArrayLike, name: str, n_cells: int) -> tuple[Array, Array]:
    """Return the sorted distinct labels and each cell's code."""
    array = np.asarray(labels, dtype=object)
    if array.shape != (n_cells,):
        raise ValueError(f"{name} must be 1-D with one label per cell: expected shape ({n_cells},), got {array.shape}.")
    if any(v is None or type(v).__name__ in ("NAType", "NaTType") or v != v for v in array):
        raise ValueError(f"{name} has missing labels (None or NaN).")
    try:
        values, codes = np.unique(array, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"{name} mixes labels of different kinds, e.g. numbers and strings.") from error
    return values, codes.astype(np.intp)


def _check_mask(mask: ArrayLike | None, n_cells: int) -> Array | None:
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.dtype != np.bool_ or array.shape != (n_cells,):
        raise ValueError(f"probe_train must be bool of shape ({n_cells},), got {array.dtype} of shape {array.shape}.")
    if array.all() or not array.any():
        raise ValueError("probe_train must leave cells on both sides: True trains the probe, False is scored.")
    return array


def _check_count(value: int, name: str, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")
    return int(value)


def _generator(random_state: RandomState) -> np.random.Generator:
    """Our own stream, so that numpy's global seed is neither read nor moved."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(int(random_state.randint(2**31 - 1)))
    return np.random.default_rng(random_state)


# ---------------------------------------------------------------------------------------------------------- probes
def _make_probe(probe: Probe, n_train: int, seed: int) -> Any:
    if isinstance(probe, str):
        if probe == "linear":
            return LogisticRegression(C=1.0, max_iter=300)
        if probe == "mlp":  # a fixed number of epochs: with early stopping, small groups would stop at random
            epochs: dict[str, Any] = {"max_iter": 60, "n_iter_no_change": 60, "tol": 0.0, "learning_rate_init": 3e-3}
            size = min(64, max(8, n_train // 4))
            return MLPClassifier((64,), alpha=1e-2, batch_size=size, random_state=seed, **epochs)
        if probe == "knn":
            return KNeighborsClassifier(n_neighbors=min(15, n_train))
    elif not isinstance(probe, type) and hasattr(probe, "fit") and hasattr(probe, "predict"):
        fresh = clone(probe)
        unset = [k for k, v in fresh.get_params().items() if k.endswith("random_state") and v is None]
        return fresh.set_params(**dict.fromkeys(unset, seed))
    raise ValueError(f"probe must be 'linear', 'mlp', 'knn' or a scikit-learn classifier, got {probe!r}.")


def _fit_predict(probe: Probe, train: Array, codes: Array, test: Array, seed: int, *, uniform_prior: bool) -> Array:
    """Train a fresh probe and name the class of each test cell.

    With ``uniform_prior`` the built-in probes decide as if all classes were equally likely (probability divided by the
    class's share of the training cells), the rule that maximises balanced accuracy.
    """
    mean, std = train.mean(axis=0), train.std(axis=0)
    keep = (std > _MIN_RELATIVE_STD * std.max()) & (std > _MIN_STD_TO_MEAN * np.abs(mean))
    if keep.any():
        train, test = (train[:, keep] - mean[keep]) / std[keep], (test[:, keep] - mean[keep]) / std[keep]
    else:  # nothing varies, so there is nothing to read: a constant lets every probe say so
        train, test = np.zeros((len(train), 1)), np.zeros((len(test), 1))
    if isinstance(probe, str) and probe == "mlp":
        train, test = train.astype(np.float32), test.astype(np.float32)  # twice as fast
    fresh = _make_probe(probe, len(train), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed on purpose
        fresh.fit(train, codes)
    if not (uniform_prior and isinstance(probe, str)):
        return np.asarray(fresh.predict(test))
    share = np.bincount(codes)[fresh.classes_] / len(codes)
    return np.asarray(fresh.classes_[np.argmax(fresh.predict_proba(test) / share, axis=1)])


def _splits(codes: Array, train: Array | None, n_splits: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Yield (train, test) positions; ``train`` fixes the one split, else stratified folds, fewer for small groups."""
    if train is not None:
        yield np.flatnonzero(train), np.flatnonzero(~train)
        return
    folds = StratifiedKFold(min(n_splits, int(np.bincount(codes).min())), shuffle=True, random_state=seed)
    yield from folds.split(np.zeros(len(codes)), codes)


def _enough(codes: Array, train: Array | None) -> Array:
    """Mark the cells whose group has enough cells to train on and to score."""
    if train is None:
        return np.bincount(codes)[codes] >= MIN_CELLS
    n = int(codes.max()) + 1
    fit, score = np.bincount(codes[train], minlength=n), np.bincount(codes[~train], minlength=n)
    return ((fit >= MIN_CELLS) & (score > 0))[codes]


def batch_leakage(
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike | None = None,
    *,
    probe: Probe = "linear",
    n_splits: int = 5,
    n_repeats: int = 1,
    probe_train: ArrayLike | None = None,
    random_state: RandomState = 0,
    return_details: bool = False,
) -> float | Bunch:
    r"""Measure how well a fresh probe reads the batch from the features, within each cell type.

    For each cell type a new probe is trained on a part of its cells and names the batch of the others
    (stratified cross-fitting). With :math:`K` batches in the type, the score of the type is

    .. math:: (a - 1/K) / (1 - 1/K),

    where :math:`a` is the balanced accuracy, i.e. the recall averaged over the :math:`K` batches (Brodersen et al.,
    ICPR 2010; the normalised form is ``balanced_accuracy_score(adjusted=True)``, for K = 2 Youden's J). The result is
    the mean over cell types, weighted by their scored cells.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    batch : array-like of shape (n_cells,)
        Experimental batch of each cell.
    cell_type : array-like of shape (n_cells,), default=None
        Cell type of each cell. None treats all cells as one type; when types and batches are tied to each other, the
        probe can then read the batch from biology, so give the types whenever there are any.
    probe : {"linear", "mlp", "knn"} or scikit-learn classifier, default="linear"
        Logistic regression; a network of one hidden layer of 64, 60 epochs; 15 nearest neighbours. A classifier is
        cloned and its own ``predict`` is taken as it is, so an unequal batch mix is its business
        (``class_weight="balanced"``). Features are standardised for every probe, with the training cells' statistics.
    n_splits, n_repeats : int, default=5 and 1
        Folds (fewer where a batch has fewer cells), and repeats with other folds and seeds, over which the score is
        averaged.
    probe_train : array-like of bool of shape (n_cells,), default=None
        If given, probes are trained on the True cells and scored on the False ones, with no cross-fitting: pass the
        model's training cells as True to audit cells that neither model nor probe has seen.
    random_state : int, Generator, RandomState or None, default=0
    return_details : bool, default=False

    Returns
    -------
    score : float in [-1 / (K - 1), 1]
        0: not readable (chance). 1: fully readable. Not clipped: without a signal it scatters around 0, and slightly
        negative values are normal. With ``return_details``, a Bunch instead: ``score``; ``std`` over repeats (NaN for
        one); ``per_type`` (type -> Bunch of score, accuracy, chance, n_cells, n_batches); ``accuracy`` and ``chance``
        (balanced, averaged like the score); ``probe``; ``n_cells`` scored; ``skipped`` (type -> reason).

    Raises
    ------
    ValueError
        On bad input, and when no cell type has two batches with at least 3 cells each.

    Notes
    -----
    *Why balanced accuracy.* Plain accuracy against the majority share hides leakage in an unequal mix: at 90/10 a probe
    gains by always naming the large batch, and any that overfits scores far *below* 0. Balanced accuracy is exactly
    1/K in expectation for any rule that ignores the features, whatever the mix, and 1 only when every batch is read.
    The built-in probes therefore decide as if all batches were equally likely.

    *Dead features.* A feature whose standard deviation in the training cells is below 1e-5 of the largest, or 1e-6 of
    its own mean, is dropped: standardising would blow up rounding noise, which often differs by batch. Bring features
    of very different units to one scale first.
    """
    X = _check_features(features)
    batches, b = check_labels(batch, "batch", len(X))
    types, t = check_labels(np.zeros(len(X), int) if cell_type is None else cell_type, "cell_type", len(X))
    train = _check_mask(probe_train, len(X))
    n_splits, n_repeats = _check_count(n_splits, "n_splits", 2), _check_count(n_repeats, "n_repeats", 1)
    rng = _generator(random_state)

    per_type: dict[Any, Bunch] = {}
    skipped: dict[Any, str] = {}
    repeats: list[Array] = []
    for code, name in enumerate(types):
        cells = np.flatnonzero(t == code)
        if len(np.unique(b[cells])) < 2:
            skipped[name] = "in one batch only"
            continue
        cells = cells[_enough(b[cells], None if train is None else train[cells])]
        present, local = np.unique(b[cells], return_inverse=True)
        if len(present) < 2:
            skipped[name] = "too few cells per batch"
            continue
        mask = None if train is None else train[cells]
        chance = 1.0 / len(present)
        accuracies = np.zeros(n_repeats)
        for repeat in range(n_repeats):
            hits, counts = np.zeros(len(present)), np.zeros(len(present))
            for fit, held in _splits(local, mask, n_splits, int(rng.integers(2**31))):
                seed = int(rng.integers(2**31))
                named = _fit_predict(probe, X[cells[fit]], local[fit], X[cells[held]], seed, uniform_prior=True)
                hits += np.bincount(local[held], named == local[held], len(present))
                counts += np.bincount(local[held], minlength=len(present))
            accuracies[repeat] = np.mean(hits / counts)
        repeats.append((accuracies - chance) / (1 - chance))
        n = len(cells) if mask is None else int((~mask).sum())
        found: dict[str, float] = {"score": repeats[-1].mean(), "accuracy": accuracies.mean(), "chance": chance}
        per_type[name] = Bunch(**{k: float(v) for k, v in found.items()}, n_cells=n, n_batches=len(present))
    if not per_type:
        where = "" if train is None else " among the True cells of probe_train, and others to score"
        raise ValueError(
            f"There is no batch leakage to measure in {len(X)} cells of {len(batches)} batch(es): none of {len(types)} "
            f"cell type(s) has two batches with at least {MIN_CELLS} cells each{where}. {_MIX}"
        )
    weights = np.array([d.n_cells for d in per_type.values()], dtype=float)
    by_repeat = np.average(np.stack(repeats), axis=0, weights=weights)
    score = float(by_repeat.mean())
    if not return_details:
        return score
    std = float(by_repeat.std()) if n_repeats > 1 else float("nan")
    details: dict[str, Any] = {"n_cells": int(weights.sum()), "probe": probe}
    for key in ("accuracy", "chance"):
        details[key] = float(np.average([d[key] for d in per_type.values()], weights=weights))
    return Bunch(score=score, std=std, per_type=per_type, skipped=skipped, **details)


def cross_batch_accuracy(
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike,
    *,
    probe: Probe = "linear",
    probe_train: ArrayLike | None = None,
    random_state: RandomState = 0,
    return_details: bool = False,
) -> float | Bunch:
    """Measure how well the cell type is read on a batch that the probe never saw (leave one batch out).

    For each batch a fresh probe is trained on the cells of all other batches and names the type of the batch's cells.
    Cells whose type occurs in no other batch cannot be named and do not count.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    batch, cell_type : array-like of shape (n_cells,)
    probe : {"linear", "mlp", "knn"} or scikit-learn classifier, default="linear"
        As in :func:`batch_leakage`. Since the mix of types in a new batch is unknown, the built-in probes decide as if
        all types were equally likely (in a design where a type is in few batches, leaving one out makes exactly the
        types that are asked for rarer in training).
    probe_train : array-like of bool of shape (n_cells,), default=None
        If given, probes learn from True cells only and only False cells are scored; the batches stay apart as well.
    random_state : int, Generator, RandomState or None, default=0
    return_details : bool, default=False

    Returns
    -------
    accuracy : float in [0, 1]
        Share of right names over all scored cells. Chance, a uniform guess, is 1 / (types known to the probe); a value
        below it means that the batch outweighs the type. With ``return_details``, a Bunch instead: ``score``;
        ``balanced`` (recall averaged over types); ``chance``; ``per_batch`` (batch -> Bunch of score, chance, n_cells,
        n_types); ``per_type`` (type -> recall); ``probe``; ``n_cells``; ``skipped`` (batch -> reason).

    Raises
    ------
    ValueError
        On bad input, and when no batch has a type that other batches have too, besides a second type to mistake it for.
    """
    X = _check_features(features)
    batches, b = check_labels(batch, "batch", len(X))
    types, t = check_labels(cell_type, "cell_type", len(X))
    train = _check_mask(probe_train, len(X))
    rng = _generator(random_state)

    per_batch: dict[Any, Bunch] = {}
    skipped: dict[Any, str] = {}
    truth: list[Array] = []
    named: list[Array] = []
    for code, name in enumerate(batches):
        fit, score = b != code, b == code
        if train is not None:
            fit, score = fit & train, score & ~train
        known = np.unique(t[fit])
        score &= np.isin(t, known)
        if len(known) < 2:
            skipped[name] = "the other batches hold fewer than two cell types"
        elif not score.any():
            skipped[name] = "no cell of a type that other batches hold"
        else:
            guess = _fit_predict(probe, X[fit], t[fit], X[score], int(rng.integers(2**31)), uniform_prior=True)
            truth.append(t[score])
            named.append(guess)
            right, n = float(np.mean(guess == t[score])), int(score.sum())
            per_batch[name] = Bunch(score=right, chance=1 / len(known), n_cells=n, n_types=len(known))
    if not per_batch:
        raise ValueError(
            f"There is no cross-batch accuracy to measure with {len(batches)} batch(es) and {len(types)} cell type(s): "
            "some cell type has to occur in two batches, next to a second type. " + _MIX
        )
    true, hit = np.concatenate(truth), np.concatenate(named) == np.concatenate(truth)
    if not return_details:
        return float(hit.mean())
    chance = sum(d.chance * d.n_cells for d in per_batch.values()) / len(hit)
    details = _recalls(types, true, hit)
    return Bunch(score=float(hit.mean()), chance=chance, per_batch=per_batch, probe=probe, skipped=skipped, **details)


def _recalls(types: Array, true: Array, hit: Array) -> dict[str, Any]:
    recall = {types[k]: float(hit[true == k].mean()) for k in np.unique(true)}
    return {"per_type": recall, "balanced": float(np.mean(list(recall.values()))), "n_cells": len(hit)}


def cell_type_accuracy(
    features: ArrayLike,
    cell_type: ArrayLike,
    *,
    probe: Probe = "linear",
    n_splits: int = 5,
    probe_train: ArrayLike | None = None,
    random_state: RandomState = 0,
    return_details: bool = False,
) -> float | Bunch:
    """Measure how well a fresh probe reads the cell type from the features of cells that it never saw.

    Batches are mixed over the folds, so this is what the features hold, not what carries over to a new batch
    (:func:`cross_batch_accuracy`).

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    cell_type : array-like of shape (n_cells,)
    probe, n_splits, probe_train, random_state, return_details
        As in :func:`batch_leakage`, but the probes decide by the training cells' mix of types.

    Returns
    -------
    accuracy : float in [0, 1]
        Share of right names. Chance is the largest type's share of the scored cells. With ``return_details``, a Bunch
        instead: ``score``; ``balanced`` (recall averaged over types, chance 1 / n_types); ``chance``; ``per_type``
        (type -> recall); ``probe``; ``n_cells``; ``skipped`` (type -> reason).

    Raises
    ------
    ValueError
        On bad input, and when fewer than two types have at least 3 cells.
    """
    X = _check_features(features)
    types, t = check_labels(cell_type, "cell_type", len(X))
    train = _check_mask(probe_train, len(X))
    n_splits = _check_count(n_splits, "n_splits", 2)
    rng = _generator(random_state)

    cells = np.flatnonzero(_enough(t, train))
    kept, local = np.unique(t[cells], return_inverse=True)
    if len(kept) < 2:
        raise ValueError(
            f"There is no cell-type accuracy to measure: {len(kept)} of {len(types)} type(s) has at least {MIN_CELLS} "
            "cells to learn from and one to score; two are needed."
        )
    named = np.full(len(cells), -1)
    for fit, score in _splits(local, None if train is None else train[cells], n_splits, int(rng.integers(2**31))):
        named[score] = _fit_predict(
            probe, X[cells[fit]], local[fit], X[cells[score]], int(rng.integers(2**31)), uniform_prior=False
        )
    hit, true = named[named >= 0] == local[named >= 0], local[named >= 0]
    if not return_details:
        return float(hit.mean())
    skipped = {types[k]: "too few cells" for k in range(len(types)) if k not in kept}
    chance = float(np.bincount(true).max() / len(true))
    details = _recalls(types[kept], true, hit)
    return Bunch(score=float(hit.mean()), chance=chance, probe=probe, skipped=skipped, **details)


def batch_removal_score(
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike,
    *,
    probe: Probe = "linear",
    n_splits: int = 5,
    probe_train: ArrayLike | None = None,
    random_state: RandomState = 0,
    return_details: bool = False,
) -> float | Bunch:
    r"""Join batch leakage and cross-batch accuracy into one figure to tune by.

    .. math:: \tfrac12 \left(1 - \mathrm{clip}(L)\right) + \tfrac12\, \mathrm{clip}\!\left(\frac{A - c}{1 - c}\right)

    where :math:`L` is :func:`batch_leakage`, :math:`A` is :func:`cross_batch_accuracy` with its chance :math:`c`, and
    clip bounds to [0, 1]. The definition is this package's own.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    batch, cell_type : array-like of shape (n_cells,)
    probe, n_splits, probe_train, random_state, return_details
        As in :func:`batch_leakage`.

    Returns
    -------
    score : float in [0, 1]
        1: batch unreadable, type read perfectly on unseen batches. 0: the reverse. **0.5 is what features without any
        content get** (nothing to leak, nothing to read), so look at the parts of a score near it. With
        ``return_details``, a Bunch instead: ``score``, ``leakage`` and ``cross_batch`` (their Bunches), ``kept`` (the
        normalised, clipped accuracy).

    Raises
    ------
    ValueError
        On bad input, and when either part cannot be measured: some cell type must be in two batches, and there must
        be two types.
    """
    common: dict[str, Any] = {"probe": probe, "probe_train": probe_train, "return_details": True}
    seeds = _generator(random_state).integers(2**31, size=2).tolist()
    leakage: Any = batch_leakage(features, batch, cell_type, n_splits=n_splits, random_state=seeds[0], **common)
    cross: Any = cross_batch_accuracy(features, batch, cell_type, random_state=seeds[1], **common)
    kept = float(np.clip((cross.score - cross.chance) / (1 - cross.chance), 0, 1))
    score = 0.5 * (1 - float(np.clip(leakage.score, 0, 1))) + 0.5 * kept
    return Bunch(score=score, leakage=leakage, cross_batch=cross, kept=kept) if return_details else score
