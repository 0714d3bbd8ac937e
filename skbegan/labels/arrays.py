"""Labels of cells as tables of laboratories hold them: text, bytes, numbers, dates. Imports nothing of ours."""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np

__all__ = ["as_labels", "have_labels", "known_labels"]

MIN_CODES = 3  # labels 0, 1, 2 ... among which -1 is taken for a missing one


def as_labels(labels: Any, name: str) -> np.ndarray:
    """Return labels as an array of one sortable kind: str, numbers or dates.

    Bytes become str. Dates of any library become ``datetime64``: times of one time zone keep their clock and lose the
    zone, those of several become UTC, and a period becomes its first moment. The number of axes is not looked at.

    Parameters
    ----------
    labels : array-like
    name : str
        What messages call them.

    Returns
    -------
    ndarray of bool, int, float, str or datetime64

    Raises
    ------
    ValueError
        For missing labels, a mix of kinds, bytes that are no text, or objects of another kind.
    """
    if isinstance(labels, np.ma.MaskedArray):
        if np.ma.is_masked(labels):
            raise _missing(name, np.ma.getmaskarray(labels))
        labels = labels.data
    array = _as_array(labels)
    if array.dtype.kind == "O" and array.ndim:
        array = _of_one_kind(array.ravel().tolist(), name).reshape(array.shape)
    if array.dtype.kind == "S":
        array = _decode(array, name)
    if array.dtype.kind not in "biufUM":
        raise ValueError(
            f"{name} must hold strings, numbers or dates, got {_kind(array, labels)}; convert them: "
            f"np.asarray({name}).astype(str)"
        )
    # Infinity is no label either, and a missing date is not finite.
    if array.dtype.kind in "fM" and not np.isfinite(array).all():
        raise _missing(name, ~np.isfinite(array))
    return array


def _as_array(labels: Any) -> np.ndarray:
    # A list of 1 and "a" would silently become one of "1" and "a".
    array = _objects(labels) if isinstance(labels, list | tuple) else np.asarray(labels)
    if array.dtype.kind == "T":  # numpy 2's strings of any length; a missing one is no str
        array = np.array(array.tolist(), dtype=object).reshape(array.shape)
    return array


def have_labels(labels: Any) -> tuple[np.ndarray, Any]:
    """Return which of the labels are not missing, and the labels as an array; -1 is a label here."""
    array: Any
    if isinstance(labels, np.ma.MaskedArray):
        known, array = ~np.ma.getmaskarray(labels), labels.data
    else:
        array = _as_array(labels)
        known = np.ones(array.shape, bool)
    if array.dtype.kind == "O":
        known &= np.array([not _is_missing(label) for label in array.ravel().tolist()], bool).reshape(array.shape)
    elif array.dtype.kind == "M":
        known &= ~np.isnat(array)
    elif array.dtype.kind == "f":
        known &= ~np.isnan(array)
    return known, array


