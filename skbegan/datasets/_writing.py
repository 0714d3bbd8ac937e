"""Folders and MATLAB files to be written: names that every computer takes, and all files or none."""

import itertools
import re
import shutil
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_folder_names", "check_places", "folder_names", "write_all", "write_v5"]

_PORTS = [f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"]
_RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *_PORTS}
_MAX_NAME_BYTES = 255  # of one folder or file on Linux, macOS and Windows


def folder_names(labels: NDArray[Any]) -> NDArray[np.str_]:
    """Text of labels; times of day without colons, and only if there are any."""
    if labels.dtype.kind != "M":
        return labels.astype(np.str_)
    for unit in ("D", "s", "ms", "us"):
        coarse = labels.astype(f"datetime64[{unit}]")
        if (coarse == labels).all():
            labels = coarse
            break
    return np.char.replace(np.datetime_as_string(labels), ":", "")


def check_folder_names(what: str, names: Sequence[str], longest_ending: str = "") -> None:
    """Refuse names that no folder may have on Windows, which is the strictest, and that our loader passes over."""
    for name in names:
        if not name or name[-1] in ". " or re.search(r'[\\/:*?"<>|\x00-\x1f]', name):
            reason = "it is empty, ends in a dot or a space, or has a character that paths do not allow"
        elif re.search("[\ud800-\udfff]", name):
            reason = "it has half of a character (a lone surrogate)"
        elif name.split(".")[0].strip().upper() in _RESERVED_NAMES:
            reason = "Windows reserves it"
        elif is_hidden(name):
            reason = "such folders are passed over when data are loaded"
        elif (length := len(f"{name}{longest_ending}".encode())) > _MAX_NAME_BYTES:
            reason = f"with {longest_ending!r} it has {length} bytes, and {_MAX_NAME_BYTES} are allowed"
        else:
            continue
        raise ValueError(f"The {what} {name!r} cannot be the name of a folder: {reason}. Rename it.")
    folded = sorted(names, key=lambda name: (_folded(name), name))
    for one, other in itertools.pairwise(folded):
        if one != other and _folded(one) == _folded(other):
            how = "case" if one.casefold() == other.casefold() else "how letters are composed (Unicode NFC and NFD)"
            raise ValueError(
                f"The {what} labels {one!r} and {other!r} differ in {how} only, which folders may not. Rename one."
            )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def is_hidden(name: str) -> bool:
    """Say whether a folder or file is the system's own: .DS_Store, ._H69_BF.mat, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def check_places(root: Path, paths: Iterable[Path]) -> None:
    """Refuse to write through links inside of `root`, over folders, and below files.

    Raises
    ------
    ValueError
        For a link.
    NotADirectoryError, IsADirectoryError
        For a file in the place of a folder, or the other way round.
    """
    seen: set[Path] = set()
    for path in paths:
        for place in [parent for parent in reversed(path.parents) if parent.is_relative_to(root) and parent != root]:
            if place in seen:
                continue
            seen.add(place)
            if _is_link(place):
                raise ValueError(f"{place} is a link to {place.resolve()}; only folders of {root} are written to.")
            if place.exists() and not place.is_dir():
                raise NotADirectoryError(f"{place} is a file where a folder is needed.")
        if _is_link(path):
            raise ValueError(f"{path} is a link to {path.resolve()}; only files of {root} are written.")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder where a file is to be written.")


def _is_link(path: Path) -> bool:
    is_junction = getattr(path, "is_junction", None)  # Windows, from Python 3.12
    return path.is_symlink() or (is_junction is not None and is_junction())


def write_all(root: Path, writers: Sequence[tuple[Path, Callable[[Path], None]]]) -> None:
    """Write all files, each by its function, or leave everything as it was.

    They are written in a folder of their own inside `root` first. When all are complete they are moved to their places;
    if that fails, or is interrupted, those moved go back, and so do the files that they replaced.
    """
    new_root = next((place for place in [*reversed(root.parents), root] if not place.exists()), None)
    staging = root / f".{uuid.uuid4().hex}.tmp"
    made: list[Path] = []
    moved: list[tuple[Path, Path | None]] = []
    try:
        staging.mkdir(parents=True)
        for number, (_, write) in enumerate(writers):
            write(staging / f"new{number}")
        for number, (path, _) in enumerate(writers):
            made += _make_folders(path.parent)
            old = staging / f"old{number}" if path.exists() else None
            moved.append((path, old))
            if old is not None:
                path.replace(old)
            (staging / f"new{number}").replace(path)
    except BaseException:
        for number, (path, old) in reversed(list(enumerate(moved))):
            if not (staging / f"new{number}").exists():  # it was moved
                path.unlink(missing_ok=True)
            if old is not None and old.exists():
                old.replace(path)
        shutil.rmtree(staging, ignore_errors=True)
        for folder in reversed(made):
            folder.rmdir()
        if new_root is not None and new_root.exists():
            shutil.rmtree(new_root, ignore_errors=True)  # it was not there, and holds nothing but empty folders
        raise
    shutil.rmtree(staging, ignore_errors=True)


def _make_folders(folder: Path) -> list[Path]:
    missing = [place for place in [*reversed(folder.parents), folder] if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def write_v5(path: Path, variable: str, array: NDArray[Any]) -> None:
    """Write one variable into a v5 file."""
    import scipy.io

    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float32)  # the format has no half and no extended precision
    with path.open("xb") as file:
        scipy.io.savemat(file, {variable: array}, do_compression=True)
