"""The order in which cells are trained on: positions, whatever is at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Sampler:
    """Minibatches of `n` cells in random order, epoch by epoch.

    An epoch is one pass over the cells, or some number of minibatches. In the second case the next epoch goes on where
    the last one stopped: each cell is still seen once per pass, whatever the length of an epoch.

    Parameters
    ----------
    n, size : int
        Cells, and cells per minibatch.
    rng : torch.Generator
        CPU generator; each pass draws its order from it when it begins.
    steps : int or None, default=None
        Minibatches per epoch; None is one pass.
    """

    def __init__(self, n: int, size: int, rng: torch.Generator, steps: int | None = None) -> None:
        self.n, self.size, self.rng = n, min(size, n), rng
        self.minibatch_size = size
        self.n_steps = n_minibatches(n, size, steps)
        self._goes_on = steps is not None
        self._order: Tensor | None = None
        self._drawn_at: Tensor | None = None  # state of the generator from which the order of this pass was drawn
        self._done = 0  # cells of this pass

    def epoch(self) -> Iterator[Tensor]:
        """Yield the minibatches of one epoch; cells left over at the end of a pass wait for another one."""
        if not self._goes_on:
            yield from shuffled(self.n, self.size, self.rng)
            return
        for _ in range(self.n_steps):
            if self._order is None or self._done + self.size > self.n:
                self._drawn_at = self.rng.get_state()
                self._order, self._done = torch.randperm(self.n, generator=self.rng), 0
            self._done += self.size
            yield self._order[self._done - self.size : self._done]

    def state(self) -> dict[str, Any] | None:
        """Return where the pass is, None between passes."""
        if self._drawn_at is None or self._done + self.size > self.n:
            return None
        return {"drawn_at": self._drawn_at, "done": self._done}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up what :meth:`state` returned.

        Raises
        ------
        ValueError, LookupError, TypeError, RuntimeError
            If it is of another sampler.
        """
        if state is None:
            return
        if not self._goes_on:
            raise ValueError("the order of its cells is that of others")
        rng, self._done = rng_of_pass(state, self.n, self.size)
        self._drawn_at = state["drawn_at"]
        self._order = torch.randperm(self.n, generator=rng)


def rng_of_pass(state: Mapping[str, Any], n: int, size: int) -> tuple[torch.Generator, int]:
    """Return the generator from which a pass was drawn, and how many of its `n` cells were handed out, from a state.

    Raises
    ------
    ValueError, LookupError, TypeError, RuntimeError
        If it is of another sampler.
    """
    done = state["done"]
    if type(done) is not int or done % size or not 0 < done <= n - size:
        raise ValueError("the order of its cells is that of others")
    rng = torch.Generator()
    rng.set_state(state["drawn_at"])
    return rng, done


def shuffled(n: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield one epoch of full minibatches of `n` cells in random order; cells left over wait for another epoch."""
    order = torch.randperm(n, generator=rng)
    size = min(size, n)
    for start in range(0, n - size + 1, size):
        yield order[start : start + size]


def in_order(n: int, size: int) -> Iterator[Tensor]:
    """Yield all of `n` cells in order, in minibatches of nearly equal length of at most `size`."""
    yield from torch.arange(n).tensor_split(-(-n // size))


def n_minibatches(n: int, size: int, steps: int | None = None) -> int:
    """Return how many minibatches an epoch has: `steps`, or those of one pass over `n` cells."""
    return n // min(size, n) if steps is None else steps
