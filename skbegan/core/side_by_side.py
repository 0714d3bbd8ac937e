"""Several classifiers of features computed together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core.classifiers import FeatureClassifier
from skbegan.core.converted import convert


class SideBySide:
    """Classifiers of one shape that read the same features: one batched product per layer in place of one each.

    On a card this is fewer operations. The parameters of the networks become views of common tensors, in place, so that
    their optimizers, states and refreshes stay those of each by itself.

    Parameters
    ----------
    networks : mapping of str to FeatureClassifier
    dtype : torch.dtype, optional
        That weights are converted to; by default what autocast makes of them.
    """

    def __init__(self, networks: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> None:
        self.names, self.dtype = list(networks), dtype
        self._levels: list[tuple[list[nn.Linear], Tensor, Tensor]] = []
        for level in zip(*map(_layers, networks.values()), strict=True):
            # As batched products take them: their gradients then have the layout of the parameters.
            weight = torch.stack([layer.weight.detach().T for layer in level]).contiguous().requires_grad_()
            bias = torch.stack([layer.bias.detach()[None] for layer in level]).requires_grad_()
            for index, layer in enumerate(level):
                layer.weight.data, layer.bias.data = weight.detach()[index].T, bias.detach()[index, 0]
            self._levels.append((list(level), weight, bias))

    def logits(self, seen: Tensor, condition: Tensor, *, learns: bool) -> Tensor:
        """Return the logits of all networks, (n_networks, n, n_classes); with `learns` their gradients are collected.

        Parameters
        ----------
        seen : Tensor of shape (n, n_features)
        condition : Tensor of shape (n, n_conditions)
        learns : bool
        """
        weights = [values if learns else values.detach() for _, *level in self._levels for values in level]
        parts = iter(weights if self.dtype is None else convert(weights, self.dtype))
        x = torch.cat([seen, condition], 1).expand(len(self.names), -1, -1)
        for level, (weight, bias) in enumerate(zip(parts, parts, strict=True)):
            x = torch.baddbmm(bias, F.relu(x) if level else x, weight)
        return x

    def hand_out(self) -> None:
        """Give each network its part of the gradients that were collected."""
        for layers, weight, bias in self._levels:
            assert weight.grad is not None and bias.grad is not None
            for index, layer in enumerate(layers):
                layer.weight.grad, layer.bias.grad = weight.grad[index].T, bias.grad[index, 0]
            weight.grad = bias.grad = None


def _layers(network: nn.Module) -> list[nn.Linear]:
    assert isinstance(network, FeatureClassifier)
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
