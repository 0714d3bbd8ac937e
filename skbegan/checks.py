"""Checks of all that users give: images and labels, before any long work starts.

Arrays are passed on as they came (memory maps stay memory maps, and what h5py, zarr and dask keep on disk stays there);
input that cannot be used raises one error that says what was wrong, what was found and what to do.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import joblib
import numpy as np
from sklearn.utils import check_random_state

from skbegan._check_labels import (
    check_batch_labels,
    check_batch_sizes,
    check_known_types,
    check_labels,
    encode_batches,
    encode_types,
    warn_caller,
)
from skbegan._foreign import listed, what_reads_it
from skbegan.labels.tables import as_batch_table, column_names
from skbegan.stored.adapters import as_lazy
from skbegan.stored.lazy import ROWS_AT_ONCE, parts_of

__all__ = [
    "CellDataset",
    "as_array",
    "check_batch_labels",
    "check_fit_input",
    "check_images",
    "check_known_types",
    "check_labels",
    "check_memory",
    "check_score_input",
    "check_seed",
    "partial_score_message",
    "reference_code",
    "split_y",
    "warn_caller",
    "warn_of_versions",
]

SIDES = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class CellDataset:
    """What :meth:`fit` learns from, checked.

    Attributes
    ----------
    bf, qpi : ndarray of shape (n, S, S) or (n, S, S, C)
        Brightfield and target as given.
    batch, cell_type : ndarray of int, shape (n,)
        Codes into `batches` and `cell_types`, in the smallest dtype that holds them; zeros where no labels were given,
        -1 for cells of unknown type.
    batches, cell_types : ndarray or None
        Sorted labels, or None where none were given.
    batch_columns : dict of str to ndarray or None
        What each of the batches has in the columns of the table that was given as batch.
    """

    bf: np.ndarray
    qpi: np.ndarray
    batch: np.ndarray
    cell_type: np.ndarray
    batches: np.ndarray | None
    cell_types: np.ndarray | None
    batch_columns: dict[str, np.ndarray] | None = None

    @property
    def n_batches(self) -> int:
        return 1 if self.batches is None else len(self.batches)

    @property
    def n_cell_types(self) -> int:
        return 1 if self.cell_types is None else len(self.cell_types)


# Images ---------------------------------------------------------------------------------------------------------------


def as_array(images: Any, name: str) -> np.ndarray:
    """Return `images` as a real array, without copying where possible.

    Arrays, memory maps and tensors come, and single images in lists, in object arrays and in columns of a table. Data
    sets of h5py, arrays of zarr and dask, and the images of a table of files become lazy arrays, which answer as arrays
    do and read the rows they are asked for.
    """
    if (lazy := as_lazy(images, name)) is not None:
        _check_real(lazy.dtype, name)
        return cast(np.ndarray, lazy)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype is torch.bfloat16 else images).numpy()
    if (what := what_reads_it(images, name)) is not None:
        raise TypeError(f"{name} must be an array of images, got {what}")
    if isinstance(images, np.ma.MaskedArray) and np.ma.is_masked(images):
        raise ValueError(f"{name} is a masked array with masked pixels; fill them: {name}.filled(value)")
    if _is_column(images):
        images = list(images)
    if isinstance(images, list | tuple):
        shapes = {np.shape(image) for image in images}
        if len(shapes) > 1:
            some = sorted(shapes, key=str)[:3]
            edges = [edge for shape in shapes for edge in shape[:2]]
            raise ValueError(
                f"{name} is a list of images of different shapes, such as {some}; "
                + ("resize them: " + _resizer(name, edges) if edges else "each must be an array of pixels")
            )
        images = [as_array(image, name) for image in images]
    try:
        array = np.asarray(images)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of images, got {type(images).__name__}") from error
    if array.dtype.kind == "O" and array.ndim == 0:
        raise TypeError(f"{name} must be an array of images, got {type(images).__name__}")
    _check_real(array.dtype, name)
    return array


def _check_real(dtype: np.dtype, name: str) -> None:
    if dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {dtype}"
            + ("; pass its amplitude or phase" if dtype.kind == "c" else "")
        )


def _resizer(name: str, edges: Iterable[int], side: int | None = None) -> str:
    """Return what makes images of edges like these fit, as it can be typed."""
    side = side or min(SIDES, key=lambda known: abs(known - max(edges)))
    return f"skbegan.datasets.resize_images({name}, {side})"


def _are_channels_first(shape: tuple[int, ...]) -> bool:
    """Say whether (n, a, b, c) looks like channels before pixels."""
    if len(shape) != 4 or shape[1] == shape[2]:
        return False
    return shape[2] == shape[3] or (shape[1] <= 4 and min(shape[2:]) >= SIDES[0])


def _is_column(images: Any) -> bool:
    """Say whether `images` is one-dimensional and holds objects: a pandas Series, an object array."""
    return hasattr(images, "dtype") and getattr(images.dtype, "kind", "O") == "O" and np.ndim(images) == 1


def check_images(images: Any, name: str, shape: tuple[int, ...] | None = None, *, look: bool = True) -> np.ndarray:
    """Return images as a real (n, S, S) or (n, S, S, C) array of finite numbers.

    Parameters
    ----------
    images : array-like
    name : str
        What the message calls them.
    shape : tuple of int, optional
        The shape of one image that a fitted model asks for.
    look : bool, default=True
        Whether to look at the values, which reads all of them where they are floats.

    Raises
    ------
    TypeError
        For something that is no array of real numbers.
    ValueError
        For another number of axes, other sides, no cells, NaN or infinity.
    """
    array = as_array(images, name)
    if array.ndim not in (3, 4):
        hint = f"; a single image is {name}[None]" if array.ndim == 2 else ""
        raise ValueError(
            f"{name} must have shape (n_cells, side, side) or (n_cells, side, side, channels), got {array.shape}{hint}"
        )
    if len(array) == 0:
        raise ValueError(f"{name} holds no cells: its shape is {array.shape}")
    if shape is not None:
        single_channel = (*shape, 1) if len(shape) == 2 else shape
        if (array.shape[1:] if array.ndim == 4 else (*array.shape[1:], 1)) != single_channel:
            raise ValueError(
                f"{name} has images of shape {array.shape[1:]}, but the model was fitted on {shape}; "
                + _how_to_match(array.shape, single_channel, name)
            )
    else:
        height, width = array.shape[1:3]
        if _are_channels_first(array.shape):
            raise ValueError(
                f"{name} has the shape {array.shape}. Channels come last, (n_cells, side, side, channels): move them "
                f"with np.moveaxis({name}, 1, -1)"
            )
        if height != width or height not in SIDES:
            raise ValueError(
                f"{name} has images of {height} x {width} pixels; the side must be a power of two from 16 to 512, the "
                f"same for both axes. Resize them: {_resizer(name, (height, width))}; those that are not square with "
                "fit='pad' (the default), 'crop' or 'stretch'"
            )
        if array.ndim == 4 and array.shape[3] == 0:
            raise ValueError(f"{name} has no channels: its shape is {array.shape}")
    if look:
        _check_finite(array, name)
    return array


def _how_to_match(found: tuple[int, ...], wanted: tuple[int, ...], name: str) -> str:
    """Say what brings images of shape `found`, (n, ...), to the side and channels of a model, (S, S, C)."""
    n_channels = found[3] if len(found) == 4 else 1
    if len(found) == 4 and ((*found[2:], found[1]) == wanted or _are_channels_first(found)):
        return f"channels come last: move them with np.moveaxis({name}, 1, -1)"
    how = []
    if n_channels != wanted[2]:
        how.append(f"pass the same {wanted[2]} channel{'s' if wanted[2] > 1 else ''}, not {n_channels}")
    if found[1:3] != wanted[:2]:
        how.append(f"resize them: {_resizer(name, (), wanted[0])}")
    return ", and ".join(how)


def _check_finite(array: np.ndarray, name: str) -> None:
    """Refuse what float32 cannot hold, and integers that float64 cannot tell apart."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind != "f" and not (kind in "iu" and size == 8):
        return
    # Bounded memory, also for a memory map.
    step = max(1, min(ROWS_AT_ONCE, (1 << 22) // max(1, math.prod(array.shape[1:]))))
    for start, stop in parts_of(array, step):
        part = array[start:stop]
        if kind == "f":
            with np.errstate(invalid="ignore"):
                good = np.isfinite(part) if size <= 4 else np.abs(part) <= np.finfo(np.float32).max
        else:
            good = (part <= _EXACT) & (part >= (-_EXACT if kind == "i" else 0))
        if good.all():
            continue
        cell = start + int(np.flatnonzero(~good.reshape(len(good), -1).all(axis=1))[0])
        if kind != "f":
            raise ValueError(
                f"{name} holds integers beyond 2**53, first in cell {cell}, which floating point cannot tell apart; "
                f"take an offset off first: {name} - {name}.min()"
            )
        if np.isfinite(array[cell]).all():
            raise ValueError(
                f"{name} holds numbers beyond {np.finfo(np.float32).max:.2g}, which is more than float32 can hold, "
                f"first in cell {cell}; give it in other units: {name} / {name}.max()"
            )
        raise ValueError(f"{name} contains NaN or infinity, first in cell {cell}; remove such cells or fill the pixels")


_EXACT = 2**53


# What fit was given ---------------------------------------------------------------------------------------------------


def split_y(y: Any, batch: Any, cell_type: Any, y_qpi: Any, n_cells: int) -> tuple[Any, Any, Any]:
    """Tell target images from labels in what came as `y`; return ``(y_qpi, batch, cell_type)``.

    Raises
    ------
    ValueError
        When an argument was given twice, or `y` is neither images nor labels.
    """
    if y is None:
        return y_qpi, batch, cell_type
    given = {"batch": batch, "cell_type": cell_type}
    what = None if isinstance(y, list | tuple) or hasattr(y, "dtype") else what_reads_it(y, "y")
    if what is not None:
        raise TypeError(f"y must be an array of images, labels or a table of labels, got {what}")
    names = column_names(y)
    table = {name: y[name] for name in ("batch", "cell_type") if name in names}
    lacking = [name for name, value in (given | table).items() if value is None]
    if table and (not lacking or set(names) == set(table)):
        if twice := [name for name in table if given[name] is not None]:
            raise ValueError(f"{twice[0]} was given twice, as a column of y and as {twice[0]}; give it once")
        return y_qpi, *(given | table).values()
    shape = np.shape(as_array(y, "y")) if _is_nested(y) else tuple(y.shape) if hasattr(y, "shape") else np.shape(y)
    if len(shape) >= 3:
        if y_qpi is not None:
            raise ValueError("the target images were given twice, as y and as y_qpi; give them once")
        return y, batch, cell_type
    if len(names) <= 1 and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        if cell_type is not None:
            raise ValueError(
                "the cell types were given twice, as y (labels) and as cell_type; give them once. "
                "Target images have shape (n_cells, side, side)"
            )
        return y_qpi, batch, y
    raise ValueError(
        f"y must be the target images, shape ({n_cells}, side, side), one cell-type label per cell, shape "
        f"({n_cells},), or a table with columns batch and cell_type; got shape {shape}"
        + (f" and the columns {listed(names)}" if names else "")
    )


def _is_nested(y: Any) -> bool:
    return (isinstance(y, list | tuple) or _is_column(y)) and np.ndim(next(iter(y), 0)) >= 2


def check_fit_input(X_bf: Any, y: Any, batch: Any, cell_type: Any, y_qpi: Any) -> CellDataset:
    """Check all that :meth:`fit` is given and return it as one dataset."""
    bf = check_images(X_bf, "X_bf")
    n_cells = len(bf)
    y_qpi, batch, cell_type = split_y(y, batch, cell_type, y_qpi, n_cells)
    if y_qpi is None:
        raise ValueError(
            "no target images: give them as y (fit(X_bf, y_qpi, batch, cell_type)), or as y_qpi when y holds the cell "
            "types, as in a Pipeline (began__y_qpi=...)"
        )
    qpi = check_images(y_qpi, "y_qpi")
    if len(qpi) != n_cells:
        raise ValueError(f"X_bf has {n_cells} cells but y_qpi has {len(qpi)}; they must be pairs of the same cells")
    if qpi.shape[1] != bf.shape[1]:
        raise ValueError(
            f"X_bf has side {bf.shape[1]} but y_qpi has {qpi.shape[1]}; resize one of them: "
            + _resizer("y_qpi", (), bf.shape[1])
        )
    if n_cells < 4:
        raise ValueError(f"{n_cells} cells are too few to train on; at least 4 are needed")
    table = None if batch is None else as_batch_table(batch, n_cells)
    batches, batch_codes = encode_batches(batch, n_cells)
    check_batch_sizes(table, batches, batch_codes)
    columns = None if table is None or batches is None else table.of_batches(batches)
    cell_types, type_codes = encode_types(cell_type, n_cells)
    return CellDataset(bf, qpi, batch_codes, type_codes, batches, cell_types, columns)


def check_score_input(
    X_bf: Any, y: Any, batch: Any, cell_type: Any, y_qpi: Any, shape: tuple[int, ...]
) -> tuple[np.ndarray, Any, np.ndarray | None, np.ndarray | None]:
    """Return what :meth:`score` is given, without cells of unknown type where cell types decide what is measured."""
    bf = check_images(X_bf, "X_bf", shape)
    y_qpi, batch, cell_type = split_y(y, batch, cell_type, y_qpi, len(bf))
    if batch is not None:
        batch = check_batch_labels(batch, len(bf))
    if cell_type is None:
        return bf, y_qpi, batch, None
    cell_type, known = check_known_types(cell_type, len(bf))
    if known.all() or not known.any():
        return bf, y_qpi, batch, cell_type if known.all() else None
    return bf[known], None, None if batch is None else batch[known], cell_type


def partial_score_message(batch: np.ndarray | None, cell_type: np.ndarray | None) -> str:
    """Say that the score of a model that knows several batches says nothing of them, and how it would."""
    if cell_type is None:
        lacking = "no cell types" if batch is not None else "neither batch nor cell types"
    elif batch is None:
        lacking = "no batch"
    else:
        lacking = f"cells of one batch only, {str(batch[0])!r} (folds must mix the batches)"
    what = "how well images are predicted" if cell_type is None else "how well cell types are read from the features"
    return (
        f"score was given {lacking}: it measures {what} and says nothing of the batch. In a search, set "
        "sklearn.set_config(enable_metadata_routing=True), let y be a table with columns batch and cell_type, or set "
        "scoring=skbegan.metrics.batch_removal_scorer.with_labels(X_bf, batch, cell_type)"
    )


def reference_code(dataset: CellDataset, reference_batch: Any) -> int:
    """Return the code of the reference batch, the first one by default.

    Raises
    ------
    ValueError
        When no cell is of that batch.
    """
    if np.ndim(reference_batch) > 0:
        raise TypeError(f"reference_batch must be None or one of the batches, got {reference_batch!r:.80}")
    if reference_batch is None or dataset.batches is None:
        return 0
    where = np.flatnonzero(dataset.batches == reference_batch)
    if len(where) == 0:
        raise ValueError(
            f"reference_batch={reference_batch!r} is none of the batches {listed(dataset.batches.tolist())}"
        )
    return int(where[0])


def check_memory(memory: Any) -> Any:
    """Return a joblib.Memory for what the estimator's `memory` may be: None, a path or a Memory."""
    if memory is None or isinstance(memory, str | os.PathLike):
        try:
            return joblib.Memory(None if memory is None else os.fspath(memory), verbose=0)
        except OSError as error:
            raise ValueError(f"memory={os.fspath(memory or '')!r} is no folder that can be made ({error})") from error
    if not hasattr(memory, "cache"):
        raise ValueError(f"memory must be None, a path or a joblib.Memory, got {memory!r:.80}")
    return memory


def check_seed(random_state: Any) -> Any:
    """Return the estimator's `random_state` if scikit-learn can make random numbers of it.

    Raises
    ------
    ValueError
    """
    try:
        if random_state is not None:
            check_random_state(random_state)
    except ValueError as error:
        raise ValueError(
            f"random_state={random_state!r:.80} cannot be used to seed: it must be None, an integer from 0 to "
            "2**32 - 1 or a numpy RandomState"
        ) from error
    return random_state


# Warnings -------------------------------------------------------------------------------------------------------------


def warn_of_versions(wrote: Mapping[str, Any], reads: Mapping[str, str], what: str) -> None:
    """Compare the versions that wrote a model with those that read it.

    Parameters
    ----------
    wrote, reads : mapping of str to str
        Versions by package; `wrote` is empty if they were not recorded.
    what : str
        What the warning calls the model.

    Warns
    -----
    UserWarning
        If skbegan, or the minor version of scikit-learn, is another.
    """
    for name in ("skbegan", "scikit-learn"):
        then, now = wrote.get(name), reads[name]
        if name == "scikit-learn" and then is not None:
            then, now = (".".join(str(version).split(".")[:2]) for version in (then, now))
        if then is not None and then != now:
            warn_caller(
                f"{what} was written with {name} {then} and is read with {now}: results may differ", UserWarning
            )
