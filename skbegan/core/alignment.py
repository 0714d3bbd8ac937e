"""How far apart the batches of a cell type lie in feature space, as a loss without an opponent.

An adversary that is trained along lags behind the generator, and the two chase each other: a fresh linear probe then
still reads what the adversary has lost sight of. What a linear probe can read within a type is governed by the
Mahalanobis distance of its batches' means, and that can be computed and pulled together directly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skbegan.core.data import Minibatch

MIN_CELLS = 4  # in a group of type and batch, for its mean to count
OWN_SHARE = 0.1  # of the minibatch in the mean of a group; the rest is memory, without a gradient


class BatchAlignment:
    """Mahalanobis distance between the batches of each cell type, over a memory of recent features.

    Parameters
    ----------
    n_batches, n_cell_types : int
    memory : int, default=1024
        Cells remembered: a minibatch holds too few of each group for means and covariance.
    shrinkage : float, default=0.1
        Added to the diagonal of the pooled covariance within groups, as a share of its mean.
    """

    def __init__(self, n_batches: int, n_cell_types: int, memory: int = 1024, shrinkage: float = 0.1) -> None:
        self.n_batches, self.n_groups, self.memory = n_batches, n_batches * n_cell_types, memory
        self.shrinkage = shrinkage
        self._features: Tensor | None = None
        self._groups: Tensor | None = None

    def state(self) -> dict[str, Tensor | None]:
        """Return what a resumed run needs."""
        return {"features": self._features, "groups": self._groups}

    def restore(self, state: dict[str, Tensor | None], device: torch.device) -> None:
        """Take up what :meth:`state` returned."""
        features, groups = state["features"], state["groups"]
        self._features = None if features is None else features.to(device)
        self._groups = None if groups is None else groups.to(device)

    def _group(self, cells: Minibatch) -> Tensor:
        return cells.cell_type * self.n_batches + cells.batch

    @torch.no_grad()
    def remember(self, cells: Minibatch, features: Tensor) -> None:
        """Add the features of a minibatch to the memory, which forgets the oldest."""
        features, groups = features.detach(), self._group(cells)
        if self._features is not None and self._groups is not None:
            features = torch.cat([self._features, features])[-self.memory :]
            groups = torch.cat([self._groups, groups])[-self.memory :]
        self._features, self._groups = features, groups

    def _sums(self, features: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        ones = features.new_ones(len(groups), 1)
        counts = features.new_zeros(self.n_groups, 1).index_add(0, groups, ones)
        return features.new_zeros(self.n_groups, features.shape[1]).index_add(0, groups, features), counts

    def separation(self, cells: Minibatch, features: Tensor) -> Tensor:
        """Return ``log(1 + D**2)``, averaged over groups; D is a batch's distance from the centre of its type.

        The gradient reaches the features of the minibatch, whose means are mixed into those of the memory.
        """
        assert self._features is not None and self._groups is not None, "remember comes first"
        with torch.no_grad():
            sums, counts = self._sums(self._features, self._groups)
            means = sums / counts.clamp(min=1)
            within = self._features - means[self._groups]
            covariance = within.T @ within / len(within)
            ridge = self.shrinkage * covariance.diagonal().mean() + 1e-8
            covariance.diagonal().add_(ridge)
            root = torch.linalg.cholesky_ex(covariance).L  # without the check, which would wait for the device
            counted = counts >= MIN_CELLS
            per_type = (-1, self.n_batches, 1)
            weights = counted.view(per_type).to(features.dtype)
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        own_sums, own_counts = self._sums(features, self._group(cells))
        own_means = own_sums / own_counts.clamp(min=1)
        share = OWN_SHARE * (counted & (own_counts > 0)).to(features.dtype)
        mixed = (means + share * (own_means - means)).view(*per_type[:2], features.shape[1])
        centres = (mixed * weights).sum(1, keepdim=True)
        offsets = ((mixed - centres) * (weights > 0)).flatten(0, 1)
        squared = torch.linalg.solve_triangular(root, offsets.T, upper=False).square().sum(0)
        value = torch.log1p(squared).sum() / counted.sum().clamp(min=1)
        # As if the whole mean had moved with the minibatch: the memory will follow.
        return value.detach() + (value - value.detach()) / OWN_SHARE


def disagreement(features: Tensor, others: Tensor) -> Tensor:
    """Return how little two profiles of the same cells agree: 0 equal, 1 unrelated; averaged over features."""
    spread = features.var(0, correction=0) + others.var(0, correction=0)
    floor = 1e-4 * spread.detach().mean() + 1e-10  # a feature that does not vary counts for nothing
    return ((features - others).square().mean(0) / (spread + floor)).mean()


def standardised(features: Tensor) -> Tensor:
    """Return features with mean 0 and spread 1 over the minibatch, as a probe would scale them.

    A batch signal cannot hide from the classifiers by being small.
    """
    spread = features.var(0, correction=0)
    return (features - features.mean(0)) / (spread + 1e-3 * spread.detach().mean() + 1e-8).sqrt()


def redundancy(features: Tensor) -> Tensor:
    """Return the mean squared correlation of pairs of features.

    When all features say the same few things, their small differences are where the batch hides: too faint for the
    alignment and the adversaries, readable for a probe.
    """
    scaled = standardised(features)
    correlation = scaled.T @ scaled / len(scaled)
    n = len(correlation)
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / max(1, n * (n - 1))


class Activity:
    """Keeps the features alive: a loss where their mean or spread falls below half of what stage 1 left.

    Removing the batch is easiest with few features; ones that a ReLU has shut off never come back by themselves.

    Parameters
    ----------
    features : Tensor of shape (n, n_features)
        Of the training cells, before the first step of stage 2.
    """

    FLOOR = 0.5

    def __init__(self, features: Tensor) -> None:
        mean, spread = features.mean(0), features.std(0, correction=0)
        # Features that stage 1 left dead or faint are to reach what is usual among the others.
        self.mean = mean.clamp(min=0.5 * float(mean.median()) + 1e-8)
        self.spread = spread.clamp(min=0.5 * float(spread.median()) + 1e-8)

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {"mean": self.mean, "spread": self.spread}

    @classmethod
    def restored(cls, state: dict[str, Tensor], device: torch.device) -> Activity:
        """Return what :meth:`state` was taken from."""
        activity = cls.__new__(cls)
        activity.mean, activity.spread = state["mean"].to(device), state["spread"].to(device)
        return activity

    def loss(self, features: Tensor) -> Tensor:
        spread = (features.var(0, correction=0) + 1e-10).sqrt()
        too_even = F.relu(self.FLOOR - spread / self.spread).mean()
        return too_even + F.relu(self.FLOOR - features.mean(0) / self.mean).mean()
