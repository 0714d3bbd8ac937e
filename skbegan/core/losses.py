"""Losses of all stages, and how they are weighed.

A loss has one name: that of its weight in the configuration, of its entry in the history and of its label in a plot.

Besides the losses of the published procedure there are some that need no adversary. An adversary that is trained along
lags behind the generator, so that a fresh linear probe still reads the batch where the adversary no longer does. How
well a linear probe reads it within a type depends on the Mahalanobis distance of the means of its batches, which can be
computed and minimised directly (:class:`BatchAlignment`). The others are a variance term
(:class:`Activity`) and a decorrelation term, after VICReg (Bardes, Ponce and LeCun, ICLR 2022), an invariance term, and
the maximum mean discrepancy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from skbegan.core.recent import Recent
from skbegan.data.cells import Minibatch, Whole

Losses = dict[str, Tensor]
History = dict[str, list[float]]
Members = list[list[Tensor]]

MIN_CELLS = 4  # in a group of type and batch, for its statistics to count
OWN_SHARE = 0.1  # of the minibatch in the mean of a group; the rest is memory, without a gradient


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float], on_device: Tensor | None = None) -> Tensor:
    """Return the sum of the losses that have a weight, each times its weight; the weights may be on the device too."""
    if on_device is not None and all(name in losses for name in weights):
        found = torch.stack([losses[name] for name in weights])
        return found.dot(on_device) if found.device.type == "cuda" else (found * on_device).sum()
    return torch.stack([weight * losses[name] for name, weight in weights.items() if name in losses]).sum()


def positive(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights above 0: losses without one are not computed."""
    return {name: weight for name, weight in weights.items() if weight > 0}


# Of the published procedure -------------------------------------------------------------------------------------------


def real_or_fake(logits: Tensor, real: bool, share: float = 1.0) -> Tensor:
    """Return a share of the binary cross-entropy of patch logits against one label for all patches."""
    logits = logits.float() if logits.dtype is torch.bfloat16 else logits
    if logits.device.type == "cuda":  # the same in fewer operations
        return F.logsigmoid(logits).mean() * -share if real else F.softplus(logits, threshold=40.0).mean() * share
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
    return loss if share == 1.0 else share * loss


def group_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each member of a group, shape (g,), for logits (n, g, classes).

    `target` holds codes (n,) or probabilities (n, classes).
    """
    target = target[:, None].expand(logits.shape[:2] if target.ndim == 1 else logits.shape)
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), reduction="none")
    return loss.view(logits.shape[:2]).mean(0)


def active_share(features: Tensor) -> Tensor:
    """Return the share of features whose spread over the cells is at least 1 % of the largest one's."""
    spread = features.float().std(0, correction=0)
    return (spread > 0.01 * spread.max()).float().mean()


def _mean_of(each: Tensor, known: Tensor, among: Tensor | None) -> Tensor:
    """Return the mean over the cells of known type; 0 where there are none.

    With the mask of the cells of all processes it is their mean that the means of the processes average to.
    """
    weights = known.to(each.dtype)
    if among is None or len(among) == len(known):
        return (each * weights).sum() / weights.sum().clamp(min=1)
    return (each * weights).sum() * (len(among) / len(known)) / among.sum().clamp(min=1)


