"""Inference in large chunks with pinned buffers, on a pretended card: the numbers, and what is copied how."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, Mark

from skbegan.core import inference
from skbegan.core.engine import new_rng
from skbegan.core.networks import Generator, new_network, to_numpy
from skbegan.data.source import ImageSource, Scaling
from skbegan.model import FittedModel

SIDE, N = 16, 90


@pytest.fixture(scope="module")
def model() -> FittedModel:
    weights = to_numpy(new_network(Generator, SIDE, base_width=4, n_features=8, rng=new_rng(0)))
    return FittedModel(
        weights, Scaling(np.array([100.0]), np.array([20.0])), Scaling.identity(1), (SIDE, SIDE), (SIDE, SIDE)
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int16", "float32", "float64", "int32"])
def test_a_card_gives_the_numbers_of_the_cpu_from_images_that_travel_as_they_are(model, dtype, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (N, SIDE, SIDE)).astype(dtype)
    if dtype in ("uint16", ">u2"):
        images[3] += 65000 - 255  # would be negative as a signed number
    monkeypatch.setattr(inference, "PIXELS_PER_CHUNK", 40 * SIDE**2)
    monkeypatch.setattr(inference, "PIXELS_ON_CARD", 40 * SIDE**2)
    expected = {want: model.predict(images, want, device="cpu", precision="float32") for want in ("features", "images")}
    sent = []
    original = inference._Buffers.of
    monkeypatch.setattr(inference._Buffers, "of", lambda *a: sent.append(original(*a)) or sent[-1])
    with FakeCuda() as fake:
        model.predict(images[:1], "features", device="cuda", precision="float32")  # the weights go up
        for want, values in expected.items():
            mark = len(fake.events)
            found = model.predict(images, want, device="cuda", precision="float32")
            np.testing.assert_array_equal(found, values)
            waits = fake.since(mark, "wait", "copy to host", "copy to device", "pageable")
            assert {event.where.split(":")[0] for event in waits} <= {"data/source.py"}  # mean and gain, once
            assert sum(event.kind == "pinned" and "to of" in event.what for event in fake.since(mark)) >= 3
    width = {"uint8": 1, "uint16": 2, ">u2": 2, "int16": 2}.get(dtype, 4)
    assert sent[0].element_size() == width and len(fake.main.awaited) == 1 + 2 * 3


def test_results_are_read_when_their_copy_is_done_and_buffers_are_reused_when_theirs_is(model, monkeypatch):
    images = np.random.default_rng(0).normal(100, 20, (N, SIDE, SIDE)).astype(np.float32)
    monkeypatch.setattr(inference, "PIXELS_ON_CARD", 20 * SIDE**2)
    pending: dict[int, Mark] = {}
    of, ready = inference._Buffers.of, inference._Buffers.ready

    def checked_of(self: Any, index: int, *args: Any) -> Any:
        before = self.copied[index % 2]
        buffer = of(self, index, *args)
        assert before is None or before.waited
        return buffer

    def checked_ready(self: Any, index: int) -> Any:
        values = ready(self, index)
        assert self.copied[index % 2].waited
        pending[index] = self.copied[index % 2]
        return values

    monkeypatch.setattr(inference._Buffers, "of", checked_of)
    monkeypatch.setattr(inference._Buffers, "ready", checked_ready)
    with FakeCuda():
        found = model.predict(images, "features", device="cuda", precision="float32")
    assert sorted(pending) == [0, 1, 2, 3, 4] and len(found) == N


def test_chunks_are_large_on_a_card_alone():
    assert inference.chunk_size(128) == inference.chunk_size(128, torch.device("cpu")) == 16
    assert (
        inference.chunk_size(128, torch.device("cuda")) == 1024
        and inference.chunk_size(512, torch.device("cuda")) == 64
    )
    assert inference.chunk_size(16) == 256


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64", "int64", "bool"])
def test_images_on_a_cpu_are_standardised_to_the_bit_as_floats_are(dtype):
    images = np.random.default_rng(0).integers(0, 2, (5, 4, 4, 2)).astype(dtype)
    scaling = Scaling(np.array([0.3, 0.7]), np.array([0.4, 0.9]))
    source = ImageSource(images, scaling, torch.device("cpu"))
    wide = images.dtype.itemsize > 4
    offset = scaling.mean if wide else np.zeros(2)
    plain = torch.from_numpy((images - offset if wide else images).astype(np.float32)).permute(0, 3, 1, 2)
    mean, gain = (
        torch.tensor(x, dtype=torch.float32)[:, None, None] for x in (scaling.mean - offset, 1 / scaling.scale)
    )
    assert torch.equal(source.take(slice(None)), (plain - mean) * gain)
