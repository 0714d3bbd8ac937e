"""Descriptors of images, and the losses and targets that keep the cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skbegan import BeGANTransformer, OnlineRemoval, ProfileAlignment
from skbegan.core.descriptors import Descriptors, measure, n_descriptors, signs_of
from skbegan.core.losses import identity, standardised
from skbegan.data.cells import Cells, Split
from skbegan.data.source import Scaling
from skbegan.data.style import BatchStyles
from skbegan.datasets import make_cell_images
from skbegan.design import Design

TINY = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 2, "random_state": 0}


def ellipse(long=9.0, short=6.0, angle=0.3, x0=0.0, y0=0.0, height=1.0, side=32):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    x, y = x - x0, y - y0
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = np.clip(1 - (u / long) ** 2 - (v / short) ** 2, 0, None)
    return torch.tensor(height * np.sqrt(inside), dtype=torch.float64)


def of(*images, sign=1.0):
    return measure(torch.stack(images)[:, None], torch.tensor([sign]))


def test_descriptors_do_not_depend_on_the_symmetries_of_the_square():
    image = ellipse(x0=1.0, y0=-2.0) + 0.3 * ellipse(3, 2, 1.0, 3.0, 0.0)
    turned = [image, image.T, image.flip(0), image.flip(1), image.rot90(1), image.rot90(2), image.rot90(3)]
    found = of(*turned)
    np.testing.assert_allclose(found, found[:1].expand_as(found), atol=1e-6)


def test_mass_area_and_elongation_are_what_they_are_called():
    values = of(ellipse(8, 8), ellipse(8, 8, height=2.0), ellipse(10, 10), ellipse(11, 6), ellipse(11, 6, angle=1.2))
    mass, area, _, axes = values[:, :4].T
    assert mass[1] - mass[0] == pytest.approx(np.log(2), abs=0.02)
    assert area[1] == pytest.approx(float(area[0]), abs=0.01)  # the outline follows the height
    assert area[2] - area[0] == pytest.approx(2 * np.log(10 / 8), abs=0.05)
    assert axes[0] == pytest.approx(0.0, abs=0.01)
    assert axes[3] == pytest.approx(np.log(11 / 6), abs=0.12)
    assert axes[4] == pytest.approx(float(axes[3]), abs=0.03)  # whatever the angle


def test_a_constant_background_and_dark_cells_do_not_matter():
    image = ellipse() + 0.2 * ellipse(3, 3, x0=2.0)
    np.testing.assert_allclose(of(image), of(image + 5.0), atol=1e-6)
    np.testing.assert_allclose(of(image), of(-image, sign=-1.0), atol=1e-12)
    assert signs_of(torch.stack([image, -image])[None]).tolist() == [1.0, -1.0]


def test_odd_images_give_finite_descriptors_and_gradients():
    empty, noise = (
        torch.zeros(32, 32).double(),
        torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).double(),
    )
    images = torch.stack([empty, noise, -ellipse(), empty + 1e4])[:, None].requires_grad_(True)
    descriptors = Descriptors(1).double()
    descriptors.calibrate(torch.ones(1), descriptors.raw(images.detach()))
    found = descriptors(images)
    assert found.shape == (4, n_descriptors(1))
    assert torch.isfinite(found).all()
    found.sum().backward()
    assert torch.isfinite(images.grad).all()


def test_identity_is_least_where_each_cell_finds_itself():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(64, 16, generator=rng)
    scaled = standardised(features)
    same = identity(scaled, standardised(features + 0.1 * torch.randn(64, 16, generator=rng)), 0.2)
    others = identity(scaled, scaled.roll(1, 0), 0.2)
    chance = identity(scaled, standardised(torch.randn(64, 16, generator=rng)), 0.2)
    assert same < 1.0 < float(np.log(64)) - 1 < chance < others


@pytest.fixture(scope="module")
def styled():
    data = make_cell_images(400, 2, 3, 16, random_state=3)
    codes = [np.unique(labels, return_inverse=True)[1] for labels in (data.batch, data.cell_type)]
    rows = np.arange(400)
    split = Split(rows, rows[:0], Scaling.of(data.bf, rows), Scaling.of(data.qpi, rows))
    cells, _ = Cells.of_split(data.bf, data.qpi, *codes, split, torch.device("cpu"), torch.float32)
    styles = BatchStyles(cells, Design.of(*codes, 3, 2), torch.Generator().manual_seed(0))
    return cells.take(torch.arange(400)), styles


def between(images, cells):
    """How far apart the mean images of the batches of a type are, against the spread of the cells."""
    flat, found = images.flatten(1), []
    for kind in range(2):
        means = [flat[(cells.cell_type == kind) & (cells.batch == batch)].mean(0) for batch in range(3)]
        found.append(torch.stack(means).std(0).square().sum())
    return float(sum(found) / flat.var(0).sum())


def test_canonical_targets_hold_the_cell_and_not_the_batch(styled):
    cells, styles = styled
    canonical = styles.canonical_target(cells)
    torch.testing.assert_close(canonical, styles.canonical_target(cells))  # nothing is drawn
    assert between(canonical, cells) < 0.01 < 0.05 < between(cells.target, cells)
    for group in range(3):
        of_group = cells.batch == group
        before, after = cells.target[of_group].flatten(1), canonical[of_group].flatten(1)
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(before - before.mean(0), after - after.mean(0), strict=True)]
        assert np.median(r) > 0.9


def test_batch_effects_are_found_where_types_are_shared(styled):
    cells, styles = styled
    effect = torch.tensor([[1.0], [-1.0], [0.0]])
    values = 3.0 * cells.cell_type[:, None] + effect[cells.batch]
    torch.testing.assert_close(styles.batch_effects(values, cells), effect, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def fitted():
    cells = make_cell_images(160, 2, 2, 16, random_state=0)
    return cells, BeGANTransformer(**TINY).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)


def test_the_profile_reads_the_predicted_image(fitted):
    cells, est = fitted
    assert est._model.weights["profile.read"].shape[0] == 16 + n_descriptors(1)
    assert est.transform(cells.bf).shape == (160, 16)
    alone = BeGANTransformer(**TINY, profile=ProfileAlignment(descriptor_share=0))
    alone.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert "descriptors.sign" not in alone._model.weights
    assert alone._model.weights["profile.read"].shape[0] == 16


def test_the_history_holds_the_new_losses_and_a_weight_of_0_costs_nothing(fitted):
    cells, est = fitted
    assert {"identity", "descriptors"} <= set(est.history_["batch_removal"])
    without = BeGANTransformer(**TINY, removal=OnlineRemoval(identity=0, descriptors=0))
    without.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert not {"identity", "descriptors"} & set(without.history_["batch_removal"])


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_normalisation_of_each_image_needs_no_other_cells(norm, tmp_path):
    import skbegan

    cells = make_cell_images(120, 2, 2, 16, random_state=0)
    est = BeGANTransformer(**TINY, norm=norm).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert not any("running" in name for name in est._model.weights)
    one_by_one = np.concatenate([est.predict_image(cells.bf[row : row + 1]) for row in range(3)])
    np.testing.assert_allclose(one_by_one, est.predict_image(cells.bf)[:3], atol=1e-5)
    alone = est.transform(cells.bf)
    np.testing.assert_allclose(est.set_params(inference="minibatch").transform(cells.bf), alone, atol=1e-3)
    est.set_params(inference="population")
    skbegan.save(est, tmp_path / "model.safetensors")
    loaded = skbegan.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.transform(cells.bf), est.transform(cells.bf))


def test_brightfields_standardised_one_by_one_lose_gain_and_offset():
    cells = make_cell_images(120, 2, 2, 16, random_state=0)
    est = BeGANTransformer(**TINY, standardize="image").fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    gained = (1.5 * cells.bf + 0.2).astype(np.float32)
    np.testing.assert_allclose(est.predict_image(gained), est.predict_image(cells.bf), atol=0.02)
    plain = BeGANTransformer(**TINY).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert np.abs(plain.predict_image(gained) - plain.predict_image(cells.bf)).max() > 0.05


def test_a_rate_that_decays_rises_and_falls():
    from skbegan.config import Pretraining
    from skbegan.core.plans.pretraining import PretrainingPlan

    plan = PretrainingPlan.__new__(PretrainingPlan)
    plan.config = Pretraining(decay=0.5)
    rates = [plan.share_at(progress) for progress in np.linspace(0, 0.99, 34)]
    assert rates[0] < 0.1 and max(rates) == 1.0 and rates[-1] < 0.05
    plan.config = Pretraining(decay=0.0)
    assert {plan.share_at(progress) for progress in np.linspace(0, 1, 5)} == {1.0}


@pytest.mark.parametrize("n", [1, 5])
def test_descriptors_on_the_fast_way_are_those_with_a_gradient(n):
    rng = torch.Generator().manual_seed(n)
    images = torch.stack([ellipse(7, 5, float(i), 1.0) for i in range(n)])[:, None].float()
    images = images + 0.1 * torch.randn(images.shape, generator=rng)
    found = measure(images, torch.ones(1))
    wanted = measure(images.requires_grad_(), torch.ones(1))
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)
    images = images.detach().clone()
    images[-1, 0, 3, 3] = torch.nan
    broken = measure(images, torch.ones(1))
    assert broken[-1].isnan().any() and torch.equal(broken[:-1], found[:-1])
