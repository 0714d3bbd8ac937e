"""Going on with a fitted model, and stopping early by callback."""

from __future__ import annotations

import functools
import pickle
import warnings
from typing import Any

import joblib
import numpy as np
import pytest
from conftest import TINY
from sklearn.base import clone
from sklearn.model_selection import cross_validate

import skbegan.fit
from skbegan import BeGANTransformer, OnlineRemoval, PublishedRemoval
from skbegan.core.plans.online import OnlinePlan
from skbegan.core.plans.pretraining import PretrainingPlan
from skbegan.datasets import make_cell_images

QUICK = {**TINY, "base_width": 2, "n_features": 8, "removal": OnlineRemoval(warmup_epochs=0)}


def began(**params: Any) -> BeGANTransformer:
    return BeGANTransformer(**{**QUICK, **params})


def fit(est: BeGANTransformer, cells: Any) -> BeGANTransformer:
    return est.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)


@pytest.fixture
def started(monkeypatch) -> dict[str, list[dict[str, np.ndarray]]]:
    """The networks' weights as each stage found them."""
    seen: dict[str, list[Any]] = {"pretraining": [], "batch_removal": []}
    for stage in (PretrainingPlan, OnlinePlan):
        plain = stage.begin_epoch

        def begin_epoch(self: Any, epoch: int, cells: Any, plain: Any = plain) -> None:
            if epoch == 0:
                networks = (self.generator, self.discriminator)
                seen[self.name].append([{k: v.clone().numpy() for k, v in n.state_dict().items()} for n in networks])
            plain(self, epoch, cells)

        monkeypatch.setattr(stage, "begin_epoch", begin_epoch)
    return seen


