"""The original's tree of MATLAB files: reading, refusing, writing."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import mat73
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from skbegan.datasets import matlab, resizing
from skbegan.datasets.matlab import load_cell_images, resize_images, save_predictions

DATA = Path(__file__).parent / "data"
LOADER = DATA / "loader"
FULL_FIXTURE = os.environ.get("SKBEGAN_LOADER_FIXTURE")  # folder with the whole tree/ and expected_*.npz


def test_a_v73_file_reads_as_mat73_reads_it():
    path = next((LOADER / "tree").rglob("*_BF.mat"))
    state = path.parent
    theirs = mat73.loadmat(path)["BF"]
    read = load_cell_images(LOADER / "tree", state.name, image_size=None, max_cells_per_group=None)
    ours = read.bf[(read.batch == state.parent.parent.name) & (read.cell_type == state.parent.name)]
    np.testing.assert_array_equal(ours, np.moveaxis(theirs, -1, 0).astype(np.float32))


# --- writing small files ---------------------------------------------------------------------------------------------


def write_v73(path, **variables):
    """A v7.3 file as MATLAB lays it out: 512 bytes of userblock, axes reversed, a class attribute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = {"float64": b"double", "float32": b"single", "bool": b"logical"}
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in variables.items():
            values = np.asarray(values)
            stored = values.astype(np.uint8) if values.dtype == bool else values
            dataset = file.create_dataset(name, data=stored.T)
            dataset.attrs["MATLAB_class"] = np.bytes_(classes.get(values.dtype.name, values.dtype.name.encode()))
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def write_v5(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables, do_compression=True)


def stack(n_cells=3, side=16, seed=0, dtype=np.float64):
    """Height x width x cells, as MATLAB keeps them."""
    images = np.random.default_rng(seed).uniform(0, 200, (side, side, n_cells))
    return images.astype(dtype)


def write_group(folder, bf=None, qpi=None, *, write=write_v73, seed=0, **options):
    """The pair of files in ROOT/.../SAMPLE/STATE; returns both as (cells, height, width)."""
    bf = stack(seed=seed, **options) if bf is None else bf
    qpi = stack(seed=seed + 1000, **options) if qpi is None else qpi
    sample = folder.parent.name
    write(folder / f"{sample}_BF.mat", BF=bf)
    write(folder / f"{sample}_QPI.mat", QPI=qpi)
    return np.moveaxis(bf, -1, 0), np.moveaxis(qpi, -1, 0)


@pytest.fixture
def cell_lines(tmp_path):
    """Three batches, two lines; H358 is missing in Batch2. Two to seven cells."""
    made = {}
    design = [(batch, line) for line in ("H69", "H358") for batch in ("Batch1", "Batch2", "Batch10")]
    for seed, (batch, line) in enumerate(design):
        if (batch, line) != ("Batch2", "H358"):
            for offset, state in ((0, "Train"), (50, "Test")):
                made[batch, line, state] = write_group(
                    tmp_path / batch / line / state, seed=seed + offset, n_cells=2 + seed
                )
    return tmp_path, made


@pytest.fixture
def drug_tree(tmp_path):
    made = {}
    for seed, drug in enumerate(("Docetaxel", "Afatinib")):
        for batch in ("B2", "B1"):
            for dose in ("D1", "D3", "DMSO"):
                made[drug, batch, dose] = write_group(tmp_path / drug / batch / dose / "Train", seed=seed, n_cells=2)
    return tmp_path, made


# --- parity with the original ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["Train", "Valid", "Test"])
def test_parity_loader_fixture(state):
    """Order before shuffling, labels and resized pixels are the original's."""
    expected = np.load(LOADER / "expected.npz")
    data = load_cell_images(LOADER / "tree", state, max_cells_per_group=3 if state == "Valid" else None)
    assert data.batch.tolist() == expected[f"{state}_batch"].tolist()
    assert data.cell_type.tolist() == expected[f"{state}_cell_type"].tolist()
    lines = expected["lines"]
    error = max(
        np.abs(data[name.lower()][:, lines][:, :, lines] - expected[f"{state}_{name}"]).max()
        / expected[f"{state}_{name}_range"]
        for name in ("BF", "QPI")
    )
    print(f"loader parity: {state}, {len(data.bf)} cells, max |error| / range = {error:.1e}")
    assert data.bf.shape[1:] == data.qpi.shape[1:] == (128, 128)
    assert error < 1e-4


