"""Image files of laboratories: what is in them by their headers, and single images out of them.

Pixels come as they are stored, without gamma, colour profile or rescaling. The libraries that read are imported where
they are used.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skbegan._foreign import refuse_lfs_pointer
from skbegan.stored.hdf5 import RefusedError, member
from skbegan.stored.lazy import runs

__all__ = ["Header", "Layout", "OpenImages", "layout_of", "needs", "open_images"]

_FEW = 4  # channels, where neither file nor user says which axis they are: grey and alpha, RGB, RGBA
_PLANE = "YX"
_CHANNELS = "CS"
_MODES = {"1", "L", "I;16", "I;16B", "I;16L", "I", "F", "LA", "RGB", "RGBA"}  # of Pillow; others are no intensities
_TIFF_PALETTE, _TIFF_ALPHA = 3, (1, 2)  # PhotometricInterpretation; ExtraSamples


def needs(module: str, what: str) -> Any:
    """Import an optional library, or say which extra brings it.

    Raises
    ------
    ImportError
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{what} needs {module.split('.')[0]}, which is not installed: pip install 'skbegan[io]'"
        ) from error


@dataclass(frozen=True)
class Header:
    """What a file says of the images in it.

    Attributes
    ----------
    shape : tuple of int
    axes : str or None
        A letter per axis as tifffile names them; None where the file does not say.
    dtype : str
    has_alpha : bool
        Whether the last of the channels is transparency.
    chunks : tuple of int or None
        Shape of the pieces that can only be read as a whole.
    """

    shape: tuple[int, ...]
    axes: str | None
    dtype: str
    has_alpha: bool = False
    chunks: tuple[int, ...] | None = None


class OpenImages:
    """A file that is open for reading.

    Parameters
    ----------
    header : Header
    read : callable
        Takes one integer, slice or array of rising integers per axis (an array for one axis at most) and returns the
        part of the array that they name, one axis for each slice and array.
    close : callable
    """

    def __init__(
        self, header: Header, read: Callable[[tuple[Any, ...]], NDArray[Any]], close: Callable[[], None]
    ) -> None:
        self.header, self.read, self.close = header, read, close

    def __enter__(self) -> OpenImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_images(path: Path, inner: str | None) -> OpenImages:
    """Open a file of any kind that is read.

    Parameters
    ----------
    path : Path
    inner : str or None
        Name of the array within an HDF5 file or a zarr store.

    Raises
    ------
    ValueError
        For a kind that is not read, or a damaged file; the message names it.
    ImportError
        Where a library is missing.
    """
    suffix = path.suffix.lower()
    what = str(path) if inner is None else f"{path}::{inner}"
    try:
        if inner is not None:
            opener = _open_zarr if suffix == ".zarr" or path.is_dir() else _open_hdf5
            return opener(path, inner)
        if suffix not in _OPENERS:
            raise RefusedError(_unknown(suffix))
        return _OPENERS[suffix](path)
    except ImportError:
        raise
    except RefusedError as error:
        raise ValueError(f"{what}: {error}.") from error
    except Exception as error:
        if path.is_file():
            refuse_lfs_pointer(path)
        raise ValueError(f"{what} cannot be read: {_said(error)}.") from error


