"""The audit of a fitted model: right figures in the right rows, for every kind of model, and readable in every form."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skbegan.metrics import (
    Audit,
    audit,
    batch_leakage,
    batch_removal_score,
    cell_type_accuracy,
    cross_batch_accuracy,
    cross_batch_gap,
    cross_batch_precision,
    effective_rank,
    image_error,
    image_leakage,
    integration_scores,
)

QUICK = {"n_splits": 2, "n_components": 9}
LINEAR = {**QUICK, "probes": ["linear"], "n_repeats": 1}


class Cleaner(TransformerMixin, BaseEstimator):
    """A stub: cells carry their type in row 0 and their batch in row 1; keeps as much of the batch as asked."""

    def __init__(self, keep=0.0):
        self.keep = keep

    def fit(self, X_bf, y=None, batch=None, cell_type=None, *, y_qpi=None):
        self.fitted_ = True
        return self

    def transform(self, X_bf):
        X = np.asarray(X_bf, dtype=float)
        return np.hstack([X[:, 0], self.keep * X[:, 1]])

    def predict_image(self, X_bf):
        images = np.array(X_bf, dtype=np.float32)
        images[:, 1] *= self.keep
        return images


class Encoder(Cleaner):
    predict_image = property()  # has none


@pytest.fixture(scope="module")
def paired():
    """180 cells, 3 types x 3 batches; images, batch-free images, types, batches."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.arange(180) % 9)
    t, b = group % 3, group // 3
    X = 0.1 * rng.normal(size=(180, 8, 8)).astype(np.float32)
    X[:, 0, :3] += np.eye(3)[t]
    X[:, 1, :3] += np.eye(3)[b]
    X[:, 1, 3:] += 1
    truth = X.copy()
    truth[:, 1] = 0
    return X, truth, np.array(["a", "b", "c"])[t], np.array(["mon", "tue", "wed"])[b]


# -------------------------------------------------------------------------------------------------- the right figures
@pytest.mark.slow
def test_every_row_is_what_the_metric_alone_gives(paired):
    X, truth, t, b = paired
    est = Cleaner(0.2)
    found = audit(est, X, X, b, t, truth=truth, n_repeats=2, random_state=5, **QUICK)
    features, images = est.transform(X), est.predict_image(X)
    same = {"n_repeats": 2, "n_splits": 2, "random_state": 5}
    flat = images.reshape(len(X), -1)
    components = {"n_components": 9, **same}
    for probe in ("linear", "mlp", "knn"):
        assert found[f"leakage_{probe}"].value == batch_leakage(features, b, t, probe=probe, **same)
        assert found[f"image_leakage_{probe}"].value == image_leakage(images, b, t, probe=probe, **components)
    assert found["cell_type_accuracy"].value == cell_type_accuracy(features, t, **same)
    assert found["image_cell_type_accuracy"].value == cell_type_accuracy(flat, t, **components)
    assert found["cross_batch_accuracy"].value == cross_batch_accuracy(features, b, t, n_repeats=2)
    assert found["cross_batch_gap"].value == cross_batch_gap(features, b, t, **same)
    error, true_error = image_error(images, X), image_error(images, truth)
    for key in ("mae", "rmse", "psnr", "ssim", "pearson"):
        assert found[key].value == error[key]
        assert found[f"truth_{key}"].value == true_error[key]
    assert found["truth_mae"].raw == image_error(X, truth).mae
    assert found["mae"].truth == image_error(truth, X).mae
    assert found["leakage_linear"].raw == image_leakage(X, b, t, n_components=9, n_splits=2, random_state=5)
    assert found["leakage_linear"].truth == image_leakage(truth, b, t, n_components=9, n_splits=2, random_state=5)
    assert found["image_leakage_linear"].truth == found["leakage_linear"].truth
    assert found["active_features"].value == 1
    assert 0 < found["leakage_knn"].spread < 0.2


