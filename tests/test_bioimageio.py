"""Packages of the BioImage Model Zoo, run by its own library."""

from __future__ import annotations

import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import TINY

from skbegan import BeGANTransformer
from skbegan.io.bioimageio import write_package

pytest.importorskip("bioimageio.core")
pytest.importorskip("onnxruntime")
ABOUT = {"name": "cells of a test", "authors": ["A. Nobody"], "license": "CC-BY-4.0"}


@pytest.mark.slow
def test_the_zoos_own_test_passes_and_finds_what_the_estimator_gives(fitted, cells, tmp_path):
    import bioimageio.core

    path = write_package(tmp_path / "p.zip", fitted, cells.bf, pixel_size=0.5, target_names=["phase"], **ABOUT)
    assert [file.name for file in tmp_path.iterdir()] == ["p.zip"]
    summary = bioimageio.core.test_model(path, weight_format="onnx")
    assert summary.status == "passed", summary.format()
    described = bioimageio.core.load_model_description(path)
    assert described.name == ABOUT["name"] and described.license == "CC-BY-4.0"
    assert [axis.id for axis in described.outputs[1].axes] == ["batch", "channel", "y", "x"]
    assert described.inputs[0].axes[2].scale == 0.5 and described.inputs[0].axes[2].unit == "micrometer"
    assert described.outputs[1].axes[1].channel_names == ["phase"]
    found = bioimageio.core.predict(model=path, inputs={"brightfield": cells.bf[:, None]})
    profile, image = (np.asarray(found.members[name].data) for name in ("profile", "image"))
    assert np.abs(profile - fitted.transform(cells.bf)).max() <= 1e-5 * np.ptp(profile)
    assert np.abs(image[:, 0] - fitted.predict_image(cells.bf)).max() <= 1e-5 * np.ptp(image)
    text = zipfile.ZipFile(path).read("documentation.md").decode()
    assert "batch0" in text and "Nothing was validated" in text


@pytest.mark.slow
def test_a_package_of_several_channels_and_of_a_single_cell(cells, tmp_path):
    import bioimageio.core

    bf = np.stack([cells.bf, cells.bf**2], axis=-1)
    qpi = np.stack([cells.qpi, -cells.qpi, cells.qpi**2], axis=-1)
    est = BeGANTransformer(**TINY | {"pretrain_epochs": 1, "removal_epochs": 0}).fit(bf, qpi)
    path = write_package(tmp_path / "p.zip", est, bf[:1], **ABOUT)
    assert bioimageio.core.test_model(path, weight_format="onnx").status == "passed"
    described = bioimageio.core.load_model_description(path)
    assert described.outputs[1].axes[1].channel_names == ["target_0", "target_1", "target_2"]


def test_what_cannot_be_packed_is_refused_before_anything_is_computed(fitted, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(BeGANTransformer, "to_torch", None)  # what would compute
    path = tmp_path / "p.zip"
    for message, changed in (
        ("authors must be a list", {"authors": "A. Nobody"}),
        (r"target_names must name 1 channel\(s\)", {"target_names": ["a", "b"]}),
        ("pixel_size must be a positive number", {"pixel_size": -1}),
        ("license|License", {"license": "mine"}),
    ):
        with pytest.raises(ValueError, match=message):
            write_package(path, fitted, cells.bf, **ABOUT | changed)
    with pytest.raises(ValueError, match=r"must end in \.zip"):
        write_package(tmp_path / "p.tar", fitted, cells.bf, **ABOUT)
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_package(path, fitted, cells.bf, **ABOUT)
    assert path.read_bytes() == b"mine"


def test_a_missing_package_is_named_with_its_extra(fitted, cells, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'needs onnxscript.*pip install "skbegan\[bioimageio\]"'):
        write_package(tmp_path / "p.zip", fitted, cells.bf, **ABOUT)


def test_what_fails_leaves_nothing(fitted, cells, tmp_path, monkeypatch):
    def failing(*args: object, **kwargs: object) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(RuntimeError, match="stop"):
        write_package(tmp_path / "p.zip", fitted, cells.bf, **ABOUT)
    assert list(tmp_path.iterdir()) == []
