"""A fit is whole or not at all, and never leaves something broken."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

from skbegan import BeGANTransformer, OnlineRemoval, ProfileAlignment, PublishedRemoval
from skbegan.core.checkpoint import Checkpoint
from skbegan.core.plans import profile
from skbegan.core.plans.online import OnlinePlan
from skbegan.core.plans.pretraining import PretrainingPlan
from skbegan.core.plans.profile import ProfileFit
from skbegan.model import FittedModel

QUICK = {**TINY, "base_width": 2, "n_features": 8, "removal": OnlineRemoval(warmup_epochs=0)}


def began(**params: Any) -> BeGANTransformer:
    return BeGANTransformer(**(QUICK | params))


def fit(est: BeGANTransformer, cells: Any) -> BeGANTransformer:
    return est.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)


def state_of(est: BeGANTransformer) -> bytes:
    return pickle.dumps(est)


def after(n: int, error: BaseException, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises at its n-th call and is the plain one before and after."""
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == n:
            raise error
        return plain(*args, **kwargs)

    return call


@pytest.fixture(scope="module")
def quick(cells: Any) -> BeGANTransformer:
    """A fitted model; take a deep copy, which pickles as it does."""
    return fit(began(), cells)


# Where it can be interrupted: (owner, name, number of the call).
PLACES = {
    "split": ("skbegan.fit.split_validation", 1),
    "first step": (PretrainingPlan, "step", 1),
    "warm-up": (OnlinePlan, "update_classifiers", 1),
    "statistics": (FittedModel, "recalibrated", 1),
    "profile step": (ProfileFit, "step", 2),
    "erasure": ("skbegan.core.plans.profile.fit_erasure", 1),
    "last look": (FittedModel, "check_finite", 1),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", PLACES)
def test_a_fit_that_raises_leaves_the_estimator_as_it_was(quick, cells, monkeypatch, place, error):
    est = copy.deepcopy(quick)
    before = state_of(est)
    *owner, n = PLACES[place]
    if isinstance(owner[0], str):
        module, name = owner[0].rsplit(".", 1)
        owner = [__import__(module, fromlist=[name]), name]
    with monkeypatch.context() as patch:
        patch.setattr(*owner, after(n, error("here"), getattr(*owner)))
        if place == "warm-up" and error is KeyboardInterrupt:  # stage 1 is there: the fit ends cleanly with it
            with pytest.warns(RuntimeWarning, match="batch_removal: interrupted in epoch 1"):
                fit(est, cells)
            assert "batch_removal" not in est.history_
            return
        with pytest.raises(error):
            fit(est.set_params(batch_weight=2.0), cells)
    assert state_of(est.set_params(batch_weight=QUICK.get("batch_weight", 1.0))) == before
    assert began()._model is None


def test_warnings_as_errors_leave_the_estimator_as_it_was(quick, cells, monkeypatch):
    est = copy.deepcopy(quick)
    before = state_of(est)
    monkeypatch.setattr(profile, "at_chance", lambda recall: [0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="collapsed"):
            fit(est, cells)
    assert state_of(est) == before


def test_warnings_name_the_line_of_the_caller(cells, monkeypatch):
    monkeypatch.setattr(profile, "at_chance", lambda recall: [0])
    for call in (est.fit for est in [began()]), (est.fit_transform for est in [began()]):
        with pytest.warns(RuntimeWarning, match="collapsed") as caught:
            next(call)(cells.bf, cells.qpi, cells.batch, cells.cell_type)
        assert {w.filename for w in caught} == {__file__}
    with pytest.warns(UserWarning, match="no batch was given") as caught:
        began().fit(cells.bf, cells.qpi)
    assert caught[0].filename == __file__


@pytest.mark.slow
@pytest.mark.parametrize("where", ["between epochs", "in the checkpoint", "in the callback"])
def test_ctrl_c_in_batch_removal_ends_with_a_complete_model_that_says_so(cells, monkeypatch, tmp_path, where):
    est = began(removal_epochs=3, checkpoint_dir=tmp_path)
    callback = None
    if where == "between epochs":
        monkeypatch.setattr(OnlinePlan, "begin_epoch", after(3, KeyboardInterrupt(), OnlinePlan.begin_epoch))
    elif where == "in the checkpoint":
        monkeypatch.setattr(Checkpoint, "write", after(4, KeyboardInterrupt(), Checkpoint.write))
    else:
        callback = after(4, KeyboardInterrupt(), lambda info: False)
    with pytest.warns(RuntimeWarning, match="batch_removal: interrupted in epoch"):
        fit(est.set_params(callback=callback), cells)
    assert len(est.history_["batch_removal"]["epoch"]) == 2
    assert "profile_alignment" in est.history_ and any(name.startswith("profile.") for name in est._model.weights)
    expected = "pretraining ran to its end, batch removal ran 2 of 3 epochs, profile alignment ran to its end"
    assert est.history_["events"][-1] == f"fit: interrupted by Ctrl-C; {expected}"
    assert np.isfinite(est.transform(cells.bf)).all()
    monkeypatch.undo()
    est.set_params(callback=None)
    whole = fit(began(removal_epochs=3), cells).transform(cells.bf)
    np.testing.assert_array_equal(fit(est, cells).transform(cells.bf), whole)  # goes on from the checkpoints
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_pretraining_says_that_the_batch_is_still_there(cells, monkeypatch):
    monkeypatch.setattr(PretrainingPlan, "begin_epoch", after(2, KeyboardInterrupt(), PretrainingPlan.begin_epoch))
    with pytest.warns(RuntimeWarning) as caught:
        est = fit(began(), cells)
    messages = [str(w.message) for w in caught]
    assert any("pretraining: interrupted in epoch 2 of 2" in message for message in messages)
    assert any("pretraining ran 1 of 2 epochs" in m and "the batch is still there" in m for m in messages)
    assert est.history_["pretraining"]["epoch"] == [1] and set(est.history_) == {"pretraining", "events"}


# Nothing that is not finite -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"learning_rate": 1e10},
        {"learning_rate": 1e30, "precision": "float64"},
        {"learning_rate": 1e10, "pretrain_epochs": 1, "removal_epochs": 0},
    ],
)
def test_what_diverges_raises_and_says_what_to_change(quick, cells, params):
    est = copy.deepcopy(quick)
    before = state_of(est)
    with pytest.raises(FloatingPointError, match=r"pretraining: .*standardize=True.*learning_rate"):
        fit(est.set_params(**params), cells)
    usual = QUICK | {"learning_rate": 1e-3, "precision": "auto"}
    assert state_of(est.set_params(**{name: usual[name] for name in params})) == before


