"""The field's integration scores: how well batches mix, and how well cell types stay together, among neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import Bunch

from skbegan.metrics._checks import (
    Array,
    RandomState,
    check_count,
    check_features,
    make_generator,
    without_unknown_types,
)
from skbegan.metrics.probes import MIN_CELLS, MIN_STD_TO_MEAN, MIX, Design, NothingToMeasure, enough, prepare, spread

_PERPLEXITY = 30.0  # of LISI, over three times as many neighbours, as in Korsunsky et al.
_GRAPH_NEIGHBORS = 15  # of the graph whose connectivity is measured
_KBET_NEIGHBORS = (10, 70)  # smallest and largest neighbourhood of kBET
_KBET_LEVEL = 0.05
_BATCH, _TYPE = ("kbet", "ilisi", "batch_asw", "graph_connectivity"), ("clisi", "cell_type_asw")


@without_unknown_types
def integration_scores(
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike,
    *,
    standardize: bool = False,
    n_repeats: int = 1,
    max_cells: int | None = 10_000,
    random_state: RandomState = 0,
) -> Bunch:
    r"""Compute the integration scores of the single-cell field, so that profiles can be held against its literature.

    All are normalised to [0, 1], greater is better, as in the benchmark of Luecken et al., Nat. Methods 19, 41 (2022).
    They look at neighbours in the features as they are, and so see what is coarse: a linear or MLP probe
    (:func:`batch_leakage`) reads the batch long after neighbours are mixed. Quote them beside it, not in its place.

    ======================  ==========================================================================================
    ``kbet``                share of cells around which the batch mix does not differ from that of their type
                            (chi-squared test at 5 %; Buettner et al., Nat. Methods 16, 43, 2019)
    ``ilisi``               effective number of batches among the neighbours, the inverse Simpson index (Korsunsky et
                            al., Nat. Methods 16, 1289, 2019): (median - 1) / (batches of the type - 1)
    ``batch_asw``           mean of 1 - \|silhouette width\| of the batches in a type
    ``graph_connectivity``  share of a type's cells in the largest connected part of its nearest-neighbour graph
    ``clisi``               effective number of cell types among the neighbours: (types - median) / (types - 1)
    ``cell_type_asw``       (1 + silhouette width of the cell types) / 2
    ======================  ==========================================================================================

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    batch, cell_type : array-like of shape (n_cells,)
    standardize : bool, default=False
        Scale each feature to unit variance (dead ones are dropped, see :func:`batch_leakage`). The field's benchmark
        takes an embedding as it is.
    n_repeats : int, default=1
        With more than one, each repeat takes another random 80 % of the cells (at most ``max_cells``).
    max_cells : int or None, default=10000
        Take a random part of so many cells if there are more: silhouettes take time in proportion to their square.
    random_state : int, Generator, RandomState or None, default=0

    Returns
    -------
    scores : Bunch
        For each name above a Bunch of ``score``; ``std`` over repeats (NaN for one); ``shuffled``, the same figure
        after shuffling: for ``kbet``, ``ilisi`` and ``batch_asw`` the batch labels within each cell type, so what
        features without any batch would get, **the best to hope for**; for ``graph_connectivity``, ``clisi`` and
        ``cell_type_asw`` the cell types, so **chance**; ``better`` ("higher"); ``about`` ("batch" or "cell type");
        ``per_type`` (cell type -> score) where it is a mean over types. Besides, ``n_cells`` used and ``skipped``
        (type -> why it has no batch scores).

    Raises
    ------
    ValueError
        On bad input, with fewer than two cell types, and when no cell type has two batches with at least 3 cells each.

    Notes
    -----
    *Batch scores are computed within cell type* and averaged over types, kBET and ASW as in the benchmark, iLISI other
    than there (and as in Andreatta et al., Nat. Commun. 15, 872, 2024): where not every type is in every batch,
    neighbours of other types would make batches look mixed or apart for reasons of biology.

    *What a score can reach depends on the data.* With an unequal batch mix even perfect mixing leaves ``ilisi`` below
    1; ``shuffled`` says how far. kBET's neighbourhoods are a quarter of the mean batch size of the type, from 10 to 70
    cells; the larger they are, the smaller the difference it detects.

    *Why no library.* LISI and kBET are a few lines on neighbours that are needed anyway; harmonypy is GPL-3 and
    scib-metrics needs JAX. Over all cells, LISI agrees with that of harmonypy 2.1 to 2e-5.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import integration_scores
    >>> batch, cell_type = np.repeat(["mon", "tue"], 100), np.tile(["a", "b"], 100)
    >>> features = np.random.default_rng(0).normal(size=(200, 5))
    >>> features[cell_type == "a", 0] += 9
    >>> scores = integration_scores(features, batch, cell_type)
    >>> scores.batch_asw.score > 0.9, scores.cell_type_asw.score > 0.7  # batches mixed, types apart
    (True, True)
    """
    X = check_features(features)
    design = Design.of(batch, cell_type, None, len(X))
    n_repeats = check_count(n_repeats, "n_repeats", 1)
    limit = len(X) if max_cells is None else check_count(max_cells, "max_cells", 2 * MIN_CELLS)
    if len(design.types) < 2:
        raise NothingToMeasure("The integration scores need at least two cell types.")
    X = prepare(X, X, None, 0).train if standardize else _centred(X)
    rng = make_generator(random_state)
    limit = min(limit, len(X) if n_repeats == 1 else max(2 * MIN_CELLS, int(0.8 * len(X))))
    # In random order also where all cells are taken: among equal distances the first neighbours win.
    found = [_scores(X, design, rng.permutation(len(X))[:limit], rng) for _ in range(n_repeats)]
    result = Bunch()
    for name in (*_BATCH, *_TYPE):
        score, shuffled = (np.array([repeat[kind][name][0] for repeat in found]) for kind in ("as given", "shuffled"))
        result[name] = Bunch(
            score=float(score.mean()),
            std=spread(score),
            shuffled=float(shuffled.mean()),
            better="higher",
            about="batch" if name in _BATCH else "cell type",
        )
        each = [repeat["as given"][name][1] for repeat in found]
        if each[0] is not None:
            names = {code for repeat in each for code in repeat}
            result[name].per_type = {
                design.types[code]: float(np.mean([repeat[code] for repeat in each if code in repeat]))
                for code in sorted(names)
            }
    result.n_cells, result.skipped = limit, found[0]["skipped"]
    return result


def _centred(X: Array) -> Array:
    """Return deviations from the mean, without what is only rounding noise."""
    mean, std = X.mean(axis=0), X.std(axis=0)
    lively = std > MIN_STD_TO_MEAN * np.abs(mean)
    return X[:, lively] - mean[lively] if lively.any() else np.zeros((len(X), 1))


def _scores(X: Array, design: Design, cells: Array, rng: np.random.Generator) -> dict[str, Any]:
    """Return name -> (score, per type) for the labels as given and shuffled, and the types without batch scores."""
    X, b, t = X[cells], design.batch[cells], design.cell_type[cells]
    neighbors = min(3 * int(_PERPLEXITY), len(X) - 1)
    distances, near = _neighbors(X, neighbors)
    weights = _perplexity_weights(distances)
    given: dict[str, Any] = {}
    shuffled: dict[str, Any] = {}
    for found, types in ((given, t), (shuffled, rng.permutation(t))):
        n_types = len(np.unique(types))
        median = float(np.median(_lisi(weights, types[near])))
        found["clisi"] = (n_types - median) / (n_types - 1), None
        found["cell_type_asw"] = (1 + float(silhouette_samples(X, types).mean())) / 2, None
        found["graph_connectivity"] = _mean(_connectivity(near[:, :_GRAPH_NEIGHBORS], types))

    by_type: list[dict[str, dict[int, float]]] = [{n: {} for n in ("kbet", "ilisi", "batch_asw")} for _ in range(2)]
    skipped: dict[Any, str] = {}
    for code, name in enumerate(design.types):
        rows = np.flatnonzero(t == code)
        if len(np.unique(b[rows])) < 2:
            skipped[name] = "in one batch only"
            continue
        rows = rows[enough(b[rows], None)]
        batches = np.unique(b[rows], return_inverse=True)[1]
        if len(rows) == 0 or batches.max() < 1:
            skipped[name] = "too few cells per batch"
            continue
        distances, near_within = _neighbors(X[rows], min(3 * int(_PERPLEXITY), len(rows) - 1))
        weights = _perplexity_weights(distances)
        for scores, labels in zip(by_type, (batches, rng.permutation(batches)), strict=True):
            scores["kbet"][code] = _kbet(near_within, labels)
            scores["ilisi"][code] = (float(np.median(_lisi(weights, labels[near_within]))) - 1) / labels.max()
            scores["batch_asw"][code] = float(np.mean(1 - np.abs(silhouette_samples(X[rows], labels))))
    if not by_type[0]["kbet"]:
        raise NothingToMeasure(
            f"There is no mixing of batches to measure: no cell type has two batches with at least {MIN_CELLS} cells "
            f"each in the {len(cells)} cells used. {MIX}"
        )
    for found, scores in zip((given, shuffled), by_type, strict=True):
        found.update({name: _mean(values) for name, values in scores.items()})
    return {"as given": given, "shuffled": shuffled, "skipped": skipped}


def _mean(values: dict[int, float]) -> tuple[float, dict[int, float]]:
    return float(np.mean(list(values.values()))), values


def _neighbors(X: Array, k: int) -> tuple[Array, Array]:
    """Return the distances and positions of the k nearest other cells of each."""
    distances, near = NearestNeighbors(n_neighbors=k).fit(X).kneighbors()
    return distances, near


def _perplexity_weights(distances: Array) -> Array:
    """Return weights exp(-distance / width), at each cell as wide as gives the perplexity; rows sum to 1.

    The published programs for LISI take the distance, not its square; so their figures and these agree to 1e-4.
    """
    k = distances.shape[1]
    target = np.log(min(_PERPLEXITY, max(k / 3, 1.0)))
    distances = distances - distances[:, :1]
    scale = distances.mean(axis=1, keepdims=True)
    distances = distances / np.where(scale > 0, scale, 1.0)
    low, high = np.full((len(distances), 1), -20.0), np.full((len(distances), 1), 20.0)  # log of 1 / width, bisected
    for _ in range(40):
        middle = (low + high) / 2
        weights = np.exp(-np.exp(middle) * distances)
        weights /= weights.sum(axis=1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1, keepdims=True)
        low, high = np.where(entropy > target, middle, low), np.where(entropy > target, high, middle)
    return weights


def _lisi(weights: Array, labels: Array) -> Array:
    """Return the inverse Simpson index of the neighbours' labels at each cell."""
    simpson = np.zeros(len(labels))
    for label in np.unique(labels):
        simpson += (weights * (labels == label)).sum(axis=1) ** 2
    return 1 / simpson


