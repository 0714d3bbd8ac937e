"""Folders and files as laboratories have them: axes, names of variables, folders of the system, all or nothing."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from skbegan.datasets import _writing, load_cell_images, resize_images, save_predictions

IMAGES = np.random.default_rng(0).random((12, 20, 20), np.float32)


def write_h5(path: Path, name: str, array: np.ndarray, *, by_matlab: bool = False) -> None:
    with h5py.File(path, "w") as file:
        file[name] = array.T if by_matlab else array
        if by_matlab:
            file[name].attrs["MATLAB_class"] = np.bytes_(b"single")


def write_v5(path: Path, name: str, array: np.ndarray) -> None:
    scipy.io.savemat(path, {name: array})


def write_v73(path: Path, name: str, array: np.ndarray) -> None:
    write_h5(path, name, array, by_matlab=True)


def tree(tmp_path: Path, write, array: np.ndarray, names=("BF", "QPI"), suffixes=("BF", "QPI")) -> Path:
    folder = tmp_path / "Batch1" / "H69" / "Train"
    folder.mkdir(parents=True, exist_ok=True)
    for name, suffix in zip(names, suffixes, strict=True):
        write(folder / f"H69_{suffix}.mat", name, array)
    return tmp_path


# --- order of axes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [None, 16])
@pytest.mark.parametrize("write", [write_v5, write_v73])
@pytest.mark.parametrize("channels", [0, 2])
def test_cells_first_are_noticed_and_read_by_the_advice(tmp_path, write, image_size, channels):
    array = np.stack([IMAGES] * channels, axis=-1) if channels else IMAGES
    root = tree(tmp_path, write, array)
    with pytest.raises(ValueError, match=r"looks like cells first: expected height x width x") as caught:
        load_cell_images(root, image_size=image_size)
    first, last = re.findall(r"axes='(\w+)'", str(caught.value))
    loaded = load_cell_images(root, image_size=image_size, axes=first).bf
    np.testing.assert_array_equal(loaded, resize_images(array, image_size) if image_size else array)
    assert load_cell_images(root, image_size=None, axes=last).bf.shape == (array.shape[-1], *array.shape[:-1])


@pytest.mark.parametrize("order", ["nhw", "hwn"])
@pytest.mark.parametrize("image_size", [None, 16])
def test_hdf5_that_matlab_did_not_write_needs_its_axes(tmp_path, order, image_size):
    root = tree(tmp_path, write_h5, IMAGES if order == "nhw" else np.moveaxis(IMAGES, 0, -1))
    with pytest.raises(ValueError, match=r"was not written by MATLAB .* axes='nhw' .* axes='hwn'"):
        load_cell_images(root, image_size=image_size)
    loaded = load_cell_images(root, image_size=image_size, axes=order, max_cells_per_group=7).bf
    np.testing.assert_array_equal(loaded, (resize_images(IMAGES, 16) if image_size else IMAGES)[:7])


def test_any_order_with_channels_and_parts(tmp_path, monkeypatch):
    from skbegan.datasets import _matfile

    monkeypatch.setattr(_matfile, "_PART_BYTES", 5000)
    stack = np.random.default_rng(1).random((12, 20, 24, 3), np.float32)
    for number, order in enumerate(("nhwc", "nchw", "hwcn", "cwhn")):
        array = stack.transpose(["nhwc".index(letter) for letter in order])
        for write in (write_v5, write_v73, write_h5):
            root = tree(tmp_path / f"{number}{write.__name__}", write, array)
            np.testing.assert_array_equal(load_cell_images(root, image_size=None, axes=order).qpi, stack)


def test_axes_of_files_with_and_without_channels(tmp_path):
    root = tree(tmp_path, write_v5, IMAGES)
    write_v5(root / "Batch1" / "H69" / "Train" / "H69_BF.mat", "BF", np.stack([IMAGES] * 3, axis=-1))
    assert load_cell_images(root, image_size=None, axes="nhwc").bf.shape == (12, 20, 20, 3)
    with pytest.raises(ValueError, match=r"has 4 axes, 12 x 20 x 20 x 3, but axes='nhw' names 3"):
        load_cell_images(root, axes="nhw")
    for axes in ("nhh", "xyz", "hw", 3):
        with pytest.raises(ValueError, match="axes must name each of h, w and n once"):
            load_cell_images(root, axes=axes)


def test_rectangles_are_refused_or_fitted_by_the_advice(tmp_path):
    stack = np.random.default_rng(0).random((5, 20, 30), np.float32)
    root = tree(tmp_path, write_v5, np.moveaxis(stack, 0, -1))
    with pytest.raises(ValueError, match=r"20 x 30 pixels is not square\. Say .* fit='pad', 'crop' or 'stretch'"):
        load_cell_images(root, image_size=16)
    for fit in ("pad", "crop", "stretch"):
        for antialias in (False, True):
            loaded = load_cell_images(root, image_size=16, fit=fit, antialias=antialias).bf
            np.testing.assert_array_equal(loaded, resize_images(stack, 16, fit, antialias=antialias))
    np.testing.assert_array_equal(load_cell_images(root, image_size=None).bf, stack)


# --- variables and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_v5, write_v73])
def test_variable_and_suffix_are_two_things(tmp_path, write):
    stack = np.moveaxis(IMAGES, 0, -1)
    root = tree(tmp_path, write, stack, names=("images", "phase"), suffixes=("bright", "dark"))
    how = {"bf_suffix": "bright", "qpi_suffix": "DARK", "image_size": None}
    for names in ({}, {"bf_variable": "images", "qpi_variable": "Phase"}):
        np.testing.assert_array_equal(load_cell_images(root, **how, **names).bf, IMAGES)
    with pytest.raises(FileNotFoundError, match=r"H69_BF.mat is missing; .* bf_suffix and qpi_suffix\. The folder"):
        load_cell_images(root)
    with pytest.raises(ValueError, match=r"no variable 'phase'; .* Images are in \['images'\]"):
        load_cell_images(root, **how, bf_variable="phase")


@pytest.mark.parametrize("write", [write_v5, write_v73])
def test_the_only_images_are_taken_when_no_name_is_given(tmp_path, write):
    stack = np.moveaxis(IMAGES, 0, -1)
    root = tree(tmp_path, write, stack, names=("images", "phase"))
    path = root / "Batch1" / "H69" / "Train" / "H69_BF.mat"
    np.testing.assert_array_equal(load_cell_images(root, image_size=None).bf, IMAGES)
    np.testing.assert_array_equal(load_cell_images(root, image_size=None, bf_variable="images").bf, IMAGES)
    scipy.io.savemat(path, {"scale": np.ones((3, 3)), "note": "text", "images": stack})
    np.testing.assert_array_equal(load_cell_images(root, image_size=None).bf, IMAGES)
    scipy.io.savemat(path, {f"images{number}": stack[..., :1] for number in range(30)} | {"a": stack, "b": stack})
    with pytest.raises(ValueError, match=r"has no variable 'BF'.* Several hold images, \['a', 'b'.*bf_variable") as e:
        load_cell_images(root)
    assert str(e.value).count("(single)") == 10 and "and 22 more" in str(e.value)


def test_folders_of_the_system_are_no_data(tmp_path):
    root = tree(tmp_path / "data", write_v5, np.moveaxis(IMAGES, 0, -1))
    for name in (".DS_Store", "__MACOSX", ".git", "._Batch1"):
        tree(root / name, write_v5, np.moveaxis(IMAGES, 0, -1))  # a tree of drugs, as it were
        tree(root / "Batch1" / name, write_v5, np.moveaxis(IMAGES, 0, -1))
    folder = root / "Batch1" / "H69" / "Train"
    (folder / "._H69_BF.mat").write_bytes(b"Mac OS X")
    (root / ".DS_Store2").write_bytes(b"")
    data = load_cell_images(root, image_size=None)
    assert data.batch.tolist() == ["Batch1"] * 12
    (folder / "H69_BF.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"The folder holds: H69_QPI\.mat\.$"):
        load_cell_images(root)


def test_lists_of_groups_end_after_ten_names(tmp_path):
    for number in range(40):
        tree(tmp_path / str(number), write_v5, np.moveaxis(IMAGES[:1], 0, -1))
        (tmp_path / str(number) / "Batch1").rename(tmp_path / f"Batch{number}")
    with pytest.raises(ValueError, match=r"Available: .*'Batch9'. and 30 more") as caught:
        load_cell_images(tmp_path, batches=[f"Day{number}" for number in range(500)])
    assert "and 490 more" in str(caught.value) and len(str(caught.value)) < 600


# --- predictions: all or nothing -------------------------------------------------------------------------------------


def predictions(**changed) -> dict:
    given = {
        "images": IMAGES,
        "features": np.ones((12, 3)),
        "batch": ["a", "b"] * 6,
        "cell_type": ["x"] * 6 + ["y"] * 6,
    }
    return given | changed


@pytest.mark.parametrize(
    ("label", "match"),
    [
        ("n" * 240, "with '_CytoMAD_features.mat' it has 261 bytes, and 255 are allowed"),
        ("é" * 120, "has 261 bytes"),
        ("half \ud83d", "half of a character"),
        ("COM¹", "Windows reserves it"),
        ("conin$.txt", "Windows reserves it"),
        (".hidden", "passed over when data are loaded"),
        ("__MACOSX", "passed over when data are loaded"),
    ],
)
def test_names_that_no_folder_can_have(tmp_path, label, match):
    with pytest.raises(ValueError, match=match):
        save_predictions(tmp_path / "out", **predictions(cell_type=[label] * 12))
    assert not (tmp_path / "out").exists()


def test_the_longest_name_that_can_be_written_is_written_and_read(tmp_path):
    label = "n" * (255 - len("_CytoMAD_features.mat"))
    save_predictions(tmp_path, **predictions(cell_type=[label] * 12))
    read = load_cell_images(tmp_path, "Test", image_size=None, bf_suffix="CytoMAD_image", qpi_suffix="CytoMAD_image")
    assert set(read.cell_type) == {label}


def test_twins_in_unicode(tmp_path):
    with pytest.raises(ValueError, match=r"differ in how letters are composed \(Unicode NFC and NFD\) only"):
        save_predictions(tmp_path / "out", **predictions(batch=["caf\u00e9", "cafe\u0301"] * 6))
    with pytest.raises(ValueError, match="differ in case only"):
        save_predictions(tmp_path / "out", **predictions(batch=["É", "é"] * 6))
    assert not (tmp_path / "out").exists()


def test_dates_become_names_of_folders(tmp_path):
    times = np.array(["2024-01-31T10:30:00", "2024-02-01"] * 6, "M8[s]")
    paths = save_predictions(tmp_path, **predictions(batch=times))
    assert {path.relative_to(tmp_path).parts[0] for path in paths} == {"2024-01-31T103000", "2024-02-01T000000"}


def test_nothing_is_written_through_a_link_or_in_place_of_a_folder(tmp_path):
    away, root = tmp_path / "away", tmp_path / "out"
    away.mkdir()
    root.mkdir()
    try:
        (root / "b").symlink_to(away, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    with pytest.raises(ValueError, match=r"is a link to .*away"):
        save_predictions(root, **predictions(), overwrite=True)
    (root / "b").unlink()
    target = root / "a" / "x" / "Test" / "x_CytoMAD_image.mat"
    target.parent.mkdir(parents=True)
    target.symlink_to(away / "secret")
    with pytest.raises(ValueError, match=r"x_CytoMAD_image\.mat is a link to .*secret"):
        save_predictions(root, **predictions(), overwrite=True)
    target.unlink()
    target.mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder where a file is to be written"):
        save_predictions(root, **predictions(), overwrite=True)
    target.rmdir()
    (root / "b").write_text("a file")
    with pytest.raises(NotADirectoryError, match="is a file where a folder is needed"):
        save_predictions(root, **predictions(), overwrite=True)
    assert not list(away.iterdir()) and [path for path in root.rglob("*") if path.is_file()] == [root / "b"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("at", range(0, 20, 3))
def test_interrupted_anywhere_nothing_has_changed(tmp_path, monkeypatch, error, existing, at):
    """The n-th file that is written or moved fails; the tree is as it was."""
    root = tmp_path / "deep" / "out"
    if existing:
        save_predictions(root, **predictions(images=IMAGES + 1))
        (root / "a" / "x" / "Test" / "x_CytoMAD_image.mat").unlink()  # one file is new
    before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
    calls = 0
    write, replace = _writing.write_v5, Path.replace

    def failing(call):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise error
            return call(*args, **kwargs)

        return wrapped

    from skbegan.datasets import matlab

    monkeypatch.setattr(matlab, "write_v5", failing(write))
    monkeypatch.setattr(Path, "replace", failing(replace))
    reached = (15 if existing else 16) + (7 if existing else 0)
    if at >= reached:
        return
    with pytest.raises(type(error)):
        save_predictions(root, **predictions(), overwrite=True)
    assert {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")} == before
    save_predictions(root, **predictions(), overwrite=True)
    assert not [path for path in root.rglob("*") if path.suffix == ".tmp"]
