"""Writing a file, or a folder that stands for one, in one step."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_TRIES, _PAUSE = 6, 0.05  # seconds


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside `path` under a name of its own, flush it to the disk and move it there in one step.

    What fails leaves an earlier file as it was, and no draft.

    Raises
    ------
    OSError
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        patiently(lambda: draft.replace(path))
    finally:
        draft.unlink(missing_ok=True)


def patiently(action: Callable[[], T]) -> T:
    """Return what `action` does, tried again for a moment: Windows refuses while another process has the file open."""
    for _ in range(_TRIES - 1):
        try:
            return action()
        except PermissionError:
            time.sleep(_PAUSE)
    return action()


def check_new(path: Path, overwrite: bool, kind: str = "file") -> None:
    """Refuse a place that nothing can be written to, or that holds something that is not to be replaced.

    Parameters
    ----------
    path : Path
    overwrite : bool
        Whether what is there may be replaced.
    kind : {"file", "folder"}
        What is to be written.

    Raises
    ------
    FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    if not path.exists() and not path.is_symlink():
        return
    if kind == "file" and path.is_dir():
        raise IsADirectoryError(f"{path} is a folder where a file is to be written; give another name")
    if kind == "folder" and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file where a folder is to be written; give another name")
    if not overwrite:
        raise FileExistsError(f"{path} exists; overwrite=True replaces it")


@contextmanager
def in_one_step(path: Path) -> Iterator[Path]:
    """Give the name of a draft beside `path`, for a file or a folder, and move it there when the block has ended well.

    What fails, or is interrupted, leaves what was there as it was, and no draft.

    Raises
    ------
    OSError
    """
    mark = uuid.uuid4().hex[:8]
    draft, old = path.with_name(f".{mark}.tmp.{path.name}"), path.with_name(f".{mark}.old.{path.name}")
    try:
        yield draft
        if draft.is_dir():
            if path.exists():
                patiently(lambda: path.replace(old))
            try:
                patiently(lambda: draft.replace(path))
            except BaseException:
                if old.exists():
                    old.replace(path)
                raise
        else:
            with draft.open("r+b") as file:
                os.fsync(file.fileno())
            patiently(lambda: draft.replace(path))
    finally:
        for rest in (draft, old):
            if rest.is_dir():
                shutil.rmtree(rest, ignore_errors=True)
            else:
                rest.unlink(missing_ok=True)
