"""The average of a network's weights over its last steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average (EMA) of a network's parameters.

    Parameters
    ----------
    decay : float
        Per step; 0 averages nothing.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: list[Tensor] = []
        self.n_updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the parameters as they are now."""
        if self.decay == 0:
            return
        weights: list[Tensor] = list(network.parameters())
        if not self.values:
            self.values = [weight.detach().clone() for weight in weights]
        # A small decay at first, so that the weights of the start do not stay in the average.
        decay = min(self.decay, self.n_updates / (self.n_updates + 10.0))
        torch._foreach_lerp_(self.values, weights, 1.0 - decay)
        self.n_updates += 1
