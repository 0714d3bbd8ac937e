"""A small convolutional network as a probe of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from skbegan.metrics._checks import Array

_WIDTHS = (12, 24, 24)  # channels
_MINIBATCH = 32


class ConvolutionalProbe(ClassifierMixin, BaseEstimator):
    """Three convolutions, batch normalisation and pooling, then a linear layer on 2 x 2 places of the image.

    Takes images as rows of pixels. All classes weigh the same in its loss, so it decides as if they were equally
    likely. Torch runs on the CPU and is seeded by a generator of its own.

    Parameters
    ----------
    shape : tuple of int
        (H, W) or (H, W, C) of the images.
    n_steps : int, default=160
        Minibatches of 32 cells to learn from, whatever the number of cells.
    random_state : int or None, default=None
        None is 0.
    """

    reads_images = True

    def __init__(self, shape: tuple[int, ...], *, n_steps: int = 160, random_state: int | None = None) -> None:
        self.shape = shape
        self.n_steps = n_steps
        self.random_state = random_state

    def fit(self, X: Array, y: Array) -> ConvolutionalProbe:
        """Learn to name the class."""
        import torch
        from torch.nn import functional

        rng = torch.Generator().manual_seed(int(self.random_state or 0))
        self.classes_, codes = np.unique(y, return_inverse=True)
        images = self._images(X)
        self.mean_ = images.mean(axis=(0, 2, 3), keepdims=True)
        self.scale_ = np.maximum(images.std(axis=(0, 2, 3), keepdims=True), 1e-12)
        inputs = torch.from_numpy(((images - self.mean_) / self.scale_).astype(np.float32))
        targets = torch.from_numpy(codes.astype(np.int64))
        weight = torch.from_numpy((len(codes) / np.bincount(codes)).astype(np.float32))
        network = self._build(inputs.shape[1], len(self.classes_), rng)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.n_steps)
        network.train()
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(self.n_steps):
            if len(order) < min(_MINIBATCH, len(inputs)):
                order = torch.randperm(len(inputs), generator=rng)
            rows, order = order[:_MINIBATCH], order[_MINIBATCH:]
            loss = functional.cross_entropy(network(inputs[rows]), targets[rows], weight=weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        self.network_ = network.eval()
        return self

    def predict(self, X: Array) -> Array:
        """Return the class of each image."""
        import torch

        inputs = torch.from_numpy(((self._images(X) - self.mean_) / self.scale_).astype(np.float32))
        with torch.no_grad():
            scores = torch.cat([self.network_(part) for part in inputs.split(256)])
        return np.asarray(self.classes_[scores.argmax(dim=1).numpy()])

    def _images(self, X: Array) -> Array:
        """Return (n, C, H, W)."""
        shape = (*self.shape, 1) if len(self.shape) == 2 else self.shape
        return np.ascontiguousarray(X.reshape(len(X), *shape).transpose(0, 3, 1, 2).astype(np.float64))

    @staticmethod
    def _build(channels: int, n_classes: int, rng: Any) -> Any:
        """Return the network; made without memory first, so that torch's global generator is not touched."""
        import torch
        from torch import nn

        layers: list[Any] = []
        with torch.device("meta"):
            for width in _WIDTHS:
                size, stride = (3, 1) if layers else (5, 2)
                layers += [nn.Conv2d(channels, width, size, stride, size // 2), nn.BatchNorm2d(width), nn.ReLU()]
                layers.append(nn.AvgPool2d(2, ceil_mode=True))
                channels = width
            del layers[3]  # the first has its stride
            layers[-1] = nn.AdaptiveAvgPool2d(2)
            network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, n_classes))
        network.to_empty(device="cpu")
        with torch.no_grad():
            for layer in network:
                if isinstance(layer, nn.BatchNorm2d):
                    layer.reset_parameters()
                elif isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.weight.normal_(std=(2 / layer.weight[0].numel()) ** 0.5, generator=rng)
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return network