def _said(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _unknown(suffix: str) -> str:
    if suffix in (".h5", ".hdf5", ".hdf", ".zarr"):
        return "the name of the array is missing; write it after two colons, as in file.h5::images"
    if suffix in (".cif", ".rif", ".daf"):
        return "files of ImageStream and FlowSight are not read; export TIFF from IDEAS, see docs/own_files.md"
    return f"files that end in {suffix or 'nothing'} are not read; those that are end in {', '.join(_OPENERS)}"


# --- kinds of files ------------------------------------------------------------------------------------------------


def _open_tiff(path: Path) -> OpenImages:
    tifffile = needs("tifffile", f"Reading {path.name}")
    file = tifffile.TiffFile(path)
    try:
        if len(file.series) != 1:
            raise RefusedError(
                f"it holds {len(file.series)} series of images, such as "
                f"{' and '.join(str(tuple(series.shape)) for series in file.series[:3])}; give each a file of its own"
            )
        series = file.series[0]
        page = series.keyframe
        if int(page.photometric) == _TIFF_PALETTE:
            raise RefusedError("it is a palette image, whose numbers are places in a table of colours; convert it")
        alpha = bool(page.extrasamples) and int(page.extrasamples[-1]) in _TIFF_ALPHA and page.samplesperpixel in (2, 4)
        header = Header(
            tuple(series.shape), series.axes, np.dtype(series.dtype).newbyteorder(file.byteorder).str, alpha
        )
        n_leading = len(series.shape) - len(page.shape)
        paged = series.shape[n_leading:] == page.shape and math.prod(series.shape[:n_leading]) == len(series.pages)
        if not paged and series.dataoffset is not None:  # one directory for all, as ImageJ writes large stacks
            return OpenImages(header, _from_array(tifffile.memmap(path, series=0, mode="r")), file.close)
        if not paged and series.shape != page.shape:
            return OpenImages(header, lambda wanted: _from_array(series.asarray())(wanted), file.close)
    except BaseException:
        file.close()
        raise

    def read(wanted: tuple[Any, ...]) -> NDArray[Any]:
        """Read the pages that are wanted, and no others."""
        leading = series.shape[:n_leading]
        spans = [np.arange(length)[part] for length, part in zip(leading, wanted, strict=False)]
        grid = np.meshgrid(*map(np.atleast_1d, spans), indexing="ij")
        numbers = np.ravel_multi_index(grid, leading).ravel() if leading else np.zeros(1, int)
        pages = np.stack([file.asarray(key=int(number), series=0) for number in numbers])
        pages = pages.reshape(*(len(span) for span in spans if span.ndim), *page.shape)
        return _from_array(pages)((slice(None),) * sum(span.ndim for span in spans) + tuple(wanted[n_leading:]))

    return OpenImages(header, read, file.close)


def _open_picture(path: Path) -> OpenImages:
    image_of = needs("PIL.Image", f"Reading {path.name}")
    _refuse_deep_colour(path)
    picture = image_of.open(path)
    mode, (width, height) = picture.mode, picture.size
    try:
        if mode not in _MODES:
            kind = "a palette image, whose numbers are places in a table of colours" if mode in ("P", "PA") else ""
            raise RefusedError(f"it is {kind or f'of the mode {mode}'}; convert it to grey or RGB")
        if getattr(picture, "n_frames", 1) > 1:
            raise RefusedError(f"it is animated, {picture.n_frames} images; give each a file of its own")
    except BaseException:
        picture.close()
        raise
    n_channels = {"LA": 2, "RGB": 3, "RGBA": 4}.get(mode, 1)
    # Older Pillow calls the 16 bits of a PNG "I", which elsewhere are 32.
    dtype = {"1": np.bool_, "F": np.float32}.get(mode, np.uint16 if mode[0] == "I" else np.uint8)
    shape, axes = ((height, width), "YX") if n_channels == 1 else ((height, width, n_channels), "YXS")
    header = Header(shape, axes, np.dtype(dtype).str, mode in ("LA", "RGBA"))
    return OpenImages(header, lambda wanted: _from_array(np.asarray(picture))(wanted), picture.close)


def _refuse_deep_colour(path: Path) -> None:
    """Refuse a PNG of 16 bits with colour or alpha: Pillow would take the lower 8 bits off without a word."""
    with path.open("rb") as file:
        head = file.read(26)  # signature, length, IHDR, width, height, bit depth, kind of colour
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) == 26 and head[24] == 16 and head[25] != 0:
        raise RefusedError("it is a PNG of 16 bits with several channels, of which Pillow keeps 8; save it as TIFF")


def _open_npy(path: Path) -> OpenImages:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return OpenImages(Header(array.shape, None, array.dtype.str), _from_array(array), lambda: None)


def _open_hdf5(path: Path, inner: str) -> OpenImages:
    import h5py

    file = h5py.File(path, "r")
    try:
        found = member(file, inner)
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            raise RefusedError(f"there is no array of that name; the file holds {_some(file)}")
        if found.is_virtual or found.external:
            raise RefusedError("it shows what other files hold, and only a file's own is read; name those files")
        header = Header(found.shape, None, found.dtype.str, chunks=found.chunks)
    except BaseException:
        file.close()
        raise

    def close() -> None:
        file.close()

    return OpenImages(header, _from_array(found), close)


