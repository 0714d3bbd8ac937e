"""Which cells are held out."""

from __future__ import annotations

import numpy as np


def split_validation(
    batch: np.ndarray, cell_type: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split the cells at random into training and validation rows, stratified by batch and cell type.

    Every group of batch and cell type gives the rounded fraction of its cells, and keeps at least one for training; the
    groups with the largest remainders make up what rounding loses. Both sets are in random order. At least two cells
    are trained on, and a single cell is not held out: BatchNorm has no statistics of one.
    """
    rng = np.random.RandomState(seed)
    order = rng.permutation(len(batch))
    codes = batch.astype(np.int64) * (int(cell_type.max()) + 2) + cell_type  # of unknown type: -1
    groups = np.unique(codes, return_inverse=True)[1][order]
    sizes = np.bincount(groups)
    wanted = sizes * fraction
    counts = np.floor(wanted).astype(int)
    lacking = round(wanted.sum()) - counts.sum()
    by_remainder = np.argsort(-(wanted - counts), kind="stable")
    by_remainder = by_remainder[sizes[by_remainder] >= 2]
    counts[by_remainder[: max(0, lacking)]] += 1
    counts = np.minimum(counts, sizes - 1)
    if counts.sum() > len(batch) - 2:
        counts[counts.argmax()] -= 1
    if counts.sum() == 1:
        counts[:] = 0
    rank = np.empty(len(order), dtype=int)  # of each cell within its group, in the random order
    sorted_by_group = np.argsort(groups, kind="stable")
    rank[sorted_by_group] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held_out = rank < counts[groups]
    return order[~held_out], order[held_out]
