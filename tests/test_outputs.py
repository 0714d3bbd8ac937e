"""transform and predict_image into arrays on disk, block by block and resumable, and lazily from arrays of dask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import sklearn
import zarr
from conftest import TINY

from skbegan import BeGANTransformer
from skbegan.core import inference
from skbegan.model import FittedModel

SIDE = 16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cells are predicted at once, 16 are written at once."""
    monkeypatch.setattr(inference, "PIXELS_PER_CHUNK", 8 * SIDE**2)
    monkeypatch.setattr("skbegan._into._PARTS", 2)


@pytest.fixture(params=["array", "memory map", "h5py", "zarr"])
def new_out(request: Any, tmp_path: Path) -> Any:
    """Make an output of a shape in one of the libraries."""
    files = []

    def new(*shape: int) -> Any:
        if request.param == "array":
            return np.empty(shape, np.float32)
        if request.param == "memory map":
            return np.lib.format.open_memmap(tmp_path / f"{len(shape)}.npy", "w+", np.float32, shape)
        if request.param == "h5py":
            files.append(h5py.File(tmp_path / f"{len(shape)}.h5", "w"))
            return files[-1].create_dataset("out", shape, np.float32, chunks=(12, *shape[1:]))
        return zarr.create_array(tmp_path / f"{len(shape)}.zarr", shape=shape, dtype="float32", chunks=(12, *shape[1:]))

    yield new
    for file in files:
        file.close()


def noted(out: Any) -> bool:
    if isinstance(out, np.memmap):
        return Path(f"{out.filename}.skbegan_written.json").exists()
    return "skbegan_written" in getattr(out, "attrs", {})


def test_outputs_hold_what_is_returned_without_them(fitted, cells, new_out):
    for method, shape in ((fitted.transform, (90, 16)), (fitted.predict_image, (90, SIDE, SIDE))):
        out = new_out(*shape)
        assert method(cells.bf, out=out) is out and not noted(out)
        np.testing.assert_array_equal(np.asarray(out), method(cells.bf))


def test_a_call_that_was_stopped_goes_on_where_it_stopped(fitted, cells, new_out, monkeypatch):
    out, expected = new_out(90, 16), fitted.transform(cells.bf)
    seen: list[int] = []
    original = FittedModel.predict

    def predict(self: FittedModel, bf: Any, *args: Any, **kwargs: Any) -> Any:
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(len(bf))
        return original(self, bf, *args, **kwargs)

    monkeypatch.setattr(FittedModel, "predict", predict)
    resumes = not isinstance(out, np.ndarray) or isinstance(out, np.memmap)
    block = 24 if not isinstance(out, np.ndarray) else 16  # whole chunks of 12 cells and parts of 8
    stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        fitted.transform(cells.bf, out=out)
    assert seen == [block] * 2 and noted(out) == resumes
    seen.clear()
    stop_after = 99
    fitted.transform(cells.bf, out=out)
    assert sum(seen) == (90 - 2 * block if resumes else 90) and not noted(out)
    np.testing.assert_array_equal(np.asarray(out), expected)
    # Neither other images nor another model go on with what was written.
    other = BeGANTransformer(**TINY | {"random_state": 1, "pretrain_epochs": 1, "removal_epochs": 0})
    other.fit(cells.bf, cells.qpi)
    for model, images in ((fitted, cells.bf[::-1]), (other, cells.bf)):
        seen.clear()
        stop_after = 2
        with pytest.raises(KeyboardInterrupt):
            fitted.transform(cells.bf, out=out)
        stop_after = 99
        seen.clear()
        model.transform(images, out=out)
        assert sum(seen) == 90
        np.testing.assert_array_equal(np.asarray(out), model.transform(images))


