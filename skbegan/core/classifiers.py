"""Fitting a classifier from scratch on fixed inputs: what happens between the stages and at each refresh."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core.device import Adam, autocast


@dataclass
class ClassifierFit:
    """How a fit went on the cells held out from it, one entry per member of a group; cross-entropy in nats."""

    accuracy: list[float]
    cross_entropy: list[float]


def group_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each member of a group, shape (g,), for logits (n, g, classes).

    `target` holds codes (n,) or probabilities (n, classes).
    """
    target = target[:, None].expand(logits.shape[:2] if target.ndim == 1 else logits.shape)
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), reduction="none")
    return loss.view(logits.shape[:2]).mean(0)


def _logits(network: nn.Module, inputs: Tensor, condition: Tensor | None, dtype: torch.dtype) -> Tensor:
    with autocast(inputs.device, dtype):
        logits = network(inputs) if condition is None else network(inputs, condition)
    logits = logits.to(inputs.dtype)
    return logits if logits.ndim == 3 else logits[:, None]  # a single network is a group of one


def fit_classifier(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    learning_rate: float,
    epochs: int,
    minibatch_size: int,
    rng: torch.Generator,
    condition: Tensor | None = None,
    holdout: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> ClassifierFit:
    """Train a network, or a group of them, to tell `labels` from `inputs`.

    Parameters
    ----------
    network : nn.Module
        Changed in place; left in training mode.
    inputs : Tensor of shape (n, ...)
        For a :class:`~skbegan.core.networks.FeatureClassifierGroup` (n, g, n_inputs).
    labels : Tensor of int, shape (n,)
    learning_rate, epochs, minibatch_size
        As in the published procedure: Adam, shuffled anew each epoch, the last minibatch of an epoch may be smaller.
    rng : torch.Generator
        CPU generator that draws the order.
    condition : Tensor of shape (n, n_conditions), optional
    holdout : float, default=0.1
        Share of the cells, the last ones, that are not trained on (Keras' ``validation_split``).
    dtype : torch.dtype, default=torch.float32

    Returns
    -------
    ClassifierFit
    """
    n_held_out = int(len(inputs) * holdout)
    n_train = len(inputs) - n_held_out
    optimizer = Adam(network.parameters(), learning_rate)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(n_train, generator=rng).to(inputs.device).split(minibatch_size):
            if len(rows) < 2 <= n_train:
                continue  # BatchNorm has no statistics of a single cell
            chosen = None if condition is None else condition[rows]
            loss = group_cross_entropy(_logits(network, inputs[rows], chosen, dtype), labels[rows]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    network.eval()
    held_out = slice(n_train, None) if n_held_out else slice(None)
    with torch.no_grad():
        logits = torch.cat(
            [
                _logits(network, part, None if condition is None else condition[held_out][start : start + 500], dtype)
                for start, part in zip(range(0, len(inputs), 500), inputs[held_out].split(500), strict=False)
            ]
        )
        target = labels[held_out]
        accuracy = (logits.argmax(2) == target[:, None]).to(torch.float32).mean(0).tolist()
        cross_entropy = group_cross_entropy(logits, target).tolist()
    network.train()
    return ClassifierFit(accuracy, cross_entropy)
