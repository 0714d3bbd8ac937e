"""Instruments: what a microscope does to standardised brightfields, drawn at random, one for each cell or for a batch.

Batches differ in magnification, focus, contrast, illumination and noise. Networks that see cells through many drawn
instruments depend on these less (domain randomisation: Tobin et al., IROS 2017; of intensity and resolution of
medical images: Billot et al., "SynthSeg", Medical Image Analysis 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

KNOTS = 5  # of the transfer function, evenly spaced up to 0.5 cycles per pixel
#: Columns of a table of instruments: magnification relative to training; logarithms of the gain at the knots, 0 at
#: frequency 0; contrast and curvature of the contrast curve; shift in standard deviations of the training's pixels;
#: uneven illumination, change from the centre to the edge; standard deviation of the noise of pixels.
COLUMNS = ("zoom", *(f"radial_{k}" for k in range(KNOTS)),
           "gain", "gamma", "offset", "tilt_x", "tilt_y", "bow", "noise")  # fmt: skip
ZOOM, RADIAL, GAIN, GAMMA, OFFSET, TILT_X, TILT_Y, BOW, NOISE = 0, slice(1, 1 + KNOTS), *range(1 + KNOTS, 8 + KNOTS)
TILE = 4  # sides of an image: side of the tile that noise is cut from


def grid(side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates x and y of the pixels, from -1 to 1 between the edges of the image."""
    place = (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) * (2 / side) - 1
    return place[None, :].expand(side, side), place[:, None].expand(side, side)


def radial_frequency(side: int, like: Tensor) -> Tensor:
    """Return the spatial frequency of the entries of ``rfft2``, in cycles per pixel."""
    y = torch.fft.fftfreq(side, dtype=like.dtype, device=like.device)
    x = torch.fft.rfftfreq(side, dtype=like.dtype, device=like.device)
    return (y[:, None] ** 2 + x[None, :] ** 2).sqrt()


def draw_instruments(n: int, spread: float, rng: torch.Generator) -> Tensor:
    """Draw instruments that a laboratory could have, as a table (n, len(COLUMNS)) on the CPU.

    Parameters
    ----------
    n : int
    spread : float
        1 is as far as instruments usually differ.
    rng : torch.Generator
        Of the CPU.
    """
    drawn = spread * torch.randn(n, 2 * KNOTS + 4, generator=rng)
    some = torch.rand(n, 6, generator=rng) < 0.6  # not all traits differ at once
    of = {
        name: some[:, k].to(drawn.dtype) for k, name in enumerate(("shape", "blur", "zoom", "curve", "light", "noise"))
    }
    found = torch.empty(n, len(COLUMNS))
    found[:, ZOOM] = (0.08 * drawn[:, 0] * of["zoom"]).clamp(-0.22, 0.22).exp()
    shape = 0.22 * drawn[:, 1 : 1 + KNOTS].cumsum(1) * of["shape"][:, None]
    blur = 0.25 * drawn[:, 1 + KNOTS].abs() * of["blur"]  # the finer the fainter
    found[:, RADIAL] = shape - blur[:, None] * torch.arange(KNOTS)
    rest = drawn[:, 2 + KNOTS :]
    found[:, GAIN] = (0.25 * rest[:, 0]).exp()
    found[:, GAMMA] = 0.12 * rest[:, 1] * of["curve"]
    found[:, OFFSET] = 0.45 * rest[:, 2]
    for column, k, scale in ((TILT_X, 3, 0.3), (TILT_Y, 4, 0.3), (BOW, 5, 0.25)):
        found[:, column] = scale * rest[:, k] * of["light"]
    found[:, NOISE] = (0.15 * rest[:, 6] * of["noise"]).abs()
    return found


def seen_through(instruments: Tensor, images: Tensor, noise: Tensor, transfer: Tensor | float = 1.0) -> Tensor:
    """Return images as instruments show them.

    Parameters
    ----------
    instruments : Tensor of shape (n or 1, len(COLUMNS))
        One for each image, or one for all.
    images : Tensor of shape (n, C, side, side)
        Standardised brightfields.
    noise : Tensor of the shape of the images
        Standard normal.
    transfer : Tensor of shape (side, side // 2 + 1), optional
        Further transfer function.
    """
    side = images.shape[-1]
    instruments = instruments.to(images)

    def column(k: int) -> Tensor:
        return instruments[:, k, None, None, None]

    axis = zoom_matrices(side, instruments[:, ZOOM])[:, None]
    images = axis @ images @ axis.mT
    place = radial_frequency(side, images) * (2 * KNOTS)
    below = place.clamp(max=KNOTS - 1).floor()
    logs = torch.cat([torch.zeros_like(instruments[:, :1]), instruments[:, RADIAL]], dim=1)
    at = below.long()
    share = (place - below).clamp(max=1.0)  # in the corners of the spectrum as at the last knot
    gain = (logs[:, at] * (1 - share) + logs[:, at + 1] * share).exp()[:, None] * transfer
    mean = images.mean((2, 3), keepdim=True)  # the border wraps around
    images = torch.fft.irfft2(torch.fft.rfft2(images - mean) * gain, s=(side, side)) + mean
    images = images + column(GAMMA) * (images.clamp(-3, 3).square() - 1) / 4
    x, y = grid(side, images)
    light = column(OFFSET) + column(TILT_X) * x + column(TILT_Y) * y + column(BOW) * (x**2 + y**2 - 2 / 3)
    return images * column(GAIN) + light + column(NOISE) * noise


def zoom_matrices(side: int, zoom: Tensor) -> Tensor:
    """Return matrices (n, side, side) that magnify one axis about its middle.

    Linear interpolation, with a kernel that widens where images shrink, so that they do not alias; 1 changes nothing.
    """
    place = torch.arange(side, dtype=zoom.dtype, device=zoom.device)
    middle = (side - 1) / 2
    source = ((place - middle) / zoom[:, None] + middle).clamp(0, side - 1)
    apart = (source[..., None] - place).abs() * zoom.clamp(max=1)[:, None, None]
    weights = (1 - apart).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)


class Instruments:
    """Show some brightfields as other instruments would, one for each cell.

    Parameters
    ----------
    share : float
        Of the cells that are shown so.
    spread : float
        See :func:`draw_instruments`.
    """

    def __init__(self, share: float, spread: float) -> None:
        self.share, self.spread = share, spread
        self._tile: Tensor | None = None

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw, on the CPU, for `n` cells: whether they are shown so, where noise is cut from, and the instrument."""
        chosen = (torch.rand(n, 1, generator=rng) < self.share).float()
        return torch.cat([chosen, torch.rand(n, 2, generator=rng), draw_instruments(n, self.spread, rng)], dim=1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images (n, C, side, side), with what was drawn for them on their device."""
        noise = self._noise(images, draws[:, 1:3])
        return torch.where(draws[:, :1, None, None] > 0, seen_through(draws[:, 3:], images, noise), images)

    def _noise(self, images: Tensor, place: Tensor) -> Tensor:
        """Cut noise from one tile, each image from somewhere else: as good as new noise, and all processes have it."""
        side = images.shape[-1]
        if self._tile is None or self._tile.device != images.device or self._tile.dtype != images.dtype:
            rng = torch.Generator().manual_seed(0)
            tile = torch.randn(images.shape[1], TILE * side, TILE * side, generator=rng)
            self._tile = tile.to(images)
        first = (place * ((TILE - 1) * side)).long()
        along = torch.arange(side, device=images.device)
        rows, columns = (first[:, k, None] + along for k in range(2))
        return self._tile[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
