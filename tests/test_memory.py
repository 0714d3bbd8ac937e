"""Memory does not grow with the cells where it need not: seen by what numpy allocates, without a clock."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score

from skbegan import BeGANTransformer
from skbegan.datasets import make_cell_images
from skbegan.metrics import _checks, images

N_CELLS, SIDE = 8000, 16
BYTES = 4 * N_CELLS * SIDE**2  # of all images, 8 MB


def peak(run: Callable[[], Any]) -> int:
    """Return the most bytes that numpy and Python held at once during a run, above what they held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        run()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def small() -> Any:
    return make_cell_images(80, 2, 2, SIDE, random_state=0)


@pytest.fixture(scope="module")
def model(small: Any) -> BeGANTransformer:
    model = BeGANTransformer(
        base_width=2, n_features=8, pretrain_epochs=0, removal_epochs=0, device="cpu", random_state=0
    )
    return model.fit(small.bf, small.qpi, small.batch, small.cell_type)


@pytest.fixture(scope="module")
def mapped(small: Any, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    file: Path = tmp_path_factory.mktemp("cells") / "bf.npy"
    np.save(file, np.resize(small.bf.astype(np.float32), (N_CELLS, SIDE, SIDE)))
    return np.load(file, mmap_mode="r")


def test_transform_of_a_memory_map_reads_a_part_at_a_time(model: BeGANTransformer, mapped: np.ndarray) -> None:
    model.transform(mapped[:2])  # builds the generator
    assert peak(lambda: model.transform(mapped)) < 0.4 * BYTES


def test_predicted_images_are_held_once(model: BeGANTransformer, mapped: np.ndarray) -> None:
    model.predict_image(mapped[:2])
    assert peak(lambda: model.predict_image(mapped)) < 1.4 * BYTES


def test_fit_copies_no_images_as_a_whole(small: Any, mapped: np.ndarray) -> None:
    rows = np.arange(N_CELLS) % len(small.bf)
    model = BeGANTransformer(
        base_width=1, n_features=8, pretrain_epochs=0, removal_epochs=0, device="cpu", random_state=0
    )
    labels = small.batch[rows], small.cell_type[rows]
    assert peak(lambda: model.fit(mapped, mapped, *labels)) < 0.5 * BYTES


@pytest.mark.filterwarnings("ignore:score was given")
def test_score_of_images_holds_no_copies_of_them(
    model: BeGANTransformer, mapped: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_CHUNK_PIXELS", 2**16)
    model.score(mapped[:4], mapped[:4])
    assert peak(lambda: model.score(mapped, mapped)) < 1.4 * BYTES


def test_explained_share_is_r_squared_of_all_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(3.0, 1.0, (50, 6, 6, 2)).astype(np.float32)
    predicted = target + rng.normal(0.2, 0.5, target.shape).astype(np.float32)
    expected = r2_score(target.ravel().astype(float), predicted.ravel().astype(float))
    assert images.explained_share(predicted, target) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(images, "_CHUNK_PIXELS", 7 * 72)  # parts of 7 images, the last of 1
    assert images.explained_share(predicted, target) == pytest.approx(expected, rel=1e-9)
    constant = np.full((50, 6, 6), np.float32(0.1))
    with pytest.raises(ValueError, match="constant"):
        images.explained_share(constant, constant)


def test_audited_images_are_checked_a_part_at_a_time() -> None:
    pixels = np.zeros((30_000, 16, 16), np.float32)
    assert peak(lambda: _checks.check_pixels(pixels, "images")) < 0.1 * pixels.nbytes
    pixels[-1, -1, -1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        _checks.check_pixels(pixels, "images")


def test_audited_features_are_checked_to_the_last() -> None:
    features = np.zeros((300_000, 9))
    features[-1, -1] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        _checks.check_features(features)
