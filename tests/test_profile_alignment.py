"""Stage 3: what is taken from features and images once the generator no longer moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skbegan import BeGANTransformer, OnlineRemoval, ProfileAlignment, load, save
from skbegan.core.engine import Engine, new_rng
from skbegan.core.losses import group_members, maximum_mean_discrepancy
from skbegan.core.outputs import ProfileMap
from skbegan.core.plans.profile import (
    N_PARTS,
    ProfileFit,
    fit_erasure,
    newly_at_chance,
    principal_map,
    recall_by_type,
)
from skbegan.datasets import make_cell_images
from skbegan.metrics import batch_leakage, cell_type_accuracy

N = 600


def labels(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Two types in three batches."""
    return torch.arange(n) % 3, torch.arange(n) // 3 % 2


def features(seed: int, n: int = N, d: int = 6) -> torch.Tensor:
    """Type in the first feature; batch as a shift of the second and, without a shift, as the size of the third."""
    batch, cell_type = labels(n)
    values = torch.randn(n, d, generator=new_rng(seed))
    values[:, 0] += 4.0 * cell_type
    values[:, 1] += 2.0 * batch
    values[:, 2] *= 0.3 + batch
    return values


WEIGHTS = {"matching": 10.0, "correction": 0.3, "cell_type": 2.0}


def fit(values: torch.Tensor, floor: float = 0.01, steps: int = 150) -> tuple[ProfileMap, dict[str, list[float]]]:
    rng, config = new_rng(0), ProfileAlignment(floor=floor)
    profile = principal_map(values, floor, config.hidden, rng)
    assert profile is not None
    engine = Engine(torch.device("cpu"))
    found = ProfileFit(config, WEIGHTS, profile, values[None], *labels(len(values)), engine, rng)
    return profile, found.run(steps)


def leakage(values: torch.Tensor, probe: str) -> float:
    batch, cell_type = labels(len(values))
    return float(batch_leakage(values.numpy(), batch.numpy(), cell_type.numpy(), probe=probe))


@pytest.mark.slow
def test_the_profile_frees_new_cells_of_shifts_and_of_sizes_and_keeps_the_type():
    profile, losses = fit(features(0))
    new = features(1)
    before, after = new, profile(new)
    assert after.shape == before.shape
    assert leakage(before, "linear") > 0.6
    assert leakage(after, "linear") < 0.2
    assert leakage(before[:, [2]], "mlp") > 0.2
    assert leakage(after, "mlp") < 0.3
    named = [float(cell_type_accuracy(values.numpy(), labels()[1].numpy())) for values in (before, after)]
    assert named[1] > named[0] - 0.04 > 0.9
    assert losses["matching"][-1] < 0.2 * losses["matching"][0]
    assert all(len(values) == N_PARTS for values in losses.values())