@pytest.mark.skipif(not FULL_FIXTURE, reason="SKBEGAN_LOADER_FIXTURE does not name the whole fixture")
def test_parity_loader_whole_fixture():
    root = Path(FULL_FIXTURE or "")
    for state, counts in (("Train", [6] * 6), ("Valid", [4, 3, 6, 5, 2, 6])):
        expected = np.load(root / f"expected_{state}.npz")
        data = load_cell_images(root / "tree", state)
        kept = np.concatenate([6 * group + np.arange(count) for group, count in enumerate(counts)])
        assert data.batch[kept].tolist() == expected["batch_names"].tolist()
        assert data.cell_type[kept].tolist() == expected["cell_names"].tolist()
        for name in ("BF", "QPI"):
            whole = expected[name][..., 0]
            error = np.abs(data[name.lower()][kept] - whole).max() / np.ptp(whole)
            print(f"loader parity: whole {state} {name}, max |error| / range = {error:.1e}")
            assert error < 1e-4
    expected = np.load(root / "expected_Test_Batch2_H358.npz")
    data = load_cell_images(root / "tree", "Test", batches="Batch2", cell_types="H358")
    for name in ("BF", "QPI"):
        whole = expected[name][..., 0]
        assert np.abs(data[name.lower()] - whole).max() / np.ptp(whole) < 1e-4


# --- resizing --------------------------------------------------------------------------------------------------------


def bicubic_matrix(old, new):
    """Weights of OpenCV's INTER_CUBIC along one axis, written from its definition."""

    def kernel(distance, a=-0.75):
        d = abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    weights = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        first = int(np.floor(centre)) - 1
        for pixel in range(first, first + 4):
            weights[row, min(max(pixel, 0), old - 1)] += kernel(centre - pixel)
    return weights


@pytest.mark.parametrize(("old", "new"), [(9, 16), (31, 16), (16, 64), (50, 7)])
def test_resize_is_the_opencv_cubic(old, new):
    images = np.random.default_rng(0).normal(size=(3, old, old))
    weights = bicubic_matrix(old, new)
    resized = resize_images(images, new)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, weights @ images @ weights.T, atol=2e-5)


def test_resize_channels_chunks_and_dtypes(monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (7, 20, 20, 2)).astype(np.uint8)
    whole = resize_images(images, 16)
    assert whole.shape == (7, 16, 16, 2)
    np.testing.assert_array_equal(whole[..., 1], resize_images(images[..., 1], 16))
    monkeypatch.setattr(resizing, "CHUNK_BYTES", 1)  # one image at a time
    np.testing.assert_array_equal(resize_images(images, 16), whole)
    for dtype in (np.float16, np.float64, ">f4", np.int64):
        np.testing.assert_array_equal(resize_images(images.astype(dtype), 16), whole)
    np.testing.assert_array_equal(resize_images(images > 100, 16), resize_images((images > 100).astype(float), 16))
    assert resize_images(images[:0], 16).shape == (0, 16, 16, 2)


def test_resize_same_size_is_a_copy_and_reads_read_only_input():
    images = np.ones((2, 16, 16), dtype=np.float32)
    same = resize_images(images, 16)
    assert not np.shares_memory(same, images)
    images.flags.writeable = False
    assert resize_images(images[:, ::-1], 32).shape == (2, 32, 32)


@pytest.mark.parametrize(
    ("images", "size", "error", "match"),
    [
        (np.zeros((2, 3, 16, 16)), 16, ValueError, r"channels come last.* np\.moveaxis\(images, 1, -1\)"),
        (np.zeros((16, 16)), 16, ValueError, r"shape \(n_cells, height, width\) or .*got \(16, 16\)"),
        (np.zeros((2, 0, 0)), 16, ValueError, r"got \(2, 0, 0\)"),
        (np.zeros((2, 8, 8), complex), 16, ValueError, "real numbers, got the dtype complex128"),
        (np.zeros((2, 8, 8), object), 16, ValueError, "real numbers, got the dtype object"),
        (np.zeros((2, 8, 8)), 0, ValueError, "size must be at least 1, got 0"),
        (np.zeros((2, 8, 8)), 16.0, TypeError, "size must be an integer, got 16.0"),
        (np.zeros((2, 8, 8)), True, TypeError, "size must be an integer, got True"),
    ],
)
def test_resize_refuses(images, size, error, match):
    with pytest.raises(error, match=match):
        resize_images(images, size)


# --- trees -----------------------------------------------------------------------------------------------------------


