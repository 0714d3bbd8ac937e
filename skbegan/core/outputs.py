"""What stage 3 puts behind the generator: the map that makes profiles, and the erasure of the batch from images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ProfileMap(nn.Module):
    """From features (n, n_inputs) to profiles (n, n_outputs).

    Features are written as a code of fewer numbers, their principal components; the code is corrected by a small
    network; what the code does not hold is left at its mean.

    Parameters
    ----------
    n_inputs, rank, n_outputs : int
        Lengths of the features, of the code and of the profile.
    hidden : int
        Width of the correcting network.
    """

    centre: Tensor
    read: Tensor
    write: Tensor

    def __init__(self, n_inputs: int, rank: int, n_outputs: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_inputs))
        self.register_buffer("read", torch.zeros(n_inputs, rank))
        self.register_buffer("write", torch.zeros(rank, n_outputs))
        self.correction = nn.Sequential(
            nn.Linear(rank, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, rank)
        )

    def corrected(self, code: Tensor) -> Tensor:
        return code + self.correction(code)

    def forward(self, features: Tensor) -> Tensor:
        # Not in bfloat16, whose rounding is of the size of what is kept.
        with torch.autocast(features.device.type, enabled=False):
            code = (features.to(self.centre.dtype) - self.centre) @ self.read
            profile = self.corrected(code) @ self.write
            # A profile of the features alone stays in their units; one that reads more is centred.
            return self.centre + profile if len(self.centre) == self.write.shape[1] else profile


class ImageErasure(nn.Module):
    """From predicted images (n, C, H, W) to images of the same shape, without `rank` directions of the batch.

    Parameters
    ----------
    shape : sequence of int
        ``(C, H, W)``.
    rank : int
    """

    centre: Tensor
    read: Tensor
    write: Tensor

    def __init__(self, shape: Sequence[int], rank: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(*shape))
        self.register_buffer("read", torch.zeros(*shape, rank))
        self.register_buffer("write", torch.zeros(rank, *shape))

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(self.centre.dtype)
            code = torch.einsum("nchw,chwk->nk", images - self.centre, self.read)
            return images - torch.einsum("nk,kchw->nchw", code, self.write)