def test_chance_direction_and_references(paired):
    X, truth, t, b = paired
    found = audit(Cleaner(0.0), X, X, b, t, truth=truth, **LINEAR)
    assert found["leakage_linear"].value < 0.2 and found["leakage_linear"].raw > 0.95
    assert abs(found["leakage_linear"].truth) < 0.2
    assert (found["leakage_linear"].chance, found["leakage_linear"].better) == (0, "lower")
    assert found["cell_type_accuracy"].chance == pytest.approx(1 / 3)
    assert (found["cross_batch_accuracy"].value, found["cross_batch_accuracy"].better) == (1, "higher")
    assert found["cross_batch_gap"].value == 0
    assert found["batch_removal_score"].value > 0.85
    assert found["active_features"].value == 0.5  # the other half is multiplied by 0
    assert found["truth_mae"].value == pytest.approx(0, abs=1e-6) and np.isinf(found["truth_psnr"].value)
    assert found["mae"].chance is None
    # cells that do not stand out in their image have no measurements
    assert all(m.n_cells == 180 for key, m in found.measures.items() if not key.startswith("retained_"))
    leaky = audit(Cleaner(1.0), X, X, b, t, references=False, **LINEAR)
    assert leaky["leakage_linear"].value > 0.95 and leaky["leakage_linear"].raw is None
    assert leaky["batch_removal_score"].value < 0.1
    assert leaky["image_leakage_linear"].value > 0.95
    assert leaky["mae"].value == 0


def test_removal_score_is_made_of_its_parts(paired):
    X, _, t, b = paired
    found = audit(Cleaner(0.05), X, None, b, t, n_repeats=3, probes=["linear"], references=False)
    whole = batch_removal_score(Cleaner(0.05).transform(X), b, t, n_repeats=3)
    assert found["batch_removal_score"].value == pytest.approx(whole, abs=0.03)  # other folds


def test_tables_of_batches_and_types(paired):
    X, truth, t, b = paired
    found = audit(Cleaner(0.0), X, X, b, t, truth=truth, probes=["linear", "knn"], n_repeats=1, references=False)
    assert set(found.per_batch) == {"mon", "tue", "wed"} and set(found.per_type) == {"a", "b", "c"}
    monday = found.per_batch["mon"]
    assert monday["n_cells"] == (b == "mon").sum() and monday["n_types"] == 3
    assert monday["cross_batch_accuracy"] == monday["within_batch_accuracy"] == 1
    assert monday["chance"] == pytest.approx(1 / 3)
    assert monday["mae"] == image_error(Cleaner(0.0).predict_image(X), X, batch=b).per_batch["mon"].mae
    assert {"leakage_linear", "leakage_knn", "cell_type_accuracy", "truth_mae"} <= set(found.per_type["a"])
    shares = [row["leakage_linear"] * row["n_cells"] for row in found.per_type.values()]
    assert sum(shares) / 180 == pytest.approx(found["leakage_linear"].value)
    assert found.details.model.error.per_batch["mon"].mae == monday["mae"]


def test_only_cells_aside_are_scored(paired):
    X, truth, t, b = paired
    train = np.arange(180) < 90
    changed = X.copy()
    changed[train] += 5  # predictions of training cells are far off, and nobody reads them
    found = audit(Cleaner(1.0), changed, X, b, t, truth=truth, probe_train=train, integration=True, **LINEAR)
    assert found["leakage_linear"].n_cells == found["mae"].n_cells == found["active_features"].n_cells == 90
    assert found["kbet"].n_cells == 90
    assert found["mae"].value == 0
    features = Cleaner(1.0).transform(changed)
    assert found["leakage_linear"].value == batch_leakage(features, b, t, probe_train=train)
    assert sum(row["n_cells"] for row in found.per_batch.values()) == 90
    assert "90 other cells" in str(found)


def test_integration_rows(paired):
    X, _, t, b = paired
    found = audit(Cleaner(0.0), X, None, b, t, integration=True, **LINEAR)
    alone = integration_scores(Cleaner(0.0).transform(X), b, t)
    assert found["ilisi"].value == alone.ilisi.score and found["ilisi"].chance is None
    assert found["clisi"].chance == alone.clisi.shuffled
    assert found["ilisi"].raw < 0.5 < found["ilisi"].value
    assert "kbet" not in audit(Cleaner(0.0), X, None, b, t, **LINEAR).measures


# --------------------------------------------------------------------------------------------------- kinds of models
def test_a_transformer_without_images_has_no_rows_about_images(paired):
    X, truth, t, b = paired
    for y_qpi in (None, X):
        found = audit(Encoder(0.2), X, y_qpi, b, t, truth=truth, **LINEAR)
        assert not any(key.startswith("image_") or "mae" in key for key in found.measures)
        assert found["leakage_linear"].truth is not None
    found = audit(Cleaner(0.2), X, None, b, t, **LINEAR)
    assert found["image_leakage_linear"].raw is None and "mae" not in found.measures
    flat = FunctionTransformer().fit(X[:, :2].reshape(180, -1))
    assert audit(flat, X[:, :2].reshape(180, -1), None, b, t, **LINEAR)["leakage_linear"].value > 0.95


