"""Adapt a fitted model to a new batch from a few of its cells, where that can be expected to help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core.engine import autocast
from skbegan.core.input_map import REACH, InputMap
from skbegan.core.networks import LEAK, generator_of, to_numpy
from skbegan.data.source import by_itself
from skbegan.shift.checking import TRAITS
from skbegan.shift.observing import Reader, statistics
from skbegan.shift.statistics import BANDS, NAMES, band_edges
from skbegan.data.instruments import zoom_matrices

if TYPE_CHECKING:
    from skbegan.model import FittedModel
    from skbegan.shift.calibration import Calibration

Array = np.ndarray

SHRINK_STYLE = 20.0  # cells that what is known counts for when the style of a new batch is estimated
SHRINK_STATISTICS = 50.0  # and when BatchNorm statistics are
MARGIN = 0.15  # logit of the expected accuracy, at least gained on either half of the cells
MARGIN_ERROR = 0.05  # logarithm of the expected image error, where no types are known
MARGIN_CONTROLS = 0.1  # mean log-likelihood of the type of the controls
MAX_GAIN = float(np.log(3.0))


@dataclass(frozen=True)
class Adaptation:
    """What :meth:`~skbegan.BeGANTransformer.adapt` did, and why.

    Attributes
    ----------
    method : str
        ``"none"`` where the model was left as it is.
    reason : str
    n_cells : int
    expected : dict of str to float
        Gain that was expected of each candidate, the smaller of those of two halves of the cells: of the logit of the
        accuracy, of the log-likelihood of the controls' type, or, where no types are known, of minus the logarithm of
        the image error.
    """

    method: str
    reason: str
    n_cells: int
    expected: dict[str, float]

    @property
    def adapted(self) -> bool:
        return self.method != "none"


def candidates(calibration: Calibration, per_cell: Array) -> list[str]:
    """Return the candidates that are worth trying on cells with these image statistics, (n, n_statistics)."""
    tried = ["style", "first statistics", "all statistics", "style and all statistics"]
    zoom = TRAITS.index("zoom")
    change = (calibration.traits_of(per_cell.mean(0)) - calibration.traits_of(calibration.known.mean(0)))[zoom]
    if abs(change) > 2 * np.hypot(calibration.trait_error[zoom], calibration.trait_known[zoom]):
        tried += ["magnification", "magnification and style"]
    return tried


def adapted_model(
    reader: Reader, calibration: Calibration, images: Tensor, method: str, control: int | None
) -> FittedModel:
    """Return the model adapted by one of the candidates to standardised images (n, C, side, side).

    Parameters
    ----------
    reader : Reader
    calibration : Calibration
    images : Tensor
    method : str
        See :func:`candidates`.
    control : int or None
        Code of the type that all cells are of.
    """
    model, made = reader.model, InputMap(*images.shape[1:3])
    if "magnification" in method:
        look = statistics(images, calibration.typical).mean(0)
        change = calibration.traits_of(look) - calibration.traits_of(calibration.known.mean(0))
        factor = float(np.exp(-change[TRAITS.index("zoom")]))
        made.zoom.copy_(zoom_matrix(images.shape[-1], factor))
    if "style" in method:
        _restyle(made, calibration, made.to(images)(images), control)
    if "style" in method or "magnification" in method:
        state = {name: values.cpu().numpy() for name, values in made.float().state_dict().items()}
        model = replace(model, adaptation=state)
    if "statistics" in method:
        model = _with_statistics(reader, model, made.to(images)(images), 2 if "first" in method else None)
    return model


def _restyle(made: InputMap, calibration: Calibration, images: Tensor, control: int | None) -> None:
    """Set filter and offset so that mean image and spectrum come near to the mean of the known batches."""
    known = calibration.known.mean(0) if control is None else calibration.type_statistics[control]
    look = statistics(images, calibration.typical).mean(0)
    weight = len(images) / (len(images) + SHRINK_STYLE)
    side = images.shape[-1]
    x, y = grid(side, images)
    edges = np.array([0.0, *band_edges(side)])
    middles = np.sqrt(np.maximum(edges[:-1], 0.5 / side) * edges[1:])
    frequency = radial_frequency(side, images).cpu().numpy()
    for channel in range(images.shape[1]):
        part = slice(channel * len(NAMES), (channel + 1) * len(NAMES))
        new, old = (dict(zip(NAMES, values[part], strict=True)) for values in (look, known))
        gains = [weight * np.clip(old[f"band_{k}"] - new[f"band_{k}"], -MAX_GAIN, MAX_GAIN) for k in range(BANDS)]
        transfer = torch.from_numpy(np.exp(np.interp(frequency, middles, gains)))
        kernel = torch.fft.fftshift(torch.fft.irfft2(transfer, s=(side, side)))
        middle = side // 2
        kernel = kernel[middle - REACH : middle + REACH + 1, middle - REACH : middle + REACH + 1]
        made.kernel[channel, 0] = kernel.to(made.kernel)
        total = float(kernel.sum())
        shapes = {"tilt_x": x, "tilt_y": y, "bow": x**2 + y**2}
        offset = torch.full_like(x, new["mean"] + weight * (old["mean"] - new["mean"]) - total * new["mean"])
        for name, shape in shapes.items():
            offset += weight * (old[name] - new[name]) * (shape - shape.mean())
        made.offset[channel] = offset


def _with_statistics(reader: Reader, model: FittedModel, images: Tensor, levels: int | None) -> FittedModel:
    """Return the model with BatchNorm statistics of the encoder, or its first levels, moved towards those of images."""
    _, source, dtype = reader.model._ready(
        np.empty((0, *model.image_shape), np.float32), reader.device, reader.precision, folded=True
    )
    generator = generator_of(model.weights, source.device, dtype).eval()  # of its own: it is changed
    weight = len(images) / (len(images) + SHRINK_STATISTICS)
    x, count = by_itself(images) if source.per_image else images, 0
    with autocast(x.device, dtype):
        for level in generator.encoder:
            x = level.conv(x)  # type: ignore[operator]
            if isinstance(level.norm, nn.BatchNorm2d):
                count += 1
                if levels is None or count <= levels:
                    found = x.float()
                    mean, var = found.mean((0, 2, 3)), found.var((0, 2, 3))
                    old_mean, old_var = level.norm.running_mean, level.norm.running_var
                    assert old_mean is not None and old_var is not None
                    level.norm.running_var = (old_var * (var / old_var).pow(weight)).to(old_var)
                    level.norm.running_mean = (old_mean + weight * (mean - old_mean)).to(old_mean)
            x = F.leaky_relu(level.norm(x), LEAK)  # type: ignore[operator]
    return replace(model, weights=to_numpy(generator))


@torch.no_grad()
def adapt(
    reader: Reader,
    calibration: Calibration,
    bf: Array,
    controls: Array | None,
    control: int | None,
    *,
    apply: bool,
) -> tuple[FittedModel, Adaptation]:
    """Return the adapted model, or the same one, and what was done.

    Parameters
    ----------
    reader : Reader
    calibration : Calibration
    bf : ndarray of shape (n, ...)
        Cells of the new batch.
    controls : ndarray of shape (n, ...) or None
        Cells of the new batch that are known to be of one type.
    control : int or None
        Its code.
    apply : bool
        Whether a candidate may be taken.
    """
    images = reader.source(bf)
    guide = images if controls is None else reader.source(controls)
    per_cell = statistics(guide, calibration.typical)
    order = np.random.default_rng(0).permutation(len(guide))
    halves = [torch.from_numpy(np.sort(order[part::2])) for part in range(2)]
    margin = MARGIN if calibration.classifier is not None else MARGIN_ERROR
    margin = margin if control is None else MARGIN_CONTROLS

    def value(model: FittedModel, cells: Tensor) -> float:
        """Return what is to become greater, of cells that were not adapted to."""
        judge = replace(reader, model=model)
        if model.adaptation is not None:
            from skbegan.core.input_map import input_map_of

            cells = input_map_of(model.adaptation, cells.device, cells.dtype)(cells)
        if control is not None:
            assert calibration.classifier is not None
            chance = calibration.classifier.probabilities(judge.read(cells)[0])[:, control]
            return float(np.log(chance + 1e-3).mean())
        signals = calibration.observe(judge, cells).signals.mean(0)
        if calibration.classifier is not None:
            return calibration.expected("accuracy", signals)
        return -calibration.expected("error", signals)

    before = [value(reader.model, guide[half]) for half in halves]
    gains = {}
    for method in candidates(calibration, per_cell):
        gained = []
        for one, other in ((0, 1), (1, 0)):
            model = adapted_model(reader, calibration, guide[halves[one]], method, control)
            gained.append(value(model, guide[halves[other]]) - before[other])
        gains[method] = min(gained)
    best = max(gains, key=lambda name: gains[name])
    if not gains[best] > margin:
        reason = (
            f"left as it is: of {len(gains)} candidates the best, {best}, promised a gain of {gains[best]:.2f} on the "
            f"half of the cells that it had not seen, less than {margin:g}"
        )
        return reader.model, Adaptation("none", reason, len(bf), gains)
    if not apply:
        reason = f"left as it is, as apply=False: {best} promised a gain of at least {gains[best]:.2f}"
        return reader.model, Adaptation("none", reason, len(bf), gains)
    reason = f"{best}: gain of at least {gains[best]:.2f} on either half of the cells"
    return adapted_model(reader, calibration, guide, best, control), Adaptation(best, reason, len(bf), gains)
