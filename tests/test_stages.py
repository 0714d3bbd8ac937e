"""What one step of each stage moves and what it leaves, and what the loop does with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skbegan.config import Architecture, Config, OnlineRemoval, Pretraining, PublishedRemoval, Removal
from skbegan.core import spilled
from skbegan.core.checkpoint import Checkpoint
from skbegan.core.classifiers import CELL_TYPE_HIDDEN, FeatureClassifier, fit_classifier
from skbegan.core.engine import Adam, Engine, new_rng
from skbegan.core.loop import StageResult, run_stage
from skbegan.core.losses import active_share, standardised_once, weighted_sum
from skbegan.core.networks import Discriminator, Generator, frozen, new_network, snapshot, to_numpy, untracked
from skbegan.core.plans import online, pretraining, published
from skbegan.core.plans.pretraining import Start
from skbegan.core.plans.published import FeatureSubsets
from skbegan.data.cells import Cells, Minibatch, symmetry
from skbegan.data.sampler import in_order
from skbegan.data.source import ImageSource, Scaling
from skbegan.design import Design

CPU = torch.device("cpu")
CONFIG = Config(
    architecture=Architecture(base_width=4, n_features=10),
    pretraining=Pretraining(augment=False),
    removal=Removal(
        refresh_epochs=2,
        classifier_epochs=2,
        adversarial=1.0,
        image=30.0,
        batch=2.0,
        batch_image=2.0,
        minibatch_size=8,
        augment=False,
    ),
)
ONLINE = OnlineRemoval(
    learning_rate=2e-4,
    adversary_steps=2,
    warmup_epochs=1,
    alignment=2.5,
    invariance=0.0,
    style_share=0.0,
    brightfield_style_share=0.0,
    decorrelation=1.0,
)


def make_cells(n: int = 32, side: int = 16, seed: int = 0) -> Cells:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, n, side, side)).astype(np.float32)
    stacks = [ImageSource(x, Scaling.identity(1), CPU) for x in images]
    return Cells(*stacks, rng.integers(3, size=n), rng.integers(2, size=n), np.arange(n))


def minibatch(n: int = 8) -> Minibatch:
    return make_cells().take(torch.arange(n))


def networks(seed: int = 0) -> tuple[Any, Any]:
    rng = new_rng(seed)
    generator = new_network(Generator, 16, base_width=4, n_features=10, rng=rng)
    return generator, new_network(Discriminator, base_width=4, rng=rng)


def make_stage(kind: str, removal: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Return the plan of a stage; `removal` changes what the methods share, `changes` what they do not."""
    seeds = {"order": 5, "dropout": 1, "classifiers": 2}
    engine, cells = Engine(CPU, seeds=seeds), make_cells()
    start = Start(*map(to_numpy, networks()))
    design = Design.of(cells.batch.numpy(), cells.cell_type.numpy(), 3, 2)
    if kind == "pretraining":
        return pretraining.build(CONFIG, cells, design, engine, start)
    method = replace(ONLINE if kind == "online" else PublishedRemoval(), **changes)
    config = replace(CONFIG, removal=replace(CONFIG.removal, method=method, **(removal or {})))
    module = online if kind == "online" else published
    return module.build(config, cells, design, engine, start)


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
    # In the layout of the stage: another sums in another order, and Adam turns the sign of a rounding into a step.
    generator, discriminator = (stage.engine.place(network) for network in networks())
    discriminator.train()
    image, _ = generator.train()(cells.source, generator.draw_masks(len(cells.source), new_rng(1)))
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
        losses = stage.image_losses(cells, image, stage.weights)
        stage.engine.descend("generator", weighted_sum(losses, stage.weights))
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
    torch.testing.assert_close(losses["total"], sum(getattr(CONFIG.removal, n) * losses[n] for n in names))


