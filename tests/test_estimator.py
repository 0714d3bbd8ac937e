"""The public contract of BeGANTransformer."""

from __future__ import annotations

import ast
import inspect
import io
import pickle
import re
import subprocess
import sys
import warnings
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from skbegan import PUBLISHED, BeGANTransformer, OnlineRemoval, ProfileAlignment, PublishedRemoval
from skbegan.config import Config
from skbegan.datasets import make_cell_images

QUICK = {**TINY, "pretrain_epochs": 1, "removal_epochs": 1}


def features_of(cells: Any, **changes: Any) -> np.ndarray:
    model = BeGANTransformer(**{**QUICK, **changes})
    return model.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type).transform(cells.bf)


# Shapes, names, determinism -------------------------------------------------------------------------------------------


def test_shapes_dtypes_and_fitted_attributes(fitted, cells):
    features, images = fitted.transform(cells.bf), fitted.predict_image(cells.bf)
    assert features.shape == (90, 16)
    assert features.dtype == np.float32
    assert images.shape == (90, 16, 16)
    assert images.dtype == np.float32
    assert fitted.batches_.tolist() == ["batch0", "batch1", "batch2"]
    assert fitted.cell_types_.tolist() == ["type0", "type1", "type2"]
    assert fitted.image_shape_ == fitted.target_shape_ == (16, 16)
    assert fitted.n_features_out_ == 16
    assert fitted.device_ == "cpu"
    assert set(fitted.history_) == {"pretraining", "batch_removal", "profile_alignment", "events"}
    assert fitted.get_feature_names_out().tolist() == [f"begantransformer{i}" for i in range(16)]


def test_signature_is_keyword_only_and_defaults_are_the_documented_ones():
    parameters = inspect.signature(BeGANTransformer).parameters
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values())
    documented = {}
    section = BeGANTransformer.__doc__.split("Attributes\n")[0]
    for names, default in re.findall(r"^    ([a-z_, ]+) : .*default=(.+)$", section, re.MULTILINE):
        objects = {"OnlineRemoval()": OnlineRemoval(), "ProfileAlignment()": ProfileAlignment()}
        value = objects[default] if default in objects else ast.literal_eval(default)
        documented |= dict.fromkeys(names.split(", "), value)
    assert documented == {name: parameter.default for name, parameter in parameters.items()}
    assert Config.of(documented) == Config()  # the stages have the same defaults
    assert set(PUBLISHED) <= set(parameters)


def test_images_come_in_the_units_of_the_target(cells):
    """A model of ten times the target, shifted, predicts ten times the image, shifted."""
    kwargs = {**TINY, "removal_epochs": 0, "precision": "float64"}  # in float32 training amplifies roundings
    qpi = cells.qpi.astype(np.float64)
    plain = BeGANTransformer(**kwargs).fit(cells.bf, qpi)
    scaled = BeGANTransformer(**kwargs).fit(cells.bf, qpi * 10 + 5)
    np.testing.assert_allclose(scaled.predict_image(cells.bf), plain.predict_image(cells.bf) * 10 + 5, atol=2e-2)


def test_several_channels(cells):
    bf = np.stack([cells.bf, cells.bf**2], axis=-1)
    qpi = np.stack([cells.qpi, -cells.qpi, 2 * cells.qpi], axis=-1)
    model = BeGANTransformer(**QUICK).fit(bf, qpi, cells.batch, cells.cell_type)
    assert model.transform(bf).shape == (90, 16)
    assert model.predict_image(bf).shape == (90, 16, 16, 3)
    assert model.image_shape_ == (16, 16, 2)
    np.testing.assert_allclose(model.qpi_mean_[1], -model.qpi_mean_[0])