def cross_entropy(logits: Tensor, truth: Tensor, known: Tensor | None = None, among: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of the cells; with a mask, of those whose type is known."""
    if known is None:
        return F.cross_entropy(logits, truth)
    return _mean_of(F.cross_entropy(logits, truth, reduction="none"), known, among)


def divergence(logits: Tensor, target: Tensor, known: Tensor | None = None, among: Tensor | None = None) -> Tensor:
    """Return the mean Kullback-Leibler divergence from target probabilities; with masks as in `cross_entropy`."""
    if known is None:
        return F.kl_div(F.log_softmax(logits, 1), target, reduction="batchmean")
    return _mean_of(F.kl_div(F.log_softmax(logits, 1), target, reduction="none").sum(1), known, among)


def cross_entropy_together(
    logits: Tensor, truth: Tensor, known: Tensor | None = None, among: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of each of several classifiers, (g,), for logits (g, n, classes)."""
    each = F.cross_entropy(logits.flatten(0, 1), truth.repeat(len(logits)), reduction="none").view(logits.shape[:2])
    return each.mean(1) if known is None else torch.stack([_mean_of(own, known, among) for own in each])


def divergence_together(
    logits: Tensor, target: Tensor, known: Tensor | None = None, among: Tensor | None = None
) -> Tensor:
    """Return the mean of the divergences of several classifiers from the same target, for logits (g, n, classes)."""
    each = F.kl_div(F.log_softmax(logits, 2), target.expand_as(logits), reduction="none").sum(2).mean(0)
    return each.mean() if known is None else _mean_of(each, known, among)


# Without an adversary -------------------------------------------------------------------------------------------------


class BatchAlignment:
    """Mahalanobis distance between the batches of each cell type, over a memory of recent features.

    Parameters
    ----------
    n_batches, n_cell_types : int
    memory : int, default=1024
        Cells remembered: a minibatch holds too few of each group for means and covariance.
    shrinkage : float, default=0.1
        Added to the diagonal of the pooled covariance within groups, as a share of its mean.
    partial : bool, default=False
        Whether there are cells of unknown type, which have the code -1 and are left out.
    """

    def __init__(
        self,
        n_batches: int,
        n_cell_types: int,
        memory: int = 1024,
        shrinkage: float = 0.1,
        *,
        partial: bool = False,
    ) -> None:
        self.n_batches, self.n_groups = n_batches, n_batches * n_cell_types
        self.shrinkage, self.partial = shrinkage, partial
        self._recent = Recent(memory)

    def state(self) -> dict[str, Tensor] | None:
        """Return what a resumed run needs; None before the first minibatch."""
        return self._recent.state()

    def restore(self, state: dict[str, Tensor] | None, device: torch.device) -> None:
        """Take up what :meth:`state` returned."""
        self._recent.restore(state, device)

    def forget(self) -> None:
        """Empty the memory."""
        self._recent.forget()

    def _counted(self, cells: Minibatch | Whole, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features with a column of ones, which count the cells, and the groups of the cells.

        All is 0 for cells of unknown type.
        """
        groups = cells.cell_type * self.n_batches + cells.batch
        counted = torch.cat([features, features.new_ones(len(features), 1)], 1)
        if self.partial:
            counted, groups = counted * (groups >= 0)[:, None], groups.clamp(min=0)
        return counted, groups

    @torch.no_grad()
    def remember(self, cells: Minibatch | Whole, features: Tensor) -> None:
        """Add the features of a minibatch to the memory, which forgets the oldest."""
        self._recent.add(*self._counted(cells, features.detach()))

    def _sums(self, counted: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of the features of each group, and how many cells it has."""
        sums = counted.new_zeros(self.n_groups, counted.shape[1]).index_add(0, groups, counted)
        return sums[:, :-1], sums[:, -1:]

    def loss(self, cells: Minibatch | Whole, features: Tensor) -> Tensor:
        """Return ``log(1 + D**2)``, averaged over groups; D is a batch's distance from the centre of its type.

        The gradient reaches the features of the minibatch, whose means are mixed into those of the memory.
        """
        return self._loss(*self._counted(cells, features))

    def remembered_loss(self, cells: Minibatch | Whole, features: Tensor) -> Tensor:
        """Add the features of a minibatch to the memory, and return the loss then."""
        features, groups = self._counted(cells, features)
        self._recent.add(features.detach(), groups)
        return self._loss(features, groups)

    def _loss(self, features: Tensor, own_groups: Tensor) -> Tensor:
        with torch.no_grad():
            remembered, groups = self._recent.read()
            sums, counts = self._sums(remembered, groups)
            means = sums / counts.clamp(min=1)
            within, known = remembered[:, :-1] - means[groups], remembered[:, -1:]
            if self.partial or known.device.type == "cuda":  # where the memory has rows that are not filled yet
                within = within * known
                covariance = within.T @ within / known.sum().clamp(min=1)
            else:
                covariance = within.T @ within / len(within)
            ridge = self.shrinkage * covariance.diagonal().mean() + 1e-8
            covariance.diagonal().add_(ridge)
            root = torch.linalg.cholesky_ex(covariance).L  # without the check, which would wait for the device
            counted = counts >= MIN_CELLS
            per_type = (-1, self.n_batches, 1)
            weights = counted.view(per_type).to(features.dtype)
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        own_sums, own_counts = self._sums(features, own_groups)
        own_means = own_sums / own_counts.clamp(min=1)
        share = OWN_SHARE * (counted & (own_counts > 0)).to(features.dtype)
        mixed = (means + share * (own_means - means)).view(*per_type[:2], means.shape[1])
        centres = (mixed * weights).sum(1, keepdim=True)
        offsets = ((mixed - centres) * (weights > 0)).flatten(0, 1)
        squared = torch.linalg.solve_triangular(root, offsets.T, upper=False).square().sum(0)
        value = torch.log1p(squared).sum() / counted.sum().clamp(min=1)
        # As if the whole mean had moved with the minibatch: the memory will follow.
        return value.detach() + (value - value.detach()) / OWN_SHARE


def invariance(features: Tensor, others: Tensor) -> Tensor:
    """Return the difference of two profiles of the same cells: 0 equal, 1 unrelated; averaged over features."""
    spread = features.var(0, correction=0) + others.var(0, correction=0)
    floor = 1e-4 * spread.detach().mean() + 1e-10  # a feature that does not vary counts for nothing
    return ((features - others).square().mean(0) / (spread + floor)).mean()


def identity(scaled: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding each cell's own second view among those of the minibatch, both ways.

    InfoNCE (van den Oord et al., arXiv:1807.03748, 2018; with two views as in Chen et al., ICML 2020) on the cosine of
    standardised features. The styles of the views are drawn independently of the batch, which is no help in finding the
    partner: it asks for what tells cells apart, and not for the batch.

    Parameters
    ----------
    scaled, others : Tensor of shape (n, n_features)
        Standardised features of the same cells in two views.
    temperature : float
    """
    cosine = F.normalize(scaled) @ F.normalize(others).T
    own = torch.arange(len(scaled), device=scaled.device)
    return 0.5 * (F.cross_entropy(cosine / temperature, own) + F.cross_entropy(cosine.T / temperature, own))


def standardised(features: Tensor) -> Tensor:
    """Return features with mean 0 and spread 1 over the minibatch, as a probe would scale them.

    Classifiers then read a batch signal however small its scale is.
    """
    spread = features.var(0, correction=0)
    return (features - features.mean(0)) / (spread + 1e-3 * spread.detach().mean() + 1e-8).sqrt()


def standardised_once(features: Tensor) -> Callable[[], Tensor]:
    """Return what gives the standardised features to the losses that read them.

    On a card they are computed once. On a CPU they are by each loss, where operations cost no launch: gradients are
    added up in an order that releases before had too, so that seeded fits give the same numbers.
    """
    if features.device.type == "cuda":
        scaled = standardised(features)
        return lambda: scaled
    return lambda: standardised(features)


def decorrelation(scaled: Tensor) -> Tensor:
    """Return the mean squared correlation of pairs of standardised features.

    With strongly correlated features the batch remains in their small differences, which are too faint for the
    alignment and the adversaries but not for a probe.
    """
    correlation = scaled.T @ scaled / len(scaled)
    n = len(correlation)
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / max(1, n * (n - 1))


class Activity:
    """Variance term: a loss where the mean or spread of features falls below half of what stage 1 left.

    Removing the batch is easiest with few features, and features that a ReLU sets to 0 for all cells do not recover.

    Parameters
    ----------
    features : Tensor of shape (n, n_features)
        Of the training cells, before the first step of stage 2.
    """

    FLOOR = 0.5

    def __init__(self, features: Tensor) -> None:
        mean, spread = features.mean(0), features.std(0, correction=0)
        # Features that stage 1 left constant or faint are to reach the level of the others.
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


# Between distributions ------------------------------------------------------------------------------------------------


def group_members(batch: Tensor, cell_type: Tensor, device: torch.device | None = None) -> Members:
    """Return, for each cell type, the positions of the cells of each of its batches.

    Only groups of at least `MIN_CELLS` cells count, and only types with two of them; -1 is no type.

    Parameters
    ----------
    batch, cell_type : Tensor of int, shape (n,)
        On the CPU, or else the device is waited for.
    device : torch.device, optional
        Of the positions; by default that of `batch`.
    """
    device = batch.device if device is None else device
    batch, cell_type = batch.cpu(), cell_type.cpu()
    found = []
    for code in cell_type.unique().tolist():
        if code < 0:
            continue
        own = cell_type == code
        groups = [torch.nonzero(own & (batch == b)).flatten() for b in batch[own].unique().tolist()]
        groups = [group.to(device, non_blocking=True) for group in groups if len(group) >= MIN_CELLS]
        if len(groups) > 1:
            found.append(groups)
    return found


def within_groups(values: Tensor, members: Members) -> Tensor:
    """Return the pooled covariance of the cells about the means of their groups."""
    parts = [values[group] - values[group].mean(0) for groups in members for group in groups]
    residuals = torch.cat(parts)
    return residuals.T @ residuals / len(residuals)


def maximum_mean_discrepancy(values: Tensor, members: Members, widths: Sequence[float], ridge: float) -> Tensor:
    """Return how differently the batches of a cell type are distributed, averaged over types.

    The squared maximum mean discrepancy (MMD, Gretton et al., J. Mach. Learn. Res. 13, 723, 2012) with Gaussian kernels
    in the metric of the covariance within groups. Unbiased, so about 0 for batches that are alike; relative to the mean
    of the kernel, summed over its widths.

    Parameters
    ----------
    values : Tensor of shape (n, d)
    members : list of list of Tensor
        See :func:`group_members`.
    widths : sequence of float
        Of the kernels: of the squared distance, in units of its median within the type.
    ridge : float
        Added to the variances in the metric.
    """
    if not members:
        return values.sum() * 0.0
    with torch.no_grad():
        covariance = within_groups(values, members)
        if values.device.type == "cuda":  # where eigenvalues are waited for; distances are the same
            covariance.diagonal().add_(ridge)
            root = torch.linalg.cholesky_ex(covariance).L
        else:
            variance, directions = torch.linalg.eigh(covariance)
            metric = directions * (variance.clamp(min=0) + ridge).rsqrt()
    if values.device.type == "cuda":
        values = torch.linalg.solve_triangular(root, values.T, upper=False).T
    else:
        values = values @ metric
    total = values.new_zeros(())
    for groups in members:
        sizes = [len(group) for group in groups]
        points = values[torch.cat(groups)]
        squared = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
        unit = squared.detach().median().clamp(min=1e-12)
        n = len(points)
        share = torch.block_diag(*(points.new_full((size, 1), 1.0 / size) for size in sizes))
        unbiased = torch.cat([points.new_full((1,), size / (size - 1.0)) for size in sizes])
        others = 1.0 - torch.eye(n, dtype=points.dtype, device=points.device)
        for width in widths:
            kernel = torch.exp(-squared / (width * unit)) * others
            means = share.T @ kernel @ share
            within = (means.diagonal() * unbiased).mean()
            between = (means.sum() - means.diagonal().sum()) / (len(sizes) * (len(sizes) - 1))
            total = total + (within - between) / (kernel.detach().mean() + 1e-12)
    return total / len(members)