def test_published_refresh_draws_new_disjoint_subsets_that_cover_all_features():
    stage = make_stage("published")
    cells = make_cells()
    stage.begin_epoch(0, cells)
    first = stage.classifiers["batch"].rows.clone(), snapshot(stage.classifiers["cell_type"])
    optimizer = stage.engine.optimizers["generator"]
    stage.step(minibatch(), 0.5)
    assert float(next(iter(optimizer.state.values()))["exp_avg_sq"].max()) > 0
    stage.begin_epoch(1, cells)
    assert torch.equal(stage.classifiers["batch"].rows, first[0])
    stage.begin_epoch(2, cells)
    subsets = stage.classifiers["batch"]
    assert not torch.equal(subsets.rows, first[0])
    chosen = subsets.rows[subsets.kept.bool()]
    assert sorted(chosen.tolist()) == list(range(10))  # 10 features in 4 subsets: two of 3, two of 2
    assert stage.engine.optimizers["generator"] is optimizer  # in the same memory, as new
    assert optimizer.param_groups[0]["n_steps"] == 0
    assert not any(value.any() for state in optimizer.state.values() for value in state.values())
    assert not moved(first[1], stage.classifiers["cell_type"], buffers=False)  # fitted once only


def test_published_classifiers_are_the_same_whether_images_are_kept_in_memory_or_in_a_file(monkeypatch):
    found, files = [], []
    original = spilled.tempfile.TemporaryFile

    def counted(**options: Any) -> Any:
        files.append(original(**options))
        return files[-1]

    monkeypatch.setattr(spilled.tempfile, "TemporaryFile", counted)
    for most in (2**30, 3000):
        monkeypatch.setattr(spilled, "IN_MEMORY", most)
        stage = make_stage("published", {"classifier_epochs": 1})
        stage.fit_classifiers(make_cells(80))
        found.append({name: snapshot(network) for name, network in stage.classifiers.items()})
    assert len(files) == 1 and files[0].closed
    for name, state in found[0].items():
        assert all(torch.equal(value, found[1][name][key]) for key, value in state.items()), name


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
    readers = [*stage.classifiers.values(), *stage.adversaries.values()]
    before = states(stage)
    with frozen(stage.discriminator), frozen(*readers, batch_statistics=True):
        losses = stage.generator_losses(cells, image, standardised_once(features))
        weighted_sum(losses, stage.weights).backward()
    assert all(p.grad is None for network in readers for p in network.parameters())
    assert all(p.grad is not None for p in stage.generator.parameters())
    for name, network in stage.networks.items():
        if name != "generator":
            assert not moved(before[name], network, buffers=True), name


def test_fool_weights_are_ramped_and_the_learning_rate_decays():
    stage = make_stage("online")
    losses = {name: torch.tensor(1.0) for name in ("adversarial", "image", "cell_type", "batch", "batch_image")}
    totals = [float(weighted_sum(losses, stage.weights_at(progress))) for progress in (0.0, 0.15, 0.3, 1.0)]
    assert totals == pytest.approx([32.0, 34.0, 36.0, 36.0])
    rates = []
    for progress in (0.0, 0.4, 0.75, 0.999):
        stage.step(minibatch(), progress)
        rates.append(stage.engine.optimizers["generator"].learning_rate)
    assert rates == pytest.approx([2e-4, 2e-4, 1e-4, 4e-7])


def test_weights_of_zero_build_no_classifier():
    stage = make_stage("online", {"cell_type": 0.0, "cell_type_image": 0.0, "batch_image": 0.0})
    others = {"generator", "discriminator", "descriptor_head"}
    assert set(stage.networks) == others | {"batch_adversary_1", "batch_adversary_2"}
    assert "batch_image" not in stage.step(minibatch(), 0.0)


@pytest.mark.parametrize("kind", ["pretraining", "online", "published"])
def test_an_adversarial_weight_of_zero_leaves_the_discriminator_alone(kind):
    stage = make_stage(kind, {"adversarial": 0.0})
    stage.weights.pop("adversarial", None)  # stage 1 has no parameter for it
    stage.begin_epoch(0, make_cells())
    before = snapshot(stage.discriminator)
    losses = stage.step(minibatch(), 0.5)
    assert not {"adversarial", "discriminator_real", "discriminator_fake"} & set(losses)
    assert not moved(before, stage.discriminator, buffers=False)


