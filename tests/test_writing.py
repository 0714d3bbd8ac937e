"""Profiles and images that leave, as tables and image files; and versions for a bug report."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
import tifffile
from conftest import TINY
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

import skbegan
from skbegan import BeGANTransformer, _version
from skbegan.datasets import load_cell_images
from skbegan.io import _predicting
from skbegan.stored.atomic import in_one_step

zarr = pytest.importorskip("zarr")
pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def two_channels(cells: Any) -> tuple[BeGANTransformer, np.ndarray]:
    """A model of two target channels, and what it predicts."""
    qpi = np.stack([cells.qpi, 5 - cells.qpi], axis=-1)
    est = BeGANTransformer(**TINY | {"pretrain_epochs": 1, "removal_epochs": 0}).fit(cells.bf, qpi)
    return est, est.predict_image(cells.bf)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Tables ---------------------------------------------------------------------------------------------------------------


def read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


@pytest.mark.parametrize("name", ["p.parquet", "p.csv", "p.csv.gz", "P.CSV"])
def test_profiles_and_labels_come_back(fitted, cells, tmp_path, monkeypatch, name):
    monkeypatch.setattr(_predicting, "PARTS", 1)
    monkeypatch.setattr(_predicting, "part_of", lambda est: 32)
    metadata = pd.DataFrame({"batch": cells.batch, "Metadata_Well": [f"µ,{i}" for i in range(90)]})
    path = skbegan.write_profiles(tmp_path / name, fitted, cells.bf, metadata)
    assert path == tmp_path / name
    found = read(path)
    assert list(found)[:3] == ["Metadata_batch", "Metadata_Well", "Cells_begantransformer0"]
    assert found.shape == (90, 2 + 16)
    assert list(found["Metadata_batch"]) == list(cells.batch)
    assert list(found["Metadata_Well"]) == list(metadata["Metadata_Well"])
    profiles = found.filter(like="Cells_").to_numpy(dtype=np.float32)
    np.testing.assert_allclose(profiles, fitted.transform(cells.bf), rtol=1e-4, atol=1e-6)
    assert leftovers(tmp_path) == [name]


def test_parts_give_the_bits_of_the_whole(fitted, cells, tmp_path, monkeypatch):
    found = read(skbegan.write_profiles(tmp_path / "p.parquet", fitted, cells.bf))
    assert np.array_equal(found.to_numpy(), fitted.transform(cells.bf))
    text = read(skbegan.write_profiles(tmp_path / "p.csv", fitted, cells.bf))
    assert np.array_equal(text.to_numpy().astype(np.float32), fitted.transform(cells.bf))
    by_minibatch = BeGANTransformer(**TINY | {"removal_epochs": 0, "inference": "minibatch"}).fit(cells.bf, cells.qpi)
    monkeypatch.setattr(_predicting, "PARTS", 2)  # of 16 cells, whose statistics are their own
    found = read(skbegan.write_profiles(tmp_path / "m.parquet", by_minibatch, cells.bf))
    assert np.array_equal(found.to_numpy(), by_minibatch.transform(cells.bf))


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_pycytominer_normalizes_it(fitted, cells, tmp_path, name):
    pycytominer = pytest.importorskip("pycytominer")
    path = skbegan.write_profiles(tmp_path / name, fitted, cells.bf, cells)
    first = cells.batch[0]
    found = pycytominer.normalize(
        str(path) if name.endswith(".csv") else read(path),
        features="infer",
        meta_features="infer",
        samples=f"Metadata_batch == '{first}'",
        method="standardize",
    )
    assert list(found) == list(read(path))
    features = found.filter(like="Cells_").to_numpy(dtype=float)
    assert features.shape == (90, 16)
    chosen = features[np.asarray(cells.batch) == first]
    varies = chosen.std(axis=0) > 0
    assert varies.sum() > 8
    np.testing.assert_allclose(chosen[:, varies].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(chosen[:, varies].std(axis=0), 1, rtol=1e-5)
    kept = pycytominer.feature_select(found, features="infer", operation=["drop_na_columns", "correlation_threshold"])
    assert kept.filter(like="Cells_").shape[1] > 0
    means = pycytominer.aggregate(found, strata=["Metadata_batch", "Metadata_cell_type"], features="infer")
    assert len(means) == len(set(zip(cells.batch, cells.cell_type, strict=True)))


def test_all_kinds_of_columns_in_parquet(fitted, cells, cell_table, tmp_path):
    cell_table.index = pd.Index([f"cell {i}" for i in range(90)], name="cell")
    found = read(skbegan.write_profiles(tmp_path / "p.parquet", fitted, cells.bf, cell_table))
    assert list(found)[:12] == ["Metadata_cell", *(f"Metadata_{name}" for name in cell_table)]
    assert list(found["Metadata_cell"]) == list(cell_table.index)
    assert list(found["Metadata_day"]) == list(cell_table["day"]) and list(found["Metadata_well"]) == list(
        cell_table["well"]
    )
    assert found["Metadata_count"].isna().sum() == 1
    with pytest.raises(ValueError, match="give each column one type"):
        skbegan.write_profiles(tmp_path / "q.parquet", fitted, cells.bf, cell_table.assign(odd=["x", 1, {}] * 30))
    assert leftovers(tmp_path) == ["p.parquet"]


def test_tables_that_do_not_fit_are_refused_before_anything_is_computed(fitted, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(BeGANTransformer, "_infer", None)  # what would compute
    frame = pd.DataFrame({"batch": cells.batch})
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "has 89 rows but X_bf has 90 cells", frame[:-1]),
        (ValueError, "one entry for each of the 90 cells", {"batch": cells.batch[:-1]}),
        (ValueError, "several columns of the name 'batch'", pd.concat([frame, frame], axis=1)),
        (TypeError, "must be a DataFrame", list(cells.batch)),
    ]
    for error, message, given in cases:
        with pytest.raises(error, match=message):
            skbegan.write_profiles(tmp_path / "p.csv", fitted, cells.bf, given)
    with pytest.raises(ValueError, match="several columns that would be called 'Metadata_batch'"):
        skbegan.write_profiles(tmp_path / "p.csv", fitted, cells.bf, frame.assign(Metadata_batch=1))
    with pytest.raises(ValueError, match="an index and a column of the name 'batch'"):
        skbegan.write_profiles(tmp_path / "p.csv", fitted, cells.bf, frame.set_index("batch", drop=False))
    with pytest.raises(ValueError, match=r"path must end in \.parquet, \.csv, \.csv\.gz or \.h5ad, got 'p.xlsx'"):
        skbegan.write_profiles(tmp_path / "p.xlsx", fitted, cells.bf)
    with pytest.raises(ValueError, match="was fitted on"):
        skbegan.write_profiles(tmp_path / "p.csv", fitted, cells.bf[:, :8, :8])
    assert leftovers(tmp_path) == []


# Images ---------------------------------------------------------------------------------------------------------------


def read_images(path: Path) -> np.ndarray:
    """As (n, H, W) or (n, H, W, C), by the field's own readers."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".zarr":
        return zarr.open_array(str(path), mode="r")[:]
    if path.suffix == ".mat":
        return np.moveaxis(scipy.io.loadmat(path)["images"], -1, 0)
    found = tifffile.imread(path)
    return np.moveaxis(found, 1, -1) if found.ndim == 4 else found


