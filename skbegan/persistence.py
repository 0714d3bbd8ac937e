"""Fitted models in one file that runs no code when it is loaded: safetensors for the weights, JSON for the rest.

A file is a safetensors file. Its tensors are the state of the generator, with what makes profiles of its features
(``profile.*``) and takes the batch from its images (``erasure.*``) where they were fitted; its metadata has one entry,
``"skbegan"``, a JSON document:

``format``      number of the format
``versions``    of skbegan, scikit-learn, torch and numpy that wrote the file
``parameters``  of the estimator
``fitted``      shapes, scaling, labels, history and device

Format 1 had no ``device``, and formats 1 and 2 no ``profile.*`` and ``erasure.*``. A reader of an earlier format knows
from the number that it has to be updated, instead of guessing at tensors; this one reads all formats.

JSON has no tuples and no arrays; they are written as ``{"tuple": [...]}`` and ``{"array": [...], "dtype": "<U3"}``, and
dicts as ``{"dict": [[key, value], ...]}``, so that nothing is confused with them.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import uuid
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from sklearn.utils.validation import check_is_fitted

import skbegan

if TYPE_CHECKING:
    from skbegan.estimator import BeGANTransformer

__all__ = ["load", "save"]

FORMAT = 3
_ENTRY = "skbegan"
_PACKAGES = ("scikit-learn", "torch", "numpy")
_SCALINGS = {
    "bf_mean": "image_shape",
    "bf_scale": "image_shape",
    "qpi_mean": "target_shape",
    "qpi_scale": "target_shape",
}


def save(est: BeGANTransformer, path: str | os.PathLike[str]) -> None:
    """Write a fitted transformer to a file.

    Parameters
    ----------
    est : BeGANTransformer
        A fitted transformer. Its weights, parameters, labels, scaling and history are kept; what scikit-learn keeps
        besides, such as :meth:`~skbegan.BeGANTransformer.set_output`, is not.
    path : path-like
        The file, in a folder that exists; ``.safetensors`` is the customary suffix. An existing file is replaced at the
        very end: whenever something fails it is still what it was.

    Raises
    ------
    NotFittedError
        If `est` is not fitted.
    TypeError
        If `est` is anything but a BeGANTransformer. Pipelines and searches are for ``joblib.dump``.
    FileNotFoundError
        If the folder does not exist.

    Warns
    -----
    UserWarning
        If parameters cannot be written as plain data (a ``joblib.Memory``, a ``RandomState``); they are saved as None.

    See Also
    --------
    load : Read such a file.
    """
    from skbegan.estimator import BeGANTransformer

    if type(est) is not BeGANTransformer:
        raise TypeError(
            f"save writes a BeGANTransformer, got {type(est).__name__}; joblib.dump writes other estimators"
        )
    check_is_fitted(est)
    parameters, lost = {}, []
    for name, value in est.get_params(deep=False).items():
        try:
            parameters[name] = _encode(value)
        except TypeError:
            parameters[name] = None
            lost.append(f"{name}={value!r}")
    if lost:
        warnings.warn(f"saved as None because they are no plain data: {', '.join(lost)}", UserWarning, stacklevel=2)
    fitted = {
        "image_shape": est.image_shape_,
        "target_shape": est.target_shape_,
        "base_width": est.base_width_,
        "n_features": est.n_features_out_,
        "bf_mean": est.bf_mean_,
        "bf_scale": est.bf_scale_,
        "qpi_mean": est.qpi_mean_,
        "qpi_scale": est.qpi_scale_,
        "batches": est.batches_,
        "cell_types": est.cell_types_,
        "history": est.history_,
        "device": est.device_,
    }
    document = {
        "format": FORMAT,
        "versions": versions(),
        "parameters": parameters,
        "fitted": {name: _encode(value) for name, value in fitted.items()},
    }
    weights = {name: np.ascontiguousarray(array) for name, array in est._weights.items()}
    text = json.dumps(document, allow_nan=False)
    _replace(Path(path), safetensors.numpy.save(weights, metadata={_ENTRY: text}))


def load(path: str | os.PathLike[str]) -> BeGANTransformer:
    """Read a transformer that :func:`save` wrote.

    No code from the file is run, so a file from elsewhere can be loaded; at worst it is refused. What it predicts is
    another matter.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    BeGANTransformer
        Fitted, with the parameters it was saved with. On the same machine its output is the same to the bit.

    Raises
    ------
    ValueError
        If the file is not one of ours, is damaged, or was written in a later format. The message says what was expected
        and what was found.
    FileNotFoundError
        If there is no such file.

    Warns
    -----
    UserWarning
        If another version of skbegan, or another minor version of scikit-learn, wrote the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_ENTRY)
            if text is None:
                raise _refusal(path, "it is a safetensors file, but without the entry that skbegan.save writes")
            document = _document(path, text)
            est, fitted = _estimator(path, document)
            weights = _weights(path, file, fitted)
    except safetensors.SafetensorError as error:
        raise _refusal(path, f"it is no safetensors file, or a damaged one ({error})") from error
    est._set_fitted(weights=weights, **fitted)
    warn_of_versions(document["versions"], str(path))
    return est


