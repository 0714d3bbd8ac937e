"""Retained variation on features whose right answer is known."""

import sys

import numpy as np
import pandas as pd
import pytest

from skbegan.metrics import RetainedVariation, retained_variation


@pytest.fixture(scope="module")
def planted():
    """240 cells, 2 types x 3 batches; what they are, and features that hold parts of it."""
    rng = np.random.default_rng(0)
    n = 240
    t, b = np.arange(n) % 2, np.arange(n) // 2 % 3
    size, angle, noise = rng.normal(size=(3, n))
    table = {
        "size": 3 * size + 5 * t,  # types differ, and that earns nothing
        "absent": rng.normal(size=n),
        "bent": np.square(angle),  # readable, but not by a line
        "half": noise + rng.normal(size=n),  # half of its variance is in the features
    }
    X = np.c_[size, angle, noise, rng.normal(size=(n, 2))]
    return X, table, np.array(["mon", "tue", "wed"])[b], np.array(["a", "b"])[t]


def test_planted_answers(planted):
    X, table, b, t = planted
    found = retained_variation(X, table, b, t)
    assert isinstance(found, RetainedVariation) and list(found.measurements) == list(table)
    for mode in ("seen", "left_out"):
        assert found["size"].linear[mode].score > 0.98
        assert found["size"].kernel[mode].score > 0.9
        assert found["bent"].linear[mode].score < 0.1
        assert found["bent"].kernel[mode].score > 0.5
        for probe in ("linear", "kernel"):
            absent, half = (found[name][probe][mode] for name in ("absent", "half"))
            assert absent.score < 0.06 and absent.score < half.score
            assert 0.3 < half.score < 0.7
            assert half.chance_bound < 0.1 and abs(half.chance) < 0.1
            assert half.n_cells == 240 and 0 < half.stderr < 0.15 and 0 < half.std < 0.3
            assert set(half.per_type) == {"a", "b"}
            assert np.mean(list(half.per_type.values())) == pytest.approx(half.score)
    assert set(found["size"].linear.left_out.folds) == {"mon", "tue", "wed"}
    assert len(found["size"].linear.seen.folds) == 5


def test_to_know_type_and_batch_alone_earns_nothing(planted):
    _, table, b, t = planted
    labels = np.c_[t == "a", b == "mon", b == "tue"].astype(float)
    found = retained_variation(labels + 0.01 * np.random.default_rng(1).normal(size=labels.shape), table, b, t)
    assert found["size"].linear.seen.score < 0.02
    assert found["size"].kernel.left_out.score < 0.02


def test_a_batch_that_looks_like_other_cells_misleads_where_it_was_left_out(planted):
    X, table, b, t = planted
    shifted = X + 4 * (b == "wed")[:, None]
    found = retained_variation(shifted, {"size": table["size"]}, b, t)["size"]
    assert found.linear.seen.score > 0.7  # what is left when the other features cancel the shift
    assert found.linear.left_out.folds["wed"] < -1


def test_measurements_that_carry_their_batch(planted):
    """The instrument moves and stretches the measurement; features that know it are paid for that unless centred."""
    X, table, b, t = planted
    gain = pd.Series(b).map({"mon": 1.0, "tue": 1.5, "wed": 0.7}).to_numpy()
    offset = pd.Series(b).map({"mon": 0.0, "tue": 20.0, "wed": -20.0}).to_numpy()
    only_batch = np.c_[b == "mon", b == "tue"] + 0.01 * np.random.default_rng(2).normal(size=(240, 2))
    measured = {"size": gain * table["size"] + offset}
    paid = retained_variation(only_batch, measured, b, t)["size"].linear.seen
    assert paid.score > 0.5
    assert paid.chance > 0.5  # permuted within the batch, so it is known
    centred = retained_variation(only_batch, measured, b, t, center="batch")["size"].linear.seen
    assert centred.score < 0.05
    right = retained_variation(X, measured, b, t, center="batch")["size"]
    assert right.linear.seen.score > 0.9 and right.linear.left_out.score > 0.9


def test_order_names_of_labels_and_scale_of_features_do_not_matter(planted):
    X, table, b, t = planted
    one = {"size": table["size"], "half": table["half"]}
    given = retained_variation(X, one, b, t, n_permutations=0).to_frame()
    renamed = retained_variation(
        1000 * X + 3,
        {k: 7 * v - 2 for k, v in one.items()},
        np.char.add("day ", b),
        np.char.add("type ", t),
        n_permutations=0,
    ).to_frame()
    np.testing.assert_allclose(renamed.score, given.score, atol=1e-6)
    order = np.random.default_rng(3).permutation(240)
    moved = retained_variation(
        X[order], {k: v[order] for k, v in one.items()}, b[order], t[order], n_permutations=0
    ).to_frame()
    left_out = given.index.get_level_values("batches") == "left_out"
    np.testing.assert_allclose(moved.score[left_out], given.score[left_out], atol=1e-6)
    np.testing.assert_allclose(moved.score, given.score, atol=0.08)  # other folds


