"""Simulated paired cells: brightfield and quantitative phase of one cell, through one imperfect instrument per batch.

Units are micrometres. A random seed is split into streams: other numbers of cells or pixels change no instrument.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import Bunch, check_random_state

from skbegan.datasets._simulated_cells import Array, draw_cells, draw_types
from skbegan.datasets._simulated_optics import OF_SITE, SITE_KINDS, Bench, draw_framing, draw_optics, photograph

_SMALLEST_FIELD = 24.0  # um; the largest cell, elongated and off-centre, still fits at nominal magnification


def make_cell_images(
    n_cells: int = 1000,
    n_cell_types: int = 4,
    n_batches: int = 4,
    image_size: int = 64,
    *,
    batches_per_type: int | None = None,
    design: Any = None,
    batch_strength: float = 1.0,
    batch_kinds: Any = "instrument",
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
    With ``batch_kinds="site"`` batches differ as sites do: in scale, crop, contrast curves and aberrations as well.

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
    batch_kinds : {"instrument", "site"} or list of str, default="instrument"
        In what batches differ. ``"instrument"``: instruments of one make, with their own focus, blur, gain, offset,
        illumination, tilt and noise, and 3 % of magnification. ``"site"``: also ``"magnification"``, ``"crop"``,
        ``"contrast"`` and ``"aberrations"``; a list names some of these only (see Notes), and ``"neighbours"``, which
        ``"site"`` leaves out. The cells, the clean images and the other traits of the instruments stay as they are.
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
            A batch that magnifies, or cuts its crops elsewhere, differs from them also in size and place of the cell.
        design : bool ndarray of shape (n_cell_types, n_batches)
            Which types are imaged in which batches.
        batch_optics : dict of str to ndarray of shape (n_batches,)
            The instruments; traits of kinds that are not in `batch_kinds` have the reference's value.
        type_morphology : dict of str to ndarray of shape (n_cell_types,)
            The mean of each trait of each cell type; lengths in micrometres.
        pixel_size : float
            Micrometres per pixel at nominal magnification.
        DESCR : str
            A short description.

    Raises
    ------
    TypeError, ValueError
        For arguments that cannot be used, or fewer cells than pairs of type and batch.

    Notes
    -----
    Instruments depend on `random_state` and `n_batches` only, cell types on `random_state` and `n_cell_types` only.
    Images coarser than 0.75 micrometres per pixel are computed on a finer grid and binned. Noise is per pixel, whatever
    its size. A linear classifier on principal components of `clean_qpi` gets about 3 cells in 4 right among 7 types.

    *What sites differ in*, at a `batch_strength` of 1; all but the last are in ``"site"``:

    - ``"magnification"``: a factor between 0.82 and 1.22, in place of 0.97 to 1.03. Sites image with other objectives
      and cameras; rescaling to the nominal pixel leaves some of that.
    - ``"crop"``: the cell is off the centre by up to 2 micrometres along each axis (``shift_x``, ``shift_y``), the same
      for all cells of a batch, and single cells scatter about that by up to 1 micrometre (``centring``, standard
      deviation): crops are centred on a bounding box, a nucleus or a centre of mass, as the segmentation has it. Both
      images are cut alike.
    - ``"contrast"``: recorded intensity to a power of 0.70 to 1.42 (``gamma``; of phase 0.86 to 1.16, where 2 rad
      stay), then a sigmoid ``tanh(k * v) / k``, with v the distance from intensity 1 and k up to 1.5
      (``compression``), or v the phase and k up to 0.25 per rad (``qpi_compression``: 3 rad become 2.5). Cameras and
      software apply such curves, and the phase of thick cells is underrated where light is only partly coherent.
    - ``"aberrations"``: Zernike coefficients (Noll's, in wavelengths RMS) of the pupil in brightfield: astigmatism and
      spherical aberration up to 0.12, coma up to 0.08, where 0.07 in all is the limit of a lens that counts as
      diffraction-limited (Marechal's criterion). Tilted or thicker cover slips and misaligned lenses do this.
    - ``"neighbours"``: up to 60 % of a batch's images show a second cell of the batch at the edge, in both images. The
      clean images show the cell alone, so they are no longer what can be reached.

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
    kinds = _check_kinds(batch_kinds)
    present = _make_design(n_cell_types, n_batches, batches_per_type, design)
    if n_cells < present.sum():
        raise ValueError(
            f"n_cells={n_cells} is too few: the design has {present.sum()} pairs of cell type and batch, and each "
            "needs a cell. Ask for more cells or for fewer pairs (batches_per_type)."
        )

    seed = _root_seed(random_state)  # the numbers below keep the streams apart, also when both seeds are equal
    cells_seed = seed if cells_random_state is None else _root_seed(cells_random_state)
    morphology = draw_types(n_cell_types, np.random.default_rng([0, seed]))
    optics = draw_optics(n_batches, batch_strength, kinds, np.random.default_rng([1, seed]))
    cells_rng, noise_rng = np.random.default_rng([2, cells_seed]).spawn(2)

    type_codes, batch_codes = _assign(present, n_cells, cells_rng)
    cells = draw_cells(morphology, type_codes, cells_rng)
    framing = draw_framing(n_cells, np.random.default_rng([3, cells_seed]))
    bench = Bench(image_size, field_of_view, wavelength, medium_index, numerical_aperture)
    return Bunch(
        **photograph(cells, batch_codes, optics, bench, framing, noise_rng),
        batch=_labels("batch", n_batches)[batch_codes],
        cell_type=_labels("type", n_cell_types)[type_codes],
        design=present,
        batch_optics=optics,
        type_morphology=morphology,
        pixel_size=field_of_view / image_size,
        DESCR=f"{n_cells} simulated cells, {n_cell_types} types, {n_batches} batches of strength {batch_strength:g}"
        + (f" that also differ in {', '.join(kinds)}" if kinds else ""),
    )


def _check_kinds(batch_kinds: Any) -> list[str]:
    """The kinds beside those of instruments, each once and in one order."""
    if isinstance(batch_kinds, str):
        if batch_kinds in ("instrument", "site"):
            return list(OF_SITE) if batch_kinds == "site" else []
        asked = [batch_kinds]
    else:
        try:
            asked = list(batch_kinds)
        except TypeError:
            asked = [batch_kinds]
    if isinstance(batch_kinds, str) or not all(isinstance(kind, str) and kind in SITE_KINDS for kind in asked):
        raise ValueError(
            f"batch_kinds must be 'instrument', 'site' or a list of some of {', '.join(SITE_KINDS)}; "
            f"got {batch_kinds!r}."
        )
    return [kind for kind in SITE_KINDS if kind in asked]


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


def _check(name: str, value: Any, low: float, high: float = math.inf, *, kind: Any = Real) -> Any:
    """`value` as a plain int or float, if it is one of `kind`, finite and within the bounds."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, kind):
        expected = "an integer" if kind is Integral else "a real number"
        raise TypeError(f"{name} must be {expected}; got {value!r} of type {type(value).__name__}.")
    if not math.isfinite(value) or not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be finite and {bounds}; got {value}.")
    return int(value) if kind is Integral else float(value)
