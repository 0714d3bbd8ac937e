"""Drawn instruments: what they do to images, and fits that see cells through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.core.plans.views import Views
from skbegan.data.instruments import (
    COLUMNS,
    GAIN,
    NOISE,
    OFFSET,
    RADIAL,
    ZOOM,
    Instruments,
    draw_instruments,
    seen_through,
    zoom_matrices,
)
from skbegan.datasets import make_cell_images


@pytest.fixture
def images() -> torch.Tensor:
    noise = torch.randn(6, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2) * 4


@pytest.fixture
def usual() -> torch.Tensor:
    """The instrument of training."""
    found = torch.zeros(1, len(COLUMNS))
    found[:, [ZOOM, GAIN]] = 1.0
    return found


def test_the_instrument_of_training_changes_nothing(images, usual):
    found = seen_through(usual, images, torch.ones_like(images))
    torch.testing.assert_close(found, images, atol=1e-5, rtol=0)


def test_each_cell_has_an_instrument_of_its_own(images, usual):
    table = usual.repeat(6, 1)
    table[1, GAIN], table[2, OFFSET], table[3, NOISE], table[4, RADIAL] = 2.0, 3.0, 1.0, -2.0
    found = seen_through(table, images, torch.ones_like(images)) - images
    torch.testing.assert_close(found[1], images[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[2], torch.full_like(images[2], 3.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[3], torch.ones_like(images[3]), atol=1e-5, rtol=0)
    blurred = found[4] + images[4]
    assert blurred.diff(dim=2).std() < 0.5 * images[4].diff(dim=2).std()
    torch.testing.assert_close(blurred.mean((1, 2)), images[4].mean((1, 2)), atol=1e-5, rtol=0)
    assert found[[0, 5]].abs().max() < 1e-5


def test_zooming_magnifies_about_the_middle():
    disc = torch.zeros(1, 1, 32, 32)
    x = torch.arange(32) - 15.5
    disc[0, 0] = ((x[:, None] ** 2 + x**2) < 36).float()
    for zoom in (0.5, 1.0, 2.0):
        axis = zoom_matrices(32, torch.tensor([zoom]))
        torch.testing.assert_close(axis.sum(2), torch.ones(1, 32))
        found = axis @ disc @ axis.mT
        assert found.sum() / disc.sum() == pytest.approx(zoom**2, rel=0.1)
        torch.testing.assert_close(found, found.flip(-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(found, found.mT, atol=1e-5, rtol=0)


def test_draws_come_from_the_generator_alone_and_spread_as_asked():
    state = torch.get_rng_state()
    first, again, wide = (draw_instruments(500, s, torch.Generator().manual_seed(1)) for s in (1.0, 1.0, 2.0))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert (wide[:, OFFSET].std() / first[:, OFFSET].std()).item() == pytest.approx(2, rel=1e-3)
    assert first[:, ZOOM].min() > 0.79 and first[:, ZOOM].max() < 1.26
    still = draw_instruments(3, 0.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(still[:, [ZOOM, GAIN]], torch.ones(3, 2))
    assert still[:, [k for k in range(len(COLUMNS)) if k not in (ZOOM, GAIN)]].abs().max() == 0


def test_a_share_of_the_cells_is_shown_so_and_noise_differs_between_them(images):
    drawn = Instruments(0.5, 1.0)
    draws = drawn.draw(400, torch.Generator().manual_seed(0))
    assert draws[:, 0].mean().item() == pytest.approx(0.5, abs=0.1)
    found = drawn(images, draws[:6])
    changed = (found - images).abs().amax((1, 2, 3)) > 0
    assert torch.equal(changed, draws[:6, 0] > 0)
    noise = drawn._noise(images, draws[:6, 1:3])
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    assert np.abs(np.corrcoef(noise.flatten(1).numpy()) - np.eye(6)).max() < 0.5
    assert torch.equal(noise, Instruments(0.5, 1.0)._noise(images, draws[:6, 1:3]))


def test_both_views_are_shown_so_in_training_only(monkeypatch):
    cells = make_cell_images(80, 2, 2, 16, random_state=0)
    sizes = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1, "device": "cpu"}
    seen: list[int] = []
    made = Instruments.__call__
    monkeypatch.setattr(Instruments, "__call__", lambda self, x, d: seen.append(len(x)) or made(self, x, d))
    profiles = []
    for share in (0.0, 0.5, 0.5):
        removal = OnlineRemoval(instrument_share=share)
        est = BeGANTransformer(**sizes, minibatch_size=16, removal=removal, random_state=0)
        with pytest.warns(RuntimeWarning):
            est.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
        assert bool(seen) == (share > 0)
        n_before = len(seen)
        profiles.append(est.transform(cells.bf))
        assert len(seen) == n_before
    assert set(seen) == {32}  # both views of a minibatch at once
    assert not np.allclose(profiles[0], profiles[1])
    assert np.array_equal(profiles[1], profiles[2])


def test_without_a_share_nothing_is_drawn():
    rng = torch.Generator()
    views = Views(OnlineRemoval(), None, rng, augment=True, two=True)  # type: ignore[arg-type]
    assert views.instruments is None
    assert Views(OnlineRemoval(instrument_share=0.5), None, rng, augment=True, two=True).instruments is not None  # type: ignore[arg-type]
