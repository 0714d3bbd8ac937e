"""Images of the cells of a table, read from their files when they are asked for."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skbegan.datasets._image_files import Layout, OpenImages, open_images
from skbegan.datasets.resizing import CHUNK_BYTES, resize_into
from skbegan.stored.lazy import LazyRows

__all__ = ["Column", "TableImages", "blocks_of"]

_KEPT_OPEN = 4  # files with many images, so that their directories are not read again for each


@dataclass(frozen=True)
class Column:
    """Where the images of one column of a table are.

    Attributes
    ----------
    name : str
        As the user wrote it, with the channel.
    files : sequence of (str, str or None)
        Different files, each with the name of the array in it.
    layouts : sequence of Layout
        Of each file.
    file : ndarray of int, shape (n_cells,)
        Which file the image of each cell is in.
    page : ndarray of int, shape (n_cells,), or None
        Which image of the file it is.
    """

    name: str
    files: Sequence[tuple[str, str | None]]
    layouts: Sequence[Layout]
    file: NDArray[np.intp]
    page: NDArray[np.intp] | None

    @property
    def n_channels(self) -> int:
        """Channels of every image."""
        return self.layouts[0].n_channels


class TableImages(LazyRows):
    """Images of one side, float32, that are read from their files, and fitted to that side, row by row.

    Parameters
    ----------
    columns : sequence of Column
        Their channels follow one another.
    side : int
        In pixels.
    square : int or None
        Side of the square that images are centred in before they are scaled; None stretches them.
    antialias : bool
    """

    def __init__(self, columns: Sequence[Column], side: int, square: int | None, antialias: bool) -> None:
        n_channels = sum(column.n_channels for column in columns)
        # As with an array of one channel, there is no axis of channels then.
        shape = (len(columns[0].file), side, side, *((n_channels,) if n_channels > 1 else ()))
        super().__init__(shape, np.dtype(np.float32))
        self._columns, self._square, self._antialias = tuple(columns), square, antialias
        self._open: OrderedDict[tuple[str, str | None], OpenImages] = OrderedDict()
        self._lock = threading.RLock()
        self._bounds = blocks_of(self._columns)

    def blocks(self) -> NDArray[np.int64] | None:
        return self._bounds

    def close(self) -> None:
        """Close the files that are kept open; they are opened again when rows are read."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=OrderedDict(), _lock=threading.RLock())

    def _stamp(self) -> Any:
        parts: list[Any] = [self._square, self._antialias]
        for column in self._columns:
            found = hashlib.blake2b(digest_size=16)
            for name, inner in column.files:
                about = Path(name).stat()
                found.update(f"{Path(name).resolve()} {inner} {about.st_size} {about.st_mtime_ns}\n".encode())
            for numbers in (column.file, column.page):
                found.update(b"" if numbers is None else np.ascontiguousarray(numbers).data)
            parts.append((column.name, [repr(layout) for layout in set(column.layouts)], found.hexdigest()))
        return "table", parts

    def _read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        out = np.empty((len(rows), *self.shape[1:3], sum(column.n_channels for column in self._columns)), np.float32)
        start = 0
        with self._lock:
            for column in self._columns:
                stop = start + column.n_channels
                numbers = column.file[rows]
                order = np.argsort(numbers, kind="stable")
                for places in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
                    self._fill(column, int(numbers[places[0]]), rows[places], places, out[..., start:stop])
                start = stop
        return out.reshape(len(rows), *self.shape[1:])

    def _fill(
        self, column: Column, number: int, rows: NDArray[np.intp], places: NDArray[np.intp], out: NDArray[np.float32]
    ) -> None:
        """Put the images of cells `rows`, all of one file, at `places` of `out`."""
        layout, place = column.layouts[number], column.files[number]
        several = layout.n_pages is not None
        page = column.page[rows] if several and column.page is not None else np.zeros(len(rows), np.intp)
        pages = np.unique(page)
        image_bytes = layout.height * layout.width * layout.n_channels * np.dtype(layout.dtype).itemsize
        step = max(1, CHUNK_BYTES // max(1, image_bytes))
        images = self._opened(place, keep=several)
        try:
            for start in range(0, len(pages), step):
                part = pages[start : start + step]
                fitted = np.empty((len(part), *out.shape[1:]), np.float32)
                resize_into(_pixels(images, layout, part, place), fitted, self._square, antialias=self._antialias)
                where = np.searchsorted(part, page).clip(max=len(part) - 1)
                here = part[where] == page
                out[places[here]] = fitted[where[here]]
        finally:
            if not several:
                images.close()

    def _opened(self, place: tuple[str, str | None], keep: bool) -> OpenImages:
        if not keep:
            return open_images(Path(place[0]), place[1])
        if place not in self._open:
            while len(self._open) >= _KEPT_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[place] = open_images(Path(place[0]), place[1])
        self._open.move_to_end(place)
        return self._open[place]


def blocks_of(columns: Sequence[Column]) -> NDArray[np.int64] | None:
    """Return where the cells of another chunk begin, None where chunks hold one cell or cells are in another order."""
    longest: NDArray[np.int64] | None = None
    for column in columns:
        per_chunk = np.array([layout.pages_per_chunk for layout in column.layouts], dtype=np.int64)
        if column.page is None or per_chunk.max() <= 1:
            continue
        chunk = column.page // per_chunk[column.file]
        steps = np.diff(column.file), np.diff(chunk)
        if ((steps[0] < 0) | ((steps[0] == 0) & (steps[1] < 0))).any():
            return None
        starts = np.flatnonzero((steps[0] != 0) | (steps[1] != 0)) + 1
        bounds = np.array([0, *starts, len(chunk)], dtype=np.int64)
        if len(bounds) <= len(chunk) // 2 + 1 and (longest is None or len(bounds) < len(longest)):
            longest = bounds
    return longest


def _pixels(images: OpenImages, layout: Layout, pages: NDArray[np.intp], place: tuple[str, str | None]) -> NDArray[Any]:
    """Return images of an open file, (n, height, width, channels), without their alpha."""
    what = place[0] if place[1] is None else f"{place[0]}::{place[1]}"
    channels = layout.channels
    if channels is not None and layout.alpha is not None:
        channels = tuple(range(layout.alpha + 1))
    try:
        values = layout.arranged(images.read(layout.wanted(pages, channels)))
    except Exception as error:
        raise ValueError(f"{what} cannot be read; it is damaged or was changed ({error}).") from error
    if values.shape[1:3] != (layout.height, layout.width):
        raise ValueError(f"{what} has changed since the table was read; load the table again.")
    if layout.alpha is None or layout.channels is None:
        return values
    opaque = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    if (values[..., -1] != opaque).any():
        raise ValueError(f"{what} is transparent in places; fill them with a background and save it without alpha.")
    return values[..., list(layout.channels)]
