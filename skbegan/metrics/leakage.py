"""How much batch is left in features and in images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
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
from skbegan.metrics._cnn import ConvolutionalProbe
from skbegan.metrics.probes import (
    MIN_CELLS,
    MIX,
    Design,
    NothingToMeasure,
    Prepared,
    Probe,
    enough,
    fit_predict,
    is_deterministic,
    make_probe,
    prepare,
    reads_images,
    share_variance,
    splits,
    spread,
)


@without_unknown_types
def batch_leakage(
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike | None = None,
    *,
    probe: Probe = "linear",
    n_splits: int = 5,
    n_repeats: int = 1,
    n_components: int | None = None,
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
    probe : {"linear", "mlp", "knn", "trees"} or scikit-learn classifier, default="linear"
        Logistic regression; a network of one hidden layer of 64, 60 epochs; 15 nearest neighbours; 60 gradient-boosted
        trees of 8 leaves (:class:`~sklearn.ensemble.HistGradientBoostingClassifier`). A classifier is cloned and its
        own ``predict`` is taken as it is, so an unequal batch mix is its business (``class_weight="balanced"``).
        Features are standardised for every probe, with the training cells' statistics.
    n_splits, n_repeats : int, default=5 and 1
        Folds (fewer where a batch has fewer cells), and repeats with other folds and seeds, over which the score is
        averaged.
    n_components : int, default=None
        Reduce the features to so many principal components before, fitted on the cells that the probe is trained on;
        for images, see :func:`image_leakage`.
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
        one), and ``repeats``, the scores themselves; ``stderr``, the standard error due to the number of scored cells;
        ``per_type`` (type -> Bunch of score, accuracy, chance, n_cells, n_batches); ``accuracy`` and ``chance``
        (balanced, averaged like the score; the chance of the score is 0); ``probe``; ``n_cells`` scored; ``skipped``
        (type -> reason).

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

    *Two spreads.* ``std`` says how much the figure depends on the folds and on the probe's seed; with ``probe_train``
    a linear or nearest-neighbour probe has neither, and ``std`` is 0. ``stderr`` is that of a share of so many cells
    (binomial), whatever the probe.

    *Time* grows in proportion to the cells. For this the nearest neighbours are looked for among a random part of the
    training cells where a fit has more than 1000 per batch; ``probe=KNeighborsClassifier(15)`` takes them all, in time
    that grows with their square.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import batch_leakage
    >>> batch, cell_type = np.repeat(["mon", "tue"], 100), np.tile(["a", "b"], 100)
    >>> features = np.random.default_rng(0).normal(size=(200, 5))
    >>> batch_leakage(features, batch, cell_type) < 0.3  # noise says nothing of the batch
    True
    >>> features[batch == "tue", 0] += 9
    >>> round(batch_leakage(features, batch, cell_type), 2)
    1.0
    """
    X = check_features(features)
    design = Design.of(batch, cell_type, probe_train, len(X))
    n_splits, n_repeats = check_count(n_splits, "n_splits", 2), check_count(n_repeats, "n_repeats", 1)
    if n_components is not None:
        n_components = check_count(n_components, "n_components", 1)
    found = measure_leakage(X, design, [probe], n_splits, n_repeats, n_components, make_generator(random_state))[0]
    return found if return_details else float(found.score)


@without_unknown_types
def image_leakage(
    images: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike | None = None,
    *,
    probe: Probe = "linear",
    n_components: int = 50,
    n_splits: int = 5,
    n_repeats: int = 1,
    probe_train: ArrayLike | None = None,
    random_state: RandomState = 0,
    return_details: bool = False,
) -> float | Bunch:
    """Measure how well a fresh probe reads the batch from images, within each cell type.

    As :func:`batch_leakage`, on the principal components of the pixels. The components are those of the cells that a
    probe is trained on, so of one cell type: what differs between its cells, not between types.

    Parameters
    ----------
    images : array-like of shape (n_cells, H, W) or (n_cells, H, W, C)
        For example what ``predict_image`` returns. Measured images and, where there is one, the batch-free truth give
        the figures to hold it against.
    batch, cell_type : array-like of shape (n_cells,)
    probe : {"linear", "mlp", "knn", "trees", "cnn"} or scikit-learn classifier, default="linear"
        As in :func:`batch_leakage`, and ``"cnn"``, a small convolutional network (three layers, 160 steps of 32 cells,
        whatever the number of cells) that reads the pixels themselves: it sees what principal components miss, such as
        noise and sharpness. Some seconds per fold and cell type for 32 x 32 pixels on one core.
    n_components : int, default=50
        Principal components (fewer where a probe has fewer training cells). More can hold finer traces of the batch
        and need more cells to learn from. They are given to the probe either standardised or as they vary, whichever
        tells more of its training cells, each left out in turn.
    n_splits, n_repeats, probe_train, random_state, return_details
        As in :func:`batch_leakage`.

    Returns
    -------
    score : float in [-1 / (K - 1), 1]
        0: not readable (chance). 1: fully readable. With ``return_details``, a Bunch as in :func:`batch_leakage`.

    Raises
    ------
    ValueError
        As in :func:`batch_leakage`.

    Notes
    -----
    Standardised components give a faint trace of the batch the same weight as the cell itself. This makes it a stern
    test: the linear and the MLP probe can read the batch from images in which nobody can see it. Where the batch is
    what differs most, as in raw images, standardised noise would hide it from the nearest neighbours, and from any
    probe with few cells: hence the choice.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import image_leakage
    >>> batch, cell_type = np.repeat(["mon", "tue"], 100), np.tile(["a", "b"], 100)
    >>> images = np.random.default_rng(0).normal(size=(200, 16, 16))
    >>> images[batch == "tue", :8] += 1  # uneven illumination
    >>> round(image_leakage(images, batch, cell_type, n_components=10), 2)
    1.0
    """
    X = check_pixels(images, "images")
    probe = of_images(probe, np.shape(images)[1:])
    design = Design.of(batch, cell_type, probe_train, len(X))
    n_splits, n_repeats = check_count(n_splits, "n_splits", 2), check_count(n_repeats, "n_repeats", 1)
    n_components = check_count(n_components, "n_components", 1)
    found = measure_leakage(X, design, [probe], n_splits, n_repeats, n_components, make_generator(random_state))[0]
    return found if return_details else float(found.score)