def test_outputs_that_are_not_finite_are_never_handed_out(quick, cells, monkeypatch):
    est = copy.deepcopy(quick)
    before = state_of(est)
    plain = FittedModel.recalibrated

    def broken(self: FittedModel, *args: Any, **kwargs: Any) -> FittedModel:
        model = plain(self, *args, **kwargs)
        next(iter(model.weights.values()))[:] = np.nan
        return model

    monkeypatch.setattr(FittedModel, "recalibrated", broken)
    with pytest.raises(FloatingPointError, match="weights encoder"):
        fit(est.set_params(removal_epochs=0), cells)
    assert state_of(est.set_params(removal_epochs=2)) == before


def test_spreads_that_overflow_are_refused_by_name():
    with pytest.raises(ValueError, match=r"removal.unseen_style_spread must be at most 100"):
        began(removal=OnlineRemoval(unseen_style_spread=1e30)).fit(np.zeros((4, 16, 16)), np.zeros((4, 16, 16)))


@pytest.mark.parametrize("kept_in", ["nothing", "memory", "checkpoint_dir"])
def test_a_failed_stage_two_does_not_lose_stage_one(cells, monkeypatch, tmp_path, kept_in):
    params = {} if kept_in == "nothing" else {kept_in: tmp_path}
    monkeypatch.setattr(OnlinePlan, "step", lambda self, cells, progress: {"image": torch.tensor(torch.nan)})
    if kept_in == "nothing":
        with pytest.warns(RuntimeWarning, match="batch_removal: .*what stage 1 left: the batch is still there"):
            est = fit(began(**params), cells)
        assert "batch_removal" not in est.history_ and np.isfinite(est.transform(cells.bf)).all()
        return
    with pytest.raises(FloatingPointError, match=f"Stage 1 is kept in {kept_in}="):
        fit(began(**params), cells)
    monkeypatch.undo()
    monkeypatch.delattr(PretrainingPlan, "step")  # stage 1 is not done again
    fit(began(**params), cells)