def _kbet(near: Array, labels: Array) -> float:
    """Return the share of cells whose neighbours' batches pass for a random draw from all."""
    counts = np.bincount(labels)
    low, high = _KBET_NEIGHBORS
    k = min(near.shape[1], max(low, min(high, int(counts.mean() / 4))))
    expected = k * counts / counts.sum()
    around = labels[near[:, :k]]
    found = np.stack([(around == code).sum(axis=1) for code in range(len(counts))], axis=1)
    statistic = ((found - expected) ** 2 / expected).sum(axis=1)
    return float(np.mean(chi2.sf(statistic, len(counts) - 1) >= _KBET_LEVEL))


def _connectivity(near: Array, types: Array) -> dict[int, float]:
    """Return for each type the share of its cells in the largest connected part of its own graph."""
    n, k = near.shape
    graph = csr_array((np.ones(n * k, bool), (np.repeat(np.arange(n), k), near.ravel())), shape=(n, n))
    graph.indices, graph.indptr = graph.indices.astype(np.int32), graph.indptr.astype(np.int32)  # older scipy needs it
    shares = {}
    for code in np.unique(types):
        rows = np.flatnonzero(types == code)
        _, part = connected_components(graph[rows][:, rows], directed=False)
        shares[int(code)] = float(np.bincount(part).max() / len(rows))
    return shares
