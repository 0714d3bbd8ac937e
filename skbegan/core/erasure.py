"""The fit of what erases the batch from predicted images."""

from __future__ import annotations

import torch
from torch import Tensor

from skbegan.core.losses import group_members, within_groups
from skbegan.core.outputs import ImageErasure


def fit_erasure(
    images: Tensor, batch: Tensor, cell_type: Tensor, *, n_components: int = 200, ridge: float = 0.01
) -> ImageErasure | None:
    """Fit the erasure of the batch from predicted images.

    In the principal components of the images, the directions in which the batches of a type have different means are
    erased in the metric of the covariance within groups, which changes the images least (LEACE, Belrose et al., NeurIPS
    2023, here within cell type). Directions are erased only where the means differ by more than chance would have it
    for so many cells, and at most half of the components.

    Parameters
    ----------
    images : Tensor of shape (n, C, H, W)
        Of training cells.
    batch, cell_type : Tensor of int, shape (n,)
    n_components : int, default=200
    ridge : float, default=0.01
        Added to the covariance, as a share of the mean variance of a component.

    Returns
    -------
    erasure : ImageErasure
        None where no cell type has two batches, or no direction tells them apart.
    """
    members = group_members(batch, cell_type)
    if not members:
        return None
    flat = images.flatten(1).to(torch.float64)
    mean = flat.mean(0)
    flat = flat - mean
    variance, vectors = torch.linalg.eigh(flat @ flat.T if len(flat) < flat.shape[1] else flat.T @ flat)
    kept = (variance > 1e-9 * variance.max()).nonzero().flatten()[-n_components:]
    if len(flat) < flat.shape[1]:
        components = (flat.T @ vectors[:, kept]) / variance[kept].sqrt()
    else:
        components = vectors[:, kept]
    codes = flat @ components
    covariance = within_groups(codes, members)
    spread, axes = torch.linalg.eigh(covariance)
    spread = (spread.clamp(min=0) + ridge * spread.mean()).sqrt()
    whiten, colour = (axes / spread) @ axes.T, (axes * spread) @ axes.T
    offsets = []
    for groups in members:
        means = torch.stack([codes[group].mean(0) for group in groups])
        weights = torch.tensor([len(group) for group in groups], dtype=codes.dtype, device=codes.device).sqrt()
        offsets.append((means - means.mean(0)) * weights[:, None])
    stacked = torch.cat(offsets) @ whiten
    _, sizes, directions = torch.linalg.svd(stacked, full_matrices=False)
    # The largest singular value of pure noise (Marchenko and Pastur's edge), with the metric known from so many cells
    # only, and some room for its scatter.
    n_cells, n_codes = sum(len(group) for groups in members for group in groups), stacked.shape[1]
    by_chance = (len(stacked) - len(members)) ** 0.5 + n_codes**0.5
    by_chance *= 1.05 * (n_cells / max(n_cells - n_codes, n_cells / 4)) ** 0.5
    rank = min(int((sizes > by_chance).sum()), len(kept) // 2)
    if rank == 0:
        return None
    shape = images.shape[1:]
    erasure = ImageErasure(shape, rank)
    erasure.centre.copy_(mean.view(shape))
    erasure.read.copy_((components @ whiten @ directions[:rank].T).view(*shape, rank))
    erasure.write.copy_((directions[:rank] @ colour @ components.T).view(rank, *shape))
    return erasure.to(images.device).eval()
