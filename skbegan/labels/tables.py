"""Batches that have parts: a table with columns such as day, plate and position. Imports nothing of ours but labels.

Each distinct row is one batch, with a label that can be read: ``"2024-01-03 / plate 2 / pos 5"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skbegan._foreign import listed
from skbegan.labels.arrays import as_labels

__all__ = ["BatchTable", "as_batch_table", "column_names", "rows_of", "single_column"]

SEPARATOR = " / "
FEW, LEAST = 8, 4  # cells of a batch: with fewer its style cannot be measured, or it counts in no comparison
MOST_FEW = 0.25  # of the batches that may have fewer than `FEW` cells without a warning


def column_names(table: Any) -> list[Any]:
    """Return the names of the columns of a data frame, a structured array or a dict of columns, else nothing."""
    if isinstance(table, Mapping):
        return list(table)
    names = getattr(getattr(table, "dtype", None), "names", None)
    return list(names if names is not None else getattr(table, "columns", ()))


def rows_of(values: Any, kept: np.ndarray) -> Any:
    """Return some rows of an array, a list, a data frame or a dict of columns; `kept` is a mask."""
    if isinstance(values, Mapping):
        return {name: rows_of(column, kept) for name, column in values.items()}
    if isinstance(values, list | tuple):
        return [value for value, keep in zip(values, kept, strict=True) if keep]
    if hasattr(values, "iloc"):
        return values.iloc[np.flatnonzero(kept)]
    return values[np.flatnonzero(kept)] if hasattr(values, "__getitem__") else np.asarray(values)[kept]


@dataclass(frozen=True, eq=False)
class BatchTable:
    """The columns of a table of batches, and what each cell has in them.

    Attributes
    ----------
    columns : dict of str to ndarray of shape (n_cells,)
        Labels by column, two columns or more.
    labels : ndarray of str, shape (n_cells,)
        One label for each distinct row: the labels of the columns with " / " in between. Those that are numbers have
        the name of their column before them.
    """

    columns: dict[str, np.ndarray]
    labels: np.ndarray

    def of_batches(self, batches: np.ndarray) -> dict[str, np.ndarray]:
        """Return what each of the sorted batches has in the columns."""
        first = np.unique(self.labels, return_index=True)
        places = first[1][np.searchsorted(first[0], batches)]
        return {name: column[places] for name, column in self.columns.items()}

    def too_few(self) -> tuple[str | None, bool]:
        """Say that many batches have too few cells to be compared and what to do, and whether that is hopeless."""
        batches, counts = np.unique(self.labels, return_counts=True)
        few = counts < FEW
        hopeless = bool((counts < LEAST).mean() > 0.5)
        if not hopeless and few.mean() <= MOST_FEW:
            return None, False
        some = ", ".join(f"{batches[b]} ({counts[b]})" for b in np.argsort(counts, kind="stable")[:3])
        return (
            f"batch has {len(batches)} combinations of {_joined(self.columns)} for {len(self.labels)} cells, and "
            f"{int(few.sum())} of them have fewer than {FEW} cells, such as {some}: too few to tell what such a batch "
            f"does to its images. {self._advice()}",
            hopeless,
        )

    def _advice(self) -> str:
        """Name the columns that are best left out."""
        left = dict(self.columns)
        while len(left) > 1:
            finest = max(left, key=lambda name: len(np.unique(left[name])))
            del left[finest]
            counts = np.unique(_combined(left), return_counts=True)[1]
            if (counts < FEW).mean() <= MOST_FEW or len(left) == 1:
                break
        counts = np.unique(_combined(left), return_counts=True)[1]
        return (
            f"Leave out the finest columns: {_joined(left)} alone make{'s' if len(left) == 1 else ''} {len(counts)} "
            f"batches of {counts.min()} cells or more. metrics.audit takes the whole table all the same"
        )


def _joined(names: Any) -> str:
    *most, last = map(str, names)
    return f"{', '.join(most)} and {last}" if most else last


def _text(label: Any, column: str) -> str:
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    text = str(label)
    try:
        float(text)
    except ValueError:
        return text
    return f"{column} {text}"


def _texts(labels: np.ndarray, column: str) -> np.ndarray:
    """Return what stands for the labels of a column in those of its batches; each by itself, whatever the others."""
    if labels.dtype.kind == "M":
        texts = np.datetime_as_string(labels)
        for unit in ("s", "m", "D"):
            coarse = labels.astype(f"datetime64[{unit}]")
            texts = np.where(coarse == labels, np.datetime_as_string(coarse), texts)
        return texts
    different, codes = np.unique(labels, return_inverse=True)
    return np.array([_text(label, column) for label in different.tolist()], dtype=np.str_)[codes]


def _combined(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    texts = [_texts(labels, name).tolist() for name, labels in columns.items()]
    return np.array([SEPARATOR.join(row) for row in zip(*texts, strict=True)], dtype=np.str_)


def as_batch_table(batch: Any, n_cells: int | None = None) -> BatchTable | None:
    """Return the columns of a table of batches, or None for what is no table of two columns or more.

    Parameters
    ----------
    batch : DataFrame, structured array, dict of columns, or anything else
    n_cells : int, optional
        How many rows it must have.

    Raises
    ------
    ValueError
        For columns of other lengths, missing labels, and labels that look alike when they are joined.
    """
    if isinstance(batch, BatchTable):
        return batch
    names = column_names(batch)
    if len(names) < 2:
        return None
    if len({str(name) for name in names}) < len(names):
        raise ValueError(f"batch has columns of one name: {listed(map(str, names))}; name each of them once")
    columns = {}
    for name in names:
        labels = as_labels(batch[name], f"batch (column {str(name)!r})")
        if labels.ndim != 1 or (n_cells is not None and len(labels) != n_cells):
            raise ValueError(
                f"batch must have one row per cell, {n_cells}; its column {str(name)!r} has the shape {labels.shape}"
            )
        columns[str(name)] = labels
    if len({len(labels) for labels in columns.values()}) > 1:
        raise ValueError("the columns of batch have different lengths: each must have one label per cell")
    combined = _combined(columns)
    codes = np.stack([np.unique(labels, return_inverse=True)[1] for labels in columns.values()])
    if len(np.unique(combined)) < np.unique(codes, axis=1).shape[1]:
        raise ValueError(
            f"batch has rows that differ and look alike when their labels are joined by {SEPARATOR!r}; use other labels"
        )
    return BatchTable(columns, combined)


def single_column(batch: Any) -> Any:
    """Return the column of a table that has one, else what was given."""
    names = column_names(batch)
    return batch[names[0]] if len(names) == 1 else batch
