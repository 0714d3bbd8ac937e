"""Images as the networks see them: standardised minibatches on the device, made from the caller's arrays as they go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

RESIDENT_SHARE = 0.4  # of the free memory of a CUDA device that the images may take to be kept there


class Scaling(NamedTuple):
    """Mean and standard deviation of each channel; images are standardised as ``(x - mean) / scale``."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def identity(cls, n_channels: int) -> Scaling:
        return cls(np.zeros(n_channels), np.ones(n_channels))

    @classmethod
    def of(cls, images: np.ndarray, rows: np.ndarray, chunk: int = 256) -> Scaling:
        """Measure the scaling on ``images[rows]``, images being (n, H, W) or (n, H, W, C), in bounded memory."""
        n_channels = 1 if images.ndim == 3 else images.shape[3]
        total, squares, count = np.zeros(n_channels), np.zeros(n_channels), 0
        # Sums are taken about a first guess of the mean: one pass, and no cancellation for images with a large offset.
        guess = images[rows[:chunk]].reshape(-1, n_channels).astype(np.float64).mean(axis=0)
        for start in range(0, len(rows), chunk):
            pixels = images[rows[start : start + chunk]].reshape(-1, n_channels).astype(np.float64) - guess
            total += pixels.sum(axis=0)
            squares += np.square(pixels).sum(axis=0)
            count += len(pixels)
        mean = total / count
        scale = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        # A constant channel has nothing to scale.
        return cls(mean + guess, np.where(scale > 1e-12 * np.maximum(np.abs(guess), 1e-300), scale, 1.0))


class ImageStack:
    """Images of cells in the caller's array, handed out as standardised (n, C, H, W) tensors on the device.

    Parameters
    ----------
    images : ndarray of shape (n, H, W) or (n, H, W, C)
        Any real dtype; may be a read-only memory map. Never copied as a whole, except onto a CUDA device with room.
    scaling : Scaling
    device : torch.device
    dtype : torch.dtype, default=torch.float32
    """

    def __init__(
        self, images: np.ndarray, scaling: Scaling, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.images = images
        self.device = device
        self.dtype = torch.float64 if dtype is torch.float64 else torch.float32
        self._mean = torch.tensor(scaling.mean, dtype=self.dtype, device=device)[:, None, None]
        self._gain = torch.tensor(1.0 / scaling.scale, dtype=self.dtype, device=device)[:, None, None]
        self._resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def keep_on_device(self) -> bool:
        """Put all images onto a CUDA device if they fit into `RESIDENT_SHARE` of its free memory."""
        if self.device.type != "cuda":
            return False
        needed = self.images.size * torch.empty((), dtype=self.dtype).element_size()
        if needed <= RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            self._resident = torch.cat([self._convert(self.images[i : i + 256]) for i in range(0, len(self), 256)])
        return self._resident is not None

    def take(self, rows: np.ndarray | slice) -> Tensor:
        if self._resident is not None:
            if isinstance(rows, slice):
                return self._resident[rows]
            return self._resident[torch.from_numpy(rows).to(self.device, non_blocking=True)]
        return self._convert(self.images[rows])

    def _convert(self, images: np.ndarray) -> Tensor:
        if images.ndim == 3:
            images = images[..., None]
        host = torch.from_numpy(images.astype(np.float64 if self.dtype is torch.float64 else np.float32, order="C"))
        if self.device.type == "cuda":
            host = host.pin_memory()
        # A channels-last array is a channels-last tensor: the permutation moves nothing.
        return (host.to(self.device, non_blocking=True).permute(0, 3, 1, 2) - self._mean) * self._gain


@dataclass(frozen=True)
class Minibatch:
    """Some cells on the device: brightfield `source`, `target` image, codes of the batch and of the cell type.

    `twin` is a second view of the same cells' brightfield, where training has use for one.
    """

    source: Tensor
    target: Tensor
    batch: Tensor
    cell_type: Tensor
    twin: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source)


class Cells:
    """The cells that a stage trains on or is validated on.

    Parameters
    ----------
    bf, qpi : ImageStack
    batch, cell_type : ndarray of int, shape (n,)
        Codes from 0, for all images of the stacks.
    rows : ndarray of int
        Which of the images belong to this set.
    """

    def __init__(
        self, bf: ImageStack, qpi: ImageStack, batch: np.ndarray, cell_type: np.ndarray, rows: np.ndarray
    ) -> None:
        self.bf, self.qpi, self.rows = bf, qpi, rows
        self.batch = torch.from_numpy(batch[rows].astype(np.int64)).to(bf.device)
        self.cell_type = torch.from_numpy(cell_type[rows].astype(np.int64)).to(bf.device)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> Minibatch:
        """Return the cells at `indices`, a CPU tensor of positions within this set."""
        rows = self.rows[indices.numpy()]
        on_device = indices.to(self.bf.device, non_blocking=True)
        return Minibatch(self.bf.take(rows), self.qpi.take(rows), self.batch[on_device], self.cell_type[on_device])

    def shuffled(self, size: int, rng: torch.Generator) -> Iterator[Minibatch]:
        """Yield one epoch of full minibatches in random order; cells left over wait for another epoch."""
        order = torch.randperm(len(self), generator=rng)
        size = min(size, len(self))
        for start in range(0, len(self) - size + 1, size):
            yield self.take(order[start : start + size])

    def in_order(self, size: int) -> Iterator[Minibatch]:
        """Yield all cells in order, in minibatches of nearly equal length of at most `size`."""
        for part in torch.arange(len(self)).tensor_split(-(-len(self) // size)):
            yield self.take(part)

    def n_minibatches(self, size: int) -> int:
        return len(self) // min(size, len(self))


def augment(cells: Minibatch, rng: torch.Generator) -> Minibatch:
    """Flip and turn each pair of images at random: one of the eight symmetries of the square per cell."""
    source, target = cells.source, cells.target
    coins = torch.rand(3, len(cells), 1, 1, 1, generator=rng).to(source.device, non_blocking=True) < 0.5
    changes = (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3))
    for coin, change in zip(coins, changes, strict=True):
        source = torch.where(coin, change(source), source)
        target = torch.where(coin, change(target), target)
    return replace(cells, source=source, target=target)