def _open_zarr(path: Path, inner: str) -> OpenImages:
    zarr = needs("zarr", f"Reading {path.name}")
    if ".." in Path(inner).parts:
        raise RefusedError("the name of the array leads out of the store")
    found = zarr.open(str(path), mode="r")
    if inner.strip("/"):
        try:
            found = found[inner.strip("/")]
        except KeyError:
            found = None
    if not isinstance(found, zarr.Array):
        raise RefusedError("there is no array of that name in the store")
    names = getattr(found.metadata, "dimension_names", None) or ()
    letters = "".join(str(name).upper() for name in names)
    axes = letters if len(letters) == found.ndim and set(_PLANE) <= set(letters) else None
    header = Header(found.shape, axes, np.dtype(found.dtype).str, chunks=tuple(found.chunks))
    return OpenImages(header, lambda wanted: np.asarray(found.oindex[wanted]), lambda: None)


def _some(file: Any, limit: int = 8) -> str:
    import h5py

    names: list[str] = []

    def add(name: str, node: Any) -> bool | None:
        if isinstance(node, h5py.Dataset):
            names.append(name)
        return True if len(names) >= limit else None

    file.visititems(add)
    return ", ".join(map(repr, names)) or "no arrays"


def _from_array(array: Any) -> Callable[[tuple[Any, ...]], NDArray[Any]]:
    """Return what reads parts of an array that is sliced as numpy's are; runs of positions are read at once."""

    def read(wanted: tuple[Any, ...]) -> NDArray[Any]:
        where = next((axis for axis, part in enumerate(wanted) if isinstance(part, np.ndarray)), None)
        if where is None:
            return np.asarray(array[wanted])
        axis = sum(not isinstance(part, int | np.integer) for part in wanted[:where])  # integers take an axis away
        parts = [
            np.asarray(array[(*wanted[:where], slice(start, stop), *wanted[where + 1 :])])
            for start, stop in runs(wanted[where])
        ]
        return np.concatenate(parts, axis=axis)

    return read


_OPENERS: dict[str, Callable[[Path], OpenImages]] = {
    **dict.fromkeys((".tif", ".tiff"), _open_tiff),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp"), _open_picture),
    ".npy": _open_npy,
}


# --- axes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where height, width, channels and pages are in an array.

    Attributes
    ----------
    axes : str
        A letter per axis.
    height, width : int
    n_pages : int or None
        Images that an index counts; None for a single image.
    channels : tuple of int or None
        Those that are read; None where there is no axis of channels.
    alpha : int or None
        The channel that is transparency, not among `channels`.
    dtype : str
    page_axis, channel_axis : int or None
    pages_per_chunk : int
        Images that are read from the disk for each of them.
    """

    axes: str
    height: int
    width: int
    n_pages: int | None
    channels: tuple[int, ...] | None
    alpha: int | None
    dtype: str
    page_axis: int | None
    channel_axis: int | None
    pages_per_chunk: int = 1

    @property
    def n_channels(self) -> int:
        """Channels of an image that is read, 1 where there is no axis of them."""
        return 1 if self.channels is None else len(self.channels)

    def wanted(self, pages: NDArray[np.intp] | None, channels: Sequence[int] | None) -> tuple[Any, ...]:
        """Return what to ask a file for: pages, and one or several neighbouring channels."""
        parts: list[Any] = [slice(None) if letter in _PLANE else 0 for letter in self.axes]
        if self.page_axis is not None:
            parts[self.page_axis] = pages
        if self.channel_axis is not None and channels is not None:
            parts[self.channel_axis] = slice(min(channels), max(channels) + 1)
        return tuple(parts)

    def arranged(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return what a file gave as (pages, height, width, channels)."""
        kept = [axis for axis, letter in enumerate(self.axes) if letter in _PLANE]
        first = [] if self.page_axis is None else [self.page_axis]
        last = [] if self.channel_axis is None else [self.channel_axis]
        order = [*first, self.axes.index("Y"), self.axes.index("X"), *last]
        present = sorted([*first, *kept, *last])
        values = values.transpose([present.index(axis) for axis in order])
        values = values if first else values[None]
        return values if last else values[..., None]