def known_labels(labels: Any, name: str) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Return the labels of the cells that have one, which cells these are, and what a reader should know of -1.

    Missing are None, NaN, NaT, ``pandas.NA`` and what a masked array masks. Where nothing else marks missing labels, -1
    does so among integers that are otherwise the codes 0, 1, 2 ... without a gap, at least `MIN_CODES` of them: so do
    ``pandas.factorize`` and scikit-learn write it. Among others, as in -1 and 1, or -1, 0 and 1, it is a label.

    Parameters
    ----------
    labels : array-like
    name : str
        What messages call them.

    Returns
    -------
    labels : ndarray
        As of :func:`as_labels`, of the cells that have one; may be empty.
    known : ndarray of bool
        Of the shape of the given labels.
    note : str or None
        What was made of -1, where it may have been meant otherwise.

    Raises
    ------
    ValueError
        As :func:`as_labels`, but not for missing labels.
    """
    known, array = have_labels(labels)
    if not known.any():
        return np.empty(0, dtype=np.str_), known, None
    found = as_labels(labels if known.all() else array[known], name)
    if not known.all() or found.dtype.kind != "i" or found.size == 0 or found.min() != -1:
        return found, known, None
    codes = np.unique(found)[1:]
    if len(codes) < 2 or not np.array_equal(codes, np.arange(len(codes))):
        return found, known, None
    if len(codes) < MIN_CODES:
        return found, known, f"{name} -1 is taken for a label like 0 and 1; if it means unknown, write None instead"
    known = found != -1
    return (
        found[known],
        known,
        f"{name} is -1 for {int((~known).sum())} cells, which are taken for cells of unknown type; if -1 is a label of "
        f"its own, give the labels as text: np.asarray({name}).astype(str)",
    )


def _objects(labels: Sequence[Any]) -> np.ndarray:
    try:
        return np.array(labels, dtype=object)
    except ValueError:  # arrays among them
        array = np.empty(len(labels), dtype=object)
        array[:] = list(labels)
        return array


def _missing(name: str, where: np.ndarray) -> ValueError:
    return ValueError(f"{name} has a missing label, first at cell {np.flatnonzero(where.ravel())[0]}")


def _kind(array: np.ndarray, labels: Any) -> str:
    return type(labels).__name__ if array.dtype.kind == "O" else f"dtype {array.dtype}"


def _is_missing(label: Any) -> bool:
    if label is None or type(label).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(label, np.datetime64 | np.timedelta64):
        return bool(np.isnat(label))
    return isinstance(label, numbers.Number) and bool(label != label)


def _kind_of(label: Any) -> type:
    """The kind that labels must share."""
    if isinstance(label, Enum):
        return type(label)
    if isinstance(label, str | bytes):
        return str
    if isinstance(label, datetime.date | np.datetime64):
        return datetime.date
    return numbers.Real if isinstance(label, numbers.Real | np.bool_) else type(label)


def _of_one_kind(labels: list[Any], name: str) -> np.ndarray:
    if not labels:
        return np.array(labels)
    missing = [_is_missing(label) for label in labels]
    if any(missing):
        raise _missing(name, np.array(missing))
    kinds = {_kind_of(label) for label in labels}
    if len(kinds) > 1:
        found = sorted({type(label).__name__ for label in labels})[:10]
        raise ValueError(
            f"{name} mixes labels of types {found}; convert them to one type: np.asarray({name}, dtype=object)"
            ".astype(str)"
        )
    (kind,) = kinds
    if kind is str:
        return np.array([_text(label, position, name) for position, label in enumerate(labels)])
    if kind is datetime.date:
        return _dates(labels)
    if kind.__name__ == "Period":
        if len({label.freqstr for label in labels}) > 1:
            raise ValueError(f"{name} mixes periods of different lengths; convert them: np.asarray({name}).astype(str)")
        return _dates([label.start_time for label in labels])
    if kind is numbers.Real:
        array = np.array(labels)
        if array.dtype.kind in "biuf":
            return array
    raise ValueError(
        f"{name} must hold strings, numbers or dates, got {type(labels[0]).__name__} objects; convert them: "
        f"np.asarray({name}, dtype=object).astype(str)"
    )


def _text(label: str | bytes, position: int, name: str) -> str:
    if isinstance(label, str):
        return str(label)
    try:
        return label.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} has bytes that are no UTF-8 text, first at cell {position}: {label!r}; decode them: "
            f"[label.decode('latin-1') for label in {name}]"
        ) from error


def _decode(array: np.ndarray, name: str) -> np.ndarray:
    texts = [_text(label, position, name) for position, label in enumerate(array.ravel().tolist())]
    return np.array(texts, dtype=np.str_).reshape(array.shape)


def _dates(labels: list[Any]) -> np.ndarray:
    """Dates and times as datetime64, in the finest unit among them."""
    zones = {str(label.tzinfo) for label in labels if getattr(label, "tzinfo", None) is not None}
    naive = any(getattr(label, "tzinfo", None) is None for label in labels)
    one_clock = len(zones) + naive <= 1
    moments = []
    for label in labels:
        if getattr(label, "tzinfo", None) is not None:
            label = (label if one_clock else label.astimezone(datetime.UTC)).replace(tzinfo=None)
        moments.append(label.to_datetime64() if hasattr(label, "to_datetime64") else np.datetime64(label))
    return np.array(moments)
