"""InputMap: what makes the images of a new batch like those that a generator was trained on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACH = 4  # pixels of a kernel on either side of its middle


class InputMap(nn.Module):
    """Magnification, filter, contrast curve and offset of standardised images (n, C, side, side), the same for all.

    Parameters
    ----------
    n_channels, side : int
    """

    zoom: Tensor
    kernel: Tensor
    curvature: Tensor
    offset: Tensor

    def __init__(self, n_channels: int, side: int) -> None:
        super().__init__()
        kernel = torch.zeros(n_channels, 1, 2 * REACH + 1, 2 * REACH + 1)
        kernel[..., REACH, REACH] = 1.0
        self.register_buffer("zoom", torch.eye(side))
        self.register_buffer("kernel", kernel)
        self.register_buffer("curvature", torch.zeros(n_channels))
        self.register_buffer("offset", torch.zeros(n_channels, side, side))

    def forward(self, images: Tensor) -> Tensor:
        dtype = images.dtype
        images = self.zoom @ images.to(self.zoom.dtype) @ self.zoom.T
        images = F.conv2d(F.pad(images, (REACH,) * 4, mode="replicate"), self.kernel, groups=len(self.kernel))
        images = images + self.offset
        images = images + self.curvature[:, None, None] * (images.clamp(-3, 3).square() - 1) / 4
        return images.to(dtype)


def input_map_of(state: Mapping[str, np.ndarray], device: torch.device, dtype: torch.dtype) -> InputMap:
    """Build the map that a state belongs to, on a device, in float64 where `dtype` is that and else in float32."""
    made = InputMap(*state["offset"].shape[:2])
    made.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in state.items()})
    made.to(device, torch.float64 if dtype is torch.float64 else torch.float32)
    return made.requires_grad_(False)
