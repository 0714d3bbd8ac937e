"""Cells on the device: pairs of images with the codes of their batch and cell type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skbegan.data.sampler import Sampler
from skbegan.data.source import ImageSource, Landing, Scaling, send
from skbegan.data.stream import RowBuffer, RowsExcept, Stream, StreamSampler, as_rows
from skbegan.design import Design


class Whole(NamedTuple):
    """Codes of the minibatch of all processes that train together, and at which cell of it the own part begins."""

    batch: Tensor
    cell_type: Tensor
    position: Tensor | None
    start: int


@dataclass(frozen=True)
class Minibatch:
    """Some cells on the device: brightfield, target, codes of batch and type, position in their :class:`Cells`.

    With several processes it is the part of one of them, and `part_of` tells of the others' cells.
    """

    source: Tensor
    target: Tensor
    batch: Tensor
    cell_type: Tensor
    position: Tensor | None = None
    part_of: Whole | None = None
    draws: Mapping[str, Tensor] | None = None  # what a step draws for these cells, if it came along with them

    @property
    def whole(self) -> Whole:
        """Codes of the cells of all processes."""
        return self.part_of or Whole(self.batch, self.cell_type, self.position, 0)

    def own(self, draws: Tensor, axis: int = 0) -> Tensor:
        """Return, of what was drawn for the cells of all processes, what is of these."""
        return draws if self.part_of is None else draws.narrow(axis, self.part_of.start, len(self))

    def __len__(self) -> int:
        return len(self.source)


class Split(NamedTuple):
    """Which cells are trained on and which held out, and the standardisation measured on the former.

    Where cells are streamed, `train_rows` are those of them that are measured and stay in memory.
    """

    train_rows: np.ndarray
    validation_rows: np.ndarray
    bf_scaling: Scaling
    target_scaling: Scaling
    per_image: bool = False  # whether brightfields are standardised one by one as well
    stream: Stream | None = None  # all that are trained on, where they do not fit into memory


class Cells:
    """The cells that a stage trains on or is validated on.

    Parameters
    ----------
    bf, target : ImageSource
    batch, cell_type : ndarray of int, shape (n,)
        Codes from 0, for all images of the sources; a cell type of -1 is not known.
    rows : ndarray of int
        Which of the images belong to this set.
    """

    def __init__(
        self, bf: ImageSource, target: ImageSource, batch: np.ndarray, cell_type: np.ndarray, rows: np.ndarray
    ) -> None:
        self.bf, self.target, self.rows = bf, target, rows
        self._codes = [torch.from_numpy(codes[rows].astype(np.int64)) for codes in (batch, cell_type)]
        self.batch, self.cell_type = (codes.to(bf.device) for codes in self._codes)
        self._landing = Landing()

    @classmethod
    def of_split(
        cls,
        bf: np.ndarray,
        target: np.ndarray,
        batch: np.ndarray,
        cell_type: np.ndarray,
        split: Split,
        device: torch.device,
        dtype: torch.dtype,
        sources: list[ImageSource] | None = None,
    ) -> tuple[Cells, Cells | None]:
        """Return the training and the held-out cells of a split, on a device.

        `sources` keeps the images for the next stage of the same cells: they go to a card once. Empty at first.
        """
        sources = [] if sources is None else sources
        if not sources:
            sources.append(ImageSource(bf, split.bf_scaling, device, dtype, split.per_image))
            sources.append(ImageSource(target, split.target_scaling, device, dtype))
        if split.stream is None:
            for source in sources:
                source.keep_on_device()
        kind = cls if split.stream is None else _Sample
        cells = kind(sources[0], sources[1], batch, cell_type, split.train_rows)
        held_out = (
            cls(sources[0], sources[1], batch, cell_type, split.validation_rows) if len(split.validation_rows) else None
        )
        if split.stream is not None:
            return StreamedCells(cells, batch, cell_type, split.stream), held_out
        return cells, held_out

    @property
    def known(self) -> Cells:
        """Those of the cells that are measured, such as their batch styles: all of them."""
        return self

    def design(self, of_all: Design) -> Design:
        """Return the design of these cells, given that of all training cells."""
        return of_all

    def sampler(self, size: int, rng: torch.Generator, steps: int | None = None) -> Sampler | StreamSampler:
        """Return what draws minibatches of `size`, see :class:`~skbegan.data.sampler.Sampler`."""
        return Sampler(len(self), size, rng, steps)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def side(self) -> int:
        return int(self.bf.images.shape[1])

    @property
    def in_channels(self) -> int:
        return self.bf.n_channels

    @property
    def out_channels(self) -> int:
        return self.target.n_channels

    def take(
        self, indices: Tensor, rank: int = 0, world: int = 1, draws: Mapping[str, Tensor] | None = None
    ) -> Minibatch:
        """Return the cells at `indices`, a CPU tensor of positions within this set.

        With several processes, `world`, those of the process `rank`: an equal part of them, in order. `draws`, on the
        CPU, travel along: codes, positions and draws go to a card in one copy, and stay there until the next ones come.
        """
        size = len(indices) // world
        own = slice(rank * size, (rank + 1) * size)
        rows = self.rows[indices[own].numpy()]
        sent = [indices, *(codes[indices] for codes in self._codes), torch.from_numpy(rows), *(draws or {}).values()]
        place, batch, cell_type, at, *drawn = send(sent, self.bf.device, None if draws is None else self._landing)
        there = None if draws is None else dict(zip(draws, drawn, strict=True))
        part_of = None
        if world > 1:
            part_of = Whole(batch, cell_type, place, own.start)
            batch, cell_type, place = (codes[own] for codes in (batch, cell_type, place))
        images = self.bf.take(rows, at), self.target.take(rows, at)
        return Minibatch(images[0], images[1], batch, cell_type, place, part_of, there)


def draw_coins(n: int, rng: torch.Generator) -> Tensor:
    """Draw for `n` cells which of the three changes of :func:`turned` they get, (3, n, 1, 1, 1)."""
    return torch.rand(3, n, 1, 1, 1, generator=rng) < 0.5


def turned(images: Tensor, coins: Tensor) -> Tensor:
    """Flip and turn each of images: one of the eight symmetries of the square, which `coins` choose."""
    for coin, change in zip(
        coins, (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)), strict=True
    ):
        images = torch.where(coin, change(images), images)
    return images


def turned_together(first: Tensor, second: Tensor, coins: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Flip and turn two stacks of images, each by its coins: on a card at once, where that is fewer operations."""
    if first.device.type != "cuda" or first.shape[1:] != second.shape[1:]:
        return turned(first, coins[0]), turned(second, coins[1])
    both = turned(torch.cat([first, second]), torch.cat(coins, 1))
    return both[: len(first)], both[len(first) :]


