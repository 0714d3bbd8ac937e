"""What a cell looks like, in numbers: mass, size, shape and texture of each image."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import binary_dilation, binary_fill_holes, gaussian_filter

from skbegan.metrics._checks import Array, is_finite

EXTRA = 'pip install "skbegan[measurements]"'
COLUMNS = ("total_phase", "area", "elongation", "solidity", "texture", "radial_moment_1", "radial_moment_2")
_SMOOTHING = 1.0  # pixels, standard deviation; what is segmented is the image after it
_LEVEL = 0.25  # of the cell's height above the background, where its outline is drawn
_MIN_CONTRAST = 4.0  # robust standard deviations of the background; the halves of pure noise differ by about 2.3
_MIN_CONTRAST_OF_COARSE = 1.5  # where the image is no white noise: a background full of neighbours deviates widely
_MIN_PIXELS = 9  # a smaller cell has no shape
_MIN_FREE = 0.2  # of the image, outside the cell, to lay a plane through


def cell_measurements(
    images: ArrayLike,
    pixel_size: float | None = None,
    *,
    refraction_increment: float = 0.19,
    wavelength: float = 0.532,
    unit: Literal["rad", "um"] | None = "rad",
    foreground: Literal["bright", "dark", "auto"] = "bright",
    background: Literal["plane", "median"] = "plane",
    masks: ArrayLike | None = None,
    texture_scale: float = 2.0,
    channel: int = 0,
) -> Any:
    r"""Measure mass, size, shape and texture of the one cell in each image.

    The cell is found by Otsu's threshold of the smoothed image (Otsu, IEEE Trans. Syst. Man Cybern. 9, 62, 1979), as
    the part that is largest, what lies near the centre counting for more, and its outline is drawn at a quarter of its
    height above the background (a watershed keeps neighbours apart). Neither changes if an instrument multiplies the
    image or adds a constant.

    Parameters
    ----------
    images : array-like of shape (n_cells, H, W) or (n_cells, H, W, C)
        Target images, as a rule quantitative phase; measured, predicted or true ones.
    pixel_size : float, default=None
        Side of a pixel in micrometres, in the object. None: lengths are in pixels, and there is no dry mass.
    refraction_increment : float, default=0.19
        By how much the refractive index rises with the concentration of dry matter, in micrometres cubed per picogram,
        which is the same number as in mL/g. 0.19 is the mean of the human proteins (0.190, at 589 nm; Zhao et al.,
        Biophys. J. 100, 2309, 2011); 0.18 to 0.21 are in use. Dry mass is inversely proportional to it.
    wavelength : float, default=0.532
        In vacuum, in micrometres; that of :func:`skbegan.datasets.make_cell_images`. **Give your instrument's own**:
        dry mass is proportional to it. Not used with ``unit="um"``.
    unit : {"rad", "um"} or None, default="rad"
        What the images hold: phase in radians, or the optical path difference in micrometres. None: anything else
        (fluorescence, a colour channel), of which there is no dry mass, and ``total_phase`` is the sum of whatever it
        is.
    foreground : {"bright", "dark", "auto"}, default="bright"
        Whether cells are brighter than the background, as in phase images. "dark" turns the images round. "auto" takes
        what more of the images' centres are, compared with their borders.
    background : {"plane", "median"}, default="plane"
        What is subtracted: a plane through the pixels outside the cell, since phase images are often tilted (their
        median where the cell leaves less than a fifth of the image free), or always the median.
    masks : array-like of bool of shape (n_cells, H, W), default=None
        True in the cell, where you have a segmentation of your own.
    texture_scale : float, default=2.0
        In pixels, whatever ``pixel_size``. Structure finer than this is texture.
    channel : int, default=0
        Of images with several.

    Returns
    -------
    table : pandas DataFrame of shape (n_cells, 7) or (n_cells, 8)
        A row for each image, in their order. An image in which no cell stands out (constant, noise only) gives NaN in
        all columns. ``table.attrs["units"]`` maps column to unit.

        ===================  =====================================================================================
        ``total_phase``      sum over the cell, above the background; rad um^2 (``unit="um"``: um^3); without
                             ``pixel_size`` rad times pixels
        ``dry_mass``         picograms; only with ``pixel_size`` and a ``unit``
        ``area``             um^2, or pixels
        ``elongation``       long over short axis of the ellipse with the same second moments; at least 1
        ``solidity``         share of the convex hull that is cell; at most 1
        ``texture``          standard deviation in the cell of what is finer than ``texture_scale`` (the image minus
                             its Gaussian mean within the cell), over the cell's mean; no unit
        ``radial_moment_1``  mean distance from the centre of mass, weighted by the phase, over the radius of the
                             circle of the cell's area: 2/3 for a flat disc, less where mass is in the middle
        ``radial_moment_2``  the same of the squared distance: 1/2 for a flat disc, 2/5 for a sphere
        ===================  =====================================================================================

    Raises
    ------
    ImportError
        Without scikit-image or pandas, the extra ``measurements``.
    ValueError
        On bad input.

    Notes
    -----
    *Dry mass.* With the phase :math:`\varphi` in radians, wavelength :math:`\lambda` and refraction increment
    :math:`\alpha`,

    .. math:: m = \frac{\lambda}{2\pi\alpha} \int \varphi \, dA ,

    and without :math:`\lambda / 2\pi` for an optical path difference (Barer, Nature 169, 366, 1952; Popescu et al.,
    Am. J. Physiol. Cell Physiol. 295, C538, 2008).

    *Stained or fluorescent cells.* Where one part outshines the rest, as a stained nucleus does, that part is what is
    found and measured. Cells that overlap at half their height are one; give ``masks`` where that happens.

    *Cost.* About 4 ms per image of 32 x 32 pixels on one core.

    *Accuracy.* In the example below the sphere has 186.7 pg and the ellipse 226.2 um^2 and axes of 2 : 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.metrics import cell_measurements
    >>> y, x = np.mgrid[-31.5:32, -31.5:32]
    >>> sphere = 2.0 * np.sqrt(np.maximum(0, 1 - (x**2 + y**2) / 20**2))
    >>> long = 1.0 * ((x / 24) ** 2 + (y / 12) ** 2 < 1)
    >>> table = cell_measurements([sphere, long], pixel_size=0.5)
    >>> table[["dry_mass", "area", "elongation", "radial_moment_2"]].round(1)
       dry_mass   area  elongation  radial_moment_2
    0     185.2  302.0         1.0              0.4
    1     101.2  227.0         2.0              0.6
    """
    array, outlines = _check(images, masks, channel)
    for name, value in (("refraction_increment", refraction_increment), ("wavelength", wavelength)):
        _check_positive(value, name)
    _check_positive(texture_scale, "texture_scale")
    if pixel_size is not None:
        _check_positive(pixel_size, "pixel_size")
    for name, choice, allowed in (
        ("unit", unit, ("rad", "um", None)),
        ("foreground", foreground, ("bright", "dark", "auto")),
        ("background", background, ("plane", "median")),
    ):
        if choice not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {choice!r}.")
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(f"cell_measurements needs pandas, which is not installed: {EXTRA}") from error
    found = measure(array, foreground, background, outlines, texture_scale)
    size = 1.0 if pixel_size is None else float(pixel_size)
    found["total_phase"] *= size**2
    found["area"] *= size**2
    square = "px" if pixel_size is None else "um^2"
    of_phase = {"rad": f"rad {square}", "um": "um^3" if pixel_size is not None else "um px", None: square}[unit]
    units = {name: "1" for name in COLUMNS} | {"total_phase": of_phase, "area": square}
    columns = list(COLUMNS)
    if pixel_size is not None and unit is not None:
        path = float(wavelength) / (2 * np.pi) if unit == "rad" else 1.0
        found["dry_mass"] = found["total_phase"] * path / float(refraction_increment)
        columns.insert(1, "dry_mass")
        units["dry_mass"] = "pg"
    table = pd.DataFrame({name: found[name] for name in columns})
    table.attrs["units"] = {name: units[name] for name in columns}
    return table


def measure(
    images: Array,
    foreground: str = "bright",
    background: str = "plane",
    masks: Array | None = None,
    texture_scale: float = 2.0,
) -> dict[str, Array]:
    """Return column -> one number per image of shape (n, H, W), in pixels; needs scikit-image, but not pandas."""
    try:
        import skimage.measure  # noqa: F401  (here, to fail before the work)
    except ImportError as error:
        raise ImportError(f"Cell measurements need scikit-image, which is not installed: {EXTRA}") from error
    sign = -1.0 if foreground == "dark" or (foreground == "auto" and _mostly_dark(images)) else 1.0
    rows = np.full((len(images), len(COLUMNS)), np.nan)
    for k, image in enumerate(images):
        given = None if masks is None else masks[k]
        cell = _find(sign * image.astype(np.float64), background, given)
        if cell is not None:
            rows[k] = _describe(*cell, texture_scale)
    return dict(zip(COLUMNS, rows.T.copy(), strict=True))


# ---------------------------------------------------------------------------------------------------------- checks
def _check(images: ArrayLike, masks: ArrayLike | None, channel: int) -> tuple[Array, Array | None]:
    array = np.asarray(images)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"images must be of shape (n, H, W) or (n, H, W, C), got {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"images must hold real numbers, got dtype {array.dtype}.")
    if array.ndim == 4:
        if isinstance(channel, bool) or not isinstance(channel, int | np.integer) or not 0 <= channel < array.shape[3]:
            raise ValueError(
                f"channel must be from 0 to {array.shape[3] - 1} for images with so many, got {channel!r}."
            )
        array = array[..., channel]
    if not is_finite(array):
        raise ValueError("images holds NaN or infinity. Drop or repair these cells before they are measured.")
    if masks is None:
        return array, None
    outlines = np.asarray(masks)
    if outlines.dtype != np.bool_ or outlines.shape != array.shape:
        raise ValueError(f"masks must be bool of shape {array.shape}, got {outlines.dtype} of shape {outlines.shape}.")
    return array, outlines


def _check_positive(value: float, name: str) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not 0 < value < np.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}.")


# ---------------------------------------------------------------------------------------------------- segmentation
def _mostly_dark(images: Array) -> bool:
    """Say whether the centres of most images are darker than their borders."""
    h, w = images.shape[1:]
    centre = images[:, h // 3 : h - h // 3, w // 3 : w - w // 3].reshape(len(images), -1)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    return bool(np.mean(np.median(centre, axis=1) < np.median(border, axis=1)) > 0.5)


def _find(image: Array, background: str, mask: Array | None) -> tuple[Array, Array] | None:
    """Return the image above its background and the cell's mask, or None where there is no cell."""
    if mask is None:
        if np.ptp(image) <= 1e-6 * np.abs(image).max():  # what varies is rounding
            return None
        if background == "plane":
            frame = np.ones(image.shape, bool)
            frame[1:-1, 1:-1] = False
            image = image - _plane(image, frame)
        mask = _segment(image)
        if mask is not None and background == "plane" and not mask.all():
            mask = _segment(image - _background(image, mask, "plane"))
    if mask is None or mask.sum() < _MIN_PIXELS or mask.all():
        return None
    return image - _background(image, mask, background), mask


