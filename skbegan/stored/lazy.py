"""Images that stay where they are stored and are read by rows. Imports nothing of ours.

A lazy array answers what an array of images is asked for: shape, dtype, length, some rows. What is kept by h5py, zarr
and dask is wrapped into one in :mod:`skbegan.stored.adapters`; images in files that a table names are another, see
`skbegan.datasets`.
"""

from __future__ import annotations

import hashlib
import math
import queue
import threading
from collections.abc import Iterator
from types import EllipsisType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ROWS_AT_ONCE", "CellSource", "KeptRows", "LazyRows", "ahead", "in_order", "parts_of", "runs", "spread_rows"]

T = TypeVar("T")

ROWS_AT_ONCE = 256  # read and held in addition to what was asked for, or one block if that is more
_SHOWN = 16  # cells whose pixels a fingerprint holds


@runtime_checkable
class CellSource(Protocol):
    """Images of cells, wherever they are: what ``fit``, ``transform`` and ``predict_image`` read any images through.

    Arrays, memory maps, data sets of h5py, arrays of zarr and dask, and the images of
    :func:`skbegan.datasets.load_cell_table` are adapted to it. An object of your own with these members is taken too.
    Rows are read by one thread at a time, which need not be the one that made the object.

    Attributes
    ----------
    shape : tuple of int
        (n_cells, side, side) or (n_cells, side, side, n_channels).
    dtype : numpy.dtype
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Return images of some cells, given by rising numbers, none of them twice."""

    def blocks(self) -> NDArray[np.int64] | None:
        """Return where blocks of cells that are stored together start, and last the number of cells.

        None where single cells are read as fast as neighbours, as from a memory map.
        """

    def fingerprint(self) -> str:
        """Return what changes when the images do: caches and checkpoints know them by it. Reads few pixels."""


class LazyRows:
    """An array of images that reads the rows it is asked for, and never itself as a whole unless told to.

    Indexing reads: ``images[3]``, ``images[10:20]``, ``images[rows]`` with integers or booleans are arrays. `select`
    reads nothing. ``numpy.asarray(images)`` reads all. It is a :class:`CellSource`.

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

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Return rows, at least one, that are given in rising order, none of them twice."""
        raise NotImplementedError

    def _stamp(self) -> Any:
        """Return what tells these images from others without their pixels; None if nothing does, and all are read."""
        return None

    def blocks(self) -> NDArray[np.int64] | None:
        """Return the bounds of blocks that are stored together, see :class:`CellSource`."""
        return None

    def read(self, rows: ArrayLike) -> NDArray[Any]:
        """Return some rows in the order they are asked for; they are read in that of the file, a block once."""
        return self._rows(self._positions(rows))

    def fingerprint(self) -> str:
        """Return a digest of shape, dtype, what is known of the files, and the pixels of a few cells.

        Where nothing is known of files all pixels are read.
        """
        stamp = self._stamp()
        found = hashlib.blake2b(repr((self.shape, self.dtype.str, stamp)).encode(), digest_size=16)
        if stamp is None:
            for start, stop in parts_of(self):
                found.update(np.ascontiguousarray(self._rows(np.arange(start, stop))).data)
        elif len(self):
            rows = np.unique(np.linspace(0, len(self) - 1, _SHOWN).round().astype(np.intp))
            found.update(np.ascontiguousarray(self._rows(rows)).data)
        return found.hexdigest()

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
        parts = [
            self._rows(positions[start : start + ROWS_AT_ONCE])[(slice(None), *rest)]
            for start in range(0, len(positions), ROWS_AT_ONCE)
        ]
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

    def _positions(self, key: Any) -> NDArray[np.intp]:
        """Return rows as integers from 0, of what may index the first axis of an array."""
        n = len(self)
        if isinstance(key, slice):
            return np.arange(*key.indices(n))
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
        rising = bool((positions[1:] > positions[:-1]).all())
        order = None if rising else np.argsort(positions, kind="stable")
        asked = positions if order is None else positions[order]
        for start, stop in _cut(asked, self.blocks()):
            part = asked[start:stop]
            if order is None:  # no second copy
                out[start:stop] = self._read(part)
            else:
                rows, where = np.unique(part, return_inverse=True)
                out[order[start:stop]] = self._read(rows)[where]
        return out


class _Selection(LazyRows):
    """Some rows of lazy images."""

    def __init__(self, images: LazyRows, rows: NDArray[np.intp]) -> None:
        super().__init__((len(rows), *images.shape[1:]), images.dtype)
        self._images, self._chosen = images, rows

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        return self._images.read(self._chosen[rows])

    def _stamp(self) -> Any:
        return self._images.fingerprint(), hashlib.blake2b(self._chosen.tobytes(), digest_size=16).hexdigest()

    def blocks(self) -> NDArray[np.int64] | None:
        bounds = self._images.blocks()
        if bounds is None or (self._chosen[1:] < self._chosen[:-1]).any():
            return None
        return np.unique(np.searchsorted(self._chosen, bounds)).astype(np.int64)

    def select(self, rows: ArrayLike | slice) -> LazyRows:
        return _Selection(self._images, self._chosen[self._positions(rows)])


