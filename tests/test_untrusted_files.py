"""Files from strangers: what points elsewhere, is not stored, or is far larger than its file is refused unread."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from skbegan import load_keras_generator
from skbegan.datasets import load_cell_images
from skbegan.io.keras import read_keras_network
from skbegan.stored import hdf5

KERAS = Path(__file__).parent / "data" / "keras"
SECRET = np.arange(3 * 16 * 16, dtype=np.float64).reshape(3, 16, 16)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Another file of the computer, in HDF5 and as bytes."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with h5py.File(folder / "secret.h5", "w") as file:
        file["BF"] = SECRET
    SECRET.tofile(folder / "secret.bin")
    return folder


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A group of three sound cells; tests replace H69_BF.mat."""
    folder = tmp_path / "tree" / "Batch1" / "H69" / "Train"
    folder.mkdir(parents=True)
    scipy.io.savemat(folder / "H69_QPI.mat", {"QPI": np.moveaxis(SECRET, 0, -1)})
    return folder


def refused(group: Path, match: str, **options) -> str:
    """Loading must fail with this message and without much memory."""
    options = {"image_size": None, "bf_variable": "BF"} | options
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match) as caught:
            load_cell_images(group.parents[2], **options)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert "H69_BF.mat" in str(caught.value) and len(str(caught.value)) < 800
    return str(caught.value)


def matlab_class(item: h5py.Dataset, name: bytes = b"double") -> None:
    item.attrs["MATLAB_class"] = np.bytes_(name)


# --- HDF5 that points elsewhere --------------------------------------------------------------------------------------


def external_link(file: h5py.File, folder: Path) -> None:
    file["BF"] = h5py.ExternalLink(str(folder / "secret.h5"), "/BF")