FILES = ["i.ome.tiff", "i.ome.tif", "i.tif", "i.zarr", "i.npy", "i.mat"]


@pytest.mark.parametrize("name", FILES)
def test_predicted_images_come_back(fitted, two_channels, cells, tmp_path, monkeypatch, name):
    for parts in (64, 1):
        monkeypatch.setattr(_predicting, "PARTS", parts)
        monkeypatch.setattr(_predicting, "part_of", lambda est: 32)
        path = skbegan.write_images(tmp_path / name, fitted, cells.bf, overwrite=parts == 1)
        found = read_images(path)
        assert found.dtype == np.float32 and found.shape == (90, 16, 16)
        np.testing.assert_allclose(found, fitted.predict_image(cells.bf), rtol=1e-4, atol=1e-5)
    est, images = two_channels
    found = read_images(skbegan.write_images(tmp_path / name, est, cells.bf, overwrite=True))
    assert found.shape == (90, 16, 16, 2)
    np.testing.assert_allclose(found, images, rtol=1e-4, atol=1e-5)
    assert leftovers(tmp_path) == [name]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("dtype", [">u2", np.uint8, np.float64])
def test_images_that_one_has_keep_their_type_and_values(tmp_path, rng, name, dtype):
    images = rng.integers(0, 200, size=(5, 12, 9, 3)).astype(dtype)
    for given in (images, images[..., 0]):
        found = read_images(skbegan.write_images(tmp_path / name, given, overwrite=True))
        assert found.dtype.newbyteorder("=") == images.dtype.newbyteorder("=") and np.array_equal(found, given)
    one = read_images(skbegan.write_images(tmp_path / name, images[:1, ..., 0], overwrite=True))
    assert np.array_equal(one.reshape(1, 12, 9), images[:1, ..., 0])  # tifffile and MATLAB drop an axis of one


