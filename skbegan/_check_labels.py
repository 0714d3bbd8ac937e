"""Checks of the labels that users give: batches, also as tables, and cell types, of which some may be missing."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np

from skbegan._foreign import listed
from skbegan.labels.arrays import as_labels, known_labels
from skbegan.labels.codes import counted, encoded
from skbegan.labels.tables import BatchTable, as_batch_table, single_column


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn with the line outside of this package, and of scikit-learn's wrappers, that the call came from."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("skbegan.", "sklearn.utils.")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def check_labels(labels: Any, name: str, n_cells: int) -> np.ndarray:
    """Return labels as a 1-D array of one sortable kind, one per cell.

    Raises
    ------
    ValueError
        For another number of labels or axes, missing labels, a mix of kinds, or objects that are neither strings,
        numbers nor dates. Bytes become strings, and dates of any library ``datetime64``.
    """
    shape = getattr(labels, "shape", None)
    if shape is not None and len(shape) != 1 and tuple(shape[1:]) != (1,):
        raise ValueError(
            f"{name} must be one label per cell, shape ({n_cells},), got shape {tuple(shape)}"
            + ("; a table of day, plate and position needs names of its columns, as a DataFrame" * (name == "batch"))
        )
    array = as_labels(labels, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must be one label per cell, shape ({n_cells},), got shape {array.shape}")
    if len(array) != n_cells:
        raise ValueError(f"{name} has {len(array)} labels for {n_cells} cells")
    return array


def check_batch_labels(batch: Any, n_cells: int) -> np.ndarray:
    """Return one label of the batch per cell: of a table of several columns, those of its distinct rows.

    Raises
    ------
    ValueError
        As :func:`check_labels`.
    """
    table = as_batch_table(batch, n_cells)
    return check_labels(single_column(batch), "batch", n_cells) if table is None else table.labels


def check_known_types(cell_type: Any, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell types of the cells that have one, and which these are, a mask of shape (n_cells,).

    Raises
    ------
    ValueError
        As :func:`check_labels`, but not for missing labels.

    Warns
    -----
    UserWarning
        Where -1 is taken for a missing label, or may have been meant so.
    """
    cell_type = single_column(cell_type)
    shape = getattr(cell_type, "shape", None)
    if shape is not None and len(shape) == 2 and shape[1] == 1:
        cell_type = np.asarray(cell_type)[:, 0]
    elif shape is not None and len(shape) != 1:
        check_labels(cell_type, "cell_type", n_cells)
    found, known, note = known_labels(cell_type, "cell_type")
    if known.all():
        found = check_labels(cell_type, "cell_type", n_cells)
    elif known.shape != (n_cells,):
        raise ValueError(f"cell_type has {len(known)} labels for {n_cells} cells")
    if note is not None:
        warn_caller(note, UserWarning)
    return found, known


def encode_batches(batch: Any, n_cells: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the sorted batches and each cell's code; None and zeros where none were given."""
    if batch is None:
        return None, np.zeros(n_cells, dtype=np.uint8)
    return encoded(check_batch_labels(batch, n_cells))


def encode_types(cell_type: Any, n_cells: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the cell types and each cell's code, -1 for unknown; if all are unknown, as if none had been given."""
    if cell_type is None:
        return None, np.zeros(n_cells, dtype=np.uint8)
    labels, known = check_known_types(cell_type, n_cells)
    if not known.any():
        return None, np.zeros(n_cells, dtype=np.uint8)
    return encoded(labels, known)


def check_batch_sizes(table: BatchTable | None, batches: np.ndarray | None, codes: np.ndarray) -> None:
    """Refuse batches most of which hold too few cells to learn anything from, and warn where many do."""
    if table is None:
        _check_no_cell_ids(batches, codes)
        return
    message, hopeless = table.too_few()
    if message is not None and hopeless:
        raise ValueError(message)
    if message is not None:
        warn_caller(message, UserWarning)


def _check_no_cell_ids(batches: np.ndarray | None, codes: np.ndarray) -> None:
    """Refuse batches most of which hold one cell: nothing can be learned from them. They may be names of cells."""
    if batches is None or len(batches) <= 10:
        return
    n_single = int((counted(codes, len(batches))[0] == 1).sum())
    if 2 * n_single > len(batches):
        some = listed(str(label)[:40] for label in batches[:3].tolist())
        raise ValueError(
            f"batch has {len(batches)} different labels for {len(codes)} cells, and {n_single} of them belong to a "
            f"single cell, such as {some}. Are these the names of cells? batch is what many cells share: the day, "
            "plate or site of imaging"
        )
