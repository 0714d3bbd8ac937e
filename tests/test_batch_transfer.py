"""Images given the look of another batch."""

from __future__ import annotations

import numpy as np
import torch

from skbegan.core.batch_transfer import MIN_CELLS, BatchTransfer
from skbegan.core.data import Cells, ImageStack, Scaling
from skbegan.core.device import new_rng

CPU = torch.device("cpu")


def make_cells(n: int = 400, side: int = 16) -> tuple[Cells, np.ndarray]:
    """Two types of smooth images in two batches: the second batch adds a slope and doubles the contrast."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft2(rng.normal(size=(n, side, side)))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    truth = np.fft.irfft2(spectrum / (1 + (frequency * 6) ** 2), s=(side, side))
    batch, cell_type = np.arange(n) % 2, np.arange(n) // 2 % 2
    truth[cell_type == 1] += 1.0
    slope = np.linspace(-1, 1, side)
    images = np.where((batch == 1)[:, None, None], 2 * truth + slope, truth).astype(np.float32)
    stacks = [ImageStack(x, Scaling.identity(1), CPU) for x in (images, -images)]
    return Cells(*stacks, batch, cell_type, np.arange(n)), truth


def test_a_linear_batch_effect_is_exchanged_exactly_up_to_sampling():
    cells, truth = make_cells()
    mixed = BatchTransfer(cells, 2, 2, 1.0, new_rng(0))(cells.take(torch.arange(400)))
    assert 150 < int((mixed.batch != cells.batch).sum()) < 250
    slope = torch.linspace(-1, 1, 16)
    truth = torch.from_numpy(truth).float()
    expected = torch.where((mixed.batch == 1)[:, None, None], 2 * truth + slope, truth)
    error = (mixed.source[:, 0] - expected).square().mean().sqrt()
    spread = (cells.take(torch.arange(400)).source[:, 0] - expected).square().mean().sqrt()
    assert error < 0.25 * spread
    same = mixed.batch == cells.batch
    assert torch.equal(mixed.source[same], cells.take(torch.arange(400)).source[same])
    assert not torch.equal(mixed.target, -mixed.source)  # looks are drawn independently


def test_share_of_zero_changes_nothing():
    cells, _ = make_cells(80)
    before = cells.take(torch.arange(80))
    after = BatchTransfer(cells, 2, 2, 0.0, new_rng(0))(before)
    for name in ("source", "target", "batch", "cell_type"):
        assert torch.equal(getattr(before, name), getattr(after, name))


def test_looks_are_taken_only_from_batches_that_have_the_type():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(90, 16, 16)).astype(np.float32)
    stack = ImageStack(images, Scaling.identity(1), CPU)
    batch = np.repeat([0, 1, 2], 30)
    cell_type = np.where(batch == 2, 1, 0)
    cell_type[:15] = 1  # type 0 in batches 0 and 1, type 1 in 0 and 2
    cells = Cells(stack, stack, batch, cell_type, np.arange(90))
    mixed = BatchTransfer(cells, 3, 2, 1.0, new_rng(0))(cells.take(torch.arange(90)))
    assert set(mixed.batch[mixed.cell_type == 0].tolist()) == {0, 1}
    assert set(mixed.batch[mixed.cell_type == 1].tolist()) == {0, 2}


def test_groups_of_few_cells_are_left_alone():
    rng = np.random.default_rng(0)
    stack = ImageStack(rng.normal(size=(40, 16, 16)).astype(np.float32), Scaling.identity(1), CPU)
    batch = np.r_[np.zeros(40 - MIN_CELLS + 1, int), np.ones(MIN_CELLS - 1, int)]
    cells = Cells(stack, stack, batch, np.zeros(40, int), np.arange(40))
    before = cells.take(torch.arange(40))
    after = BatchTransfer(cells, 2, 1, 1.0, new_rng(0))(before)
    assert torch.equal(before.source, after.source)
    assert torch.equal(before.batch, after.batch)
    few = Cells(stack, stack, np.arange(40), np.zeros(40, int), np.arange(40))
    after = BatchTransfer(few, 40, 1, 1.0, new_rng(0))(before)
    assert torch.equal(before.source, after.source)
