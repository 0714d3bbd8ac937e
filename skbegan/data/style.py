"""Batch styles: images of one batch in the style of another, by Fourier-domain style transfer.

The style of a batch is what it does to images: their mean and their power spectrum, by cell type. A cell imaged in
batch a is shown to the networks as batch b would have shown it: the mean image of its type in a is replaced by that in
b, and the amplitude of each spatial frequency is scaled by the ratio of their mean power spectra (Yang and Soatto,
"FDA: Fourier domain adaptation for semantic segmentation", CVPR 2020, exchange amplitudes of single images). Offsets,
gain, uneven illumination, blur and noise differ between instruments in just these statistics, while the cell's own
structure is in the phases, which stay.

The effect of a batch is measured on the types that it has in common with others and applied to all: a cell is also
given the styles of batches in which its type was never imaged. The batch would otherwise predict the type, and networks
that classify the type would learn to read the batch.

Cells of unknown type are not measured, since batches may differ in what they hold of them. They get the styles of the
batches that theirs is linked with, by the effects of the batches alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skbegan.data.cells import Cells, Minibatch
from skbegan.data.sampler import in_order
from skbegan.data.source import send
from skbegan.design import Design

MIN_CELLS = 8  # in a group of type and batch; with fewer its statistics are too rough to be used
MAX_RATIO = 5.0  # of amplitudes, either way: frequencies that a batch does not resolve cannot be restored
CHUNK = 256
DENSE = 2**27  # bytes of the values of all types and batches, at most, for them to be kept


class _Effects:
    """How values of groups of type and batch come apart into effects of the type and of the batch.

    Parameters
    ----------
    design : Design
        Of the training cells.
    """

    def __init__(self, design: Design) -> None:
        counts = torch.from_numpy(design.counts)
        known = counts >= MIN_CELLS
        self.row = torch.where(known, (known.flatten().cumsum(0) - 1).view_as(known), -1)
        self.counts = counts[known]
        comparable = design.comparable(MIN_CELLS)
        self.comparable = torch.from_numpy(comparable).float()
        self.n_types = design.n_cell_types
        cell_type, batch = torch.nonzero(known, as_tuple=True)
        together = (known.double().T @ self.comparable.double() > 0).float()
        self.centring = torch.eye(design.n_batches) - together / together.sum(1, keepdim=True).clamp(min=1)
        # Least squares of the values of groups, each the sum of an effect of the type and one of the batch.
        effects = torch.zeros(len(batch), design.n_cell_types + design.n_batches, dtype=torch.float64)
        effects[torch.arange(len(batch)), cell_type] = 1.0
        effects[torch.arange(len(batch)), design.n_cell_types + batch] = 1.0
        weights = self.counts.to(torch.float64).sqrt()
        self.solver = torch.linalg.pinv(effects * weights[:, None]) * weights
        #: By batch: the code of the cells of unknown type there; None where there are none.
        self.untyped = None if design.unlabelled is None else self._add_untyped(comparable, design.counts)

    def _add_untyped(self, comparable: np.ndarray, counts: np.ndarray) -> Tensor:
        """Add a row for the cells of unknown type of each group of linked batches: the mean of the group's types."""
        groups = np.unique(comparable[comparable.any(1)], axis=0)
        if not len(groups):
            groups = np.zeros((1, counts.shape[1]), bool)
        members = (comparable == groups[:, None]).all(2)
        size = members * counts.sum(1)
        #: Shares of the types in the mean of each group, (n_groups, n_types).
        self.mixture = torch.from_numpy(size / np.maximum(size.sum(1, keepdims=True), 1))
        self.row = torch.cat([self.row, self.row.new_full((len(groups), counts.shape[1]), -1)])
        self.comparable = torch.cat([self.comparable, torch.from_numpy(groups).float()])
        # A batch in no group gets a row that does not have it: its cells keep their style.
        return self.n_types + torch.from_numpy(groups.argmax(0))


