"""Metrics on constructed features whose right answer is known."""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, KFold, LeaveOneGroupOut, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from skbegan.metrics import (
    FeatureScorer,
    batch_leakage,
    batch_removal_score,
    batch_removal_scorer,
    cell_type_accuracy,
    cell_type_scorer,
    cross_batch_accuracy,
    cross_batch_scorer,
    image_error,
    image_error_scorer,
    leakage_scorer,
)

PROBES = ("linear", "mlp", "knn")


def design(n=600, n_types=3, n_batches=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng, rng.integers(0, n_types, n), rng.integers(0, n_batches, n)


# ------------------------------------------------------------------------------------------------ batch leakage
@pytest.mark.parametrize("probe", PROBES)
def test_no_signal_is_chance(probe):
    rng, t, b = design(900)
    X = rng.normal(size=(900, 12)) + 3 * np.eye(12)[t]
    found = batch_leakage(X, b, t, probe=probe, n_repeats=2, return_details=True)
    assert abs(found.score) < 0.08
    assert found.chance == pytest.approx(0.25)
    assert found.accuracy == pytest.approx(0.25, abs=0.07)
    assert found.std >= 0


@pytest.mark.parametrize("probe", PROBES)
def test_pure_signal_is_one(probe):
    rng, t, b = design()
    X = 0.05 * rng.normal(size=(600, 6)) + np.eye(6)[b]
    assert batch_leakage(X, b, t, probe=probe) > 0.97


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("mix", [(0.9, 0.1), (0.8, 0.15, 0.05)])
def test_unequal_mix(probe, mix):
    """No signal is 0 and not far below; pure signal is 1; both however unequal the mix."""
    rng = np.random.default_rng(1)
    scores = []
    for seed in range(5):
        b = rng.choice(len(mix), 500, p=mix)
        scores.append(batch_leakage(rng.normal(size=(500, 8)), b, probe=probe, random_state=seed))
    assert abs(np.mean(scores)) < 0.12
    b = rng.choice(len(mix), 500, p=mix)
    assert batch_leakage(0.05 * rng.normal(size=(500, 3)) + np.eye(3)[b], b, probe=probe) > 0.97


def test_partial_signal_in_unequal_mix_is_not_hidden():
    """A shift of 2 sigma between two batches: the best rule names 84 % of each, J = 0.683, at 90/10 as at 50/50."""
    rng = np.random.default_rng(2)
    for share in (0.5, 0.1):
        b = (rng.random(20000) < share).astype(int)
        X = rng.normal(size=(20000, 1)) + 2 * b[:, None]
        assert batch_leakage(X, b) == pytest.approx(0.683, abs=0.03)


def test_matches_scikit_learn_definition():
    rng, _, b = design(400)
    X = rng.normal(size=(400, 4)) + 0.8 * np.eye(4)[b]
    train = np.arange(400) < 250
    tree = DecisionTreeClassifier(max_depth=3, random_state=0)
    named = tree.fit(StandardScaler().fit(X[train]).transform(X[train]), b[train]).predict(
        StandardScaler().fit(X[train]).transform(X[~train])
    )
    expected = balanced_accuracy_score(b[~train], named, adjusted=True)
    assert batch_leakage(X, b, probe=tree, probe_train=train) == pytest.approx(expected)


def test_biology_alone_is_no_leakage():
    """Types sit in different batches; the type is fully readable; within a type there is nothing."""
    rng = np.random.default_rng(3)
    t = rng.integers(0, 4, 1200)
    b = (t + rng.integers(0, 2, 1200)) % 4
    X = rng.normal(size=(1200, 5)) + 10 * np.eye(5)[t]
    assert abs(batch_leakage(X, b, t)) < 0.08
    assert batch_leakage(X, b) > 0.25  # without the types, biology reads as batch


@pytest.mark.parametrize("probe", PROBES)
def test_dead_features_do_not_leak(probe):
    rng, t, b = design()
    X = np.hstack([rng.normal(size=(600, 5)), 1e-9 * np.eye(4)[b], 3.0 + 1e-9 * np.eye(4)[b]])
    assert abs(batch_leakage(X, b, t, probe=probe)) < 0.15
    assert batch_leakage(np.hstack([X[:, :5], np.eye(4)[b]]), b, t, probe=probe) > 0.6


@pytest.mark.parametrize("probe", PROBES)
def test_constant_features_are_chance(probe):
    _, t, b = design()
    assert batch_leakage(np.full((600, 3), 0.1), b, t, probe=probe) == pytest.approx(0, abs=0.02)
    assert batch_removal_score(np.full((600, 3), 0.1), b, t, probe=probe) == pytest.approx(0, abs=0.1)


def test_xor_needs_the_network():
    rng = np.random.default_rng(4)
    X = rng.uniform(-1, 1, size=(800, 2))
    b = (X[:, 0] * X[:, 1] > 0).astype(int)
    assert abs(batch_leakage(X, b, probe="linear")) < 0.15
    assert batch_leakage(X, b, probe="mlp") > 0.85
    assert batch_leakage(X, b, probe="knn") > 0.85


def test_types_are_weighted_by_cells_and_skipped_with_reason():
    rng = np.random.default_rng(5)
    t = np.repeat(["leaky", "clean", "alone", "rare"], [300, 600, 100, 4])
    b = np.concatenate([np.arange(900) % 2, np.zeros(100, int), [0, 0, 1, 1]])
    X = 0.1 * rng.normal(size=(1004, 3))
    X[:300, 0] += b[:300]
    found = batch_leakage(X, b, t, return_details=True)
    assert set(found.per_type) == {"leaky", "clean"}
    assert set(found.skipped) == {"alone", "rare"}
    assert found.n_cells == 900
    assert found.per_type["leaky"].score > 0.99
    assert found.score == pytest.approx((found.per_type["leaky"].score + 2 * found.per_type["clean"].score) / 3)
    assert found.per_type["leaky"].n_batches == 2
    assert np.isnan(found.std)


def test_small_groups_get_fewer_folds():
    b = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    X = np.eye(3)[b] + 0.01 * np.arange(8)[:, None]
    found = batch_leakage(X, b, return_details=True)
    assert found.n_cells == 6  # batch 2 has two cells
    assert found.score == pytest.approx(1)


def test_nothing_to_measure():
    X = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(ValueError, match="no batch leakage to measure"):
        batch_leakage(X, np.zeros(40), np.arange(40) % 2)
    with pytest.raises(ValueError, match="no batch leakage to measure"):
        batch_leakage(X, np.arange(40) % 2, np.arange(40) % 2)
    with pytest.raises(ValueError, match="no cross-batch accuracy"):
        cross_batch_accuracy(X, np.arange(40) % 2, np.zeros(40))
    with pytest.raises(ValueError, match="no cross-batch accuracy"):
        cross_batch_accuracy(X, np.zeros(40), np.arange(40) % 2)
    with pytest.raises(ValueError, match="no cell-type accuracy"):
        cell_type_accuracy(X, np.zeros(40))


def test_probe_train_scores_only_the_others():
    rng, t, b = design()
    X = 0.05 * rng.normal(size=(600, 4)) + np.eye(4)[b]
    train = np.arange(600) % 2 == 0
    X[~train] = rng.normal(size=(300, 4))  # readable in the probe's cells, not in the scored ones
    found = batch_leakage(X, b, t, probe_train=train, return_details=True)
    assert found.n_cells == 300
    assert abs(found.score) < 0.15
    assert batch_leakage(X[train], b[train], t[train]) > 0.97
    assert cell_type_accuracy(np.eye(3)[t], t, probe_train=train, return_details=True).n_cells == 300
    assert cross_batch_accuracy(np.eye(3)[t], b, t, probe_train=train, return_details=True).n_cells == 300
    assert batch_removal_score(np.eye(3)[t], b, t, probe_train=train) == pytest.approx(1, abs=0.01)


# ------------------------------------------------------------------------------------------ cell-type accuracies
@pytest.mark.parametrize("probe", PROBES)
def test_cross_batch_known_answers(probe):
    rng, t, b = design(600, 3, 4)
    clean = 0.1 * rng.normal(size=(600, 4)) + np.eye(4)[t]
    assert cross_batch_accuracy(clean, b, t, probe=probe) > 0.97
    noise = cross_batch_accuracy(rng.normal(size=(600, 4)), b, t, probe=probe, return_details=True)
    assert noise.chance == pytest.approx(1 / 3)
    assert noise.score == pytest.approx(1 / 3, abs=0.07)


def test_batch_shift_that_flips_types_is_below_chance():
    rng = np.random.default_rng(6)
    t, b = rng.integers(0, 2, 400), np.repeat([0, 1], 200)
    X = 0.1 * rng.normal(size=(400, 2))
    X[:, 0] += np.where(b == 0, 1, -1) * (2 * t - 1)
    found = cross_batch_accuracy(X, b, t, return_details=True)
    assert found.score < 0.02
    assert found.chance == 0.5
    assert cell_type_accuracy(np.c_[X, X[:, 0] * (2 * b - 1)], t) > 0.98
    assert batch_removal_score(X, b, t) == 0


def test_cross_batch_counts_only_types_seen_elsewhere():
    rng = np.random.default_rng(7)
    t = np.repeat(["a", "b", "c"], 100)
    b = np.where(t == "c", 0, np.arange(300) % 2)  # c lives in batch 0 only
    X = 0.1 * rng.normal(size=(300, 3)) + np.eye(3)[np.unique(t, return_inverse=True)[1]]
    found = cross_batch_accuracy(X, b, t, return_details=True)
    assert found.n_cells == 200
    assert found.per_batch[0].n_types == 2 and found.per_batch[1].n_types == 3
    assert found.chance == pytest.approx((0.5 + 1 / 3) / 2)
    assert found.score == found.balanced == 1
    assert found.per_type == {"a": 1, "b": 1}


def test_cell_type_accuracy_details():
    rng = np.random.default_rng(8)
    t = np.repeat(["x", "y", "z"], [90, 10, 2])
    found = cell_type_accuracy(rng.normal(size=(102, 2)), t, return_details=True)
    assert found.chance == pytest.approx(0.9)
    assert found.score == pytest.approx(0.9, abs=0.03)
    assert found.balanced == pytest.approx(0.5, abs=0.05)
    assert found.skipped == {"z": "too few cells"}
    assert cell_type_accuracy(np.eye(2)[np.arange(100) % 2], np.arange(100) % 2) == 1


def test_batch_removal_score_is_its_formula():
    rng, t, b = design()
    X = rng.normal(size=(600, 8)) + 2 * np.eye(8)[t]
    X[:, 4:] += np.eye(4)[b]
    found = batch_removal_score(X, b, t, return_details=True)
    kept = (found.cross_batch.score - found.cross_batch.chance) / (1 - found.cross_batch.chance)
    removed = 1 - found.leakage.score
    assert 0.1 < removed < 0.9 and 0.1 < kept < 0.95
    assert (found.removed, found.kept) == (pytest.approx(removed), pytest.approx(kept))
    assert found.score == pytest.approx(2 / (1 / removed + 1 / kept))
    assert batch_removal_score(X, b, t) == found.score
    assert found.chance == 0 and np.isnan(found.std) and 0 < found.stderr < 0.1
    several = batch_removal_score(X, b, t, n_repeats=3, return_details=True)
    assert several.score == pytest.approx(several.repeats.mean())
    assert several.std == pytest.approx(several.repeats.std()) and several.std > 0


def test_batch_removal_score_pays_for_neither_part_alone():
    rng, t, b = design()
    noise = 0.1 * rng.normal(size=(600, 8))
    nothing, both = noise, noise + np.hstack([np.eye(4)[t], np.eye(4)[b]])
    only_type, only_batch = noise[:, :4] + np.eye(4)[t], noise[:, :4] + np.eye(4)[b]
    assert batch_removal_score(only_type, b, t) > 0.95
    assert batch_removal_score(nothing, b, t) < 0.15
    assert batch_removal_score(both, b, t) < 0.05  # the type is read perfectly, and so is the batch
    assert batch_removal_score(only_batch, b, t) < 0.05
    # a model that removes a little and keeps much is better than one that has collapsed
    some = np.hstack([only_type, 0.7 * rng.normal(size=(600, 4)) + np.eye(4)[b]])
    assert batch_removal_score(some, b, t) > batch_removal_score(nothing, b, t) + 0.1


# ------------------------------------------------------------------------------------------------------- manners
def test_accepts_lists_and_pandas_and_changes_nothing():
    rng, t, b = design(200, 2, 2)
    X = rng.normal(size=(200, 3)).astype(np.float32) + np.eye(3, dtype=np.float32)[b]
    X.setflags(write=False)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    expected = batch_leakage(X, b, t)
    names = np.array(["mon", "tue"])[b]
    for features, batch, types in (
        (X.tolist(), b.tolist(), t.tolist()),
        (pd.DataFrame(X), pd.Series(names), pd.Categorical(t)),
        (X, names.tolist(), t.astype(float)),
        (X, pd.Series(names, index=range(200, 400), dtype="string"), t.astype(bool)),
    ):
        assert batch_leakage(features, batch, types) == expected
    for probe in PROBES:
        one, two = (batch_removal_score(X, b, t, probe=probe, random_state=5) for _ in range(2))
        assert one == two
    for random_state in (None, np.random.default_rng(0), np.random.RandomState(0)):
        batch_leakage(X, b, t, random_state=random_state)
    batch_leakage(X, b, t, probe=make_pipeline(DecisionTreeClassifier(splitter="random")))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def bad_labels(value):
    labels = np.zeros(30, object)
    labels[:] = "a"
    labels[3] = value
    return labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((30, 4, 4))}, "Flatten images"),
        ({"features": np.zeros((0, 4))}, "not empty"),
        ({"features": np.full((30, 2), np.nan)}, "NaN or infinity"),
        ({"features": np.full((30, 2), np.inf)}, "NaN or infinity"),
        ({"features": np.full((30, 2), "a")}, "real numbers"),
        ({"features": np.full((30, 2), 1j)}, "real numbers"),
        ({"batch": np.zeros(29)}, r"batch must be 1-D .*\(30,\), got \(29,\)"),
        ({"batch": np.zeros((30, 1))}, "batch must be 1-D"),
        ({"batch": "day"}, "batch must be 1-D"),
        ({"batch": [np.nan, *["a"] * 29]}, "batch has missing labels"),
        ({"cell_type": [None] * 30}, "cell_type has missing labels"),
        ({"cell_type": bad_labels(3)}, "cell_type mixes labels"),
        ({"probe": "forest"}, "probe must be 'linear'"),
        ({"probe": LogisticRegression}, "probe must be 'linear'"),
        ({"n_splits": 1}, "n_splits"),
        ({"n_splits": 2.5}, "n_splits"),
        ({"n_repeats": 0}, "n_repeats"),
        ({"probe_train": np.zeros(30, bool)}, "both sides"),
        ({"probe_train": np.zeros(30)}, "probe_train must be bool"),
    ],
)
def test_bad_input(change, message):
    good = {"features": np.arange(60.0).reshape(30, 2), "batch": np.arange(30) % 2, "cell_type": np.zeros(30)}
    with pytest.raises(ValueError, match=message):
        batch_leakage(**{**good, **change})