def test_cell_lines_order_labels_and_values(cell_lines):
    root, made = cell_lines
    data = load_cell_images(root, image_size=None)
    order = [("Batch1", "H69"), ("Batch2", "H69"), ("Batch10", "H69"), ("Batch1", "H358"), ("Batch10", "H358")]
    counts = [len(made[(*key, "Train")][0]) for key in order]
    assert counts == [2, 3, 4, 5, 7]
    assert data.batch.tolist() == [batch for (batch, _), n in zip(order, counts, strict=True) for _ in range(n)]
    assert data.cell_type.tolist() == [line for (_, line), n in zip(order, counts, strict=True) for _ in range(n)]
    assert set(data.split) == {"Train"}
    for position, name in enumerate(("bf", "qpi")):
        images = np.concatenate([made[(*key, "Train")][position] for key in order])
        assert data[name].dtype == np.float32
        np.testing.assert_array_equal(data[name], images.astype(np.float32))
    assert data.group_files[2] == (
        root / "Batch10" / "H69" / "Train" / "H69_BF.mat",
        root / "Batch10" / "H69" / "Train" / "H69_QPI.mat",
    )
    assert "21 cells of 5 groups" in data.DESCR
    assert "drug" not in data and "dose" not in data
    assert load_cell_images(str(root)).bf.shape == (21, 128, 128)


def test_splits_are_concatenated_in_the_order_asked_for(cell_lines):
    root, _ = cell_lines
    data = load_cell_images(root, ("test", "TRAIN"), image_size=None)
    assert data.split.tolist() == ["test"] * 21 + ["TRAIN"] * 21  # the names asked for
    np.testing.assert_array_equal(data.bf[21:], load_cell_images(root, image_size=None).bf)
    assert data.batch[:21].tolist() == data.batch[21:].tolist()


def test_filters_and_limit(cell_lines):
    root, made = cell_lines
    data = load_cell_images(root, image_size=None, batches=["Batch10", "Batch1"], cell_types="H358")
    assert data.batch.tolist() == ["Batch1"] * 5 + ["Batch10"] * 7
    data = load_cell_images(root, image_size=None, max_cells_per_group=3)
    assert [len(files) for files in data.group_files] == [2] * 5
    assert data.batch.tolist() == ["Batch1"] * 2 + (["Batch2"] * 3 + ["Batch10"] * 3 + ["Batch1"] * 3 + ["Batch10"] * 3)
    np.testing.assert_array_equal(data.qpi[-3:], made["Batch10", "H358", "Train"][1][:3].astype(np.float32))


def test_drug_tree(drug_tree):
    root, made = drug_tree
    data = load_cell_images(root, image_size=None)
    order = [
        (drug, b, dose) for drug in ("Afatinib", "Docetaxel") for dose in ("D1", "D3", "DMSO") for b in ("B1", "B2")
    ]
    assert list(zip(data.drug, data.batch, data.dose, strict=True)) == [key for key in order for _ in range(2)]
    np.testing.assert_array_equal(data.bf, np.concatenate([made[key][0] for key in order]).astype(np.float32))
    assert data.cell_type[data.dose == "DMSO"].tolist() == ["DMSO"] * 8
    assert (data.cell_type == data.drug)[data.dose != "DMSO"].all()

    by_dose = load_cell_images(root, image_size=None, cell_type_from="dose", drugs=["Docetaxel"])
    assert sorted(set(by_dose.cell_type)) == ["DMSO", "Docetaxel D1", "Docetaxel D3"]
    assert set(by_dose.drug) == {"Docetaxel"}
    controls = load_cell_images(root, image_size=None, cell_types="DMSO", layout="drugs")
    assert set(controls.drug) == {"Afatinib", "Docetaxel"}


def test_one_drug_folder_looks_like_cell_lines(drug_tree):
    root, _ = drug_tree
    data = load_cell_images(root / "Docetaxel", image_size=None)
    assert sorted(set(data.cell_type)) == ["D1", "D3", "DMSO"]
    assert sorted(set(data.batch)) == ["B1", "B2"]


def test_layout_is_asked_for_when_both_are_there(tmp_path):
    write_group(tmp_path / "Batch1" / "H69" / "Train")
    write_group(tmp_path / "Docetaxel" / "B1" / "D3" / "Train")
    with pytest.raises(ValueError, match=r"both layouts; choose layout='cell_lines' or layout='drugs'"):
        load_cell_images(tmp_path)
    assert set(load_cell_images(tmp_path, layout="cell_lines").cell_type) == {"H69"}
    assert set(load_cell_images(tmp_path, layout="drugs").cell_type) == {"Docetaxel"}


def test_groups_without_a_state_are_passed_over(tmp_path):
    write_group(tmp_path / "Batch1" / "H69" / "Train", n_cells=2)
    write_group(tmp_path / "Batch2" / "H69" / "Valid", n_cells=4)
    (tmp_path / "notes.txt").write_text("not a folder")
    assert load_cell_images(tmp_path).batch.tolist() == ["Batch1"] * 2
    assert load_cell_images(tmp_path, ["Train", "Valid"]).batch.tolist() == ["Batch1"] * 2 + ["Batch2"] * 4


