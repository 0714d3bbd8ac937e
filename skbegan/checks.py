"""Checks of all that users give: images and labels, before any long work starts.

Arrays are passed on as they came (memory maps stay memory maps); input that cannot be used raises one error that says
what was wrong, what was found and what to do.
"""

from __future__ import annotations

import numbers
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.utils import check_random_state

SIDES = (16, 32, 64, 128, 256, 512)
_RESIZER = "skbegan.datasets.resize_images(images, size)"


@dataclass(frozen=True)
class CellDataset:
    """What :meth:`fit` learns from, checked.

    Attributes
    ----------
    bf, qpi : ndarray of shape (n, S, S) or (n, S, S, C)
        Brightfield and target as given.
    batch, cell_type : ndarray of int, shape (n,)
        Codes into `batches` and `cell_types`; zeros where no labels were given.
    batches, cell_types : ndarray or None
        Sorted labels, or None where none were given.
    """

    bf: np.ndarray
    qpi: np.ndarray
    batch: np.ndarray
    cell_type: np.ndarray
    batches: np.ndarray | None
    cell_types: np.ndarray | None

    @property
    def n_batches(self) -> int:
        return 1 if self.batches is None else len(self.batches)

    @property
    def n_cell_types(self) -> int:
        return 1 if self.cell_types is None else len(self.cell_types)


# Images ---------------------------------------------------------------------------------------------------------------