class _Table:
    """Values by cell type and batch: what was measured, or else the sum of the effects of the type and of the batch."""

    def __init__(self, measured: Tensor, design: _Effects) -> None:
        n_types = design.n_types
        self.row, self.measured = design.row.to(measured.device), measured
        effects = (design.solver.to(measured.device) @ measured.flatten(1).to(torch.float64)).to(measured.dtype)
        effects = effects.view(-1, *measured.shape[1:])
        self.of_type, self.of_batch = effects[:n_types], effects[n_types:]
        if design.untyped is not None:
            mixture = design.mixture.to(self.of_type)
            self.of_type = torch.cat([self.of_type, torch.tensordot(mixture, self.of_type, dims=1)])
        #: Values of all types and batches, if they are not too many: found at once.
        self._dense: Tensor | None = None
        self._is_small = self.row.numel() * measured[:1].numel() * measured.element_size() <= DENSE
        #: Effects of batches about the mean of those that can be compared, (n_batches, values).
        self.differences = design.centring.to(effects) @ self.of_batch.flatten(1)

    def __call__(self, cell_type: Tensor, batch: Tensor) -> Tensor:
        if self._dense is None and self._is_small:
            batches = torch.arange(self.row.shape[1], device=self.row.device)
            rows = [self._found(torch.full_like(batches, code), batches) for code in range(len(self.row))]
            self._dense = torch.stack(rows)
        return self._found(cell_type, batch) if self._dense is None else self._dense[cell_type, batch]

    def _found(self, cell_type: Tensor, batch: Tensor) -> Tensor:
        row = self.row[cell_type, batch]
        known = (row >= 0).view(-1, *[1] * (self.measured.ndim - 1))
        return torch.where(known, self.measured[row.clamp(min=0)], self.of_type[cell_type] + self.of_batch[batch])

    def typical(self, comparable: Tensor) -> Tensor:
        """Return for each cell type the mean over the batches it is comparable with, of shape (n_cell_types, ...)."""
        types = torch.arange(len(comparable), device=comparable.device)
        total = torch.zeros_like(self.of_type)
        for code, has in enumerate(comparable.to(total.dtype).unbind(1)):
            total += has.view(-1, *[1] * (total.ndim - 1)) * self(types, torch.full_like(types, code))
        return total / comparable.sum(1).clamp(min=1).to(total.dtype).view(-1, *[1] * (total.ndim - 1))


