"""One MATLAB file of images: what it holds, without reading it, and the images of one variable."""

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skbegan._foreign import listed, refuse_lfs_pointer
from skbegan.datasets._matheaders import read_headers
from skbegan.stored.hdf5 import (
    RefusedError,
    TooLargeError,
    as_text,
    attribute,
    check_dataset,
    check_size,
    link_of,
    member,
)

_NUMERIC_CLASSES = {"double", "single", "logical"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_PART_BYTES = 64 * 2**20  # HDF5 is read in parts of about this size
_MAX_SEARCHED = 300  # variables of a file that are looked at in search of the only images
_MAX_AXES = 32


def pick(wanted: str, names: Iterable[str]) -> str | None:
    """The name that equals `wanted`, or else the first that does so in another case."""
    names = sorted(names)
    if wanted in names:
        return wanted
    return next((name for name in names if name.casefold() == wanted.casefold()), None)


@dataclass(frozen=True)
class ImageVariable:
    """Where a stack of images lies. `shape` is height, width, (channels,) and, unless it is a matrix, cells.

    `axes` names the axes as they lie in the file, as the reader shows them: of MATLAB's "hwn", scipy shows "hwn" and
    h5py "nwh".
    """

    path: Path
    variable: str
    shape: tuple[int, ...]
    reader: Literal["h5py", "scipy"]
    axes: str
    n_bytes: int

    @property
    def n_cells(self) -> int:
        return self.shape[-1] if len(self.shape) > 2 else 1

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape if len(self.shape) == 2 else self.shape[:-1]

    def __str__(self) -> str:
        n_cells, size = self.n_cells, " x ".join(map(str, self.image_shape))
        return f"{self.path} ({n_cells} cell{'s' if n_cells != 1 else ''} of {size})"


@dataclass(frozen=True)
class _Found:
    """One variable of a file. `shape` is MATLAB's, or h5py's where MATLAB did not write it."""

    matlab_class: str
    shape: tuple[int, ...] = ()
    item_bytes: int = 0
    by_matlab: bool = True

    @property
    def is_images(self) -> bool:
        return self.matlab_class in _NUMERIC_CLASSES and len(self.shape) in (3, 4) and 0 not in self.shape


def inspect(path: Path, variable: str | None, suffix: str, axes: str | None, max_expansion: float) -> ImageVariable:
    """Find a variable in a file and check that it can be a stack of images.

    Without a name it is the one that is called as the file's suffix, or else the only one that holds images.
    """
    import h5py

    refuse_lfs_pointer(path)
    try:
        is_hdf5 = h5py.is_hdf5(path)
        name, found = (_choose_hdf5 if is_hdf5 else _choose_v5)(path, variable, suffix)
    except RefusedError as error:
        raise ValueError(f"{path} is not read: {error}.") from error
    except _NoVariableError as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # the readers let many types through: OSError, zlib.error, KeyError, ...
        raise _unreadable(path, error) from error
    if found.matlab_class not in _NUMERIC_CLASSES:
        raise ValueError(_not_images(path, name, found.matlab_class))
    size = " x ".join(map(str, found.shape))
    if 0 in found.shape:
        raise ValueError(f"{name} in {path} is empty ({size}). Export it again, or remove the folder of the group.")
    if len(found.shape) not in (2, 3, 4):
        raise ValueError(
            f"{name} in {path} has the shape {size}; expected height x width x cells, or height x width x channels x "
            "cells."
        )
    order = _order(f"{name} in {path}", found, axes)
    shape = tuple(found.shape[order.index(letter)] for letter in "hwcn" if letter in order)
    # What is read at once and what becomes of it, float32; HDF5 is read in parts.
    n_bytes = math.prod(shape) * (4 if is_hdf5 else found.item_bytes + 4)
    try:
        _check_size(path, name, is_hdf5, n_bytes, max_expansion)
    except TooLargeError as error:
        raise ValueError(
            f"{path} is not read: {error}. If you trust the file, set max_expansion={math.ceil(error.times)}."
        ) from error
    except RefusedError as error:
        raise ValueError(f"{path} is not read: {error}.") from error
    except Exception as error:
        raise _unreadable(path, error) from error
    stored = order[::-1] if is_hdf5 and found.by_matlab else order
    return ImageVariable(path, name, shape, "h5py" if is_hdf5 else "scipy", stored, n_bytes)


class _NoVariableError(Exception):
    """The file has not the variable that was asked for; the message goes on after the file's name."""


def _choose_v5(path: Path, variable: str | None, suffix: str) -> tuple[str, _Found]:
    variables: dict[str, _Found] = {}
    for header in read_headers(path):
        if header.name in variables:
            raise RefusedError(f"it has two variables called {header.name!r}")
        variables[header.name] = _Found(header.matlab_class, header.shape, header.item_bytes)
    name = pick(suffix if variable is None else variable, variables)
    return _choose(name, variables, variable, suffix)


def _choose_hdf5(path: Path, variable: str | None, suffix: str) -> tuple[str, _Found]:
    import h5py

    with h5py.File(path, "r") as file:
        names = [name for name in file if not name.startswith("#")]  # MATLAB's own stores for references and objects
        name = pick(suffix if variable is None else variable, names)
        if name is not None:
            if (target := link_of(file, name)) is not None:
                raise RefusedError(f"{name!r} is {target}. Only what a file holds itself is read; copy it in")
            return name, _describe(file, name)
        if len(names) > _MAX_SEARCHED:
            raise _NoVariableError(f"has none of its {len(names)} variables called {(variable or suffix)!r}.")
        return _choose(None, {name: _describe(file, name) for name in names}, variable, suffix)


def _choose(name: str | None, variables: dict[str, _Found], variable: str | None, suffix: str) -> tuple[str, _Found]:
    """Return the variable of that name, or the only one with images if no name was given."""
    if name is not None:
        return name, variables[name]
    images = sorted(name for name, found in variables.items() if found.is_images)
    if variable is None and len(images) == 1:
        return images[0], variables[images[0]]
    there = [f"{key} ({variables[key].matlab_class})" for key in sorted(variables)]
    more = f" and {len(there) - 10} more" if len(there) > 10 else ""
    advice = ""
    if variable is None and images:
        advice = f" Several hold images, {listed(images)}: say which, as bf_variable or qpi_variable."
    elif images:
        advice = f" Images are in {listed(images)}."
    held = ", ".join(there[:10]) + more or "no variable"
    raise _NoVariableError(f"has no variable {variable or suffix!r}; it holds: {held}.{advice}")


def _describe(file: Any, name: str) -> _Found:
    """Class and shape of a variable of a v7.3 file, from its header."""
    import h5py

    if link_of(file, name) is not None:
        return _Found("link to elsewhere")
    item = file[name]
    matlab_class = as_text(attribute(item, "MATLAB_class") or "")
    if "MATLAB_sparse" in item.attrs:
        return _Found("sparse")
    if not isinstance(item, h5py.Dataset):
        return _Found(matlab_class or "struct")
    if "MATLAB_empty" in item.attrs:
        if item.dtype.kind not in "iu" or not 1 <= item.size <= _MAX_AXES:
            raise RefusedError(f"{name!r} is marked as empty but holds {item.size} numbers, not its size")
        check_dataset(item, 0)
        return _Found(matlab_class or "double", tuple(int(length) for length in np.ravel(item[()])))
    kind = _class_of(item)
    if item.shape is None:  # declared without any data
        return _Found(kind, (0, 0))
    # The class is MATLAB's word; that it holds numbers must also be HDF5's.
    if matlab_class and not (matlab_class in _NUMERIC_CLASSES and kind not in _NUMERIC_CLASSES):
        return _Found(matlab_class, item.shape[::-1] if item.shape else (1, 1), item.dtype.itemsize)
    return _Found(kind, item.shape or (1, 1), item.dtype.itemsize, by_matlab=bool(matlab_class))


def _class_of(value: Any) -> str:
    """MATLAB's name for the class of an array, matrix or HDF5 dataset."""
    if hasattr(value, "tocsc"):
        return "sparse"
    dtype = value.dtype
    if dtype.kind in "biuf":
        return {"bool": "logical", "float64": "double", "float32": "single", "float16": "single"}.get(
            dtype.name, "double" if dtype.kind == "f" else dtype.name
        )
    is_complex = dtype.kind == "c" or (dtype.names is not None and "imag" in dtype.names)
    return "complex" if is_complex else {"U": "char", "S": "char", "O": "cell"}.get(dtype.kind, "struct or object")


def _order(what: str, found: _Found, axes: str | None) -> str:
    """Name the axes of an array, of which `axes` names those of a stack of images, with or without channels."""
    shape, n_axes = found.shape, len(found.shape)
    size = " x ".join(map(str, shape))
    usual, other = ("hwcn", "nhwc") if n_axes == 4 else ("hwn", "nhw")
    expected = "height x width x channels x cells" if n_axes == 4 else "height x width x cells"
    if axes is not None:
        order = axes if n_axes == 4 else axes.replace("c", "")
        order = order.replace("n", "") if n_axes == 2 else order
        if len(order) != n_axes:
            raise ValueError(f"{what} has 4 axes, {size}, but axes={axes!r} names 3. Name c too, as in 'nhwc'.")
        return order
    if n_axes == 2 and found.by_matlab:
        return "hw"
    last_alike = n_axes > 2 and shape[0] != shape[1] and any(a == b for a, b in itertools.pairwise(shape))
    looks = f"looks like cells first: expected {expected}"
    if not found.by_matlab:
        seems = f", and {looks}" if last_alike else ""
        raise ValueError(
            f"{what} was not written by MATLAB (it has no MATLAB_class); its shape in h5py is {size}{seems}. Say in "
            f"which order its axes are: axes={other!r} if cells are first, axes={usual!r} if they are last."
        )
    if last_alike:
        raise ValueError(
            f"{what} has the shape {size}, which {looks}. Say in which order its axes are: axes={other!r} if cells are "
            f"first, axes={usual!r} if they are last."
        )
    return usual


def _check_size(path: Path, name: str, is_hdf5: bool, n_bytes: int, max_expansion: float) -> None:
    if not is_hdf5:
        check_size(name, n_bytes, path.stat().st_size, max_expansion)
        return
    import h5py

    with h5py.File(path, "r") as file:
        check_dataset(member(file, name), n_bytes, max_expansion)


def read(stack: ImageVariable, n_cells: int) -> Iterator[NDArray[Any]]:
    """First cells of a stack in the file's dtype, cells first, in parts: (n, height, width) or with channels last."""
    try:
        for data in _read_hdf5(stack, n_cells) if stack.reader == "h5py" else _read_v5(stack):
            if (matlab_class := _class_of(data)) not in _NUMERIC_CLASSES:
                raise ValueError(f"of class {matlab_class!r}, not numbers as its header says")
            order = [stack.axes.index(letter) for letter in "nhwc" if letter in stack.axes]
            images = data.transpose(order)
            yield (images if "n" in stack.axes else images[None])[:n_cells]
    except Exception as error:  # as in inspect
        raise _unreadable(stack.path, error) from error


def _read_v5(stack: ImageVariable) -> Iterator[NDArray[Any]]:
    import scipy.io

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is refused
        data = scipy.io.loadmat(stack.path, appendmat=False, variable_names=[stack.variable])[stack.variable]
    if sorted(data.shape) != sorted(stack.shape):
        raise ValueError(f"the shape is {data.shape}, not as its header says")
    yield data


def _read_hdf5(stack: ImageVariable, n_cells: int) -> Iterator[NDArray[Any]]:
    import h5py

    with h5py.File(stack.path, "r") as file:
        dataset = member(file, stack.variable)
        if "n" not in stack.axes:
            yield np.asarray(dataset[()])
            return
        axis = stack.axes.index("n")
        cell_bytes = max(1, math.prod(stack.image_shape) * dataset.dtype.itemsize)
        piece = dataset.chunks[axis] if dataset.chunks else 1
        step = max(1, _PART_BYTES // (cell_bytes * piece)) * piece  # so that no piece is unpacked twice
        for start in range(0, n_cells, step):
            yield np.asarray(dataset[(slice(None),) * axis + (slice(start, min(start + step, n_cells)),)])


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} ({path.stat().st_size} bytes) cannot be read as a MATLAB file, it may be truncated or corrupt. Copy "
        f"or export it again, or remove the folder of the group. ({type(error).__name__}: {error})"
    )


def _not_images(path: Path, name: str, matlab_class: str) -> str:
    return f"{name} in {path} is of class {matlab_class!r}; images must be a full real numeric or logical array."