def test_any_other_error_in_stage_two_says_where_stage_one_is(cells, monkeypatch, tmp_path):
    monkeypatch.setattr(OnlinePlan, "step", after(1, MemoryError("no room"), OnlinePlan.step))
    with pytest.raises(MemoryError) as caught:
        fit(began(checkpoint_dir=tmp_path), cells)
    assert any("Stage 1 is kept in checkpoint_dir" in note for note in caught.value.__notes__)


# Odd cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e39, -1e100])
def test_images_that_float32_cannot_hold_are_refused_by_name(cells, fitted, value):
    bf = cells.bf.astype(np.float64)
    bf[3, 0, 0] = value
    with pytest.raises(ValueError, match=r"X_bf holds numbers beyond 3.4e.38.*first in cell 3"):
        began().fit(bf, cells.qpi)
    with pytest.raises(ValueError, match=r"X_bf holds numbers beyond 3.4e.38.*first in cell 3"):
        fitted.transform(bf)
    with pytest.raises(ValueError, match="y_qpi holds numbers beyond"):
        began().fit(cells.bf, bf)
    scaled = bf / np.abs(bf).max()  # what the message advises
    began(removal_epochs=0, pretrain_epochs=0).fit(scaled, cells.qpi)


@pytest.mark.parametrize("removal", [OnlineRemoval(warmup_epochs=1), PublishedRemoval()], ids=["online", "published"])
@pytest.mark.parametrize("which", ["input", "one input channel", "target", "one target channel", "both"])
@pytest.mark.parametrize("standardize", [True, False])
def test_constant_channels_work(cells, which, removal, standardize):
    flat = np.full_like(cells.bf, 0.25)
    bf = {"input": flat, "both": flat, "one input channel": np.stack([cells.bf, flat], axis=-1)}.get(which, cells.bf)
    two_targets = np.stack([flat, cells.qpi], axis=-1)
    qpi = {"target": flat, "both": flat, "one target channel": two_targets}.get(which, cells.qpi)
    est = began(removal=removal, standardize=standardize, pretrain_epochs=1, removal_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that cell types have collapsed: nothing tells them
        est.fit(bf, qpi, cells.batch, cells.cell_type)
    assert np.isfinite(est.transform(bf)).all() and np.isfinite(est.predict_image(bf)).all()


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8, 12])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.9])
def test_any_number_of_cells_from_four_works(cells, n, fraction):
    est = began(pretrain_epochs=1, removal_epochs=1, validation_fraction=fraction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        est.fit(cells.bf[:n], cells.qpi[:n], np.arange(n) % 2, np.arange(n) // 2 % 2)
    assert np.isfinite(est.transform(cells.bf[:n])).all()


@pytest.mark.parametrize("removal", [OnlineRemoval(warmup_epochs=0), PublishedRemoval()], ids=["online", "published"])
def test_one_cell_of_a_hundred_is_not_held_out(cells, removal):
    est = began(validation_fraction=0.01, removal=removal, pretrain_epochs=1, removal_epochs=1)
    fit(est, cells)  # 90 cells: 0.9 of one
    assert not any(name.startswith("validation") for name in est.history_["pretraining"])


# float64 holds images at 1e9 to 1e-7 only, a rounding that stage 2 would carry on.
@pytest.mark.parametrize(("offset", "removal_epochs"), [(1e6, 1), (1e9, 0)])
def test_an_offset_changes_no_feature(cells, offset, removal_epochs):
    bf, qpi = cells.bf.astype(np.float64), cells.qpi.astype(np.float64)
    params = {"precision": "float32", "pretrain_epochs": 1, "removal_epochs": removal_epochs}
    plain = began(**params).fit(bf, qpi, cells.batch, cells.cell_type)
    moved = began(**params).fit(bf + offset, qpi + offset, cells.batch, cells.cell_type)
    size = np.abs(plain.transform(bf)).max()
    np.testing.assert_allclose(moved.transform(bf + offset), plain.transform(bf), atol=2e-2 * size)


def test_integers_that_floating_point_cannot_tell_apart_are_refused(cells):
    bf = (cells.bf * 100).astype(np.uint64)
    with pytest.raises(ValueError, match=r"X_bf holds integers beyond 2\*\*53.*X_bf - X_bf.min\(\)"):
        began().fit(bf + np.uint64(2**63), cells.qpi)
    whole = bf + np.uint64(2**63)
    plain = began(removal_epochs=0).fit(bf - bf.min(), cells.qpi).transform(bf - bf.min())
    advised = began(removal_epochs=0).fit(whole - whole.min(), cells.qpi).transform(whole - whole.min())
    np.testing.assert_array_equal(advised, plain)


@pytest.mark.slow
def test_torchs_own_defaults_change_nothing(cells):
    expected = fit(began(), cells)
    features = expected.transform(cells.bf)
    try:
        torch.set_default_dtype(torch.float64)
        np.testing.assert_array_equal(fit(began(), cells).transform(cells.bf), features)
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for context in (torch.device("meta"), torch.device("cpu")):
        with context:
            np.testing.assert_array_equal(fit(began(), cells).transform(cells.bf), features)
            np.testing.assert_array_equal(pickle.loads(pickle.dumps(expected)).transform(cells.bf), features)
    try:
        torch.set_default_device("meta")
        np.testing.assert_array_equal(fit(began(), cells).transform(cells.bf), features)
        assert torch.empty(0).device.type == "meta"
    finally:
        torch.set_default_device(None)


def test_foreign_units_are_warned_of_and_not_rescaled(cells, fitted):
    eight_bit = np.uint8(255 * (cells.bf - cells.bf.min()) / np.ptp(cells.bf))
    for use in (fitted.transform, fitted.predict_image):
        with pytest.warns(
            UserWarning, match=r"X_bf lies in 0 \.\.\. 25\d, but .* fitted on values in .*Nothing was"
        ) as w:
            use(eight_bit)
        assert w[0].filename == __file__
    with pytest.warns(UserWarning, match="are the units others"):
        fitted.transform(cells.bf / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.transform(1.5 * cells.bf + 0.3)  # as another instrument might see them


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint_dir", 5),
        ("verbose", "x"),
        ("random_state", -1),
        ("inference", np.array(["population", "minibatch"])),
        ("batch_target", ["uniform"]),
        ("device", "mps"),
        ("memory", "/proc/x" if Path("/proc/self").exists() else "\0"),
        ("reference_batch", np.arange(3)),
        ("removal", "online"),
        ("removal", OnlineRemoval),
        ("profile", None),
        ("removal", OnlineRemoval(alignment="x")),
        ("profile", ProfileAlignment(kernel_widths=())),
        ("base_width", 2.5),
        ("learning_rate", np.nan),
    ],
)
def test_every_parameter_of_a_wrong_kind_names_itself(cells, fitted, name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        fit(began(**{name: value}), cells)
    if name in ("random_state", "memory", "reference_batch"):  # of no use to transform
        return
    copied = pickle.loads(pickle.dumps(fitted)).set_params(**{name: value})
    with pytest.raises((TypeError, ValueError), match=name):
        copied.transform(cells.bf)
