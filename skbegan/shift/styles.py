"""Styles that a new batch may have: plausible ones, beyond those of the known batches, and broken ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skbegan.shift.statistics import grid, radial_frequency


@dataclass(frozen=True)
class Style:
    """What an instrument does to standardised images; the default changes nothing.

    Attributes
    ----------
    zoom : float
        Magnification relative to training.
    radial : tuple of float
        Logarithms of the gain at frequencies evenly spaced from 0 to 0.5 cycles per pixel; 0 at frequency 0.
    defocus : float
        Radius in pixels of a disc that images are convolved with.
    gain, gamma, offset : float
        Contrast; curvature of the contrast curve; shift in standard deviations of the training's pixels.
    tilt_x, tilt_y, bow : float
        Uneven illumination: change from the centre to the edge.
    noise : float
        Standard deviation of independent noise of pixels.
    low, high : float
        Where values are cut off.
    inverted : bool
        Whether bright and dark change places.
    """

    zoom: float = 1.0
    radial: tuple[float, ...] = ()
    defocus: float = 0.0
    gain: float = 1.0
    gamma: float = 0.0
    offset: float = 0.0
    tilt_x: float = 0.0
    tilt_y: float = 0.0
    bow: float = 0.0
    noise: float = 0.0
    low: float = -np.inf
    high: float = np.inf
    inverted: bool = False

    def traits(self) -> np.ndarray:
        """Return the traits that `checking.TRAITS` names: logarithms of gain, sharpness and zoom, others as is."""
        sharp = float(np.mean(self.radial[1:])) if self.radial else 0.0
        gain = float(np.log(self.gain)) + (self.radial[0] if self.radial else 0.0)
        shading = (self.tilt_x, self.tilt_y, self.bow)
        return np.array([gain, self.offset, *shading, sharp, self.noise, float(np.log(self.zoom))])

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return images (n, C, side, side) in this style; `rng` draws the noise."""
        side = images.shape[-1]
        if self.zoom != 1.0:
            matrix = zoom_matrix(side, self.zoom).to(images)
            images = matrix @ images @ matrix.T
        if self.radial or self.defocus:
            frequency = radial_frequency(side, images)
            transfer = torch.ones_like(frequency)
            if self.radial:
                knots = np.linspace(0, 0.5, len(self.radial) + 1)
                gains = np.interp(frequency.cpu().numpy(), knots, [0.0, *self.radial])
                transfer = torch.from_numpy(np.exp(gains)).to(images)
            if self.defocus:
                argument = 2 * np.pi * self.defocus * frequency.double()
                disc = 2 * torch.special.bessel_j1(argument) / argument.clamp(min=1e-9)
                transfer = transfer * torch.where(argument < 1e-6, 1.0, disc).to(images)
            mean = images.mean((0, 2, 3), keepdim=True)  # of the batch: the border wraps around
            images = torch.fft.irfft2(torch.fft.rfft2(images - mean) * transfer, s=images.shape[-2:]) + mean
        if self.inverted:
            images = -images
        if self.gamma:
            images = images + self.gamma * (images.clamp(-3, 3).square() - 1) / 4
        if self.gain != 1.0:
            images = images * self.gain
        x, y = grid(side, images)
        images = images + (self.offset + self.tilt_x * x + self.tilt_y * y + self.bow * (x**2 + y**2 - 2 / 3))
        if self.noise:
            drawn = torch.randn(images.shape, generator=rng, dtype=torch.float32)
            images = images + self.noise * drawn.to(images)
        return images.clamp(self.low, self.high)


def zoom_matrix(side: int, zoom: float) -> Tensor:
    """Return the (side, side) matrix that magnifies one axis about its middle by linear interpolation and binning."""
    fine = 4  # samples per pixel, which are averaged: shrinking does not alias
    place = (np.arange(side * fine) + 0.5) / fine - 0.5
    source = ((place - (side - 1) / 2) / zoom + (side - 1) / 2).clip(0, side - 1)
    below = np.minimum(source.astype(int), side - 2)
    rows = np.zeros((side * fine, side))
    rows[np.arange(side * fine), below] = 1 - (source - below)
    rows[np.arange(side * fine), below + 1] = source - below
    return torch.from_numpy(rows.reshape(side, fine, side).mean(1)).float()


def draw_plausible(rng: np.random.Generator, severity: float) -> Style:
    """Draw an instrument that a laboratory could have; `severity` 1 is as far as instruments usually differ."""
    some = rng.random(6) < 0.6  # not all traits differ at once

    def normal(scale: float, on: bool) -> float:
        return float(severity * scale * rng.standard_normal()) if on else 0.0

    knots = np.cumsum(rng.standard_normal(5)) * 0.22 * severity * some[0]
    knots[1:] -= abs(normal(0.25, some[1])) * np.arange(1, 5)  # blur: the finer the fainter
    return Style(
        zoom=float(np.exp(np.clip(normal(0.08, some[2]), -0.22, 0.22))),
        radial=tuple(knots.tolist()),
        gain=float(np.exp(normal(0.25, True))),
        gamma=normal(0.12, some[3]),
        offset=normal(0.45, True),
        tilt_x=normal(0.3, some[4]),
        tilt_y=normal(0.3, some[4]),
        bow=normal(0.25, some[4]),
        noise=abs(normal(0.15, some[5])),
    )


def draw_broken(rng: np.random.Generator, fault: str) -> Style:
    """Draw a batch that no model should be used on; of ``"channel"`` what is changed besides the channel.

    Parameters
    ----------
    rng : numpy.random.Generator
    fault : str
        One of `checking.FAULTS`.
    """
    plain = draw_plausible(rng, rng.random())
    match fault:
        case "focus":
            return replace(plain, defocus=rng.uniform(2.5, 6.0))
        case "saturation":  # cut off at less than the usual range, on either side
            gain, level = rng.uniform(1.5, 4.0), rng.uniform(-0.3, 1.0)
            ends: dict[str, Any] = {"high": level} if rng.random() < 0.7 else {"low": -level}
            return replace(plain, gain=gain, offset=rng.uniform(-0.5, 0.5), **ends)
        case "enlarged" | "shrunk":
            factor = rng.uniform(1.4, 2.5)
            return replace(plain, zoom=float(factor if fault == "enlarged" else 1 / factor))
        case "inverted":
            return replace(plain, inverted=True)
    return plain
