"""Styles that a new batch may have: plausible ones, beyond those of the known batches, and broken ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from skbegan.data.instruments import (
    BOW,
    GAIN,
    NOISE,
    OFFSET,
    RADIAL,
    TILT_X,
    TILT_Y,
    ZOOM,
    draw_instruments,
    radial_frequency,
    seen_through,
)


@dataclass(frozen=True, eq=False)
class Style:
    """What a batch does to standardised images.

    Attributes
    ----------
    instrument : Tensor of shape (1, n_columns)
        See :data:`skbegan.data.instruments.COLUMNS`.
    defocus : float
        Radius in pixels of a disc that images are convolved with.
    low, high : float
        Where values are cut off.
    inverted : bool
        Whether bright and dark change places.
    """

    instrument: Tensor
    defocus: float = 0.0
    low: float = -np.inf
    high: float = np.inf
    inverted: bool = False

    def traits(self) -> np.ndarray:
        """Return the traits that `checking.TRAITS` names: logarithms of gain, sharpness and zoom, others as is."""
        own = self.instrument[0].double().numpy()
        radial = own[RADIAL]
        gain = np.log(abs(own[GAIN])) + radial[0]
        shading = own[TILT_X], own[TILT_Y], own[BOW]
        return np.array([gain, own[OFFSET], *shading, radial[1:].mean(), own[NOISE], np.log(own[ZOOM])])

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return images (n, C, side, side) in this style; `rng` draws the noise."""
        transfer: Tensor | float = 1.0
        if self.defocus:
            argument = 2 * np.pi * self.defocus * radial_frequency(images.shape[-1], images).double()
            disc = 2 * torch.special.bessel_j1(argument) / argument.clamp(min=1e-9)
            transfer = torch.where(argument < 1e-6, 1.0, disc).to(images)
        noise = torch.randn(images.shape, generator=rng, dtype=torch.float32).to(images)
        source = -images if self.inverted else images
        return seen_through(self.instrument, source, noise, transfer).clamp(self.low, self.high)


def with_columns(instrument: Tensor, **values: float) -> Tensor:
    """Return an instrument with other values in some of its columns."""
    places = {"zoom": ZOOM, "gain": GAIN, "offset": OFFSET}
    changed = instrument.clone()
    for name, value in values.items():
        changed[:, places[name]] = value
    return changed


def draw_plausible(rng: torch.Generator, severity: float) -> Style:
    """Draw an instrument that a laboratory could have; `severity` 1 is as far as instruments usually differ."""
    return Style(draw_instruments(1, severity, rng))


def draw_broken(rng: np.random.Generator, noise: torch.Generator, fault: str) -> Style:
    """Draw a batch that no model should be used on; of ``"channel"`` what is changed besides the channel.

    Parameters
    ----------
    rng : numpy.random.Generator
    noise : torch.Generator
        Draws the instrument.
    fault : str
        One of `checking.FAULTS`.
    """
    usual = draw_plausible(noise, rng.random())
    match fault:
        case "focus":
            return replace(usual, defocus=rng.uniform(2.5, 6.0))
        case "saturation":  # cut off at less than the usual range, on either side
            gain, level = rng.uniform(1.5, 4.0), rng.uniform(-0.3, 1.0)
            instrument = with_columns(usual.instrument, gain=gain, offset=rng.uniform(-0.5, 0.5))
            if rng.random() < 0.7:
                return replace(usual, instrument=instrument, high=level)
            return replace(usual, instrument=instrument, low=-level)
        case "enlarged" | "shrunk":
            factor = rng.uniform(1.4, 2.5)
            zoom = float(factor if fault == "enlarged" else 1 / factor)
            return replace(usual, instrument=with_columns(usual.instrument, zoom=zoom))
        case "inverted":
            return replace(usual, inverted=True)
    return usual