def as_array(images: Any, name: str) -> np.ndarray:
    """Return `images` as a real array, without copying where possible.

    Arrays, memory maps and tensors come, and single images in lists, in object arrays and in columns of a table.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype is torch.bfloat16 else images).numpy()
    if isinstance(images, np.ma.MaskedArray) and np.ma.is_masked(images):
        raise ValueError(f"{name} is a masked array with masked pixels; fill them: {name}.filled(value)")
    if _is_column(images):
        images = list(images)
    if isinstance(images, list | tuple):
        shapes = {np.shape(image) for image in images}
        if len(shapes) > 1:
            some = sorted(shapes, key=str)[:3]
            raise ValueError(f"{name} is a list of images of different shapes, such as {some}; resize them: {_RESIZER}")
        images = [as_array(image, name) for image in images]
    try:
        array = np.asarray(images)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of images, got {type(images).__name__}") from error
    if array.dtype.kind == "O" and array.ndim == 0:
        raise TypeError(f"{name} must be an array of images, got {type(images).__name__}")
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {array.dtype}"
            + ("; pass its amplitude or phase" if array.dtype.kind == "c" else "")
        )
    return array


def _is_column(images: Any) -> bool:
    """Say whether `images` is one-dimensional and holds objects: a pandas Series, an object array."""
    return hasattr(images, "dtype") and getattr(images.dtype, "kind", "O") == "O" and np.ndim(images) == 1


def check_images(images: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return images as a real (n, S, S) or (n, S, S, C) array of finite numbers.

    Parameters
    ----------
    images : array-like
    name : str
        What the message calls them.
    shape : tuple of int, optional
        The shape of one image that a fitted model asks for.

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
                f"resize them: {_RESIZER}"
            )
    else:
        height, width = array.shape[1:3]
        if height != width or height not in SIDES:
            hint = ""
            if array.ndim == 4 and array.shape[2] == array.shape[3]:
                hint = " Channels come last: move them with np.moveaxis(images, 1, -1)."
            raise ValueError(
                f"{name} has images of {height} x {width} pixels; the side must be a power of two from 16 to 512, the "
                f"same for both axes. Resize them: {_RESIZER}.{hint}"
            )
        if array.ndim == 4 and array.shape[3] == 0:
            raise ValueError(f"{name} has no channels: its shape is {array.shape}")
    _check_finite(array, name)
    return array


def _check_finite(array: np.ndarray, name: str) -> None:
    if array.dtype.kind != "f":
        return
    step = max(1, (1 << 22) // max(1, array[0].size))  # bounded memory, also for a memory map
    for start in range(0, len(array), step):
        finite = np.isfinite(array[start : start + step])
        if not finite.all():
            cells = start + np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))
            raise ValueError(
                f"{name} contains NaN or infinity, first in cell {cells[0]}; remove such cells or fill the pixels"
            )


# Labels ---------------------------------------------------------------------------------------------------------------


def check_labels(labels: Any, name: str, n_cells: int) -> np.ndarray:
    """Return labels as a 1-D array of one sortable kind, one per cell.

    Raises
    ------
    ValueError
        For another number of labels or axes, missing labels, or a mix of kinds.
    """
    if isinstance(labels, np.ma.MaskedArray) and np.ma.is_masked(labels):
        raise ValueError(f"{name} has a missing label, first at cell {np.flatnonzero(np.ma.getmaskarray(labels))[0]}")
    # A list of 1 and "a" would silently become one of "1" and "a".
    array = np.array(labels, dtype=object) if isinstance(labels, list | tuple) else np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must be one label per cell, shape ({n_cells},), got shape {array.shape}")
    if len(array) != n_cells:
        raise ValueError(f"{name} has {len(array)} labels for {n_cells} cells")
    if array.dtype.kind == "O":
        missing = [label is None or type(label).__name__ == "NAType" or label != label for label in array]
        if any(missing):
            raise ValueError(f"{name} has a missing label, first at cell {missing.index(True)}")
        kinds = {str if isinstance(x, str) else numbers.Real if isinstance(x, numbers.Real) else type(x) for x in array}
        if len(kinds) > 1:
            found = sorted({type(label).__name__ for label in array})
            raise ValueError(f"{name} mixes labels of types {found}; convert them to one type")
        array = np.array(array.tolist())
    if array.dtype.kind == "T":  # numpy 2's strings of any length
        array = np.array(array.tolist())
    if array.dtype.kind in "fM" and not np.isfinite(array).all():  # a date that is missing (NaT) is not finite either
        raise ValueError(f"{name} has a missing label, first at cell {np.flatnonzero(~np.isfinite(array))[0]}")
    if array.dtype.kind not in "biufUSM":
        raise ValueError(f"{name} must hold strings, numbers or dates, got dtype {array.dtype}")
    return array


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
    if table := _label_table(y):
        if twice := [name for name in table if given[name] is not None]:
            raise ValueError(f"{twice[0]} was given twice, as a column of y and as {twice[0]}; give it once")
        return y_qpi, *(given | table).values()
    shape = np.shape(as_array(y, "y")) if _is_nested(y) else tuple(y.shape) if hasattr(y, "shape") else np.shape(y)
    if len(shape) >= 3:
        if y_qpi is not None:
            raise ValueError("the target images were given twice, as y and as y_qpi; give them once")
        return y, batch, cell_type
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        if cell_type is not None:
            raise ValueError(
                "the cell types were given twice, as y (labels) and as cell_type; give them once. "
                "Target images have shape (n_cells, side, side)"
            )
        return y_qpi, batch, y
    raise ValueError(
        f"y must be the target images, shape ({n_cells}, side, side), one cell-type label per cell, shape "
        f"({n_cells},), or a table with columns batch and cell_type; got shape {shape}"
    )


def _label_table(y: Any) -> dict[str, Any]:
    """Return the columns of `y` by name if it is a data frame or a structured array of labels, else nothing."""
    names = getattr(getattr(y, "dtype", None), "names", None)
    names = list(names if names is not None else getattr(y, "columns", ()))
    return {name: y[name] for name in names} if names and set(names) <= {"batch", "cell_type"} else {}


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
        raise ValueError(f"X_bf has side {bf.shape[1]} but y_qpi has {qpi.shape[1]}; resize one of them: {_RESIZER}")
    if n_cells < 4:
        raise ValueError(f"{n_cells} cells are too few to train on; at least 4 are needed")
    batches, batch_codes = _encode(batch, "batch", n_cells)
    cell_types, type_codes = _encode(cell_type, "cell_type", n_cells)
    return CellDataset(bf, qpi, batch_codes, type_codes, batches, cell_types)


def _encode(labels: Any, name: str, n_cells: int) -> tuple[np.ndarray | None, np.ndarray]:
    if labels is None:
        return None, np.zeros(n_cells, dtype=np.int64)
    classes, codes = np.unique(check_labels(labels, name, n_cells), return_inverse=True)
    return classes, codes.astype(np.int64)


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
    if reference_batch is None or dataset.batches is None:
        return 0
    where = np.flatnonzero(dataset.batches == reference_batch)
    if len(where) == 0:
        raise ValueError(f"reference_batch={reference_batch!r} is none of the batches {dataset.batches.tolist()}")
    return int(where[0])


def check_memory(memory: Any) -> Any:
    """Return a joblib.Memory for what the estimator's `memory` may be: None, a path or a Memory."""
    if memory is None or isinstance(memory, str | os.PathLike):
        return joblib.Memory(None if memory is None else os.fspath(memory), verbose=0)
    if not hasattr(memory, "cache"):
        raise ValueError(f"memory must be None, a path or a joblib.Memory, got {memory!r}")
    return memory


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse a file that Git LFS has left a pointer in place of.

    Raises
    ------
    ValueError
    """
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ValueError(
                f"{path} is a Git LFS pointer, not the file itself: the repository was cloned without its large files; "
                "run 'git lfs pull' in it"
            )


_LFS = b"version https://git-lfs.github.com/spec/"


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


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn with the line outside of this package, and of scikit-learn's wrappers, that the call came from."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("skbegan.", "sklearn.utils.")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


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