def test_transform_depends_on_the_cell_alone(fitted, cells):
    features, images = fitted.transform(cells.bf), fitted.predict_image(cells.bf)
    order = np.random.default_rng(0).permutation(90)
    np.testing.assert_array_equal(fitted.transform(cells.bf[order]), features[order])
    np.testing.assert_array_equal(fitted.predict_image(cells.bf[order]), images[order])
    for subset in (slice(0, 1), slice(7, 40), [89, 3]):
        # Descriptors are ratios and logarithms, which carry the rounding of images further.
        np.testing.assert_allclose(fitted.transform(cells.bf[subset]), features[subset], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(fitted.predict_image(cells.bf[subset]), images[subset], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fitted.transform(cells.bf), features)


def test_minibatch_inference_depends_on_the_neighbours_as_in_the_original(fitted, cells):
    model = joblib_round_trip(fitted).set_params(inference="minibatch", minibatch_size=30)
    features = model.transform(cells.bf)
    np.testing.assert_array_equal(model.transform(cells.bf[:30]), features[:30])
    assert not np.allclose(model.transform(cells.bf[:30][::-1][:15]), features[:30][::-1][:15])


def test_transform_of_a_profile_without_descriptors_runs_the_encoder_only(cells, monkeypatch):
    from skbegan.core.networks import Generator

    est = BeGANTransformer(**(TINY | {"profile": ProfileAlignment(descriptor_share=0)}))
    fitted = est.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the decoder ran")

    monkeypatch.setattr(Generator, "decode", refuse)
    fitted.transform(cells.bf)
    with pytest.raises(AssertionError, match="decoder"):
        fitted.predict_image(cells.bf)


def test_large_sets_are_inferred_in_chunks(fitted, cells, monkeypatch):
    from skbegan.core import inference

    features = fitted.transform(cells.bf)
    monkeypatch.setattr(inference, "chunk_size", lambda *_: 7)
    np.testing.assert_allclose(fitted.transform(cells.bf), features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("removal", [OnlineRemoval(warmup_epochs=1), PublishedRemoval()], ids=["online", "published"])
def test_same_seed_same_numbers_whatever_the_global_seeds(cells, removal):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = features_of(cells, removal=removal)
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    np.testing.assert_array_equal(features_of(cells, removal=removal), first)
    assert not np.array_equal(features_of(cells, removal=removal, random_state=1), first)


def test_random_state_may_be_an_instance_or_none(cells):
    a = features_of(cells, random_state=np.random.RandomState(3))
    np.testing.assert_array_equal(a, features_of(cells, random_state=np.random.RandomState(3)))
    features_of(cells, random_state=None)


# Ways in --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_way_of_calling_fit_gives_the_same_model(cells):
    bf, qpi, batch, kind = cells.bf, cells.qpi, cells.batch, cells.cell_type
    expected = features_of(cells)

    def check(*args: Any, **kwargs: Any) -> None:
        model = BeGANTransformer(**QUICK)
        assert model.fit(*args, **kwargs) is model
        np.testing.assert_array_equal(model.transform(bf), expected)

    check(bf, qpi, batch, kind)
    check(X_bf=bf, y_qpi=qpi, batch=batch, cell_type=kind)
    check(bf, y_qpi=qpi, batch=batch, cell_type=kind)
    check(bf, kind, batch, y_qpi=qpi)
    check(bf, y=kind, batch=batch, y_qpi=qpi)
    check(bf, qpi, list(batch), pd.Categorical(kind))
    check(bf, qpi, pd.Series(batch, index=np.arange(90)[::-1]), pd.Series(kind))
    check(list(bf), list(qpi), batch, kind)
    check(torch.from_numpy(bf.copy()), torch.from_numpy(qpi.copy()), batch, kind)
    check(bf[..., None], qpi[..., None], batch, kind)
    check(np.asfortranarray(bf), qpi, batch, kind)
    assert np.array_equal(BeGANTransformer(**QUICK).fit_transform(bf, qpi, batch, kind), expected)
    assert np.array_equal(
        BeGANTransformer(**QUICK).fit_transform(X_bf=bf, y_qpi=qpi, batch=batch, cell_type=kind), expected
    )


def test_integer_labels_and_any_real_dtype(cells):
    codes = np.unique(cells.batch, return_inverse=True)[1], np.unique(cells.cell_type, return_inverse=True)[1]
    model = BeGANTransformer(**QUICK).fit(cells.bf, cells.qpi, *codes)
    assert model.batches_.tolist() == [0, 1, 2]
    bf = (cells.bf * 100).astype(np.uint8)
    model = BeGANTransformer(**QUICK).fit(bf, (cells.qpi * 50).astype(np.int16), *codes)
    assert model.transform(bf).dtype == np.float32


def test_read_only_memory_maps_and_no_mutation(cells, tmp_path):
    np.save(tmp_path / "bf.npy", cells.bf)
    np.save(tmp_path / "qpi.npy", cells.qpi)
    bf, qpi = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("bf", "qpi"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* have collapsed", RuntimeWarning)  # hardly trained
        model = BeGANTransformer(**QUICK).fit(bf, qpi, cells.batch, cells.cell_type)
        np.testing.assert_array_equal(model.transform(bf), features_of(cells))
    before = cells.bf.copy(), cells.qpi.copy(), cells.batch.copy()
    features_of(cells)
    for old, new in zip(before, (cells.bf, cells.qpi, cells.batch), strict=True):
        np.testing.assert_array_equal(old, new)


def refused(cells: Any, error: type[Exception], match: str, *args: Any, **kwargs: Any) -> None:
    params = kwargs.pop("params", {})
    with pytest.raises(error, match=match):
        BeGANTransformer(**{**QUICK, **params}).fit(*args, **kwargs)


def test_wrong_input_is_refused_with_what_to_do(cells):
    bf, qpi, batch, kind = cells.bf, cells.qpi, cells.batch, cells.cell_type
    refused(cells, ValueError, "no target images", bf)
    refused(cells, ValueError, "no target images", bf, kind, batch)
    refused(cells, ValueError, "given twice, as y and as y_qpi", bf, qpi, batch, kind, y_qpi=qpi)
    refused(cells, ValueError, "cell types were given twice", bf, kind, batch, kind, y_qpi=qpi)
    refused(cells, ValueError, "got shape", bf, np.zeros((90, 3)))
    refused(cells, ValueError, "X_bf has 90 cells but y_qpi has 80", bf, qpi[:80])
    refused(cells, ValueError, "batch has 80 labels for 90 cells", bf, qpi, batch[:80], kind)
    refused(cells, ValueError, r"24 x 24 pixels.*power of two.*resize_images", np.zeros((90, 24, 24)), qpi)
    refused(cells, ValueError, r"Channels come last", np.zeros((9, 2, 16, 16)), qpi)
    refused(cells, ValueError, "resize one of them", bf, np.zeros((90, 32, 32)))
    refused(cells, ValueError, "single image", bf[0], qpi)
    refused(cells, ValueError, "no cells", bf[:0], qpi[:0])
    refused(cells, ValueError, "too few", bf[:3], qpi[:3])
    refused(cells, TypeError, "real numbers, got dtype complex64", bf.astype(np.complex64), qpi)
    refused(cells, TypeError, "real numbers", np.full((90, 16, 16), "a"), qpi)
    refused(cells, ValueError, "different shapes", [*bf[:89], np.zeros((8, 8))], qpi)
    broken = bf.copy()
    broken[17, 3, 3] = np.nan
    refused(cells, ValueError, "NaN or infinity, first in cell 17", broken, qpi)
    refused(cells, ValueError, "missing label, first at cell 2", bf, qpi, [*batch[:2], None, *batch[3:]], kind)
    refused(cells, ValueError, "missing label", bf, qpi, batch, np.r_[np.inf, np.arange(89)])
    refused(cells, ValueError, "mixes labels of types", bf, qpi, [1, *batch[1:]], kind)
    refused(cells, ValueError, "none of the batches", bf, qpi, batch, kind, params={"reference_batch": "day 9"})
    refused(cells, ValueError, "minibatch_size must be at least 2", bf, qpi, params={"minibatch_size": 1})
    refused(cells, TypeError, "removal_epochs must be an integer", bf, qpi, params={"removal_epochs": 2.5})
    refused(cells, ValueError, "batch_weight must be at least 0", bf, qpi, params={"batch_weight": -1})
    refused(cells, ValueError, "batch_target must be one of", bf, qpi, params={"batch_target": "none"})
    refused(cells, ValueError, "device='gpu'", bf, qpi, params={"device": "gpu"})
    refused(cells, ValueError, "memory must be", bf, qpi, params={"memory": 3})


def test_a_refused_fit_keeps_the_fitted_model(cells):
    model = BeGANTransformer(**QUICK).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    before = model.transform(cells.bf)
    with pytest.raises(ValueError, match="pixels"):
        model.fit(np.zeros((9, 5, 5)), np.zeros((9, 5, 5)))
    np.testing.assert_array_equal(model.transform(cells.bf), before)


def test_before_and_after_fit(cells, fitted):
    for method in ("transform", "predict_image", "score"):
        with pytest.raises(NotFittedError):
            getattr(BeGANTransformer(), method)(cells.bf)
    with pytest.raises(NotFittedError):
        BeGANTransformer().get_feature_names_out()
    with pytest.raises(ValueError, match="fitted on"):
        fitted.transform(np.zeros((2, 32, 32)))
    assert fitted.transform(X_bf=cells.bf[:1]).shape == (1, 16)


# Designs --------------------------------------------------------------------------------------------------------------


def test_no_batch_or_one_batch_skips_stage_two_with_a_warning(cells):
    with pytest.warns(UserWarning, match="no batch was given.*Pass batch"):
        model = BeGANTransformer(**QUICK).fit(cells.bf, cells.qpi, cell_type=cells.cell_type)
    assert set(model.history_) == {"pretraining", "events"}
    with pytest.warns(UserWarning, match="all cells are of batch 'd1'"):
        BeGANTransformer(**QUICK).fit(cells.bf, cells.qpi, ["d1"] * 90, cells.cell_type)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BeGANTransformer(**{**QUICK, "removal_epochs": 0}).fit(cells.bf, cells.qpi)


@pytest.mark.parametrize("removal", [OnlineRemoval(warmup_epochs=1), PublishedRemoval()], ids=["online", "published"])
def test_missing_or_single_cell_type_is_warned_about_and_trained(cells, removal):
    for kind in (None, ["H69"] * 90):
        with pytest.warns(UserWarning, match="Pass cell_type"):
            model = BeGANTransformer(**{**QUICK, "removal": removal}).fit(cells.bf, cells.qpi, cells.batch, kind)
        assert "batch" in model.history_["batch_removal"]
        assert "cell_type" not in model.history_["batch_removal"]


def test_confounded_designs_are_warned_about(cells):
    with pytest.warns(UserWarning, match="confounded.*Stage 2 is skipped"):
        model = BeGANTransformer(**QUICK).fit(cells.bf, cells.qpi, cells.cell_type, cells.cell_type)
    assert "batch_removal" not in model.history_
    with pytest.warns(UserWarning, match="will remove the cell type with the batch"):
        params = {**QUICK, "batch_target": "uniform"}
        model = BeGANTransformer(**params).fit(cells.bf, cells.qpi, cells.cell_type, cells.cell_type)
    assert "batch_removal" in model.history_
    batch = np.where(cells.cell_type == "type2", "c", np.where(np.arange(90) % 2, "a", "b"))
    with pytest.warns(UserWarning, match=r"share no cell type \(a, b \| c\)"):
        BeGANTransformer(**QUICK).fit(cells.bf, cells.qpi, batch, cells.cell_type)


def test_validation_cells_are_stratified():
    from skbegan.fit import split_validation

    batch, kind = np.repeat([0, 1, 2], [200, 60, 4]), np.tile([0, 1], 132)
    train, held_out = split_validation(batch, kind, 0.1, 0)
    assert sorted([*train, *held_out]) == list(range(264))
    assert len(held_out) == 26
    counts = {(b, k): ((batch[held_out] == b) & (kind[held_out] == k)).sum() for b in range(3) for k in range(2)}
    assert counts[0, 0] == counts[0, 1] == 10
    assert counts[1, 0] == counts[1, 1] == 3
    lonely = split_validation(np.arange(5), np.zeros(5, int), 0.5, 0)
    assert len(lonely[1]) == 0  # a group of one stays in training
    assert len(split_validation(batch, kind, 0.0, 0)[1]) == 0


# scikit-learn ---------------------------------------------------------------------------------------------------------


def joblib_round_trip(model: Any) -> Any:
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


def test_clone_and_init_only_store():
    memory, values = object(), np.random.RandomState(0)
    model = BeGANTransformer(memory=memory, random_state=values, batch_weight=3)
    assert model.memory is memory
    assert model.random_state is values
    assert not [name for name in vars(model) if name.endswith("_")]
    assert clone(model).get_params()["batch_weight"] == 3


def test_pipeline_without_routing(cells):
    pipe = Pipeline([("began", BeGANTransformer(**QUICK)), ("clf", SVC())])
    pipe.fit(cells.bf, cells.cell_type, began__y_qpi=cells.qpi, began__batch=cells.batch)
    assert pipe.predict(cells.bf).shape == (90,)
    np.testing.assert_array_equal(pipe[:-1].transform(cells.bf), features_of(cells))


def test_pipeline_with_routing(cells):
    with config_context(enable_metadata_routing=True):
        pipe = Pipeline([("began", BeGANTransformer(**QUICK)), ("clf", SVC())])
        pipe.fit(cells.bf, cells.cell_type, y_qpi=cells.qpi, batch=cells.batch)
        np.testing.assert_array_equal(pipe[:-1].transform(cells.bf), features_of(cells))


@pytest.mark.slow
@pytest.mark.parametrize("routing", [False, True])
def test_grid_search_over_loss_weights_leaving_one_batch_out(cells, routing, tmp_path):
    grid = {"began__batch_weight": [0.5, 2.0]}
    with config_context(enable_metadata_routing=routing), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # leaving a batch out leaves designs with little overlap
        pipe = Pipeline([("began", BeGANTransformer(**QUICK, memory=tmp_path)), ("clf", SVC())])
        search = GridSearchCV(pipe, grid, cv=LeaveOneGroupOut(), n_jobs=2, error_score="raise")
        metadata = (
            {"y_qpi": cells.qpi, "batch": cells.batch}
            if routing
            else {"began__y_qpi": cells.qpi, "began__batch": cells.batch}
        )
        search.fit(cells.bf, cells.cell_type, groups=cells.batch, **metadata)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.predict(cells.bf[:5]).shape == (5,)


def test_grid_search_on_the_bare_transformer_scores_batch_removal(cells):
    with config_context(enable_metadata_routing=True):
        scores = cross_validate(
            BeGANTransformer(**QUICK),
            cells.bf,
            cells.qpi,
            cv=2,
            params={"batch": cells.batch, "cell_type": cells.cell_type},
            error_score="raise",
        )["test_score"]
    assert ((scores >= 0) & (scores <= 1)).all()


def test_score(fitted, cells):
    from skbegan.metrics import batch_removal_score, cell_type_accuracy

    features = fitted.transform(cells.bf)
    both = fitted.score(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert both == batch_removal_score(features, cells.batch, cells.cell_type)
    assert fitted.score(cells.bf, cells.cell_type) == cell_type_accuracy(features, cells.cell_type)
    predicted = fitted.predict_image(cells.bf)
    predicted = predicted.astype(float)
    expected = 1 - np.square(predicted - cells.qpi).sum() / np.square(cells.qpi - cells.qpi.mean(dtype=float)).sum()
    assert fitted.score(cells.bf, cells.qpi) == pytest.approx(expected, abs=1e-6)
    assert fitted.score(cells.bf, y_qpi=cells.qpi) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="score needs"):
        fitted.score(cells.bf)


def test_set_output_pandas(fitted, cells):
    model = joblib_round_trip(fitted).set_output(transform="pandas")
    frame = model.transform(cells.bf)
    assert isinstance(frame, pd.DataFrame)
    assert frame.columns.tolist() == model.get_feature_names_out().tolist()


def test_joblib_round_trip_is_small_and_exact(fitted, cells):
    loaded = joblib_round_trip(fitted)
    np.testing.assert_array_equal(loaded.transform(cells.bf), fitted.transform(cells.bf))
    np.testing.assert_array_equal(loaded.predict_image(cells.bf), fitted.predict_image(cells.bf))
    weights = sum(value.nbytes for value in fitted._model.weights.values())
    assert len(pickle.dumps(fitted)) < weights + 40_000  # no optimizer, no training data, weights once


@pytest.mark.slow
def test_a_model_loads_and_works_in_another_process(fitted, cells, tmp_path):
    joblib.dump(fitted, tmp_path / "model.joblib")
    np.save(tmp_path / "bf.npy", cells.bf)
    code = (
        "import sys, joblib, numpy as np; m = joblib.load(sys.argv[1] + '/model.joblib');"
        "np.save(sys.argv[1] + '/out.npy', m.transform(np.load(sys.argv[1] + '/bf.npy')))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), fitted.transform(cells.bf), rtol=1e-5, atol=1e-6)


def test_a_model_of_an_absent_device_says_what_to_do(fitted, cells, monkeypatch):
    model = joblib_round_trip(fitted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model.set_params(device="cuda")
    with pytest.raises(ValueError, match="use 'auto' or 'cpu'"):
        model.transform(cells.bf)
    model.set_params(device="auto").transform(cells.bf)


def test_memory_pretrains_once_for_all_stage_two_settings(cells, tmp_path, monkeypatch):
    from skbegan.core.plans.pretraining import PretrainingPlan

    steps = []
    step = PretrainingPlan.step
    monkeypatch.setattr(PretrainingPlan, "step", lambda *a: steps.append(1) or step(*a))
    plain = features_of(cells, batch_weight=5.0)
    n_steps = len(steps)
    features_of(cells, memory=tmp_path)
    np.testing.assert_array_equal(features_of(cells, memory=str(tmp_path), batch_weight=5.0, verbose=0), plain)
    assert len(steps) == 2 * n_steps
    features_of(cells, memory=tmp_path, learning_rate=2e-3)
    assert len(steps) == 3 * n_steps


def test_checkpoint_dir_resumes_a_fit_that_was_stopped(cells, tmp_path, monkeypatch):
    from skbegan.core.plans.online import OnlinePlan
    from skbegan.core.plans.pretraining import PretrainingPlan

    expected = features_of(cells, removal_epochs=3)
    step, calls = OnlinePlan.step, []

    def stop_late(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("power cut")
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(OnlinePlan, "step", stop_late)
        with pytest.raises(RuntimeError, match="power cut"):
            features_of(cells, removal_epochs=3, checkpoint_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # one per stage
    monkeypatch.delattr(PretrainingPlan, "step")  # stage 1 is not done again
    np.testing.assert_array_equal(features_of(cells, removal_epochs=3, checkpoint_dir=tmp_path), expected)
    assert not list(tmp_path.iterdir())


def test_published_parameters_run_the_published_procedure(cells):
    params = PUBLISHED | {k: v for k, v in QUICK.items() if k not in ("minibatch_size", "removal")}
    model = BeGANTransformer(**params).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert model.removal.n_subsets == 4
    assert any("classifier cell_type fitted" in event for event in model.history_["events"])
    assert model.bf_scale_ == 1.0


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_other_precisions_train_and_agree_roughly(cells, precision):
    model = BeGANTransformer(**{**QUICK, "precision": precision}).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert np.isfinite(model.transform(cells.bf)).all()
    assert model.predict_image(cells.bf).dtype == np.float32


def test_recalibrate_on_the_training_cells_gives_what_fit_left(cells):
    model = BeGANTransformer(**{**QUICK, "validation_fraction": 0.0}).fit(
        cells.bf, cells.qpi, cells.batch, cells.cell_type
    )
    before = model.transform(cells.bf)
    after = model.recalibrate(cells.bf).transform(cells.bf)
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99
    with pytest.raises(ValueError, match="at least two cells"):
        model.recalibrate(cells.bf[:1])


def test_a_new_fit_forgets_the_old_one():
    small = make_cell_images(40, 2, 2, 16, random_state=0)
    model = BeGANTransformer(**QUICK).fit(small.bf, small.qpi, small.batch, small.cell_type)
    large = make_cell_images(40, 2, 2, 32, random_state=0)
    model.fit(large.bf, large.qpi, large.batch, large.cell_type)
    assert model.transform(large.bf).shape == (40, 16)
    assert model.image_shape_ == (32, 32)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(cells):
    kwargs = {**TINY, "pretrain_epochs": 12, "learning_rate": 1e-3}
    found = {}
    for precision in ("float32", "bfloat16"):
        model = BeGANTransformer(**kwargs, precision=precision).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
        found[precision] = np.array(model.history_["pretraining"]["image"])
    assert found["float32"][-1] < 0.7 * found["float32"][0]
    np.testing.assert_allclose(found["bfloat16"], found["float32"], rtol=0.2)