def test_held_out_cells(planted):
    X, table, b, _ = planted
    train = np.arange(240) % 4 < 2
    wrong = {"size": np.where(train, table["size"], -table["size"])}
    found = retained_variation(X, wrong, b, np.full(240, "one"), probe_train=train)["size"].linear
    assert found.seen.n_cells == found.left_out.n_cells == 120
    assert found.seen.score < -1
    assert np.isnan(found.seen.std)  # one fold


def test_missing_constant_and_impossible(planted):
    X, table, b, t = planted
    gaps = table["size"].copy()
    gaps[::3] = np.nan
    few = np.full(240, np.nan)
    few[:5] = np.arange(5)
    found = retained_variation(
        X, {"size": gaps, "half": table["half"], "flat": np.full(240, 0.1), "few": few}, b, t, n_permutations=3
    )
    assert list(found.measurements) == ["size", "half"]
    assert found["size"].linear.seen.n_cells == 160 and found["half"].linear.seen.n_cells == 240
    assert set(found.skipped) == {"flat", "few"}
    with pytest.raises(KeyError, match="'flat' was not measured: It does not vary"):
        found["flat"]
    one_batch = retained_variation(X, table, np.zeros(240), t, n_permutations=2)["size"].linear
    assert one_batch.seen.score > 0.9 and np.isnan(one_batch.left_out.score) and one_batch.left_out.n_cells == 0
    with pytest.raises(ValueError, match="no retained variation to measure"):
        retained_variation(X, {"flat": np.ones(240)}, b, t)
    with pytest.raises(ValueError, match="no retained variation to measure"):
        retained_variation(X[:8], {"size": table["size"][:8]}, b[:8], t[:8])
    dead = retained_variation(np.full((240, 4), 0.3), table, b, t, n_permutations=2)
    assert dead["size"].kernel.seen.score == pytest.approx(0, abs=0.05)


def test_ways_in_and_reproducible(planted):
    X, table, b, t = planted
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    frame = pd.DataFrame(table)[["size", "half"]]
    a = retained_variation(X, frame, b, t, n_permutations=5, random_state=3).to_frame()
    again = retained_variation(
        X.tolist(), frame.to_dict("list"), pd.Series(b), list(t), n_permutations=5, random_state=3
    )
    pd.testing.assert_frame_equal(a, again.to_frame())
    unnamed = retained_variation(X, frame.to_numpy(), b, t, n_permutations=5, random_state=3).to_frame()
    np.testing.assert_array_equal(unnamed.score, a.score)
    assert list(a.columns) == ["score", "std", "stderr", "chance", "chance_bound", "n_cells"]
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    repeated = retained_variation(X, frame, b, t, n_repeats=2, n_permutations=0)["size"].linear
    assert len(repeated.seen.folds) == 10 and repeated.seen.n_cells == 240


def test_principal_components_of_images(planted):
    X, table, b, t = planted
    pixels = X @ np.random.default_rng(5).normal(size=(5, 50)) + 0.01 * np.random.default_rng(6).normal(size=(240, 50))
    found = retained_variation(pixels, table, b, t, n_components=6, n_permutations=0)
    assert found["size"].linear.left_out.score > 0.95


def test_standard_error_tells_how_far_other_cells_would_move_the_figure():
    def score(seed):
        rng = np.random.default_rng(seed)
        y = rng.normal(size=300)
        X = (y + rng.normal(size=300))[:, None]
        train = np.arange(300) < 150
        found = retained_variation(X, {"y": y}, np.arange(300) % 2, probe_train=train, n_permutations=0)
        return found["y"].linear.seen

    found = [score(seed) for seed in range(40)]
    assert 0.6 < np.mean([f.stderr for f in found]) / np.std([f.score for f in found]) < 1.5


def test_bad_input(planted, monkeypatch):
    X, table, b, t = planted
    good = {"features": X, "measurements": table, "batch": b, "cell_type": t}
    for change, message in (
        ({"measurements": table["size"]}, "measurements must be a DataFrame"),
        ({"measurements": {}}, "one or more columns"),
        ({"measurements": {"size": table["size"][:-1]}}, "'size' must be 240 real numbers"),
        ({"measurements": {"size": t}}, "'size' must be 240 real numbers"),
        ({"measurements": {"size": np.full(240, np.inf)}}, "holds infinity"),
        ({"center": "type"}, "center must be"),
        ({"n_permutations": -1}, "n_permutations"),
        ({"n_splits": 1}, "n_splits"),
        ({"batch": b[:-1]}, "batch must be 1-D"),
    ):
        with pytest.raises(ValueError, match=message):
            retained_variation(**{**good, **change})
    found = retained_variation(X, {"size": table["size"]}, b, t, n_permutations=0)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        found.to_frame()
