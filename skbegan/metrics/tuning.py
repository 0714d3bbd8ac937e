"""One figure to tune by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch

from skbegan.metrics._checks import RandomState, make_generator, without_unknown_types
from skbegan.metrics.accuracy import cross_batch_accuracy
from skbegan.metrics.leakage import batch_leakage
from skbegan.metrics.probes import Probe, spread


def removal_score(leakage: Any, accuracy: Any, chance: float) -> Any:
    """Return the harmonic mean of batch removed and type kept, elementwise; 0 where either is."""
    removed, kept = 1 - np.clip(leakage, 0, 1), np.clip((accuracy - chance) / (1 - chance), 0, 1)
    return 2 * removed * kept / np.maximum(removed + kept, np.finfo(float).tiny)


def removal_stderr(leakage: Bunch, cross: Bunch) -> float:
    """Return the standard error of the score from those of its parts, to first order."""
    removed = float(np.clip(1 - leakage.score, 0, 1))
    kept = float(np.clip((cross.score - cross.chance) / (1 - cross.chance), 0, 1))
    total = max(removed + kept, np.finfo(float).tiny)
    by_leakage, by_kept = 2 * (kept / total) ** 2, 2 * (removed / total) ** 2
    return float(np.hypot(by_leakage * leakage.stderr, by_kept * cross.stderr / (1 - cross.chance)))


@without_unknown_types
def batch_removal_score(
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
    r"""Join batch leakage and cross-batch accuracy into one figure to tune by.

    .. math:: \frac{2\, r\, k}{r + k}, \qquad r = 1 - \mathrm{clip}(L), \qquad
              k = \mathrm{clip}\!\left(\frac{A - c}{1 - c}\right)

    where :math:`L` is :func:`batch_leakage`, :math:`A` is :func:`cross_batch_accuracy` with its chance :math:`c`, and
    clip bounds to [0, 1]. The definition is this package's own: the harmonic mean of batch removed, :math:`r`, and
    cell type kept, :math:`k`, as the F1 score is that of precision and recall.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    batch, cell_type : array-like of shape (n_cells,)
    probe, n_splits, n_repeats, n_components, probe_train, random_state, return_details
        As in :func:`batch_leakage`.

    Returns
    -------
    score : float in [0, 1]
        1: batch unreadable, type read perfectly on unseen batches. 0: the batch is fully readable, or the type is not
        readable at all. Features without content get 0 (in small samples a little more, as their accuracy scatters
        around chance). With ``return_details``, a Bunch instead: ``score``; ``std`` over repeats (NaN for one),
        ``repeats`` and ``stderr`` as in :func:`batch_leakage`; ``chance`` (0); ``leakage`` and ``cross_batch`` (their
        Bunches); ``removed`` and ``kept`` (r and k, averaged over repeats); ``probe``.

    Raises
    ------
    ValueError
        On bad input, and when either part cannot be measured: some cell type must be in two batches, and there must
        be two types.

    Notes
    -----
    *Why a harmonic mean.* Each part alone is easily had: features that are all noise leak nothing, and features that
    leak everything can keep the type. An average would pay half the prize for either, so that a search prefers a
    collapsed model (0.5) to one that keeps four fifths of the type and removes a tenth of the batch (0.45). The
    harmonic mean is never more than twice the smaller part (here 0 and 0.18), and equals both where they are equal.

    A model that leaks everything scores 0 whatever it keeps. Where all candidates of a search do (small networks, few
    epochs), tell them apart with a probe that reads less, ``probe="knn"``.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import batch_removal_score
    >>> batch, cell_type = np.repeat(["mon", "tue"], 100), np.tile(["a", "b"], 100)
    >>> features = np.random.default_rng(0).normal(size=(200, 5))
    >>> features[cell_type == "a", 0] += 9
    >>> batch_removal_score(features, batch, cell_type) > 0.8
    True
    >>> features[batch == "tue", 1] += 9
    >>> round(batch_removal_score(features, batch, cell_type), 1)
    0.0
    """
    common: dict[str, Any] = {
        "probe": probe,
        "n_repeats": n_repeats,
        "n_components": n_components,
        "probe_train": probe_train,
        "return_details": True,
    }
    seeds = make_generator(random_state).integers(2**31, size=2).tolist()
    leakage: Any = batch_leakage(features, batch, cell_type, n_splits=n_splits, random_state=seeds[0], **common)
    cross: Any = cross_batch_accuracy(features, batch, cell_type, random_state=seeds[1], **common)
    repeats = removal_score(leakage.repeats, cross.repeats, cross.chance)
    if not return_details:
        return float(repeats.mean())
    return Bunch(
        score=float(repeats.mean()),
        std=spread(repeats),
        stderr=removal_stderr(leakage, cross),
        repeats=repeats,
        chance=0.0,
        leakage=leakage,
        cross_batch=cross,
        removed=float(np.mean(1 - np.clip(leakage.repeats, 0, 1))),
        kept=float(np.mean(np.clip((cross.repeats - cross.chance) / (1 - cross.chance), 0, 1))),
        probe=probe,
    )
