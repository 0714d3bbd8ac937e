"""What a model makes of images: the same few numbers per cell, in calibration and of a new batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from skbegan.core.engine import autocast, undisturbed
from skbegan.core.inference import chunk_size
from skbegan.data.source import ImageSource, by_itself
from skbegan.shift.statistics import measure

if TYPE_CHECKING:
    from skbegan.model import FittedModel

Array = np.ndarray


@dataclass(frozen=True)
class Reader:
    """A fitted model on a device, asked with images that were standardised as in training.

    Attributes
    ----------
    model : FittedModel
    device, precision : str
    """

    model: FittedModel
    device: str
    precision: str

    def source(self, bf: Array, rows: Array | None = None) -> Tensor:
        """Return standardised images (n, C, side, side) of brightfields, or of some of them, on the device.

        Not yet brought to one scale each by itself.
        """
        _, source, _ = self.model._ready(bf, self.device, self.precision, folded=True)
        plain = ImageSource(bf, self.model.bf_scaling, source.device, source.dtype)
        return plain.take(np.arange(len(bf)) if rows is None else rows)

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Array, Array]:
        """Return profiles (n, d) and predicted images (n, C, side, side), standardised, of standardised images."""
        with undisturbed(), torch.no_grad():
            generator, source, dtype = self.model._ready(
                np.empty((0, *self.model.image_shape), np.float32), self.device, self.precision, folded=True
            )
            profiles, predicted = [], []
            for part in images.split(chunk_size(generator.side)):
                part = by_itself(part) if source.per_image else part
                with autocast(part.device, dtype):
                    image, content = generator(part.to(dtype))
                    image = generator.erasure(image)
                    if generator.descriptors is not None:
                        seen = generator.descriptors(image)
                        content = torch.cat([content.to(seen.dtype), seen], dim=1)
                    profile = generator.profile(content)
                profiles.append(profile.to(torch.float32).cpu().numpy())
                predicted.append(image.to(torch.float32).cpu().numpy())
            return np.concatenate(profiles), np.concatenate(predicted)


def statistics(images: Tensor, typical: Array) -> Array:
    """Return :func:`skbegan.shift.statistics.measure` of standardised images, as float64 (n, n_statistics)."""
    with torch.no_grad():
        mean = torch.from_numpy(typical).to(images)
        parts = [measure(part, mean).cpu().numpy() for part in images.split(512)]
    return np.concatenate(parts).astype(np.float64)


@dataclass(frozen=True)
class TypeClassifier:
    """Multinomial logistic regression of the cell type on the profile.

    Attributes
    ----------
    centre, scale : ndarray of shape (d,)
    coef : ndarray of shape (n_types, d)
    intercept : ndarray of shape (n_types,)
    """

    centre: Array
    scale: Array
    coef: Array
    intercept: Array

    @classmethod
    def fit(cls, profiles: Array, cell_type: Array, n_types: int) -> TypeClassifier:
        """Fit it on profiles (n, d) with codes of their types (n,)."""
        from sklearn.linear_model import LogisticRegression

        profiles = profiles.astype(np.float64)
        centre, scale = profiles.mean(0), profiles.std(0)
        scale = np.where(scale > 1e-5 * max(scale.max(), 1e-300), scale, np.inf)  # features that never vary say nothing
        scaled = (profiles - centre) / scale
        coef, intercept = np.zeros((n_types, scaled.shape[1])), np.full(n_types, -30.0)
        codes = np.unique(cell_type)
        if len(codes) > 1:
            fitted = LogisticRegression(C=0.1, max_iter=500).fit(scaled, cell_type)
            two = len(codes) == 2
            coef[codes] = np.concatenate([-fitted.coef_ / 2, fitted.coef_ / 2]) if two else fitted.coef_
            intercept[codes] = (
                np.concatenate([-fitted.intercept_ / 2, fitted.intercept_ / 2]) if two else fitted.intercept_
            )
        else:
            intercept[codes] = 0.0
        return cls(centre, scale, coef, intercept)

    def scaled(self, profiles: Array) -> Array:
        return (profiles.astype(np.float64) - self.centre) / self.scale

    def probabilities(self, profiles: Array) -> Array:
        """Return p(type) of profiles, (n, n_types)."""
        logits = self.scaled(profiles) @ self.coef.T + self.intercept
        values = np.exp(logits - logits.max(1, keepdims=True))
        return values / values.sum(1, keepdims=True)


@dataclass(frozen=True)
class Observed:
    """What is seen of each cell of a batch without knowing its type.

    Attributes
    ----------
    statistics : ndarray of shape (n, n_statistics)
    predicted_type : ndarray of int, shape (n,)
    differ : ndarray of shape (n,)
        Logarithm of the difference between the images predicted from two views of a cell.
    images : ndarray of shape (n, C, side, side)
        Predicted, standardised.
    profiles : ndarray of shape (n, d)
    """

    statistics: Array
    predicted_type: Array
    differ: Array
    images: Array
    profiles: Array


def observe(reader: Reader, images: Tensor, typical: Array, classifier: TypeClassifier | None) -> Observed:
    """Observe cells, each in two orientations.

    Parameters
    ----------
    reader : Reader
    images : Tensor of shape (n, C, side, side)
        Standardised.
    typical : ndarray of shape (C, side, side)
    classifier : TypeClassifier or None
        None where no types are known.
    """
    profiles, predicted = reader.read(images)
    _, other = reader.read(images.transpose(2, 3).contiguous())
    differ = np.log(np.abs(predicted - other.swapaxes(2, 3)).mean((1, 2, 3)) + 1e-6)
    chosen = np.zeros(len(profiles), dtype=int)
    if classifier is not None:
        chosen = classifier.probabilities(profiles).argmax(1)
    return Observed(statistics(images, typical), chosen, differ, predicted, profiles)
