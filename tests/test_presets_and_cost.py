"""Presets, and what a fit will cost: structure and arithmetic, no times."""

from __future__ import annotations

import dataclasses
import math

import joblib
import numpy as np
import pytest
from conftest import TINY

import skbegan
from skbegan import PRESETS, PUBLISHED, BeGANTransformer, PublishedRemoval, cost
from skbegan.config import Config
from skbegan.cost import CostEstimate, StageCost

STAGES = ["checks", "pretraining", "batch_removal", "profile_alignment"]


@pytest.fixture(scope="module", autouse=True)
def briefly():
    """Measure fewer steps: how well does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_BLOCK", 0.0)
        patch.setattr(cost, "_LONGEST", 0.0)
        yield


@pytest.fixture(scope="module")
def estimate(cells, briefly):
    est = BeGANTransformer(**TINY)
    return est.estimate_cost(cells.bf, cells.qpi, cells.batch, cells.cell_type)


def arguments(cells):
    return cells.bf, cells.qpi, cells.batch, cells.cell_type


# Presets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_parameters_that_a_fit_takes(name):
    assert Config.of(BeGANTransformer(**PRESETS[name]).get_params(deep=False))


def test_presets_grow_and_the_largest_is_the_published_recipe():
    assert list(PRESETS) == ["laptop", "balanced", "published"]
    assert PRESETS["published"] == PUBLISHED and PRESETS["published"] is not PUBLISHED
    for name in ("base_width", "n_features", "pretrain_epochs", "removal_epochs"):
        sizes = [preset[name] for preset in PRESETS.values()]
        assert sizes == sorted(set(sizes)), name


@pytest.mark.parametrize("name", ["laptop", "balanced"])
def test_presets_set_sizes_only(name):
    """All else are the defaults of the estimator, whatever those are."""
    assert set(PRESETS[name]) == {"base_width", "n_features", "pretrain_epochs", "removal_epochs"}


# Cost ---------------------------------------------------------------------------------------------------------------


def test_the_estimate_names_the_stages_in_the_order_in_which_they_run(estimate):
    assert [stage.name for stage in estimate.stages] == STAGES
    assert all(stage.seconds > 0 and math.isfinite(stage.seconds) for stage in estimate.stages)
    assert estimate.seconds == pytest.approx(sum(stage.seconds for stage in estimate.stages))
    assert estimate.n_cells == 90 and estimate.image_shape == (16, 16) and estimate.device == "cpu"


def test_steps_are_those_that_a_fit_takes(estimate, cells, monkeypatch):
    from skbegan.core.plans.online import OnlinePlan
    from skbegan.core.plans.pretraining import PretrainingPlan

    taken = []
    for plan in (PretrainingPlan, OnlinePlan):

        def step(self, *args, wrapped=plan.step):
            taken.append(self.name)
            return wrapped(self, *args)

        monkeypatch.setattr(plan, "step", step)
    BeGANTransformer(**TINY).fit(*arguments(cells))
    assert estimate.steps == len(taken)
    for name in ("pretraining", "batch_removal"):
        assert estimate[name].epochs * estimate[name].steps_per_epoch == taken.count(name)


def test_time_grows_in_proportion_to_the_epochs(estimate):
    pretraining = estimate["pretraining"]
    doubled = estimate.with_epochs(pretraining=2 * pretraining.epochs)
    assert doubled["pretraining"].seconds == pytest.approx(2 * pretraining.seconds)
    removal = estimate["batch_removal"]
    more = estimate.with_epochs(batch_removal=removal.epochs + 3)
    assert more.seconds - estimate.seconds == pytest.approx(3 * removal.seconds_per_epoch)
    with pytest.raises(ValueError, match="no epochs of stage_9"):
        estimate.with_epochs(stage_9=1)


def test_memory_is_at_least_that_of_the_images(estimate, cells):
    if estimate.peak_memory is None:
        pytest.skip("memory cannot be read here")
    assert estimate.peak_memory > cells.bf.nbytes + cells.qpi.nbytes


def test_the_estimator_its_cells_and_random_numbers_stay_as_they_were(cells):
    random_state = np.random.RandomState(3)
    est = BeGANTransformer(**TINY | {"random_state": random_state, "verbose": 1})
    before, globally = joblib.hash((est.__dict__, cells)), np.random.get_state()[1].copy()  # noqa: NPY002
    est.estimate_cost(*arguments(cells))
    assert joblib.hash((est.__dict__, cells)) == before
    assert not est.__sklearn_is_fitted__() and np.array_equal(np.random.get_state()[1], globally)  # noqa: NPY002


def test_a_fitted_model_stays_fitted_and_a_warm_start_has_no_first_stage(cells):
    est = BeGANTransformer(**TINY, warm_start=True).fit(*arguments(cells))
    before, history = est.transform(cells.bf), joblib.hash(est.history_)
    found = est.estimate_cost(*arguments(cells))
    assert [stage.name for stage in found.stages] == ["checks", "batch_removal", "profile_alignment"]
    assert np.array_equal(est.transform(cells.bf), before) and joblib.hash(est.history_) == history


def test_nothing_is_written_or_called(cells, tmp_path):
    def callback(info):
        raise AssertionError("called")

    est = BeGANTransformer(**TINY, checkpoint_dir=tmp_path / "new", memory=str(tmp_path / "cache"), callback=callback)
    est.estimate_cost(*arguments(cells))
    assert not (tmp_path / "new").exists() and not list((tmp_path / "cache").rglob("*.pkl"))


def test_stages_that_are_not_due_cost_nothing(cells):
    est = BeGANTransformer(**TINY | {"removal_epochs": 0})
    assert [stage.name for stage in est.estimate_cost(cells.bf, cells.qpi).stages] == ["checks", "pretraining"]
    published = BeGANTransformer(**TINY | {"removal": PublishedRemoval()}).estimate_cost(*arguments(cells))
    assert [stage.name for stage in published.stages] == ["checks", "pretraining", "batch_removal"]


def test_epochs_of_a_number_of_steps_are_counted_in_them(cells):
    est = BeGANTransformer(**TINY, steps_per_epoch=2)
    assert est.estimate_cost(*arguments(cells))["batch_removal"].steps_per_epoch == 2


def test_input_is_checked_before_anything_is_measured(cells):
    with pytest.raises(ValueError, match="X_bf has 80 cells but y_qpi has 90"):
        BeGANTransformer(**TINY).estimate_cost(cells.bf[:80], cells.qpi)
    with pytest.raises(TypeError, match="base_width"):
        BeGANTransformer(base_width="wide").estimate_cost(*arguments(cells))


def told(seconds: float, device: str = "cpu", base_width: int = 64) -> str:
    stages = (StageCost("pretraining", 1, 10, 0.0, seconds, 3 * 2**30),)
    return str(CostEstimate(stages, device, "float32", 100_000, (128, 128), base_width))


def test_the_text_says_days_on_a_cpu_and_names_what_takes_less():
    text = told(12.3 * 86400)
    assert "On this CPU that is 12.3 days" in text and "CUDA" in text
    assert "PRESETS['laptop'] or PRESETS['balanced']" in text and "images of 64 pixels instead of 128" in text
    assert "at most 3.0 GiB of memory" in text
    assert "PRESETS['balanced']" not in told(12.3 * 86400, base_width=32)
    assert "PRESETS" not in told(12.3 * 86400, device="cuda") and "PRESETS" not in told(3600.0)


def test_an_estimate_is_shown_in_full(estimate):
    assert repr(estimate) == str(estimate)
    for stage in estimate.stages:
        assert stage.name.replace("_", " ") in str(estimate)
    assert dataclasses.is_dataclass(estimate) and skbegan.PRESETS is PRESETS
