"""Adapt a fitted model to a new batch: BatchNorm statistics follow its cells, as far as their types do not explain it.

Statistics of a new batch differ from those of training for two reasons: the instrument, and another mix of cell types.
Only the first is to be removed. So what each BatchNorm gets of the new cells is compared with what it got of training
cells of the same types in the same shares, and the statistics are moved by the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from skbegan.core.engine import autocast, undisturbed
from skbegan.core.inference import chunk_size
from skbegan.core.networks import Generator, generator_of, to_numpy
from skbegan.data.source import by_itself
from skbegan.shift.checking import check
from skbegan.shift.observing import Reader

if TYPE_CHECKING:
    from skbegan.model import FittedModel
    from skbegan.shift.calibration import Calibration

Array = np.ndarray

SHRINKAGE = 25.0  # cells that the training's statistics count for
MAX_ADAPTED = 256  # that are adapted to: they pass through the networks at once
EPSILON = 1e-6  # of a variance
EM_STEPS = 50


@dataclass(frozen=True)
class Adaptation:
    """What :meth:`~skbegan.BeGANTransformer.adapt` did, and why.

    Attributes
    ----------
    method : {"none", "controls", "proportions", "estimated"}
        What the mix of cell types was taken from; ``"none"`` where the model was left as it is.
    reason : str
    n_cells : int
        That the model was adapted to.
    weight : float
        How far statistics were moved, from 0 to 1: wholly.
    shares : tuple of float
        Of the cell types, in the order of ``cell_types_``, that were supposed.
    proportions : dict of label to float or None
        The same by type; None where the model was left as it is, or knows no types.
    """

    method: str
    reason: str
    n_cells: int
    weight: float = 0.0
    shares: tuple[float, ...] = ()
    proportions: dict[object, float] | None = None

    @property
    def adapted(self) -> bool:
        return self.method != "none"


def _norms(generator: Generator) -> list[nn.BatchNorm2d]:
    return [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]


def norm_inputs(reader: Reader, images: Tensor) -> tuple[Array, Array]:
    """Return mean and mean square over the pixels of what each BatchNorm gets of each cell, both (n, n_channels).

    `images` are standardised brightfields (n, C, side, side).
    """
    with undisturbed(), torch.no_grad():
        generator, dtype, per_image = _generator(reader)
        found: list[tuple[Tensor, Tensor]] = []

        def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].float()
            found.append((x.mean((2, 3)), x.square().mean((2, 3))))

        for norm in _norms(generator):
            norm.register_forward_pre_hook(note)
        parts = []
        for part in images.split(chunk_size(generator.side)):
            found.clear()
            with autocast(part.device, dtype):
                generator((by_itself(part) if per_image else part).to(dtype))
            sides = zip(*found, strict=True) if found else ((), ())
            parts.append([torch.cat([part.new_zeros(len(part), 0).float(), *values], 1) for values in sides])
    first, second = (torch.cat(values).cpu().numpy().astype(np.float64) for values in zip(*parts, strict=True))
    return first, second


def _generator(reader: Reader) -> tuple[Generator, torch.dtype, bool]:
    """Return a generator of its own, which may be changed, with its dtype and whether images are scaled one by one."""
    none = np.empty((0, *reader.model.image_shape), np.float32)
    _, source, dtype = reader.model._ready(none, reader.device, reader.precision, folded=True)
    return generator_of(reader.model.weights, source.device, dtype).eval(), dtype, source.per_image


def estimated_shares(calibration: Calibration, profiles: Array) -> Array:
    """Estimate the shares of the types among cells with these profiles.

    Maximum likelihood from the classifier's probabilities (Saerens, Latinne and Decaestecker, Neural Computation 2002),
    with one cell of each type's share in training added for each type.
    """
    classifier = calibration.classifier
    if classifier is None:
        return np.ones(1)
    usual = calibration.type_shares
    ratio = classifier.probabilities(profiles) / np.maximum(usual, 1e-9)
    shares = usual
    for _ in range(EM_STEPS):
        member = ratio * shares
        member /= member.sum(1, keepdims=True)
        shares = (member.sum(0) + len(usual) * usual) / (len(profiles) + len(usual))
    return shares


def adapt(
    reader: Reader, calibration: Calibration, bf: Array, guide: Array, method: str, shares: Array | None
) -> tuple[FittedModel, Adaptation]:
    """Return the adapted model, or the same one, and what was done.

    Parameters
    ----------
    reader : Reader
    calibration : Calibration
    bf : ndarray of shape (n, ...)
        Cells of the new batch.
    guide : ndarray of shape (n, ...)
        Those to adapt to.
    method : str
        See :class:`Adaptation`.
    shares : ndarray of shape (n_types,) or None
        Of the types among `guide`; None: to be estimated.
    """
    if method == "none":
        return reader.model, Adaptation("none", "left as it is: give controls, or the proportions of the types", 0)
    report = check(calibration, calibration.observe(reader, reader.source(bf)))
    if report.refused:
        return reader.model, Adaptation("none", f"left as it is: it is refused, {'; '.join(report.reasons)}", 0)
    rows = np.linspace(0, len(guide) - 1, min(len(guide), MAX_ADAPTED)).round().astype(int)
    images = reader.source(guide[rows])
    if shares is None:
        shares = estimated_shares(calibration, reader.read(images)[0])
    weight = len(rows) / (len(rows) + SHRINKAGE)
    reason = f"statistics of BatchNorm moved by {weight:.2f} of the difference, from {len(rows)} cells, types: {method}"
    done = Adaptation(method, reason, len(rows), weight, tuple(shares.tolist()))
    return adapted(reader, calibration, images, shares, weight), done


def adapted(reader: Reader, calibration: Calibration, images: Tensor, shares: Array, weight: float) -> FittedModel:
    """Return the model with BatchNorm statistics moved by what the types of the new cells do not explain.

    Parameters
    ----------
    reader : Reader
    calibration : Calibration
    images : Tensor of shape (n, C, side, side)
        Standardised brightfields of the new batch, which pass through the networks at once.
    shares : ndarray of shape (n_types,)
        Of the cell types among them.
    weight : float
        Of 0 to 1.
    """
    mean = shares @ calibration.norm_mean
    variance = (shares @ calibration.norm_square - mean**2).clip(EPSILON)
    with undisturbed(), torch.no_grad():
        generator, dtype, per_image = _generator(reader)
        norms = _norms(generator)
        ends = np.cumsum([norm.num_features for norm in norms])[:-1]
        expected = zip(np.split(mean, ends), np.split(variance, ends), strict=True)

        def moved_from(old_mean: Tensor, old_variance: Tensor) -> Callable[[nn.BatchNorm2d, tuple[Tensor]], None]:
            def move(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
                x = inputs[0].float()
                new_mean, new_variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0) + EPSILON
                assert norm.running_mean is not None and norm.running_var is not None
                norm.running_mean += weight * (new_mean - old_mean.to(x))
                norm.running_var *= (new_variance / old_variance.to(x)).pow(weight)

            return move

        # Each BatchNorm is moved before it is used: those after it see what they will see.
        for norm, old in zip(norms, expected, strict=True):
            norm.register_forward_pre_hook(moved_from(*map(torch.from_numpy, old)))
        with autocast(images.device, dtype):
            generator((by_itself(images) if per_image else images).to(dtype))
        nothing = np.empty((len(calibration.norm_mean), 0))
        kept = replace(calibration, norm_mean=nothing, norm_square=nothing)
        return replace(reader.model, weights=to_numpy(generator), calibration=kept)