# -------------------------------------------------------------------------------------------------------- images
def test_image_error_of_equal_images():
    y = np.random.default_rng(0).normal(size=(5, 32, 32)).astype(np.float32)
    found = image_error(y, y)
    assert (found.mae, found.rmse) == (0, 0)
    assert found.ssim == pytest.approx(1)
    assert found.pearson == pytest.approx(1)
    assert np.isinf(found.psnr)


def test_image_error_by_hand():
    flat = np.full((2, 16, 16), 0.5)
    found = image_error(flat + 0.1, flat, data_range=1.0)
    c1 = 1e-4
    assert found.mae == pytest.approx(0.1)
    assert found.rmse == pytest.approx(0.1)
    assert found.psnr == pytest.approx(20)
    assert found.ssim == pytest.approx((2 * 0.6 * 0.5 + c1) / (0.6**2 + 0.5**2 + c1))
    assert np.isnan(found.pearson)
    y = np.arange(256.0).reshape(1, 16, 16)
    assert image_error(255 - y, y).pearson == pytest.approx(-1)
    assert image_error(2 * y + 7, y).pearson == pytest.approx(1)


def test_ssim_by_brute_force():
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 20, 24))
    g = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / g.sum() ** 2
    values = []
    for i in range(10):
        for j in range(14):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert image_error(x[None], y[None], data_range=1.0).ssim == pytest.approx(np.mean(values), abs=1e-9)


