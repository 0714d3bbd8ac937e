"""Simulated paired cells: brightfield and quantitative phase of one cell, through one imperfect instrument per batch.

Units are micrometres. A random seed is split into streams: other numbers of cells or pixels change no instrument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from sklearn.utils import Bunch, check_random_state

Array = NDArray[Any]

# Traits that make a cell type: (lowest, highest) mean of a type, scatter of single cells as a fraction of that range,
# and bounds no cell leaves. The scatter sets how much types overlap. A measured HL60 cell in suspension (radius 7 um,
# 2.7 rad at 0.647 um) has a mean index of 1.355; nuclei of such cells are no denser than the cytoplasm (Schuermann et
# al., J. Biophotonics 2016), so the nuclear contrast straddles zero.
_TRAITS = {
    "radius": (5.6, 7.8, 0.13, (4.5, 9.0)),  # um, geometric mean of the in-plane semi-axes
    "cell_index": (1.348, 1.356, 0.13, (1.345, 1.362)),
    "nucleus_fraction": (0.45, 0.72, 0.155, (0.30, 0.80)),  # nuclear over cell radius
    "nucleus_contrast": (-0.005, 0.004, 0.155, (-0.008, 0.008)),  # index of the nucleus minus that of the cytoplasm
    "n_granules": (2.0, 20.0, 0.12, (0.0, 28.0)),
    "granule_radius": (0.40, 0.75, 0.12, (0.30, 0.95)),  # um
    "elongation": (1.04, 1.35, 0.155, (1.0, 1.6)),  # long over short in-plane axis
}
_GRANULE_CONTRAST = 0.03  # index of granules (lipid, lysosomes) minus that of the cytoplasm
_GRANULE_RESOLUTION = 0.3  # um, standard deviation; keeps granules wide enough for the finest grid needed
_EDGE_WIDTH = 0.4  # um, over which the cell boundary fades; adds 2 % to the volume of a cell, nothing to its centre
_ABSORPTION = 0.03  # nepers of amplitude lost per radian of phase: cells are almost transparent

# Instruments: reference value, spread over the batches at batch_strength 1, and how the spread acts. "shift" moves both
# ways, "ratio" multiplies or divides (never reaches zero), "loss" only makes things worse.
_OPTICS = {
    "defocus": (5.0, 3.5, "shift"),  # um; never in focus at batch_strength 1, where phase objects are invisible
    "blur": (0.4, 0.8, "loss"),  # um, standard deviation; partial coherence, camera, motion
    "gain": (1.0, 0.2, "ratio"),
    "offset": (0.0, 0.06, "shift"),
    "gradient_x": (0.0, 0.12, "shift"),  # log intensity from the centre to the edge of the field
    "gradient_y": (0.0, 0.12, "shift"),
    "vignetting": (0.0, 0.12, "loss"),  # log intensity lost at the middle of an edge of the field
    "shot_noise": (0.0, 0.03, "loss"),  # standard deviation at intensity 1, grows with the root of the intensity
    "read_noise": (0.0, 0.02, "loss"),
    "magnification": (1.0, 0.03, "ratio"),
    "qpi_gain": (1.0, 0.12, "ratio"),
    "qpi_offset": (0.0, 0.20, "shift"),  # rad
    "qpi_tilt_x": (0.0, 0.20, "shift"),  # rad from the centre to the edge of the field
    "qpi_tilt_y": (0.0, 0.20, "shift"),
    "qpi_blur": (0.4, 0.8, "loss"),  # um, standard deviation
    "qpi_noise": (0.0, 0.04, "loss"),  # rad
}

_FINEST_NEEDED = 0.75  # um; coarser images are computed on a grid at least this fine and binned, as a camera does
_CHUNK_PIXELS = 2**18  # pixels in flight: about 1 MiB per array, which stays in the processor's cache
_SMALLEST_FIELD = 24.0  # um; the largest cell, elongated and off-centre, still fits


def make_cell_images(
    n_cells: int = 1000,
    n_cell_types: int = 4,
    n_batches: int = 4,
    image_size: int = 64,
    *,
    batches_per_type: int | None = None,
    design: Any = None,
    batch_strength: float = 1.0,
    field_of_view: float = 45.0,
    wavelength: float = 0.532,
    medium_index: float = 1.335,
    numerical_aperture: float = 0.4,
    cells_random_state: Any = None,
    random_state: Any = None,
) -> Bunch:
    """Simulate paired brightfield and quantitative phase images of single cells, with batch effects and the truth.

    Each cell is an ellipsoid with a nucleus and granules; its phase is ``2 * pi / wavelength`` times the integral of
    the refractive index difference to the medium along the light path. Brightfield is the intensity of the field behind
    the cell, propagated (angular spectrum) to the focus of the instrument. Each batch is one instrument with its own
    focus, blur, illumination, noise, magnification and phase errors; cells of a type are drawn alike for all batches.

    Parameters
    ----------
    n_cells : int, default=1000
        Number of cells, spread evenly over the pairs of cell type and batch in the design, then shuffled.
    n_cell_types : int, default=4
        Number of cell types. They differ in size, index, nucleus, granules and elongation, and overlap.
    n_batches : int, default=4
        Number of batches.
    image_size : int, default=64
        Height and width of the images in pixels, at least 16. The same seed gives the same cells at any size.
    batches_per_type : int, default=None
        Number of batches each cell type is in: consecutive ones, the types starting one after the other around the
        circle of batches, so the design is balanced, and connected if possible. None: every type in every batch.
    design : array-like of bool of shape (n_cell_types, n_batches), default=None
        Which cell type is in which batch, instead of `batches_per_type`.
    batch_strength : float, default=1.0
        Scales all differences between a batch and the reference instrument, noise included, up to 10. At 0, `bf`
        equals `clean_bf` and `qpi` equals `clean_qpi` bit for bit.
    field_of_view : float, default=45.0
        Side of the image in micrometres, from 24 to 500.
    wavelength : float, default=0.532
        Wavelength in vacuum, in micrometres.
    medium_index : float, default=1.335
        Refractive index of the medium; 1.335 is phosphate-buffered saline. Cells have 1.345 to 1.362, as suspended
        cells do: the lower part of the 1.35 to 1.39 of the literature.
    numerical_aperture : float, default=0.4
        Numerical aperture of the brightfield objective: the band limit of the field.
    cells_random_state : int, RandomState instance or None, default=None
        Second seed, for the cells and the noise only: the same `random_state` with another one gives new cells of the
        same types on the same instruments (training and audit sets). None derives it from `random_state`.
    random_state : int, RandomState instance or None, default=None
        Seed of the cell types, the instruments and, without `cells_random_state`, the cells. Pass an int for
        reproducible images. The global random state is neither read nor changed: None is another seed each time.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        bf : float32 ndarray of shape (n_cells, image_size, image_size)
            Brightfield intensity, about 1 where there is no cell.
        qpi : float32 ndarray of shape (n_cells, image_size, image_size)
            Quantitative phase in radians.
        batch, cell_type : str ndarray of shape (n_cells,)
            ``'batch0'``, ``'batch1'``, ... and ``'type0'``, ... (``'batch00'``, ... if there are more than ten).
        clean_bf, clean_qpi : float32 ndarray of shape (n_cells, image_size, image_size)
            The same cells on the reference instrument: nominal magnification, no noise, a defocus of 5 micrometres.
            A batch that magnifies differs from them also in the size of the cell.
        design : bool ndarray of shape (n_cell_types, n_batches)
        batch_optics : dict of str to ndarray of shape (n_batches,)
            The instruments.
        type_morphology : dict of str to ndarray of shape (n_cell_types,)
            The mean of each trait of each cell type; lengths in micrometres.
        pixel_size : float
            Micrometres per pixel at nominal magnification.
        DESCR : str

    Notes
    -----
    Instruments depend on `random_state` and `n_batches` only, cell types on `random_state` and `n_cell_types` only.
    Images coarser than 0.75 micrometres per pixel are computed on a finer grid and binned. Noise is per pixel, whatever
    its size. A linear classifier on principal components of `clean_qpi` gets about 3 cells in 4 right among 7 types.

    Examples
    --------
    >>> from skbegan.datasets import make_cell_images
    >>> data = make_cell_images(60, n_cell_types=3, n_batches=4, image_size=32, batches_per_type=2, random_state=0)
    >>> data.bf.shape, data.qpi.dtype
    ((60, 32, 32), dtype('float32'))
    >>> data.design.astype(int)
    array([[1, 1, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 1, 1]])

    New cells of the same types on the same instruments:

    >>> audit = make_cell_images(
    ...     30, n_cell_types=3, n_batches=4, image_size=32, batches_per_type=2, random_state=0, cells_random_state=1
    ... )
    >>> bool((audit.batch_optics["defocus"] == data.batch_optics["defocus"]).all())
    True
    """
    n_cells = _check("n_cells", n_cells, 1, kind=Integral)
    n_cell_types = _check("n_cell_types", n_cell_types, 1, kind=Integral)
    n_batches = _check("n_batches", n_batches, 1, kind=Integral)
    image_size = _check("image_size", image_size, 16, kind=Integral)
    batch_strength = _check("batch_strength", batch_strength, 0.0, 10.0)
    field_of_view = _check("field_of_view", field_of_view, _SMALLEST_FIELD, 500.0)
    wavelength = _check("wavelength", wavelength, 0.1, 5.0)
    medium_index = _check("medium_index", medium_index, 1.0, 1.6)
    numerical_aperture = _check("numerical_aperture", numerical_aperture, 0.05, medium_index)
    present = _make_design(n_cell_types, n_batches, batches_per_type, design)
    if n_cells < present.sum():
        raise ValueError(
            f"n_cells={n_cells} is too few: the design has {present.sum()} pairs of cell type and batch, and each "
            "needs a cell. Ask for more cells or for fewer pairs (batches_per_type)."
        )

    seed = _root_seed(random_state)  # the numbers below keep the streams apart, also when both seeds are equal
    cells_seed = seed if cells_random_state is None else _root_seed(cells_random_state)
    morphology = _draw_types(n_cell_types, np.random.default_rng([0, seed]))
    optics = _draw_optics(n_batches, batch_strength, np.random.default_rng([1, seed]))
    cells_rng, noise_rng = np.random.default_rng([2, cells_seed]).spawn(2)

    type_codes, batch_codes = _assign(present, n_cells, cells_rng)
    cells = _draw_cells(morphology, type_codes, cells_rng)
    bench = _Bench(image_size, field_of_view, wavelength, medium_index, numerical_aperture)
    return Bunch(
        **_photograph(cells, batch_codes, optics, bench, noise_rng),
        batch=_labels("batch", n_batches)[batch_codes],
        cell_type=_labels("type", n_cell_types)[type_codes],
        design=present,
        batch_optics=optics,
        type_morphology=morphology,
        pixel_size=field_of_view / image_size,
        DESCR=f"{n_cells} simulated cells, {n_cell_types} types, {n_batches} batches of strength {batch_strength:g}",
    )


def _make_design(n_cell_types: int, n_batches: int, batches_per_type: Any, design: Any) -> Array:
    """Boolean (n_cell_types, n_batches) table of who is where, checked."""
    if design is not None:
        if batches_per_type is not None:
            raise ValueError("Both design and batches_per_type were given. Pass one of them.")
        return _check_design(design, (n_cell_types, n_batches))
    if batches_per_type is None:
        return np.ones((n_cell_types, n_batches), dtype=bool)
    per_type = _check("batches_per_type", batches_per_type, 1, kind=Integral)
    if per_type > n_batches:
        raise ValueError(f"batches_per_type={per_type} is more than n_batches={n_batches}. Lower it or add batches.")
    if per_type * n_cell_types < n_batches:
        raise ValueError(
            f"batches_per_type={per_type} with n_cell_types={n_cell_types} fills at most {per_type * n_cell_types} of "
            f"n_batches={n_batches} batches, so some would hold no cell. Raise batches_per_type to at least "
            f"{math.ceil(n_batches / n_cell_types)} or lower n_batches."
        )
    # Windows of consecutive batches whose starts are spread evenly over the circle: batches then differ by at most one
    # type, and neighbouring windows overlap wherever there are pairs enough to connect the design.
    starts = np.arange(n_cell_types) * n_batches // n_cell_types
    present = np.zeros((n_cell_types, n_batches), dtype=bool)
    np.put_along_axis(present, (starts[:, None] + np.arange(per_type)) % n_batches, True, axis=1)
    return present


def _check_design(design: Any, shape: tuple[int, int]) -> Array:
    table = np.asarray(design)
    if table.shape != shape:
        raise ValueError(f"design must have the shape (n_cell_types, n_batches) = {shape}; its shape is {table.shape}.")
    if table.dtype != bool and not (table.dtype.kind in "iu" and np.isin(table, (0, 1)).all()):
        raise ValueError("design must be boolean (or hold only the integers 0 and 1): True where a type is in a batch.")
    present = table.astype(bool)
    for axis, name in ((1, "cell type"), (0, "batch")):
        empty = np.flatnonzero(~present.any(axis=axis))
        if empty.size:
            raise ValueError(f"design leaves {name} {empty.tolist()} empty. Give each at least one True.")
    return present


def _assign(present: Array, n_cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Type and batch code of each cell; group sizes differ by at most one."""
    groups = np.argwhere(present)
    order = rng.permutation(len(groups))  # which groups get the cells that are left over
    member = rng.permutation(np.resize(order, n_cells))
    return groups[member, 0], groups[member, 1]