def test_groups_of_several_sizes_are_resized_as_read(tmp_path):
    bf, _ = write_group(tmp_path / "Batch1" / "H69" / "Train", side=16)
    other, _ = write_group(tmp_path / "Batch2" / "H69" / "Train", side=20)
    data = load_cell_images(tmp_path, image_size=16)
    np.testing.assert_array_equal(data.bf[:3], bf.astype(np.float32))
    np.testing.assert_array_equal(data.bf[3:], resize_images(other, 16))


def test_progress_only_when_verbose(cell_lines, capfd, caplog):
    root, _ = cell_lines
    load_cell_images(root)
    silent = capfd.readouterr()
    assert silent.out == silent.err == "" and not caplog.records
    load_cell_images(root, verbose=1)
    assert caplog.messages[-1] == "reading: 5 of 5 groups"


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v6", "v7", "v7.3"])
def test_axis_order_of_files_written_by_matlab(version, tmp_path):
    """MATLAB's own files: a2x2x2 = cat(3, [1 3; 4 2], [1 2; 3 4]), a2x2 = [1 3; 4 2]."""
    folder = tmp_path / "Batch1" / "H69" / "Train"
    folder.mkdir(parents=True)
    for name in ("a2x2x2", "a2x2"):
        folder.joinpath(f"H69_{name}.mat").write_bytes((DATA / "matlab" / version / "array.mat").read_bytes())
    load = {"image_size": None, "bf_variable": "a2x2x2"}
    data = load_cell_images(tmp_path, qpi_variable="a2x2x2", **load)
    assert data.bf.tolist() == [[[1, 3], [4, 2]], [[1, 2], [3, 4]]]
    one = load_cell_images(tmp_path, image_size=None, bf_variable="a2x2", qpi_variable="A2X2")  # in any case
    assert one.qpi.tolist() == [[[1, 3], [4, 2]]]
    first = load_cell_images(tmp_path, qpi_variable="a2x2x2", max_cells_per_group=1, **load)
    assert first.bf.tolist() == [[[1, 3], [4, 2]]]


@pytest.mark.parametrize("write", [write_v5, write_v73])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, bool])
def test_dtypes_become_float32(tmp_path, write, dtype):
    bf = stack(dtype=np.uint8).astype(dtype) if dtype is not bool else stack() > 100
    images, _ = write_group(tmp_path / "Batch1" / "H69" / "Train", bf=bf, write=write)
    data = load_cell_images(tmp_path, image_size=None)
    assert data.bf.dtype == np.float32
    np.testing.assert_array_equal(data.bf, images.astype(np.float32))


@pytest.mark.parametrize("write", [write_v5, write_v73])
def test_channels_and_single_cells(tmp_path, write):
    rng = np.random.default_rng(0)
    bf, qpi = rng.normal(size=(16, 16, 2, 5)), rng.normal(size=(16, 16, 5))
    write_group(tmp_path / "many" / "Batch1" / "H69" / "Train", bf=bf, qpi=qpi, write=write)
    data = load_cell_images(tmp_path / "many", image_size=None)
    np.testing.assert_array_equal(data.bf, np.moveaxis(bf, -1, 0).astype(np.float32))
    assert load_cell_images(tmp_path / "many", image_size=32).bf.shape == (5, 32, 32, 2)
    one = tmp_path / "one" / "Batch1" / "H69" / "Train"
    write(one / "H69_BF.mat", BF=qpi[:, :, 0])
    write(one / "H69_QPI.mat", QPI=qpi[:, :, :1])
    data = load_cell_images(tmp_path / "one", image_size=None)
    np.testing.assert_array_equal(data.bf, data.qpi)
    np.testing.assert_array_equal(data.bf[0], qpi[:, :, 0].astype(np.float32))


def test_names_that_begin_alike(tmp_path):
    folder = tmp_path / "Batch1" / "H69" / "Train"
    qpi = stack(seed=2)
    write_group(folder)
    write_v73(folder / "H69_QPI.mat", QPI=qpi, QPI_raw=stack(seed=3), Q=stack(seed=4))
    np.testing.assert_array_equal(
        load_cell_images(tmp_path, image_size=None).qpi, np.moveaxis(qpi, -1, 0).astype(np.float32)
    )


