"""Predictions that go block by block into an array of the caller, or lazily into one of dask."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from skbegan.stored.adapters import as_lazy, map_stamp
from skbegan.stored.atomic import write_whole
from skbegan.stored.lazy import LazyRows, in_order

if TYPE_CHECKING:
    from skbegan.model import FittedModel

__all__ = ["Predictor", "check_out", "lazily", "write_into"]

_NAME = "skbegan_written"  # of the attribute that says how far a file was written
_PARTS = 16  # least parts of the inference that are written at once: 4 million pixels on a CPU
_HELD = 2**24  # bytes of results, at most, that are held until whole chunks of the output are full
_ONE_AT_A_TIME = threading.Lock()  # dask computes blocks in several threads; PyTorch has its own


class _Place(Protocol):
    """Where it is noted how far an output was written, by whom."""

    def read(self) -> dict[str, Any] | None: ...

    def write(self, note: dict[str, Any] | None) -> None:
        """Write the output through to the disk, then the note; None removes it."""


class _Nowhere:
    """Of an array in memory, which is gone when the process is."""

    def read(self) -> dict[str, Any] | None:
        return None

    def write(self, note: dict[str, Any] | None) -> None:
        pass


class _BesideFile:
    """Of a memory map: a file beside it."""

    def __init__(self, array: np.ndarray, file: Path) -> None:
        self.array, self.path = array, file.with_name(f"{file.name}.{_NAME}.json")

    def read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, note: dict[str, Any] | None) -> None:
        whole: Any = self.array
        while not hasattr(whole, "flush"):
            whole = whole.base
        whole.flush()
        if note is None:
            self.path.unlink(missing_ok=True)
        else:
            write_whole(self.path, json.dumps(note).encode())


class _Attribute:
    """Of a data set of h5py or an array of zarr: one of its attributes."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.array.attrs.get(_NAME, "null"))
        except (TypeError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, note: dict[str, Any] | None) -> None:
        file = getattr(self.array, "file", None)
        if file is not None:  # pixels first, so that a note never says more than what is there
            file.flush()
        if note is not None:
            self.array.attrs[_NAME] = json.dumps(note)
        elif _NAME in self.array.attrs:
            del self.array.attrs[_NAME]
        if file is not None:
            file.flush()


def check_out(out: Any, shape: tuple[int, ...]) -> None:
    """Refuse an output that the results cannot be written to.

    Raises
    ------
    TypeError
        For something that is no array.
    ValueError
        For another shape, a dtype that does not hold float32, or an array that is only read.
    """
    if not (hasattr(out, "shape") and hasattr(out, "dtype") and hasattr(out, "__setitem__")) or hasattr(out, "dask"):
        raise TypeError(
            f"out must be an array, a memory map, a data set of h5py or an array of zarr, got {type(out).__name__}"
        )
    if tuple(out.shape) != shape:
        raise ValueError(f"out has the shape {tuple(out.shape)}, but the results have {shape}")
    if not np.can_cast(np.float32, out.dtype, "safe") or np.dtype(out.dtype).kind != "f":
        raise ValueError(f"out has dtype {out.dtype}, which does not hold float32; make it with dtype='float32'")
    flags = getattr(out, "flags", None)
    file = getattr(out, "file", None)
    if (
        (flags is not None and not flags.writeable)
        or getattr(file, "mode", None) == "r"
        or getattr(out, "read_only", False)
    ):
        raise ValueError("out can only be read; open it for writing (mode='r+')")


def write_into(
    out: Any, images: Any, predict: Callable[[np.ndarray], np.ndarray], part: int, model_key: Callable[[], str]
) -> Any:
    """Predict block by block into `out`, from where an earlier call with the same arguments stopped.

    Parameters
    ----------
    out : array
        That :func:`check_out` has passed.
    images : ndarray or LazyRows
        Checked brightfields.
    predict : callable
        From some images to results.
    part : int
        Cells that are predicted at once: blocks are multiples, so that the numbers are those of all cells at once.
    model_key : callable
        Returns what tells the model and the way of inference from others; asked where there is something to resume.

    Returns
    -------
    out : array
    """
    place, rows = _place_of(out), _rows_at_once(out, part)
    note: dict[str, Any] = {}
    start = 0
    if not isinstance(place, _Nowhere):
        note = {"key": _digest(model_key(), _key_of(images), str(len(images))), "rows": rows}
        found = place.read()
        if found is not None and {name: found.get(name) for name in note} == note:
            done = found.get("done")
            start = done if type(done) is int and 0 <= done <= len(images) and done % rows == 0 else 0
    least = _PARTS * part
    size = rows if rows < 2 * least else math.gcd(rows, least)  # fewer images than results where chunks are long
    results, n = np.empty(0, np.float32), 0
    for block in in_order(images, size, start):
        result = predict(block)
        if n == 0:
            results = np.empty((min(rows, len(images) - start), *result.shape[1:]), result.dtype)
        results[n : n + len(block)] = result
        n += len(block)
        if n == len(results):
            out[start : start + n] = results
            start, n = start + n, 0
            if start < len(images):
                place.write({**note, "done": start})
    place.write(None)
    return out


