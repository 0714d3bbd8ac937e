"""How much biology is kept: cell types read by fresh probes, within the known batches and on a batch never seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch

from skbegan.metrics._checks import (
    Array,
    RandomState,
    check_count,
    check_features,
    make_generator,
    without_unknown_types,
)
from skbegan.metrics.probes import (
    MIN_CELLS,
    MIX,
    Design,
    NothingToMeasure,
    Probe,
    deal,
    enough,
    fit_predict,
    is_deterministic,
    prepare,
    share_variance,
    splits,
    spread,
)


@without_unknown_types
def cell_type_accuracy(
    features: ArrayLike,
    cell_type: ArrayLike,
    *,
    probe: Probe = "linear",
    n_splits: int = 5,
    n_repeats: int = 1,
    n_components: int | None = None,
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
    probe, n_splits, n_repeats, n_components, probe_train, random_state, return_details
        As in :func:`batch_leakage`, but the probes decide by the training cells' mix of types.

    Returns
    -------
    accuracy : float in [0, 1]
        Share of right names. Chance is the largest type's share of the scored cells. With ``return_details``, a Bunch
        instead: ``score``; ``std`` over repeats (NaN for one), ``repeats`` and ``stderr`` as in :func:`batch_leakage`;
        ``balanced`` (recall averaged over types, chance 1 / n_types); ``chance``; ``per_type`` (type -> recall);
        ``probe``; ``n_cells``; ``skipped`` (type -> reason).

    Raises
    ------
    ValueError
        On bad input, and when fewer than two types have at least 3 cells.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import cell_type_accuracy
    >>> cell_type = np.tile(["a", "b"], 100)
    >>> features = np.random.default_rng(0).normal(size=(200, 5))
    >>> features[cell_type == "a", 0] += 9
    >>> round(cell_type_accuracy(features, cell_type), 2)
    1.0
    """
    X = check_features(features)
    design = Design.of(None, cell_type, probe_train, len(X))
    counts = _counts(n_splits, n_repeats, n_components)
    found = measure_cell_type(X, design, probe, *counts, make_generator(random_state))
    return found if return_details else float(found.score)