def test_exact_case_goes_first(tmp_path):
    folder = tmp_path / "Batch1" / "H69" / "train"
    bf = stack(seed=1)
    write_v5(folder / "h69_bf.mat", bf=stack(seed=2), BF=bf)
    write_v73(folder / "H69_QPI.MAT", qpi=stack(seed=3))
    data = load_cell_images(tmp_path, image_size=None)
    np.testing.assert_array_equal(data.bf, np.moveaxis(bf, -1, 0).astype(np.float32))
    assert data.group_files[0][0].name == "h69_bf.mat"


def test_slow_libraries_are_imported_late():
    """Importing the loader brings in no torch, h5py or mat73."""
    code = "import sys, skbegan.datasets; print([m for m in ('torch', 'h5py', 'mat73') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"image_size": 0}, ValueError, "image_size must be at least 1, got 0"),
        ({"image_size": "128"}, TypeError, "image_size must be an integer, got '128'"),
        ({"max_cells_per_group": 0}, ValueError, "max_cells_per_group must be at least 1"),
        ({"max_cells_per_group": 2.5}, TypeError, "max_cells_per_group must be an integer"),
        ({"layout": "plates"}, ValueError, r"layout must be one of \['auto', 'cell_lines', 'drugs'\], got 'plates'"),
        ({"cell_type_from": "line"}, ValueError, "cell_type_from must be one of"),
        ({"split": []}, ValueError, "split must be one state or several different ones"),
        ({"split": ["Train", "train"]}, ValueError, "split must be one state or several different ones"),
        ({"batches": "Batch3"}, ValueError, r"unknown \['Batch3'\]. Available: \['Batch1', 'Batch2', 'Batch10'\]"),
        ({"cell_types": ["H69", "A549"]}, ValueError, r"unknown \['A549'\]. Available: \['H69', 'H358'\]"),
        ({"batches": []}, ValueError, r"batches=\[\]: empty. Available"),
        ({"batches": "Batch2", "cell_types": "H358"}, ValueError, "No group matches .* together"),
        ({"drugs": "Docetaxel"}, ValueError, "layout 'cell_lines', without drug folders"),
    ],
)
def test_impossible_parameters(cell_lines, options, error, match):
    with pytest.raises(error, match=match):
        load_cell_images(cell_lines[0], **options)


def test_unknown_drug(drug_tree):
    with pytest.raises(
        ValueError, match=r"drugs='Aspirin': unknown \['Aspirin'\]. Available: \['Afatinib', 'Docetaxel'\]"
    ):
        load_cell_images(drug_tree[0], drugs="Aspirin")