def link_through_a_link(file: h5py.File, folder: Path) -> None:
    file["away"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")
    file["BF"] = h5py.SoftLink("/away/BF")


def missing_source(file: h5py.File, folder: Path) -> None:
    file["BF"] = h5py.ExternalLink(str(folder / "nothing.h5"), "/BF")


def external_data(file: h5py.File, folder: Path) -> None:
    item = file.create_dataset("BF", SECRET.shape, "f8", external=[(str(folder / "secret.bin"), 0, SECRET.nbytes)])
    matlab_class(item)


def missing_external_data(file: h5py.File, folder: Path) -> None:
    item = file.create_dataset("BF", SECRET.shape, "f8", external=[(str(folder / "nothing.bin"), 0, SECRET.nbytes)])
    matlab_class(item)


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout(SECRET.shape, "f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "BF", SECRET.shape)
    matlab_class(file.create_virtual_dataset("BF", layout))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (external_link, r"'BF' is a link to '/BF' in the file '.*secret\.h5'"),
        (link_through_a_link, "'BF' is a link to '/away/BF'"),
        (missing_source, "'BF' is a link to '/BF' in the file"),
        (external_data, "'/BF' lies in another file"),
        (missing_external_data, "'/BF' lies in another file"),
        (virtual, "'/BF' is virtual"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_mat_that_points_elsewhere(group, secret, make: Callable[..., None], match, named):
    with h5py.File(group / "H69_BF.mat", "w") as file:
        make(file, secret)
    assert "Only what a file holds itself is read" in refused(group, match, bf_variable="BF" if named else None)


def test_links_beside_the_images_are_not_followed(group, secret):
    with h5py.File(group / "H69_BF.mat", "w") as file:
        file["other"] = h5py.ExternalLink(str(secret / "secret.h5"), "/BF")
        matlab_class(file.create_dataset("bright", data=SECRET))
    data = load_cell_images(group.parents[2], image_size=None)  # the only images that the file holds
    np.testing.assert_array_equal(data.bf, SECRET.swapaxes(1, 2))


def keras_file(tmp_path: Path) -> Path:
    return Path(shutil.copy(KERAS / "batch_mlp2.h5", tmp_path / "model.h5"))


def first_weight(file: h5py.File) -> tuple[h5py.Group, str]:
    root = file["model_weights"]
    group = next(root[name] for name in root.attrs["layer_names"] if len(root[name].attrs["weight_names"]))
    return group, np.ravel(group.attrs["weight_names"])[0]


def keras_refused(path: Path, match: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match) as caught:
            read_keras_network(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert "model.h5" in str(caught.value) and len(str(caught.value)) < 800


@pytest.mark.parametrize("kind", ["external", "soft"])
def test_keras_whose_weights_are_a_link(tmp_path, kind):
    with h5py.File(keras_file(tmp_path), "r+") as file:
        del file["model_weights"]
        file["away"] = h5py.ExternalLink(str(KERAS / "batch_mlp2.h5"), "/")
        file["model_weights"] = (
            h5py.ExternalLink(str(KERAS / "batch_mlp2.h5"), "/model_weights")
            if kind == "external"
            else h5py.SoftLink("/away/model_weights")
        )
    keras_refused(tmp_path / "model.h5", "'model_weights' is not stored there: 'model_weights' is a link to")


@pytest.mark.parametrize("kind", ["group", "link", "virtual", "external", "not stored"])
def test_keras_whose_weights_lie_elsewhere(tmp_path, kind):
    with h5py.File(keras_file(tmp_path), "r+") as file:
        layer, name = first_weight(file)
        values = layer[name][()]
        values.tofile(tmp_path / "values.bin")
        with h5py.File(tmp_path / "values.h5", "w") as other:
            other["values"] = values
        if kind == "group":
            path = layer.name
            del file[path]
            file[path] = h5py.ExternalLink(str(KERAS / "batch_mlp2.h5"), path)
        else:
            del layer[name]
        if kind == "link":
            layer[name] = h5py.ExternalLink(str(tmp_path / "values.h5"), "/values")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(values.shape, "f4")
            layout[...] = h5py.VirtualSource(str(tmp_path / "values.h5"), "values", values.shape)
            layer.create_virtual_dataset(name, layout)
        elif kind == "external":
            layer.create_dataset(name, values.shape, "f4", external=[(str(tmp_path / "values.bin"), 0, values.nbytes)])
        elif kind == "not stored":
            layer.create_dataset(name, values.shape, "f4")
    match = {"virtual": "is virtual", "external": "lies in another file", "not stored": r"\d+ bytes, of which 0 are"}
    keras_refused(tmp_path / "model.h5", match.get(kind, "is not stored there: .* is a link to"))


# --- HDF5 far larger than its file -----------------------------------------------------------------------------------


def declared(file: h5py.File) -> None:
    matlab_class(file.create_dataset("BF", (10**6, 512, 512), "f8"))


def declared_within_limits(file: h5py.File) -> None:
    matlab_class(file.create_dataset("BF", (3, 16, 16), "f8"))


def declared_in_chunks(file: h5py.File) -> None:
    matlab_class(file.create_dataset("BF", (10**6, 512, 512), "f8", chunks=(1, 512, 512), compression="gzip"))


def partly_stored(file: h5py.File) -> None:
    item = file.create_dataset("BF", SECRET.shape, "f8", chunks=(1, 16, 16), compression="gzip")
    matlab_class(item)
    item[0] = SECRET[0]


def bomb(file: h5py.File) -> None:
    item = file.create_dataset("BF", (80, 1024, 1024), "u1", chunks=(80, 1024, 1024), compression="gzip")
    matlab_class(item, b"uint8")
    item.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(item.nbytes), 9))


def large_piece_of_few_cells(file: h5py.File) -> None:
    item = file.create_dataset(
        "BF", SECRET.shape, "f8", maxshape=(None, 16, 16), chunks=(10**6, 16, 16), compression="gzip"
    )
    matlab_class(item)


def emptiness(file: h5py.File) -> None:
    item = file.create_dataset("BF", (4 * 10**8,), "u8")
    matlab_class(item)
    item.attrs["MATLAB_empty"] = np.uint8(1)


def long_class(file: h5py.File) -> None:
    matlab_class(file.create_dataset("BF", data=SECRET), b"d" * (17 * 2**20))


def rare_filter(file: h5py.File) -> None:
    matlab_class(file.create_dataset("BF", data=SECRET, compression="lzf"))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (declared, "would take .* MB of memory, .* times as much as the file"),
        (declared_within_limits, "declares 6144 bytes, of which 0 are stored"),
        (declared_in_chunks, "would take .* MB of memory"),
        (partly_stored, "in 3 pieces, of which not all are stored; the rest would be zeros"),
        (bomb, "would take .* MB of memory"),
        (large_piece_of_few_cells, "would take .* MB of memory"),
        (emptiness, "marked as empty but holds 400000000 numbers"),
        (long_class, "'MATLAB_class' of '/BF' declares 17825792 bytes"),
        (rare_filter, "HDF5 filter 32000"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_mat_larger_than_its_file(group, make, match, named):
    with h5py.File(group / "H69_BF.mat", "w", libver="latest") as file:
        make(file)
    refused(group, match, bf_variable="BF" if named else None)


def test_many_tiny_pieces(group):
    with h5py.File(group / "H69_BF.mat", "w") as file:
        matlab_class(file.create_dataset("BF", (200, 16, 16), "f8", chunks=(1, 1, 1)))
    refused(group, "in 51200 pieces of 8 bytes, too small to be read in time")


@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_images_that_compress_well_are_read_by_the_advice(group, monkeypatch, version):
    masks = np.zeros((16, 16, 2000), dtype=np.uint8)
    masks[4:9, 4:9] = 1
    scipy.io.savemat(group / "H69_QPI.mat", {"QPI": masks}, do_compression=True)
    shutil.copy(group / "H69_QPI.mat", group / "H69_BF.mat")
    if version == "v7.3":
        with h5py.File(group / "H69_BF.mat", "w") as file:
            matlab_class(file.create_dataset("BF", data=masks.T, chunks=(500, 16, 16), compression="gzip"), b"uint8")
    else:
        scipy.io.savemat(group / "H69_BF.mat", {"BF": masks}, do_compression=True)
    load_cell_images(group.parents[2], image_size=None)  # below the size that is always allowed
    monkeypatch.setattr(hdf5, "FREE_BYTES", 2**20)
    message = refused(group, r"If you trust the file, set max_expansion=\d+\.")
    advised = int(message.rsplit("max_expansion=", 1)[1].rstrip("."))
    for _ in range(3):  # the second file needs another factor, and both together
        try:
            data = load_cell_images(group.parents[2], image_size=None, max_expansion=advised)
            break
        except ValueError as error:
            advised = int(str(error).rsplit("max_expansion=", 1)[1].rstrip("."))
    np.testing.assert_array_equal(data.bf, np.moveaxis(masks, -1, 0))


def test_many_small_bombs_are_one_large(tmp_path, monkeypatch):
    for batch in range(20):
        folder = tmp_path / f"Batch{batch}" / "H69" / "Train"
        folder.mkdir(parents=True)
        for name in ("BF", "QPI"):
            scipy.io.savemat(folder / f"H69_{name}.mat", {name: np.zeros((16, 16, 500))}, do_compression=True)
    load_cell_images(tmp_path, image_size=None)
    monkeypatch.setattr(hdf5, "FREE_BYTES", 4 * 2**20)
    with pytest.raises(ValueError, match=r"10000 cells of 20 groups would take .* set max_expansion=\d+\."):
        load_cell_images(tmp_path, image_size=None)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (float("nan"), ValueError), ("9", TypeError)])
def test_max_expansion_is_a_number(group, value, error):
    with pytest.raises(error, match="max_expansion must be"):
        load_cell_images(group.parents[2], max_expansion=value)


def test_keras_with_attributes_of_megabytes(tmp_path):
    for name in ("layer_names", "model_config"):
        with h5py.File(tmp_path / "model.h5", "w", libver="latest") as file:
            root = file.create_group("model_weights")
            root.attrs["layer_names"] = np.array([b"dense"])
            root.create_group("dense").attrs["weight_names"] = np.empty(0, "S1")
            (file if name == "model_config" else root).attrs[name] = np.bytes_(b"[" * (17 * 2**20))
        keras_refused(tmp_path / "model.h5", f"'{name}' of '/.*' declares 17825792 bytes")


def test_keras_with_deeply_nested_text(tmp_path):
    with h5py.File(keras_file(tmp_path), "r+") as file:
        del file.attrs["model_config"]
        file.attrs["model_config"] = np.bytes_(b"[" * 60_000)
    keras_refused(tmp_path / "model.h5", "cannot be read as a legacy Keras HDF5 file")


def test_keras_with_texts_that_share_one(tmp_path):
    """A hundred names that all are one text of megabytes."""
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["note"] = "x" * (3 * 2**20)
        file.create_group("model_weights").attrs["layer_names"] = ["dense"] * 100
    content = (tmp_path / "model.h5").read_bytes()
    long = re.search((3 * 2**20).to_bytes(4, "little") + b"(........)....", content, re.DOTALL)
    short = set(re.findall((5).to_bytes(4, "little") + long.group(1) + b"....", content, re.DOTALL))
    if not short:  # the names are in a collection of their own
        names = content.find(b"dense\0")
        address = content.rfind(b"GCOL", 0, names).to_bytes(8, "little")
        short = set(re.findall((5).to_bytes(4, "little") + re.escape(address) + b"....", content, re.DOTALL))
    assert len(short) == 100
    for reference in short:
        content = content.replace(reference, long.group(0))
    (tmp_path / "model.h5").write_bytes(content)
    keras_refused(tmp_path / "model.h5", "'layer_names' of '/model_weights' declares 314572800 bytes")


@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1])
def test_keras_with_a_text_that_declares_gigabytes(tmp_path, length):
    """HDF5 takes memory for the length in the attribute, whatever is stored."""
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.create_group("model_weights").attrs["layer_names"] = np.array([b"a"])
        file["model_weights"].create_group("a").attrs["weight_names"] = np.empty(0, "S1")
        file.attrs["model_config"] = "x" * 7919
    content = (tmp_path / "model.h5").read_bytes()
    address = content.find(b"GCOL").to_bytes(8, "little")
    stored = (7919).to_bytes(4, "little") + address
    assert content.count(stored) == 1
    (tmp_path / "model.h5").write_bytes(content.replace(stored, length.to_bytes(4, "little") + address))
    keras_refused(tmp_path / "model.h5", f"'model_config' of '/' declares {length} bytes")


