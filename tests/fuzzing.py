"""Files to damage, ways to damage them, and what a reader may do with the result; for the fuzz tests, fast and slow."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import torch

from skbegan.datasets._matfile import inspect, read
from skbegan.io.keras import read_keras_network

KERAS = Path(__file__).parent / "data" / "keras"
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
STACK = np.random.default_rng(0).normal(size=(8, 8, 5))


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file at a few places, near its beginning as often as anywhere."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 2048)
        at = int(rng.integers(0, max(1, reach)))
        match int(rng.integers(0, 7)):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ (1 << int(rng.integers(8)))]) if at < len(data) else b""
            case 1:
                data[at : at + 1] = bytes([int(rng.integers(256))])
            case 2 | 3:  # a length, an address, a type
                width = int(rng.choice([1, 2, 4, 8]))
                value = INTERESTING[int(rng.integers(len(INTERESTING)))] % 2 ** (8 * width)
                data[at : at + width] = value.to_bytes(width, "little" if rng.random() < 0.9 else "big")
            case 4:
                del data[at : at + int(rng.integers(1, 64))]
            case 5:
                start = int(rng.integers(0, max(1, len(data))))
                piece = data[start : start + int(rng.integers(1, 64))]
                data[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece
            case _:
                if rng.random() < 0.3:
                    del data[at:]
    return bytes(data)


def read_mat(path: Path) -> np.ndarray:
    """All cells of the images of a file, as the loader reads them."""
    stack = inspect(path, None, "BF", None, 10.0)
    return np.concatenate(list(read(stack, stack.n_cells)))


def read_keras(path: Path) -> dict[str, torch.Tensor]:
    return read_keras_network(path).state_dict()


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def right_v5(path: Path, images: np.ndarray) -> bool:
    """The numbers must lie in the file one after the other, for v5 does not change what it does not pack."""
    stored = np.moveaxis(images, 0, -1)
    content = path.read_bytes()
    return any(array.tobytes("F") in content for array in (stored, stored.byteswap()))


def right_v5_packed(path: Path, images: np.ndarray) -> bool:
    """zlib's checksum covers all of a packed variable, so that nothing but the truth may come out."""
    return _same(images, np.moveaxis(STACK, -1, 0))


def right_v73(path: Path, images: np.ndarray) -> bool:
    """Some data set that is stored in the file itself must hold these numbers by h5py, read whole."""
    arrays = [array.T if array.ndim > 2 else np.atleast_2d(array).T[..., None] for array in _arrays(path)]
    return any(_same(np.moveaxis(array, -1, 0), images) for array in arrays)


def right_keras(path: Path, state: dict[str, torch.Tensor]) -> bool:
    """All weights are finite, and each is the content of some data set of the file but for the order of its axes."""
    found = {np.sort(array.astype(np.float32), axis=None).tobytes() for array in _arrays(path)}
    weights = [values.numpy() for name, values in state.items() if not name.endswith("num_batches_tracked")]
    return all(np.isfinite(w).all() and np.sort(w, axis=None).tobytes() in found for w in weights)


def _arrays(path: Path) -> list[np.ndarray]:
    """All numbers of an HDF5 file that lie in it and can be read."""
    found: list[np.ndarray] = []

    def walk(group: h5py.Group) -> None:
        for name in group:
            try:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    continue
                item = group[name]
                if isinstance(item, h5py.Group):
                    walk(item)
                elif item.dtype.kind in "biuf" and item.size < 2**22:
                    found.append(np.asarray(item[()]))
            except Exception:  # another one than was read is damaged
                continue

    with h5py.File(path, "r") as file:
        walk(file)
    return found


def v5(*, packed: bool) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"BF": STACK, "note": "text", "s": {"a": np.ones(3)}}, do_compression=packed)
    return buffer.getvalue()


def v73(*, packed: bool, libver: str = "earliest") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mat"
        with h5py.File(path, "w", userblock_size=512, libver=libver) as file:
            how = {"chunks": (2, 8, 8), "compression": "gzip", "shuffle": True} if packed else {}
            for name, values in (("BF", STACK.T), ("other", np.ones((4, 4)))):
                item = file.create_dataset(name, data=values, **(how if name == "BF" else {}))
                item.attrs["MATLAB_class"] = np.bytes_(b"double")
            file.create_group("#refs#")
            file.create_group("s").attrs["MATLAB_class"] = np.bytes_(b"struct")
        return path.read_bytes()


@dataclass(frozen=True)
class Target:
    """Sound files, their reader, and whether what it returns is right."""

    files: list[bytes]
    read: Callable
    right: Callable


def targets() -> dict[str, Target]:
    """Return what is fuzzed, by name."""
    hdf5 = [v73(packed=packed, libver=libver) for packed in (False, True) for libver in ("earliest", "latest")]
    keras = [(KERAS / name).read_bytes() for name in ("batch_mlp2.h5", "batch_mlp1.h5", "batch_mlp3.h5")]
    return {
        "MATLAB v5": Target([v5(packed=False)], read_mat, right_v5),
        "MATLAB v5, packed": Target([v5(packed=True)], read_mat, right_v5_packed),
        "MATLAB v7.3": Target(hdf5, read_mat, right_v73),
        "Keras": Target(keras, read_keras, right_keras),
    }


def outcome(target: Target, content: bytes, path: Path) -> str:
    """Read a damaged file: "refused", "right", or a failure in words."""
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = target.read(path)
    except ValueError as error:
        return "refused" if str(path) in str(error) else f"a message without the file's name: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    try:
        return "right" if target.right(path, found) else "silently wrong"
    except Exception as error:
        return f"read, but not by the other reader ({type(error).__name__}: {str(error)[:80]})"
