"""Pipelines, unions and searches around the estimator, in both metadata-routing modes; no score is ever NaN."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    LeaveOneGroupOut,
    RandomizedSearchCV,
    StratifiedGroupKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
)
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from test_sklearn_contract import TINY

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.datasets import make_cell_images
from skbegan.metrics import (
    batch_removal_scorer,
    cell_type_accuracy,
    cell_type_scorer,
    cross_batch_scorer,
    image_error_scorer,
    leakage_scorer,
)

GRID = {"began__batch_weight": [0.5, 2.0]}
CELLS = make_cell_images(72, 2, 3, 16, random_state=0)
BF, QPI, BATCH, KIND = CELLS.bf, CELLS.qpi, CELLS.batch, CELLS.cell_type
LABELS = pd.DataFrame({"batch": BATCH, "cell_type": KIND}, index=np.arange(72)[::-1])


@pytest.fixture(params=[False, True], ids=["routing off", "routing on"])
def routing(request: Any) -> Iterator[bool]:
    with config_context(enable_metadata_routing=request.param):
        yield request.param


def began(**params: Any) -> BeGANTransformer:
    return BeGANTransformer(**{**TINY, **params})


def doubled(images: Any) -> Any:
    return images * 2


def flat(images: Any) -> np.ndarray:
    return np.asarray(images).reshape(len(images), -1)


def pipe(clf: Any = None, **params: Any) -> Pipeline:
    return Pipeline([("began", began(**params)), ("scale", StandardScaler()), ("clf", clf or LogisticRegression())])


def metadata(routing: bool, prefix: str = "began__", **values: Any) -> dict[str, Any]:
    """What fit is given besides X and y: by name where routing is on, else by the name of the step."""
    values = {"y_qpi": QPI, "batch": BATCH, **values}
    return values if routing else {f"{prefix}{name}": value for name, value in values.items()}


def assert_scored(scores: Any) -> None:
    scores = np.asarray(scores)
    assert scores.size and np.isfinite(scores).all()


# Pipelines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clf", [SVC(), LogisticRegression()], ids=["SVC", "LogisticRegression"])
def test_pipeline(routing, clf):
    model = Pipeline([("pre", FunctionTransformer(doubled)), *pipe(clf).steps])
    model.fit(BF, KIND, **metadata(routing))
    assert set(model.predict(BF)) <= set(KIND)
    expected = began().fit(BF * 2, QPI, BATCH, KIND).transform(BF * 2)
    np.testing.assert_array_equal(model[:2].transform(BF), expected)
    assert len(model[1:-1].get_feature_names_out()) == 8
    framed = pipe(clf).set_output(transform="pandas").fit(BF, KIND, **metadata(routing))
    assert framed[:-1].transform(BF).columns[0] == "begantransformer0"


def test_pipeline_without_a_classifier_and_with_a_cache(routing, tmp_path):
    model = make_pipeline(began(), StandardScaler(), memory=str(tmp_path))
    given = metadata(routing, "begantransformer__", cell_type=KIND)
    first = model.fit_transform(BF, None, **given)
    assert first.shape == (72, 8)
    np.testing.assert_array_equal(clone(model).fit_transform(BF, None, **given), first)


@pytest.fixture(scope="module")
def expected() -> Any:
    """The features of the plain fit, and its scores in cross-validation."""
    scores = cross_val_score(pipe(), BF, KIND, cv=2, params=metadata(False), error_score="raise")
    return began().fit(BF, QPI, BATCH, KIND).transform(BF), scores


@pytest.mark.parametrize(
    "container",
    [list, torch.tensor, lambda a: pd.Series(list(a), index=np.arange(len(a)) + 5)],
    ids=["lists", "tensors", "Series"],
)
def test_images_and_labels_in_any_container_survive_a_search(routing, container, expected):
    labels = (lambda a: a.tolist()) if container is list else pd.Series if container is torch.tensor else pd.Categorical
    scores = cross_val_score(
        pipe(),
        container(BF),
        labels(KIND),
        cv=2,
        params=metadata(routing, y_qpi=container(QPI), batch=labels(BATCH)),
        error_score="raise",
    )
    np.testing.assert_array_equal(scores, expected[1])


def test_feature_union(routing, expected):
    """Without routing a union passes everything to all its members, so they must all take it."""
    other = ("pixels", FunctionTransformer(flat)) if routing else ("other", began(random_state=1))
    union = FeatureUnion([("began", began()), other])
    features = union.fit_transform(BF, KIND, y_qpi=QPI, batch=BATCH)
    assert features.shape == (72, 8 + (256 if routing else 8))
    np.testing.assert_array_equal(features[:, :8], expected[0])
    np.testing.assert_array_equal(union.transform(BF), features)
    model = Pipeline([("union", union), ("clf", LogisticRegression())])
    model.fit(BF, KIND, **metadata(routing, "union__"))
    assert model.predict(BF).shape == (72,)


def test_column_transformer(routing):
    """One column of a table holds the brightfield images; without routing nothing but y reaches its members."""
    table = pd.DataFrame({"area": BF.mean((1, 2)), "bf": list(BF)}, index=np.arange(72) + 3)
    columns = ColumnTransformer([("began", began(removal_epochs=0), "bf"), ("rest", "passthrough", ["area"])])
    if routing:
        features = columns.fit_transform(table, KIND, y_qpi=QPI, batch=BATCH)
        expected = began(removal_epochs=0).fit(BF, QPI, BATCH, KIND).transform(BF)
    else:
        features = columns.fit_transform(table, QPI)
        expected = began(removal_epochs=0).fit(BF, QPI).transform(BF)
    assert features.shape == (72, 9)
    np.testing.assert_allclose(features[:, :8], expected, rtol=1e-6)
    np.testing.assert_array_equal(columns.transform(table), features)
    assert columns.get_feature_names_out().tolist()[-2:] == ["began__begantransformer7", "rest__area"]


# Searches with a classifier -------------------------------------------------------------------------------------------


SEARCHES = {
    "grid of a method's parameters": lambda est: GridSearchCV(
        est, {"began__removal__alignment": [0.0, 2.0], "began__profile__matching": [0.0]}, cv=LeaveOneGroupOut()
    ),
    "grid, leave a batch out": lambda est: GridSearchCV(est, GRID, cv=LeaveOneGroupOut(), error_score="raise"),
    "randomized, stratified groups": lambda est: RandomizedSearchCV(
        est, GRID, n_iter=2, cv=StratifiedGroupKFold(3), random_state=0, error_score="raise"
    ),
    "halving cells": lambda est: HalvingGridSearchCV(
        est, GRID, cv=2, min_resources=36, factor=2, random_state=0, error_score="raise"
    ),
    "halving epochs": lambda est: HalvingGridSearchCV(
        est, GRID, cv=2, resource="began__removal_epochs", max_resources=2, factor=2, error_score="raise"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_searches_over_loss_weights(routing, name):
    groups = {} if name.startswith("halving") else {"groups": BATCH}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # folds leave batches out, and some have few cells
        found = SEARCHES[name](pipe()).fit(BF, KIND, **groups, **metadata(routing))
    assert_scored(found.cv_results_["mean_test_score"])
    best = found.best_estimator_.get_params()
    assert {name: best[name] for name in found.best_params_} == found.best_params_
    assert found.predict(BF[:5]).shape == (5,)


def test_cross_validation_tools(routing):
    given = metadata(routing)
    assert cross_val_predict(pipe(), BF, KIND, cv=2, params=given).shape == (72,)
    _, train, test = learning_curve(pipe(), BF, KIND, cv=2, params=given, train_sizes=[0.6, 1.0])
    assert_scored(train)
    assert_scored(test)


def test_search_in_worker_processes_equals_one_in_this_process(routing):
    """The test process has one thread, and so have workers; see the notes on threads in the docstring."""
    from joblib import parallel_config

    given = metadata(routing)
    with warnings.catch_warnings(), parallel_config(backend="loky", inner_max_num_threads=1):
        warnings.simplefilter("ignore", UserWarning)
        scores = [
            cross_validate(
                pipe(), BF, KIND, cv=2, params=given, n_jobs=n_jobs, return_estimator=True, error_score="raise"
            )
            for n_jobs in (1, 2)
        ]
    for one, other in zip(*(s["estimator"] for s in scores), strict=True):
        np.testing.assert_array_equal(one["began"].transform(BF), other["began"].transform(BF))
    np.testing.assert_array_equal(scores[0]["test_score"], scores[1]["test_score"])


SCORERS = {
    "leakage": leakage_scorer,
    "cross_batch": cross_batch_scorer,
    "batch_removal": batch_removal_scorer,
    "cell_type": cell_type_scorer,
}


def test_scorers_that_need_the_batch(routing):
    """With routing they get it; without, they get it beforehand, and raise where they were not."""
    given_labels = {name: scorer.with_labels(BF, BATCH, KIND) for name, scorer in SCORERS.items()}
    given = metadata(routing)
    results = cross_validate(pipe(), BF, KIND, cv=2, params=given, scoring=given_labels, error_score="raise")
    for name in given_labels:
        assert_scored(results[f"test_{name}"])
    if routing:
        scorers = {**SCORERS, "image": image_error_scorer}
        same = cross_validate(pipe(), BF, KIND, cv=2, params=given, scoring=scorers, error_score="raise")
        for name in given_labels:
            np.testing.assert_array_equal(same[f"test_{name}"], results[f"test_{name}"])
        assert_scored(same["test_image"])
    else:
        with pytest.raises(ValueError, match=r"not given the batch.*with_labels"):
            cross_validate(pipe(), BF, KIND, cv=2, params=given, scoring=leakage_scorer, error_score="raise")


# Searches on the bare transformer -------------------------------------------------------------------------------------


def bare_search(X: Any, y: Any, **given: Any) -> np.ndarray:
    search = GridSearchCV(began(removal_epochs=0), {"batch_weight": [0.5]}, cv=2, error_score="raise")
    scores = search.fit(X, y, **given).cv_results_["mean_test_score"]
    assert_scored(scores)
    return scores


def test_labels_as_a_table_reach_score_in_both_modes(routing):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_frame = bare_search(BF, LABELS, y_qpi=QPI)
        structured = np.array(list(zip(BATCH, KIND, strict=True)), [("batch", "U9"), ("cell_type", "U9")])
        np.testing.assert_array_equal(bare_search(BF, structured, y_qpi=list(QPI)), by_frame)
        if routing:
            np.testing.assert_array_equal(bare_search(BF, QPI, batch=list(BATCH), cell_type=list(KIND)), by_frame)
            np.testing.assert_array_equal(bare_search(BF, KIND, batch=BATCH, y_qpi=QPI), by_frame)


def test_labels_as_a_table_are_checked():
    with pytest.raises(ValueError, match="batch was given twice, as a column of y and as batch"):
        began().fit(BF, LABELS, BATCH, y_qpi=QPI)
    with pytest.raises(ValueError, match="no target images"):
        began().fit(BF, LABELS)
    with pytest.raises(ValueError, match="or a table with columns batch and cell_type; got shape"):
        began().fit(BF, LABELS.rename(columns={"batch": "day"}), y_qpi=QPI)
    model = began(removal_epochs=0).fit(BF, LABELS[["batch"]], None, KIND, y_qpi=QPI)
    assert model.batches_.tolist() == sorted(set(BATCH)) and model.cell_types_.tolist() == sorted(set(KIND))


def test_without_routing_a_search_that_cannot_see_the_batch_says_so():
    with pytest.warns(UserWarning, match="neither batch nor cell types: it measures how well images are predicted"):
        bare_search(BF, QPI, batch=BATCH, cell_type=KIND)
    with pytest.warns(UserWarning, match="no batch: it measures how well cell types are read"):
        bare_search(BF, KIND, batch=BATCH, y_qpi=QPI)


def test_without_routing_a_search_that_follows_the_warning_measures_the_batch():
    """What the warning says to write, and the README: `score` with all labels, fold by fold."""
    folds = list(KFold(2, shuffle=True, random_state=0).split(BF))
    scoring = batch_removal_scorer.with_labels(BF, BATCH, KIND)
    search = GridSearchCV(
        began(removal_epochs=0), {"batch_weight": [0.5]}, cv=folds, scoring=scoring, refit=False, error_score="raise"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = search.fit(BF, QPI, batch=BATCH, cell_type=KIND).cv_results_
    for fold, (train, test) in enumerate(folds):
        model = began(removal_epochs=0).fit(BF[train], QPI[train], BATCH[train], KIND[train])
        expected = model.score(BF[test], QPI[test], BATCH[test], KIND[test])
        assert found[f"split{fold}_test_score"][0] == pytest.approx(expected)


def test_folds_of_a_single_batch_say_so(routing):
    groups = {"params": {"y_qpi": QPI, "groups": BATCH}} if routing else {"params": {"y_qpi": QPI}, "groups": BATCH}
    with pytest.warns(UserWarning, match="of one batch only, 'batch0' .folds must mix the batches"):
        scores = cross_val_score(began(removal_epochs=0), BF, LABELS, cv=LeaveOneGroupOut(), **groups)
    assert_scored(scores)


def test_score_is_a_number_or_an_error():
    model = began(removal_epochs=0).fit(BF, QPI)
    with pytest.raises(ValueError, match="constant"):
        model.score(BF, np.ones_like(QPI))
    with pytest.raises(ValueError, match="score needs cell_type"):
        model.score(BF, None, BATCH)
    with pytest.raises(ValueError, match="two batches"):
        model.score(BF[:4], None, ["a", "b", "c", "d"], ["x", "x", "y", "y"])
    assert model.score(BF, KIND) == cell_type_accuracy(model.transform(BF), KIND)


@pytest.mark.slow
def test_a_search_on_the_bare_transformer_chooses_the_model_that_removes_the_batch(tmp_path):
    """Of two settings, the one without batch removal, which the image error would prefer, loses by far."""
    cells = make_cell_images(400, 3, 3, 32, random_state=1)
    stages = {"pretrain_epochs": 15, "learning_rate": 1e-3, "removal_epochs": 30}
    removal = OnlineRemoval(learning_rate=1e-3, warmup_epochs=2)
    estimator = began(base_width=4, removal=removal, minibatch_size=32, memory=tmp_path, **stages)
    expert = ("style_share", "brightfield_style_share", "invariance")
    off = {name: [0.0] for name in ("batch_weight", "batch_image_weight", *(f"removal__{name}" for name in expert))}
    labels = pd.DataFrame({"batch": cells.batch, "cell_type": cells.cell_type})
    halves = [(np.arange(200), np.arange(200, 400))]
    search = GridSearchCV(estimator, [off, {"batch_weight": [1.0]}], cv=halves, refit=False, error_score="raise")
    scores = search.fit(cells.bf, labels, y_qpi=cells.qpi).cv_results_["mean_test_score"]
    assert search.best_params_ == {"batch_weight": 1.0}
    assert scores[1] > scores[0] + 0.1, scores