def _labels(prefix: str, count: int) -> Array:
    return np.array([f"{prefix}{i:0{len(str(count - 1))}d}" for i in range(count)])


def _root_seed(random_state: Any) -> int:
    """One integer, from which all streams are made with NumPy's Generator (fast, and float32 throughout)."""
    # scikit-learn takes the global generator for None, which would read and change it.
    rng = np.random.RandomState() if random_state is None else check_random_state(random_state)
    return int(rng.randint(np.iinfo(np.int32).max))


def _spread(count: int, n_draws: int, rng: np.random.Generator) -> Array:
    """`count` well separated points in [-1, 1] for each of `n_draws` quantities, in independent random order.

    A Latin hypercube: independent draws would often put two batches at nearly the same place.
    """
    levels = rng.permuted(np.tile(np.arange(count), (n_draws, 1)), axis=1)
    return 2.0 * (levels + 0.5 + rng.uniform(-0.3, 0.3, levels.shape)) / count - 1.0


def _draw_types(n_cell_types: int, rng: np.random.Generator) -> dict[str, Array]:
    # The best separated of some draws, by the first four traits (those that a linear look at the phase can tell apart):
    # a single draw may put two types side by side.
    draws = [_spread(n_cell_types, len(_TRAITS), rng) for _ in range(30)]
    best = max(draws, key=lambda draw: pdist(draw[:4].T).min(initial=np.inf))
    return {
        name: low + (high - low) * (0.5 + 0.5 * place)
        for (name, (low, high, _, _)), place in zip(_TRAITS.items(), best, strict=True)
    }


