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


def test_a_linear_batch_effect_is_exchanged_up_to_sampling():
    cells, truth = make_cells()
    before = cells.take(torch.arange(400))
    moved = BatchTransfer(cells, 2, 2, 1.0, new_rng(0)).source(before)[:, 0]
    truth = torch.from_numpy(truth).float()
    looks = torch.stack([truth, 2 * truth + torch.linspace(-1, 1, 16)])  # as batch 0 and as batch 1 show the cells
    errors = (moved - looks).square().mean((2, 3)).sqrt()
    looks_like = errors.argmin(0)
    changed = looks_like != before.batch
    assert 150 < int(changed.sum()) < 250
    apart = (looks[0] - looks[1]).square().mean((1, 2)).sqrt()
    assert float((errors.min(0).values / apart).median()) < 0.2
    assert torch.equal(moved[~changed], before.source[~changed, 0])  # a cell that drew its own batch is untouched


def test_source_and_target_draw_their_looks_independently():
    cells, _ = make_cells()
    transfer, before = BatchTransfer(cells, 2, 2, 1.0, new_rng(0)), cells.take(torch.arange(400))
    changed = [
        (images != original).flatten(1).any(1)
        for images, original in ((transfer.source(before), before.source), (transfer.target(before), before.target))
    ]
    assert 60 < int((changed[0] & ~changed[1]).sum()) < 140


def test_share_of_zero_changes_nothing():
    cells, _ = make_cells(80)
    before = cells.take(torch.arange(80))
    transfer = BatchTransfer(cells, 2, 2, 0.0, new_rng(0))
    assert torch.equal(transfer.source(before), before.source)
    assert torch.equal(transfer.target(before), before.target)


def test_looks_are_taken_only_from_batches_that_have_the_type():
    batch = np.repeat([0, 1, 2], 30)
    cell_type = np.where(batch == 2, 1, 0)
    cell_type[:15] = 1  # type 0 in batches 0 and 1, type 1 in 0 and 2
    images = np.random.default_rng(0).normal(size=(90, 16, 16)) + 100.0 * batch[:, None, None]
    stack = ImageStack(images.astype(np.float32), Scaling.identity(1), CPU)
    cells = Cells(stack, stack, batch, cell_type, np.arange(90))
    moved = BatchTransfer(cells, 3, 2, 1.0, new_rng(0)).source(cells.take(torch.arange(90)))
    looks_like = (moved.mean((1, 2, 3)) / 100).round().long()
    assert set(looks_like[cell_type == 0].tolist()) == {0, 1}
    assert set(looks_like[cell_type == 1].tolist()) == {0, 2}


def test_groups_of_few_cells_are_left_alone():
    rng = np.random.default_rng(0)
    stack = ImageStack(rng.normal(size=(40, 16, 16)).astype(np.float32), Scaling.identity(1), CPU)
    batch = np.r_[np.zeros(40 - MIN_CELLS + 1, int), np.ones(MIN_CELLS - 1, int)]
    cells = Cells(stack, stack, batch, np.zeros(40, int), np.arange(40))
    before = cells.take(torch.arange(40))
    assert torch.equal(BatchTransfer(cells, 2, 1, 1.0, new_rng(0)).source(before), before.source)
    few = Cells(stack, stack, np.arange(40), np.zeros(40, int), np.arange(40))
    assert torch.equal(BatchTransfer(few, 40, 1, 1.0, new_rng(0)).source(before), before.source)
