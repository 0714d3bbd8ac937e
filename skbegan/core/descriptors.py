"""Descriptors: what a cell looks like in its image, in numbers that do not depend on where it lies or how it is turned.

They are classical measures (mass, area, axes of the ellipse of inertia, radial profile, angular harmonics, quantiles,
texture by band) of a soft segmentation, so that gradients pass. Training asks the features for those of the target;
the profile reads those of the predicted image, since in a U-Net the skip connections carry shape past the bottleneck.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core import cpu_kernels

LEVEL = 0.25  # of the cell's height above the background, where its outline is drawn
SOFTNESS = 0.05  # of that height, over which the outline fades
TOP, BORDER = 0.05, 2  # share of the brightest pixels that make the height; pixels of the border that make background
QUANTILES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)
RINGS = 8  # of the radial profile
RING_WIDTH = 0.14  # standard deviation of a ring
HARMONICS = 4  # angular ones, of outline and of density, at two radial powers each
BANDS = (0.7, 1.0, 1.4, 2.0, 2.8)  # pixels, standard deviations between which a band of the texture lies
LIMIT = 4.0  # standard deviations beyond which a descriptor says no more
EPSILON = 1e-6
FAR = -60.0  # logarithm of a weight that counts for nothing; smaller ones are slow to compute with


def n_descriptors(n_channels: int) -> int:
    """Return how many there are of an image."""
    return n_channels * (7 + len(QUANTILES) + RINGS + 2 * 2 * HARMONICS + len(BANDS) - 1)


def _smooth(images: Tensor, width: float) -> Tensor:
    """Gaussian mean of images (n, C, H, W); the border is repeated."""
    reach = max(1, math.ceil(2.5 * width))
    place = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (place / width) ** 2)
    kernel = kernel / kernel.sum()
    n, c, h, w = images.shape
    flat = F.pad(images.reshape(n * c, 1, h, w), (reach,) * 4, mode="replicate")
    if cpu_kernels.is_plain(flat) and len(flat) > 1:  # of one image PyTorch adds in another order
        return cpu_kernels.blurred(flat, kernel).view(n, c, h, w)
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return flat.view(n, c, h, w)


def _in_order(values: Tensor) -> Tensor:
    """Sort along the last axis."""
    return cpu_kernels.in_order(values) if cpu_kernels.is_plain(values) else values.sort(-1).values


def _quantiles(values: Tensor) -> Tensor:
    """Quantiles along the last axis, as torch.quantile interpolates them."""
    if not cpu_kernels.is_plain(values):
        return torch.quantile(values, values.new_tensor(QUANTILES), dim=-1).movedim(0, -1)
    rank = values.new_tensor(QUANTILES) * (values.shape[-1] - 1)
    ordered = _in_order(values)
    low, high = ordered[..., rank.long()], ordered[..., rank.ceil().long()]
    return torch.where(ordered[..., -1:].isnan(), torch.nan, low.lerp(high, rank - rank.long()))


def _total(a: Tensor, b: Tensor, scratch: Tensor | None) -> Tensor:
    """Sum over the pixels of products."""
    return torch.mul(a, b, out=scratch).sum((2, 3))


def _radial_profile(values: Tensor, r: Tensor, scratch: Tensor | None) -> Tensor:
    """Mean of values (n, C, H, W) by ring, (n, C, RINGS); rings fade into each other."""
    edges = torch.arange(RINGS, dtype=r.dtype, device=r.device) * (1.6 / RINGS) + 0.1
    if scratch is None:
        distance = (r[..., None, :, :] - edges[:, None, None]) / RING_WIDTH
        rings = (-0.5 * distance**2).clamp(min=FAR).exp()
        return (rings * values[:, :, None]).sum((3, 4)) / (rings.sum((3, 4)) + EPSILON)
    found = []
    for edge in edges:
        ring = torch.sub(r, edge, out=scratch).div_(RING_WIDTH).square_().mul_(-0.5).clamp_(min=FAR).exp_()
        size = ring.sum((2, 3)) + EPSILON
        found.append(ring.mul_(values).sum((2, 3)) / size)
    return torch.stack(found, dim=2)


def measure(images: Tensor, sign: Tensor) -> Tensor:
    """Return descriptors of images, neither centred nor scaled.

    Parameters
    ----------
    images : Tensor of shape (n, C, H, W)
    sign : Tensor of shape (C,)
        1 where cells are brighter than the background, -1 where they are darker.

    Returns
    -------
    values : Tensor of shape (n, n_descriptors(C))
        By channel: logarithms of mass, area and mean density; logarithm of the ratio of the axes; texture; mean and
        mean squared radius; quantiles; radial profile; angular harmonics; logarithms of the power in bands.
    """
    h, w = images.shape[2:]
    # Where no gradient is needed, products that are summed are kept in one place: new arrays take longer than sums.
    scratch = torch.empty_like(images) if cpu_kernels.is_plain(images) and images.is_contiguous() else None
    images = images * sign.to(images.dtype)[:, None, None]
    sides = images[..., :BORDER, :], images[..., -BORDER:, :], images[..., :BORDER], images[..., -BORDER:]
    border = torch.cat([side.flatten(2) for side in sides], dim=2)
    # The median, sorted by hand: ONNX has no median.
    raised = images - _in_order(border)[..., (border.shape[2] - 1) // 2, None, None]
    smooth = _smooth(raised, 1.0)
    top = smooth.flatten(2).topk(max(1, round(TOP * h * w)), dim=2).values.mean(2)
    height = top.clamp(min=0.05)[..., None, None]
    # The cell is what is bright about the middle of the crop; neighbours at its border count little.
    y = torch.arange(h, dtype=images.dtype, device=images.device) - (h - 1) / 2
    x = torch.arange(w, dtype=images.dtype, device=images.device) - (w - 1) / 2
    y, x = y[:, None].expand(h, w), x[None, :].expand(h, w)
    near = torch.sigmoid((0.46 * min(h, w) - (x**2 + y**2).sqrt()) / (0.04 * min(h, w)))
    mask = torch.sigmoid((smooth / height - LEVEL) / SOFTNESS) * near
    density = mask * raised
    area = mask.sum((2, 3)) + EPSILON
    mass = density.sum((2, 3)).clamp(min=EPSILON)
    cx, cy = _total(mask, x, scratch) / area, _total(mask, y, scratch) / area
    dx, dy = x - cx[..., None, None], y - cy[..., None, None]
    radius = (area / math.pi).sqrt()[..., None, None]
    r = (dx**2 + dy**2 + EPSILON).sqrt() / radius
    sxx, syy, sxy = [_total(mask, moment, scratch) / area for moment in (dx**2, dy**2, dx * dy)]
    middle = 0.5 * (sxx + syy)
    gap = (0.25 * (sxx - syy) ** 2 + sxy**2 + EPSILON**2).sqrt()
    axes = 0.5 * ((middle + gap).clamp(min=EPSILON).log() - (middle - gap).clamp(min=0.05).log())
    level = mass / area
    relative = raised / level[..., None, None].clamp(min=0.02)
    blurred = {width: _smooth(relative, width) for width in BANDS}
    texture = _total(mask, (relative - blurred[2.0]) ** 2, scratch) / area
    above = density.clamp(min=0)
    found = [
        mass.log(), area.log(), level.clamp(min=EPSILON).log(), axes, (texture + EPSILON).log(),
        _total(above, r, scratch) / mass, _total(above, r**2, scratch) / mass,
    ]  # fmt: skip
    values = [value[..., None] for value in found]
    values.append(_quantiles(raised.flatten(2)))
    values.append(_radial_profile(raised, r, scratch))
    angle_x, angle_y = dx / radius / r, dy / radius / r
    real, imaginary, near_r = angle_x, angle_y, r.clamp(max=2.0)
    weights = mask / area[..., None, None], density / mass[..., None, None]
    parts = [weight * near_r**order for weight in weights for order in (1, 2)]
    for harmonic in range(HARMONICS):
        if harmonic:
            real, imaginary = real * angle_x - imaginary * angle_y, real * angle_y + imaginary * angle_x
        for part in parts:
            size = _total(part, real, scratch) ** 2 + _total(part, imaginary, scratch) ** 2
            values.append((size + EPSILON).sqrt()[..., None])
    for fine, coarse in itertools.pairwise(blurred.values()):
        power = _total(mask, (fine - coarse) ** 2, scratch) / area
        values.append((power + EPSILON).log()[..., None])
    return torch.cat(values, dim=2).flatten(1)


def signs_of(images: Tensor) -> Tensor:
    """Return for each channel of images (n, C, H, W) whether the middle is brighter (1) or darker (-1) than the rim."""
    h, w = images.shape[-2:]
    middle = images[..., h // 3 : -(h // 3), w // 3 : -(w // 3)].mean((0, 2, 3))
    rim = torch.cat([images[..., :2, :].flatten(2), images[..., -2:, :].flatten(2)], 2).mean((0, 2))
    return torch.where(middle >= rim, 1.0, -1.0)


class Descriptors(nn.Module):
    """Descriptors of images, standardised over training cells.

    Parameters
    ----------
    n_channels : int
    """

    sign: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.register_buffer("sign", torch.ones(n_channels))
        self.register_buffer("centre", torch.zeros(n_descriptors(n_channels)))
        self.register_buffer("scale", torch.ones(n_descriptors(n_channels)))

    def calibrate(self, sign: Tensor, values: Tensor) -> None:
        """Take sign and standardisation from what :meth:`raw` gives of training cells, robust to a few odd cells."""
        self.sign.copy_(sign)
        low, middle, high = torch.quantile(
            values[:65536].double(), values.new_tensor([0.16, 0.5, 0.84]).double(), dim=0
        )
        self.centre.copy_(middle)
        self.scale.copy_((0.5 * (high - low)).clamp(min=1e-6))

    def raw(self, images: Tensor) -> Tensor:
        """Return descriptors that are neither centred nor scaled, in full precision."""
        with torch.autocast(images.device.type, enabled=False):
            return measure(images.to(self.centre.dtype), self.sign)

    def forward(self, images: Tensor) -> Tensor:
        return self.standardise(self.raw(images))

    def standardise(self, raw: Tensor) -> Tensor:
        """Return raw descriptors standardised, those far out drawn in."""
        return LIMIT * torch.tanh((raw - self.centre) / self.scale / LIMIT)
