"""Any image files and a table: formats, axes, sizes, labels, what is missing, and reading by rows."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import polars as pl
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from skbegan import BeGANTransformer
from skbegan.datasets import load_cell_table, make_cell_images
from skbegan.datasets._table_images import TableImages
from skbegan.stored.lazy import ROWS_AT_ONCE, LazyRows

SIDE = 16
N = 6


@pytest.fixture
def pixels(rng: np.random.Generator) -> NDArray[np.uint16]:
    return rng.integers(0, 60_000, (N, SIDE, SIDE)).astype(np.uint16)


def frame(paths: list[str], **columns: Any) -> pd.DataFrame:
    n = len(paths)
    labels = {"plate": ["p1", "p2"] * (n // 2) + ["p1"] * (n % 2), "line": ["A"] * (n - n // 2) + ["B"] * (n // 2)}
    return pd.DataFrame({"bf": paths, **labels, **columns})


def load(table: Any, root: Path | None = None, **options: Any) -> Any:
    return load_cell_table(
        table, **{"bf": "bf", "batch": "plate", "cell_type": "line", "root": root, "image_size": SIDE, **options}
    )


def saved(folder: Path, images: Any, save: Any, suffix: str) -> list[str]:
    names = [f"cell {number}{suffix}" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        save(folder / name, image)
    return names


# --- formats -------------------------------------------------------------------------------------------------------

WRITERS = {
    "tiff": (".tif", tifffile.imwrite),
    "big-endian": (".tif", lambda path, image: tifffile.imwrite(path, image, byteorder=">")),
    "packed": (".tiff", lambda path, image: tifffile.imwrite(path, image, byteorder=">", compression="lzw")),
    "ome": (".ome.tif", lambda path, image: tifffile.imwrite(path, image, metadata={"axes": "YX"})),
    "png": (".png", lambda path, image: Image.fromarray(image).save(path)),
    "npy": (".npy", np.save),
    "npy, big-endian": (".npy", lambda path, image: np.save(path, image.astype(">u2"))),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_single_images_of_16_bits(tmp_path, pixels, kind):
    names = saved(tmp_path, pixels, WRITERS[kind][1], WRITERS[kind][0])
    data = load(frame(names), tmp_path)
    np.testing.assert_array_equal(data.bf, pixels)
    assert data.bf.shape == pixels.shape and data.bf.dtype == np.float32 and data.qpi is None
    found = data.report.images["bf"]
    assert dict(found["sizes"]) == {(SIDE, SIDE): N} and dict(found["axes"]) == {"YX": N}
    assert "uint16" in str(data.report) and found["range"] == [(float(pixels.min()), float(pixels.max()))]
    assert ("big-endian" in str(data.report)) == (kind in ("big-endian", "packed", "npy, big-endian"))
    eager = load(frame(names), tmp_path, lazy=False, verbose=1)
    assert type(eager.bf) is np.ndarray
    np.testing.assert_array_equal(eager.bf, pixels)


def test_floats_booleans_and_jpeg(tmp_path, rng):
    real = rng.normal(size=(2, SIDE, SIDE)).astype(np.float32)
    names = saved(tmp_path, real, tifffile.imwrite, ".tif")
    np.testing.assert_array_equal(load(frame(names), tmp_path).bf, real)
    masks = real > 0
    names = saved(tmp_path, masks, lambda path, image: Image.fromarray(image).save(path), ".png")
    np.testing.assert_array_equal(load(frame(names), tmp_path).bf, masks)
    grey = np.tile(np.arange(SIDE, dtype=np.uint8) * 10, (2, SIDE, 1))
    names = saved(tmp_path, grey, lambda path, image: Image.fromarray(image).save(path, quality=95), ".jpg")
    np.testing.assert_allclose(load(frame(names), tmp_path).bf, grey, atol=4)


def test_colours_come_last_and_one_can_be_chosen(tmp_path, rng):
    colours = rng.integers(0, 255, (N, SIDE, SIDE, 3)).astype(np.uint8)
    names = saved(tmp_path, colours, lambda path, image: Image.fromarray(image).save(path), ".png")
    table = frame(names)
    np.testing.assert_array_equal(load(table, tmp_path).bf, colours)
    data = load(table, tmp_path, bf="bf:2", target=["bf:0", "bf:1"])
    np.testing.assert_array_equal(data.bf, colours[..., 2])
    np.testing.assert_array_equal(data.qpi, colours[..., :2])
    with pytest.raises(ValueError, match=r"channels 0 to 2, and channel 3"):
        load(table, tmp_path, bf="bf:3")
    with pytest.raises(ValueError, match=r"'bf:red': a channel is a number from 0"):
        load(table, tmp_path, bf="bf:red")
    with pytest.raises(TypeError, match=r"bf must be the name of a column.*'image:0'"):
        load(table, tmp_path, bf=0)
    tiffs = saved(tmp_path, colours, lambda path, image: tifffile.imwrite(path, image, photometric="rgb"), ".tif")
    np.testing.assert_array_equal(load(frame(tiffs), tmp_path).bf, colours)
    planes = np.moveaxis(colours, -1, 1)
    planar = saved(
        tmp_path,
        planes,
        lambda path, image: tifffile.imwrite(path, image, photometric="rgb", planarconfig="separate"),
        ".tiff",
    )
    np.testing.assert_array_equal(load(frame(planar), tmp_path, bf="bf:1").bf, colours[..., 1])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_left_out_where_it_is_opaque_and_refused_elsewhere(tmp_path, rng, suffix):
    images = rng.integers(0, 255, (2, SIDE, SIDE, 4)).astype(np.uint8)
    images[..., 3] = 255

    def save(path: Path, image: NDArray[np.uint8]) -> None:
        if suffix == ".png":
            Image.fromarray(image).save(path)
        else:
            tifffile.imwrite(path, image, photometric="rgb", extrasamples=["unassalpha"])

    names = saved(tmp_path, images, save, suffix)
    data = load(frame(names), tmp_path)
    np.testing.assert_array_equal(data.bf, images[..., :3])
    assert data.report.n_alpha == 2 and "Alpha" in str(data.report)
    np.testing.assert_array_equal(load(frame(names), tmp_path, bf="bf:1").bf, images[..., 1])
    images[1, 3, 4, 3] = 254
    save(tmp_path / names[1], images[1])
    with pytest.raises(ValueError, match=f"cell 1{suffix} is transparent in places"):
        load(frame(names), tmp_path)


def test_what_is_no_intensity_is_refused_by_name(tmp_path):
    grey = np.zeros((SIDE, SIDE), np.uint8)
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "print.jpg")
    tifffile.imwrite(tmp_path / "palette.tif", grey, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    np.save(tmp_path / "complex.npy", grey.astype(complex))
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "cells.cif").write_text("cells")
    for name, message in {
        "palette.png": "palette image",
        "palette.tif": "palette image",
        "print.jpg": "of the mode CMYK",
        "complex.npy": "not real numbers",
        "text.tif": "cannot be read",
        "cells.cif": "export TIFF from IDEAS",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            load(frame([name]), tmp_path)


def test_png_of_16_bits_with_colours_is_not_read_as_8_bits(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(np.zeros((SIDE, SIDE, 3), np.uint16)))
    with pytest.raises(ValueError, match=r"deep.png: it is a PNG of 16 bits with several channels"):
        load(frame(["deep.png"]), tmp_path)


# --- many cells in a file ------------------------------------------------------------------------------------------


def test_pages_of_a_stack(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "stack.tif", pixels)
    order = [4, 1, 1, 0, 5, 2]
    table = frame(["stack.tif"] * N, page=order)
    data = load(table, tmp_path, index="page")
    np.testing.assert_array_equal(data.bf, pixels[order])
    assert data.report.duplicates == [2]
    with pytest.raises(
        ValueError, match=r"stack.tif: it holds 6 images along the axis 'Q'.*index='COLUMN'.*axes='CYX'"
    ):
        load(table, tmp_path)
    with pytest.raises(ValueError, match=r"stack.tif holds 6 images, and row 1 \(from 0\) asks for number 6"):
        load(table.assign(page=[0, 6, 0, 0, 0, 0]), tmp_path, index="page")
    with pytest.raises(ValueError, match=r"index='page'.*row 2.*has 0.5"):
        load(table.assign(page=[0, 0, 0.5, 0, 0, 0]), tmp_path, index="page")


@pytest.mark.parametrize("save", ["imagej", "truncated", "separate pages"])
def test_stacks_of_other_programs(tmp_path, pixels, save):
    path = tmp_path / "stack.tif"
    if save == "separate pages":
        with tifffile.TiffWriter(path) as file:
            for page in pixels:
                file.write(page, contiguous=False, metadata=None, compression="deflate")
    else:
        options = {"truncate": True} if save == "truncated" else {"imagej": True, "metadata": {"axes": "TYX"}}
        tifffile.imwrite(path, pixels, **options)
    data = load(frame(["stack.tif"] * N, page=range(N)), tmp_path, index="page")
    np.testing.assert_array_equal(data.bf, pixels)


def test_channels_of_a_stack_wherever_their_axis_is(tmp_path, rng):
    images = rng.integers(0, 999, (N, 5, SIDE, SIDE)).astype(np.uint16)
    files = saved(tmp_path, images, lambda p, image: tifffile.imwrite(p, image, metadata={"axes": "CYX"}), ".ome.tif")
    data = load(frame(files), tmp_path, bf="bf:0", target="bf:3")
    np.testing.assert_array_equal(data.bf, images[:, 0])
    np.testing.assert_array_equal(data.qpi, images[:, 3])
    np.testing.assert_array_equal(load(frame(files), tmp_path).bf, np.moveaxis(images, 1, -1))
    # Pages of which nothing says what they are: a channel that is asked for does, and so do axes.
    files = saved(tmp_path, images, tifffile.imwrite, ".tif")
    np.testing.assert_array_equal(load(frame(files), tmp_path, bf="bf:4").bf, images[:, 4])
    np.testing.assert_array_equal(load(frame(files), tmp_path, axes="CYX").bf, np.moveaxis(images, 1, -1))
    for order, axes in (((2, 1, 0), "XYC"), ((1, 0, 2), "YCX")):
        moved = [image.transpose(order) for image in images]
        files = saved(tmp_path, moved, np.save, ".npy")
        np.testing.assert_array_equal(load(frame(files), tmp_path, bf="bf:1", axes={"bf": axes}).bf, images[:, 1])
        files = saved(tmp_path, moved, tifffile.imwrite, ".tif")
        np.testing.assert_array_equal(load(frame(files), tmp_path, bf="bf:1", axes=axes).bf, images[:, 1])


def test_pages_and_channels_of_one_ome_tiff(tmp_path, rng):
    images = rng.integers(0, 999, (N, 3, SIDE, SIDE)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "all.ome.tif", images, metadata={"axes": "TCYX"}, byteorder=">")
    data = load(frame(["all.ome.tif"] * N, n=range(N)), tmp_path, bf="bf:2", target="bf:0", index="n")
    np.testing.assert_array_equal(data.bf, images[:, 2])
    np.testing.assert_array_equal(data.qpi[[3, 1]], images[[3, 1], 0])


@pytest.mark.parametrize("store", ["h5", "zarr"])
def test_hdf5_and_zarr_with_an_index(tmp_path, rng, store):
    images = rng.integers(0, 999, (N, SIDE, SIDE, 2)).astype(">u2")
    if store == "h5":
        with h5py.File(tmp_path / "cells.h5", "w") as file:
            file.create_dataset("a/images", data=images, chunks=(2, SIDE, SIDE, 2), compression="gzip")
            file.create_dataset("last", data=np.moveaxis(images[..., 0], 0, -1))
    else:
        group = zarr.open_group(tmp_path / "cells.zarr", mode="w")
        for name, array in {"a/images": images, "last": np.moveaxis(images[..., 0], 0, -1)}.items():
            group.create_array(name, shape=array.shape, dtype="uint16", chunks=(2, *array.shape[1:]))[:] = array
    order = [5, 0, 3, 3, 4, 1]
    table = frame([f"cells.{store}::a/images"] * N, n=order, other=[f"cells.{store}::last"] * N)
    data = load(table, tmp_path, index="n", axes={"other": "YXN"}, target="other")
    np.testing.assert_array_equal(data.bf, images[order])
    np.testing.assert_array_equal(data.qpi, images[order, ..., 0])
    np.testing.assert_array_equal(data.bf[4:1:-1], images[order][4:1:-1])
    assert data.report.pages_per_chunk == (2 if store == "h5" else N) and "Slow" not in str(data.report)
    with pytest.raises(ValueError, match=rf"cells.{store}::b: there is no array of that name"):
        load(table.assign(bf=f"cells.{store}::b"), tmp_path, index="n")
    with pytest.raises(ValueError, match=rf"cells.{store}: the name of the array is missing"):
        load(table.assign(bf=f"cells.{store}"), tmp_path, index="n")


def test_chunks_of_many_cells_are_called_slow(tmp_path, rng):
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        file.create_dataset("images", data=rng.normal(size=(40, SIDE, SIDE)), chunks=(20, SIDE, SIDE))
    there, back = (
        load(frame(["cells.h5::images"] * 40, n=order), tmp_path, index="n") for order in (range(40), range(39, -1, -1))
    )
    assert "Slow: files are stored in chunks of 20 images" in str(back.report) and back.bf.blocks() is None
    assert "Slow" not in str(there.report) and there.bf.blocks().tolist() == [0, 20, 40]  # streamed block by block


def test_hdf5_that_points_elsewhere_is_not_followed(tmp_path, pixels):
    with h5py.File(tmp_path / "real.h5", "w") as file:
        file["images"] = pixels
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["images"] = h5py.ExternalLink("real.h5", "images")
    with pytest.raises(ValueError, match=r"link.h5::images.*a link to '/?images' in the file"):
        load(frame(["link.h5::images"] * N, n=range(N)), tmp_path, index="n")


def test_doubtful_axes_are_not_guessed(tmp_path, rng):
    np.save(tmp_path / "cube.npy", rng.normal(size=(SIDE, SIDE, SIDE)))
    with pytest.raises(ValueError, match=r"cube.npy: the order of its axes is doubtful, its shape is \(16, 16, 16\)"):
        load(frame(["cube.npy"]), tmp_path)
    with pytest.raises(ValueError, match=r"axes='YX' names 2 axes"):
        load(frame(["cube.npy"]), tmp_path, axes="YX")
    with pytest.raises(ValueError, match=r"every file holds a single image"):
        np.save(tmp_path / "one.npy", rng.normal(size=(SIDE, SIDE)))
        load(frame(["one.npy"], n=[0]), tmp_path, index="n")


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "parquet", "xlsx", "pandas", "polars"])
def test_every_kind_of_table_gives_the_same(tmp_path, pixels, kind):
    (tmp_path / "images").mkdir()
    names = [f"images/{name}" for name in saved(tmp_path / "images", pixels, tifffile.imwrite, ".tif")]
    table = frame(names, dose=[0.5] * N, well=["01", "02"] * 3)
    root = None
    if kind in ("csv", "semicolons", "tsv"):
        path = tmp_path / ("cells.tsv" if kind == "tsv" else "cells.csv")
        table.to_csv(path, index=False, sep={"csv": ",", "semicolons": ";", "tsv": "\t"}[kind])
        given: Any = path
    elif kind in ("parquet", "xlsx"):
        given = tmp_path / f"cells.{kind}"
        table.to_parquet(given) if kind == "parquet" else table.to_excel(given, index=False)
    else:
        given, root = (table if kind == "pandas" else pl.DataFrame(table.to_dict(orient="list"))), tmp_path
    data = load(given, root, batch=["plate", "well"])
    np.testing.assert_array_equal(data.bf, pixels)
    assert data.batch.tolist() == [("p1", "01"), ("p2", "02")] * 3 and data.cell_type.tolist() == ["A"] * 3 + ["B"] * 3
    assert isinstance(data.table, pd.DataFrame) and data.table["dose"].tolist() == [0.5] * N
    assert data.report.counts.to_numpy().tolist() == [[2, 1], [1, 2]]


def test_labels_of_tables(tmp_path, pixels):
    names = saved(tmp_path, pixels, np.save, ".npy")
    frame(names, day=["01", "1", "NA", "None", "x", "y"]).to_csv(tmp_path / "cells.csv", index=False)
    assert load(tmp_path / "cells.csv", batch="day").batch.tolist() == ["01", "1", "NA", "None", "x", "y"]
    table = frame(names, day=pd.to_datetime(["2024-05-01"] * N), run=[1.0, 2, 3, 1, 2, 3])
    data = load(table, tmp_path, batch=["day", "run"])
    assert data.batch["run"].tolist() == ["1", "2", "3"] * 2 and set(data.batch["day"]) == {"2024-05-01"}
    assert list(data.report.counts.columns) == [f"2024-05-01 / run {run}" for run in (1, 2, 3)]
    frame(names, day=["a", "", "b", "a", "b", "a"]).to_csv(tmp_path / "cells.csv", index=False)
    with pytest.raises(ValueError, match=r"batch \(column 'day'\) has a missing label, first at cell 1"):
        load(tmp_path / "cells.csv", batch="day")


def test_tables_that_cannot_be_used(tmp_path, pixels):
    table = frame(saved(tmp_path, pixels, np.save, ".npy"))
    with pytest.raises(ValueError, match=r"the data frame has no column 'day'; it has \['bf', 'plate', 'line'\]"):
        load(table, tmp_path, batch="day")
    with pytest.raises(ValueError, match=r"no column 'target'"):
        load(table, tmp_path, target="target")
    with pytest.raises(FileNotFoundError, match=r"The table .*none.csv does not exist"):
        load(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"tables that are read end in .csv"):
        (tmp_path / "cells.doc").write_text("")
        load(tmp_path / "cells.doc")
    with pytest.raises(ValueError, match=r"cells.parquet cannot be read as a table"):
        (tmp_path / "cells.parquet").write_text("no table")
        load(tmp_path / "cells.parquet")
    with pytest.raises(TypeError, match="data frame, got dict"):
        load({"bf": []})
    with pytest.raises(TypeError, match=r"table.collect\(\)"):
        load(pl.LazyFrame({"bf": ["a"]}))
    with pytest.raises(ValueError, match="has no rows"):
        load(table.iloc[:0], tmp_path)
    with pytest.raises(ValueError, match="bf and target name the same images"):
        load(table, tmp_path, target="bf")
    with pytest.raises(FileNotFoundError, match=r"root=.* is no folder"):
        load(table, tmp_path / "nowhere")


def test_the_table_given_stays_as_it_was(tmp_path, pixels):
    table = frame(saved(tmp_path, pixels, np.save, ".npy")).set_index("line", drop=False)
    before = table.copy()
    found = load(table, tmp_path).table
    found["bf"] = "changed"
    pd.testing.assert_frame_equal(table, before)


def test_missing_files_are_named_before_any_image_is_read(tmp_path, pixels, monkeypatch):
    names = saved(tmp_path, pixels, np.save, ".npy")
    table = frame(names).assign(target=[f"{number}.png" for number in range(N)])
    with monkeypatch.context() as patched:
        patched.setattr("skbegan.datasets.tables.open_images", None)  # calling it would be another error
        with pytest.raises(FileNotFoundError, match=r"6 files .*\(rows: 6\): 0.png, .*4.png and 1 more"):
            load(table, tmp_path, target="target")
    for number in (0, 1, 2, 5):
        Image.fromarray(pixels[number]).save(tmp_path / f"{number}.png")
    table.loc[2, "target"] = None
    data = load(table, tmp_path, target="target", missing="drop")
    np.testing.assert_array_equal(data.bf, pixels[[0, 1, 5]])
    np.testing.assert_array_equal(data.qpi, pixels[[0, 1, 5]])
    assert data.table["bf"].tolist() == [names[0], names[1], names[5]] and data.table.index.tolist() == [0, 1, 2]
    assert data.report.missing == ["(no name in column 'target', row 2)", "3.png", "4.png"]
    assert data.batch.tolist() == ["p1", "p2", "p2"] and data.report.n_rows == 6
    with pytest.raises(FileNotFoundError):
        load(frame(["none.npy"]), tmp_path, missing="drop")


def test_names_written_on_windows(tmp_path, pixels):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "b.npy", pixels[0])
    np.testing.assert_array_equal(load(frame(["a\\b.npy"]), tmp_path).bf, pixels[:1])


# --- sizes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ragged(tmp_path: Path) -> list[str]:
    """Bright cells on backgrounds of 100, 200, 300, in crops of 10 x 12, 16 x 16 and 20 x 14 pixels."""
    images = []
    for number, (height, width) in enumerate(((10, 12), (16, 16), (20, 14))):
        image = np.full((height, width), 100 * (number + 1), np.uint16)
        image[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2] = 1000
        images.append(image)
    return saved(tmp_path, images, tifffile.imwrite, ".tif")


def test_pad_keeps_one_scale_and_cuts_nothing(tmp_path, ragged):
    data = load(frame(ragged), tmp_path, image_size=32)
    for image, background in zip(data.bf, (100, 200, 300), strict=True):
        assert (image[14:18, 14:18] == 1000).all() and (image == 1000).sum() == 16
        assert (image[image != 1000] == background).all()
    report = data.report
    assert (report.n_padded, report.n_cut, report.n_rescaled, report.frame, report.scale) == (3, 0, 0, 32, 1.0)
    assert "3 cells padded with the median of their border; none rescaled" in str(report)
    small = load(frame(ragged), tmp_path, image_size=10)  # 20 pixels become 10, for all cells
    assert (small.report.frame, small.report.n_rescaled, small.report.scale) == (20, 3, 0.5)
    assert "frame=20 pixels became 10, so that a pixel is 2 times as wide" in str(small.report)
    assert (small.bf[:, 4:6, 4:6] > 900).all() and np.allclose(small.bf[:, 0, 0], [100, 200, 300])


def test_crop_rescales_nothing(tmp_path, ragged):
    data = load(frame(ragged), tmp_path, image_size=16, fit="crop")
    assert all((image == 1000).sum() == 16 and (image[6:10, 6:10] == 1000).all() for image in data.bf)
    assert (data.report.n_padded, data.report.n_cut, data.report.n_rescaled) == (2, 1, 0)


def test_stretch_fills_the_side_and_says_so(tmp_path, ragged):
    data = load(frame(ragged), tmp_path, image_size=16, fit="stretch")
    assert (data.report.n_rescaled, data.report.scale) == (2, None) and "each by its own factors" in str(data.report)
    assert 30 <= (data.bf[0] > 550).sum() <= 40  # 4 x 4 of 10 x 12 pixels are 34 of 16 x 16


def test_frame_is_the_scale_of_another_table(tmp_path, ragged):
    whole = load(frame(ragged), tmp_path, image_size=10)
    first = load(frame(ragged[:1]), tmp_path, image_size=10, frame=whole.report.frame)
    np.testing.assert_array_equal(first.bf[0], whole.bf[0])
    with pytest.raises(ValueError, match="frame is for"):
        load(frame(ragged), tmp_path, fit="stretch", frame=20)


def test_pairs_of_other_sizes_are_refused(tmp_path, ragged, pixels):
    names = saved(tmp_path, pixels[:3], np.save, ".npy")
    table = frame(ragged).assign(phase=names)
    with pytest.raises(ValueError, match=r"row 0 \(from 0\) has 10 x 12 pixels in 'bf' and 16 x 16 in 'phase'"):
        load(table, tmp_path, target="phase")
    assert load(table, tmp_path, target="phase", fit="stretch").qpi.shape == (3, SIDE, SIDE)


def test_images_must_have_the_same_channels(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "grey.tif", pixels[0])
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((SIDE, SIDE, 3), np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match=r"'bf' differ in channels: .*grey.tif has 1, .*colour.tif has 3; choose one"):
        load(frame(["grey.tif", "colour.tif"]), tmp_path)


# --- report --------------------------------------------------------------------------------------------------------


def test_the_report_shows_the_design(tmp_path, pixels):
    names = saved(tmp_path, pixels, np.save, ".npy")
    crossed = load(frame(names), tmp_path).report
    assert "can be told apart" in crossed.design and repr(crossed) == str(crossed)
    lines = str(crossed).splitlines()
    assert lines[1].split() == ["cell", "type", "p1", "p2"] and lines[2].split() == ["A", "2", "1"]
    confounded = load(frame(names).assign(line=["A", "B"] * 3), tmp_path).report
    assert "confounded: every cell type occurs in one batch only" in str(confounded)
    alone = load(frame(names), tmp_path, cell_type=None)
    assert alone.cell_type is None and "no cell_type was given" in alone.report.design


# --- reading by rows -----------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> tuple[pd.DataFrame, Any]:
    """300 cells: brightfield in a stack, target in HDF5."""
    cells = make_cell_images(300, 2, 2, SIDE, random_state=0)
    tifffile.imwrite(tmp_path / "bf.tif", cells.bf.astype(np.float32))
    with h5py.File(tmp_path / "qpi.h5", "w") as file:
        file.create_dataset("images", data=cells.qpi.astype(np.float32), chunks=(16, SIDE, SIDE))
    table = pd.DataFrame(
        {
            "bf": str(tmp_path / "bf.tif"),
            "phase": f"{tmp_path / 'qpi.h5'}::images",
            "n": range(300),
            "plate": cells.batch,
            "line": cells.cell_type,
        }
    )
    return table, cells


TINY: dict[str, Any] = {
    "base_width": 4,
    "n_features": 8,
    "pretrain_epochs": 1,
    "removal_epochs": 1,
    "minibatch_size": 32,
    "device": "cpu",
    "random_state": 0,
}


@pytest.mark.slow
def test_a_fit_reads_rows_and_gives_what_arrays_give(stored, monkeypatch, tmp_path):
    table, cells = stored
    read: list[int] = []
    original = LazyRows.__getitem__

    def counting(self: LazyRows, key: Any) -> NDArray[Any]:
        values = original(self, key)
        if isinstance(self, TableImages):
            read.append(len(values) if values.ndim == 3 else 1)
        return values

    def no_whole(self: LazyRows, *_: Any, **__: Any) -> NDArray[Any]:
        raise AssertionError("all were read at once")

    options = {"target": "phase", "index": "n"}
    lazy, eager = load(table, **options), load(table, lazy=False, **options)
    np.testing.assert_array_equal(eager.bf, cells.bf.astype(np.float32))
    with monkeypatch.context() as patched:
        patched.setattr(LazyRows, "__getitem__", counting)
        patched.setattr(LazyRows, "__array__", no_whole)
        patched.setattr("skbegan.core.content.SIGN_CELLS", 200)  # 2048 are more than there are
        model = BeGANTransformer(**TINY, checkpoint_dir=tmp_path / "kept", memory=tmp_path / "memory")
        model.fit(lazy.bf, lazy.qpi, lazy.batch, lazy.cell_type)
        features, images = model.transform(lazy.bf), model.predict_image(lazy.bf)
        assert sum(read) > 10 * 300 and max(read) <= ROWS_AT_ONCE < 300
        with pytest.warns(UserWarning, match="score was given"):
            score = model.score(lazy.bf, lazy.qpi)
    other = BeGANTransformer(**TINY).fit(eager.bf, eager.qpi, eager.batch, eager.cell_type)
    np.testing.assert_array_equal(features, other.transform(eager.bf))
    np.testing.assert_array_equal(images, other.predict_image(eager.bf))
    np.testing.assert_array_equal(features, other.transform(lazy.bf))
    with pytest.warns(UserWarning, match="score was given"):
        assert other.score(eager.bf, eager.qpi) == pytest.approx(score)


def test_lazy_images_answer_as_arrays_do(stored):
    table, cells = stored
    images, pixels = load(table, index="n").bf, cells.bf.astype(np.float32)
    assert (images.shape, images.ndim, images.size, len(images)) == (pixels.shape, 3, pixels.size, 300)
    rows = np.array([7, -1, 7, 0])
    mask = np.arange(300) % 7 == 0
    for key in (
        3,
        -2,
        slice(5, 9),
        slice(None, None, -50),
        rows,
        rows.tolist(),
        mask,
        [],
        (rows, ...),
        (3, 4),
        (..., 2),
    ):
        np.testing.assert_array_equal(images[key], pixels[key])
    chosen = images.select(mask)
    assert isinstance(chosen, LazyRows) and chosen.shape == pixels[mask].shape
    np.testing.assert_array_equal(chosen.select([2, 0])[:], pixels[mask][[2, 0]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images))[rows], pixels[rows])
    assert images.fingerprint() == pickle.loads(pickle.dumps(images)).fingerprint() != chosen.fingerprint()
    for wrong in (300, [300], np.ones(3, bool), "a", [0.5], np.zeros((2, 2), int)):
        with pytest.raises(IndexError):
            images[wrong]


def test_files_that_change_after_the_table_was_read(tmp_path, pixels):
    names = saved(tmp_path, pixels, np.save, ".npy")
    data = load(frame(names), tmp_path)
    np.save(tmp_path / names[1], pixels[0, :8])
    with pytest.raises(ValueError, match=r"cell 1.npy has changed since the table was read"):
        data.bf[:3]
    (tmp_path / names[2]).write_text("")
    with pytest.raises(ValueError, match=r"cell 2.npy cannot be read"):
        data.bf[2]


@pytest.mark.slow
def test_an_audit_of_lazy_images(stored):
    from skbegan.metrics import audit

    table, cells = stored
    data = load(table, target="phase", index="n")
    model = BeGANTransformer(**TINY | {"removal_epochs": 0, "pretrain_epochs": 0})
    model.fit(data.bf, data.qpi, data.batch, data.cell_type)
    options: dict[str, Any] = {"probes": ("linear",), "n_repeats": 1, "n_splits": 2, "measurements": False}
    found = audit(model, data.bf, data.qpi, data.batch, data.cell_type, **options)
    true = audit(model, *(x.astype(np.float32) for x in (cells.bf, cells.qpi)), data.batch, data.cell_type, **options)
    assert found["leakage_linear"].value == true["leakage_linear"].value and found["mae"].value == true["mae"].value


def test_a_missing_library_is_named_with_the_extra(tmp_path, pixels, monkeypatch):
    names = saved(tmp_path, pixels, tifffile.imwrite, ".tif")
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(ImportError, match=r"Reading cell 0.tif needs tifffile.*pip install 'skbegan\[io\]'"):
        load(frame(names), tmp_path)
