"""Images that stay where they are stored and are read by rows. Imports nothing of ours.

A lazy array answers what an array of images is asked for: shape, dtype, length, some rows. Data sets of h5py, arrays of
zarr and of dask are wrapped into one; images in files that a table names are another, see `skbegan.datasets`.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ROWS_AT_ONCE", "LazyRows", "as_lazy", "runs"]

ROWS_AT_ONCE = 256  # read and held in addition to what was asked for


class LazyRows:
    """An array of images that reads the rows it is asked for, and never itself as a whole unless told to.

    Indexing reads: ``images[3]``, ``images[10:20]``, ``images[rows]`` with integers or booleans are arrays. `select`
    reads nothing. ``numpy.asarray(images)`` reads all.

    Parameters
    ----------
    shape : tuple of int
        (n_cells, height, width) or (n_cells, height, width, n_channels).
    dtype : numpy.dtype
        That of what is read, in the byte order of the machine.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = tuple(int(length) for length in shape)
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self._digest: str | None = None

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Return rows, at least one and at most `ROWS_AT_ONCE`, that are given in rising order, none of them twice."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Memory that all of them would take, in bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for row in range(len(self)):
            yield self[row]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(first, EllipsisType) and len(rest) < self.ndim:
            first, rest = slice(None), [Ellipsis, *rest]
        if isinstance(first, int | np.integer) and not isinstance(first, bool):
            row = self._rows(self._positions([first]))[0]
            return row[tuple(rest)] if rest else row
        positions = self._positions(first)
        if not rest or rest == [Ellipsis]:
            return self._rows(positions)
        parts = [self._rows(part)[(slice(None), *rest)] for part in _parts(positions)]
        return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self!r} is read from files, which makes an array that is a copy")
        values = self._rows(np.arange(len(self)))
        return values if dtype is None else values.astype(dtype, copy=False)

    def select(self, rows: ArrayLike | slice) -> LazyRows:
        """Return some of the rows as a lazy array; nothing is read.

        Parameters
        ----------
        rows : array-like of int or bool, or slice

        Returns
        -------
        selected : LazyRows
        """
        return _Selection(self, self._positions(rows))

    def digest(self) -> str:
        """Return a fingerprint of shape, dtype and all values; reads everything, a part at a time, once."""
        if self._digest is None:
            found = hashlib.blake2b(repr((self.shape, self.dtype.str)).encode(), digest_size=16)
            for part in _parts(np.arange(len(self))):
                found.update(np.ascontiguousarray(self._rows(part)).data)
            self._digest = found.hexdigest()
        return self._digest

    def _positions(self, key: Any) -> NDArray[np.intp]:
        """Return rows as integers from 0, of what may index the first axis of an array."""
        n = len(self)
        if isinstance(key, slice):
            return np.arange(n)[key]
        index = np.asarray(key)
        if index.dtype == np.bool_ and index.ndim == 1:
            if len(index) != n:
                raise IndexError(f"a mask of {len(index)} rows was given for {n}")
            return np.flatnonzero(index)
        if index.ndim == 1 and len(index) == 0:
            return np.empty(0, np.intp)
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise IndexError(
                "lazy images are indexed by an integer, a slice, or one-dimensional integers or booleans, got "
                f"{key!r:.80}; numpy.asarray(images) reads all of them"
            )
        if (bad := (index < -n) | (index >= n)).any():
            raise IndexError(f"row {index[bad][0]} is out of bounds for {n} rows")
        return np.where(index < 0, index + n, index).astype(np.intp)

    def _rows(self, positions: NDArray[np.intp]) -> NDArray[Any]:
        out = np.empty((len(positions), *self.shape[1:]), self.dtype)
        start = 0
        for part in _parts(positions):
            rows, where = np.unique(part, return_inverse=True)
            values = self._read(rows)
            # Rows in rising order, each once, are all that is needed: no second copy of them.
            out[start : start + len(part)] = values if np.array_equal(rows, part) else values[where]
            start += len(part)
        return out


class _Selection(LazyRows):
    """Some rows of lazy images."""

    def __init__(self, images: LazyRows, rows: NDArray[np.intp]) -> None:
        super().__init__((len(rows), *images.shape[1:]), images.dtype)
        self._images, self._chosen = images, rows

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        return self._images[self._chosen[rows]]

    def select(self, rows: ArrayLike | slice) -> LazyRows:
        return _Selection(self._images, self._chosen[self._positions(rows)])


class _Hdf5Rows(LazyRows):
    """A data set of h5py."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset.shape, dataset.dtype)
        self._dataset = dataset
        self._place = dataset.file.filename, dataset.name

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        if self._dataset is None:  # in another process than that which opened the file
            import h5py

            file, name = self._place
            self._dataset = h5py.File(file, "r")[name]
        # h5py takes a list of rows too, but far more slowly.
        return np.concatenate([self._dataset[start:stop] for start, stop in runs(rows)])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}


class _ZarrRows(LazyRows):
    """An array of zarr."""

    def __init__(self, array: Any) -> None:
        super().__init__(array.shape, array.dtype)
        self._array = array

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        return np.asarray(self._array.oindex[rows])


class _DaskRows(LazyRows):
    """An array of dask: rows are computed when they are asked for, each time anew."""

    def __init__(self, array: Any) -> None:
        super().__init__(array.shape, array.dtype)
        self._array = array

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        return np.asarray(self._array[rows])


def as_lazy(images: Any, name: str = "the images") -> LazyRows | None:
    """Return lazy images for what stays on disk until it is indexed, or None for all else; reads nothing.

    Parameters
    ----------
    images : object
        A data set of h5py, an array of zarr or of dask with at least two axes, or lazy images already.
    name : str
        What a message calls them.

    Raises
    ------
    ValueError
        For an array of dask whose shape is not known.
    """
    if isinstance(images, LazyRows):
        return images
    for module, kind, wrapper in (("h5py", "Dataset", _Hdf5Rows), ("zarr", "Array", _ZarrRows)):
        if (loaded := sys.modules.get(module)) is not None and isinstance(images, getattr(loaded, kind)):
            return wrapper(images) if len(images.shape or ()) >= 2 else None
    dask = sys.modules.get("dask.array")
    if dask is None or not isinstance(images, dask.Array) or images.ndim < 2:
        return None
    if any(math.isnan(length) for length in images.shape):
        raise ValueError(
            f"{name} is an array of dask whose shape is not known yet, {images.shape}; let dask find it: "
            f"{name}.compute_chunk_sizes()"
        )
    return _DaskRows(images)


def runs(rows: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Return where runs of consecutive rows start and stop, of rows in rising order."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, breaks)] if len(rows) else []


def _parts(positions: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(positions), ROWS_AT_ONCE):
        yield positions[start : start + ROWS_AT_ONCE]
