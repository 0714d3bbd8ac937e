"""Images of any size and shape become squares of one side."""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbegan._foreign import what_reads_it

__all__ = ["resize_images"]

Fit = Literal["pad", "crop", "stretch"]
FITS = ("pad", "crop", "stretch")
CHUNK_BYTES = 64 * 2**20  # working memory of one resizing step


def resize_images(
    images: ArrayLike | Sequence[ArrayLike],
    side: int,
    fit: Fit = "pad",
    *,
    frame: int | None = None,
    antialias: bool = False,
) -> NDArray[np.float32]:
    """Make square images of one side, with OpenCV's bicubic kernel (``INTER_CUBIC``) as the original's loader does.

    The kernel has A = -0.75, pixels beyond the border repeat the border pixel, and nothing is smoothed before
    shrinking unless `antialias` is set. Works in chunks, so the memory needed beyond input and output is bounded.

    Parameters
    ----------
    images : array-like of shape (n_cells, height, width) or (n_cells, height, width, n_channels), or a list of images
        Real images of any dtype, in any unit. A list (an object array, a column of a table) may hold images of
        different heights and widths, each (height, width) or (height, width, n_channels).
    side : int
        Side of the resized images, in pixels.
    fit : {"pad", "crop", "stretch"}, default="pad"
        What becomes of images that are not square. "pad" puts them in the middle of a square of background, the median
        of the image's border pixels (of each channel); "crop" cuts the square out of their middle; both keep the shape
        of cells. "stretch" scales height and width each to `side`. All images of one call keep one scale with "pad"
        and "crop": the square is that of the longest edge among them, or of the shortest.
    frame : int or None, default=None
        With "pad" and "crop": side in pixels of the square that images are put into or cut to before they are scaled.
        Images that are larger are cut, smaller ones padded. Give the same `frame` in several calls for the same scale
        in all; None takes it from the images of this call.
    antialias : bool, default=False
        Smooth before shrinking, by widening the kernel (A = -0.5) as Pillow does. Without it, as in the original,
        shrinking to less than half leaves pixels out, and noise stays.

    Returns
    -------
    resized : ndarray of shape (n_cells, side, side) or (n_cells, side, side, n_channels), float32
        A new array, in the unit of `images`. Images that already have this shape are only converted.

    Raises
    ------
    ValueError
        If the images are not real, are not 3- or 4-dimensional (2 or 3 each in a list), differ in channels, or have
        channels first, if `side` or `frame` is below 1, or `fit` is none of the three.
    TypeError
        If `side` or `frame` is not an integer, or `images` is no array (a file name, a data set of torch).

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.datasets import resize_images
    >>> resize_images(np.ones((5, 45, 45)), 32).shape
    (5, 32, 32)
    >>> resize_images([np.ones((20, 30)), np.ones((41, 28))], 32, fit="pad").shape
    (2, 32, 32)
    """
    stacks = _as_stacks("images", images)
    side = check_count("image size", side)
    check_choice("fit", fit, FITS)
    if frame is not None:
        frame = check_count("frame", frame)
        if fit == "stretch":
            raise ValueError("frame is for fit='pad' and fit='crop'; fit='stretch' fills the side.")
    n_cells = sum(len(stack) for stack in stacks)
    out = np.empty((n_cells, side, side, *stacks[0].shape[3:]), dtype=np.float32)
    edges = [edge for stack in stacks for edge in stack.shape[1:3]]
    square = frame or (max(edges) if fit == "pad" else min(edges))
    start = 0
    for stack in stacks:
        resize_into(stack, out[start : start + len(stack)], None if fit == "stretch" else square, antialias=antialias)
        start += len(stack)
    return out


def resize_into(
    source: NDArray[Any], out: NDArray[np.float32], square: int | None = None, *, antialias: bool = False
) -> None:
    """Fill `out` with `source`, centred in a square of that side unless it is None, and resized if the sides differ."""
    n_channels = source.shape[3] if source.ndim == 4 else 1
    pixels = source.shape[1] * source.shape[2] + (square or 0) ** 2 + out.shape[1] * out.shape[2]
    step = max(1, CHUNK_BYTES // (4 * n_channels * pixels))
    for start in range(0, len(source), step):
        chunk = source[start : start + step]
        if square is not None:
            chunk = _centred(chunk, square)
        if chunk.shape[1:3] == out.shape[1:3]:
            out[start : start + step] = chunk
        else:
            out[start : start + step] = _interpolate(chunk, out.shape[1], out.shape[2], antialias)


def _centred(images: NDArray[Any], square: int) -> NDArray[Any]:
    """Cut what is longer than `square` and pad what is shorter."""
    height, width = images.shape[1:3]
    top, left = max(0, height - square) // 2, max(0, width - square) // 2
    images = images[:, top : top + square, left : left + square]
    height, width = images.shape[1:3]
    if height == width == square:
        return images
    images = np.asarray(images, dtype=np.float32)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1)
    padded = np.empty((len(images), square, square, *images.shape[3:]), dtype=np.float32)
    padded[:] = np.median(border, axis=1)[:, None, None]
    top, left = (square - height) // 2, (square - width) // 2
    padded[:, top : top + height, left : left + width] = images
    return padded