def test_memory_maps_are_written_in_parts(fitted, cells, tmp_path, monkeypatch):
    skbegan.write_images(tmp_path / "bf.npy", cells.bf)
    mapped = np.load(tmp_path / "bf.npy", mmap_mode="r")
    asked = []
    infer = BeGANTransformer._infer

    def watched(self: Any, bf: np.ndarray, want: Any) -> np.ndarray:
        asked.append((len(bf), np.shares_memory(bf, mapped)))
        return infer(self, bf, want)

    monkeypatch.setattr(BeGANTransformer, "_infer", watched)
    monkeypatch.setattr(_predicting, "PARTS", 1)
    monkeypatch.setattr(_predicting, "part_of", lambda est: 40)
    skbegan.write_images(tmp_path / "i.zarr", fitted, mapped)
    assert asked == [(40, True), (40, True), (10, True)]


@pytest.mark.parametrize("name", ["i.ome.tiff", "i.tif"])
def test_ome_tiff_says_the_pixel_size_and_what_the_axes_are(two_channels, cells, tmp_path, name):
    est, _ = two_channels
    skbegan.write_images(tmp_path / name, est, cells.bf, pixel_size=0.325, channel_names=["phase", "DAPI"])
    with tifffile.TiffFile(tmp_path / name) as file:
        assert file.is_ome and len(file.pages) == 180
        assert file.series[0].axes == "TCYX" and file.series[0].shape == (90, 2, 16, 16)
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert pixels["PhysicalSizeX"] == pixels["PhysicalSizeY"] == 0.325
    assert pixels["PhysicalSizeXUnit"] == pixels["PhysicalSizeYUnit"] == "µm"
    assert (pixels["SizeT"], pixels["SizeC"], pixels["Type"]) == (90, 2, "float")
    assert [channel["Name"] for channel in pixels["Channel"]] == ["phase", "DAPI"]


def test_zarr_says_the_pixel_size_and_what_the_axes_are(two_channels, cells, tmp_path):
    est, _ = two_channels
    skbegan.write_images(tmp_path / "i.zarr", est, cells.bf, pixel_size=0.325, channel_names=["phase", "DAPI"])
    array = zarr.open_array(str(tmp_path / "i.zarr"), mode="r")
    assert dict(array.attrs) == {"pixel_size": 0.325, "unit": "micrometer", "channel_names": ["phase", "DAPI"]}
    assert array.metadata.dimension_names == ("cell", "y", "x", "channel")