@pytest.mark.parametrize("searched", [False, True])
def test_pipeline_with_a_classifier(paired, searched):
    X, _, t, b = paired
    pipe = Pipeline([("began", Cleaner(0.2)), ("scale", StandardScaler()), ("clf", LogisticRegression())])
    model = GridSearchCV(pipe, {"clf__C": [1.0]}, cv=2) if searched else pipe
    model.fit(X, t)
    found = audit(model, X, X, b, t, **LINEAR)
    alone = audit(Cleaner(0.2), X, X, b, t, **LINEAR)
    assert found["leakage_linear"].value == alone["leakage_linear"].value  # scaling is no matter to the probe
    assert found["mae"] == alone["mae"]
    assert found["classifier_accuracy"].value == model.score(X, t) == 1
    assert found["classifier_accuracy"].chance == pytest.approx(1 / 3)
    assert "classifier_accuracy" not in alone.measures
    model.fit(X, np.where(t == "a", "x", "y"))
    other = audit(model, X, X, b, t, **LINEAR)
    assert "none of these cell types" in other.skipped["classifier_accuracy"]


def test_began_itself_and_in_a_pipeline(fitted):
    from skbegan.datasets import make_cell_images

    new = make_cell_images(120, 3, 3, 16, batches_per_type=2, random_state=0, cells_random_state=1)
    found = audit(fitted, new.bf, new.qpi, new.batch, new.cell_type, truth=new.clean_qpi, **LINEAR)
    assert found["active_features"].value > 0
    assert found["mae"].value == image_error(fitted.predict_image(new.bf), new.qpi).mae
    pipe = Pipeline([("began", fitted), ("clf", Named().fit(None, new.cell_type))])
    assert audit(pipe, new.bf, new.qpi, new.batch, new.cell_type, **LINEAR)["mae"].value == found["mae"].value
    assert "BeGANTransformer" in found.title and "120 cells, 3 batches and 3 cell types" in found.title


class Named(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])


# ------------------------------------------------------------------------------------- designs that allow only some
def test_one_batch_leaves_what_can_be_measured(paired):
    X, _, t, _ = paired
    found = audit(Cleaner(1.0), X, X, np.zeros(180), t, integration=True, **LINEAR)
    assert {"leakage_linear", "cross_batch_accuracy", "cross_batch_gap", "batch_removal_score"} <= set(found.skipped)
    assert "integration" in found.skipped
    assert found["cell_type_accuracy"].value == 1 and found["mae"].value == 0
    with pytest.raises(KeyError, match="no batch leakage to measure"):
        found["leakage_linear"]
    assert "Not measured: leakage_linear" in str(found)
    assert set(found.per_batch) == {0.0}


def test_one_type_and_dead_features(paired):
    X, _, _, b = paired
    found = audit(Cleaner(0.0), X, X, b, np.zeros(180), **LINEAR)
    assert "cell_type_accuracy" in found.skipped and "leakage_linear" in found.measures
    dead = FunctionTransformer(lambda X: np.full((len(X), 5), 0.3))
    found = audit(dead, X, None, b, paired[2], **LINEAR)
    assert found["active_features"].value == 0 and found["effective_dimensions"].value == 0
    assert found["leakage_linear"].value == pytest.approx(0, abs=0.02)
    assert found["batch_removal_score"].value < 0.1


def test_bad_input_is_refused_before_the_work(paired):
    X, truth, t, b = paired
    est = Cleaner(1.0)
    for change, error, message in (
        ({"batch": b[:-1]}, ValueError, "batch must be 1-D"),
        ({"cell_type": None}, ValueError, "needs the cell_type of each cell"),
        ({"y_qpi": X[:-1]}, ValueError, "X_bf has 180 cells but y_qpi has 179"),
        ({"truth": X[0]}, ValueError, "truth must be images"),
        ({"y_qpi": X[:, :4]}, ValueError, r"model predicts \(8, 8\)"),
        ({"probe_train": np.ones(180, bool)}, ValueError, "both sides"),
        ({"probes": "linear"}, ValueError, "probes must be some of"),
        ({"probes": ["svm"]}, ValueError, "probes must be some of"),
        ({"probes": []}, ValueError, "probes must be some of"),
        ({"n_repeats": 0}, ValueError, "n_repeats"),
        ({"trained_on": X[:, :4]}, ValueError, "trained_on has images"),
        ({"estimator": LogisticRegression()}, TypeError, "no transform"),
        ({"X_bf": X[:, 0, 0], "estimator": Encoder()}, ValueError, "one image per cell"),
    ):
        good = {"estimator": est, "X_bf": X, "y_qpi": X, "batch": b, "cell_type": t, "truth": truth}
        with pytest.raises(error, match=message):
            audit(**{**good, **change})


