"""The average of a network's weights over its last steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average (EMA) of a network's parameters.

    Parameters
    ----------
    decay : float
        Per step; 0 averages nothing.
    network : nn.Module
    """

    def __init__(self, decay: float, network: nn.Module) -> None:
        self.decay, self.n_updates = decay, 0
        self._weights: list[Tensor] = [] if decay == 0 else list(network.parameters())
        self._kept = [torch.zeros_like(weight, requires_grad=False) for weight in self._weights]

    @property
    def values(self) -> list[Tensor]:
        """The averages, one per parameter; none before the first update."""
        return self._kept if self.n_updates else []

    @torch.no_grad()
    def restart(self, values: Sequence[Tensor] = (), n_updates: int = 0) -> None:
        """Begin anew, or go on from averages of so many updates; in the same memory."""
        self.n_updates = n_updates
        for index, kept in enumerate(self._kept):
            if n_updates:
                kept.copy_(values[index])
            else:
                kept.zero_()

    def share(self) -> float:
        """Return the share of the parameters in the next average.

        All at first, and then a large one, so that the weights of the start do not stay in the average.
        """
        return 1.0 - min(self.decay, self.n_updates / (self.n_updates + 10.0))

    @torch.no_grad()
    def update(self, share: Tensor | None = None) -> None:
        """Take in the parameters as they are now; on a card `share` is what :meth:`share` returned, there."""
        if self.decay == 0:
            return
        if share is None:
            torch._foreach_lerp_(self._kept, self._weights, self.share())
        else:
            moves = torch._foreach_sub(self._weights, self._kept)
            torch._foreach_mul_(moves, share)
            torch._foreach_add_(self._kept, moves)
        self.n_updates += 1
