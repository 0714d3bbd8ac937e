"""Data sets of h5py, arrays of zarr and dask: read by rows, never as a whole, with the results of arrays."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array
import h5py
import joblib
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from skbegan import BeGANTransformer, checks, fit
from skbegan.datasets import make_cell_images
from skbegan.stored.adapters import as_lazy
from skbegan.stored.lazy import ROWS_AT_ONCE, LazyRows, runs

N, SIDE = 300, 16
TINY: dict[str, Any] = {
    "base_width": 2,
    "n_features": 8,
    "pretrain_epochs": 1,
    "removal_epochs": 0,
    "minibatch_size": 32,
    "device": "cpu",
    "random_state": 0,
}


@pytest.fixture(scope="module")
def arrays() -> Any:
    cells = make_cell_images(N, 2, 2, SIDE, random_state=0)
    cells.bf = (1000 * cells.bf).astype(">u2")  # as some instruments write them
    cells.qpi = cells.qpi.astype(np.float32)
    return cells


@pytest.fixture(params=["h5py", "zarr", "dask"])
def stored(request: Any, arrays: Any, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """Brightfield and target in one of the libraries."""
    images = {"bf": arrays.bf, "qpi": arrays.qpi}
    if request.param == "h5py":
        with h5py.File(tmp_path / "cells.h5", "w") as file:
            for name, pixels in images.items():
                file.create_dataset(name, data=pixels, chunks=(7, SIDE, SIDE))
        with h5py.File(tmp_path / "cells.h5", "r") as file:
            yield file["bf"], file["qpi"]
    elif request.param == "zarr":
        group = zarr.open_group(tmp_path / "cells.zarr", mode="w")
        for name, pixels in images.items():
            dtype = pixels.dtype.newbyteorder("=")
            group.create_array(name, shape=pixels.shape, dtype=dtype, chunks=(7, SIDE, SIDE))[:] = pixels
        yield group["bf"], group["qpi"]
    else:
        yield tuple(dask.array.from_array(pixels, chunks=(7, SIDE, SIDE)) for pixels in images.values())


def test_rows_are_those_of_the_array(stored, arrays):
    images = as_lazy(stored[0])
    assert isinstance(images, LazyRows) and images.dtype == np.uint16 and images.shape == arrays.bf.shape
    for key in (5, slice(250, 270), np.array([299, 3, 3, -1]), np.arange(N) % 5 == 0):
        np.testing.assert_array_equal(images[key], arrays.bf[key])
    np.testing.assert_array_equal(np.asarray(images), arrays.bf)
    again = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(again[[8, 2]], arrays.bf[[8, 2]])
    assert again.fingerprint() == images.fingerprint()


def test_a_fit_reads_rows_and_equals_that_of_arrays(stored, arrays, monkeypatch):
    read: list[int] = []
    kind = type(as_lazy(stored[0]))
    original = kind._read

    def counting(self: LazyRows, rows: NDArray[np.intp]) -> NDArray[Any]:
        read.append(len(rows))
        return original(self, rows)

    def no_whole(self: LazyRows, *_: Any, **__: Any) -> NDArray[Any]:
        raise AssertionError("all were read at once")

    monkeypatch.setattr(kind, "_read", counting)
    monkeypatch.setattr(LazyRows, "__array__", no_whole)
    if isinstance(stored[0], h5py.Dataset):
        monkeypatch.setattr(h5py.Dataset, "__array__", no_whole)
    model = BeGANTransformer(**TINY).fit(*stored, arrays.batch, arrays.cell_type)
    features = model.transform(stored[0])
    assert 0 < max(read) <= ROWS_AT_ONCE < N
    expected = BeGANTransformer(**TINY).fit(arrays.bf, arrays.qpi, arrays.batch, arrays.cell_type)
    np.testing.assert_array_equal(features, expected.transform(arrays.bf))
    np.testing.assert_array_equal(model.predict_image(stored[0]), expected.predict_image(arrays.bf))


def test_a_cache_knows_images_by_their_content(arrays, tmp_path, monkeypatch):
    trained: list[int] = []
    original = fit.run_stage
    monkeypatch.setattr(fit, "run_stage", lambda *args, **kwargs: trained.append(1) or original(*args, **kwargs))

    def features(pixels: NDArray[Any]) -> NDArray[Any]:
        images = tuple(dask.array.from_array(each, chunks=(100, SIDE, SIDE)) for each in (pixels, arrays.qpi))
        model = BeGANTransformer(**TINY, memory=joblib.Memory(tmp_path, verbose=0), checkpoint_dir=tmp_path / "kept")
        return model.fit(*images, arrays.batch, arrays.cell_type).transform(images[0])

    first = features(arrays.bf)
    np.testing.assert_array_equal(features(arrays.bf.copy()), first)
    assert len(trained) == 1
    changed = arrays.bf.copy()
    changed[-1, -1, -1] += 1
    features(changed)
    assert len(trained) == 2


def test_an_interrupted_fit_goes_on_from_lazy_images(arrays, tmp_path):
    class Stop(Exception):
        pass

    def stop(info: Any) -> None:
        if info.epoch == 2:
            raise Stop

    def model(**options: Any) -> BeGANTransformer:
        return BeGANTransformer(**TINY | {"pretrain_epochs": 3}, **options)

    images = tuple(dask.array.from_array(each, chunks=(100, SIDE, SIDE)) for each in (arrays.bf, arrays.qpi))
    folder = tmp_path / "kept"
    with pytest.raises(Stop):
        model(checkpoint_dir=folder, callback=stop).fit(*images, arrays.batch, arrays.cell_type)
    assert len(list(folder.glob("*.pt"))) == 1
    seen: list[int] = []
    again = model(checkpoint_dir=folder, callback=lambda info: seen.append(info.epoch))
    again.fit(*images, arrays.batch, arrays.cell_type)
    whole = model().fit(*images, arrays.batch, arrays.cell_type)
    assert len(seen) < 3
    np.testing.assert_array_equal(again.transform(images[0]), whole.transform(images[0]))


def test_lazy_images_are_checked_as_arrays_are(stored, arrays, tmp_path):
    with pytest.raises(ValueError, match="must be pairs of the same cells"):
        BeGANTransformer(**TINY).fit(stored[0], stored[1][:10], arrays.batch, arrays.cell_type)
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        pixels = arrays.qpi.copy()
        pixels[271, 3, 3] = np.nan
        for name, values in {"nan": pixels, "complex": pixels.astype(complex), "oblong": pixels[:, :8]}.items():
            file[name] = values
        with pytest.raises(ValueError, match="X_bf contains NaN or infinity, first in cell 271"):
            checks.check_images(file["nan"], "X_bf")
        with pytest.raises(TypeError, match="real numbers, got dtype complex"):
            checks.check_images(file["complex"], "X_bf")
        with pytest.raises(ValueError, match="8 x 16 pixels"):
            checks.check_images(file["oblong"], "X_bf")
    unknown = dask.array.from_array(arrays.bf, chunks=100)[dask.array.from_array(arrays.bf[:, 0, 0] > 0, chunks=100)]
    with pytest.raises(ValueError, match=r"not known yet.*X_bf.compute_chunk_sizes\(\)"):
        checks.check_images(unknown, "X_bf")


def test_runs_of_rows():
    assert runs(np.array([0, 1, 2, 5, 7, 8])) == [(0, 3), (5, 6), (7, 9)] and runs(np.array([], int)) == []
