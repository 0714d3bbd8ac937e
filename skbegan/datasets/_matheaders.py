"""The headers of MATLAB v4 and v5 files: what scipy may be asked to read without surprises.

scipy believes the sizes that a file declares. A few kilobytes of zlib can then take gigabytes, and a negative size
makes it go round in circles. So all headers are read here first, a few kilobytes of each variable; scipy reads the
numbers afterwards.
The format is described in MathWorks' "MAT-File Format" (R2024a).
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["Variable", "read_headers"]

_CLASSES = {
    1: "cell",
    2: "struct",
    3: "object",
    4: "char",
    5: "sparse",
    6: "double",
    7: "single",
    8: "int8",
    9: "uint8",
    10: "int16",
    11: "uint16",
    12: "int32",
    13: "uint32",
    14: "int64",
    15: "uint64",
    16: "function",
    17: "opaque",
}
_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # of the types in which numbers are stored
_MATRIX, _COMPRESSED, _INT32, _UINT32, _INT8, _UTF8 = 14, 15, 5, 6, 1, 16
_HEAD_BYTES = 8192  # more than the header of any variable that MATLAB writes
_MAX_NAME = 2048  # MATLAB allows 63, in 2026 2048
_MAX_AXES = 32
_MAX_VARIABLES = 10_000
_V4_BYTES = (8, 4, 4, 2, 2, 1)  # of the types of numbers of v4


class DamagedError(ValueError):
    """The file contradicts itself or its format."""


@dataclass(frozen=True)
class Variable:
    """One variable, from its header. `item_bytes` are those in which a number is stored."""

    name: str
    matlab_class: str
    shape: tuple[int, ...]
    item_bytes: int


def read_headers(path: Path) -> list[Variable]:
    """Return the variables of a v4 to v7 file, in the order of the file.

    Raises
    ------
    DamagedError
        If sizes contradict each other or the length of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(128)
        if len(head) < 20:
            raise DamagedError("the file is too short for a header")
        if 0 in head[:4]:
            return _headers_v4(file, size)
        # As scipy does: the version tells the byte order, so that both readers agree on what the file is.
        if len(head) < 128 or head[124 + (head[126:127] == b"I")] != 1:
            raise DamagedError("it is of no known version of MATLAB's format")
        order = "<" if head[126:128] == b"IM" else ">"
        if head[126:128] not in (b"IM", b"MI"):
            raise DamagedError("its header does not tell the order of bytes")
        return _headers_v5(file, size, order)


def _headers_v5(file: BinaryIO, size: int, order: str) -> list[Variable]:
    variables = []
    position = 128
    while position < size:
        file.seek(position)
        kind, n_bytes = _unpack(order + "II", file.read(8))
        position += 8 + n_bytes
        if n_bytes == 0 or position > size:
            raise DamagedError(f"a variable of {n_bytes} bytes ends beyond the end of the file")
        content = file.read(min(n_bytes, _HEAD_BYTES))
        if kind == _COMPRESSED:
            content = zlib.decompressobj().decompress(content, _HEAD_BYTES)
            kind, n_bytes = _unpack(order + "II", content)
            content = content[8:]
        if kind != _MATRIX:
            raise DamagedError(f"expected a variable, found an element of type {kind}")
        variables.append(_variable_v5(content, n_bytes, order))
        if len(variables) > _MAX_VARIABLES:
            raise DamagedError(f"it holds more than {_MAX_VARIABLES} variables")
    return [variable for variable in variables if variable.name]  # without a name: MATLAB's own store for objects