def test_warns_of_training_cells(paired, recwarn):
    X, _, t, b = paired
    with pytest.warns(UserWarning, match="70 of the 180 scored cells are among trained_on"):
        audit(Cleaner(), X, None, b, t, trained_on=X[110:].astype(float), **LINEAR)
    train = np.arange(180) >= 110
    audit(Cleaner(), X, None, b, t, trained_on=X[110:], probe_train=train, **LINEAR)
    assert not [w for w in recwarn if w.category is UserWarning]


def test_changes_nothing_and_is_reproducible(paired):
    X, truth, t, b = paired
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    frozen = X.copy()
    frozen.setflags(write=False)
    one = audit(
        Cleaner(0.2), frozen, frozen, b.tolist(), pd.Series(t), truth=truth, probes=["knn"], n_repeats=1, **QUICK
    )
    two = audit(Cleaner(0.2), X, X, b, t, truth=truth, probes=["knn"], n_repeats=1, random_state=0, **QUICK)
    assert one.measures == two.measures
    audit(Cleaner(0.2), X, X, b, t, random_state=np.random.default_rng(0), **LINEAR)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


# ------------------------------------------------------------------------------------------------------- every form
@pytest.fixture(scope="module")
def result(paired):
    X, truth, t, b = paired
    labels = np.char.add("<type> ", t)
    return audit(Cleaner(0.2), X, X, b, labels, truth=truth, integration=True, **LINEAR)


def test_text(result):
    text = str(result)
    lines = text.splitlines()
    assert lines[0] == "Audit of Cleaner on 180 cells, 3 batches and 3 cell types"
    assert "not fitted on" in text
    (row,) = [line for line in lines if line.startswith("  batch leakage, linear probe")][:1]
    m = result["leakage_linear"]
    assert row.split()[-7:] == [
        f"{m.value:.3f}",
        f"{m.spread:.3f}",
        "0.000",
        "lower",
        f"{m.raw:.3f}",
        *row.split()[-2:],
    ]
    assert row.split()[-1] == "180"
    assert "each batch" in text and "each cell type" in text and "<type> a" in text
    assert "nan" not in text and "None" not in text
    assert max(len(line) for line in lines) < 140
    head = next(line for line in lines if "better" in line)
    assert row.index("lower") + 5 == head.index("better") + 6  # columns stand under their names
    assert repr(result) == "<Audit of Cleaner on 180 cells, 3 batches and 3 cell types; print it, or see .measures>"


def test_dict_is_json(result):
    plain = result.to_dict()
    again = json.loads(json.dumps(plain))
    assert again["measures"]["leakage_linear"]["value"] == result["leakage_linear"].value
    assert again["measures"]["leakage_linear"]["better"] == "lower"
    assert again["per_type"]["<type> a"]["n_cells"] == 60
    assert again["skipped"] == {}


def test_frame(result):
    frame = result.to_frame()
    assert frame.loc["leakage_linear", "value"] == result["leakage_linear"].value
    assert list(frame.index) == list(result.measures)
    assert result.to_frame("per_batch").loc["mon", "n_cells"] == result.per_batch["mon"]["n_cells"]
    assert result.to_frame("per_type").shape[0] == 3
    with pytest.raises(ValueError, match="table must be"):
        result.to_frame("cells")


