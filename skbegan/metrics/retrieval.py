"""Cell types found again in other batches, as a search among cells."""

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
from skbegan.metrics.probes import MIX, Design, NothingToMeasure, prepare


@without_unknown_types
def cross_batch_precision(
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike,
    *,
    standardize: bool = True,
    n_components: int | None = None,
    n_permutations: int = 20,
    max_cells: int | None = 10_000,
    random_state: RandomState = 0,
    return_details: bool = False,
) -> float | Bunch:
    r"""Measure how far ahead cells of the same type in other batches come of other types in the same batch.

    Each cell is a query. **Positives** are the cells of its type in other batches, **negatives** the cells of other
    types in its own batch; both are ranked by their cosine similarity to the query. Its average precision is the mean,
    over the positives, of the share of positives down to their rank, and the result its mean over cells (mAP), as
    image-based profiling scores replicates (Kalinin et al., Nat. Commun. 16, 5181, 2025, and their package copairs,
    there with the plate in place of the batch). No probe is trained: it asks whether the type outweighs the batch in
    the features as they are, where :func:`cross_batch_accuracy` asks whether a probe can find it.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    batch, cell_type : array-like of shape (n_cells,)
    standardize : bool, default=True
        Bring each feature to mean 0 and standard deviation 1 before (dead ones are dropped, see
        :func:`batch_leakage`). False takes the features as they are, without subtracting their mean.
    n_components : int, default=None
        Reduce the features to so many principal components before, taken as they vary; for images.
    n_permutations : int, default=20
        For the chance level, so often are all types permuted among the cells of each batch.
    max_cells : int or None, default=10000
        Take a random part of so many cells if there are more: time grows with their square.
    random_state : int, Generator, RandomState or None, default=0
        Of the permutations, of the cells taken, and of the order of equal similarities.
    return_details : bool, default=False

    Returns
    -------
    precision : float in [0, 1]
        1: all positives come first. With ``return_details``, a Bunch instead: ``score``; ``chance``, its mean under a
        random ranking of the same positives and negatives; ``permuted`` and ``permuted_bound``, mean and 95 % quantile
        under permutations, which keep the batch in the features (below chance where cells of one batch look alike);
        ``normalized``, (score - chance) / (1 - chance); ``stderr``, from the scatter between the means of types in
        batches; ``per_type`` and ``per_batch`` (label -> precision); ``n_cells``, queries that have both positives and
        negatives.

    Raises
    ------
    ValueError
        On bad input, and when no cell has both positives and negatives.

    Notes
    -----
    *Chance.* Of :math:`M` positives among :math:`N`, ranked at random, the average precision is in expectation
    :math:`\frac{M-1}{N-1} + \frac{H_N}{N} \frac{N-M}{N-1}` with the harmonic number :math:`H_N`. It grows with the
    share of positives, so quote it beside the score, and compare scores of the same design only.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import cross_batch_precision
    >>> cell_type, batch = np.arange(300) % 3, np.arange(300) // 3 % 2
    >>> noise = 0.1 * np.random.default_rng(0).normal(size=(300, 5))
    >>> by_type = noise + np.eye(5)[cell_type]
    >>> cross_batch_precision(by_type[:, :3], batch, cell_type)
    1.0
    >>> by_batch = by_type + 3 * np.eye(5)[3 + batch]
    >>> found = cross_batch_precision(by_batch, batch, cell_type, standardize=False, return_details=True)
    >>> found.score < found.chance
    True
    """
    X = check_features(features)
    design = Design.of(batch, cell_type, None, len(X))
    if n_components is not None:
        n_components = check_count(n_components, "n_components", 1)
    n_permutations = check_count(n_permutations, "n_permutations", 0)
    limit = len(X) if max_cells is None else check_count(max_cells, "max_cells", 4)
    found = measure_precision(X, design, standardize, n_components, n_permutations, limit, make_generator(random_state))
    return found if return_details else float(found.score)


def measure_precision(
    X: Array,
    design: Design,
    standardize: bool,
    n_components: int | None,
    n_permutations: int,
    limit: int,
    rng: np.random.Generator,
) -> Bunch:
    """Return the details of :func:`cross_batch_precision`."""
    cells = rng.permutation(len(X))[:limit]  # in random order, so that among equal similarities chance decides
    b, t = design.batch[cells], design.cell_type[cells]
    points = X[cells]
    if standardize or n_components is not None:
        ready = prepare(points, points[:1], n_components, int(rng.integers(2**31)))
        points = ready.train if ready.scale is None else ready.train * ready.scale
    length = np.linalg.norm(points, axis=1, keepdims=True)
    points = points / np.where(length > 0, length, 1.0)
    types = [t]
    for _ in range(n_permutations):
        permuted = t.copy()
        for code in np.unique(b):
            here = np.flatnonzero(b == code)
            permuted[here] = t[rng.permutation(here)]
        types.append(permuted)
    precision = np.full((len(types), len(cells)), np.nan)
    chance = np.full(len(cells), np.nan)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, len(cells) + 1))])
    for query in range(len(cells)):
        order = np.argsort(-(points @ points[query]), kind="stable")
        other = b[order] != b[query]
        for k, labels in enumerate(types):
            same = labels[order] == labels[query]
            positive = (same & other)[same == other]  # same type elsewhere, or another type here
            n, n_positive = len(positive), int(positive.sum())
            if 0 < n_positive < n:
                rank = np.flatnonzero(positive) + 1.0
                precision[k, query] = np.mean(np.arange(1, n_positive + 1) / rank)
                if k == 0:
                    chance[query] = (n_positive - 1) / (n - 1) + harmonic[n] / n * (n - n_positive) / (n - 1)
    asked = np.isfinite(precision[0])
    if not asked.any():
        raise NothingToMeasure(
            f"There is no cross-batch precision to measure with {len(design.batches)} batch(es) and "
            f"{len(design.types)} cell type(s): some cell type has to be in two batches, next to another. " + MIX
        )
    score, expected = float(precision[0, asked].mean()), float(chance[asked].mean())
    permuted = np.array([row[np.isfinite(row)].mean() for row in precision[1:] if np.isfinite(row).any()])

    def means(codes: Array, names: Array) -> dict[Any, float]:
        return {names[k]: float(precision[0, asked & (codes == k)].mean()) for k in np.unique(codes[asked])}

    return Bunch(
        score=score,
        chance=expected,
        permuted=float(permuted.mean()) if len(permuted) else float("nan"),
        permuted_bound=float(np.quantile(permuted, 0.95)) if len(permuted) else float("nan"),
        normalized=(score - expected) / (1 - expected),
        stderr=_stderr(precision[0], b * len(design.types) + t, asked),
        per_type=means(t, design.types),
        per_batch=means(b, design.batches),
        n_cells=int(asked.sum()),
    )


def _stderr(precision: Array, groups: Array, asked: Array) -> float:
    """Return the standard error of the mean; cells of a group share their positives and negatives."""
    codes = np.unique(groups[asked])
    if len(codes) < 2:
        return float("nan")
    center = precision[asked].mean()
    sums = [np.sum(precision[asked & (groups == code)] - center) for code in codes]
    return float(np.sqrt(np.square(sums).sum() * len(codes) / (len(codes) - 1)) / asked.sum())
