"""What is taken from features and images after stage 2, when the generator no longer moves.

While it trains, whatever compares batches compares features of generators some steps apart, and a difference that
wanders from step to step averages out of sight. Of the finished generator all cells can be looked at together:

- :class:`ProfileMap` makes the profile from the features. It keeps the directions in which they vary enough and moves
  cells, by a small network, until the batches of each cell type have one distribution;
- :class:`ImageErasure` takes from the predicted images what tells the batches of a type apart linearly.

Both see one cell at a time and neither its batch nor its type, so they serve cells of any day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core.device import Adam, new_rng
from skbegan.core.networks import Generator, build

HIDDEN = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.3  # of the correction, relative to the learning rate: training cells are learned by heart less
CELLS_PER_STEP = 2048
KERNEL_WIDTHS = (0.1, 0.3, 1.0, 3.0)  # of the squared distance, in units of its median within the type
RIDGE = 0.1  # of the variance of a standardised feature, in the metric of the kernels
CELL_TYPE_SHARE = 2.0  # of the reader of the cell type in this fit, relative to stage 2
KEEP_WEIGHT = 0.3  # of the squared distance between code and corrected code
MIN_CELLS = 4  # in a group of type and batch
DEAD = 1e-3  # of the spread of the most variable feature


class ProfileMap(nn.Module):
    """From features (n, n_features) to profiles of the same shape.

    Features are written as a code of fewer numbers, their principal components; the code is corrected by a small
    network; what the code does not hold is left at its mean.

    Parameters
    ----------
    n_features, rank : int
        Lengths of the profile and of the code.
    hidden : int, default=128
        Width of the correcting network.
    """

    centre: Tensor
    read: Tensor
    write: Tensor

    def __init__(self, n_features: int, rank: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("read", torch.zeros(n_features, rank))
        self.register_buffer("write", torch.zeros(rank, n_features))
        self.correction = nn.Sequential(
            nn.Linear(rank, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, rank)
        )

    def corrected(self, code: Tensor) -> Tensor:
        return code + self.correction(code)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(
            features.device.type, enabled=False
        ):  # bfloat16 would add noise of the size of what is kept
            code = (features.to(self.centre.dtype) - self.centre) @ self.read
            return self.centre + self.corrected(code) @ self.write


class ImageErasure(nn.Module):
    """From predicted images (n, C, H, W) to images of the same shape, without `rank` directions of the batch.

    Parameters
    ----------
    shape : sequence of int
        ``(C, H, W)``.
    rank : int
    """

    centre: Tensor
    read: Tensor
    write: Tensor

    def __init__(self, shape: Sequence[int], rank: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(*shape))
        self.register_buffer("read", torch.zeros(*shape, rank))
        self.register_buffer("write", torch.zeros(rank, *shape))

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(self.centre.dtype)
            code = torch.einsum("nchw,chwk->nk", images - self.centre, self.read)
            return images - torch.einsum("nk,kchw->nchw", code, self.write)


def attach_outputs(generator: Generator, shapes: Mapping[str, Sequence[int]]) -> Generator:
    """Give a generator the modules that the names and shapes of its weights speak of; their values come later."""
    generator.profile, generator.erasure = nn.Identity(), nn.Identity()
    if "profile.read" in shapes:
        hidden = shapes["profile.correction.0.weight"][0]
        generator.profile = build(ProfileMap, *shapes["profile.read"], hidden, rng=new_rng(0))
    if "erasure.centre" in shapes:
        generator.erasure = ImageErasure(shapes["erasure.centre"], shapes["erasure.write"][0])
    return generator


Members = list[list[Tensor]]


def group_members(batch: Tensor, cell_type: Tensor, device: torch.device | None = None) -> Members:
    """Return, for each cell type, the positions of the cells of each of its batches.

    Only groups of at least `MIN_CELLS` cells count, and only types with two of them.

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


# --------------------------------------------------------------------------------------------------------- the profile


