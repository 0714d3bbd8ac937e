"""What one step of each stage moves and what it leaves, and what the loop does with it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from skbegan.core.batch_removal import BatchRemoval, Design, RemovalWeights, active_share, fool_targets
from skbegan.core.classifiers import fit_classifier
from skbegan.core.data import Cells, ImageStack, Minibatch, Scaling, augment
from skbegan.core.device import new_rng
from skbegan.core.networks import CELL_TYPE_HIDDEN, Discriminator, FeatureClassifier, Generator, build
from skbegan.core.pretraining import Pretraining
from skbegan.core.published_removal import FeatureSubsets, PublishedRemoval
from skbegan.core.training import Checkpoint, frozen, snapshot, train, untracked

CPU = torch.device("cpu")
WEIGHTS = RemovalWeights(
    1.0, 30.0, 1.0, 1.0, batch=2.0, batch_image=2.0, alignment=5.0, invariance=1.0, activity=2.0, decorrelation=1.0
)


def make_cells(n: int = 32, side: int = 16, seed: int = 0) -> Cells:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, n, side, side)).astype(np.float32)
    stacks = [ImageStack(x, Scaling.identity(1), CPU) for x in images]
    return Cells(*stacks, rng.integers(3, size=n), rng.integers(2, size=n), np.arange(n))


def minibatch(n: int = 8) -> Minibatch:
    return make_cells().take(torch.arange(n))


def networks(seed: int = 0) -> tuple[Any, Any]:
    rng = new_rng(seed)
    return build(Generator, 16, base_width=4, n_features=10, rng=rng), build(Discriminator, base_width=4, rng=rng)


def make_stage(kind: str, **changes: Any) -> Any:
    common: dict[str, Any] = {"learning_rate": 2e-4, "discriminator_learning_rate": 1e-4, "rng": new_rng(1)}
    if kind == "pretraining":
        return Pretraining(*networks(), adversarial_weight=1.0, image_weight=100.0, **common)
    cells = make_cells()
    common |= {
        "design": Design(3, 2, fool_targets(cells.batch, cells.cell_type, 3, 2, "conditional")),
        "weights": WEIGHTS,
        "base_width": 4,
        "classifier_learning_rate": 1e-3,
        "adversary_learning_rate": 1e-3,
        "minibatch_size": 8,
        "refresh_epochs": 2,
        "seed": 2,
    }
    if kind == "published":
        return PublishedRemoval(*networks(), **(common | {"n_subsets": 4, "classifier_epochs": 2} | changes))
    online = {
        "n_adversaries": 2,
        "adversary_steps": 2,
        "warmup_epochs": 1,
        "ramp": 0.3,
        "decay": 0.5,
        "averaging": 0.99,
    }
    return BatchRemoval(*networks(), **(common | online | changes))


def moved(before: dict[str, Any], network: torch.nn.Module, buffers: bool) -> bool:
    """Whether any weight (or any BatchNorm statistic) of a network changed."""
    return any(
        not torch.equal(before[name], value)
        for name, value in network.state_dict().items()
        if ("running" in name) is buffers and "num_batches" not in name
    )


def states(stage: Any) -> dict[str, dict[str, Any]]:
    return {name: snapshot(network) for name, network in stage.networks.items()}


# One step -------------------------------------------------------------------------------------------------------------


def test_pretraining_step_moves_generator_and_discriminator_with_their_statistics():
    stage = make_stage("pretraining")
    before = states(stage)
    losses = stage.step(minibatch(), 0.0)
    assert set(losses) == {"discriminator_real", "discriminator_fake", "adversarial", "image", "total"}
    for name, network in stage.networks.items():
        assert moved(before[name], network, buffers=False)
        assert moved(before[name], network, buffers=True)
    expected = losses["adversarial"] + 100.0 * losses["image"]
    torch.testing.assert_close(losses["total"], expected)


def test_discriminator_is_updated_twice_with_half_the_cross_entropy_before_the_generator_is():
    stage = make_stage("pretraining")
    cells = minibatch()
    generator, discriminator = networks()
    discriminator.train()
    image, _ = generator.train()(cells.source, new_rng(1))
    from skbegan.core.device import Adam

    optimizer = Adam(discriminator.parameters(), 1e-4)
    for target, label in ((cells.target, 1.0), (image.detach(), 0.0)):
        logits = discriminator(cells.source, target)
        loss = 0.5 * torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stage.step(cells, 0.0)
    for name, value in stage.discriminator.state_dict().items():
        torch.testing.assert_close(value, discriminator.state_dict()[name], msg=name)


def test_discriminator_judges_the_generator_in_inference_mode_and_does_not_move_then():
    stage = make_stage("pretraining")
    cells = minibatch()
    image, _ = stage.generate(cells.source, None)
    before = snapshot(stage.discriminator)
    with frozen(stage.discriminator):
        losses = stage.image_losses(cells, image)
        stage.generator_step(stage.total(losses))
    for name, value in stage.discriminator.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in stage.discriminator.parameters())
    stage.discriminator.eval()
    with torch.no_grad():
        logits = stage.discriminator(cells.source, image)
    expected = torch.nn.functional.softplus(-logits).mean()
    torch.testing.assert_close(losses["adversarial"], expected)
    assert all(p.requires_grad for p in stage.discriminator.parameters())


def test_published_step_leaves_every_classifier_as_it_was():
    stage = make_stage("published")
    stage.begin_epoch(0, make_cells())
    before = states(stage)
    losses = stage.step(minibatch(), 0.0)
    assert {"cell_type", "cell_type_image", "batch", "batch_image"} <= set(losses)
    for name, network in stage.networks.items():
        expected = name in ("generator", "discriminator")
        assert moved(before[name], network, buffers=False) is expected, name
        assert moved(before[name], network, buffers=True) is expected, name


def test_published_total_weighs_each_of_the_four_feature_subsets():
    stage = make_stage("published")
    stage.begin_epoch(0, make_cells())
    cells = minibatch()
    losses = stage.validate(cells)
    with torch.no_grad(), untracked(stage.generator), frozen(*stage.classifiers.values()):
        _, features = stage.generate(cells.source, None)
        logits = stage.classifiers["batch"](features)
    target = stage.targets[cells.cell_type]
    four = [-(target * logits[:, k].log_softmax(1)).sum(1).mean() for k in range(4)]
    torch.testing.assert_close(losses["batch"], sum(four))
    names = ("adversarial", "image", "cell_type", "cell_type_image", "batch", "batch_image")
    torch.testing.assert_close(losses["total"], sum(getattr(WEIGHTS, n) * losses[n] for n in names))


def test_published_refresh_draws_new_disjoint_subsets_that_cover_all_features():
    stage = make_stage("published")
    cells = make_cells()
    stage.begin_epoch(0, cells)
    first = stage.classifiers["batch"].rows.clone(), snapshot(stage.classifiers["cell_type"])
    optimizer = stage.generator_optimizer
    stage.begin_epoch(1, cells)
    assert torch.equal(stage.classifiers["batch"].rows, first[0])
    stage.begin_epoch(2, cells)
    subsets = stage.classifiers["batch"]
    assert not torch.equal(subsets.rows, first[0])
    chosen = subsets.rows[subsets.kept.bool()]
    assert sorted(chosen.tolist()) == list(range(10))  # 10 features in 4 subsets: two of 3, two of 2
    assert stage.generator_optimizer is not optimizer  # a new Adam
    assert not moved(first[1], stage.classifiers["cell_type"], buffers=False)  # fitted once only


def test_feature_subsets_ignore_features_of_other_subsets():
    subsets = FeatureSubsets(4, 10, 3, new_rng(0))
    features = torch.rand(5, 10, generator=new_rng(1))
    for group in range(4):
        own = subsets.rows[group][subsets.kept[group].bool()]
        changed = torch.rand(5, 10, generator=new_rng(2))
        changed[:, own] = features[:, own]
        torch.testing.assert_close(subsets(changed)[:, group], subsets(features)[:, group])


def test_online_step_moves_classifiers_and_generator_but_judges_with_them_frozen():
    stage = make_stage("online")
    before = states(stage)
    losses = stage.step(minibatch(), 0.0)
    for name, network in stage.networks.items():
        assert moved(before[name], network, buffers=False), name
        assert all(p.requires_grad for p in network.parameters())
    assert {"batch_adversary_1", "batch_adversary_2", "batch_adversary_image", "cell_type_classifier"} <= set(losses)


def test_online_generator_loss_gives_the_classifiers_no_gradient():
    stage = make_stage("online")
    cells = minibatch()
    image, features = stage.generate(cells.source, None)
    readers = [*stage.helpers.values(), *stage.adversaries.values()]
    before = states(stage)
    with frozen(stage.discriminator), frozen(*readers, batch_statistics=True):
        stage.total(stage.generator_losses(cells, image, features), 1.0).backward()
    assert all(p.grad is None for network in readers for p in network.parameters())
    assert all(p.grad is not None for p in stage.generator.parameters())
    for name, network in stage.networks.items():
        if name != "generator":
            assert not moved(before[name], network, buffers=True), name


def test_fool_weights_are_ramped_and_the_learning_rate_decays():
    stage = make_stage("online")
    losses = {name: torch.tensor(1.0) for name in ("adversarial", "image", "cell_type", "batch", "batch_image")}
    assert float(stage.total(losses, 0.0)) == pytest.approx(32.0)
    assert float(stage.total(losses, 0.5)) == pytest.approx(34.0)
    assert float(stage.total(losses, 1.0)) == pytest.approx(36.0)
    rates = []
    for progress in (0.0, 0.4, 0.75, 0.999):
        stage.step(minibatch(), progress)
        rates.append(stage.generator_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-4, 2e-4, 1e-4, 4e-7])


def test_weights_of_zero_build_no_classifier():
    weights = RemovalWeights(0.1, 30.0, 0.0, 0.0, 2.0, 0.0)
    stage = make_stage("online", weights=weights)
    assert set(stage.networks) == {"generator", "discriminator", "batch_adversary_1", "batch_adversary_2"}
    assert "batch_image" not in stage.step(minibatch(), 0.0)


def test_a_renewed_adversary_learns_from_a_bounded_number_of_cells(monkeypatch):
    stage, cells = make_stage("online"), make_cells(64)
    _, rows = stage._features(cells)
    assert rows.tolist() == list(range(64))
    monkeypatch.setattr("skbegan.core.batch_removal.KNOWN_CELLS", 20)
    features, rows = stage._features(cells)
    assert len(features) == 20 and rows[0] == 0 and rows[-1] == 63 and (rows.diff() > 0).all()
    seen = {}
    monkeypatch.setattr(
        "skbegan.core.batch_removal.fit_classifier",
        lambda network, inputs, labels, **kwargs: (
            seen.update(inputs=inputs, labels=labels, **kwargs) or fit_classifier(network, inputs, labels, **kwargs)
        ),
    )
    stage._renew("batch_adversary_1", cells)
    assert len(seen["inputs"]) == len(seen["condition"]) == 20
    assert torch.equal(seen["labels"], cells.batch[rows])
    assert torch.equal(seen["condition"].argmax(1), cells.cell_type[rows])


def test_renewed_adversaries_take_turns():
    stage = make_stage("online", refresh_epochs=1)
    cells = make_cells()
    for epoch, renewed in ((1, "batch_adversary_1"), (2, "batch_adversary_2"), (3, "batch_adversary_1")):
        before = states(stage)
        stage.begin_epoch(epoch, cells)
        for name, network in stage.networks.items():
            assert moved(before[name], network, buffers=False) is (name == renewed)


@pytest.mark.parametrize("kind", ["pretraining", "published", "online"])
def test_validation_moves_nothing(kind):
    stage = make_stage(kind)
    stage.begin_epoch(0, make_cells())
    before = states(stage)
    losses = stage.validate(minibatch())
    for name, network in stage.networks.items():
        assert not moved(before[name], network, buffers=False)
        assert not moved(before[name], network, buffers=True)
        assert network.training
    assert all(torch.isfinite(value) for value in losses.values())


# Fool targets ---------------------------------------------------------------------------------------------------------


def test_fool_targets():
    batch, cell_type = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    conditional = fool_targets(batch, cell_type, 3, 2, "conditional")
    torch.testing.assert_close(conditional, torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]]))
    uniform = fool_targets(batch, cell_type, 3, 2, "uniform")
    torch.testing.assert_close(uniform, torch.full((2, 3), 1 / 3))
    reference = fool_targets(batch, cell_type, 3, 2, "reference", 2)
    torch.testing.assert_close(reference, torch.tensor([[0.0, 0.0, 1.0]] * 2))
    unseen = fool_targets(batch, cell_type, 3, 3, "conditional")[2]
    torch.testing.assert_close(unseen, torch.tensor([0.5, 1 / 3, 1 / 6]))  # the marginal


def test_active_share_counts_features_that_vary():
    features = torch.rand(100, 8, generator=new_rng(0))
    features[:, :2] = 3.0
    features[:, 2] *= 1e-4
    assert float(active_share(features)) == pytest.approx(5 / 8)


def test_fit_classifier_learns_and_says_so():
    features = torch.rand(300, 6, generator=new_rng(0))
    labels = (features[:, 0] > 0.5).long()
    network = build(FeatureClassifier, 6, 2, CELL_TYPE_HIDDEN, rng=new_rng(1))
    fit = fit_classifier(network, features, labels, learning_rate=1e-3, epochs=30, minibatch_size=32, rng=new_rng(2))
    assert fit.accuracy[0] > 0.9
    assert fit.cross_entropy[0] < 0.4


# The loop -------------------------------------------------------------------------------------------------------------


def run(stage: Any, epochs: int = 3, validation: Cells | None = None, **kwargs: Any) -> Any:
    return train(stage, make_cells(), validation, epochs=epochs, minibatch_size=8, rng=new_rng(5), **kwargs)


def test_history_has_one_entry_per_epoch_for_every_loss():
    history, interrupted = run(make_stage("pretraining"), validation=make_cells(12, seed=1))
    assert not interrupted
    assert history["epoch"] == [1, 2, 3]
    assert {"image", "validation_image", "discriminator_real", "validation_total"} <= set(history)
    assert all(len(values) == 3 for values in history.values())
    assert np.isfinite(np.array(list(history.values()))).all()


def test_the_best_generator_is_restored_and_not_an_alias_of_the_last():
    stage = make_stage("pretraining")
    seen = []

    def merit(losses: Any, progress: float) -> float:
        seen.append(snapshot(stage.generator))
        return [2.0, 1.0, 3.0][len(seen) - 1]

    stage.merit = merit
    run(stage, validation=make_cells(12, seed=1))
    assert not moved(seen[1], stage.generator, buffers=False)
    assert moved(seen[2], stage.generator, buffers=False)


def test_without_validation_cells_the_last_generator_is_kept():
    stage = make_stage("pretraining")
    before = snapshot(stage.generator)
    history, _ = run(stage)
    assert moved(before, stage.generator, buffers=False)
    assert not any(name.startswith("validation") for name in history)


def test_losses_that_are_not_finite_roll_back_soften_and_are_told():
    stage = make_stage("pretraining")
    good_step, calls = stage.step, []

    def step(cells: Minibatch, progress: float) -> Any:
        losses = good_step(cells, progress)
        calls.append(progress)
        if len(calls) == 6:  # the second epoch
            with torch.no_grad():
                next(stage.generator.parameters()).fill_(torch.nan)
            losses["image"] = losses["image"] * torch.nan
        return losses

    stage.step = step
    with pytest.warns(RuntimeWarning, match="not finite in epoch 2"):
        history, _ = run(stage, epochs=4)
    assert history["epoch"] == [1, 3, 4]
    assert all(torch.isfinite(p).all() for p in stage.generator.parameters())
    assert stage.learning_rate == pytest.approx(1e-4)
    assert any("not finite" in event for event in stage.events)


def test_losses_that_are_never_finite_end_in_an_error_that_says_what_to_do():
    stage = make_stage("pretraining")
    stage.step = lambda cells, progress: {"image": torch.tensor(torch.nan)}
    with warnings.catch_warnings(), pytest.raises(FloatingPointError, match="standardize=True"):
        warnings.simplefilter("ignore")
        run(stage, epochs=9)


def test_interruption_ends_the_stage_with_the_best_generator():
    stage = make_stage("pretraining")
    good_step, calls = stage.step, []

    def step(cells: Minibatch, progress: float) -> Any:
        calls.append(progress)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return good_step(cells, progress)

    stage.step = step
    with pytest.warns(RuntimeWarning, match="interrupted in epoch 2 of 9"):
        history, interrupted = run(stage, epochs=9, validation=make_cells(12, seed=1))
    assert interrupted
    assert history["epoch"] == [1]


@pytest.mark.parametrize("kind", ["pretraining", "published", "online"])
def test_a_resumed_stage_ends_where_an_uninterrupted_one_does(kind, tmp_path):
    whole = make_stage(kind)
    history, _ = run(whole, epochs=4)

    stopped = make_stage(kind)
    good_step, calls = stopped.step, []

    def step(cells: Minibatch, progress: float) -> Any:
        calls.append(progress)
        if len(calls) == 10:  # in the third epoch
            raise RuntimeError("power cut")
        return good_step(cells, progress)

    stopped.step = step
    checkpoint = Checkpoint(tmp_path / "stage.pt")
    with pytest.raises(RuntimeError, match="power cut"):
        run(stopped, epochs=4, checkpoint=checkpoint)

    resumed = make_stage(kind)
    resumed_history, _ = run(resumed, epochs=4, checkpoint=checkpoint)
    np.testing.assert_equal(resumed_history, history)
    for name, value in whole.generator.state_dict().items():
        assert torch.equal(value, resumed.generator.state_dict()[name]), name


def test_a_broken_checkpoint_is_named(tmp_path):
    path = tmp_path / "stage.pt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"stage\.pt cannot be read"):
        run(make_stage("pretraining"), checkpoint=Checkpoint(path))


def test_progress_is_silent_unless_asked_for(capsys):
    run(make_stage("pretraining"), epochs=1)
    assert capsys.readouterr() == ("", "")
    run(make_stage("pretraining"), epochs=1, verbose=1)
    assert "pretraining" in capsys.readouterr().err


# Data -----------------------------------------------------------------------------------------------------------------


def test_augmentation_turns_both_images_of_a_pair_alike():
    cells = make_cells(64)
    cells = Cells(cells.bf, cells.bf, cells.batch.numpy(), cells.cell_type.numpy(), np.arange(64))
    before = cells.take(torch.arange(64))
    after = augment(before, new_rng(0))
    assert torch.equal(after.source, after.target)
    symmetries = [
        turned for k in range(4) for turned in (before.source.rot90(k, (2, 3)), before.source.rot90(k, (2, 3)).flip(3))
    ]
    matches = torch.stack([(after.source == s).flatten(1).all(1) for s in symmetries])
    assert (matches.sum(0) == 1).all()
    assert (matches.sum(1) > 0).all()  # all eight occur


def test_scaling_is_that_of_the_chosen_rows_channel_by_channel():
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(40, 16, 16, 2)) * [2.0, 5.0] + [1000.0, -3.0]).astype(np.float32)
    rows = np.arange(10, 40)
    scaling = Scaling.of(images, rows, chunk=7)
    np.testing.assert_allclose(scaling.mean, images[rows].astype(float).mean((0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(scaling.scale, images[rows].astype(float).std((0, 1, 2)), rtol=1e-8)
    assert Scaling.of(np.full((5, 16, 16), 7, np.uint8), np.arange(5)).scale == 1.0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float16, np.float64, bool])
def test_minibatches_of_any_dtype_come_standardised(dtype):
    images = np.random.default_rng(0).integers(0, 2, size=(6, 16, 16, 3)).astype(dtype)
    stack = ImageStack(images, Scaling(np.array([0.5, 0, 0]), np.array([2.0, 1, 1])), CPU)
    out = stack.take(np.array([4, 1]))
    assert out.shape == (2, 3, 16, 16)
    assert out.dtype is torch.float32
    np.testing.assert_allclose(out[:, 0].numpy(), (images[[4, 1], :, :, 0].astype(float) - 0.5) / 2)


def test_stage_2_keeps_the_last_generator_averaged_over_steps():
    stage, cells = make_stage("online", averaging=0.5), make_cells()
    seen = []
    for minibatch in cells.in_order(8):
        stage.step(minibatch, 0.5)
        seen.append({name: weight.detach().clone() for name, weight in stage.generator.named_parameters()})
    kept = stage.candidate()
    for name, expected in seen[0].items():
        for n, later in enumerate(seen[1:], 1):
            decay = min(0.5, n / (n + 10.0))
            expected = decay * expected + (1.0 - decay) * later[name]
        torch.testing.assert_close(kept[name], expected, rtol=1e-4, atol=1e-7)
    assert any(not torch.equal(kept[name], last) for name, last in seen[-1].items())
    alive = {"total": 9.0, "active_features": 1.0}
    assert stage.merit({**alive, "total": 99.0}, 0.9) < stage.merit(alive, 0.8)
    with pytest.warns(RuntimeWarning, match="features are active"):
        assert stage.merit({"total": 1.0, "active_features": 0.0}, 1.0) == float("inf")
    last = make_stage("online", averaging=0.0)
    last.step(next(iter(cells.in_order(8))), 0.5)
    assert all(torch.equal(last.candidate()[name], w) for name, w in last.generator.named_parameters())