def test_image_error_groups_channels_and_chunks(monkeypatch):
    rng = np.random.default_rng(2)
    y = rng.normal(size=(7, 16, 16, 2))
    p = y + np.arange(7)[:, None, None, None]
    whole = image_error(p, y, batch=list("aabbbbb"), cell_type=[0, 1, 0, 1, 0, 1, 0])
    assert whole.per_batch["a"].mae == pytest.approx(0.5)
    assert whole.per_batch["b"].n_cells == 5
    assert whole.per_type[1].mae == pytest.approx(3)
    assert whole.per_image["mae"] == pytest.approx(np.arange(7))
    monkeypatch.setattr("skbegan.metrics.images._CHUNK_PIXELS", 1000)
    chunked = image_error(p, y)
    assert chunked.ssim == pytest.approx(whole.ssim)
    assert chunked.pearson == pytest.approx(whole.pearson)
    one = image_error(p[..., 0], y[..., 0], data_range=whole.data_range)
    two = image_error(p[..., 1], y[..., 1], data_range=whole.data_range)
    assert whole.ssim == pytest.approx((one.ssim + two.ssim) / 2)


@pytest.mark.parametrize(
    ("predicted", "target", "options", "message"),
    [
        (np.zeros((2, 8, 8)), np.zeros((3, 8, 8)), {}, "one shape"),
        (np.zeros((8, 8)), np.zeros((8, 8)), {}, "one shape"),
        (np.zeros((2, 8, 8)), np.full((2, 8, 8), np.nan), {}, "NaN"),
        (np.full((2, 8, 8), np.nan), np.zeros((2, 8, 8)), {}, "NaN"),
        (np.zeros((2, 8, 8)), np.zeros((2, 8, 8)), {"data_range": 0}, "data_range"),
        (np.zeros((2, 8, 8)), np.zeros((2, 8, 8)), {"batch": [1]}, "batch must be 1-D"),
        (np.zeros((2, 8, 8), complex), np.zeros((2, 8, 8)), {}, "real numbers"),
    ],
)
def test_image_error_bad_input(predicted, target, options, message):
    with pytest.raises(ValueError, match=message):
        image_error(predicted, target, **options)