@pytest.mark.parametrize(("offset", "value"), [(25, 1), (16, 0)])  # the size and the number of the first text
def test_keras_with_a_damaged_collection_of_texts(tmp_path, offset, value):
    """HDF5 2.0 reads such a file without end, or takes gigabytes; found by fuzzing."""
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.create_group("model_weights").attrs["layer_names"] = ["dense"]
        file.attrs["model_config"] = "x" * 300
    content = bytearray((tmp_path / "model.h5").read_bytes())
    content[content.find(b"GCOL") + offset] = value
    (tmp_path / "model.h5").write_bytes(content)
    keras_refused(tmp_path / "model.h5", "a collection of texts in it is damaged")


def test_keras_with_one_layer_listed_often(tmp_path):
    with h5py.File(tmp_path / "model.h5", "w") as file:
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = np.array([b"dense"] * 300)
        layer = root.create_group("dense")
        layer.attrs["weight_names"] = np.array([b"kernel:0", b"bias:0"])
        layer["kernel:0"], layer["bias:0"] = np.zeros((512, 512), "f4"), np.zeros(512, "f4")
    keras_refused(tmp_path / "model.h5", "all weights together would take 256 MB")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        del file["model_weights"].attrs["layer_names"]
        file["model_weights"].attrs["layer_names"] = np.array([b"a"] * 3000)
        file["model_weights"].create_group("a").attrs["weight_names"] = np.empty(0, "S1")
    keras_refused(tmp_path / "model.h5", "has more than 2000 names")


