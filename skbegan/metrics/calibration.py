"""What a leakage figure is worth: how far chance alone goes, and how small a batch signal each probe finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import Bunch

from skbegan.metrics._checks import (
    Array,
    RandomState,
    check_count,
    check_features,
    check_pixels,
    make_generator,
    without_unknown_types,
)
from skbegan.metrics.leakage import measure_leakage, of_images
from skbegan.metrics.probes import (
    MIN_CELLS,
    MIX,
    Design,
    NothingToMeasure,
    Prepared,
    Probe,
    enough,
    fit_predict,
    make_probe,
    prepare,
    reads_images,
    splits,
    thinned,
)

_REFITTED = ("linear", "knn")  # probes that are trained anew for each permutation
_DETECTED = 0.8  # of the draws with a planted signal have to be beyond the bound


@without_unknown_types
def leakage_calibration(
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike | None = None,
    *,
    probes: Sequence[Probe] = ("linear", "knn"),
    n_permutations: int = 200,
    strengths: Sequence[float] = (0.125, 0.25, 0.5, 1.0, 2.0),
    n_planted: int = 5,
    kind: Literal["shift", "scale"] = "shift",
    n_splits: int = 5,
    n_components: int | None = None,
    probe_train: ArrayLike | None = None,
    random_state: RandomState = 0,
) -> dict[str, Bunch]:
    r"""Calibrate batch leakage: what it is without any batch, and the smallest batch signal that each probe finds.

    *Without a batch.* The batch labels are permuted among the cells of a type (and of a fold, so that folds stay
    stratified), and leakage is measured again. ``"linear"`` and ``"knn"`` are trained anew on each permutation. All
    other probes take long to train: theirs are trained once, and the labels of the held-out cells are permuted, which
    is the distribution of the score of a probe that has learned nothing about them.

    *With a planted batch.* The real batch is destroyed by permuting it within cell type, and another is planted: the
    cells of each batch are moved along a random direction of its own, in which cells do differ, by ``strength``
    standard deviations of the cells of a type along it. A probe detects a strength if its leakage is beyond the 95 %
    bound without a batch in at least 80 % of the draws.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features), or images of shape (n_cells, H, W) or (n_cells, H, W, C)
        Images are given to probes as :func:`image_leakage` does it.
    batch : array-like of shape (n_cells,)
    cell_type : array-like of shape (n_cells,), default=None
        None treats all cells as one type.
    probes : sequence of {"linear", "mlp", "knn", "trees", "cnn"} or scikit-learn classifiers, default=("linear", "knn")
        See :func:`batch_leakage`; ``"cnn"`` for images only.
    n_permutations : int, default=200
    strengths : sequence of float, default=(0.125, 0.25, 0.5, 1.0, 2.0)
        Of the planted signal. Empty: none is planted.
    n_planted : int, default=5
        Draws of the planted signal at each strength. The same draws are used for all strengths and probes.
    kind : {"shift", "scale"}, default="shift"
        "scale" stretches the cells of each batch along its direction, by the factor 1 + strength, and moves nothing:
        a signal that no linear probe can find.
    n_splits : int, default=5
    n_components : int, default=None
        As in :func:`batch_leakage`. For images None is 50.
    probe_train : array-like of bool of shape (n_cells,), default=None
        As in :func:`batch_leakage`.
    random_state : int, Generator, RandomState or None, default=0
        The same as in :func:`batch_leakage` gives the same ``score``.

    Returns
    -------
    calibration : dict of str to Bunch
        Probe (its name, or that of its class) -> Bunch of

        - ``score``: the leakage of these features, and ``stderr``, as from :func:`batch_leakage`; ``upper``, its
          one-sided 95 % confidence bound, score + 1.645 stderr;
        - ``mean``, ``std``, ``bound``: mean, standard deviation and 95 % quantile of the leakage under permutations;
          ``permuted``, all of them; ``refitted``, whether the probe was trained anew;
        - ``excess``: score - mean; ``excess_upper``: upper - mean; ``p_value``: share of permutations, the data's own
          order included, that leak as much;
        - ``strengths``, ``planted`` (leakage, strengths x draws) and ``detected`` (share of the draws), the curve;
          ``smallest``: the least strength from which on all are detected, NaN if the largest is not.

    Raises
    ------
    ValueError
        As in :func:`batch_leakage`.

    Notes
    -----
    *Time.* For 1000 cells, 7 types and 128 features, 200 permutations of the linear probe take about half a minute on
    one core. Planting costs as much as ``n_planted`` x strengths calls of :func:`batch_leakage`, for the MLP and the
    trees some minutes.

    *Reading it.* A leakage below ``bound`` is what features without any batch give. That the batch is gone to within a
    margin is said by ``excess_upper``, and it means little for signals smaller than ``smallest``.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import leakage_calibration
    >>> features, batch = np.random.default_rng(0).normal(size=(200, 5)), np.arange(200) % 2
    >>> found = leakage_calibration(features, batch, probes=["linear"], strengths=[0.1, 3.0])["linear"]
    >>> found.score < found.bound, abs(found.mean) < 0.05, found.smallest
    (True, True, 3.0)
    """
    is_image = np.ndim(features) > 2
    X = check_pixels(features, "features") if is_image else check_features(features)
    design = Design.of(batch, cell_type, probe_train, len(X))
    n_permutations, n_planted = check_count(n_permutations, "n_permutations", 1), check_count(n_planted, "n_planted", 1)
    n_splits = check_count(n_splits, "n_splits", 2)
    if n_components is not None or is_image:
        n_components = check_count(50 if n_components is None else n_components, "n_components", 1)
    if kind not in ("shift", "scale"):
        raise ValueError(f"kind must be 'shift' or 'scale', got {kind!r}.")
    ladder = np.asarray(strengths, dtype=float)
    if ladder.ndim != 1 or not (np.isfinite(ladder).all() and (ladder > 0).all() and (np.diff(ladder) > 0).all()):
        raise ValueError(f"strengths must be positive numbers in ascending order, got {strengths!r}.")
    if isinstance(probes, str) or not len(probes):
        raise ValueError(f"probes must be a list with one or more probes, e.g. ['linear'], got {probes!r}.")
    used = [of_images(probe, np.shape(features)[1:]) if is_image else probe for probe in probes]
    names = [given if isinstance(given, str) else type(given).__name__ for given in probes]
    if len(set(names)) != len(names):
        raise ValueError(f"Each probe must be given once, got {names}.")
    for probe in used:
        make_probe(probe, 1, 0)  # complains before any work
    rng = make_generator(random_state)
    own_seed = int(rng.spawn(1)[0].integers(2**31))  # leaves the stream as batch_leakage finds it
    observed = measure_leakage(X, design, used, n_splits, 1, n_components, _copy(rng))
    others = np.random.default_rng(own_seed)
    permuted = _permutations(X, design, used, n_splits, n_components, n_permutations, rng, others)
    result: dict[str, Bunch] = {}
    for k, name in enumerate(names):
        scores = permuted[k]
        upper = observed[k].score + 1.645 * observed[k].stderr
        result[name] = Bunch(
            score=observed[k].score,
            stderr=observed[k].stderr,
            upper=upper,
            mean=float(scores.mean()),
            std=float(scores.std()),
            bound=float(np.quantile(scores, 0.95)),
            permuted=scores,
            refitted=used[k] in _REFITTED if isinstance(used[k], str) else False,
            excess=float(observed[k].score - scores.mean()),
            excess_upper=float(upper - scores.mean()),
            p_value=float((1 + np.sum(scores >= observed[k].score - 1e-12)) / (1 + n_permutations)),
        )
    planted = np.zeros((len(used), len(ladder), n_planted))
    for draw in range(n_planted if len(ladder) else 0):
        seed = int(others.integers(2**31))
        for level, strength in enumerate(ladder):
            moved, hidden = _plant(X, design, float(strength), kind, np.random.default_rng(seed))
            found = measure_leakage(moved, hidden, used, n_splits, 1, n_components, np.random.default_rng(seed))
            planted[:, level, draw] = [each.score for each in found]
    for k, name in enumerate(names):
        detected = (planted[k] > result[name].bound).mean(axis=1)
        from_here = np.logical_and.accumulate((detected >= _DETECTED)[::-1])[::-1]
        smallest = float(ladder[from_here][0]) if from_here.any() else float("nan")
        result[name].update(strengths=ladder, planted=planted[k], detected=detected, smallest=smallest)
    return result


def _copy(rng: np.random.Generator) -> np.random.Generator:
    """Return a generator that will give the same numbers."""
    import copy

    return copy.deepcopy(rng)


# ---------------------------------------------------------------------------------------------------- without a batch
def _permutations(
    X: Array,
    design: Design,
    probes: Sequence[Probe],
    n_splits: int,
    n_components: int | None,
    n: int,
    rng: np.random.Generator,
    others: np.random.Generator,
) -> Array:
    """Return the leakage of each probe under each permutation; folds and seeds as `measure_leakage` draws them."""
    scores = np.zeros((len(probes), n))
    total = 0
    for cells, local in _groups(design):
        mask = None if design.train is None else design.train[cells]
        folds = list(splits(local, mask, n_splits, int(rng.integers(2**31))))
        seeds = [int(rng.integers(2**31)) for _ in folds]
        labels = np.tile(local, (n, 1))
        for part in [*(held for _, held in folds), *([] if mask is None else [np.flatnonzero(mask)])]:
            labels[:, part] = others.permuted(labels[:, part], axis=1)
        n_batches = int(local.max()) + 1
        hits = np.zeros((len(probes), n, n_batches))
        for (fit, held), seed in zip(folds, seeds, strict=True):
            ready = prepare(X[cells[fit]], X[cells[held]], n_components, seed)
            for k, probe in enumerate(probes):
                given = Prepared(X[cells[fit]], X[cells[held]]) if reads_images(probe) else ready
                if isinstance(probe, str) and probe == "knn":
                    named = _nearest(given, labels[:, fit], local[fit], n_batches)
                elif isinstance(probe, str) and probe in _REFITTED:
                    short = _rotated(given)
                    named = np.stack(
                        [fit_predict(probe, short, row, seed, uniform_prior=True) for row in labels[:, fit]]
                    )
                else:
                    named = np.tile(fit_predict(probe, given, local[fit], seed, uniform_prior=True), (n, 1))
                true = labels[:, held]
                for code in range(n_batches):
                    hits[k, :, code] += ((named == code) & (true == code)).sum(axis=1)
        scored = np.bincount(local if mask is None else local[~mask], minlength=n_batches)
        chance = 1 / n_batches
        scores += scored.sum() * ((hits / scored).mean(axis=2) - chance) / (1 - chance)
        total += int(scored.sum())
    return scores / total


def _groups(design: Design) -> Iterator[tuple[Array, Array]]:
    """Yield the cells of each type that leakage is measured in, and their batches from 0 on."""
    nothing = True
    for code in range(len(design.types)):
        cells = np.flatnonzero(design.cell_type == code)
        cells = cells[enough(design.batch[cells], None if design.train is None else design.train[cells])]
        present, local = np.unique(design.batch[cells], return_inverse=True)
        if len(present) > 1:
            nothing = False
            yield cells, local
    if nothing:
        raise NothingToMeasure(
            f"There is no batch leakage to calibrate: no cell type has two batches with {MIN_CELLS} cells each. {MIX}"
        )


def _rotated(cells: Prepared) -> Prepared:
    """Return cells in as few dimensions as the training cells span; a penalty on the length does not see it."""
    train, test, scale = cells
    if scale is not None or train.shape[1] < len(train):
        return cells
    _, _, axes = np.linalg.svd(train, full_matrices=False)
    return Prepared(train @ axes.T, test @ axes.T)


def _nearest(cells: Prepared, labels: Array, codes: Array, n_classes: int) -> Array:
    """Return what nearest neighbours name under each permutation, (n_permutations, n_test); found only once."""
    kept = thinned(codes)
    labels = labels[:, kept]
    share = np.bincount(codes[kept], minlength=n_classes) / len(kept)
    ways = [cells.train[kept]] if cells.scale is None else [cells.train[kept] * cells.scale, cells.train[kept]]
    tests = [cells.test] if cells.scale is None else [cells.test * cells.scale, cells.test]
    named, right = [], []
    for train, test in zip(ways, tests, strict=True):
        near = NearestNeighbors(n_neighbors=min(15, len(train))).fit(train)
        named.append(_vote(labels, near.kneighbors(test, return_distance=False), share))
        if cells.scale is not None:  # as `fit_predict` does, the training cells say which way is better
            others = near.kneighbors(n_neighbors=min(15, len(train) - 1), return_distance=False)
            found = _vote(labels, others, share)
            right.append(np.where(found == labels, 1 / share[labels], 0.0).sum(axis=1))
    if len(named) == 1:
        return named[0]
    return np.where((right[0] > right[1])[:, None], named[0], named[1])


def _vote(labels: Array, near: Array, share: Array) -> Array:
    """Return the class with the most votes for its size among each cell's neighbours."""
    votes = np.stack([(labels == code)[:, near].mean(axis=2) / max(s, 1e-12) for code, s in enumerate(share)])
    return np.asarray(votes.argmax(axis=0))


# --------------------------------------------------------------------------------------------------- a planted batch
def _plant(X: Array, design: Design, strength: float, kind: str, rng: np.random.Generator) -> tuple[Array, Design]:
    """Return features that differ by batch in nothing but a planted signal, and the design with those batches."""
    batch = design.batch.copy()
    for code in range(len(design.types)):
        for part in (slice(None),) if design.train is None else (design.train, ~design.train):
            here = np.zeros(len(X), bool)
            here[part] = design.cell_type[part] == code
            batch[here] = rng.permutation(batch[here])
    centred = np.empty_like(X, dtype=np.float64)
    for code in range(len(design.types)):
        here = design.cell_type == code
        centred[here] = X[here] - X[here].mean(axis=0)
    std = centred.std(axis=0)
    scale = np.where(std > 0, std, 1.0)
    centred /= scale
    moved = X.astype(np.float64)
    for code in range(len(design.batches)):
        direction = centred.T @ rng.normal(size=len(X))
        direction /= max(float(np.linalg.norm(direction)), 1e-30)
        along = centred @ direction
        here = batch == code
        size = strength * (along[here, None] if kind == "scale" else along.std())
        moved[here] += size * direction * scale
    return moved, design._replace(batch=batch)