# ------------------------------------------------------------------------------------------------------- scorers
class FakeBeGAN(TransformerMixin, BaseEstimator):
    """Takes what BeGANTransformer takes; ``keep_batch=0`` removes the batch column of the "images"."""

    __metadata_request__fit = {"batch": True, "cell_type": True, "y_qpi": True}  # noqa: RUF012

    def __init__(self, keep_batch=1.0):
        self.keep_batch = keep_batch

    def fit(self, X_bf, y=None, batch=None, cell_type=None, *, y_qpi=None):
        assert batch is not None and len(batch) == len(X_bf)
        self.fitted_ = True
        return self

    def transform(self, X_bf):
        features = np.asarray(X_bf)[:, 0].copy()
        features[:, :2] *= self.keep_batch
        return features

    def predict_image(self, X_bf):
        return np.asarray(X_bf) + self.keep_batch


@pytest.fixture(scope="module")
def cells():
    rng, t, b = design(240, 2, 2, seed=9)
    X = 0.1 * rng.normal(size=(240, 4, 4))
    X[:, 0, :2] += np.eye(2)[b]
    X[:, 0, 2:] += np.eye(2)[t]
    return X, t, b


SPLIT = KFold(3, shuffle=True, random_state=0)


def test_scorers_by_hand(cells):
    X, t, b = cells
    est = FakeBeGAN(1.0)
    assert leakage_scorer(est, X, t, batch=b) == pytest.approx(-1, abs=0.01)
    assert leakage_scorer(est, X, X, batch=b, cell_type=t) == leakage_scorer(est, X, t, batch=b)
    assert leakage_scorer(FakeBeGAN(0.0), X, t, batch=b) == pytest.approx(0, abs=0.15)
    assert cross_batch_scorer(est, X, t, batch=b) == pytest.approx(1)
    assert cell_type_scorer(est, X, t) == pytest.approx(1)
    assert batch_removal_scorer(est, X, t, batch=b) == pytest.approx(0, abs=0.05)
    assert batch_removal_scorer(FakeBeGAN(0.0), X, t, batch=b) > 0.85
    assert image_error_scorer(est, X, X) == pytest.approx(-1)
    assert image_error_scorer(est, X, t, y_qpi=X) == pytest.approx(-1)
    knn = FeatureScorer("leakage", probe="knn")
    assert knn(est, X, t, batch=b) < -0.9
    assert repr(knn) == "FeatureScorer('leakage', probe='knn')"
    assert pickle.loads(pickle.dumps(knn))(est, X, t, batch=b) == knn(est, X, t, batch=b)