def _segment(image: Array) -> Array | None:
    """Return the mask of the cell, None where nothing stands out."""
    from skimage.filters import threshold_otsu
    from skimage.measure import label
    from skimage.segmentation import watershed

    smooth = gaussian_filter(image, _SMOOTHING)
    threshold = threshold_otsu(smooth)
    high = smooth > threshold
    if not high.any() or high.all():
        return None
    ground, noise = _centre_and_noise(smooth[~high])
    height = float(np.median(smooth[high])) - ground
    if height < _MIN_CONTRAST * noise and not (_is_coarse(image, smooth) and height >= _MIN_CONTRAST_OF_COARSE * noise):
        return None
    cores = label(high, connectivity=1)
    chosen = int(np.argmax(np.bincount(cores.ravel(), _nearness(image.shape).ravel())[1:])) + 1
    low = smooth > min(max(ground + _LEVEL * height, ground + 3 * noise), threshold)
    sharp = gaussian_filter(image, _SMOOTHING / 2)  # smoothing widens steep edges, so less of it where noise allows
    sharp_ground, sharp_noise = _centre_and_noise(sharp[~high])
    if 3 * sharp_noise <= _LEVEL * height:
        low = sharp > sharp_ground + _LEVEL * height
    cells = watershed(-smooth, cores, mask=low | high)
    return np.asarray(binary_fill_holes((cells == chosen) & low))


