"""One MATLAB file of images: what it holds, without reading it, and the images of one variable."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_NUMERIC_CLASSES = {"double", "single", "logical"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def pick(wanted: str, names: Iterable[str]) -> str | None:
    """The name that equals `wanted`, or else the first that does so in another case."""
    names = sorted(names)
    if wanted in names:
        return wanted
    return next((name for name in names if name.casefold() == wanted.casefold()), None)


@dataclass(frozen=True)
class ImageVariable:
    """Where a stack of images lies. `shape` is MATLAB's: height, width, (channels,) and, unless a matrix, cells."""

    path: Path
    variable: str
    shape: tuple[int, ...]
    reader: Literal["mat73", "h5py", "scipy"]

    @property
    def n_cells(self) -> int:
        return self.shape[-1] if len(self.shape) > 2 else 1

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape if len(self.shape) == 2 else self.shape[:-1]

    def __str__(self) -> str:
        n_cells, size = self.n_cells, " x ".join(map(str, self.image_shape))
        return f"{self.path} ({n_cells} cell{'s' if n_cells != 1 else ''} of {size})"


def inspect(path: Path, variable: str) -> ImageVariable:
    """Find a variable in a file and check that it can be a stack of images."""
    import h5py

    try:
        is_hdf5 = h5py.is_hdf5(path)
        variables = _hdf5_variables(path) if is_hdf5 else _scipy_variables(path)
    except Exception as error:  # the readers let many types through: OSError, zlib.error, KeyError, ...
        raise _unreadable(path, error) from error
    name = pick(variable, variables)
    if name is None:
        there = ", ".join(f"{key} ({kind})" for key, (kind, _) in sorted(variables.items())[:20])
        raise ValueError(f"{path} has no variable {variable!r}; it holds: {there or 'no variable'}.")
    matlab_class, shape = variables[name]
    size = " x ".join(map(str, shape))
    if matlab_class not in _NUMERIC_CLASSES:
        raise ValueError(_not_images(path, name, matlab_class))
    if 0 in shape:
        raise ValueError(f"{name} in {path} is empty ({size}). Export it again, or remove the folder of the group.")
    if len(shape) not in (2, 3, 4):
        raise ValueError(
            f"{name} in {path} has the shape {size}; expected height x width x cells, or height x width x channels x "
            "cells."
        )
    if not is_hdf5:
        return ImageVariable(path, name, shape, "scipy")
    # mat73 takes a name's beginning for the name: with BF_raw beside BF it would read both.
    clash = any(key != name and (key.startswith(name) or name.startswith(key)) for key in variables)
    return ImageVariable(path, name, shape, "h5py" if clash else "mat73")


def _hdf5_variables(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Class and shape, as MATLAB shows them, of each variable of a v7.3 file."""
    import h5py

    variables = {}
    with h5py.File(path, "r") as file:
        for name, item in file.items():
            if name.startswith("#"):  # MATLAB's own stores for references and objects
                continue
            label = item.attrs.get("MATLAB_class", b"")
            matlab_class = label.decode() if isinstance(label, bytes) else str(label)
            shape: tuple[int, ...] = ()
            if "MATLAB_sparse" in item.attrs:
                matlab_class = "sparse"
            elif not isinstance(item, h5py.Dataset):
                matlab_class = matlab_class or "struct"
            elif "MATLAB_empty" in item.attrs:
                shape = tuple(int(length) for length in np.ravel(item[()]))
            else:
                shape = item.shape[::-1] if item.shape else (1, 1)
                # Without a class the file is not MATLAB's own; it is read as MATLAB would read it.
                if not matlab_class or _class_of(item) == "complex":
                    matlab_class = _class_of(item)
            variables[name] = matlab_class, shape
    return variables


def _scipy_variables(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Class and shape of each variable of a v4 to v7 file."""
    import scipy.io

    try:
        listed = scipy.io.whosmat(path, appendmat=False)
    except TypeError:  # whosmat stumbles over MATLAB's objects (table, datetime, ...), loadmat does not
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # all objects have the same name to scipy
            content = scipy.io.loadmat(path, appendmat=False)
        listed = [(key, value.shape, _class_of(value)) for key, value in content.items() if hasattr(value, "shape")]
    return {name: (kind, tuple(map(int, shape))) for name, shape, kind in listed if not name.startswith("__")}


def _class_of(value: Any) -> str:
    """MATLAB's name for the class of an array, matrix or HDF5 dataset."""
    if hasattr(value, "tocsc"):
        return "sparse"
    dtype = value.dtype
    if dtype.kind in "biuf":
        return {"bool": "logical", "float64": "double", "float32": "single", "float16": "single"}.get(
            dtype.name, dtype.name
        )
    is_complex = dtype.kind == "c" or (dtype.names is not None and "imag" in dtype.names)
    return "complex" if is_complex else {"U": "char", "S": "char", "O": "cell"}.get(dtype.kind, "struct or object")


def read(stack: ImageVariable, n_cells: int) -> NDArray[Any]:
    """First cells of a stack in the file's dtype, cells first: (n_cells, height, width) or with channels last."""
    try:
        if stack.reader == "scipy":
            import scipy.io

            data = scipy.io.loadmat(stack.path, appendmat=False, variable_names=[stack.variable])[stack.variable]
        elif stack.reader == "h5py" or n_cells < stack.n_cells:
            data = _read_hdf5(stack, n_cells)  # mat73 cannot read a part
        else:
            import mat73

            content = mat73.loadmat(stack.path, use_attrdict=False, only_include=[stack.variable], verbose=False)
            data = content[stack.variable]
            # None: without MATLAB's class attribute mat73 does not convert. Else undo its squeezing of 1 x n.
            data = _read_hdf5(stack, n_cells) if data is None else np.reshape(data, stack.shape)
    except Exception as error:  # as in inspect
        raise _unreadable(stack.path, error) from error
    if (matlab_class := _class_of(data)) not in _NUMERIC_CLASSES:  # headers do not tell complex and sparse logical
        raise ValueError(_not_images(stack.path, stack.variable, matlab_class))
    images = np.moveaxis(data, -1, 0) if data.ndim > 2 else data[None]
    return images[:n_cells]


def _read_hdf5(stack: ImageVariable, n_cells: int) -> NDArray[Any]:
    import h5py

    with h5py.File(stack.path, "r") as file:
        dataset = file[stack.variable]
        # MATLAB's column-major axes arrive reversed: cells lie along the first axis of the file.
        return np.asarray(dataset[:n_cells] if len(stack.shape) > 2 else dataset[()]).T


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} ({path.stat().st_size} bytes) cannot be read as a MATLAB file, it may be truncated or corrupt. Copy "
        f"or export it again, or remove the folder of the group. ({type(error).__name__}: {error})"
    )


def _not_images(path: Path, name: str, matlab_class: str) -> str:
    return f"{name} in {path} is of class {matlab_class!r}; images must be a full real numeric or logical array."
