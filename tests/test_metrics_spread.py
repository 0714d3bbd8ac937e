"""Image leakage, the gap to within-batch accuracy, active features, and the spread that every figure comes with."""

import numpy as np
import pytest
import sklearn
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline

from skbegan.metrics import (
    FeatureScorer,
    active_features,
    batch_leakage,
    batch_removal_score,
    cell_type_accuracy,
    cross_batch_accuracy,
    cross_batch_gap,
    cross_batch_gap_scorer,
    image_leakage,
    image_leakage_scorer,
)

PROBES = ("linear", "mlp", "knn")


def design(n=300, n_types=3, n_batches=3, seed=0):
    """As many cells of each type in each batch, in random order."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(n) % (n_types * n_batches))
    return rng, group % n_types, group // n_types


def make_images(rng, t, b, batch=1.0, side=16):
    """Noisy images with a spot whose place tells the type, and a brightness gradient that tells the batch."""
    images = 0.05 * rng.normal(size=(len(t), side, side))
    images[np.arange(len(t)), 4 + 3 * t, 8] += 1 + 0.2 * rng.normal(size=len(t))
    return (images + batch * 0.2 * b[:, None, None] * np.linspace(0, 1, side)).astype(np.float32)


# ------------------------------------------------------------------------------------------------- image leakage
@pytest.mark.parametrize("probe", PROBES)
def test_images_with_and_without_batch(probe):
    rng, t, b = design()
    assert image_leakage(make_images(rng, t, b), b, t, probe=probe) > 0.95
    assert abs(image_leakage(make_images(rng, t, b, batch=0), b, t, probe=probe)) < 0.17
    faint = make_images(rng, t, b, batch=0)
    faint[:, 15, 15] += 0.3 * b  # one pixel, a small part of what differs
    assert image_leakage(faint, b, t, probe=probe) > 0.5


def test_images_in_any_form_and_none_changed():
    rng, t, b = design(180)
    images = make_images(rng, t, b)
    expected = image_leakage(images, b, t)
    images.setflags(write=False)
    assert image_leakage(images[..., None], b, t) == expected
    bytes_ = np.clip(images * 60 + 60, 0, 255).astype(np.uint8)
    assert image_leakage(bytes_, b, t) > 0.9
    assert image_leakage(1e3 + images.astype(float), b, t) == pytest.approx(expected, abs=0.05)
    found = image_leakage(images, b, t, n_repeats=2, n_components=3, return_details=True)
    assert found.chance == pytest.approx(1 / 3) and found.n_cells == 180 and found.std >= 0


def test_components_are_those_of_the_probes_training_cells():
    """A direction in which only the scored cells vary must not become a component."""
    rng, _, b = design(200, 1, 2)
    train = np.arange(200) < 100
    images = 0.01 * rng.normal(size=(200, 16, 16))
    images[:, 0, 0] += rng.normal(size=200)
    images[~train, 8, 8] += 100 * b[~train]
    assert abs(image_leakage(images, b, probe_train=train, n_components=1)) < 0.25
    assert image_leakage(images[~train], b[~train], n_components=1) > 0.95


def test_constant_and_nearly_constant_images_do_not_leak():
    _, t, b = design(180)
    flat = np.full((180, 16, 16), 0.1, np.float32)
    assert image_leakage(flat, b, t) == pytest.approx(0, abs=0.02)
    rounding = flat.astype(float)
    rounding[:, 3, 3] += 1e-9 * b
    assert image_leakage(rounding, b, t) == pytest.approx(0, abs=0.02)
    assert image_leakage(flat + 0.1 * b[:, None, None], b, t) > 0.97


@pytest.mark.parametrize("where", ["large components", "small components"])
def test_neighbours_find_the_batch_at_whatever_scale(where):
    """It hides among 30 noisy components if these are standardised, or under one large component if they are not."""
    rng, _, b = design(300, 1, 2)
    images = np.zeros((300, 8, 8))
    if where == "large components":
        images[:, 0, 0] = 10 * b + rng.normal(size=300)
        images[:, 2:] += 0.3 * rng.normal(size=(300, 6, 8))
    else:
        images[:, 0, 0] = 10 * rng.normal(size=300)
        images[:, 1, 1] = 0.1 * b + 0.01 * rng.normal(size=300)
    assert image_leakage(images, b, probe="knn") > 0.9


def test_n_components_reduces_any_features():
    rng, t, b = design(240)
    X = 0.05 * rng.normal(size=(240, 60))
    X[:, :3] += 10 * np.eye(3)[t]
    X[:, 3:6] += 0.5 * np.eye(3)[b]
    assert batch_leakage(X, b, t, n_components=3) > 0.95  # within a type, the batch varies most
    assert cell_type_accuracy(X, t, n_components=2) == 1
    assert cross_batch_accuracy(X, b, t, n_components=2) == 1
    assert cross_batch_gap(X, b, t, n_components=2) == 0
    assert batch_removal_score(X, b, t, n_components=3) < 0.1
    with pytest.raises(ValueError, match="n_components must be an integer"):
        batch_leakage(X, b, t, n_components=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((9, 4)), r"\(n, H, W\)"),
        (np.zeros((0, 4, 4)), r"\(n, H, W\)"),
        (np.full((9, 4, 4), np.nan), "NaN or infinity"),
        (np.full((9, 4, 4), "a"), "real numbers"),
    ],
)
def test_image_leakage_bad_input(images, message):
    with pytest.raises(ValueError, match=message):
        image_leakage(images, np.arange(len(images)) % 2)


# --------------------------------------------------------------------------------------------------------- the gap
def test_gap_where_batches_agree_is_none():
    rng, t, b = design()
    found = cross_batch_gap(0.1 * rng.normal(size=(300, 3)) + np.eye(3)[t], b, t, return_details=True)
    assert found.score == 0 and found.within == 1 and found.cross.score == 1
    assert {label: row.n_cells for label, row in found.per_batch.items()} == dict(enumerate(np.bincount(b)))
    assert abs(cross_batch_gap(rng.normal(size=(300, 3)), b, t)) < 0.12  # nothing to read, nothing lost


@pytest.mark.parametrize("fixed", [False, True])
def test_gap_where_a_batch_turns_types_round_is_all(fixed):
    """Types are perfectly readable by who knows the batch, and wrong for who does not."""
    rng, t, b = design(400, 2, 2)
    X = 0.05 * rng.normal(size=(400, 3))
    X[:, 0] += (2 * t - 1) * np.where(b == 0, 1, -1)
    X[:, 1] = X[:, 0] * (2 * b - 1)
    X[:, 2] += 3 * b
    X = np.c_[X[:, 0] * (b == 0), X[:, 0] * (b == 1), X[:, 2]]  # its own feature for each batch
    train = np.arange(400) < 200 if fixed else None
    found = cross_batch_gap(X, b, t, probe_train=train, return_details=True)
    assert found.within > 0.95
    assert found.cross.score < 0.6
    assert found.score == pytest.approx(found.within - found.cross.score)
    assert found.n_cells == (200 if fixed else 400)
    assert "hits" not in found.cross


def test_gap_compares_the_same_cells_in_an_incomplete_design():
    rng = np.random.default_rng(1)
    t = np.repeat(["a", "b", "c"], 100)
    b = np.where(t == "c", 0, np.arange(300) % 2)  # c lives in batch 0 only and is scored by neither
    X = 0.1 * rng.normal(size=(300, 3)) + np.eye(3)[np.unique(t, return_inverse=True)[1]]
    found = cross_batch_gap(X, b, t, return_details=True)
    assert found.n_cells == found.cross.n_cells == 200
    assert found.score == 0


# ------------------------------------------------------------------------------------------------ spread and chance
def every_metric(X, t, b, **params):
    yield batch_leakage(X, b, t, return_details=True, **params)
    yield cell_type_accuracy(X, t, return_details=True, **params)
    yield cross_batch_accuracy(X, b, t, return_details=True, **params)
    yield cross_batch_gap(X, b, t, return_details=True, **params)
    yield batch_removal_score(X, b, t, return_details=True, **params)


def test_every_metric_has_a_spread_over_repeats():
    rng, t, b = design()
    X = rng.normal(size=(300, 6)) + np.hstack([np.eye(3)[t], np.eye(3)[b]])
    tree = LogisticRegression(C=0.1)
    for found in every_metric(X, t, b, n_repeats=3, probe=tree):
        assert len(found.repeats) == 3
        assert found.score == pytest.approx(found.repeats.mean())
        assert found.std == pytest.approx(found.repeats.std())
        assert 0 < found.stderr < 0.1
    for found in every_metric(X, t, b):
        assert np.isnan(found.std) and 0 < found.stderr < 0.1
    for metric in (batch_leakage, cross_batch_gap, batch_removal_score):
        assert metric(X, b, t, n_repeats=3, return_details=True).std > 0  # other folds
    assert cell_type_accuracy(X, t, n_repeats=3, return_details=True).std > 0
    assert cross_batch_accuracy(X, b, t, n_repeats=3, return_details=True).std == 0  # no folds, and no seed
    assert cross_batch_accuracy(X, b, t, n_repeats=3, probe="mlp", return_details=True).std > 0


def test_a_fixed_split_is_computed_once_for_a_probe_without_a_seed():
    rng, t, b = design()
    X = rng.normal(size=(300, 6)) + np.hstack([np.eye(3)[t], np.eye(3)[b]])
    train = np.arange(300) < 150
    for found, once in zip(
        every_metric(X, t, b, n_repeats=3, probe_train=train), every_metric(X, t, b, probe_train=train), strict=True
    ):
        assert found.std < 1e-12 and found.stderr > 0
        assert found.score == pytest.approx(once.score)


@pytest.mark.parametrize("metric", ["leakage", "cell type", "cross batch"])
def test_standard_error_tells_how_far_other_cells_would_move_the_figure(metric):
    """Against the scatter over data sets drawn anew, and smaller for more cells."""

    def measure(n, seed):
        rng, t, b = design(n, 2, 2, seed)
        X = rng.normal(size=(n, 2)) + np.c_[1.5 * t, 1.0 * b]
        train = np.arange(n) < n // 2
        return {
            "leakage": lambda: batch_leakage(X, b, t, probe_train=train, return_details=True),
            "cell type": lambda: cell_type_accuracy(X, t, probe_train=train, return_details=True),
            "cross batch": lambda: cross_batch_accuracy(X, b, t, probe_train=train, return_details=True),
        }[metric]()

    found = [measure(400, seed) for seed in range(40)]
    scatter = np.std([f.score for f in found])
    assert 0.6 * scatter < np.mean([f.stderr for f in found]) < 1.5 * scatter
    assert measure(6400, 0).stderr == pytest.approx(found[0].stderr / 4, rel=0.2)


def test_a_perfect_score_of_few_cells_is_not_certain():
    X = np.eye(2)[np.arange(12) % 2]
    few = cell_type_accuracy(X, np.arange(12) % 2, return_details=True)
    many = cell_type_accuracy(np.tile(X, (50, 1)), np.arange(600) % 2, return_details=True)
    assert few.score == many.score == 1
    assert few.stderr > 0.05 > 0.005 > many.stderr > 0


# -------------------------------------------------------------------------------------------------- active features
def test_active_features():
    rng = np.random.default_rng(0)
    X = np.hstack([rng.normal(size=(500, 4)), np.full((500, 3), 7.0), 0.001 * rng.normal(size=(500, 1))])
    found = active_features(X, return_details=True)
    assert (found.score, found.n_active, found.n_features) == (0.5, 4, 8)
    assert found.effective_dimensions == pytest.approx(4, abs=0.05)
    same = np.outer(rng.normal(size=500), np.ones(6)) + 1.0
    assert active_features(same) == 1
    assert active_features(same, return_details=True).effective_dimensions == pytest.approx(1)
    dead = active_features(np.full((20, 5), 0.3), return_details=True)
    assert (dead.score, dead.effective_dimensions) == (0, 0)
    assert active_features(X, min_relative_std=0) == 5 / 8
    with pytest.raises(ValueError, match="min_relative_std"):
        active_features(X, min_relative_std=1)


# ----------------------------------------------------------------------------------------------------------- scorers
class Painter(TransformerMixin, BaseEstimator):
    """Its "predicted images" keep as much of the batch as it is asked to; features keep all of it."""

    __metadata_request__fit = {"batch": True, "cell_type": True, "y_qpi": True}  # noqa: RUF012

    def __init__(self, keep=1.0):
        self.keep = keep

    def fit(self, X_bf, y=None, batch=None, cell_type=None, *, y_qpi=None):
        self.fitted_ = True
        return self

    def transform(self, X_bf):
        features = np.asarray(X_bf)[:, 0].copy()
        features[:, 3:] *= self.keep
        return features

    def predict_image(self, X_bf):
        images = np.asarray(X_bf).copy()
        images[:, 0, 3:] *= self.keep
        return images


@pytest.fixture(scope="module")
def cells():
    rng, t, b = design(270, 3, 3, seed=3)
    X = 0.1 * rng.normal(size=(270, 6, 6))
    X[:, 0, :3] += 0.2 * np.eye(3)[t]
    # two batches suggest what is wrong in the third
    X[:, 0, 3:] += 3 * np.eye(3)[(b + t) % 3]
    return X, t, b


@pytest.mark.parametrize("scorer", [image_leakage_scorer, cross_batch_gap_scorer])
def test_new_scorers_in_both_routing_modes(cells, scorer):
    X, t, b = cells
    split = KFold(2, shuffle=True, random_state=0)
    options = {"cv": split, "error_score": "raise"}
    pipe = Pipeline([("began", Painter()), ("clf", LogisticRegression())])
    search = GridSearchCV(pipe, {"began__keep": [1.0, 0.0]}, scoring=scorer.with_labels(X, b, t), **options)
    search.fit(X, t, began__batch=b)
    assert search.best_params_ == {"began__keep": 0.0}
    off = search.cv_results_["mean_test_score"]
    assert off[1] == pytest.approx(0, abs=0.12) and off[0] < off[1] - 0.1
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(pipe, {"began__keep": [1.0, 0.0]}, scoring=scorer, **options)
        search.fit(X, t, batch=b)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], off)
    assert scorer(search, X, t, batch=b) == scorer(search.best_estimator_, X, t, batch=b)


def test_image_leakage_scorer_needs_images_and_batches(cells):
    X, t, b = cells
    assert image_leakage_scorer(Painter(), X, t, batch=b) < -0.9
    assert FeatureScorer("image_leakage", n_components=5, probe="knn")(Painter(), X, t, batch=b) < -0.9
    with pytest.raises(TypeError, match="no predict_image"):
        image_leakage_scorer(LogisticRegression(), X, t, batch=b)
    with pytest.raises(ValueError, match="not given the batch"):
        image_leakage_scorer(Painter(), X, t)