def test_our_loader_reads_the_matlab_file(fitted, cells, tmp_path):
    folder = tmp_path / "day1" / "H69" / "Train"
    folder.mkdir(parents=True)
    skbegan.write_images(folder / "H69_BF.mat", cells.bf, variable="BF")
    skbegan.write_images(folder / "H69_QPI.mat", fitted, cells.bf, variable="QPI")
    found = load_cell_images(tmp_path, image_size=16)
    assert np.array_equal(found.bf, cells.bf)
    np.testing.assert_allclose(found.qpi, fitted.predict_image(cells.bf), rtol=1e-6)


def test_images_that_cannot_be_written_are_refused_before_anything_is_computed(fitted, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(BeGANTransformer, "_infer", None)
    path = tmp_path / "i.ome.tiff"
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (ValueError, "needs X_bf", (fitted,), {}),
        (ValueError, "must have shape", (cells.bf[0],), {}),
        (ValueError, "was fitted on", (fitted, cells.bf[:, :8, :8]), {}),
        (ValueError, "pixel_size must be a positive number", (fitted, cells.bf), {"pixel_size": 0}),
        (ValueError, "pixel_size must be a positive number", (fitted, cells.bf), {"pixel_size": "0.3 um"}),
        (ValueError, r"must name 1 channel\(s\)", (fitted, cells.bf), {"channel_names": ["a", "b"]}),
        (ValueError, "OME-TIFF has no type for int64", (cells.bf.astype(np.int64),), {}),
        (TypeError, "takes a fitted BeGANTransformer, got ndarray", (cells.bf, cells.bf), {}),
        (TypeError, "takes a fitted BeGANTransformer, got Pipeline", (make_pipeline(fitted), cells.bf), {}),
        (NotFittedError, "not fitted", (BeGANTransformer(), cells.bf), {}),
    ]
    for error, message, given, options in cases:
        with pytest.raises(error, match=message):
            skbegan.write_images(path, *given, **options)
    with pytest.raises(ValueError, match=r"path must end in \.tiff, .*, got 'i.png'"):
        skbegan.write_images(tmp_path / "i.png", fitted, cells.bf)
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        skbegan.write_images(tmp_path / "nowhere" / "i.npy", fitted, cells.bf)
    monkeypatch.setattr("skbegan.io.images._MAX_MATLAB", 90 * 256 * 4 - 1)
    with pytest.raises(ValueError, match="would hold 92160 bytes"):
        skbegan.write_images(tmp_path / "i.mat", fitted, cells.bf)
    assert leftovers(tmp_path) == []


# Whole, or as before --------------------------------------------------------------------------------------------------

OUTPUTS = [*FILES, "p.parquet", "p.csv", "p.csv.gz", "p.h5ad"]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    if request.param.endswith("h5ad"):
        pytest.importorskip("anndata")
    return request.param


def write(path: Path, est: Any, bf: np.ndarray, **options: Any) -> Path:
    return (skbegan.write_images if path.name.startswith("i") else skbegan.write_profiles)(path, est, bf, **options)


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("name", OUTPUTS, indirect=True)
def test_nothing_is_overwritten_unless_it_is_said(fitted, cells, tmp_path, name):
    path = write(tmp_path / name, fitted, cells.bf[:20])
    before = content(path)
    with pytest.raises(FileExistsError, match="overwrite=True replaces it"):
        write(path, fitted, cells.bf[20:50])
    assert content(path) == before
    write(path, fitted, cells.bf[20:50], overwrite=True)
    assert content(path) != before
    assert leftovers(tmp_path) == [name]


