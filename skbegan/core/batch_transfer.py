"""Images of one batch with the look of another: second-order statistics exchanged between batches, within a cell type.

A cell imaged in batch a is shown to the networks as batch b would have shown it: the mean image of its type in a is
replaced by that in b, and the amplitude of each spatial frequency is scaled by the ratio of their mean power spectra.
Offsets, gain, uneven illumination, blur and noise differ between instruments in just these statistics, while the cell's
own structure is in the phases, which stay. Statistics are taken within one cell type, so that types are not mixed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skbegan.core.data import Cells, Minibatch

MIN_CELLS = 8  # in a group of type and batch; with fewer its statistics are not worth passing on
MAX_RATIO = 5.0  # of amplitudes, either way: frequencies that one batch does not resolve are not made up
CHUNK = 256


class _Look:
    """Mean image and amplitude spectrum of every group of cell type and batch that has enough cells."""

    def __init__(self, means: Tensor, powers: Tensor) -> None:
        self.means = means
        # The spectrum of few cells is rough: averaged over neighbouring frequencies, which wrap around in the rows and
        # mirror in the columns, where only half of them are stored.
        padded = torch.cat([powers[..., -1:, :], powers, powers[..., :1, :]], dim=-2)
        padded = torch.cat([padded[..., 1:2], padded, padded[..., -2:-1]], dim=-1)
        smooth = F.avg_pool2d(padded, 3, stride=1)
        self.amplitudes = (smooth + 1e-4 * smooth.mean((-2, -1), keepdim=True)).sqrt()

    def transfer(self, images: Tensor, before: Tensor, after: Tensor) -> Tensor:
        ratio = (self.amplitudes[after] / self.amplitudes[before]).clamp(1 / MAX_RATIO, MAX_RATIO)
        spectrum = torch.fft.rfft2(images - self.means[before]) * ratio
        moved = torch.fft.irfft2(spectrum, s=images.shape[-2:]) + self.means[after]
        return torch.where((before == after)[:, None, None, None], images, moved)


class BatchTransfer:
    """Give cells the look of other batches in which their type was imaged.

    Parameters
    ----------
    cells : Cells
        Training cells; measured once, in bounded memory.
    n_batches, n_cell_types : int
    share : float
        Share of the cells that are given the look of a batch drawn at random, which may be their own.
    rng : torch.Generator
        CPU generator of the draws.
    """

    def __init__(self, cells: Cells, n_batches: int, n_cell_types: int, share: float, rng: torch.Generator) -> None:
        self.n_batches, self.share, self.rng = n_batches, share, rng
        group = cells.cell_type * n_batches + cells.batch
        counts = torch.bincount(group, minlength=n_batches * n_cell_types)
        known = counts >= MIN_CELLS
        # Statistics are kept for known groups only: a large design has many empty ones.
        self._row = torch.where(known, known.cumsum(0) - 1, -1)
        choices = known.view(n_cell_types, n_batches).float()
        self._cumulative = (choices / choices.sum(1, keepdim=True).clamp(min=1)).cumsum(1)
        self._looks = self._measure(cells, counts[known]) if known.any() else None

    def _measure(self, cells: Cells, counts: Tensor) -> tuple[_Look, _Look]:
        size = counts.to(cells.bf.dtype)[:, None, None, None]
        sums: list[Tensor] = []
        powers: list[Tensor] = []
        for part in cells.in_order(CHUNK):
            rows = self._row[part.cell_type * self.n_batches + part.batch]
            for index, images in enumerate((part.source, part.target)):
                if len(sums) == index:
                    sums.append(images.new_zeros(len(counts), *images.shape[1:]))
                sums[index].index_add_(0, rows[rows >= 0], images[rows >= 0])
        means = [total / size for total in sums]
        for part in cells.in_order(CHUNK):
            rows = self._row[part.cell_type * self.n_batches + part.batch]
            for index, images in enumerate((part.source, part.target)):
                known = rows >= 0
                power = torch.fft.rfft2(images[known] - means[index][rows[known]]).abs().square()
                if len(powers) == index:
                    powers.append(power.new_zeros(len(counts), *power.shape[1:]))
                powers[index].index_add_(0, rows[known], power)
        source, target = (_Look(mean, power / size) for mean, power in zip(means, powers, strict=True))
        return source, target

    def source(self, cells: Minibatch) -> Tensor:
        """Return the brightfield of the cells with new looks."""
        return self._restyle(0, cells.source, cells)

    def target(self, cells: Minibatch) -> Tensor:
        """Return the target of the cells with new looks.

        The best prediction of such targets is the same whatever the batch of the brightfield.
        """
        return self._restyle(1, cells.target, cells)

    def _restyle(self, which: int, images: Tensor, cells: Minibatch) -> Tensor:
        if self._looks is None:
            return images
        chance, draw = torch.rand(2, len(cells), generator=self.rng).to(images.device, non_blocking=True)
        drawn = (draw[:, None] >= self._cumulative[cells.cell_type]).sum(1).clamp(max=self.n_batches - 1)
        batch = torch.where(chance < self.share, drawn, cells.batch)
        first = cells.cell_type * self.n_batches
        before, after = self._row[first + cells.batch], self._row[first + batch]
        unknown = (before < 0) | (after < 0)
        before = before.clamp(min=0)
        return self._looks[which].transfer(images, before, torch.where(unknown, before, after))
