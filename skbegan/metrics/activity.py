"""Whether features are alive, and how many of them say something of their own."""

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


def effective_rank(features: ArrayLike, *, floor: float = 0.03, return_details: bool = False) -> float | Bunch:
    r"""Return how many independent numbers the features hold: the effective rank of their correlation matrix.

    With :math:`p_i` the eigenvalues of the correlation matrix over their sum,

    .. math:: \exp\left(-\sum_i p_i \ln p_i\right).

    After Roy & Vetterli, EUSIPCO 2007, who take singular values. Other than the ``effective_dimensions`` of
    :func:`active_features` it does not depend on the scale of each feature: a feature that hardly varies counts like
    any other, as it does for a probe on standardised features.

    Parameters
    ----------
    features : array-like of shape (n_cells, n_features)
    floor : float, default=0.03
        A direction counts if it has at least this share of the variance of an average direction, i.e. an eigenvalue of
        at least this size.
    return_details : bool, default=False

    Returns
    -------
    rank : float
        From 1 (all features say the same) to n_features (all vary independently), and at most n_cells - 1; 0 if nothing
        varies. With ``return_details``, a Bunch instead: ``score``; ``n_directions``, above the floor; ``floor``;
        ``n_features``; ``n_alive``, those that vary by more than rounding; ``shares``, the :math:`p_i` from the largest
        down.

    Raises
    ------
    ValueError
        On bad input.

    Notes
    -----
    Of few cells the rank is underrated, for their sample correlations are not zero where the true ones are: 200
    independent features of 400 cells give 157, of 4000 cells 195. Compare at equal numbers of cells.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import effective_rank
    >>> two = np.random.default_rng(0).normal(size=(1000, 2))
    >>> round(effective_rank(two @ [[1, 1, 1, 0, 0], [0, 0, 0, 1, 2]]), 2)
    1.96
    """
    X = check_features(features)
    if not 0 <= floor < np.inf:
        raise ValueError(f"floor must be 0 or a positive number, got {floor!r}.")
    mean, std = X.mean(axis=0), X.std(axis=0)
    alive = (std > MIN_STD_TO_MEAN * np.abs(mean)) & (std > 1e-12 * std.max())
    shares, n_directions = np.zeros(0), 0
    if alive.any():
        scaled = (X[:, alive] - mean[alive]) / std[alive] / np.sqrt(len(X))
        variance = np.linalg.eigvalsh(scaled.T @ scaled if scaled.shape[1] <= len(X) else scaled @ scaled.T)
        variance = variance[variance > 1e-12 * variance.max()][::-1]
        n_directions = int((variance >= floor).sum())
        shares = variance / variance.sum()
    rank = float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0
    if not return_details:
        return rank
    return Bunch(
        score=rank,
        n_directions=n_directions,
        floor=float(floor),
        n_features=X.shape[1],
        n_alive=int(alive.sum()),
        shares=shares,
    )