def same(network: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> bool:
    """Whether a network that trains has these weights; what was fitted on it after training is left aside."""
    assert len(set(network) & set(weights)) > 10
    return all(np.array_equal(network[name], value) for name, value in weights.items() if name in network)


# Warm start -----------------------------------------------------------------------------------------------------------


def test_stage_two_goes_on_from_the_fitted_networks(cells, started):
    est = fit(began(warm_start=True), cells)
    weights, discriminator = est._model.weights, est._model.discriminator
    before, history = est.transform(cells.bf), pickle.loads(pickle.dumps(est.history_))
    fit(est.set_params(batch_weight=3.0, removal_epochs=3), cells)
    assert [len(networks) for networks in started.values()] == [1, 2]  # stage 1 is not repeated
    assert same(started["batch_removal"][1][0], weights)
    assert same(started["batch_removal"][1][1], discriminator)
    assert not np.array_equal(est.transform(cells.bf), before)
    assert est.history_["pretraining"] == history["pretraining"]
    assert est.history_["batch_removal"]["epoch"] == [1, 2, 3, 4, 5]
    for name, values in est.history_["batch_removal"].items():
        assert len(values) == 5, name
        assert values[:2] == history["batch_removal"][name], name


def test_a_pretrained_model_goes_on_to_stage_two(cells, started):
    est = fit(began(warm_start=True, removal_epochs=0), cells)
    weights = est._model.weights
    fit(est.set_params(removal_epochs=1), cells)
    assert [len(networks) for networks in started.values()] == [1, 1]
    assert same(started["batch_removal"][0][0], weights)
    assert {"pretraining", "batch_removal", "events"} <= set(est.history_)


def test_stage_one_goes_on_where_there_is_no_stage_two(cells, started):
    est = fit(began(warm_start=True, removal_epochs=0, memory=None), cells)
    weights, discriminator = est._model.weights, est._model.discriminator
    fit(est.set_params(pretrain_epochs=1), cells)
    assert same(started["pretraining"][1][0], weights) and same(started["pretraining"][1][1], discriminator)
    assert est.history_["pretraining"]["epoch"] == [1, 2, 3]


def test_standardisation_and_validation_cells_stay_and_the_order_does_not(cells, monkeypatch):
    calls = []

    class Watched(skbegan.fit.Stages):
        def run(self, *args: Any) -> Any:
            calls.append((self.split, self.seeds))
            return super().run(*args)

    monkeypatch.setattr(skbegan.fit, "Stages", Watched)
    est = fit(began(warm_start=True), cells)
    scaling = est.bf_mean_, est.bf_scale_, est.qpi_mean_, est.qpi_scale_
    fit(est, cells)
    np.testing.assert_array_equal(calls[0][0].validation_rows, calls[1][0].validation_rows)
    assert not set(calls[0][1].values()) & set(calls[1][1].values())
    est.fit(cells.bf * 2, cells.qpi * 2, cells.batch, cells.cell_type)
    for old, new in zip(scaling, (est.bf_mean_, est.bf_scale_, est.qpi_mean_, est.qpi_scale_), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_a_warm_start_is_reproducible_and_takes_other_cells(cells):
    other = make_cell_images(60, 2, 4, 16, random_state=9)  # other types and batches
    pair = [fit(fit(began(warm_start=True), cells), other) for _ in range(2)]
    np.testing.assert_array_equal(pair[0].transform(cells.bf), pair[1].transform(cells.bf))
    assert pair[0].batches_.tolist() == sorted(set(other.batch))
    assert fit(pair[0], cells).cell_types_.tolist() == sorted(set(cells.cell_type))


@pytest.mark.slow
def test_without_warm_start_a_fit_starts_anew_and_keeps_no_discriminator(cells):
    est = fit(began(), cells)
    first = est.transform(cells.bf)
    assert est._model.discriminator is None
    np.testing.assert_array_equal(fit(est, cells).transform(cells.bf), first)
    np.testing.assert_array_equal(fit(began(warm_start=True), cells).transform(cells.bf), first)
    again = fit(fit(began(warm_start=True), cells).set_params(warm_start=False), cells)
    assert again._model.discriminator is None
    assert clone(fit(began(warm_start=True), cells))._model is None


def test_what_does_not_fit_is_refused_and_the_model_kept(cells):
    est = fit(began(warm_start=True), cells)
    before = est.transform(cells.bf)
    large = make_cell_images(40, 2, 2, 32, random_state=0)
    with pytest.raises(ValueError, match=r"warm_start: X_bf has images of shape \(32, 32\).* fitted on \(16, 16\)"):
        fit(est, large)
    with pytest.raises(ValueError, match=r"warm_start: y_qpi has images of shape \(16, 16, 2\)"):
        est.fit(cells.bf, np.stack([cells.qpi] * 2, axis=-1), cells.batch, cells.cell_type)
    with pytest.raises(ValueError, match="warm_start: base_width=4, but the model was fitted with 2"):
        fit(est.set_params(base_width=4), cells)
    with pytest.raises(ValueError, match="warm_start: n_features=16, but the model was fitted with 8"):
        fit(est.set_params(base_width=2, n_features=16), cells)
    with pytest.raises(ValueError, match=r"batch was already removed.* bring it back"):
        fit(est.set_params(n_features=8, removal_epochs=0), cells)
    np.testing.assert_array_equal(est.transform(cells.bf), before)
    with pytest.raises(TypeError, match="warm_start must be True or False, got 1"):
        fit(began(warm_start=1), cells)


@pytest.mark.parametrize("how", ["pickled", "saved"])
def test_a_loaded_model_goes_on(cells, started, how, tmp_path):
    est = fit(began(warm_start=True), cells)
    if how == "pickled":
        again = pickle.loads(pickle.dumps(est))
        np.testing.assert_array_equal(fit(again, cells).transform(cells.bf), fit(est, cells).transform(cells.bf))
    else:
        skbegan.save(est, tmp_path / "m")
        again = fit(skbegan.load(tmp_path / "m"), cells)
        assert same(started["batch_removal"][1][0], est._model.weights)
        assert not same(started["batch_removal"][1][1], est._model.discriminator)  # a new one
        assert again.history_["batch_removal"]["epoch"] == [1, 2, 3, 4]


def test_an_interrupted_warm_start_resumes(cells, tmp_path, monkeypatch):
    est = fit(began(warm_start=True, checkpoint_dir=tmp_path), cells)
    expected = fit(pickle.loads(pickle.dumps(est)), cells).transform(cells.bf)
    step, calls = OnlinePlan.step, []
    with monkeypatch.context() as patch:
        patch.setattr(OnlinePlan, "step", lambda *a: calls.append(1) or (1 / (len(calls) < 8), step(*a))[1])
        with pytest.raises(ZeroDivisionError):
            fit(est, cells)
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(fit(est, cells).transform(cells.bf), expected)
    assert not list(tmp_path.iterdir())


# Callbacks ------------------------------------------------------------------------------------------------------------


class Recorder:
    """Notes what it is called with; stops a stage after so many epochs."""

    def __init__(self, **stop_after: int) -> None:
        self.stop_after = stop_after
        self.seen: list[Any] = []

    def __call__(self, info: Any) -> bool:
        self.seen.append(info)
        return info.epoch == self.stop_after.get(info.stage)


def test_callback_is_called_after_every_epoch(cells):
    callback = Recorder()
    est = fit(began(callback=callback, removal_epochs=3), cells)
    assert est.callback is callback
    seen = [(info.stage, info.epoch, info.epochs) for info in callback.seen]
    assert seen == [("pretraining", e, 2) for e in (1, 2)] + [("batch_removal", e, 3) for e in (1, 2, 3)]
    for info in callback.seen:
        history = est.history_[info.stage]
        assert {name: values[info.epoch - 1] for name, values in history.items() if name != "epoch"} == info.losses
        assert "validation_image" in info.losses
    np.testing.assert_array_equal(est.transform(cells.bf), fit(began(removal_epochs=3), cells).transform(cells.bf))


@pytest.mark.parametrize("removal", [OnlineRemoval(warmup_epochs=0), PublishedRemoval()], ids=["online", "published"])
def test_callback_ends_a_stage_early(cells, removal):
    callback = Recorder(pretraining=2, batch_removal=1)
    est = fit(began(removal=removal, callback=callback, pretrain_epochs=5, removal_epochs=4), cells)
    assert est.history_["pretraining"]["epoch"] == [1, 2]
    assert est.history_["batch_removal"]["epoch"] == [1]
    assert "pretraining: stopped by the callback after epoch 2 of 5" in est.history_["events"]
    assert "batch_removal: stopped by the callback after epoch 1 of 4" in est.history_["events"]
    assert np.isfinite(est.transform(cells.bf)).all()


def test_a_stopped_stage_keeps_the_best_generator_so_far(cells):
    """At a constant rate stage 1 takes no account of its number of epochs: three of six are those of three."""
    constant = {"removal_epochs": 0, "pretrain_decay": 0.0}
    stopped = fit(began(**constant, pretrain_epochs=6, callback=Recorder(pretraining=3)), cells)
    short = fit(began(**constant, pretrain_epochs=3), cells)
    np.testing.assert_array_equal(stopped.transform(cells.bf), short.transform(cells.bf))


def test_a_callback_that_stops_or_fails_is_taken_at_its_word(cells):
    with pytest.raises(ZeroDivisionError):
        fit(began(callback=lambda info: 1 / 0), cells)
    assert fit(began(callback=lambda info: None), cells).history_["pretraining"]["epoch"] == [1, 2]
    assert fit(began(callback=lambda info: np.bool_(True)), cells).history_["pretraining"]["epoch"] == [1]
    with pytest.raises(TypeError, match=r"callback must be None or a function of one argument.*got 'print'"):
        fit(began(callback="print"), cells)


def test_callbacks_survive_clone_pickle_and_workers(cells):
    callback = Recorder(pretraining=1)
    est = clone(began(callback=callback))
    assert isinstance(est.callback, Recorder)
    fit(est, cells)
    assert len(est.callback.seen) == 3 and not callback.seen  # the clone has a copy
    again = pickle.loads(pickle.dumps(est))
    np.testing.assert_array_equal(again.transform(cells.bf), est.transform(cells.bf))
    stop = functools.partial(_stop_at, epoch=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = cross_validate(
            began(callback=stop), cells.bf, cells.qpi, cv=2, n_jobs=2, return_estimator=True, error_score="raise"
        )
    assert [e.history_["pretraining"]["epoch"] for e in found["estimator"]] == [[1], [1]]


def _stop_at(info: Any, epoch: int) -> bool:
    return info.epoch == epoch


def test_memory_keeps_no_stage_that_was_stopped(cells, tmp_path):
    full = fit(began(), cells).transform(cells.bf)
    stopped = fit(began(memory=tmp_path, callback=Recorder(pretraining=1)), cells)
    assert stopped.history_["pretraining"]["epoch"] == [1]
    np.testing.assert_array_equal(fit(began(memory=tmp_path), cells).transform(cells.bf), full)
    callback = Recorder(pretraining=1)
    again = fit(began(memory=joblib.Memory(str(tmp_path), verbose=0), callback=callback), cells)  # from the cache now
    assert [info.stage for info in callback.seen] == ["batch_removal"] * 2
    np.testing.assert_array_equal(again.transform(cells.bf), full)


def test_ctrl_c_with_memory_leaves_a_usable_model_and_no_cache(cells, tmp_path, monkeypatch):
    full = fit(began(), cells).transform(cells.bf)
    step, calls = PretrainingPlan.step, []

    def interrupt(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainingPlan, "step", interrupt)
        with pytest.warns(RuntimeWarning, match="pretraining: interrupted in epoch 2 of 2"):
            est = fit(began(memory=tmp_path), cells)
    assert est.history_["pretraining"]["epoch"] == [1] and "batch_removal" not in est.history_
    np.testing.assert_array_equal(fit(began(memory=tmp_path), cells).transform(cells.bf), full)


def test_a_stage_stopped_by_callback_is_not_taken_further_by_a_resumed_fit(cells, tmp_path, monkeypatch):
    params = {"checkpoint_dir": tmp_path, "pretrain_epochs": 4, "callback": functools.partial(_stop_at, epoch=2)}
    expected = fit(began(**{**params, "checkpoint_dir": None}), cells).transform(cells.bf)
    with monkeypatch.context() as patch:
        patch.delattr(OnlinePlan, "step")
        with pytest.raises(AttributeError):
            fit(began(**params), cells)
    est = fit(began(**params), cells)
    assert est.history_["pretraining"]["epoch"] == [1, 2]
    np.testing.assert_array_equal(est.transform(cells.bf), expected)