def test_scorer_errors_say_what_to_do(cells):
    X, t, b = cells
    with pytest.raises(ValueError, match=r"with_labels\(X, batch, cell_type\).*enable_metadata_routing"):
        leakage_scorer(FakeBeGAN(), X, t)
    with pytest.raises(ValueError, match="not given cell types"):
        leakage_scorer(FakeBeGAN(), X, X, batch=b)
    with pytest.raises(ValueError, match="target images"):
        image_error_scorer(FakeBeGAN(), X, t)
    with pytest.raises(TypeError, match="no transform"):
        leakage_scorer(LogisticRegression(), X, t, batch=b)
    with pytest.raises(TypeError, match="no predict_image"):
        image_error_scorer(LogisticRegression(), X, X)
    with pytest.raises(ValueError, match="other images"):
        leakage_scorer.with_labels(X[:10], b[:10], t[:10])(FakeBeGAN(), X, t)
    with pytest.raises(ValueError, match="equals an earlier one"):
        leakage_scorer.with_labels(np.zeros((2, 4, 4)), [0, 1])
    with pytest.raises(ValueError, match="metric must be one of"):
        FeatureScorer("accuracy")
    with pytest.raises(TypeError, match="Unknown metadata"):
        FeatureScorer("leakage").set_score_request(sample_weight=True)