def test_what_cannot_be_written_to_is_refused_before_any_work(fitted, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(FittedModel, "predict", lambda *_, **__: pytest.fail("it has begun"))
    np.save(tmp_path / "read.npy", np.zeros((90, 16), np.float32))
    frozen = np.load(tmp_path / "read.npy", mmap_mode="r")
    with h5py.File(tmp_path / "read.h5", "w") as file:
        file.create_dataset("out", (90, 16), np.float32)
    group = zarr.create_array(tmp_path / "read.zarr", shape=(90, 16), dtype="float32")
    assert group is not None
    with h5py.File(tmp_path / "read.h5") as file:
        for out, message in (
            (np.empty((89, 16), np.float32), r"out has the shape \(89, 16\), but the results have \(90, 16\)"),
            (np.empty((90, 16), np.float16), "dtype float16, which does not hold float32"),
            (np.empty((90, 16), np.int64), "dtype int64"),
            (frozen, "can only be read"),
            (file["out"], "can only be read"),
            (zarr.open_array(tmp_path / "read.zarr", mode="r"), "can only be read"),
        ):
            with pytest.raises(ValueError, match=message):
                fitted.transform(cells.bf, out=out)
    for out in ([0.0], da.zeros((90, 16)), "out.npy"):
        with pytest.raises(TypeError, match="out must be an array"):
            fitted.transform(cells.bf, out=out)
    with pytest.raises(ValueError, match=r"the results have \(90, 16, 16\)"):
        fitted.predict_image(cells.bf, out=np.empty((90, 16), np.float32))


@pytest.mark.parametrize("inference_", ["population", "minibatch"])
def test_an_array_of_dask_gives_one_that_computes_the_same_numbers(fitted, cells, inference_):
    model = sklearn.clone(fitted).set_params(inference=inference_)._adopt(fitted._model)
    images = da.from_array(cells.bf, chunks=(25, 8, SIDE))
    read = []
    watched = images.map_blocks(lambda part: read.append(len(part)) or part, dtype=images.dtype, meta=images._meta)
    for method, shape in ((model.transform, (90, 16)), (model.predict_image, (90, SIDE, SIDE))):
        lazy = method(watched)
        assert isinstance(lazy, da.Array) and lazy.shape == shape and lazy.dtype == np.float32 and not read
        assert type(lazy._meta) is np.ndarray and lazy._meta.dtype == np.float32 and len(lazy.chunks[0]) > 2
        np.testing.assert_array_equal(lazy.compute(), method(cells.bf))
        assert lazy.name == method(watched).name
        read.clear()
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(model.transform(images)[40:50].compute(), model.transform(cells.bf)[40:50])


def test_an_array_of_dask_is_checked_for_shape_at_once_and_for_values_later(fitted, cells):
    with pytest.raises(ValueError, match="fitted on"):
        fitted.transform(da.zeros((4, 32, 32), chunks=2))
    odd = cells.bf.copy()
    odd[70] = np.nan
    lazy = fitted.transform(da.from_array(odd, chunks=(30, SIDE, SIDE)))
    np.testing.assert_array_equal(lazy[:24].compute(), fitted.transform(cells.bf)[:24])
    with pytest.raises(ValueError, match="NaN or infinity"):
        lazy.compute()


def test_dask_in_and_zarr_out(fitted, cells, tmp_path):
    out = zarr.create_array(tmp_path / "out.zarr", shape=(90, 16), dtype="float64", chunks=(30, 16))
    assert fitted.transform(da.from_array(cells.bf, chunks=(25, SIDE, SIDE)), out=out) is out
    np.testing.assert_array_equal(out[:], fitted.transform(cells.bf).astype(np.float64))


def test_scikit_learn_neither_wraps_nor_routes_an_output(fitted, cells):
    model = sklearn.clone(fitted).set_output(transform="pandas")._adopt(fitted._model)
    out = np.empty((90, 16), np.float32)
    assert model.transform(cells.bf, out=out) is out and type(model.transform(cells.bf)).__name__ == "DataFrame"
    assert model.transform(X_bf=cells.bf, out=out) is out
    assert "out" not in model.get_metadata_routing().transform.requests
    with pytest.raises(TypeError):
        model.transform(cells.bf, out)


@pytest.mark.parametrize("held", [2**24, 1])
def test_long_chunks_are_written_whole_and_read_in_parts(fitted, cells, tmp_path, monkeypatch, held):
    monkeypatch.setattr("skbegan._into._HELD", held)
    out = zarr.create_array(tmp_path / "long.zarr", shape=(90, 16), dtype="float32", chunks=(64, 16))
    expected, seen, written = fitted.transform(cells.bf), [], []
    predict, write = FittedModel.predict, zarr.Array.__setitem__
    monkeypatch.setattr(
        FittedModel,
        "predict",
        lambda self, bf, *args, **options: seen.append(len(bf)) or predict(self, bf, *args, **options),
    )
    monkeypatch.setattr(
        zarr.Array, "__setitem__", lambda self, key, values: written.append(len(values)) or write(self, key, values)
    )
    fitted.transform(cells.bf, out=out)
    assert max(seen) == 16 and sum(seen) == 90
    assert written == ([64, 26] if held > 1 else [16] * 5 + [10])
    np.testing.assert_array_equal(out[:], expected)
