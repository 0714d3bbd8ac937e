"""Integration scores on constructed features whose right answer is known."""

import numpy as np
import pytest

from skbegan.metrics import integration_scores
from skbegan.metrics.integration import _lisi, _perplexity_weights

BATCH = ("kbet", "ilisi", "batch_asw")
NAMES = (*BATCH, "graph_connectivity", "clisi", "cell_type_asw")


def make_features(n=600, n_types=3, n_batches=3, batch=0.0, kind=8.0, seed=0, mix=None):
    rng = np.random.default_rng(seed)
    t = rng.integers(0, n_types, n)
    b = rng.choice(n_batches, n, p=mix)
    X = rng.normal(size=(n, 8))
    X[:, :n_types] += kind * np.eye(n_types)[t]
    X[:, 5:] += batch * np.eye(3)[b]
    return X, b, t


def test_no_batch_is_as_good_as_shuffled():
    X, b, t = make_features()
    found = integration_scores(X, b, t)
    for name in BATCH:
        assert found[name].score == pytest.approx(found[name].shuffled, abs=0.06), name
        assert found[name].better == "higher" and found[name].about == "batch"
    assert found.kbet.shuffled == pytest.approx(0.95, abs=0.03)  # a test at 5 % rejects 5 % of what is mixed
    assert found.ilisi.score > 0.75
    assert found.clisi.score > 0.99 and found.clisi.shuffled < 0.2
    assert found.graph_connectivity.score == 1
    assert found.cell_type_asw.score > 0.7 and found.cell_type_asw.shuffled == pytest.approx(0.5, abs=0.03)
    assert found.n_cells == 600 and found.skipped == {}
    assert all(0 <= found[name].score <= 1 and np.isnan(found[name].std) for name in NAMES)


def test_pure_batch_is_not_mixed():
    X, b, t = make_features(batch=30.0)
    found = integration_scores(X, b, t)
    assert found.kbet.score == 0
    assert found.ilisi.score == pytest.approx(0, abs=0.01)
    assert found.batch_asw.score < 0.3 < 0.8 < found.batch_asw.shuffled
    assert found.graph_connectivity.score == pytest.approx(1 / 3, abs=0.08)  # each type falls into its batches


def test_types_that_cannot_be_told_are_chance():
    X, b, t = make_features(kind=0.0)
    found = integration_scores(X, b, t)
    for name in ("clisi", "cell_type_asw", "graph_connectivity"):
        assert found[name].score == pytest.approx(found[name].shuffled, abs=0.08), name


def test_unequal_mix_is_not_taken_for_leakage():
    X, b, t = make_features(n=900, mix=[0.85, 0.1, 0.05])
    found = integration_scores(X, b, t)
    assert found.ilisi.score < 0.4  # perfectly mixed, and yet
    for name in BATCH:
        assert found[name].score == pytest.approx(found[name].shuffled, abs=0.08), name


def test_types_in_different_batches_neither_hide_nor_fake_mixing():
    """Each type in two of four batches. Types lie on one another, so neighbours are of all batches; not in a type."""
    rng = np.random.default_rng(2)
    t = np.repeat([0, 1], 300)
    b = 2 * t + np.arange(600) % 2
    X = rng.normal(size=(600, 4))
    apart = X.copy()
    apart[:, 0] += 20 * t  # types far apart: batches of different types never meet, which is right
    found = integration_scores(apart, b, t)
    assert found.kbet.score > 0.9 and found.ilisi.score > 0.9 and found.batch_asw.score > 0.9
    faked = X.copy()
    faked[:, 0] += 20 * (np.arange(600) % 2)  # the first batch of either type lies on the first of the other
    found = integration_scores(faked, b, t)
    assert found.kbet.score == 0 and found.ilisi.score < 0.01