@pytest.mark.parametrize("name", OUTPUTS, indirect=True)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_on_its_way_leaves_what_was_there(fitted, cells, tmp_path, monkeypatch, name, error):
    write(tmp_path / name, fitted, cells.bf[:20])
    before = content(tmp_path / name)
    infer, calls = BeGANTransformer._infer, []

    def failing(self: Any, bf: np.ndarray, want: Any) -> np.ndarray:
        calls.append(len(bf))
        if len(calls) == 3:
            raise error("stop")
        return infer(self, bf, want)

    monkeypatch.setattr(BeGANTransformer, "_infer", failing)
    monkeypatch.setattr(_predicting, "PARTS", 1)
    monkeypatch.setattr(_predicting, "part_of", lambda est: 16)
    with pytest.raises(error):
        write(tmp_path / name, fitted, cells.bf, overwrite=True)
    assert content(tmp_path / name) == before
    calls.clear()
    with pytest.raises(error):
        write(tmp_path / f"{name[0]}{name}", fitted, cells.bf)
    assert leftovers(tmp_path) == [name]


def test_folders_are_replaced_only_where_they_are_what_is_written(fitted, cells, tmp_path):
    folder = tmp_path / "results.zarr"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    (tmp_path / "x.npy").mkdir()
    (tmp_path / "y.zarr").write_text("a file")
    with pytest.raises(FileExistsError, match="is a folder but no Zarr array"):
        skbegan.write_images(folder, fitted, cells.bf, overwrite=True)
    with pytest.raises(IsADirectoryError):
        skbegan.write_images(tmp_path / "x.npy", fitted, cells.bf, overwrite=True)
    with pytest.raises(NotADirectoryError):
        skbegan.write_images(tmp_path / "y.zarr", fitted, cells.bf, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "all of it"


def test_a_folder_whose_move_fails_goes_back(tmp_path, monkeypatch):
    place = tmp_path / "a"
    place.mkdir()
    (place / "old").touch()
    replace = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if ".tmp." in self.name:
            raise OSError("no room")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(OSError, match="no room"), in_one_step(place) as draft:
        draft.mkdir()
        (draft / "new").touch()
    assert leftovers(tmp_path) == ["a"] and leftovers(place) == ["old"]


@pytest.mark.parametrize(
    ("package", "name"),
    [("anndata", "p.h5ad"), ("pyarrow", "p.parquet"), ("pandas", "p.csv"), ("tifffile", "i.tif"), ("zarr", "i.zarr")],
)
def test_a_missing_package_is_named_with_its_extra(fitted, cells, tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs {package}.*pip install "skbegan\[io\]"'):
        write(tmp_path / name, fitted, cells.bf)
    assert leftovers(tmp_path) == []


def test_foreign_units_are_warned_of_once(fitted, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(_predicting, "PARTS", 1)
    monkeypatch.setattr(_predicting, "part_of", lambda est: 16)
    with pytest.warns(UserWarning, match="are the units others") as caught:
        skbegan.write_images(tmp_path / "i.npy", fitted, cells.bf * 1000)
    assert len(caught) == 1 and caught[0].filename == __file__


# Versions -------------------------------------------------------------------------------------------------------------


def test_versions_are_shown(capsys):
    skbegan.show_versions()
    shown = capsys.readouterr().out
    lines = dict(line.strip().split(": ", 1) for line in shown.splitlines() if ": " in line)
    assert lines["python"].startswith(sys.version.split()[0])
    assert lines["skbegan"] == skbegan.__version__
    assert lines["numpy"] == np.__version__ and lines["tifffile"] == tifffile.__version__
    assert lines["CUDA available"] in ("True", "False")
    assert {"System:", "Optional:", "PyTorch:"} <= set(shown.splitlines())


def test_versions_are_shown_without_an_installed_package(capsys, monkeypatch):
    def unknown(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_version.metadata, "requires", unknown)
    skbegan.show_versions()
    shown = capsys.readouterr().out
    assert f"torch: {metadata.version('torch')}" in shown
    monkeypatch.setattr(_version.metadata, "version", unknown)
    skbegan.show_versions()
    assert "torch: not installed" in capsys.readouterr().out
