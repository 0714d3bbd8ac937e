"""HDF5 files from strangers: nothing is read that lies elsewhere, is not stored, or is far larger than the file.

HDF5 can point anywhere: links and virtual or external data make a reader open other files of the computer, and a shape
of terabytes fits into a few bytes. What is read is looked at first, from the headers alone. Imports nothing of ours.
"""

from __future__ import annotations

import math
import mmap
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import h5py

__all__ = [
    "EXPANSION",
    "FREE_BYTES",
    "RefusedError",
    "TooLargeError",
    "as_text",
    "attribute",
    "check_dataset",
    "check_size",
    "link_of",
    "member",
]

EXPANSION = 10.0  # content in memory may be so many times as large as its file ...
FREE_BYTES = 256 * 2**20  # ... once it is larger than this
_MAX_ATTRIBUTE_BYTES = 16 * 2**20
_REFERENCE_BYTES = 16  # to a text of any length: its length, the address of its collection, its number there
_MIN_CHUNK_BYTES = 512  # smaller chunks, if there are many, take seconds per megabyte
_MANY_CHUNKS = 2_000
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}  # others may load plug-ins; MATLAB and Keras write none


class RefusedError(ValueError):
    """The file holds something that is not read; the message says what and why."""


class TooLargeError(RefusedError):
    """The content is too many times as large as its file. `times` says how many."""

    def __init__(self, message: str, times: float) -> None:
        super().__init__(message)
        self.times = times


def check_size(what: str, n_bytes: int, file_bytes: int, expansion: float = EXPANSION) -> None:
    """Refuse what takes more memory than `expansion` times its file, unless it is less than 256 MB.

    Raises
    ------
    TooLargeError
    """
    if n_bytes > max(FREE_BYTES, expansion * file_bytes):
        times = n_bytes / max(1, file_bytes)
        raise TooLargeError(
            f"{what} would take {n_bytes / 2**20:.0f} MB of memory, {times:.0f} times as much as the file of "
            f"{file_bytes} bytes, of which up to {expansion:g} times are read",
            times,
        )


def link_of(group: h5py.Group, name: str) -> str | None:
    """Say where an entry of a group leads, without going there; None if it is stored in the group itself."""
    import h5py

    try:
        link = group.get(name, getlink=True)
    except TypeError:  # links of a kind that some program defined
        return "a link of an unknown kind"
    if isinstance(link, h5py.ExternalLink):
        return f"a link to {link.path!r} in the file {link.filename!r}"
    if isinstance(link, h5py.SoftLink):
        return f"a link to {link.path!r}"
    return None


def member(group: h5py.Group, path: str) -> Any:
    """Return what is stored under a path below a group, or None; never follow a link.

    Raises
    ------
    RefusedError
        If a step of the path is a soft, an external or an unknown link.
    """
    node: Any = group
    for step in path.split("/"):
        if not step:
            continue
        if not hasattr(node, "get") or step in (".", "..") or node.get(step, getclass=True, getlink=True) is None:
            return None
        if (target := link_of(node, step)) is not None:
            raise RefusedError(
                f"{path!r} is not stored there: {step!r} is {target}. Only what a file holds itself is read; copy it in"
            )
        node = node.get(step)
    return node