class KeptRows(LazyRows):
    """Lazy images some of whose rows were read once and are held in memory.

    Parameters
    ----------
    images : LazyRows
    rows : ndarray of int
        Rising, none twice.
    """

    def __init__(self, images: LazyRows, rows: NDArray[np.intp]) -> None:
        super().__init__(images.shape, images.dtype)
        self.images, self._chosen, self._kept = images, rows, images.read(rows)

    def _rows(self, positions: NDArray[np.intp]) -> NDArray[Any]:
        if len(self._chosen) == len(self):
            kept: NDArray[Any] = self._kept[positions]
            return kept
        where = np.searchsorted(self._chosen, positions)
        if len(self._chosen) and np.array_equal(self._chosen[where.clip(max=len(self._chosen) - 1)], positions):
            return self._kept[where]
        return self.images.read(positions)

    def blocks(self) -> NDArray[np.int64] | None:
        return self.images.blocks()

    def fingerprint(self) -> str:
        return self.images.fingerprint()


def runs(rows: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Return where runs of consecutive rows start and stop, of rows in rising order."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, breaks)] if len(rows) else []


def parts_of(images: Any, at_once: int = ROWS_AT_ONCE, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield where parts start and stop that make up all rows: of at most `at_once` rows, or one block that is longer.

    Blocks are whole, so that each is read once.

    Parameters
    ----------
    images : ndarray or LazyRows
    at_once : int, default=256
    start : int, default=0
        First row.
    """
    n, bounds = len(images), images.blocks() if isinstance(images, LazyRows) else None
    while start < n:
        stop = min(n, start + at_once)
        if bounds is not None and stop < n:
            last = int(np.searchsorted(bounds, stop, side="right")) - 1
            stop = int(bounds[last]) if bounds[last] > start else int(bounds[last + 1])
        yield start, stop
        start = stop


def in_order(images: Any, size: int, start: int = 0) -> Iterator[NDArray[Any]]:
    """Yield images of consecutive cells, `size` at a time: of an array as views, of lazy images read ahead by a thread.

    Parameters
    ----------
    images : ndarray or LazyRows
    size : int
        Cells at a time; the last part may be shorter.
    start : int, default=0
        First cell.
    """
    if not isinstance(images, LazyRows):
        for first in range(start, len(images), size):
            yield images[first : first + size]
        return
    rest: NDArray[Any] | None = None
    for part in ahead(images[first:stop] for first, stop in parts_of(images, max(size, ROWS_AT_ONCE), start)):
        held = part if rest is None or not len(rest) else np.concatenate([rest, part])
        whole = len(held) - len(held) % size
        for first in range(0, whole, size):
            yield held[first : first + size]
        rest = held[whole:].copy()
    if rest is not None and len(rest):
        yield rest


def ahead(values: Iterator[T]) -> Iterator[T]:
    """Yield what an iterator does; a thread makes the next value while one is used."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def goes_on() -> bool:
        return not stopped.is_set() and threading.main_thread().is_alive()

    def put(kind: str, value: Any) -> None:
        while goes_on():
            try:
                return ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for value in values:
                put("value", value)
                if not goes_on():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    # No daemon: cut off in a library of C++ while Python exits, it would end the process with an error.
    thread = threading.Thread(target=work, name="skbegan reads ahead")
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()


def _cut(rows: NDArray[np.intp], bounds: NDArray[np.int64] | None) -> Iterator[tuple[int, int]]:
    """Yield parts of rising rows of at most `ROWS_AT_ONCE`, or those of one block that is longer."""
    start = 0
    while start < len(rows):
        stop = min(len(rows), start + ROWS_AT_ONCE)
        if bounds is not None and stop < len(rows):
            block = int(np.searchsorted(bounds, rows[stop], side="right")) - 1
            first = int(np.searchsorted(rows, bounds[block]))
            stop = first if first > start else int(np.searchsorted(rows, bounds[block + 1]))
        yield start, stop
        start = stop


def spread_rows(images: Any, n_rows: int, n_blocks: int = 64) -> NDArray[np.intp] | None:
    """Return some rows of lazy images, spread over all in pieces of blocks, or None where all can be looked at.

    Parameters
    ----------
    images : ndarray or LazyRows
    n_rows : int
        At most; with no more, and for arrays, None is returned.
    n_blocks : int, default=64
        Places that they are read from.
    """
    n = len(images)
    if not isinstance(images, LazyRows) or n <= n_rows:
        return None
    length = n_rows // n_blocks
    starts = np.linspace(0, n - length, n_blocks).astype(np.intp)
    return np.unique((starts[:, None] + np.arange(length)).ravel())