def test_keras_of_a_terabyte(tmp_path):
    with h5py.File(keras_file(tmp_path), "r+") as file:
        layer, name = first_weight(file)
        del layer[name]
        layer.create_dataset(name, (10**6, 10**6), "f4")
    keras_refused(tmp_path / "model.h5", "would take .* MB of memory")


# --- MATLAB v4 and v5 ------------------------------------------------------------------------------------------------


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def v5(*matrices: bytes, packed: bool = True) -> bytes:
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    parts = []
    for matrix in matrices:
        if packed:
            content = zlib.compress(matrix, 9)
            parts.append(struct.pack("<II", 15, len(content)) + content)
        else:
            parts.append(matrix)
    return header + b"".join(parts)


def matrix(
    shape: tuple[int, ...], data: bytes, name: bytes = b"BF", n_bytes: int | None = None, kind: int = 9
) -> bytes:
    flags = element(6, struct.pack("<II", 6, 0))
    head = flags + element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name)
    declared = len(data) if n_bytes is None else n_bytes
    body = head + struct.pack("<II", kind, declared) + data
    return struct.pack("<II", 14, len(head) + 8 + declared) + body


def v4(rows: int, columns: int, name: bytes = b"BF", data: bytes = b"") -> bytes:
    return struct.pack("<5i", 0, rows, columns, 0, len(name) + 1) + name + b"\0" + data