def test_no_group_found(cell_lines):
    root, _ = cell_lines
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_cell_images(root / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file; root must be the folder"):
        load_cell_images(root / "Batch1" / "H69" / "Train" / "H69_BF.mat")
    with pytest.raises(
        FileNotFoundError, match=r"No 'Valid' folder found.*ROOT/BATCH/LINE/Valid.*ROOT/DRUG/BATCH/SAMPLE"
    ):
        load_cell_images(root, "Valid")
    with pytest.raises(FileNotFoundError, match=r"folders: Batch1, Batch2, Batch10\..*expected: .*Test, Train"):
        load_cell_images(root, "Valid")
    with pytest.raises(FileNotFoundError, match=r"No 'Valid' folder found under .*layout 'cell_lines'\)\. ROOT"):
        load_cell_images(root, ["Train", "Valid"])  # one there, one mistyped
    with pytest.raises(FileNotFoundError, match=r"ROOT holds the folders: H69, H358.*at another depth"):
        load_cell_images(root / "Batch1")
    with pytest.raises(FileNotFoundError, match=r"\(layout 'drugs'\)\. ROOT.*one folder too high or too low"):
        load_cell_images(root, layout="drugs")
    (root / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="ROOT holds the folders: none"):
        load_cell_images(root / "empty")


def test_missing_file_of_a_pair(cell_lines):
    root, _ = cell_lines
    (root / "Batch2" / "H69" / "Train" / "H69_QPI.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"H69_QPI.mat is missing; .* The folder holds: H69_BF.mat\."):
        load_cell_images(root)
    (root / "Batch2" / "H69" / "Train" / "H69_BF.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"H69_BF.mat is missing; .* The folder holds: nothing\."):
        load_cell_images(root)


@pytest.mark.parametrize("write", [write_v5, write_v73])
def test_missing_variable_lists_those_there(tmp_path, write):
    folder = tmp_path / "Batch1" / "H69" / "Train"
    write_group(folder)
    write(folder / "H69_BF.mat", bright=stack(), note=np.ones((1, 1)))
    with pytest.raises(
        ValueError, match=r"H69_BF.mat has no variable 'BF'; it holds: bright \(double\), note \(double\)\. Images"
    ):
        load_cell_images(tmp_path, bf_variable="BF")


@pytest.mark.parametrize("change", [{"n_cells": 2}, {"side": 20}])
def test_pair_that_disagrees(tmp_path, change):
    write_group(tmp_path / "Batch1" / "H69" / "Train", qpi=stack(**change))
    found = f"{change.get('n_cells', 3)} cells of {change.get('side', 16)} x {change.get('side', 16)}"
    with pytest.raises(
        ValueError, match=rf"disagree: .*H69_BF.mat \(3 cells of 16 x 16\) and .*H69_QPI.mat \({found}\)"
    ):
        load_cell_images(tmp_path)


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) * 2 // 3], "text": b"version https://git-lfs", "empty": b""}[how])


@pytest.mark.parametrize("write", [write_v5, write_v73])
@pytest.mark.parametrize("how", ["cut", "text", "empty"])
def test_damaged_files(tmp_path, write, how):
    write_group(tmp_path / "Batch1" / "H69" / "Train", write=write, n_cells=20)
    path = tmp_path / "Batch1" / "H69" / "Train" / "H69_QPI.mat"
    damage(path, how)
    with pytest.raises(
        ValueError, match=r"H69_QPI.mat \(\d+ bytes\) cannot be read as a MATLAB file, it may be"
    ) as caught:
        load_cell_images(tmp_path)
    assert caught.value.__cause__ is not None


def test_damaged_inside_is_found_while_reading(tmp_path):
    """The header is sound, the compressed pixels are not."""
    folder = tmp_path / "Batch1" / "H69" / "Train"
    write_group(folder)
    with h5py.File(folder / "H69_BF.mat", "w") as file:
        dataset = file.create_dataset("BF", data=stack().T, chunks=(3, 16, 16), compression="gzip")
        dataset.attrs["MATLAB_class"] = np.bytes_(b"double")
        offset = dataset.id.get_chunk_info(0).byte_offset
    content = bytearray((folder / "H69_BF.mat").read_bytes())
    content[offset : offset + 200] = bytes(200)
    (folder / "H69_BF.mat").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"H69_BF.mat .* cannot be read as a MATLAB file"):
        load_cell_images(tmp_path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.ones((4, 4, 3)) * 1j, "complex"),
        (np.array([[1, "a"]], dtype=object), "cell"),
        ({"field": 1.0}, "struct"),
        ("text", "char"),
        (scipy.sparse.eye(4, format="csc"), "sparse"),
        (scipy.sparse.eye(4, format="csc", dtype=bool), "sparse"),
    ],
)
def test_classes_refused_v5(tmp_path, value, kind):
    write_group(tmp_path / "Batch1" / "H69" / "Train")
    write_v5(tmp_path / "Batch1" / "H69" / "Train" / "H69_BF.mat", BF=value)
    write_v5(
        tmp_path / "Batch1" / "H69" / "Train" / "H69_QPI.mat", QPI=np.ones((4, 4, 3) if kind == "complex" else (4, 4))
    )
    with pytest.raises(ValueError, match=rf"BF in .*H69_BF.mat is of class '{kind}'; images must be a full real"):
        load_cell_images(tmp_path)


@pytest.mark.parametrize("kind", ["complex", "cell", "struct", "char", "sparse", "datetime", "struct or object"])
def test_classes_refused_v73(tmp_path, kind):
    folder = tmp_path / "Batch1" / "H69" / "Train"
    write_group(folder)
    with h5py.File(folder / "H69_BF.mat", "w") as file:
        if kind == "complex":
            item = file.create_dataset("BF", data=np.zeros((3, 16, 16), dtype=[("real", "f8"), ("imag", "f8")]))
        elif kind in ("struct", "sparse"):
            item = file.create_group("BF")
        elif kind == "struct or object":
            item = file.create_dataset("BF", data=np.zeros((3, 4, 4), dtype=[("x", "f8")]))
        else:
            item = file.create_dataset("BF", data=np.zeros((3, 16, 16), np.uint16))
        if kind == "sparse":
            item.attrs["MATLAB_sparse"] = np.uint64(4)
        if kind != "struct or object":
            item.attrs["MATLAB_class"] = np.bytes_(b"double" if kind in ("complex", "sparse") else kind.encode())
    with pytest.raises(ValueError, match=rf"BF in .*H69_BF.mat is of class '{kind}'"):
        load_cell_images(tmp_path)


def test_objects_beside_the_images_do_not_hide_them(tmp_path, monkeypatch):
    """scipy's whosmat raises TypeError on files with MATLAB objects; loadmat reads the rest."""
    bf, _ = write_group(tmp_path / "Batch1" / "H69" / "Train", write=write_v5)

    def stumble(*args, **kwargs):
        raise TypeError("'NoneType' object is not iterable")

    monkeypatch.setattr(scipy.io, "whosmat", stumble)
    np.testing.assert_array_equal(load_cell_images(tmp_path, image_size=None).bf, bf.astype(np.float32))