def test_the_profile_depends_on_the_seed_alone_and_leaves_the_global_state():
    state = torch.get_rng_state()
    first, second = (fit(features(0), steps=5)[0](features(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_faint_directions_are_left_out():
    values = features(0)
    values[:, 5] = values[:, 0] + 1e-2 * torch.randn(N, generator=new_rng(3)) * (1 + labels()[0])
    few, _ = fit(values, floor=0.1, steps=1)
    all_, _ = fit(values, floor=0.0, steps=1)
    assert few.read.shape[1] == 5
    assert all_.read.shape[1] == 6


def test_constant_features_have_no_profile():
    assert principal_map(torch.ones(N, 6), 0.1, 8, new_rng(0)) is None


@pytest.mark.parametrize("case", ["one batch per type", "no steps"])
def test_there_is_no_profile_where_nothing_can_be_fitted(case):
    cells = make_cell_images(60, 2, 2, 16, random_state=0)
    parameters = {"base_width": 2, "n_features": 8, "pretrain_epochs": 0, "removal_epochs": 1, "random_state": 0}
    if case == "no steps":
        est = BeGANTransformer(**parameters, profile=ProfileAlignment(steps=0))
        est.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    else:
        est = BeGANTransformer(**parameters, batch_target="uniform")
        with pytest.warns(UserWarning, match="will remove the cell type"):
            est.fit(cells.bf, cells.qpi, cells.cell_type, cells.cell_type)
    assert "profile_alignment" not in est.history_
    assert not any(name.startswith("profile.") for name in est._model.weights)


def test_matching_is_zero_for_equal_distributions_and_sees_more_than_means():
    members = group_members(*labels())
    same = torch.randn(N, 4, generator=new_rng(0))
    wider = same.clone()
    wider[:, 0] *= 1.0 + labels()[0]
    assert abs(float(maximum_mean_discrepancy(same, members, (0.1, 0.3, 1.0, 3.0), 0.1))) < 0.05
    assert float(maximum_mean_discrepancy(wider, members, (0.1, 0.3, 1.0, 3.0), 0.1)) > 0.1


def test_recall_names_the_type_that_has_collapsed():
    cell_type = torch.arange(90) % 3
    values = torch.eye(3)[cell_type] + 0.05 * torch.randn(90, 3, generator=new_rng(0))
    values[cell_type == 2] = values[cell_type == 1][torch.randperm(30, generator=new_rng(1))]
    found = recall_by_type(values, cell_type, values, cell_type).tolist()
    assert found[0] == 1.0
    assert found[1] + found[2] < 1.4


def images(seed: int, strength: float) -> torch.Tensor:
    batch, cell_type = labels()
    values = torch.randn(N, 1, 8, 8, generator=new_rng(seed))
    pattern = torch.linspace(-1, 1, 8)[:, None].expand(8, 8)
    return values + strength * batch[:, None, None, None] * pattern + 2.0 * cell_type[:, None, None, None]


def test_erasure_takes_a_linear_batch_effect_from_new_images_and_little_else():
    erasure = fit_erasure(images(0, 1.0), *labels())
    new = images(1, 1.0)
    cleaned = erasure(new)
    assert leakage(new.flatten(1), "linear") > 0.9
    assert leakage(cleaned.flatten(1), "linear") < 0.2
    assert cell_type_accuracy(cleaned.flatten(1).numpy(), labels()[1].numpy()) > 0.95
    truth = images(1, 0.0) + torch.linspace(-1, 1, 8)[:, None]  # the batches' mean pattern
    assert float((cleaned - truth).abs().mean()) < 0.5 * float((new - truth).abs().mean())


def test_profile_and_erasure_are_as_exact_under_autocast():
    profile, _ = fit(features(0), steps=5)
    erasure = fit_erasure(images(0, 1.0), *labels())
    plain = profile(features(1)), erasure(images(1, 1.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(profile(features(1)), plain[0])
        assert torch.equal(erasure(images(1, 1.0)), plain[1])


def test_more_cells_than_a_step_takes(monkeypatch):
    monkeypatch.setattr("skbegan.core.plans.profile.CELLS_PER_STEP", 300)
    profile, _ = fit(features(0))
    assert leakage(profile(features(1)), "linear") < 0.25


@pytest.mark.parametrize("matching", [0.0, 20.0])
def test_a_cell_type_that_has_collapsed_is_warned_of_and_written_down(matching):
    cells = make_cell_images(240, 2, 2, 16, random_state=0)
    same = np.arange(240) % 2  # labels without any meaning: the two types cannot be told apart
    est = BeGANTransformer(
        base_width=4, n_features=16, pretrain_epochs=1, removal_epochs=1, removal=OnlineRemoval(warmup_epochs=0),
        profile=ProfileAlignment(matching=matching),
        cell_type_weight=0.0, cell_type_image_weight=0.0, random_state=0,
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="collapsed"):
        est.fit(cells.bf, cells.qpi, cells.batch, same)
    assert any("collapsed" in event for event in est.history_["events"])


@pytest.mark.parametrize(
    ("names", "shown"),
    [(["H69", "A549", "H1975"], "'A549', 'H69'"), ([30, 7, 10], "7, 30")],
    ids=["words", "numbers"],
)
@pytest.mark.parametrize("when", ["features", "profile"])
def test_collapsed_cell_types_are_named_as_the_user_named_them(monkeypatch, names, shown, when):
    """Also where the labels are numbers, which codes could be taken for."""
    cells = make_cell_images(120, 3, 2, 16, random_state=0)
    labels = np.array(names)[np.unique(cells.cell_type, return_inverse=True)[1]]
    for name, found_in in (("at_chance", "features"), ("newly_at_chance", "profile")):
        answer = [0, 2] if when == found_in else []
        monkeypatch.setattr(f"skbegan.core.plans.profile.{name}", lambda *recalls, answer=answer: answer)
    est = BeGANTransformer(base_width=4, n_features=16, pretrain_epochs=1, removal_epochs=1, random_state=0)
    verb = "have collapsed, " if when == "features" else "would have collapsed"
    with pytest.warns(RuntimeWarning, match=f"these cell types {verb}.*: {shown};"):
        est.fit(cells.bf, cells.qpi, cells.batch, labels)
    assert sum("collapsed" in event for event in est.history_["events"]) == 1
    assert ("profile_alignment" in est.history_) == (when == "features")


def test_a_profile_that_would_lose_a_cell_type_is_fitted_with_less_matching(monkeypatch):
    cells = make_cell_images(120, 3, 2, 16, random_state=0)
    answers, names = iter([[1], []]), np.array(["T1", "T2", "T3"])
    weights = []
    monkeypatch.setattr("skbegan.core.plans.profile.newly_at_chance", lambda *recalls: next(answers))

    class Watched(ProfileFit):
        def __init__(self, config: ProfileAlignment, given: dict[str, float], *args: object) -> None:
            weights.append(given["matching"])
            super().__init__(config, given, *args)

    monkeypatch.setattr("skbegan.core.plans.profile.ProfileFit", Watched)
    est = BeGANTransformer(
        base_width=4, n_features=16, pretrain_epochs=1, removal_epochs=1, batch_weight=2.0, random_state=0
    )
    with pytest.warns(RuntimeWarning, match="would have collapsed: 'T2'; the profile was fitted with a share of 0.25"):
        est.fit(
            cells.bf,
            cells.qpi,
            cells.batch,
            names[np.unique(cells.cell_type, return_inverse=True)[1]],
        )
    assert weights == [est.profile.matching * 2.0, est.profile.matching * 0.5]
    assert "profile_alignment" in est.history_ and any(name.startswith("profile.") for name in est._model.weights)


def test_a_type_that_is_hard_to_name_has_not_collapsed():
    before = torch.tensor([0.9, 0.30, 0.9, 0.2])
    assert newly_at_chance(before, torch.tensor([0.9, 0.24, 0.9, 0.2])) == []  # chance is 0.25
    assert newly_at_chance(before, torch.tensor([0.2, 0.10, 0.9, 0.2])) == [0, 1]
    assert newly_at_chance(before, torch.tensor([0.3, 0.30, 0.9, 0.9])) == []


def test_erasure_finds_nothing_where_there_is_no_batch_effect():
    assert fit_erasure(images(0, 0.0), *labels()) is None


def test_the_estimator_saves_profile_and_erasure_and_drops_them_where_they_are_not_wanted(tmp_path):
    cells = make_cell_images(240, 2, 2, 16, random_state=0)
    settings = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 2, "random_state": 0}
    est = BeGANTransformer(**settings).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    names = {name.split(".")[0] for name in est._model.weights}
    assert "erasure" in names
    assert ("profile" in names) == ("profile_alignment" in est.history_)
    save(est, tmp_path / "model.safetensors")
    other = load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(other.transform(cells.bf), est.transform(cells.bf))
    np.testing.assert_array_equal(other.predict_image(cells.bf), est.predict_image(cells.bf))
    plain = BeGANTransformer(**settings, profile=ProfileAlignment(matching=0.0, image_erasure=False))
    plain.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert not {name.split(".")[0] for name in plain._model.weights} & {"profile", "erasure", "descriptors"}
    assert plain.transform(cells.bf).shape == (240, 16)
    assert (plain.transform(cells.bf) >= 0).all()
