"""Adapters: what keeps the rows of arrays, memory maps, data sets of h5py, arrays of zarr and of dask.

Imports of ours nothing but lazy rows.
"""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skbegan.stored.lazy import CellSource, LazyRows, runs

__all__ = ["ArrayRows", "as_lazy", "map_stamp"]


class ArrayRows(LazyRows):
    """An array in memory, or a memory map."""

    def __init__(self, array: NDArray[Any]) -> None:
        super().__init__(array.shape, array.dtype)
        self._array = array

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        first, last = int(rows[0]), int(rows[-1]) + 1
        return self._array[first:last] if last - first == len(rows) else self._array[rows]

    def _stamp(self) -> Any:
        return map_stamp(self._array)


class _Hdf5Rows(LazyRows):
    """A data set of h5py."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset.shape, dataset.dtype)
        self._dataset = dataset
        self._place = dataset.file.filename, dataset.name
        self._bounds = _even(len(self), dataset.chunks[0] if dataset.chunks else 1)

    def _opened(self) -> Any:
        if self._dataset is None:  # in another process than that which opened the file
            import h5py

            file, name = self._place
            self._dataset = h5py.File(file, "r")[name]
        return self._dataset

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        dataset = self._opened()
        # h5py takes a list of rows too, but far more slowly; and it unpacks a chunk anew for each piece of it.
        if self._bounds is None:
            found = [dataset[start:stop] for start, stop in runs(rows)]
        else:
            block = np.searchsorted(self._bounds, rows, side="right")
            pieces = np.split(rows, np.flatnonzero(np.diff(block)) + 1)
            found = [dataset[piece[0] : piece[-1] + 1][piece - piece[0]] for piece in pieces]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _stamp(self) -> Any:
        dataset = self._opened()
        file = Path(self._place[0])
        if dataset.is_virtual or dataset.external or not file.is_file():  # the pixels are elsewhere
            return None
        return "h5py", _file_stamp(file), self._place[1], dataset.chunks, dataset.compression

    def blocks(self) -> NDArray[np.int64] | None:
        return self._bounds

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}


class _ZarrRows(LazyRows):
    """An array of zarr."""

    def __init__(self, array: Any) -> None:
        super().__init__(array.shape, array.dtype)
        self._array = array
        self._bounds = _even(len(self), (getattr(array, "shards", None) or array.chunks)[0])

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first == len(rows):  # far less work than to look up each row
            return np.asarray(self._array[first:last])
        return np.asarray(self._array.oindex[rows])

    def _stamp(self) -> Any:
        root = getattr(self._array.store, "root", None)
        folder = Path(root) / self._array.path if isinstance(root, str | Path) else None
        if folder is None or not folder.is_dir():
            return None
        found = hashlib.blake2b(digest_size=16)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            about = file.stat()
            found.update(f"{file.relative_to(folder).as_posix()} {about.st_size} {about.st_mtime_ns}\n".encode())
        return "zarr", str(folder.resolve()), found.hexdigest()

    def blocks(self) -> NDArray[np.int64] | None:
        return self._bounds


class _DaskRows(LazyRows):
    """An array of dask: rows are computed when they are asked for, each time anew."""

    def __init__(self, array: Any) -> None:
        super().__init__(array.shape, array.dtype)
        self._array = array
        self._bounds = np.cumsum((0, *array.chunks[0]), dtype=np.int64)

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        first, last = int(rows[0]), int(rows[-1]) + 1
        key = slice(first, last) if last - first == len(rows) else rows
        return np.asarray(self._array[key])

    def _stamp(self) -> Any:
        # The name is a token of all that the array is computed from.
        return "dask", self._array.name, self._array.chunks

    def blocks(self) -> NDArray[np.int64] | None:
        return self._bounds


class _SourceRows(LazyRows):
    """Somebody else's :class:`~skbegan.stored.lazy.CellSource`."""

    def __init__(self, source: CellSource) -> None:
        super().__init__(tuple(source.shape), np.dtype(source.dtype))
        self._source = source
        self._bounds = self._checked(source.blocks())

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        values = np.asarray(self._source.read(rows))
        if values.shape != (len(rows), *self.shape[1:]):
            raise ValueError(
                f"read() of {type(self._source).__name__} returned the shape {values.shape} for {len(rows)} rows; its "
                f"shape says {(len(rows), *self.shape[1:])}"
            )
        return values.astype(self.dtype, copy=False)

    def fingerprint(self) -> str:
        return str(self._source.fingerprint())

    def blocks(self) -> NDArray[np.int64] | None:
        return self._bounds

    def _checked(self, bounds: Any) -> NDArray[np.int64] | None:
        if bounds is None:
            return None
        found = np.asarray(bounds, dtype=np.int64)
        if found.ndim != 1 or len(found) < 2 or found[0] != 0 or found[-1] != len(self) or (np.diff(found) <= 0).any():
            raise ValueError(
                f"blocks() of {type(self._source).__name__} must rise from 0 to the number of cells, {len(self)}; got "
                f"{bounds!r:.80}"
            )
        return found


def as_lazy(images: Any, name: str = "the images") -> LazyRows | None:
    """Return lazy images for what stays on disk until it is indexed, or None for all else; reads nothing.

    Parameters
    ----------
    images : object
        A data set of h5py, an array of zarr or of dask with at least two axes, another
        :class:`~skbegan.stored.lazy.CellSource`, or lazy images already.
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
    if is_dask(images):
        if images.ndim < 2:
            return None
        if any(math.isnan(length) for length in images.shape):
            raise ValueError(
                f"{name} is an array of dask whose shape is not known yet, {images.shape}; let dask find it: "
                f"{name}.compute_chunk_sizes()"
            )
        return _DaskRows(images)
    if isinstance(images, CellSource) and not isinstance(images, type):
        return _SourceRows(images)
    return None


def is_dask(images: Any) -> bool:
    """Whether something is an array of dask."""
    dask = sys.modules.get("dask.array")
    return dask is not None and isinstance(images, dask.Array)


def map_stamp(array: NDArray[Any]) -> Any:
    """Return the file of a memory map, its size and time, and which part of it is seen; None for other arrays.

    The maps that joblib makes for its workers are files of another name each time: they are known by their pixels.
    """
    chain: list[Any] = [array]
    while getattr(chain[-1], "base", None) is not None:
        chain.append(chain[-1].base)
    maps = [each for each in chain if isinstance(each, np.memmap)]
    file = getattr(maps[-1], "filename", None) if maps else None
    if file is None or "joblib_memmapping_folder" in str(file) or not Path(file).is_file():
        return None
    whole = maps[-1]  # the first of all; the others are views of it
    begins = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return "memory map", _file_stamp(Path(file)), whole.offset + begins, array.strides


def _file_stamp(file: Path) -> tuple[str, int, int]:
    about = file.stat()
    return str(file.resolve()), about.st_size, about.st_mtime_ns


def _even(n: int, length: int) -> NDArray[np.int64] | None:
    """Return the bounds of blocks of a length, None for single rows."""
    return None if length <= 1 else np.append(np.arange(0, n, length, dtype=np.int64), n)
