"""Cells that do not fit into memory: blocks in random order through a bounded buffer, and a sample that is measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from conftest import TINY
from numpy.typing import NDArray

from skbegan import BeGANTransformer, ProfileAlignment, fit
from skbegan.data import stream as streaming
from skbegan.data.cells import StreamedCells
from skbegan.data.stream import RowBuffer, RowsExcept, ShuffledBlocks, Stream, StreamSampler, plan_stream
from skbegan.datasets import make_cell_images
from skbegan.stored.adapters import ArrayRows, as_lazy
from skbegan.stored.lazy import CellSource, KeptRows

N, SIDE = 600, 16


class MadeUp:
    """A source that makes its pixels up of the row: images of one number, of any number of cells."""

    def __init__(self, n: int, block: int, pause: float = 0.0) -> None:
        self.shape, self.dtype, self.pause = (n, SIDE, SIDE), np.dtype(np.uint8), pause
        self._bounds = np.append(np.arange(0, n, block), n)
        self.read_rows: list[int] = []

    def read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        self.read_rows.append(len(rows))
        time.sleep(self.pause)
        noise = np.arange(SIDE * SIDE, dtype=np.int64).reshape(SIDE, SIDE)
        return ((rows[:, None, None] + noise * (rows % 7 + 1)[:, None, None]) % 251).astype(np.uint8)

    def blocks(self) -> NDArray[np.int64]:
        return self._bounds

    def fingerprint(self) -> str:
        return f"made up, {self.shape}"


def order_of(n: int, block: int, slots: int, held_out: list[int], size: int, seed: int = 0) -> Any:
    source = as_lazy(MadeUp(n, block))
    assert source is not None
    bounds = source.blocks()
    assert bounds is not None
    stream = Stream(bounds, np.arange(len(bounds) - 1) % 3, np.array(held_out, dtype=np.int64), slots)
    stream = stream.enough_for(size)
    rows = RowsExcept(n, stream.held_out)
    buffer = RowBuffer((source, source), rows, stream.slots)
    return StreamSampler(stream, buffer, size, torch.Generator().manual_seed(seed), steps=5), buffer, rows


def test_rows_but_a_few_are_what_an_array_of_them_is():
    rows, truth = RowsExcept(20, np.array([0, 4, 5, 19])), np.delete(np.arange(20), [0, 4, 5, 19])
    assert len(rows) == len(truth)
    np.testing.assert_array_equal(rows[np.arange(16)], truth)
    np.testing.assert_array_equal(rows[:7], truth[:7])
    np.testing.assert_array_equal(rows.positions(np.array([0, 1, 5, 6, 20])), [0, 0, 3, 3, 16])


def test_a_pass_hands_out_every_training_cell_once_with_its_pixels():
    sampler, buffer, rows = order_of(203, 10, 30, [3, 50, 51], 8)
    seen = []
    for _ in range(5):  # 25 minibatches are one pass of 200
        for positions in sampler.epoch():
            images, others = buffer.take(positions.numpy())
            np.testing.assert_array_equal(images, MadeUp(203, 10).read(rows[positions.numpy()]))
            np.testing.assert_array_equal(images, others)
            seen += positions.tolist()
    assert sorted(seen) == list(range(200)) and seen != sorted(seen)


def test_the_order_mixes_blocks_and_strata_and_depends_on_the_seed_alone():
    n, block = 4000, 10
    bounds = np.append(np.arange(0, n, block), n)
    stratum = np.arange(n // block) // 100  # stored one stratum after the other
    stream = Stream(bounds, stratum, np.empty(0, np.int64), 600)

    def order(seed: int) -> torch.Tensor:
        blocks, parts = ShuffledBlocks(stream, seed), []
        while len(part := blocks.round()):
            parts.append(part)
        return torch.cat(parts)

    found = order(1)
    assert torch.equal(found, order(1)) and not torch.equal(found, order(2))
    assert torch.equal(found.sort().values, torch.arange(n))
    for start in range(0, n - 200, 200):
        part = found[start : start + 200]
        assert np.bincount(stratum[part // block], minlength=4).min() > 20  # 50 of each are expected
        assert len((part // block).unique()) > 20


def test_the_buffer_holds_no_more_than_its_slots_however_slow_either_side_is():
    for pause, wait in ((0.002, 0.0), (0.0, 0.002)):
        sampler, buffer, _ = order_of(400, 10, 60, [], 5, seed=3)
        buffer._shared.sources[0]._source.pause = pause
        most, orders = 0, []
        for positions in sampler.epoch():
            time.sleep(wait)
            most = max(most, len(buffer._shared.slot_of))
            orders.append(positions)
        assert most <= sampler.stream.slots == 60
        if pause:
            expected = orders
    assert torch.equal(torch.stack(orders), torch.stack(expected))


@pytest.mark.parametrize("n_before", [1, 3, 6])
def test_a_stream_goes_on_from_its_state(n_before):
    def new(seed: int = 0) -> Any:
        return order_of(203, 10, 30, [3, 50, 51], 8, seed)[0]

    whole, first = new(), new()
    expected = [part for _ in range(8) for part in whole.epoch()]
    found = [part for _ in range(n_before) for part in first.epoch()]
    second = new(1)
    second.rng = first.rng
    second.restore(first.state())
    found += [part for _ in range(8 - n_before) for part in second.epoch()]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    state = first.state() or {"drawn_at": first._drawn_at, "done": 8, "slots": 30}
    for wrong in ({"done": 7}, {"done": 0}, {"slots": 31}):
        with pytest.raises(ValueError, match="order of its cells"):
            new().restore({**state, **wrong})


def test_what_the_reading_thread_meets_is_raised_where_the_cells_are_taken():
    sampler, buffer, _ = order_of(200, 10, 60, [], 5)

    def fail(rows: Any) -> Any:
        raise OSError("the disk is gone")

    buffer._shared.sources[0]._source.read = fail
    with pytest.raises(OSError, match="the disk is gone"):
        next(sampler.epoch())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Cells in zarr, a batch after the other."""
    cells = make_cell_images(N, 2, 2, SIDE, random_state=0)
    order = np.argsort(cells.batch, kind="stable")
    folder: Path = tmp_path_factory.mktemp("stored")
    group = zarr.open_group(folder / "cells.zarr", mode="w")
    for name in ("bf", "qpi"):
        pixels = cells[name][order].astype(np.float32)
        group.create_array(name, shape=pixels.shape, dtype=pixels.dtype, chunks=(10, SIDE, SIDE))[:] = pixels
    return group["bf"], group["qpi"], cells.batch[order], cells.cell_type[order]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer of 160 cells and a sample of 200."""
    pair = 2 * 4 * SIDE**2
    monkeypatch.setattr(streaming, "BUFFER_BYTES", 160 * pair)
    monkeypatch.setattr(streaming, "SAMPLE_BYTES", 200 * pair)


# Stage 3 takes longer than all else, and is not what is tested.
SHORT = ProfileAlignment(descriptor_share=0.0, steps=4, views=1, image_erasure=False)
STREAMED = (
    TINY | {"profile": SHORT} | {"pretrain_epochs": 2, "removal_epochs": 2, "steps_per_epoch": 4, "minibatch_size": 16}
)


def same(a: BeGANTransformer, b: BeGANTransformer) -> bool:
    weights, others = a._model.weights, b._model.weights
    return weights.keys() == others.keys() and all(np.array_equal(weights[name], others[name]) for name in weights)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stage", ["pretraining", pytest.param("batch_removal", marks=pytest.mark.slow)])
def test_a_streamed_fit_is_reproducible_and_resumes_to_the_bit(stored, small, tmp_path, monkeypatch, stage):
    taken: list[int] = []
    original = StreamedCells.take
    monkeypatch.setattr(StreamedCells, "take", lambda self, at, *of: taken.append(len(at)) or original(self, at, *of))
    parameters = STREAMED | ({"removal_epochs": 0} if stage == "pretraining" else {"pretrain_epochs": 1})
    whole = BeGANTransformer(**parameters).fit(*stored)
    assert len(taken) == 4 * (parameters["pretrain_epochs"] + parameters["removal_epochs"])
    assert "validation_image" in whole.history_[stage]

    def stop(info: Any) -> None:
        if (info.stage, info.epoch) == (stage, 2):
            raise Stopped

    with pytest.raises(Stopped):
        BeGANTransformer(**parameters, checkpoint_dir=tmp_path, callback=stop).fit(*stored)
    assert list(tmp_path.glob("*.pt"))
    again = BeGANTransformer(**parameters, checkpoint_dir=tmp_path).fit(*stored)
    assert same(again, whole) and again.history_ == whole.history_


def test_images_that_fit_into_the_buffer_give_what_arrays_give(stored):
    bf, qpi, *labels = stored
    parameters = STREAMED | {"removal_epochs": 0, "pretrain_epochs": 1}
    lazy, eager = (BeGANTransformer(**parameters).fit(*pair, *labels) for pair in ((bf, qpi), (bf[:], qpi[:])))
    assert same(lazy, eager)


def test_the_sample_stays_in_memory_and_the_held_out_cells_are_not_trained_on(stored, small):
    bf, qpi = (as_lazy(images) for images in stored[:2])
    labels = [np.unique(each, return_inverse=True)[1] for each in stored[2:]]
    stream, kept, rows = streaming.draw_stream(bf, qpi, *labels, 0.1, 0)
    assert 4 * len(stream.held_out) == len(rows) == pytest.approx(160, abs=20)  # a fifth of the sample
    assert not set(stream.held_out) & set(rows) and stream.n_cells == N - len(stream.held_out)
    assert len(np.unique(labels[0][stream.held_out] * 2 + labels[1][stream.held_out])) == 4
    kept[0].images._read = None  # would fail
    np.testing.assert_array_equal(kept[0][stream.held_out], stored[0][:][stream.held_out])
    trained = RowsExcept(N, stream.held_out)[:]
    assert not set(trained) & set(stream.held_out)


@pytest.mark.slow
def test_published_removal_and_a_cost_estimate_of_streamed_cells(stored, small):
    from skbegan import PublishedRemoval

    parameters = STREAMED | {"removal": PublishedRemoval(), "classifier_epochs": 1, "pretrain_epochs": 1}
    model = BeGANTransformer(**parameters | {"removal_epochs": 1}).fit(*stored)
    assert np.isfinite(model.transform(stored[0])).all()
    estimate = BeGANTransformer(**STREAMED | {"steps_per_epoch": None}).estimate_cost(*stored)
    assert estimate["pretraining"].steps_per_epoch == (N - 40) // 16


def test_a_source_of_ones_own_is_checked():
    assert isinstance(MadeUp(10, 3), CellSource) and isinstance(ArrayRows(np.zeros((3, 2, 2))), CellSource)
    source = MadeUp(10, 3)
    source._bounds = np.array([0, 3, 9])
    with pytest.raises(ValueError, match="must rise from 0 to the number of cells, 10"):
        as_lazy(source)
    source = MadeUp(10, 3)
    source.read = lambda rows: np.zeros((len(rows), 3, 3))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"returned the shape \(2, 3, 3\) for 2 rows"):
        as_lazy(source)[:2]  # type: ignore[index]


def test_fingerprints_tell_files_apart_without_reading_them(stored, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((500, SIDE, SIDE), np.float32))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    found = {fit._key(part) for part in (mapped, mapped[1:], np.asarray(mapped)[:-1], mapped[::2])}
    assert len(found) == 4 and all(isinstance(key, str) for key in found)
    assert fit._key(mapped) == fit._key(np.asarray(mapped)) and isinstance(fit._key(mapped.copy()), np.ndarray)
    lazy = as_lazy(stored[0])
    assert lazy is not None
    read: list[int] = []
    original = lazy._read
    lazy._read = lambda rows: read.append(len(rows)) or original(rows)  # type: ignore[method-assign]
    first = lazy.fingerprint()
    assert sum(read) == 16 and KeptRows(lazy, np.arange(3)).fingerprint() == first
    stored[0][599, 3, 4] = stored[0][599, 3, 4]  # the same pixels, another time
    assert lazy.fingerprint() != first


@pytest.mark.slow
def test_nothing_as_long_as_the_data_is_made_of_a_hundred_million_cells(monkeypatch):
    import tracemalloc

    n = 10**8
    batch, cell_type = (np.zeros(n, np.uint8) for _ in range(2))
    batch[n // 2 :] = 1
    cell_type[n // 4 : 3 * n // 4] = 1
    monkeypatch.setattr(streaming, "SAMPLE_CELLS", 512)
    monkeypatch.setattr(streaming, "MAX_SLOTS", 4096)
    source, target = MadeUp(n, 256), MadeUp(n, 256)
    parameters = STREAMED | {"pretrain_epochs": 1, "removal_epochs": 1, "steps_per_epoch": 2}
    tracemalloc.start()
    try:
        model = BeGANTransformer(**parameters).fit(source, target, batch, cell_type)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert model.batches_.tolist() == [0, 1] and sum(source.read_rows) < 50_000
    assert peak < 2 * n + 2**27  # a byte for the code of either label of each cell, and 128 MiB


def test_plans_join_short_blocks_and_keep_long_ones(monkeypatch):
    monkeypatch.setattr(streaming, "BUFFER_BYTES", 6400 * 2 * SIDE**2)
    codes = np.zeros(100_000, np.uint8)
    for block, expected in ((1, 100), (30, 120), (5000, 5000)):
        source = as_lazy(MadeUp(100_000, block))
        bounds, stratum, slots = plan_stream(source, source, codes, codes)
        assert slots == 6400 and np.diff(bounds)[0] == expected and bounds[-1] == 100_000
        assert len(stratum) == len(bounds) - 1 and stratum.max() == 0


@pytest.mark.parametrize("dtype", ["int8", "uint16", ">i2", "int64", "U3", "float32"])
def test_codes_and_counts_are_those_of_numpy_in_small_dtypes(dtype, rng, monkeypatch):
    from skbegan.labels import codes as small

    monkeypatch.setattr(small, "_AT_ONCE", 7)
    labels = rng.integers(0, 90, 50).astype(dtype)
    classes, codes = small.encoded(labels)
    expected = np.unique(labels, return_inverse=True)
    np.testing.assert_array_equal(classes, expected[0])
    np.testing.assert_array_equal(codes, expected[1])
    assert codes.dtype == np.uint8
    known = np.arange(80) >= 30
    _, partly = small.encoded(labels, known)
    assert partly.dtype == np.int8 and (partly[:30] == -1).all()
    np.testing.assert_array_equal(partly[30:], codes)
    others = rng.integers(0, 3, 80).astype(np.uint8)
    counts, unknown = small.counted(partly, len(classes), others, 3)
    np.testing.assert_array_equal(unknown, np.bincount(others[:30], minlength=3))
    assert counts.shape == (len(classes), 3) and counts[codes[0], others[30]] >= 1 and counts.sum() == 50


def test_validation_cells_of_unknown_type_are_a_group_of_their_own():
    from skbegan.data.splitting import split_validation

    batch, cell_type = np.repeat(np.array([0, 1], np.uint8), 40), np.tile(np.array([-1, 0, 1, 127], np.int8), 20)
    train, held_out = split_validation(batch, cell_type, 0.1, 0)
    found = np.unique(np.stack([batch, cell_type.astype(int)])[:, held_out], axis=1, return_counts=True)
    assert found[0].shape[1] == 8 and set(found[1]) == {1} and len(train) == 72


ENDS_EARLY = """
import sys, time
from pathlib import Path
import numpy as np
from skbegan.stored.lazy import in_order
from skbegan.stored.adapters import as_lazy
from skbegan.data.stream import RowBuffer, RowsExcept

class Slow:
    shape, dtype = (4000, 4, 4), np.dtype(np.uint8)
    def read(self, rows):
        with Path(sys.argv[2]).open("a") as log:
            log.write("b")
            time.sleep(0.5)
            log.write("e")
        return np.zeros((len(rows), 4, 4), np.uint8)
    def blocks(self):
        return np.arange(0, 4001, 400)
    def fingerprint(self):
        return "slow"

source = as_lazy(Slow())
if sys.argv[1] == "fit":
    buffer = RowBuffer((source,), RowsExcept(4000, np.empty(0, np.int64)), 4000)
    buffer.begin(iter(np.split(np.arange(4000), 10)))
else:
    parts = in_order(source, 400)
    next(parts)
while not Path(sys.argv[2]).exists():
    time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["fit", "transform"])
def test_python_waits_at_its_exit_for_the_block_that_is_read(what, tmp_path):
    import subprocess
    import sys

    log = tmp_path / "log"
    command = [sys.executable, "-c", ENDS_EARLY, what, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    read = log.read_text(encoding="utf-8")
    assert read == len(read) // 2 * "be" and 2 <= len(read) < 20  # what was begun was ended, and no more was begun
