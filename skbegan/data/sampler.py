"""The order in which cells are trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from skbegan.data.cells import Cells, Minibatch


def shuffled(cells: Cells, size: int, rng: torch.Generator) -> Iterator[Minibatch]:
    """Yield one epoch of full minibatches in random order; cells left over wait for another epoch."""
    order = torch.randperm(len(cells), generator=rng)
    size = min(size, len(cells))
    for start in range(0, len(cells) - size + 1, size):
        yield cells.take(order[start : start + size])


def in_order(cells: Cells, size: int) -> Iterator[Minibatch]:
    """Yield all cells in order, in minibatches of nearly equal length of at most `size`."""
    for part in torch.arange(len(cells)).tensor_split(-(-len(cells) // size)):
        yield cells.take(part)


def n_minibatches(cells: Cells, size: int) -> int:
    """Return how many minibatches :func:`shuffled` yields."""
    return len(cells) // min(size, len(cells))
