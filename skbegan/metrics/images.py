"""How true predicted images are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter
from sklearn.utils import Bunch

from skbegan.labels.tables import rows_of
from skbegan.metrics._checks import Array, check_labels, known_types

_CHUNK_PIXELS = 2**21  # image_error works on this many pixels at a time (16 MiB per float64 temporary)


def _ssim(x: Array, y: Array, data_range: float) -> Array:
    """Structural similarity of (n, H, W, C) stacks, one value per image."""

    def blur(a: Array) -> Array:
        return gaussian_filter(a, (0, 1.5, 1.5, 0), truncate=3.5)  # radius 5: the 11 x 11 window

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    ssim = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    h, w = min(5, (x.shape[1] - 1) // 2), min(5, (x.shape[2] - 1) // 2)  # only where the window is inside the image
    return ssim[:, h : x.shape[1] - h, w : x.shape[2] - w].mean(axis=(1, 2, 3))


def explained_share(predicted: Array, target: Array) -> float:
    """Return the coefficient of determination of all pixels together, computed a part at a time in float64.

    Raises
    ------
    ValueError
        For constant targets.
    """
    step = max(1, _CHUNK_PIXELS // int(np.prod(target.shape[1:])))
    parts = [slice(start, start + step) for start in range(0, len(target), step)]
    if min(target[rows].min() for rows in parts) == max(target[rows].max() for rows in parts):
        raise ValueError("the target images are constant, so that there is no variation to predict")
    mean = sum(float(target[rows].sum(dtype=np.float64)) for rows in parts) / target.size
    missed = variation = 0.0
    for rows in parts:
        true = target[rows].astype(np.float64)
        missed += float(np.square(predicted[rows] - true).sum())
        variation += float(np.square(true - mean).sum())
    return 1.0 - missed / variation


def image_error(
    predicted: ArrayLike,
    target: ArrayLike,
    *,
    batch: ArrayLike | None = None,
    cell_type: ArrayLike | None = None,
    data_range: float | None = None,
) -> Bunch:
    """Compare predicted images with measured ones; each figure is computed per image and averaged.

    Parameters
    ----------
    predicted, target : array-like of shape (n_cells, H, W) or (n_cells, H, W, C)
        Of equal shape and units. Read-only memory maps are fine; memory use does not grow with ``n_cells``.
    batch, cell_type : array-like of shape (n_cells,), default=None
        If given, the same figures for each batch and each type.
    data_range : float, default=None
        The span of possible values, for PSNR and SSIM. None: largest minus smallest value in ``target``.

    Returns
    -------
    error : Bunch
        ``mae``, ``rmse``: in the target's units, >= 0, 0 is best. ``psnr``: 20 log10(data_range / rmse) in dB, infinite
        for equal images. ``ssim``: in [-1, 1], 1 for equal images; Wang et al., IEEE Trans. Image Process. 13, 600
        (2004): Gaussian 11 x 11 window of sigma 1.5, K1 = 0.01, K2 = 0.03, where the window fits into the image; mean
        over channels. ``pearson``: correlation over the pixels of an image, in [-1, 1]; images that are constant have
        none and are left out (NaN if that leaves none). ``data_range``, ``n_cells``, ``per_image`` (name -> array of
        shape (n_cells,)), ``stderr`` (name -> standard error of the mean over images) and, if asked for, ``per_batch``
        and ``per_type`` (label -> Bunch of the means and n_cells).

    Raises
    ------
    ValueError
        If shapes differ, values are not finite, or ``data_range`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import image_error
    >>> target = np.random.default_rng(0).normal(size=(10, 16, 16))
    >>> error = image_error(target + 0.5, target)
    >>> round(error.mae, 3), round(error.pearson, 3)
    (0.5, 1.0)
    """
    p, y = np.asarray(predicted), np.asarray(target)
    if p.shape != y.shape or y.ndim not in (3, 4) or 0 in y.shape:
        raise ValueError(
            f"predicted and target must be images of one shape, (n, H, W) or (n, H, W, C); got {p.shape} and {y.shape}."
        )
    for name, array in (("predicted", p), ("target", y)):
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}.")
    groups = {} if batch is None else {"per_batch": check_labels(batch, "batch", len(y))}
    if cell_type is not None:
        known = known_types(cell_type)
        if known is None:
            groups["per_type"] = check_labels(cell_type, "cell_type", len(y))
        else:
            codes = np.full(len(known), -1)
            types, codes[known] = check_labels(rows_of(cell_type, known), "cell_type", int(known.sum()))
            groups["per_type"] = types, codes
            if len(codes) != len(y):
                raise ValueError(f"cell_type has {len(codes)} labels for {len(y)} images.")
    if data_range is None:
        data_range = float(y.max()) - float(y.min()) or 1.0  # all-constant targets: any span does
    if not (np.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range must be positive and finite, got {data_range} (does target hold NaN?).")

    each = {name: np.empty(len(y)) for name in ("mae", "rmse", "psnr", "ssim", "pearson")}
    step = max(1, _CHUNK_PIXELS // int(np.prod(y.shape[1:])))
    for start in range(0, len(y), step):
        rows = slice(start, start + step)
        a, b = p[rows].astype(np.float64), y[rows].astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError(f"NaN or infinity in images {start} to {start + len(a) - 1}.")
        if a.ndim == 3:
            a, b = a[..., None], b[..., None]
        each["ssim"][rows] = _ssim(a, b, data_range)
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        each["mae"][rows] = np.abs(a - b).mean(axis=1)
        each["rmse"][rows] = np.sqrt(((a - b) ** 2).mean(axis=1))
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        na, nb = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        tiny = 1e-12 * data_range * np.sqrt(a.shape[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.clip((a * b).sum(axis=1) / (na * nb), -1, 1)
        each["pearson"][rows] = np.where((na > tiny) & (nb > tiny), r, np.nan)
    with np.errstate(divide="ignore"):
        each["psnr"] = 20 * np.log10(data_range / each["rmse"])

    def means(rows: Any) -> Bunch:
        defined = each["pearson"][rows][~np.isnan(each["pearson"][rows])]
        pearson = float(defined.mean()) if len(defined) else float("nan")
        return Bunch(**{k: float(v[rows].mean()) for k, v in each.items() if k != "pearson"}, pearson=pearson)

    stderr = {}
    for name, values in each.items():
        values = values[np.isfinite(values)]
        stderr[name] = float(values.std() / np.sqrt(len(values))) if len(values) else float("nan")
    result = Bunch(**means(slice(None)), data_range=data_range, n_cells=len(y), per_image=each, stderr=stderr)
    for name, (values, codes) in groups.items():
        result[name] = {v: Bunch(**means(codes == k), n_cells=int((codes == k).sum())) for k, v in enumerate(values)}
    return result