def _draw_optics(n_batches: int, strength: float, rng: np.random.Generator) -> dict[str, Array]:
    places = _spread(n_batches, len(_OPTICS), rng)
    optics = {}
    for (name, (reference, spread, how)), place in zip(_OPTICS.items(), places, strict=True):
        moved = strength * spread * (0.5 + 0.5 * place if how == "loss" else place)
        optics[name] = reference * np.exp(moved) if how == "ratio" else reference + moved
    return optics


class _Cells(NamedTuple):
    """Geometry in um and radians, one row per cell. The ellipsoids' columns: x, y, long, short, angle, axial."""

    body: Array
    nucleus: Array
    body_index: Array
    nucleus_contrast: Array
    granule_x: Array  # (n_cells, most granules)
    granule_y: Array
    granule_radius: Array  # 0 where a cell has fewer granules than the most


def _draw_cells(morphology: Mapping[str, Array], types: Array, rng: np.random.Generator) -> _Cells:
    n = len(types)
    trait = {
        name: np.clip(morphology[name][types] + scatter * (high - low) * rng.standard_normal(n), *bounds)
        for name, (low, high, scatter, bounds) in _TRAITS.items()
    }
    stretch = np.sqrt(trait["elongation"])
    x, y = np.clip(rng.normal(0.0, 0.8, (2, n)), -2.0, 2.0)
    axial = trait["radius"] * np.clip(rng.normal(0.9, 0.04, n), 0.75, 1.0)
    angle = rng.uniform(0.0, np.pi, n)
    body = np.stack([x, y, trait["radius"] * stretch, trait["radius"] / stretch, angle, axial], axis=1)
    nucleus = _draw_nuclei(body, trait["nucleus_fraction"], rng)
    granules = _draw_granules(body, trait["n_granules"], trait["granule_radius"], rng)
    return _Cells(body, nucleus, trait["cell_index"], trait["nucleus_contrast"], *granules)


