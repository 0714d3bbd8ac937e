"""The nearest-neighbour probe looks among a bounded number of cells, so that its time is in proportion to the cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from skbegan.metrics import batch_leakage, cell_type_accuracy, cross_batch_accuracy, image_leakage, probes


def shifted(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features in which two types and two batches can be told, not without error."""
    rng = np.random.default_rng(seed)
    cell_type, batch = rng.integers(2, size=n), rng.integers(2, size=n)
    features = rng.normal(size=(n, 4))
    features[:, 0] += 2 * cell_type
    features[:, 1] += 2 * batch
    return features, batch, cell_type


def test_few_cells_are_all_kept() -> None:
    codes = np.repeat([0, 1, 3], [100, 30, 5])
    np.testing.assert_array_equal(probes.thinned(codes), np.arange(len(codes)))
    most = np.arange(2 * probes.NEIGHBOR_CELLS) % 2
    np.testing.assert_array_equal(probes.thinned(most), np.arange(len(most)))


def test_of_many_cells_the_mix_is_kept_and_no_rare_class_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "NEIGHBOR_CELLS", 100)
    codes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [6000, 3000, 20]))
    kept = probes.thinned(codes)
    counts = np.bincount(codes[kept])
    assert len(np.unique(kept)) == len(kept) <= 3 * 100 + 3 + 15
    assert counts[0] == pytest.approx(2 * counts[1], abs=1)
    assert counts[2] == 15
    np.testing.assert_array_equal(kept, probes.thinned(codes))  # always the same cells


def test_results_of_few_cells_are_those_of_all_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    features, batch, cell_type = shifted(400)
    before = batch_leakage(features, batch, cell_type, probe="knn")
    monkeypatch.setattr(probes, "thinned", lambda codes: np.arange(len(codes)))
    assert before == batch_leakage(features, batch, cell_type, probe="knn")


@pytest.mark.parametrize("metric", ["batch", "image", "cross_batch", "cell_type"])
def test_neighbours_are_looked_for_among_a_bounded_number(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "NEIGHBOR_CELLS", 50)
    fitted: list[int] = []
    for name in ("KNeighborsClassifier", "NearestNeighbors"):
        original = getattr(probes, name)

        class Counting(original):  # type: ignore[misc, valid-type]
            def fit(self, X: Any, y: Any = None) -> Any:
                fitted.append(len(X))
                return super().fit(X, y)

        monkeypatch.setattr(probes, name, Counting)
    features, batch, cell_type = shifted(1200)
    images = np.tile(features[:, None], (1, 4, 1))
    full = KNeighborsClassifier(15)
    found, reference = (
        {
            "batch": lambda p: batch_leakage(features, batch, cell_type, probe=p),
            "image": lambda p: image_leakage(images, batch, cell_type, probe=p, n_components=4),
            "cross_batch": lambda p: cross_batch_accuracy(features, batch, cell_type, probe=p),
            "cell_type": lambda p: cell_type_accuracy(features, cell_type, probe=p),
        }[metric]("knn"),
        {
            "batch": lambda: batch_leakage(features, batch, cell_type, probe=full),
            "image": lambda: image_leakage(images, batch, cell_type, probe=full, n_components=4),
            "cross_batch": lambda: cross_batch_accuracy(features, batch, cell_type, probe=full),
            "cell_type": lambda: cell_type_accuracy(features, cell_type, probe=full),
        }[metric](),
    )
    assert fitted and max(fitted) <= 2 * 50 + 2
    assert found == pytest.approx(reference, abs=0.1)