def fit_profile(
    views: Tensor,
    batch: Tensor,
    cell_type: Tensor,
    *,
    floor: float,
    batch_weight: float,
    cell_type_weight: float,
    steps: int,
    rng: torch.Generator,
) -> tuple[ProfileMap, dict[str, list[float]]] | None:
    """Fit the map from features to profiles on the features of the training cells.

    The directions that are kept are the principal components of the standardised features with at least `floor` of the
    variance of an average one. The correcting network minimises the kernel two-sample statistic (maximum mean
    discrepancy, Gretton et al., J. Mach. Learn. Res. 13, 723, 2012) between the batches of each cell type, in the
    metric of the covariance within groups, with the cross-entropy of a linear reader of the cell type, and a penalty
    on its corrections.

    Parameters
    ----------
    views : Tensor of shape (n_views, n, n_features)
        Features of the same cells seen in different orientations.
    batch, cell_type : Tensor of int, shape (n,)
    floor : float
    batch_weight, cell_type_weight : float
    steps : int
    rng : torch.Generator
        CPU generator.

    Returns
    -------
    profile : ProfileMap
    losses : dict of str to list of float
        ``"discrepancy"``, ``"cell_type"`` and ``"correction"``: means over ten parts of the fit.
        None is returned, for both, where no cell type has two batches or the features do not vary.
    """
    device = views.device
    on_host = batch.cpu(), cell_type.cpu()
    members = group_members(*on_host, device)
    profile = _principal_map(views[0], floor, rng)
    if profile is None or not members or steps < 1:
        return None
    _, n, _ = views.shape
    nn.init.zeros_(profile.correction[-1].weight)  # type: ignore[arg-type]
    profile.to(device)
    codes = (views - profile.centre) @ profile.read
    rank, n_types = codes.shape[2], int(cell_type.max()) + 1
    reader = build(nn.Linear, rank, n_types, rng=rng).to(device)
    optimizer = Adam([*profile.correction.parameters(), *reader.parameters()], LEARNING_RATE)
    recorded: dict[str, list[Tensor]] = {"discrepancy": [], "cell_type": [], "correction": []}
    for step in range(steps):
        rate = LEARNING_RATE * min(1.0, 2.0 * (1.0 - step / steps))
        optimizer.set_learning_rate(rate)
        part, types, rows = members, cell_type, torch.arange(n)
        if n > CELLS_PER_STEP:
            rows = torch.randperm(n, generator=rng)[:CELLS_PER_STEP]
            part, types = group_members(on_host[0][rows], on_host[1][rows], device), cell_type[rows.to(device)]
        view = torch.randint(len(codes), (len(rows),), generator=rng)
        code = codes[view.to(device), rows.to(device)]
        corrected = profile.corrected(code)
        scaled = (corrected - corrected.mean(0).detach()) / (corrected.std(0).detach() + 1e-6)
        losses = {
            "discrepancy": discrepancy(scaled, part),
            "cell_type": F.cross_entropy(reader(scaled), types),
            "correction": (corrected - code).square().mean(),
        }
        total = batch_weight * losses["discrepancy"] + KEEP_WEIGHT * losses["correction"]
        if n_types > 1:
            total = total + CELL_TYPE_SHARE * cell_type_weight * losses["cell_type"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(list(profile.correction.parameters()), 1.0 - WEIGHT_DECAY * rate)
        for name, value in losses.items():
            recorded[name].append(value.detach())
    history = {
        name: [float(chunk.mean()) for chunk in torch.stack(values).cpu().tensor_split(min(10, steps))]
        for name, values in recorded.items()
    }
    return profile.requires_grad_(False).eval(), history


def _principal_map(features: Tensor, floor: float, rng: torch.Generator) -> ProfileMap | None:
    """Return the map to the principal components of the standardised features, not corrected yet."""
    wide = features.to(torch.float64)
    mean, spread = wide.mean(0), wide.std(0, correction=0)
    alive = spread > DEAD * spread.max()
    if not bool(alive.any()):
        return None
    scaled = (wide - mean)[:, alive] / spread[alive]
    variance, directions = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
    kept = variance >= min(max(floor, 1e-6), float(variance.max()))
    variance, directions = variance[kept].flip(0), directions[:, kept].flip(1)
    # Faint directions stay somewhat fainter than strong ones: they are known less well.
    size = variance.sqrt() + floor**0.5
    profile = build(ProfileMap, features.shape[1], len(size), rng=rng).to(features.device)
    profile.centre.copy_(mean)
    profile.read.zero_()
    profile.write.zero_()
    profile.read[alive] = (directions / spread[alive, None] / size).to(profile.read.dtype)
    profile.write[:, alive] = (directions * spread[alive, None] * size).T.to(profile.write.dtype)
    return profile


def recalls(values: Tensor, cell_type: Tensor, known: Tensor, known_type: Tensor) -> Tensor:
    """Return, for each cell type, the share of its cells that are nearest to their own type's mean; NaN without cells.

    Parameters
    ----------
    values, known : Tensor of shape (n, d)
        Cells to name, and cells that the means and the scale are taken from.
    cell_type, known_type : Tensor of int, shape (n,)
    """
    n_types = int(max(cell_type.max(), known_type.max())) + 1
    centre, spread = known.mean(0), known.std(0, correction=0) + 1e-12
    values, known = (values - centre) / spread, (known - centre) / spread
    ones = torch.ones(len(known), device=known.device)
    counts = torch.zeros(n_types, device=known.device).index_add(0, known_type, ones)
    means = torch.zeros(n_types, known.shape[1], device=known.device).index_add(0, known_type, known)
    distance = torch.cdist(values, means / counts.clamp(min=1)[:, None])
    distance[:, counts == 0] = torch.inf
    right = (distance.argmin(1) == cell_type).float()
    asked = torch.zeros_like(counts).index_add(0, cell_type, torch.ones_like(right))
    return torch.zeros_like(counts).index_add(0, cell_type, right) / asked


def discrepancy(values: Tensor, members: Members) -> Tensor:
    """Return how differently the batches of a cell type are distributed: kernel discrepancy, averaged over types.

    Unbiased, so about 0 for batches that are alike; relative to the mean of the kernel, summed over its widths.
    """
    if not members:
        return values.sum() * 0.0
    with torch.no_grad():
        covariance = within_groups(values, members)
        variance, directions = torch.linalg.eigh(covariance)
        metric = directions * (variance.clamp(min=0) + RIDGE).rsqrt()
    values = values @ metric
    total = values.new_zeros(())
    for groups in members:
        sizes = [len(group) for group in groups]
        points = values[torch.cat(groups)]
        squared = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
        unit = squared.detach().median().clamp(min=1e-12)
        n = len(points)
        share = torch.block_diag(*(points.new_full((size, 1), 1.0 / size) for size in sizes))
        unbiased = torch.tensor([size / (size - 1.0) for size in sizes], dtype=points.dtype, device=points.device)
        others = 1.0 - torch.eye(n, dtype=points.dtype, device=points.device)
        for width in KERNEL_WIDTHS:
            kernel = torch.exp(-squared / (width * unit)) * others
            means = share.T @ kernel @ share
            within = (means.diagonal() * unbiased).mean()
            between = (means.sum() - means.diagonal().sum()) / (len(sizes) * (len(sizes) - 1))
            total = total + (within - between) / (kernel.detach().mean() + 1e-12)
    return total / len(members)


# ---------------------------------------------------------------------------------------------------------- the images


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