def _variable_v5(content: bytes, n_bytes: int, order: str) -> Variable:
    """Read one variable's header: flags, dimensions, name, and how many numbers follow."""
    kind, length, position, _ = _element(content, 0, order)
    if kind != _UINT32 or length != 8:
        raise DamagedError("the flags of a variable are damaged")
    (flags,) = _unpack(order + "I", content[8:12])
    code = flags & 0xFF
    if code == 17:  # an object of MATLAB: its name comes first, and there are no dimensions
        _, length, _, data = _element(content, position, order)
        return Variable(_name(data, length), "opaque", (), 0)
    kind, length, position, data = _element(content, position, order)
    if kind != _INT32 or length % 4 or not 8 <= length <= 4 * _MAX_AXES or len(data) < length:
        raise DamagedError("the dimensions of a variable are damaged")
    shape = _unpack(f"{order}{length // 4}i", data)
    if min(shape) < 0:
        raise DamagedError(f"a variable has the impossible shape {shape}")
    kind, length, position, data = _element(content, position, order)
    if kind not in (_INT8, _UTF8):
        raise DamagedError("the name of a variable is damaged")
    name = _name(data, length)
    matlab_class = _CLASSES.get(code, f"unknown ({code})")
    if not 6 <= code <= 15:
        return Variable(name, matlab_class, shape, 0)
    matlab_class = "complex" if flags & 0x800 else "logical" if flags & 0x200 else matlab_class
    count = math.prod(shape)
    item_bytes = 0
    if count:
        kind, length, position, _ = _element(content, position, order)
        item_bytes = _ITEM_BYTES.get(kind, 0)
        if not item_bytes or length != count * item_bytes or length > n_bytes:
            raise DamagedError(f"{name!r} of shape {shape} declares {length} bytes of numbers of type {kind}")
    return Variable(name, matlab_class, shape, item_bytes)


def _element(content: bytes, position: int, order: str) -> tuple[int, int, int, bytes]:
    """Return type, length, position after it and data of an element; the data of a long one are cut."""
    (first,) = _unpack(order + "I", content[position : position + 4])
    if first >> 16:  # small: type and length share four bytes, the data lie in the next four
        kind, length = first & 0xFFFF, first >> 16
        if length > 4:
            raise DamagedError("a small element is longer than 4 bytes")
        return kind, length, position + 8, content[position + 4 : position + 4 + length]
    (length,) = _unpack(order + "I", content[position + 4 : position + 8])
    after = position + 8 + length + -length % 8
    return first, length, after, content[position + 8 : position + 8 + length]


def _name(data: bytes, length: int) -> str:
    if length > _MAX_NAME or len(data) < length:
        raise DamagedError(f"the name of a variable has {length} bytes")
    return data.decode("latin-1")  # as scipy


def _unpack(form: str, data: bytes) -> tuple[int, ...]:
    if len(data) < struct.calcsize(form):
        raise DamagedError("a header ends too soon")
    return struct.unpack_from(form, data)


def _headers_v4(file: BinaryIO, size: int) -> list[Variable]:
    """Read v4: five numbers, the name, the data; matrices only."""
    variables = []
    position = 0
    order = "<"
    while position < size:
        file.seek(position)
        head = file.read(20)
        if position == 0:
            (kind,) = _unpack("<i", head)
            order = "<" if 0 <= kind <= 5000 else ">"
        kind, rows, columns, imaginary, name_bytes = _unpack(order + "5i", head)
        number, matrix = kind // 10 % 10, kind % 10
        if not (0 <= kind < 5000 and kind // 1000 in (0, 1) and kind // 100 % 10 == 0 and number < 6 and matrix < 3):
            raise DamagedError(f"a variable has the unknown type {kind}")
        if (kind // 1000 == 0) != (order == "<") or min(rows, columns) < 0 or imaginary not in (0, 1):
            raise DamagedError(f"a variable has the impossible shape {rows} x {columns}")
        if not 0 < name_bytes <= _MAX_NAME:
            raise DamagedError(f"the name of a variable has {name_bytes} bytes")
        name = file.read(name_bytes).split(b"\0")[0].decode("latin-1")
        n_bytes = rows * columns * _V4_BYTES[number] * (2 if imaginary and matrix != 2 else 1)
        position += 20 + name_bytes + n_bytes
        if position > size:
            raise DamagedError(f"{name!r} of {n_bytes} bytes ends beyond the end of the file")
        matlab_class = ("complex" if imaginary else "double", "char", "sparse")[matrix]
        variables.append(Variable(name, matlab_class, (rows, columns), _V4_BYTES[number]))
        if len(variables) > _MAX_VARIABLES:
            raise DamagedError(f"it holds more than {_MAX_VARIABLES} variables")
    return variables
