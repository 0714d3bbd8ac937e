"""Ways in for every metric: features, images, labels, masks, seeds; each bad input gets one clear message."""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbegan.labels.arrays import as_labels, known_labels
from skbegan.labels.tables import as_batch_table, rows_of

Array: TypeAlias = NDArray[Any]
RandomState: TypeAlias = int | np.random.Generator | np.random.RandomState | None
_P = ParamSpec("_P")
_R = TypeVar("_R")
_PER_CELL = ("features", "images", "batch", "cell_type", "probe_train", "measurements")


def check_features(features: ArrayLike) -> Array:
    """Return (n_cells, n_features) finite float64."""
    array = np.asarray(features)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"features must be 2-D (n_cells, n_features) and not empty, got shape {array.shape}. "
            "Flatten images first, X.reshape(len(X), -1), or use image_leakage."
        )
    if array.dtype.kind not in "biufO":
        raise ValueError(f"features must be real numbers, got dtype {array.dtype}.")
    array = array.astype(np.float64, copy=False)
    if not is_finite(array):
        raise ValueError("features holds NaN or infinity. Drop or repair these cells before an audit.")
    return array


def is_finite(array: Array) -> bool:
    """Say whether all numbers are finite, looking at a part at a time: memory does not grow with the cells."""
    step = max(1, 2**20 // max(1, array[0].size))
    return all(np.isfinite(array[start : start + step]).all() for start in range(0, len(array), step))


def check_pixels(images: ArrayLike, name: str) -> Array:
    """Return images as rows of pixels, (n_cells, n_pixels) finite float32, or float64 where that came in."""
    array = np.asarray(images)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"{name} must be images of shape (n, H, W) or (n, H, W, C), got {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}.")
    wide = array.dtype == np.float64 or (array.dtype.kind in "iu" and array.dtype.itemsize > 2)
    array = array.reshape(len(array), -1).astype(np.float64 if wide else np.float32, copy=False)
    if not is_finite(array):
        raise ValueError(f"{name} holds NaN or infinity. Drop or repair these cells before an audit.")
    return array


def check_labels(labels: ArrayLike, name: str, n_cells: int) -> tuple[Array, Array]:
    """Return the sorted distinct labels and each cell's code; a table of batches has one label per distinct row."""
    if name == "batch" and (table := as_batch_table(labels)) is not None:
        labels = table.labels
    given = np.asarray(labels, dtype=object)
    missing = [v is None or type(v).__name__ in ("NAType", "NaTType") or bool(v != v) for v in given.ravel()]
    if given.ndim == 1 and any(missing):
        raise ValueError(f"{name} has missing labels (None or NaN), first at cell {missing.index(True)}.")
    array = as_labels(labels, name)
    if array.shape != (n_cells,):
        raise ValueError(f"{name} must be 1-D with one label per cell: expected shape ({n_cells},), got {array.shape}.")
    values, codes = np.unique(array, return_inverse=True)
    return values, codes.astype(np.intp)


def known_types(cell_type: Any) -> Array | None:
    """Return which cells have a cell type, or None where all have one, or none has, or labels are no list of labels."""
    if cell_type is None or getattr(cell_type, "ndim", 1) != 1:
        return None
    _, known, note = known_labels(cell_type, "cell_type")
    if note is not None:
        warnings.warn(note, UserWarning, stacklevel=4)
    return None if known.all() or not known.any() else known


def without_unknown_types(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a metric leave out the cells whose type is missing: nothing can be said of them within a type."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def measured(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given = signature.bind(*args, **kwargs)
        known = known_types(given.arguments.get("cell_type"))
        if known is None:
            return function(*args, **kwargs)
        for name in _PER_CELL:
            value = given.arguments.get(name)
            if value is not None and (n := _n_rows(value)) != len(known):
                raise ValueError(f"{name} has {n} rows and cell_type {len(known)} labels; each needs one per cell.")
            if value is not None:
                given.arguments[name] = rows_of(value, known)
        return function(*given.args, **given.kwargs)

    return measured


def _n_rows(values: Any) -> int:
    if isinstance(values, dict):
        return len(next(iter(values.values()), ()))
    return len(values)


def check_mask(mask: ArrayLike | None, n_cells: int) -> Array | None:
    """Return ``probe_train``, True for the cells that train the probes, or None."""
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.dtype != np.bool_ or array.shape != (n_cells,):
        raise ValueError(f"probe_train must be bool of shape ({n_cells},), got {array.dtype} of shape {array.shape}.")
    if array.all() or not array.any():
        raise ValueError("probe_train must leave cells on both sides: True trains the probe, False is scored.")
    return array


def check_count(value: int, name: str, minimum: int) -> int:
    """Return an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")
    return int(value)


def make_generator(random_state: RandomState) -> np.random.Generator:
    """Our own stream, so that numpy's global seed is neither read nor moved."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(int(random_state.randint(2**31 - 1)))
    return np.random.default_rng(random_state)


def digest(image: ArrayLike) -> bytes:
    """Return a fingerprint of one image's content."""
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
