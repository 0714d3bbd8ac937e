"""What leakage is without a batch, what each probe finds, and the two probes that came last."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from skbegan.metrics import batch_leakage, cell_type_accuracy, image_leakage, leakage_calibration
from skbegan.metrics.calibration import _nearest, _plant, _rotated
from skbegan.metrics.probes import Design, fit_predict, prepare


def design(n=240, n_types=2, n_batches=2, seed=0):
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(n) % (n_types * n_batches))
    return rng, group % n_types, group // n_types


# ------------------------------------------------------------------------------------------------------ calibration
@pytest.mark.parametrize("held", [False, True])
def test_without_a_batch(held):
    rng, t, b = design()
    X = rng.normal(size=(240, 6)) + 3 * np.eye(6)[t]
    train = np.arange(240) % 2 == 0 if held else None
    found = leakage_calibration(X, b, t, probes=["linear", "knn", "trees"], strengths=[], probe_train=train)
    for probe, one in found.items():
        assert one.score == batch_leakage(X, b, t, probe=probe, probe_train=train)
        assert abs(one.mean) < 0.04 and 0.02 < one.bound < 0.25
        assert one.permuted.shape == (200,) and one.std == pytest.approx(one.permuted.std())
        assert one.score < one.bound + 0.1 and one.p_value > 0.02
        assert one.excess == pytest.approx(one.score - one.mean)
        assert one.excess_upper == pytest.approx(one.score + 1.645 * one.stderr - one.mean)
        assert np.isnan(one.smallest) and one.refitted == (probe != "trees")


def test_a_batch_is_beyond_the_bound():
    rng, t, b = design()
    X = rng.normal(size=(240, 6)) + 2 * np.eye(6)[b]
    found = leakage_calibration(X, b, t, probes=["linear", "mlp"], n_permutations=50, strengths=[])
    for one in found.values():
        assert one.score > one.bound + 0.3
        assert one.p_value == pytest.approx(1 / 51)
        assert abs(one.mean) < 0.06  # labels are permuted, so what the features hold does not matter


def test_permuting_held_out_labels_is_as_wide_as_training_anew():
    """Of the same probe, once known by its name and once as any classifier."""
    from sklearn.neighbors import KNeighborsClassifier

    rng, t, b = design(400)
    X = rng.normal(size=(400, 4))
    found = leakage_calibration(X, b, t, probes=["knn", KNeighborsClassifier(15)], strengths=[])
    anew, kept = found["knn"], found["KNeighborsClassifier"]
    assert anew.refitted and not kept.refitted
    assert kept.bound == pytest.approx(anew.bound, abs=0.05)
    assert kept.std == pytest.approx(anew.std, rel=0.35)


@pytest.mark.parametrize("n_components", [None, 4])
def test_shortcuts_name_as_the_probes_do(n_components):
    rng, _, b = design(120, 1, 3)
    X = rng.normal(size=(120, 150 if n_components is None else 20)) * np.linspace(1, 3, 20)[np.arange(1)]
    ready = prepare(X[:90], X[90:], n_components, 0)
    labels = rng.permuted(np.tile(b[:90], (20, 1)), axis=1)
    near = _nearest(ready, labels, b[:90], 3)
    short = _rotated(ready)
    assert short.train.shape[1] <= 90
    for row, by_neighbors in zip(labels, near, strict=True):
        np.testing.assert_array_equal(by_neighbors, fit_predict("knn", ready, row, 0, uniform_prior=True))
        direct = fit_predict("linear", ready, row, 0, uniform_prior=True)
        assert (fit_predict("linear", short, row, 0, uniform_prior=True) == direct).mean() > 0.95


def test_planted_signals():
    rng, t, b = design(400)
    X = rng.normal(size=(400, 4)) + 5 * np.eye(4)[b]  # the real batch must not count
    found = leakage_calibration(X, b, t, strengths=[0.05, 1.0, 4.0], n_planted=3, n_permutations=60)
    for one in found.values():
        assert one.planted.shape == (3, 3) and one.smallest in (1.0, 4.0)
        assert abs(one.planted[0].mean()) < 0.15 and one.planted[2].mean() > 0.5
        assert (np.diff(one.planted.mean(axis=1)) > 0).all() and one.detected[2] == 1
    stretched = leakage_calibration(
        X[:, :2], b, t, probes=["linear", "knn"], kind="scale", strengths=[4.0], n_planted=3, n_permutations=60
    )
    assert stretched["linear"].planted.mean() < 0.5 * stretched["knn"].planted.mean()
    assert stretched["knn"].smallest == 4.0


def test_the_planted_shift_has_the_size_it_says():
    rng, t, b = design(2000, 1, 2)
    X = rng.normal(size=(2000, 1)) * 7
    moved, hidden = _plant(X, Design.of(b, t, None, 2000), 3.0, "shift", np.random.default_rng(0))
    change = moved - X
    assert np.abs(change).max() == pytest.approx(3 * X.std(), rel=1e-6)
    assert np.corrcoef(hidden.batch, b)[0, 1] == pytest.approx(0, abs=0.08)
    assert np.bincount(hidden.batch).tolist() == np.bincount(b).tolist()


def test_calibration_names_order_and_seed():
    rng, t, b = design()
    X = rng.normal(size=(240, 3))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    common = {"probes": ["knn"], "n_permutations": 20, "strengths": [1.0], "n_planted": 2}
    one = leakage_calibration(X, b, t, **common)["knn"]
    other = leakage_calibration(100 * X.astype(np.float64), np.array(["x", "y"])[b], t + 5, **common)["knn"]
    np.testing.assert_array_equal(one.permuted, other.permuted)
    np.testing.assert_allclose(one.planted, other.planted)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_calibration_of_images():
    rng, t, b = design(120)
    images = rng.normal(size=(120, 8, 8))
    found = leakage_calibration(images, b, t, probes=["linear"], n_permutations=20, n_components=5, strengths=[])
    assert found["linear"].score == image_leakage(images, b, t, n_components=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": "linear"}, "probes must be a list"),
        ({"probes": []}, "probes must be a list"),
        ({"probes": ["svm"]}, "probe must be 'linear'"),
        ({"probes": ["cnn"]}, "use image_leakage"),
        ({"probes": ["knn", "knn"]}, "given once"),
        ({"strengths": [1.0, 0.5]}, "ascending"),
        ({"strengths": [0.0]}, "positive"),
        ({"kind": "turn"}, "kind must be"),
        ({"n_permutations": 0}, "n_permutations"),
        ({"batch": np.zeros(240)}, "no batch leakage"),
    ],
)
def test_calibration_bad_input(change, message):
    rng, t, b = design()
    with pytest.raises(ValueError, match=message):
        leakage_calibration(**{"features": rng.normal(size=(240, 2)), "batch": b, "cell_type": t, **change})


# ------------------------------------------------------------------------------------------------------------ probes
@pytest.mark.slow
def test_trees_read_what_lines_cannot():
    rng, t, b = design(400)
    X = rng.uniform(-1, 1, size=(400, 4))
    noise = batch_leakage(X, b, t, probe="trees")
    X[:, 0] = np.abs(X[:, 0]) * np.sign(X[:, 1]) * (2 * b - 1)
    assert abs(noise) < 0.15
    assert abs(batch_leakage(X, b, t)) < 0.15
    assert batch_leakage(X, b, t, probe="trees") > 0.8
    assert (
        batch_leakage(X, b, t, probe="trees", n_repeats=2, probe_train=np.arange(400) < 200, return_details=True).std
        == 0
    )
    assert cell_type_accuracy(X + 3 * np.eye(4)[t + 2], t, probe="trees") > 0.9


def test_cnn_reads_noise_that_components_do_not():
    rng = np.random.default_rng(0)
    b = np.arange(120) % 2
    images = rng.normal(size=(120, 16, 16)) * (1 + b)[:, None, None]
    before = torch.random.get_rng_state()
    train = np.arange(120) < 80
    found = image_leakage(images, b, probe="cnn", probe_train=train)
    assert found > 0.9
    assert abs(image_leakage(images, b, probe_train=train)) < 0.6 * found
    assert image_leakage(images[..., None], b, probe="cnn", probe_train=train) == found  # the same seed
    assert (torch.random.get_rng_state() == before).all()
    plain = image_leakage(rng.normal(size=(120, 16, 16)), b, probe="cnn", probe_train=train)
    assert abs(plain) < 0.45
    constant = image_leakage(np.ones((120, 16, 16)), b, probe="cnn", probe_train=train)
    assert constant == pytest.approx(0, abs=1e-9)


def test_cnn_is_for_images_only():
    rng, t, b = design(60)
    with pytest.raises(ValueError, match="use image_leakage"):
        batch_leakage(rng.normal(size=(60, 4)), b, t, probe="cnn")
    code = "import sys, skbegan.metrics; assert not {'torch', 'skimage'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
