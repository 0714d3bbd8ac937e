"""Predicted images, or any others, to files that image software opens: OME-TIFF, Zarr, MATLAB, NumPy."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skbegan import checks
from skbegan._model_estimator import ModelEstimator
from skbegan.io._predicting import PARTS, PIXELS, check_pixel_size, checked, ending_of, needed, part_of, predictions
from skbegan.stored.atomic import check_new, in_one_step

if TYPE_CHECKING:
    from skbegan.estimator import BeGANTransformer

__all__ = ["write_images"]

_MAX_MATLAB = 2**31 - 1  # bytes of a variable in MATLAB's v5 format
_BIG_TIFF = 2**32 - 2**25  # bytes from which 32-bit offsets may not do
_OME_TYPES = {np.dtype(name) for name in ("i1", "i2", "i4", "u1", "u2", "u4", "f4", "f8")}


@dataclass(frozen=True)
class _Stack:
    """Images of cells, to be read once and in order."""

    shape: tuple[int, ...]  # (n, H, W) or (n, H, W, C)
    dtype: np.dtype[Any]
    part: int  # cells
    chunks: Callable[[], Iterator[np.ndarray]]
    pixel_size: float | None
    channel_names: list[str] | None
    variable: str

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_images(
    path: str | os.PathLike[str],
    est_or_images: BeGANTransformer | Any,
    X_bf: Any = None,
    *,
    pixel_size: float | None = None,
    channel_names: Sequence[str] | None = None,
    variable: str = "images",
    overwrite: bool = False,
    as_batch: Any = None,
) -> Path:
    """Predict the target images of cells and write them, or write images that you have.

    Parameters
    ----------
    path : path-like
        In a folder that exists. Its suffix says what is written:

        ================================================  =======================================================
        ``.ome.tiff``, ``.ome.tif``, ``.tiff``, ``.tif``  OME-TIFF, a page for each cell and channel
        ``.zarr``                                         a Zarr array, a folder
        ``.npy``                                          NumPy's format
        ``.mat``                                          a MATLAB file (v5) of height x width x cells, or height x
                                                          width x channels x cells, as
                                                          :func:`~skbegan.datasets.load_cell_images` reads
        ================================================  =======================================================
    est_or_images : BeGANTransformer or array-like of shape (n_cells, H, W) or (n_cells, H, W, n_channels)
        A fitted transformer, which predicts the images of `X_bf`; or images, which are written as they are.
    X_bf : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels), default=None
        Brightfield images like those of fit, with a transformer only; may be a memory map.
    pixel_size : float, default=None
        Side of a pixel in micrometres, in the object. OME-TIFF and Zarr keep it.
    channel_names : sequence of str, default=None
        OME-TIFF and Zarr keep them.
    variable : str, default="images"
        Name of the MATLAB variable; ``"QPI"`` and so on are what the original reads.
    overwrite : bool, default=False
        Whether what exists is replaced. It is replaced at the very end: whenever something fails it is still what it
        was.
    as_batch : label or dict of str to label, default=None
        With a transformer: the images as that batch would show them, see
        :meth:`~skbegan.BeGANTransformer.predict_image`.

    Returns
    -------
    path : Path

    Raises
    ------
    ImportError
        Without tifffile or zarr, the extra ``io``, where they are needed.
    FileExistsError
        If the file exists and `overwrite` is False.
    FileNotFoundError, IsADirectoryError, NotADirectoryError
        For a place that cannot be written to.
    NotFittedError
        If the transformer is not fitted.
    TypeError, ValueError
        For input that cannot be used, before anything is computed; also for more than 2 GiB of MATLAB file.

    Notes
    -----
    Images are predicted and written in parts of about 64 MB, so that memory does not limit how many there are; only a
    MATLAB file is made in memory as a whole.

    OME has no axis of cells: they lie along time, and a viewer shows them as frames.

    References
    ----------
    Goldberg, I. G., et al. The Open Microscopy Environment (OME) Data Model and XML file. Genome Biology 6, R47 (2005).

    Examples
    --------
    >>> import tempfile, numpy, skbegan
    >>> cells = skbegan.datasets.make_cell_images(60, 2, 2, 16, random_state=0)
    >>> began = skbegan.BeGANTransformer(
    ...     base_width=4, n_features=8, pretrain_epochs=1, removal_epochs=0, random_state=0
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = skbegan.write_images(f"{folder}/images.npy", began.fit(cells.bf, cells.qpi), cells.bf)
    ...     numpy.load(path).shape
    (60, 16, 16)
    """
    path = Path(path)
    suffix = ending_of(path, _WRITERS)
    write, package = _WRITERS[suffix]
    if package is not None:
        needed(package, f"writing {suffix}")
    check_new(path, overwrite, "folder" if suffix == ".zarr" else "file")
    if suffix == ".zarr" and path.exists() and not (path / "zarr.json").exists() and not (path / ".zarray").exists():
        raise FileExistsError(f"{path} is a folder but no Zarr array, and is not replaced; give another name")
    if pixel_size is not None:
        check_pixel_size(pixel_size)
    stack = _stack(est_or_images, X_bf, pixel_size, channel_names, variable, as_batch)
    if suffix == ".mat" and stack.n_bytes > _MAX_MATLAB:
        raise ValueError(
            f"{path.name} would hold {stack.n_bytes} bytes, and a variable of MATLAB's v5 format holds {_MAX_MATLAB}; "
            "write fewer cells, or .zarr or .ome.tiff"
        )
    if package == "tifffile" and stack.dtype.newbyteorder("=") not in _OME_TYPES:
        raise ValueError(f"OME-TIFF has no type for {stack.dtype}; convert the images, to float32 for example")
    with in_one_step(path) as draft:
        write(draft, stack)
    return path


def _stack(
    source: Any, X_bf: Any, pixel_size: float | None, names: Sequence[str] | None, variable: str, as_batch: Any
) -> _Stack:
    if isinstance(source, ModelEstimator) or X_bf is not None:
        bf = checked(source, X_bf, "write_images with X_bf") if X_bf is not None else None
        if bf is None:
            raise ValueError("write_images needs X_bf, whose images the transformer is to predict")
        if as_batch is not None:
            source._model.as_of_batch(as_batch)
        shape, dtype = (len(bf), *source.target_shape_), np.dtype(np.float32)
        part = part_of(source)

        def chunks() -> Iterator[np.ndarray]:
            return predictions(source, bf, "images", as_batch)
    else:
        if as_batch is not None:
            raise ValueError("as_batch is for a transformer and X_bf; images that you have are written as they are")
        images = checks.as_array(source, "images")
        if images.ndim not in (3, 4) or 0 in images.shape:
            raise ValueError(
                f"images must have shape (n_cells, H, W) or (n_cells, H, W, n_channels), got {images.shape}"
            )
        shape, dtype = images.shape, images.dtype
        part = max(1, PIXELS // math.prod(shape[1:]))

        def chunks() -> Iterator[np.ndarray]:
            for start in range(0, len(images), PARTS * part):
                yield images[start : start + PARTS * part]

    n_channels = shape[3] if len(shape) == 4 else 1
    if names is not None and (isinstance(names, str) or len(names) != n_channels):
        raise ValueError(f"channel_names must name {n_channels} channel(s), got {names!r}")
    return _Stack(shape, dtype, part, chunks, pixel_size, None if names is None else list(map(str, names)), variable)


# Formats --------------------------------------------------------------------------------------------------------------


def _write_tiff(path: Path, stack: _Stack) -> None:
    tifffile = needed("tifffile", "writing OME-TIFF")
    n, height, width, *channels = stack.shape
    metadata: dict[str, Any] = {"axes": "TCYX" if channels else "TYX"}
    if stack.pixel_size is not None:
        for axis in "XY":
            metadata |= {f"PhysicalSize{axis}": float(stack.pixel_size), f"PhysicalSize{axis}Unit": "µm"}
    if stack.channel_names is not None:
        metadata["Channel"] = {"Name": stack.channel_names}

    def pages() -> Iterator[np.ndarray]:
        for chunk in stack.chunks():
            for image in chunk:
                for page in np.moveaxis(image, -1, 0) if channels else [image]:
                    yield np.ascontiguousarray(page, dtype=stack.dtype.newbyteorder("="))

    with tifffile.TiffWriter(path, bigtiff=stack.n_bytes > _BIG_TIFF, ome=True) as writer:
        writer.write(
            pages(),
            shape=(n, *channels, height, width),
            dtype=stack.dtype.newbyteorder("="),
            photometric="minisblack",
            metadata=metadata,
        )


def _write_zarr(path: Path, stack: _Stack) -> None:
    zarr = needed("zarr", "writing .zarr")
    about: dict[str, Any] = {}
    if stack.pixel_size is not None:
        about |= {"pixel_size": float(stack.pixel_size), "unit": "micrometer"}
    if stack.channel_names is not None:
        about["channel_names"] = stack.channel_names
    array = zarr.create_array(
        str(path),
        shape=stack.shape,
        dtype=stack.dtype,
        chunks=(min(stack.part, stack.shape[0]), *stack.shape[1:]),
        dimension_names=("cell", "y", "x", "channel")[: len(stack.shape)],
        attributes=about,
    )
    start = 0
    for chunk in stack.chunks():
        array[start : start + len(chunk)] = chunk
        start += len(chunk)


def _write_npy(path: Path, stack: _Stack) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(stack.dtype), "fortran_order": False, "shape": stack.shape}
    with path.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, about)
        for chunk in stack.chunks():
            file.write(np.ascontiguousarray(chunk).data)


def _write_mat(path: Path, stack: _Stack) -> None:
    from skbegan.datasets._writing import write_v5

    images = np.empty((*stack.shape[1:], stack.shape[0]), dtype=stack.dtype, order="F")
    start = 0
    for chunk in stack.chunks():
        images[..., start : start + len(chunk)] = np.moveaxis(chunk, 0, -1)
        start += len(chunk)
    write_v5(path, stack.variable, images)


_WRITERS: dict[str, tuple[Callable[[Path, _Stack], None], str | None]] = {
    ".tiff": (_write_tiff, "tifffile"),
    ".tif": (_write_tiff, "tifffile"),
    ".zarr": (_write_zarr, "zarr"),
    ".npy": (_write_npy, None),
    ".mat": (_write_mat, None),
}