def attribute(node: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Return an attribute, or None if there is none.

    Raises
    ------
    RefusedError
        If it declares more than 16 MB, or is of a kind that is not read.
    """
    import h5py

    if name not in node.attrs:
        return None
    header = h5py.h5a.open(node.id, name.encode())
    kind = header.get_type()
    entries = header.get_space().get_simple_extent_npoints()
    n_bytes = entries * kind.get_size()
    if isinstance(kind, h5py.h5t.TypeVlenID):
        raise RefusedError(f"the attribute {name!r} of {node.name!r} is of a kind that neither MATLAB nor Keras writes")
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str() and n_bytes <= _MAX_ATTRIBUTE_BYTES:
        n_bytes = _declared_by_texts(node.file, name, entries)
    if n_bytes > _MAX_ATTRIBUTE_BYTES:
        raise RefusedError(f"the attribute {name!r} of {node.name!r} declares {n_bytes} bytes, too many for one")
    return node.attrs[name]


def _declared_by_texts(file: h5py.File, name: str, entries: int) -> int:
    """Return the most bytes that texts of any length in an attribute of this name and number of entries declare.

    HDF5 takes memory for the length that each declares before it looks at what is stored, and many may share one text.
    h5py does not tell these lengths, so the attribute is looked for in the file itself, as HDF5's File Format
    Specification 3.0 lays it out (IV.A.2.m, the attribute message).
    """
    path = Path(file.filename)
    status = path.stat()
    found = _texts_declared(path, name.encode(), status.st_size, status.st_mtime_ns)
    if entries not in found:
        raise RefusedError(f"the attribute {name!r} is damaged")
    return found[entries]


@lru_cache(maxsize=32)  # attributes of one name belong to many layers or variables
def _texts_declared(path: Path, name: bytes, n_bytes: int, changed: int) -> dict[int, int]:
    """Number of entries -> most bytes declared, of all attributes of a name in a file."""
    found: dict[int, int] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_collections(content)
        at = content.find(name + b"\0")
        while at >= 0:
            for start, version in ((at - 8, 1), (at - 8, 2), (at - 9, 3)):
                if start >= 0 and content[start] == version:
                    lengths = _lengths_of_texts(content, start, version)
                    if lengths is not None:
                        found[len(lengths)] = max(found.get(len(lengths), 0), sum(lengths))
            at = content.find(name + b"\0", at + 1)
    return found


def _check_collections(content: mmap.mmap) -> None:
    """Refuse damaged collections of texts (III.E of the same specification); HDF5 may read them without end."""
    start = content.find(b"GCOL\1")
    while start >= 0:
        stop = start + int.from_bytes(content[start + 8 : start + 16], "little")
        at, number = start + 16, 1
        while number and at + 16 <= stop <= len(content):
            number = int.from_bytes(content[at : at + 2], "little")
            size = int.from_bytes(content[at + 8 : at + 16], "little")
            at += 16 + -(-size // 8) * 8 if number else size  # number 0 is what is free, up to the end
        if (at != stop and (not number or at > stop or stop - at >= 16)) or stop > len(content):
            raise RefusedError("a collection of texts in it is damaged")
        start = content.find(b"GCOL\1", start + 4)


def _lengths_of_texts(content: mmap.mmap, start: int, version: int) -> list[int] | None:
    """Lengths that the texts of an attribute message declare; None if there is no such message."""
    sizes = [int.from_bytes(content[start + offset : start + offset + 2], "little") for offset in (2, 4, 6)]
    name_size, type_size, space_size = [-(-size // 8) * 8 for size in sizes] if version == 1 else sizes
    space = start + (9 if version == 3 else 8) + name_size + type_size
    rank = content[space + 1] if space + 4 <= len(content) else 255
    if rank > 4 or content[space] not in (1, 2):
        return None
    dimensions = space + (8 if content[space] == 1 else 4)
    shape = [
        int.from_bytes(content[dimensions + 8 * axis : dimensions + 8 * axis + 8], "little") for axis in range(rank)
    ]
    data, entries = space + space_size, math.prod(shape)
    stop = data + _REFERENCE_BYTES * entries
    if stop > len(content):
        return None
    return [int.from_bytes(content[at : at + 4], "little") for at in range(data, stop, _REFERENCE_BYTES)]


def check_dataset(data: h5py.Dataset, n_bytes: int, expansion: float = EXPANSION) -> None:
    """Refuse a data set that is not wholly stored in its own file, or takes far more memory than the file is large.

    Parameters
    ----------
    data : h5py.Dataset
    n_bytes : int
        Memory that it will take.
    expansion : float, default=10
        How many times the size of the file that may be, beyond 256 MB, which are always allowed.

    Raises
    ------
    RefusedError
    """
    import h5py

    what = f"the data set {data.name!r}"
    layout = data.id.get_create_plist()
    if data.is_virtual or layout.get_layout() == h5py.h5d.VIRTUAL:
        raise RefusedError(f"{what} is virtual: it shows data of other files. Only what a file holds itself is read")
    if layout.get_external_count():
        raise RefusedError(f"{what} lies in another file. Only what a file holds itself is read")
    file_bytes = Path(data.file.filename).stat().st_size
    declared = math.prod(data.shape) * data.dtype.itemsize
    check_size(f"{what} of shape {data.shape}", max(n_bytes, declared), file_bytes, expansion)
    stored = data.id.get_storage_size()
    if layout.get_layout() != h5py.h5d.CHUNKED:
        if stored < declared or declared > file_bytes:
            raise RefusedError(
                f"{what} of shape {data.shape} declares {declared} bytes, of which {min(stored, file_bytes)} are stored"
            )
    elif declared:
        _check_chunks(data, layout, f"{what} of shape {data.shape}", file_bytes, expansion)


def _check_chunks(data: h5py.Dataset, layout: Any, what: str, file_bytes: int, expansion: float) -> None:
    filters = [layout.get_filter(position)[0] for position in range(layout.get_nfilters())]
    if unknown := [number for number in filters if number not in _FILTERS]:
        raise RefusedError(f"{what} is packed with the HDF5 filter {unknown[0]}; those read are {_FILTERS}")
    chunk_bytes = math.prod(data.chunks) * data.dtype.itemsize
    n_chunks = math.prod(-(-length // chunk) for length, chunk in zip(data.shape, data.chunks, strict=True))
    if n_chunks > _MANY_CHUNKS and chunk_bytes < _MIN_CHUNK_BYTES:
        raise RefusedError(f"{what} lies in {n_chunks} pieces of {chunk_bytes} bytes, too small to be read in time")
    check_size(f"{what} in pieces of shape {data.chunks}", n_chunks * chunk_bytes, file_bytes, expansion)
    if data.id.get_num_chunks() != n_chunks:
        raise RefusedError(f"{what} lies in {n_chunks} pieces, of which not all are stored; the rest would be zeros")


def as_text(value: Any) -> str:
    """Return an attribute's text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes | np.bytes_) else str(value)