def _is_coarse(image: Array, smooth: Array) -> bool:
    """Say whether more smoothing leaves most of the variance; of white noise it leaves a quarter."""
    return bool(gaussian_filter(image, 2 * _SMOOTHING).var() > 0.5 * smooth.var())


def _centre_and_noise(values: Array) -> tuple[float, float]:
    """Return median and standard deviation, the latter from the median deviation."""
    centre = float(np.median(values))
    return centre, 1.4826 * float(np.median(np.abs(values - centre)))


def _nearness(shape: tuple[int, ...]) -> Array:
    """Return the weight of each pixel: 1 in the centre, 0.1 in a corner."""
    y, x = (np.linspace(-1, 1, n) for n in shape)
    return np.asarray(np.exp(-1.15 * (y[:, None] ** 2 + x**2)))


def _background(image: Array, mask: Array, kind: str) -> Any:
    """Return the level, or the plane, of the pixels well outside the mask, which must leave some."""
    outside = ~binary_dilation(mask, iterations=2)
    if outside.sum() < _MIN_PIXELS:
        outside = ~mask
    if kind == "plane" and outside.mean() >= _MIN_FREE:
        return _plane(image, outside)
    return float(np.median(image[outside]))


def _plane(image: Array, where: Array) -> Array:
    """Return the plane through some pixels, those far off (a neighbour) left out."""
    y, x = (np.linspace(-1, 1, n) for n in image.shape)
    terms = np.stack(np.broadcast_arrays(1.0, y[:, None], x), axis=-1)
    known, values = terms[where], image[where]
    kept = np.ones(len(values), bool)
    for _ in range(3):
        weights = np.linalg.pinv(known[kept].T @ known[kept], hermitian=True) @ (known[kept].T @ values[kept])
        off = values - known @ weights
        centre, noise = _centre_and_noise(off)
        kept = np.abs(off - centre) <= 3 * noise + 1e-12
        if kept.sum() < _MIN_PIXELS:
            break
    return np.asarray(terms @ weights)


# ---------------------------------------------------------------------------------------------------- description
def _describe(image: Array, mask: Array, texture_scale: float) -> tuple[float, ...]:
    """Return what `COLUMNS` name."""
    from skimage.measure import regionprops

    (region,) = regionprops(mask.astype(np.uint8))
    short = float(region.axis_minor_length)
    elongation = float(region.axis_major_length) / short if short > 0 else np.nan
    inside = image[mask]
    total, area = float(inside.sum()), float(mask.sum())
    y, x = np.nonzero(mask)
    texture = moment_1 = moment_2 = np.nan
    if total > 0:
        weight = gaussian_filter(mask.astype(float), texture_scale)
        mean = gaussian_filter(np.where(mask, image, 0.0), texture_scale)[mask] / weight[mask]
        texture = float(np.std(inside - mean)) / (total / area)
        share = inside / total
        squared = ((y - share @ y) ** 2 + (x - share @ x) ** 2) / (area / np.pi)
        moment_1, moment_2 = float(share @ np.sqrt(squared)), float(share @ squared)
    return total, area, elongation, float(region.solidity), texture, moment_1, moment_2