class StreamedCells(Cells):
    """Training cells that do not fit into memory: minibatches come from a buffer that a thread fills.

    Parameters
    ----------
    known : Cells
        A sample of them, in memory.
    batch, cell_type : ndarray of int, shape (n,)
        Codes of all images.
    stream : Stream
    """

    def __init__(self, known: Cells, batch: np.ndarray, cell_type: np.ndarray, stream: Stream) -> None:
        self.bf, self.target, self._known, self.stream = known.bf, known.target, known, stream
        self._all_codes = batch, cell_type
        self._rows = RowsExcept(len(batch), stream.held_out)
        self._buffer: RowBuffer | None = None
        self._landing = Landing()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def known(self) -> Cells:
        return self._known

    def sampler(self, size: int, rng: torch.Generator, steps: int | None = None) -> StreamSampler:
        stream = self.stream.enough_for(size)
        sources = tuple(as_rows(source.images) for source in (self.bf, self.target))
        self._buffer = RowBuffer(sources, self._rows, stream.slots)
        return StreamSampler(stream, self._buffer, size, rng, steps)

    def take(
        self, indices: Tensor, rank: int = 0, world: int = 1, draws: Mapping[str, Tensor] | None = None
    ) -> Minibatch:
        """Return the cells at `indices`, see :meth:`Cells.take`; those of the minibatch drawn last are in memory."""
        assert self._buffer is not None, "the cells of a stream are drawn by its sampler"
        size = len(indices) // world
        own = slice(rank * size, (rank + 1) * size)
        images = self._buffer.take(indices[own].numpy())
        rows = self._rows[indices.numpy()]
        codes = [torch.from_numpy(codes[rows].astype(np.int64)) for codes in self._all_codes]
        landing = None if draws is None else self._landing
        batch, cell_type, *drawn = send([*codes, *(draws or {}).values()], self.bf.device, landing)
        there = None if draws is None else dict(zip(draws, drawn, strict=True))
        part_of = Whole(batch, cell_type, None, own.start) if world > 1 else None
        pair = [s._convert(x, in_place=True) for s, x in zip((self.bf, self.target), images, strict=True)]
        return Minibatch(pair[0], pair[1], batch[own], cell_type[own], None, part_of, there)


class _Sample(Cells):
    """Some of the training cells, measured for all."""

    def design(self, of_all: Design) -> Design:
        codes = self.batch.cpu().numpy(), self.cell_type.cpu().numpy()
        return Design.of(*codes, of_all.n_batches, of_all.n_cell_types, of_all.reference)


def symmetry(cells: Minibatch, rng: torch.Generator) -> Minibatch:
    """Flip and turn each pair of images at random, by the coins that came along or else by new ones."""
    if cells.draws is None or "coins" not in cells.draws:
        coins = cells.own(draw_coins(len(cells.whole.batch), rng), axis=1)
        (coins,) = send([coins], cells.source.device)
    else:
        coins = cells.draws["coins"]
    source, target = turned_together(cells.source, cells.target, (coins, coins))
    return replace(cells, source=source, target=target)
