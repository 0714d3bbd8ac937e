"""Whether features are alive."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch

from skbegan.metrics._checks import check_features
from skbegan.metrics.probes import MIN_STD_TO_MEAN


def active_features(
    features: ArrayLike, *, min_relative_std: float = 0.01, return_details: bool = False
) -> float | Bunch:
    """Return the share of features that vary from cell to cell; batch removal is easy for a model that says nothing.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    min_relative_std : float, default=0.01
        A feature counts if its standard deviation is more than this share of the largest one.
    return_details : bool, default=False

    Returns
    -------
    share : float in [0, 1]
        0 if nothing varies. With ``return_details``, a Bunch instead: ``score``; ``n_active``; ``n_features``;
        ``effective_dimensions``, the exponential of the entropy of the variance along the principal axes, from 1 (all
        features say the same) to n_features (all vary alike and independently); 0 if nothing varies. After Roy &
        Vetterli, EUSIPCO 2007, who take the entropy of the singular values; that of the variance is smaller and
        depends less on noise.

    Raises
    ------
    ValueError
        On bad input.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import active_features
    >>> features = np.random.default_rng(0).normal(size=(100, 4))
    >>> features[:, 3] = 1.0
    >>> active_features(features)
    0.75
    """
    X = check_features(features)
    if not 0 <= min_relative_std < 1:
        raise ValueError(f"min_relative_std must be at least 0 and below 1, got {min_relative_std}.")
    std = X.std(axis=0)
    alive = std > MIN_STD_TO_MEAN * np.abs(X.mean(axis=0))  # else rounding is all that varies
    n_active = int((alive & (std > min_relative_std * std.max())).sum())
    if not return_details:
        return n_active / X.shape[1]
    dimensions = 0.0
    if n_active:
        kept = X[:, alive] - X[:, alive].mean(axis=0)
        variance = np.linalg.eigvalsh(kept.T @ kept if kept.shape[1] <= len(kept) else kept @ kept.T).clip(0)
        share = variance[variance > 0] / variance.sum()
        dimensions = float(np.exp(-(share * np.log(share)).sum()))
    return Bunch(score=n_active / X.shape[1], n_active=n_active, n_features=X.shape[1], effective_dimensions=dimensions)
