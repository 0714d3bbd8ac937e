"""What a batch looks like, in numbers: statistics of single images, averaged over the cells of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skbegan.data.instruments import grid, radial_frequency

BANDS = 6  # of the power spectrum
RINGS = 6  # of the mean radial profile
CLIPPED = 0.004  # of an image's range: pixels as near to its ends count as clipped
EPSILON = 1e-6

#: Statistics of one channel, in the order of :func:`measure`.
NAMES = (
    "level",
    "mean",
    "tilt_x",
    "tilt_y",
    "bow",
    "contrast",
    "skew",
    "pattern",
    "grain",
    "clipped_low",
    "clipped_high",
    "size",
    *(f"ring_{ring}" for ring in range(RINGS)),
    *(f"band_{band}" for band in range(BANDS)),
)


def band_edges(side: int) -> list[float]:
    """Return the frequencies between which the bands lie: a geometric row from one and a half periods per image."""
    low, high = 1.5 / side, 0.5
    return [low * (high / low) ** (band / (BANDS - 1)) for band in range(BANDS)]


def measure(images: Tensor, typical: Tensor) -> Tensor:
    """Return the statistics of each image.

    Parameters
    ----------
    images : Tensor of shape (n, C, side, side)
        Standardised as in training.
    typical : Tensor of shape (C, side, side)
        Mean image of the training cells.

    Returns
    -------
    values : Tensor of shape (n, C * len(NAMES))
    """
    side = images.shape[-1]
    x, y = grid(side, images)
    squared = x**2 + y**2
    n, c = images.shape[:2]
    flat = images.reshape(n, c, -1)
    rim = torch.cat([images[..., :2, :].flatten(2), images[..., -2:, :].flatten(2),
                     images[..., 2:-2, :2].flatten(2), images[..., 2:-2, -2:].flatten(2)], dim=2)  # fmt: skip
    level = rim.median(2).values
    mean = flat.mean(2)
    centred = images - mean[..., None, None]

    def along(shape: Tensor) -> Tensor:
        shape = shape - shape.mean()
        return (centred * shape).sum((2, 3)) / (shape**2).sum()

    spread = flat.std(2)
    ordered = flat.sort(2).values
    count = ordered.shape[2]
    low, half, high = (ordered[..., round(q * (count - 1))] for q in (0.02, 0.5, 0.98))
    skew = (high + low - 2 * half) / (high - low + EPSILON)
    raised = images - level[..., None, None]
    # Without uneven illumination: what is bright and what dark in the cell, and how far out.
    shading = torch.stack([torch.ones_like(x), x, y, squared]).flatten(1)
    rest = shading.T @ torch.linalg.solve(shading @ shading.T, shading)
    flattened = flat - flat @ rest
    model = typical.reshape(c, -1)
    model = model - model @ rest
    size_of = (flattened.square().sum(2) * model.square().sum(1)).sqrt()
    pattern = (flattened * model).sum(2) / (size_of + EPSILON)
    ring = (squared.sqrt() * RINGS).clamp(max=RINGS - 1).long().flatten()
    member = F.one_hot(ring, RINGS).to(images.dtype)
    rings = (flattened @ (member / member.sum(0))) / (flattened.std(2, keepdim=True) + EPSILON)
    fine = images[..., 1:, 1:] - images[..., :-1, 1:] - images[..., 1:, :-1] + images[..., :-1, :-1]
    grain = fine.abs().flatten(2).median(2).values
    ends = CLIPPED * (ordered[..., -1] - ordered[..., 0]) + EPSILON
    clipped_low = (flat <= (ordered[..., 0] + ends)[..., None]).to(images.dtype).mean(2)
    clipped_high = (flat >= (ordered[..., -1] - ends)[..., None]).to(images.dtype).mean(2)
    weight = F.avg_pool2d(raised, 3, 1, 1, count_include_pad=False).square() * (squared < 1)
    radius = ((weight * squared).sum((2, 3)) / (weight.sum((2, 3)) + EPSILON)).sqrt()
    power = torch.fft.rfft2(centred).abs().square()
    frequency, edges = radial_frequency(side, images), band_edges(side)
    bands = []
    for band in range(BANDS):
        low_edge = 0.5 / side if band == 0 else edges[band - 1]
        inside = (frequency > low_edge) & ((frequency <= edges[band]) | (band == BANDS - 1))
        bands.append((power[..., inside].mean(2) / side**2 + EPSILON**2).log() / 2)
    found = [
        level, mean, along(x), along(y), along(squared), (spread + EPSILON).log(), skew, pattern,
        (grain + EPSILON).log(), (clipped_low + 0.5 / count).log(), (clipped_high + 0.5 / count).log(),
        (radius + EPSILON).log(), *rings.unbind(2), *bands,
    ]  # fmt: skip
    return torch.stack(found, dim=2).flatten(1)
