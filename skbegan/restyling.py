"""Predicted images in the style of one of the batches: as another day would have taken the same cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skbegan._foreign import listed

__all__ = ["TargetStyles", "batches_meant"]

MAX_RATIO = 5.0  # of amplitudes, either way, as in training
CHUNK = 256


@dataclass(frozen=True, eq=False)
class TargetStyles:
    """What each batch does to target images, measured in training; in standardised units.

    Attributes
    ----------
    centre : ndarray of float32, shape (C, side, side)
        Mean image, without a batch.
    shift : ndarray of float32, shape (n_batches, C, side, side)
        Mean image of a batch less the mean of the batches that share cell types with it, of equal cell types.
    log_gain : ndarray of float32, shape (n_batches, C, side, side // 2 + 1)
        The same of the logarithm of the amplitude spectrum.
    measured : ndarray of bool, shape (n_batches,)
        Which of the batches had enough cells of known type.
    """

    centre: np.ndarray
    shift: np.ndarray
    log_gain: np.ndarray
    measured: np.ndarray

    def apply(self, images: np.ndarray, batches: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return batch-free images as a batch would show them.

        Parameters
        ----------
        images : ndarray of float32, shape (n, C, side, side)
            In the units of the target; changed in place.
        batches : ndarray of int
            Codes; of several, the mean of their effects.
        mean, scale : ndarray of shape (C,)
            Standardisation of the target.
        """
        limit = math.log(MAX_RATIO)
        shift = self.shift[batches].mean(0, dtype=np.float32)
        gain = np.exp(self.log_gain[batches].mean(0, dtype=np.float32).clip(-limit, limit))
        mean, scale = (values.astype(np.float32)[:, None, None] for values in (mean, scale))
        for start in range(0, len(images), CHUNK):
            part = (images[start : start + CHUNK] - mean) / scale - self.centre
            moved = np.fft.irfft2(np.fft.rfft2(part) * gain, s=part.shape[-2:])
            images[start : start + CHUNK] = (moved + self.centre + shift) * scale + mean
        return images


def batches_meant(as_batch: Any, batches: np.ndarray | None, columns: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """Return the codes of the batches that `as_batch` names: a label, or labels by column of a table of batches.

    Raises
    ------
    TypeError
        For what is neither.
    ValueError
        For a label of no batch that was trained on; the known ones are named.
    """
    if isinstance(as_batch, np.generic):
        as_batch = as_batch.item() if as_batch.dtype.kind != "M" else str(as_batch)
    if batches is None:
        raise ValueError(f"as_batch={as_batch!r}: the model was fitted without batch, so that it knows none")
    known = _texts(batches)
    if isinstance(as_batch, Mapping):
        if columns is None:
            raise ValueError(
                f"as_batch={dict(as_batch)!r} names columns, but the model was fitted on plain labels: "
                f"{listed(known)}; name one of them"
            )
        if unknown := [name for name in as_batch if name not in columns]:
            raise ValueError(f"as_batch names the column {unknown[0]!r}; the batches have {listed(columns)}")
        if not as_batch:
            raise ValueError(f"as_batch names no column; the batches have {listed(columns)}")
        found = np.ones(len(batches), bool)
        for name, label in as_batch.items():
            own = np.array([_is(label, text) for text in _texts(columns[name])])
            if not own.any():
                raise ValueError(
                    f"as_batch: {label!r} is no {name} that the model was fitted on; there are "
                    f"{listed(sorted(set(_texts(columns[name]))))}"
                )
            found &= own
    else:
        if np.ndim(as_batch) > 0:
            raise TypeError(f"as_batch must be the label of one batch, or a dict of columns, got {as_batch!r:.80}")
        found = np.array([_is(as_batch, text) for text in known])
    if not found.any():
        hint = "" if columns is None else "; or name labels by column, as in as_batch={column: label}"
        raise ValueError(
            f"as_batch={as_batch!r} is none of the batches that the model was fitted on: {listed(known)}{hint}"
        )
    return np.flatnonzero(found)


def _texts(labels: np.ndarray) -> list[str]:
    return [str(label) for label in (labels if labels.dtype.kind == "M" else labels.tolist())]


def _is(label: Any, text: str) -> bool:
    if isinstance(label, float) and label.is_integer() and text == str(int(label)):
        return True
    if hasattr(label, "isoformat"):  # dates of any library; of a midnight the day alone
        text_of = label.isoformat()
        return text in (text_of, text_of.removesuffix("T00:00:00")) or text.startswith(f"{text_of}T00:00:00")
    return str(label) == text
