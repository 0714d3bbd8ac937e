"""Where images come from: the caller's arrays, handed out as standardised tensors on the device as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skbegan.stored.lazy import CellSource as CellSource

FAINTEST = 1e-3  # of the spread of all images: an image that varies less is not blown up
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


def value_range(images: np.ndarray, rows: np.ndarray | None = None, chunk: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest value of each channel of ``images[rows]``, or of all, in bounded memory."""
    n_channels = 1 if images.ndim == 3 else images.shape[3]
    low, high = np.full(n_channels, np.inf), np.full(n_channels, -np.inf)
    for start in range(0, len(images if rows is None else rows), chunk):
        part = images[start : start + chunk] if rows is None else images[rows[start : start + chunk]]
        pixels = part.reshape(-1, n_channels)
        low, high = np.minimum(low, pixels.min(axis=0)), np.maximum(high, pixels.max(axis=0))
    return low, high


class Landing:
    """Memory of a card in which what steps need arrives, one after the other: at the same place each time.

    What arrived before is overwritten.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def receive(self, sent: Tensor, device: torch.device) -> Tensor:
        """Copy pinned memory to the device, without waiting for it."""
        kept = self._memory
        if kept is None or len(kept) < len(sent) or (kept.dtype, kept.shape[1:]) != (sent.dtype, sent.shape[1:]):
            self._memory = kept = torch.empty(sent.shape, dtype=sent.dtype, device=device)
        return kept[: len(sent)].copy_(sent, non_blocking=True)


class ImageSource:
    """Images of cells in the caller's array, handed out as standardised (n, C, H, W) tensors on the device.

    Parameters
    ----------
    images : ndarray of shape (n, H, W) or (n, H, W, C)
        Any real dtype; may be a read-only memory map. Never copied as a whole, except onto a CUDA device with room.
    scaling : Scaling
    device : torch.device
    dtype : torch.dtype, default=torch.float32
    per_image : bool, default=False
        Whether each channel of each image is brought to mean 0 and standard deviation 1 by itself.
    """

    def __init__(
        self,
        images: np.ndarray,
        scaling: Scaling,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        per_image: bool = False,
    ) -> None:
        self.per_image = per_image
        self.images = images
        self.n_channels = len(scaling.mean)
        self.device = device
        self.dtype = torch.float64 if dtype is torch.float64 else torch.float32
        # Numbers that float32 does not hold exactly lose their mean before they are cast: it may be far from 0.
        self._wide = images.dtype.kind == "f" and images.dtype.itemsize > 4
        self._wide |= images.dtype.kind in "iu" and images.dtype.itemsize > 2
        self._unsigned = images.dtype == np.uint16 or images.dtype == np.dtype(np.uint16).newbyteorder()
        self._offset = scaling.mean if self._wide else np.zeros(len(scaling.mean))
        self._mean = torch.tensor(scaling.mean - self._offset, dtype=self.dtype, device=device)[:, None, None]
        self._gain = torch.tensor(1.0 / scaling.scale, dtype=self.dtype, device=device)[:, None, None]
        self._resident: Tensor | None = None
        self._landing = Landing()

    def __len__(self) -> int:
        return len(self.images)

    def keep_on_device(self) -> bool:
        """Put all images onto a CUDA device, once, if they fit into `RESIDENT_SHARE` of its free memory.

        Numbers of 8 and 16 bits stay as they are, and become floats when they are taken.
        """
        if self.device.type != "cuda" or self._resident is not None:
            return self._resident is not None
        first = self.on_device(self._sent(self.images[:1])) if not self._stays_raw else self._sent(self.images[:1])
        if self.images.size * first.element_size() > RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return False
        # As the images lie in memory, channels last; filled in place, so that none is there twice.
        lies = first if self._stays_raw else first.permute(0, 2, 3, 1)
        kept = torch.empty((len(self), *lies.shape[1:]), dtype=first.dtype, device=self.device)
        self._resident = kept if self._stays_raw else kept.permute(0, 3, 1, 2)
        for start in range(0, len(self), 256):
            part = self._sent(self.images[start : start + 256])
            self._resident[start : start + 256] = part if self._stays_raw else self.on_device(part)
        return True

    @property
    def _stays_raw(self) -> bool:
        return self.images.dtype.kind in "iu" and self.images.dtype.itemsize <= 2

    def take(self, rows: np.ndarray | slice, place: Tensor | None = None) -> Tensor:
        """Return images; `place` are the same rows on the device, where they are there already."""
        if self._resident is None:
            return self._convert(self.images[rows], in_place=place is not None)
        if isinstance(rows, slice):
            found = self._resident[rows]
        else:
            where = torch.from_numpy(rows).to(self.device, non_blocking=True) if place is None else place
            found = self._resident[where]
        return self.on_device(found) if self._stays_raw else found

    def _sent(self, images: np.ndarray, landing: Landing | None = None) -> Tensor:
        host = self.staged(images)
        if self.device.type != "cuda":
            return host
        pinned = host.pin_memory()
        return pinned.to(self.device, non_blocking=True) if landing is None else landing.receive(pinned, self.device)

    def _convert(self, images: np.ndarray, in_place: bool = False) -> Tensor:
        return self.on_device(self._sent(images, self._landing if in_place else None))

    def staged(self, images: np.ndarray) -> Tensor:
        """Return images (n, H, W) or (n, H, W, C) as they go to the device, (n, H, W, C) in memory of their own.

        To a card numbers of 8 and 16 bits go as they are, a quarter or half of what floats would take.
        """
        if images.ndim == 3:
            images = images[..., None]
        if self._wide:
            images = images.astype(np.float64) - self._offset
        if self.device.type == "cuda" and images.dtype.kind in "iu":
            # PyTorch does little with unsigned numbers of 16 bits: they travel as signed ones of the same bits.
            kept = images.astype(images.dtype.newbyteorder("="), order="C")
            return torch.from_numpy(kept.view(np.int16) if kept.dtype == np.uint16 else kept)
        return torch.from_numpy(images.astype(np.float64 if self.dtype is torch.float64 else np.float32, order="C"))

    def on_device(self, images: Tensor) -> Tensor:
        """Return what :meth:`staged` returned, and is on the device now, as standardised (n, C, H, W)."""
        if self._unsigned and images.dtype is torch.int16:
            images = images.to(torch.int32).bitwise_and_(0xFFFF)
        # A channels-last array is a channels-last tensor: the permutation moves nothing.
        found = (images.to(self.dtype).permute(0, 3, 1, 2) - self._mean) * self._gain
        return by_itself(found) if self.per_image else found


def by_itself(images: Tensor) -> Tensor:
    """Bring each channel of each image (n, C, H, W) to mean 0 and standard deviation 1."""
    centred = images - images.mean((2, 3), keepdim=True)
    return centred / (centred.square().mean((2, 3), keepdim=True).sqrt() + FAINTEST)


def send(parts: Sequence[Tensor], device: torch.device, landing: Landing | None = None) -> list[Tensor]:
    """Return tensors of the CPU on a device: all in one copy, from pinned memory, which nothing has to wait for.

    With a `landing` they are there until the next ones come.
    """
    if device.type == "cpu":
        return list(parts)
    flat = [part.contiguous().flatten().view(torch.uint8) for part in parts]
    padded = [F.pad(part, (0, -len(part) % 8)) for part in flat]  # so that each begins where its numbers may
    pinned = torch.cat(padded).pin_memory()
    moved = pinned.to(device, non_blocking=True) if landing is None else landing.receive(pinned, device)
    found, start = [], 0
    for part, own, whole in zip(parts, flat, padded, strict=True):
        found.append(moved[start : start + len(own)].view(part.dtype).view(part.shape))
        start += len(whole)
    return found