def lazily(
    images: Any, predict: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], part: int, key: str
) -> Any:
    """Return an array of dask of the results for one of brightfields; nothing is read or computed.

    Parameters
    ----------
    images : dask.array.Array
    predict : callable
        From some images to results; has to be pickled where dask works in other processes.
    shape : tuple of int
        Of one result.
    part : int
        Blocks of cells start at multiples of it, so that the numbers are those of all cells at once.
    key : str
        Of the model: equal ones give arrays of the same name.
    """
    import dask.array as da

    bounds = np.cumsum(images.chunks[0])
    bounds = np.unique(np.append(bounds[:-1] // part * part, bounds[-1]))
    rows = tuple(np.diff(bounds, prepend=0)[bounds > 0].tolist())
    images = images.rechunk((rows, *images.shape[1:]))
    drop, new = (
        ([], []) if len(shape) == images.ndim - 1 else (list(range(1, images.ndim)), list(range(1, 1 + len(shape))))
    )
    return da.map_blocks(
        _OneBlock(predict),
        images,
        dtype=np.float32,
        chunks=(images.chunks[0], *((length,) for length in shape)),
        drop_axis=drop,
        new_axis=new,
        meta=np.empty((0,) * (1 + len(shape)), np.float32),
        token=_digest(key, images.name),
    )


@dataclass(frozen=True)
class Predictor:
    """What makes results of checked brightfields: a model, and how it is run. Can be pickled.

    Attributes
    ----------
    model : FittedModel
    want : {"features", "images"}
    device, precision : str
    minibatch_size : int or None
        None uses population statistics.
    as_batches : tuple of int or None
        Codes of batches in whose style images are.
    check : callable or None
        Of the images, before each call.
    """

    model: FittedModel
    want: Literal["features", "images"]
    device: str
    precision: str
    minibatch_size: int | None = None
    as_batches: tuple[int, ...] | None = None
    check: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, bf: np.ndarray) -> np.ndarray:
        bf = bf if self.check is None else self.check(bf)
        how: dict[str, Any] = {
            "device": self.device,
            "precision": self.precision,
            "minibatch_size": self.minibatch_size,
        }
        values = self.model.predict(bf, self.want, **how)
        if self.want == "features":
            return values
        if self.as_batches is not None:
            assert self.model.styles is not None
            values = self.model.styles.apply(values, np.array(self.as_batches), *self.model.target_scaling)
        images = np.moveaxis(values, 1, -1)
        return images[..., 0] if len(self.model.target_shape) == 2 else np.ascontiguousarray(images)

    def after(self, check: Callable[[np.ndarray], np.ndarray]) -> Predictor:
        """Return one that checks the images first."""
        return dataclasses.replace(self, check=check)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result of one cell."""
        return (self.model.n_features,) if self.want == "features" else tuple(self.model.target_shape)

    @property
    def part(self) -> int:
        """Cells that are predicted at once."""
        from skbegan.core.inference import chunk_size

        return self.minibatch_size or chunk_size(self.model.image_shape[0])

    def key(self) -> str:
        """Return what tells model and inference from others."""
        return _digest(
            self.model.fingerprint(),
            self.want,
            self.device,
            self.precision,
            repr((self.minibatch_size, self.as_batches)),
        )


class _OneBlock:
    """Predicts one block; threads of dask wait for each other."""

    def __init__(self, predict: Callable[[np.ndarray], np.ndarray]) -> None:
        self.predict = predict

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with _ONE_AT_A_TIME:
            return self.predict(np.asarray(images))


def _place_of(out: Any) -> _Place:
    if isinstance(out, np.ndarray):
        stamp = map_stamp(out)
        return _Nowhere() if stamp is None else _BesideFile(out, Path(stamp[1][0]))
    return _Attribute(out) if hasattr(out, "attrs") else _Nowhere()


def _rows_at_once(out: Any, part: int) -> int:
    """Return how many rows are written at once: whole parts, and chunks of the output if they are not too large."""
    least = _PARTS * part
    lazy = None if isinstance(out, np.ndarray) else as_lazy(out)
    bounds = None if lazy is None else lazy.blocks()
    if bounds is None:
        return least
    both = math.lcm(part, int(bounds[1]))
    rows = -(-least // both) * both
    return least if rows >= 2 * least and rows * math.prod(out.shape[1:]) * out.dtype.itemsize > _HELD else rows


def _key_of(images: Any) -> str:
    if isinstance(images, LazyRows):
        return images.fingerprint()
    found = hashlib.blake2b(repr((images.shape, images.dtype.str)).encode(), digest_size=16)
    for part in in_order(images, 1024):
        found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