def test_shapes_refused(tmp_path):
    folder = tmp_path / "Batch1" / "H69" / "Train"
    for bf, match in [
        (np.zeros((16, 16, 0)), r"BF in .*H69_BF.mat is empty \(16 x 16 x 0\)"),
        (np.zeros((4, 4, 1, 2, 3)), "has the shape 4 x 4 x 1 x 2 x 3; expected height x width x cells"),
        (np.zeros((16, 12, 3)), r"H69_BF.mat: 16 x 12 pixels is not square"),
    ]:
        write_group(folder, bf=bf, write=write_v5)
        with pytest.raises(ValueError, match=match):
            load_cell_images(tmp_path)
    write_group(folder)
    with h5py.File(folder / "H69_BF.mat", "w") as file:  # how MATLAB stores an empty array
        item = file.create_dataset("BF", data=np.array([16, 16, 0], np.uint64))
        item.attrs.update(MATLAB_class=np.bytes_(b"double"), MATLAB_empty=np.uint8(1))
    with pytest.raises(ValueError, match=r"is empty \(16 x 16 x 0\)"):
        load_cell_images(tmp_path)


def test_mixed_sizes_and_channels(tmp_path):
    write_group(tmp_path / "Batch1" / "H69" / "Train", side=16)
    write_group(tmp_path / "Batch2" / "H69" / "Train", side=20)
    with pytest.raises(ValueError, match=r"Batch1.*H69_BF.mat .*16 x 16\) and .*Batch2.*20 x 20\). Set image_size"):
        load_cell_images(tmp_path, image_size=None)
    write_group(tmp_path / "Batch2" / "H69" / "Train", bf=np.zeros((16, 16, 2, 3)))
    with pytest.raises(ValueError, match=r"16 x 16\) and .*16 x 16 x 2\). Every group needs the same channels"):
        load_cell_images(tmp_path)


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    n_cells = 12
    return {
        "images": rng.normal(size=(n_cells, 16, 16)).astype(np.float32),
        "features": rng.normal(size=(n_cells, 5)).astype(np.float32),
        "batch": np.array(["Batch10", "Batch2", "Batch1"] * 4),
        "cell_type": np.array(["H69"] * 7 + ["H358"] * 5),
        "bf": rng.integers(0, 255, (n_cells, 16, 16)).astype(np.uint8),
        "qpi": rng.normal(size=(n_cells, 16, 16)),
    }


def test_save_and_load_again(tmp_path, predictions):
    paths = save_predictions(tmp_path / "out", **predictions)
    assert len(paths) == 6 * 4 and all(path.is_file() for path in paths)
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == sorted(
        paths
    )  # nothing temporary
    data = load_cell_images(tmp_path / "out", "Test", image_size=None)
    order = np.lexsort(([int(b[5:]) for b in predictions["batch"]], [int(c[1:]) for c in predictions["cell_type"]]))
    for name in ("bf", "qpi"):
        np.testing.assert_array_equal(data[name], predictions[name][order].astype(np.float32))
    for name in ("batch", "cell_type"):
        assert data[name].tolist() == predictions[name][order].tolist()
    predicted = load_cell_images(tmp_path / "out", "Test", image_size=None, qpi_variable="CytoMAD_image")
    np.testing.assert_array_equal(predicted.qpi, predictions["images"][order])

    path = tmp_path / "out" / "Batch2" / "H69" / "Test" / "H69_CytoMAD_features.mat"
    here = (predictions["batch"] == "Batch2") & (predictions["cell_type"] == "H69")
    np.testing.assert_array_equal(scipy.io.loadmat(path)["CytoMAD_features"], predictions["features"][here])
    image = scipy.io.loadmat(path.with_name("H69_CytoMAD_image.mat"))["CytoMAD_image"]
    np.testing.assert_array_equal(image, np.moveaxis(predictions["images"][here], 0, -1))
    assert scipy.io.whosmat(path.with_name("H69_BF.mat"))[0][2] == "uint8"
    assert path.read_bytes().startswith(b"MATLAB 5.0")


def test_save_channels_single_cells_and_odd_dtypes(tmp_path):
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 2))
    for number, dtype in enumerate((np.float16, ">f4", np.longdouble, ">f8", np.int64, bool)):
        root = tmp_path / str(number)
        given = images.astype(dtype)
        save_predictions(
            root, images=given, features=np.ones((1, 2)), batch=[3], cell_type=["a"], bf=given, split="Valid"
        )
        data = load_cell_images(root, "Valid", image_size=None, qpi_variable="CytoMAD_image")
        np.testing.assert_array_equal(data.qpi, given.astype(np.float32))
        assert data.batch.tolist() == ["3"]


