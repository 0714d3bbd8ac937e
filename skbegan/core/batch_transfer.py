"""Images of one batch with the look of another: second-order statistics exchanged between batches.

A cell imaged in batch a is shown to the networks as batch b would have shown it: the mean image of its type in a is
replaced by that in b, and the amplitude of each spatial frequency is scaled by the ratio of their mean power spectra.
Offsets, gain, uneven illumination, blur and noise differ between instruments in just these statistics, while the cell's
own structure is in the phases, which stay.

What a batch does is known from the types it has in common with others, and applied to all: a cell is also shown as
batches would have shown it in which its type never was. Else the batch would tell which types are possible, and
networks that are to know the type would learn to read the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from skbegan.core.data import Cells, Minibatch

MIN_CELLS = 8  # in a group of type and batch; with fewer its statistics are not worth passing on
MAX_RATIO = 5.0  # of amplitudes, either way: frequencies that one batch does not resolve are not made up
STRANGE_SHARE = 0.7  # of the new looks of brightfields that are of no batch, where there are such
CHUNK = 256


class _Design:
    """Which cell types were imaged in which batches, and what of it can be compared.

    Parameters
    ----------
    counts : Tensor of int, shape (n_cell_types, n_batches)
        Cells of each group.
    """

    def __init__(self, counts: Tensor) -> None:
        n_types, n_batches = counts.shape
        counts = counts.cpu()
        known = counts >= MIN_CELLS
        self.row = torch.where(known, (known.flatten().cumsum(0) - 1).view_as(known), -1)
        self.counts = counts[known]
        cell_type, batch = torch.nonzero(known, as_tuple=True)
        # Batches compare that share a type, or are linked by others that do.
        reach = known.double()
        while not torch.equal(wider := (known.double() @ known.double().T @ reach > 0).double(), reach):
            reach = wider
        self.reach = reach.float()  # (n_cell_types, n_batches)
        together = (known.double().T @ reach > 0).float()
        self.centring = torch.eye(n_batches) - together / together.sum(1, keepdim=True).clamp(min=1)
        # Least squares of the values of groups, each the sum of an effect of the type and one of the batch.
        effects = torch.zeros(len(batch), n_types + n_batches, dtype=torch.float64)
        effects[torch.arange(len(batch)), cell_type] = 1.0
        effects[torch.arange(len(batch)), n_types + batch] = 1.0
        weights = self.counts.to(torch.float64).sqrt()
        self.solver = torch.linalg.pinv(effects * weights[:, None]) * weights


class _Table:
    """Values by cell type and batch: what was measured, or else the sum of the effects of the type and of the batch."""

    def __init__(self, measured: Tensor, design: _Design) -> None:
        n_types = len(design.row)
        self.row, self.measured = design.row.to(measured.device), measured
        effects = (design.solver.to(measured.device) @ measured.flatten(1).to(torch.float64)).to(measured.dtype)
        effects = effects.view(-1, *measured.shape[1:])
        self.of_type, self.of_batch = effects[:n_types], effects[n_types:]
        #: Effects of batches about the mean of those that can be compared, (n_batches, values).
        self.differences = design.centring.to(effects) @ self.of_batch.flatten(1)

    def __call__(self, cell_type: Tensor, batch: Tensor) -> Tensor:
        row = self.row[cell_type, batch]
        known = (row >= 0).view(-1, *[1] * (self.measured.ndim - 1))
        return torch.where(known, self.measured[row.clamp(min=0)], self.of_type[cell_type] + self.of_batch[batch])


class _Look:
    """Mean image and logarithm of the amplitude spectrum by cell type and batch."""

    def __init__(self, means: Tensor, powers: Tensor, design: _Design) -> None:
        # The spectrum of few cells is rough: averaged over neighbouring frequencies, which wrap around in the rows and
        # mirror in the columns, where only half of them are stored.
        padded = torch.cat([powers[..., -1:, :], powers, powers[..., :1, :]], dim=-2)
        padded = torch.cat([padded[..., 1:2], padded, padded[..., -2:-1]], dim=-1)
        smooth = F.avg_pool2d(padded, 3, stride=1)
        self.mean = _Table(means, design)
        self.spectrum = _Table(0.5 * (smooth + 1e-4 * smooth.mean((-2, -1), keepdim=True)).log(), design)

    def transfer(self, images: Tensor, cell_type: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return images of batches `before` as batches `after` would show them."""
        shift = self.mean(cell_type, after) - self.mean(cell_type, before)
        gain = self.spectrum(cell_type, after) - self.spectrum(cell_type, before)
        moved = self._apply(images, cell_type, before, shift, gain)
        return torch.where((before == after)[:, None, None, None], images, moved)

    def estrange(self, images: Tensor, cell_type: Tensor, before: Tensor, mixes: Tensor) -> Tensor:
        """Return images of batches `before` as a batch could that differs from their mean as `mixes` of others do.

        `mixes` is of shape (2, n, n_batches): shares of each batch in the difference of mean and spectrum.
        """
        shift, gain = (
            (mix @ table.differences - table.differences[before]).view(-1, *table.measured.shape[1:])
            for mix, table in zip(mixes, (self.mean, self.spectrum), strict=True)
        )
        return self._apply(images, cell_type, before, shift, gain)

    def _apply(self, images: Tensor, cell_type: Tensor, before: Tensor, shift: Tensor, gain: Tensor) -> Tensor:
        mean = self.mean(cell_type, before)
        limit = math.log(MAX_RATIO)
        spectrum = torch.fft.rfft2(images - mean) * gain.clamp(-limit, limit).exp()
        return torch.fft.irfft2(spectrum, s=images.shape[-2:]) + mean + shift


