"""Plain data as JSON and back: what a model file holds besides tensors. Nothing is run when it is read."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

import numpy as np

from skbegan import config

_OBJECTS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        config.Config,
        config.Architecture,
        config.Pretraining,
        config.Removal,
        config.Runtime,
        config.OnlineRemoval,
        config.PublishedRemoval,
        config.ProfileAlignment,
    )
}


def encode(value: Any) -> Any:
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
        return encode(next(kind for kind in (str, int, float) if isinstance(value, kind))(value))
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if type(value) in _OBJECTS.values():
        names = [field.name for field in dataclasses.fields(value)]
        return {"object": type(value).__name__, "fields": [[name, encode(getattr(value, name))] for name in names]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    raise TypeError(f"{type(value).__name__} is no plain data")


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    if array.ndim != 1:
        raise TypeError(f"arrays of {array.ndim} dimensions are no plain data")
    kind = array.dtype.kind
    if kind == "T":  # numpy 2's strings of any length
        array, kind = np.array(array.tolist(), dtype=np.str_), "U"
    if kind == "O":
        return {"array": [encode(item) for item in array], "dtype": "object"}
    if kind == "M":
        return {"array": array.astype(str).tolist(), "dtype": array.dtype.newbyteorder("<").str}
    if kind not in "biufU":
        raise TypeError(f"arrays of {array.dtype} are no plain data")
    return {"array": [encode(item) for item in array], "dtype": array.dtype.newbyteorder("<").str}


def decode(value: Any) -> Any:
    """Return what :func:`encode` wrote, or raise ValueError for anything else."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tuple": list(items), **rest} if not rest:
            return tuple(decode(item) for item in items)
        case {"dict": list(pairs), **rest} if not rest:
            return {decode(key): decode(item) for key, item in pairs}
        case {"object": str(kind), "fields": list(pairs), **rest} if not rest and kind in _OBJECTS:
            return _OBJECTS[kind](**{name: decode(item) for name, item in pairs})
        case {"float": "nan" | "inf" | "-inf" as name, **rest} if not rest:
            return float(name)
        case {"array": list(items), "dtype": "object", **rest} if not rest:
            array = np.empty(len(items), dtype=object)
            array[:] = [decode(item) for item in items]
            return array
        case {"array": list(items), "dtype": str(dtype), **rest} if not rest and _DTYPE.fullmatch(dtype):
            return _array([decode(item) for item in items], dtype)
    raise ValueError(f"no value is written as {str(value)[:60]}")


_DTYPE = re.compile(r"[<|](b1|[iu][1248]|f[248]|U\d{1,6}|M8(\[\d{0,3}[a-zA-Z]{1,2}\])?)")


def _array(items: list[Any], dtype: str) -> np.ndarray:
    if dtype[1] == "U":  # as wide as its strings: a declared width of 999999 would take gigabytes
        if not all(isinstance(item, str) for item in items):
            raise ValueError("an array of strings holds something else")
        return np.array(items, dtype=np.str_)
    return np.array(items, dtype=np.dtype(dtype))
