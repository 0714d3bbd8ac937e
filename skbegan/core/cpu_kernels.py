"""What PyTorch does slowly on CPUs: a convolution of 4 x 4, and for descriptors blurring and sorting.

The convolution, of stride 1 in float32, takes a fifth of the multiplications by Winograd's minimal filtering (Winograd,
Arithmetic Complexity of Computations, 1980; for networks: Lavin and Gray, CVPR 2016): 4 x 4 outputs need 7 x 7 products
in place of 16 x 16. Image tiles and kernels are transformed by small matrices, multiplied position by position, which
is 49 matrix products over the channels, and transformed back. The transforms are those of Toom and Cook: the
polynomials are evaluated at 0, 1, -1, 2, -2, 1/2 and infinity.

The last layers of the discriminator are most of a training step's arithmetic. With 512 channels, forward and both
gradients take 0.42 of the time of PyTorch's convolution, and the result is a few roundings from the exact one: 4e-6 of
its size, where the direct sum in float32 is at 1e-6.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = 4
OUT = 4  # outputs of a tile, per axis
TILE = OUT + KERNEL - 1
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)  # and infinity
MIN_CHANNELS, MIN_PIXELS = 128, 1024  # with fewer the transforms take longer than they save


def pays(x: Tensor, out_channels: int) -> bool:
    """Whether the convolution of `x` is faster, and as exact as float32 lets it be, when it is done here."""
    n, channels, height, width = x.shape
    return (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and min(channels, out_channels) >= MIN_CHANNELS
        and height % OUT == 0
        and width % OUT == 0
        and n * height * width >= MIN_PIXELS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@functools.cache
def _transforms(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return what transforms outputs back (16 x 49), kernels (49 x 16) and tiles (49 x 49), for both axes at once."""
    points = torch.tensor(POINTS, dtype=torch.float64)

    def evaluation(length: int) -> Tensor:
        finite = points[:, None] ** torch.arange(length)
        at_infinity = torch.zeros(1, length, dtype=torch.float64)
        at_infinity[0, -1] = 1.0
        return torch.cat([finite, at_infinity])

    # Interpolation gives the product of two polynomials; its transpose gives the correlation that a layer computes.
    matrices = evaluation(OUT).T, evaluation(KERNEL), torch.linalg.inv(evaluation(TILE)).T
    back, kernels, tiles = (torch.kron(matrix, matrix).to(dtype) for matrix in matrices)
    return back, kernels, tiles


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pad_before: int) -> Tensor:
        back, to_kernels, to_tiles = _transforms(x.dtype)
        n, channels, height, width = x.shape
        rows, columns, out_channels = height // OUT, width // OUT, len(weight)
        pad_after = KERNEL - 1 - pad_before
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad_before, pad_after, pad_before, pad_after))
        tiles = padded.unfold(1, TILE, OUT).unfold(2, TILE, OUT).permute(4, 5, 0, 1, 2, 3).reshape(TILE**2, -1)
        tiles = (to_tiles @ tiles).view(TILE**2, -1, channels)
        kernels = (to_kernels @ weight.permute(2, 3, 1, 0).reshape(KERNEL**2, -1)).view(TILE**2, channels, -1)
        products = torch.bmm(tiles, kernels).view(TILE**2, -1)
        out = (back @ products).view(OUT, OUT, n, rows, columns, out_channels).permute(2, 3, 0, 4, 1, 5)
        ctx.save_for_backward(tiles, kernels)
        ctx.geometry = (n, channels, height, width, pad_before)
        return out.reshape(n, height, width, out_channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        tiles, kernels = ctx.saved_tensors
        n, channels, height, width, pad_before = ctx.geometry
        rows, columns, out_channels = height // OUT, width // OUT, kernels.shape[2]
        back, to_kernels, to_tiles = _transforms(gradient.dtype)
        outputs = gradient.permute(0, 2, 3, 1).reshape(n, rows, OUT, columns, OUT, out_channels)
        outputs = outputs.permute(2, 4, 0, 1, 3, 5).reshape(OUT**2, -1)
        products = (back.T @ outputs).view(TILE**2, -1, out_channels)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            parts = to_tiles.T @ torch.bmm(products, kernels.transpose(1, 2)).view(TILE**2, -1)
            parts = parts.view(TILE, TILE, n, rows, columns, channels)
            padded = parts.new_zeros(n, height + KERNEL - 1, width + KERNEL - 1, channels)
            for i in range(TILE):  # tiles overlap
                for j in range(TILE):
                    padded[:, i : i + height : OUT, j : j + width : OUT] += parts[i, j]
            inner = padded[:, pad_before : pad_before + height, pad_before : pad_before + width]
            of_x = inner.permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            found = to_kernels.T @ torch.bmm(tiles.transpose(1, 2), products).view(TILE**2, -1)
            of_weight = found.view(KERNEL, KERNEL, channels, out_channels).permute(3, 2, 0, 1)
        return of_x, of_weight, None


def convolve(x: Tensor, weight: Tensor, pad_before: int) -> Tensor:
    """Convolve images with 4 x 4 kernels, keeping their sides.

    Parameters
    ----------
    x : Tensor of shape (n, in_channels, height, width)
        Height and width are multiples of 4.
    weight : Tensor of shape (out_channels, in_channels, 4, 4)
    pad_before : int
        Pixels of padding before the first row and column; with those after the last they are 3.

    Returns
    -------
    Tensor of shape (n, out_channels, height, width)
        In channels-last layout.
    """
    found: Tensor = _Winograd.apply(x, weight, pad_before)
    return found


def is_plain(values: Tensor) -> bool:
    """Whether values are on the CPU, need no gradient, and are not those of a graph that is being traced."""
    return (
        type(values) is Tensor
        and values.device.type == "cpu"
        and not (values.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def blurred(padded: Tensor, kernel: Tensor) -> Tensor:
    """Return images (n, C, H, W), padded by half of a kernel of odd length, convolved with it along both axes.

    PyTorch's convolution of one channel takes three to six times as long. The products are added in the same order, by
    the same fused operation: so far the bits have been the same.
    """
    weights = kernel.tolist()
    for axis in (3, 2):
        length = padded.shape[axis] - len(weights) + 1
        found = padded.narrow(axis, 0, length) * weights[0]
        for start, weight in enumerate(weights[1:], 1):
            found.add_(padded.narrow(axis, start, length), alpha=weight)
        padded = found
    return padded


def in_order(values: Tensor) -> Tensor:
    """Return values sorted along the last axis, those that are not numbers last: with NumPy, which uses vectors."""
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))