def test_a_renewed_adversary_learns_from_a_bounded_number_of_cells(monkeypatch):
    stage, cells = make_stage("online"), make_cells(64)
    _, rows = stage._features(cells)
    assert rows.tolist() == list(range(64))
    monkeypatch.setattr("skbegan.core.plans.online.KNOWN_CELLS", 20)
    features, rows = stage._features(cells)
    assert len(features) == 20 and rows[0] == 0 and rows[-1] == 63 and (rows.diff() > 0).all()
    seen = {}
    monkeypatch.setattr(
        "skbegan.core.plans.online.fit_classifier",
        lambda network, inputs, labels, **kwargs: (
            seen.update(inputs=inputs, labels=labels, **kwargs) or fit_classifier(network, inputs, labels, **kwargs)
        ),
    )
    stage.renew("batch_adversary_1", cells)
    assert len(seen["inputs"]) == len(seen["condition"]) == 20
    assert torch.equal(seen["labels"], cells.batch[rows])
    assert torch.equal(seen["condition"].argmax(1), cells.cell_type[rows])


def test_renewed_adversaries_take_turns():
    stage = make_stage("online", {"refresh_epochs": 1})
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
    batch, cell_type = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 0, 1, 1])
    design = Design.of(batch, cell_type, 3, 2, reference=2)
    np.testing.assert_allclose(design.fool_targets("conditional"), [[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]])
    np.testing.assert_allclose(design.fool_targets("uniform"), np.full((2, 3), 1 / 3))
    np.testing.assert_allclose(design.fool_targets("reference"), [[0.0, 0.0, 1.0]] * 2)
    unseen = Design.of(batch, cell_type, 3, 3).fool_targets("conditional")[2]
    np.testing.assert_allclose(unseen, [0.5, 1 / 3, 1 / 6], rtol=1e-6)  # the marginal


def test_active_share_counts_features_that_vary():
    features = torch.rand(100, 8, generator=new_rng(0))
    features[:, :2] = 3.0
    features[:, 2] *= 1e-4
    assert float(active_share(features)) == pytest.approx(5 / 8)


def test_fit_classifier_learns_and_says_so():
    features = torch.rand(300, 6, generator=new_rng(0))
    labels = (features[:, 0] > 0.5).long()
    network = new_network(FeatureClassifier, 6, 2, CELL_TYPE_HIDDEN, rng=new_rng(1))
    fit = fit_classifier(
        network, features, labels, learning_rate=1e-3, epochs=30, minibatch_size=32, rng=new_rng(2), engine=Engine(CPU)
    )
    assert fit.accuracy[0] > 0.9
    assert fit.cross_entropy[0] < 0.4


# The loop -------------------------------------------------------------------------------------------------------------


def run(stage: Any, epochs: int = 3, validation: Cells | None = None, **kwargs: Any) -> StageResult:
    return run_stage(stage, make_cells(), validation, epochs=epochs, minibatch_size=8, **kwargs)


def messages(stage: Any) -> list[str]:
    return [str(event) for event in stage.events]


def test_history_has_one_entry_per_epoch_for_every_loss():
    result = run(make_stage("pretraining"), validation=make_cells(12, seed=1))
    assert result.finished and not result.interrupted
    assert result.history["epoch"] == [1, 2, 3]
    assert {"image", "validation_image", "discriminator_real", "validation_total"} <= set(result.history)
    assert all(len(values) == 3 for values in result.history.values())
    assert np.isfinite(np.array(list(result.history.values()))).all()


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
    result = run(stage)
    assert moved(before, stage.generator, buffers=False)
    assert not any(name.startswith("validation") for name in result.history)


def broken_step(stage: Any, at: int, breaks: Any) -> Any:
    """Return the stage's step, but for one call after which `breaks(losses)` is called."""
    good_step, calls = stage.step, []

    def step(cells: Minibatch, progress: float) -> Any:
        losses = good_step(cells, progress)
        calls.append(progress)
        if len(calls) == at:
            breaks(losses)
        return losses

    return step


def break_weight(stage: Any) -> None:
    with torch.no_grad():
        next(stage.generator.parameters()).fill_(torch.nan)