def _interpolate(images: NDArray[Any], height: int, width: int, antialias: bool) -> NDArray[np.float32]:
    import torch

    chunk = np.moveaxis(images, 3, 1) if images.ndim == 4 else images[:, None]
    # A copy, because torch wants native byte order, positive strides and writable memory.
    tensor = torch.from_numpy(np.array(chunk, dtype=np.float32, order="C"))
    shrinks = height < images.shape[1] or width < images.shape[2]
    resized: NDArray[np.float32] = torch.nn.functional.interpolate(
        tensor, size=(height, width), mode="bicubic", align_corners=False, antialias=antialias and shrinks
    ).numpy()
    return np.moveaxis(resized, 1, 3) if images.ndim == 4 else resized[:, 0]


# --- checks --------------------------------------------------------------------------------------------------------


def _as_stacks(name: str, images: Any) -> list[NDArray[Any]]:
    """One array per run of images of one shape, (n, height, width) or with channels last."""
    if (what := what_reads_it(images, name)) is not None:
        raise TypeError(f"{name} must be an array or a list of images, got {what}.")
    is_list = isinstance(images, list | tuple) or _is_column(images)
    if not is_list or len(images) == 0:
        return [real_array(name, images, (3, 4))]
    arrays = [np.asarray(image) for image in images]
    for position, array in enumerate(arrays):
        if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "biuf":
            raise ValueError(
                f"{name} must hold real images of shape (height, width) or (height, width, n_channels); the image at "
                f"position {position} has the shape {array.shape} and the dtype {array.dtype}."
            )
        if array.shape[2:] != arrays[0].shape[2:]:
            raise ValueError(
                f"{name} must have the same channels in all images; the first has the shape {arrays[0].shape}, that at "
                f"position {position} {array.shape}."
            )
    _refuse_channels_first(name, (len(arrays), *arrays[0].shape))
    return list(_runs(arrays))


def _is_column(images: Any) -> bool:
    """A column of a table, or an array, of which each entry is an image."""
    return (
        getattr(getattr(images, "dtype", None), "kind", "O") == "O"
        and hasattr(images, "dtype")
        and np.ndim(images) == 1
    )


def _runs(arrays: list[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Stack neighbours of one shape and dtype; a few at a time, for resizing copies them."""
    start = 0
    for stop in range(1, len(arrays) + 1):
        alike = stop < len(arrays) and arrays[stop].shape == arrays[start].shape
        if not (alike and arrays[stop].dtype == arrays[start].dtype):
            yield np.stack(arrays[start:stop])
            start = stop


def _refuse_channels_first(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 4 and shape[2] == shape[3] >= 16 > shape[1]:  # narrow images of few channels are no such case
        raise ValueError(
            f"{name} has the shape {shape}: channels come last, (n_cells, height, width, n_channels). Move them: "
            f"np.moveaxis({name}, 1, -1)."
        )


def real_array(name: str, values: ArrayLike, ndims: tuple[int, ...]) -> NDArray[Any]:
    """An array of real numbers with as many axes as allowed, none of them empty but that of the cells."""
    if (what := what_reads_it(values, name)) is not None:
        raise TypeError(f"{name} must be an array, got {what}.")
    array = np.asarray(values)
    if array.ndim not in ndims or 0 in array.shape[1:]:
        expected = "(n_cells, height, width) or (n_cells, height, width, n_channels)" if 3 in ndims else "(n_cells, n)"
        single = f" A single image is {name}[None]." if array.ndim == 2 and 3 in ndims else ""
        raise ValueError(f"{name} must have the shape {expected}, got {array.shape}.{single}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got the dtype {array.dtype}.")
    if 3 in ndims:
        _refuse_channels_first(name, array.shape)
    return array


def check_count(name: str, value: int) -> int:
    """An integer of at least 1."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}.")
    return int(value)


def check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    """One of several words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")