def test_frame_without_pandas(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.to_frame()


def test_html(result):
    page = result._repr_html_()
    assert page.count("<table>") == 3 == page.count("</table>")
    assert "&lt;type&gt; a" in page and "<type>" not in page
    assert f"{result['leakage_linear'].value:.3f}" in page


def test_audit_pickles_and_loads_little(result):
    import pickle

    assert pickle.loads(pickle.dumps(result)).measures == result.measures
    assert isinstance(result, Audit)
    code = "import sys, skbegan.metrics; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------- what is kept of the cell itself
@pytest.fixture(scope="module")
def shaped():
    """150 cells of known size, 2 types x 3 batches, each batch with a gain and an offset of its own."""
    rng = np.random.default_rng(7)
    group = rng.permutation(np.arange(150) % 6)
    t, b = group % 2, group // 2
    radius = rng.uniform(3.0, 6.0, 150) + t
    y, x = np.mgrid[:16, :16] - 7.5
    truth = np.sqrt(np.maximum(0, 1 - (y**2 + x**2) / radius[:, None, None] ** 2)).astype(np.float32)
    measured = truth * np.array([1.0, 1.6, 0.7])[b][:, None, None] + np.array([0.0, 0.5, -0.4])[b][:, None, None]
    measured += 0.01 * rng.normal(size=measured.shape)
    return truth, measured.astype(np.float32), np.array(["mon", "tue", "wed"])[b], np.array(["a", "b"])[t], radius


def flat(X):
    return np.asarray(X, dtype=float).reshape(len(X), -1)


def test_rows_of_what_is_kept(shaped):
    truth, measured, b, t, _ = shaped
    clean = FunctionTransformer(flat).fit(truth)
    found = audit(clean, truth, measured, b, t, truth=truth, **LINEAR)
    for name in ("area", "total_phase"):
        for end in ("", "_left_out"):
            row = found[f"retained_{name}{end}"]
            assert row.value > 0.9 and row.truth > 0.9 and row.better == "higher"
            assert abs(row.chance) < 0.25 and "in the truth" in row.section
    assert "truth is unknown" not in str(found)
    precision = cross_batch_precision(flat(truth), b, t, return_details=True)
    assert found["cross_batch_precision"].value == pytest.approx(precision.score)
    assert found["cross_batch_precision"].chance == pytest.approx(precision.chance)
    assert found["effective_rank"].value == effective_rank(flat(truth))
    assert found["directions"].value == effective_rank(flat(truth), return_details=True).n_directions
    assert found.details.retained.model["area"].linear.seen.score > 0.5


def test_measured_targets_stand_in_for_the_truth_and_that_is_said(shaped):
    truth, measured, b, t, radius = shaped
    clean = FunctionTransformer(flat).fit(truth)
    found = audit(clean, truth, measured, b, t, **LINEAR)
    assert "truth is unknown" in str(found) and "in measured images" in found["retained_area"].section
    assert found["retained_total_phase"].value > 0.8  # the batches' gains are taken out
    given = audit(clean, truth, measured, b, t, measurements={"radius": radius}, **LINEAR)
    assert given["retained_radius_left_out"].value > 0.9 and "given" in given["retained_radius"].section
    assert not [key for key in given.measures if "area" in key]
    for none in (
        audit(clean, truth, None, b, t, **LINEAR),
        audit(clean, truth, measured, b, t, measurements=False, **LINEAR),
    ):
        assert not [key for key in none.measures if "retained" in key] and not none.skipped
    with pytest.raises(ValueError, match="'radius' must be 150 real numbers"):
        audit(clean, truth, measured, b, t, measurements={"radius": radius[:-1]}, **LINEAR)


def test_without_scikit_image_the_audit_says_what_it_lacks(shaped, monkeypatch):
    truth, measured, b, t, _ = shaped
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    found = audit(FunctionTransformer(flat).fit(truth), truth, measured, b, t, **LINEAR)
    assert 'pip install "skbegan[measurements]"' in found.skipped["retained_variation"]
    assert found["leakage_linear"].n_cells == 150


@pytest.mark.slow
def test_trees_and_cnn_as_probes_of_an_audit(paired):
    X, _, t, b = paired
    found = audit(Cleaner(1.0), X, X, b, t, probes=["linear", "trees", "cnn"], n_repeats=1, references=False, **QUICK)
    assert found["leakage_trees"].value == batch_leakage(Cleaner(1.0).transform(X), b, t, probe="trees", n_splits=2)
    assert found["image_leakage_cnn"].value == image_leakage(
        Cleaner(1.0).predict_image(X), b, t, probe="cnn", n_splits=2
    )
    assert "leakage_cnn" not in found.measures and "boosted trees" in str(found)
    with pytest.raises(ValueError, match="put another first"):
        audit(Cleaner(1.0), X, X, b, t, probes=["cnn"])