def _draw_nuclei(body: Array, fraction: Array, rng: np.random.Generator) -> Array:
    x, y, long, short, angle, axial = body.T
    away = 0.8 * (1.0 - fraction) * short * np.sqrt(rng.uniform(0.0, 1.0, len(body)))  # stays inside the cell
    direction = rng.uniform(0.0, 2.0 * np.pi, len(body))
    stretch = np.sqrt(rng.uniform(1.0, 1.2, len(body)))
    radius = fraction * np.sqrt(long * short)
    turned = angle + rng.normal(0.0, 0.3, len(body))  # nuclei follow the cell, loosely
    place = x + away * np.cos(direction), y + away * np.sin(direction)
    return np.stack([*place, radius * stretch, radius / stretch, turned, fraction * axial], axis=1)


def _draw_granules(body: Array, count: Array, size: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Centres uniform in the volume of the cell, projected; sizes scatter within a cell."""
    most = int(_TRAITS["n_granules"][3][1])
    points = rng.standard_normal((3, len(count), most))
    points *= 0.9 * np.cbrt(rng.uniform(0.0, 1.0, points.shape[1:])) / np.linalg.norm(points, axis=0)
    x, y, long, short, angle, _ = body.T[..., None]
    along, across, cos, sin = points[0] * long, points[1] * short, np.cos(angle), np.sin(angle)
    radius = size[:, None] * np.exp(rng.normal(0.0, 0.2, (len(count), most)))
    radius[np.arange(most) >= np.round(count)[:, None]] = 0.0
    return x + along * cos - across * sin, y + along * sin + across * cos, radius


class _Bench(NamedTuple):
    image_size: int
    field_of_view: float
    wavelength: float
    medium_index: float
    numerical_aperture: float

    @property
    def fine_size(self) -> int:
        return self.image_size * math.ceil(self.field_of_view / self.image_size / _FINEST_NEEDED)


def _thickness(ellipsoids: Array, x: Array, y: Array) -> Array:
    """Path length (um) through each ellipsoid over the grid: 2 * axial * sqrt(1 - rho**2) with a soft edge."""
    x0, y0, long, short, angle, axial = ellipsoids.T[..., None]
    cos, sin, dx, dy = np.cos(angle), np.sin(angle), x - x0, y - y0
    xx, yy = (cos / long) ** 2 + (sin / short) ** 2, (sin / long) ** 2 + (cos / short) ** 2
    xy = 2.0 * (long**-2.0 - short**-2.0) * sin * cos
    # inside = 1 - rho**2, from products of the coordinates: three passes over the images instead of seven.
    inside = _f32(xy * dy)[:, :, None] * _f32(-dx)[:, None, :]
    inside += _f32(1.0 - yy * dy**2)[:, :, None]
    inside -= _f32(xx * dx**2)[:, None, :]
    # A parabola replaces max(inside, 0) near the edge, where the root has an infinite slope that no grid can hold. The
    # centre keeps the textbook phase. Near the edge, inside = 2 * distance / radius.
    edge = _f32(2.0 * _EDGE_WIDTH / short)[:, :, None]
    soft = np.clip(inside + edge, 0.0, 2.0 * edge)
    soft *= soft * (0.25 / edge)
    inside -= edge
    soft += np.maximum(inside, 0.0, out=inside)
    np.sqrt(soft, out=soft)
    soft *= _f32(2.0 * axial)[:, :, None]
    return soft


def _granule_thickness(cells: _Cells, x: Array, y: Array) -> Array:
    """Sum of the granules' path lengths (um): Gaussians with the peak and the volume of the sphere they stand for."""
    variance = cells.granule_radius**2 / 3.0
    seen = variance + _GRANULE_RESOLUTION**2  # blurred by the resolution; the volume stays
    peak = 2.0 * cells.granule_radius * variance / seen
    rate = (-0.5 / seen)[:, :, None]
    column = np.exp(_f32(rate * (y - cells.granule_y[:, :, None]) ** 2)) * _f32(peak)[:, :, None]
    row = np.exp(_f32(rate * (x - cells.granule_x[:, :, None]) ** 2))
    return np.matmul(column.transpose(0, 2, 1), row)  # Gaussians are separable: one small product per cell


def _phase(cells: _Cells, x: Array, y: Array, wavelength: float, medium_index: float) -> Array:
    """Phase (radians) of each cell on the grid of the coordinates `x` and `y` (um)."""
    phase = _thickness(cells.body, x, y) * _f32(cells.body_index - medium_index)[:, None, None]
    phase += _thickness(cells.nucleus, x, y) * _f32(cells.nucleus_contrast)[:, None, None]
    phase += _granule_thickness(cells, x, y) * np.float32(_GRANULE_CONTRAST)
    phase *= np.float32(2.0 * np.pi / wavelength)
    return phase


def _exit_field(phase: Array, absorption: float) -> Array:
    """exp(i * phase - absorption * |phase|), complex64: also where the medium is the denser one, light is only lost."""
    amplitude = np.exp(np.float32(-absorption) * np.abs(phase))
    field = np.empty(phase.shape, dtype=np.complex64)
    np.multiply(amplitude, np.cos(phase), out=field.real)
    np.multiply(amplitude, np.sin(phase), out=field.imag)
    return field


def _transfer(
    size: int, pixel: float, defocus: float, wavelength: float, medium_index: float, numerical_aperture: float | None
) -> Array:
    """Angular-spectrum transfer function over `defocus` um; waves beyond the aperture, or evanescent ones, are lost."""
    frequency = scipy.fft.fftfreq(size, pixel)
    squared = frequency[:, None] ** 2 + frequency**2
    along = (medium_index / wavelength) ** 2 - squared
    passes = squared <= ((medium_index if numerical_aperture is None else numerical_aperture) / wavelength) ** 2
    delay = np.sqrt(np.maximum(along, 0.0)) - medium_index / wavelength  # relative to a wave straight ahead
    return np.where(passes, np.exp(2j * np.pi * defocus * delay), 0.0).astype(np.complex64)


def _propagate(field: Array, transfer: Array) -> Array:
    """The field (overwritten) after the transfer function."""
    return scipy.fft.ifft2(scipy.fft.fft2(field, overwrite_x=True) * transfer, overwrite_x=True)


def _camera(bench: _Bench, pixel: float, blur: float) -> Array:
    """(image_size, fine_size) matrix that blurs and bins one axis; rows sum to 1, so a flat image stays flat."""
    place = np.arange(bench.fine_size) * pixel
    kernel = np.exp(-0.5 * ((place[:, None] - place) / blur) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return _f32(kernel.reshape(bench.image_size, -1, bench.fine_size).mean(axis=1))


class _Instrument:
    """One set of optics, with everything that is the same for all of its cells worked out."""

    def __init__(self, bench: _Bench, optics: Mapping[str, float]) -> None:
        size, aperture, self.bench = bench.fine_size, bench.numerical_aperture, bench
        pixel = bench.field_of_view / size / optics["magnification"]  # of the fine grid, in the plane of the cell
        self.place = (np.arange(size) - (size - 1) / 2.0) * pixel
        self.transfer = _transfer(size, pixel, optics["defocus"], bench.wavelength, bench.medium_index, aperture)
        self.camera = _camera(bench, pixel, optics["blur"])
        self.qpi_camera = _camera(bench, pixel, optics["qpi_blur"])
        x = np.linspace(-1.0, 1.0, 2 * bench.image_size + 1)[1::2]  # pixel centres, from edge to edge of the field
        y = x[:, None]
        slope = optics["gradient_x"] * x + optics["gradient_y"] * y - optics["vignetting"] * (x**2 + y**2)
        self.light = _f32(optics["gain"] * np.exp(slope))
        self.offset, self.qpi_gain = optics["offset"], optics["qpi_gain"]
        self.qpi_background = _f32(optics["qpi_offset"] + optics["qpi_tilt_x"] * x + optics["qpi_tilt_y"] * y)

    def expose(self, cells: _Cells) -> tuple[Array, Array]:
        """Noise-free brightfield and phase images."""
        phase = _phase(cells, self.place, self.place, self.bench.wavelength, self.bench.medium_index)
        field = _propagate(_exit_field(phase, _ABSORPTION), self.transfer)
        intensity = field.real**2
        intensity += field.imag**2
        bf = self.camera @ (intensity @ self.camera.T)
        bf *= self.light
        bf += self.offset
        qpi = self.qpi_camera @ (phase @ self.qpi_camera.T)
        qpi *= self.qpi_gain
        qpi += self.qpi_background
        return bf, qpi


def _photograph(
    cells: _Cells, batches: Array, optics: Mapping[str, Array], bench: _Bench, rng: np.random.Generator
) -> dict[str, Array]:
    """All images, batch by batch and chunk by chunk: one batch shares its matrices, one chunk bounds the memory."""
    shape = (len(batches), bench.image_size, bench.image_size)
    images = {name: np.empty(shape, dtype=np.float32) for name in ("bf", "qpi", "clean_qpi", "clean_bf")}
    reference = _Instrument(bench, {name: value for name, (value, _, _) in _OPTICS.items()})
    step = max(1, _CHUNK_PIXELS // bench.fine_size**2)
    for code in range(len(optics["defocus"])):
        own = {name: float(values[code]) for name, values in optics.items()}
        instrument = _Instrument(bench, own)
        members = np.flatnonzero(batches == code)
        for start in range(0, len(members), step):
            rows = members[start : start + step]
            some = _Cells(*(values[rows] for values in cells))
            images["clean_bf"][rows], images["clean_qpi"][rows] = reference.expose(some)
            bf, qpi = instrument.expose(some)
            noise = rng.standard_normal((2, *bf.shape), dtype=np.float32)
            noise[0] *= np.sqrt(own["read_noise"] ** 2 + own["shot_noise"] ** 2 * np.maximum(bf, 0.0))
            noise[1] *= own["qpi_noise"]
            images["bf"][rows] = np.add(bf, noise[0], out=bf)
            images["qpi"][rows] = np.add(qpi, noise[1], out=qpi)
    return images


def _f32(values: Any) -> Array:
    return np.asarray(values, dtype=np.float32)


def _check(name: str, value: Any, low: float, high: float = math.inf, *, kind: Any = Real) -> Any:
    """`value` as a plain int or float, if it is one of `kind`, finite and within the bounds."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, kind):
        expected = "an integer" if kind is Integral else "a real number"
        raise TypeError(f"{name} must be {expected}; got {value!r} of type {type(value).__name__}.")
    if not math.isfinite(value) or not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be finite and {bounds}; got {value}.")
    return int(value) if kind is Integral else float(value)
