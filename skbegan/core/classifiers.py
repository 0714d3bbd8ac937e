"""Classifiers of batch and cell type, on features and on images, and their fit from scratch on fixed inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core.engine import Engine
from skbegan.core.losses import group_cross_entropy
from skbegan.core.networks import DrawsItself, Encoding, check_side, glorot_, same_block
from skbegan.core.spilled import SpilledRows
from skbegan.data.source import send


class ImageClassifier(nn.Module):
    """CNN that reads the batch or the cell type from a generated image: logits of shape (n, n_classes).

    Parameters
    ----------
    side : int
        Side of the images in pixels.
    n_classes : int
    base_width, in_channels : int
    n_conditions : int, default=0
        Length of a vector (the one-hot cell type) that joins the flattened maps before the dense layers; 0 is the
        published network.
    """

    def __init__(
        self, side: int, n_classes: int, *, base_width: int = 64, in_channels: int = 1, n_conditions: int = 0
    ) -> None:
        super().__init__()
        check_side(side)
        w = base_width
        # ceil_mode is Keras' 'same' pooling: an odd side is padded after.
        self.body = nn.Sequential(
            Encoding(in_channels, w, norm=False),
            Encoding(w, 2 * w),
            nn.MaxPool2d(2, ceil_mode=True),
            Encoding(2 * w, 4 * w),
            nn.MaxPool2d(2, ceil_mode=True),
            same_block(4 * w, 8 * w),
            nn.MaxPool2d(2, ceil_mode=True),
            same_block(8 * w, 8 * w),
            nn.MaxPool2d(2, ceil_mode=True),
        )
        last_side = max(1, side // 128)
        self.dense = nn.Linear(8 * w * last_side**2 + n_conditions, 128)
        self.out = nn.Linear(128, n_classes)

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.body(image).flatten(1)
        if condition is not None:
            x = torch.cat([x, condition], dim=1)
        return self.out(F.relu(self.dense(x)))


CELL_TYPE_HIDDEN = (250, 100, 50, 25)
BATCH_HIDDEN = (75, 50, 25)


class FeatureClassifier(nn.Module):
    """Dense ReLU network that reads the batch or the cell type from features: logits of shape (n, n_classes).

    Parameters
    ----------
    n_inputs : int
        Number of features it sees.
    n_classes : int
    hidden : sequence of int
        Widths of the hidden layers: ``CELL_TYPE_HIDDEN`` or ``BATCH_HIDDEN`` in the published procedure.
    n_conditions : int, default=0
        Length of a vector (the one-hot cell type) that joins the features; 0 is the published network.
    """

    def __init__(self, n_inputs: int, n_classes: int, hidden: Sequence[int], n_conditions: int = 0) -> None:
        super().__init__()
        widths = [n_inputs + n_conditions, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], n_classes)

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        x = features if condition is None else torch.cat([features, condition], dim=1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.out(x)


class FeatureClassifierGroup(DrawsItself):
    """Several feature classifiers of one shape as one network: inputs (n, g, n_inputs) to logits (n, g, n_classes).

    Batched products; equal to as many :class:`FeatureClassifier` trained side by side on the same minibatches, without
    their overhead.

    Parameters
    ----------
    n_groups : int
    n_inputs, n_classes : int
    hidden : sequence of int
    """

    def __init__(self, n_groups: int, n_inputs: int, n_classes: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [n_inputs, *hidden, n_classes]
        shapes = list(pairwise(widths))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(n_groups, a, b)) for a, b in shapes)
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(n_groups, 1, b)) for _, b in shapes)

    def draw(self, rng: torch.Generator) -> None:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            glorot_(weight, weight.shape[1], weight.shape[2], rng)
            nn.init.zeros_(bias)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.transpose(0, 1)
        last = len(self.weights) - 1
        for level, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if level < last:
                x = F.relu(x)
        return x.transpose(0, 1)


@dataclass
class ClassifierFit:
    """How a fit went on the cells held out from it, one entry per member of a group; cross-entropy in nats."""

    accuracy: list[float]
    cross_entropy: list[float]


def _logits(network: nn.Module, inputs: Tensor, condition: Tensor | None, engine: Engine) -> Tensor:
    with engine.autocast(network):
        logits = network(inputs) if condition is None else network(inputs, condition)
    logits = logits.to(inputs.dtype)
    return logits if logits.ndim == 3 else logits[:, None]  # a single network is a group of one


def fit_classifier(
    network: nn.Module,
    inputs: Tensor | SpilledRows,
    labels: Tensor,
    *,
    learning_rate: float,
    epochs: int,
    minibatch_size: int,
    rng: torch.Generator,
    engine: Engine,
    condition: Tensor | None = None,
    holdout: float = 0.1,
) -> ClassifierFit:
    """Train a network, or a group of them, to tell `labels` from `inputs`.

    Parameters
    ----------
    network : nn.Module
        Changed in place; left in training mode.
    inputs : Tensor of shape (n, ...) or SpilledRows
        For a :class:`~skbegan.core.networks.FeatureClassifierGroup` (n, g, n_inputs).
    labels : Tensor of int, shape (n,)
    learning_rate, epochs, minibatch_size
        As in the published procedure: Adam, shuffled anew each epoch, the last minibatch of an epoch may be smaller.
    rng : torch.Generator
        CPU generator that draws the order.
    engine : Engine
        Of the stage; its optimizers stay.
    condition : Tensor of shape (n, n_conditions), optional
    holdout : float, default=0.1
        Share of the cells, the last ones, that are not trained on (Keras' ``validation_split``).

    Returns
    -------
    ClassifierFit
    """
    n_held_out = int(len(inputs) * holdout)
    n_train = len(inputs) - n_held_out
    own = engine.apart()
    own.optimize("classifier", network.parameters(), learning_rate, updates=0)
    network.train()
    in_file = isinstance(inputs, SpilledRows) and not inputs.are_in_memory
    for _ in range(epochs):
        order = torch.randperm(n_train, generator=rng)
        (placed,) = send([order], inputs.device)
        for rows, positions in zip(placed.split(minibatch_size), order.split(minibatch_size), strict=True):
            if len(rows) < 2 <= n_train:
                continue  # BatchNorm has no statistics of a single cell
            chosen = None if condition is None else condition[rows]
            logits = _logits(network, inputs[positions if in_file else rows], chosen, own)
            own.descend("classifier", group_cross_entropy(logits, labels[rows]).sum())
    network.eval()
    first = n_train if n_held_out else 0
    with torch.no_grad():
        parts = [slice(start, start + 500) for start in range(first, len(inputs), 500)]
        logits = torch.cat(
            [_logits(network, inputs[part], None if condition is None else condition[part], own) for part in parts]
        )
        target = labels[first:]
        accuracy = (logits.argmax(2) == target[:, None]).to(torch.float32).mean(0).tolist()
        cross_entropy = group_cross_entropy(logits, target).tolist()
    network.train()
    return ClassifierFit(accuracy, cross_entropy)


@torch.no_grad()
def is_dead(network: nn.Module, features: Tensor, condition: Tensor) -> bool:
    """Whether a classifier's output is the same for all cells, as when its ReLUs return 0 for all of them."""
    features = features[:256]
    logits = network(features, condition[:1].expand(len(features), -1))
    return bool(logits.std(0).max() < 1e-6)