def layout_of(header: Header, axes: str | None, has_index: bool, channel: int | None) -> Layout:
    """Find height, width, channels and pages by the axes that the user names, the file names, or the shape shows.

    Parameters
    ----------
    header : Header
    axes : str or None
        As the user names them.
    has_index : bool
        Whether there is a number of the page for every cell.
    channel : int or None
        The one that is wanted; None for all.

    Raises
    ------
    ValueError
        Where that is doubtful or contradicts the shape.
    """
    shape = header.shape
    if np.dtype(header.dtype).kind not in "biuf":
        raise ValueError(f"it holds {header.dtype}, not real numbers")
    if 0 in shape or len(shape) < 2:
        raise ValueError(f"its shape {shape} is not that of images")
    if axes is not None and len(axes) != len(shape):
        raise ValueError(f"axes={axes!r} names {len(axes)} axes, but its shape is {shape}")
    letters = axes or header.axes or _by_shape(shape, has_index, channel is not None)
    if len(set(letters)) < len(letters) or not set(_PLANE) <= set(letters):
        raise ValueError(f"its axes are {letters!r}, and Y and X should be there, no letter twice; say them in axes")
    long = [axis for axis, letter in enumerate(letters) if letter not in _PLANE and shape[axis] > 1]
    channel_axes = [axis for axis in long if letters[axis] in _CHANNELS]
    pages = [axis for axis in long if letters[axis] not in _CHANNELS]
    if not pages and has_index:  # a stack of a single page is a stack
        pages = [axis for axis, letter in enumerate(letters) if letter not in _PLANE + _CHANNELS][:1]
    if channel is not None and not channel_axes and len(pages) == 1 and not has_index:
        channel_axes, pages = pages, []
    if len(channel_axes) > 1 or len(pages) > 1:
        raise ValueError(f"its shape {shape} with the axes {letters!r} is more than pages and channels of images")
    if pages and not has_index:
        n, letter = shape[pages[0]], letters[pages[0]]
        raise ValueError(
            f"it holds {n} images along the axis {letter!r} (shape {shape}, axes {letters!r}). If they are cells, give "
            "index='COLUMN', a column with the number of each cell's image, from 0; if they are channels, say so: "
            f"axes={letters.replace(letter, 'C')!r}"
        )
    page_axis = pages[0] if pages else None
    channel_axis = channel_axes[0] if channel_axes else None
    n_channels = 1 if channel_axis is None else shape[channel_axis]
    alpha = n_channels - 1 if header.has_alpha and channel_axis is not None else None
    known = range(n_channels if alpha is None else alpha)
    if channel is not None and channel not in known:
        raise ValueError(f"it has the channels 0 to {len(known) - 1}, and channel {channel} was asked for")
    channels = None if channel_axis is None else tuple(known) if channel is None else (channel,)
    return Layout(
        axes=letters,
        height=shape[letters.index("Y")],
        width=shape[letters.index("X")],
        n_pages=None if page_axis is None else shape[page_axis],
        channels=channels,
        alpha=alpha,
        dtype=header.dtype,
        page_axis=page_axis,
        channel_axis=channel_axis,
        pages_per_chunk=1 if page_axis is None or header.chunks is None else header.chunks[page_axis],
    )


def _by_shape(shape: tuple[int, ...], has_index: bool, has_channel: bool) -> str:
    """Name the axes of an array that does not tell them, where its shape leaves no doubt."""
    doubt = ValueError(
        f"the order of its axes is doubtful, its shape is {shape}. Name them, a letter each: axes='NYX' for one image "
        "per cell (with index='COLUMN', the number of each cell's image, from 0), 'CYX' or 'YXC' for channels"
    )
    if len(shape) == 2:
        return "YX"
    if len(shape) - has_index not in (2, 3):
        raise doubt
    first, *inner = shape[-3:]
    leads = max(first, 1) < min(inner) if has_channel else first <= _FEW < min(inner)
    trails = inner[1] <= _FEW < min(first, inner[0])
    if len(shape) == 3 and has_index:
        if trails:
            raise doubt
        return "NYX"
    if leads == trails:
        raise doubt
    return ("N" if has_index else "") + ("CYX" if leads else "YXC")