# ----------------------------------------------------------------------------------------------------------- versions


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that a model is written with, by name of the package."""
    return {"skbegan": skbegan.__version__, **{name: metadata.version(name) for name in _PACKAGES}}


def warn_of_versions(wrote: Mapping[str, Any], what: str) -> None:
    """Compare the versions that wrote a model with those that read it.

    Parameters
    ----------
    wrote : mapping of str to str
        What :func:`versions` said then; empty if it was not recorded.
    what : str
        What the warning calls the model.

    Warns
    -----
    UserWarning
        If skbegan, or the minor version of scikit-learn, is another.
    """
    for name in ("skbegan", "scikit-learn"):
        then, now = wrote.get(name), versions()[name]
        if name == "scikit-learn" and then is not None:
            then, now = _minor(then), _minor(now)
        if then is not None and then != now:
            warnings.warn(
                f"{what} was written with {name} {then} and is read with {now}: results may differ",
                UserWarning,
                stacklevel=3,
            )


# ------------------------------------------------------------------------------------------------------------ writing


def _minor(version: Any) -> str:
    return ".".join(str(version).split(".")[:2])


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside `path` and move it there in one step."""
    path = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist")
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _encode(value: Any) -> Any:
    """Return `value` in terms of JSON, or raise TypeError if it is no plain data."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str | int | float):  # their subclasses, such as np.str_ or an enumeration's members
        return _encode(next(kind for kind in (str, int, float) if isinstance(value, kind))(value))
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    raise TypeError(f"{type(value).__name__} is no plain data")


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    if array.ndim != 1:
        raise TypeError(f"arrays of {array.ndim} dimensions are no plain data")
    kind = array.dtype.kind
    if kind == "T":  # numpy 2's strings of any length
        array, kind = np.array(array.tolist(), dtype=np.str_), "U"
    if kind == "O":
        return {"array": [_encode(item) for item in array], "dtype": "object"}
    if kind == "M":
        return {"array": array.astype(str).tolist(), "dtype": array.dtype.newbyteorder("<").str}
    if kind not in "biufU":
        raise TypeError(f"arrays of {array.dtype} are no plain data")
    return {"array": [_encode(item) for item in array], "dtype": array.dtype.newbyteorder("<").str}


# ------------------------------------------------------------------------------------------------------------ reading


def _refusal(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is not a model that this skbegan {skbegan.__version__} can load: {reason}")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_decode(item) for item in items)
        case {"dict": list(pairs), **rest} if not rest:
            return {_decode(key): _decode(item) for key, item in pairs}
        case {"float": "nan" | "inf" | "-inf" as name, **rest} if not rest:
            return float(name)
        case {"array": list(items), "dtype": "object", **rest} if not rest:
            array = np.empty(len(items), dtype=object)
            array[:] = [_decode(item) for item in items]
            return array
        case {"array": list(items), "dtype": str(dtype), **rest} if not rest and _DTYPE.fullmatch(dtype):
            return np.array([_decode(item) for item in items], dtype=np.dtype(dtype))
    raise ValueError(f"no value is written as {str(value)[:60]}")


_DTYPE = re.compile(r"[<|](b1|[iu][1248]|f[248]|U\d{1,6}|M8(\[\d{0,3}[a-zA-Z]{1,2}\])?)")


def _document(path: Path, text: str) -> dict[str, Any]:
    """Parse the JSON document and check its outline."""
    try:
        document = json.loads(text)
        number = document["format"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _refusal(path, f"its header is no JSON document of ours ({error!r})") from error
    if type(number) is not int or number < 1:
        raise _refusal(path, f"its format should be a number from 1 up, found {number!r}")
    if number > FORMAT:
        raise _refusal(
            path, f"it is of format {number}, and only formats up to {FORMAT} are known here: update skbegan"
        )
    for part in ("versions", "parameters", "fitted"):
        if not isinstance(document.get(part), dict):
            raise _refusal(path, f"its header should hold {part!r}, found {type(document.get(part)).__name__}")
    return document


def _estimator(path: Path, document: dict[str, Any]) -> tuple[BeGANTransformer, dict[str, Any]]:
    """Return the unfitted estimator, and the checked fitted attributes."""
    from skbegan.estimator import BeGANTransformer

    unknown = sorted(document["parameters"].keys() - BeGANTransformer().get_params(deep=False).keys())
    if unknown:
        raise _refusal(path, f"it has parameters that are not known here: {', '.join(unknown)}")
    decoded: dict[str, dict[str, Any]] = {}
    for part in ("parameters", "fitted"):
        decoded[part] = {}
        for name, value in document[part].items():
            try:
                decoded[part][name] = _decode(value)
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                raise _refusal(path, f"{name!r} of its {part} cannot be read ({error})") from error
    fitted = decoded["fitted"]
    if document["format"] == 1:
        fitted["device"] = "unknown"
    if odd := sorted(fitted.keys() ^ _EXPECTED.keys()):
        raise _refusal(path, f"missing or unexpected among its fitted attributes: {', '.join(odd)}")
    for name, (what, accepts) in _EXPECTED.items():
        if not accepts(fitted[name]):
            raise _refusal(path, f"{name!r} of its fitted attributes should be {what}, found {fitted[name]!r}"[:500])
    for name, shape in _SCALINGS.items():
        if len(fitted[name]) != _n_channels(fitted[shape]):
            raise _refusal(path, f"{name!r} has {len(fitted[name])} entries, which {shape} {fitted[shape]} contradicts")
    return BeGANTransformer(**decoded["parameters"]), fitted


def _n_channels(shape: tuple[int, ...]) -> int:
    return shape[2] if len(shape) == 3 else 1


def _is_width(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 1 << 16


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) in (2, 3)
        and all(_is_width(size) for size in value)
        and value[0] == value[1]
    )


def _is_scaling(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64 and bool(np.isfinite(value).all())


def _is_labels(value: Any) -> bool:
    return value is None or isinstance(value, np.ndarray)


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "image_shape": ("a tuple (side, side) or (side, side, channels)", _is_shape),
    "target_shape": ("a tuple (side, side) or (side, side, channels)", _is_shape),
    "base_width": ("a positive integer", _is_width),
    "n_features": ("a positive integer", _is_width),
    **dict.fromkeys(_SCALINGS, ("an array of finite float64", _is_scaling)),
    "batches": ("an array or null", _is_labels),
    "cell_types": ("an array or null", _is_labels),
    "history": ("a dict", lambda value: isinstance(value, dict)),
    "device": ("a string", lambda value: isinstance(value, str)),
}


def _weights(path: Path, file: Any, fitted: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read the tensors, after comparing their names, shapes and types with those of the generator they are for."""
    import torch

    from skbegan.core.networks import Generator
    from skbegan.core.outputs import attach_outputs

    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    try:
        with torch.device("meta"):
            generator = Generator(
                fitted["image_shape"][0],
                base_width=fitted["base_width"],
                n_features=fitted["n_features"],
                in_channels=_n_channels(fitted["image_shape"]),
                out_channels=_n_channels(fitted["target_shape"]),
                head_widths=_head_widths(shapes),
            )
        attach_outputs(generator, shapes)
    except (ValueError, TypeError, LookupError, RuntimeError, OverflowError) as error:
        raise _refusal(path, f"there is no generator of its widths ({error})") from error
    expected = {
        name: list(tensor.shape)
        for name, tensor in generator.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    if missing := sorted(expected.keys() - shapes.keys()):
        raise _refusal(path, f"tensors are missing: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    if extra := sorted(shapes.keys() - expected.keys()):
        raise _refusal(path, f"there are unexpected tensors: {', '.join(extra[:5])}{' ...' if len(extra) > 5 else ''}")
    for name, shape in expected.items():
        dtype = file.get_slice(name).get_dtype()
        if dtype not in ("F32", "F64") or shapes[name] != shape:
            raise _refusal(
                path, f"tensor {name} should be F32 or F64 of shape {shape}, found {dtype} of {shapes[name]}"
            )
    return {name: file.get_tensor(name) for name in expected}


def _head_widths(shapes: dict[str, list[int]]) -> list[int] | None:
    """The widths of the levels at full size, which do not follow from the others; None if tensors are missing."""
    from skbegan.core.networks import Generator

    try:
        return Generator.sizes_of(shapes)["head_widths"]
    except LookupError:
        return None
