"""Cross-batch precision and effective rank on features whose right answer is known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from skbegan.metrics import cross_batch_precision, effective_rank


def design(n=180, n_types=3, n_batches=3, seed=0):
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(n) % (n_types * n_batches))
    return rng, group % n_types, group // n_types


# -------------------------------------------------------------------------------------------- cross-batch precision
def test_against_scikit_learn_cell_by_cell():
    rng, t, b = design(60)
    X = rng.normal(size=(60, 5)) + np.eye(5)[t]
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected = []
    for i in range(60):
        asked = (t == t[i]) != (b == b[i])
        expected.append(average_precision_score((t == t[i])[asked], (unit @ unit[i])[asked]))
    found = cross_batch_precision(X, b, t, standardize=False, return_details=True)
    assert found.score == pytest.approx(np.mean(expected))
    assert found.n_cells == 60
    for k in range(3):
        assert found.per_type[k] == pytest.approx(np.mean(np.array(expected)[t == k]))
        assert found.per_batch[k] == pytest.approx(np.mean(np.array(expected)[b == k]))


def test_type_is_one_batch_is_less_than_chance_and_noise_is_chance():
    rng, t, b = design(360)
    noise = rng.normal(size=(360, 6))
    assert cross_batch_precision(0.02 * noise[:, :3] + np.eye(3)[t], b, t) == pytest.approx(1)
    random = cross_batch_precision(noise, b, t, return_details=True)
    assert random.score == pytest.approx(random.chance, abs=0.02)
    assert random.normalized == pytest.approx(0, abs=0.04)
    assert random.permuted == pytest.approx(random.chance, abs=0.02)
    assert random.score < random.permuted_bound + 0.02
    by_batch = cross_batch_precision(noise + 30 * np.eye(6)[b + 3] + 3 * np.eye(6)[t], b, t, return_details=True)
    assert by_batch.score < by_batch.chance - 0.1
    assert by_batch.permuted < by_batch.chance - 0.1  # permuting types leaves the batch
    mixed = cross_batch_precision(noise + 3 * np.eye(6)[t], b, t, return_details=True)
    assert random.score < mixed.permuted_bound < mixed.score < 1 and 0 < mixed.stderr < 0.1


@pytest.mark.parametrize("n_types", [2, 5])
def test_chance_of_a_random_ranking(n_types):
    """Against many random features; the share of positives is 1 / n_types for two batches."""
    scores = []
    for seed in range(30):
        rng, t, b = design(10 * n_types, n_types, 2, seed)
        found = cross_batch_precision(rng.normal(size=(len(t), 40)), b, t, n_permutations=0, return_details=True)
        scores.append(found.score)
    assert np.mean(scores) == pytest.approx(found.chance, abs=0.02)
    assert np.isnan(found.permuted)


def test_names_order_scale_and_ties():
    rng, t, b = design()
    X = rng.normal(size=(180, 4)) + 2 * np.eye(4)[t]
    score = cross_batch_precision(X, b, t)
    assert cross_batch_precision(X * [1, 100, 0.1, 7] + 5, np.array(list("xyz"))[b], -t) == pytest.approx(score)
    order = rng.permutation(180)
    assert cross_batch_precision(X[order], b[order], t[order]) == pytest.approx(score)
    same = cross_batch_precision(np.full((180, 3), 0.3), b, t, return_details=True)  # ties are broken at random
    assert same.score == pytest.approx(same.chance, abs=0.03)
    sorted_order = np.lexsort((b, t))
    same = cross_batch_precision(np.ones((180, 3)), b[sorted_order], t[sorted_order], return_details=True)
    assert same.score == pytest.approx(same.chance, abs=0.03)


def test_incomplete_designs_and_fewer_cells():
    rng, t, b = design(240, 3, 4)
    b = np.where(t == 2, 3, b % 3)  # type 2 is alone in batch 3
    X = rng.normal(size=(240, 4)) + 9 * np.eye(4)[t]
    found = cross_batch_precision(X, b, t, return_details=True)
    assert set(found.per_type) == {0, 1} and found.n_cells == (t < 2).sum()
    assert found.score == pytest.approx(1, abs=0.01)
    part = cross_batch_precision(X, b, t, max_cells=100, return_details=True)
    assert part.n_cells < 100
    again = cross_batch_precision(X.tolist(), pd.Series(b), list(t), max_cells=100, random_state=0)
    assert again == part.score
    for batch, cell_type in ((np.zeros(240), t), (b, np.zeros(240)), (t, t)):
        with pytest.raises(ValueError, match="no cross-batch precision to measure"):
            cross_batch_precision(X, batch, cell_type)


def test_components_of_pixels():
    rng, t, b = design()
    X = (rng.normal(size=(180, 4)) + 20 * np.eye(4)[t]) @ rng.normal(size=(4, 40))
    assert cross_batch_precision(X, b, t, n_components=3) > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((5, 3, 3))}, "2-D"),
        ({"batch": [0, 1]}, "batch must be 1-D"),
        ({"n_components": 0}, "n_components"),
        ({"n_permutations": -1}, "n_permutations"),
        ({"max_cells": 2.5}, "max_cells"),
    ],
)
def test_bad_input(change, message):
    rng, t, b = design(30)
    with pytest.raises(ValueError, match=message):
        cross_batch_precision(**{"features": rng.normal(size=(30, 2)), "batch": b, "cell_type": t, **change})


# ---------------------------------------------------------------------------------------------------- effective rank
def test_effective_rank_of_known_spectra():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(400, 9)) - 0)[0]
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]  # orthogonal and centred: correlations are exactly 0
    assert effective_rank(basis) == pytest.approx(9)
    groups = basis[:, [0, 0, 0, 1, 1, 2]]  # shares 1/2, 1/3, 1/6
    p = np.array([3, 2, 1]) / 6
    found = effective_rank(groups * [1, 100, -2, 5, 1e-3, 3] + 7, return_details=True)
    assert found.score == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    np.testing.assert_allclose(found.shares, p, atol=1e-6)
    assert (found.n_directions, found.n_features, found.n_alive) == (3, 6, 6)
    assert effective_rank(basis[:, [0] * 5]) == pytest.approx(1)


def test_directions_above_the_floor():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(500, 3)))[0]
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]
    X = basis[:, [0, 0, 1]] + 0.1 * basis[:, [2, 1, 2]] * [1, 0, 0]
    assert effective_rank(X, return_details=True).n_directions == 2  # the third has 0.005 of an average direction
    assert effective_rank(X, floor=1e-4, return_details=True).n_directions == 3
    assert effective_rank(X, floor=3, return_details=True).n_directions == 0


def test_effective_rank_of_dead_few_and_permuted_features():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(40, 100))
    assert effective_rank(X) <= 39
    assert effective_rank(X[:, :6]) == pytest.approx(effective_rank(np.c_[X[:, :6], np.full((40, 4), 0.1)]))
    assert effective_rank(np.full((20, 3), 0.1)) == 0
    assert effective_rank(np.ones((1, 3)), return_details=True).n_directions == 0
    order = rng.permutation(40)
    assert effective_rank(X[order][:, ::-1]) == pytest.approx(effective_rank(X))
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="floor"):
            effective_rank(X, floor=wrong)
