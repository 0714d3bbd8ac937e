"""The order in which cells are trained on: positions, whatever is at them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def shuffled(n: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield one epoch of full minibatches of `n` cells in random order; cells left over wait for another epoch."""
    order = torch.randperm(n, generator=rng)
    size = min(size, n)
    for start in range(0, n - size + 1, size):
        yield order[start : start + size]


def in_order(n: int, size: int) -> Iterator[Tensor]:
    """Yield all of `n` cells in order, in minibatches of nearly equal length of at most `size`."""
    yield from torch.arange(n).tensor_split(-(-n // size))


def n_minibatches(n: int, size: int) -> int:
    """Return how many minibatches :func:`shuffled` yields."""
    return n // min(size, n)