@pytest.mark.parametrize("classifier", [False, True])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_search_without_routing(cells, classifier, n_jobs):
    X, t, b = cells
    steps = [("began", FakeBeGAN()), *([("clf", LogisticRegression())] if classifier else [])]
    search = GridSearchCV(
        Pipeline(steps),
        {"began__keep_batch": [1.0, 0.0]},
        scoring=leakage_scorer.with_labels(X, b, t),
        cv=SPLIT,
        error_score="raise",
        n_jobs=n_jobs,
    )
    search.fit(X, t, began__batch=b, began__y_qpi=X)
    assert search.best_params_ == {"began__keep_batch": 0.0}
    assert search.cv_results_["mean_test_score"][0] < -0.9


def test_bare_estimator_search_without_routing(cells):
    X, t, b = cells
    search = GridSearchCV(
        FakeBeGAN(),
        {"keep_batch": [1.0, 0.0]},
        scoring={"removal": batch_removal_scorer.with_labels(X, b, t), "image": image_error_scorer},
        refit="removal",
        cv=SPLIT,
        error_score="raise",
    )
    search.fit(X, X, batch=b, cell_type=t)  # y is the images, so cell types come from with_labels
    assert search.best_params_ == {"keep_batch": 0.0}
    assert search.cv_results_["mean_test_image"] == pytest.approx([-1, 0])


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("as_list", [False, True])
def test_search_with_routing(cells, n_jobs, as_list):
    X, t, b = cells
    batch = b.tolist() if as_list else b
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = Pipeline([("began", FakeBeGAN()), ("clf", LogisticRegression())])
        scoring = {"leakage": leakage_scorer, "removal": batch_removal_scorer, "image": image_error_scorer}
        search = GridSearchCV(
            pipe,
            {"began__keep_batch": [1.0, 0.0]},
            scoring=scoring,
            refit="leakage",
            cv=SPLIT,
            error_score="raise",
            n_jobs=n_jobs,
        )
        search.fit(X, t, batch=batch, y_qpi=X)
        assert search.best_params_ == {"began__keep_batch": 0.0}
        assert search.cv_results_["mean_test_removal"][1] > 0.85
        bare = GridSearchCV(FakeBeGAN(), {"keep_batch": [1.0, 0.0]}, scoring=leakage_scorer, cv=SPLIT)
        bare.fit(X, X, batch=batch, cell_type=t)
        assert bare.best_params_ == {"keep_batch": 0.0}
        found = cross_validate(pipe, X, t, scoring=cross_batch_scorer, cv=SPLIT, params={"batch": batch})
        assert found["test_score"] == pytest.approx(1)


def test_renamed_metadata(cells):
    X, t, b = cells
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = FeatureScorer("leakage").set_score_request(batch="day")
        est = FakeBeGAN().set_fit_request(batch="day")
        search = GridSearchCV(est, {"keep_batch": [1.0, 0.0]}, scoring=scorer, cv=SPLIT, error_score="raise")
        search.fit(X, t, day=b)
        assert search.best_params_ == {"keep_batch": 0.0}
    assert leakage_scorer.get_metadata_routing().score.requests["batch"] is True


def test_leave_one_batch_out_cannot_measure_leakage(cells):
    X, t, b = cells
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            FakeBeGAN(), {"keep_batch": [1.0]}, scoring=leakage_scorer, cv=LeaveOneGroupOut(), error_score="raise"
        )
        with pytest.raises(ValueError, match="folds must mix the batches"):
            search.fit(X, t, batch=b, groups=b)