@pytest.mark.parametrize("seen_in", ["losses", "weights"])
def test_what_is_not_finite_rolls_back_softens_and_becomes_an_event(seen_in):
    stage = make_stage("pretraining")

    def breaks(losses: Any) -> None:
        if seen_in == "losses":
            losses["image"] = losses["image"] * torch.nan
        break_weight(stage)

    # The sixth step is in the second epoch; the eighth is its last, after which no loss tells of the weights.
    stage.step = broken_step(stage, 6 if seen_in == "losses" else 8, breaks)
    result = run(stage, epochs=4)
    assert result.history["epoch"] == [1, 3, 4]
    assert all(torch.isfinite(p).all() for p in stage.generator.parameters())
    assert stage.learning_rate == pytest.approx(5e-4)
    assert any(f"'{'image' if seen_in == 'losses' else 'weights'}'" in m for m in messages(stage))
    assert any("were not finite in epoch 2" in message for message in messages(stage))


@pytest.mark.parametrize("epochs", [1, 2, 9])
def test_losses_that_are_never_finite_end_in_an_error_that_says_what_to_do(epochs):
    stage = make_stage("pretraining")
    stage.step = lambda cells, progress: {"image": torch.tensor(torch.nan)}
    with pytest.raises(FloatingPointError, match="standardize=True"):
        run(stage, epochs=epochs)


@pytest.mark.parametrize("where", ["step", "validate", "merit", "candidate", "begin_epoch"])
def test_interruption_at_any_place_leaves_the_epochs_that_were_completed(where):
    whole, stage = make_stage("pretraining"), make_stage("pretraining")
    for each in (whole, stage):  # at a constant rate an epoch does not depend on how many there will be
        each.config = replace(each.config, decay=0.0)
    expected = run(whole, epochs=1, validation=make_cells(12, seed=1))
    good, calls = getattr(stage, where), []

    def interrupting(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == {"step": 6}.get(where, 2):
            raise KeyboardInterrupt
        return good(*args)

    setattr(stage, where, interrupting)
    result = run(stage, epochs=9, validation=make_cells(12, seed=1))
    assert result.interrupted and not result.finished
    np.testing.assert_equal(result.history, expected.history)
    assert all(np.array_equal(result.generator[name], value) for name, value in expected.generator.items())
    assert any("interrupted in epoch 2 of 9" in message for message in messages(stage))


@pytest.mark.parametrize("kind", ["pretraining", "published", "online"])
def test_a_resumed_stage_ends_where_an_uninterrupted_one_does(kind, tmp_path):
    whole = run(make_stage(kind), epochs=4)
    stopped = make_stage(kind)

    def power_cut(losses: Any) -> None:
        raise RuntimeError("power cut")

    stopped.step = broken_step(stopped, 10, power_cut)  # in the third epoch
    checkpoint = Checkpoint(tmp_path / "stage.pt")
    with pytest.raises(RuntimeError, match="power cut"):
        run(stopped, epochs=4, checkpoint=checkpoint)
    resumed = run(make_stage(kind), epochs=4, checkpoint=checkpoint)
    np.testing.assert_equal(resumed.history, whole.history)
    for name, value in whole.generator.items():
        assert np.array_equal(value, resumed.generator[name]), name


def test_a_resumed_stage_keeps_the_learning_rates_that_were_halved(tmp_path):
    stage, checkpoint = make_stage("online"), Checkpoint(tmp_path / "stage.pt")
    stage.step = broken_step(stage, 2, lambda losses: losses.update(image=losses["image"] * torch.nan))
    run(stage, epochs=3, checkpoint=checkpoint)
    resumed = make_stage("online")
    run(resumed, epochs=3, checkpoint=checkpoint)
    assert resumed.learning_rate == stage.learning_rate == 1e-4
    assert resumed.learning_rates == stage.learning_rates == {"classifier": 5e-4, "adversary": 5e-4}


def test_progress_is_silent_unless_asked_for(capsys, caplog):
    run(make_stage("pretraining"), epochs=1)
    assert capsys.readouterr() == ("", "") and not caplog.records
    run(make_stage("pretraining"), epochs=1, verbose=1)
    assert caplog.messages[0].startswith("pretraining: epoch 1 of 1, image ")


# Checkpoints ----------------------------------------------------------------------------------------------------------


def written(folder: Path) -> Checkpoint:
    """Return the checkpoint of a stage after two of four epochs."""
    checkpoint = Checkpoint(folder / "stage.pt")
    run(make_stage("pretraining"), epochs=2, checkpoint=checkpoint)
    return checkpoint


def rewritten(checkpoint: Checkpoint, change: Any) -> None:
    state = checkpoint.read("pretraining", 4)
    change(state)
    checkpoint.write(state)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"no checkpoint", "does not begin as"),
        (lambda content: content[:-10], "does not match its digest"),
        (lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], "does not match its digest"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_no_pickle_is_advised(tmp_path, damage, reason):
    path = written(tmp_path).path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"stage\.pt cannot be read \(.*{reason}.*delete it") as caught:
        run(make_stage("pretraining"), checkpoint=Checkpoint(path))
    assert "weights_only" not in str(caught.value) and "pickle" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(epoch=10**6),
        lambda state: state.update(epoch=-1),
        lambda state: state.update(stage="batch_removal"),
        lambda state: state["networks"]["generator"]["to_image.bias"].fill_(torch.nan),
        lambda state: state.pop("networks"),
    ],
)
def test_a_checkpoint_that_no_training_leaves_is_refused(tmp_path, change):
    checkpoint = written(tmp_path)
    rewritten(checkpoint, change)
    with pytest.raises(ValueError, match=r"stage\.pt cannot be read"):
        run(make_stage("pretraining"), epochs=4, checkpoint=checkpoint)


