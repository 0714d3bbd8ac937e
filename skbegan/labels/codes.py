"""Codes of labels, and how often each occurs, in little more memory than the codes take. Imports nothing of ours."""

from __future__ import annotations

import numpy as np

__all__ = ["counted", "encoded"]

_AT_ONCE = 2**22  # labels: what is made of them besides codes is no longer


def encoded(labels: np.ndarray, known: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted classes and the code of each cell among them, in the smallest dtype that holds it.

    Parameters
    ----------
    labels : ndarray
        One kind of sortable labels, of the cells that have one.
    known : ndarray of bool, shape (n,), optional
        Which cells these are; the others get -1. By default all of them.
    """
    parts = range(0, len(labels), _AT_ONCE)
    found = [np.unique(labels[start : start + _AT_ONCE]) for start in parts]
    classes = np.unique(np.concatenate(found)) if found else np.unique(labels)
    all_known = known is None or bool(known.all())
    most = max(0, len(classes) - 1)
    codes = np.empty(len(labels), dtype=np.min_scalar_type(most if all_known else -most - 1))
    if labels.dtype.kind in "iu" and labels.dtype.itemsize <= 2:  # a table of all numbers, ten times as fast
        unsigned = np.dtype(f"u{labels.dtype.itemsize}")
        table = np.zeros(2 ** (8 * unsigned.itemsize), dtype=codes.dtype)
        table[classes.astype(unsigned)] = np.arange(len(classes))
        labels = labels.astype(labels.dtype.newbyteorder("="), copy=False).view(unsigned)
        for start in parts:
            codes[start : start + _AT_ONCE] = table[labels[start : start + _AT_ONCE]]
    else:
        for start in parts:
            codes[start : start + _AT_ONCE] = np.searchsorted(classes, labels[start : start + _AT_ONCE])
    if all_known or known is None:
        return classes, codes
    whole = np.full(len(known), -1, dtype=codes.dtype)
    whole[known] = codes
    return classes, whole


def counted(
    codes: np.ndarray, n_classes: int, others: np.ndarray | None = None, n_others: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each code occurs together with each of `others`, and how often -1 does.

    Parameters
    ----------
    codes : ndarray of int, shape (n,)
        From -1.
    n_classes : int
    others : ndarray of int, shape (n,), optional
        From 0; by default all are 0.
    n_others : int, default=1

    Returns
    -------
    counts : ndarray of int64, shape (n_classes, n_others)
    unknown : ndarray of int64, shape (n_others,)
    """
    counts = np.zeros((n_classes + 1) * n_others, dtype=np.int64)
    for start in range(0, len(codes), _AT_ONCE):
        part = (codes[start : start + _AT_ONCE].astype(np.intp) + 1) * n_others
        if others is not None:
            part += others[start : start + _AT_ONCE]
        counts += np.bincount(part, minlength=len(counts))
    table = counts.reshape(n_classes + 1, n_others)
    return table[1:], table[0]