class _Style:
    """Mean image and logarithm of the amplitude spectrum by cell type and batch."""

    def __init__(self, means: Tensor, powers: Tensor, design: _Effects) -> None:
        # The spectrum of few cells is rough: averaged over neighbouring frequencies, which wrap around in the rows and
        # mirror in the columns, where only half of them are stored.
        padded = torch.cat([powers[..., -1:, :], powers, powers[..., :1, :]], dim=-2)
        padded = torch.cat([padded[..., 1:2], padded, padded[..., -2:-1]], dim=-1)
        smooth = F.avg_pool2d(padded, 3, stride=1)
        self.mean = _Table(means, design)
        floor = torch.finfo(smooth.dtype).tiny  # a constant channel has no power at any frequency
        smooth = (smooth + 1e-4 * smooth.mean((-2, -1), keepdim=True)).clamp(min=floor)
        self.spectrum = _Table(0.5 * smooth.log(), design)
        self._typical: tuple[Tensor, Tensor] | None = None

    def between(self, cell_type: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean of batches `before`, and what makes them batches `after`: shift and logarithm of the gain."""
        mean = self.mean(cell_type, before)
        shift = self.mean(cell_type, after) - mean
        return mean, shift, self.spectrum(cell_type, after) - self.spectrum(cell_type, before)

    def unseen(self, before: Tensor, mixes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what makes batches `before` unseen styles, `mixes` of the differences between batches.

        `mixes` is of shape (2, n, n_batches): shares of each batch in the difference of mean and spectrum from the mean
        of the batches.
        """
        shift, gain = (
            (mix @ table.differences - table.differences[before]).view(-1, *table.measured.shape[1:])
            for mix, table in zip(mixes, (self.mean, self.spectrum), strict=True)
        )
        return shift, gain

    def canonical(self, images: Tensor, cell_type: Tensor, before: Tensor, comparable: Tensor) -> Tensor:
        """Return images of batches `before` in the mean style of all batches that `comparable` has for their type."""
        if self._typical is None:
            self._typical = self.mean.typical(comparable), self.spectrum.typical(comparable)
        mean = self.mean(cell_type, before)
        shift = self._typical[0][cell_type] - mean
        gain = self._typical[1][cell_type] - self.spectrum(cell_type, before)
        return self.apply(images, mean, shift, gain)

    @staticmethod
    def apply(images: Tensor, mean: Tensor, shift: Tensor, gain: Tensor) -> Tensor:
        """Return images about a mean with amplitudes times the exponential of `gain`, shifted."""
        limit = math.log(MAX_RATIO)
        spectrum = torch.fft.rfft2(images - mean) * gain.clamp(-limit, limit).exp()
        return torch.fft.irfft2(spectrum, s=images.shape[-2:]) + mean + shift


class Drawn(NamedTuple):
    """What is drawn for the styles of `n` cells.

    Attributes
    ----------
    moved : Tensor of bool, shape (n,)
        Which cells get the style of another batch.
    place : Tensor of shape (n,)
        Of 0 to 1: which batch that is.
    unseen : Tensor of bool, shape (n,), or None
        Which cells get an unseen style.
    mixes : Tensor of shape (2, n, n_batches) or None
    """

    moved: Tensor
    place: Tensor
    unseen: Tensor | None = None
    mixes: Tensor | None = None

    def of(self, own: slice) -> dict[str, Tensor]:
        """Return what is of some of the cells, by name."""
        found = {"moved": self.moved[own], "place": self.place[own]}
        if self.unseen is not None and self.mixes is not None:
            found |= {"unseen": self.unseen[own], "mixes": self.mixes[:, own]}
        return found


class BatchStyles:
    """Give cells the styles of other batches, and styles of none.

    Parameters
    ----------
    cells : Cells
        Training cells; measured once, in bounded memory.
    design : Design
        Of the training cells.
    rng : torch.Generator
        CPU generator of the draws.
    unseen_share : float, default=0.0
        Share, among brightfields in another style, of those in an unseen style.
    unseen_spread : float, default=1.0
        How far unseen styles scatter about the mean of the batches, relative to the batches themselves. 0: there are
        none.
    """

    def __init__(
        self,
        cells: Cells,
        design: Design,
        rng: torch.Generator,
        *,
        unseen_share: float = 0.0,
        unseen_spread: float = 1.0,
    ) -> None:
        self.n_batches, self.unseen_share, self.unseen_spread, self.rng = (
            design.n_batches,
            unseen_share,
            unseen_spread,
            rng,
        )
        self._effects = effects = _Effects(design)
        self._comparable = effects.comparable.to(cells.batch.device)
        self._cumulative = (self._comparable / self._comparable.sum(1, keepdim=True).clamp(min=1)).cumsum(1)
        self._row = effects.row.to(cells.batch.device)
        self._usable = self._row >= 0
        self._untyped = None if effects.untyped is None else effects.untyped.to(cells.batch.device)
        if self._untyped is not None:
            self._usable[effects.n_types :] = self._comparable[effects.n_types :] > 0
        several = self._comparable.sum(1) > 1
        #: Whether cells can be shown in a style that is none of a batch.
        self._open = self._usable & several[:, None]
        # As many draws as there are batches scatter as one batch does when each counts by the root of their number.
        self._dtype = cells.bf.dtype
        self._root = self._comparable.to(self._dtype).sum(1, keepdim=True).clamp(min=1).sqrt()
        self._styles = self._measure(cells, effects) if len(effects.counts) else None

    def _measure(self, cells: Cells, effects: _Effects) -> tuple[_Style, _Style]:
        size = effects.counts.to(cells.batch.device, cells.bf.dtype)[:, None, None, None]
        sums: list[Tensor] = []
        powers: list[Tensor] = []
        for positions in in_order(len(cells), CHUNK):
            part = self._typed(cells.take(positions))
            rows = self._row[part.cell_type, part.batch]
            for index, images in enumerate((part.source, part.target)):
                if len(sums) == index:
                    sums.append(images.new_zeros(len(size), *images.shape[1:]))
                sums[index].index_add_(0, rows[rows >= 0], images[rows >= 0])
        means = [total / size for total in sums]
        for positions in in_order(len(cells), CHUNK):
            part = self._typed(cells.take(positions))
            rows = self._row[part.cell_type, part.batch]
            for index, images in enumerate((part.source, part.target)):
                known = rows >= 0
                power = torch.fft.rfft2(images[known] - means[index][rows[known]]).abs().square()
                if len(powers) == index:
                    powers.append(power.new_zeros(len(size), *power.shape[1:]))
                powers[index].index_add_(0, rows[known], power)
        source, target = (_Style(mean, power / size, effects) for mean, power in zip(means, powers, strict=True))
        return source, target

    def draw_source(self, n: int, share: float) -> Drawn | None:
        """Draw, on the CPU, for `n` cells of which a share gets the style of another batch or an unseen one."""
        if (drawn := self.draw_target(n, share)) is None or self.unseen_spread == 0:
            return drawn
        unseen = torch.rand(n, generator=self.rng) < share * self.unseen_share
        mixes = torch.randn(2, n, self.n_batches, generator=self.rng).to(self._dtype) * self.unseen_spread
        return drawn._replace(unseen=unseen, mixes=mixes)

    def draw_target(self, n: int, share: float) -> Drawn | None:
        """Draw, on the CPU, for `n` cells of which a share gets the style of another batch; None if nothing can."""
        if self._styles is None or share == 0:
            return None
        chance, place = torch.rand(2, n, generator=self.rng)
        return Drawn(chance < share, place)

    def nothing(self, n: int) -> Drawn:
        """Return what leaves `n` cells in their style."""
        stays = torch.zeros(n, dtype=torch.bool)
        if self.unseen_spread == 0:
            return Drawn(stays, torch.zeros(n))
        return Drawn(stays, torch.zeros(n), stays, torch.zeros(2, n, self.n_batches, dtype=self._dtype))

    def source(self, cells: Minibatch, share: float) -> Tensor:
        """Return the brightfield of the cells, a share of them in the style of another batch or in an unseen one."""
        return self._drawn(0, cells.source, cells, self.draw_source(len(cells.whole.batch), share))

    def in_unseen_style(self, cells: Minibatch, spread: float) -> Tensor:
        """Return the brightfield of the cells in one unseen style, the same for all of them.

        It scatters about the mean of the batches `spread` times as widely as these do.
        """
        if self._styles is None:
            return cells.source
        mixes = torch.randn((2, 1, self.n_batches), generator=self.rng).to(cells.source)
        comparable = self._comparable[cells.cell_type].to(mixes.dtype)
        mixes = mixes * comparable * spread / comparable.sum(1, keepdim=True).clamp(min=1).sqrt()
        style = self._styles[0]
        mean = style.mean(cells.cell_type, cells.batch)
        moved = style.apply(cells.source, mean, *style.unseen(cells.batch, mixes))
        known = (self._row[cells.cell_type, cells.batch] >= 0) & (comparable.sum(1) > 1)
        return torch.where(known[:, None, None, None], moved, cells.source)

    def target(self, cells: Minibatch, share: float) -> Tensor:
        """Return the target of the cells, a share of them in the style of another batch.

        The best prediction of such targets is the same whatever the batch of the brightfield.
        """
        return self._drawn(1, cells.target, cells, self.draw_target(len(cells.whole.batch), share))

    def _drawn(self, which: int, images: Tensor, cells: Minibatch, drawn: Drawn | None) -> Tensor:
        if drawn is None:
            return images
        start = 0 if cells.part_of is None else cells.part_of.start
        parts = drawn.of(slice(start, start + len(cells)))
        sent = dict(zip(parts, send(list(parts.values()), images.device), strict=True))
        return self.restyled(which, images, self.types(cells), cells.batch, Drawn(**sent))

    def restyled(self, which: int, images: Tensor, cell_type: Tensor, batch: Tensor, drawn: Drawn) -> Tensor:
        """Give cells the style of a batch drawn from all that compare with their own, it included, or an unseen one.

        Parameters
        ----------
        which : {0, 1}
            Brightfields or targets.
        images : Tensor of shape (n, C, H, W)
        cell_type, batch : Tensor of int, shape (n,)
            See :meth:`types`.
        drawn : Drawn
            On the device.
        """
        assert self._styles is not None
        style = self._styles[which]
        place = (drawn.place[:, None] >= self._cumulative[cell_type]).sum(1).clamp(max=self.n_batches - 1)
        after = torch.where(drawn.moved & self._usable[cell_type, batch], place, batch)
        mean, shift, gain = style.between(cell_type, batch, after)
        if drawn.unseen is None or drawn.mixes is None:
            return torch.where((batch == after)[:, None, None, None], images, style.apply(images, mean, shift, gain))
        mixes = drawn.mixes * self._comparable[cell_type].to(drawn.mixes.dtype) / self._root[cell_type]
        chosen = drawn.unseen & self._open[cell_type, batch]
        moves = ((batch != after) | chosen)[:, None, None, None]
        others = style.unseen(batch, mixes)
        chosen = chosen[:, None, None, None]
        shift, gain = (torch.where(chosen, a, b) for a, b in zip(others, (shift, gain), strict=True))
        # The layout is that of the first: of what was moved, as in earlier releases.
        return torch.where(moves, style.apply(images, mean, shift, gain), images)

    def canonical_target(self, cells: Minibatch) -> Tensor:
        """Return the target of the cells in one style, the mean of all batches that compare with their type.

        Nothing is drawn: a cell has one canonical target, which hardly tells the batch, and so has its prediction.
        """
        if self._styles is None:
            return cells.target
        types = self.types(cells)
        known = self._open[types, cells.batch]
        moved = self._styles[1].canonical(cells.target, types, cells.batch, self._comparable)
        return torch.where(known[:, None, None, None], moved, cells.target)

    def batch_effects(self, values: Tensor, cells: Cells) -> Tensor:
        """Return the effect of each batch on values (n, d) of all training cells, (n_batches, d).

        Least squares of the means of the groups by type and batch; about the mean of the batches that compare with it.
        """
        rows = self._row[self._types(cells.cell_type, cells.batch), cells.batch]
        size = self._effects.counts.to(values.device, values.dtype)[:, None]
        if not len(size):
            return values.new_zeros(self.n_batches, values.shape[1])
        means = values.new_zeros(len(size), values.shape[1]).index_add(0, rows[rows >= 0], values[rows >= 0]) / size
        return _Table(means, self._effects).differences

    def target_effects(self) -> dict[str, np.ndarray] | None:
        """Return what each batch does to standardised targets, as numbers to be kept; None where nothing was measured.

        Returns
        -------
        effects : dict of str to ndarray
            ``"centre"``: mean of the canonical images, (C, H, W). ``"shift"`` and ``"log_gain"``: differences of each
            batch from the mean of the batches that it compares with, in mean image, (n_batches, C, H, W), and in
            logarithm of amplitude, (n_batches, C, H, W // 2 + 1). ``"measured"``: which batches had cells enough.
        """
        if self._styles is None:
            return None
        style, n_types = self._styles[1], self._effects.n_types
        row = self._row[:n_types]
        size = torch.where(row >= 0, self._effects.counts.to(row.device)[row.clamp(min=0)], 0).sum(1)
        canonical = style.mean.typical(self._comparable)[:n_types]
        centre = torch.tensordot((size / size.sum()).to(canonical), canonical, dims=1)
        shape = style.mean.measured.shape[1:], style.spectrum.measured.shape[1:]
        return {
            "centre": centre.float().cpu().numpy(),
            "shift": style.mean.differences.view(-1, *shape[0]).float().cpu().numpy(),
            "log_gain": style.spectrum.differences.view(-1, *shape[1]).float().cpu().numpy(),
            "measured": (self._row >= 0).any(0).cpu().numpy(),
        }

    def _types(self, cell_type: Tensor, batch: Tensor) -> Tensor:
        return cell_type if self._untyped is None else torch.where(cell_type < 0, self._untyped[batch], cell_type)

    def types(self, cells: Minibatch) -> Tensor:
        """Return the codes of the types, those of unknown type with one of their own."""
        return self._types(cells.cell_type, cells.batch)

    def _typed(self, cells: Minibatch) -> Minibatch:
        """Return the cells with a code of their own for those of unknown type."""
        if self._untyped is None:
            return cells
        return replace(cells, cell_type=self._types(cells.cell_type, cells.batch))
