"""The fitted model as a plain PyTorch module, and what torch.export and ONNX Runtime make of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from sklearn.exceptions import NotFittedError

import skbegan
from skbegan import PUBLISHED, BeGANTransformer, ProfileAlignment, PublishedRemoval
from skbegan.datasets import make_cell_images
from skbegan.io.bioimageio import export_onnx

TOLERANCE = 1e-5  # of the range of what is compared, for images of the channel
EXPORTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)  # before, names of arguments differ


def assert_close(found: Any, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    found = np.asarray(found)
    assert found.shape == expected.shape
    span = np.ptp(expected, axis=(0, 2, 3), keepdims=True) if expected.ndim == 4 else np.ptp(expected)
    assert np.all(span > 0)
    assert np.all(np.abs(found - expected) <= tolerance * span)


def as_input(bf: np.ndarray) -> torch.Tensor:
    """Channels first, as the module wants them."""
    return torch.from_numpy(bf[:, None] if bf.ndim == 3 else np.ascontiguousarray(np.moveaxis(bf, -1, 1)))


def assert_reproduces(outputs: Any, est: BeGANTransformer, bf: np.ndarray) -> None:
    profile, image = outputs
    images = est.predict_image(bf)
    # Statistics of single images carry rounding on to where a descriptor is a ratio or a logarithm.
    assert_close(profile, est.transform(bf), TOLERANCE if est.norm == "batch" else 10 * TOLERANCE)
    assert_close(image, images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1))


def onnx_outputs(module: torch.nn.Module, sample: torch.Tensor, inputs: list[torch.Tensor], path: Path) -> list[Any]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export_onnx(module, sample, path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [session.run(["profile", "image"], {"brightfield": x.numpy()}) for x in inputs]


def test_it_gives_what_the_estimator_gives(fitted, cells):
    module = fitted.to_torch()
    assert "profile.read" in fitted._model.weights and "erasure.read" in fitted._model.weights
    profile, image = module(as_input(cells.bf))
    assert not profile.requires_grad and not image.requires_grad
    assert image.shape == (90, 1, 16, 16)
    assert_reproduces((profile, image), fitted, cells.bf)


def test_it_is_frozen_in_inference_mode_and_on_the_cpu(fitted):
    module = fitted.to_torch()
    assert not any(part.training for part in module.modules())
    assert not any(weight.requires_grad for weight in module.parameters())
    assert {value.device.type for value in module.state_dict().values()} == {"cpu"}
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}


def test_it_shares_no_memory_with_the_estimator(fitted, cells):
    before, images = fitted.transform(cells.bf[:8]), fitted.predict_image(cells.bf[:8])
    module = fitted.to_torch()
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:
            value.fill_(0.5)
    assert np.array_equal(fitted.transform(cells.bf[:8]), before)
    assert np.array_equal(fitted.predict_image(cells.bf[:8]), images)
    assert_reproduces(fitted.to_torch()(as_input(cells.bf[:8])), fitted, cells.bf[:8])


def test_the_callers_settings_of_torch_do_not_reach_it(fitted, cells):
    state = torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.float64)
        module = fitted.to_torch()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert_reproduces(module(as_input(cells.bf)), fitted, cells.bf)


@pytest.mark.slow
def test_torch_export_reproduces_it_for_any_number_of_cells(fitted, cells, tmp_path):
    module, x = fitted.to_torch(), as_input(cells.bf)
    program = torch.export.export(module, (x[:4],), dynamic_shapes=({0: torch.export.Dim("n_cells")},))
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    assert_reproduces(exported(x), fitted, cells.bf)
    assert_reproduces(exported(x[:1]), fitted, cells.bf[:1])


@pytest.mark.slow
def test_an_exported_file_needs_nothing_of_this_package(fitted, cells, tmp_path):
    x = as_input(cells.bf)
    dynamic = ({0: torch.export.Dim("n_cells")},)
    torch.export.save(torch.export.export(fitted.to_torch(), (x[:4],), dynamic_shapes=dynamic), tmp_path / "model.pt2")
    np.save(tmp_path / "bf.npy", x.numpy())
    code = (
        "import json, sys, numpy, torch\n"
        "torch.set_num_threads(1)\n"
        "profile, _ = torch.export.load('model.pt2').module()(torch.from_numpy(numpy.load('bf.npy')))\n"
        "print(json.dumps([profile.tolist(), 'skbegan' in sys.modules]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    profile, loaded = json.loads(ran.stdout)
    assert not loaded
    assert_close(np.array(profile), fitted.transform(cells.bf))


@pytest.mark.slow
@pytest.mark.skipif(not EXPORTS, reason="an older torch exports to ONNX in another way")
def test_onnx_runtime_reproduces_it_for_any_number_of_cells(fitted, cells, tmp_path):
    x = as_input(cells.bf)
    every, one = onnx_outputs(fitted.to_torch(), x[:4], [x, x[:1]], tmp_path / "model.onnx")
    assert_reproduces(every, fitted, cells.bf)
    assert_reproduces(one, fitted, cells.bf[:1])


@pytest.mark.skipif(not EXPORTS, reason="an older torch exports to ONNX in another way")
def test_published_models_without_standardisation(cells, tmp_path):
    small = {**PUBLISHED, **TINY, "removal": PublishedRemoval(), "pretrain_epochs": 1, "removal_epochs": 1}
    est = BeGANTransformer(**small).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert not est.standardize and est.bf_scale_ == 1
    module, x = est.to_torch(), as_input(cells.bf)
    assert_reproduces(module(x), est, cells.bf)
    assert_reproduces(onnx_outputs(module, x[:4], [x], tmp_path / "model.onnx")[0], est, cells.bf)


@pytest.mark.skipif(not EXPORTS, reason="an older torch exports to ONNX in another way")
def test_several_channels_of_different_scales(cells, tmp_path):
    bf = np.stack([cells.bf, 300 * cells.bf**2 + 1000], axis=-1).astype(np.float32)
    qpi = np.stack([cells.qpi, 20 - 5 * cells.qpi, cells.qpi**2], axis=-1)
    est = BeGANTransformer(**TINY | {"pretrain_epochs": 1, "removal_epochs": 0}).fit(bf, qpi)
    module, x = est.to_torch(), as_input(bf)
    assert module(x)[1].shape == (90, 3, 16, 16)
    assert_reproduces(module(x), est, bf)
    assert_reproduces(onnx_outputs(module, x[:4], [x], tmp_path / "model.onnx")[0], est, bf)


VARIANTS: dict[str, dict[str, Any]] = {
    "brightfields one by one": {"standardize": "image"},
    "instance norm": {"norm": "instance"},
    "group norm": {"norm": "group"},
    "profile of the predicted image": {"profile": ProfileAlignment(descriptor_share=0.5)},
    "whitened profile": {"profile": ProfileAlignment(whitening=0.5)},
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, cells: Any) -> BeGANTransformer:
    est = BeGANTransformer(**TINY | VARIANTS[request.param])
    return est.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)


def test_variants_are_reproduced(variant, cells):
    x = as_input(cells.bf)
    module = variant.to_torch()
    assert_reproduces(module(x), variant, cells.bf)


@pytest.mark.slow
def test_torch_export_reproduces_variants(variant, cells):
    module, x = variant.to_torch(), as_input(cells.bf)
    program = torch.export.export(module, (x[:4],), dynamic_shapes=({0: torch.export.Dim("n_cells")},))
    assert_reproduces(program.module()(x), variant, cells.bf)


@pytest.mark.slow
@pytest.mark.skipif(not EXPORTS, reason="an older torch exports to ONNX in another way")
def test_onnx_runtime_reproduces_variants(variant, cells, tmp_path):
    x = as_input(cells.bf)
    (outputs,) = onnx_outputs(variant.to_torch(), x[:4], [x], tmp_path / "model.onnx")
    assert_reproduces(outputs, variant, cells.bf)


def test_a_loaded_and_a_pickled_model_give_the_same_module(fitted, cells, tmp_path):
    skbegan.save(fitted, tmp_path / "model.safetensors")
    x = as_input(cells.bf[:10])
    profile, image = fitted.to_torch()(x)
    loaded = skbegan.load(tmp_path / "model.safetensors").to_torch()(x)
    assert torch.equal(loaded[0], profile) and torch.equal(loaded[1], image)
    file = io.BytesIO()
    torch.save(fitted.to_torch(), file)
    file.seek(0)
    unpickled = torch.load(file, weights_only=False)(x)
    assert torch.equal(unpickled[0], profile) and torch.equal(unpickled[1], image)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint16, np.int16, np.uint8])
def test_types_of_input(dtype):
    cells = make_cell_images(40, 2, 2, 16, random_state=0)
    bf = cells.bf - cells.bf.min()
    top = 250 if dtype is np.uint8 else 30_000
    bf = (bf / bf.max() * top).astype(dtype)
    est = BeGANTransformer(**TINY | {"pretrain_epochs": 1, "removal_epochs": 0}).fit(bf, cells.qpi)
    assert_reproduces(est.to_torch()(as_input(bf)), est, bf)


def test_a_large_offset_in_float64_costs_no_digits():
    cells = make_cell_images(40, 2, 2, 16, random_state=0)
    bf = cells.bf.astype(np.float64) + 1e8
    assert np.ptp(bf.astype(np.float32)) != np.ptp(bf)  # float32 holds steps of 8 there
    est = BeGANTransformer(**TINY | {"pretrain_epochs": 1, "removal_epochs": 0}).fit(bf, cells.qpi)
    x = as_input(bf)
    assert x.dtype == torch.float64
    assert_reproduces(est.to_torch()(x), est, bf)


def test_in_double_precision_the_offset_is_taken_off_exactly():
    cells = make_cell_images(40, 2, 2, 16, random_state=0)
    bf = (30_000 + 10 * (cells.bf - cells.bf.mean()) / cells.bf.std()).astype(np.uint16)
    est = BeGANTransformer(**TINY | {"pretrain_epochs": 1, "removal_epochs": 0, "precision": "float64"})
    est.fit(bf, cells.qpi)
    profile, image = est.to_torch().double()(as_input(bf))
    assert profile.dtype == torch.float64
    expected = est.transform(bf)
    assert np.abs(profile.numpy() - expected).max() <= 1e-6 * np.ptp(expected)
    assert_reproduces((profile, image), est, bf)


def test_what_cannot_be_done_is_said(fitted, cells):
    with pytest.raises(NotFittedError):
        BeGANTransformer().to_torch()
    module = fitted.to_torch()
    with pytest.raises(ValueError, match=r"must have shape \(n, 1, 16, 16\), got \(90, 16, 16\)"):
        module(torch.from_numpy(cells.bf))
    with pytest.raises(ValueError, match=r"got \(2, 1, 32, 32\)"):
        module(torch.zeros(2, 1, 32, 32))


def test_minibatch_inference_is_refused(cells):
    est = BeGANTransformer(**TINY | {"pretrain_epochs": 1, "removal_epochs": 0, "inference": "minibatch"})
    est.fit(cells.bf, cells.qpi)
    with pytest.raises(ValueError, match="depend on its neighbours"):
        est.to_torch()
    est.set_params(inference="population")
    assert_reproduces(est.to_torch()(as_input(cells.bf)), est, cells.bf)
