"""Images given the style of another batch, or of none."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from conftest import TINY

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.core.engine import new_rng
from skbegan.core.plans import online
from skbegan.data.cells import Cells
from skbegan.data.source import ImageSource, Scaling
from skbegan.data.style import MIN_CELLS, BatchStyles
from skbegan.design import Design

CPU = torch.device("cpu")


def styles_of(cells: Cells, n_batches: int, n_cell_types: int, spread: float) -> BatchStyles:
    design = Design.of(cells.batch.numpy(), cells.cell_type.numpy(), n_batches, n_cell_types)
    return BatchStyles(cells, design, new_rng(0), unseen_share=0.7, unseen_spread=spread)


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
    stacks = [ImageSource(x, Scaling.identity(1), CPU) for x in (images, -images)]
    return Cells(*stacks, batch, cell_type, np.arange(n)), truth


def test_a_linear_batch_effect_is_exchanged_up_to_sampling():
    cells, truth = make_cells()
    before = cells.take(torch.arange(400))
    moved = styles_of(cells, 2, 2, 0.0).source(before, 1.0)[:, 0]
    truth = torch.from_numpy(truth).float()
    shown = torch.stack([truth, 2 * truth + torch.linspace(-1, 1, 16)])  # as batch 0 and as batch 1 show the cells
    errors = (moved - shown).square().mean((2, 3)).sqrt()
    nearest = errors.argmin(0)
    changed = nearest != before.batch
    assert 150 < int(changed.sum()) < 250
    apart = (shown[0] - shown[1]).square().mean((1, 2)).sqrt()
    assert float((errors.min(0).values / apart).median()) < 0.2
    assert torch.equal(moved[~changed], before.source[~changed, 0])  # a cell that drew its own batch is untouched


def test_source_and_target_draw_their_styles_independently():
    cells, _ = make_cells()
    styles, before = styles_of(cells, 2, 2, 0.0), cells.take(torch.arange(400))
    pairs = (styles.source(before, 1.0), before.source), (styles.target(before, 1.0), before.target)
    changed = [(images != original).flatten(1).any(1) for images, original in pairs]
    assert 60 < int((changed[0] & ~changed[1]).sum()) < 140


def test_share_of_zero_changes_nothing():
    cells, _ = make_cells(80)
    before = cells.take(torch.arange(80))
    styles = styles_of(cells, 2, 2, 1.5)
    assert torch.equal(styles.source(before, 0.0), before.source)
    assert torch.equal(styles.target(before, 0.0), before.target)


def flat_cells(batch: np.ndarray, cell_type: np.ndarray) -> Cells:
    """Noise of images whose mean is 100 times the batch plus 10 times the type."""
    levels = 100.0 * batch + 10.0 * cell_type
    images = np.random.default_rng(0).normal(size=(len(batch), 16, 16)) + levels[:, None, None]
    stack = ImageSource(images.astype(np.float32), Scaling.identity(1), CPU)
    return Cells(stack, stack, batch, cell_type, np.arange(len(batch)))


def styles_seen(styles: BatchStyles, cells: Cells, cell_type: int) -> set[int]:
    moved = styles.source(cells.take(torch.arange(len(cells))), 1.0)
    levels = (moved.mean((1, 2, 3)) - 10 * cells.cell_type) / 100
    assert float((levels - levels.round()).abs().max()) < 0.02  # the type stays what it is
    return set(levels.round().long()[cells.cell_type == cell_type].tolist())


def test_a_type_gets_styles_of_batches_it_was_never_in_by_way_of_other_types():
    # Type 0 in batches 0 and 1, type 1 in 1 and 2: what batch 2 would make of type 0 follows from type 1.
    batch, cell_type = np.repeat([0, 1, 1, 2], 40), np.repeat([0, 0, 1, 1], 40)
    cells = flat_cells(batch, cell_type)
    styles = styles_of(cells, 3, 2, 0.0)
    assert styles_seen(styles, cells, 0) == styles_seen(styles, cells, 1) == {0, 1, 2}


def test_batches_that_nothing_compares_lend_no_styles():
    batch, cell_type = np.repeat([0, 1, 2, 3], 40), np.repeat([0, 0, 1, 1], 40)
    cells = flat_cells(batch, cell_type)
    styles = styles_of(cells, 4, 2, 0.0)
    assert styles_seen(styles, cells, 0) == {0, 1}
    assert styles_seen(styles, cells, 1) == {2, 3}
    alone = flat_cells(np.repeat([0, 1], 40), np.repeat([0, 1], 40))  # each type in one batch: nothing is known
    before = alone.take(torch.arange(80))
    assert torch.equal(styles_of(alone, 2, 2, 1.5).source(before, 1.0), before.source)


def test_unseen_styles_scatter_about_the_batches_as_asked_for():
    batch, cell_type = np.tile(np.arange(4), 300), np.zeros(1200, int)
    cells = flat_cells(batch, cell_type)
    before = cells.take(torch.arange(1200))

    def levels(spread: float) -> torch.Tensor:
        moved = styles_of(cells, 4, 1, spread).source(before, 1.0)
        return moved.mean((1, 2, 3)) / 100

    unseen = levels(1.5)
    of_none = (unseen - unseen.round()).abs() > 0.02
    assert 0.55 < float(of_none.float().mean()) < 0.75  # most are of no batch
    assert abs(float(unseen[of_none].mean()) - 1.5) < 0.2
    wide, narrow = (float((levels(spread) - 1.5).square().mean()) for spread in (3.0, 0.5))
    assert wide > 2 * narrow
    assert float((levels(0.0) - levels(0.0).round()).abs().max()) < 0.02  # none are, where none are wanted


def test_groups_of_few_cells_are_left_alone():
    rng = np.random.default_rng(0)
    stack = ImageSource(rng.normal(size=(40, 16, 16)).astype(np.float32), Scaling.identity(1), CPU)
    batch = np.r_[np.zeros(40 - MIN_CELLS + 1, int), np.ones(MIN_CELLS - 1, int)]
    cells = Cells(stack, stack, batch, np.zeros(40, int), np.arange(40))
    before = cells.take(torch.arange(40))
    assert torch.equal(styles_of(cells, 2, 1, 1.5).source(before, 1.0), before.source)
    few = Cells(stack, stack, np.arange(40), np.zeros(40, int), np.arange(40))
    assert torch.equal(styles_of(few, 40, 1, 1.5).source(before, 1.0), before.source)


def test_parameters_say_how_many_images_get_styles_and_how_far_unseen_ones_scatter(monkeypatch, cells):
    asked = set()

    class Watched(BatchStyles):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            asked.update(kwargs.items())

        def draw_source(self, n: int, share: float) -> Any:
            asked.add(("source", share))
            return super().draw_source(n, share)

        def draw_target(self, n: int, share: float) -> Any:
            asked.add(("target", share))
            return super().draw_target(n, share)

    monkeypatch.setattr(online, "BatchStyles", Watched)
    removal = OnlineRemoval(
        target_style="transferred",
        style_share=0.75,
        brightfield_style_share=0.25,
        unseen_style_share=0.6,
        unseen_style_spread=0.5,
    )
    BeGANTransformer(**(TINY | {"removal": removal})).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    # Learned from: brightfield and target; second view: brightfield.
    shares = {("source", 0.25), ("target", 0.75), ("source", 0.75), ("target", 0.25)}
    assert asked == {("unseen_share", 0.6), ("unseen_spread", 0.5)} | shares