@without_unknown_types
def cross_batch_accuracy(
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike,
    *,
    probe: Probe = "linear",
    n_repeats: int = 1,
    n_components: int | None = None,
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
    n_repeats : int, default=1
        Repeats with other seeds of the probe; there are no folds to change, so linear and nearest-neighbour probes
        give the same each time.
    n_components : int, default=None
        As in :func:`batch_leakage`.
    probe_train : array-like of bool of shape (n_cells,), default=None
        If given, probes learn from True cells only and only False cells are scored; the batches stay apart as well.
    random_state : int, Generator, RandomState or None, default=0
    return_details : bool, default=False

    Returns
    -------
    accuracy : float in [0, 1]
        Share of right names over all scored cells. Chance, a uniform guess, is 1 / (types known to the probe); a value
        below it means that the batch outweighs the type. With ``return_details``, a Bunch instead: ``score``; ``std``
        over repeats (NaN for one), ``repeats`` and ``stderr`` as in :func:`batch_leakage`; ``balanced`` (recall
        averaged over types); ``chance``; ``per_batch`` (batch -> Bunch of score, chance, n_cells, n_types);
        ``per_type`` (type -> recall); ``probe``; ``n_cells``; ``skipped`` (batch -> reason).

    Raises
    ------
    ValueError
        On bad input, and when no batch has a type that other batches have too, besides a second type to mistake it for.

    Notes
    -----
    ``stderr`` is about other cells of these batches. How much another *batch* may differ is seen in ``per_batch``.

    Examples
    --------
    A feature that is a sign of type a on Monday and of type b on Tuesday carries over to no other batch:

    >>> import numpy as np
    >>> from skbegan.metrics import cross_batch_accuracy
    >>> batch, cell_type = np.repeat(["mon", "tue"], 100), np.tile(["a", "b"], 100)
    >>> features = np.random.default_rng(0).normal(size=(200, 5))
    >>> features[(batch == "mon") == (cell_type == "a"), 0] += 9
    >>> round(cross_batch_accuracy(features, batch, cell_type), 2)
    0.0
    """
    X = check_features(features)
    design = Design.of(batch, cell_type, probe_train, len(X))
    _, n_repeats, n_components = _counts(2, n_repeats, n_components)
    found = measure_cross_batch(X, design, probe, n_repeats, n_components, make_generator(random_state))
    return _public(found) if return_details else float(found.score)


@without_unknown_types
def cross_batch_gap(
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike,
    *,
    probe: Probe = "linear",
    n_splits: int = 5,
    n_repeats: int = 1,
    n_components: int | None = None,
    probe_train: ArrayLike | None = None,
    random_state: RandomState = 0,
    return_details: bool = False,
) -> float | Bunch:
    """Measure what accuracy it costs the probe not to have seen the batch.

    The cells that :func:`cross_batch_accuracy` scores are named once more, by probes that have seen other cells of
    their batch (cross-fitted, stratified by batch and type). Both decide as if all types were equally likely. The
    result is that within-batch accuracy minus the cross-batch accuracy.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    batch, cell_type : array-like of shape (n_cells,)
    probe, n_splits, n_repeats, n_components, probe_train, random_state, return_details
        As in :func:`batch_leakage`.

    Returns
    -------
    gap : float in [-1, 1]
        0: a new batch costs nothing, which is also what features without content give; look at the accuracy too. With
        ``return_details``, a Bunch instead: ``score``; ``std``, ``repeats`` and ``stderr`` (of the difference of the
        same cells) as in :func:`batch_leakage`; ``within`` (accuracy); ``cross`` (the Bunch of
        :func:`cross_batch_accuracy`); ``per_batch`` (batch -> Bunch of score, within, cross, n_cells); ``probe``;
        ``n_cells``.

    Raises
    ------
    ValueError
        As in :func:`cross_batch_accuracy`.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import cross_batch_gap
    >>> batch, cell_type = np.repeat(["mon", "tue"], 100), np.tile(["a", "b"], 100)
    >>> features = np.random.default_rng(0).normal(size=(200, 5))
    >>> features[cell_type == "a", 0] += 9  # the same in both batches
    >>> abs(round(cross_batch_gap(features, batch, cell_type), 2))
    0.0
    """
    X = check_features(features)
    design = Design.of(batch, cell_type, probe_train, len(X))
    counts = _counts(n_splits, n_repeats, n_components)
    found = measure_gap(X, design, probe, *counts, make_generator(random_state))
    return found if return_details else float(found.score)


def _counts(n_splits: int, n_repeats: int, n_components: int | None) -> tuple[int, int, int | None]:
    if n_components is not None:
        n_components = check_count(n_components, "n_components", 1)
    return check_count(n_splits, "n_splits", 2), check_count(n_repeats, "n_repeats", 1), n_components


def _public(found: Bunch) -> Bunch:
    return Bunch(**{key: value for key, value in found.items() if key not in ("hits", "scored")})


def measure_cell_type(
    X: Array,
    design: Design,
    probe: Probe,
    n_splits: int,
    n_repeats: int,
    n_components: int | None,
    rng: np.random.Generator,
) -> Bunch:
    """Return the details of :func:`cell_type_accuracy`."""
    types, t, train = design.types, design.cell_type, design.train
    cells = np.flatnonzero(enough(t, train))
    kept, local = np.unique(t[cells], return_inverse=True)
    if len(kept) < 2:
        raise NothingToMeasure(
            f"There is no cell-type accuracy to measure: {len(kept)} of {len(types)} type(s) has at least {MIN_CELLS} "
            "cells to learn from and one to score; two are needed."
        )
    mask = None if train is None else train[cells]
    named = np.full((n_repeats, len(cells)), -1)
    for repeat in range(n_repeats):
        if repeat and mask is not None and is_deterministic(probe):
            named[repeat] = named[0]
            continue
        for fit, score in splits(local, mask, n_splits, int(rng.integers(2**31))):
            seed = int(rng.integers(2**31))
            ready = prepare(X[cells[fit]], X[cells[score]], n_components, seed)
            named[repeat, score] = fit_predict(probe, ready, local[fit], seed, uniform_prior=False)
    scored = named[0] >= 0
    true = local[scored]
    details = _accuracies(types[kept], true, named[:, scored] == true)
    skipped = {types[k]: "too few cells" for k in range(len(types)) if k not in kept}
    return Bunch(**details, chance=float(np.bincount(true).max() / len(true)), probe=probe, skipped=skipped)


def measure_cross_batch(
    X: Array, design: Design, probe: Probe, n_repeats: int, n_components: int | None, rng: np.random.Generator
) -> Bunch:
    """Return the details of :func:`cross_batch_accuracy`, ``scored`` cells and ``hits`` (repeats, cells)."""
    batches, b, types, t, train = design
    per_batch: dict[Any, Bunch] = {}
    skipped: dict[Any, str] = {}
    cells: list[Array] = []
    hits: list[Array] = []
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
            hit = np.zeros((n_repeats, int(score.sum())), bool)
            for repeat in range(n_repeats):
                if repeat and is_deterministic(probe):
                    hit[repeat] = hit[0]
                    continue
                seed = int(rng.integers(2**31))
                ready = prepare(X[fit], X[score], n_components, seed)
                hit[repeat] = fit_predict(probe, ready, t[fit], seed, uniform_prior=True) == t[score]
            cells.append(np.flatnonzero(score))
            hits.append(hit)
            chance, n = 1 / len(known), hit.shape[1]
            per_batch[name] = Bunch(score=float(hit.mean()), chance=chance, n_cells=n, n_types=len(known))
    if not per_batch:
        raise NothingToMeasure(
            f"There is no cross-batch accuracy to measure with {len(batches)} batch(es) and {len(types)} cell type(s): "
            "some cell type has to occur in two batches, next to a second type. " + MIX
        )
    scored, hit = np.concatenate(cells), np.concatenate(hits, axis=1)
    chance = sum(d.chance * d.n_cells for d in per_batch.values()) / len(scored)
    details = _accuracies(types, t[scored], hit)
    return Bunch(**details, chance=chance, per_batch=per_batch, probe=probe, skipped=skipped, scored=scored, hits=hit)


def measure_gap(
    X: Array,
    design: Design,
    probe: Probe,
    n_splits: int,
    n_repeats: int,
    n_components: int | None,
    rng: np.random.Generator,
) -> Bunch:
    """Return the details of :func:`cross_batch_gap`."""
    cross = measure_cross_batch(X, design, probe, n_repeats, n_components, rng)
    b, t, train = design.batch, design.cell_type, design.train
    seen = np.zeros((n_repeats, len(X)), bool)
    for repeat in range(n_repeats):
        if train is None:
            fold = deal(b * (t.max() + 1) + t, n_splits, rng)
            parts = [(fold != k, fold == k) for k in range(n_splits)]
        elif repeat and is_deterministic(probe):
            seen[repeat] = seen[0]
            continue
        else:
            parts = [(train, ~train)]
        for fit, score in parts:
            if not score.any() or len(np.unique(t[fit])) < 2:
                continue
            seed = int(rng.integers(2**31))
            ready = prepare(X[fit], X[score], n_components, seed)
            seen[repeat, score] = fit_predict(probe, ready, t[fit], seed, uniform_prior=True) == t[score]
    within = seen[:, cross.scored]
    repeats = within.mean(axis=1) - cross.repeats
    difference = (within.astype(float) - cross.hits).mean(axis=0)
    n = len(difference)
    per_batch = {}
    for code, name in enumerate(design.batches):
        here = b[cross.scored] == code
        if here.any():
            w, c = float(within[:, here].mean()), cross.per_batch[name].score
            per_batch[name] = Bunch(score=w - c, within=w, cross=c, n_cells=int(here.sum()))
    return Bunch(
        score=float(repeats.mean()),
        std=spread(repeats),
        stderr=float(np.sqrt((difference.var() + 1 / (n + 2)) / n)),  # as if one pair of cells differed
        repeats=repeats,
        within=float(within.mean()),
        cross=_public(cross),
        per_batch=per_batch,
        probe=probe,
        n_cells=n,
    )


def _accuracies(types: Array, true: Array, hits: Array) -> dict[str, Any]:
    """Summarise ``hits`` (repeats, cells) of cells whose types are coded in ``true``."""
    mean = hits.mean(axis=0)
    recall = {types[k]: float(mean[true == k].mean()) for k in np.unique(true)}
    repeats = hits.mean(axis=1)
    return {
        "score": float(repeats.mean()),
        "std": spread(repeats),
        "stderr": float(np.sqrt(share_variance(mean.sum(), len(mean)))),
        "repeats": repeats,
        "per_type": recall,
        "balanced": float(np.mean(list(recall.values()))),
        "n_cells": len(true),
    }