def test_the_files_made_here_are_sound(group):
    """What is refused below is refused for what is wrong with it."""
    for packed in (True, False):
        data = np.moveaxis(SECRET, 0, -1).tobytes("F")
        (group / "H69_BF.mat").write_bytes(v5(matrix((16, 16, 3), data), packed=packed))
        loaded = load_cell_images(group.parents[2], image_size=None)
        np.testing.assert_array_equal(loaded.bf, SECRET)
    (group / "H69_BF.mat").write_bytes(v4(16, 16, data=SECRET[0].tobytes("F")))
    scipy.io.savemat(group / "H69_QPI.mat", {"QPI": SECRET[0]})
    np.testing.assert_array_equal(load_cell_images(group.parents[2], image_size=None).bf, SECRET[:1])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (v5(matrix((1024, 1024, 64), bytes(2**29))), "would take .* MB of memory, .* times as much as the file"),
        (v5(matrix((1024, 1024, 2**20), b"", n_bytes=2**31)), "declares 2147483648 bytes of numbers"),
        (v5(matrix((2**31 - 1, 2**31 - 1, 2**31 - 1), bytes(64))), "declares 64 bytes of numbers of type 9"),
        (v5(matrix((-16, 16, -3), bytes(6144))), "impossible shape"),
        (v5(matrix((16, 16, 3), bytes(6144), b"B" * 2**26)), "the name of a variable has 67108864 bytes"),
        (v5(matrix((16, 16, 3), bytes(6144)), matrix((16, 16, 3), bytes(6144))), "two variables called 'BF'"),
        (v5(matrix((16, 16, 3), bytes(6144), kind=77)), "numbers of type 77"),
        (v5(element(13, bytes(8)), packed=False), "found an element of type 13"),
        (v5(matrix((16, 16, 3), bytes(6144)))[:-9], "ends beyond the end of the file"),
        (v5(matrix((16, 16, 3), bytes(6144)), packed=False)[:-9], "ends beyond the end of the file"),
        (v5(matrix((16, 16, 3), bytes(6144)), struct.pack("<II", 14, 0), packed=False), "a variable of 0 bytes"),
        (v4(-5, 4, data=bytes(300)) * 2, "impossible shape -5 x 4"),  # scipy would go round in circles
        (v4(2**31 - 1, 2**31 - 1), "ends beyond the end of the file"),
        (bytes(500), "the name of a variable has 0 bytes"),
        (b"\0" * 10, "too short"),
        (b"not a file of MATLAB, but text of more than a hundred bytes".ljust(300), "of no known version"),
    ],
)
def test_v4_and_v5_that_contradict_themselves(group, content, match):
    (group / "H69_BF.mat").write_bytes(content)
    refused(group, match)


def test_a_flipped_bit_in_packed_pixels_is_found(group):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(16, 16, 3))
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"BF": images}, do_compression=True)
    content = buffer.getvalue()
    n_refused = 0
    for position in range(200, len(content), len(content) // 60):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        (group / "H69_BF.mat").write_bytes(damaged)
        try:
            loaded = load_cell_images(group.parents[2], image_size=None).bf
        except ValueError as error:
            assert "cannot be read as a MATLAB file" in str(error)
            n_refused += 1
        else:  # some bits of zlib's own mean nothing
            np.testing.assert_array_equal(loaded, np.moveaxis(images, -1, 0).astype(np.float32))
    assert n_refused > 50


def test_thousands_of_variables_are_not_searched_for_long(group):
    with h5py.File(group / "H69_BF.mat", "w") as file:
        for number in range(1500):
            file.create_group(f"g{number}")
    refused(group, "none of its 1500 variables called 'BF'", bf_variable=None)


# --- Git LFS ---------------------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 21782838\n"


def test_pointers_of_git_lfs_are_called_so(group, tmp_path):
    (group / "H69_BF.mat").write_bytes(POINTER)
    refused(group, r"is a Git LFS pointer, not the file itself \(of 21782838 bytes\)\. .*`git lfs pull`")
    (tmp_path / "model.h5").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"model\.h5 is a Git LFS pointer.*`git lfs pull`"):
        load_keras_generator(tmp_path / "model.h5")


def test_the_guard_lets_sound_keras_files_through():
    for path in sorted(KERAS.glob("*.h5")):
        assert read_keras_network(path) is not None
    assert json.loads(_hdf5_text(KERAS / "generator.h5"))["class_name"]


def _hdf5_text(path: Path) -> str:
    with h5py.File(path, "r") as file:
        return hdf5.as_text(hdf5.attribute(file, "model_config"))