def test_a_disk_that_is_full_is_an_event_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    checkpoint = written(tmp_path)
    before = checkpoint.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    stage = make_stage("pretraining")
    result = run(stage, epochs=4, checkpoint=checkpoint)
    assert result.finished
    assert sum("No space left on device" in message for message in messages(stage)) == 1
    assert checkpoint.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["stage.pt"]


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        Checkpoint(tmp_path / "file" / "stage.pt").prepare()


def test_a_checkpoint_of_another_device_goes_on_with_new_random_numbers_and_says_so(tmp_path):
    checkpoint = written(tmp_path)

    def from_a_card(state: Any) -> None:
        state["device"] = "cuda"
        state["rngs"]["dropout"] = torch.zeros(16, dtype=torch.uint8)  # of another size on a card

    rewritten(checkpoint, from_a_card)
    stage = make_stage("pretraining")
    result = run(stage, epochs=4, checkpoint=checkpoint)
    assert result.history["epoch"] == [1, 2, 3, 4]
    assert any("resumed on cpu from a checkpoint of cuda" in message for message in messages(stage))


# Data -----------------------------------------------------------------------------------------------------------------


def test_augmentation_turns_both_images_of_a_pair_alike():
    cells = make_cells(64)
    cells = Cells(cells.bf, cells.bf, cells.batch.numpy(), cells.cell_type.numpy(), np.arange(64))
    before = cells.take(torch.arange(64))
    after = symmetry(before, new_rng(0))
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
    stack = ImageSource(images, Scaling(np.array([0.5, 0, 0]), np.array([2.0, 1, 1])), CPU)
    out = stack.take(np.array([4, 1]))
    assert out.shape == (2, 3, 16, 16)
    assert out.dtype is torch.float32
    np.testing.assert_allclose(out[:, 0].numpy(), (images[[4, 1], :, :, 0].astype(float) - 0.5) / 2)


def test_stage_2_keeps_the_last_generator_averaged_over_steps():
    stage, cells = make_stage("online", averaging=0.5), make_cells()
    seen = []
    for positions in in_order(len(cells), 8):
        stage.step(cells.take(positions), 0.5)
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
    assert stage.merit({"total": 1.0, "active_features": 0.0}, 1.0) == float("inf")
    assert any("features are active" in message for message in messages(stage))
    last = make_stage("online", averaging=0.0)
    last.step(cells.take(torch.arange(8)), 0.5)
    assert all(torch.equal(last.candidate()[name], w) for name, w in last.generator.named_parameters())