def of_images(probe: Any, shape: tuple[int, ...]) -> Probe:
    """Return the probe, made for images of this shape if it is the one that reads pixels."""
    return ConvolutionalProbe(shape) if isinstance(probe, str) and probe == "cnn" else probe


def measure_leakage(
    X: Array,
    design: Design,
    probes: Sequence[Probe],
    n_splits: int,
    n_repeats: int,
    n_components: int | None,
    rng: np.random.Generator,
    done: Callable[[], object] | None = None,
) -> list[Bunch]:
    """Return the details for each probe; all get the same folds, seeds and components, so one is as if alone.

    `done` is called after each cell type.
    """
    batches, b, types, t, train = design
    for probe in probes:
        make_probe(probe, 1, 0)  # complains before any work
    tallies: dict[Any, tuple[Array, Array]] = {}  # type -> hits (probes, repeats, batches), scored cells (batches)
    skipped: dict[Any, str] = {}
    for code, name in enumerate(types):
        cells = np.flatnonzero(t == code)
        if len(np.unique(b[cells])) < 2:
            skipped[name] = "in one batch only"
            continue
        cells = cells[enough(b[cells], None if train is None else train[cells])]
        present, local = np.unique(b[cells], return_inverse=True)
        if len(present) < 2:
            skipped[name] = "too few cells per batch"
            continue
        mask = None if train is None else train[cells]
        hits = np.zeros((len(probes), n_repeats, len(present)))
        for repeat in range(n_repeats):
            for fit, held in splits(local, mask, n_splits, int(rng.integers(2**31))):
                seed = int(rng.integers(2**31))
                ready = None
                for k, probe in enumerate(probes):
                    if repeat and mask is not None and is_deterministic(probe):
                        hits[k, repeat] = hits[k, 0]
                        continue
                    if reads_images(probe):
                        given = Prepared(X[cells[fit]], X[cells[held]])
                    else:
                        given = ready = ready or prepare(X[cells[fit]], X[cells[held]], n_components, seed)
                    named = fit_predict(probe, given, local[fit], seed, uniform_prior=True)
                    hits[k, repeat] += np.bincount(local[held], named == local[held], len(present))
        scored = local if mask is None else local[~mask]
        tallies[name] = hits, np.bincount(scored, minlength=len(present))
        if done is not None:
            done()
    if not tallies:
        where = "" if train is None else " among the True cells of probe_train, and others to score"
        raise NothingToMeasure(
            f"There is no batch leakage to measure in {len(X)} cells of {len(batches)} batch(es): none of {len(types)} "
            f"cell type(s) has two batches with at least {MIN_CELLS} cells each{where}. {MIX}"
        )
    return [
        _summary({name: (hits[k], n) for name, (hits, n) in tallies.items()}, skipped, probe)
        for k, probe in enumerate(probes)
    ]


def _summary(tallies: dict[Any, tuple[Array, Array]], skipped: dict[Any, str], probe: Probe) -> Bunch:
    per_type: dict[Any, Bunch] = {}
    by_repeat, variances = [], []
    for name, (hits, n) in tallies.items():
        chance = 1.0 / len(n)
        accuracies = (hits / n).mean(axis=1)
        by_repeat.append((accuracies - chance) / (1 - chance))
        variances.append(share_variance(hits.mean(axis=0), n).sum() / (len(n) * (1 - chance)) ** 2)
        found = {"score": by_repeat[-1].mean(), "accuracy": accuracies.mean(), "chance": chance}
        per_type[name] = Bunch(**{k: float(v) for k, v in found.items()}, n_cells=int(n.sum()), n_batches=len(n))
    weights = np.array([d.n_cells for d in per_type.values()], dtype=float)
    repeats = np.average(np.stack(by_repeat), axis=0, weights=weights)
    stderr = float(np.sqrt(np.sum((weights / weights.sum()) ** 2 * np.array(variances))))
    means = {
        key: float(np.average([d[key] for d in per_type.values()], weights=weights)) for key in ("accuracy", "chance")
    }
    return Bunch(
        score=float(repeats.mean()),
        std=spread(repeats),
        stderr=stderr,
        repeats=repeats,
        per_type=per_type,
        skipped=dict(skipped),
        n_cells=int(weights.sum()),
        probe=probe,
        **means,
    )