def test_save_beside_the_data(cell_lines, tmp_path):
    root, _ = cell_lines
    data = load_cell_images(root, "Test", image_size=None)
    save_predictions(root, images=data.qpi + 1, features=data.bf[:, 0], batch=data.batch, cell_type=data.cell_type)
    again = load_cell_images(root, "Test", image_size=None, qpi_variable="CytoMAD_image")
    np.testing.assert_array_equal(again.qpi, data.qpi + 1)
    with pytest.raises(FileExistsError, match=r"15 files exist, first .*H69_CytoMAD_image\.mat; set overwrite=True"):
        save_predictions(
            root, images=data.qpi, features=data.bf[:, 0], batch=data.batch, cell_type=data.cell_type, bf=data.bf
        )


def test_existing_files_need_overwrite(tmp_path, predictions):
    paths = save_predictions(tmp_path, **predictions)
    paths[0].unlink()
    with pytest.raises(FileExistsError, match=r"23 files exist, first .*; set overwrite=True to replace them"):
        save_predictions(tmp_path, **predictions)
    assert not paths[0].exists()  # checked before anything is written
    predictions["images"] = predictions["images"] + 1
    assert save_predictions(tmp_path, overwrite=True, **predictions) == paths
    image = scipy.io.loadmat(tmp_path / "Batch1" / "H69" / "Test" / "H69_CytoMAD_image.mat")["CytoMAD_image"]
    np.testing.assert_array_equal(image[..., 0], predictions["images"][2])


def test_failure_leaves_nothing_half_written(tmp_path, predictions, monkeypatch):
    paths = save_predictions(tmp_path, **predictions)
    before = {path: path.read_bytes() for path in paths}

    def fail(file, *args, **kwargs):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(scipy.io, "savemat", fail)
    with pytest.raises(OSError, match="No space left"):
        save_predictions(tmp_path, overwrite=True, **predictions)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("parameter", ["batch", "cell_type", "split"])
@pytest.mark.parametrize(
    "label",
    ["a/b", "a\\b", "a:b", "a*", "a?", 'a"', "a<", "a>", "a|", "a.", "a ", "", "..", "CON", "com1", "nul.txt", "a\n"],
)
def test_labels_that_are_no_folder(tmp_path, predictions, parameter, label):
    if parameter == "split":
        predictions["split"] = label
    else:
        predictions[parameter] = predictions[parameter].astype(object)
        predictions[parameter][-1] = label
    with pytest.raises(ValueError, match=rf"The {parameter} .* cannot be the name of a folder") as caught:
        save_predictions(tmp_path / "out", **predictions)
    assert repr(label) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": np.zeros((12, 16))}, r"images must have the shape .*got \(12, 16\)"),
        ({"bf": np.zeros((12, 16, 0))}, r"bf must have the shape .*got \(12, 16, 0\)"),
        ({"features": np.zeros(12)}, r"features must have the shape \(n_cells, n\), got \(12,\)"),
        ({"features": np.zeros((11, 5))}, "one entry per cell, got the lengths .*'CytoMAD_features': 11"),
        ({"batch": ["a"] * 11}, "one entry per cell, got the lengths .*'batch': 11"),
        ({"qpi": np.zeros((12, 16, 16), complex)}, "qpi must hold real numbers"),
        ({"cell_type": np.full((12, 1), "a")}, r"cell_type must be one-dimensional, got the shape \(12, 1\)"),
        ({"cell_type": ["h69", "H69"] * 6}, "cell_type labels 'H69' and 'h69' differ in case only"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, predictions, change, match):
    with pytest.raises(ValueError, match=match):
        save_predictions(tmp_path / "out", **{**predictions, **change})
    assert not (tmp_path / "out").exists()


def test_nothing_too_large_and_root_refused(tmp_path, predictions, monkeypatch):
    with pytest.raises(ValueError, match="There is no cell to save"):
        save_predictions(tmp_path, **{name: values[:0] for name, values in predictions.items()})
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; root must be a folder"):
        save_predictions(tmp_path / "file", **predictions)
    monkeypatch.setattr(matlab, "_MAX_V5_BYTES", 1000)
    with pytest.raises(ValueError, match=r"H69_CytoMAD_image.mat would hold \d+ bytes, too many for MATLAB's v5"):
        save_predictions(tmp_path / "out", **predictions)
