"""Writing a file in one step."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
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