def test_scores_per_type_and_types_left_out():
    X, b, t = make_features(batch=30.0)
    X[t == 1, 5:] -= 30.0 * np.eye(3)[b[t == 1]]  # type 1 is clean
    keep = ~((t == 2) & (b > 0))  # type 2 is in one batch only
    found = integration_scores(X[keep], b[keep], np.array(["a", "b", "c"])[t[keep]])
    assert set(found.kbet.per_type) == {"a", "b"}
    assert found.kbet.per_type["a"] == 0 and found.kbet.per_type["b"] > 0.85
    assert found.kbet.score == pytest.approx(np.mean(list(found.kbet.per_type.values())))
    assert found.skipped == {"c": "in one batch only"}
    assert set(found.graph_connectivity.per_type) == {"a", "b", "c"}


def test_constant_features_are_mixed_and_say_nothing():
    """Cells in the order of their batches: among equal distances the next in line must not win."""
    b, t = np.repeat([0, 1], 150), np.tile([0, 1, 2], 100)
    features = np.full((300, 4), 0.3) + 1e-9 * np.eye(4)[b]
    found = integration_scores(features, b, t)
    assert found.kbet.score > 0.85 and found.ilisi.score > 0.85 and found.batch_asw.score == 1
    assert found.clisi.score < 0.2 and found.cell_type_asw.score == 0.5


def test_dead_features_count_neither_way():
    X, b, t = make_features()
    dead = np.hstack([X, 1e-9 * np.eye(3)[b], np.full((600, 2), 5.0)])
    one, two = integration_scores(X, b, t, standardize=True), integration_scores(dead, b, t, standardize=True)
    for name in NAMES:
        assert one[name].score == pytest.approx(two[name].score, abs=1e-6)
    scaled = integration_scores(X * [1000, *[1] * 7], b, t, standardize=True)
    assert scaled.clisi.score == pytest.approx(one.clisi.score)
    assert integration_scores(X * [1000, *[1] * 7], b, t).clisi.score < one.clisi.score


def test_repeats_and_limit():
    X, b, t = make_features(n=400)
    found = integration_scores(X, b, t, n_repeats=3)
    assert found.n_cells == 320
    assert 0 < found.kbet.std < 0.1 and 0 < found.batch_asw.std < 0.1
    assert integration_scores(X, b, t, max_cells=150).n_cells == 150
    assert integration_scores(X, b, t, max_cells=None).n_cells == 400
    again = [integration_scores(X, b, t, random_state=3)[name].score for name in NAMES]
    assert again == [integration_scores(X, b, t, random_state=3)[name].score for name in NAMES]


def test_lisi_by_hand():
    """Far labels do not count, near ones do: 1 for one label, 2 for two in equal parts."""
    weights = np.array([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    labels = np.array([[0, 1, 2], [0, 0, 1], [0, 1, 2]])
    assert _lisi(weights, labels) == pytest.approx([2, 1 / (0.75**2 + 0.25**2), 3])
    distances = np.sort(np.random.default_rng(0).gamma(3.0, size=(50, 90)), axis=1)
    weights = _perplexity_weights(distances)
    assert np.exp(-(weights * np.log(weights)).sum(axis=1)) == pytest.approx(30, abs=1e-6)
    slope = np.diff(np.log(weights), axis=1) / np.diff(distances, axis=1)
    assert np.ptp(slope, axis=1) == pytest.approx(0, abs=1e-6 * np.abs(slope).max())  # exponential in the distance


@pytest.mark.parametrize(
    ("batch", "cell_type", "message"),
    [
        (np.zeros(40), np.arange(40) % 2, "no mixing of batches to measure"),
        (np.arange(40) % 2, np.arange(40) % 2, "no mixing of batches to measure"),
        (np.arange(40) % 2, np.zeros(40), "at least two cell types"),
        (np.arange(39) % 2, np.arange(40) % 2, "batch must be 1-D"),
    ],
)
def test_nothing_to_measure_and_bad_input(batch, cell_type, message):
    X = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(ValueError, match=message):
        integration_scores(X, batch, cell_type)
    with pytest.raises(ValueError, match="max_cells"):
        integration_scores(X, np.arange(40) % 2, np.arange(40) // 20, max_cells=1)