class BatchTransfer:
    """Give cells the look of other batches.

    Parameters
    ----------
    cells : Cells
        Training cells; measured once, in bounded memory.
    n_batches, n_cell_types : int
    spread : float
        Of the looks that are of no batch, as most new looks of brightfields are: how far they scatter about the mean of
        the batches, relative to the batches themselves. 0: there are none.
    rng : torch.Generator
        CPU generator of the draws.
    """

    def __init__(self, cells: Cells, n_batches: int, n_cell_types: int, spread: float, rng: torch.Generator) -> None:
        self.n_batches, self.spread, self.rng = n_batches, spread, rng
        counts = torch.bincount(cells.cell_type * n_batches + cells.batch, minlength=n_batches * n_cell_types)
        design = _Design(counts.view(n_cell_types, n_batches))
        self._reach = design.reach.to(cells.batch.device)
        self._cumulative = (self._reach / self._reach.sum(1, keepdim=True).clamp(min=1)).cumsum(1)
        self._row = design.row.to(cells.batch.device)
        self._looks = self._measure(cells, design) if len(design.counts) else None

    def _measure(self, cells: Cells, design: _Design) -> tuple[_Look, _Look]:
        size = design.counts.to(cells.batch.device, cells.bf.dtype)[:, None, None, None]
        sums: list[Tensor] = []
        powers: list[Tensor] = []
        for part in cells.in_order(CHUNK):
            rows = self._row[part.cell_type, part.batch]
            for index, images in enumerate((part.source, part.target)):
                if len(sums) == index:
                    sums.append(images.new_zeros(len(size), *images.shape[1:]))
                sums[index].index_add_(0, rows[rows >= 0], images[rows >= 0])
        means = [total / size for total in sums]
        for part in cells.in_order(CHUNK):
            rows = self._row[part.cell_type, part.batch]
            for index, images in enumerate((part.source, part.target)):
                known = rows >= 0
                power = torch.fft.rfft2(images[known] - means[index][rows[known]]).abs().square()
                if len(powers) == index:
                    powers.append(power.new_zeros(len(size), *power.shape[1:]))
                powers[index].index_add_(0, rows[known], power)
        source, target = (_Look(mean, power / size, design) for mean, power in zip(means, powers, strict=True))
        return source, target

    def source(self, cells: Minibatch, share: float) -> Tensor:
        """Return the brightfield of the cells, a share of them in the look of another batch or of none."""
        moved = self._restyle(0, cells.source, cells, share)
        if self._looks is None or share == 0 or self.spread == 0:
            return moved
        device, shape = cells.source.device, (2, len(cells), self.n_batches)
        chance = torch.rand(len(cells), generator=self.rng).to(device, non_blocking=True)
        mixes = torch.randn(shape, generator=self.rng).to(device, moved.dtype, non_blocking=True)
        # As many draws as there are batches scatter as one batch does when each counts by the root of their number.
        comparable = self._reach[cells.cell_type].to(moved.dtype)
        mixes = mixes * comparable * self.spread / comparable.sum(1, keepdim=True).clamp(min=1).sqrt()
        strange = self._looks[0].estrange(cells.source, cells.cell_type, cells.batch, mixes)
        chosen = (chance < share * STRANGE_SHARE) & (self._row[cells.cell_type, cells.batch] >= 0)
        return torch.where((chosen & (comparable.sum(1) > 1))[:, None, None, None], strange, moved)

    def target(self, cells: Minibatch, share: float) -> Tensor:
        """Return the target of the cells, a share of them in the look of another batch.

        The best prediction of such targets is the same whatever the batch of the brightfield.
        """
        return self._restyle(1, cells.target, cells, share)

    def _restyle(self, which: int, images: Tensor, cells: Minibatch, share: float) -> Tensor:
        """Give a share of the cells the look of a batch drawn from all that compare with their own, that one too."""
        if self._looks is None or share == 0:
            return images
        chance, draw = torch.rand(2, len(cells), generator=self.rng).to(images.device, non_blocking=True)
        drawn = (draw[:, None] >= self._cumulative[cells.cell_type]).sum(1).clamp(max=self.n_batches - 1)
        known = self._row[cells.cell_type, cells.batch] >= 0
        after = torch.where((chance < share) & known, drawn, cells.batch)
        return self._looks[which].transfer(images, cells.cell_type, cells.batch, after)
